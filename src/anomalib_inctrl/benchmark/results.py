"""Results of all cells as a table with one row each, made from what the cells have written."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd

from anomalib_inctrl.benchmark.cell import METRICS
from anomalib_inctrl.benchmark.grid import Cell, Grid
from anomalib_inctrl.benchmark.job import CELLS, FAILURES

MEASURED = ("seconds", "seconds_fit", "seconds_test", "images_per_second", "peak_memory_mb")
"""Columns that differ between two runs of the same cell."""

KEYS = ("data", "category", "method", "k_shot", "seed")
SEPARATOR = ";"  # of files and hashes in a cell of the table


def load_results(grid: Grid) -> pd.DataFrame:
    """Read the results of a benchmark, one row per cell in the order of the grid.

    Returns:
        DataFrame: Columns :data:`KEYS`, ``status`` (``"done"``, ``"failed"``, ``"missing"``), ``error``, the metrics,
        :data:`MEASURED`, ``test_images``, ``device``, ``references`` and ``reference_sha256`` (separated by ``;``),
        ``class_path``, ``selection``, and a column for every version. Absent values are NaN or empty.
    """
    frame = pd.DataFrame([_row(cell, read_cell(grid, cell)) for cell in grid.cells()])
    numbers = [*METRICS, *MEASURED]
    return frame.astype(dict.fromkeys(numbers, float))


def read_cell(grid: Grid, cell: Cell) -> dict[str, Any] | None:
    """Read what a cell has written, its failure if it failed; ``None`` if it has not run."""
    for folder in (CELLS, FAILURES):
        file = grid.output / folder / f"{cell.key}.json"
        if file.is_file():
            return json.loads(file.read_text(encoding="utf-8"))
    return None


def _row(cell: Cell, record: dict[str, Any] | None) -> dict[str, Any]:
    found = record or {}
    references = found.get("references", [])
    status = "missing" if record is None else "failed" if "error" in found else "done"
    return {
        "data": cell.data.name,
        "category": cell.category,
        "method": cell.model.name,
        "k_shot": cell.k_shot,
        "seed": cell.seed,
        "status": status,
        "error": found.get("error", ""),
        **{name: found.get("metrics", {}).get(name) for name in METRICS},
        **{name: found.get(name) for name in MEASURED},
        "test_images": found.get("test_images", 0),
        "device": found.get("device", ""),
        "references": SEPARATOR.join(reference["file"] for reference in references),
        "reference_sha256": SEPARATOR.join(reference["sha256"] for reference in references),
        "class_path": cell.model.class_path,
        "selection": cell.selection,
        **found.get("versions", {}),
    }


def different_references(frame: pd.DataFrame) -> list[str]:
    """Name the cells of the same data, category, K and seed in which methods had different references.

    Compares the hashes of the files' content. An empty list is the proof that the comparison is fair.
    """
    done = frame[(frame.status == "done") & (frame.k_shot > 0)]
    groups = done.groupby(["data", "category", "k_shot", "seed"], sort=False)
    return [
        f"{data} {category}, K = {k_shot}, seed {seed}: {', '.join(group.method)}"
        for (data, category, k_shot, seed), group in groups
        if group.reference_sha256.map(lambda hashes: tuple(sorted(hashes.split(SEPARATOR)))).nunique() > 1
    ]
