"""Fixtures of the training tests: three drawn categories in MVTec's layout, and runs on the small backbone."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
import torch
from anomalib.data import MVTecAD
from anomalib.engine import Engine
from lightning.pytorch import Callback, seed_everything
from PIL import Image

from anomalib_inctrl import AuxiliaryData, CoOp, InCTRL, InCTRLv2
from anomalib_inctrl.clip import EMBEDDED_TRUNK, ClipBackbone

if TYPE_CHECKING:
    from collections.abc import Iterator

torch.set_num_threads(1)
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

MODELS = {"InCTRL": InCTRL, "InCTRLv2": InCTRLv2, "CoOp": CoOp}
CATEGORIES = ("bolt", "leaf", "tile")
SIZE = (96, 96)
QUIET = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def texture(seed: int, tone: float) -> np.ndarray:
    ramp = np.linspace(-20, 20, SIZE[1])[None, :, None]
    noise = np.random.default_rng(seed).normal(0, 6, (*SIZE, 3))
    return (tone + ramp + noise).clip(0, 255).astype(np.uint8)


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_category(folder: Path, seed: int, tone: float) -> None:
    """8 normal images to train, 4 normal and 4 damaged ones, with masks, to test."""
    for i in range(8):
        write(folder / f"train/good/{i:03}.png", texture(seed + i, tone))
    for i in range(4):
        write(folder / f"test/good/{i:03}.png", texture(seed + 100 + i, tone))
        damaged, mask = texture(seed + 200 + i, tone), np.zeros(SIZE, dtype=np.uint8)
        top, left = 20 + 6 * i, 40 - 6 * i
        damaged[top : top + 28, left : left + 28] = 250
        mask[top : top + 28, left : left + 28] = 255
        write(folder / f"test/square/{i:03}.png", damaged)
        write(folder / f"ground_truth/square/{i:03}_mask.png", mask)


class Losses(Callback):
    """Remembers what every step logged."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        self.steps.append({k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("loss")})

    def of(self, name: str = "loss") -> torch.Tensor:
        return torch.tensor([step[name] for step in self.steps])


class KeepCheckpoint(Callback):
    """Copies the checkpoint there is in the middle of an epoch, which is what a killed run leaves behind."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch == self.epoch and batch_idx == 1:
            source = Path(trainer.default_root_dir, "weights/lightning/model.ckpt")
            shutil.copy(source, source.with_name("killed.ckpt"))


class Run(NamedTuple):
    """A finished ``fit``."""

    model: InCTRL | InCTRLv2
    losses: Losses
    engine: Engine

    @property
    def folder(self) -> Path:
        return Path(self.engine.trainer.default_root_dir)

    @property
    def checkpoint(self) -> Path:
        return self.folder / "weights/lightning/model.ckpt"

    @property
    def heads(self) -> dict[str, torch.Tensor]:
        return heads_of(self.model)


def heads_of(model: InCTRL | InCTRLv2) -> dict[str, torch.Tensor]:
    """Everything of a model that training may change."""
    state = model.model.state_dict()
    return {k: v.clone() for k, v in state.items() if not k.startswith(("backbone.", "references."))}


class Kit:
    """Helpers of this file, for tests, which can't import a ``conftest``."""

    categories, quiet = CATEGORIES, QUIET
    heads_of = staticmethod(heads_of)
    Losses, KeepCheckpoint = Losses, KeepCheckpoint

    def __init__(self, root: Path, cache: Path) -> None:
        self.root, self.cache = root, cache

    def part(self, category: str) -> MVTecAD:
        return MVTecAD(root=self.root, category=category, num_workers=0)

    def data(self, **options: Any) -> AuxiliaryData:
        parts = options.pop("parts", None) or [self.part(category) for category in CATEGORIES]
        defaults = {"batch_size": 8, "steps_per_epoch": 3, "k_shots": [1, 2], "validation_categories": ["MVTecAD/tile"]}
        return AuxiliaryData(parts, **defaults | options)

    def data_without_validation(self) -> AuxiliaryData:
        return self.data(parts=[self.part("bolt"), self.part("leaf")], validation_categories=[])

    def build(self, name: str, seed: int = 0, **options: Any) -> InCTRL | InCTRLv2:
        """A model to train on the untrained backbone, with cached features unless told otherwise."""
        seed_everything(seed)
        defaults = {"backbone": EMBEDDED_TRUNK, "pretrained": None, "phase": "train", "visualizer": False}
        return MODELS[name](**defaults | {"feature_cache": self.cache} | options)

    def fit(
        self,
        model: InCTRL | InCTRLv2,
        folder: Path,
        data: AuxiliaryData | None = None,
        epochs: int = 1,
        ckpt_path: Path | None = None,
        **options: Any,
    ) -> Run:
        losses = Losses()
        callbacks = [losses, *options.pop("callbacks", [])]
        engine = Engine(default_root_dir=folder, max_epochs=epochs, callbacks=callbacks, **QUIET | options)
        engine.fit(model=model, datamodule=data or self.data(), ckpt_path=ckpt_path)
        return Run(model, losses, engine)

    def batch(self, model: InCTRL | InCTRLv2, data: AuxiliaryData | None = None) -> Any:
        """The first batch of a model's training, without a trainer."""
        data = data or self.data()
        data.setup()
        transform = model.pre_processor.transform
        normal_stream = model._wants_normal_stream()
        data.attach(transform, model.model.backbone.image_size, None, normal_stream=normal_stream)
        return next(iter(data.train_dataloader()))


def encode_text_once(patch: pytest.MonkeyPatch) -> None:
    """Remember text prototypes across models: the many models of these tests have one and the same text tower."""
    encode = ClipBackbone.text_prototypes
    prototypes: dict[Any, torch.Tensor] = {}

    def remember(self: ClipBackbone, class_name: str) -> torch.Tensor:
        key = (self.fingerprint, self.visual.conv1.weight.dtype, class_name)
        if key not in prototypes:
            prototypes[key] = encode(self, class_name)
        return prototypes[key]

    patch.setattr(ClipBackbone, "text_prototypes", remember)


@pytest.fixture(scope="session", autouse=True)
def _encode_text_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        encode_text_once(patch)
        yield


@pytest.fixture(scope="session")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    root = tmp_path_factory.mktemp("MVTecAD")
    for number, category in enumerate(CATEGORIES):
        write_category(root / category, 1000 * number, 60.0 + 50 * number)
    return Kit(root, tmp_path_factory.mktemp("features"))


@pytest.fixture(scope="session", params=["InCTRL", "InCTRLv2"])  # CoOp, which trains no heads, has its own tests
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def trained(name: str, kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Four epochs in one go; shared, so it must not be run again."""
    return kit.fit(kit.build(name), tmp_path_factory.mktemp(f"trained_{name}"), epochs=4, callbacks=[KeepCheckpoint(2)])
