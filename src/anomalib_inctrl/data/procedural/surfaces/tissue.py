"""Families of tissue and vessels, as a microscope or an ophthalmoscope shows them."""

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
    palette,
    ramp,
    smoothstep,
    warp,
)
from anomalib_inctrl.data.procedural.surfaces.surface import (
    COLOUR,
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
class CellTissue(Surface):
    """A stained or fluorescent section: nuclei in stroma, sometimes glands around a lumen."""

    NOUNS: ClassVar[tuple[str, ...]] = ("cell tissue", "tissue section", "histology", "cells", "micrograph")
    FAULTS: ClassVar[tuple[str, ...]] = (TEXTURE, MISSING, COLOUR)

    look: Look
    period: float
    radius: tuple[float, float]
    slim: float
    density: float
    stroma: float
    stretch: float
    glands: float
    membrane: float
    nuclei: np.ndarray

    @classmethod
    def sample(cls, generator: np.random.Generator) -> Self:
        """Draw the parameters of a new category."""
        look = Look.sample(generator, contrast=(0.05, 0.35))
        nuclei = palette(generator, 1)[0]
        if generator.random() < 0.5:  # the usual stains: violet in rose
            hue = generator.uniform(-0.4, 0.5)
            rose = np.clip([[0.75, 0.45, 0.62], [0.92, 0.74 + 0.1 * hue, 0.84], [0.97, 0.93, 0.95]], 0, 1)
            look = Look(**{**vars(look), "colours": ramp(rose)})
            nuclei = np.array([0.36 + 0.1 * hue, 0.2, 0.52], np.float32) * generator.uniform(0.7, 1.3)
        return cls(
            look=look,
            period=log_uniform(generator, 5, 20),
            radius=(generator.uniform(0.22, 0.32), generator.uniform(0.3, 0.42)),
            slim=generator.uniform(0, 0.8),
            density=generator.uniform(0.35, 1),
            stroma=generator.uniform(0.05, 0.25),
            stretch=float(generator.choice([1, generator.uniform(2, 8)])),
            glands=float(generator.choice([0, generator.uniform(28, 64)])),
            membrane=float(generator.choice([0, generator.uniform(0.05, 0.3)])),
            nuclei=nuclei.astype(np.float32),
        )

    def _draw(self, canvas: SurfaceCanvas) -> np.ndarray:
        generator, angle = canvas.generator, self.look.direction(canvas)
        u, v, _ = self.look.frame(canvas, self.period)
        cell = cells(generator, u, v, 0.9)
        turn = cell.per_cell(generator) * np.float32(np.pi)
        slim = 1 + np.float32(self.slim) * cell.per_cell(generator)
        cosine, sine = np.cos(turn), np.sin(turn)
        along = (cell.right * cosine + cell.down * sine) / slim
        across = (cell.down * cosine - cell.right * sine) * slim
        radius = mix(np.full_like(u, self.radius[0]), self.radius[1], cell.per_cell(generator))
        present = cell.per_cell(generator)
        threshold = np.full_like(u, self.density)
        fine = canvas.noise(2.5, 1)
        tone = np.float32(0.5) + np.float32(self.stroma) * canvas.noise(8, 1.6, stretch=self.stretch, angle=angle)
        tone += np.float32(0.04) * fine
        lumen = np.zeros_like(u)
        if self.glands:
            across_u, across_v, _ = self.look.frame(canvas, self.glands)
            bent = np.float32(0.1) * canvas.noise(40, 4)
            gland = cells(generator, across_u + bent, across_v - bent, 0.5)
            rim = gland.first - (np.float32(0.16) + np.float32(0.14) * gland.per_cell(generator))
            lumen = smoothstep(0.0, -0.06, rim)
            threshold = np.where((rim > 0.05) & (rim < 0.22), 1.2, threshold * np.float32(0.6))
            tone -= np.float32(0.3) * smoothstep(0.3, 0.1, np.abs(rim - np.float32(0.12)))
        tone = tone - np.float32(self.membrane) * smoothstep(0.16, 0.04, cell.second - cell.first)
        nucleus = smoothstep(0.06, -0.06, np.hypot(along, across) - radius) * (present < threshold) * (1 - lumen)
        if canvas.fault == MISSING:
            nucleus = nucleus * (1 - canvas.blob)
        image = paint(self.look.colours, np.maximum(tone, lumen))
        depth = (np.float32(0.75) + np.float32(0.25) * cell.per_cell(generator)) * nucleus
        chromatin = self.nuclei * (1 + np.float32(0.15) * fine)[..., None]
        image = mix(image, chromatin, depth[..., None])
        if canvas.fault == COLOUR:
            image = canvas.recolour(image, canvas.blob)
        return self.look.finish(canvas, image)


@dataclass(frozen=True, eq=False)
class Vessels(Surface):
    """Branching vessels, roots or cracks over a smooth ground."""

    NOUNS: ClassVar[tuple[str, ...]] = ("branching vessels", "veins", "roots", "blood vessels", "mucosa", "leaf veins")
    FAULTS: ClassVar[tuple[str, ...]] = (MISSING, MISPLACED, COLOUR)

    look: Look
    roots: int
    children: tuple[int, int]
    width: float
    curl: float
    spread: float
    strength: float
    ground: float
    parallel: bool

    @classmethod
    def sample(cls, generator: np.random.Generator) -> Self:
        """Draw the parameters of a new category."""
        return cls(
            look=Look.sample(generator, stops=4, contrast=(0.12, 0.55), relief=(0, 0.5)),
            roots=int(generator.integers(4, 11)),
            children=(int(generator.integers(2, 6)), int(generator.integers(2, 5))),
            width=log_uniform(generator, 0.8, 2.6),
            curl=generator.uniform(0.03, 0.16),
            spread=generator.uniform(0.4, 1.2),
            strength=float(generator.choice([-1, -1, 1])) * generator.uniform(0.2, 0.6),
            ground=generator.uniform(0.03, 0.14),
            parallel=bool(generator.random() < 0.3),
        )

    def _draw(self, canvas: SurfaceCanvas) -> np.ndarray:
        generator, side = canvas.generator, canvas.side
        steps = side + side // 4
        number = self.roots
        start = generator.uniform(0, side, (2, canvas.count, number))
        heading = generator.uniform(0, 2 * np.pi, (canvas.count, number))
        if self.parallel:
            heading = self.look.direction(canvas)[:, None] + generator.normal(0, 0.1, heading.shape)
        vessels = np.zeros((canvas.count, side, side), np.float32)
        for level, branches in enumerate((*self.children, 0)):
            wander = np.cumsum(generator.normal(0, self.curl, (canvas.count, number, steps)), axis=2)
            course = heading[..., None] + wander
            rows = start[0][..., None] + np.cumsum(np.sin(course), axis=2)
            columns = start[1][..., None] + np.cumsum(np.cos(course), axis=2)
            seen = (rows >= 0) & (rows < side) & (columns >= 0) & (columns < side)
            index = (np.arange(canvas.count)[:, None, None] * side + rows.astype(np.int32)) * side + columns.astype(
                np.int32
            )
            hits = np.bincount(index[seen], minlength=vessels.size).reshape(vessels.shape)
            sigma = self.width * canvas.unit * 0.65**level
            blurred = ndimage.gaussian_filter(np.minimum(hits, 1).astype(np.float32), (0, sigma, sigma), truncate=2.5)
            vessels = np.maximum(vessels, smoothstep(0.08, 0.75, blurred * np.float32(sigma * 2)))
            pick = generator.integers(0, steps // 2, (canvas.count, number, branches))
            along = np.arange(canvas.count)[:, None, None], np.arange(number)[None, :, None], pick
            turn = generator.choice([-1, 1], pick.shape) * generator.uniform(0.5, 1, pick.shape) * self.spread
            number *= branches
            start = np.stack([rows[along], columns[along]]).reshape(2, canvas.count, number)
            heading = (course[along] + turn).reshape(canvas.count, number)
            steps = steps * 3 // 5
        canvas.aim(vessels)
        if canvas.fault == MISSING:
            vessels = vessels * (1 - canvas.blob)
        if canvas.fault == MISPLACED:
            shift = canvas.blob * np.float32(canvas.unit)
            vessels = warp(vessels, canvas.flawed(3, 7) * shift, canvas.flawed(3, 7) * shift)
        base = np.float32(0.5 - self.strength / 2) + np.float32(self.ground) * canvas.noise(70)
        tone = base + np.float32(self.ground / 3) * canvas.noise(4, 1.2) + np.float32(self.strength) * vessels
        image = paint(self.look.colours, tone)
        if canvas.fault == COLOUR:
            image = canvas.recolour(image, canvas.blob)
        return self.look.finish(canvas, image, vessels * 2)
