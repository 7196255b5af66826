"""Data module of pictures drawn by rule, in as many categories as one likes.

:class:`ProceduralAD` writes one category of :mod:`anomalib_inctrl.data.procedural` in the folder layout of MVTec AD::

    ProceduralAD/
    └── gear-7/
        ├── procedural.json                 settings the folder was written with
        ├── train/good/000.png ...          normal pictures
        ├── test/good/000.png ...           other normal pictures
        ├── test/scratch/003.png ...        anomalous pictures by kind
        └── ground_truth/scratch/003_mask.png ...

Example:
    >>> from anomalib_inctrl.data import ProceduralAD
    >>> ProceduralAD(category="gear-7").class_name
    'gear'
"""

from __future__ import annotations

import logging
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from anomalib.data.datamodules.base.image import AnomalibDataModule
from anomalib.data.datasets.image.mvtecad import MVTecADDataset
from anomalib.data.utils import Split, TestSplitMode, ValSplitMode
from anomalib.utils.path import resolve_dataset_root
from torchvision.transforms.v2 import Transform

from anomalib_inctrl.data.folders import ensure_folder, save_image
from anomalib_inctrl.data.procedural import FAMILIES, Category

logger = logging.getLogger(__name__)

VERSION = 3
"""Raised whenever the same settings give other pixels, so that folders of older versions are not reused."""

METADATA = "procedural.json"
MIN_IMAGE_SIZE = 64
_BATCH = 8  # pictures drawn at once

FAMILY_BY_NAME = {re.sub(r"(?<=[a-z])(?=[A-Z])", "_", family.__name__).lower(): family for family in FAMILIES}
"""Families by the name a category takes: ``"woven_cloth"`` for the class ``WovenCloth``."""

CATEGORIES: tuple[str, ...] = tuple(sorted(FAMILY_BY_NAME))
"""Names of the families, sorted; each has endless members, ``"gear"`` or ``"gear-0"``, ``"gear-1"`` and so on."""


def write_category(folder: Path, family: str, member: int, counts: tuple[int, int, int], side: int) -> None:
    """Draw the pictures of a category, the same ones for the same arguments, and write them in MVTec AD's layout.

    Args:
        folder: Folder to write.
        family: One of :data:`CATEGORIES`.
        member: Which member of the family; also the seed of its pictures.
        counts: Number of normal pictures for training, of normal and of anomalous ones for testing.
        side: Height and width in pixels.
    """
    generator = np.random.default_rng([member, zlib.crc32(family.encode())])
    drawn = Category.sample(generator, FAMILY_BY_NAME[family])
    train, good, anomalous = counts
    for role, count in (("train", train), ("test", good)):
        for start in range(0, count, _BATCH):
            for index, image in enumerate(drawn.draw_normal(generator, min(_BATCH, count - start), side), start):
                save_image(image, folder / role / "good" / f"{index:03}.png")
    kinds = [drawn.draw_kind(generator) for _ in range(anomalous)]
    pictures = drawn.draw_anomalous(generator, kinds, side)
    for index, (image, mask, name) in enumerate(zip(*pictures, strict=True)):
        kind = name.replace(" ", "_")
        save_image(image, folder / "test" / kind / f"{index:03}.png")
        save_image(mask, folder / "ground_truth" / kind / f"{index:03}_mask.png")


class ProceduralAD(AnomalibDataModule):
    """Surfaces, objects and glyphs drawn by rule, with anomalies of many kinds and exact masks; no download.

    A category is a member of a family: its layout, colours, light and camera are drawn once, what differs between
    normal pictures anew for each of them. Anomalies are structural faults (a missing part), local damage (a scratch),
    and changes to the whole (another colour, another object). Made to train and to try models on, not to compare them
    with published figures.

    Args:
        root (Path | str | None): Folder that holds, or will hold, one folder per category. ``None`` stands for
            anomalib's own cache of data sets.
            Defaults to ``"./datasets/ProceduralAD"``.
        category (str): Name of a family, such as ``"gear"``, and after a hyphen which of its members, from 0 on:
            ``"gear-7"``. :data:`CATEGORIES` has all names.
            Defaults to ``"gear"``.
        image_size (int): Side of the pictures in pixels, at least 64.
            Defaults to ``128``.
        train_count (int): Normal pictures for training.
            Defaults to ``16``.
        normal_count (int): Normal pictures for testing.
            Defaults to ``24``.
        anomalous_count (int): Anomalous pictures for testing.
            Defaults to ``24``.
        train_batch_size (int): Training batch size.
            Defaults to ``32``.
        eval_batch_size (int): Validation and test batch size.
            Defaults to ``32``.
        num_workers (int): Number of worker processes; the pictures are few and small.
            Defaults to ``0``.
        train_augmentations (Transform | None): Augmentations to apply to the training images.
            Defaults to ``None``.
        val_augmentations (Transform | None): Augmentations to apply to the validation images.
            Defaults to ``None``.
        test_augmentations (Transform | None): Augmentations to apply to the test images.
            Defaults to ``None``.
        augmentations (Transform | None): Augmentations for every stage that has none of its own.
            Defaults to ``None``.
        test_split_mode (TestSplitMode | str): How the test set is made.
            Defaults to ``TestSplitMode.FROM_DIR``.
        test_split_ratio (float): Fraction of images for testing where the mode asks for one.
            Defaults to ``0.2``.
        val_split_mode (ValSplitMode | str): How the validation set is made.
            Defaults to ``ValSplitMode.SAME_AS_TEST``.
        val_split_ratio (float): Fraction of images for validation where the mode asks for one.
            Defaults to ``0.5``.
        seed (int | None): Seed of random splits.
            Defaults to ``None``.

    Raises:
        ValueError: If the category is unknown, or a number is too small.
    """

    def __init__(
        self,
        root: Path | str | None = "./datasets/ProceduralAD",
        category: str = "gear",
        image_size: int = 128,
        train_count: int = 16,
        normal_count: int = 24,
        anomalous_count: int = 24,
        train_batch_size: int = 32,
        eval_batch_size: int = 32,
        num_workers: int = 0,
        train_augmentations: Transform | None = None,
        val_augmentations: Transform | None = None,
        test_augmentations: Transform | None = None,
        augmentations: Transform | None = None,
        test_split_mode: TestSplitMode | str = TestSplitMode.FROM_DIR,
        test_split_ratio: float = 0.2,
        val_split_mode: ValSplitMode | str = ValSplitMode.SAME_AS_TEST,
        val_split_ratio: float = 0.5,
        seed: int | None = None,
    ) -> None:
        self.family, _, member = category.partition("-")
        if self.family not in CATEGORIES or not (member or "0").isdecimal():
            msg = f"Unknown category {category!r}. Available, alone or with a number (gear-7): {', '.join(CATEGORIES)}."
            raise ValueError(msg)
        counts = (train_count, normal_count, anomalous_count)
        if image_size < MIN_IMAGE_SIZE or min(counts) < 1:
            msg = (
                f"image_size must be at least {MIN_IMAGE_SIZE} and every count at least 1, got {image_size}, {counts}."
            )
            raise ValueError(msg)
        super().__init__(
            train_batch_size=train_batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            train_augmentations=train_augmentations,
            val_augmentations=val_augmentations,
            test_augmentations=test_augmentations,
            augmentations=augmentations,
            test_split_mode=test_split_mode,
            test_split_ratio=test_split_ratio,
            val_split_mode=val_split_mode,
            val_split_ratio=val_split_ratio,
            seed=seed,
        )
        self.root = resolve_dataset_root(root, "ProceduralAD")
        self.member = int(member or 0)
        self.category = f"{self.family}-{self.member}"
        self.image_size = image_size
        self.counts = counts

    @property
    def class_name(self) -> str:
        """What text prompts call the thing: a noun of its family."""
        return FAMILY_BY_NAME[self.family].NOUNS[0]

    def prepare_data(self) -> None:
        """Write the category unless its folder is there.

        Raises:
            ValueError: If the folder is there with other settings, incomplete, or not of this class.
        """
        settings = {
            "generator": "anomalib_inctrl.data.ProceduralAD",
            "version": VERSION,
            "category": self.category,
            "image_size": self.image_size,
            "counts": list(self.counts),
        }

        def write(folder: Path) -> dict[str, Any]:
            write_category(folder, self.family, self.member, self.counts, self.image_size)
            return {}

        if ensure_folder(self.root / self.category, settings, write, METADATA):
            logger.info("Wrote %s.", self.root / self.category)

    def _setup(self, _stage: str | None = None) -> None:
        """Read the written category as the MVTec AD data set it looks like; write it first if needed."""
        self.prepare_data()
        self.train_data = MVTecADDataset(split=Split.TRAIN, root=self.root, category=self.category)
        self.test_data = MVTecADDataset(split=Split.TEST, root=self.root, category=self.category)
