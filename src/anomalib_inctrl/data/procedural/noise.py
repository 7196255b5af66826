"""Fields, lattices and colours out of which surfaces are made: all of them batched arrays of ``float32``."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import fft

_TABLE = 64  # Random values per lattice cell repeat after so many cells: more than a picture shows.
_LEVELS = 1024  # Entries of a colour ramp.


def log_uniform(generator: np.random.Generator, low: float, high: float) -> float:
    """Draw a number whose logarithm is uniform, as scales are."""
    return float(np.exp(generator.uniform(np.log(low), np.log(high))))


def smoothstep(low: float | np.ndarray, high: float | np.ndarray, x: np.ndarray) -> np.ndarray:
    """Go smoothly from 0 where ``x <= low`` to 1 where ``x >= high`` (or back, where ``low > high``)."""
    t = np.clip((x - low) / (high - low), 0, 1).astype(np.float32)
    return t * t * (3 - 2 * t)


def mix(first: np.ndarray, second: np.ndarray | float, share: np.ndarray) -> np.ndarray:
    """Blend: ``first`` exactly where ``share`` is 0, ``second`` where it is 1."""
    return (first + (second - first) * share).astype(np.float32)


def spectral_noise(
    generator: np.random.Generator,
    count: int,
    side: int,
    *,
    scale: float,
    power: float = 2.0,
    bandwidth: float | None = None,
    stretch: float = 1.0,
    angle: float | np.ndarray = 0.0,
    periodic: bool = True,
) -> np.ndarray:
    """Gaussian noise with a chosen spectrum.

    Args:
        generator (np.random.Generator): Source of the noise.
        count (int): Number of fields ``n``.
        side (int): Height and width.
        scale (float): Wavelength in pixels above which a power law flattens, or the centre of a band.
        power (float): Amplitudes fall with this power of the frequency; ignored for a band.
        bandwidth (float | None): Width of a band in octaves instead of the power law.
        stretch (float): How many times longer than wide the structures are.
        angle (float | np.ndarray): Their direction in radians, from the first axis of columns towards the rows; one
            for all fields, or ``(n,)``.
        periodic (bool): Whether the field may continue at the opposite border.

    Returns:
        np.ndarray: ``(n, side, side)`` of mean 0 and variance 1 in expectation.
    """
    size = side if periodic else fft.next_fast_len(side + side // 4, real=True)
    rows = np.fft.fftfreq(size).astype(np.float32)[None, :, None]
    columns = np.fft.rfftfreq(size).astype(np.float32)[None, None, :]
    turn = np.atleast_1d(np.asarray(angle, np.float32))[:, None, None]
    cosine, sine = np.cos(turn), np.sin(turn)
    along = (columns * cosine + rows * sine) * np.float32(np.sqrt(stretch))
    across = (rows * cosine - columns * sine) * np.float32(1 / np.sqrt(stretch))
    squared = (along**2 + across**2) * np.float32(scale**2)
    if bandwidth is None:
        amplitude = (1 + squared) ** np.float32(-power / 2)
    else:
        amplitude = np.exp(-((np.log2(squared + 1e-6) / 2) ** 2) / np.float32(2 * bandwidth**2))
    amplitude[:, 0, 0] = 0
    weight = np.full(size // 2 + 1, 2, np.float32)
    weight[0] = 1
    energy = np.sum(amplitude**2 * weight, axis=(1, 2), keepdims=True)
    amplitude *= np.float32(size**2 / np.sqrt(2)) / np.sqrt(energy + 1e-12)
    white = generator.standard_normal((count, size, size // 2 + 1, 2), dtype=np.float32).view(np.complex64)[..., 0]
    return fft.irfft2(white * amplitude, s=(size, size))[:, :side, :side]


def sample_bilinear(field: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Read a batch of periodic fields between their pixels.

    Args:
        field (np.ndarray): ``(n, h, w)``.
        rows (np.ndarray): ``(n, ...)`` positions in pixels.
        columns (np.ndarray): The same shape.

    Returns:
        np.ndarray: ``(n, ...)``.
    """
    count, height, width = field.shape
    top, left = np.floor(rows), np.floor(columns)
    down, right = rows - top, columns - left
    start = (np.arange(count) * height * width).reshape(-1, *[1] * (rows.ndim - 1))
    upper = start + (top.astype(np.intp) % height) * width
    lower = start + ((top.astype(np.intp) + 1) % height) * width
    west = left.astype(np.intp) % width
    east = (west + 1) % width
    flat = field.reshape(-1)
    above = flat[upper + west] * (1 - right) + flat[upper + east] * right
    below = flat[lower + west] * (1 - right) + flat[lower + east] * right
    return (above + (below - above) * down).astype(np.float32)


def warp(field: np.ndarray, down: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Displace periodic fields ``(n, h, w)`` by ``down`` and ``right`` pixels, given at every pixel."""
    rows = np.arange(field.shape[1], dtype=np.float32)[None, :, None]
    columns = np.arange(field.shape[2], dtype=np.float32)[None, None, :]
    return sample_bilinear(field, rows + down, columns + right)


def _slots(i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """Where a table of random values per lattice cell holds those of columns ``i`` and rows ``j``."""
    start = np.arange(len(i), dtype=np.intp)[:, None, None] * _TABLE**2
    return start + (j.astype(np.intp) & (_TABLE - 1)) * _TABLE + (i.astype(np.intp) & (_TABLE - 1))


def per_cell(generator: np.random.Generator, i: np.ndarray, j: np.ndarray | None = None) -> np.ndarray:
    """Give every cell of a lattice its own random number.

    Args:
        generator (np.random.Generator): Source of the numbers.
        i (np.ndarray): ``(n, h, w)`` integer column of the cell that a pixel lies in.
        j (np.ndarray | None): Its row; all the same without it.

    Returns:
        np.ndarray: ``(n, h, w)``, uniform in ``[0, 1)``.
    """
    table = generator.random(len(i) * _TABLE**2, dtype=np.float32)
    return table[_slots(i, np.zeros_like(i) if j is None else j)]


class Cells(NamedTuple):
    """The cells around points scattered over the plane, all ``(n, h, w)``.

    Attributes:
        first (np.ndarray): Distance to the nearest point, in units of the mean spacing.
        second (np.ndarray): Distance to the second nearest.
        right (np.ndarray): The nearest point as seen from the pixel, along the first coordinate.
        down (np.ndarray): The same along the second.
        owner (np.ndarray): Which point is nearest.
    """

    first: np.ndarray
    second: np.ndarray
    right: np.ndarray
    down: np.ndarray
    owner: np.ndarray

    def per_cell(self, generator: np.random.Generator) -> np.ndarray:
        """Give every cell a random number, uniform in ``[0, 1)``."""
        return generator.random(len(self.owner) * _TABLE**2, dtype=np.float32)[self.owner]


def cells(generator: np.random.Generator, u: np.ndarray, v: np.ndarray, jitter: float = 0.9) -> Cells:
    """Find the nearest of the points of a jittered lattice, one in each unit square.

    Args:
        generator (np.random.Generator): Source of the points.
        u (np.ndarray): ``(n, h, w)`` first coordinate of the pixels.
        v (np.ndarray): Second coordinate.
        jitter (float): From 0 (a lattice) to 1 (each anywhere in its square).

    Returns:
        Cells: Distances and owners.
    """
    column, row = np.floor(u), np.floor(v)
    rest_u, rest_v = u - column, v - row
    i, j = column.astype(np.intp), row.astype(np.intp)
    place = (generator.random((2, len(u) * _TABLE**2), dtype=np.float32) - 0.5) * np.float32(jitter) + np.float32(0.5)
    columns = [(i + step) & (_TABLE - 1) for step in (-1, 0, 1)]
    start = np.arange(len(u), dtype=np.intp)[:, None, None] * _TABLE**2
    rows = [((j + step) & (_TABLE - 1)) * _TABLE + start for step in (-1, 0, 1)]
    # Squared distances compared as integers, which order positive floats alike, with the step in the last four bits.
    first = np.full(u.shape, np.iinfo(np.int32).max, np.int32)
    second = first.copy()
    for number in range(9):
        index = rows[number // 3] + columns[number % 3]
        right = place[0].take(index) - rest_u
        right += np.float32(number % 3 - 1)
        down = place[1].take(index) - rest_v
        down += np.float32(number // 3 - 1)
        right *= right
        down *= down
        right += down
        key = right.view(np.int32)
        key &= ~15
        key |= number
        np.minimum(second, np.maximum(first, key), out=second)
        np.minimum(first, key, out=first)
    step = first & 15
    across, along = (np.arange(9) % 3 - 1).take(step), (np.arange(9) // 3 - 1).take(step)
    owner = start + ((j + along) & (_TABLE - 1)) * _TABLE + ((i + across) & (_TABLE - 1))
    return Cells(
        np.sqrt(first.view(np.float32)),
        np.sqrt(second.view(np.float32)),
        (place[0].take(owner) - rest_u + across).astype(np.float32),
        (place[1].take(owner) - rest_v + along).astype(np.float32),
        owner,
    )


class Lattice(NamedTuple):
    """A regular arrangement of places, all ``(n, h, w)``.

    Attributes:
        i (np.ndarray): Integer column of the nearest place.
        j (np.ndarray): Integer row.
        right (np.ndarray): Pixel relative to that place, along the first coordinate, in units of the spacing.
        down (np.ndarray): The same along the second.
    """

    i: np.ndarray
    j: np.ndarray
    right: np.ndarray
    down: np.ndarray


def lattice(u: np.ndarray, v: np.ndarray, kind: str) -> Lattice:
    """Find the nearest place of a lattice of unit spacing: ``"square"``, ``"brick"`` (rows shifted) or ``"hex"``."""
    if kind == "hex":
        height = np.float32(np.sqrt(3))
        even_u, even_v = np.round(u), np.round(v / height)
        odd_u, odd_v = np.floor(u), np.floor(v / height)
        near = [u - even_u, v - even_v * height, u - odd_u - np.float32(0.5), v - (odd_v + np.float32(0.5)) * height]
        odd = near[0] ** 2 + near[1] ** 2 > near[2] ** 2 + near[3] ** 2
        column, row = np.where(odd, odd_u, even_u), 2 * np.where(odd, odd_v, even_v) + odd
        right, down = np.where(odd, near[2], near[0]), np.where(odd, near[3], near[1])
    else:
        row = np.round(v)
        shifted = u + np.float32(0.5) * (row % 2) if kind == "brick" else u
        column = np.round(shifted)
        right, down = shifted - column, v - row
    return Lattice(column.astype(np.int32), row.astype(np.int32), right, down)


def hexagon_edge(place: Lattice) -> np.ndarray:
    """Distance to the border of the hexagon around the nearest place of a hexagonal lattice, 0 to 0.5."""
    right, down = np.abs(place.right), np.abs(place.down)
    return (np.float32(0.5) - np.maximum(right, right * np.float32(0.5) + down * np.float32(np.sqrt(0.75)))).astype(
        np.float32
    )


def grating(phase: np.ndarray, kind: str, duty: float = 0.5) -> np.ndarray:
    """Turn a phase (1 per period) into ridges in ``[0, 1]``.

    Args:
        phase (np.ndarray): Any shape.
        kind (str): ``"sine"``, ``"triangle"``, ``"round"`` (half cylinders) or ``"square"`` (with soft flanks).
        duty (float): Part of the period that a square ridge takes.

    Returns:
        np.ndarray: The same shape.
    """
    if kind == "sine":
        return (0.5 + 0.5 * np.cos(np.float32(2 * np.pi) * phase)).astype(np.float32)
    distance = np.abs(phase - np.round(phase)) * 2
    if kind == "triangle":
        return (1 - distance).astype(np.float32)
    if kind == "round":
        return np.sqrt(np.maximum(1 - distance**2, 0)).astype(np.float32)
    return smoothstep(duty + 0.12, duty - 0.12, distance)


def shade(height: np.ndarray, light: np.ndarray, gloss: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Light a height field.

    Args:
        height (np.ndarray): ``(n, h, w)`` in pixels.
        light (np.ndarray): ``(3,)`` unit vector to the light: to the right, down, towards the viewer.
        gloss (float): Strength of the highlights; none are made at 0.

    Returns:
        tuple[np.ndarray, np.ndarray]: Brightness relative to a flat surface, and what highlights add.
    """
    slope_y, slope_x = np.gradient(height, axis=(1, 2))
    inverse = 1 / np.sqrt(1 + slope_x**2 + slope_y**2)
    facing = (light[2] - slope_x * light[0] - slope_y * light[1]) * inverse
    diffuse = np.float32(0.25) + np.float32(0.75) * np.maximum(facing, 0) / light[2]
    if not gloss:
        return diffuse.astype(np.float32), np.zeros(1, np.float32)
    half = light + np.array([0, 0, 1], np.float32)
    half = half / np.linalg.norm(half)
    mirror = np.maximum((half[2] - slope_x * half[0] - slope_y * half[1]) * inverse, 0)
    return diffuse.astype(np.float32), np.float32(gloss) * mirror**24


def strokes(
    origin: np.ndarray, angle: np.ndarray, bend: np.ndarray, length: float, tone: np.ndarray, ground: np.ndarray
) -> np.ndarray:
    """Draw short curved lines over one another, the last on top.

    Args:
        origin (np.ndarray): ``(2, n, k)`` row and column where each line starts; lines wrap around the borders.
        angle (np.ndarray): ``(n, k)`` direction at the start, in radians.
        bend (np.ndarray): ``(n, k)`` change of direction along the line.
        length (float): Length in pixels.
        tone (np.ndarray): ``(n, k)`` values; a line that is not a number is left out. Lines are darker at their start.
        ground (np.ndarray): ``(n, side, side)`` what lies below.

    Returns:
        np.ndarray: ``(n, side, side)``.
    """
    count, side, _ = ground.shape
    steps = max(int(length), 2)
    t = np.linspace(0, 1, steps, dtype=np.float32)
    sine, cosine = (np.asarray(wave(angle), np.float32)[..., None] * np.float32(length) for wave in (np.sin, np.cos))
    curve = np.asarray(bend, np.float32)[..., None] * (t**2 / 2)
    rows = (np.asarray(origin[0], np.float32)[..., None] + sine * t + cosine * curve).astype(np.int32) % side
    columns = (np.asarray(origin[1], np.float32)[..., None] + cosine * t - sine * curve).astype(np.int32) % side
    index = (np.arange(count, dtype=np.int32)[:, None, None] * side + rows) * side + columns
    drawn = np.isfinite(tone)
    values = np.asarray(tone, np.float32)[..., None] * (np.float32(0.6) + np.float32(0.4) * t)
    out = ground.astype(np.float32).reshape(-1)
    out[index[drawn].reshape(-1)] = values[drawn].reshape(-1)
    return out.reshape(ground.shape)


def oklch(lightness: np.ndarray, chroma: np.ndarray, hue: np.ndarray) -> np.ndarray:
    """Turn Oklab colours in polar form (lightness in ``[0, 1]``, chroma up to about 0.3) into sRGB in ``[0, 1]``."""
    a, b = chroma * np.cos(hue), chroma * np.sin(hue)
    cones = (
        np.stack(
            [
                lightness + 0.3963377774 * a + 0.2158037573 * b,
                lightness - 0.1055613458 * a - 0.0638541728 * b,
                lightness - 0.0894841775 * a - 1.2914855480 * b,
            ],
            axis=-1,
        )
        ** 3
    )
    to_rgb = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = np.clip(cones @ to_rgb.T, 0, 1)
    return np.where(linear < 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055).astype(np.float32)


def palette(generator: np.random.Generator, count: int, contrast: tuple[float, float] = (0.08, 0.6)) -> np.ndarray:
    """Draw colours that occur together on one material, from dark to bright.

    Often grey or nearly so, sometimes earthy or saturated; dark, middling or bright as a whole.

    Args:
        generator (np.random.Generator): Source of the colours.
        count (int): How many.
        contrast (tuple[float, float]): Range of the difference in lightness between the first and the last.

    Returns:
        np.ndarray: ``(count, 3)`` sRGB.
    """
    mood = generator.choice(["grey", "tinted", "earthy", "colourful"], p=[0.26, 0.26, 0.25, 0.23])
    spread = generator.uniform(*contrast)
    middle = np.clip(generator.uniform(0.2, 0.92), 0.12 + spread / 2, 0.98 - spread / 2)
    lightness = np.clip(middle + spread * np.linspace(-0.5, 0.5, count), 0.05, 0.99)
    hue = generator.uniform(0, 2 * np.pi) + generator.normal(0, 0.25) * np.linspace(-1, 1, count)
    chroma = {"grey": 0.0, "tinted": generator.uniform(0.01, 0.04), "colourful": generator.uniform(0.05, 0.15)}
    if mood == "earthy":
        hue = generator.uniform(0.5, 1.7) + generator.normal(0, 0.15) * np.linspace(-1, 1, count)
        return oklch(lightness, np.full(count, generator.uniform(0.03, 0.11)), hue)
    if mood == "colourful" and generator.random() < 0.3:
        hue = generator.uniform(0, 2 * np.pi, count)
    return oklch(lightness, chroma[mood] * generator.uniform(0.7, 1.3, count), hue)


def ramp(colours: np.ndarray) -> np.ndarray:
    """Interpolate colours ``(k, 3)`` to a table that :func:`paint` reads."""
    at = np.linspace(0, 1, _LEVELS)
    stops = np.linspace(0, 1, len(colours))
    return np.stack([np.interp(at, stops, channel) for channel in colours.T], axis=-1).astype(np.float32)


def paint(table: np.ndarray, tone: np.ndarray) -> np.ndarray:
    """Colour tones in ``[0, 1]`` (others are clipped) ``(n, h, w)`` by a ramp, to ``(n, h, w, 3)``."""
    return table.take((np.clip(tone, 0, 1) * np.float32(_LEVELS - 1)).astype(np.intp), axis=0)
