"""Methods that cost nothing, and data they work on, for tests of what is around them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anomalib import LearningType
from anomalib.data import InferenceBatch
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from PIL import Image
from torchvision.transforms.v2 import Resize


class _Distance(torch.nn.Module):
    """Distance to the mean of what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3, 16, 16))

    def forward(self, images: torch.Tensor) -> InferenceBatch:
        maps = (images - self.mean).abs().mean(dim=1)
        return InferenceBatch(pred_score=maps.amax(dim=(1, 2)), anomaly_map=maps)


class DummyTrained(AnomalibModule):
    """Takes its references as training batches.

    Args:
        fails_with: Number of references with which it fails; stands for any error.
        post_processor: As anomalib has it.
        evaluator: As anomalib has it.
        visualizer: As anomalib has it.
    """

    def __init__(
        self,
        fails_with: int | None = None,
        post_processor: Any = True,
        evaluator: Any = True,
        visualizer: Any = True,
    ) -> None:
        super().__init__(post_processor=post_processor, evaluator=evaluator, visualizer=visualizer)
        self.model = _Distance()
        self.fails_with = fails_with
        self.seen: list[torch.Tensor] = []

    learning_type = LearningType.ONE_CLASS
    trainer_arguments: dict[str, Any] = {"max_epochs": 1, "num_sanity_val_steps": 0}  # noqa: RUF012

    @staticmethod
    def configure_pre_processor(image_size: tuple[int, int] | None = None) -> PreProcessor:
        return PreProcessor(Resize(image_size or (16, 16), antialias=True))

    def configure_optimizers(self) -> None:
        return None

    def training_step(self, batch: Any, *_: Any) -> torch.Tensor:
        self.seen.append(batch.image)
        return torch.tensor(0.0, requires_grad=True)

    def on_train_epoch_end(self) -> None:
        images = torch.cat(self.seen)
        if len(images) == self.fails_with:
            msg = f"no luck with {self.fails_with}"
            raise ValueError(msg)
        self.model.mean = images.mean(dim=0)

    def validation_step(self, batch: Any, *_: Any) -> Any:
        return batch.update(**self.model(batch.image)._asdict())


class DummyFewShot(DummyTrained):
    """Reads its references itself when a test starts, as in-context models do.

    Args:
        k_shot: How many.
        greedy: Read the whole training folder instead.
        post_processor: As anomalib has it.
    """

    learning_type = LearningType.FEW_SHOT

    def __init__(self, k_shot: int = 1, greedy: bool = False, post_processor: Any = None) -> None:
        super().__init__(post_processor=False, evaluator=False, visualizer=False)
        self.k_shot, self.greedy = k_shot, greedy

    def configure_post_processor(self) -> PostProcessor:
        return PostProcessor()

    def on_test_start(self) -> None:
        paths = [Path(path) for path in self.trainer.datamodule.train_data.samples.image_path]
        if self.greedy:
            paths = sorted(paths[0].parent.glob("*.png"))
        images = [torch.from_numpy(np.asarray(Image.open(p)) / 255).permute(2, 0, 1).float() for p in paths]
        with torch.inference_mode(mode=False):
            self.model.mean = torch.stack([Resize((16, 16), antialias=True)(i) for i in images]).mean(0)


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    """Two categories in MVTec's layout with 5 normal images to train, 3 normal and 3 damaged ones to test."""
    root = tmp_path_factory.mktemp("benchmark-data")
    for category, tone in (("nut", 80), ("bolt", 150)):
        for folder, count in (("train/good", 5), ("test/good", 3), ("test/spot", 3)):
            for i in range(count):
                seed = [tone, len(folder), i]
                pixels = np.random.default_rng(seed).normal(tone, 25, (24, 24, 3))
                if folder == "test/spot":
                    pixels[4:12, 4 + i : 12 + i] += 45
                    mask = np.zeros((24, 24), dtype=np.uint8)
                    mask[4:12, 4 + i : 12 + i] = 255
                    save(root / category / f"ground_truth/spot/{i:03}_mask.png", mask)
                save(root / category / folder / f"{i:03}.png", pixels.clip(0, 255).astype(np.uint8))
    return root


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
