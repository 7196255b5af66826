"""What all families of objects share: where they stand, their parts, what may go wrong, common materials."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from anomalib_inctrl.data.procedural.family import Family, Rendering
from anomalib_inctrl.data.procedural.shapes import (
    Backdrop,
    Canvas,
    Material,
    Pose,
    Shape,
    contrasting,
    from_hue,
    jittered,
    length,
    polyline,
    spread_poses,
    turn,
)

if TYPE_CHECKING:
    from typing_extensions import Self

_SPOTS = (
    ((0, 0, 1),),
    ((-0.46, 0, 0.52), (0.46, 0, 0.52)),
    ((-0.47, -0.47, 0.5), (0.47, -0.47, 0.5), (-0.47, 0.47, 0.5), (0.47, 0.47, 0.5)),
    ((0, -0.48, 0.48), (-0.48, 0.4, 0.48), (0.48, 0.4, 0.48)),
)


ORIGIN = np.zeros((1, 2))


PART_FAULTS = ("missing_part", "doubled_part", "misplaced_part", "wrong_colour", "wrong_size")


@dataclass(frozen=True)
class Stage:
    """Where the objects of a category stand, and in what light.

    Attributes:
        backdrop (Backdrop): What lies behind them.
        spots (tuple[tuple[float, float, float], ...]): Their places: right, down and scale.
        angle (float): How they are turned, in radians.
        variation (tuple[float, float, float]): The most by which members differ: sideways, in radians, in scale.
        light (float): Direction from which light comes, in radians.
        shadow (tuple[float, float, float]): Darkness, distance and softness of the shadows.
        cells (tuple[int, ...]): Scales of the texture.
    """

    backdrop: Backdrop
    spots: tuple[tuple[float, float, float], ...]
    angle: float
    variation: tuple[float, float, float]
    light: float
    shadow: tuple[float, float, float]
    cells: tuple[int, ...]

    @classmethod
    def sample(
        cls,
        generator: np.random.Generator,
        *colours: np.ndarray,
        upright: bool = False,
        several: bool = False,
    ) -> Stage:
        """Draw a stage for things of some ``colours``, perhaps always ``upright``, perhaps ``several`` of them."""
        rules = ((0.03, 0.05, 0.02), (0.15, 0.2, 0.15), (0.08, 0.3 if upright else math.pi, 0.05), (0.01, 0.015, 0.01))
        straight = float(generator.choice(4)) * math.pi / 2
        many = several and generator.uniform() < 0.35
        spots = _SPOTS[int(generator.integers(1, 4)) if many else 0]
        size = generator.uniform(0.75, 1.2)
        return cls(
            Backdrop.sample(generator, *colours),
            tuple((float(x), float(y), scale * size) for x, y, scale in spots),
            0.0 if upright else straight if generator.uniform() < 0.5 else generator.uniform(-math.pi, math.pi),
            rules[generator.choice(4, p=(0.35, 0.2, 0.25, 0.2))],
            generator.uniform(-math.pi, math.pi),
            (
                float(generator.choice([0, 0.3, 0.6])),
                generator.uniform(0, 0.08),
                generator.uniform(0.05, 0.15),
            ),
            ((128,), (16, 64), (5, 20), (64, 128))[generator.integers(4)],
        )

    def poses(self, generator: np.random.Generator, count: int) -> list[Pose]:
        """Place the objects in ``count`` pictures: one pose for each spot."""
        shift, turn_by, grow = self.variation
        one = np.ones(count)
        return [
            spread_poses(generator, Pose(x * one, y * one, self.angle * one, scale * one), shift * scale, turn_by, grow)
            for x, y, scale in self.spots
        ]


@dataclass(frozen=True)
class Layout:
    """The ``p`` parts of an object in each of ``n`` pictures, relative to its pose.

    Attributes:
        x (np.ndarray): ``(n, p)``.
        y (np.ndarray): ``(n, p)``.
        angle (np.ndarray): ``(n, p)`` in radians.
        size (np.ndarray): ``(n, p)``.
        opacity (np.ndarray): ``(n, p)`` in ``[0, 1]``.
        colour (np.ndarray): ``(n, p, 3)`` in ``[0, 1]``.
        twin (np.ndarray): ``(n, p)``, 1 for the parts that are there twice.
        offset (np.ndarray): ``(n, 2)``, from a part to its twin.
    """

    x: np.ndarray
    y: np.ndarray
    angle: np.ndarray
    size: np.ndarray
    opacity: np.ndarray
    colour: np.ndarray
    twin: np.ndarray
    offset: np.ndarray

    @classmethod
    def place(
        cls,
        generator: np.random.Generator,
        count: int,
        places: np.ndarray,
        colour: np.ndarray,
        *,
        size: np.ndarray | float = 1.0,
        wobble: tuple[float, float, float] = (0, 0, 0),
        tint: float = 0.02,
    ) -> Layout:
        """Place the parts given for the category, with normal variation.

        Args:
            generator (np.random.Generator): Source of the variation.
            count (int): Number of pictures ``n``.
            places (np.ndarray): ``(p, k)`` or ``(n, p, k)``: right, down and, as far as given, angle and size.
            colour (np.ndarray): ``(3,)`` or ``(p, 3)``.
            size (np.ndarray | float): Scale, ``(p,)`` or one for all, if not among the places.
            wobble (tuple[float, float, float]): Standard deviations of place, angle and relative size.
            tint (float): Standard deviation of brightness.

        Returns:
            Layout: The parts.
        """
        x, y, *more = np.moveaxis(places, -1, 0)
        angle = more[0] if more else np.zeros(())
        scale = more[1] if len(more) > 1 else np.asarray(size)
        shape = (count, x.shape[-1])
        dx, dy, dangle, dsize = generator.normal(size=(4, *shape))
        return cls(
            x + wobble[0] * dx,
            y + wobble[0] * dy,
            angle + wobble[1] * dangle,
            scale * np.clip(1 + wobble[2] * dsize, 0.4, 1.6),
            np.ones(shape),
            jittered(generator, np.broadcast_to(colour, (shape[1], 3)), count, tint),
            np.zeros(shape),
            np.zeros((count, 2)),
        )

    def parts(self, pose: Pose) -> Iterator[tuple[int, Pose, np.ndarray, np.ndarray]]:
        """The parts from the back to the front: number, pose, opacity ``(n,)`` and colour ``(n, 3)``."""
        for j in range(self.x.shape[1]):
            at = self.angle[:, j], self.size[:, j]
            yield j, pose.child(self.x[:, j], self.y[:, j], *at), self.opacity[:, j], self.colour[:, j]
            if self.twin[:, j].any():
                x, y = self.x[:, j] + self.offset[:, 0], self.y[:, j] + self.offset[:, 1]
                yield j, pose.child(x, y, *at), self.twin[:, j] * self.opacity[:, j], self.colour[:, j]


class Mishap:
    """A fault, in one of the objects of each picture, or none.

    Args:
        generator (np.random.Generator): Source of its place and extent, and of nothing else.
        fault (str | None): Which.
        count (int): Number of pictures ``n``.
        spots (int): Number of objects in each.
    """

    def __init__(self, generator: np.random.Generator, fault: str | None, count: int, spots: int) -> None:
        self._generator, self._fault = generator, fault
        self._spot = generator.integers(spots, size=count)
        self._here = np.ones(count, bool)

    def turn_to(self, spot: int) -> None:
        """Go on to the next object."""
        self._here = self._spot == spot

    def strikes(self, fault: str) -> np.ndarray:
        """Which pictures ``(n,)`` have this fault in this object."""
        return self._here & (self._fault == fault)

    def dented(self, radii: np.ndarray, depth: float = 0.3) -> np.ndarray:
        """Radii ``(m,)`` for `outline`, with a dent, bump or bite where the fault is "deformed": ``(n, m)``."""
        hit, draw = self.strikes("deformed"), self._generator
        if not hit.any():
            return radii
        n = len(hit)
        gap = np.angle(np.exp(1j * (turn(radii.size) - draw.uniform(0, 2 * np.pi, (n, 1)))))
        amount = draw.choice([-1, -1, 1], (n, 1)) * draw.uniform(0.5, 1, (n, 1)) * depth
        width = draw.uniform(0.12, 0.35, (n, 1))
        return radii * (1 + hit[:, None] * amount * np.exp(-((gap / width) ** 2)))

    def dents(self, samples: int) -> np.ndarray:
        """Factors ``(2, n, samples)`` on the widths for `lathe`, with a dent or bump where "deformed"."""
        hit, draw = self.strikes("deformed"), self._generator
        n = len(hit)
        gap = np.linspace(0, 1, samples) - draw.uniform(0.35, 0.9, (n, 1))
        amount = draw.choice([-1, -1, 1], (n, 1)) * draw.uniform(0.2, 0.5, (n, 1))
        dent = hit[:, None] * amount * np.exp(-((gap / draw.uniform(0.04, 0.1, (n, 1))) ** 2))
        left = draw.uniform(size=(n, 1)) < 0.5
        return 1 + np.stack([dent * left, dent * ~left])

    def recoloured(self, colour: np.ndarray) -> np.ndarray:
        """The ``colour`` ``(3,)``, another where the fault is "wrong_colour": ``(n, 3)``."""
        hit = self.strikes("wrong_colour")
        colours = np.tile(colour, (len(hit), 1))
        for row in np.flatnonzero(hit):
            colours[row] = contrasting(self._generator, colour)
        return colours

    def parts(self, layout: Layout, pitch: float, candidates: Sequence[int] | None = None) -> Layout:
        """Damage one part, of the ``candidates``, moving it by the order of ``pitch``, if the fault is of that sort."""
        if not self._here.any() or self._fault is None:
            return layout
        draw, (n, p) = self._generator, layout.x.shape
        chosen = draw.choice(np.arange(p) if candidates is None else np.asarray(candidates), n)
        at = np.zeros((n, p))
        at[np.arange(n), chosen] = self._here
        way = draw.uniform(0, 2 * np.pi, n)
        move = pitch * draw.uniform(0.5, 0.9, n) * np.stack([np.cos(way), np.sin(way)])
        match self._fault:
            case "missing_part":
                return replace(layout, opacity=layout.opacity * (1 - at))
            case "doubled_part":
                return replace(layout, twin=at, offset=move.T)
            case "misplaced_part":
                return replace(layout, x=layout.x + at * move[0][:, None], y=layout.y + at * move[1][:, None])
            case "wrong_size":
                factor = np.where(draw.uniform(size=n) < 0.5, draw.uniform(0.45, 0.7, n), draw.uniform(1.35, 1.7, n))
                return replace(layout, size=layout.size * np.where(at > 0, factor[:, None], 1))
            case "bent_part":
                bend = draw.choice([-1, 1], n) * draw.uniform(0.3, 0.9, n)
                return replace(layout, angle=layout.angle + at * bend[:, None])
            case "wrong_colour":
                colours = layout.colour.copy()
                for row in np.flatnonzero(self._here):
                    colours[row, chosen[row]] = contrasting(draw, colours[row, chosen[row]])
                return replace(layout, colour=colours)
            case _:
                return layout


@dataclass(frozen=True)
class Thing(Family):
    """An object, or several of a kind, before a backdrop.

    Attributes:
        stage (Stage): Where it stands.
    """

    stage: Stage

    def sibling(self, generator: np.random.Generator) -> Self:
        """Draw another object of the family that stands in the same place."""
        return replace(self.sample(generator), stage=self.stage)

    def render(
        self,
        generator: np.random.Generator,
        count: int,
        side: int,
        fault: str | None = None,
    ) -> Rendering:
        """Draw members of the category; see `Family.render`."""
        trouble = generator.spawn(1)[0]
        if fault is not None and fault not in self.FAULTS:
            msg = f"{type(self).__name__} has no fault {fault!r}; it has {', '.join(self.FAULTS)}."
            raise ValueError(msg)
        stage = self.stage
        mishap = Mishap(trouble, fault, count, len(stage.spots))
        canvas = Canvas(generator, count, side, stage.light, stage.cells)
        for spot, pose in enumerate(stage.poses(generator, count)):
            mishap.turn_to(spot)
            self._draw(canvas, pose, generator, mishap)
        darkness, distance, blur = stage.shadow
        offset = -distance * math.cos(stage.light), -distance * math.sin(stage.light)
        return Rendering(*canvas.finish(stage.backdrop.render(generator, count, side), darkness, offset, blur))

    @abstractmethod
    def _draw(self, canvas: Canvas, pose: Pose, generator: np.random.Generator, mishap: Mishap) -> None:
        """Draw one object in each picture, about as large as the unit circle before its pose."""


def some_metal(generator: np.random.Generator) -> Material:
    """Steel, aluminium, brass, copper or dark iron."""
    hue, saturation = ((0.6, 0.05), (0.12, 0.45), (0.06, 0.5), (0.1, 0.02))[generator.integers(4)]
    colour = from_hue(hue, saturation, generator.uniform(0.25, 0.85))
    relief, bevel, gloss = generator.uniform((0.15, 0.05, 0.05), (0.45, 0.15, 0.35)).tolist()
    return Material(colour, relief, bevel, gloss, float(generator.choice([0.01, 0.03, 0.08])))


def some_plastic(generator: np.random.Generator, *others: np.ndarray) -> Material:
    """Painted or moulded: any colour, flat or shaded."""
    relief, bevel, gloss = generator.uniform((-0.2, 0.04, -0.2), (0.4, 0.3, 0.4)).tolist()
    return Material(contrasting(generator, *others, least=0.25), max(relief, 0), bevel, max(gloss, 0), 0.01)


def some_material(generator: np.random.Generator) -> Material:
    """Metal or plastic."""
    return some_metal(generator) if generator.uniform() < 0.5 else some_plastic(generator)


def disc(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The unit disc."""
    return length(u, v) - 1


def wire(points: np.ndarray, radius: float) -> Shape:
    """A line through ``points`` ``(m, 2)``."""
    return lambda u, v: polyline(u, v, points) - radius


def hoop(radius: float) -> Shape:
    """A thin ring."""
    return lambda u, v: np.abs(length(u, v) - radius) - 0.02


def ring_of(number: int, radius: float, start: float = 0.0) -> np.ndarray:
    """Evenly spaced places round a circle: right, down and angle, ``(number, 3)``."""
    angle = start + turn(number)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), angle], 1)
