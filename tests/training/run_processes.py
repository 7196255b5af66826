"""Trains both models in several processes: a script that Lightning starts once more for every further process.

Arguments: devices, folder of the data, folder of features, folder of results.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest
import torch


def main(devices: int, root: Path, features: Path, results: Path) -> None:
    spec = importlib.util.spec_from_file_location("training_conftest", Path(__file__).with_name("conftest.py"))
    conftest = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conftest)
    conftest.encode_text_once(pytest.MonkeyPatch())
    kit = conftest.Kit(root, features)
    # A folder for each: a second fit begins in both at once, and anomalib numbers folders without expecting company.
    rank = os.environ.get("LOCAL_RANK", "0")
    for name in conftest.MODELS:
        strategy = {"devices": devices, "strategy": "ddp"} if devices > 1 else {}
        run = kit.fit(
            kit.build(name), results / name / rank, kit.data_without_validation(), 2, precision="64-true", **strategy
        )
        if run.engine.trainer.is_global_zero:
            torch.save({"losses": run.losses.steps, "heads": run.heads}, results / f"{name}.pt")


if __name__ == "__main__":
    main(int(sys.argv[1]), *map(Path, sys.argv[2:]))
