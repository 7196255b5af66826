"""The report of a benchmark: CSV, tables, plots, and one HTML file that needs nothing beside it."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from anomalib_inctrl.benchmark.cell import METRICS
from anomalib_inctrl.benchmark.measure import VERSIONED
from anomalib_inctrl.benchmark.plots import over_shots, speed_against_accuracy
from anomalib_inctrl.benchmark.results import SEPARATOR, different_references, load_results, read_cell
from anomalib_inctrl.benchmark.tables import (
    MARKS,
    TITLES,
    beside_published,
    cell_text,
    cells_of,
    summarise,
    to_latex,
    to_markdown,
)
from anomalib_inctrl.files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable

    from anomalib_inctrl.benchmark.grid import Grid, ModelEntry

_PLOTTED = ("image_AUROC", "pixel_AUROC", "pixel_AUPRO")
_EXAMPLE_CATEGORIES = 3  # of every data set, spread over them; more would only make the file large


@dataclass(frozen=True)
class Report:
    """Where the report is, and what it lacks."""

    file: Path
    failed: int
    missing: int


def write_report(grid: Grid) -> Report:
    """Write everything a benchmark puts out, from the results its cells have written.

    ``results.csv``, ``published.csv``, ``tables.md``, ``tables.tex``, ``plots/*.svg`` and ``report.html``. The same
    results give the same files, byte for byte, whenever and in whatever order they were computed.
    """
    frame = load_results(grid)
    summary = summarise(frame)
    published = beside_published(summary, grid)
    plots = {f"{metric}_over_k": over_shots(summary, metric) for metric in _PLOTTED}
    speeds = speed_table(frame, summary)
    plots["speed_against_accuracy"] = speed_against_accuracy(speeds)
    _write(grid, "results.csv", frame.to_csv(index=False, lineterminator="\n"))
    _write(grid, "published.csv", published.to_csv(index=False, lineterminator="\n"))
    _write(grid, "tables.md", to_markdown(summary, published))
    _write(grid, "tables.tex", to_latex(summary))
    for name, svg in plots.items():
        if svg:
            _write(grid, f"plots/{name}.svg", svg)
    _write(grid, "report.html", render(grid, frame, summary, published, speeds, plots))
    counts = frame.status.value_counts()
    return Report(grid.output / "report.html", int(counts.get("failed", 0)), int(counts.get("missing", 0)))


def speed_table(frame: pd.DataFrame, summary: pd.DataFrame) -> pd.DataFrame:
    """Collect speed, memory and accuracy of every method at its largest K.

    Returns:
        DataFrame: ``method``, ``k_shot``, ``images_per_second`` (median), ``seconds_fit`` and ``peak_memory_mb``
        (medians), and ``mean``: image AUROC averaged over data sets, NaN unless all of them are complete.
    """
    rows = []
    for method, group in frame[frame.status == "done"].groupby("method", sort=False):
        k_shot = group.k_shot.max()
        at_k = group[group.k_shot == k_shot]
        scores = summary[(summary.method == method) & (summary.k_shot == k_shot) & (summary.metric == "image_AUROC")]
        rows.append(
            {
                "method": method,
                "k_shot": int(k_shot),
                "images_per_second": at_k.images_per_second.median(),
                "seconds_fit": at_k.seconds_fit.median(),
                "peak_memory_mb": at_k.peak_memory_mb.median(),
                "mean": scores["mean"].mean(skipna=False),
            }
        )
    columns = ["method", "k_shot", "images_per_second", "seconds_fit", "peak_memory_mb", "mean"]
    return pd.DataFrame(rows, columns=columns)


def render(
    grid: Grid,
    frame: pd.DataFrame,
    summary: pd.DataFrame,
    published: pd.DataFrame,
    speeds: pd.DataFrame,
    plots: dict[str, str],
) -> str:
    """Fill the HTML template."""
    environment = Environment(
        loader=PackageLoader("anomalib_inctrl.benchmark", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    done = frame[frame.status == "done"]
    return environment.get_template("report.html.jinja").render(
        title=grid.title,
        grid=grid,
        counts={status: int((frame.status == status).sum()) for status in ("done", "failed", "missing")},
        total=len(frame),
        sections=[_section(frame, summary, data.name, grid) for data in grid.data],
        plots={name: _data_uri(svg) for name, svg in plots.items() if svg},
        titles=TITLES,
        published=published.to_dict("records"),
        marks=MARKS,
        speeds=speeds.to_dict("records"),
        failures=frame[frame.status == "failed"].to_dict("records"),
        conflicts=different_references(frame),
        same_references=int(done[done.k_shot > 0].groupby(["data", "category", "k_shot", "seed"]).ngroups),
        references=_references(done),
        devices=sorted(set(done.device)),
        versions={name: sorted(set(done[name].dropna())) for name in VERSIONED if name in done},
        text=cell_text,
        isna=pd.isna,
    )


def _section(frame: pd.DataFrame, summary: pd.DataFrame, data: str, grid: Grid) -> dict[str, Any]:
    """What the template shows of a data set."""
    rows = frame[frame.data == data]
    tables = {metric: cells_of(summary, data, metric) for metric in METRICS}
    examples = _examples(grid, data)
    shown = {method for example in examples for row in example["rows"] for method in row["maps"]}
    tested = rows[rows.status == "done"].drop_duplicates("category").test_images
    return {
        "name": data,
        "categories": [c for c in dict.fromkeys(rows.category) if c],
        "test_images": int(tested.sum()),
        "tables": {metric: table for metric, table in tables.items() if not table.empty},
        "examples": examples,
        "example_methods": [name for name in map(_with_shots(grid), grid.models) if name in shown],
    }


def _examples(grid: Grid, data: str) -> list[dict[str, Any]]:
    """Pictures of a few categories: images, each with its mask and the maps of all methods."""
    cells = [c for c in grid.cells() if c.data.name == data and c.seed == grid.seeds[0]]
    cells = [c for c in cells if c.k_shot == max(grid.shots_of(c.model))]
    categories = list(dict.fromkeys(c.category for c in cells))
    spread = categories[:: max(1, -(-len(categories) // _EXAMPLE_CATEGORIES))][:_EXAMPLE_CATEGORIES]
    shown = []
    for category in spread:
        rows: dict[str, dict[str, Any]] = {}
        for cell in (c for c in cells if c.category == category):
            for picture in (read_cell(grid, cell) or {}).get("examples", []):
                row = rows.setdefault(picture["file"], {**picture, "maps": {}})
                row["maps"][_with_shots(grid)(cell.model)] = picture["map"]
        if rows:
            shown.append({"category": category, "rows": list(rows.values())})
    return shown


def _with_shots(grid: Grid) -> Callable[[ModelEntry], str]:
    """Names of methods with their largest K, unless they have no references."""

    def name(model: ModelEntry) -> str:
        k_shot = max(grid.shots_of(model), default=0)
        return f"{model.name}, K\u00a0=\u00a0{k_shot}" if k_shot else model.name

    return name


def _references(done: pd.DataFrame) -> list[dict[str, Any]]:
    """References of every draw, once for all methods."""
    drawn = done[done.k_shot > 0].drop_duplicates(["data", "category", "k_shot", "seed"])
    return [
        {
            **{name: row[name] for name in ("data", "category", "k_shot", "seed")},
            "files": [
                {"name": Path(file).name, "sha256": digest}
                for file, digest in zip(
                    row["references"].split(SEPARATOR), row["reference_sha256"].split(SEPARATOR), strict=True
                )
            ],
        }
        for row in drawn.to_dict("records")
    ]


def _data_uri(svg: str) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


def _write(grid: Grid, name: str, text: str) -> None:
    write_atomically(grid.output / name, text.encode())
