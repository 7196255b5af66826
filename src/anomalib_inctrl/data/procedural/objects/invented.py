"""Families of invented creatures, masks, dials and signs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from anomalib_inctrl.data.procedural.objects.thing import (
    PART_FAULTS,
    Layout,
    Mishap,
    Stage,
    Thing,
    disc,
    some_material,
    some_plastic,
    wire,
)
from anomalib_inctrl.data.procedural.shapes import (
    FIGURES,
    Canvas,
    Figure,
    Material,
    Pose,
    box,
    contrasting,
    length,
    outline,
    polyline,
    random_colour,
    spline,
    turn,
)

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class Creature(Thing):
    """A tree of jointed parts: animals, vehicles, tools and toys that do not exist."""

    NOUNS: ClassVar = ("animal", "bird", "insect", "fish", "toy", "vehicle", "tool", "machine", "figure")
    FAULTS: ClassVar = (*PART_FAULTS, "bent_part")

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
        palette = [some_plastic(generator) for _ in range(generator.integers(2, 5))]
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
    FAULTS: ClassVar = (*PART_FAULTS, "bent_part", "deformed")

    base: Material
    radii: np.ndarray
    parts: np.ndarray
    figures: tuple[Figure, ...]
    colours: np.ndarray
    looseness: float

    @classmethod
    def sample(cls, generator: np.random.Generator) -> Self:
        """Draw the base, and single and paired features."""
        base = some_plastic(generator)
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
    FAULTS: ClassVar = (*PART_FAULTS, "bent_part")

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
        face, rim = some_plastic(generator), some_material(generator)
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
            canvas.draw(hand, wire(np.array([(-0.1, 0), (reach, 0)]), 0.035), needle, reach=reach + 0.05)
        canvas.draw(pose.child(0, 0, 0, 0.08), disc, self.rim)


@dataclass(frozen=True)
class Label(Thing):
    """A printed label or logo."""

    NOUNS: ClassVar = ("label", "logo", "print", "sticker", "barcode", "card")
    FAULTS: ClassVar = (*PART_FAULTS, "bent_part")

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
