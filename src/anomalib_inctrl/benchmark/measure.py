"""Speed, memory, versions: what a cell records beside its metrics."""

from __future__ import annotations

import platform
import statistics
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import anomalib_inctrl

if TYPE_CHECKING:
    from collections.abc import Callable

PACKAGES = ("anomalib", "torch", "torchvision", "open_clip_torch", "timm")
VERSIONED = ("anomalib_inctrl", *PACKAGES, "python")
"""What the figures depend on, with a version each."""

_REPEATS = 3
_RESET_PEAK = "5"  # what Linux takes to forget a process's peak of resident memory (proc(5), clear_refs)


def images_per_second(score: Callable[[torch.Tensor], object], images: torch.Tensor) -> float:
    """Measure how many preprocessed images a model scores in a second, in one batch, loading excluded.

    One call warms up; the median of three counts.
    """
    seconds = []
    for _ in range(_REPEATS + 1):
        _synchronise(images.device)
        start = time.perf_counter()
        score(images)
        _synchronise(images.device)
        seconds.append(time.perf_counter() - start)
    return images.shape[0] / statistics.median(seconds[1:])


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class PeakMemory:
    """Peak of memory since construction.

    On a GPU what torch has allocated; on a CPU by how much the resident memory of the process grew at most, on Linux
    alone. Features that are shared with other cells count for the cell that computes them.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._before: float | None = None
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return
        with suppress(OSError):  # another system, or a container that does not let a process do this
            _CLEAR_REFS.write_text(_RESET_PEAK)
            self._before = _resident_peak()

    @property
    def megabytes(self) -> float | None:
        """The peak in MB; ``None`` where it can't be told."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        return None if self._before is None else _resident_peak() - self._before


def _resident_peak() -> float:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**10


_CLEAR_REFS, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def versions() -> dict[str, str]:
    """Versions of what the figures depend on."""
    found = {"anomalib_inctrl": anomalib_inctrl.__version__, "python": platform.python_version()}
    return found | {package: _version(package) for package in PACKAGES}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def device_name(device: torch.device) -> str:
    """Name the hardware: of a GPU its model, of a CPU the architecture and how many threads torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} thread(s)"
