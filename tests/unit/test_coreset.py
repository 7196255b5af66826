"""The k-centre coreset against a naive one."""

from __future__ import annotations

import numpy as np
import pytest

from anomalib_inctrl.coreset import k_centres


def naive(points: np.ndarray, count: int) -> list[int]:
    chosen = [0]
    while len(chosen) < count:
        nearest = [min(np.linalg.norm(p - points[c]) for c in chosen) for p in points]
        chosen.append(int(np.argmax(nearest)))
    return sorted(chosen)


def test_equals_the_naive_choice():
    points = np.random.default_rng(0).normal(size=(40, 6))
    for count in (1, 2, 7, 40):
        assert k_centres(points, count).tolist() == naive(points, count)


def test_wide_points_are_covered_as_well_as_without_projection():
    """The farthest any point lies from the coreset: within a fifth of what the exact choice gives."""
    points = np.random.default_rng(1).normal(size=(200, 600)) * np.linspace(0.1, 2, 600)

    def radius(chosen):
        return max(min(np.linalg.norm(p - points[c]) for c in chosen) for p in points)

    assert radius(k_centres(points, 30)) < 1.2 * radius(naive(points, 30))


def test_equal_points_are_chosen_once():
    assert k_centres(np.ones((5, 3)), 5).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("count", [0, 4])
def test_impossible_counts(count):
    with pytest.raises(ValueError, match="from 1 to 3"):
        k_centres(np.eye(3), count)
