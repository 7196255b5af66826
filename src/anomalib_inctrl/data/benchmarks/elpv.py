"""ELPV: solar cells in electroluminescence images, functional or defective.

Deitsch et al.; 2624 grey images of 300 x 300 pixels with a probability of a defect and the kind of cell. InCTRL's
protocol: probability 0 is normal, 1 anomalous, what lies between is left out; a quarter of the normal images tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from anomalib_inctrl.data.benchmarks.datamodule import DefectData
from anomalib_inctrl.data.benchmarks.preparation import (
    Benchmark,
    Source,
    check_counts,
    copy_image,
    files_named,
    write_normal,
)

_CELLS = ("mono", "poly")


class _Cell(NamedTuple):
    file: Path
    probability: float
    kind: str


def _read_labels(labels: Path) -> list[_Cell]:
    """Read ``labels.csv``: path, probability of a defect and kind of cell, parted by blanks.

    Raises:
        ValueError: If a line says something else, or names a file outside of the folder.
    """
    cells = []
    for number, line in enumerate(labels.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            path, probability, kind = line.split()
            cell = _Cell(labels.parent / path, float(probability), kind)
            cell.file.resolve().relative_to(labels.parent.resolve())
        except ValueError as error:
            msg = f"{labels}, line {number}: expected 'path probability mono|poly', got {line!r}."
            raise ValueError(msg) from error
        if kind not in _CELLS:
            msg = f"{labels}, line {number}: the kind of cell must be one of {_CELLS}, got {kind!r}."
            raise ValueError(msg)
        cells.append(cell)
    return cells


def _find(folders: Sequence[Path]) -> list[_Cell] | None:
    """Cells of the first ``labels.csv`` whose images lie beside it."""
    for labels in files_named(folders, "labels.csv"):
        if (labels.parent / "images").is_dir():
            return _read_labels(labels)
    return None


def _write(source: Source, folder: Path) -> dict[str, Any] | None:
    cells = source.find(_find)
    if cells is None:
        return None
    cells = [cell for cell in cells if cell.file.is_file()]
    normal = sorted(cell.file for cell in cells if cell.probability == 0)
    defective = [cell for cell in cells if cell.probability == 1]
    found = {"images": len(cells), "functional cells": len(normal), "defective cells": len(defective)}
    published = {"images": [2624], "functional cells": [1508], "defective cells": [715]}
    check_counts("Elpv", found, published, strict=source.strict)
    write_normal(normal, folder)
    for cell in defective:
        copy_image(cell.file, folder / "test" / cell.kind)
    return {"found": found}


BENCHMARK = Benchmark(
    name="Elpv",
    place="https://github.com/zae-bayern/elpv-dataset",
    files="the repository's archive or clone, with labels.csv and the folder images (2624 PNG files) beside it",
    licence="CC BY-NC-SA 4.0",
    write=_write,
    published={"train normal": 1131, "test normal": 377, "test anomalous": 715},
)


class Elpv(DefectData):
    """ELPV: solar cells, functional or defective; images without masks.

    Args:
        root (Path | str | None): Folder of the prepared images. ``None`` stands for anomalib's own cache of data sets.
        class_name (str): What the text prompts call the objects.
        **kwargs (Any): ``source`` (the download), ``strict`` and what anomalib's data modules take.
    """

    benchmark: ClassVar[Benchmark] = BENCHMARK

    def __init__(
        self, root: Path | str | None = "./datasets/ELPV", class_name: str = "solar cell", **kwargs: Any
    ) -> None:
        super().__init__(root=root, class_name=class_name, **kwargs)
