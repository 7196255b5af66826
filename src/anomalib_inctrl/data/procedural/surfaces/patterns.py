"""Families of prints, stripes, random fields, foam and plain surfaces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from anomalib_inctrl.data.procedural.noise import (
    cells,
    grating,
    lattice,
    log_uniform,
    mix,
    paint,
    palette,
    per_cell,
    smoothstep,
)
from anomalib_inctrl.data.procedural.surfaces.surface import (
    COLOUR,
    DOUBLED,
    MISPLACED,
    MISSING,
    TEXTURE,
    TURN,
    Look,
    Surface,
    SurfaceCanvas,
)

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True, eq=False)
class Print(Surface):
    """Motifs on a lattice, printed in ink, embossed or punched: dots, rings, crosses, stars, rosettes, diamonds."""

    NOUNS: ClassVar[tuple[str, ...]] = (
        "printed pattern",
        "patterned surface",
        "wallpaper",
        "polka dots",
        "embossed sheet",
    )
    FAULTS: ClassVar[tuple[str, ...]] = (MISSING, DOUBLED, MISPLACED, TEXTURE, COLOUR)

    look: Look
    period: float
    aspect: float
    kind: str
    motif: str
    size: float
    petals: int
    lobes: float
    emboss: float
    inner: bool
    inks: np.ndarray
    regular: float

    @classmethod
    def sample(cls, generator: np.random.Generator) -> Self:
        """Draw the parameters of a new category."""
        return cls(
            look=Look.sample(generator, contrast=(0.02, 0.15), relief=(0.3, 1), gloss=0.15),
            period=log_uniform(generator, 6, 42),
            aspect=float(generator.choice([1, generator.uniform(0.7, 1.4)])),
            kind=str(generator.choice(["square", "brick", "hex"])),
            motif=str(generator.choice(["disc", "ring", "rosette", "star", "diamond", "square", "cross", "wedge"])),
            size=generator.uniform(0.22, 0.42),
            petals=int(generator.integers(3, 9)),
            lobes=generator.uniform(0.15, 0.6),
            emboss=float(generator.choice([0, 0, generator.uniform(-0.2, 0.2)])),
            inner=bool(generator.random() < 0.35),
            inks=np.concatenate([palette(generator, 2), palette(generator, 2)])[generator.permutation(4)],
            regular=float(generator.choice([0, 0, generator.uniform(0, 0.12)])),
        )

    def _outline(self, right: np.ndarray, down: np.ndarray) -> np.ndarray:
        """Distance inside the motif's border, in periods."""
        size = np.float32(self.size)
        radius = np.hypot(right, down)
        if self.motif == "disc":
            return size - radius
        if self.motif == "ring":
            return size * np.float32(0.25) - np.abs(radius - size * np.float32(0.75))
        if self.motif in {"rosette", "star"}:
            wave = np.cos(self.petals * np.arctan2(down, right))
            if self.motif == "star":
                wave = 2 * np.abs(wave) - 1
            return (size * (1 + np.float32(self.lobes) * (wave - 1) / 2) - radius) * np.float32(0.8)
        across, along = np.abs(right), np.abs(down)
        if self.motif == "diamond":
            return (size - across - along) * np.float32(0.7)
        if self.motif == "square":
            return size * np.float32(0.85) - np.maximum(across, along)
        if self.motif == "cross":
            arm = size * np.float32(0.1 + 0.4 * self.lobes)
            return np.minimum(size - np.maximum(across, along), arm - np.minimum(across, along))
        return np.minimum(size * np.float32(0.6) - down, (down + size - 2 * across) * np.float32(0.45))

    def _draw(self, canvas: SurfaceCanvas) -> np.ndarray:
        u, v, _ = self.look.frame(canvas, self.period, 1.0 if self.kind == "hex" else self.aspect)
        place = lattice(u, v, self.kind)
        chosen = canvas.chosen(place.i, place.j)
        right, down = place.right, place.down
        if self.regular:
            right = right + np.float32(self.regular) * (per_cell(canvas.generator, place.i, place.j) - np.float32(0.5))
            down = down + np.float32(self.regular) * (per_cell(canvas.generator, place.i, place.j) - np.float32(0.5))
        if canvas.fault == MISPLACED:
            right = right + np.where(chosen, canvas.flawed(0.12, 0.3), 0)
            down = down + np.where(chosen, canvas.flawed(0.0, 0.3), 0)
        inside = self._outline(right, down)
        if canvas.fault == DOUBLED:
            twin = self._outline(right + np.float32(0.22), down + np.float32(0.22))
            inside = np.where(chosen, np.maximum(inside, twin), inside)
        if canvas.fault == MISSING:
            inside = np.where(chosen, -1, inside)
        inside = inside * np.float32(self.period * canvas.unit)
        ink = smoothstep(-0.7, 0.7, inside)
        weave = canvas.noise(3, 1.2)
        image = paint(self.look.colours, np.float32(0.5) + np.float32(0.2) * weave)
        if not self.emboss or self.inner:
            image = mix(image, self.inks[0] * (1 + np.float32(0.03) * weave)[..., None], ink[..., None])
        if self.inner:
            core = smoothstep(-0.7, 0.7, inside - np.float32(self.size * self.period * canvas.unit * 0.35))
            image = mix(image, self.inks[1], core[..., None])
        if canvas.fault == COLOUR:
            image = canvas.recolour(image, chosen * ink)
        width = self.period * canvas.unit * self.size
        raised = np.float32(self.emboss * self.period) * smoothstep(-0.15 * width, 0.5 * width, inside)
        return self.look.finish(canvas, image, np.float32(0.08) * weave + raised)


@dataclass(frozen=True, eq=False)
class Stripes(Surface):
    """Stripes, checks, plaids and waves in flat colours."""

    NOUNS: ClassVar[tuple[str, ...]] = ("striped pattern", "checked pattern", "stripes", "checks", "printed pattern")
    FAULTS: ClassVar[tuple[str, ...]] = (MISSING, MISPLACED, TEXTURE, COLOUR)

    look: Look
    period: float
    duties: tuple[float, float]
    both: str
    wave: tuple[float, float]
    shape: str
    texture: float

    @classmethod
    def sample(cls, generator: np.random.Generator) -> Self:
        """Draw the parameters of a new category."""
        return cls(
            look=Look.sample(generator, contrast=(0.08, 0.7)),
            period=log_uniform(generator, 4, 40),
            duties=(generator.uniform(0.2, 0.8), generator.uniform(0.2, 0.8)),
            both=str(generator.choice(["single", "single", "plaid", "checks"])),
            wave=(float(generator.choice([0, generator.uniform(0.1, 0.5)])), generator.uniform(0.1, 0.8)),
            shape=str(generator.choice(["square", "square", "sine", "triangle"])),
            texture=generator.uniform(0, 0.12),
        )

    def _draw(self, canvas: SurfaceCanvas) -> np.ndarray:
        u, v, _ = self.look.frame(canvas, self.period)
        bent = u + np.float32(self.wave[0]) * np.sin(TURN * np.float32(self.wave[1]) * v)
        if canvas.fault == MISPLACED:
            bent = bent + canvas.flawed(0.3, 0.6) * canvas.blob
        i, j = np.round(bent).astype(np.int32), np.round(v).astype(np.int32)
        first, second = grating(bent, self.shape, self.duties[0]), grating(v, self.shape, self.duties[1])
        part = canvas.chosen(i) if self.both == "single" else canvas.chosen(i, j)
        if canvas.fault == MISSING:
            first = np.where(part, 0, first)
        tone = {"single": first, "plaid": (first + second) / 2, "checks": first + second - 2 * first * second}[
            self.both
        ]
        tone = np.float32(0.1) + np.float32(0.8) * tone + np.float32(self.texture) * canvas.noise(3, 1)
        image = paint(self.look.colours, tone)
        if canvas.fault == COLOUR:
            image = canvas.recolour(image, part * first)
        return self.look.finish(canvas, image)


@dataclass(frozen=True, eq=False)
class RandomField(Surface):
    """Correlated noise of a random spectrum: coarse or fine, in any direction, smooth or rough, flat or in relief."""

    NOUNS: ClassVar[tuple[str, ...]] = ("textured surface", "texture", "material", "rough surface", "surface")
    FAULTS: ClassVar[tuple[str, ...]] = (TEXTURE, COLOUR)

    look: Look
    spectra: tuple[tuple[float, float, float | None, float, float], ...]
    weights: np.ndarray
    sharp: float
    height: float

    @classmethod
    def sample(cls, generator: np.random.Generator) -> Self:
        """Draw the parameters of a new category."""
        spectra = []
        for _ in range(int(generator.integers(1, 4))):
            band = generator.uniform(0.15, 0.7) if generator.random() < 0.5 else None
            stretch = log_uniform(generator, 1.5, 14) if generator.random() < 0.5 else 1.0
            scale = log_uniform(generator, 3, 50)
            spectra.append((scale, generator.uniform(0.8, 3.5), band, stretch, generator.uniform(0, np.pi)))
        return cls(
            look=Look.sample(generator, stops=int(generator.integers(2, 6)), contrast=(0.05, 0.8), gloss=0.2),
            spectra=tuple(spectra),
            weights=np.sqrt(generator.dirichlet(np.ones(len(spectra)))).astype(np.float32),
            sharp=float(generator.choice([0, 0, generator.uniform(0.5, 3)])),
            height=float(generator.choice([0, generator.uniform(0.3, 2)])),
        )

    def _draw(self, canvas: SurfaceCanvas) -> np.ndarray:
        turn = canvas.each(-1, 1)[:, 0, 0] * np.float32(self.look.turn)
        field = np.zeros((canvas.count, canvas.side, canvas.side), np.float32)
        for weight, (scale, power, band, stretch, angle) in zip(self.weights, self.spectra, strict=True):
            field += weight * canvas.noise(scale, power, band, stretch, angle + turn)
        tone = np.tanh(field * np.float32(self.sharp)) / 2 if self.sharp else field / 5
        image = paint(self.look.colours, tone + np.float32(0.5))
        if canvas.fault == COLOUR:
            image = canvas.recolour(image, canvas.blob)
        return self.look.finish(canvas, image, field * np.float32(self.height) if self.height else None)


@dataclass(frozen=True, eq=False)
class Foam(Surface):
    """Round pores of several sizes in a lighter or darker mass."""

    NOUNS: ClassVar[tuple[str, ...]] = ("foam", "sponge", "porous material", "pumice", "bread crumb", "bubbles")
    FAULTS: ClassVar[tuple[str, ...]] = (TEXTURE, MISSING, COLOUR)

    look: Look
    period: float
    layers: int
    radius: float
    spread: float
    soft: float
    depth: float

    @classmethod
    def sample(cls, generator: np.random.Generator) -> Self:
        """Draw the parameters of a new category."""
        return cls(
            look=Look.sample(generator, contrast=(0.1, 0.6), relief=(0.4, 1.2)),
            period=log_uniform(generator, 4, 24),
            layers=int(generator.integers(1, 3)),
            radius=generator.uniform(0.35, 0.65),
            spread=generator.uniform(0.1, 0.9),
            soft=generator.uniform(0.05, 0.35),
            depth=generator.uniform(0.1, 0.4),
        )

    def _draw(self, canvas: SurfaceCanvas) -> np.ndarray:
        pore = np.zeros((canvas.count, canvas.side, canvas.side), np.float32)
        for layer in range(self.layers):
            u, v, _ = self.look.frame(canvas, self.period * 2.2**layer)
            hole = cells(canvas.generator, u, v, 0.95)
            radius = np.float32(self.radius) * (1 - np.float32(self.spread) * hole.per_cell(canvas.generator))
            pore = np.maximum(pore, smoothstep(0, self.soft, radius - hole.first))
        if canvas.fault == MISSING:
            pore = mix(pore, 0.0, canvas.blob)
        rough = canvas.noise(3, 1.2)
        tone = (
            np.float32(0.85) - np.float32(0.75) * pore + np.float32(0.07) * rough + np.float32(0.06) * canvas.noise(50)
        )
        image = paint(self.look.colours, tone)
        if canvas.fault == COLOUR:
            image = canvas.recolour(image, canvas.blob)
        height = np.float32(0.15) * rough - np.float32(self.depth * self.period) * pore
        return self.look.finish(canvas, image, height)


@dataclass(frozen=True, eq=False)
class Plain(Surface):
    """Nearly uniform sheets: paper, card, concrete, paint, with faint clouds, grain, flecks or pinholes."""

    NOUNS: ClassVar[tuple[str, ...]] = ("paper", "concrete", "cardboard", "plain surface", "painted wall", "sheet")
    FAULTS: ClassVar[tuple[str, ...]] = (TEXTURE, COLOUR)

    look: Look
    clouds: float
    scale: float
    fine: float
    flecks: float
    period: float
    fleck: float

    @classmethod
    def sample(cls, generator: np.random.Generator) -> Self:
        """Draw the parameters of a new category."""
        return cls(
            look=Look.sample(generator, contrast=(0.04, 0.3), relief=(0, 0.5)),
            clouds=generator.uniform(0, 0.2),
            scale=log_uniform(generator, 15, 90),
            fine=generator.uniform(0, 0.25),
            flecks=float(generator.choice([0, generator.uniform(0.05, 0.5)])),
            period=log_uniform(generator, 5, 20),
            fleck=generator.uniform(-0.5, 0.4),
        )

    def _draw(self, canvas: SurfaceCanvas) -> np.ndarray:
        fine = np.float32(self.fine) * canvas.noise(3, 1.1)
        tone = np.float32(0.5) + np.float32(self.clouds) * canvas.noise(self.scale, 1.8) + np.float32(0.5) * fine
        if self.flecks:
            u, v, _ = self.look.frame(canvas, self.period)
            spot = cells(canvas.generator, u, v, 1.0)
            size = spot.per_cell(canvas.generator) * np.float32(0.22)
            there = spot.per_cell(canvas.generator) < self.flecks
            tone = tone + np.float32(self.fleck) * smoothstep(0.05, -0.05, spot.first - size) * there
        image = paint(self.look.colours, tone)
        if canvas.fault == COLOUR:
            image = canvas.recolour(image, canvas.blob)
        return self.look.finish(canvas, image, 2 * fine)
