"""Families of manufactured objects."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from scipy.ndimage import gaussian_filter1d

from anomalib_inctrl.data.procedural.objects.thing import (
    ORIGIN,
    PART_FAULTS,
    Layout,
    Mishap,
    Stage,
    Thing,
    disc,
    hoop,
    ring_of,
    some_material,
    some_metal,
    some_plastic,
    wire,
)
from anomalib_inctrl.data.procedural.shapes import (
    Canvas,
    Figure,
    Material,
    Pose,
    box,
    column,
    contrasting,
    fourier_radii,
    from_hue,
    lathe,
    length,
    outline,
    random_colour,
    turn,
)

if TYPE_CHECKING:
    from typing_extensions import Self


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
        first = some_material(generator)
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
            canvas.draw(at, disc, self.materials[j + 1], colour=colour, opacity=opacity)
        marks = Layout.place(generator, count, ring_of(self.marks, (0.8 + self.hole) / 2), self.mark_colour, size=0.12)
        for _, at, opacity, colour in mishap.parts(marks, 0.3).parts(pose):
            canvas.draw(at, self.mark, self.materials[0], colour=colour, opacity=opacity, reach=1.2, within=True)
        if self.hole:
            canvas.cut(pose.child(0, 0, 0, self.hole), disc)


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
        material = some_material(generator)
        return cls(
            Stage.sample(generator, material.colour, several=True),
            material,
            int(generator.integers(7, 30)),
            generator.uniform(0.08, 0.25),
            generator.uniform(0.7, 3),
            float(generator.choice([0, 0, 0.25])),
            some_plastic(generator, material.colour),
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
        for x, y, angle in ring_of(self.holes, 0.55 * root + 0.4 * self.bore).tolist():
            canvas.cut(pose.child(x, y, angle, min(0.2, 1.1 / self.holes) * root), self.hole)
        hub = pose.child(0, 0, 0, self.bore * 1.6)
        canvas.draw(hub, disc, self.hub, colour=mishap.recoloured(self.hub.colour))
        canvas.cut(pose.child(0, 0, 0, self.bore), disc)


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
        material = some_plastic(generator)._replace(relief=0.0, gloss=0.0)
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
    FAULTS: ClassVar = (*PART_FAULTS, "bent_part")

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
            canvas.draw(line, wire(points, 0.018), copper, reach=reach)
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
        material = some_plastic(generator)._replace(
            relief=generator.uniform(0.15, 0.4), gloss=generator.uniform(0, 0.4)
        )
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
        material = some_metal(generator)
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
        material = some_material(generator)
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
        layout = Layout.place(generator, len(pose.x), ORIGIN, self.inner, size=self.hole)
        layout = mishap.parts(layout, 0.3)
        inner = self.material._replace(relief=-self.material.relief, bevel=0.15)
        for _, at, opacity, colour in layout.parts(pose):
            canvas.draw(at, lambda u, v: length(u, v) - 1.15, inner, colour=colour, opacity=opacity, reach=1.3)
            for ring in range(self.threads):
                canvas.draw(at, hoop(1.1 - 0.12 * ring), self.material, opacity=opacity)
            canvas.cut(at.child(0, 0, 0, 1.0 - 0.12 * self.threads), disc, opacity=opacity)


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
        material = some_material(generator)
        power, aspect = float(generator.choice([2, 8, 20])), generator.uniform(0.6, 1)
        cos, sin = np.abs(np.cos(turn())), np.abs(np.sin(turn())) / aspect
        if generator.uniform() < 0.35:
            number, rings = int(generator.integers(4, 9)), int(generator.integers(1, 3))
            places = [ring_of(number * k, 0.62 * k / rings)[:, :2] for k in range(1, rings + 1)]
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
    FAULTS: ClassVar = (*PART_FAULTS, "bent_part")

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
        housing, pin = some_plastic(generator), some_metal(generator)
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
    FAULTS: ClassVar = PART_FAULTS

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
        places = np.concatenate([ring_of(outer, 0.72 - size), ring_of(middle, 0.72 - 3 * size), ring_of(centre, 0)])
        sheath = some_plastic(generator)
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
            canvas.draw(at, disc, insulation, colour=colour, opacity=opacity)
            inside = Material(self.core, 0.2, 0.2, 0, 0.05)
            canvas.draw(at.child(0, 0, 0, 0.62), disc, inside, opacity=opacity, pattern=strands)


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
        material = some_metal(generator)
        number, beads = int(generator.integers(2, 6)), int(generator.integers(6, 20))
        figure = Figure.sample(generator)
        same = generator.uniform() < 0.5
        ring = ring_of(number, generator.uniform(0.15, 0.35), generator.uniform(0, 6))
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
        beads = np.column_stack([ring_of(self.beads, 0.68 - self.rim), np.full(self.beads, 0.065)])
        places = np.concatenate([self.places, beads])
        figures = Layout.place(generator, len(pose.x), places, self.material.colour * 1.05, tint=0.01)
        raised = struck._replace(bevel=0.3)
        likely = [*range(len(self.motif)), *range(len(self.motif)), len(self.motif)]
        for j, at, opacity, colour in mishap.parts(figures, 0.25, likely).parts(pose):
            shape = self.motif[j] if j < len(self.motif) else disc
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
        material = some_plastic(generator) if generator.uniform() < 0.7 else some_metal(generator)
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
            canvas.draw(at, disc, material._replace(bevel=0.3), colour=colour, opacity=opacity)
            canvas.cut(at.child(0, 0, 0, self.hole), disc, opacity=opacity)


@dataclass(frozen=True)
class Tray(Thing):
    """Equal things, sorted in rows."""

    NOUNS: ClassVar = ("blister pack", "tray", "candles", "pack", "box of sweets", "array of parts")
    FAULTS: ClassVar = (*PART_FAULTS, "bent_part")

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
        tray = some_material(generator)
        item = some_plastic(generator, tray.colour)._replace(bevel=0.8)
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
