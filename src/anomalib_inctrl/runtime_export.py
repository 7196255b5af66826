"""Export of a model as two graphs for :mod:`anomalib_inctrl.runtime`, and its banks in either direction.

The encoder takes raw images to features, the scorer takes features and any bank of references to scores and maps. Both
are traced from the torch model's own functions.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from anomalib.utils.serialization import anomalib_safe_globals
from safetensors.numpy import save_file
from torch import Tensor, nn
from torch.export import Dim

from anomalib_inctrl.calibration import Statistics, upper_limit
from anomalib_inctrl.checkpoints import METADATA_KEY
from anomalib_inctrl.clip import ImageFeatures, fingerprint
from anomalib_inctrl.post_processing import InContextPostProcessor
from anomalib_inctrl.pre_processing import ClipPreProcessor, Geometry
from anomalib_inctrl.quantisation import LazyImages, join, quantise_encoder
from anomalib_inctrl.references import Context
from anomalib_inctrl.runtime.bank import SUFFIX, Bank, nearest_distances
from anomalib_inctrl.runtime.detector import BANKS_FOLDER, FORMAT, MODEL_FILE, PROTOTYPES_FILE, InContextDetector
from anomalib_inctrl.runtime.graphs import openvino_core
from anomalib_inctrl.runtime.images import as_input, image_files

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anomalib_inctrl.in_context_mixin import InContextMixin

_SMALLEST_HALVED = 1024  # smaller ones, such as biases, keep their precision at no cost

ExportFormat = Literal["onnx", "openvino"]
Precision = Literal["fp32", "fp16", "int8"]


class FeatureEncoder(nn.Module):
    """Raw images to what scoring needs, preprocessing included.

    Args:
        model (InContextMixin): Model with its preprocessing.
    """

    def __init__(self, model: InContextMixin) -> None:
        super().__init__()
        self.pre_processor, _ = standard_parts(model)
        self.model = model.model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode images ``(B, 3, h, w)`` of any size, in ``[0, 1]``.

        Returns:
            tuple[Tensor, Tensor, Tensor]: Patches ``(B, L, N, W)``, image embeddings ``(B, D)``, and the images as the
            model sees them, 8-bit ``(B, 3, H, W)``.
        """
        images = self.pre_processor(images)
        features = self.model.encode(images)
        return features.patches, features.pooled, self.model.backbone.to_pictures(images)


class FeatureScorer(nn.Module):
    """Features and a bank to scores and maps, post-processing included.

    Args:
        model (InContextMixin): Model with its post-processing, whose threshold and range are inputs here.
    """

    def __init__(self, model: InContextMixin) -> None:
        super().__init__()
        self.model = model.model
        _, self.post_processor = standard_parts(model)

    def forward(
        self,
        patches: Tensor,
        pooled: Tensor,
        bank_patches: Tensor,
        bank_pooled: Tensor,
        prototypes: Tensor,
        statistics: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Score features.

        Args:
            patches (Tensor): Of the queries, ``(B, L, N, W)``.
            pooled (Tensor): Of the queries, ``(B, D)``.
            bank_patches (Tensor): Of the references, unit length, ``(L, R, W)``.
            bank_pooled (Tensor): Of the references, ``(K, D)``.
            prototypes (Tensor): Normal and anomalous text prototype, ``(2, D)``.
            statistics (Tensor): ``(6,)``, see :meth:`anomalib_inctrl.calibration.Statistics.as_input`.

        Returns:
            tuple[Tensor, ...]: Scores ``(B,)``, labels ``(B,)``, maps and masks ``(B, H, W)``.
        """
        explanation = self.model.score(ImageFeatures(patches, pooled), Context(bank_patches, bank_pooled, prototypes))
        image_threshold, pixel_threshold, image_min, image_max, pixel_min, pixel_max = statistics.unbind()
        score = self._normalize(explanation.score, image_min, image_max, image_threshold)
        anomaly_map = self._normalize(explanation.anomaly_map[:, 0], pixel_min, pixel_max, pixel_threshold)
        label = score > self.post_processor.normalized_image_threshold
        mask = anomaly_map > self.post_processor.normalized_pixel_threshold
        return score, label, anomaly_map, mask

    def _normalize(self, values: Tensor, low: Tensor, high: Tensor, threshold: Tensor) -> Tensor:
        normalised = cast("Tensor", self.post_processor._normalize(values, low, high, threshold))
        return torch.where(high < low, values, normalised)


def export_checkpoint(
    output: Path,
    ckpt_path: Path | None = None,
    model: Literal["InCTRL", "InCTRLv2"] = "InCTRLv2",
    backbone: str = "ViT-B-16-plus-240",
    pretrained: str | None = "laion400m_e32",
    weights: str | None = None,
    geometry: Geometry = "crop",
    class_names: list[str] | None = None,
    formats: list[ExportFormat] | None = None,
    precision: Precision = "fp32",
    calibration_images: Path | None = None,
) -> Path:
    """Write an export directory from a checkpoint, or from a backbone and trained heads.

    Args:
        output: Directory to write.
        ckpt_path: Checkpoint of InCTRL or InCTRLv2; its references become banks. The options of the model are its own.
        model: Without a checkpoint: which model.
        backbone: Without a checkpoint: open_clip architecture, or ``inctrl-tiny``.
        pretrained: Without a checkpoint: open_clip tag or local file of weights.
        weights: Without a checkpoint: trained heads; none for training-free.
        geometry: Without a checkpoint: ``crop`` or ``squash``.
        class_names: What products may be called in text prompts, beside "object".
        formats: ``onnx``, ``openvino`` or both; by default ``onnx``.
        precision: ``fp32``; ``fp16`` stores the weights in half precision; ``int8`` quantises the encoder (OpenVINO).
        calibration_images: For ``int8``: folder of typical images.

    Returns:
        The directory.
    """
    from anomalib_inctrl import models

    if ckpt_path is None:
        options: dict[str, Any] = {"backbone": backbone, "pretrained": pretrained, "weights": weights}
        ready = getattr(models, model)(geometry=geometry, **options)
    else:
        ready = getattr(models, _model_of(ckpt_path)).load_from_checkpoint(ckpt_path, map_location="cpu")
    files = [] if calibration_images is None else image_files([calibration_images])
    images = LazyImages(len(files), lambda i: as_input(files[i]))
    names = ["object", *(class_names or [])]
    return export_runtime(ready, output, names, formats or ["onnx"], precision, images)


def _model_of(ckpt_path: Path) -> str:
    with anomalib_safe_globals():
        checkpoint = torch.load(ckpt_path, map_location="cpu", weights_only=True)
    if METADATA_KEY not in checkpoint:
        msg = f"{ckpt_path} is no checkpoint of anomalib-inctrl."
        raise ValueError(msg)
    return checkpoint[METADATA_KEY]["model"]


def export_runtime(
    model: InContextMixin,
    folder: str | Path,
    class_names: Sequence[str] = ("object",),
    formats: Sequence[ExportFormat] = ("onnx",),
    precision: Precision = "fp32",
    calibration_images: Sequence[np.ndarray] = (),
) -> Path:
    """Write an export directory for :class:`anomalib_inctrl.runtime.InContextDetector`.

    References of the model, if it has any, become banks of the export, threshold and range included; those of an INT8
    encoder are encoded by itself, with a threshold of their own.

    Args:
        model (InContextMixin): InCTRL or InCTRLv2, trained or training-free.
        folder (str | Path): Directory to write; what is there already is replaced once the export is complete, but for
            its banks.
        class_names (Sequence[str]): What products may be called: text prototypes are exported for these names and for
            those of the references, since the text tower is left out.
        formats (Sequence[str]): ``"onnx"``, ``"openvino"`` or both.
        precision (str): ``"fp32"``; ``"fp16"`` stores the weights in half precision and computes in single;
            ``"int8"`` quantises the encoder, for OpenVINO alone.
        calibration_images (Sequence[np.ndarray]): For ``"int8"``: typical images ``(3, H, W)``, float32 in ``[0, 1]``.

    Returns:
        Path: The directory.

    Raises:
        ModuleNotFoundError: If what a format needs is not installed.
        ValueError: If the model can't be exported in two parts.
    """
    folder = Path(folder)
    _require_exportable(model, formats, precision)
    model.eval()
    contents = _describe(model, precision)
    with TemporaryDirectory() as work:
        encoder, scorer = Path(work, "encoder.onnx"), Path(work, "scorer.onnx")
        _trace_encoder(model, encoder)
        _trace_scorer(model, scorer)
        ready = Path(work, "ready")
        ready.mkdir()
        if "openvino" in formats:
            _convert(encoder, ready, precision, calibration_images)
            _convert(scorer, ready, "fp32", [])
        if "onnx" in formats:
            _store(encoder, ready, precision)
            _store(scorer, ready, "fp32")
        names = {*class_names, *model.model.references.class_names}
        with torch.no_grad():
            prototypes = {name: model.model.text_prototypes(name) for name in sorted(names)}
        save_file({name: _numpy(prototype) for name, prototype in prototypes.items()}, ready / PROTOTYPES_FILE)
        (ready / MODEL_FILE).write_text(json.dumps(contents, indent=2), encoding="utf-8")
        _replace(folder, ready)
    _write_banks(model, folder, precision)
    return folder


def _write_banks(model: InContextMixin, folder: Path, precision: Precision) -> None:
    """Write the model's references; those of a quantised encoder are encoded by itself."""
    references = model.model.references
    for name in (name for name in references.class_names if references.count(name)):
        path = folder / BANKS_FOLDER / f"{name}{SUFFIX}"
        path.unlink(missing_ok=True)
        if precision == "int8":
            pictures = _numpy(references.pictures_of(name)).transpose(0, 2, 3, 1)
            InContextDetector(folder, engine="openvino").add_references(name, list(pictures), name)
        else:
            save_bank(model, path, name)


def export_quantised(
    model: InContextMixin,
    path: Path,
    calibration_images: Sequence[np.ndarray],
    *,
    statistics: Statistics | None = None,
) -> Path:
    """Write one OpenVINO file with a quantised encoder and the model's references baked in.

    The references pass through the quantised encoder as the queries will: features of the full-precision one would lie
    off by what quantisation changes. Scoring keeps its precision.

    Args:
        model (InContextMixin): InCTRL or InCTRLv2 with references of one class.
        path (Path): The ``.xml`` file to write.
        calibration_images (Sequence[np.ndarray]): Typical images ``(3, H, W)``, float32 in ``[0, 1]``; read one by one.
        statistics (Statistics | None): Threshold and range; ``None`` takes them from the quantised references.

    Raises:
        ModuleNotFoundError: If openvino or nncf is not installed.
        ValueError: If there is no image to calibrate with.
    """
    import openvino

    with TemporaryDirectory() as work:
        export_runtime(model, work, formats=["openvino"], precision="int8", calibration_images=calibration_images)
        class_name = model.model.references.resolve(None)
        bank = InContextDetector(work, engine="openvino").bank(class_name)
        constants = {
            "bank_patches": bank.patches,
            "bank_pooled": bank.pooled,
            "prototypes": bank.prototypes,
            "statistics": (statistics or bank.statistics).as_input(),
        }
        encoder, scorer = (openvino_core().read_model(Path(work, f"{name}.xml")) for name in ("encoder", "scorer"))
        openvino.save_model(join(encoder, scorer, constants), path, compress_to_fp16=False)
    return path


def standard_parts(model: InContextMixin) -> tuple[ClipPreProcessor, InContextPostProcessor]:
    """Pre- and post-processor of a model.

    Raises:
        ValueError: If one is not the models' own: nothing would say whether a bank fits it.
    """
    pre_processor, post_processor = model.pre_processor, model.post_processor
    if not isinstance(pre_processor, ClipPreProcessor) or not isinstance(post_processor, InContextPostProcessor):
        msg = "A model exported in two parts must have the default pre_processor and post_processor."
        raise ValueError(msg)
    return pre_processor, post_processor


def model_fingerprint(model: InContextMixin, precision: Precision = "fp32") -> str:
    """Short hash of all that features, scores and thresholds depend on: a bank of another one does not fit."""
    torch_model, backbone = model.model, model.model.backbone
    parts = [part for branch in sorted(torch_model.branches) for part in torch_model.BRANCHES[branch]]
    record = {
        "model": type(model).__name__,
        "backbone": backbone.fingerprint,
        "blocks": backbone.blocks,
        "convention": backbone.convention,
        "geometry": standard_parts(model)[0].geometry,
        "options": torch_model.options,
        "heads": {part: fingerprint(torch_model.get_submodule(part)) for part in parts},
        "quantised": precision == "int8",
    }
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]


def save_bank(model: InContextMixin, path: str | Path, class_name: str | None = None) -> Path:
    """Write the references of a class as a bank for the exported model.

    Args:
        model (InContextMixin): Model with references.
        path (str | Path): File to write, ``.safetensors``.
        class_name (str | None): ``None`` for the first class.

    Raises:
        RuntimeError: If the model has no references.
    """
    torch_model, references = model.model, model.model.references
    class_name = references.resolve(class_name)
    context, count = references.context(class_name), references.count(class_name)
    if count == 0:
        msg = f"There are no references of {class_name!r}: call set_references(images, {class_name!r}) first."
        raise RuntimeError(msg)
    names = (model.reference_record or {}).get("files", {}).get(class_name, [])
    bank = Bank(
        patches=_numpy(cast("Tensor", context.patches)),
        origins=np.repeat(np.arange(count, dtype=np.int32), references.patches.shape[2]),
        pooled=_numpy(context.pooled),
        pictures=_numpy(references.pictures_of(class_name)),
        prototypes=_numpy(context.prototypes),
        fingerprint=model_fingerprint(model),
        class_name=class_name,
        names=tuple(names) if len(names) == count else tuple(f"image {i}" for i in range(count)),
        views=references.views,
    )
    if count == 1:
        turned, _ = next(torch_model.left_out(class_name))
        distances = nearest_distances(_numpy(turned.pooled), bank.pooled)
    else:
        distances = bank.distances_left_out()
    limit = upper_limit(distances)
    return replace(bank, statistics=standard_parts(model)[1].statistics, routing_limit=limit).save(Path(path))


@torch.no_grad()
def load_bank(model: InContextMixin, path: str | Path) -> None:
    """Take the references of a bank, and its threshold and range, in the place of the model's own.

    Args:
        model (InContextMixin): The model that was exported, or one with the same weights and options.
        path (str | Path): File of :func:`save_bank` or of the runtime.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it can't be read, was made by another model, or was reduced.
    """
    bank = Bank.load(Path(path), model_fingerprint(model))
    if bank.reduced:
        msg = f"{path} was reduced, the torch model takes whole references: add them again."
        raise ValueError(msg)
    references = model.model.references
    patches = torch.from_numpy(bank.patches.astype(np.float32)).unflatten(1, (bank.count, -1)).transpose(0, 1)
    references.clear()
    references.extend(
        bank.class_name,
        ImageFeatures(patches, torch.from_numpy(bank.pooled)),
        torch.from_numpy(bank.prototypes),
        torch.from_numpy(bank.pictures),
    )
    standard_parts(model)[1].statistics = bank.statistics
    model.reference_record = None


# ------------------------------------------------------------------------------------------------------------- tracing
def _require_exportable(model: InContextMixin, formats: Sequence[str], precision: str) -> None:
    if not model.model.SWAPPABLE:
        msg = f"{type(model).__name__} learns its context on its references, none can be swapped: export by anomalib."
        raise ValueError(msg)
    standard_parts(model)
    if not formats or not set(formats) <= {"onnx", "openvino"}:
        msg = f"formats must be 'onnx', 'openvino' or both, got {list(formats)}."
        raise ValueError(msg)
    if precision not in {"fp32", "fp16", "int8"} or (precision == "int8" and list(formats) != ["openvino"]):
        msg = (
            f"precision must be 'fp32', 'fp16', or, for openvino alone, 'int8'; got {precision!r} for {list(formats)}."
        )
        raise ValueError(msg)


def _describe(model: InContextMixin, precision: Precision) -> dict[str, Any]:
    backbone = model.model.backbone
    return {
        "format": FORMAT,
        "fingerprint": model_fingerprint(model, precision),
        "precision": precision,
        "image_size": backbone.image_size,
        "patch_size": backbone.patch_size,
        "reference_views": model.model.reference_views,
        "blocks": backbone.blocks,
        "layers": backbone.layers,
        "width": backbone.width,
        "embed_dim": backbone.embed_dim,
        "about": model.metadata | {"geometry": standard_parts(model)[0].geometry},
    }


def _trace_encoder(model: InContextMixin, path: Path) -> None:
    size = model.model.backbone.image_size
    images = torch.rand(2, 3, size[0] + 16, size[1] + 24, device=model.device)
    axes = {0: Dim("batch"), 2: Dim("height"), 3: Dim("width")}
    _trace(FeatureEncoder(model), {"images": (images, axes)}, ["patches", "pooled", "pictures"], path)


def _trace_scorer(model: InContextMixin, path: Path) -> None:
    backbone = model.model.backbone
    layers, patches, width = len(backbone.layers), backbone.num_patches, backbone.width
    batch, rows, references = Dim("batch"), Dim("reference_patches"), Dim("references")
    inputs: dict[str, tuple[Tensor, dict[int, Any]]] = {
        "patches": (torch.randn(2, layers, patches, width), {0: batch}),
        "pooled": (torch.randn(2, backbone.embed_dim), {0: batch}),
        "bank_patches": (nn.functional.normalize(torch.randn(layers, 3 * patches, width), dim=-1), {1: rows}),
        "bank_pooled": (torch.randn(3, backbone.embed_dim), {0: references}),
        "prototypes": (nn.functional.normalize(torch.randn(2, backbone.embed_dim), dim=-1), {}),
        "statistics": (torch.tensor([0.5, 0.5, 0.0, 1.0, 0.0, 1.0]), {}),
    }
    inputs = {name: (example.to(model.device), axes) for name, (example, axes) in inputs.items()}
    _trace(FeatureScorer(model), inputs, ["pred_score", "pred_label", "anomaly_map", "pred_mask"], path)


def _trace(module: nn.Module, inputs: dict[str, tuple[Tensor, dict[int, Any]]], outputs: list[str], path: Path) -> None:
    with torch.no_grad():
        torch.onnx.export(
            module.eval(),
            tuple(example for example, _ in inputs.values()),
            str(path),
            input_names=list(inputs),
            output_names=outputs,
            dynamic_shapes={name: axes for name, (_, axes) in inputs.items()},
            opset_version=18,
            dynamo=True,
            verbose=False,
        )


# ------------------------------------------------------------------------------------------------------------- formats
def _store(source: Path, folder: Path, precision: Precision) -> None:
    """Write an ONNX graph, its weights in half precision if wanted, and computed with in single."""
    import onnx

    graph = onnx.load(source)
    if precision == "fp16":
        halve_weights(graph)
    onnx.save(graph, folder / source.name, save_as_external_data=True, location=f"{source.name}.data")


def halve_weights(model: Any) -> None:
    """Store the large weights of an ONNX model in float16, each followed by a cast to float32."""
    import onnx
    from onnx import numpy_helper

    casts = []
    for weight in model.graph.initializer:
        if weight.data_type != onnx.TensorProto.FLOAT or np.prod(weight.dims) < _SMALLEST_HALVED:
            continue
        name = weight.name
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight).astype(np.float16), f"{name}.half"))
        casts.append(onnx.helper.make_node("Cast", [f"{name}.half"], [name], to=onnx.TensorProto.FLOAT))
    for node in reversed(casts):
        model.graph.node.insert(0, node)


def _convert(source: Path, folder: Path, precision: Precision, images: Sequence[np.ndarray]) -> None:
    """Write a graph for OpenVINO."""
    import openvino

    graph = openvino.convert_model(source)
    if precision == "int8":
        graph = quantise_encoder(graph, images)
    openvino.save_model(graph, folder / f"{source.stem}.xml", compress_to_fp16=precision == "fp16")


def _replace(folder: Path, ready: Path) -> None:
    """Move files to a directory; without the model's description, which comes last, it is no export."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MODEL_FILE).unlink(missing_ok=True)
    for suffix in (".onnx", ".onnx.data", ".xml", ".bin"):
        for name in ("encoder", "scorer"):
            (folder / f"{name}{suffix}").unlink(missing_ok=True)
    for path in sorted(ready.iterdir(), key=lambda path: path.name == MODEL_FILE):
        temporary = folder / f"{path.name}.tmp"
        shutil.copyfile(path, temporary)  # a move would keep the permissions of temporary files, readable to one
        temporary.replace(folder / path.name)


def _numpy(tensor: Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.detach().cpu().numpy())
