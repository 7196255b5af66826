"""Families of wood, stone, soil and what cracks or crumbles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from anomalib_inctrl.data.procedural.noise import (
    cells,
    hexagon_edge,
    lattice,
    log_uniform,
    mix,
    paint,
    palette,
    per_cell,
    smoothstep,
    warp,
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
class WoodGrain(Surface):
    """Year rings cut along the trunk, with fibres, pores and sometimes knots or planks."""

    NOUNS: ClassVar[tuple[str, ...]] = ("wood", "timber", "wooden board", "wood grain", "plank", "veneer")
    FAULTS: ClassVar[tuple[str, ...]] = (TEXTURE, COLOUR, MISPLACED)

    look: Look
    period: float
    wave: float
    arch: float
    sharp: float
    fibre: float
    pores: float
    knots: int
    plank: float

    @classmethod
    def sample(cls, generator: np.random.Generator) -> Self:
        """Draw the parameters of a new category."""
        return cls(
            look=Look.sample(generator, contrast=(0.06, 0.4), relief=(0, 0.4), gloss=0.1),
            period=log_uniform(generator, 4, 26),
            wave=generator.uniform(0.2, 1.6),
            arch=float(generator.choice([0, generator.uniform(0.1, 0.4)])),
            sharp=generator.uniform(0.8, 3),
            fibre=generator.uniform(0.02, 0.13),
            pores=float(generator.choice([0, generator.uniform(0.1, 0.5)])),
            knots=int(generator.choice([0, 0, 1, 3])),
            plank=float(generator.choice([0, 0, generator.uniform(20, 60)])),
        )

    def _draw(self, canvas: SurfaceCanvas) -> np.ndarray:
        u, v, angle = frame = self.look.frame(canvas, self.period)
        plank = np.floor(v * np.float32(self.period / self.plank) if self.plank else v * 0).astype(np.int32)
        own = per_cell(canvas.generator, plank)
        if canvas.fault == MISPLACED:
            v = v + canvas.flawed(0.5, 1.5) * canvas.blob
        rings = v + np.float32(self.wave) * canvas.noise(90, 4, stretch=3, angle=angle) + 9 * own
        axis = v[:, :1, :1] + canvas.each(-1, 1) * np.float32(128 / self.period)
        if self.arch:  # a board cut beside the pith shows the rings as arches
            depth = np.float32(self.arch) * (u - u[:, :1, :1] + canvas.each(-1, 1) * np.float32(128 / self.period))
            rings = rings - v + np.hypot(v - axis, depth)
        for _ in range(self.knots):
            row, column = canvas.each(0, canvas.side), canvas.each(0, canvas.side)
            size = canvas.each(4, 12) * np.float32(canvas.unit)
            distance = ((canvas.y - row) ** 2 + (canvas.x - column) ** 2) / size**2
            rings = rings + 4 * np.exp(-distance)
        part = rings - np.floor(rings)
        late = part ** np.float32(self.sharp) * smoothstep(1, 0.88, part)
        fibres = canvas.noise(5, 1.2, stretch=20, angle=angle)
        tone = np.float32(0.85) - np.float32(0.6) * late + np.float32(self.fibre) * fibres
        tone += np.float32(0.3 if self.plank else 0.0) * (own - np.float32(0.5)) + np.float32(0.08) * canvas.noise(60)
        if self.pores:
            tone -= np.float32(self.pores) * smoothstep(
                1.3, 2.2, canvas.noise(3, stretch=8, bandwidth=0.6, angle=angle)
            )
        image = paint(self.look.colours, tone)
        if canvas.fault == COLOUR:
            image = canvas.recolour(image, canvas.blob)
        height = np.float32(0.3) * fibres - np.float32(0.5) * late
        if self.plank:
            edge = frame.v * np.float32(self.period / self.plank)
            gap = smoothstep(0.035, 0.015, np.abs(edge - np.round(edge)))
            image = image * (1 - np.float32(0.7) * gap)[..., None]
        return self.look.finish(canvas, image, height)


@dataclass(frozen=True, eq=False)
class VeinedStone(Surface):
    """Cloudy polished stone crossed by veins."""

    NOUNS: ClassVar[tuple[str, ...]] = ("marble", "veined stone", "polished stone", "marble slab", "onyx")
    FAULTS: ClassVar[tuple[str, ...]] = (TEXTURE, COLOUR)

    look: Look
    scale: float
    warp: float
    veins: float
    thin: float
    bright: float
    stretch: float

    @classmethod
    def sample(cls, generator: np.random.Generator) -> Self:
        """Draw the parameters of a new category."""
        return cls(
            look=Look.sample(generator, stops=4, contrast=(0.08, 0.55)),
            scale=log_uniform(generator, 16, 90),
            warp=generator.uniform(0, 16),
            veins=generator.uniform(0.2, 0.9),
            thin=generator.uniform(0.04, 0.2),
            bright=float(generator.choice([-1, 1])),
            stretch=float(generator.choice([1, generator.uniform(1, 5)])),
        )

    def _draw(self, canvas: SurfaceCanvas) -> np.ndarray:
        angle = self.look.direction(canvas)
        clouds = canvas.noise(self.scale, 2, stretch=self.stretch, angle=angle)
        push = np.float32(self.warp * canvas.unit)
        field = warp(canvas.noise(self.scale, 3.2, stretch=self.stretch, angle=angle), push * clouds, -push * clouds)
        main = smoothstep(self.thin, 0, np.abs(field)) * smoothstep(-1, 1.2, clouds)
        fine = smoothstep(self.thin / 2, 0, np.abs(canvas.noise(self.scale / 2, 3) + np.float32(0.4) * field))
        vein = np.maximum(main, np.float32(0.5) * fine)
        tone = np.float32(0.5) + np.float32(0.13) * clouds + np.float32(self.bright * self.veins) * vein
        image = paint(self.look.colours, tone)
        if canvas.fault == COLOUR:
            image = canvas.recolour(image, canvas.blob)
        return self.look.finish(canvas, image)


@dataclass(frozen=True, eq=False)
class Granite(Surface):
    """Grains of several minerals, from fine speckle to coarse chips in a matrix."""

    NOUNS: ClassVar[tuple[str, ...]] = ("granite", "speckled stone", "terrazzo", "stone", "composite stone")
    FAULTS: ClassVar[tuple[str, ...]] = (TEXTURE, COLOUR)

    look: Look
    period: float
    minerals: np.ndarray
    mottle: float
    matrix: float
    speckle: float

    @classmethod
    def sample(cls, generator: np.random.Generator) -> Self:
        """Draw the parameters of a new category."""
        return cls(
            look=Look.sample(generator, stops=5, contrast=(0.1, 0.7), gloss=0.1),
            period=log_uniform(generator, 3, 16),
            minerals=np.sort(generator.dirichlet(np.full(4, 1.5))).astype(np.float32),
            mottle=generator.uniform(0, 0.5),
            matrix=float(generator.choice([0, generator.uniform(0.05, 0.25)])),
            speckle=generator.uniform(0, 0.12),
        )

    def _draw(self, canvas: SurfaceCanvas) -> np.ndarray:
        u, v, _ = self.look.frame(canvas, self.period)
        ragged = canvas.noise(self.period, 1.5)
        grain = cells(canvas.generator, u + np.float32(0.15) * ragged, v - np.float32(0.15) * ragged, 0.95)
        pick = grain.per_cell(canvas.generator) + np.float32(self.mottle / 2) * canvas.noise(30)
        tone = np.searchsorted(np.cumsum(self.minerals[:-1]), np.clip(pick, 0, 1)).astype(np.float32) / 3
        tone += np.float32(0.12) * (grain.per_cell(canvas.generator) - np.float32(0.5))
        if self.matrix:
            tone = mix(tone, 0.5, smoothstep(self.matrix * 2, self.matrix, grain.second - grain.first))
        tone += np.float32(self.speckle) * canvas.noise(2, 1)
        image = paint(self.look.colours, tone)
        if canvas.fault == COLOUR:
            image = canvas.recolour(image, canvas.blob)
        return self.look.finish(canvas, image)


@dataclass(frozen=True, eq=False)
class Granules(Surface):
    """Rounded stones, beads, seeds or grains lying side by side."""

    NOUNS: ClassVar[tuple[str, ...]] = ("pebbles", "granules", "stones", "beads", "seeds", "pellets", "grains")
    FAULTS: ClassVar[tuple[str, ...]] = (MISSING, TEXTURE, COLOUR)

    look: Look
    period: float
    aspect: float
    jitter: float
    gap: float
    tones: float
    rough: float
    angular: float

    @classmethod
    def sample(cls, generator: np.random.Generator) -> Self:
        """Draw the parameters of a new category."""
        return cls(
            look=Look.sample(generator, stops=4, contrast=(0.15, 0.7), relief=(0.5, 1.4), gloss=0.3),
            period=log_uniform(generator, 4, 30),
            aspect=generator.uniform(0.5, 1.3),
            jitter=generator.uniform(0.4, 1),
            gap=generator.uniform(0.02, 0.18),
            tones=generator.uniform(0, 0.9),
            rough=generator.uniform(0, 0.15),
            angular=generator.uniform(0, 0.12),
        )

    def _draw(self, canvas: SurfaceCanvas) -> np.ndarray:
        u, v, _ = self.look.frame(canvas, self.period, self.aspect)
        ragged = np.float32(self.angular) * canvas.noise(self.period, 2)
        grain = cells(canvas.generator, u + ragged, v - ragged, self.jitter)
        border = grain.second - grain.first
        dome = np.sqrt(np.clip(border * np.float32(1.6) - np.float32(self.gap), 0, 1))
        chosen = canvas.chosen(grain.owner)
        if canvas.fault == MISSING:
            dome = np.where(chosen, 0, dome)
        rough = canvas.noise(3.5, 1.3)
        tone = np.float32(0.55) + np.float32(self.tones) * (grain.per_cell(canvas.generator) - np.float32(0.5))
        image = paint(self.look.colours, tone + np.float32(self.rough) * rough)
        if canvas.fault == COLOUR:
            image = canvas.recolour(image, chosen.astype(np.float32))
        image = image * (np.float32(0.2) + np.float32(0.8) * smoothstep(0, 0.75, dome))[..., None]
        height = dome * np.float32(self.period * canvas.unit / 5) + np.float32(self.rough) * rough
        return self.look.finish(canvas, image, height)


@dataclass(frozen=True, eq=False)
class Terrain(Surface):
    """Bumpy, dusty or cratered ground under low light."""

    NOUNS: ClassVar[tuple[str, ...]] = ("bumpy ground", "cratered ground", "rough terrain", "sand", "soil", "plaster")
    FAULTS: ClassVar[tuple[str, ...]] = (TEXTURE, MISSING)

    look: Look
    scale: float
    power: float
    rough: float
    pits: float
    depth: float
    density: float

    @classmethod
    def sample(cls, generator: np.random.Generator) -> Self:
        """Draw the parameters of a new category."""
        return cls(
            look=Look.sample(generator, contrast=(0.05, 0.4), relief=(0.5, 1.5)),
            scale=log_uniform(generator, 10, 80),
            power=generator.uniform(1.7, 3.2),
            rough=generator.uniform(0.015, 0.06),
            pits=float(generator.choice([0, log_uniform(generator, 8, 36)])),
            depth=float(generator.choice([-1, 1, 1])) * generator.uniform(0.15, 0.45),
            density=generator.uniform(0.3, 1),
        )

    def _draw(self, canvas: SurfaceCanvas) -> np.ndarray:
        ground = canvas.noise(self.scale, self.power)
        height = np.float32(self.rough * self.scale) * ground
        if self.pits:
            for factor in (1, 0.45):
                u, v, _ = self.look.frame(canvas, self.pits * factor)
                pit = cells(canvas.generator, u, v, 1.0)
                radius = np.float32(0.12) + np.float32(0.3) * pit.per_cell(canvas.generator) ** 2
                there = (pit.per_cell(canvas.generator) < self.density).astype(np.float32)
                reach = pit.first / radius
                bowl = np.where(reach < 1, reach**2 - np.float32(0.7), np.float32(0.3) * np.exp((1 - reach) * 4))
                height += np.float32(self.depth * self.pits * factor * 2) * there * radius * bowl
        if canvas.fault == MISSING:
            height = mix(height, np.float32(self.rough * self.scale * 0.1) * ground, canvas.blob)
        image = paint(
            self.look.colours, np.float32(0.5) + np.float32(0.1) * canvas.noise(40) + np.float32(0.05) * ground
        )
        return self.look.finish(canvas, image, height * np.float32(canvas.unit))


@dataclass(frozen=True, eq=False)
class Crackle(Surface):
    """Plates between cracks, at one or two scales: dried mud, glaze, old paint, bark."""

    NOUNS: ClassVar[tuple[str, ...]] = ("cracked mud", "crackle glaze", "cracked paint", "dried earth", "bark")
    FAULTS: ClassVar[tuple[str, ...]] = (MISSING, TEXTURE, COLOUR)

    look: Look
    period: float
    aspect: float
    crack: float
    fine: float
    ragged: float
    tones: float
    curl: float

    @classmethod
    def sample(cls, generator: np.random.Generator) -> Self:
        """Draw the parameters of a new category."""
        return cls(
            look=Look.sample(generator, contrast=(0.1, 0.6), relief=(0.3, 1.2)),
            period=log_uniform(generator, 9, 44),
            aspect=float(generator.choice([1, generator.uniform(1.2, 3.5)])),
            crack=generator.uniform(0.6, 2.2),
            fine=float(generator.choice([0, generator.uniform(0.2, 0.8)])),
            ragged=generator.uniform(0.02, 0.12),
            tones=generator.uniform(0, 0.3),
            curl=generator.uniform(-0.06, 0.08),
        )

    def _draw(self, canvas: SurfaceCanvas) -> np.ndarray:
        u, v, _ = self.look.frame(canvas, self.period, self.aspect)
        ragged = np.float32(self.ragged) * canvas.noise(self.period, 3)
        plate = cells(canvas.generator, u + ragged, v - ragged, 0.85)
        border = (plate.second - plate.first) * np.float32(self.period)
        open_crack = smoothstep(self.crack + 0.8, self.crack * 0.4, border)
        if self.fine:
            sub = cells(canvas.generator, (u + 2 * ragged) * 3, (v - 2 * ragged) * 3, 0.9)
            hair = smoothstep(0.12, 0.02, sub.second - sub.first) * np.float32(self.fine)
            open_crack = np.maximum(open_crack, hair)
        chosen = canvas.chosen(plate.owner)
        if canvas.fault == MISSING:
            open_crack = np.where(chosen, np.maximum(open_crack, np.float32(0.8)), open_crack)
        grain = canvas.noise(4, 1.3)
        tone = np.float32(0.7) + np.float32(self.tones) * (plate.per_cell(canvas.generator) - np.float32(0.5))
        tone = tone + np.float32(0.06) * grain - np.float32(0.7) * open_crack
        image = paint(self.look.colours, tone)
        if canvas.fault == COLOUR:
            image = canvas.recolour(image, chosen.astype(np.float32))
        height = np.float32(self.curl * self.period) * plate.first**2 * 2 - 2 * open_crack + np.float32(0.12) * grain
        return self.look.finish(canvas, image, height * np.float32(canvas.unit))


@dataclass(frozen=True, eq=False)
class Masonry(Surface):
    """Tiles, bricks, slabs or parquet in a bond, each of its own tone, with joints."""

    NOUNS: ClassVar[tuple[str, ...]] = ("tiles", "tiled wall", "masonry", "paving", "mosaic", "tile floor", "parquet")
    FAULTS: ClassVar[tuple[str, ...]] = (MISSING, DOUBLED, MISPLACED, TEXTURE, COLOUR)

    look: Look
    period: float
    aspect: float
    bond: str
    joint: float
    tones: float
    chequer: float
    surface: float
    bevel: float
    mortar: np.ndarray

    @classmethod
    def sample(cls, generator: np.random.Generator) -> Self:
        """Draw the parameters of a new category."""
        bond = str(generator.choice(["stack", "half", "third", "basket", "herringbone", "hexagon"]))
        return cls(
            look=Look.sample(generator, contrast=(0.08, 0.6), relief=(0.2, 1), gloss=0.2),
            period=log_uniform(generator, 7, 44) * (0.6 if bond in {"basket", "herringbone"} else 1),
            aspect=generator.uniform(0.35, 1),
            bond=bond,
            joint=generator.uniform(0.4, 2.0),
            tones=generator.uniform(0, 0.7),
            chequer=float(generator.choice([0, 0, generator.uniform(0.2, 0.8)])),
            surface=generator.uniform(0.02, 0.15),
            bevel=generator.uniform(0.5, 2.5),
            mortar=palette(generator, 1)[0],
        )

    def _tiles(self, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, ...]:
        """Find each pixel's tile: column, row, width, height, and where it is from the tile's corner."""
        one = np.ones_like(u)
        row = np.floor(v)
        if self.bond in {"stack", "half", "third"}:
            moved = u + row * np.float32({"stack": 0, "half": 0.5, "third": 1 / 3}[self.bond])
            column = np.floor(moved)
            return column, row, one, one, moved - column, v - row
        column = np.floor(u)
        if self.bond == "herringbone":
            phase = (column - row) % 4
            column, row = column - (phase == 1), row - (phase == 2)
            flat = phase < 2
        else:
            flat = (np.floor(u / 2) + np.floor(v / 2)) % 2 == 0
            column = np.where(flat, 2 * np.floor(u / 2), column)
            row = np.where(flat, row, 2 * np.floor(v / 2))
        return column, row, 1 + flat.astype(np.float32), 2 - flat.astype(np.float32), u - column, v - row

    def _draw(self, canvas: SurfaceCanvas) -> np.ndarray:
        straight = self.bond in {"stack", "half", "third"}
        u, v, _ = self.look.frame(canvas, self.period, self.aspect if straight else 1.0)
        stretch = np.float32(self.aspect if straight else 1)
        if self.bond == "hexagon":
            place = lattice(u, v, "hex")
            i, j = place.i, place.j
            chosen = canvas.chosen(i, j)
            shift = np.where(chosen, canvas.flawed(0.08, 0.2), 0) if canvas.fault == MISPLACED else 0
            edge = hexagon_edge(place._replace(right=place.right + shift))
            if canvas.fault == DOUBLED:
                edge = np.where(chosen, np.minimum(edge, np.abs(place.right)), edge)
        else:
            column, row, width, height, right, down = self._tiles(u, v)
            i, j = column.astype(np.int32), row.astype(np.int32)
            chosen = canvas.chosen(i, j)
            if canvas.fault == MISPLACED:
                right = right + np.where(chosen, canvas.flawed(0.06, 0.2), 0)
                down = down + np.where(chosen, canvas.flawed(0.06, 0.2), 0)
            if canvas.fault == DOUBLED:  # one tile more, in the place of one: two halves
                half = np.where(chosen, np.abs(right - width / 2), 9)
                edge = np.minimum(half, np.minimum(right, width - right))
            else:
                edge = np.minimum(right, width - right)
            edge = np.minimum(edge, np.minimum(down, height - down) * stretch)
        edge = edge * np.float32(self.period) + np.float32(0.25) * canvas.noise(8, 2)
        tile = smoothstep(self.joint - 0.5, self.joint + 0.7, edge)
        if canvas.fault == MISSING:
            tile = np.where(chosen, 0, tile)
        grain = canvas.noise(5, 1.3)
        tone = np.float32(0.5) + np.float32(self.tones) * (per_cell(canvas.generator, i, j) - np.float32(0.5))
        tone += np.float32(self.chequer) * ((i + j) % 2 - np.float32(0.5)) + np.float32(self.surface) * grain
        image = paint(self.look.colours, tone)
        if canvas.fault == COLOUR:
            image = canvas.recolour(image, chosen.astype(np.float32))
        mortar = self.mortar * (1 + np.float32(0.1) * grain)[..., None]
        image = mix(mortar.astype(np.float32), image, tile[..., None])
        bevel = smoothstep(self.joint - 0.5, self.joint + 0.5 + self.bevel, edge)
        if canvas.fault == MISSING:
            bevel = np.where(chosen, 0, bevel)
        height = (bevel * np.float32(1.5) + np.float32(2 * self.surface) * grain * tile).astype(np.float32)
        return self.look.finish(canvas, image, height * np.float32(canvas.unit))
