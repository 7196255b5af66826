"""Cost of scoring an image in every form of deployment, beside open_clip's ``encode_image`` and anomalib's models.

Not a test: run ``python tests/benchmarks/deployment_speed.py``; ``--help`` lists the options. Weights are random, as
they change no cost, and references are random features. Every figure is the processor time of one thread, measured in
turn, round by round, so that a drift of the machine's speed meets all alike; the ratio's median is what counts.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

import numpy as np
import torch

from anomalib_inctrl import InCTRLv2
from anomalib_inctrl.clip import ImageFeatures, create_clip
from anomalib_inctrl.quantisation import quantise_encoder
from anomalib_inctrl.runtime import InContextDetector
from anomalib_inctrl.runtime_export import export_runtime, save_bank

if TYPE_CHECKING:
    from collections.abc import Callable

    Call = Callable[[np.ndarray], object]

OURS = ("eager", "bf16", "compiled", "onnx", "openvino", "int8")
OTHERS = ("winclip", "patchcore", "anomalydino")
ENGINES = {"onnx": "onnx", "openvino": "openvino", "int8": "openvino"}


def build(backbone: str) -> InCTRLv2:
    """InCTRLv2 in the full formula with random weights."""
    model = InCTRLv2(backbone=backbone, pretrained=None, weights="random", visualizer=False).eval()
    width = model.model.backbone.embed_dim
    model.model._text_prototypes["object"] = torch.nn.functional.normalize(torch.randn(2, width), dim=-1)
    return model


def give_references(model: InCTRLv2, count: int) -> None:
    """Random features in the place of references; scores do not matter here."""
    torch_model, backbone = model.model, model.model.backbone
    patches = torch_model.references.views * backbone.num_patches
    torch_model.references.clear()
    torch_model.references.extend(
        "object",
        ImageFeatures(
            torch.randn(count, len(backbone.layers), patches, backbone.width),
            torch.randn(count, backbone.embed_dim),
        ),
        torch_model.text_prototypes("object"),
        torch.zeros(count, 3, *backbone.image_size, dtype=torch.uint8),
    )
    model.reference_record = None


def as_tensor(images: np.ndarray) -> torch.Tensor:
    """Images ``(B, H, W, 3)``, uint8, as the models take them."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


class Forms:
    """Calls by name; what takes long to prepare is prepared on first use.

    Args:
        backbone (str): open_clip architecture.
        work (Path): Directory for exports.
    """

    def __init__(self, backbone: str, work: Path) -> None:
        self.model = build(backbone)
        self.plain = create_clip(backbone, None).eval()
        self.work = work
        self._side = self.model.model.backbone.image_size[0]
        self._compiled: Call | None = None
        self._detectors: dict[str, InContextDetector] = {}

    def call(self, name: str, k_shot: int, share: float) -> Call:
        """One of :data:`OURS` or :data:`OTHERS` with K references, of which a share of the patches is kept."""
        if name in ENGINES:
            return self._runtime(name, k_shot, share)
        if name in OTHERS:
            return getattr(self, f"_{name}")(k_shot)
        if share < 1:
            msg = "The torch model takes whole references."
            raise ValueError(msg)
        if self.model.model.references.count() != k_shot:
            give_references(self.model, k_shot)
        if name == "compiled":
            self._compiled = self._compiled or torch.compile(self.model.model, dynamic=True)
            pre, post = self.model.pre_processor, self.model.post_processor
            return lambda images: post(self._compiled(pre(as_tensor(images))))
        if name == "bf16":
            return self._autocast
        return lambda images: self.model(as_tensor(images))

    def encode_image(self, images: np.ndarray) -> object:
        """What all is measured by."""
        return self.plain.encode_image(as_tensor(images))

    def _autocast(self, images: np.ndarray) -> object:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.model(as_tensor(images))

    def _runtime(self, name: str, k_shot: int, share: float) -> Call:
        folder = self._export(name)
        if name not in self._detectors:
            self._detectors[name] = InContextDetector(folder, engine=ENGINES[name], threads=1)
        detector, category = self._detectors[name], f"{k_shot}-{share}"
        if category not in detector.categories:
            give_references(self.model, k_shot)
            with patch("anomalib_inctrl.runtime_export.model_fingerprint", lambda _: detector.model["fingerprint"]):
                bank = detector._keep(category, detector_bank(self.model, folder, detector))
            if share < 1:
                detector._keep(category, bank.reduce(share))
        return lambda images: detector.predict(list(images), category, batch_size=len(images))

    def _export(self, name: str) -> Path:
        """Directory of an export; the graphs are traced once."""
        whole, quantised = self.work / "fp32", self.work / "int8"
        if not whole.exists():
            self.model.model.references.clear()
            export_runtime(self.model, whole, formats=["onnx", "openvino"])
        if name == "int8" and not quantised.exists():
            import openvino

            noise = np.random.default_rng(0).random((4, 3, self._side, self._side), dtype=np.float32)
            graph = quantise_encoder(openvino.Core().read_model(whole / "encoder.xml"), noise)
            shutil.copytree(whole, quantised, ignore=shutil.ignore_patterns("*.onnx*", "encoder.*"))
            openvino.save_model(graph, quantised / "encoder.xml", compress_to_fp16=False)
        return quantised if name == "int8" else whole

    def _winclip(self, k_shot: int) -> Call:
        from anomalib.models.image.winclip import torch_model as winclip

        def collect(model: torch.nn.Module, _class_name: str) -> None:
            model._text_embeddings = torch.nn.functional.normalize(torch.randn(2, 640), dim=-1)

        references = torch.rand(k_shot, 3, self._side, self._side)
        with (
            patch.object(winclip, "PRETRAINED", None),
            patch.object(winclip.WinClipModel, "_collect_text_embeddings", collect),
        ):
            model = winclip.WinClipModel("object", references).eval()
        return lambda images: model(as_tensor(images))

    def _patchcore(self, k_shot: int) -> Call:
        from anomalib.models.image.patchcore.torch_model import PatchcoreModel

        model = PatchcoreModel(layers=["layer2", "layer3"], pre_trained=False).eval()
        model.memory_bank = torch.randn(max(1, k_shot * 28 * 28 // 10), 1536)  # 224 pixels, a tenth kept: the defaults
        return lambda images: model(torch.nn.functional.interpolate(as_tensor(images), (224, 224)))

    def _anomalydino(self, k_shot: int) -> Call:
        import timm
        from anomalib.models.image.anomaly_dino.torch_model import AnomalyDINOModel

        create = timm.create_model

        def untrained(*names: str, **options: object) -> torch.nn.Module:
            return create(*names, **options | {"pretrained": False})

        with patch.object(timm, "create_model", untrained):
            model = AnomalyDINOModel().eval()
        model.memory_bank = torch.nn.functional.normalize(torch.randn(k_shot * 18 * 18, 384), dim=-1)
        return lambda images: model(torch.nn.functional.interpolate(as_tensor(images), (252, 252)))


def detector_bank(model: InCTRLv2, folder: Path, detector: InContextDetector):
    """The model's references as a bank of an export."""
    from anomalib_inctrl.runtime import Bank

    path = save_bank(model, folder / "made.safetensors")
    bank = Bank.load(path, detector.model["fingerprint"])
    path.unlink()
    return bank


def seconds(call: Call, images: np.ndarray) -> float:
    """Processor time of one call, in the one thread there is."""
    start = time.process_time()
    call(images)
    return time.process_time() - start


@torch.inference_mode()
def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="ViT-B-16-plus-240")
    parser.add_argument("--forms", nargs="+", default=["eager", "onnx", "openvino", "int8"], choices=OURS + OTHERS)
    parser.add_argument("--k-shot", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--share", type=float, default=1.0, help="share of the reference patches that is kept")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", type=Path, help="where exports are kept, to be used again")
    parser.add_argument("--startup", action="store_true", help="measure a process of the runtime instead")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        if options.startup:
            startup(options.backbone, work, options.rounds)
            return
        forms = Forms(options.backbone, work)
        sys.stdout.write("| form | batch | K | time per image, ms | of `encode_image` | lowest to highest |\n")
        sys.stdout.write("|---|---|---|---|---|---|\n")
        for batch, k_shot in itertools.product(options.batch, options.k_shot):
            calls = {name: forms.call(name, k_shot, options.share) for name in options.forms}
            measure(forms, calls, batch, k_shot, options.rounds)


def measure(forms: Forms, calls: dict[str, Call], batch: int, k_shot: int, rounds: int) -> None:
    """Time all in turn and print a line for each."""
    side = forms.model.model.backbone.image_size[0]
    images = np.random.default_rng(1).integers(0, 255, (batch, side, side, 3), dtype=np.uint8)
    calls = {"encode_image": forms.encode_image, **calls}
    for call in calls.values():
        call(images)
    times = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(seconds(call, images))
    for name, own in times.items():
        ratios = [a / b for a, b in zip(own, times["encode_image"], strict=True)]
        spread = f"{statistics.median(ratios):.2f} | {min(ratios):.2f} to {max(ratios):.2f}"
        sys.stdout.write(f"| {name} | {batch} | {k_shot} | {1000 * statistics.median(own) / batch:.0f} | {spread} |\n")
        sys.stdout.flush()


def startup(backbone: str, work: Path, rounds: int) -> None:
    """Time a process of the runtime from its start to its first score, and read its memory then."""
    folder = work / "startup"
    if not folder.exists():
        model = build(backbone)
        give_references(model, 4)
        export_runtime(model, folder, formats=["onnx", "openvino"])
    script = (
        "import sys, time, numpy\n"
        "from anomalib_inctrl.runtime import InContextDetector\n"
        "detector = InContextDetector(sys.argv[1], engine=sys.argv[2], threads=1)\n"
        "detector.predict([numpy.zeros((240, 240, 3), numpy.uint8)])\n"
        "print(*(line.split()[1] for line in open('/proc/self/status') if line[:5] in ('VmRSS', 'VmHWM')))\n"
    )
    sys.stdout.write(
        "| engine | start to first score, s | processor time, s | highest, held memory, MB | weights, MB |\n"
    )
    sys.stdout.write("|---|---|---|---|---|\n")
    for engine, suffixes in (("onnx", (".onnx", ".data")), ("openvino", (".bin",))):
        weights = sum(path.stat().st_size for path in folder.iterdir() if path.suffix in suffixes) / 1e6
        wall, used = [], []
        for _ in range(rounds):
            before, start = children_seconds(), time.perf_counter()
            command = [sys.executable, "-c", script, str(folder), engine]
            shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            wall.append(time.perf_counter() - start)
            used.append(children_seconds() - before)
        memory = ", ".join(f"{int(text) / 1e3:.0f}" for text in shown.split())
        times = f"{statistics.median(wall):.2f} | {statistics.median(used):.2f}"
        sys.stdout.write(f"| {engine} | {times} | {memory} | {weights:.0f} |\n")


def children_seconds() -> float:
    """Processor time of all processes started so far."""
    import resource

    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
