"""Families of metal: brushed, cast, corrugated and woven."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from anomalib_inctrl.data.procedural.noise import (
    cells,
    grating,
    hexagon_edge,
    lattice,
    log_uniform,
    mix,
    paint,
    palette,
    per_cell,
    ramp,
    sample_bilinear,
    smoothstep,
    spectral_noise,
)
from anomalib_inctrl.data.procedural.surfaces.surface import (
    COLOUR,
    DOUBLED,
    MISPLACED,
    MISSING,
    TEXTURE,
    Look,
    Surface,
    SurfaceCanvas,
)

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True, eq=False)
class BrushedMetal(Surface):
    """Metal with fine scratches in one direction, both ways across, or in circles, and a soft reflection."""

    NOUNS: ClassVar[tuple[str, ...]] = (
        "brushed metal",
        "metal",
        "steel",
        "aluminium",
        "metal sheet",
        "machined surface",
    )
    FAULTS: ClassVar[tuple[str, ...]] = (TEXTURE, COLOUR)

    look: Look
    scale: float
    stretch: float
    strength: float
    pattern: str
    sheen: float

    @classmethod
    def sample(cls, generator: np.random.Generator) -> Self:
        """Draw the parameters of a new category."""
        return cls(
            look=Look.sample(generator, contrast=(0.1, 0.5)),
            scale=log_uniform(generator, 2, 14),
            stretch=log_uniform(generator, 8, 80),
            strength=generator.uniform(0.04, 0.22),
            pattern=str(generator.choice(["straight", "straight", "crossed", "circular"])),
            sheen=generator.uniform(0, 0.3),
        )

    def _draw(self, canvas: SurfaceCanvas) -> np.ndarray:
        angle = self.look.direction(canvas)
        if self.pattern == "circular":
            row, column = (
                (canvas.y - canvas.side * canvas.each(-0.4, 1.4)),
                (canvas.x - canvas.side * canvas.each(-0.4, 1.4)),
            )
            radius = np.hypot(row, column)
            around = np.arctan2(row, column) * np.float32(canvas.side / np.pi)
            scratches = spectral_noise(
                canvas.generator,
                canvas.count,
                canvas.side,
                scale=self.scale * canvas.unit,
                power=1,
                stretch=self.stretch,
            )
            scratches = sample_bilinear(scratches, radius, around)
            scratches = canvas.swap(scratches, self.scale, 1, stretch=self.stretch)
            across = (around / canvas.side - canvas.each(-1, 1)) * 4
        else:
            scratches = canvas.noise(self.scale, 1, stretch=self.stretch, angle=angle)
            if self.pattern == "crossed":
                other = canvas.noise(self.scale, 1, stretch=self.stretch, angle=angle + np.pi / 2)
                scratches = (scratches + other) * np.float32(0.7)
            cosine, sine = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
            across = (canvas.x * cosine + canvas.y * sine) / canvas.side * np.float32(2) - canvas.each(-1, 2)
        sheen = np.float32(self.sheen) * np.cos(across * 3)
        image = paint(self.look.colours, np.float32(0.5) + np.float32(self.strength) * scratches + sheen)
        if canvas.fault == COLOUR:
            image = canvas.recolour(image, canvas.blob)
        return self.look.finish(canvas, image)


@dataclass(frozen=True, eq=False)
class CastMetal(Surface):
    """Hammered, cast or orange-peel metal, plastic or lacquer: bumps or dents that glint."""

    NOUNS: ClassVar[tuple[str, ...]] = ("hammered metal", "cast metal", "metal", "textured plastic", "painted surface")
    FAULTS: ClassVar[tuple[str, ...]] = (TEXTURE, MISSING)

    look: Look
    period: float
    dents: bool
    sign: float
    depth: float
    rough: float
    jitter: float

    @classmethod
    def sample(cls, generator: np.random.Generator) -> Self:
        """Draw the parameters of a new category."""
        return cls(
            look=Look.sample(generator, contrast=(0.05, 0.3), relief=(0.4, 1.4), gloss=0.4),
            period=log_uniform(generator, 4, 30),
            dents=bool(generator.random() < 0.55),
            sign=float(generator.choice([-1, 1])),
            depth=generator.uniform(0.08, 0.25),
            rough=generator.uniform(0, 0.25),
            jitter=generator.uniform(0.4, 1),
        )

    def _draw(self, canvas: SurfaceCanvas) -> np.ndarray:
        depth = np.float32(self.depth * self.period * canvas.unit * self.sign)
        if self.dents:
            u, v, _ = self.look.frame(canvas, self.period)
            dent = cells(canvas.generator, u, v, self.jitter)
            height = depth * np.float32(0.7) * dent.first**2
        else:
            height = depth * canvas.noise(self.period, 4)
        if canvas.fault == MISSING:
            height = mix(height, 0.0, canvas.blob)
        rough = canvas.noise(2.5, 1.2)
        image = paint(
            self.look.colours, np.float32(0.5) + np.float32(0.08) * rough + np.float32(0.1) * canvas.noise(60)
        )
        return self.look.finish(canvas, image, height + np.float32(self.rough) * rough)


@dataclass(frozen=True, eq=False)
class Corrugation(Surface):
    """Ribs, corduroy, blinds, threads of a screw: parallel ridges in relief."""

    NOUNS: ClassVar[tuple[str, ...]] = ("corrugated sheet", "ribbed surface", "corduroy", "ribs", "grooves", "blinds")
    FAULTS: ClassVar[tuple[str, ...]] = (MISSING, MISPLACED, TEXTURE, COLOUR)

    look: Look
    period: float
    shape: str
    duty: float
    depth: float
    wobble: float
    along: float
    rough: float

    @classmethod
    def sample(cls, generator: np.random.Generator) -> Self:
        """Draw the parameters of a new category."""
        return cls(
            look=Look.sample(generator, contrast=(0.05, 0.4), relief=(0.4, 1.3), gloss=0.3),
            period=log_uniform(generator, 4, 36),
            shape=str(generator.choice(["sine", "triangle", "round", "square"])),
            duty=generator.uniform(0.3, 0.7),
            depth=generator.uniform(0.12, 0.3),
            wobble=float(generator.choice([0, generator.uniform(0.02, 0.25)])),
            along=float(generator.choice([0, generator.uniform(0.3, 2)])),
            rough=generator.uniform(0, 0.2),
        )

    def _draw(self, canvas: SurfaceCanvas) -> np.ndarray:
        u, v, _ = self.look.frame(canvas, self.period)
        u = u + np.float32(self.wobble) * canvas.noise(60, 3)
        if canvas.fault == MISPLACED:
            u = u + canvas.flawed(0.3, 0.7) * canvas.blob
        i = np.round(u).astype(np.int32)
        ridge = grating(u, self.shape, self.duty)
        if self.along:
            ridge = ridge * (np.float32(0.7) + np.float32(0.3) * grating(v * np.float32(self.along), "sine"))
        chosen = canvas.chosen(i)
        if canvas.fault == MISSING:
            ridge = np.where(chosen, np.float32(0.15) * ridge, ridge)
        rough = canvas.noise(3, 1.2)
        own = per_cell(canvas.generator, i) - np.float32(0.5)
        tone = np.float32(0.25) + np.float32(0.5) * ridge + np.float32(0.15) * own + np.float32(self.rough / 2) * rough
        image = paint(self.look.colours, tone)
        if canvas.fault == COLOUR:
            image = canvas.recolour(image, chosen.astype(np.float32))
        return self.look.finish(
            canvas, image, ridge * np.float32(self.depth * self.period * canvas.unit) + self.rough * rough
        )


@dataclass(frozen=True, eq=False)
class WireMesh(Surface):
    """Wires crossing over a ground that shows through: woven, welded, or bent to hexagons."""

    NOUNS: ClassVar[tuple[str, ...]] = ("wire mesh", "grid", "grating", "net", "wire grid", "screen")
    FAULTS: ClassVar[tuple[str, ...]] = (MISSING, DOUBLED, MISPLACED, TEXTURE, COLOUR)

    look: Look
    period: float
    aspect: float
    shear: float
    thick: float
    kind: str
    ground: np.ndarray

    @classmethod
    def sample(cls, generator: np.random.Generator) -> Self:
        """Draw the parameters of a new category."""
        return cls(
            look=Look.sample(generator, contrast=(0.1, 0.5), gloss=0.4),
            period=log_uniform(generator, 6, 36),
            aspect=generator.uniform(0.7, 1.4),
            shear=float(generator.choice([0, 0, generator.uniform(-0.6, 0.6)])),
            thick=generator.uniform(0.1, 0.3),
            kind=str(generator.choice(["woven", "welded", "hexagons"])),
            ground=ramp(palette(generator, 2, (0.02, 0.2))),
        )

    def _draw(self, canvas: SurfaceCanvas) -> np.ndarray:
        u, v, _ = self.look.frame(canvas, self.period, self.aspect)
        u = u + np.float32(self.shear) * v + np.float32(0.02) * canvas.noise(40)
        if canvas.fault == MISPLACED:
            u = u + canvas.flawed(0.25, 0.7) * canvas.blob
        thick = np.float32(self.thick)
        if self.kind == "hexagons":
            place = lattice(u, v, "hex")
            rim = hexagon_edge(place)
            wire, i = 1 - rim / thick, place.i
            gone = canvas.chosen(place.i, place.j)
            if canvas.fault == MISSING:
                wire = np.where(gone, -1, wire)
            if canvas.fault == DOUBLED:
                wire = np.where(gone, np.maximum(wire, 1 - np.abs(rim - np.float32(0.28)) / thick), wire)
            height = np.sqrt(np.maximum(1 - (1 - np.minimum(wire, 1)) ** 2, 0))
        else:
            i, j = np.round(u).astype(np.int32), np.round(v).astype(np.int32)
            right, down = (u - i) / thick * 2, (v - j) / thick * 2
            gone = canvas.chosen(i)
            over = (1 - 2 * ((i + j) % 2)) if self.kind == "woven" else np.ones_like(i)
            swing = np.float32(0.5 if self.kind == "woven" else 0.2)
            round_u = np.sqrt(np.maximum(1 - right**2, 0))
            if canvas.fault == DOUBLED:
                twin = (u - i - np.where(gone, np.float32(0.3), 9)) / thick * 2
                round_u = np.maximum(round_u, np.sqrt(np.maximum(1 - twin**2, 0)))
            if canvas.fault == MISSING:
                round_u = np.where(gone, 0, round_u)
            round_v = np.sqrt(np.maximum(1 - down**2, 0))
            bow_u, bow_v = np.cos(np.pi * (v - j)), np.cos(np.pi * (u - i))
            height = np.maximum(round_u * (1 + swing * over * bow_u), round_v * (1 - swing * over * bow_v))
            gone = gone & (round_u > 0)
        wire = smoothstep(0.05, 0.5, height)
        tone = np.float32(0.6) + np.float32(0.2) * (per_cell(canvas.generator, i) - np.float32(0.5))
        tone = tone + np.float32(0.05) * canvas.noise(3, 1)
        image = paint(self.look.colours, tone)
        if canvas.fault == COLOUR:
            image = canvas.recolour(image, gone.astype(np.float32))
        ground = paint(self.ground, np.float32(0.5) + np.float32(0.25) * canvas.noise(40))
        image = mix(ground, image, wire[..., None])
        return self.look.finish(canvas, image, height * np.float32(self.period * self.thick * canvas.unit / 2.5))
