"""Families of objects: manufactured, natural, printed and invented things before a backdrop."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from scipy.ndimage import gaussian_filter1d

from anomalib_inctrl.data.procedural.family import Family, Rendering
from anomalib_inctrl.data.procedural.shapes import (
    FIGURES,
    Backdrop,
    Canvas,
    Figure,
    Material,
    Pose,
    Shape,
    box,
    capsule,
    column,
    contrasting,
    fourier_radii,
    from_hue,
    jittered,
    lathe,
    length,
    outline,
    polyline,
    random_colour,
    spline,
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


# --- What all families share ------------------------------------------------------------------------------------------


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


def _metal(generator: np.random.Generator) -> Material:
    """Steel, aluminium, brass, copper or dark iron."""
    hue, saturation = ((0.6, 0.05), (0.12, 0.45), (0.06, 0.5), (0.1, 0.02))[generator.integers(4)]
    colour = from_hue(hue, saturation, generator.uniform(0.25, 0.85))
    relief, bevel, gloss = generator.uniform((0.15, 0.05, 0.05), (0.45, 0.15, 0.35)).tolist()
    return Material(colour, relief, bevel, gloss, float(generator.choice([0.01, 0.03, 0.08])))


def _plastic(generator: np.random.Generator, *others: np.ndarray) -> Material:
    """Painted or moulded: any colour, flat or shaded."""
    relief, bevel, gloss = generator.uniform((-0.2, 0.04, -0.2), (0.4, 0.3, 0.4)).tolist()
    return Material(contrasting(generator, *others, least=0.25), max(relief, 0), bevel, max(gloss, 0), 0.01)


def _material(generator: np.random.Generator) -> Material:
    """Metal or plastic."""
    return _metal(generator) if generator.uniform() < 0.5 else _plastic(generator)


def _disc(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The unit disc."""
    return length(u, v) - 1


def _wire(points: np.ndarray, radius: float) -> Shape:
    """A line through ``points`` ``(m, 2)``."""
    return lambda u, v: polyline(u, v, points) - radius


def _hoop(radius: float) -> Shape:
    """A thin ring."""
    return lambda u, v: np.abs(length(u, v) - radius) - 0.02


def _ring_of(number: int, radius: float, start: float = 0.0) -> np.ndarray:
    """Evenly spaced places round a circle: right, down and angle, ``(number, 3)``."""
    angle = start + turn(number)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), angle], 1)


_ORIGIN = np.zeros((1, 2))

_PART_FAULTS = ("missing_part", "doubled_part", "misplaced_part", "wrong_colour", "wrong_size")


# --- Manufactured -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Washer(Thing):
    """Concentric rings: washers, wheels, lids, vessels seen from above."""

    NOUNS: ClassVar = ("washer", "disc", "wheel", "lid", "bottle from above", "bowl", "cup")
    FAULTS: ClassVar = ("deformed", "missing_part", "doubled_part", "misplaced_part", "wrong_colour", "wrong_size")

    radii: np.ndarray
    materials: tuple[Material, ...]
    hole: float
    marks: int
    mark: Figure
    mark_colour: np.ndarray

    @classmethod
    def sample(cls, generator: np.random.Generator) -> Self:
        """Draw rings, a hole or none, and marks round them."""
        first = _material(generator)
        materials = [first]
        for _ in range(generator.integers(1, 5)):
            tone = float(np.clip(generator.uniform(0.5, 1.4), 0, 1 / max(first.colour.max(), 0.1)))
            other = contrasting(generator, first.colour) if generator.uniform() < 0.3 else first.colour * tone
            relief = first.relief * float(generator.choice([-1, 1]))
            materials.append(first.tinted(other, relief=relief, bevel=generator.uniform(0.05, 0.4)))
        inner = np.sort(generator.uniform(0.25, 0.92, len(materials) - 1))[::-1]
        return cls(
            Stage.sample(generator, first.colour, several=True),
            np.array([0.8, *(0.8 * inner)]),
            tuple(materials),
            float(generator.choice([0, 0, generator.uniform(0.08, 0.18), generator.uniform(0.2, 0.5)])),
            int(generator.integers(3, 13)),
            Figure.sample(generator, ("ellipse", "box", "capsule", "star")),
            contrasting(generator, first.colour),
        )

    def _draw(self, canvas: Canvas, pose: Pose, generator: np.random.Generator, mishap: Mishap) -> None:
        count = len(pose.x)
        rim = mishap.dented(np.full(turn().size, self.radii[0]), 0.2)
        canvas.draw(pose, lambda u, v: outline(u, v, rim), self.materials[0])
        colours = np.array([material.colour for material in self.materials[1:]])
        rings = Layout.place(generator, count, np.zeros((len(colours), 2)), colours, size=self.radii[1:], tint=0.015)
        for j, at, opacity, colour in rings.parts(pose):
            canvas.draw(at, _disc, self.materials[j + 1], colour=colour, opacity=opacity)
        marks = Layout.place(generator, count, _ring_of(self.marks, (0.8 + self.hole) / 2), self.mark_colour, size=0.12)
        for _, at, opacity, colour in mishap.parts(marks, 0.3).parts(pose):
            canvas.draw(at, self.mark, self.materials[0], colour=colour, opacity=opacity, reach=1.2, within=True)
        if self.hole:
            canvas.cut(pose.child(0, 0, 0, self.hole), _disc)


@dataclass(frozen=True)
class Gear(Thing):
    """A toothed wheel with holes or spokes."""

    NOUNS: ClassVar = ("gear", "cog wheel", "cog", "sprocket", "saw blade")
    FAULTS: ClassVar = ("missing_part", "misplaced_part", "wrong_size", "wrong_colour", "deformed")

    material: Material
    teeth: int
    depth: float
    sharpness: float
    skew: float
    hub: Material
    bore: float
    holes: int
    hole: Figure

    @classmethod
    def sample(cls, generator: np.random.Generator) -> Self:
        """Draw the teeth, the hub and the holes."""
        material = _material(generator)
        return cls(
            Stage.sample(generator, material.colour, several=True),
            material,
            int(generator.integers(7, 30)),
            generator.uniform(0.08, 0.25),
            generator.uniform(0.7, 3),
            float(generator.choice([0, 0, 0.25])),
            _plastic(generator, material.colour),
            generator.uniform(0.06, 0.25),
            int(generator.choice([0, 3, 4, 5, 6, 8])),
            Figure.sample(generator, ("ellipse", "rounded", "polygon", "drop")),
        )

    def _draw(self, canvas: Canvas, pose: Pose, generator: np.random.Generator, mishap: Mishap) -> None:
        count = len(pose.x)
        phase = turn() * self.teeth / (2 * np.pi)
        tooth = np.floor(phase).astype(int)
        one = Layout.place(generator, count, np.zeros((self.teeth, 2)), np.ones(3))
        one = mishap.parts(one, 1 / 3)
        heights = (one.opacity * np.clip(one.size, 0, 1.5))[:, tooth]
        within = phase - tooth - 0.5 - 0.5 * one.x[:, tooth]
        within = within + self.skew * np.abs(within)
        profile = np.clip(0.5 + self.sharpness * np.cos(2 * np.pi * within), 0, 1)
        radii = (0.85 - self.depth) + self.depth * profile * heights
        if mishap.strikes("deformed").any():
            radii = radii * mishap.dented(np.ones(turn().size))
        canvas.draw(pose, lambda u, v: outline(u, v, radii), self.material, reach=1.25)
        root = 0.85 - self.depth
        for x, y, angle in _ring_of(self.holes, 0.55 * root + 0.4 * self.bore).tolist():
            canvas.cut(pose.child(x, y, angle, min(0.2, 1.1 / self.holes) * root), self.hole)
        hub = pose.child(0, 0, 0, self.bore * 1.6)
        canvas.draw(hub, _disc, self.hub, colour=mishap.recoloured(self.hub.colour))
        canvas.cut(pose.child(0, 0, 0, self.bore), _disc)


@dataclass(frozen=True)
class Bottle(Thing):
    """A vessel seen from the side, with its cap, label and content."""

    NOUNS: ClassVar = ("bottle", "vase", "jar", "vessel", "flask", "vial")
    FAULTS: ClassVar = ("missing_part", "misplaced_part", "wrong_colour", "wrong_size", "bent_part", "deformed")

    material: Material
    width: np.ndarray
    colours: np.ndarray
    places: np.ndarray
    figures: tuple[Figure, ...]
    level: float

    @classmethod
    def sample(cls, generator: np.random.Generator) -> Self:
        """Draw a silhouette, a label with a motif, and a cap."""
        material = _plastic(generator)._replace(relief=0.0, gloss=0.0)
        body, neck = generator.uniform((0.28, 0.1), (0.55, 0.28))
        knots = np.array([neck, neck, neck * generator.uniform(0.8, 1.2), *(body * generator.uniform(0.75, 1.05, 5))])
        heights = np.sort(np.r_[0, 0.12, 0.25, generator.uniform(0.3, 0.5), 0.6, 0.75, 0.9, 1])
        label = contrasting(generator, material.colour)
        print_colour = contrasting(generator, label)
        return cls(
            Stage.sample(generator, material.colour, upright=generator.uniform() < 0.8, several=True),
            material,
            gaussian_filter1d(
                np.interp(np.linspace(0, 1, 256), heights, knots), generator.uniform(1, 14), mode="nearest"
            ),
            np.array([contrasting(generator, material.colour), label, print_colour, print_colour]),
            np.array(
                [
                    (0, -0.95, 0, neck * 1.15),
                    (0, generator.uniform(0.2, 0.4), 0, body * 0.7),
                    (0, 0.2, 0, body * 0.35),
                    (0, 0.45, 0, body * 0.4),
                ]
            ),
            (
                Figure("rounded", generator.uniform(0.5, 1), 3, np.ones(8)),
                Figure("box", generator.uniform(0.6, 1), 3, np.ones(8)),
                Figure.sample(generator),
                Figure("capsule", 0.2, 3, np.ones(8)),
            ),
            generator.uniform(-0.6, 0.6),
        )

    def _draw(self, canvas: Canvas, pose: Pose, generator: np.random.Generator, mishap: Mishap) -> None:
        count = len(pose.x)
        dents = mishap.dents(256)
        level = column(self.level + generator.normal(0, 0.03, count))
        broad = float(self.width.max())

        def body(u: np.ndarray, v: np.ndarray) -> np.ndarray:
            return lathe(u, v, self.width * dents[0], self.width * dents[1])

        def round_light(u: np.ndarray, v: np.ndarray) -> np.ndarray:
            across = u / broad
            glint = np.exp(-(((across + 0.45) / 0.12) ** 2))
            return 0.1 - 0.45 * across * across - 0.15 * across + 0.3 * glint - 0.2 * (v > level)

        canvas.draw(pose, body, self.material, reach=1.1, pattern=round_light)
        parts = Layout.place(generator, count, self.places, self.colours, wobble=(0.008, 0.01, 0.01))
        for j, part, opacity, colour in mishap.parts(parts, 0.3, (0, 1)).parts(pose):
            canvas.draw(part, self.figures[j], self.material, colour=colour, opacity=opacity, reach=1.4)


@dataclass(frozen=True)
class Board(Thing):
    """A circuit board: chips, pads and traces."""

    NOUNS: ClassVar = ("circuit board", "electronic board", "pcb", "control panel", "electronic module")
    FAULTS: ClassVar = (*_PART_FAULTS, "bent_part")

    base: Material
    aspect: float
    traces: tuple[np.ndarray, ...]
    trace_colour: np.ndarray
    pads: np.ndarray
    chips: np.ndarray
    figures: tuple[Figure, ...]
    colours: np.ndarray

    @classmethod
    def sample(cls, generator: np.random.Generator) -> Self:
        """Draw a layout on a coarse lattice."""
        hue = float(generator.choice([0.37, 0.6, 0.0, 0.12, 0.8]))
        base = Material(from_hue(hue, generator.uniform(0.3, 0.9), generator.uniform(0.15, 0.6)), 0.3, 0.04, 0, 0.02)
        aspect = generator.uniform(0.6, 1)
        chips = int(generator.integers(5, 13))
        lattice = np.stack(np.meshgrid(np.linspace(-0.65, 0.65, 5), np.linspace(-0.65, 0.65, 4) * aspect), -1)
        places = generator.permutation(lattice.reshape(-1, 2))
        traces = []
        for start, end in zip(places[:7], places[7:14], strict=True):
            traces.append(np.array([start, (end[0], start[1]), end]))
        dark = generator.uniform(0.05, 0.25, (chips, 1)) * np.ones(3)
        bright = np.array([random_colour(generator) for _ in range(chips)])
        return cls(
            Stage.sample(generator, base.colour),
            base,
            aspect,
            tuple(traces),
            base.colour * generator.uniform(1.2, 1.6) + 0.05,
            places[10 : 10 + int(generator.integers(3, 9))],
            np.column_stack(
                [places[:chips], generator.choice([0, np.pi / 2], chips), generator.uniform(0.08, 0.19, chips)]
            ),
            tuple(Figure.sample(generator, ("box", "box", "rounded", "ellipse", "capsule")) for _ in range(chips)),
            np.where(generator.uniform(size=(chips, 1)) < 0.6, dark, bright),
        )

    def _draw(self, canvas: Canvas, pose: Pose, generator: np.random.Generator, mishap: Mishap) -> None:
        count = len(pose.x)
        canvas.draw(pose, lambda u, v: box(u, v, 0.85, 0.85 * self.aspect, 0.04), self.base, reach=1.22)
        copper = Material(self.trace_colour)
        for trace in self.traces:
            middle = trace.mean(0)
            reach = float(np.abs(trace - middle).max()) * 1.5 + 0.05
            points = trace - middle
            line = pose.child(*middle.tolist())
            canvas.draw(line, _wire(points, 0.018), copper, reach=reach)
        pad = Material(np.array([0.8, 0.78, 0.7]), 0.2, 0.5, 0.2)
        for x, y in self.pads.tolist():
            canvas.draw(pose.child(x, y, 0, 0.05), lambda u, v: np.abs(length(u, v) - 0.7) - 0.3, pad)
        chips = Layout.place(generator, count, self.chips, self.colours, wobble=(0.004, 0.01, 0.01))
        chip = Material(np.zeros(3), 0.3, 0.2, 0.1, 0.02)
        for j, at, opacity, colour in mishap.parts(chips, 0.2).parts(pose):
            legs, figure = np.clip(colour + 0.4, 0, 1), self.figures[j]
            if figure.kind == "box":

                def leads(u: np.ndarray, v: np.ndarray, aspect: float = figure.aspect) -> np.ndarray:
                    nearest = np.abs((u * 2.5) % 1 - 0.5) * 0.4 - 0.1
                    return np.maximum(nearest, box(u, v, 0.85, 0.9 * aspect + 0.25))

                canvas.draw(at, leads, pad, colour=legs, opacity=opacity, reach=1.45)
            canvas.draw(at, figure, chip, colour=colour, opacity=opacity, reach=1.3)


@dataclass(frozen=True)
class Pill(Thing):
    """A capsule or tablet, with print or a score line."""

    NOUNS: ClassVar = ("pill", "tablet", "capsule", "medicine")
    FAULTS: ClassVar = ("deformed", "missing_part", "doubled_part", "misplaced_part", "wrong_colour", "wrong_size")

    material: Material
    second: np.ndarray
    radii: np.ndarray
    prints: tuple[Figure, ...]
    print_colour: np.ndarray
    scored: bool

    @classmethod
    def sample(cls, generator: np.random.Generator) -> Self:
        """Draw the form, one or two colours, and the print."""
        material = _plastic(generator)._replace(relief=generator.uniform(0.15, 0.4), gloss=generator.uniform(0, 0.4))
        aspect = float(generator.choice([1, generator.uniform(0.35, 0.6), generator.uniform(0.5, 0.9)]))
        cos, sin = np.abs(np.cos(turn())), np.abs(np.sin(turn()))
        power = generator.uniform(2, 5)
        two = generator.uniform() < 0.5
        return cls(
            Stage.sample(generator, material.colour, several=True),
            material._replace(bevel=generator.uniform(0.1, 0.9) * aspect),
            contrasting(generator, material.colour) if two else material.colour,
            0.8 * (cos**power + (sin / aspect) ** power) ** (-1 / power),
            tuple(Figure.sample(generator) for _ in range(generator.integers(2, 5))),
            contrasting(generator, material.colour),
            generator.uniform() < 0.4,
        )

    def _draw(self, canvas: Canvas, pose: Pose, generator: np.random.Generator, mishap: Mishap) -> None:
        radii = mishap.dented(self.radii)
        canvas.draw(pose, lambda u, v: outline(u, v, radii), self.material, reach=1.2)
        half = self.material.tinted(self.second)

        def cap(u: np.ndarray, v: np.ndarray) -> np.ndarray:
            return np.maximum(outline(u, v, radii), -u)

        canvas.draw(pose, cap, half, reach=1.2, within=True)
        if self.scored:
            groove = Material(self.second * 0.75, -0.3, 0.05)
            canvas.draw(pose, lambda u, v: np.abs(u) - 0.03, groove, reach=0.85, within=True)
        number = len(self.prints)
        row = np.stack([np.linspace(-0.45, 0.45, number), np.zeros(number)], 1)
        prints = Layout.place(
            generator, len(pose.x), row, self.print_colour, size=0.4 / number, wobble=(0.01, 0.03, 0.01)
        )
        for j, at, opacity, colour in mishap.parts(prints, 0.25).parts(pose):
            canvas.draw(at, self.prints[j], Material(colour[0]), colour=colour, opacity=opacity, within=True)


@dataclass(frozen=True)
class Screw(Thing):
    """A screw, bolt or nail from the side."""

    NOUNS: ClassVar = ("screw", "bolt", "nail", "rivet", "fastener")
    FAULTS: ClassVar = ("bent_part", "missing_part", "misplaced_part", "wrong_size", "wrong_colour", "deformed")

    material: Material
    head: Figure
    head_size: float
    shank: float
    tip: float
    thread: tuple[float, float, float]

    @classmethod
    def sample(cls, generator: np.random.Generator) -> Self:
        """Draw the head, the shank and its thread."""
        material = _metal(generator)
        material = material._replace(relief=max(material.relief, 0.25))
        return cls(
            Stage.sample(generator, material.colour, several=True),
            material,
            Figure.sample(generator, ("ellipse", "box", "rounded", "polygon", "crescent")),
            generator.uniform(0.22, 0.4),
            generator.uniform(0.06, 0.16),
            generator.uniform(0.05, 0.45),
            (generator.uniform(0, 0.35), generator.uniform(20, 70), generator.uniform(-0.7, 0.4)),
        )

    def _draw(self, canvas: Canvas, pose: Pose, generator: np.random.Generator, mishap: Mishap) -> None:
        depth, pitch, start = self.thread
        hit = mishap.strikes("bent_part"), mishap.strikes("deformed"), mishap.strikes("missing_part")
        bend = column(np.where(hit[0], 0.25, 0))
        notch = column(np.where(hit[1], 0.7, 0))
        end = column(np.where(hit[2] & (np.arange(len(pose.x)) % 2 == 0), 0.45, 0.85))
        phase = column(generator.uniform(0, 2 * np.pi, len(pose.x)))

        def turns(u: np.ndarray, v: np.ndarray) -> np.ndarray:
            return np.sin(pitch * v + 0.35 * u * pitch + phase) * (v > start)

        def shank(u: np.ndarray, v: np.ndarray) -> np.ndarray:
            u = u + bend * np.clip(v + 0.4, 0, 2) ** 2
            width = self.shank * np.clip((0.87 - v) / self.tip, 0, 1)
            width = width * (1 - notch * (u > 0) * np.exp(-(((v - 0.1) / 0.15) ** 2)))
            return np.maximum(np.abs(u) - width * (1 + 0.6 * depth * turns(u, v)), v - end)

        def thread(u: np.ndarray, v: np.ndarray) -> np.ndarray:
            u = u + bend * np.clip(v + 0.4, 0, 2) ** 2
            return depth * 1.3 * turns(u, v) - 0.5 * (u / self.shank) ** 2

        canvas.draw(pose, shank, self.material, reach=1.0, pattern=thread)
        place = np.array([[0, -0.7]])
        heads = Layout.place(generator, len(pose.x), place, self.material.colour, size=self.head_size)
        for _, at, opacity, colour in mishap.parts(heads, 0.35).parts(pose):
            canvas.draw(at, self.head, self.material, colour=colour, opacity=opacity, reach=1.3)


@dataclass(frozen=True)
class Nut(Thing):
    """A polygon with a hole, such as a nut."""

    NOUNS: ClassVar = ("metal nut", "nut", "hex nut", "bushing", "spacer")
    FAULTS: ClassVar = ("deformed", "misplaced_part", "wrong_colour", "wrong_size", "doubled_part")

    material: Material
    corners: int
    rounding: float
    hole: float
    threads: int
    inner: np.ndarray

    @classmethod
    def sample(cls, generator: np.random.Generator) -> Self:
        """Draw the corners, the hole and its thread."""
        material = _material(generator)
        return cls(
            Stage.sample(generator, material.colour, several=True),
            material._replace(bevel=generator.uniform(0.05, 0.35), relief=max(material.relief, 0.15)),
            int(generator.choice([3, 4, 5, 6, 6, 6, 8, 12])),
            generator.uniform(0.85, 1.1),
            generator.uniform(0.25, 0.45),
            int(generator.integers(0, 4)),
            material.colour * generator.uniform(0.3, 0.8),
        )

    def _draw(self, canvas: Canvas, pose: Pose, generator: np.random.Generator, mishap: Mishap) -> None:
        half = np.pi / self.corners
        flat = np.cos(half) / np.cos((turn() % (2 * half)) - half)
        radii = mishap.dented(0.8 * np.minimum(flat, self.rounding * (1 + np.cos(half)) / 2))
        canvas.draw(pose, lambda u, v: outline(u, v, radii), self.material, reach=1.1)
        layout = Layout.place(generator, len(pose.x), _ORIGIN, self.inner, size=self.hole)
        layout = mishap.parts(layout, 0.3)
        inner = self.material._replace(relief=-self.material.relief, bevel=0.15)
        for _, at, opacity, colour in layout.parts(pose):
            canvas.draw(at, lambda u, v: length(u, v) - 1.15, inner, colour=colour, opacity=opacity, reach=1.3)
            for ring in range(self.threads):
                canvas.draw(at, _hoop(1.1 - 0.12 * ring), self.material, opacity=opacity)
            canvas.cut(at.child(0, 0, 0, 1.0 - 0.12 * self.threads), _disc, opacity=opacity)


@dataclass(frozen=True)
class Plate(Thing):
    """A plate with a pattern of holes."""

    NOUNS: ClassVar = ("perforated plate", "plate with holes", "bracket", "flange", "strainer")
    FAULTS: ClassVar = ("missing_part", "doubled_part", "misplaced_part", "wrong_size", "deformed", "wrong_colour")

    material: Material
    radii: np.ndarray
    places: np.ndarray
    size: float
    hole: Figure
    through: bool
    rim: Material

    @classmethod
    def sample(cls, generator: np.random.Generator) -> Self:
        """Draw the plate's outline and a grid, hexagonal or circular pattern."""
        material = _material(generator)
        power, aspect = float(generator.choice([2, 8, 20])), generator.uniform(0.6, 1)
        cos, sin = np.abs(np.cos(turn())), np.abs(np.sin(turn())) / aspect
        if generator.uniform() < 0.35:
            number, rings = int(generator.integers(4, 9)), int(generator.integers(1, 3))
            places = [_ring_of(number * k, 0.62 * k / rings)[:, :2] for k in range(1, rings + 1)]
            x, y = np.concatenate(places).T
            pitch, aspect = min(4 / number, 1.2 / rings) * 0.6, 1.0
            cos, sin = np.abs(np.cos(turn())), np.abs(np.sin(turn()))
            power = 2.0
        else:
            columns = int(generator.integers(3, 7))
            pitch = 1.2 / (columns - 1)
            x, y = (axis.ravel() for axis in np.mgrid[-columns : columns + 1, -columns : columns + 1] * pitch)
            x, y = x + (columns % 2 == 0) * pitch / 2, y
            if generator.uniform() < 0.4:
                x = x + (np.round(y / pitch) % 2) * pitch / 2
            limit = 0.7 if power > 2 else 0.6
            keep = (np.abs(x / limit) ** power + np.abs(y / limit / aspect) ** power) < 1
            x, y = x[keep], y[keep]
        return cls(
            Stage.sample(generator, material.colour),
            material,
            0.85 * (cos**power + sin**power) ** (-1 / power),
            np.stack([x, y], 1),
            pitch * generator.uniform(0.2, 0.38),
            Figure.sample(generator, ("ellipse", "ellipse", "box", "rounded", "capsule", "polygon")),
            generator.uniform() < 0.6,
            material.tinted(material.colour * generator.uniform(0.2, 0.6), relief=-material.relief, bevel=0.3),
        )

    def _draw(self, canvas: Canvas, pose: Pose, generator: np.random.Generator, mishap: Mishap) -> None:
        radii = mishap.dented(self.radii, 0.25)
        canvas.draw(pose, lambda u, v: outline(u, v, radii), self.material, reach=1.25)
        holes = Layout.place(generator, len(pose.x), self.places, self.rim.colour, size=self.size)
        for _, at, opacity, colour in mishap.parts(holes, 2 * self.size).parts(pose):
            canvas.draw(at, self.hole, self.rim, colour=colour, reach=1.3, opacity=opacity)
            if self.through:
                canvas.cut(at.child(0, 0, 0, 0.75), self.hole, reach=1.3, opacity=opacity)


@dataclass(frozen=True)
class Connector(Thing):
    """A housing with rows of pins."""

    NOUNS: ClassVar = ("connector", "plug", "pin header", "electronic component", "chip with pins", "comb")
    FAULTS: ClassVar = (*_PART_FAULTS, "bent_part")

    housing: Material
    pin: Material
    size: tuple[float, float]
    pins: np.ndarray
    long: float
    thick: float
    mark: Figure

    @classmethod
    def sample(cls, generator: np.random.Generator) -> Self:
        """Draw the housing, and pins on one side or two."""
        housing, pin = _plastic(generator), _metal(generator)
        number = int(generator.integers(3, 11))
        width, height = generator.uniform(0.6, 0.85), generator.uniform(0.15, 0.4)
        x = np.linspace(-0.85, 0.85, number) * width
        below = np.stack([x, np.full(number, height - 0.05), np.full(number, np.pi / 2)], 1)
        above = below * (1, -1, -1)
        return cls(
            Stage.sample(generator, housing.colour, pin.colour),
            housing,
            pin,
            (width, height),
            np.concatenate([below, above]) if generator.uniform() < 0.5 else below,
            generator.uniform(0.2, 0.45),
            width / number * generator.uniform(0.25, 0.5),
            Figure.sample(generator),
        )

    def _draw(self, canvas: Canvas, pose: Pose, generator: np.random.Generator, mishap: Mishap) -> None:
        colour = self.pin.colour
        pins = Layout.place(generator, len(pose.x), self.pins, colour, wobble=(0.003, 0.015, 0.01))
        material = self.pin._replace(bevel=self.thick)
        for _, at, opacity, tone in mishap.parts(pins, 4 * self.thick).parts(pose):

            def pin(u: np.ndarray, v: np.ndarray) -> np.ndarray:
                return box(u - self.long / 2, v, self.long / 2, self.thick, 0.5 * self.thick)

            canvas.draw(at, pin, material, colour=tone, opacity=opacity, reach=self.long + 0.05)
        width, height = self.size
        canvas.draw(pose, lambda u, v: box(u, v, width, height, 0.04), self.housing, reach=1.0)
        dark = Material(self.housing.colour * 0.6 + 0.1, -0.3, 0.2)
        canvas.draw(pose.child(-0.7 * width, 0, 0, 0.3 * height), self.mark, dark)


_BUNDLES = ((3, 0, 0), (4, 0, 0), (5, 0, 0), (6, 0, 1), (9, 3, 0), (12, 6, 1))  # wires: outside, between, centre


@dataclass(frozen=True)
class Cables(Thing):
    """A bundle of cables, cut across."""

    NOUNS: ClassVar = ("cable", "wire bundle", "cable cross-section", "wires", "pipes")
    FAULTS: ClassVar = _PART_FAULTS

    sheath: Material
    places: np.ndarray
    size: float
    colours: np.ndarray
    core: np.ndarray
    strands: float

    @classmethod
    def sample(cls, generator: np.random.Generator) -> Self:
        """Draw the number of wires, their insulation and their cores."""
        outer, middle, centre = _BUNDLES[generator.integers(len(_BUNDLES))]
        number = outer + middle + centre
        size = 0.72 / (1 + 1 / math.sin(math.pi / outer))
        places = np.concatenate([_ring_of(outer, 0.72 - size), _ring_of(middle, 0.72 - 3 * size), _ring_of(centre, 0)])
        sheath = _plastic(generator)
        palette = np.array([contrasting(generator, sheath.colour) for _ in range(generator.integers(1, 4))])
        return cls(
            Stage.sample(generator, sheath.colour),
            sheath,
            places[:, :2],
            size * 0.95,
            palette[np.arange(number) % len(palette)],
            from_hue(0.07, float(generator.choice([0.05, 0.6])), generator.uniform(0.5, 0.9)),
            generator.uniform(4, 9),
        )

    def _draw(self, canvas: Canvas, pose: Pose, generator: np.random.Generator, mishap: Mishap) -> None:
        count = len(pose.x)
        canvas.draw(pose, lambda u, v: length(u, v) - 0.82, self.sheath)
        canvas.draw(pose, lambda u, v: length(u, v) - 0.73, Material(self.sheath.colour * 0.3, grain=0.05))
        wires = Layout.place(
            generator, count, self.places, self.colours, size=self.size, wobble=(0.008, 0.5, 0.02), tint=0.04
        )
        wires = replace(wires, angle=wires.angle + generator.uniform(0, 2 * np.pi, wires.angle.shape))
        insulation = Material(self.core, 0.3, 0.2)

        def strands(u: np.ndarray, v: np.ndarray) -> np.ndarray:
            return 0.35 * np.sin(self.strands * u) * np.sin(self.strands * v)

        for _, at, opacity, colour in mishap.parts(wires, 0.9 * self.size).parts(pose):
            canvas.draw(at, _disc, insulation, colour=colour, opacity=opacity)
            inside = Material(self.core, 0.2, 0.2, 0, 0.05)
            canvas.draw(at.child(0, 0, 0, 0.62), _disc, inside, opacity=opacity, pattern=strands)


@dataclass(frozen=True)
class Medal(Thing):
    """A struck disc with a raised motif, a rim and beads."""

    NOUNS: ClassVar = ("medal", "token", "badge", "button", "seal")
    FAULTS: ClassVar = ("missing_part", "doubled_part", "misplaced_part", "wrong_size", "wrong_colour", "deformed")

    material: Material
    radii: np.ndarray
    rim: float
    motif: tuple[Figure, ...]
    places: np.ndarray
    beads: int

    @classmethod
    def sample(cls, generator: np.random.Generator) -> Self:
        """Draw a motif of several figures, mirrored or turned about the centre."""
        material = _metal(generator)
        number, beads = int(generator.integers(2, 6)), int(generator.integers(6, 20))
        figure = Figure.sample(generator)
        same = generator.uniform() < 0.5
        ring = _ring_of(number, generator.uniform(0.15, 0.35), generator.uniform(0, 6))
        lobes = int(generator.integers(3, 12))
        wavy = 1 + float(generator.choice([0, 0, 0.04])) * np.cos(lobes * turn())
        return cls(
            Stage.sample(generator, material.colour, several=True),
            material._replace(relief=max(material.relief, 0.4)),
            0.82 * wavy,
            generator.uniform(0.03, 0.1),
            tuple(figure if same else Figure.sample(generator) for _ in range(number)),
            np.column_stack([ring, np.full(number, 0.55 / math.sqrt(number))]),
            beads,
        )

    def _draw(self, canvas: Canvas, pose: Pose, generator: np.random.Generator, mishap: Mishap) -> None:
        radii = mishap.dented(self.radii, 0.2)
        struck = self.material._replace(bevel=0.06)
        canvas.draw(pose, lambda u, v: outline(u, v, radii), struck)
        field = struck._replace(relief=-struck.relief, gloss=0)
        canvas.draw(pose, lambda u, v: length(u, v) - 0.78 + self.rim, field)
        beads = np.column_stack([_ring_of(self.beads, 0.68 - self.rim), np.full(self.beads, 0.065)])
        places = np.concatenate([self.places, beads])
        figures = Layout.place(generator, len(pose.x), places, self.material.colour * 1.05, tint=0.01)
        raised = struck._replace(bevel=0.3)
        likely = [*range(len(self.motif)), *range(len(self.motif)), len(self.motif)]
        for j, at, opacity, colour in mishap.parts(figures, 0.25, likely).parts(pose):
            shape = self.motif[j] if j < len(self.motif) else _disc
            canvas.draw(at, shape, raised, colour=colour, opacity=opacity, reach=1.2, within=True)


@dataclass(frozen=True)
class Gasket(Thing):
    """A band round an opening, with lugs and bolt holes."""

    NOUNS: ClassVar = ("gasket", "ring", "seal ring", "rubber seal", "frame", "bracelet")
    FAULTS: ClassVar = ("deformed", "missing_part", "doubled_part", "misplaced_part", "wrong_size", "wrong_colour")

    material: Material
    radii: np.ndarray
    width: float
    holes: int
    hole: float

    @classmethod
    def sample(cls, generator: np.random.Generator) -> Self:
        """Draw the opening's outline and the lugs."""
        material = _plastic(generator) if generator.uniform() < 0.7 else _metal(generator)
        aspect, power = generator.uniform(0.6, 1), float(generator.choice([2, 2, 4, 10]))
        radii = (np.abs(np.cos(turn())) ** power + np.abs(np.sin(turn()) / aspect) ** power) ** (-1 / power)
        rough = 0.25 if generator.uniform() < 0.3 else 0.0
        return cls(
            Stage.sample(generator, material.colour, several=True),
            material,
            0.68 * radii / radii.max() * fourier_radii(generator, rough),
            generator.uniform(0.08, 0.3),
            int(generator.integers(3, 9)),
            generator.uniform(0.35, 0.6),
        )

    def _draw(self, canvas: Canvas, pose: Pose, generator: np.random.Generator, mishap: Mishap) -> None:
        radii = mishap.dented(self.radii)
        material = self.material._replace(bevel=self.width / 2)

        def band(u: np.ndarray, v: np.ndarray) -> np.ndarray:
            return np.abs(outline(u, v, radii)) - self.width / 2

        canvas.draw(pose, band, material, reach=1.25)
        index = np.arange(self.holes) * turn().size // self.holes
        places = self.radii[index, None] * np.stack([np.cos(turn()[index]), np.sin(turn()[index])], 1)
        lugs = Layout.place(generator, len(pose.x), places, self.material.colour, size=self.width * 0.75, tint=0.01)
        for _, at, opacity, colour in mishap.parts(lugs, 0.3).parts(pose):
            canvas.draw(at, _disc, material._replace(bevel=0.3), colour=colour, opacity=opacity)
            canvas.cut(at.child(0, 0, 0, self.hole), _disc, opacity=opacity)


@dataclass(frozen=True)
class Tray(Thing):
    """Equal things, sorted in rows."""

    NOUNS: ClassVar = ("blister pack", "tray", "candles", "pack", "box of sweets", "array of parts")
    FAULTS: ClassVar = (*_PART_FAULTS, "bent_part")

    tray: Material
    places: np.ndarray
    size: float
    figure: Figure
    item: Material
    colours: np.ndarray
    wobble: float

    @classmethod
    def sample(cls, generator: np.random.Generator) -> Self:
        """Draw the tray, the grid and the thing."""
        tray = _material(generator)
        item = _plastic(generator, tray.colour)._replace(bevel=0.8)
        rows, columns = (int(number) for number in generator.integers(2, 5, 2))
        pitch = 1.6 / max(rows, columns)
        grid = (
            np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), -1) - ((columns - 1) / 2, (rows - 1) / 2)
        ) * pitch
        palette = np.stack([item.colour, contrasting(generator, tray.colour)])[: generator.integers(1, 3)]
        return cls(
            Stage.sample(generator, tray.colour),
            tray,
            grid.reshape(-1, 2),
            pitch * generator.uniform(0.3, 0.42),
            Figure.sample(generator),
            item,
            palette[np.arange(rows * columns) % len(palette)],
            float(generator.choice([0.02, 0.1, 2])),
        )

    def _draw(self, canvas: Canvas, pose: Pose, generator: np.random.Generator, mishap: Mishap) -> None:
        width, height = (np.abs(self.places).max(0) + 1.4 * self.size).tolist()
        canvas.draw(pose, lambda u, v: box(u, v, width, height, 0.1), self.tray, reach=math.hypot(width, height))
        well = Material(self.tray.colour * 0.85, -0.3, 0.15)
        for x, y in self.places.tolist():
            canvas.draw(pose.child(x, y, 0, self.size * 1.15), lambda u, v: box(u, v, 1, 1, 0.5), well, reach=1.2)
        items = Layout.place(
            generator, len(pose.x), self.places, self.colours, size=self.size, wobble=(0.01, self.wobble, 0.02)
        )
        for _, at, opacity, colour in mishap.parts(items, 1.2 * self.size).parts(pose):
            canvas.draw(at, self.figure, self.item, colour=colour, opacity=opacity, reach=1.25)


# --- Natural ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fruit(Thing):
    """A fruit, nut, bean or stone: a shaded, speckled blob."""

    NOUNS: ClassVar = ("fruit", "nut", "bean", "potato", "stone", "hazelnut", "berry")
    FAULTS: ClassVar = ("deformed", "missing_part", "wrong_colour", "wrong_size", "misplaced_part", "bent_part")

    material: Material
    radii: np.ndarray
    shape_spread: float
    blush: tuple[float, float]
    speckles: int
    speckle: float
    second: np.ndarray
    end: Figure
    ribs: float

    @classmethod
    def sample(cls, generator: np.random.Generator) -> Self:
        """Draw the outline, the colours, the speckles and the end or stem."""
        hue = float(generator.choice([0.03, 0.07, 0.1, 0.15, 0.25, 0.33, 0.95]))
        colour = from_hue(hue, generator.uniform(0.2, 0.9), generator.uniform(0.3, 0.9))
        bevel, relief, gloss = generator.uniform((0.4, 0.3, -0.2), (0.9, 0.6, 0.4)).tolist()
        aspect = generator.uniform(0.5, 1)
        oval = 1 / np.sqrt(np.cos(turn()) ** 2 + (np.sin(turn()) / aspect) ** 2)
        return cls(
            Stage.sample(generator, colour, several=True),
            Material(colour, relief, bevel, max(gloss, 0), float(generator.choice([0.02, 0.06, 0.12]))),
            0.75 * oval * fourier_radii(generator, generator.uniform(0, 0.4), 1, 4),
            generator.uniform(0.02, 0.15),
            (float(generator.normal(0, 0.15)), float(generator.normal(0, 0.15))),
            int(generator.choice([0, 0, 8, 16])),
            generator.uniform(0.02, 0.05),
            contrasting(generator, colour, least=0.15),
            Figure.sample(generator, ("ellipse", "star", "capsule", "blob", "drop")),
            float(generator.choice([0, 0, generator.uniform(5, 12)])),
        )

    def _draw(self, canvas: Canvas, pose: Pose, generator: np.random.Generator, mishap: Mishap) -> None:
        count = len(pose.x)
        wave = generator.normal(size=(count, 3, 2)) * self.shape_spread / np.array([[2], [3], [4]])
        basis = np.stack([f(np.arange(2, 5)[:, None] * turn()) for f in (np.cos, np.sin)], 1)
        radii = self.radii * (1 + np.einsum("nkp,kpm->nm", wave, basis))
        radii = radii * mishap.dented(np.ones(turn().size), 0.35)
        colour = jittered(generator, self.material.colour, count, 0.06)
        tilt = self.blush

        def blush(u: np.ndarray, v: np.ndarray) -> np.ndarray:
            change = tilt[0] * u + tilt[1] * v
            return change + 0.15 * np.cos(self.ribs * 3 * v) if self.ribs else change

        canvas.draw(pose, lambda u, v: outline(u, v, radii), self.material, reach=1.2, colour=colour, pattern=blush)
        for _ in range(self.speckles):
            way, far = generator.uniform(0, 2 * np.pi, count), 0.5 * np.sqrt(generator.uniform(0, 1, count))
            dot = pose.child(far * np.cos(way), far * np.sin(way), 0, self.speckle * generator.uniform(0.5, 1.5, count))
            canvas.draw(dot, _disc, Material(self.second), opacity=np.full(count, 0.6), within=True)
        end = Layout.place(
            generator, count, np.array([[0.55, 0]]), self.second, size=0.17, wobble=(0.02, 0.2, 0.1), tint=0.05
        )
        for _, at, opacity, tone in mishap.parts(end, 0.5).parts(pose):
            canvas.draw(at, self.end, Material(self.second, 0.2, 0.3), colour=tone, opacity=opacity)


@dataclass(frozen=True)
class Cookie(Thing):
    """A baked thing with chips, or anything studded."""

    NOUNS: ClassVar = ("cookie", "biscuit", "cake", "pizza", "bread")
    FAULTS: ClassVar = ("deformed", "wrong_colour", "wrong_size", "missing_part", "doubled_part")

    material: Material
    radii: np.ndarray
    places: np.ndarray
    loose: float
    size: float
    chip: Figure
    chip_colour: np.ndarray
    icing: float

    @classmethod
    def sample(cls, generator: np.random.Generator) -> Self:
        """Draw the dough and its chips, in fixed or random places."""
        colour = from_hue(generator.uniform(0.05, 0.13), generator.uniform(0.2, 0.7), generator.uniform(0.35, 0.9))
        number = int(generator.integers(4, 14))
        angle, far = 2.4 * np.arange(number), 0.6 * np.sqrt((np.arange(number) + 0.5) / number)
        waves = int(generator.choice([0, 0, 8, 12, 20]))
        return cls(
            Stage.sample(generator, colour, several=True),
            Material(
                colour, generator.uniform(0.15, 0.5), generator.uniform(0.1, 0.5), 0, generator.uniform(0.04, 0.15)
            ),
            0.78 * (1 + 0.04 * np.cos(waves * turn()) * (waves > 0)),
            far[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1),
            float(generator.choice([0.01, 0.04, 0.15])),
            generator.uniform(0.08, 0.16),
            Figure.sample(generator, ("ellipse", "blob", "rounded", "polygon", "ring", "capsule")),
            contrasting(generator, colour),
            float(generator.choice([0, 0, generator.uniform(0.4, 0.65)])),
        )

    def _draw(self, canvas: Canvas, pose: Pose, generator: np.random.Generator, mishap: Mishap) -> None:
        count = len(pose.x)
        wave = generator.normal(size=(count, 6)) * 0.05 / np.arange(1, 7)
        phase = generator.uniform(0, 2 * np.pi, 6)
        radii = self.radii * (1 + wave @ np.cos(np.arange(2, 8)[:, None] * turn() + phase[:, None]))
        radii = radii * mishap.dented(np.ones(turn().size), 0.45)
        canvas.draw(
            pose,
            lambda u, v: outline(u, v, radii),
            self.material,
            reach=1.25,
            colour=jittered(generator, self.material.colour, count, 0.06),
        )
        if self.icing:
            icing = Material(np.clip(self.material.colour * 0.6 + 0.35, 0, 1), 0.25, 0.1, 0.1)
            canvas.draw(pose, lambda u, v: outline(u, v, radii) + 0.8 - self.icing, icing, within=True)
        chips = Layout.place(
            generator, count, self.places, self.chip_colour, size=self.size, wobble=(self.loose, 2, 0.2), tint=0.06
        )
        chip = Material(self.chip_colour, 0.35, 0.6, 0.1, 0.05)
        for _, at, opacity, colour in mishap.parts(chips, 2.5 * self.size).parts(pose):
            canvas.draw(at, self.chip, chip, colour=colour, opacity=opacity, within=True)


@dataclass(frozen=True)
class Leaf(Thing):
    """Leaflets with veins on a stem; with one leaflet, a simple leaf."""

    NOUNS: ClassVar = ("leaf", "plant", "twig", "feather", "seedling")
    FAULTS: ClassVar = ("missing_part", "misplaced_part", "wrong_colour", "wrong_size", "bent_part", "deformed")

    material: Material
    left: np.ndarray
    right: np.ndarray
    places: np.ndarray
    veins: tuple[float, float, float]
    stem: np.ndarray

    @classmethod
    def sample(cls, generator: np.random.Generator) -> Self:
        """Draw the blade's silhouette and veins, and how the leaflets sit."""
        autumn = generator.uniform() < 0.3
        hue = generator.uniform(0.02, 0.15) if autumn else generator.uniform(0.2, 0.4)
        colour = from_hue(hue, generator.uniform(0.3, 0.9), generator.uniform(0.25, 0.8))
        along = np.linspace(0, 1, 256)
        low, high = generator.uniform(0.5, 1.3, 2)
        teeth = float(generator.choice([0, 0, 0.08, 0.2])) * np.abs(np.sin(generator.integers(5, 16) * np.pi * along))
        width = along**low * (1 - along) ** high
        pairs = int(generator.choice([0, 0, 0, 1, 2, 3, 4]))
        height = np.linspace(0.55, -0.3, pairs) if pairs else np.zeros(0)
        spread = generator.uniform(0.6, 1.3)
        size = generator.uniform(0.3, 0.42) if pairs else 0.72
        rows = [(0.0, -0.5 if pairs else -0.1, 0.0, size)]
        for y in height:
            reach = 0.9 * size
            across, up = reach * math.sin(spread), y - reach * math.cos(spread)
            rows += [(-across, up, -spread, size), (across, up, spread, size)]
        return cls(
            Stage.sample(generator, colour),
            Material(colour, generator.uniform(0, 0.3), 0.1, 0, 0.04),
            width / width.max() * generator.uniform(0.25, 0.7) * (1 - teeth),
            width / width.max() * generator.uniform(0.25, 0.7) * (1 - teeth),
            np.array(rows),
            (
                generator.uniform(4, 12),
                generator.uniform(0.3, 1.2),
                generator.uniform(0.15, 0.4) * generator.choice([-1, 1]),
            ),
            colour * generator.uniform(0.5, 1),
        )

    def _draw(self, canvas: Canvas, pose: Pose, generator: np.random.Generator, mishap: Mishap) -> None:
        count = len(pose.x)
        hit = mishap.strikes("deformed")
        bitten = column(np.where(hit, 0.3, -1))
        number, rake, strength = self.veins
        curl = column(generator.normal(0, 0.1, count))

        def blade(u: np.ndarray, v: np.ndarray) -> np.ndarray:
            return lathe(u + curl * v * v, v, self.left, self.right)

        def bitten_blade(u: np.ndarray, v: np.ndarray) -> np.ndarray:
            return np.maximum(blade(u, v), bitten - length(u - 0.3, v - 0.05))

        def veins(u: np.ndarray, v: np.ndarray) -> np.ndarray:
            u = u + curl * v * v
            phase = np.abs(((v + rake * np.abs(u)) * number) % 1 - 0.5)
            return strength * np.maximum(np.clip(1 - 8 * phase, 0, 1), np.clip(1.6 - np.abs(u) * 40, 0, 1))

        stem = Material(self.stem, 0.2, 0.05)
        canvas.draw(pose, lambda u, v: capsule(u, v, (0, -0.2), (0, 0.9), 0.025), stem)
        leaflets = Layout.place(
            generator, count, self.places, self.material.colour, wobble=(0.01, 0.06, 0.04), tint=0.06
        )
        last = len(self.places) - 1
        for j, at, opacity, colour in mishap.parts(leaflets, 0.5).parts(pose):
            shape = bitten_blade if j == last and hit.any() else blade
            canvas.draw(at, shape, self.material, colour=colour, opacity=opacity, pattern=veins, reach=1.15)


@dataclass(frozen=True)
class Flower(Thing):
    """Petals round a centre; also fans, propellers and suns."""

    NOUNS: ClassVar = ("flower", "blossom", "fan", "propeller", "rosette")
    FAULTS: ClassVar = (*_PART_FAULTS, "bent_part")

    petal: Figure
    material: Material
    petals: int
    far: float
    size: float
    centre: Material
    centre_size: float

    @classmethod
    def sample(cls, generator: np.random.Generator) -> Self:
        """Draw the petals and the centre."""
        material = _plastic(generator)
        petals = int(generator.integers(3, 15))
        return cls(
            Stage.sample(generator, material.colour, several=petals < 8),
            Figure.sample(
                generator, ("ellipse", "ellipse", "drop", "rounded", "polygon", "capsule", "crescent", "blob")
            ),
            material._replace(bevel=generator.uniform(0.1, 0.8), grain=0.03),
            petals,
            generator.uniform(0.4, 0.55),
            generator.uniform(0.25, 0.4),
            _plastic(generator, material.colour)._replace(grain=0.1),
            generator.uniform(0.1, 0.3),
        )

    def _draw(self, canvas: Canvas, pose: Pose, generator: np.random.Generator, mishap: Mishap) -> None:
        petals = Layout.place(
            generator,
            len(pose.x),
            _ring_of(self.petals, self.far),
            self.material.colour,
            size=self.size,
            wobble=(0.01, 0.04, 0.03),
            tint=0.04,
        )
        for _, at, opacity, colour in mishap.parts(petals, 0.35).parts(pose):
            canvas.draw(at, self.petal, self.material, colour=colour, opacity=opacity)
        canvas.draw(pose.child(0, 0, 0, self.centre_size), _disc, self.centre)


@dataclass(frozen=True)
class Dish(Thing):
    """Cells, colonies or grains scattered in a dish or field of view."""

    NOUNS: ClassVar = ("cells in a dish", "cells", "colonies", "blood smear", "seeds", "microscope picture")
    FAULTS: ClassVar = ("wrong_size", "wrong_colour", "doubled_part")

    dish: Material
    radius: float
    number: int
    size: float
    body: Figure
    colour: np.ndarray
    nucleus: Figure
    nucleus_size: float
    nucleus_colour: np.ndarray
    opacity: float

    @classmethod
    def sample(cls, generator: np.random.Generator) -> Self:
        """Draw the dish, and what the cells in it look like."""
        ground = random_colour(generator)
        ground = ground if generator.uniform() < 0.5 else np.clip(0.75 + 0.25 * ground, 0, 1)
        colour = contrasting(generator, ground, least=0.2)
        number = int(generator.integers(8, 26))
        return cls(
            Stage.sample(generator, ground),
            Material(ground, 0.2, 0.05, 0, 0.02),
            float(generator.choice([0.85, 2])),
            number,
            0.75 / math.sqrt(number) * generator.uniform(0.6, 1.1),
            Figure.sample(generator, ("ellipse", "ellipse", "blob", "ring", "capsule", "crescent")),
            colour,
            Figure.sample(generator, ("ellipse", "blob", "crescent", "capsule")),
            generator.uniform(0.3, 0.6),
            contrasting(generator, colour, least=0.2),
            generator.uniform(0.6, 1),
        )

    def _draw(self, canvas: Canvas, pose: Pose, generator: np.random.Generator, mishap: Mishap) -> None:
        count, number = len(pose.x), self.number
        canvas.draw(pose, lambda u, v: length(u, v) - self.radius, self.dish, reach=self.radius + 0.1)
        far = 0.72 * np.sqrt((np.arange(number) + generator.uniform(size=(count, number))) / number)
        way = 2.4 * np.arange(number) + generator.normal(0, 0.25, (count, number))
        way += generator.uniform(0, 2 * np.pi, (count, 1))
        places = far[..., None] * np.stack([np.cos(way), np.sin(way)], -1)
        cells = Layout.place(generator, count, places, self.colour, size=self.size, wobble=(0, 3, 0.1), tint=0.05)
        body = Material(self.colour, 0.15, 0.4, 0, 0.05)
        for _, at, opacity, colour in mishap.parts(cells, 1.4 * self.size).parts(pose):
            canvas.draw(at, self.body, body, colour=colour, opacity=opacity * self.opacity, blur=0.03)
            inner = at.child(0, 0, 0.7, self.nucleus_size)
            canvas.draw(inner, self.nucleus, Material(self.nucleus_colour, grain=0.1), opacity=opacity, blur=0.03)


# --- Invented ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Creature(Thing):
    """A tree of jointed parts: animals, vehicles, tools and toys that do not exist."""

    NOUNS: ClassVar = ("animal", "bird", "insect", "fish", "toy", "vehicle", "tool", "machine", "figure")
    FAULTS: ClassVar = (*_PART_FAULTS, "bent_part")

    parents: tuple[int, ...]
    joints: np.ndarray
    figures: tuple[Figure, ...]
    materials: tuple[Material, ...]
    order: tuple[int, ...]
    looseness: float

    @classmethod
    def sample(cls, generator: np.random.Generator) -> Self:
        """Draw the tree, with some limbs in mirrored pairs."""
        kinds = ("ellipse", "ellipse", "capsule", "capsule", "box", "rounded", "polygon", "drop", "blob", "crescent")
        palette = [_plastic(generator) for _ in range(generator.integers(2, 5))]
        parents, joints = [-1], [(0.0, 0.0, 0.0, generator.uniform(0.35, 0.5))]
        figures = [Figure.sample(generator, ("ellipse", "rounded", "blob", "polygon", "box", "drop"))]
        materials = [palette[0]]
        goal = int(generator.integers(4, 10))
        while len(parents) < goal:
            parent = int(generator.choice(len(parents))) if generator.uniform() < 0.35 else 0
            side, lean = generator.uniform(-math.pi, math.pi), generator.normal(0, 0.4)
            size = float(np.clip(generator.uniform(0.4, 0.9) * joints[parent][3], 0.1, 0.4))
            figure = Figure.sample(generator, kinds)
            material = palette[generator.integers(len(palette))]
            for sign in (1, -1) if generator.uniform() < 0.5 else (1,):
                away = 0.95 * figures[parent].edge(sign * side)
                parents.append(parent)
                joints.append((away * math.cos(sign * side), away * math.sin(sign * side), sign * (side + lean), size))
                figures.append(figure)
                materials.append(material)
        colours = [material.colour for material in palette]
        return cls(
            Stage.sample(generator, *colours[:2], upright=generator.uniform() < 0.6),
            tuple(parents),
            np.array(joints),
            tuple(figures),
            tuple(materials),
            tuple(generator.permutation(len(parents)).tolist()),
            generator.uniform(0.03, 0.3),
        )

    def _draw(self, canvas: Canvas, pose: Pose, generator: np.random.Generator, mishap: Mishap) -> None:
        leaves = [j for j in range(len(self.parents)) if j not in self.parents]
        colours = np.array([material.colour for material in self.materials])
        limbs = Layout.place(
            generator, len(pose.x), self.joints, colours, wobble=(0.01, self.looseness, 0.03), tint=0.03
        )
        limbs = mishap.parts(limbs, 0.8, leaves)
        body = pose.child(0, 0, 0, limbs.size[:, 0])
        frames = [body]
        for j, parent in enumerate(self.parents[1:], 1):
            base = frames[parent]
            size = limbs.size[:, j] / self.joints[parent, 3]
            joint = base.child(limbs.x[:, j], limbs.y[:, j], limbs.angle[:, j], size)
            frames.append(joint.child(0.5, 0))
        for j in self.order:
            twin = frames[j].child(1.5 * limbs.offset[:, 0], 1.5 * limbs.offset[:, 1])
            for at, opacity in ((frames[j], limbs.opacity[:, j]), (twin, limbs.twin[:, j])):
                colour = limbs.colour[:, j]
                canvas.draw(at, self.figures[j], self.materials[j], colour=colour, opacity=opacity, reach=1.3)


@dataclass(frozen=True)
class Mask(Thing):
    """A base with parts arranged evenly to both sides: masks, robots, dashboards, fronts of houses."""

    NOUNS: ClassVar = ("mask", "robot", "face", "dashboard", "toy", "house", "emblem")
    FAULTS: ClassVar = (*_PART_FAULTS, "bent_part", "deformed")

    base: Material
    radii: np.ndarray
    parts: np.ndarray
    figures: tuple[Figure, ...]
    colours: np.ndarray
    looseness: float

    @classmethod
    def sample(cls, generator: np.random.Generator) -> Self:
        """Draw the base, and single and paired features."""
        base = _plastic(generator)
        aspect, power = generator.uniform(0.7, 1.1), generator.uniform(2, 6)
        radii = (np.abs(np.cos(turn()) / aspect) ** power + np.abs(np.sin(turn())) ** power) ** (-1 / power)
        rows, figures, colours = [], [], []
        for y in np.linspace(-0.5, 0.5, int(generator.integers(2, 5))) + generator.normal(0, 0.04):
            figure, colour, size = (
                Figure.sample(generator),
                contrasting(generator, base.colour),
                generator.uniform(0.1, 0.24),
            )
            apart, angle = generator.uniform(0.22, 0.4), generator.choice([0.0, 0.0, generator.uniform(-0.6, 0.6)])
            pair = generator.uniform() < 0.6
            inner = Figure.sample(generator, ("ellipse", "star", "box", "ring"))
            second = contrasting(generator, colour)
            for side in (-1, 1) if pair else (0,):
                rows.append((side * apart, y, side * angle, size * (1 if pair else 1.4)))
                figures.append(figure)
                colours.append(colour)
                if generator.uniform() < 0.9 and pair:
                    rows.append((side * apart, y, side * angle, size * 0.45))
                    figures.append(inner)
                    colours.append(second)
        return cls(
            Stage.sample(generator, base.colour, upright=True),
            base,
            0.85 * radii / max(1.0, float(radii.max())),
            np.array(rows),
            tuple(figures),
            np.array(colours),
            generator.uniform(0.003, 0.03),
        )

    def _draw(self, canvas: Canvas, pose: Pose, generator: np.random.Generator, mishap: Mishap) -> None:
        radii = mishap.dented(self.radii)
        canvas.draw(pose, lambda u, v: outline(u, v, radii), self.base, reach=1.1)
        wobble = (self.looseness, 2 * self.looseness, 2 * self.looseness)
        features = Layout.place(generator, len(pose.x), self.parts, self.colours, wobble=wobble)
        feature = Material(self.base.colour, self.base.relief, 0.3, self.base.gloss)
        for j, at, opacity, colour in mishap.parts(features, 0.3).parts(pose):
            canvas.draw(at, self.figures[j], feature, colour=colour, opacity=opacity)


@dataclass(frozen=True)
class Dial(Thing):
    """A clock or gauge: a face with ticks and hands, which may stand anywhere."""

    NOUNS: ClassVar = ("clock", "gauge", "dial", "meter", "knob", "watch")
    FAULTS: ClassVar = (*_PART_FAULTS, "bent_part")

    face: Material
    rim: Material
    ticks: int
    span: float
    tick: Figure
    tick_colour: np.ndarray
    hands: np.ndarray
    hand_colour: np.ndarray
    free: bool

    @classmethod
    def sample(cls, generator: np.random.Generator) -> Self:
        """Draw the scale and the hands."""
        face, rim = _plastic(generator), _material(generator)
        number = int(generator.integers(1, 4))
        return cls(
            Stage.sample(generator, rim.colour, face.colour, upright=generator.uniform() < 0.7),
            face._replace(gloss=0.0, relief=0.0),
            rim,
            int(generator.integers(6, 17)),
            float(generator.choice([2 * math.pi, 1.5 * math.pi, 1.2 * math.pi])),
            Figure.sample(generator, ("box", "ellipse", "capsule", "polygon")),
            contrasting(generator, face.colour),
            np.stack([generator.uniform(-np.pi, np.pi, number), generator.uniform(0.3, 0.6, number)], 1),
            contrasting(generator, face.colour),
            generator.uniform() < 0.5,
        )

    def _draw(self, canvas: Canvas, pose: Pose, generator: np.random.Generator, mishap: Mishap) -> None:
        count = len(pose.x)
        canvas.draw(pose, lambda u, v: length(u, v) - 0.85, self.rim)
        canvas.draw(pose, lambda u, v: length(u, v) - 0.75, self.face)
        angle = math.pi / 2 + (2 * math.pi - self.span) / 2 + self.span * np.arange(self.ticks) / self.ticks
        places = np.stack([0.62 * np.cos(angle), 0.62 * np.sin(angle), angle], 1)
        ticks = Layout.place(generator, count, places, self.tick_colour, size=0.08)
        for _, at, opacity, colour in mishap.parts(ticks, 0.25).parts(pose):
            canvas.draw(at, self.tick, Material(self.tick_colour), colour=colour, opacity=opacity)
        for start, reach in self.hands.tolist():
            spread = np.pi if self.free else 0.05
            hand = pose.child(0, 0, start + generator.uniform(-spread, spread, count))
            needle = Material(self.hand_colour, 0.2, 0.05)
            canvas.draw(hand, _wire(np.array([(-0.1, 0), (reach, 0)]), 0.035), needle, reach=reach + 0.05)
        canvas.draw(pose.child(0, 0, 0, 0.08), _disc, self.rim)


@dataclass(frozen=True)
class Label(Thing):
    """A printed label or logo."""

    NOUNS: ClassVar = ("label", "logo", "print", "sticker", "barcode", "card")
    FAULTS: ClassVar = (*_PART_FAULTS, "bent_part")

    paper: Material
    aspect: float
    parts: np.ndarray
    figures: tuple[Figure, ...]
    colours: np.ndarray

    @classmethod
    def sample(cls, generator: np.random.Generator) -> Self:
        """Draw rows of small signs, bars and a motif."""
        paper = Material(random_colour(generator), 0.1, 0.03, 0, 0.015)
        aspect = generator.uniform(0.5, 1)
        ink = [contrasting(generator, paper.colour) for _ in range(2)]
        rows, figures, colours = [], [], []
        lines = int(generator.integers(2, 5))
        for line, y in enumerate(np.linspace(-0.55, 0.55, lines) * aspect):
            number = int(generator.integers(1, 8))
            size = min(0.65 / number, 0.8 * aspect / lines) * generator.uniform(0.7, 1)
            plain = generator.uniform() < 0.4
            kinds = ("box", "capsule", "rounded") if plain else FIGURES
            shared = Figure.sample(generator, kinds)
            upright = float(generator.choice([0, 0, math.pi / 2]))
            for x in np.linspace(-0.62, 0.62, number) if number > 1 else (generator.uniform(-0.3, 0.3),):
                rows.append((x, y, upright, size))
                figures.append(shared if plain else Figure.sample(generator, kinds))
                colours.append(ink[line % 2])
        return cls(
            Stage.sample(generator, paper.colour),
            paper,
            aspect,
            np.array(rows),
            tuple(figures),
            np.array(colours),
        )

    def _draw(self, canvas: Canvas, pose: Pose, generator: np.random.Generator, mishap: Mishap) -> None:
        canvas.draw(pose, lambda u, v: box(u, v, 0.9, 0.9 * self.aspect, 0.06), self.paper, reach=1.28)
        shift = generator.normal(0, 0.01, (2, len(pose.x)))
        sheet = pose.child(shift[0], shift[1])
        signs = Layout.place(generator, len(pose.x), self.parts, self.colours)
        for j, at, opacity, colour in mishap.parts(signs, 0.22).parts(sheet):
            canvas.draw(at, self.figures[j], Material(self.paper.colour), colour=colour, opacity=opacity)


@dataclass(frozen=True)
class Sign(Thing):
    """A pictogram on a plate with a border, such as a traffic sign."""

    NOUNS: ClassVar = ("sign", "traffic sign", "pictogram", "symbol", "icon", "warning sign")
    FAULTS: ClassVar = ("missing_part", "doubled_part", "misplaced_part", "wrong_colour", "wrong_size", "bent_part")

    plate: Figure
    border: np.ndarray
    ground: np.ndarray
    inner: float
    figures: tuple[Figure, ...]
    places: np.ndarray
    colours: np.ndarray
    curve: np.ndarray

    @classmethod
    def sample(cls, generator: np.random.Generator) -> Self:
        """Draw the plate and a pictogram of a few parts and a curved line."""
        border = random_colour(generator)
        ground = contrasting(generator, border)
        number = int(generator.integers(2, 5))
        ink = [contrasting(generator, ground) for _ in range(2)]
        plate = Figure.sample(generator, ("ellipse", "rounded", "polygon", "box"))
        return cls(
            Stage.sample(generator, border, upright=generator.uniform() < 0.7, several=True),
            replace(plate, aspect=float(generator.choice([1, max(plate.aspect, 0.7)]))),
            border,
            ground,
            generator.uniform(0.7, 0.92),
            tuple(Figure.sample(generator) for _ in range(number)),
            np.column_stack(
                [
                    generator.uniform(-0.28, 0.28, (number, 2)),
                    generator.choice(np.arange(8) * np.pi / 4, number),
                    generator.uniform(0.14, 0.3, number),
                ]
            ),
            np.array([ink[j % 2] for j in range(number)]),
            spline(generator.choice(np.linspace(-0.4, 0.4, 4), (3, 2)), 4),
        )

    def _draw(self, canvas: Canvas, pose: Pose, generator: np.random.Generator, mishap: Mishap) -> None:
        board = pose.child(0, 0, 0, 0.85)
        canvas.draw(board, self.plate, Material(self.border, 0.15, 0.04), reach=1.3)
        canvas.draw(board.child(0, 0, 0, self.inner), self.plate, Material(self.ground, grain=0.01), reach=1.3)
        ink = Material(self.colours[-1])
        canvas.draw(pose, lambda u, v: polyline(u, v, self.curve) - 0.05, ink, reach=0.75)
        parts = Layout.place(generator, len(pose.x), self.places, self.colours)
        for j, at, opacity, colour in mishap.parts(parts, 0.35).parts(pose):
            canvas.draw(at, self.figures[j], ink, colour=colour, opacity=opacity)


OBJECTS: tuple[type[Thing], ...] = (
    Washer,
    Gear,
    Bottle,
    Board,
    Pill,
    Screw,
    Nut,
    Plate,
    Connector,
    Cables,
    Medal,
    Gasket,
    Tray,
    Fruit,
    Cookie,
    Leaf,
    Flower,
    Dish,
    Creature,
    Mask,
    Dial,
    Label,
    Sign,
)
"""The families of objects."""
