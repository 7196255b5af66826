"""Means, deviations and differences against numbers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from anomalib_inctrl.benchmark.cell import METRICS
from anomalib_inctrl.benchmark.grid import Cell, Grid
from anomalib_inctrl.benchmark.results import different_references
from anomalib_inctrl.benchmark.tables import (
    beside_published,
    cell_text,
    cells_of,
    published_figures,
    summarise,
    to_latex,
    to_markdown,
)

GRID = Grid.from_config(
    {
        "output": "unused",
        "shots": [0, 2],
        "seeds": [0, 1],
        "models": [
            {"class_path": "A", "published": "InCTRL"},
            {"class_path": "B"},
            {"name": "Zero", "class_path": "C", "shots": [0]},
        ],
        "data": [{"name": "Mine", "class_path": "D", "categories": ["x", "y"], "published": "MVTec AD"}],
    }
)
AUROC = {  # method, category, seed: image AUROC
    ("A", "x", 0): 0.90, ("A", "y", 0): 0.94, ("A", "x", 1): 0.96, ("A", "y", 1): 1.00,
    ("B", "x", 0): 0.50, ("B", "y", 0): 0.60, ("B", "x", 1): 0.70, ("B", "y", 1): None,
    ("Zero", "x", 0): 0.80, ("Zero", "y", 0): 0.70,
}  # fmt: skip


@pytest.fixture
def frame() -> pd.DataFrame:
    rows = [
        {
            "data": "Mine", "category": category, "method": method, "k_shot": 0 if method == "Zero" else 2,
            "seed": seed, "status": "failed" if value is None else "done",
            **dict.fromkeys(METRICS, float("nan")), "image_AUROC": float("nan") if value is None else value,
            "reference_sha256": "" if method == "Zero" else f"{category}{seed};shared",
        }
        for (method, category, seed), value in AUROC.items()
    ]  # fmt: skip
    return pd.DataFrame(rows)


def row(summary: pd.DataFrame, method: str, metric: str = "image_AUROC") -> pd.Series:
    (index,) = summary.index[(summary.method == method) & (summary.metric == metric)]
    return summary.loc[index]


def test_mean_over_categories_deviation_over_seeds(frame):
    summary = summarise(frame)
    # Seed 0: (0.90 + 0.94) / 2 = 0.92; seed 1: 0.98. Mean 0.95; sample deviation 0.06 / sqrt(2).
    assert row(summary, "A")["mean"] == pytest.approx(0.95)
    assert row(summary, "A")["std"] == pytest.approx(0.06 / math.sqrt(2))
    assert row(summary, "Zero")["mean"] == pytest.approx(0.75)
    assert math.isnan(row(summary, "Zero")["std"])
    assert math.isnan(row(summary, "A", "pixel_AUROC")["mean"])


def test_incomplete_methods_have_no_mean(frame):
    found = row(summarise(frame), "B")
    assert math.isnan(found["mean"])
    assert (found.done, found.cells) == (3, 4)
    assert cell_text(found.to_dict()) == "3 of 4 cells"


def test_published_figures_and_difference(frame):
    compared = beside_published(summarise(frame), GRID)
    # InCTRL on MVTec AD with 2 references: 0.940 +- 0.015 (table 1 of the paper).
    assert list(compared.method) == ["A"]
    assert compared.published[0] == 0.940
    assert compared.published_std[0] == 0.015
    assert compared.difference[0] == pytest.approx(0.010)
    assert compared.mark[0] == "T"


def test_published_table_is_that_of_the_paper():
    figures = published_figures().set_index(["method", "data", "k_shot", "metric"])["mean"]
    table1 = published_figures().query("source == 'InCTRL, CVPR 2024, table 1'")
    # 11 columns of seven methods and three K, less PaDiM's four semantic ones; and the baseline.
    assert len(table1) == 11 * 7 * 3 - 4 * 3 + 11
    assert table1["mean"].between(0, 1).all()
    spot = {
        ("InCTRL", "ELPV", 8): 0.872, ("WinCLIP", "HeadCT", 4): 0.912, ("SPADE", "CIFAR-10 multi-class", 2): 0.655,
        ("PaDiM", "AITEX", 4): 0.787, ("CoOp", "HeadCT", 8): 0.914, ("RegAD", "MNIST", 2): 0.525,
        ("PatchCore", "KolektorSDD", 8): 0.925, ("CLIP zero-shot", "CIFAR-10", 0): 0.924,
    }  # fmt: skip
    for (method, data, k_shot), value in spot.items():
        assert value in list(figures.loc[[(method, data, k_shot, "image_AUROC")]]), (method, data, k_shot)
    assert set(published_figures().mark) == {"V", "T", "R"}


def test_markdown_and_latex_hold_these_numbers(frame):
    summary = summarise(frame)
    markdown = to_markdown(summary, beside_published(summary, GRID))
    assert "| Image AUROC | K = 0 | K = 2 |" in markdown
    assert "| A | - | **0.950 ± 0.042** |" in markdown
    assert "| B | - | 3 of 4 cells |" in markdown
    assert "| Zero | **0.750** | - |" in markdown
    assert "| Mine | A | 2 | Image AUROC | 0.950 ± 0.042 | 0.940 ± 0.015 | +0.010 |" in markdown
    latex = to_latex(summary)
    assert r"A & -- & \textbf{0.950 $\pm$ 0.042} \\" in latex
    assert latex.count(r"\begin{tabular}") == 1  # metrics without values have no table


def test_best_of_a_column(frame):
    table = cells_of(summarise(frame), "Mine", "image_AUROC")
    assert table.loc["A", 2]["best"]
    assert not table.loc["B", 2]["best"]
    assert table.loc["A", 0] is None


def test_different_references_are_named(frame):
    assert different_references(frame) == []
    frame.loc[(frame.method == "A") & (frame.category == "y") & (frame.seed == 0), "reference_sha256"] = "other;shared"
    assert different_references(frame) == ["Mine y, K = 2, seed 0: A, B"]


# --------------------------------------------------------------------------------------------------------------- grid
def test_cells_of_the_grid():
    cells = GRID.cells()
    assert [(c.category, c.model.name, c.k_shot, c.seed) for c in cells[:5]] == [
        ("x", "A", 2, 0), ("x", "A", 2, 1), ("x", "B", 2, 0), ("x", "B", 2, 1), ("x", "Zero", 0, 0),
    ]  # fmt: skip
    assert len(cells) == 10
    assert len({cell.key for cell in cells}) == 10


def test_key_depends_on_the_configuration():
    model, data = GRID.models[0], GRID.data[0]
    cell = Cell(model, data, "x", 2, 0)
    other = Cell(type(model)(name="A", class_path="A", init_args={"alpha": 1}), data, "x", 2, 0)
    assert cell.key == Cell(model, data, "x", 2, 0).key
    assert cell.key != other.key
    assert cell.key.startswith("Mine-x-A-k2-s0-")


def test_arguments_of_a_model_on_one_data_set():
    given = {
        "output": "o",
        "shots": [1],
        "seeds": [0],
        "models": [{"class_path": "A", "init_args": {"w": "m", "b": 1}}],
    }
    data = [{"class_path": "D", "model_args": {"A": {"w": "v"}}}, {"class_path": "E"}]
    first, second = Grid.from_config(given | {"data": data}).cells()
    assert (first.model.init_args, second.model.init_args) == ({"w": "v", "b": 1}, {"w": "m", "b": 1})
    data[0]["model_args"] = {"B": {}}
    with pytest.raises(ValueError, match="which is none of the models"):
        Grid.from_config(given | {"data": data})


def test_key_does_not_depend_on_what_only_the_report_shows():
    model, data = GRID.models[0], GRID.data[0]
    relabelled = replace(model, published=None, shots=[2, 4])
    assert Cell(relabelled, replace(data, published=None), "x", 2, 0).key == Cell(model, data, "x", 2, 0).key


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shot": [1]}, "few_shot_benchmark does not know shot. It takes: output, models"),
        ({"models": []}, "few_shot_benchmark.models must be a list with at least one entry"),
        ({"models": [{"name": "A"}]}, "ModelEntry lacks class_path"),
        ({"models": [{"class_path": "A"}, {"class_path": "A"}]}, "every entry needs a name of its own"),
        ({"shots": [1, 1]}, "shots must be different whole numbers from 0 on"),
        ({"shots": [0]}, r"no model runs with any of shots=\[0\]"),
        ({"models": [{"class_path": "A", "shots": [2]}]}, r"no model runs with any of shots=\[1\]"),
    ],
)
def test_wrong_configurations_are_told(change, message):
    given = {"output": "o", "shots": [1], "seeds": [0], "models": [{"class_path": "A"}], "data": [{"class_path": "D"}]}
    with pytest.raises(ValueError, match=message):
        Grid.from_config(given | change)


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "configs").glob("benchmark_*.yaml")), ids=lambda path: path.stem
)
def test_configuration_files_describe_grids(path):
    import yaml

    section = yaml.safe_load(path.read_text())["few_shot_benchmark"]
    grid = Grid.from_config(section)
    published = published_figures()
    assert {m.published for m in grid.models if m.published} <= set(published.method)
    assert {d.published for d in grid.data if d.published} <= set(published.data)
    assert all(len(data.categories) == len(set(data.categories)) for data in grid.data)
    if path.stem == "benchmark_inctrl_table1":
        categories = {data.name: len(data.categories) or 1 for data in grid.data}
        assert sum(categories.values()) == 5 + 12 + 15 + 10 + 10 + 2
        assert (grid.shots, grid.seeds) == ((0, 2, 4, 8), (0, 1, 2))
