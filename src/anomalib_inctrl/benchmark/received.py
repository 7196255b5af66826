"""Which images a method really received, whatever it says about itself."""

from __future__ import annotations

import hashlib
import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_recording: set[str] | None = None
_installed = False


@contextmanager
def files_opened() -> Iterator[set[str]]:
    """Record the absolute paths of all files that this process opens.

    Python reports every opening to its audit hooks (PEP 578), also those inside libraries that read through ``open``,
    as Pillow does. A hook can't be removed again; outside of this context it does nothing.
    """
    global _installed, _recording
    if not _installed:
        sys.addaudithook(_note)
        _installed = True
    _recording = set()
    try:
        yield _recording
    finally:
        _recording = None


def _note(event: str, arguments: tuple) -> None:
    if _recording is not None and event == "open" and isinstance(arguments[0], str):
        _recording.add(os.path.abspath(arguments[0]))  # noqa: PTH100 - resolve() would open further files


def received_among(pool: Iterable[str], opened: set[str], handed_out: set[str]) -> list[str]:
    """Tell which images of a pool were opened in this process or handed out by a data loader, sorted."""
    handed = {os.path.abspath(path) for path in handed_out}  # noqa: PTH100 - as above
    return sorted(path for path in pool if os.path.abspath(path) in opened | handed)  # noqa: PTH100


def sha256_of(path: str | Path) -> str:
    """Hash the content of a file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
