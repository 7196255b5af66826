"""Commands as users type them, each a process of its own; importing anomalib alone takes about ten seconds."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

PROJECT = Path(__file__).parents[2]
CONFIGS = sorted(p for p in (PROJECT / "configs").rglob("*.yaml") if not p.stem.startswith("benchmark_"))
# With alpha 1 the patches alone give the score, and their residuals find a bright square whatever the weights.
MODEL = ["--model.backbone", "inctrl-tiny", "--model.k_shot", "2", "--model.alpha", "1"]
QUIET = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.logger", "false"]

# The plugin need not be installed where the tests run, hence the imports, which the start-up hook does otherwise.
# One process can run several commands; each is reported with its exit code.
RUN = """
import json, sys, traceback
import torch
torch.set_num_threads(1)
import anomalib_inctrl.models, anomalib_inctrl.data, anomalib_inctrl.benchmark
from anomalib.cli.cli import main
for command in json.loads(sys.argv[1]):
    sys.argv = ["anomalib", *command]
    code = 0
    print("=== command", *command[:2], flush=True)
    try:
        main()
    except SystemExit as end:
        code = end.code or 0
    except Exception:
        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    print(f"=== exit {code}", flush=True)
"""


def anomalib(*commands: list[str], cwd: Path) -> list[tuple[int, str]]:
    """Run commands in one process; exit code and output of each."""
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "200", "NO_COLOR": "1"}
    environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PROJECT / "src"), environ.get("PYTHONPATH", "")]))
    result = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps([[str(part) for part in command] for command in commands])],
        cwd=cwd, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=280,
    )  # fmt: skip
    sys.stdout.write(result.stdout)
    found = re.findall(r"=== command.*?\n(.*?)=== exit (\d+)\n", result.stdout, flags=re.DOTALL)
    assert len(found) == len(commands), result.stdout
    return [(int(code), output) for output, code in found]


def draw(path: Path, seed: int, square: bool = False) -> None:
    pixels = np.random.default_rng(seed).normal(90, 6, (96, 128, 3)).clip(0, 255).astype(np.uint8)
    if square:
        pixels[30:58, 40:68] = 250
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """A folder with a category in MVTec's layout."""
    folder = tmp_path_factory.mktemp("workspace")
    for i in range(4):
        draw(folder / f"MVTecAD/bolt/train/good/{i}.png", i)
    for i in range(2):
        draw(folder / f"MVTecAD/bolt/test/good/{i}.png", 10 + i)
        draw(folder / f"MVTecAD/bolt/test/square/{i}.png", 20 + i, square=True)
        mask = np.zeros((96, 128), dtype=np.uint8)
        mask[30:58, 40:68] = 255
        (folder / "MVTecAD/bolt/ground_truth/square").mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(folder / f"MVTecAD/bolt/ground_truth/square/{i}_mask.png")
    return folder


@pytest.fixture(scope="module")
def data(workspace) -> list[str]:
    return [
        "--data", "MVTecAD", "--data.root", str(workspace / "MVTecAD"), "--data.category", "bolt",
        "--data.num_workers", "0",
    ]  # fmt: skip


def metrics_in(output: str) -> dict[str, float]:
    return {name: float(value) for name, value in re.findall(r"((?:image|pixel)_\w+)\W+?([\d.]+(?:e-\d+)?)", output)}


@pytest.fixture(scope="module")
def trained(workspace, data) -> tuple[Path, dict[str, float]]:
    """A checkpoint made by ``anomalib train``, and the metrics it reported."""
    command = ["train", "--model", "InCTRLv2", *MODEL, *data, *QUIET, "--default_root_dir", str(workspace / "results")]
    ((code, output),) = anomalib(command, cwd=workspace)
    assert code == 0
    (checkpoint,) = (workspace / "results").rglob("*.ckpt")
    return checkpoint, metrics_in(output)


def test_train_reports_metrics_and_references(trained):
    checkpoint, metrics = trained
    assert metrics.keys() == {f"image_{m}" for m in ("AUROC", "AUPR", "F1Max")} | {
        f"pixel_{m}" for m in ("AUROC", "AUPRO", "AUPR", "F1Max")
    }
    assert metrics["image_AUROC"] == 1.0
    assert len([p for p in checkpoint.parents[2].rglob("*.png") if "images" in p.parts]) == 4


def benchmark_of(workspace: Path) -> Path:
    """A benchmark of two cells."""
    model = {"class_path": "InCTRL", "init_args": {"backbone": "inctrl-tiny", "alpha": 1}}
    bolt = {"root": str(workspace / "MVTecAD"), "category": "bolt", "num_workers": 0}
    file = workspace / "benchmark.yaml"
    section = {
        "output": "unused", "shots": [1, 2], "seeds": [0], "models": [model],
        "data": [{"class_path": "MVTecAD", "init_args": bolt}],
    }  # fmt: skip
    file.write_text(json.dumps({"few_shot_benchmark": section}))  # JSON is YAML, too
    return file


def configured_by(path: Path) -> list[str]:
    """Options that take a configuration, a recommended one on top of that for MVTec AD."""
    stem = path.stem.removeprefix("recommended_")
    base = [] if stem == path.stem else ["--config", str(path.with_name(f"train_{stem}_mvtec.yaml"))]
    return [*base, "--config", str(path)]


@pytest.fixture(scope="module")
def results(trained, workspace, data) -> dict[str, tuple[int, str]]:
    """Exit code and output of all other commands, run in one process after the one that trained."""
    model, checkpoint, root = ["--model", "InCTRLv2", *MODEL], ["--ckpt_path", trained[0]], "--default_root_dir"
    images, normals = workspace / "MVTecAD/bolt/test/square", workspace / "MVTecAD/bolt/train/good"
    export = ["export", *model, *checkpoint, "--export_root", workspace / "exported", "--export_type"]
    commands = {
        "test": ["test", *model, *data, *QUIET, *checkpoint, root, workspace / "again"],
        "predict": ["predict", *model, "--data", images, *QUIET, *checkpoint, root, workspace / "predicted"],
        "onnx": [*export, "onnx"],
        "openvino": [*export, "openvino"],
        "folders": [
            "predict", "--model", "InCTRL", *MODEL, "--model.few_shot_source", normals, "--data", images, *QUIET,
            root, workspace / "folders",
        ],
        "nothing": ["predict", "--model", "InCTRL", *MODEL, "--data", images, *QUIET, root, workspace / "nothing"],
        "benchmark": ["few_shot_benchmark", "--config", benchmark_of(workspace), "--output", workspace / "compared"],
        "check": [
            "check_references", "--data", "FewShot", "--data.data", "MVTecAD", "--data.data.category", "bolt",
            "--data.data.root", workspace / "MVTecAD", "--data.k_shot", "3", "--output", workspace / "check.json",
        ],
        **{name: ["train", f"--model.help={name}"] for name in ("InCTRL", "InCTRLv2", "DevPrompt")},
        **{str(path): ["train", *configured_by(path), "--print_config"] for path in CONFIGS},
    }  # fmt: skip
    return dict(zip(commands, anomalib(*commands.values(), cwd=workspace), strict=True))


def test_test_from_a_checkpoint(trained, results):
    code, output = results["test"]
    assert code == 0
    assert metrics_in(output) == trained[1]


@pytest.mark.parametrize("command", ["predict", "folders"])
def test_predict_on_a_folder(results, workspace, command):
    """From a checkpoint, and with nothing but a folder of normal images and one of others."""
    assert results[command][0] == 0
    folder = workspace / {"predict": "predicted"}.get(command, command)
    assert len(list(folder.rglob("*.png"))) == 2


def test_predict_without_references_says_what_to_give(results):
    code, output = results["nothing"]
    assert code == 1
    assert "needs 2 normal images as references: give a folder by few_shot_source" in output


@pytest.mark.parametrize(("kind", "suffixes"), [("onnx", {".onnx"}), ("openvino", {".xml", ".bin"})])
def test_export_from_a_checkpoint(results, workspace, kind, suffixes):
    assert results[kind][0] == 0
    assert {path.suffix for path in (workspace / "exported").rglob("model.*")} >= suffixes


def test_benchmark_of_two_cells(results, workspace):
    code, output = results["benchmark"]
    assert code == 0, output
    lines = (workspace / "compared/results.csv").read_text().splitlines()
    header, rows = lines[0].split(","), [line.split(",") for line in lines[1:]]
    assert [row[header.index("k_shot")] for row in rows] == ["1", "2"]
    assert [float(row[header.index("image_AUROC")]) for row in rows] == [1.0, 1.0]
    assert (workspace / "compared/report.html").stat().st_size > 10_000
    assert len(list((workspace / "compared/cells").iterdir())) == 2


def test_check_of_references(results, workspace):
    code, output = results["check"]
    assert code == 0, output
    found = json.loads((workspace / "check.json").read_text())
    assert len(found["references"]) == 3
    assert len(found["pool_residuals"]) == 1
    assert found["verdict"] in output
    assert all(reference["file"] in output for reference in found["references"])


@pytest.mark.parametrize("name", ["InCTRL", "InCTRLv2", "DevPrompt"])
def test_help_explains_every_argument(results, name):
    import anomalib_inctrl

    code, output = results[name]
    assert code == 0
    for argument in inspect.signature(getattr(anomalib_inctrl, name)).parameters:
        found = re.search(rf"--model\.{argument}\b(.*?)(?=\n\s*--model\.|\Z)", output, flags=re.DOTALL)
        assert found, argument
        assert re.search(r"[a-z]{3,} [a-z]{2,}", found[1]), f"{argument} has no description"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configuration_file_is_accepted(results, path):
    code, output = results[str(path)]
    assert code == 0
    assert re.search(r"^model:\n  class_path: ", output, flags=re.MULTILINE)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("inctrl", {"stretch_embeddings: 2.0"}),
        ("inctrl_v2", set()),
    ],
)
def test_a_recommended_configuration_changes_what_it_names_alone(results, name, options):
    plain, recommended = (
        re.search(r"^model:\n.*", results[str(PROJECT / f"configs/{stem}.yaml")][1], flags=re.MULTILINE | re.DOTALL)[0]
        for stem in (f"train_{name}_mvtec", f"recommended_{name}")
    )
    changed = set(recommended.splitlines()) - set(plain.splitlines())
    assert {line.strip() for line in changed} == options | {"image_branch: distance", "decay_learning_rate: true"}
