"""CIFAR-10: a class, or all animals, normal and all other classes anomalous."""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from tqdm import tqdm

from anomalib_inctrl.data.benchmarks.datamodule import SemanticData
from anomalib_inctrl.data.benchmarks.preparation import Benchmark, Source, check_counts, files_named
from anomalib_inctrl.data.folders import save_image

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
ANIMALS = ("bird", "cat", "deer", "dog", "frog", "horse")

_FILES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
_ARRAYS = {  # all that a pickled array of numbers is made of, under the names of older and newer NumPy
    (f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")
} | {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}


class _ArraysOnly(pickle.Unpickler):
    """Reads lists, texts and NumPy arrays of numbers, and nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        """Look up a class or function if it is part of an array."""
        if (module, name) not in _ARRAYS:
            msg = f"it refers to {module}.{name}, which no CIFAR-10 file does"
            raise pickle.UnpicklingError(msg)
        return super().find_class(module, name)


def _find(folders: Sequence[Path]) -> dict[str, Path] | None:
    """The six files by name."""
    found = {name: files_named(folders, name) for names in _FILES.values() for name in names}
    return {name: files[0] for name, files in found.items()} if all(found.values()) else None


def _read(file: Path) -> tuple[np.ndarray, list[int]]:
    """Images ``(n, 32, 32, 3)`` and labels of a file.

    Raises:
        ValueError: If the file is damaged or no file of CIFAR-10.
    """
    try:
        content = _ArraysOnly(io.BytesIO(file.read_bytes()), encoding="bytes").load()
        data, labels = np.asarray(content[b"data"]), [int(label) for label in content[b"labels"]]
        images = data.reshape(len(labels), 3, 32, 32).transpose(0, 2, 3, 1)
    except Exception as error:  # a damaged pickle can fail in any way
        msg = f"{file} can't be read: {type(error).__name__}: {error}. Download it again."
        raise ValueError(msg) from error
    if images.dtype != np.uint8 or not set(labels) <= set(range(len(CLASSES))):
        msg = f"{file} holds {images.dtype} and labels {sorted(set(labels))}, not 8-bit images of ten classes."
        raise ValueError(msg)
    return images, labels


def _write(source: Source, folder: Path) -> dict[str, Any] | None:
    files = source.find(_find)
    if files is None:
        return None
    parts = {split: [_read(files[name]) for name in names] for split, names in _FILES.items()}
    found = {f"{split} images": sum(len(labels) for _, labels in read) for split, read in parts.items()}
    published = {"train images": [50_000], "test images": [10_000]}
    check_counts("Cifar10", found, published, strict=source.strict)
    for split, read in parts.items():
        images = np.concatenate([pixels for pixels, _ in read])
        labels = [label for _, part in read for label in part]
        for index in tqdm(range(len(images)), desc=f"CIFAR-10 {split}", disable=None):
            save_image(images[index], folder / split / CLASSES[labels[index]] / f"{index:05}.png")
    return {"found": found}


BENCHMARK = Benchmark(
    name="Cifar10",
    place="https://www.cs.toronto.edu/~kriz/cifar.html or torchvision.datasets.CIFAR10(root, download=True)",
    files="cifar-10-python.tar.gz, or its folder cifar-10-batches-py",
    licence="see there",
    write=_write,
)


class Cifar10(SemanticData):
    """CIFAR-10: photographs of ten kinds of objects; images without masks.

    Every image is kept once, whatever the protocol: ``train/<class>`` and ``test/<class>``. All test images test.

    Args:
        root (Path | str | None): Folder of the prepared images. ``None`` stands for anomalib's own cache of data sets.
        category (str): The normal class of ``"one_vs_all"``: ``"airplane"``, ``"automobile"``, ``"bird"``, ``"cat"``,
            ``"deer"``, ``"dog"``, ``"frog"``, ``"horse"``, ``"ship"`` or ``"truck"``.
        protocol (str): ``"one_vs_all"``, or ``"multiclass"``: several classes are normal at once.
        normal_classes (list[str] | None): Classes that are normal in ``"multiclass"``; ``None`` for the animals.
        class_name (str | None): What the text prompts call normal images; ``None`` for the class, and ``"animal"``.
        **kwargs (Any): ``source`` (the download), ``strict`` and what anomalib's data modules take.

    Raises:
        ValueError: If a class or the protocol does not exist, or no class is left to be anomalous.
    """

    benchmark: ClassVar[Benchmark] = BENCHMARK
    CLASSES: ClassVar[tuple[str, ...]] = CLASSES
    MULTICLASS: ClassVar[tuple[str, ...]] = ANIMALS
    MULTICLASS_NAME: ClassVar[str] = "animal"

    def __init__(
        self,
        root: Path | str | None = "./datasets/CIFAR10",
        category: str = "airplane",
        protocol: str = "one_vs_all",
        normal_classes: list[str] | None = None,
        class_name: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, category, protocol, normal_classes, class_name, **kwargs)
