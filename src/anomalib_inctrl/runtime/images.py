"""Images from files and arrays as an exported encoder takes them, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Sequence

_WIDE_MODES = ("I", "F")  # Pillow's modes of more than eight bits a channel begin so
_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
_ROUNDING = 1e-3  # by which resized float images may leave [0, 1]


def as_input(image: str | Path | np.ndarray) -> np.ndarray:
    """Bring an image into the encoder's form.

    Args:
        image (str | Path | np.ndarray): File, or RGB array ``(H, W, 3)``, ``uint8``, or floats in ``[0, 1]``.

    Returns:
        np.ndarray: ``(3, H, W)`` float32 in ``[0, 1]``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a file is no image or has more than 8 bits per channel, or an array has another shape, another
            range or holds values that are not finite.
    """
    pixels = _read(Path(image)) if isinstance(image, str | Path) else _checked(image)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def image_files(paths: Sequence[Path]) -> list[Path]:
    """List the images of files and folders, folders searched in depth and sorted.

    Raises:
        FileNotFoundError: If a path does not exist, or a folder holds no image.
    """
    files = []
    for path in paths:
        found = sorted(p for p in path.rglob("*") if p.suffix.lower() in _SUFFIXES) if path.is_dir() else [path]
        if not found or not path.exists():
            msg = f"{path} does not exist or holds no image."
            raise FileNotFoundError(msg)
        files += found
    return files


def _read(path: Path) -> np.ndarray:
    if not path.is_file():
        msg = f"{path}: there is no such image."
        raise FileNotFoundError(msg)
    try:
        with Image.open(path) as image:
            if image.mode.startswith(_WIDE_MODES):
                msg = f"it has more than 8 bits per channel (mode {image.mode}), convert references and queries alike"
                raise ValueError(msg)
            return np.asarray(image.convert("RGB"), dtype=np.float32) / 255
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        msg = f"{path} can't be read as an image: {error}."
        raise ValueError(msg) from error


def _checked(image: np.ndarray) -> np.ndarray:
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        msg = (
            f"An image must be an RGB array of shape (H, W, 3), got {image.shape}. Repeat the channel of a grey one "
            "(np.repeat(image[..., None], 3, axis=2)), drop a fourth, give a batch as a list of images."
        )
        raise ValueError(msg)
    if image.dtype == np.uint8:
        return image.astype(np.float32) / 255
    if not np.issubdtype(image.dtype, np.floating):
        msg = f"An image must be uint8, or floats in [0, 1], got {image.dtype}."
        raise ValueError(msg)
    low, high = float(image.min()), float(image.max())  # NaN if there is one
    if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):
        msg = f"A float image must lie in [0, 1] and be finite, got values from {low:g} to {high:g}."
        raise ValueError(msg)
    return image.astype(np.float32)
