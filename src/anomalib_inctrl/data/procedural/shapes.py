"""Drawing shapes on a batch of pictures: signed distances, poses, shaded layers, backdrops and colours.

Lengths are in units of half a picture: the picture spans ``[-1, 1]`` both ways, ``y`` pointing down. A signed distance
is negative inside. Everything is vectorised over the ``n`` pictures of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

Shape = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""A signed distance, from the local coordinates ``u`` and ``v``, both ``(n, h, w)``, to ``(n, h, w)``."""

_Windows = list[tuple[slice, slice]]  # rows and columns, of every picture or of all alike

_SAMPLES = 1024


def column(values: np.ndarray | float) -> np.ndarray:
    """Shape one number per picture, or one for all, so that it broadcasts against ``(n, h, w)`` pixels."""
    return np.asarray(values, np.float32).reshape(-1, 1, 1)


# --- Signed distances -------------------------------------------------------------------------------------------------


def length(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Distance from the origin."""
    return np.sqrt(u * u + v * v)


def ellipse(u: np.ndarray, v: np.ndarray, width: float, height: float) -> np.ndarray:
    """An ellipse with the half-axes ``width`` and ``height`` (a first-order distance)."""
    p, q = u / width, v / height
    inner = length(p, q)
    return inner * (inner - 1) / (length(p / width, q / height) + 1e-6)


def box(u: np.ndarray, v: np.ndarray, width: float, height: float, rounding: float = 0.0) -> np.ndarray:
    """A box with half-sides ``width`` and ``height`` and corners rounded by ``rounding``."""
    p, q = np.abs(u) - (width - rounding), np.abs(v) - (height - rounding)
    outside = length(np.maximum(p, 0), np.maximum(q, 0))
    return outside + np.minimum(np.maximum(p, q), 0) - rounding


def capsule(
    u: np.ndarray, v: np.ndarray, start: tuple[float, float], end: tuple[float, float], radius: float
) -> np.ndarray:
    """A line from ``start`` to ``end``, ``radius`` thick on each side, with round ends."""
    return polyline(u, v, np.array([start, end], np.float32)) - radius


def polyline(u: np.ndarray, v: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Unsigned distance from a polyline through ``points``, ``(m, 2)`` or ``(n, m, 2)``."""
    points = np.asarray(points, np.float32)
    x, y = (np.atleast_2d(points[..., i]).T[:, :, None, None] for i in (0, 1))
    nearest = np.full(u.shape, np.inf, np.float32)
    for x0, y0, x1, y1 in zip(x[:-1], y[:-1], x[1:], y[1:], strict=True):
        dx, dy = x1 - x0, y1 - y0
        p, q = u - x0, v - y0
        along = p * (dx / (dx * dx + dy * dy + 1e-9))
        along += q * (dy / (dx * dx + dy * dy + 1e-9))
        np.clip(along, 0, 1, out=along)
        p -= along * dx
        q -= along * dy
        p *= p
        q *= q
        p += q
        np.minimum(nearest, p, out=nearest)
    return np.sqrt(nearest)


def polygon(u: np.ndarray, v: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """A simple polygon with the ``corners`` ``(m, 2)``."""
    distance = polyline(u, v, np.concatenate([corners, corners[:1]]))
    inside = np.zeros(u.shape, bool)
    for (x0, y0), (x1, y1) in zip(corners.tolist(), np.roll(corners, -1, 0).tolist(), strict=True):
        if y0 != y1:
            inside ^= ((v < y0) != (v < y1)) & (u < x0 + (v - y0) * ((x1 - x0) / (y1 - y0)))
    return np.where(inside, -distance, distance)


def arc(u: np.ndarray, v: np.ndarray, radius: float, spread: float, thickness: float) -> np.ndarray:
    """An arc of a circle, open for ``spread`` radians on both sides of the ``v`` axis, with round ends."""
    u = np.abs(u)
    end_u, end_v = radius * math.sin(spread), radius * math.cos(spread)
    on_arc = u * end_v < v * end_u if spread <= math.pi / 2 else (v > 0) | (u * end_v < v * end_u)
    return np.where(on_arc, np.abs(length(u, v) - radius), length(u - end_u, v - end_v)) - thickness


def outline(u: np.ndarray, v: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Any shape that its centre sees the whole of, from its radius by direction: ``(m,)`` or ``(n, m)``, see `turn`."""
    radii = np.atleast_2d(radii).astype(np.float32)
    m = radii.shape[1]
    steepness = (np.roll(radii, -1, 1) - np.roll(radii, 1, 1)) * (m / (4 * math.pi)) / np.maximum(radii, 1e-3)
    index = (np.arctan2(v, u) * (m / (2 * math.pi))).astype(np.int32) % m
    index += (np.arange(len(radii), dtype=np.int32) * m)[:, None, None]
    return (length(u, v) - radii.ravel().take(index)) * (1 / np.sqrt(1 + steepness**2)).ravel().take(index)


def turn(samples: int = _SAMPLES) -> np.ndarray:
    """The directions in which `outline` wants radii, ``(m,)`` in ``[0, 2 pi)``."""
    return np.arange(samples) * (2 * math.pi / max(samples, 1))


def lathe(u: np.ndarray, v: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """A silhouette round the ``v`` axis from -1 to 1, its widths to both sides by height: ``(m,)`` or ``(n, m)``."""
    left, right = (side.astype(np.float32) for side in np.broadcast_arrays(np.atleast_2d(left), np.atleast_2d(right)))
    m = left.shape[1]
    index = np.clip((v + 1) * (m / 2), 0, m - 1).astype(np.int32)
    index += (np.arange(len(left), dtype=np.int32) * m)[:, None, None]
    scale = [1 / np.sqrt(1 + np.gradient(side, 2 / m, axis=1) ** 2) for side in (left, right)]
    beside = np.where(
        u < 0,
        (-u - left.ravel().take(index)) * scale[0].ravel().take(index),
        (u - right.ravel().take(index)) * scale[1].ravel().take(index),
    )
    return np.maximum(beside, np.abs(v) - 1)


def soft_union(first: np.ndarray, second: np.ndarray, width: float) -> np.ndarray:
    """Union of two shapes, blended over ``width``."""
    blend = np.clip(0.5 + (second - first) * (0.5 / width), 0, 1)
    return second + (first - second) * blend - width * blend * (1 - blend)


def soft_difference(first: np.ndarray, second: np.ndarray, width: float) -> np.ndarray:
    """The ``first`` shape without the second, blended over ``width``."""
    return -soft_union(-first, second, width)


def spline(points: np.ndarray, steps: int) -> np.ndarray:
    """A smooth curve through ``points`` ``(..., m, 2)``, as ``(..., steps * (m - 1) + 1, 2)`` (Catmull-Rom)."""
    first, last = 2 * points[..., :1, :] - points[..., 1:2, :], 2 * points[..., -1:, :] - points[..., -2:-1, :]
    padded = np.concatenate([first, points, last], -2)[..., :, None, :]
    a, b, c, d = (padded[..., i : i + points.shape[-2] - 1, :, :] for i in range(4))
    t = (np.arange(steps) / steps)[:, None]
    curve = b + t / 2 * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))
    return np.concatenate([curve.reshape(*points.shape[:-2], -1, 2), points[..., -1:, :]], -2)


def fourier_radii(generator: np.random.Generator, roughness: float, lowest: int = 2, highest: int = 7) -> np.ndarray:
    """Radii ``(m,)`` about 1 of a random smooth closed outline for `outline`."""
    order = np.arange(lowest, highest + 1)
    weight = roughness * generator.normal(size=order.size) / order
    phase = generator.uniform(0, 2 * np.pi, order.size)
    return np.maximum(1 + weight @ np.cos(order[:, None] * turn() + phase[:, None]), 0.3)


FIGURES = (
    "ellipse",
    "box",
    "rounded",
    "capsule",
    "polygon",
    "star",
    "ring",
    "arc",
    "cross",
    "blob",
    "crescent",
    "drop",
)
"""The kinds of `Figure`."""


@dataclass(frozen=True)
class Figure:
    """A simple shape of about unit half-width.

    Attributes:
        kind (str): One of `FIGURES`.
        aspect (float): Height over width, in ``[0.2, 1]``.
        number (int): Corners or points, from 3.
        radii (np.ndarray): Radii of its blob, ``(m,)``.
    """

    kind: str
    aspect: float
    number: int
    radii: np.ndarray

    @classmethod
    def sample(cls, generator: np.random.Generator, kinds: tuple[str, ...] = FIGURES) -> Figure:
        """Draw one of the ``kinds`` with random proportions."""
        kind = str(generator.choice(kinds))
        return cls(
            kind,
            generator.uniform(0.3, 1),
            int(generator.integers(3, 7)),
            fourier_radii(generator, generator.uniform(0.2, 0.6)) if kind == "blob" else np.ones(8),
        )

    def edge(self, angle: float) -> float:
        """How far it reaches from its centre in a direction."""
        far = np.linspace(0.05, 1.2, 47)
        inside = self(far[:, None, None] * math.cos(angle), far[:, None, None] * math.sin(angle)).ravel() < 0
        return float(far[inside].max(initial=0.1))

    def __call__(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Signed distance at the local coordinates."""
        a = self.aspect
        match self.kind:
            case "ellipse":
                return ellipse(u, v, 1, a)
            case "box" | "rounded":
                return box(u, v, 0.9, 0.9 * a, 0.35 * a if self.kind == "rounded" else 0)
            case "capsule":
                return capsule(u, v, (0.4 * a - 1, 0), (1 - 0.4 * a, 0), 0.4 * a)
            case "ring":
                return np.abs(length(u, v) - 0.8) - 0.2 * a
            case "arc":
                return arc(u, v + 0.3, 0.8, 0.6 + 1.6 * a, 0.15)
            case "cross":
                return np.minimum(box(u, v, 0.95, 0.3 * a), box(u, v, 0.3 * a, 0.95))
            case "blob":
                return outline(u, v, 0.8 * self.radii)
            case "crescent":
                return np.maximum(length(u, v) - 0.9, 0.5 + 0.4 * a - length(u - 0.5, v))
            case "drop":
                return soft_union(length(u + 0.35, v) - 0.5, capsule(u, v, (-0.3, 0), (0.9, 0), 0.08), 0.6 * a)
            case _:
                points = self.number * (2 if self.kind == "star" else 1)
                angle = np.arange(points) * (2 * math.pi / points) - math.pi / 2
                reach = np.where(np.arange(points) % 2, 0.35 + 0.3 * a, 1) if self.kind == "star" else np.ones(points)
                return polygon(u, v, reach[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1))


# --- Poses ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pose:
    """Where a thing is in each picture.

    Attributes:
        x (np.ndarray): ``(n,)``, to the right.
        y (np.ndarray): ``(n,)``, downwards.
        angle (np.ndarray): ``(n,)`` in radians.
        scale (np.ndarray): ``(n,)``, positive.
    """

    x: np.ndarray
    y: np.ndarray
    angle: np.ndarray
    scale: np.ndarray

    def child(
        self,
        x: np.ndarray | float,
        y: np.ndarray | float,
        angle: np.ndarray | float = 0.0,
        scale: np.ndarray | float = 1.0,
    ) -> Pose:
        """The pose of a part, given relative to this one."""
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        return Pose(
            self.x + self.scale * (cos * x - sin * y),
            self.y + self.scale * (sin * x + cos * y),
            self.angle + angle,
            self.scale * scale,
        )


# --- Colours ----------------------------------------------------------------------------------------------------------


def from_hue(hue: float, saturation: float, value: float) -> np.ndarray:
    """RGB ``(3,)`` of a hue, saturation and value in ``[0, 1]``."""
    wheel = np.clip(np.abs((hue * 6 + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    return value * (1 - saturation * (1 - wheel))


def random_colour(generator: np.random.Generator) -> np.ndarray:
    """A plausible colour ``(3,)`` in ``[0, 1]``: grey, earthy, pastel, vivid or dark."""
    hue, s, v = generator.uniform(size=3)
    ranges = ((hue, 0.1 * s, 0.1 + 0.85 * v), (0.04 + 0.1 * hue, 0.2 + 0.5 * s, 0.25 + 0.6 * v))
    more = ((hue, 0.1 + 0.3 * s, 0.7 + 0.3 * v), (hue, 0.5 + 0.5 * s, 0.4 + 0.6 * v), (hue, 0.6 * s, 0.05 + 0.25 * v))
    return from_hue(*(ranges + more)[generator.choice(5, p=(0.38, 0.2, 0.14, 0.16, 0.12))])


def contrasting(generator: np.random.Generator, *others: np.ndarray, least: float = 0.3) -> np.ndarray:
    """A random colour ``(3,)`` that differs from each of the ``others``, where that is easily had."""
    for _ in range(20):
        colour = random_colour(generator)
        if all(np.abs(colour - other).max() > least for other in others):
            break
    return colour


def jittered(generator: np.random.Generator, colours: np.ndarray, count: int, spread: float) -> np.ndarray:
    """``count`` variations, mostly in brightness, of each of the ``colours`` ``(..., 3)``: ``(count, ..., 3)``."""
    shape = (count, *np.shape(colours)[:-1])
    change = generator.normal(size=(*shape, 1)) + 0.4 * generator.normal(size=(*shape, 3))
    return np.clip(colours * (1 + spread * change), 0, 1)


# --- Random fields ----------------------------------------------------------------------------------------------------


def _stretch(cells: int, side: int) -> np.ndarray:
    """Weights ``(side, cells + 1)`` that interpolate ``cells + 1`` values smoothly over ``side`` pixels."""
    position = np.linspace(0, cells, side, endpoint=False)[:, None]
    gap = np.clip(1 - np.abs(position - np.arange(cells + 1)), 0, 1)
    weights = gap * gap * (3 - 2 * gap)
    return (weights / np.sqrt((weights**2).sum(1, keepdims=True))).astype(np.float32)


def smooth_noise(generator: np.random.Generator, count: int, side: int, cells: tuple[int, ...]) -> np.ndarray:
    """Noise ``(count, side, side)`` of unit variance, with features ``side / cells`` pixels wide, of all the sizes."""
    total = np.zeros((count, side, side), np.float32)
    for size in cells:
        if size >= side:
            total += generator.standard_normal((count, side, side), np.float32)
        else:
            weights = _stretch(size, side)
            total += weights @ generator.standard_normal((count, size + 1, size + 1), np.float32) @ weights.T
    return total / math.sqrt(len(cells))


@dataclass(frozen=True)
class Backdrop:
    """What lies behind the objects of a category.

    Attributes:
        colour (np.ndarray): ``(3,)`` in ``[0, 1]``.
        gradient (tuple[float, float]): Change of brightness to the right and downwards, relative.
        noise (float): Strength of its texture.
        cells (tuple[int, ...]): Scales of the texture, see `smooth_noise`.
        stripes (float): Strength of parallel stripes.
        wave (tuple[float, float]): Their wave vector, in radians per half picture.
    """

    colour: np.ndarray
    gradient: tuple[float, float]
    noise: float
    cells: tuple[int, ...]
    stripes: float
    wave: tuple[float, float]

    @classmethod
    def sample(cls, generator: np.random.Generator, *foreground: np.ndarray) -> Backdrop:
        """Draw a backdrop against which the ``foreground`` colours stand out."""
        colour = contrasting(generator, *foreground, least=0.25)
        if generator.uniform() < 0.35:
            grey = float(generator.choice([0.03, 0.1, 0.9, 0.97]))
            distances = [abs(grey - float(other.mean())) for other in foreground]
            colour = np.full(3, grey if min(distances, default=1) > 0.2 else 1 - grey)
        tilt = generator.choice([0, 0, 0.1, 0.3]) * generator.normal(size=2)
        angle, pitch = generator.uniform(0, np.pi), generator.uniform(8, 70)
        cells = ((3,), (6, 24), (16, 48), (64,), (128,))[generator.integers(5)]
        return cls(
            colour,
            (float(tilt[0]), float(tilt[1])),
            float(generator.choice([0, 0, 0.01, 0.03, 0.08])),
            cells,
            float(generator.choice([0, 0, 0, 0, 0, 0, 0.02, 0.06])),
            (pitch * math.cos(angle), pitch * math.sin(angle)),
        )

    def render(self, generator: np.random.Generator, count: int, side: int) -> np.ndarray:
        """Draw ``(3, count, side, side)`` in ``[0, 1]``."""
        at = ((np.arange(side, dtype=np.float32) + 0.5) * (2 / side) - 1).astype(np.float32)
        tilt = np.array(self.gradient) * 0.5 + generator.normal(0, 0.015, (count, 2))
        gain = 1 + column(tilt[:, 0]) * at + column(tilt[:, 1]) * at[:, None]
        gain = gain + self.noise * smooth_noise(generator, count, side, self.cells)
        if self.stripes:
            phase = column(generator.uniform(0, 2 * np.pi, count))
            gain += self.stripes * np.sin(self.wave[0] * at + self.wave[1] * at[:, None] + phase)
        lift = 0.06 if self.colour.max() < 0.1 else 0
        colours = jittered(generator, self.colour, count, 0.015).astype(np.float32).T[:, :, None, None]
        return np.clip(colours * gain + lift * (gain - 1), 0, 1)


# --- Layers -----------------------------------------------------------------------------------------------------------


class Material(NamedTuple):
    """How a surface looks.

    Attributes:
        colour (np.ndarray): ``(3,)`` in ``[0, 1]``.
        relief (float): Shading of the edge by the light; negative for a recess.
        bevel (float): Width of the shaded edge; as large as the object, it makes a dome.
        gloss (float): Strength of the highlight.
        grain (float): Strength of the texture.
    """

    colour: np.ndarray
    relief: float = 0.0
    bevel: float = 0.1
    gloss: float = 0.0
    grain: float = 0.0

    def tinted(self, colour: np.ndarray, **changes: float) -> Material:
        """The same in another colour."""
        return self._replace(colour=colour, **changes)


class Canvas:
    """A batch of pictures to which parts are added, from the back to the front.

    Args:
        generator (np.random.Generator): Source of the texture.
        count (int): Number of pictures ``n``.
        side (int): Height and width in pixels.
        light (float): Direction from which the light comes, in radians.
        cells (tuple[int, ...]): Scales of the texture, see `smooth_noise`.
    """

    def __init__(
        self, generator: np.random.Generator, count: int, side: int, light: float, cells: tuple[int, ...]
    ) -> None:
        self.count, self.side = count, side
        self._light = math.cos(light), math.sin(light)
        self._planes = np.zeros((4, count, side, side), np.float32)
        self._noise = smooth_noise(generator, count, side, cells)

    def draw(
        self,
        pose: Pose,
        shape: Shape,
        material: Material,
        *,
        reach: float = 1.1,
        colour: np.ndarray | None = None,
        opacity: np.ndarray | float = 1.0,
        pattern: Shape | None = None,
        blur: float = 0.0,
        within: bool = False,
    ) -> None:
        """Lay a part over what there is.

        Args:
            pose (Pose): Its place in each picture.
            shape (Shape): Its signed distance.
            material (Material): Its looks.
            reach (float): Radius, before the pose's scale, of a circle that holds it.
            colour (np.ndarray | None): ``(n, 3)``, instead of the material's.
            opacity (np.ndarray | float): ``(n,)`` in ``[0, 1]``.
            pattern (Shape | None): Relative change of brightness, from the same coordinates as the shape.
            blur (float): Width of a soft edge.
            within (bool): Draw on the parts below only.
        """
        if not np.any(opacity):
            return
        windows, u, v = self._window(pose, reach)
        below = _read(self._planes, windows)
        distance = shape(u, v).astype(np.float32) * column(pose.scale)
        cover = np.clip(0.5 - distance / max(blur, 2 / self.side), 0, 1) * column(opacity)
        if within:
            cover *= below[3]
        tone = np.ones_like(cover)
        if material.grain:
            tone += material.grain * _read(self._noise[None], windows)[0]
        if pattern is not None:
            tone += pattern(u, v)
        shine = np.zeros(1, np.float32)
        if material.relief or material.gloss:
            shade, shine = self._lit(distance, material, column(pose.scale))
            tone += shade
        paint = np.asarray(material.colour if colour is None else colour, np.float32).reshape(-1, 3).T[:, :, None, None]
        below *= 1 - cover
        below[:3] += (paint * tone + shine) * cover
        below[3] += cover
        _write(self._planes, windows, below)

    def cut(self, pose: Pose, shape: Shape, *, reach: float = 1.1, opacity: np.ndarray | float = 1.0) -> None:
        """Cut a hole through all there is; arguments as for `draw`."""
        windows, u, v = self._window(pose, reach)
        distance = shape(u, v).astype(np.float32) * column(pose.scale)
        keep = 1 - np.clip(0.5 - distance * (self.side / 2), 0, 1) * column(opacity)
        _write(self._planes, windows, _read(self._planes, windows) * keep)

    def finish(
        self, backdrop: np.ndarray, shadow: float = 0.0, offset: tuple[float, float] = (0, 0), blur: float = 0.1
    ) -> tuple[np.ndarray, np.ndarray]:
        """Put the parts before a backdrop.

        Args:
            backdrop (np.ndarray): ``(3, n, side, side)``.
            shadow (float): Darkness of their shadow in ``[0, 1]``.
            offset (tuple[float, float]): Where it falls.
            blur (float): How soft it is.

        Returns:
            tuple[np.ndarray, np.ndarray]: The pictures ``(n, side, side, 3)`` and where the parts are
            ``(n, side, side)``, both ``float32`` in ``[0, 1]``.
        """
        inside = np.clip(self._planes[3], 0, 1)
        ground = backdrop
        if shadow:
            pixel = (np.arange(self.side) * (2 / self.side)).astype(np.float32)
            across, down = (np.exp(-(((pixel[:, None] - pixel - shift) / blur) ** 2)) for shift in offset)
            across, down = (weights / (blur * math.sqrt(math.pi) * self.side / 2) for weights in (across, down))
            ground = backdrop * (1 - shadow * np.clip(down @ inside @ across.T, 0, 1))
        planes = np.clip(ground * (1 - inside) + self._planes[:3], 0, 1)
        return np.ascontiguousarray(np.moveaxis(planes, 0, -1)), inside

    def _window(self, pose: Pose, reach: float) -> tuple[_Windows, np.ndarray, np.ndarray]:
        """The pixels round a part, and their coordinates in its frame."""
        side = self.side
        size = min(2 * math.ceil(float(np.max(pose.scale)) * reach * side / 2) + 4, side)
        starts = [np.clip((at + 1) * (side / 2) - size / 2, 0, side - size).astype(int) for at in (pose.x, pose.y)]
        cover = [int(start.max() - start.min()) + size for start in starts]
        if cover[0] * cover[1] < 1.5 * size * size:
            cols, rows = (start.min() + np.arange(width)[None] for start, width in zip(starts, cover, strict=True))
        else:
            cols, rows = (start[:, None] + np.arange(size) for start in starts)
        windows = [
            (slice(top, top + rows.shape[1]), slice(left, left + cols.shape[1]))
            for top, left in zip(rows[:, 0].tolist(), cols[:, 0].tolist(), strict=True)
        ]
        dx = ((cols + 0.5) * (2 / side) - 1 - pose.x[:, None]).astype(np.float32)[:, None, :]
        dy = ((rows + 0.5) * (2 / side) - 1 - pose.y[:, None]).astype(np.float32)[:, :, None]
        cos, sin = column(np.cos(pose.angle) / pose.scale), column(np.sin(pose.angle) / pose.scale)
        return windows, cos * dx + sin * dy, cos * dy - sin * dx

    def _lit(self, distance: np.ndarray, material: Material, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Shading of an edge or dome, and its highlight."""
        across, down = np.zeros_like(distance), np.zeros_like(distance)
        across[:, :, 1:-1] = distance[:, :, 2:] - distance[:, :, :-2]
        down[:, 1:-1] = distance[:, 2:] - distance[:, :-2]
        slope = np.clip(1 + distance / (material.bevel * scale), 0, 1) * (self.side / 4)
        across *= slope
        down *= slope
        lit = self._light[0] * across + self._light[1] * down
        shade = material.relief * lit
        if not material.gloss:
            return shade, np.zeros(1, np.float32)
        near = np.clip(1 - 7 * (across * across + down * down - 0.9 * lit + 0.2), 0, 1)
        return shade, material.gloss * near * near


def _read(planes: np.ndarray, windows: _Windows) -> np.ndarray:
    """The ``(k, n, h, w)`` windows of ``planes`` ``(k, n, side, side)``: a view if there is one window for all."""
    if len(windows) == 1:
        return planes[:, :, windows[0][0], windows[0][1]]
    return np.stack([planes[:, i, rows, cols] for i, (rows, cols) in enumerate(windows)], 1)


def _write(planes: np.ndarray, windows: _Windows, values: np.ndarray) -> None:
    """Set the windows of the planes, see `_read`."""
    if len(windows) == 1:
        planes[:, :, windows[0][0], windows[0][1]] = values
    else:
        for i, (rows, cols) in enumerate(windows):
            planes[:, i, rows, cols] = values[:, i]


def spread_poses(generator: np.random.Generator, pose: Pose, shift: float, turn_by: float, grow: float) -> Pose:
    """The pose with normal variation: by at most ``shift`` sideways, ``turn_by`` radians and ``grow`` in scale."""
    count = len(pose.x)
    x, y, angle, scale = generator.uniform(-1, 1, (4, count))
    return replace(
        pose,
        x=pose.x + shift * x,
        y=pose.y + shift * y,
        angle=pose.angle + turn_by * angle,
        scale=pose.scale * (1 + grow * scale),
    )
