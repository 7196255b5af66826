"""Every few-shot method on the same references: the command ``anomalib few_shot_benchmark`` and what it is made of."""

from anomalib.cli.pipelines import PIPELINE_REGISTRY

from anomalib_inctrl.benchmark.grid import Grid
from anomalib_inctrl.benchmark.job import NAME
from anomalib_inctrl.benchmark.pipeline import FewShotBenchmark
from anomalib_inctrl.benchmark.report import write_report

__all__ = ["FewShotBenchmark", "Grid", "write_report"]


def _register() -> None:
    """Make the pipeline a command beside anomalib's own, unless anomalib runs without pipelines."""
    if PIPELINE_REGISTRY is not None:
        PIPELINE_REGISTRY[NAME] = FewShotBenchmark


# Last, so that the class exists whichever of anomalib's command line and this package is imported first.
_register()
