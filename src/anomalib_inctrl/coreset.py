"""Fewer reference patches that still lie near all the others: the k-centre coreset of PatchCore, without torch."""

from __future__ import annotations

import numpy as np

_PROJECTED_WIDTH = 128  # distances between random projections are those between the points, to a few percent
_SEED = 0


def k_centres(points: np.ndarray, count: int) -> np.ndarray:
    """Choose points greedily, each time the one farthest from those chosen (PatchCore, arXiv 2106.08265, 3.3).

    Args:
        points (np.ndarray): ``(R, width)``; wide ones are projected at random first, from a fixed seed.
        count (int): Number of points to choose, 1 to ``R``.

    Returns:
        np.ndarray: Their indices in ascending order, ``(count,)``.

    Raises:
        ValueError: If there are fewer points.

    Example:
        >>> k_centres(np.array([[0.0], [0.1], [1.0], [1.1], [5.0]]), 3)
        array([0, 3, 4])
    """
    if not 1 <= count <= len(points):
        msg = f"count must be from 1 to {len(points)}, the number of points, got {count}."
        raise ValueError(msg)
    points = points.astype(np.float32)
    if points.shape[1] > _PROJECTED_WIDTH:
        draws = np.random.default_rng(_SEED).standard_normal((points.shape[1], _PROJECTED_WIDTH), dtype=np.float32)
        points = points @ draws
    squares = np.einsum("ij,ij->i", points, points)
    distances = np.full(len(points), np.inf, dtype=np.float32)
    chosen = [0]
    for _ in range(count - 1):
        newest = chosen[-1]
        distances = np.minimum(distances, squares - 2 * (points @ points[newest]) + squares[newest])
        distances[newest] = -np.inf  # rounding must not let it be chosen again
        chosen.append(int(distances.argmax()))
    return np.sort(np.array(chosen))
