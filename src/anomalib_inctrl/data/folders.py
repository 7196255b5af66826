"""Folders of generated images: written once, complete or not at all, and never mistaken for others."""

from __future__ import annotations

import glob
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def ensure_folder(
    folder: Path,
    settings: dict[str, Any],
    write: Callable[[Path], dict[str, Any]],
    metadata: str,
) -> bool:
    """Write a folder unless it is there with the same settings.

    Several processes may do this at the same time: each writes a folder of its own, and the first to finish puts it
    into place.

    Args:
        folder: Folder to write; those above it are created if needed.
        settings: What its pixels depend on; ``generator`` names the class that writes it.
        write: Writes the images into the folder it is given, in MVTec AD's layout, and returns more to record.
        metadata: Name of the JSON file that keeps the settings.

    Returns:
        Whether this call wrote the folder.

    Raises:
        ValueError: If the folder exists with other settings, is incomplete, or was not written by this function.
    """
    if folder.exists():
        _check_folder(folder, settings, metadata)
        return False
    with temporary_beside(folder) as temporary:
        written = Path(temporary, folder.name)
        extra = write(written) | {"files": _count_images(written)}
        (written / metadata).write_text(json.dumps(settings | extra, indent=2) + "\n", encoding="utf-8")
        return _put_into_place(written, folder, settings, metadata)


@contextmanager
def temporary_beside(folder: Path) -> Iterator[Path]:
    """Make a hidden folder on the same disk for the time of a preparation, after removing what killed ones left."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    owner = f".{folder.name}-{platform.node()}"
    for left in folder.parent.glob(f"{glob.escape(owner)}-*"):
        name, pid, _ = left.name.rsplit("-", 2)
        if name == owner and pid.isdigit() and not _is_running(int(pid)):
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"{owner}-{os.getpid()}-", dir=folder.parent) as temporary:
        yield Path(temporary)


def _is_running(pid: int) -> bool:
    """Whether this machine has such a process; where that can't be asked, it is taken to have."""
    if os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def save_image(pixels: np.ndarray, path: Path) -> None:
    """Write an image, and the folders above it.

    Args:
        pixels: ``uint8`` array of shape ``(height, width, 3)``, or a boolean mask ``(height, width)``.
        path: File to write.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(255 * pixels.astype(np.uint8) if pixels.dtype == bool else pixels).save(path)


def _count_images(folder: Path) -> int:
    return sum(1 for _ in folder.glob("*/*/*.png"))


def _put_into_place(written: Path, folder: Path, settings: dict[str, Any], metadata: str) -> bool:
    """Rename a finished folder, or accept the equal one that another process put there first."""
    try:
        written.rename(folder)
    except OSError:
        if not folder.exists():
            raise
        _check_folder(folder, settings, metadata)
        return False
    return True


def _check_folder(folder: Path, settings: dict[str, Any], metadata: str) -> None:
    """Raise a ``ValueError`` that says what to do unless a folder has these settings and all its images."""
    remedy = "Choose another root, or delete that folder to have it written anew."
    try:
        found = json.loads((folder / metadata).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        owner = settings["generator"].rpartition(".")[-1]
        msg = f"{folder} exists but was not written by {owner}: it has no readable {metadata}. {remedy}"
        raise ValueError(msg) from error
    found = found if isinstance(found, dict) else {}
    differing = [
        f"{key} {found.get(key)!r} instead of {value!r}" for key, value in settings.items() if found.get(key) != value
    ]
    if differing:
        msg = f"{folder} was written with other settings: {', '.join(differing)}. {remedy}"
        raise ValueError(msg)
    if found.get("files") != _count_images(folder):
        msg = f"{folder} holds {_count_images(folder)} images instead of {found.get('files')}. {remedy}"
        raise ValueError(msg)
