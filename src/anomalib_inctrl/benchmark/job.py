"""Cells as jobs of anomalib's pipelines: each writes its result at its end, and is not repeated once it has."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import multiprocessing
import os
import traceback
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from anomalib.pipelines.components import Job, JobGenerator

from anomalib_inctrl.benchmark.cell import run_cell
from anomalib_inctrl.benchmark.grid import Cell, Grid
from anomalib_inctrl.benchmark.shared_features import SharedFeatures
from anomalib_inctrl.files import write_atomically

logger = logging.getLogger(__name__)

CELLS, FAILURES = "cells", "failures"
NAME = "few_shot_benchmark"

_stores: dict[int, SharedFeatures] = {}  # one per process, which runs many jobs


@dataclass
class CellJob(Job):
    """Run a cell and keep its result.

    Args:
        cell: What to run.
        output: Folder of results.
        accelerator: ``"cpu"`` or ``"cuda"``.
        feature_cache_mb: Memory for shared features.
        threads: Of this process on the CPU; 0 leaves them as they are.
        with_speed: Measure images per second.
        with_examples: Keep pictures.
    """

    cell: Cell
    output: Path
    accelerator: str
    feature_cache_mb: int
    threads: int
    with_speed: bool
    with_examples: bool

    name = NAME

    def run(self, task_id: int | None = None) -> dict[str, Any]:
        """Run the cell. An error is written down, not raised: it costs one cell.

        Args:
            task_id (int | None): Number of the process in a parallel run; on GPUs it takes the one of that number.
        """
        if task_id is not None:
            _quieten()
            end_with_parent()
        if self.threads:
            torch.set_num_threads(self.threads)
        store = _stores.setdefault(os.getpid(), SharedFeatures(self.feature_cache_mb))
        record: dict[str, Any] = {"cell": asdict(self.cell)}
        failure = self.output / FAILURES / f"{self.cell.key}.json"
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                record |= run_cell(
                    self.cell,
                    self.accelerator,
                    task_id if self.accelerator == "cuda" else None,
                    store,
                    with_speed=self.with_speed,
                    with_examples=self.with_examples,
                )
        except Exception as error:
            logger.exception("%s failed.", self.cell.key)
            record |= {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
            write_atomically(failure, _json(record))
            return record
        write_atomically(self.output / CELLS / f"{self.cell.key}.json", _json(record))
        failure.unlink(missing_ok=True)
        return record

    @staticmethod
    def collect(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Cells have written their results; nothing is left to gather."""
        return results

    @staticmethod
    def save(results: list[dict[str, Any]]) -> None:
        """Say how many cells ran."""
        failed = sum("error" in record for record in results)
        logger.info("%d cells ran, %d of them failed.", len(results), failed)


class CellJobGenerator(JobGenerator):
    """Lists the cells that have no result yet.

    Args:
        accelerator (str): ``"cpu"`` or ``"cuda"``.
        threads (int): Of every process on the CPU.
    """

    def __init__(self, accelerator: str, threads: int = 0) -> None:
        self.accelerator = accelerator
        self.threads = threads

    @property
    def job_class(self) -> type[Job]:
        """Class of the jobs."""
        return CellJob

    def generate_jobs(self, args: dict | None = None, prev_stage_result: Any = None) -> list[CellJob]:  # type: ignore[override]
        """List the jobs; a list and no generator, so that progress bars know how many there are.

        Args:
            args (dict | None): Section ``few_shot_benchmark`` of the configuration.
            prev_stage_result (Any): Not used.
        """
        del prev_stage_result
        grid = Grid.from_config(args or {})
        return [
            CellJob(
                cell=cell,
                output=grid.output,
                accelerator=self.accelerator,
                feature_cache_mb=grid.feature_cache_mb,
                threads=grid.threads or self.threads,
                with_speed=cell.seed == grid.seeds[0] and cell.category in [*cell.data.categories[:1], ""],
                with_examples=cell.seed == grid.seeds[0] and cell.k_shot == max(grid.shots_of(cell.model)),
            )
            for cell in grid.cells()
            if not (grid.output / CELLS / f"{cell.key}.json").is_file()
        ]


@cache
def end_with_parent() -> None:
    """Let this process end as soon as the one that started it does, which may be killed without telling anybody.

    A pool's process would otherwise wait for work for good, with the memory it has.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os._exit(1)

    Thread(target=wait, name="end-with-parent", daemon=True).start()


def _quieten() -> None:
    """Keep the framework's notices of every run off the progress bar; the pipeline does so in its own process alone."""
    for name in ("anomalib", "lightning", "lightning.fabric", "lightning.pytorch", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _json(record: dict[str, Any]) -> bytes:
    return (json.dumps(record, indent=1) + "\n").encode()
