"""Fixtures of the tests that run anomalib's engine: small drawn data, models on the small backbone, engines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
import torch
from anomalib.data import MVTecAD
from anomalib.engine import Engine
from PIL import Image

from anomalib_inctrl import DevPrompt, InCTRL, InCTRLv2
from anomalib_inctrl.clip import EMBEDDED_TRUNK, ClipBackbone, image_convention

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MODELS = {"InCTRL": InCTRL, "InCTRLv2": InCTRLv2, "DevPrompt": DevPrompt}
SIZE = (96, 128)  # height and width of the drawn images
SIDE = image_convention(EMBEDDED_TRUNK).size[0]  # of the images the backbone takes, hence of the maps
QUIET = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def texture(seed: int, size: tuple[int, int] = SIZE, tone: float = 90.0) -> np.ndarray:
    """A horizontal ramp with faint noise, ``uint8`` ``(h, w, 3)``; every seed is another image of the same kind."""
    ramp = np.linspace(-20, 20, size[1])[None, :, None]
    noise = np.random.default_rng(seed).normal(0, 6, (*size, 3))
    return (tone + ramp + noise).clip(0, 255).astype(np.uint8)


def write(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def with_square(pixels: np.ndarray, top: int, left: int, side: int, bright: int = 250) -> tuple[np.ndarray, np.ndarray]:
    """The image with a bright square, and the square's mask."""
    damaged, mask = pixels.copy(), np.zeros(pixels.shape[:2], dtype=np.uint8)
    damaged[top : top + side, left : left + side] = bright
    mask[top : top + side, left : left + side] = 255
    return damaged, mask


def write_category(
    folder: Path,
    seed: int = 0,
    size: tuple[int, int] = SIZE,
    tone: float = 90.0,
    side: int = 28,
    bright: int = 250,
) -> Path:
    """A category in MVTec's layout: 6 normal images to train, 4 normal and 4 damaged ones, with masks, to test."""
    for i in range(6):
        write(folder / f"train/good/{i:03}.png", texture(seed + i, size, tone))
    for i in range(4):
        write(folder / f"test/good/{i:03}.png", texture(seed + 100 + i, size, tone))
        top, left = size[0] // 2 - 24 + 6 * i, size[1] // 2 - 30 + 8 * i
        damaged, mask = with_square(texture(seed + 200 + i, size, tone), top, left, side, bright)
        write(folder / f"test/square/{i:03}.png", damaged)
        write(folder / f"ground_truth/square/{i:03}_mask.png", mask)
    return folder


def data(root: Path, category: str = "bolt", **options: Any) -> MVTecAD:
    return MVTecAD(root=root, category=category, **{"num_workers": 0, "eval_batch_size": 3} | options)


def build(name: str, **options: Any) -> InCTRL | InCTRLv2 | DevPrompt:
    """A model on a small untrained backbone, with two references and without pictures unless told otherwise."""
    defaults = {"backbone": EMBEDDED_TRUNK, "pretrained": None, "k_shot": 2, "visualizer": False}
    return MODELS[name](**defaults | options)


class Run(NamedTuple):
    """A finished ``train``.

    Attributes:
        model: The model object that was run.
        metrics: What its test reported.
        checkpoint: The file it left.
        folder: The results directory.
    """

    model: InCTRL | InCTRLv2
    metrics: dict[str, float]
    checkpoint: Path
    folder: Path


def train(model: InCTRL | InCTRLv2, datamodule: Any, folder: Path) -> Run:
    metrics = Engine(default_root_dir=folder, **QUIET).train(model=model, datamodule=datamodule)[0]
    checkpoints = sorted(folder.rglob("*.ckpt"))
    assert len(checkpoints) == 1, checkpoints
    return Run(model, metrics, checkpoints[0], folder)


class Predictions(NamedTuple):
    """Predictions by file name, as the engine gives them."""

    scores: dict[str, float]
    maps: dict[str, Any]
    labels: dict[str, bool]

    @classmethod
    def of(cls, batches: Any) -> Predictions:
        items = [item for batch in batches for item in batch]
        key = {str(Path(*Path(item.image_path).parts[-2:])): item for item in items}
        assert len(key) == len(items)
        return cls(
            {name: float(item.pred_score) for name, item in key.items()},
            {name: item.anomaly_map.squeeze().clone() for name, item in key.items()},
            {name: bool(item.pred_label) for name, item in key.items()},
        )


class Kit(NamedTuple):
    """The helpers of this file, for tests, which can't import a ``conftest``."""

    texture: Callable
    write: Callable
    with_square: Callable
    write_category: Callable
    data: Callable
    build: Callable
    train: Callable
    predictions: Callable
    quiet: dict[str, Any]
    side: int


_prototypes: dict[tuple[str, str], torch.Tensor] = {}


@pytest.fixture(scope="module", autouse=True)
def _encode_text_once() -> Iterator[None]:
    """Remember text prototypes across models: the many models of these tests have one and the same text tower."""
    encode = ClipBackbone.text_prototypes

    def remember(self: ClipBackbone, class_name: str) -> torch.Tensor:
        key = (self.fingerprint, class_name)
        if key not in _prototypes:
            _prototypes[key] = encode(self, class_name)
        return _prototypes[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClipBackbone, "text_prototypes", remember)
        yield


@pytest.fixture(scope="session")
def kit() -> Kit:
    return Kit(texture, write, with_square, write_category, data, build, train, Predictions.of, QUIET, SIDE)


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return Engine(default_root_dir=tmp_path / "results", **QUIET)


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two categories that differ in brightness, as a small copy of MVTec AD. Tests don't change it."""
    folder = tmp_path_factory.mktemp("MVTecAD")
    write_category(folder / "bolt")
    write_category(folder / "leaf", seed=1000, tone=170.0)
    return folder


@pytest.fixture(scope="session")
def normals(root: Path) -> Path:
    return root / "bolt" / "train" / "good"


@pytest.fixture(scope="session", params=["InCTRL", "InCTRLv2"])  # DevPrompt, which trains, has tests of its own
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def trained(name: str, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """``train`` on the first category, with pictures; shared, so it must not be run again."""
    return train(build(name, visualizer=True), data(root), tmp_path_factory.mktemp(f"trained_{name}"))
