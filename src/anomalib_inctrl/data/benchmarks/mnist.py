"""MNIST: a digit, or the even ones, normal and all other digits anomalous."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torchvision.datasets.mnist import read_image_file, read_label_file
from tqdm import tqdm

from anomalib_inctrl.data.benchmarks.datamodule import SemanticData
from anomalib_inctrl.data.benchmarks.preparation import Benchmark, Source, check_counts, files_named
from anomalib_inctrl.data.folders import save_image

_FILES = {  # split -> images and labels
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def _find(folders: Sequence[Path]) -> dict[str, Path] | None:
    """The four files by name, plain or compressed; some spell them with a dot, ``train-images.idx3-ubyte``."""
    found: dict[str, Path] = {}
    for name in (name for pair in _FILES.values() for name in pair):
        dotted = name.replace("-idx", ".idx")
        spellings = (name, dotted, f"{name}.gz", f"{dotted}.gz")
        files = [file for spelling in spellings for file in files_named(folders, spelling)]
        if not files:
            return None
        found[name] = files[0]
    return found


def _plain(file: Path, temporary: Path) -> str:
    """Path of a file's uncompressed content."""
    if file.suffix != ".gz":
        return str(file)
    target = temporary / file.stem
    with gzip.open(file, "rb") as content, target.open("wb") as plain:
        shutil.copyfileobj(content, plain)
    return str(target)


def _read(files: dict[str, Path], split: str, temporary: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images ``(n, 28, 28)`` and labels ``(n,)`` of a split.

    Raises:
        ValueError: If a file is damaged, or there is not one label for every image.
    """
    image_name, label_name = _FILES[split]
    try:
        images = read_image_file(_plain(files[image_name], temporary)).numpy()
        labels = read_label_file(_plain(files[label_name], temporary)).numpy()
    except Exception as error:  # torchvision asserts, torch and gzip have errors of their own
        msg = f"{files[image_name]} or its labels can't be read: {type(error).__name__}: {error}. Download both again."
        raise ValueError(msg) from error
    if len(images) != len(labels) or not set(labels.tolist()) <= set(range(10)):
        msg = f"{files[image_name]} has {len(images)} images, but {len(labels)} labels of 0 to 9. Download both again."
        raise ValueError(msg)
    return images, labels


def _write(source: Source, folder: Path) -> dict[str, Any] | None:
    files = source.find(_find)
    if files is None:
        return None
    data = {split: _read(files, split, source.temporary) for split in _FILES}
    found = {f"{split} images": len(images) for split, (images, _) in data.items()}
    published = {"train images": [60_000], "test images": [10_000]}
    check_counts("Mnist", found, published, strict=source.strict)
    for split, (images, labels) in data.items():
        for index in tqdm(range(len(images)), desc=f"MNIST {split}", disable=None):
            save_image(images[index], folder / split / str(labels[index]) / f"{index:05}.png")
    return {"found": found}


BENCHMARK = Benchmark(
    name="Mnist",
    place="https://ossci-datasets.s3.amazonaws.com/mnist/ or torchvision.datasets.MNIST(root, download=True)",
    files="train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte, plain "
    "or .gz",
    licence="CC BY-SA 3.0",
    write=_write,
)


class Mnist(SemanticData):
    """MNIST: digits; images without masks.

    Every image is kept once, whatever the protocol: ``train/<digit>`` and ``test/<digit>``. All test images test.

    Args:
        root (Path | str | None): Folder of the prepared images. ``None`` stands for anomalib's own cache of data sets.
        category (str): The normal digit of ``"one_vs_all"``, ``"0"`` to ``"9"``.
        protocol (str): ``"one_vs_all"``, or ``"multiclass"``: several digits are normal at once.
        normal_classes (list[str] | None): Digits that are normal in ``"multiclass"``; ``None`` for the even ones.
        class_name (str | None): What the text prompts call normal images; ``None`` for ``"digit 3"`` and the like, and
            ``"even digit"``.
        **kwargs (Any): ``source`` (the download), ``strict`` and what anomalib's data modules take.

    Raises:
        ValueError: If a digit or the protocol does not exist, or no digit is left to be anomalous.
    """

    benchmark: ClassVar[Benchmark] = BENCHMARK
    CLASSES: ClassVar[tuple[str, ...]] = tuple("0123456789")
    MULTICLASS: ClassVar[tuple[str, ...]] = tuple("02468")
    MULTICLASS_NAME: ClassVar[str] = "even digit"

    def __init__(
        self,
        root: Path | str | None = "./datasets/MNIST",
        category: str = "0",
        protocol: str = "one_vs_all",
        normal_classes: list[str] | None = None,
        class_name: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, str(category), protocol, normal_classes, class_name, **kwargs)

    @classmethod
    def _spell(cls, category: str) -> str:
        return f"digit {category}"
