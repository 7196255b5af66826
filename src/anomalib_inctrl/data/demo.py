"""Demonstration data of real photographs that needs no download.

:class:`DemoAD` cuts photographs which scikit-image carries in its wheel into crops and damages some of them. The
photographs and their licences are listed in :mod:`anomalib_inctrl.data.photographs`, the kinds of damage in
:mod:`anomalib_inctrl.data.defects`. A category is written once, in the folder layout of MVTec AD::

    DemoAD/
    └── brick/
        ├── demo.json                       settings the folder was written with
        ├── train/good/000.png ...          16 normal crops
        ├── test/good/000.png ...           24 normal crops from other regions of the photograph
        ├── test/scratch/016.png ...        4 damaged crops per kind of defect
        └── ground_truth/scratch/016_mask.png ...

A damaged image is made of a normal test image, its clean twin, and carries the same file name: ``test/scratch/016.png``
is ``test/good/016.png`` with a scratch. Hence no score can come from the place in the photograph: before the damage,
the images with and without defects are the same. The photograph of the coins shows fewer objects: 12 coins train, 12
others test, each of these also twice with a defect.

Example:
    >>> from anomalib_inctrl.data import DemoAD
    >>> datamodule = DemoAD(category="gravel")
    >>> datamodule.category
    'gravel'
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from anomalib.data.datamodules.base.image import AnomalibDataModule
from anomalib.data.datasets.image.mvtecad import MVTecADDataset
from anomalib.data.utils import Split, TestSplitMode, ValSplitMode
from anomalib.utils.path import resolve_dataset_root
from torchvision.transforms.v2 import Transform

from anomalib_inctrl.data.defects import KINDS, add_defect, resize
from anomalib_inctrl.data.folders import ensure_folder, save_image
from anomalib_inctrl.data.photographs import (
    CATEGORIES,
    PHOTOGRAPHS,
    ROLES,
    Crop,
    Role,
    cut,
    plan_crops,
    read_photograph,
)

__all__ = ["CATEGORIES", "DemoAD", "DemoSample", "crops_of_category", "samples_of_category"]

logger = logging.getLogger(__name__)

VERSION = 2
"""Raised whenever the same settings give other pixels, so that folders of older versions are not reused."""

PER_KIND = 4
"""Number of images of every kind of defect."""

METADATA = "demo.json"
MIN_IMAGE_SIZE = 64


@dataclass(frozen=True)
class DemoSample:
    """One image of a category as it is written.

    Args:
        path: Image file relative to the category folder, such as ``test/hole/008.png``. Its name is that of the clean
            twin in ``test/good``.
        image: ``uint8`` array of shape ``(size, size, 3)``.
        clean: The same crop without a defect; equal to ``image`` for normal samples.
        mask: Boolean array of shape ``(size, size)``, or ``None`` for normal samples.
    """

    path: Path
    image: np.ndarray
    clean: np.ndarray
    mask: np.ndarray | None = None

    @property
    def mask_path(self) -> Path:
        """Mask file relative to the category folder, such as ``ground_truth/hole/008_mask.png``."""
        return Path("ground_truth", self.path.parent.name, f"{self.path.stem}_mask.png")


def crops_of_category(category: str, generation_seed: int = 0) -> dict[Role, list[Crop]]:
    """Return where the crops of a category lie in its photograph.

    Args:
        category: One of :data:`CATEGORIES`.
        generation_seed: Seed of the generation, from 0 on.

    Returns:
        The crops for training and for testing. Boxes of different roles do not intersect.
    """
    return {role: plan_crops(category, role, _generator(category, generation_seed, role)) for role in ROLES}


def samples_of_category(category: str, image_size: int = 256, generation_seed: int = 0) -> Iterator[DemoSample]:
    """Generate the images of a category, the same ones for the same arguments.

    Args:
        category: One of :data:`CATEGORIES`.
        image_size: Side of the images in pixels.
        generation_seed: Seed of the generation, from 0 on.

    Yields:
        Training images, normal test images, then the damaged test images of one kind after the other.

    Raises:
        FileNotFoundError: If the installed scikit-image lacks a photograph.
    """
    crops = crops_of_category(category, generation_seed)
    photograph = PHOTOGRAPHS[category]
    pixels = read_photograph(photograph.file)
    for role, planned in crops.items():
        for index, crop in enumerate(planned):
            image = resize(cut(pixels, crop), image_size)
            yield DemoSample(Path(role, "good", f"{index:03}.png"), image, image)
    for index in range(PER_KIND * len(KINDS)):
        kind, twin = KINDS[index // PER_KIND], index % len(crops["test"])
        generator = _generator(category, generation_seed, "defect", index)
        clean = cut(pixels, crops["test"][twin])
        damage = add_defect(clean, kind, generator, image_size, photograph.inside, photograph.opacity)
        yield DemoSample(Path("test", kind, f"{twin:03}.png"), damage.image, damage.clean, damage.mask)


def ensure_category(root: Path, category: str, image_size: int, generation_seed: int) -> bool:
    """Write a category folder unless it is there with the same settings, see :func:`ensure_folder`.

    Args:
        root: Folder that holds the category folders; created if needed.
        category: One of :data:`CATEGORIES`.
        image_size: Side of the images in pixels.
        generation_seed: Seed of the generation.

    Returns:
        Whether this call wrote the folder.

    Raises:
        ValueError: If the folder exists with other settings, is incomplete, or was not written by this function.
    """
    settings = {
        "generator": "anomalib_inctrl.data.DemoAD",
        "version": VERSION,
        "category": category,
        "image_size": image_size,
        "generation_seed": generation_seed,
    }

    def write(folder: Path) -> dict[str, Any]:
        for sample in samples_of_category(category, image_size, generation_seed):
            save_image(sample.image, folder / sample.path)
            if sample.mask is not None:
                save_image(sample.mask, folder / sample.mask_path)
        photograph = PHOTOGRAPHS[category]
        return {"crops": photograph.counts, "photograph": photograph.file}

    return ensure_folder(root / category, settings, write, METADATA)


def _generator(
    category: str, generation_seed: int, use: Role | Literal["defect"], index: int = 0
) -> np.random.Generator:
    """Return a random generator that depends on nothing but these arguments."""
    stream = ("train", "test", "defect").index(use)
    return np.random.default_rng([generation_seed, zlib.crc32(category.encode()), stream, index])


class DemoAD(AnomalibDataModule):
    """Demonstration data: real photographs with generated defects, without any download.

    Every category comes from one photograph inside scikit-image's wheel, divided into regions for training and
    regions for testing that do not overlap. Every image with a defect has its clean twin of the same file name among
    the normal test images. The defects (``crack``, ``cutpaste``, ``hole``, ``perlin``, ``scratch``, ``stain``) carry
    exact pixel masks. Use it to try a model, a configuration or a deployment; its scores say nothing about
    benchmarks.

    Args:
        root (Path | str | None): Folder that holds, or will hold, one folder per category. ``None`` stands for
            anomalib's own cache of data sets.
            Defaults to ``"./datasets/DemoAD"``.
        category (str): One of ``"brick"``, ``"coins"``, ``"grass"``, ``"gravel"``, ``"moon"``, ``"retina"`` and
            ``"tissue"``.
            Defaults to ``"brick"``.
        image_size (int): Side of the written images in pixels, at least 64.
            Defaults to ``256``.
        generation_seed (int): Seed of the crops and defects, at least 0; not the seed of the splits.
            Defaults to ``0``.
        train_batch_size (int): Training batch size.
            Defaults to ``32``.
        eval_batch_size (int): Validation and test batch size.
            Defaults to ``32``.
        num_workers (int): Number of worker processes; the images are few and small.
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
        ValueError: If the category is unknown, ``image_size`` too small or ``generation_seed`` negative.
    """

    def __init__(
        self,
        root: Path | str | None = "./datasets/DemoAD",
        category: str = "brick",
        image_size: int = 256,
        generation_seed: int = 0,
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
        _check_arguments(category, image_size, generation_seed)
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
        self.root = resolve_dataset_root(root, "DemoAD")
        self.category = category
        self.image_size = image_size
        self.generation_seed = generation_seed

    def prepare_data(self) -> None:
        """Write the category unless its folder is there.

        Raises:
            ValueError: If the folder is there with other settings, incomplete, or not of this class.
        """
        if ensure_category(self.root, self.category, self.image_size, self.generation_seed):
            logger.info("Wrote %s.", self.root / self.category)
        else:
            logger.info("Found %s.", self.root / self.category)

    def _setup(self, _stage: str | None = None) -> None:
        """Read the written category as the MVTec AD data set it looks like; write it first if needed."""
        self.prepare_data()
        self.train_data = MVTecADDataset(split=Split.TRAIN, root=self.root, category=self.category)
        self.test_data = MVTecADDataset(split=Split.TEST, root=self.root, category=self.category)


def _check_arguments(category: str, image_size: int, generation_seed: int) -> None:
    """Raise a ``ValueError`` for arguments that cannot be generated."""
    if category not in CATEGORIES:
        msg = f"Unknown category {category!r}. Available categories: {', '.join(CATEGORIES)}."
        raise ValueError(msg)
    if image_size < MIN_IMAGE_SIZE:
        msg = f"image_size must be at least {MIN_IMAGE_SIZE} pixels, not {image_size}."
        raise ValueError(msg)
    if generation_seed < 0:
        msg = f"generation_seed must not be negative, but is {generation_seed}."
        raise ValueError(msg)
