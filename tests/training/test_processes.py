"""Two processes train as one does with the same global batch.

In double precision: in single precision, batch norm over images as alike as the drawn ones and Adam, which makes full
steps of gradients that are 0 but for rounding, soon amplify the rounding of sums.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SOURCE = Path(__file__).parents[2] / "src"


@pytest.fixture(scope="session")
def two_processes(kit, tmp_path_factory) -> Path:
    results = tmp_path_factory.mktemp("processes")
    path = os.pathsep.join(filter(None, [str(SOURCE), os.environ.get("PYTHONPATH", "")]))
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    script = Path(__file__).with_name("run_processes.py")
    command = [sys.executable, script, "2", kit.root, results / "features", results]
    result = subprocess.run(command, env=environ, cwd=results, capture_output=True, text=True, timeout=200)
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
