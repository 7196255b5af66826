"""Every few-shot method on the same references: the command ``anomalib few_shot_benchmark`` and what it is made of.

Beside it ``anomalib check_references``, which looks at the references themselves.
"""

from anomalib.cli.pipelines import PIPELINE_REGISTRY

from anomalib_inctrl.benchmark.grid import Grid
from anomalib_inctrl.benchmark.job import NAME
from anomalib_inctrl.benchmark.pipeline import FewShotBenchmark
from anomalib_inctrl.benchmark.reference_command import CheckReferences
from anomalib_inctrl.benchmark.report import write_report

__all__ = ["CheckReferences", "FewShotBenchmark", "Grid", "write_report"]


def _register() -> None:
    """Make both commands beside anomalib's own, unless anomalib runs without pipelines."""
    if PIPELINE_REGISTRY is not None:
        PIPELINE_REGISTRY[NAME] = FewShotBenchmark
        PIPELINE_REGISTRY["check_references"] = CheckReferences  # type: ignore[assignment]  # no pipeline of jobs


# Last, so that the classes exist whichever of anomalib's command line and this package is imported first.
_register()
