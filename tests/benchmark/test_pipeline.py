"""The benchmark as it runs: same references for all, failures, resumption, what the files hold."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anomalib.pipelines.components.base.pipeline as host
import pandas as pd
import pytest
import torch
import yaml
from anomalib.models.components import TimmFeatureExtractor
from jsonargparse import Namespace
from sklearn.metrics import average_precision_score, roc_auc_score

from anomalib_inctrl.benchmark import job
from anomalib_inctrl.benchmark.cell import evaluate, run_cell
from anomalib_inctrl.benchmark.grid import Grid
from anomalib_inctrl.benchmark.pipeline import FewShotBenchmark
from anomalib_inctrl.benchmark.report import write_report
from anomalib_inctrl.benchmark.results import MEASURED
from anomalib_inctrl.benchmark.shared_features import SharedFeatures
from anomalib_inctrl.reference_images import draw
from anomalib_inctrl.reference_views import count_views

TINY = {"backbone": "inctrl-tiny", "weights": "random"}


def dummy(request: pytest.FixtureRequest, name: str) -> str:
    """Import path of a class of the conftest beside this file."""
    (plugin,) = [p for p in request.config.pluginmanager.get_plugins() if hasattr(p, "DummyFewShot")]
    return f"{plugin.__name__}.{name}"


def section(request: pytest.FixtureRequest, images: Path, output: Path, models: list[dict[str, Any]]) -> dict[str, Any]:
    for model in models:
        if model["class_path"].startswith("Dummy"):
            model["class_path"] = dummy(request, model["class_path"])
    return {
        "output": str(output),
        "shots": [1, 3],
        "seeds": [0, 1],
        "models": models,
        "data": [
            {
                "name": "Parts", "class_path": "MVTecAD", "categories": ["nut", "bolt"],
                "init_args": {"root": str(images), "num_workers": 0},
            }
        ],
    }  # fmt: skip


@pytest.fixture
def run(request, images, tmp_path, monkeypatch):
    """Run a benchmark as the command does; exit code and folder of results."""
    monkeypatch.setattr(host, "redirect_logs", lambda _: None)
    monkeypatch.chdir(tmp_path)

    def run(models: list[dict[str, Any]], output: str = "results", **changes: Any) -> tuple[int, Path]:
        config = tmp_path / f"{output}.yaml"
        given = section(request, images, tmp_path / output, models) | changes
        config.write_text(yaml.safe_dump({"few_shot_benchmark": given}))
        try:
            FewShotBenchmark().run(Namespace(config=config))
        except SystemExit as end:
            return int(end.code or 0), tmp_path / output
        return 0, tmp_path / output

    return run


def results(output: Path) -> pd.DataFrame:
    return pd.read_csv(output / "results.csv", dtype={"error": str, "reference_sha256": str}, keep_default_na=True)


def test_every_method_of_a_cell_has_the_same_references(run, images):
    """Methods that train on them, read them themselves, or are ours: the files opened, by content."""
    models = [
        {"name": "trained", "class_path": "DummyTrained"},
        {"name": "few-shot", "class_path": "DummyFewShot"},
        {"name": "InCTRL", "class_path": "InCTRL", "init_args": TINY},
        {"name": "WinCLIP", "class_path": "CorrectedWinClip", "init_args": {"backbone": "inctrl-tiny", "scales": [2]}},
    ]
    code, output = run(models, seeds=[1], shots=[2])
    frame = results(output)
    assert code == 0, list(frame.error)
    assert Counter(frame.method) == dict.fromkeys(["trained", "few-shot", "InCTRL", "WinCLIP"], 2)
    for category, group in frame.groupby("category"):
        paths = draw([str(p) for p in (images / str(category) / "train/good").glob("*.png")], 2, seed=1)
        expected = ";".join(hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths)
        assert list(group.reference_sha256) == [expected] * 4
        assert set(group.references) == {";".join(paths)}
    html = (output / "report.html").read_text()
    assert "In all 2 draws every method read the same files" in html
    assert not any(marker in html for marker in ("http://", "https://", "<script", "<link"))  # nothing beside the file
    assert len(frame.columns[frame.columns.isin(["anomalib", "torch", "anomalib_inctrl", *MEASURED])]) == 8


def test_a_method_that_takes_more_than_its_references_fails(run):
    code, output = run(
        [{"class_path": "DummyFewShot", "name": "greedy", "init_args": {"greedy": True}},
         {"class_path": "DummyTrained", "name": "honest"}], shots=[1], seeds=[0],
    )  # fmt: skip
    frame = results(output).set_index(["method", "category"])
    assert code == 1
    assert "was to have 1 references and received 5 images" in frame.error["greedy", "nut"]
    assert list(frame.status["honest"]) == ["done", "done"]


def test_a_failing_cell_is_reported_and_tried_again(run, tmp_path):
    models = [{"class_path": "DummyTrained", "name": "moody", "init_args": {"fails_with": 3}}]
    code, output = run(models, seeds=[0])
    frame = results(output)
    assert code == 1
    assert set(frame.status[frame.k_shot == 3]) == {"failed"}
    assert set(frame.status[frame.k_shot == 1]) == {"done"}
    html = (output / "report.html").read_text()
    assert html.count("ValueError: no luck with 3") == 2
    assert "0 of 2 cells" in html
    (file, *_) = (output / "failures").glob("*.json")
    failed = json.loads(file.read_text())
    assert "on_train_epoch_end" in failed["traceback"]
    # What made it fail was elsewhere, and is gone: the same command completes.
    original = job.run_cell
    job.run_cell = lambda cell, *args, **options: original(
        type(cell)(**{**vars(cell), "model": type(cell.model)(**{**vars(cell.model), "init_args": {}})}),
        *args, **options,
    )  # fmt: skip
    try:
        code, output = run([{"class_path": "DummyTrained", "name": "moody", "init_args": {"fails_with": 3}}], seeds=[0])
    finally:
        job.run_cell = original
    assert code == 0
    assert set(results(output).status) == {"done"}
    assert not list((output / "failures").glob("*.json"))


def test_killed_and_restarted_it_gives_the_same_report(run, monkeypatch):
    ran: list[str] = []

    def models() -> list[dict[str, Any]]:
        return [{"class_path": "DummyTrained", "name": "one"}, {"class_path": "DummyFewShot", "name": "two"}]

    def counted(cell: Any, *args: Any, **options: Any) -> dict[str, Any]:
        if len(ran) == killed_at:
            raise KeyboardInterrupt
        ran.append(cell.key)
        return run_cell(cell, *args, **options)

    monkeypatch.setattr(job, "run_cell", counted)
    killed_at = 8
    _, whole = run(models(), "whole", shots=[2])
    assert len(ran) == 8
    ran.clear()
    killed_at = 5
    with pytest.raises(KeyboardInterrupt):
        run(models(), "killed", shots=[2])
    killed = whole.parent / "killed"
    finished = {file: file.read_bytes() for file in (killed / "cells").iterdir()}
    assert len(finished) == 5
    assert not (killed / "report.html").exists()
    killed_at = 9
    code, _ = run(models(), "killed", shots=[2])
    assert code == 0
    assert len(ran) == len(set(ran)) == 8  # no finished cell again
    assert all(file.read_bytes() == content for file, content in finished.items())
    first, second = results(whole).drop(columns=list(MEASURED)), results(killed).drop(columns=list(MEASURED))
    pd.testing.assert_frame_equal(first, second, check_exact=True)
    for name in ("tables.md", "tables.tex", "plots/image_AUROC_over_k.svg", "plots/pixel_AUPRO_over_k.svg"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes(), name
    files = {file: file.read_bytes() for file in killed.rglob("*") if file.is_file()}
    run(models(), "killed", shots=[2])
    assert len(ran) == 8
    assert {file: file.read_bytes() for file in killed.rglob("*") if file.is_file()} == files  # byte for byte


# ------------------------------------------------------------------------------------------------------------ metrics
def test_metrics_are_those_of_raw_scores():
    """Scores far outside of [0, 1], one of them alone at the top: neither a sigmoid nor a clamp may make ties."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.cat([torch.linspace(40, 60, 30), torch.tensor([1e4])])
    labels = torch.rand(31, generator=generator) > 0.5
    maps = torch.randn(31, 6, 6, generator=generator) * 50
    masks = torch.rand(31, 6, 6, generator=generator) > 0.7
    found = evaluate(SimpleNamespace(pred_score=scores, gt_label=labels, anomaly_map=maps, gt_mask=masks))
    assert found["image_AUROC"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-6)
    assert found["pixel_AUROC"] == pytest.approx(roc_auc_score(masks.flatten(), maps.flatten()), abs=1e-5)
    assert found["pixel_AUPR"] == pytest.approx(average_precision_score(masks.flatten(), maps.flatten()), abs=5e-3)
    without = evaluate(SimpleNamespace(pred_score=scores, gt_label=labels, anomaly_map=maps, gt_mask=None))
    assert without["image_AUROC"] == found["image_AUROC"]
    assert without["pixel_AUROC"] is None


def test_scores_that_are_not_finite_are_an_error():
    batch = SimpleNamespace(pred_score=torch.tensor([0.1, torch.nan]), gt_label=torch.tensor([True, False]))
    batch.anomaly_map = batch.gt_mask = None
    with pytest.raises(ValueError, match="1 of 2 values of the scores are not finite"):
        evaluate(batch)
    batch.gt_label = torch.tensor([True, True])
    with pytest.raises(ValueError, match="one class"):
        evaluate(batch)


# ----------------------------------------------------------------------------------------------------------- features
def test_shared_features_change_nothing_but_the_work(request, images, tmp_path):
    """The same figures with features from the store; an image is encoded once for all cells of a category."""
    models = [{"class_path": "InCTRL", "init_args": TINY}]
    grid = Grid.from_config(section(request, images, tmp_path, models))
    cells = [cell for cell in grid.cells() if cell.category == "nut"][1:3]  # K = 1 and K = 3
    store = SharedFeatures(64)
    sizes, references = [], set()
    for cell in cells:
        shared = run_cell(cell, store=store)
        references.update(reference["sha256"] for reference in shared["references"])
        sizes.append(len(store))
    for metric, value in run_cell(cells[-1])["metrics"].items():
        assert shared["metrics"][metric] == pytest.approx(value, abs=1e-3), metric
    # 6 test images, the references in all their views, and one entry each for normal and anomalous sentences.
    views = count_views("shifted")
    assert sizes == [6 + views + 2, 6 + views * len(references) + 2]
    store.enter(cells[0].data.name, "another category", 9)
    assert len(store) == sizes[-1]
    store.enter("another data set", "nut", 9)
    assert len(store) == 0


KILLED = """
import multiprocessing, os, signal, sys, time

def work(queue):
    from anomalib_inctrl.benchmark.job import end_with_parent
    end_with_parent()
    queue.put(os.getpid())
    time.sleep(600)

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    context.Process(target=work, args=(queue,)).start()
    print(queue.get(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL.")
def test_processes_end_with_a_benchmark_that_is_killed(tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    output = subprocess.run(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ).stdout
    worker = Path(f"/proc/{int(output)}") if Path("/proc").is_dir() else None
    deadline = time.monotonic() + 20
    while worker is not None and worker.exists() and worker.joinpath("stat").read_text().split()[2] != "Z":
        assert time.monotonic() < deadline, "the worker outlives its parent"
        time.sleep(0.1)


class Doubling(TimmFeatureExtractor):
    """An encoder that counts its work: 4 bytes an image."""

    def __init__(self, factor: int) -> None:
        torch.nn.Module.__init__(self)
        self.weight = torch.nn.Parameter(torch.tensor(float(factor)))
        self.requires_grad, self.batches = False, []

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        self.batches.append(len(images))
        return {"layer": images.amax(dim=(1, 2, 3)).mul(self.weight.detach())}


def test_store_makes_room_and_leaves_out_what_does_not_fit():
    store, images = SharedFeatures(0), torch.arange(4.0).reshape(4, 1, 1, 1)
    store.limit = 16  # four images
    store.enter("parts", "nut", 4)
    first, second, again = Doubling(2), Doubling(3), Doubling(2)
    for model in (first, second, again):
        store.attach(model)
    assert first(images)["layer"].tolist() == [0, 2, 4, 6]
    assert first.batches == [1] * 5  # one to measure its size, then each alone
    assert again(images)["layer"].tolist() == [0, 2, 4, 6]
    assert again.batches == []  # the same weights
    with store.off():
        again(images)
    assert again.batches == [4]
    assert second(images)["layer"].tolist() == [0, 3, 6, 9]
    assert len(store) == 4  # the first encoder made room for the second
    store.enter("parts", "bolt", 5)
    assert len(store) == 0
    first.batches.clear()
    assert first(images)["layer"].tolist() == [0, 2, 4, 6]
    assert first.batches == [4]  # five images do not fit: a batch as ever
    assert len(store) == 0


def test_parts_of_a_group_share_images_while_there_is_room():
    store, images = SharedFeatures(0), torch.arange(6.0).reshape(6, 1, 1, 1)
    store.limit = 24  # six images
    model = Doubling(2)
    store.enter("digits", "0", 3)
    store.attach(model)
    model(images[:3])
    model.batches.clear()
    store.enter("digits", "1", 3)
    assert model(images[1:4])["layer"].tolist() == [2, 4, 6]
    assert model.batches == [1]  # one of them is new
    store.enter("digits", "1", 3)
    assert len(store) == 4
    store.enter("digits", "2", 3)
    assert len(store) == 0  # seven might come together
    store.enter("faces", "0", 3)
    assert len(store) == 0


def test_report_of_a_benchmark_that_has_not_run(request, images, tmp_path):
    grid = Grid.from_config(section(request, images, tmp_path / "none", [{"class_path": "InCTRL"}]))
    report = write_report(grid)
    assert (report.failed, report.missing) == (0, 8)
    assert "8 have not run" in report.file.read_text()
