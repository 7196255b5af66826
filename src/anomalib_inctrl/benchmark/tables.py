"""Tables of a benchmark: means over categories with the deviation over seeds, beside published figures."""

from __future__ import annotations

from importlib import resources
from io import StringIO
from typing import TYPE_CHECKING, Any

import pandas as pd

from anomalib_inctrl.benchmark.cell import METRICS

if TYPE_CHECKING:
    from anomalib_inctrl.benchmark.grid import Grid

TITLES = {
    "image_AUROC": "Image AUROC",
    "image_AUPR": "Image AUPR",
    "image_F1Max": "Image F1max",
    "pixel_AUROC": "Pixel AUROC",
    "pixel_AUPRO": "Pixel AUPRO (FPR ≤ 0.3)",
    "pixel_AUPR": "Pixel AUPR",
}
MARKS = {
    "V": "read at its source",
    "T": "taken from another text that quotes it",
    "R": "recalled, not found again: check before you rely on it",
}

_ABSENT = "-"


def summarise(frame: pd.DataFrame) -> pd.DataFrame:
    """Average over the categories of a data set, then over seeds.

    Args:
        frame (DataFrame): See :func:`load_results <anomalib_inctrl.benchmark.results.load_results>`.

    Returns:
        DataFrame: A row per data set, method, K and metric, in the order of the frame: ``mean`` over categories and
        seeds; ``std``, sample standard deviation over seeds of the means over categories, NaN with one seed; ``done``
        and ``cells``, how many of all cells have a result, and ``values``, how many of them this metric. Without all
        results there is no mean: it would be one of other categories than its neighbours'.
    """
    rows = []
    for (data, method, k_shot), group in frame.groupby(["data", "method", "k_shot"], sort=False):
        done = int((group.status == "done").sum())
        for metric in METRICS:
            by_seed = group.groupby("seed")[metric].mean()
            complete = done == len(group) and bool(group[metric].notna().all())
            rows.append(
                {
                    "data": data,
                    "method": method,
                    "k_shot": k_shot,
                    "metric": metric,
                    "mean": float(by_seed.mean()) if complete else float("nan"),
                    "std": float(by_seed.std(ddof=1)) if complete else float("nan"),
                    "done": done,
                    "cells": len(group),
                    "values": int(group[metric].notna().sum()),
                }
            )
    return pd.DataFrame(rows)


def published_figures() -> pd.DataFrame:
    """Read the published figures.

    Returns:
        DataFrame: ``method``, ``data``, ``k_shot``, ``metric``, ``mean``, ``std``, ``source``, and ``mark``, which says
        how sure a figure is, see :data:`MARKS`.
    """
    text = (resources.files("anomalib_inctrl") / "benchmark" / "published.csv").read_text(encoding="utf-8")
    return pd.read_csv(StringIO(text))


def beside_published(summary: pd.DataFrame, grid: Grid) -> pd.DataFrame:
    """Put our means beside published ones of the same method, data set, K and metric.

    Returns:
        DataFrame: ``data``, ``method``, ``k_shot``, ``metric``, ``ours``, ``ours_std``, ``published``,
        ``published_std``, ``difference`` (ours less theirs), ``source``, ``mark``; no rows if nothing matches.
    """
    methods = {m.name: m.published for m in grid.models if m.published}
    data = {d.name: d.published for d in grid.data if d.published}
    ours = summary[summary.method.isin(methods) & summary.data.isin(data) & summary["mean"].notna()]
    ours = ours.assign(published_method=ours.method.map(methods), published_data=ours.data.map(data))
    joined = ours.merge(
        published_figures(),
        left_on=["published_method", "published_data", "k_shot", "metric"],
        right_on=["method", "data", "k_shot", "metric"],
        suffixes=("", "_theirs"),
    )
    return pd.DataFrame(
        {
            "data": joined["data"],
            "method": joined["method"],
            "k_shot": joined["k_shot"],
            "metric": joined["metric"],
            "ours": joined["mean"],
            "ours_std": joined["std"],
            "published": joined["mean_theirs"],
            "published_std": joined["std_theirs"],
            "difference": joined["mean"] - joined["mean_theirs"],
            "source": joined["source"],
            "mark": joined["mark"],
        }
    )


def cells_of(summary: pd.DataFrame, data: str, metric: str) -> pd.DataFrame:
    """Select the cells of one table: methods by K, each a row of :func:`summarise` and whether it is the best of its K.

    Methods and K in the order of the summary; absent combinations are ``None``. Empty if no cell has the metric, as
    those of pixels without masks; image AUROC, which all cells have, is never empty.
    """
    chosen = summary[(summary.data == data) & (summary.metric == metric)]
    if not chosen["values"].any() and metric != METRICS[0]:
        return pd.DataFrame()
    best = chosen.groupby("k_shot")["mean"].max().round(3)
    columns = sorted(chosen.k_shot.unique())
    table: dict[Any, dict[str, Any]] = {k: {} for k in columns}
    for row in chosen.to_dict("records"):
        row["best"] = round(row["mean"], 3) == best[row["k_shot"]]
        table[row["k_shot"]][str(row["method"])] = row
    methods = list(dict.fromkeys(chosen.method))
    return pd.DataFrame({k: [table[k].get(m) for m in methods] for k in columns}, index=methods, dtype=object)


def cell_text(cell: dict[str, Any] | None, plus_minus: str = " ± ") -> str:
    """Write a mean and its deviation, or why there is none."""
    if cell is None:
        return _ABSENT
    if pd.isna(cell["mean"]):
        return _ABSENT if cell["done"] == cell["cells"] else f"{cell['done']} of {cell['cells']} cells"
    return f"{cell['mean']:.3f}" + ("" if pd.isna(cell["std"]) else f"{plus_minus}{cell['std']:.3f}")


def to_markdown(summary: pd.DataFrame, published: pd.DataFrame) -> str:
    """Write all tables as Markdown."""
    parts = [
        'Mean over categories and seeds ± sample standard deviation over seeds. Bold: best of its column. "n of m '
        'cells": some have failed or not run, so there is no mean.\n'
    ]
    for data in dict.fromkeys(summary.data):
        parts.append(f"## {data}\n")
        for metric in METRICS:
            table = cells_of(summary, data, metric)
            if table.empty:
                continue
            rows = [[TITLES[metric], *(f"K = {k}" for k in table.columns)], ["---"] * (len(table.columns) + 1)]
            for method, cells in zip(table.index, table.to_numpy(), strict=True):
                rows.append([method, *(f"**{cell_text(c)}**" if c and c["best"] else cell_text(c) for c in cells)])
            parts.append("\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n")
    if len(published):
        header = ["Data", "Method", "K", "Metric", "Ours", "Published", "Difference", "Source", "Mark"]
        rows = [header, ["---"] * len(header)]
        for row in published.itertuples():
            ours, theirs = _number(row.ours, row.ours_std), _number(row.published, row.published_std)
            metric = TITLES[str(row.metric)]
            texts = [row.data, row.method, row.k_shot, metric, ours, theirs, f"{row.difference:+.3f}"]
            rows.append([str(text) for text in (*texts, row.source, row.mark)])
        marks = "; ".join(f"{mark}: {meaning}" for mark, meaning in MARKS.items())
        parts.append("## Beside published figures\n")
        parts.append("\n".join(f"| {' | '.join(row)} |" for row in rows) + f"\n\nMarks: {marks}.\n")
    return "\n".join(parts)


def to_latex(summary: pd.DataFrame) -> str:
    """Write all tables as LaTeX, with the package ``booktabs``."""
    parts = []
    for data in dict.fromkeys(summary.data):
        for metric in METRICS:
            table = cells_of(summary, data, metric)
            if table.empty:
                continue
            lines = [
                r"\begin{table}",
                r"  \centering",
                rf"  \caption{{{_escape(data)}: {_escape(TITLES[metric])}, mean $\pm$ standard deviation over seeds.}}",
                rf"  \begin{{tabular}}{{l{'c' * len(table.columns)}}}",
                r"    \toprule",
                "    Method & " + " & ".join(f"$K={k}$" for k in table.columns) + r" \\",
                r"    \midrule",
            ]
            for method, cells in zip(table.index, table.to_numpy(), strict=True):
                texts = ["--" if c is None else cell_text(c, r" $\pm$ ") for c in cells]
                texts = [rf"\textbf{{{t}}}" if c and c["best"] else t for t, c in zip(texts, cells, strict=True)]
                lines.append(f"    {_escape(method)} & " + " & ".join(texts) + r" \\")
            parts.append("\n".join([*lines, r"    \bottomrule", r"  \end{tabular}", r"\end{table}", ""]))
    return "\n".join(parts)


def _number(mean: Any, std: Any) -> str:
    return f"{mean:.3f}" + ("" if pd.isna(std) else f" ± {std:.3f}")


def _escape(text: str) -> str:
    for plain, escaped in (("\\", r"\textbackslash{}"), ("&", r"\&"), ("%", r"\%"), ("_", r"\_"), ("#", r"\#")):
        text = text.replace(plain, escaped)
    return text.replace("≤", r"$\leq$")
