"""Small real images inside scikit-learn's and scikit-image's wheels: digits and faces, for semantic anomalies.

Written once as PNG files, one folder per category::

    DigitsAD/
    └── 3/
        ├── small_images.json           settings the folder was written with
        ├── train/good/0007.png ...     normal images to draw references from
        ├── test/good/0031.png ...      other normal images
        └── test/other/0002.png ...     anomalous images; there are no masks
"""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from anomalib.data import AnomalibDataModule
from anomalib.data.utils import Split
from anomalib.utils.path import resolve_dataset_root

from anomalib_inctrl.data.benchmarks.datamodule import BenchmarkDataset, samples_of_folder
from anomalib_inctrl.data.folders import ensure_folder, save_image

METADATA = "small_images.json"
DIGITS = tuple(map(str, range(10)))
QUERIES_PER_DIGIT = 50  # set aside for testing; the rest of a digit's images may be references
_VERSION = 1  # raised whenever the same settings give other files


class _Pictures(NamedTuple):
    """8-bit images ``(M, h, w)`` and which of them go into a folder."""

    images: np.ndarray
    members: dict[str, np.ndarray]


class _SmallImages(AnomalibDataModule):
    """What the two data modules share: written once, read back without masks."""

    def __init__(self, root: Path | str | None, category: str, batch_sizes: tuple[int, int], num_workers: int) -> None:
        super().__init__(*batch_sizes, num_workers, val_split_mode="same_as_test", test_split_mode="from_dir")
        self.root = resolve_dataset_root(root, self.name)
        self.category = category

    @property
    @abstractmethod
    def _settings(self) -> dict[str, Any]:
        """What the files depend on beside the category."""

    @abstractmethod
    def _pictures(self) -> _Pictures:
        """Load the images."""

    def prepare_data(self) -> None:
        """Write the category unless its folder is there.

        Raises:
            ValueError: If the folder is there with other settings, incomplete, or not of this class.
        """
        settings = {
            "generator": f"anomalib_inctrl.data.{self.name}",
            "version": _VERSION,
            "category": self.category,
        } | self._settings

        def write(folder: Path) -> dict[str, Any]:
            pictures = self._pictures()
            for name, members in pictures.members.items():
                for index in sorted(members.tolist()):
                    gray = pictures.images[index]
                    save_image(np.repeat(gray[..., None], 3, axis=-1), folder / name / f"{index:04}.png")
            return {}

        ensure_folder(self.root / self.category, settings, write, METADATA)

    def _setup(self, _stage: str | None = None) -> None:
        self.prepare_data()
        folder = self.root / self.category
        self.train_data, self.test_data = (
            BenchmarkDataset(samples_of_folder(folder, split)) for split in (Split.TRAIN, Split.TEST)
        )


class DigitsAD(_SmallImages):
    """Handwritten digits of scikit-learn, one normal and the nine others anomalous; no download, no masks.

    1797 images of 8 x 8 pixels from the test set of UCI's "Optical Recognition of Handwritten Digits". The same images
    of every digit are set aside for testing whichever digit is normal.

    Args:
        root (Path | str | None): Folder that holds, or will hold, one folder per category. ``None`` stands for
            anomalib's own cache of data sets.
        category (str): The normal digit, ``"0"`` to ``"9"``.
        queries_per_digit (int): Test images of every digit, 1 to 50.
        train_batch_size (int): Training batch size.
        eval_batch_size (int): Validation and test batch size.
        num_workers (int): Number of worker processes; the images are few and small.

    Raises:
        ValueError: If the category is no digit, or ``queries_per_digit`` is out of range.

    Example:
        >>> from anomalib_inctrl import DigitsAD
        >>> DigitsAD(category="3").class_name
        'digit'
    """

    class_name = "digit"

    def __init__(
        self,
        root: Path | str | None = "./datasets/DigitsAD",
        category: str = "0",
        queries_per_digit: int = QUERIES_PER_DIGIT,
        train_batch_size: int = 32,
        eval_batch_size: int = 32,
        num_workers: int = 0,
    ) -> None:
        if str(category) not in DIGITS:
            msg = f"Unknown category {category!r}. Available categories: {', '.join(DIGITS)}."
            raise ValueError(msg)
        if not 1 <= queries_per_digit <= QUERIES_PER_DIGIT:
            msg = f"queries_per_digit must be 1 to {QUERIES_PER_DIGIT}, got {queries_per_digit}."
            raise ValueError(msg)
        super().__init__(root, str(category), (train_batch_size, eval_batch_size), num_workers)
        self.queries_per_digit = queries_per_digit

    @property
    def _settings(self) -> dict[str, Any]:
        return {"queries_per_digit": self.queries_per_digit}

    def _pictures(self) -> _Pictures:
        from sklearn.datasets import load_digits

        data = load_digits()
        order = np.random.default_rng(0).permutation(len(data.images))
        shuffled = {digit: order[data.target[order] == int(digit)] for digit in DIGITS}
        queries = {digit: members[: self.queries_per_digit] for digit, members in shuffled.items()}
        others = [members for digit, members in queries.items() if digit != self.category]
        return _Pictures(
            images=np.round(data.images / 16 * 255).astype(np.uint8),
            members={
                "train/good": shuffled[self.category][QUERIES_PER_DIGIT:],
                "test/good": queries[self.category],
                "test/other": np.concatenate(others),
            },
        )


class FacesAD(_SmallImages):
    """Faces normal, other crops of the same photographs anomalous; no download, no masks.

    ``skimage.data.lfw_subset``: 100 faces and 100 crops without one, 25 x 25 pixels, of "Labeled Faces in the Wild".
    Half of the faces may be references, the other half is tested.

    Args:
        root (Path | str | None): Folder that holds, or will hold, the one category. ``None`` stands for anomalib's own
            cache of data sets.
        category (str): ``"faces"``.
        train_batch_size (int): Training batch size.
        eval_batch_size (int): Validation and test batch size.
        num_workers (int): Number of worker processes; the images are few and small.

    Raises:
        ValueError: If the category is unknown.

    Example:
        >>> from anomalib_inctrl import FacesAD
        >>> FacesAD().class_name
        'face'
    """

    class_name = "face"

    def __init__(
        self,
        root: Path | str | None = "./datasets/FacesAD",
        category: str = "faces",
        train_batch_size: int = 32,
        eval_batch_size: int = 32,
        num_workers: int = 0,
    ) -> None:
        if category != "faces":
            msg = f"Unknown category {category!r}. Available categories: faces."
            raise ValueError(msg)
        super().__init__(root, category, (train_batch_size, eval_batch_size), num_workers)

    @property
    def _settings(self) -> dict[str, Any]:
        return {}

    def _pictures(self) -> _Pictures:
        from skimage.data import lfw_subset

        images = lfw_subset()
        faces = np.random.default_rng(0).permutation(len(images) // 2)
        return _Pictures(
            images=np.round(images * 255).astype(np.uint8),
            members={
                "train/good": faces[: len(faces) // 2],
                "test/good": faces[len(faces) // 2 :],
                "test/other": np.arange(len(images) // 2, len(images)),
            },
        )
