"""``anomalib few_shot_benchmark``: run what has no result yet, then write the report."""

from __future__ import annotations

import logging
import os
import sys
from concurrent.futures import FIRST_COMPLETED, wait
from pathlib import Path
from typing import Any

import torch
from anomalib.pipelines.components.base import Pipeline, Runner
from anomalib.pipelines.components.runners import ParallelRunner, SerialRunner
from jsonargparse import ArgumentParser, Namespace
from tqdm import tqdm

from anomalib_inctrl.benchmark.grid import Grid
from anomalib_inctrl.benchmark.job import NAME, CellJobGenerator
from anomalib_inctrl.benchmark.report import write_report

logger = logging.getLogger(__name__)

_ACCELERATORS = ("cpu", "cuda")


class WaitingParallelRunner(ParallelRunner):
    """anomalib's parallel runner with a progress bar, and without spinning a core while it waits."""

    def __init__(self, generator: CellJobGenerator, n_jobs: int) -> None:
        super().__init__(generator, n_jobs)
        self._bar: tqdm | None = None

    def run(self, args: dict, prev_stage_results: Any = None) -> Any:
        """Run the jobs in parallel."""
        with tqdm(total=len(self.generator.generate_jobs(args)), desc=NAME) as self._bar:  # type: ignore[arg-type]
            return super().run(args, prev_stage_results)

    def _await_cleanup_processes(self, blocking: bool = False) -> None:
        while running := [process for process in self.processes.values() if process is not None]:
            wait(running, return_when=FIRST_COMPLETED)
            before = len(self.results)
            super()._await_cleanup_processes()
            if self._bar is not None:
                self._bar.update(len(self.results) - before)
            if not blocking:
                return


class FewShotBenchmark(Pipeline):
    """Compare few-shot methods on the same references, and write a report."""

    @staticmethod
    def get_parser(parser: ArgumentParser | None = None) -> ArgumentParser:
        """Add the arguments of the command to a parser."""
        parser = parser or ArgumentParser()
        parser.add_argument("--config", type=Path, required=True, help="File that describes the benchmark.")
        parser.add_argument("--output", type=Path, default=None, help="Folder of results instead of the file's own.")
        parser.add_argument("--jobs", type=int, default=None, help="Number of processes instead of the file's own.")
        return parser

    def run(self, args: Namespace | None = None) -> None:
        """Run all cells without a result, then write tables, plots and the report from all results.

        Args:
            args (Namespace | None): ``config``, ``output`` and ``jobs``; ``None`` reads the command line.

        Raises:
            ValueError: If the configuration is wrong.
            SystemExit: With code 1 if a cell failed, after the report has been written.
        """
        args = args if args is not None else self.get_parser().parse_args()
        grid = Grid.from_config(self._get_args(args).get(NAME, {}))
        super().run(args)
        report = write_report(grid)
        sys.stdout.write(f"Report: {report.file}\n")
        if report.failed or report.missing:
            sys.stdout.write(
                f"{report.failed} cells failed, {report.missing} have not run; the report names them, and the next run "
                "tries them again.\n"
            )
            raise SystemExit(1)

    def _get_args(self, args: Namespace | None) -> dict:
        config = super()._get_args(args)
        given = vars(args) if args is not None else {}
        if given.get("output") is not None:
            config.setdefault(NAME, {})["output"] = str(given["output"])
        if given.get("jobs") is not None:
            config["jobs"] = given["jobs"]
        return config

    def _setup_runners(self, args: dict) -> list[Runner]:
        """Run in as many processes as ``jobs`` says: by default one, or one per GPU."""
        accelerator = args.get("accelerator", "cpu")
        if accelerator not in _ACCELERATORS:
            msg = f"accelerator must be one of {', '.join(_ACCELERATORS)}, got {accelerator!r}."
            raise ValueError(msg)
        gpus = torch.cuda.device_count() if accelerator == "cuda" else 0
        if accelerator == "cuda" and not gpus:
            msg = "accelerator is 'cuda', but torch sees no GPU: set accelerator: cpu."
            raise ValueError(msg)
        jobs = int(args.get("jobs") or max(1, gpus))
        if gpus and jobs > gpus:
            msg = f"jobs is {jobs}, but there are {gpus} GPUs: a process takes one."
            raise ValueError(msg)
        if jobs == 1:
            return [SerialRunner(CellJobGenerator(accelerator))]
        threads = max(1, (os.cpu_count() or 1) // jobs)
        return [WaitingParallelRunner(CellJobGenerator(accelerator, threads), jobs)]
