"""Damage drawn over finished pictures: what happens to a thing or a surface after it was made well.

Structural faults (a missing part, a broken repetition) belong to the families, which know how their pictures are built.
The kinds here know only pixels, so that they fit all families. Sizes are in pixels of a picture with a side of 128 and
scale with the side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from scipy import ndimage

Damage: TypeAlias = Callable[[np.random.Generator, np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""``(generator, image (n, s, s, 3), inside (n, s, s), donor (n, s, s, 3)) -> image (n, s, s, 3)``."""

_LUMA = np.array([0.3, 0.55, 0.15], np.float32)
_ATTEMPTS = 24  # at local damage, whose place may be unlucky
_GLOBAL_ATTEMPTS = 6
_SMALLEST, _LARGEST = 0.001, 0.3  # share of the picture that local damage takes
_ANGLES = 256  # entries of a table over the full circle


# --- Random numbers, fields and places ------------------------------------------------------------------------------


def _uniform(generator: np.random.Generator, low: float, high: float, *shape: int) -> np.ndarray:
    return generator.uniform(low, high, shape).astype(np.float32)


def _log_uniform(generator: np.random.Generator, low: float, high: float, *shape: int) -> np.ndarray:
    return np.exp(_uniform(generator, np.log(low), np.log(high), *shape))


def _chance(generator: np.random.Generator, probability: float, *shape: int) -> np.ndarray:
    return (generator.random(shape) < probability).astype(np.float32)


def _sign(generator: np.random.Generator, *shape: int) -> np.ndarray:
    return 2 * _chance(generator, 0.5, *shape) - 1


def _maps(values: np.ndarray) -> np.ndarray:
    """One number per picture, to combine with ``(n, s, s)``."""
    return values[:, None, None]


def _colours(values: np.ndarray) -> np.ndarray:
    """One number or colour per picture, to combine with ``(n, s, s, 3)``."""
    return values.reshape(len(values), 1, 1, -1)


def _luma(image: np.ndarray) -> np.ndarray:
    return (image.reshape(-1, 3) @ _LUMA).reshape(image.shape[:-1])


@lru_cache(maxsize=64)
def _spline(side: int, knots: int) -> np.ndarray:
    """Cubic B-spline weights ``(side, knots)`` that spread knots over a line of pixels."""
    distance = np.abs(np.linspace(1, knots - 2, side)[:, None] - np.arange(knots))
    near = (4 - 6 * distance**2 + 3 * distance**3) / 6
    far = np.clip(2 - distance, 0, None) ** 3 / 6
    return np.where(distance < 1, near, far).astype(np.float32)


def _noise(generator: np.random.Generator, count: int, side: int, knots: Iterable[int]) -> np.ndarray:
    """Smooth noise ``(n, s, s)`` of mean 0 and deviation 1, a sum over grids with that many knots."""
    total = np.zeros((count, side, side), np.float32)
    for octave, number in enumerate(knots):
        weights = _spline(side, number)
        grid = generator.standard_normal((count, number, number), dtype=np.float32)
        total += weights @ grid @ weights.T / (octave + 1)
    total -= total.mean((1, 2), keepdims=True)
    return total / (total.std((1, 2), keepdims=True) + 1e-6)


def _places(generator: np.random.Generator, weight: np.ndarray) -> np.ndarray:
    """Draw a pixel ``(n, 2)`` of every picture in proportion to ``weight`` ``(n, s, s)``, anywhere if that is 0."""
    count, side, _ = weight.shape
    sums = np.cumsum(weight.reshape(count, -1) + 1e-9, axis=1, dtype=np.float64)
    drawn = generator.random(count) * sums[:, -1]
    flat = np.array([np.searchsorted(line, value) for line, value in zip(sums, drawn, strict=True)])
    return np.stack([flat // side, flat % side], axis=1).astype(np.float32)


def _local(side: int, centre: np.ndarray, angle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates ``(n, s, s)`` along and across a direction, from a centre ``(n, 2)``."""
    line = np.arange(side, dtype=np.float32)
    y, x = line[None, :, None] - _maps(centre[:, 0]), line[None, None, :] - _maps(centre[:, 1])
    cos, sin = _maps(np.cos(angle)), _maps(np.sin(angle))
    return cos * x + sin * y, cos * y - sin * x


def _outline(generator: np.random.Generator, count: int, angular: float, wobbly: float) -> np.ndarray:
    """Distance of an outline from its centre by angle ``(n, 256)``, about 1: a wobbling circle or a polygon.

    ``angular`` is the probability of a polygon, ``wobbly`` the largest deviation of the distance.
    """
    theta = np.linspace(0, 2 * np.pi, _ANGLES, endpoint=False, dtype=np.float32)
    order = np.arange(2, 12, dtype=np.float32)
    size = generator.standard_normal((count, 10)) * _uniform(generator, 0.03, wobbly, count, 1) / order**0.8
    phase = _uniform(generator, 0, 2 * np.pi, count, 10)
    wobble = (size[..., None] * np.cos(order[:, None] * theta + phase[..., None])).sum(1)
    half = np.pi / generator.integers(3, 8, (count, 1))
    polygon = np.cos(half) / np.cos(theta % (2 * half) - half) * (1 + 0.25 * wobble) * 1.2
    return np.where(generator.random((count, 1)) < angular, polygon, np.exp(wobble)).astype(np.float32)


def _region(
    generator: np.random.Generator,
    centre: np.ndarray,
    radius: np.ndarray,
    side: int,
    angular: float = 0.0,
    stretch: float = 2.5,
    wobbly: float = 0.35,
) -> np.ndarray:
    """Depth ``(n, s, s)`` below the outline of an irregular region: in pixels, negative outside.

    ``stretch`` is the largest ratio of the axes; ``angular`` and ``wobbly`` as in :func:`_outline`.
    """
    count = len(centre)
    aspect = np.sqrt(_log_uniform(generator, 1, stretch, count))
    along, across = _local(side, centre, _uniform(generator, 0, np.pi, count))
    along, across = along / _maps(aspect), across * _maps(aspect)
    index = np.arctan2(across, along) * np.float32(_ANGLES / (2 * np.pi))
    index = index.astype(np.int32) % _ANGLES + _ANGLES * np.arange(count)[:, None, None]
    edge = _outline(generator, count, angular, wobbly).ravel()[index]
    return edge * _maps(radius) - np.hypot(along, across)


def _cover(depth: np.ndarray, softness: np.ndarray | float = 1.0) -> np.ndarray:
    """Opacity ``(n, s, s)`` of a region whose edge is ``softness`` pixels wide."""
    width = _maps(softness) if isinstance(softness, np.ndarray) else softness
    ramp = np.clip(depth / width + 0.5, 0, 1)
    return ramp * ramp * (3 - 2 * ramp)


def _patch(
    generator: np.random.Generator,
    inside: np.ndarray,
    smallest: float = 2.5,
    largest: float = 26.0,
    angular: float = 0.0,
    soft: float = 0.5,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Draw a region on the object.

    Args:
        generator (np.random.Generator): Source of randomness.
        inside (np.ndarray): Where the object is ``(n, s, s)``.
        smallest (float): Smallest radius.
        largest (float): Largest radius.
        angular (float): Probability of a polygon.
        soft (float): Probability of a wide edge.

    Returns:
        tuple: Centre ``(n, 2)``, radius ``(n,)``, depth ``(n, s, s)`` and opacity ``(n, s, s)``.
    """
    count, side, _ = inside.shape
    centre = _places(generator, inside)
    radius = _log_uniform(generator, smallest, largest, count) * side / 128
    depth = _region(generator, centre, radius, side, angular)
    depth += _noise(generator, count, side, (side // 8, side // 3)) * _maps(
        _uniform(generator, 0, 0.15, count) * radius
    )
    wide = _chance(generator, soft, count) * _uniform(generator, 0.2, 1, count)
    return centre, radius, depth, _cover(depth, 1 + wide * radius)


def _strokes(path: np.ndarray, width: np.ndarray, side: int) -> np.ndarray:
    """Opacity ``(n, s, s)`` of lines along points ``(n, k, t, 2)`` with widths ``(n, k, t)`` in pixels."""
    count = len(path)
    tangent = np.gradient(path, axis=2)
    step = np.hypot(tangent[..., 0], tangent[..., 1]) + 1e-6
    normal = np.stack([-tangent[..., 1], tangent[..., 0]], axis=-1) / step[..., None]
    across = np.linspace(-0.4, 0.4, 5, dtype=np.float32)[:, None]
    points = path[..., None, :] + normal[..., None, :] * width[..., None, None] * across
    weight = np.broadcast_to((step * width / 5)[..., None], points.shape[:-1])
    base = np.floor(points)
    part = points - base
    first = base.astype(np.int64) + 1
    wide = side + 2  # a frame of one pixel takes what falls outside of the picture
    canvas = np.zeros(count * wide * wide)
    picture = np.arange(count).reshape(-1, 1, 1, 1) * wide * wide
    for down in (0, 1):
        for right in (0, 1):
            row = np.clip(first[..., 0] + down, 0, wide - 1)
            column = np.clip(first[..., 1] + right, 0, wide - 1)
            share = np.abs(1 - down - part[..., 0]) * np.abs(1 - right - part[..., 1]) * weight
            canvas += np.bincount((picture + row * wide + column).ravel(), share.ravel(), canvas.size)
    return np.clip(canvas.reshape(count, wide, wide)[:, 1:-1, 1:-1], 0, 1).astype(np.float32)


def _walk(origin: np.ndarray, heading: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Points ``(n, k, t, 2)`` from origins ``(n, k, 2)`` along headings ``(n, k, t)`` for lengths ``(n, k)``."""
    step = np.stack([np.sin(heading), np.cos(heading)], axis=-1) * (length / heading.shape[-1])[..., None, None]
    return origin[:, :, None] + np.cumsum(step, axis=2)


def _bends(generator: np.random.Generator, count: int, lines: int, points: int, knots: int) -> np.ndarray:
    """Smooth random functions ``(n, k, t)`` of deviation about 0.6."""
    return generator.standard_normal((count, lines, knots), dtype=np.float32) @ _spline(points, knots).T


# --- Pictures -------------------------------------------------------------------------------------------------------


def _blend(image: np.ndarray, other: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    return np.clip(image + np.repeat(opacity, 3).reshape(image.shape) * (other - image), 0, 1)


def _mean_colour(image: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Mean colour ``(n, 3)`` of pictures under weights ``(n, s, s)``."""
    count = len(image)
    flat = weight.reshape(count, 1, -1) + 1e-6
    return (flat @ image.reshape(count, -1, 3))[:, 0] / flat.sum(2)


def _tone(generator: np.random.Generator, under: np.ndarray, low: float = 0.14, high: float = 0.8) -> np.ndarray:
    """Draw colours ``(n, 3)`` that stand out from colours ``under`` ``(n, 3)`` by a contrast of ``low`` to ``high``."""
    count = len(under)
    side = np.where(_luma(under) < _uniform(generator, 0.25, 0.75, count), 1, -1)
    chroma = generator.standard_normal((count, 3)) * _log_uniform(generator, 0.03, 0.5, count)[:, None]
    direction = side[:, None] * (1 + np.clip(chroma, -1.2, 1.2))
    colour = under + direction * _log_uniform(generator, low, high, count)[:, None]
    return np.clip(colour, 0, 1).astype(np.float32)


def _sample(image: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Pictures at coordinates ``(n, s, s)``, linearly between pixels and mirrored at the border."""
    side, channels = image.shape[2:]
    last = side - 1
    sampled = np.empty_like(image)
    for target, picture, *place in zip(sampled, image, y, x, strict=True):  # one at a time stays within the cache
        down, right = (np.clip(last - np.abs(last - np.abs(c)), 0, last - 1e-3) for c in place)
        top, left = down.astype(np.int32), right.astype(np.int32)
        down, right = down - top, right - left
        index = top * side + left
        planes = np.ascontiguousarray(picture.reshape(-1, channels).T)
        first, second, third, fourth = (np.take(planes, index + step, axis=1) for step in (0, 1, side, side + 1))
        first += right * (second - first)
        third += right * (fourth - third)
        target[:] = np.moveaxis(first + down * (third - first), 0, -1)
    return sampled


def _turned(
    image: np.ndarray, centre: np.ndarray, target: np.ndarray, angle: np.ndarray, scale: np.ndarray
) -> np.ndarray:
    """Pictures turned by ``angle`` and enlarged by ``scale``, with what was at ``centre`` ``(n, 2)`` at ``target``."""
    along, across = _local(image.shape[1], target, angle)
    return _sample(image, across / _maps(scale) + _maps(centre[:, 0]), along / _maps(scale) + _maps(centre[:, 1]))


def _blurred(image: np.ndarray, down: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Gaussian blur of pictures ``(n, s, s, c)`` by deviations ``(n,)`` in pixels, down and to the right."""
    count, side, _, channels = image.shape
    gap = np.arange(side, dtype=np.float32)
    squares = (gap[:, None] - gap) ** 2
    kernels = []
    for deviation in (down, right):
        kernel = np.exp(-squares / _maps(2 * np.maximum(deviation, 0.1) ** 2))
        kernels.append(kernel / kernel.sum(2, keepdims=True))
    rows = (kernels[0] @ image.reshape(count, side, -1)).reshape(count, side, side, channels)
    return (kernels[1] @ rows.swapaxes(1, 2).reshape(count, side, -1)).reshape(rows.shape).swapaxes(1, 2)


def _filled(image: np.ndarray, weight: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """Pictures that continue smoothly, over about ``reach`` pixels, what they are where ``weight`` ``(n, s, s)`` is."""
    weight = weight[..., None]
    spread = _blurred(np.concatenate([image * weight, weight], axis=-1), reach, reach)
    overall = _colours(_mean_colour(image, weight[..., 0]))
    return (spread[..., :3] + 1e-4 * overall) / (spread[..., 3:] + 1e-4)


def _shifted(field: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Fields ``(n, s, s)`` moved by whole pixels ``(n, 2)``, round the border."""
    moves = np.rint(offset).astype(int)
    return np.stack([np.roll(one, tuple(move), (0, 1)) for one, move in zip(field, moves, strict=True)])


def _slope(field: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Slope ``(n, s, s)`` of fields towards a light at ``angle``."""
    down, right = np.gradient(field, axis=(1, 2))
    return _maps(np.sin(angle)) * down + _maps(np.cos(angle)) * right


# --- Local damage ---------------------------------------------------------------------------------------------------


def _marked(
    generator: np.random.Generator, image: np.ndarray, opacity: np.ndarray, shoulder: float = 0.5
) -> np.ndarray:
    """Pictures with engraved or painted lines, some with a lit shoulder beside the line."""
    count = len(image)
    under = _mean_colour(image, opacity)
    lit = np.clip(_shifted(opacity, generator.integers(-1, 2, (count, 2))) - opacity, 0, 1)
    lit *= _maps(_chance(generator, shoulder, count) * _uniform(generator, 0.2, 0.7, count))
    colour = _tone(generator, under)
    marked = _blend(image, _colours(np.round(1 - _luma(colour))), lit)
    return _blend(marked, _colours(colour), opacity)


def _scratch(generator: np.random.Generator, image: np.ndarray, inside: np.ndarray, _: np.ndarray) -> np.ndarray:
    count, side = inside.shape[:2]
    points = 96
    length = _log_uniform(generator, 10, 110, count, 1) * side / 128
    heading = _uniform(generator, 0, 2 * np.pi, count, 1, 1)
    curve = _chance(generator, 0.6, count, 1, 1) * generator.standard_normal((count, 1, 1)) * 1.2
    heading = (
        heading
        + curve * np.linspace(-0.5, 0.5, points)
        + _bends(generator, count, 1, points, 8) * _uniform(generator, 0, 0.25, count, 1, 1)
    )
    path = _walk(np.zeros((count, 1, 2)), heading, length)
    path += (_places(generator, inside) - path[:, 0, points // 2])[:, None, None]
    taper = np.sin(np.linspace(0.15, np.pi - 0.15, points)) ** _uniform(generator, 0, 1, count, 1, 1)
    width = _log_uniform(generator, 0.9, 4, count, 1, 1) * side / 128 * taper
    width = np.clip(width * (1 + 0.3 * _bends(generator, count, 1, points, 24)), 0.6, None)
    pressure = np.clip(1 + _bends(generator, count, 1, points, 12) * _uniform(generator, 0, 0.8, count, 1, 1), 0, 1)
    return _marked(generator, image, _strokes(path, width * pressure, side) * inside)


def _scuff(generator: np.random.Generator, image: np.ndarray, inside: np.ndarray, _: np.ndarray) -> np.ndarray:
    count, side = inside.shape[:2]
    lines, points = 10, 64
    kept = np.arange(lines) < generator.integers(3, lines + 1, (count, 1))
    length = _log_uniform(generator, 10, 70, count, 1) * _uniform(generator, 0.4, 1, count, lines) * side / 128
    heading = _uniform(generator, 0, 2 * np.pi, count, 1, 1) + generator.standard_normal(
        (count, lines, 1)
    ) * _log_uniform(generator, 0.02, 0.6, count, 1, 1)
    heading = heading + _uniform(generator, -1, 1, count, 1, 1) * np.linspace(-0.5, 0.5, points)
    spread = generator.standard_normal((count, lines, 2)) * _log_uniform(generator, 2, 12, count, 1, 1) * side / 128
    path = _walk(_places(generator, inside)[:, None] + spread, heading, length)
    path -= (path[:, :1, points // 2] - path[:, :1, 0])[:, :, None]
    width = _log_uniform(generator, 0.6, 2.2, count, lines, 1) * kept[..., None]
    width = np.broadcast_to(width, (count, lines, points)) * np.sin(np.linspace(0.2, np.pi - 0.2, points))
    return _marked(generator, image, _strokes(path, width, side) * inside, shoulder=0.3)


def _crack(generator: np.random.Generator, image: np.ndarray, inside: np.ndarray, _: np.ndarray) -> np.ndarray:
    count, side = inside.shape[:2]
    branches, points = 5, 96
    start = _uniform(generator, 0, 2 * np.pi, count, 1)
    jag = _uniform(generator, 0.3, 1.0, count, 1, 1)

    def headings(first: np.ndarray, lines: int) -> np.ndarray:
        corners = generator.standard_normal((count, lines, points // 6))
        return first[..., None] + jag * np.repeat(corners, 6, axis=2) + 0.4 * _bends(generator, count, lines, points, 6)

    length = _log_uniform(generator, 16, 110, count, 1) * side / 128
    trunk = _walk(np.zeros((count, 1, 2)), headings(start, 1), length)
    trunk += (_places(generator, inside) - trunk[:, 0, points // 2])[:, None, None]
    joint = generator.integers(10, points - 10, (count, branches))
    origin = np.take_along_axis(trunk[:, 0], joint[..., None], axis=1)
    turn = start + _sign(generator, count, branches) * _uniform(generator, 0.3, 1.3, count, branches)
    kept = np.arange(branches) < generator.integers(0, branches + 1, (count, 1))
    twigs = _walk(origin, headings(turn, branches), length * _uniform(generator, 0.15, 0.5, count, branches))
    wide = _log_uniform(generator, 0.9, 3.2, count, 1, 1) * side / 128
    body = wide * np.clip(1 + 0.4 * _bends(generator, count, 1, points, 24), 0.4, 2)
    body *= np.sin(np.linspace(0.2, np.pi - 0.2, points)) ** 0.5
    thin = np.clip(0.7 * wide, 0.7, None) * np.linspace(1, 0.3, points) * kept[..., None]
    opacity = _strokes(np.concatenate([trunk, twigs], axis=1), np.concatenate([body, thin], axis=1), side) * inside
    dark = _mean_colour(image, opacity) * _uniform(generator, 0, 0.6, count, 1)
    colour = np.where(_chance(generator, 0.65, count, 1) > 0, dark, _tone(generator, _mean_colour(image, opacity)))
    relief = opacity + np.clip(_slope(opacity, _uniform(generator, 0, 2 * np.pi, count)), 0, 1)
    relief *= _maps(_chance(generator, 0.4, count) * _uniform(generator, 0.1, 0.5, count))
    return _blend(np.clip(image * (1 + relief[..., None]), 0, 1), _colours(colour), opacity)


def _hole(generator: np.random.Generator, image: np.ndarray, inside: np.ndarray, donor: np.ndarray) -> np.ndarray:
    count, side = inside.shape[:2]
    _, radius, depth, opacity = _patch(generator, inside, 2.5, 18, angular=0.25, soft=0.1)
    deep = np.minimum(_uniform(generator, 0, 0.25, count, 1), 0.4 * _mean_colour(image, opacity))
    other = np.where(_chance(generator, 0.5, count, 1) > 0, _tone(generator, _mean_colour(image, opacity), 0.25), 0)
    other = np.where(other.sum(1, keepdims=True) > 0, other, _mean_colour(donor, opacity))
    bottom = _colours(np.where(_chance(generator, 0.6, count, 1) > 0, deep, other))
    light = _uniform(generator, 0, 2 * np.pi, count)
    wall = np.exp(-((depth / _maps(1 + 0.25 * radius)) ** 2))
    lit = np.clip(_slope(depth, light), -1, 1) * wall * _maps(_uniform(generator, 0, 0.5, count))
    rough = _noise(generator, count, side, (side // 6, side // 3)) * _maps(_uniform(generator, 0, 0.06, count))
    bottom = bottom + (rough - lit)[..., None]
    ring = _cover(depth + _maps(_uniform(generator, 0.1, 0.5, count) * radius + 1), 2.0)
    ring *= _maps(_chance(generator, 0.6, count) * _uniform(generator, 0.3, 1, count)) * inside
    rim = image + _colours(_uniform(generator, -0.4, 0.4, count)) + 0.5 * lit[..., None]
    return _blend(_blend(image, rim, ring), bottom, opacity * inside)


def _dent(generator: np.random.Generator, image: np.ndarray, inside: np.ndarray, _: np.ndarray) -> np.ndarray:
    count, side = inside.shape[:2]
    centre = _places(generator, inside)
    radius = _log_uniform(generator, 4, 24, count) * side / 128
    depth = _region(generator, centre, radius, side, stretch=4, wobbly=0.12)
    height = _cover(depth - _maps(0.4 * radius), _uniform(generator, 0.8, 1.6, count) * radius) * _maps(radius)
    light = _uniform(generator, 0, 2 * np.pi, count)
    shade = _slope(height, light) * _maps(_sign(generator, count) * _log_uniform(generator, 0.15, 0.6, count))
    down, right = np.gradient(height, axis=(1, 2))
    push = _maps(_uniform(generator, -0.35, 0.35, count) * radius)
    line = np.arange(side, dtype=np.float32)
    moved = _sample(image, line[:, None] + push * down, line + push * right)
    gloss = np.clip(shade - 0.15, 0, 1) * _maps(_chance(generator, 0.5, count))
    return _blend(image, moved * (1 + 1.2 * shade[..., None]) + (0.15 * shade + gloss)[..., None], inside)


def _stain(generator: np.random.Generator, image: np.ndarray, inside: np.ndarray, _: np.ndarray) -> np.ndarray:
    count, side = inside.shape[:2]
    _, radius, depth, _ = _patch(generator, inside, 4, 24)
    depth += _noise(generator, count, side, (6, 12, 24)) * _maps(_uniform(generator, 0.05, 0.5, count) * radius)
    opacity = _cover(depth, 1 + _uniform(generator, 0.1, 1.2, count) * radius)
    edge = np.exp(-((depth / _maps(1 + 0.12 * radius)) ** 2)) * _maps(_chance(generator, 0.4, count))
    cloud = 1 + _noise(generator, count, side, (8, 16)) * _maps(_uniform(generator, 0, 0.35, count))
    amount = np.clip(opacity * cloud + 0.6 * edge, 0, 1.4) * inside
    tint = _uniform(generator, 0.15, 1, count, 3) * _uniform(generator, 0.3, 1, count, 1)
    soaked = image * (1 + amount[..., None] * _colours((tint - 1) * _log_uniform(generator, 0.25, 1, count)[:, None]))
    cover = _colours(_tone(generator, _mean_colour(image, opacity)))
    strength = _maps(_uniform(generator, 0.3, 0.9, count))
    painted = _blend(image, cover, np.clip(amount * strength, 0, 1))
    return np.where(_colours(_chance(generator, 0.6, count)) > 0, np.clip(soaked, 0, 1), painted)


def _specks(generator: np.random.Generator, image: np.ndarray, inside: np.ndarray, _: np.ndarray) -> np.ndarray:
    count, side = inside.shape[:2]
    centre = _places(generator, inside)
    radius = _log_uniform(generator, 8, 45, count) * side / 128
    cluster = _cover(_region(generator, centre, radius, side), radius)
    fine = _noise(generator, count, side, (side // 3, side // 2))
    coarse = _noise(generator, count, side, (side // 6, side // 3))
    grain = np.where(_maps(_chance(generator, 0.5, count)) > 0, fine, coarse)
    level = _maps(_uniform(generator, 0.9, 1.9, count)) + 2 * (1 - cluster)
    opacity = np.clip((grain - level) * _maps(_uniform(generator, 2, 8, count)), 0, 1) * inside
    colour = _colours(_tone(generator, _mean_colour(image, opacity), 0.25, 0.9))
    hue = _noise(generator, count, side, (side // 8,))[..., None] * _colours(_uniform(generator, 0, 0.12, count))
    return _blend(image, colour + hue, opacity)


def _spot(generator: np.random.Generator, image: np.ndarray, inside: np.ndarray, _: np.ndarray) -> np.ndarray:
    count = len(image)
    _, radius, depth, opacity = _patch(generator, inside, 2.3, 9, soft=0.4)
    under = _mean_colour(image, opacity)
    halo = _cover(depth + _maps(0.6 * radius), radius + 1) * _maps(_chance(generator, 0.3, count)) * 0.5
    dome = np.clip(_slope(depth, _uniform(generator, 0, 2 * np.pi, count)), -1, 1)
    dome = dome * _maps(_chance(generator, 0.4, count) * _uniform(generator, 0.1, 0.4, count))
    ringed = _blend(image, _colours(_tone(generator, under)), halo * inside)
    solid = _uniform(generator, 0.6, 1, count)
    return _blend(ringed, _colours(_tone(generator, under, 0.2)) + dome[..., None], opacity * inside * _maps(solid))


def _foreign_body(
    generator: np.random.Generator, image: np.ndarray, inside: np.ndarray, donor: np.ndarray
) -> np.ndarray:
    count, side = inside.shape[:2]
    centre, radius, depth, opacity = _patch(generator, inside, 3, 20, angular=0.5, soft=0.05)
    source = _uniform(generator, 0.2, 0.8, count, 2) * side
    scale = _log_uniform(generator, 0.5, 1.5, count)
    texture = _turned(donor, source, centre, _uniform(generator, 0, 2 * np.pi, count), scale)
    plain = _colours(_tone(generator, _mean_colour(image, opacity), 0.2))
    stuff = np.where(_colours(_chance(generator, 0.55, count)) > 0, texture, plain)
    bevel = np.exp(-((depth / _maps(1 + 0.2 * radius)) ** 2))
    bevel *= np.clip(_slope(depth, _uniform(generator, 0, 2 * np.pi, count)), -1, 1)
    stuff = stuff + (bevel * _maps(_chance(generator, 0.5, count) * _uniform(generator, 0.1, 0.4, count)))[..., None]
    thick = 1 + 0.15 * radius[:, None]
    shadow = _shifted(_cover(depth, 1 + 0.3 * radius), generator.standard_normal((count, 2)) * thick)
    shadow *= _maps(_chance(generator, 0.5, count) * _uniform(generator, 0.2, 0.6, count))
    return _blend(image * (1 - shadow[..., None]), stuff, opacity)


def _fibre(generator: np.random.Generator, image: np.ndarray, inside: np.ndarray, _: np.ndarray) -> np.ndarray:
    count, side = inside.shape[:2]
    lines, points = 3, 160
    kept = np.arange(lines) < generator.choice([1, 1, 1, 2, 3], (count, 1))
    length = _log_uniform(generator, 16, 140, count, lines) * side / 128
    curl = _bends(generator, count, lines, points, 7) * _uniform(generator, 0.5, 3.5, count, lines, 1)
    loop = generator.standard_normal((count, lines, 1)) * 2 * np.linspace(-0.5, 0.5, points)
    path = _walk(np.zeros((count, lines, 2)), _uniform(generator, 0, 2 * np.pi, count, lines, 1) + curl + loop, length)
    path += _places(generator, inside)[:, None, None] - path[:, :, points // 2, None]
    path += generator.standard_normal((count, lines, 1, 2)) * 3 * np.arange(lines)[:, None, None]
    width = _log_uniform(generator, 0.9, 3, count, lines, 1) * kept[..., None] * side / 128
    opacity = _strokes(path, np.broadcast_to(width, (count, lines, points)), side)
    shadow = _shifted(opacity, generator.integers(-2, 3, (count, 2)))
    shadow *= _maps(_chance(generator, 0.4, count) * _uniform(generator, 0.2, 0.5, count))
    colour = _tone(generator, _mean_colour(image, opacity), 0.2, 0.9)
    return _blend(image * (1 - shadow[..., None]), _colours(colour), opacity)


def _transplant(generator: np.random.Generator, image: np.ndarray, inside: np.ndarray, _: np.ndarray) -> np.ndarray:
    count = len(image)
    centre, _, _, opacity = _patch(generator, inside, 4, 26, angular=0.5, soft=0.15)
    source = _places(generator, inside)
    angle = _uniform(generator, 0.3, 2 * np.pi - 0.3, count) * _chance(generator, 0.7, count)
    piece = _turned(image, source, centre, angle, _log_uniform(generator, 0.75, 1.35, count))
    change = generator.standard_normal((count, 3)) * 0.03 + _uniform(generator, -0.25, 0.25, count, 1)
    return _blend(image, piece * (1 + _colours(change * _chance(generator, 0.5, count)[:, None])), opacity)


def _smear(generator: np.random.Generator, image: np.ndarray, inside: np.ndarray, _: np.ndarray) -> np.ndarray:
    count, side = inside.shape[:2]
    _, _, _, opacity = _patch(generator, inside, 5, 26, soft=0.7)
    down, right = _log_uniform(generator, 0.8, 12, 2, count) * side / 128
    dull = _blurred(image, down, right)
    patchy = np.clip(1 + _noise(generator, count, side, (8, 16, 32)) * _maps(_uniform(generator, 0, 0.8, count)), 0, 1)
    worn = _tone(generator, _mean_colour(image, opacity), 0.1, 0.4)
    rubbed = patchy * _maps(_chance(generator, 0.5, count) * _uniform(generator, 0.2, 0.7, count))
    return _blend(image, _blend(dull, _colours(worn), rubbed), opacity * inside)


def _texture(generator: np.random.Generator, image: np.ndarray, inside: np.ndarray, _: np.ndarray) -> np.ndarray:
    count, side = inside.shape[:2]
    centre, _, _, opacity = _patch(generator, inside, 6, 24, soft=0.5)
    kind = generator.integers(0, 5, count)
    scale = np.exp(_sign(generator, count) * _uniform(generator, 0.35, 0.9, count) * (kind == 0))
    angle = _uniform(generator, 0.4, np.pi - 0.4, count) * (kind == 1)
    along, across = _local(side, centre, angle.astype(np.float32))
    swirl = _maps(_log_uniform(generator, 1.5, 4.5, count) * (kind == 2) * side / 128)
    knots = (side // 10, side // 5)
    y = across / _maps(scale) + _maps(centre[:, 0]) + swirl * _noise(generator, count, side, knots)
    x = along / _maps(scale) + _maps(centre[:, 1]) + swirl * _noise(generator, count, side, knots)
    other = _sample(image, y.astype(np.float32), x.astype(np.float32))
    mean = _colours(_mean_colour(image, opacity))
    stronger = np.where(generator.random(count) < 0.5, _uniform(generator, 0, 0.4, count), 2.2)
    other = mean + (other - mean) * _colours(np.where(kind == 3, stronger, 1).astype(np.float32))
    rough = _noise(generator, count, side, (side // 4, side)) * _maps(_log_uniform(generator, 0.06, 0.2, count))
    other = other + (rough * _maps((kind == 4) | (generator.random(count) < 0.15)))[..., None]
    return _blend(image, other, opacity * inside)


def _colour_change(generator: np.random.Generator, image: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """Pictures in another tint: turned hue, channel gains and an offset in proportion to ``strength`` ``(n,)``."""
    count = len(image)
    strength = strength[:, None]
    grey = _luma(image)[..., None]
    gain = 1 + strength * np.clip(generator.standard_normal((count, 3)) * 0.4, -0.8, 0.8)
    swap = _colours(np.clip(strength * _uniform(generator, 0, 1.5, count, 1), 0, 1).astype(np.float32))
    chroma = image - grey
    chroma = chroma + swap * (chroma[..., [1, 2, 0]] - chroma)
    room = np.where(grey.mean((1, 2)) < _uniform(generator, 0.3, 0.7, count, 1), 1, -1)
    tint = generator.standard_normal((count, 3)) * 0.25 + room * _uniform(generator, 0.12, 0.4, count, 1)
    return np.clip(grey * _colours(gain) + chroma + _colours(strength * tint), 0, 1).astype(np.float32)


def _discolouration(generator: np.random.Generator, image: np.ndarray, inside: np.ndarray, _: np.ndarray) -> np.ndarray:
    count = len(image)
    _, _, _, opacity = _patch(generator, inside, 3, 25, angular=0.15, soft=0.7)
    return _blend(image, _colour_change(generator, image, _uniform(generator, 0.35, 1, count)), opacity * inside)


def _erased(generator: np.random.Generator, image: np.ndarray, inside: np.ndarray, _: np.ndarray) -> np.ndarray:
    count, side = inside.shape[:2]
    _, radius, depth, opacity = _patch(generator, inside, 4, 20, angular=0.35, soft=0.25)
    smooth = _filled(image, np.clip(inside - _cover(depth + 2), 0, 1), 2 + 0.6 * radius)
    change = _colours(_chance(generator, 0.5, count) * _uniform(generator, -0.2, 0.2, count))
    rough = _noise(generator, count, side, (side // 2, side)) * _maps(_uniform(generator, 0, 0.02, count))
    return _blend(image, smooth + change + rough[..., None], opacity * inside)


def _displaced(generator: np.random.Generator, image: np.ndarray, inside: np.ndarray, _: np.ndarray) -> np.ndarray:
    count, side = inside.shape[:2]
    pixel = side / 128
    strip = _chance(generator, 0.5, count)
    angle = np.where(
        generator.random(count) < 0.6,
        generator.integers(0, 2, count) * np.pi / 2,
        _uniform(generator, 0, np.pi, count),
    )
    along, across = _local(side, _places(generator, inside), angle.astype(np.float32))
    short = _log_uniform(generator, 3, 16, count) * pixel
    long = np.where(strip > 0, 2 * side, short * _log_uniform(generator, 1, 3, count))
    depth = np.minimum(_maps(long) - np.abs(along), _maps(short) - np.abs(across))
    move = (_sign(generator, count) * _log_uniform(generator, 2, 14, count) * pixel)[:, None]
    turn = angle + np.where(strip > 0, 0, _uniform(generator, 0, np.pi, count))
    offset = move * np.stack([np.sin(turn), np.cos(turn)], axis=1)
    line = np.arange(side, dtype=np.float32)
    y, x = line[:, None] + _maps(offset[:, 0]), line + _maps(offset[:, 1])
    moved = _sample(image, *np.broadcast_arrays(y.astype(np.float32), x.astype(np.float32)))
    opacity = _cover(depth.astype(np.float32))
    shifted = _blend(image, moved, opacity)
    seam = np.clip(1 - np.abs(depth) / _maps(_uniform(generator, 0.8, 1.6, count)), 0, 1) * inside
    seam *= _maps(_chance(generator, 0.4, count) * _uniform(generator, 0.3, 0.9, count))
    return _blend(shifted, _colours(_tone(generator, _mean_colour(image, opacity))), seam)


def _burn(generator: np.random.Generator, image: np.ndarray, inside: np.ndarray, _: np.ndarray) -> np.ndarray:
    count, side = inside.shape[:2]
    _, radius, depth, _ = _patch(generator, inside, 4, 20)
    depth += _noise(generator, count, side, (8, 16, 32)) * _maps(_uniform(generator, 0.05, 0.35, count) * radius)
    halo = _cover(depth + _maps(0.3 * radius), _uniform(generator, 0.6, 1.4, count) * radius + 1)
    core = _cover(depth - _maps(0.25 * radius), 0.5 * radius + 1)
    brown = np.array([0.75, 0.5, 0.3], np.float32) + generator.standard_normal((count, 3)) * 0.12
    singed = image * _colours(np.clip(brown, 0.1, 0.95))
    ash = _colours(_uniform(generator, 0.02, 0.25, count, 1) * np.ones(3, np.float32))
    scorched = _blend(image, singed, halo * inside * _maps(_uniform(generator, 0.5, 1, count)))
    return _blend(scorched, ash, core * inside * _maps(_uniform(generator, 0.3, 1, count)))


def _glare(generator: np.random.Generator, image: np.ndarray, inside: np.ndarray, _: np.ndarray) -> np.ndarray:
    count, side = inside.shape[:2]
    radius = _log_uniform(generator, 4, 22, count) * side / 128
    depth = _region(generator, _places(generator, inside), radius, side, stretch=6, wobbly=0.15)
    glow = _cover(depth, _uniform(generator, 0.5, 1.6, count) * radius + 1)
    colour = 1 - _chance(generator, 0.4, count, 1) * _uniform(generator, 0, 0.4, count, 3)
    light = glow[..., None] * _colours(colour * _log_uniform(generator, 0.25, 1.2, count)[:, None])
    return np.clip(image + light * (0.4 + 0.6 * inside[..., None]), 0, 1)


def _chipped(generator: np.random.Generator, image: np.ndarray, inside: np.ndarray, _: np.ndarray) -> np.ndarray:
    count, side = inside.shape[:2]
    frame = np.pad(inside, ((0, 0), (1, 1), (1, 1)))
    inner = ndimage.minimum_filter(frame, (1, 3, 3))[:, 1:-1, 1:-1]
    rim = ((inside > 0.5) & (inner <= 0.5)).astype(np.float32)
    visible = rim * (ndimage.minimum_filter(inside, (1, 3, 3), mode="nearest") <= 0.5)  # not cut by the picture
    has_edge = visible.any((1, 2))
    centre = _places(generator, np.where(_maps(has_edge), visible, rim))
    radius = _log_uniform(generator, 4, 20, count) * side / 128
    depth = _region(generator, centre, radius, side, angular=0.6)
    depth += _noise(generator, count, side, (side // 6, side // 3)) * _maps(0.12 * radius)
    opacity = _cover(depth) * inside
    behind = _filled(image, np.clip(1 - inside, 0, 1) ** 4, radius)
    plain = _colours(_tone(generator, _mean_colour(image, opacity), 0.25))
    broken = _cover(depth, 1.5) * _cover(-depth + _maps(0.5 + 0.15 * radius), 2.0)
    filled = _blend(image, np.where(_colours(has_edge), behind, plain), opacity)
    edge = _maps(_chance(generator, 0.5, count) * _uniform(generator, 0.3, 0.9, count))
    return _blend(filled, _colours(_tone(generator, _mean_colour(image, opacity), 0.1, 0.5)), broken * inside * edge)


def _crease(generator: np.random.Generator, image: np.ndarray, inside: np.ndarray, _: np.ndarray) -> np.ndarray:
    count, side = inside.shape[:2]
    along, across = _local(side, _places(generator, inside), _uniform(generator, 0, 2 * np.pi, count))
    long = _maps(_log_uniform(generator, 12, 90, count) * side / 128)
    across = across - _maps(generator.standard_normal((count,), dtype=np.float32) * 0.15) * along**2 / long
    across += _noise(generator, count, side, (6, 12)) * _maps(_uniform(generator, 0, 1.5, count))
    across /= _maps(_log_uniform(generator, 1.5, 7, count) * side / 128)
    bell = np.exp(-(across**2)) * _cover(1 - np.abs(along) / long, 0.5)
    ridge = _maps(_uniform(generator, -0.3, 0.3, count)) * bell**4
    shade = _maps(_log_uniform(generator, 0.25, 0.9, count)) * across * bell + ridge
    return _blend(image, image * (1 + shade[..., None]) + 0.2 * shade[..., None], inside)


def _streak(generator: np.random.Generator, image: np.ndarray, inside: np.ndarray, _: np.ndarray) -> np.ndarray:
    count, side = inside.shape[:2]
    straight = generator.integers(0, 2, count) * np.pi / 2
    angle = np.where(generator.random(count) < 0.7, straight, _uniform(generator, 0, np.pi, count))
    along, across = _local(side, _places(generator, inside), angle.astype(np.float32))
    wide = _log_uniform(generator, 0.8, 6, count) * side / 128
    reach = np.where(generator.random(count) < 0.6, 3 * side, _log_uniform(generator, 12, 60, count) * side / 128)
    opacity = _cover(_maps(wide) - np.abs(across), _uniform(generator, 0.5, 1.5, count) * wide + 0.5)
    opacity *= _cover(_maps(reach).astype(np.float32) - np.abs(along), 6.0)
    uneven = _noise(generator, count, side, (6, 12, 24)) * _maps(_uniform(generator, 0, 0.6, count))
    opacity *= np.clip(1 + uneven, 0, 1) * inside * _maps(_uniform(generator, 0.4, 1, count))
    return _blend(image, _colours(_tone(generator, _mean_colour(image, opacity))), opacity)


def _bend(generator: np.random.Generator, image: np.ndarray, inside: np.ndarray, _: np.ndarray) -> np.ndarray:
    count, side = inside.shape[:2]
    radius = _log_uniform(generator, 8, 28, count) * side / 128
    depth = _region(generator, _places(generator, inside), radius, side, wobbly=0.1)
    pull = _cover(depth, 1.4 * radius)
    angle = _uniform(generator, 0, 2 * np.pi, count)
    push = pull * _maps(radius * _uniform(generator, 0.3, 0.6, count))
    line = np.arange(side, dtype=np.float32)
    moved = _sample(image, line[:, None] - _maps(np.sin(angle)) * push, line - _maps(np.cos(angle)) * push)
    shade = _slope(push, angle) * inside * _maps(_chance(generator, 0.4, count) * _uniform(generator, -0.6, 0.6, count))
    return np.clip(moved * (1 + shade[..., None]), 0, 1)


def _mould(generator: np.random.Generator, image: np.ndarray, inside: np.ndarray, _: np.ndarray) -> np.ndarray:
    count, side = inside.shape[:2]
    radius = _log_uniform(generator, 8, 36, count) * side / 128
    cluster = _cover(_region(generator, _places(generator, inside), radius, side), radius)
    level = _maps(_uniform(generator, -0.2, 1.1, count)) + 2.5 * (1 - cluster)
    patches = _noise(generator, count, side, (side // 12, side // 6, side // 3)) - level
    opacity = np.clip(patches * _maps(_log_uniform(generator, 0.8, 6, count)), 0, 1) * inside
    rough = _noise(generator, count, side, (side // 3, side)) * _maps(_uniform(generator, 0, 0.5, count))
    under = _mean_colour(image, opacity)
    inner, outer = _colours(_tone(generator, under)), _colours(_tone(generator, under))
    crust = outer + (inner - outer) * np.clip(patches, 0, 1)[..., None]
    return _blend(image, crust, opacity * np.clip(_maps(_uniform(generator, 0.6, 1, count)) + rough, 0, 1))


def _droplet(generator: np.random.Generator, image: np.ndarray, inside: np.ndarray, _: np.ndarray) -> np.ndarray:
    count, side = inside.shape[:2]
    centre = _places(generator, inside)
    radius = _log_uniform(generator, 3, 16, count) * side / 128
    depth = _region(generator, centre, radius, side, stretch=1.6, wobbly=0.12)
    zero = np.zeros(count, np.float32)
    seen = _turned(image, centre, centre, zero, _sign(generator, count) * _uniform(generator, 1.3, 2.2, count))
    light = _uniform(generator, 0, 2 * np.pi, count)
    rim = np.exp(-((depth / _maps(1 + 0.3 * radius)) ** 2))
    shade = _slope(depth, light) * rim * _maps(_uniform(generator, 0.15, 0.6, count))
    off = centre + 0.45 * radius[:, None] * np.stack([np.sin(light), np.cos(light)], axis=1)
    shine = _cover(_region(generator, off, 0.8 + 0.18 * radius, side), 1.5) * _maps(_uniform(generator, 0, 1, count))
    tint = _colours(_uniform(generator, 0.6, 1.15, count, 1) + _uniform(generator, -0.15, 0.15, count, 3))
    liquid = seen * tint * (1 + shade[..., None]) + 0.9 * shine[..., None]
    return _blend(image, liquid, _cover(depth) * (0.3 + 0.7 * inside))


DAMAGES: dict[str, Damage] = {
    "scratch": _scratch,
    "scuff": _scuff,
    "crack": _crack,
    "hole": _hole,
    "dent": _dent,
    "stain": _stain,
    "specks": _specks,
    "spot": _spot,
    "foreign body": _foreign_body,
    "fibre": _fibre,
    "transplant": _transplant,
    "smear": _smear,
    "local texture": _texture,
    "discolouration": _discolouration,
    "erased area": _erased,
    "displaced part": _displaced,
    "burn": _burn,
    "glare": _glare,
    "chipped edge": _chipped,
    "crease": _crease,
    "streak": _streak,
    "bend": _bend,
    "mould": _mould,
    "droplet": _droplet,
}
"""Kinds of local damage by name."""


# --- Damage of the whole picture or object --------------------------------------------------------------------------


def _recoloured(generator: np.random.Generator, image: np.ndarray, inside: np.ndarray, _: np.ndarray) -> np.ndarray:
    strength = _uniform(generator, 0.35, 0.9, len(image))
    return _blend(image, _colour_change(generator, image, strength), inside)


def _contrast(generator: np.random.Generator, image: np.ndarray, inside: np.ndarray, _: np.ndarray) -> np.ndarray:
    count = len(image)
    mean = _colours(_mean_colour(image, inside))
    weak = generator.random(count) < 0.6
    factor = np.where(weak, _uniform(generator, 0.15, 0.5, count), _uniform(generator, 1.8, 3, count))
    return _blend(image, mean + (image - mean) * _colours(factor), inside)


def _exposure(generator: np.random.Generator, image: np.ndarray, inside: np.ndarray, _: np.ndarray) -> np.ndarray:
    power = np.exp(_sign(generator, len(image)) * _uniform(generator, 0.6, 1.3, len(image)))
    return _blend(image, np.clip(image, 1e-4, 1) ** _colours(power), inside)


def _faded(generator: np.random.Generator, image: np.ndarray, inside: np.ndarray, _: np.ndarray) -> np.ndarray:
    count, side = inside.shape[:2]
    haze = _colours(_uniform(generator, 0.55, 1, count, 1) - _uniform(generator, 0, 0.12, count, 3))
    veil = _maps(_uniform(generator, 0.35, 0.75, count)) + 0.08 * _noise(generator, count, side, (4, 8))
    return _blend(image, haze, np.clip(veil, 0.2, 0.85) * inside)


def _grainy(generator: np.random.Generator, image: np.ndarray, inside: np.ndarray, _: np.ndarray) -> np.ndarray:
    count, side = inside.shape[:2]
    fine = generator.standard_normal(inside.shape, dtype=np.float32)
    coarse = _noise(generator, count, side, (side // 3, side // 6))
    grain = np.where(_maps(_chance(generator, 0.5, count)) > 0, fine, coarse)
    return _blend(image, image + (grain * _maps(_uniform(generator, 0.12, 0.25, count)))[..., None], inside)


def _dulled(generator: np.random.Generator, image: np.ndarray, inside: np.ndarray, _: np.ndarray) -> np.ndarray:
    reach = _log_uniform(generator, 2.5, 7, len(image)) * image.shape[1] / 128
    return _blend(image, _filled(image, np.maximum(inside, 1e-3), reach), inside)


def _middle(inside: np.ndarray) -> np.ndarray:
    """Centre ``(n, 2)`` of the object."""
    line = np.arange(inside.shape[1], dtype=np.float32)
    total = inside.sum((1, 2)) + 1e-6
    return np.stack([inside.sum(2) @ line / total, inside.sum(1) @ line / total], axis=1)


def _regrown(image: np.ndarray, inside: np.ndarray, angle: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Pictures with the object's texture turned and enlarged within the outline of the object."""
    middle = _middle(inside)
    both = _turned(np.concatenate([image, inside[..., None]], axis=-1), middle, middle, angle, scale)
    return _blend(image, both[..., :3], inside * both[..., 3])


def _rescaled(generator: np.random.Generator, image: np.ndarray, inside: np.ndarray, _: np.ndarray) -> np.ndarray:
    count = len(image)
    scale = np.exp(_sign(generator, count) * _uniform(generator, 0.45, 0.9, count))
    return _regrown(image, inside, np.zeros(count, np.float32), scale)


def _misaligned(generator: np.random.Generator, image: np.ndarray, inside: np.ndarray, _: np.ndarray) -> np.ndarray:
    angle = _sign(generator, len(image)) * _uniform(generator, np.pi / 6, np.pi / 2, len(image))
    return _regrown(image, inside, angle, np.ones(len(image), np.float32))


def _mottled(generator: np.random.Generator, image: np.ndarray, inside: np.ndarray, _: np.ndarray) -> np.ndarray:
    count, side = inside.shape[:2]
    knots = ((5, 8), (8, 16, 32), (16, 32))[generator.integers(3)]
    cloud = _noise(generator, count, side, knots) * _maps(_uniform(generator, 0.12, 0.28, count))
    tint = 1 + generator.standard_normal((count, 3)) * _uniform(generator, 0, 0.5, count, 1)
    change = cloud[..., None] * _colours(tint.astype(np.float32))
    return _blend(image, image * (1 + change) + 0.3 * change, inside)


def _distorted(generator: np.random.Generator, image: np.ndarray, inside: np.ndarray, _: np.ndarray) -> np.ndarray:
    count, side = inside.shape[:2]
    knots = ((6, 9), (9, 16), (16, 28))[generator.integers(3)]
    amount = _maps(_uniform(generator, 0.25, 0.45, count)) * side / knots[0]
    line = np.arange(side, dtype=np.float32)
    y = line[:, None] + amount * _noise(generator, count, side, knots)
    x = line + amount * _noise(generator, count, side, knots)
    both = _sample(np.concatenate([image, inside[..., None]], axis=-1), y, x)
    return _blend(image, both[..., :3], inside * both[..., 3])


GLOBAL_DAMAGES: dict[str, Damage] = {
    "recoloured": _recoloured,
    "contrast": _contrast,
    "exposure": _exposure,
    "faded": _faded,
    "grainy": _grainy,
    "dulled": _dulled,
    "rescaled": _rescaled,
    "misaligned": _misaligned,
    "mottled": _mottled,
    "distorted": _distorted,
}
"""Kinds of damage to the whole surface or object by name."""


# --- Masks ----------------------------------------------------------------------------------------------------------


def changed_mask(clean: np.ndarray, damaged: np.ndarray, threshold: float = 0.03, smallest: int = 5) -> np.ndarray:
    """Find the pixels that a change shows in.

    Gaps of up to three pixels and pinholes inside a change are closed, and specks are dropped.

    Args:
        clean (np.ndarray): Pictures before ``(n, s, s, 3)``, in ``[0, 1]``.
        damaged (np.ndarray): Pictures after ``(n, s, s, 3)``, in ``[0, 1]``.
        threshold (float): Smallest change of a colour channel that counts.
        smallest (int): Fewest connected pixels that count; pinholes have fewer than three times as many.

    Returns:
        np.ndarray: Boolean mask ``(n, s, s)``.
    """
    change = np.abs(damaged - clean)
    largest = np.maximum(np.maximum(change[..., 0], change[..., 1]), change[..., 2])
    changed = (largest > threshold).astype(np.uint8)
    frame = np.pad(changed, ((0, 0), (2, 2), (2, 2)), mode="edge")
    closed = ndimage.minimum_filter(ndimage.maximum_filter(frame, (1, 4, 4)), (1, 4, 4), origin=(0, -1, -1))
    mask = (closed[:, 2:-2, 2:-2] | changed) > 0
    mask |= ~_without_small(~mask, 3 * smallest)
    return _without_small(mask, smallest)


def _without_small(mask: np.ndarray, smallest: int) -> np.ndarray:
    """Masks ``(n, s, s)`` without connected parts of fewer pixels."""
    apart = np.zeros((3, 3, 3), bool)  # pictures of a batch do not touch
    apart[1] = True
    labels, _ = ndimage.label(mask, apart)
    large = np.bincount(labels.ravel()) >= smallest
    large[0] = False
    return large[labels]


def _directions(image: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """How strongly, and which way, the texture of pictures runs ``(n, 2)``: of length 0 (no way) to 1 (one way)."""
    down, right = np.gradient(_luma(image), axis=(1, 2))
    weight = inside > 0.5
    total = ((down**2 + right**2) * weight).sum((1, 2)) + 1e-6
    parts = ((right**2 - down**2) * weight).sum((1, 2)), (2 * right * down * weight).sum((1, 2))
    return np.stack(parts, axis=1) / total[:, None]


def _mask(name: str, clean: np.ndarray, damaged: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mask ``(n, s, s)`` of damage and whether each picture shows it well enough ``(n,)``."""
    on_object = inside > 0.5
    grey = np.abs(_luma(damaged - clean))  # must show to a camera without colour, too
    if name in GLOBAL_DAMAGES:
        area = on_object.sum((1, 2)) + 1e-6
        good = (grey * on_object).sum((1, 2)) / area > 0.04
        if name == "misaligned":  # a texture that runs no way looks the same when it is turned
            good &= np.linalg.norm(_directions(clean, inside) - _directions(damaged, inside), axis=1) > 0.25
        return on_object, good
    mask = changed_mask(clean, damaged)
    share = mask.mean((1, 2))
    strength = (grey * mask).sum((1, 2)) / (mask.sum((1, 2)) + 1e-6)
    touches = (mask & on_object).sum((1, 2)) >= 0.3 * mask.sum((1, 2))
    return mask, (share >= _SMALLEST) & (share <= _LARGEST) & (strength > 0.04) & touches


def apply_damage(
    generator: np.random.Generator,
    name: str,
    image: np.ndarray,
    inside: np.ndarray,
    donor: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Damage every picture of a batch, and draw again what came out invisible, too small or too large.

    Args:
        generator (np.random.Generator): Source of randomness.
        name (str): A key of :data:`DAMAGES` or :data:`GLOBAL_DAMAGES`.
        image (np.ndarray): Pictures ``(n, s, s, 3)``, ``float32`` in ``[0, 1]``.
        inside (np.ndarray): Where the object is ``(n, s, s)``, ``float32`` in ``[0, 1]``.
        donor (np.ndarray): Pictures of another category ``(n, s, s, 3)``, which foreign bodies are cut from.

    Returns:
        tuple[np.ndarray, np.ndarray]: Damaged pictures ``(n, s, s, 3)``, ``float32`` in ``[0, 1]``, and boolean masks
        ``(n, s, s)``: the changed pixels (0.1 % to 30 % of the picture) of local damage, the whole object of other
        damage.

    Raises:
        RuntimeError: If a picture does not show this damage, however often it is drawn, as where an even surface should
            change in its texture.
    """
    draw = DAMAGES.get(name) or GLOBAL_DAMAGES[name]
    attempts = _ATTEMPTS if name in DAMAGES else _GLOBAL_ATTEMPTS
    damaged = np.empty_like(image)
    masks = np.empty(inside.shape, bool)
    for index in range(len(image)):  # single pictures stay within the cache
        one = slice(index, index + 1)
        for _ in range(attempts):
            damaged[one] = draw(generator, image[one], inside[one], donor[one])
            masks[one], good = _mask(name, image[one], damaged[one], inside[one])
            if good.all():
                break
        else:
            msg = f"Picture {index} does not show the damage {name!r} after {attempts} attempts."
            raise RuntimeError(msg)
    return damaged, masks
