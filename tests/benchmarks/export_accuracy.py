"""What half precision and quantisation cost in accuracy and memory: InCTRLv2 on the demonstration data.

Not a test: run ``python tests/benchmarks/export_accuracy.py``. Every form is a two-graph export, made by a process of
its own, whose highest memory is given. Each category brings its references, the same for all forms, and all of its test
images. ONNX in single precision equals the torch model (tests/engine/export).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from anomalib.data.utils import read_mask
from sklearn.metrics import roc_auc_score
from torch.nn import functional as F  # noqa: N812 - the customary name

from anomalib_inctrl import DemoAD
from anomalib_inctrl.data.demo import CATEGORIES
from anomalib_inctrl.reference_images import draw
from anomalib_inctrl.runtime import InContextDetector

_CALIBRATION_IMAGES = 16
FORMS = [("onnx", "fp32"), ("onnx", "fp16"), ("openvino", "fp32"), ("openvino", "fp16"), ("openvino", "int8")]
EXPORT = """
import resource, sys
from pathlib import Path
from anomalib_inctrl.runtime_export import export_checkpoint
output, kind, precision, backbone, weights, images, *class_names = sys.argv[1:]
export_checkpoint(
    Path(output), backbone=backbone, pretrained=None, weights=weights or None, geometry="squash",
    class_names=class_names, formats=[kind], precision=precision, calibration_images=Path(images),
)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


class Split(NamedTuple):
    """Files of a category, labels and masks ``(M, 1, H, W)`` of its test images."""

    references: list[str]
    tests: list[str]
    labels: np.ndarray
    masks: torch.Tensor


def read_split(root: Path, category: str, k_shot: int, seed: int) -> Split:
    """Draw references of a category of the demonstration data, and take all of its test images."""
    data = DemoAD(root=root, category=category)
    data.prepare_data()
    data.setup()
    tests = data.test_data.samples
    masks = [torch.as_tensor(read_mask(path, as_tensor=True)).float() if path else None for path in tests.mask_path]
    empty = torch.zeros_like(next(mask for mask in masks if mask is not None))
    return Split(
        references=draw(list(data.train_data.samples.image_path), k_shot, seed),
        tests=list(tests.image_path),
        labels=tests.label_index.to_numpy(),
        masks=torch.stack([empty if mask is None else mask for mask in masks])[:, None],
    )


def evaluate(detector: InContextDetector, category: str, split: Split, banks: str) -> tuple[float, float]:
    """Image and pixel AUROC of a category."""
    detector.add_references(banks, split.references, category)
    found = detector.predict(split.tests, banks, batch_size=16)
    maps = np.stack([prediction.anomaly_map for prediction in found])
    masks = F.interpolate(split.masks, maps.shape[1:], mode="nearest") > 0.5
    return (
        roc_auc_score(split.labels, [prediction.pred_score for prediction in found]),
        roc_auc_score(masks.numpy().ravel(), maps.ravel()),
    )


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="inctrl-tiny")
    parser.add_argument("--weights", default="inctrl-tiny", help="trained heads; empty for training-free")
    parser.add_argument("--root", type=Path, default=Path("datasets/DemoAD"))
    parser.add_argument("--categories", nargs="+", default=CATEGORIES, choices=CATEGORIES)
    parser.add_argument("--k-shot", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    splits = [
        (category, seed, read_split(options.root, category, options.k_shot, seed))
        for category in options.categories
        for seed in range(options.seeds)
    ]
    sys.stdout.write(
        "| form | image AUROC | pixel AUROC | encoder, MB | memory of the export, MB |\n|---|---|---|---|---|\n"
    )
    with tempfile.TemporaryDirectory() as work:
        calibration = Path(work, "calibration")  # some normal images of every category
        calibration.mkdir()
        for category in options.categories:
            for path in sorted((options.root / category / "train" / "good").iterdir())[:_CALIBRATION_IMAGES]:
                (calibration / f"{category}-{path.name}").symlink_to(path.resolve())
        for kind, precision in FORMS:
            folder = Path(work, f"{kind}-{precision}")
            arguments = [folder, kind, precision, options.backbone, options.weights, calibration, *options.categories]
            command = [sys.executable, "-c", EXPORT, *map(str, arguments)]
            memory = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]
            size = sum(path.stat().st_size for path in folder.glob("encoder*")) / 1e6
            detector = InContextDetector(folder, engine=kind)
            found = [evaluate(detector, category, split, f"{category}-{seed}") for category, seed, split in splits]
            image, pixel = np.mean(found, axis=0)
            sys.stdout.write(f"| {kind} {precision} | {image:.4f} | {pixel:.4f} | {size:.1f} | {memory} |\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
