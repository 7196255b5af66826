"""Families of glyphs: handwritten, printed, small scanned and spelt signs of invented alphabets."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np

from anomalib_inctrl.data.procedural.family import Family, Rendering
from anomalib_inctrl.data.procedural.shapes import (
    Backdrop,
    Canvas,
    Material,
    Pose,
    column,
    contrasting,
    polyline,
    random_colour,
    spline,
)

if TYPE_CHECKING:
    from typing_extensions import Self

_STEPS = 3  # straight pieces between two control points
_FILLED = 0.85  # how far a character reaches
_SIMILAR = 0.4  # how often a handwritten character's sibling has all strokes but one of it
_LATTICE = np.linspace(-0.75, 0.75, 4)


# --- Characters -------------------------------------------------------------------------------------------------------


class Stroke(NamedTuple):
    """One stroke of a character.

    Attributes:
        points (np.ndarray): Control points ``(m, 2)`` in ``[-1, 1]``, or ``(n, m, 2)``, other ones in each picture.
        smooth (bool): A curve through them, not straight pieces.
    """

    points: np.ndarray
    smooth: bool


def _arc(generator: np.random.Generator) -> Stroke:
    """A closed or open loop of letter-like size, in a half or the whole of the character."""
    start = generator.choice(np.arange(4)) * math.pi / 2
    span = float(generator.choice([1, 1, 1.5, 2, 2])) * math.pi * generator.choice([-1, 1])
    angle = start + span * np.linspace(0, 1, 7)
    width, height = generator.choice([0.35, 0.55, 0.75], 2)
    x, y = generator.choice([-0.2, 0, 0.2]), generator.choice([-1, 0, 1]) * (0.8 - height)
    return Stroke(np.stack([x + width * np.cos(angle), y + height * np.sin(angle)], 1), True)


def _bar(generator: np.random.Generator) -> Stroke:
    """A straight stroke: upright, level or slanting."""
    start, end = generator.choice(_LATTICE, (2, 2))
    direction = generator.choice(3, p=(0.45, 0.35, 0.2))
    if direction < 2:
        end = np.where(np.arange(2) == direction, -start + generator.choice([0, 0.25], 2), start)
        end[1 - direction] = -math.copysign(0.75, start[1 - direction])
        end[direction] = start[direction]
    if np.abs(end - start).max() < 0.4:
        end = -start
    return Stroke(np.stack([start, end]), False)


def _hook(generator: np.random.Generator) -> Stroke:
    """A curve through three to five neighbouring places of a coarse lattice."""
    at = generator.integers(0, 4, 2)
    places = [at]
    for _ in range(generator.integers(2, 5)):
        step = generator.integers(-2, 3, 2)
        step = step if np.any(step) else np.array([1, -1])
        moved = np.clip(at + step, 0, 3)
        at = moved if np.any(moved != at) else 3 - at
        places.append(at)
    return Stroke(_LATTICE[np.array(places)], generator.uniform() < 0.75)


def _chained(generator: np.random.Generator, strokes: list[Stroke]) -> list[Stroke]:
    """The strokes, some of them moved so that they begin on an earlier one."""
    chained = strokes[:1]
    for points, smooth in strokes[1:]:
        earlier = chained[generator.integers(len(chained))].points
        if generator.uniform() < 0.7:
            points = points + earlier[generator.integers(len(earlier))] - points[0]
        centre = (points.max(0) + points.min(0)) / 2
        chained.append(Stroke(points - centre + np.clip(centre, -0.4, 0.4), smooth))
    return chained


def character(generator: np.random.Generator, lettered: bool) -> tuple[Stroke, ...]:
    """Invent a character.

    Args:
        generator (np.random.Generator): Source of chance.
        lettered (bool): Build it of loops and bars, as letters and numbers are, not of free curves.

    Returns:
        tuple[Stroke, ...]: Two to five strokes within ``[-1, 1]``.
    """
    number = int(generator.choice([2, 2, 3, 3, 4, 5] if not lettered else [2, 2, 2, 3]))
    makers = (_arc, _bar) if lettered else (_hook, _hook, _bar, _arc)
    strokes = _chained(generator, [makers[generator.integers(len(makers))](generator) for _ in range(number)])
    every = np.concatenate([stroke.points for stroke in strokes])
    low, high = every.min(0), every.max(0)
    half = max(float((high - low).max()) / 2, 0.3)
    return tuple(Stroke((points - (low + high) / 2) * (_FILLED / half), smooth) for points, smooth in strokes)


class Hand(NamedTuple):
    """How much a category's members differ, as writing does.

    Attributes:
        slant (float): Standard deviation of the shear.
        turn (float): Of the angle, in radians.
        stretch (float): Of the relative height and width.
        elastic (float): Of the control points.
        width (float): Half-width of the strokes.
        pressure (float): Standard deviation of its logarithm.
    """

    slant: float
    turn: float
    stretch: float
    elastic: float
    width: float
    pressure: float

    @classmethod
    def sample(cls, generator: np.random.Generator, steadiness: float, strokes: int) -> Hand:
        """Draw a hand; a ``steadiness`` of 0 writes freely, of 1 prints. The more strokes, the thinner."""
        free = (1 - steadiness) * generator.uniform(0.4, 1)
        return cls(
            0.25 * free,
            0.15 * free,
            0.12 * free,
            0.09 * free,
            generator.uniform(0.04, 0.25 / math.sqrt(strokes)),
            0.25 * free,
        )


class Accident(NamedTuple):
    """A fault of one stroke of a character in each picture.

    Attributes:
        fault (str | None): Which.
        chosen (np.ndarray): The stroke ``(n,)``; negative for none.
        place (np.ndarray): How far along it, ``(n,)`` in ``[0, 1]``.
        shift (np.ndarray): ``(n, 2)``, sideways.
    """

    fault: str | None
    chosen: np.ndarray
    place: np.ndarray
    shift: np.ndarray


_FAULTS = ("broken_stroke", "missing_part", "doubled_part", "misplaced_part")


def _write(
    canvas: Canvas,
    pose: Pose,
    strokes: tuple[Stroke, ...],
    hand: Hand,
    ink: Material,
    generator: np.random.Generator,
    accident: Accident,
    blur: float,
) -> None:
    """Write a character in each picture, within the unit square of its pose."""
    n = len(pose.x)
    slant, rise, fall = (
        generator.normal(size=(3, n, 1)) * np.array([hand.slant, hand.stretch, hand.stretch])[:, None, None]
    )
    width = column(hand.width * np.exp(hand.pressure * generator.normal(size=n)))
    pieces: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for number, (points, smooth) in enumerate(strokes):
        moved = points + hand.elastic * generator.normal(size=(n, *points.shape[-2:]))
        x, y = moved[..., 0] * np.exp(rise) - slant * moved[..., 1], moved[..., 1] * np.exp(fall)
        curve = np.stack([x, y], -1)
        curve = spline(curve, _STEPS) if smooth else curve
        hit = accident.chosen == number
        shift = np.where((hit & (accident.fault == "misplaced_part"))[:, None, None], accident.shift[:, None], 0)
        there = np.where(hit & (accident.fault == "missing_part"), 0.0, 1.0)
        pieces.append((curve + shift, there, hit & (accident.fault == "broken_stroke")))
        if accident.fault == "doubled_part" and hit.any():
            pieces.append((curve + accident.shift[:, None], np.where(hit, 1.0, 0.0), np.zeros(n, bool)))

    def written(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        nearest = np.full(u.shape, np.inf, np.float32)
        for curve, there, broken in pieces:
            distance = polyline(u, v, curve) + column(np.where(there > 0, 0, 10))
            if broken.any():
                at = accident.place * (curve.shape[1] - 1)
                index = np.minimum(at.astype(int), curve.shape[1] - 2)
                rows = np.arange(n)
                gap = curve[rows, index] + (at - index)[:, None] * (curve[rows, index + 1] - curve[rows, index])
                hole = np.sqrt((u - column(gap[:, 0])) ** 2 + (v - column(gap[:, 1])) ** 2)
                cut = 2 * width + 0.15 - hole
                distance = np.where(column(broken) > 0, np.maximum(distance, cut), distance)
            np.minimum(nearest, distance, out=nearest)
        return nearest - width

    canvas.draw(pose, written, ink, reach=1.5, blur=blur)


@dataclass(frozen=True)
class Glyph(Family):
    """A character or a word of an invented alphabet.

    Attributes:
        word (tuple[tuple[Stroke, ...], ...]): Its characters.
        hand (Hand): How it is written.
        ink (Material): Looks of the strokes.
        backdrop (Backdrop): What they are written on.
        size (float): Height, of the picture's.
        loose (tuple[float, float]): Most sideways shift, and relative change of size.
        angle (float): Of the baseline, in radians.
        blur (float): Width of the soft edges.
        coarse (tuple[int, str]): Pixels and enlargement of a picture of low resolution; 0 for a full one.
    """

    NOUNS: ClassVar[tuple[str, ...]] = ("glyph", "character", "symbol", "letter")
    FAULTS: ClassVar = _FAULTS

    word: tuple[tuple[Stroke, ...], ...]
    hand: Hand
    ink: Material
    backdrop: Backdrop
    size: float
    loose: tuple[float, float]
    angle: float
    blur: float
    coarse: tuple[int, str]

    @classmethod
    def sample(cls, generator: np.random.Generator) -> Self:
        """Draw one character of free curves."""
        return cls._of(generator, (character(generator, lettered=False),), generator.uniform(0, 0.8))

    def sibling(self, generator: np.random.Generator) -> Self:
        """Write another word by the same hand in the same ink."""
        return replace(self, word=self.sample(generator).word)

    @classmethod
    def _of(
        cls,
        generator: np.random.Generator,
        word: tuple[tuple[Stroke, ...], ...],
        steadiness: float,
        coarse: tuple[int, str] = (0, ""),
    ) -> Self:
        """Draw all but the characters, of which there may be none as yet."""
        ink, backdrop = _colours(generator)
        angle = float(generator.choice([0, 0, 0, generator.uniform(-math.pi, math.pi)]))
        return cls(
            word,
            Hand.sample(generator, steadiness, max((len(strokes) for strokes in word), default=2)),
            ink,
            backdrop,
            generator.uniform(0.55, 0.9),
            (float(generator.choice([0.01, 0.05, 0.12])), float(generator.choice([0.01, 0.05, 0.15]))),
            angle if coarse[0] == 0 else 0.0,
            float(generator.choice([0, 0, 0.04, 0.1])),
            coarse,
        )

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
        letter = trouble.integers(len(self.word), size=count)
        stroke = np.array([trouble.integers(len(self.word[index])) for index in letter])
        place, way = trouble.uniform(0.25, 0.75, count), trouble.uniform(0, 2 * np.pi, count)
        shift = trouble.uniform(0.3, 0.55, (count, 1)) * np.stack([np.cos(way), np.sin(way)], 1)

        fine = self.coarse[0] or side
        canvas = Canvas(generator, count, fine, 0.0, (8, 32))
        drift, grow = self.loose
        x, y, scale, angle = generator.uniform(-1, 1, (4, count))
        letters = len(self.word)
        step = 1.75 / letters if letters > 1 else 0.0
        half = self.size if letters == 1 else min(self.size, 0.95 / letters)
        pose = Pose(
            drift * x, drift * y, self.angle + self.hand.turn * angle, (1 + grow * scale) * half * (1 - drift / 2)
        )
        for index, strokes in enumerate(self._written(generator, count)):
            chosen = np.where((letter == index) & (fault is not None), stroke, -1)
            at = pose.child((index - (letters - 1) / 2) * step / half, 0.0)
            accident = Accident(fault, chosen, place, shift)
            _write(canvas, at, strokes, self.hand, self.ink, generator, accident, self.blur)
        image, inside = canvas.finish(self.backdrop.render(generator, count, fine))
        if fine == side:
            return Rendering(image, inside)
        weights = _enlargement(fine, side, self.coarse[1])
        planes = weights @ np.moveaxis(np.concatenate([image, inside[..., None]], -1), -1, 1) @ weights.T
        planes = np.clip(planes, 0, 1)
        return Rendering(np.ascontiguousarray(np.moveaxis(planes[:, :3], 1, -1)), planes[:, 3])

    def _written(self, generator: np.random.Generator, count: int) -> tuple[tuple[Stroke, ...], ...]:
        """The characters of ``count`` pictures, before the hand moves them."""
        del generator, count
        return self.word


def _colours(generator: np.random.Generator) -> tuple[Material, Backdrop]:
    """Ink and ground: bright on dark, dark on bright, or coloured."""
    backdrop = Backdrop.sample(generator)
    match generator.integers(4):
        case 0:
            ink, ground = np.full(3, generator.uniform(0.8, 1)), np.full(3, generator.uniform(0, 0.12))
        case 1:
            ink, ground = np.full(3, generator.uniform(0, 0.25)), np.full(3, generator.uniform(0.75, 1))
        case 2:
            ground = np.clip(0.75 + 0.25 * random_colour(generator), 0, 1)
            ink = contrasting(generator, ground, least=0.45)
        case _:
            ground = random_colour(generator)
            ink = contrasting(generator, ground, least=0.4)
    grain = float(generator.choice([0, 0.03, 0.1]))
    plain = 0.0 if generator.uniform() < 0.5 else backdrop.noise
    return Material(ink, grain=grain), replace(backdrop, colour=ground, noise=plain)


def _enlargement(small: int, large: int, kind: str) -> np.ndarray:
    """Weights ``(large, small)`` that enlarge: nearest, bilinear or bicubic."""
    at = (np.arange(large) + 0.5) * (small / large) - 0.5
    gap = np.abs(at[:, None] - np.arange(small))
    if kind == "nearest":
        weights = (np.arange(small) == np.clip(np.round(at), 0, small - 1)[:, None]).astype(float)
    elif kind == "bilinear":
        weights = np.clip(1 - gap, 0, 1)
    else:
        near, far = 1.5 * gap**3 - 2.5 * gap**2 + 1, -0.5 * gap**3 + 2.5 * gap**2 - 4 * gap + 2
        weights = np.where(gap < 1, near, np.where(gap < 2, far, 0))
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


@dataclass(frozen=True)
class Letter(Glyph):
    """A character of loops and bars, as letters and numbers are."""

    NOUNS: ClassVar = ("letter", "number", "digit", "character")

    @classmethod
    def sample(cls, generator: np.random.Generator) -> Self:
        """Draw one character of loops and bars."""
        return cls._of(generator, (character(generator, lettered=True),), generator.uniform(0, 0.9))


@dataclass(frozen=True)
class Scan(Glyph):
    """A small scanned character, a few pixels high and then enlarged."""

    NOUNS: ClassVar = ("scanned character", "digit", "small character", "pixel sign")

    @classmethod
    def sample(cls, generator: np.random.Generator) -> Self:
        """Draw a character and its few pixels."""
        kind = str(generator.choice(["nearest", "bilinear", "bicubic"]))
        word = (character(generator, lettered=generator.uniform() < 0.6),)
        drawn = cls._of(generator, word, generator.uniform(0, 0.6), (int(generator.integers(8, 29)), kind))
        hand = drawn.hand._replace(width=max(drawn.hand.width, 0.7 / drawn.coarse[0]))
        return replace(drawn, hand=hand)


@dataclass(frozen=True)
class Word(Glyph):
    """A short word of several characters."""

    NOUNS: ClassVar = ("word", "text", "inscription", "lettering", "code")

    @classmethod
    def sample(cls, generator: np.random.Generator) -> Self:
        """Draw two to five characters of one alphabet."""
        lettered = generator.uniform() < 0.7
        word = tuple(character(generator, lettered) for _ in range(generator.integers(2, 6)))
        return cls._of(generator, word, generator.uniform(0.3, 1))


class Writers(NamedTuple):
    """How much the people differ who write a character.

    Attributes:
        proportion (float): Standard deviation of the logarithm of height to width.
        slant (float): Of the shear.
        turn (float): Of the angle, in radians.
        bend (float): Of the coefficients of deformations of second order.
        stroke (float): Of the logarithm of a stroke's length, of its direction in radians, and twice that of its shift.
    """

    proportion: float
    slant: float
    turn: float
    bend: float
    stroke: float

    @classmethod
    def sample(cls, generator: np.random.Generator) -> Writers:
        """Draw how much."""
        free = generator.uniform(0.3, 1.1)
        return cls(0.3 * free, 0.3 * free, 0.12 * free, 0.16 * free, 0.12 * free)


class Ways(NamedTuple):
    """The ways in which people write a stroke.

    Attributes:
        points (np.ndarray): Control points of every way ``(w, m, 2)``.
        common (float): Share of the people who write the stroke at all.
    """

    points: np.ndarray
    common: float

    @classmethod
    def sample(cls, generator: np.random.Generator, stroke: Stroke, first: bool) -> Ways:
        """Draw up to three ways of a stroke; the first one of a character is never left out."""
        others = int(generator.choice([0, 0, 1, 2]))
        apart = generator.choice([0.1, 0.2, 0.3]) * generator.normal(size=(others, *stroke.points.shape))
        common = 1.0 if first else float(generator.choice([1, 1, 1, 0.8, 0.6]))
        return cls(np.concatenate([stroke.points[None], stroke.points + apart]), common)


_ONE_WRITER = Writers(0, 0, 0, 0, 0)


@dataclass(frozen=True)
class Handwriting(Glyph):
    """A character as many people write it: in their proportions, bent and connected in their ways, filling its box.

    Attributes:
        ways (tuple[Ways, ...]): Of every stroke of the character.
        writers (Writers): How much the people differ.
    """

    NOUNS: ClassVar = ("handwritten character", "letter", "digit", "handwriting")

    ways: tuple[Ways, ...] = ()
    writers: Writers = _ONE_WRITER

    @classmethod
    def sample(cls, generator: np.random.Generator) -> Self:
        """Draw a character and its writers, and for every other category the few pixels of a scan."""
        fine = generator.uniform() < 0.5
        coarse = (0, "") if fine else _low_resolution(generator)
        written = cls._of(generator, (), 1.0, coarse)
        thinnest = 0.5 / (coarse[0] or 12)
        hand = written.hand._replace(
            width=float(np.clip(written.hand.width, thinnest, 0.16)),
            pressure=generator.uniform(0.05, 0.35),
            elastic=generator.uniform(0, 0.06),
        )
        size = generator.uniform(0.7, 0.9)
        some = replace(written, hand=hand, size=size, angle=0.0, writers=Writers.sample(generator))
        return some._writing(generator, _handwritten(generator))

    def sibling(self, generator: np.random.Generator) -> Self:
        """Let the same people write another character in the same ink: any, or this one with another stroke."""
        strokes = _handwritten(generator)
        if generator.uniform() >= _SIMILAR:
            return self._writing(generator, strokes)
        index = int(generator.integers(len(self.ways)))
        other = Ways.sample(generator, strokes[0], first=index == 0)
        kept, ways = list(self.word[0]), list(self.ways)
        kept[index], ways[index] = strokes[0], other
        return replace(self, word=(tuple(kept),), ways=tuple(ways))

    def _writing(self, generator: np.random.Generator, strokes: tuple[Stroke, ...]) -> Self:
        """Let the same people write a character, in ways that are drawn."""
        ways = tuple(Ways.sample(generator, stroke, first=index == 0) for index, stroke in enumerate(strokes))
        return replace(self, word=(strokes,), ways=ways)

    def _written(self, generator: np.random.Generator, count: int) -> tuple[tuple[Stroke, ...], ...]:
        """Draw a writer for each picture, and what that one writes."""
        loose = self.writers.stroke
        strokes: list[np.ndarray] = []
        for variants, common in self.ways:
            points = variants[generator.integers(len(variants), size=count)]
            start = points[:, :1]
            length = np.exp(loose * generator.normal(size=(count, 1, 1)))
            angle = loose * generator.normal(size=count)
            shift = 0.5 * loose * generator.normal(size=(count, 1, 2))
            points = start + shift + length * (points - start) @ _rotations(angle)
            left_out = generator.uniform(size=(count, 1, 1)) >= common
            strokes.append(np.where(left_out, strokes[0][:, :1], points) if strokes else points)
        moved = self._deformed(generator, np.concatenate(strokes, 1))
        low, high = moved.min(1, keepdims=True), moved.max(1, keepdims=True)
        half = np.maximum((high - low).max(-1, keepdims=True) / 2, 0.3)
        moved = (moved - (low + high) / 2) * (_FILLED / half)
        pieces = np.split(moved, np.cumsum([points.shape[1] for points in strokes])[:-1], axis=1)
        return (tuple(Stroke(p, stroke.smooth) for p, stroke in zip(pieces, self.word[0], strict=True)),)

    def _deformed(self, generator: np.random.Generator, points: np.ndarray) -> np.ndarray:
        """Bend, stretch, slant and turn the whole of every picture's character ``(n, m, 2)``."""
        writers, count = self.writers, len(points)
        x, y = np.split(points, 2, axis=-1)
        second = np.concatenate([x * x, x * y, y * y], -1)
        points = points + second @ (writers.bend * generator.normal(size=(count, 3, 2)))
        stretch, slant = generator.normal(size=(2, count))
        stretch = np.exp(0.5 * writers.proportion * stretch)
        affine = np.zeros((count, 2, 2))
        affine[:, 0, 0], affine[:, 1, 1], affine[:, 1, 0] = 1 / stretch, stretch, -writers.slant * slant
        return points @ affine @ _rotations(writers.turn * generator.normal(size=count))


def _rotations(angles: np.ndarray) -> np.ndarray:
    """Matrices ``(n, 2, 2)`` for points on their left."""
    cosine, sine = np.cos(angles), np.sin(angles)
    return np.stack([np.stack([cosine, sine], -1), np.stack([-sine, cosine], -1)], -2)


def _handwritten(generator: np.random.Generator) -> tuple[Stroke, ...]:
    """A character of up to three strokes."""
    return character(generator, lettered=generator.uniform() < 0.65)[:3]


def _low_resolution(generator: np.random.Generator) -> tuple[int, str]:
    """Pixels and enlargement of a scan."""
    return int(generator.integers(8, 29)), str(generator.choice(["nearest", "bilinear", "bicubic"]))


GLYPHS: tuple[type[Glyph], ...] = (Glyph, Letter, Scan, Word, Handwriting)
"""The families of glyphs."""
