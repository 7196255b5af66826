"""Preparation of the benchmarks: ``python -m anomalib_inctrl.data.benchmarks prepare Elpv --source DOWNLOAD``."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli

from anomalib_inctrl.data.benchmarks import DATA_MODULES


def prepare(name: str, source: Path | None = None, root: Path | None = None, strict: bool = True) -> None:
    """Write a benchmark's images in MVTec AD's layout; nothing happens if they are there.

    Args:
        name: Data module of the benchmark, in any case: Aitex, BrainMRI, Cifar10, Elpv, HeadCT, KolektorSDD or Mnist.
        source: The download: a folder or an archive.
        root: Folder to write; by default the one the data module looks in.
        strict: Whether to refuse a download that does not hold the published number of images.
    """
    kinds = {kind.casefold(): module for kind, module in DATA_MODULES.items()}
    if name.casefold() not in kinds:
        sys.exit(f"There is no benchmark {name!r}; there are {', '.join(DATA_MODULES)}.")
    module = kinds[name.casefold()]
    options: dict[str, Any] = {} if root is None else {"root": root}
    datamodule = module(**options)
    try:
        written = module.benchmark.prepare(source, datamodule.root, strict=strict)
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        sys.exit(str(error))
    sys.stdout.write(f"{'Prepared' if written else 'Found'} {datamodule.root}.\n")


def show() -> None:
    """List the benchmarks, where to download them, and under which terms."""
    for name, module in DATA_MODULES.items():
        benchmark = module.benchmark
        sys.stdout.write(f"{name}\n  {benchmark.place}\n  {benchmark.files}\n  licence: {benchmark.licence}\n")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    auto_cli({"prepare": prepare, "list": show})
