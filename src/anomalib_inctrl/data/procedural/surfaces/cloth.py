"""Families of cloth, leather and fibres."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from scipy import ndimage

from anomalib_inctrl.data.procedural.noise import (
    cells,
    log_uniform,
    mix,
    paint,
    per_cell,
    smoothstep,
    spectral_noise,
    strokes,
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
class WovenCloth(Surface):
    """Two sets of threads, one over and under the other; plain, twill, satin or basket; plain, striped or tartan."""

    NOUNS: ClassVar[tuple[str, ...]] = ("woven cloth", "fabric", "textile", "cloth", "linen", "canvas")
    FAULTS: ClassVar[tuple[str, ...]] = (MISSING, DOUBLED, MISPLACED, TEXTURE, COLOUR)

    look: Look
    period: float
    aspect: float
    weave: tuple[int, int, int, int, int]
    fill: float
    stripes: np.ndarray
    uneven: float
    wobble: float

    @classmethod
    def sample(cls, generator: np.random.Generator) -> Self:
        """Draw the parameters of a new category."""
        stripes = np.full((2, 12), generator.uniform(0.35, 0.75), np.float32)
        stripes[1] += np.float32(generator.normal(0, 0.2))
        if generator.random() < 0.4:
            cut = int(generator.integers(1, 6))
            stripes[: int(generator.integers(1, 3)), :cut] = generator.random()
        plain, twill, steep, satin, basket = (
            (1, 1, 2, 1, 1),
            (1, 1, 4, 2, 1),
            (1, 2, 3, 1, 1),
            (2, 1, 5, 1, 1),
            (1, 1, 2, 1, 2),
        )
        weaves = [plain, plain, twill, steep, satin, basket]
        return cls(
            look=Look.sample(generator, contrast=(0.1, 0.6), relief=(0.3, 1.0), gloss=0.08),
            period=log_uniform(generator, 3.5, 18),
            aspect=generator.uniform(0.8, 1.25),
            weave=weaves[generator.integers(len(weaves))],
            fill=generator.uniform(0.75, 1.1),
            stripes=stripes,
            uneven=generator.uniform(0, 0.2),
            wobble=generator.uniform(0, 0.15),
        )

    def _draw(self, canvas: SurfaceCanvas) -> np.ndarray:
        u, v, _ = self.look.frame(canvas, self.period, self.aspect)
        u = u + np.float32(self.wobble) * canvas.noise(20)
        if canvas.fault == MISPLACED:
            u = u + canvas.flawed(0.8, 2) * canvas.blob
        i, j = np.floor(u).astype(np.int32), np.floor(v).astype(np.int32)
        right, down = u - i - np.float32(0.5), v - j - np.float32(0.5)
        yarn = canvas.chosen(i)
        order = i - yarn if canvas.fault == DOUBLED else i
        a, b, cycle, over, group = self.weave

        def above(column: np.ndarray, row: np.ndarray) -> np.ndarray:
            return np.where((a * (column // group) + b * (row // group)) % cycle < over, np.float32(1), np.float32(-1))

        here = above(order, j)
        lift_u = mix(here, above(order, j + np.where(down > 0, 1, -1)), np.abs(down))
        lift_v = mix(here, above(order + np.where(right > 0, 1, -1), j), np.abs(right))
        round_u = np.sqrt(np.maximum(1 - (2 * right / np.float32(self.fill)) ** 2, 0))
        round_v = np.sqrt(np.maximum(1 - (2 * down / np.float32(self.fill)) ** 2, 0))
        warp_height = round_u * (1 + np.float32(0.5) * lift_u)
        weft_height = round_v * (1 - np.float32(0.5) * lift_v)
        if canvas.fault == MISSING:
            warp_height = np.where(yarn, 0, warp_height)
        front = warp_height > weft_height
        height = np.maximum(warp_height, weft_height)
        random = np.where(front, per_cell(canvas.generator, i), per_cell(canvas.generator, j)) - np.float32(0.5)
        tone = np.where(front, self.stripes[0][i % 12], self.stripes[1][j % 12]) + np.float32(self.uneven) * random
        tone += np.float32(0.06) * canvas.noise(3, 1)
        image = (
            paint(self.look.colours, tone)
            * (np.float32(0.35) + np.float32(0.65) * smoothstep(0, 0.9, height))[..., None]
        )
        if canvas.fault == COLOUR:
            image = canvas.recolour(image, (yarn & front).astype(np.float32))
        return self.look.finish(canvas, image, height * np.float32(self.period * canvas.unit / 4))


@dataclass(frozen=True, eq=False)
class Knit(Surface):
    """Columns of V-shaped stitches."""

    NOUNS: ClassVar[tuple[str, ...]] = ("knitwear", "knitted fabric", "wool", "jersey", "knit")
    FAULTS: ClassVar[tuple[str, ...]] = (MISSING, MISPLACED, TEXTURE, COLOUR)

    look: Look
    period: float
    aspect: float
    slant: float
    stripes: np.ndarray
    wobble: float
    fuzz: float

    @classmethod
    def sample(cls, generator: np.random.Generator) -> Self:
        """Draw the parameters of a new category."""
        stripes = np.full(10, 0.6, np.float32)
        if generator.random() < 0.35:
            stripes[: generator.integers(1, 6)] = generator.random()
        return cls(
            look=Look.sample(generator, contrast=(0.08, 0.5), gloss=0.04),
            period=log_uniform(generator, 6, 24),
            aspect=generator.uniform(0.55, 0.9),
            slant=generator.uniform(1.0, 2.2),
            stripes=stripes,
            wobble=generator.uniform(0.02, 0.12),
            fuzz=generator.uniform(0.03, 0.2),
        )

    def _draw(self, canvas: SurfaceCanvas) -> np.ndarray:
        u, v, _ = self.look.frame(canvas, self.period, self.aspect)
        drift = canvas.noise(30)
        u, v = u + np.float32(self.wobble) * drift, v - np.float32(self.wobble) * drift
        if canvas.fault == MISPLACED:
            u = u + canvas.flawed(0.4, 1) * canvas.blob
        i = np.floor(u).astype(np.int32)
        right = u - i - np.float32(0.5)
        slanted = v + np.float32(self.slant) * np.abs(right)
        j = np.floor(slanted).astype(np.int32)
        across, along = np.abs(right) * 4 - 1, (slanted - j) * 2 - 1
        height = np.sqrt(np.maximum(1 - across**2 * np.float32(0.9) - along**2 * np.float32(0.8), 0))
        stitch = canvas.chosen(i, j)
        if canvas.fault == MISSING:
            height = np.where(stitch, np.float32(0.1) * height, height)
        fuzz = canvas.noise(2.5, 1)
        tone = self.stripes[j % 10] + np.float32(0.5) * np.float32(self.fuzz) * fuzz
        tone += np.float32(0.15) * (per_cell(canvas.generator, i, j) - np.float32(0.5))
        image = (
            paint(self.look.colours, tone) * (np.float32(0.3) + np.float32(0.7) * smoothstep(0, 0.8, height))[..., None]
        )
        if canvas.fault == COLOUR:
            row = stitch if canvas.flaw.random() < 0.5 else canvas.chosen(j)
            image = canvas.recolour(image, row.astype(np.float32))
        height = height * np.float32(self.period * canvas.unit / 5) + np.float32(self.fuzz) * fuzz
        return self.look.finish(canvas, image, height)


@dataclass(frozen=True, eq=False)
class Carpet(Surface):
    """Tufts or loops of pile, in rows or anywhere, with heathered yarns."""

    NOUNS: ClassVar[tuple[str, ...]] = ("carpet", "pile", "rug", "towel", "plush", "velvet")
    FAULTS: ClassVar[tuple[str, ...]] = (MISSING, TEXTURE, COLOUR)

    look: Look
    period: float
    aspect: float
    jitter: float
    heather: float
    fuzz: float
    mottle: float

    @classmethod
    def sample(cls, generator: np.random.Generator) -> Self:
        """Draw the parameters of a new category."""
        return cls(
            look=Look.sample(generator, contrast=(0.1, 0.6), relief=(0.4, 1.2)),
            period=log_uniform(generator, 3, 14),
            aspect=generator.uniform(0.6, 1.6),
            jitter=generator.uniform(0.15, 0.8),
            heather=generator.uniform(0, 0.6),
            fuzz=generator.uniform(0.03, 0.2),
            mottle=generator.uniform(0, 0.08),
        )

    def _draw(self, canvas: SurfaceCanvas) -> np.ndarray:
        u, v, _ = self.look.frame(canvas, self.period, self.aspect)
        sway = np.float32(0.25) * canvas.noise(14)
        tuft = cells(canvas.generator, u + sway, v - sway, self.jitter)
        height = np.maximum(1 - (tuft.first * np.float32(1.3)) ** 2, 0)
        height = height * (np.float32(0.7) + np.float32(0.5) * tuft.per_cell(canvas.generator))
        if canvas.fault == MISSING:
            height = height * (1 - np.float32(0.85) * canvas.blob)
        fuzz = np.float32(self.fuzz) * canvas.noise(2.2, 0.8)
        tone = np.float32(0.5) + np.float32(self.heather) * (tuft.per_cell(canvas.generator) - np.float32(0.5)) + fuzz
        tone = tone + np.float32(self.mottle) * canvas.noise(40)
        image = (
            paint(self.look.colours, tone) * (np.float32(0.4) + np.float32(0.6) * smoothstep(0, 0.8, height))[..., None]
        )
        if canvas.fault == COLOUR:
            image = canvas.recolour(image, canvas.blob)
        return self.look.finish(canvas, image, height * np.float32(self.period * canvas.unit / 4) + 2 * fuzz)


@dataclass(frozen=True, eq=False)
class Leather(Surface):
    """Small cells between wrinkles."""

    NOUNS: ClassVar[tuple[str, ...]] = ("leather", "hide", "artificial leather", "skin texture", "vinyl")
    FAULTS: ClassVar[tuple[str, ...]] = (TEXTURE, COLOUR, MISSING)

    look: Look
    period: float
    aspect: float
    crease: float
    depth: float
    ragged: float

    @classmethod
    def sample(cls, generator: np.random.Generator) -> Self:
        """Draw the parameters of a new category."""
        return cls(
            look=Look.sample(generator, contrast=(0.08, 0.4), relief=(0.4, 1.3), gloss=0.25),
            period=log_uniform(generator, 4.5, 20),
            aspect=generator.uniform(0.6, 1.6),
            crease=generator.uniform(0.1, 0.35),
            depth=generator.uniform(0.08, 0.25),
            ragged=generator.uniform(0.05, 0.3),
        )

    def _draw(self, canvas: SurfaceCanvas) -> np.ndarray:
        u, v, _ = self.look.frame(canvas, self.period, self.aspect)
        ragged = np.float32(self.ragged) * canvas.noise(self.period * 1.5, 2)
        cell = cells(canvas.generator, u + ragged, v - ragged, 0.9)
        height = smoothstep(0, self.crease * 1.6, cell.second - cell.first)
        height = height * (np.float32(0.75) + np.float32(0.5) * cell.per_cell(canvas.generator))
        if canvas.fault == MISSING:
            height = mix(height, 0.8, canvas.blob)
        pores = canvas.noise(3, 1.3)
        tone = (
            np.float32(0.25) + np.float32(0.4) * height + np.float32(0.06) * pores + np.float32(0.08) * canvas.noise(50)
        )
        image = paint(self.look.colours, tone)
        if canvas.fault == COLOUR:
            image = canvas.recolour(image, canvas.blob)
        return self.look.finish(
            canvas, image, (height * np.float32(self.depth * self.period) + np.float32(0.1) * pores)
        )


@dataclass(frozen=True, eq=False)
class Fibres(Surface):
    """Thousands of short strokes over one another: felt, blades, straw, hair, chips."""

    NOUNS: ClassVar[tuple[str, ...]] = ("fibres", "felt", "fleece", "straw", "blades", "hair", "pressed chips")
    FAULTS: ClassVar[tuple[str, ...]] = (MISSING, TEXTURE, COLOUR)

    look: Look
    number: int
    length: float
    width: int
    spread: float
    bend: float
    tones: float
    flow: float

    @classmethod
    def sample(cls, generator: np.random.Generator) -> Self:
        """Draw the parameters of a new category."""
        length = log_uniform(generator, 5, 34)
        width = int(generator.integers(1, 4))
        return cls(
            look=Look.sample(generator, contrast=(0.15, 0.7), relief=(0.2, 1)),
            number=int(min(2500, generator.uniform(12000, 30000) / length / width)),
            length=length,
            width=width,
            spread=float(generator.choice([generator.uniform(0.05, 0.6), np.pi])),
            bend=generator.uniform(0, 1.5),
            tones=generator.uniform(0.2, 0.9),
            flow=generator.uniform(0, 1),
        )

    def _draw(self, canvas: SurfaceCanvas) -> np.ndarray:
        generator, shape = canvas.generator, (canvas.count, self.number)
        origin = generator.uniform(0, canvas.side, (2, *shape)).astype(np.float32)
        row, column = (start.astype(np.intp) % canvas.side for start in origin)  # 111.99... becomes 112 in float32
        here = (np.arange(canvas.count)[:, None], row, column)
        flow = np.float32(self.flow) * spectral_noise(
            generator, canvas.count, canvas.side, scale=60 * canvas.unit, power=3
        )
        angle = self.look.direction(canvas)[:, None] + flow[here]
        angle = angle + generator.uniform(-1, 1, shape).astype(np.float32) * np.float32(self.spread)
        bend = generator.uniform(-1, 1, shape).astype(np.float32) * np.float32(self.bend)
        tone = np.float32(0.6) + np.float32(self.tones) * (generator.random(shape, dtype=np.float32) - np.float32(0.5))
        ground = np.float32(0.15) + np.float32(0.05) * canvas.noise(6, 2)
        if canvas.fault in self.FAULTS:
            within = canvas.blob[here]
            if canvas.fault == MISSING:
                tone = np.where(within > 0.5, np.nan, tone)
            if canvas.fault == TEXTURE:
                angle = angle + canvas.flawed(0.6, 1.5)[:, 0] * within
            if canvas.fault == COLOUR:
                tone = tone + canvas.flawed(0.3, 0.6)[:, 0] * within
        # The parallels of a broad stroke: brightest in the middle.
        sides = np.arange(self.width, dtype=np.float32) - (self.width - 1) / 2
        apart = np.stack([np.cos(angle), -np.sin(angle)])[..., None] * sides
        origin = (origin[..., None] + apart).reshape(2, canvas.count, -1)
        angle, bend = np.repeat(angle, self.width, axis=1), np.repeat(bend, self.width, axis=1)
        tone = (tone[..., None] * (1 - np.float32(0.18) * np.abs(sides))).reshape(canvas.count, -1)
        drawn = strokes(origin, angle, bend, self.length * canvas.unit, tone, ground)
        drawn = ndimage.uniform_filter1d(ndimage.uniform_filter1d(drawn, 2, axis=1), 2, axis=2)
        return self.look.finish(canvas, paint(self.look.colours, drawn), drawn * np.float32(2))
