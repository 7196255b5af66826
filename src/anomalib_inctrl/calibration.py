"""Threshold and score range from normal images alone. Without torch, so that the runtime calibrates alike."""

from __future__ import annotations

from math import isnan, nan
from typing import NamedTuple

import numpy as np

MIRRORS = ((-1,), (-2,), (-2, -1))
"""Axes along which a single reference is mirrored to be compared with itself."""

_SMALLEST_HALF_RANGE = 1e-6
_ROUNDING = 1e-5  # by which scores of the same image may differ, alone and in a batch


class Statistics(NamedTuple):
    """What raw scores are normalised and judged by, in raw scores; NaN leaves them raw.

    Attributes:
        image_threshold (float): Image scores above it are anomalous.
        pixel_threshold (float): Pixel scores above it are anomalous.
        image_min (float): Lower end of the range of image scores.
        image_max (float): Upper end.
        pixel_min (float): Lower end of the range of pixel scores.
        pixel_max (float): Upper end.
    """

    image_threshold: float = nan
    pixel_threshold: float = nan
    image_min: float = nan
    image_max: float = nan
    pixel_min: float = nan
    pixel_max: float = nan

    def as_input(self) -> np.ndarray:
        """Numbers for an exported scorer, where OpenVINO would lose NaN: float32 ``(6,)``.

        A range that is not known has its ends swapped, which leaves scores raw. A threshold that is not known lies in
        the middle of the range, as in the post-processor.
        """
        found = []
        for threshold, low, high in (
            (self.image_threshold, self.image_min, self.image_max),
            (self.pixel_threshold, self.pixel_min, self.pixel_max),
        ):
            if isnan(low):
                found.append((0.5, 1.0, 0.0))
            else:
                found.append(((low + high) / 2 if isnan(threshold) else threshold, low, high))
        image, pixel = found
        return np.array([image[0], pixel[0], *image[1:], *pixel[1:]], dtype=np.float32)


UNKNOWN = Statistics()
"""Neither threshold nor range."""


def statistics_of_normals(scores: np.ndarray, maps: np.ndarray) -> Statistics:
    """Set threshold and range from the scores of normal images.

    The threshold is the larger of the highest normal score and their mean plus three standard deviations, for pixels
    over the highest pixel of every map: a rule of ours, on the safe side of false alarms. The range lies symmetrically
    around the threshold and begins at the mean of the normals.

    Args:
        scores (np.ndarray): ``(n,)``.
        maps (np.ndarray): ``(n, ...)``, the rest pixels.

    Example:
        >>> found = statistics_of_normals(np.array([0.2, 0.4]), np.array([[0.1, 0.3], [0.1, 0.3]]))
        >>> round(found.image_threshold, 4), round(found.image_min, 4), round(found.image_max, 4)
        (0.7243, 0.3, 1.1485)
        >>> round(found.pixel_threshold, 4), round(found.pixel_min, 4)
        (0.3, 0.2)
    """
    maps = maps.reshape(len(maps), -1)
    image, pixel = upper_limit(scores), upper_limit(maps.max(axis=1))
    image_half = max(image - float(scores.mean(dtype=np.float64)), _SMALLEST_HALF_RANGE)
    pixel_half = max(pixel - float(maps.mean(dtype=np.float64)), _SMALLEST_HALF_RANGE)
    return Statistics(image, pixel, image - image_half, image + image_half, pixel - pixel_half, pixel + pixel_half)


def upper_limit(values: np.ndarray) -> float:
    """The larger of the highest value and mean plus three standard deviations; ``values`` is ``(n,)``.

    Of several a little above the mean at least, lest normal images that are all the same are judged by rounding.
    """
    margin = max(3 * float(values.std(ddof=1, dtype=np.float64)), _ROUNDING) if len(values) > 1 else 0.0
    return max(float(values.max()), float(values.mean(dtype=np.float64)) + margin)
