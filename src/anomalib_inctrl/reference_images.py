"""Which images serve as references, and how they are read."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from anomalib.data.utils import get_image_filenames, read_image
from PIL import Image
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

logger = logging.getLogger(__name__)

Selection = Literal["random", "k_centre", "medoid"]
"""How references are chosen, see :func:`anomalib_inctrl.reference_choice.select`."""

_WIDE_MODES = ("I", "F")  # Pillow's modes of more than eight bits a channel begin so


class ReferenceImages(NamedTuple):
    """Chosen references.

    Attributes:
        images (Tensor): Preprocessed, ``(K, 3, H, W)``.
        names (list[str]): File names, for logs and checkpoints.
    """

    images: Tensor
    names: list[str]


def draw(paths: Sequence[str], k_shot: int, seed: int) -> list[str]:
    """Draw ``k_shot`` of the paths, the same for the same seed whatever their order.

    Raises:
        ValueError: If there are fewer.

    Example:
        >>> draw(["c.png", "a.png", "b.png"], 2, seed=0) == draw(["a.png", "b.png", "c.png"], 2, seed=0)
        True
    """
    if len(paths) < k_shot:
        msg = (
            f"k_shot={k_shot} references were asked for, but there are only {len(paths)} normal images. Set k_shot to "
            f"{len(paths)} or less, or provide more."
        )
        raise ValueError(msg)
    order = torch.randperm(len(paths), generator=torch.Generator().manual_seed(seed))[:k_shot]
    ordered = sorted(map(str, paths))
    return sorted(ordered[i] for i in order.tolist())


def read_references(paths: Sequence[str], transform: Callable[[Tensor], Tensor]) -> ReferenceImages:
    """Read and preprocess images one by one, so that their sizes may differ.

    Raises:
        ValueError: If a file is no image, or has more than eight bits a channel.
    """
    return ReferenceImages(torch.stack([transform(_read(path)) for path in paths]), [str(p) for p in paths])


def from_source(
    source: str | Path,
    k_shot: int,
    seed: int,
    transform: Callable[[Tensor], Tensor],
) -> ReferenceImages:
    """Take references from a folder, an image or a ``.pt`` file.

    All images of the source serve if there are no more than ``k_shot``; with fewer a warning says so, since the user
    named them. Of a folder with more, ``k_shot`` are drawn; of a ``.pt`` file the first ``k_shot`` count.

    Args:
        source (str | Path): Folder (searched in depth), image, or file of a list of tensors ``[3, H, W]``, already
            preprocessed, as InCTRL's authors publish them.
        k_shot (int): Number of references.
        seed (int): Of the draw.
        transform (Callable): Preprocessing of one image ``[3, H, W]`` in ``[0, 1]``.

    Raises:
        FileNotFoundError: If the source does not exist or holds no image.
        ValueError: If a file can't be read.
    """
    path = Path(source).expanduser()
    if not path.exists():
        msg = f"few_shot_source={str(source)!r} does not exist: name a folder of normal images, an image or a .pt file."
        raise FileNotFoundError(msg)
    if path.suffix == ".pt":
        references = _read_tensors(path, k_shot)
    else:
        found = _image_files(path)
        chosen = draw(found, k_shot, seed) if len(found) > k_shot else sorted(found)
        references = read_references(chosen, transform)
    if len(references.names) < k_shot:
        logger.warning("%s holds %d references, fewer than k_shot=%d.", path, len(references.names), k_shot)
    return references


def require_eight_bits(path: str | Path) -> None:
    """Refuse images that the framework's reader would saturate.

    anomalib reads with ``Image.convert("RGB")``, which clips 16-bit and float images to their lowest 256 levels.

    Raises:
        ValueError: If the image has more than eight bits a channel, or is none.
    """
    try:
        with Image.open(path) as image:
            mode = image.mode
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        msg = f"{path} can't be read as an image: {error}. Repair or remove it."
        raise ValueError(msg) from error
    if mode.startswith(_WIDE_MODES):
        msg = (
            f"{path} has more than 8 bits per channel (mode {mode}); anomalib's reader would saturate it. Convert the "
            "images to 8 bits, with the same scaling for references and queries."
        )
        raise ValueError(msg)


def _read(path: str | Path) -> Tensor:
    require_eight_bits(path)
    try:
        return torch.as_tensor(read_image(path, as_tensor=True))
    except (OSError, ValueError, SyntaxError) as error:  # Pillow raises SyntaxError for broken PNG chunks
        msg = f"{path} can't be read as an image: {error}. Repair or remove it."
        raise ValueError(msg) from error


def _image_files(path: Path) -> list[str]:
    try:
        return [str(found) for found in get_image_filenames(path)]
    except ValueError as error:
        msg = f"few_shot_source={str(path)!r} holds no image: {error}"
        raise FileNotFoundError(msg) from error


def _read_tensors(path: Path, k_shot: int) -> ReferenceImages:
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
        images = torch.stack([torch.as_tensor(t, dtype=torch.float32) for t in tensors])[:k_shot]
    except Exception as error:
        msg = f"{path} is no list of equally large image tensors [3, H, W]: {type(error).__name__}: {error}"
        raise ValueError(msg) from error
    if images.ndim != 4:
        msg = f"{path} must hold a list of tensors [3, H, W], got a stack of shape {tuple(images.shape)}."
        raise ValueError(msg)
    return ReferenceImages(images, [f"{path.name}[{i}]" for i in range(images.shape[0])])
