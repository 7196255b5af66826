"""What the data modules of prepared benchmarks share."""

from __future__ import annotations

import logging
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from anomalib.data.datamodules.base.image import AnomalibDataModule
from anomalib.data.datasets.base.image import AnomalibDataset
from anomalib.data.utils import LabelName, Split, TestSplitMode, ValSplitMode
from anomalib.utils.path import resolve_dataset_root
from pandas import DataFrame
from torchvision.transforms.v2 import Transform

from anomalib_inctrl.data.benchmarks.preparation import Benchmark

logger = logging.getLogger(__name__)

COLUMNS = ["image_path", "split", "label", "label_index", "mask_path", "object_class"]


class BenchmarkDataset(AnomalibDataset):
    """Images of a prepared folder, as a table.

    Args:
        samples (DataFrame): With the columns :data:`COLUMNS`.
        augmentations (Transform | None): Augmentations.
    """

    def __init__(self, samples: DataFrame, augmentations: Transform | None = None) -> None:
        super().__init__(augmentations=augmentations)
        self.samples = samples


def samples_of_folder(root: Path, split: Split) -> DataFrame:
    """List the images of one split of a folder in MVTec AD's layout.

    Args:
        root (Path): Holds ``train/good``, ``test/good``, ``test/<defect>`` and, where there are masks,
            ``ground_truth/<defect>/<name>_mask.png``.
        split (Split): Training or test.

    Returns:
        DataFrame: With the columns :data:`COLUMNS`; ``attrs["task"]`` says whether there are masks.
    """
    has_masks = (root / "ground_truth").is_dir()
    rows = []
    for file in sorted((root / split.value).glob("*/*.png")):
        label = file.parent.name
        anomalous = label != "good"
        mask = root / "ground_truth" / label / f"{file.stem}_mask.png" if anomalous and has_masks else ""
        index = LabelName.ABNORMAL if anomalous else LabelName.NORMAL
        rows.append((str(file), split.value, label, int(index), str(mask), label))
    return _table(rows, "segmentation" if has_masks else "classification")


def samples_of_classes(root: Path, split: Split, normal_classes: frozenset[str]) -> DataFrame:
    """List the images of one split of a folder with a folder for every class; in training the normal classes alone.

    Args:
        root (Path): Holds ``train/<class>`` and ``test/<class>``.
        split (Split): Training or test.
        normal_classes (frozenset[str]): Classes that are normal; all others are anomalous.

    Returns:
        DataFrame: With the columns :data:`COLUMNS`.
    """
    rows = []
    for file in sorted((root / split.value).glob("*/*.png")):
        name = file.parent.name
        normal = name in normal_classes
        if normal or split is Split.TEST:
            index = LabelName.NORMAL if normal else LabelName.ABNORMAL
            rows.append((str(file), split.value, "good" if normal else name, int(index), "", name))
    return _table(rows, "classification")


def _table(rows: list[tuple[str, str, str, int, str, str]], task: str) -> DataFrame:
    samples = DataFrame(rows, columns=COLUMNS)
    samples.attrs["task"] = task
    return samples


class BenchmarkData(AnomalibDataModule):
    """Base of the data modules: prepares a download on first use.

    Args:
        root (Path | str | None): Folder of the prepared images. ``None`` stands for anomalib's own cache of data sets.
        source (Path | str | None): The download, a folder or an archive; needed until the images are prepared.
        strict (bool): Whether a download has to hold the published number of images; ``False`` takes partial copies.
        class_name (str | None): What the text prompts call the objects.
        train_batch_size (int): Training batch size.
        eval_batch_size (int): Validation and test batch size.
        num_workers (int): Number of worker processes.
        train_augmentations (Transform | None): Augmentations to apply to the training images.
        val_augmentations (Transform | None): Augmentations to apply to the validation images.
        test_augmentations (Transform | None): Augmentations to apply to the test images.
        augmentations (Transform | None): Augmentations for every stage that has none of its own.
        test_split_mode (TestSplitMode | str): How the test set is made.
        test_split_ratio (float): Fraction of images for testing where the mode asks for one.
        val_split_mode (ValSplitMode | str): How the validation set is made.
        val_split_ratio (float): Fraction of images for validation where the mode asks for one.
        seed (int | None): Seed of random splits; that of the protocol is fixed.
    """

    benchmark: ClassVar[Benchmark]

    def __init__(
        self,
        root: Path | str | None,
        source: Path | str | None = None,
        strict: bool = True,
        class_name: str | None = None,
        train_batch_size: int = 32,
        eval_batch_size: int = 32,
        num_workers: int = 8,
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
        self.root = Path(resolve_dataset_root(root, self.benchmark.name))
        self.source = source
        self.strict = strict
        self.class_name = class_name

    def prepare_data(self) -> None:
        """Prepare the download unless that has been done.

        Raises:
            FileNotFoundError: If there is no download, with the place to get it from.
            ValueError: If the download's counts are not the published ones, or the folder is not complete.
        """
        if self.benchmark.prepare(self.source, self.root, strict=self.strict):
            logger.info("Prepared %s.", self.root)
        else:
            logger.info("Found %s.", self.root)

    def _setup(self, _stage: str | None = None) -> None:
        """Read the prepared folder; prepare it first if needed."""
        self.prepare_data()
        self.train_data = BenchmarkDataset(self._samples_of(Split.TRAIN))
        self.test_data = BenchmarkDataset(self._samples_of(Split.TEST))

    @abstractmethod
    def _samples_of(self, split: Split) -> DataFrame:
        """List the images of a split by the paper's protocol."""


class DefectData(BenchmarkData):
    """Base of data modules of one category, normal images against defects, in MVTec AD's layout."""

    def _samples_of(self, split: Split) -> DataFrame:
        return samples_of_folder(self.root, split)


class SemanticData(BenchmarkData):
    """Base of data modules whose anomalies are objects of other classes.

    Args:
        root (Path | str | None): Folder of the prepared images.
        category (str): The normal class of the protocol ``"one_vs_all"``.
        protocol (str): ``"one_vs_all"`` or ``"multiclass"``.
        normal_classes (list[str] | None): Normal classes of the protocol ``"multiclass"``; ``None`` for the paper's.
        class_name (str | None): What the text prompts call normal objects; ``None`` for the protocol's own name.
        **kwargs (Any): Of :class:`BenchmarkData`.

    Raises:
        ValueError: If a class or the protocol does not exist, or no class is left to be anomalous.
    """

    CLASSES: ClassVar[tuple[str, ...]]
    MULTICLASS: ClassVar[tuple[str, ...]]
    MULTICLASS_NAME: ClassVar[str]

    def __init__(
        self,
        root: Path | str | None,
        category: str,
        protocol: str = "one_vs_all",
        normal_classes: list[str] | None = None,
        class_name: str | None = None,
        **kwargs: Any,
    ) -> None:
        if protocol not in {"one_vs_all", "multiclass"}:
            msg = f"protocol must be 'one_vs_all' or 'multiclass', got {protocol!r}."
            raise ValueError(msg)
        several = protocol == "multiclass"
        chosen = list(normal_classes or self.MULTICLASS) if several else [category]
        unknown = [name for name in chosen if name not in self.CLASSES]
        if unknown or not set(self.CLASSES) - set(chosen):
            msg = f"Normal classes must be some, not all, of {', '.join(self.CLASSES)}; got {', '.join(chosen)}."
            raise ValueError(msg)
        by_name = self.MULTICLASS_NAME if set(chosen) == set(self.MULTICLASS) else "object"
        super().__init__(root=root, class_name=class_name or (by_name if several else self._spell(category)), **kwargs)
        self.protocol = protocol
        self.normal_classes = frozenset(chosen)
        self.category = "+".join(sorted(chosen)) if several else category

    @classmethod
    def _spell(cls, category: str) -> str:
        return category

    def _samples_of(self, split: Split) -> DataFrame:
        return samples_of_classes(self.root, split, self.normal_classes)
