"""Families of things that grow or are eaten."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from anomalib_inctrl.data.procedural.objects.thing import (
    PART_FAULTS,
    Layout,
    Mishap,
    Stage,
    Thing,
    disc,
    ring_of,
    some_plastic,
)
from anomalib_inctrl.data.procedural.shapes import (
    Canvas,
    Figure,
    Material,
    Pose,
    capsule,
    column,
    contrasting,
    fourier_radii,
    from_hue,
    jittered,
    lathe,
    length,
    outline,
    random_colour,
    turn,
)

if TYPE_CHECKING:
    from typing_extensions import Self


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
            canvas.draw(dot, disc, Material(self.second), opacity=np.full(count, 0.6), within=True)
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
    FAULTS: ClassVar = (*PART_FAULTS, "bent_part")

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
        material = some_plastic(generator)
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
            some_plastic(generator, material.colour)._replace(grain=0.1),
            generator.uniform(0.1, 0.3),
        )

    def _draw(self, canvas: Canvas, pose: Pose, generator: np.random.Generator, mishap: Mishap) -> None:
        petals = Layout.place(
            generator,
            len(pose.x),
            ring_of(self.petals, self.far),
            self.material.colour,
            size=self.size,
            wobble=(0.01, 0.04, 0.03),
            tint=0.04,
        )
        for _, at, opacity, colour in mishap.parts(petals, 0.35).parts(pose):
            canvas.draw(at, self.petal, self.material, colour=colour, opacity=opacity)
        canvas.draw(pose.child(0, 0, 0, self.centre_size), disc, self.centre)


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
