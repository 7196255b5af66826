"""One cell of a benchmark: a method, fitted to K references, tested, measured."""

from __future__ import annotations

import base64
import io
import time
import warnings
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from anomalib import LearningType
from anomalib.data import AnomalibDataModule
from anomalib.data.utils import read_image, read_mask
from anomalib.models.components import AnomalibModule
from lightning import seed_everything
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from PIL import Image
from torch import Tensor

from anomalib_inctrl.benchmark.grid import Cell, ModelEntry
from anomalib_inctrl.benchmark.measure import PeakMemory, device_name, images_per_second, versions
from anomalib_inctrl.benchmark.received import files_opened, received_among, sha256_of
from anomalib_inctrl.benchmark.shared_features import SharedFeatures
from anomalib_inctrl.data.few_shot import FewShot
from anomalib_inctrl.evaluation import few_shot_evaluator
from anomalib_inctrl.instantiation import Builder
from anomalib_inctrl.prompts import class_name_of

METRICS = ("image_AUROC", "image_AUPR", "image_F1Max", "pixel_AUROC", "pixel_AUPRO", "pixel_AUPR")
EXAMPLE_SIDE = 144  # pixels of the pictures in the report
_TIMED_IMAGES = 8  # at most, in one batch
_BUILD_SEED = 0  # of weights drawn at random, which are to be the same for every draw of references
_OPACITY = (0.35, 0.9)  # of the lowest and of the highest value of a map
_COMPONENTS = ("post_processor", "evaluator", "visualizer")


def run_cell(
    cell: Cell,
    accelerator: str = "cpu",
    device: int | None = None,
    store: SharedFeatures | None = None,
    *,
    with_speed: bool = False,
    with_examples: bool = False,
) -> dict[str, Any]:
    """Fit and test a method on the references of a cell.

    Args:
        cell (Cell): What to run.
        accelerator (str): ``"cpu"`` or ``"cuda"``.
        device (int | None): Number of the GPU.
        store (SharedFeatures | None): Features of frozen encoders, shared with other cells.
        with_speed (bool): Measure images per second, without shared features.
        with_examples (bool): Keep pictures of a few anomaly maps.

    Returns:
        dict: Plain data: metrics, times, references with hashes of their content, versions.

    Raises:
        RuntimeError: If the method received other images of the training split than the cell's references.
        ValueError: If scores are not finite, or the test split has one class alone.
    """
    store = SharedFeatures(0) if store is None else store  # an empty one is false
    torch_device = torch.device("cuda", device or 0) if accelerator == "cuda" else torch.device("cpu")
    start = time.perf_counter()
    datamodule = build_datamodule(cell)
    store.enter(cell.data.name, cell.category, _count_images(datamodule))
    memory = PeakMemory(torch_device)
    model = build_model(cell.model, cell.k_shot, cell.seed, class_name_of(datamodule))
    predictions = _Predictions()
    with files_opened() as opened:
        seconds = _fit_and_test(cell, model, datamodule, predictions, (accelerator, device), store)
    references = _check_received(cell, datamodule, opened, model)
    peak = memory.megabytes
    found = predictions.collected()
    record: dict[str, Any] = {
        "metrics": evaluate(found),
        "seconds_fit": seconds[0],
        "seconds_test": seconds[1],
        "peak_memory_mb": peak,
        "test_images": len(found.image_path),
        "references": [{"file": path, "sha256": sha256_of(path)} for path in references],
        "versions": versions(),
        "device": device_name(torch_device),
    }
    if with_speed:
        record["images_per_second"] = _speed(model, predictions.first_batch, torch_device, store)
    if with_examples:
        record["examples"] = pictures(datamodule, found)
    return record | {"seconds": time.perf_counter() - start}


# ------------------------------------------------------------------------------------------------------- construction
def build_datamodule(cell: Cell) -> AnomalibDataModule:
    """Build the data module of a cell, seen through :class:`FewShot` if it has references, and set it up."""
    datamodule = Builder(AnomalibDataModule, cell.data_config)()
    if cell.k_shot:
        datamodule = FewShot(datamodule, cell.k_shot, cell.seed, selection=cell.selection)  # type: ignore[arg-type]
    datamodule.prepare_data()
    datamodule.setup(TrainerFn.TESTING)  # a stage, else the trainer would set it up again
    return datamodule


def _count_images(datamodule: AnomalibDataModule) -> int:
    """Test images and whatever may be a reference."""
    training = len(datamodule.pool) if isinstance(datamodule, FewShot) else 0
    return training + len(datamodule.test_data)


def build_model(entry: ModelEntry, k_shot: int, seed: int, class_name: str) -> AnomalibModule:
    """Build a model as anomalib's command line does, without post-processing: metrics take raw scores.

    Weights that are drawn at random are the same for every seed, so that seeds differ by their references.
    """
    chosen = {"k_shot": k_shot, "reference_seed": seed, "class_name": class_name} | dict.fromkeys(_COMPONENTS, False)
    seed_everything(_BUILD_SEED)
    model = Builder(AnomalibModule, {"class_path": entry.class_path, "init_args": entry.init_args})(chosen)
    if entry.image_size:
        height, width = entry.image_size
        model.pre_processor = model.configure_pre_processor(image_size=(height, width))
    return model


# ---------------------------------------------------------------------------------------------------------- execution
class _Predictions(Callback):
    """Collects raw scores and maps of a test run."""

    def __init__(self) -> None:
        self.parts: list[dict[str, Any]] = []
        self.first_batch: Tensor | None = None

    def on_test_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *args: Any, **kwargs: Any) -> None:
        """Take what a batch has been given."""
        del trainer, pl_module, args, kwargs
        if self.first_batch is None:
            self.first_batch = outputs.image[:_TIMED_IMAGES].detach().clone()
        scores, maps = outputs.pred_score, outputs.anomaly_map
        if maps is not None:
            maps = maps.detach().float().cpu()
            maps = maps.reshape(-1, *maps.shape[-2:])
        if scores is None and maps is not None:
            scores = maps.amax(dim=(-2, -1))  # what anomalib's post-processor does
        if scores is None:
            msg = "The model gives neither scores nor maps."
            raise ValueError(msg)
        self.parts.append(
            {
                "pred_score": torch.as_tensor(scores).detach().float().cpu().reshape(-1),
                "anomaly_map": maps,
                "gt_label": outputs.gt_label.cpu().bool(),
                "gt_mask": None if outputs.gt_mask is None else outputs.gt_mask.cpu().bool(),
                "image_path": list(outputs.image_path),
            }
        )

    def collected(self) -> SimpleNamespace:
        """All batches as one, with the fields of anomalib's batches."""
        joined: dict[str, Any] = {}
        for key, first in self.parts[0].items():
            values = [part[key] for part in self.parts]
            if isinstance(first, Tensor):
                joined[key] = torch.cat([v.reshape(-1, *v.shape[-2:]) if v.ndim > 1 else v for v in values])
            else:
                joined[key] = None if first is None else [path for value in values for path in value]
        return SimpleNamespace(**joined)


def _fit_and_test(
    cell: Cell,
    model: AnomalibModule,
    datamodule: AnomalibDataModule,
    predictions: _Predictions,
    hardware: tuple[str, int | None],
    store: SharedFeatures,
) -> tuple[float, float]:
    """Seconds to fit and to test."""
    from anomalib.engine import Engine  # noqa: TID251 - in the function, as it has to be

    store.attach(model)
    accelerator, device = hardware
    options = {
        "accelerator": accelerator,
        "devices": 1 if device is None else [device],
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "limit_val_batches": 0,  # validation gives thresholds, which no metric here depends on
        "callbacks": [predictions],
    }
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        engine = Engine(default_root_dir=folder, **options | cell.model.trainer)
        seed_everything(cell.seed)
        start = time.perf_counter()
        if model.learning_type not in {LearningType.ZERO_SHOT, LearningType.FEW_SHOT}:
            engine.fit(model, datamodule=datamodule)
        fitted = time.perf_counter()
        engine.test(model, datamodule=datamodule, verbose=False)
        return fitted - start, time.perf_counter() - fitted


def _check_received(cell: Cell, datamodule: AnomalibDataModule, opened: set[str], model: AnomalibModule) -> list[str]:
    """Paths of the references, after a check that the method received these and no other normal image."""
    if not isinstance(datamodule, FewShot):
        train = getattr(datamodule, "train_data", None)
        pool, wanted = [] if train is None else [str(path) for path in train.samples.image_path], []
        received = received_among(pool, opened, set())
    else:
        wanted = datamodule.references
        received = received_among(datamodule.pool, opened, datamodule.handed_out)
    if received != wanted:
        missing, extra = sorted(set(wanted) - set(received)), sorted(set(received) - set(wanted))
        msg = (
            f"{type(model).__name__} was to have {len(wanted)} references and received {len(received)} images of the "
            f"training split. Missing: {', '.join(missing) or 'none'}. Beside them: {', '.join(extra) or 'none'}."
        )
        raise RuntimeError(msg)
    if cell.k_shot and getattr(model, "k_shot", cell.k_shot) != cell.k_shot:
        msg = (
            f"{type(model).__name__} has k_shot={model.k_shot}, the cell {cell.k_shot}: leave k_shot out of init_args."
        )
        raise RuntimeError(msg)
    return received


@torch.no_grad()
def _speed(model: AnomalibModule, images: Tensor | None, device: torch.device, store: SharedFeatures) -> float | None:
    inner = getattr(model, "model", None)
    if images is None or inner is None:
        return None
    inner = inner.to(device).eval()
    with store.off():
        return images_per_second(inner, images.to(device))


# ------------------------------------------------------------------------------------------------------------ metrics
def evaluate(found: SimpleNamespace) -> dict[str, float | None]:
    """Compute the metrics of a test run, by anomalib's own classes.

    Scores and maps are scaled to ``[0, 1]`` over the whole run: torchmetrics would send other values through a sigmoid,
    which makes ties, and anomalib's normalisation clamps. Metrics of ranks do not change by it.

    Returns:
        dict: Metrics by name; ``None`` for those of pixels if there are no masks or no maps.

    Raises:
        ValueError: If scores are not finite, or all labels are the same.
    """
    if len(found.gt_label.unique()) < 2:
        msg = "All test images are of one class: nothing can be told apart. Check the test split."
        raise ValueError(msg)
    has_pixels = found.gt_mask is not None and found.anomaly_map is not None and bool(found.gt_mask.any())
    batch = SimpleNamespace(
        pred_score=_scaled(found.pred_score, "scores"),
        gt_label=found.gt_label.int(),
        anomaly_map=_scaled(found.anomaly_map, "maps") if has_pixels else None,
        gt_mask=found.gt_mask.int() if has_pixels else None,
    )
    values: dict[str, float | None] = {}
    metrics: Any = few_shot_evaluator().test_metrics
    for metric in metrics:
        if metric.name in METRICS:
            metric.update(batch)
            value = metric.compute()
            values[metric.name] = None if value is None else float(value)
    return {name: values[name] for name in METRICS}


def _scaled(values: Tensor, what: str) -> Tensor:
    if not torch.isfinite(values).all():
        msg = f"{int((~torch.isfinite(values)).sum())} of {values.numel()} values of the {what} are not finite."
        raise ValueError(msg)
    low, high = values.amin(), values.amax()
    # In double precision, else neighbours of float32 could become ties.
    return (values.double() - low) / (high - low).double().clamp(min=torch.finfo(torch.double).tiny)


# ----------------------------------------------------------------------------------------------------------- pictures
def pictures(datamodule: AnomalibDataModule, found: SimpleNamespace) -> list[dict[str, str]]:
    """Draw the maps of a few test images: the first of every other kind of anomaly, two at most, and a normal one.

    Returns:
        list[dict]: ``file``, ``label``, and JPEG images in base64: ``image``, ``mask`` (empty without), ``map``.
    """
    if found.anomaly_map is None:
        return []
    samples = datamodule.test_data.samples.set_index("image_path", drop=False)
    scaled = _scaled(found.anomaly_map, "maps").float()
    drawn = []
    for path in _example_paths(samples):
        row = samples.loc[path]
        index = found.image_path.index(path)
        image = _square(np.asarray(read_image(path, as_tensor=True)).transpose(1, 2, 0) * 255)
        mask = ""
        if row.label_index and row.mask_path:
            pixels = 255 * np.asarray(read_mask(row.mask_path, as_tensor=True), dtype=np.uint8).squeeze()
            mask = _jpeg(_square(np.repeat(pixels[..., None], 3, axis=-1)))
        drawn.append(
            {
                "file": str(path),
                "label": "normal" if not row.label_index else str(row.get("label", "anomalous")),
                "image": _jpeg(image),
                "mask": mask,
                "map": _jpeg(_overlay(image, scaled[index].numpy())),
            }
        )
    return drawn


def _example_paths(samples: Any) -> list[str]:
    anomalous, normal = samples[samples.label_index == 1], samples[samples.label_index == 0]
    kinds = sorted(anomalous["label"].unique()) if "label" in samples else []
    firsts = [anomalous[anomalous["label"] == kind].image_path.iloc[0] for kind in kinds[:: max(1, len(kinds) // 2)]]
    paths = firsts[:2] or list(anomalous.image_path[:2])
    return [str(path) for path in [*paths, *normal.image_path[:1]]]


def _overlay(image: Image.Image, anomaly_map: np.ndarray) -> Image.Image:
    """Lay a map of values in [0, 1] over the grey image, the more opaque the higher the value."""
    from matplotlib import colormaps

    heat = Image.fromarray((colormaps["inferno"](anomaly_map)[..., :3] * 255).astype(np.uint8))
    opacity = Image.fromarray((255 * (_OPACITY[0] + (_OPACITY[1] - _OPACITY[0]) * anomaly_map)).astype(np.uint8))
    heat, opacity = (part.resize(image.size, Image.Resampling.BILINEAR) for part in (heat, opacity))
    return Image.composite(heat, image.convert("L").convert("RGB"), opacity)


def _square(pixels: np.ndarray) -> Image.Image:
    """Fit into a square, keeping the shape; small images get larger without being smoothed."""
    image = Image.fromarray(pixels.astype(np.uint8))
    scale = EXAMPLE_SIDE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.NEAREST if scale > 2 else Image.Resampling.BILINEAR)


def _jpeg(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=82)
    return base64.b64encode(buffer.getvalue()).decode()
