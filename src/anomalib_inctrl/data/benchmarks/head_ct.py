"""HeadCT: slices of computed tomography of the head, with or without a haemorrhage.

Kitamura's collection on Kaggle; 100 normal and 100 anomalous images. A quarter of the normal ones tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from anomalib_inctrl.data.benchmarks.datamodule import DefectData
from anomalib_inctrl.data.benchmarks.preparation import (
    Benchmark,
    Source,
    check_counts,
    copy_image,
    files_named,
    write_normal,
)


def _read_labels(labels: Path) -> dict[int, bool]:
    """Read ``labels.csv``: under a heading, number of the image and 1 for a haemorrhage, 0 for none.

    Raises:
        ValueError: If a line says something else.
    """
    found = {}
    for number, line in enumerate(labels.read_text(encoding="utf-8").splitlines()[1:], start=2):
        if not line.strip():
            continue
        try:
            image, label = (int(part) for part in line.split(","))
            found[image] = (False, True)[label]
        except (ValueError, IndexError) as error:
            msg = f"{labels}, line {number}: expected 'id,hemorrhage' as numbers, got {line!r}."
            raise ValueError(msg) from error
    return found


def _find(folders: Sequence[Path]) -> dict[Path, bool] | None:
    """Images with their labels: the outermost ``NNN.png`` for every number in ``labels.csv``."""
    labels = files_named(folders, "labels.csv")
    images: dict[str, Path] = {}
    for file in files_named(folders, "[0-9]*.png"):
        images.setdefault(file.stem, file)
    if not (labels and images):
        return None
    by_number = {f"{number:03}": label for number, label in _read_labels(labels[0]).items()}
    return {images[name]: label for name, label in sorted(by_number.items()) if name in images}


def _write(source: Source, folder: Path) -> dict[str, Any] | None:
    images = source.find(_find)
    if images is None:
        return None
    normal = sorted(file for file, bleeding in images.items() if not bleeding)
    bleeding = sorted(file for file, bleeding in images.items() if bleeding)
    found = {"images without haemorrhage": len(normal), "images with haemorrhage": len(bleeding)}
    published = {"images without haemorrhage": [100], "images with haemorrhage": [100]}
    check_counts("HeadCT", found, published, strict=source.strict)
    write_normal(normal, folder)
    for file in bleeding:
        copy_image(file, folder / "test" / "haemorrhage")
    return {"found": found}


BENCHMARK = Benchmark(
    name="HeadCT",
    place="https://www.kaggle.com/datasets/felipekitamura/head-ct-hemorrhage",
    files="the archive, or a folder with labels.csv and head_ct.zip or the images 000.png to 199.png",
    licence="see there",
    write=_write,
    published={"train normal": 75, "test normal": 25, "test anomalous": 100},
)


class HeadCT(DefectData):
    """HeadCT: slices of the head with or without a haemorrhage; images without masks.

    Args:
        root (Path | str | None): Folder of the prepared images. ``None`` stands for anomalib's own cache of data sets.
        class_name (str): What the text prompts call the objects.
        **kwargs (Any): ``source`` (the download), ``strict`` and what anomalib's data modules take.
    """

    benchmark: ClassVar[Benchmark] = BENCHMARK

    def __init__(self, root: Path | str | None = "./datasets/HeadCT", class_name: str = "head", **kwargs: Any) -> None:
        super().__init__(root=root, class_name=class_name, **kwargs)
