"""Further views of references, whose patches join those of the references. Without torch, for the runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

ReferenceViews = Literal["none", "shifted", "turned"]

# What further views are: shifts down and to the right in halves of a patch; whether mirrored, then quarter turns.
_SHIFTS = ((0, 1), (1, 0), (1, 1))
_TURNS = ((False, 1), (False, 2), (False, 3), (True, 0), (True, 1), (True, 2), (True, 3))
_FURTHER: dict[str, tuple] = {"none": (), "shifted": _SHIFTS, "turned": _TURNS}


def count_views(views: ReferenceViews) -> int:
    """Views of a reference, itself included.

    Raises:
        ValueError: If there are no such views.
    """
    if views not in _FURTHER:
        msg = f"reference_views must be one of {list(_FURTHER)}, got {views!r}."
        raise ValueError(msg)
    return 1 + len(_FURTHER[views])


def further_views(pictures: np.ndarray, views: ReferenceViews, patch_size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Make the views of references beside themselves.

    ``"shifted"`` by half a patch down, to the right, and both: a query's patch then finds one of the same place of the
    product that is cut at most a quarter of a patch otherwise in either direction. Pixels from outside repeat the edge.
    ``"turned"`` by quarter turns, mirrored and not, for products that lie in any of these orientations; AnomalyDINO
    (arXiv 2405.14529) turns its references by eighths.

    Args:
        pictures (np.ndarray): ``(K, 3, H, W)``.
        views (str): ``"none"``, ``"shifted"`` or ``"turned"``.
        patch_size (tuple[int, int]): Height and width of a patch in pixels.

    Yields:
        np.ndarray: One view of every picture, ``(K, 3, H, W)``.

    Raises:
        ValueError: If pictures are to be turned and are not square.
    """
    if views == "shifted":
        for downwards, rightwards in _SHIFTS:
            down, right = downwards * (patch_size[0] // 2), rightwards * (patch_size[1] // 2)
            yield np.pad(pictures, ((0, 0), (0, 0), (0, down), (0, right)), mode="edge")[..., down:, right:]
    if views == "turned":
        height, width = pictures.shape[-2:]
        if height != width:
            msg = f"reference_views='turned' takes a backbone of square images, not of {height} x {width} pixels."
            raise ValueError(msg)
        for mirrored, turns in _TURNS:
            yield np.rot90(np.flip(pictures, -1) if mirrored else pictures, turns, axes=(-2, -1))
