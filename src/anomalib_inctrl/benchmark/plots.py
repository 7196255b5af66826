"""Plots of a benchmark, as SVG that comes out the same for the same results."""

from __future__ import annotations

import io
from itertools import cycle
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from anomalib_inctrl.benchmark.tables import TITLES

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

_COLOURS = (
    "#1b4f9c", "#d1495b", "#2a9d6f", "#e39a1d", "#7a4ea3", "#3fa7d6", "#8c5a3c", "#d96fb0", "#5d6d7e", "#8a9a1b",
    "#111827", "#b45309",
)  # fmt: skip
_BESIDE_BELOW = 3  # panels in a row
_MARKERS = "osD^vP*X<>ph"
_STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9aa3af",
    "axes.labelcolor": "#374151",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "xtick.color": "#4b5563",
    "ytick.color": "#4b5563",
    "grid.color": "#e5e7eb",
    "legend.frameon": False,
    "svg.hashsalt": "anomalib-inctrl",  # else element names are random
    "svg.fonttype": "path",
}


def over_shots(summary: pd.DataFrame, metric: str) -> str:
    """Draw a metric over K, one panel per data set, one line per method, a band of one standard deviation over seeds.

    Methods without references are horizontal lines.

    Returns:
        str: SVG, empty if no data set has the metric.
    """
    chosen = summary[(summary.metric == metric) & summary["mean"].notna()]
    data_sets = list(dict.fromkeys(chosen.data))
    if not data_sets:
        return ""
    looks = _looks(list(dict.fromkeys(summary.method)))
    columns = min(3, len(data_sets))
    rows = -(-len(data_sets) // columns)
    with mpl.rc_context(_STYLE):
        beside = columns < _BESIDE_BELOW  # the legend, where it would be wider than the panels above it
        size = (3.55 * columns + (2.9 if beside else 0.2), 2.75 * rows + (0.0 if beside else 1.0))
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
        for panel, data in zip(axes.flat, data_sets, strict=False):
            _panel(panel, chosen[chosen.data == data], looks, data)
        for panel in axes.flat[len(data_sets) :]:
            panel.set_visible(False)
        for row in axes:
            row[0].set_ylabel(TITLES[metric])
        where = {"loc": "outside right upper"} if beside else {"loc": "outside lower left", "ncols": columns + 1}
        figure.legend(*_handles(list(axes.flat)[: len(data_sets)]), fontsize=8, **where)
        return _svg(figure)


def speed_against_accuracy(speeds: pd.DataFrame, metric: str = "image_AUROC") -> str:
    """Draw accuracy over images per second, one point per method.

    Args:
        speeds (DataFrame): ``method``, ``images_per_second``, ``mean``.
        metric (str): What ``mean`` is.

    Returns:
        str: SVG, empty without points.
    """
    speeds = speeds.dropna(subset=["images_per_second", "mean"])
    if speeds.empty:
        return ""
    looks = _looks(list(speeds.method))
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7.4, 3.9), layout="constrained")
        axes = figure.subplots()
        for row in speeds.to_dict("records"):
            method = str(row["method"])
            colour, marker = looks[method]
            axes.plot(row["images_per_second"], row["mean"], marker, color=colour, markersize=8, label=method)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("Images per second (log scale; scoring alone, one batch)")
        axes.set_ylabel(f"{TITLES[metric]}, mean of data sets")
        axes.grid(visible=True)
        figure.legend(loc="outside right upper", fontsize=8)
        return _svg(figure)


def _looks(methods: Sequence[str]) -> dict[str, tuple[str, str]]:
    return dict(zip(methods, zip(cycle(_COLOURS), cycle(_MARKERS), strict=False), strict=False))


def _panel(axes: Any, chosen: pd.DataFrame, looks: dict[str, tuple[str, str]], title: str) -> None:
    shots = sorted(k for k in chosen.k_shot.unique() if k)
    for method, line in chosen.groupby("method", sort=False):
        colour, marker = looks[str(method)]
        few = line[line.k_shot > 0].sort_values("k_shot")
        if few.empty:
            axes.axhline(line["mean"].iloc[0], color=colour, linestyle=(0, (5, 3)), linewidth=1.4, label=method)
            continue
        axes.plot(few.k_shot, few["mean"], marker + "-", color=colour, linewidth=1.5, markersize=4, label=method)
        spread = few["std"].fillna(0)
        axes.fill_between(few.k_shot, few["mean"] - spread, few["mean"] + spread, color=colour, alpha=0.12, linewidth=0)
    axes.set_title(title)
    axes.grid(visible=True, axis="y")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(shots or [1], [str(k) for k in shots] or [""])
    axes.set_xlabel("References K")


def _handles(panels: Sequence[Any]) -> tuple[list[Any], list[str]]:
    """Lines of all panels and their names, each once."""
    handles: dict[str, Any] = {}
    for panel in panels:
        found, names = panel.get_legend_handles_labels()
        handles.update(zip(names, found, strict=True))
    return list(handles.values()), list(handles)


def _svg(figure: Figure) -> str:
    FigureCanvasSVG(figure)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
