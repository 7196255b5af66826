"""Two processes train as one does with the same global batch, and one that was killed is gone on with.

Two are compared in double precision: in single precision, batch norm over images as alike as the drawn ones and Adam,
which makes full steps of gradients that are 0 but for rounding, soon amplify the rounding of sums.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SOURCE = Path(__file__).parents[2] / "src"


def run(script: str, folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(SOURCE), os.environ.get("PYTHONPATH", "")]))
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    command = [sys.executable, Path(__file__).with_name(script), *arguments]
    return subprocess.run(command, env=environ, cwd=folder, capture_output=True, text=True, timeout=200)


@pytest.fixture(scope="session")
def two_processes(kit, tmp_path_factory) -> Path:
    results = tmp_path_factory.mktemp("processes")
    result = run("run_processes.py", results, "2", kit.root, results / "features", results)
    assert result.returncode == 0, result.stdout + result.stderr
    return results


@pytest.mark.slow
def test_two_processes_train_as_one(kit, name, two_processes, tmp_path):
    two = torch.load(two_processes / f"{name}.pt")
    one = kit.fit(
        kit.build(name, feature_cache=two_processes / "features"),
        tmp_path,
        kit.data_without_validation(),
        2,
        precision="64-true",
    )
    assert len(one.losses.steps) == 6
    losses = max(abs(a[term] - b[term]) for a, b in zip(one.losses.steps, two["losses"], strict=True) for term in a)
    weights = max((one.heads[key].float() - value.float()).abs().max().item() for key, value in two["heads"].items())
    assert losses < 1e-4, weights
    assert weights < 1e-3
    assert one.heads.keys() == two["heads"].keys()
    assert len(list((two_processes / name).rglob("heads.safetensors"))) == 1


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL.")
def test_a_killed_training_goes_on_to_the_same_heads(kit, tmp_path):
    result = run("run_killed.py", tmp_path, kit.root, kit.cache, tmp_path / "killed")
    assert result.returncode == -signal.SIGKILL, result.stdout + result.stderr
    (left,) = (tmp_path / "killed").rglob("model.ckpt")
    resumed = kit.fit(kit.build("InCTRLv2", seed=1), tmp_path / "resumed", epochs=4, ckpt_path=left)
    whole = kit.fit(kit.build("InCTRLv2"), tmp_path / "whole", epochs=4)
    assert len(resumed.losses.steps) == 6
    assert resumed.losses.steps == whole.losses.steps[6:]
    assert all(torch.equal(value, whole.heads[key]) for key, value in resumed.heads.items())
