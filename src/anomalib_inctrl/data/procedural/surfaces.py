"""Families of surfaces: cloth, wood, stone, metal, tissue, prints and others, as seen from straight above."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np
from scipy import ndimage

from anomalib_inctrl.data.procedural.family import Family, Rendering
from anomalib_inctrl.data.procedural.noise import (
    Lattice,
    cells,
    grating,
    lattice,
    log_uniform,
    mix,
    paint,
    palette,
    per_cell,
    ramp,
    sample_bilinear,
    shade,
    smoothstep,
    spectral_noise,
    strokes,
    warp,
)

if TYPE_CHECKING:
    from typing_extensions import Self

_MISSING, _DOUBLED, _MISPLACED = "missing_part", "doubled_part", "misplaced_part"
_TEXTURE, _COLOUR = "local_texture", "wrong_colour"
_TURN = np.float32(2 * np.pi)


class _Canvas:
    """A batch of pictures being drawn: its randomness, its coordinates, and where its fault is.

    All lengths that families know are for a side of 128 pixels; :attr:`unit` scales them.
    """

    def __init__(self, generator: np.random.Generator, count: int, side: int, fault: str | None) -> None:
        self.flaw = generator.spawn(1)[0]
        self.generator, self.count, self.side, self.fault = generator, count, side, fault
        self.unit = side / 128
        self.spot = self.flaw.integers(side // 5, side - side // 5, (2, count))
        self.y = np.arange(side, dtype=np.float32)[None, :, None]
        self.x = np.arange(side, dtype=np.float32)[None, None, :]

    def each(self, low: float, high: float) -> np.ndarray:
        """Draw a number for each picture, ``(n, 1, 1)``."""
        return self.generator.uniform(low, high, (self.count, 1, 1)).astype(np.float32)

    def flawed(self, low: float, high: float) -> np.ndarray:
        """Draw a number for each fault, ``(n, 1, 1)``, of random sign."""
        sign = self.flaw.choice([-1, 1], (self.count, 1, 1))
        return (sign * self.flaw.uniform(low, high, (self.count, 1, 1))).astype(np.float32)

    def at_spot(self, field: np.ndarray) -> np.ndarray:
        """Read a field where the fault is, ``(n, 1, 1, ...)``."""
        return field[np.arange(self.count), self.spot[0], self.spot[1]][:, None, None]

    def chosen(self, *indices: np.ndarray) -> np.ndarray:
        """Tell the part at the fault's place by the numbers of the parts."""
        same = indices[0] == self.at_spot(indices[0])
        for index in indices[1:]:
            same = same & (index == self.at_spot(index))
        return same

    @cached_property
    def blob(self) -> np.ndarray:
        """Soft roundish area of the fault, 0 outside."""
        down, right = (self.y - self.spot[0][:, None, None]), (self.x - self.spot[1][:, None, None])
        radius = self.flaw.uniform(8, 24, (2, self.count, 1, 1)).astype(np.float32) * np.float32(self.unit)
        angle = self.flaw.uniform(0, np.pi, (self.count, 1, 1)).astype(np.float32)
        along = (right * np.cos(angle) + down * np.sin(angle)) / radius[0]
        across = (down * np.cos(angle) - right * np.sin(angle)) / radius[1]
        ragged = spectral_noise(self.flaw, self.count, self.side, scale=30 * self.unit, power=3)
        distance = along**2 + across**2
        return smoothstep(1.15, 0.75, distance * (1 + 0.2 * np.clip(ragged, -2, 2)))

    def noise(
        self,
        scale: float,
        power: float = 2.5,
        bandwidth: float | None = None,
        stretch: float = 1.0,
        angle: float | np.ndarray = 0.0,
    ) -> np.ndarray:
        """Draw a noise field, of another scale and direction in the area of a fault of texture."""
        field = spectral_noise(
            self.generator,
            self.count,
            self.side,
            scale=scale * self.unit,
            power=power,
            bandwidth=bandwidth,
            stretch=stretch,
            angle=angle,
        )
        return self.swap(field, scale, power, bandwidth, stretch, angle)

    def swap(
        self,
        field: np.ndarray,
        scale: float,
        power: float = 2.5,
        bandwidth: float | None = None,
        stretch: float = 1.0,
        angle: float | np.ndarray = 0.0,
    ) -> np.ndarray:
        """Put noise that differs from the one of these parameters into the area of a fault of texture."""
        if self.fault != _TEXTURE:
            return field
        factor = float(self.flaw.choice([0.3, 0.45, 2.2, 3]))
        other = spectral_noise(
            self.flaw,
            self.count,
            self.side,
            scale=max(scale * self.unit * factor, 1.5),
            power=power,
            bandwidth=bandwidth,
            stretch=stretch,
            angle=np.asarray(angle) + self.flaw.uniform(0.5, 2.6),
        )
        return mix(field, other * np.float32(self.flaw.choice([0.4, 1.2, 1.6])), self.blob)

    def aim(self, field: np.ndarray) -> None:
        """Move the fault to where a field is large, if it is so anywhere in the middle of the picture."""
        margin = self.side // 5
        for n, middle in enumerate(field[:, margin:-margin, margin:-margin]):
            places = np.argwhere(middle > 0.5)
            if len(places):
                self.spot[:, n] = places[self.flaw.integers(len(places))] + margin

    def recolour(self, image: np.ndarray, share: np.ndarray) -> np.ndarray:
        """Give what ``share`` ``(n, h, w)`` marks another colour, keeping its structure."""
        away = np.where(self.at_spot(image) > 0.5, -1, 1)
        step = self.flaw.uniform(-0.1, 0.4, (self.count, 1, 1, 3))
        step = step * self.flaw.uniform(0.4, 1, (self.count, 1, 1, 1))
        step[..., 0] += np.maximum(0.15 - np.abs(step).max(axis=-1), 0)
        return mix(image, np.clip(image + (away * step).astype(np.float32), 0, 1), share[..., None])


class _Frame(NamedTuple):
    """Coordinates on the material, in periods, ``(n, h, w)``; and the direction of the first of them, ``(n,)``."""

    u: np.ndarray
    v: np.ndarray
    angle: np.ndarray


@dataclass(frozen=True, eq=False)
class _Look:
    """What all surfaces have: colours, light, how they lie."""

    colours: np.ndarray
    light: np.ndarray
    relief: float
    gloss: float
    angle: float
    turn: float
    stretch: float
    falloff: float
    grain: float

    @classmethod
    def sample(
        cls,
        generator: np.random.Generator,
        stops: int = 3,
        contrast: tuple[float, float] = (0.06, 0.5),
        relief: tuple[float, float] = (0.3, 1.2),
        gloss: float = 0.15,
    ) -> _Look:
        """Draw colours within a contrast, a strength of relief, and a probability-weighted gloss."""
        azimuth, steepness = generator.uniform(0, 2 * np.pi), generator.uniform(0.35, 1.2)
        flat = np.cos(steepness)
        light = np.array([np.cos(azimuth) * flat, np.sin(azimuth) * flat, np.sin(steepness)], np.float32)
        aligned = generator.random() < 0.45
        return cls(
            colours=ramp(palette(generator, stops, contrast)),
            light=light,
            relief=generator.uniform(*relief),
            gloss=gloss * generator.uniform(0.3, 2) if generator.random() < 0.5 else 0.0,
            angle=float(generator.choice([0, np.pi / 2])) if aligned else generator.uniform(0, np.pi),
            turn=float(generator.choice([0, generator.uniform(0, 0.06), generator.uniform(0, 0.3), np.pi])),
            stretch=float(generator.choice([0, generator.uniform(0, 0.12)])),
            falloff=generator.uniform(0, 0.12),
            grain=float(generator.choice([0, generator.uniform(0.002, 0.03)])),
        )

    def frame(self, canvas: _Canvas, period: float, aspect: float = 1.0) -> _Frame:
        """Lay coordinates of a period in pixels over each picture; turned and scaled within a fault of texture.

        The second coordinate has a period ``aspect`` times as long.
        """
        angle = self.angle + canvas.each(-1, 1) * np.float32(self.turn)
        scale = np.float32(period * canvas.unit) * (1 + np.float32(self.stretch) * canvas.each(-1, 1))
        x, y = canvas.x - canvas.side / 2, canvas.y - canvas.side / 2
        cosine, sine = np.cos(angle) / scale, np.sin(angle) / scale
        u, v = x * cosine + y * sine, y * cosine - x * sine
        if canvas.fault == _TEXTURE:
            turn, size = canvas.flawed(0.35, 1.2), np.exp(canvas.flawed(0.2, 0.6))
            du, dv = u - canvas.at_spot(u), v - canvas.at_spot(v)
            turned_u = canvas.at_spot(u) + size * (du * np.cos(turn) + dv * np.sin(turn))
            turned_v = canvas.at_spot(v) + size * (dv * np.cos(turn) - du * np.sin(turn))
            u, v = mix(u, turned_u, canvas.blob), mix(v, turned_v, canvas.blob)
        u, v = u + canvas.each(0, 60), v / np.float32(aspect) + canvas.each(0, 60)
        return _Frame(u.astype(np.float32), v.astype(np.float32), angle[:, 0, 0])

    def direction(self, canvas: _Canvas) -> np.ndarray:
        """Draw the direction of each picture's structures, ``(n,)``."""
        return (self.angle + canvas.each(-1, 1) * np.float32(self.turn))[:, 0, 0]

    def finish(self, canvas: _Canvas, image: np.ndarray, height: np.ndarray | None = None) -> np.ndarray:
        """Light a coloured surface with this height (in pixels, before relief), and let pictures differ in exposure."""
        gain = canvas.each(0.95, 1.05) + canvas.each(-1, 1) * self.falloff * (canvas.x / canvas.side - 0.5)
        gain = gain + canvas.each(-1, 1) * self.falloff * (canvas.y / canvas.side - 0.5)
        if height is None:
            image = image * gain[..., None]
        else:
            diffuse, shine = shade(height * np.float32(self.relief), self.light, self.gloss)
            image = image * (diffuse * gain)[..., None] + shine[..., None]
        if self.grain:
            noise = canvas.generator.standard_normal(image.shape[:3], dtype=np.float32)
            image = image + (noise * np.float32(self.grain))[..., None]
        return image


class _Surface(Family):
    """A family whose members fill the picture."""

    def render(
        self,
        generator: np.random.Generator,
        count: int,
        side: int,
        fault: str | None = None,
    ) -> Rendering:
        image = self._draw(_Canvas(generator, count, side, fault))
        return Rendering(np.clip(image, 0, 1).astype(np.float32), np.ones((count, side, side), np.float32))

    @abstractmethod
    def _draw(self, canvas: _Canvas) -> np.ndarray:
        """Draw the pictures, ``(n, side, side, 3)``."""


@dataclass(frozen=True, eq=False)
class WovenCloth(_Surface):
    """Two sets of threads, one over and under the other; plain, twill, satin or basket; plain, striped or tartan."""

    NOUNS: ClassVar[tuple[str, ...]] = ("woven cloth", "fabric", "textile", "cloth", "linen", "canvas")
    FAULTS: ClassVar[tuple[str, ...]] = (_MISSING, _DOUBLED, _MISPLACED, _TEXTURE, _COLOUR)

    look: _Look
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
            look=_Look.sample(generator, contrast=(0.1, 0.6), relief=(0.3, 1.0), gloss=0.08),
            period=log_uniform(generator, 3.5, 18),
            aspect=generator.uniform(0.8, 1.25),
            weave=weaves[generator.integers(len(weaves))],
            fill=generator.uniform(0.75, 1.1),
            stripes=stripes,
            uneven=generator.uniform(0, 0.2),
            wobble=generator.uniform(0, 0.15),
        )

    def _draw(self, canvas: _Canvas) -> np.ndarray:
        u, v, _ = self.look.frame(canvas, self.period, self.aspect)
        u = u + np.float32(self.wobble) * canvas.noise(20)
        if canvas.fault == _MISPLACED:
            u = u + canvas.flawed(0.8, 2) * canvas.blob
        i, j = np.floor(u).astype(np.int32), np.floor(v).astype(np.int32)
        right, down = u - i - np.float32(0.5), v - j - np.float32(0.5)
        yarn = canvas.chosen(i)
        order = i - yarn if canvas.fault == _DOUBLED else i
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
        if canvas.fault == _MISSING:
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
        if canvas.fault == _COLOUR:
            image = canvas.recolour(image, (yarn & front).astype(np.float32))
        return self.look.finish(canvas, image, height * np.float32(self.period * canvas.unit / 4))


@dataclass(frozen=True, eq=False)
class Knit(_Surface):
    """Columns of V-shaped stitches."""

    NOUNS: ClassVar[tuple[str, ...]] = ("knitwear", "knitted fabric", "wool", "jersey", "knit")
    FAULTS: ClassVar[tuple[str, ...]] = (_MISSING, _MISPLACED, _TEXTURE, _COLOUR)

    look: _Look
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
            look=_Look.sample(generator, contrast=(0.08, 0.5), gloss=0.04),
            period=log_uniform(generator, 6, 24),
            aspect=generator.uniform(0.55, 0.9),
            slant=generator.uniform(1.0, 2.2),
            stripes=stripes,
            wobble=generator.uniform(0.02, 0.12),
            fuzz=generator.uniform(0.03, 0.2),
        )

    def _draw(self, canvas: _Canvas) -> np.ndarray:
        u, v, _ = self.look.frame(canvas, self.period, self.aspect)
        drift = canvas.noise(30)
        u, v = u + np.float32(self.wobble) * drift, v - np.float32(self.wobble) * drift
        if canvas.fault == _MISPLACED:
            u = u + canvas.flawed(0.4, 1) * canvas.blob
        i = np.floor(u).astype(np.int32)
        right = u - i - np.float32(0.5)
        slanted = v + np.float32(self.slant) * np.abs(right)
        j = np.floor(slanted).astype(np.int32)
        across, along = np.abs(right) * 4 - 1, (slanted - j) * 2 - 1
        height = np.sqrt(np.maximum(1 - across**2 * np.float32(0.9) - along**2 * np.float32(0.8), 0))
        stitch = canvas.chosen(i, j)
        if canvas.fault == _MISSING:
            height = np.where(stitch, np.float32(0.1) * height, height)
        fuzz = canvas.noise(2.5, 1)
        tone = self.stripes[j % 10] + np.float32(0.5) * np.float32(self.fuzz) * fuzz
        tone += np.float32(0.15) * (per_cell(canvas.generator, i, j) - np.float32(0.5))
        image = (
            paint(self.look.colours, tone) * (np.float32(0.3) + np.float32(0.7) * smoothstep(0, 0.8, height))[..., None]
        )
        if canvas.fault == _COLOUR:
            row = stitch if canvas.flaw.random() < 0.5 else canvas.chosen(j)
            image = canvas.recolour(image, row.astype(np.float32))
        height = height * np.float32(self.period * canvas.unit / 5) + np.float32(self.fuzz) * fuzz
        return self.look.finish(canvas, image, height)


@dataclass(frozen=True, eq=False)
class WoodGrain(_Surface):
    """Year rings cut along the trunk, with fibres, pores and sometimes knots or planks."""

    NOUNS: ClassVar[tuple[str, ...]] = ("wood", "timber", "wooden board", "wood grain", "plank", "veneer")
    FAULTS: ClassVar[tuple[str, ...]] = (_TEXTURE, _COLOUR, _MISPLACED)

    look: _Look
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
            look=_Look.sample(generator, contrast=(0.06, 0.4), relief=(0, 0.4), gloss=0.1),
            period=log_uniform(generator, 4, 26),
            wave=generator.uniform(0.2, 1.6),
            arch=float(generator.choice([0, generator.uniform(0.1, 0.4)])),
            sharp=generator.uniform(0.8, 3),
            fibre=generator.uniform(0.02, 0.13),
            pores=float(generator.choice([0, generator.uniform(0.1, 0.5)])),
            knots=int(generator.choice([0, 0, 1, 3])),
            plank=float(generator.choice([0, 0, generator.uniform(20, 60)])),
        )

    def _draw(self, canvas: _Canvas) -> np.ndarray:
        u, v, angle = frame = self.look.frame(canvas, self.period)
        plank = np.floor(v * np.float32(self.period / self.plank) if self.plank else v * 0).astype(np.int32)
        own = per_cell(canvas.generator, plank)
        if canvas.fault == _MISPLACED:
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
        if canvas.fault == _COLOUR:
            image = canvas.recolour(image, canvas.blob)
        height = np.float32(0.3) * fibres - np.float32(0.5) * late
        if self.plank:
            edge = frame.v * np.float32(self.period / self.plank)
            gap = smoothstep(0.035, 0.015, np.abs(edge - np.round(edge)))
            image = image * (1 - np.float32(0.7) * gap)[..., None]
        return self.look.finish(canvas, image, height)


@dataclass(frozen=True, eq=False)
class VeinedStone(_Surface):
    """Cloudy polished stone crossed by veins."""

    NOUNS: ClassVar[tuple[str, ...]] = ("marble", "veined stone", "polished stone", "marble slab", "onyx")
    FAULTS: ClassVar[tuple[str, ...]] = (_TEXTURE, _COLOUR)

    look: _Look
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
            look=_Look.sample(generator, stops=4, contrast=(0.08, 0.55)),
            scale=log_uniform(generator, 16, 90),
            warp=generator.uniform(0, 16),
            veins=generator.uniform(0.2, 0.9),
            thin=generator.uniform(0.04, 0.2),
            bright=float(generator.choice([-1, 1])),
            stretch=float(generator.choice([1, generator.uniform(1, 5)])),
        )

    def _draw(self, canvas: _Canvas) -> np.ndarray:
        angle = self.look.direction(canvas)
        clouds = canvas.noise(self.scale, 2, stretch=self.stretch, angle=angle)
        push = np.float32(self.warp * canvas.unit)
        field = warp(canvas.noise(self.scale, 3.2, stretch=self.stretch, angle=angle), push * clouds, -push * clouds)
        main = smoothstep(self.thin, 0, np.abs(field)) * smoothstep(-1, 1.2, clouds)
        fine = smoothstep(self.thin / 2, 0, np.abs(canvas.noise(self.scale / 2, 3) + np.float32(0.4) * field))
        vein = np.maximum(main, np.float32(0.5) * fine)
        tone = np.float32(0.5) + np.float32(0.13) * clouds + np.float32(self.bright * self.veins) * vein
        image = paint(self.look.colours, tone)
        if canvas.fault == _COLOUR:
            image = canvas.recolour(image, canvas.blob)
        return self.look.finish(canvas, image)


@dataclass(frozen=True, eq=False)
class Granite(_Surface):
    """Grains of several minerals, from fine speckle to coarse chips in a matrix."""

    NOUNS: ClassVar[tuple[str, ...]] = ("granite", "speckled stone", "terrazzo", "stone", "composite stone")
    FAULTS: ClassVar[tuple[str, ...]] = (_TEXTURE, _COLOUR)

    look: _Look
    period: float
    minerals: np.ndarray
    mottle: float
    matrix: float
    speckle: float

    @classmethod
    def sample(cls, generator: np.random.Generator) -> Self:
        """Draw the parameters of a new category."""
        return cls(
            look=_Look.sample(generator, stops=5, contrast=(0.1, 0.7), gloss=0.1),
            period=log_uniform(generator, 3, 16),
            minerals=np.sort(generator.dirichlet(np.full(4, 1.5))).astype(np.float32),
            mottle=generator.uniform(0, 0.5),
            matrix=float(generator.choice([0, generator.uniform(0.05, 0.25)])),
            speckle=generator.uniform(0, 0.12),
        )

    def _draw(self, canvas: _Canvas) -> np.ndarray:
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
        if canvas.fault == _COLOUR:
            image = canvas.recolour(image, canvas.blob)
        return self.look.finish(canvas, image)


@dataclass(frozen=True, eq=False)
class BrushedMetal(_Surface):
    """Metal with fine scratches in one direction, both ways across, or in circles, and a soft reflection."""

    NOUNS: ClassVar[tuple[str, ...]] = (
        "brushed metal",
        "metal",
        "steel",
        "aluminium",
        "metal sheet",
        "machined surface",
    )
    FAULTS: ClassVar[tuple[str, ...]] = (_TEXTURE, _COLOUR)

    look: _Look
    scale: float
    stretch: float
    strength: float
    pattern: str
    sheen: float

    @classmethod
    def sample(cls, generator: np.random.Generator) -> Self:
        """Draw the parameters of a new category."""
        return cls(
            look=_Look.sample(generator, contrast=(0.1, 0.5)),
            scale=log_uniform(generator, 2, 14),
            stretch=log_uniform(generator, 8, 80),
            strength=generator.uniform(0.04, 0.22),
            pattern=str(generator.choice(["straight", "straight", "crossed", "circular"])),
            sheen=generator.uniform(0, 0.3),
        )

    def _draw(self, canvas: _Canvas) -> np.ndarray:
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
        if canvas.fault == _COLOUR:
            image = canvas.recolour(image, canvas.blob)
        return self.look.finish(canvas, image)


@dataclass(frozen=True, eq=False)
class CastMetal(_Surface):
    """Hammered, cast or orange-peel metal, plastic or lacquer: bumps or dents that glint."""

    NOUNS: ClassVar[tuple[str, ...]] = ("hammered metal", "cast metal", "metal", "textured plastic", "painted surface")
    FAULTS: ClassVar[tuple[str, ...]] = (_TEXTURE, _MISSING)

    look: _Look
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
            look=_Look.sample(generator, contrast=(0.05, 0.3), relief=(0.4, 1.4), gloss=0.4),
            period=log_uniform(generator, 4, 30),
            dents=bool(generator.random() < 0.55),
            sign=float(generator.choice([-1, 1])),
            depth=generator.uniform(0.08, 0.25),
            rough=generator.uniform(0, 0.25),
            jitter=generator.uniform(0.4, 1),
        )

    def _draw(self, canvas: _Canvas) -> np.ndarray:
        depth = np.float32(self.depth * self.period * canvas.unit * self.sign)
        if self.dents:
            u, v, _ = self.look.frame(canvas, self.period)
            dent = cells(canvas.generator, u, v, self.jitter)
            height = depth * np.float32(0.7) * dent.first**2
        else:
            height = depth * canvas.noise(self.period, 4)
        if canvas.fault == _MISSING:
            height = mix(height, 0.0, canvas.blob)
        rough = canvas.noise(2.5, 1.2)
        image = paint(
            self.look.colours, np.float32(0.5) + np.float32(0.08) * rough + np.float32(0.1) * canvas.noise(60)
        )
        return self.look.finish(canvas, image, height + np.float32(self.rough) * rough)


@dataclass(frozen=True, eq=False)
class Leather(_Surface):
    """Small cells between wrinkles."""

    NOUNS: ClassVar[tuple[str, ...]] = ("leather", "hide", "artificial leather", "skin texture", "vinyl")
    FAULTS: ClassVar[tuple[str, ...]] = (_TEXTURE, _COLOUR, _MISSING)

    look: _Look
    period: float
    aspect: float
    crease: float
    depth: float
    ragged: float

    @classmethod
    def sample(cls, generator: np.random.Generator) -> Self:
        """Draw the parameters of a new category."""
        return cls(
            look=_Look.sample(generator, contrast=(0.08, 0.4), relief=(0.4, 1.3), gloss=0.25),
            period=log_uniform(generator, 4.5, 20),
            aspect=generator.uniform(0.6, 1.6),
            crease=generator.uniform(0.1, 0.35),
            depth=generator.uniform(0.08, 0.25),
            ragged=generator.uniform(0.05, 0.3),
        )

    def _draw(self, canvas: _Canvas) -> np.ndarray:
        u, v, _ = self.look.frame(canvas, self.period, self.aspect)
        ragged = np.float32(self.ragged) * canvas.noise(self.period * 1.5, 2)
        cell = cells(canvas.generator, u + ragged, v - ragged, 0.9)
        height = smoothstep(0, self.crease * 1.6, cell.second - cell.first)
        height = height * (np.float32(0.75) + np.float32(0.5) * cell.per_cell(canvas.generator))
        if canvas.fault == _MISSING:
            height = mix(height, 0.8, canvas.blob)
        pores = canvas.noise(3, 1.3)
        tone = (
            np.float32(0.25) + np.float32(0.4) * height + np.float32(0.06) * pores + np.float32(0.08) * canvas.noise(50)
        )
        image = paint(self.look.colours, tone)
        if canvas.fault == _COLOUR:
            image = canvas.recolour(image, canvas.blob)
        return self.look.finish(
            canvas, image, (height * np.float32(self.depth * self.period) + np.float32(0.1) * pores)
        )


@dataclass(frozen=True, eq=False)
class WireMesh(_Surface):
    """Wires crossing over a ground that shows through: woven, welded, or bent to hexagons."""

    NOUNS: ClassVar[tuple[str, ...]] = ("wire mesh", "grid", "grating", "net", "wire grid", "screen")
    FAULTS: ClassVar[tuple[str, ...]] = (_MISSING, _DOUBLED, _MISPLACED, _TEXTURE, _COLOUR)

    look: _Look
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
            look=_Look.sample(generator, contrast=(0.1, 0.5), gloss=0.4),
            period=log_uniform(generator, 6, 36),
            aspect=generator.uniform(0.7, 1.4),
            shear=float(generator.choice([0, 0, generator.uniform(-0.6, 0.6)])),
            thick=generator.uniform(0.1, 0.3),
            kind=str(generator.choice(["woven", "welded", "hexagons"])),
            ground=ramp(palette(generator, 2, (0.02, 0.2))),
        )

    def _draw(self, canvas: _Canvas) -> np.ndarray:
        u, v, _ = self.look.frame(canvas, self.period, self.aspect)
        u = u + np.float32(self.shear) * v + np.float32(0.02) * canvas.noise(40)
        if canvas.fault == _MISPLACED:
            u = u + canvas.flawed(0.25, 0.7) * canvas.blob
        thick = np.float32(self.thick)
        if self.kind == "hexagons":
            place = lattice(u, v, "hex")
            rim = _hex_edge(place)
            wire, i = 1 - rim / thick, place.i
            gone = canvas.chosen(place.i, place.j)
            if canvas.fault == _MISSING:
                wire = np.where(gone, -1, wire)
            if canvas.fault == _DOUBLED:
                wire = np.where(gone, np.maximum(wire, 1 - np.abs(rim - np.float32(0.28)) / thick), wire)
            height = np.sqrt(np.maximum(1 - (1 - np.minimum(wire, 1)) ** 2, 0))
        else:
            i, j = np.round(u).astype(np.int32), np.round(v).astype(np.int32)
            right, down = (u - i) / thick * 2, (v - j) / thick * 2
            gone = canvas.chosen(i)
            over = (1 - 2 * ((i + j) % 2)) if self.kind == "woven" else np.ones_like(i)
            swing = np.float32(0.5 if self.kind == "woven" else 0.2)
            round_u = np.sqrt(np.maximum(1 - right**2, 0))
            if canvas.fault == _DOUBLED:
                twin = (u - i - np.where(gone, np.float32(0.3), 9)) / thick * 2
                round_u = np.maximum(round_u, np.sqrt(np.maximum(1 - twin**2, 0)))
            if canvas.fault == _MISSING:
                round_u = np.where(gone, 0, round_u)
            round_v = np.sqrt(np.maximum(1 - down**2, 0))
            bow_u, bow_v = np.cos(np.pi * (v - j)), np.cos(np.pi * (u - i))
            height = np.maximum(round_u * (1 + swing * over * bow_u), round_v * (1 - swing * over * bow_v))
            gone = gone & (round_u > 0)
        wire = smoothstep(0.05, 0.5, height)
        tone = np.float32(0.6) + np.float32(0.2) * (per_cell(canvas.generator, i) - np.float32(0.5))
        tone = tone + np.float32(0.05) * canvas.noise(3, 1)
        image = paint(self.look.colours, tone)
        if canvas.fault == _COLOUR:
            image = canvas.recolour(image, gone.astype(np.float32))
        ground = paint(self.ground, np.float32(0.5) + np.float32(0.25) * canvas.noise(40))
        image = mix(ground, image, wire[..., None])
        return self.look.finish(canvas, image, height * np.float32(self.period * self.thick * canvas.unit / 2.5))


def _hex_edge(place: Lattice) -> np.ndarray:
    """Distance to the border of the hexagon around the nearest place of a hexagonal lattice, 0 to 0.5."""
    right, down = np.abs(place.right), np.abs(place.down)
    return (np.float32(0.5) - np.maximum(right, right * np.float32(0.5) + down * np.float32(np.sqrt(0.75)))).astype(
        np.float32
    )


@dataclass(frozen=True, eq=False)
class Masonry(_Surface):
    """Tiles, bricks, slabs or parquet in a bond, each of its own tone, with joints."""

    NOUNS: ClassVar[tuple[str, ...]] = ("tiles", "tiled wall", "masonry", "paving", "mosaic", "tile floor", "parquet")
    FAULTS: ClassVar[tuple[str, ...]] = (_MISSING, _DOUBLED, _MISPLACED, _TEXTURE, _COLOUR)

    look: _Look
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
            look=_Look.sample(generator, contrast=(0.08, 0.6), relief=(0.2, 1), gloss=0.2),
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

    def _draw(self, canvas: _Canvas) -> np.ndarray:
        straight = self.bond in {"stack", "half", "third"}
        u, v, _ = self.look.frame(canvas, self.period, self.aspect if straight else 1.0)
        stretch = np.float32(self.aspect if straight else 1)
        if self.bond == "hexagon":
            place = lattice(u, v, "hex")
            i, j = place.i, place.j
            chosen = canvas.chosen(i, j)
            shift = np.where(chosen, canvas.flawed(0.08, 0.2), 0) if canvas.fault == _MISPLACED else 0
            edge = _hex_edge(place._replace(right=place.right + shift))
            if canvas.fault == _DOUBLED:
                edge = np.where(chosen, np.minimum(edge, np.abs(place.right)), edge)
        else:
            column, row, width, height, right, down = self._tiles(u, v)
            i, j = column.astype(np.int32), row.astype(np.int32)
            chosen = canvas.chosen(i, j)
            if canvas.fault == _MISPLACED:
                right = right + np.where(chosen, canvas.flawed(0.06, 0.2), 0)
                down = down + np.where(chosen, canvas.flawed(0.06, 0.2), 0)
            if canvas.fault == _DOUBLED:  # one tile more, in the place of one: two halves
                half = np.where(chosen, np.abs(right - width / 2), 9)
                edge = np.minimum(half, np.minimum(right, width - right))
            else:
                edge = np.minimum(right, width - right)
            edge = np.minimum(edge, np.minimum(down, height - down) * stretch)
        edge = edge * np.float32(self.period) + np.float32(0.25) * canvas.noise(8, 2)
        tile = smoothstep(self.joint - 0.5, self.joint + 0.7, edge)
        if canvas.fault == _MISSING:
            tile = np.where(chosen, 0, tile)
        grain = canvas.noise(5, 1.3)
        tone = np.float32(0.5) + np.float32(self.tones) * (per_cell(canvas.generator, i, j) - np.float32(0.5))
        tone += np.float32(self.chequer) * ((i + j) % 2 - np.float32(0.5)) + np.float32(self.surface) * grain
        image = paint(self.look.colours, tone)
        if canvas.fault == _COLOUR:
            image = canvas.recolour(image, chosen.astype(np.float32))
        mortar = self.mortar * (1 + np.float32(0.1) * grain)[..., None]
        image = mix(mortar.astype(np.float32), image, tile[..., None])
        bevel = smoothstep(self.joint - 0.5, self.joint + 0.5 + self.bevel, edge)
        if canvas.fault == _MISSING:
            bevel = np.where(chosen, 0, bevel)
        height = (bevel * np.float32(1.5) + np.float32(2 * self.surface) * grain * tile).astype(np.float32)
        return self.look.finish(canvas, image, height * np.float32(canvas.unit))


@dataclass(frozen=True, eq=False)
class Foam(_Surface):
    """Round pores of several sizes in a lighter or darker mass."""

    NOUNS: ClassVar[tuple[str, ...]] = ("foam", "sponge", "porous material", "pumice", "bread crumb", "bubbles")
    FAULTS: ClassVar[tuple[str, ...]] = (_TEXTURE, _MISSING, _COLOUR)

    look: _Look
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
            look=_Look.sample(generator, contrast=(0.1, 0.6), relief=(0.4, 1.2)),
            period=log_uniform(generator, 4, 24),
            layers=int(generator.integers(1, 3)),
            radius=generator.uniform(0.35, 0.65),
            spread=generator.uniform(0.1, 0.9),
            soft=generator.uniform(0.05, 0.35),
            depth=generator.uniform(0.1, 0.4),
        )

    def _draw(self, canvas: _Canvas) -> np.ndarray:
        pore = np.zeros((canvas.count, canvas.side, canvas.side), np.float32)
        for layer in range(self.layers):
            u, v, _ = self.look.frame(canvas, self.period * 2.2**layer)
            hole = cells(canvas.generator, u, v, 0.95)
            radius = np.float32(self.radius) * (1 - np.float32(self.spread) * hole.per_cell(canvas.generator))
            pore = np.maximum(pore, smoothstep(0, self.soft, radius - hole.first))
        if canvas.fault == _MISSING:
            pore = mix(pore, 0.0, canvas.blob)
        rough = canvas.noise(3, 1.2)
        tone = (
            np.float32(0.85) - np.float32(0.75) * pore + np.float32(0.07) * rough + np.float32(0.06) * canvas.noise(50)
        )
        image = paint(self.look.colours, tone)
        if canvas.fault == _COLOUR:
            image = canvas.recolour(image, canvas.blob)
        height = np.float32(0.15) * rough - np.float32(self.depth * self.period) * pore
        return self.look.finish(canvas, image, height)


@dataclass(frozen=True, eq=False)
class Print(_Surface):
    """Motifs on a lattice, printed in ink, embossed or punched: dots, rings, crosses, stars, rosettes, diamonds."""

    NOUNS: ClassVar[tuple[str, ...]] = (
        "printed pattern",
        "patterned surface",
        "wallpaper",
        "polka dots",
        "embossed sheet",
    )
    FAULTS: ClassVar[tuple[str, ...]] = (_MISSING, _DOUBLED, _MISPLACED, _TEXTURE, _COLOUR)

    look: _Look
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
            look=_Look.sample(generator, contrast=(0.02, 0.15), relief=(0.3, 1), gloss=0.15),
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

    def _draw(self, canvas: _Canvas) -> np.ndarray:
        u, v, _ = self.look.frame(canvas, self.period, 1.0 if self.kind == "hex" else self.aspect)
        place = lattice(u, v, self.kind)
        chosen = canvas.chosen(place.i, place.j)
        right, down = place.right, place.down
        if self.regular:
            right = right + np.float32(self.regular) * (per_cell(canvas.generator, place.i, place.j) - np.float32(0.5))
            down = down + np.float32(self.regular) * (per_cell(canvas.generator, place.i, place.j) - np.float32(0.5))
        if canvas.fault == _MISPLACED:
            right = right + np.where(chosen, canvas.flawed(0.12, 0.3), 0)
            down = down + np.where(chosen, canvas.flawed(0.0, 0.3), 0)
        inside = self._outline(right, down)
        if canvas.fault == _DOUBLED:
            twin = self._outline(right + np.float32(0.22), down + np.float32(0.22))
            inside = np.where(chosen, np.maximum(inside, twin), inside)
        if canvas.fault == _MISSING:
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
        if canvas.fault == _COLOUR:
            image = canvas.recolour(image, chosen * ink)
        width = self.period * canvas.unit * self.size
        raised = np.float32(self.emboss * self.period) * smoothstep(-0.15 * width, 0.5 * width, inside)
        return self.look.finish(canvas, image, np.float32(0.08) * weave + raised)


@dataclass(frozen=True, eq=False)
class Stripes(_Surface):
    """Stripes, checks, plaids and waves in flat colours."""

    NOUNS: ClassVar[tuple[str, ...]] = ("striped pattern", "checked pattern", "stripes", "checks", "printed pattern")
    FAULTS: ClassVar[tuple[str, ...]] = (_MISSING, _MISPLACED, _TEXTURE, _COLOUR)

    look: _Look
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
            look=_Look.sample(generator, contrast=(0.08, 0.7)),
            period=log_uniform(generator, 4, 40),
            duties=(generator.uniform(0.2, 0.8), generator.uniform(0.2, 0.8)),
            both=str(generator.choice(["single", "single", "plaid", "checks"])),
            wave=(float(generator.choice([0, generator.uniform(0.1, 0.5)])), generator.uniform(0.1, 0.8)),
            shape=str(generator.choice(["square", "square", "sine", "triangle"])),
            texture=generator.uniform(0, 0.12),
        )

    def _draw(self, canvas: _Canvas) -> np.ndarray:
        u, v, _ = self.look.frame(canvas, self.period)
        bent = u + np.float32(self.wave[0]) * np.sin(_TURN * np.float32(self.wave[1]) * v)
        if canvas.fault == _MISPLACED:
            bent = bent + canvas.flawed(0.3, 0.6) * canvas.blob
        i, j = np.round(bent).astype(np.int32), np.round(v).astype(np.int32)
        first, second = grating(bent, self.shape, self.duties[0]), grating(v, self.shape, self.duties[1])
        part = canvas.chosen(i) if self.both == "single" else canvas.chosen(i, j)
        if canvas.fault == _MISSING:
            first = np.where(part, 0, first)
        tone = {"single": first, "plaid": (first + second) / 2, "checks": first + second - 2 * first * second}[
            self.both
        ]
        tone = np.float32(0.1) + np.float32(0.8) * tone + np.float32(self.texture) * canvas.noise(3, 1)
        image = paint(self.look.colours, tone)
        if canvas.fault == _COLOUR:
            image = canvas.recolour(image, part * first)
        return self.look.finish(canvas, image)


@dataclass(frozen=True, eq=False)
class RandomField(_Surface):
    """Correlated noise of a random spectrum: coarse or fine, in any direction, smooth or rough, flat or in relief."""

    NOUNS: ClassVar[tuple[str, ...]] = ("textured surface", "texture", "material", "rough surface", "surface")
    FAULTS: ClassVar[tuple[str, ...]] = (_TEXTURE, _COLOUR)

    look: _Look
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
            look=_Look.sample(generator, stops=int(generator.integers(2, 6)), contrast=(0.05, 0.8), gloss=0.2),
            spectra=tuple(spectra),
            weights=np.sqrt(generator.dirichlet(np.ones(len(spectra)))).astype(np.float32),
            sharp=float(generator.choice([0, 0, generator.uniform(0.5, 3)])),
            height=float(generator.choice([0, generator.uniform(0.3, 2)])),
        )

    def _draw(self, canvas: _Canvas) -> np.ndarray:
        turn = canvas.each(-1, 1)[:, 0, 0] * np.float32(self.look.turn)
        field = np.zeros((canvas.count, canvas.side, canvas.side), np.float32)
        for weight, (scale, power, band, stretch, angle) in zip(self.weights, self.spectra, strict=True):
            field += weight * canvas.noise(scale, power, band, stretch, angle + turn)
        tone = np.tanh(field * np.float32(self.sharp)) / 2 if self.sharp else field / 5
        image = paint(self.look.colours, tone + np.float32(0.5))
        if canvas.fault == _COLOUR:
            image = canvas.recolour(image, canvas.blob)
        return self.look.finish(canvas, image, field * np.float32(self.height) if self.height else None)


@dataclass(frozen=True, eq=False)
class Fibres(_Surface):
    """Thousands of short strokes over one another: felt, blades, straw, hair, chips."""

    NOUNS: ClassVar[tuple[str, ...]] = ("fibres", "felt", "fleece", "straw", "blades", "hair", "pressed chips")
    FAULTS: ClassVar[tuple[str, ...]] = (_MISSING, _TEXTURE, _COLOUR)

    look: _Look
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
            look=_Look.sample(generator, contrast=(0.15, 0.7), relief=(0.2, 1)),
            number=int(min(2500, generator.uniform(12000, 30000) / length / width)),
            length=length,
            width=width,
            spread=float(generator.choice([generator.uniform(0.05, 0.6), np.pi])),
            bend=generator.uniform(0, 1.5),
            tones=generator.uniform(0.2, 0.9),
            flow=generator.uniform(0, 1),
        )

    def _draw(self, canvas: _Canvas) -> np.ndarray:
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
            if canvas.fault == _MISSING:
                tone = np.where(within > 0.5, np.nan, tone)
            if canvas.fault == _TEXTURE:
                angle = angle + canvas.flawed(0.6, 1.5)[:, 0] * within
            if canvas.fault == _COLOUR:
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


@dataclass(frozen=True, eq=False)
class Granules(_Surface):
    """Rounded stones, beads, seeds or grains lying side by side."""

    NOUNS: ClassVar[tuple[str, ...]] = ("pebbles", "granules", "stones", "beads", "seeds", "pellets", "grains")
    FAULTS: ClassVar[tuple[str, ...]] = (_MISSING, _TEXTURE, _COLOUR)

    look: _Look
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
            look=_Look.sample(generator, stops=4, contrast=(0.15, 0.7), relief=(0.5, 1.4), gloss=0.3),
            period=log_uniform(generator, 4, 30),
            aspect=generator.uniform(0.5, 1.3),
            jitter=generator.uniform(0.4, 1),
            gap=generator.uniform(0.02, 0.18),
            tones=generator.uniform(0, 0.9),
            rough=generator.uniform(0, 0.15),
            angular=generator.uniform(0, 0.12),
        )

    def _draw(self, canvas: _Canvas) -> np.ndarray:
        u, v, _ = self.look.frame(canvas, self.period, self.aspect)
        ragged = np.float32(self.angular) * canvas.noise(self.period, 2)
        grain = cells(canvas.generator, u + ragged, v - ragged, self.jitter)
        border = grain.second - grain.first
        dome = np.sqrt(np.clip(border * np.float32(1.6) - np.float32(self.gap), 0, 1))
        chosen = canvas.chosen(grain.owner)
        if canvas.fault == _MISSING:
            dome = np.where(chosen, 0, dome)
        rough = canvas.noise(3.5, 1.3)
        tone = np.float32(0.55) + np.float32(self.tones) * (grain.per_cell(canvas.generator) - np.float32(0.5))
        image = paint(self.look.colours, tone + np.float32(self.rough) * rough)
        if canvas.fault == _COLOUR:
            image = canvas.recolour(image, chosen.astype(np.float32))
        image = image * (np.float32(0.2) + np.float32(0.8) * smoothstep(0, 0.75, dome))[..., None]
        height = dome * np.float32(self.period * canvas.unit / 5) + np.float32(self.rough) * rough
        return self.look.finish(canvas, image, height)


@dataclass(frozen=True, eq=False)
class CellTissue(_Surface):
    """A stained or fluorescent section: nuclei in stroma, sometimes glands around a lumen."""

    NOUNS: ClassVar[tuple[str, ...]] = ("cell tissue", "tissue section", "histology", "cells", "micrograph")
    FAULTS: ClassVar[tuple[str, ...]] = (_TEXTURE, _MISSING, _COLOUR)

    look: _Look
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
        look = _Look.sample(generator, contrast=(0.05, 0.35))
        nuclei = palette(generator, 1)[0]
        if generator.random() < 0.5:  # the usual stains: violet in rose
            hue = generator.uniform(-0.4, 0.5)
            rose = np.clip([[0.75, 0.45, 0.62], [0.92, 0.74 + 0.1 * hue, 0.84], [0.97, 0.93, 0.95]], 0, 1)
            look = _Look(**{**vars(look), "colours": ramp(rose)})
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

    def _draw(self, canvas: _Canvas) -> np.ndarray:
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
        if canvas.fault == _MISSING:
            nucleus = nucleus * (1 - canvas.blob)
        image = paint(self.look.colours, np.maximum(tone, lumen))
        depth = (np.float32(0.75) + np.float32(0.25) * cell.per_cell(generator)) * nucleus
        chromatin = self.nuclei * (1 + np.float32(0.15) * fine)[..., None]
        image = mix(image, chromatin, depth[..., None])
        if canvas.fault == _COLOUR:
            image = canvas.recolour(image, canvas.blob)
        return self.look.finish(canvas, image)


@dataclass(frozen=True, eq=False)
class Vessels(_Surface):
    """Branching vessels, roots or cracks over a smooth ground."""

    NOUNS: ClassVar[tuple[str, ...]] = ("branching vessels", "veins", "roots", "blood vessels", "mucosa", "leaf veins")
    FAULTS: ClassVar[tuple[str, ...]] = (_MISSING, _MISPLACED, _COLOUR)

    look: _Look
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
            look=_Look.sample(generator, stops=4, contrast=(0.12, 0.55), relief=(0, 0.5)),
            roots=int(generator.integers(4, 11)),
            children=(int(generator.integers(2, 6)), int(generator.integers(2, 5))),
            width=log_uniform(generator, 0.8, 2.6),
            curl=generator.uniform(0.03, 0.16),
            spread=generator.uniform(0.4, 1.2),
            strength=float(generator.choice([-1, -1, 1])) * generator.uniform(0.2, 0.6),
            ground=generator.uniform(0.03, 0.14),
            parallel=bool(generator.random() < 0.3),
        )

    def _draw(self, canvas: _Canvas) -> np.ndarray:
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
        if canvas.fault == _MISSING:
            vessels = vessels * (1 - canvas.blob)
        if canvas.fault == _MISPLACED:
            shift = canvas.blob * np.float32(canvas.unit)
            vessels = warp(vessels, canvas.flawed(3, 7) * shift, canvas.flawed(3, 7) * shift)
        base = np.float32(0.5 - self.strength / 2) + np.float32(self.ground) * canvas.noise(70)
        tone = base + np.float32(self.ground / 3) * canvas.noise(4, 1.2) + np.float32(self.strength) * vessels
        image = paint(self.look.colours, tone)
        if canvas.fault == _COLOUR:
            image = canvas.recolour(image, canvas.blob)
        return self.look.finish(canvas, image, vessels * 2)


@dataclass(frozen=True, eq=False)
class Terrain(_Surface):
    """Bumpy, dusty or cratered ground under low light."""

    NOUNS: ClassVar[tuple[str, ...]] = ("bumpy ground", "cratered ground", "rough terrain", "sand", "soil", "plaster")
    FAULTS: ClassVar[tuple[str, ...]] = (_TEXTURE, _MISSING)

    look: _Look
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
            look=_Look.sample(generator, contrast=(0.05, 0.4), relief=(0.5, 1.5)),
            scale=log_uniform(generator, 10, 80),
            power=generator.uniform(1.7, 3.2),
            rough=generator.uniform(0.015, 0.06),
            pits=float(generator.choice([0, log_uniform(generator, 8, 36)])),
            depth=float(generator.choice([-1, 1, 1])) * generator.uniform(0.15, 0.45),
            density=generator.uniform(0.3, 1),
        )

    def _draw(self, canvas: _Canvas) -> np.ndarray:
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
        if canvas.fault == _MISSING:
            height = mix(height, np.float32(self.rough * self.scale * 0.1) * ground, canvas.blob)
        image = paint(
            self.look.colours, np.float32(0.5) + np.float32(0.1) * canvas.noise(40) + np.float32(0.05) * ground
        )
        return self.look.finish(canvas, image, height * np.float32(canvas.unit))


@dataclass(frozen=True, eq=False)
class Carpet(_Surface):
    """Tufts or loops of pile, in rows or anywhere, with heathered yarns."""

    NOUNS: ClassVar[tuple[str, ...]] = ("carpet", "pile", "rug", "towel", "plush", "velvet")
    FAULTS: ClassVar[tuple[str, ...]] = (_MISSING, _TEXTURE, _COLOUR)

    look: _Look
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
            look=_Look.sample(generator, contrast=(0.1, 0.6), relief=(0.4, 1.2)),
            period=log_uniform(generator, 3, 14),
            aspect=generator.uniform(0.6, 1.6),
            jitter=generator.uniform(0.15, 0.8),
            heather=generator.uniform(0, 0.6),
            fuzz=generator.uniform(0.03, 0.2),
            mottle=generator.uniform(0, 0.08),
        )

    def _draw(self, canvas: _Canvas) -> np.ndarray:
        u, v, _ = self.look.frame(canvas, self.period, self.aspect)
        sway = np.float32(0.25) * canvas.noise(14)
        tuft = cells(canvas.generator, u + sway, v - sway, self.jitter)
        height = np.maximum(1 - (tuft.first * np.float32(1.3)) ** 2, 0)
        height = height * (np.float32(0.7) + np.float32(0.5) * tuft.per_cell(canvas.generator))
        if canvas.fault == _MISSING:
            height = height * (1 - np.float32(0.85) * canvas.blob)
        fuzz = np.float32(self.fuzz) * canvas.noise(2.2, 0.8)
        tone = np.float32(0.5) + np.float32(self.heather) * (tuft.per_cell(canvas.generator) - np.float32(0.5)) + fuzz
        tone = tone + np.float32(self.mottle) * canvas.noise(40)
        image = (
            paint(self.look.colours, tone) * (np.float32(0.4) + np.float32(0.6) * smoothstep(0, 0.8, height))[..., None]
        )
        if canvas.fault == _COLOUR:
            image = canvas.recolour(image, canvas.blob)
        return self.look.finish(canvas, image, height * np.float32(self.period * canvas.unit / 4) + 2 * fuzz)


@dataclass(frozen=True, eq=False)
class Corrugation(_Surface):
    """Ribs, corduroy, blinds, threads of a screw: parallel ridges in relief."""

    NOUNS: ClassVar[tuple[str, ...]] = ("corrugated sheet", "ribbed surface", "corduroy", "ribs", "grooves", "blinds")
    FAULTS: ClassVar[tuple[str, ...]] = (_MISSING, _MISPLACED, _TEXTURE, _COLOUR)

    look: _Look
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
            look=_Look.sample(generator, contrast=(0.05, 0.4), relief=(0.4, 1.3), gloss=0.3),
            period=log_uniform(generator, 4, 36),
            shape=str(generator.choice(["sine", "triangle", "round", "square"])),
            duty=generator.uniform(0.3, 0.7),
            depth=generator.uniform(0.12, 0.3),
            wobble=float(generator.choice([0, generator.uniform(0.02, 0.25)])),
            along=float(generator.choice([0, generator.uniform(0.3, 2)])),
            rough=generator.uniform(0, 0.2),
        )

    def _draw(self, canvas: _Canvas) -> np.ndarray:
        u, v, _ = self.look.frame(canvas, self.period)
        u = u + np.float32(self.wobble) * canvas.noise(60, 3)
        if canvas.fault == _MISPLACED:
            u = u + canvas.flawed(0.3, 0.7) * canvas.blob
        i = np.round(u).astype(np.int32)
        ridge = grating(u, self.shape, self.duty)
        if self.along:
            ridge = ridge * (np.float32(0.7) + np.float32(0.3) * grating(v * np.float32(self.along), "sine"))
        chosen = canvas.chosen(i)
        if canvas.fault == _MISSING:
            ridge = np.where(chosen, np.float32(0.15) * ridge, ridge)
        rough = canvas.noise(3, 1.2)
        own = per_cell(canvas.generator, i) - np.float32(0.5)
        tone = np.float32(0.25) + np.float32(0.5) * ridge + np.float32(0.15) * own + np.float32(self.rough / 2) * rough
        image = paint(self.look.colours, tone)
        if canvas.fault == _COLOUR:
            image = canvas.recolour(image, chosen.astype(np.float32))
        return self.look.finish(
            canvas, image, ridge * np.float32(self.depth * self.period * canvas.unit) + self.rough * rough
        )


@dataclass(frozen=True, eq=False)
class Crackle(_Surface):
    """Plates between cracks, at one or two scales: dried mud, glaze, old paint, bark."""

    NOUNS: ClassVar[tuple[str, ...]] = ("cracked mud", "crackle glaze", "cracked paint", "dried earth", "bark")
    FAULTS: ClassVar[tuple[str, ...]] = (_MISSING, _TEXTURE, _COLOUR)

    look: _Look
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
            look=_Look.sample(generator, contrast=(0.1, 0.6), relief=(0.3, 1.2)),
            period=log_uniform(generator, 9, 44),
            aspect=float(generator.choice([1, generator.uniform(1.2, 3.5)])),
            crack=generator.uniform(0.6, 2.2),
            fine=float(generator.choice([0, generator.uniform(0.2, 0.8)])),
            ragged=generator.uniform(0.02, 0.12),
            tones=generator.uniform(0, 0.3),
            curl=generator.uniform(-0.06, 0.08),
        )

    def _draw(self, canvas: _Canvas) -> np.ndarray:
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
        if canvas.fault == _MISSING:
            open_crack = np.where(chosen, np.maximum(open_crack, np.float32(0.8)), open_crack)
        grain = canvas.noise(4, 1.3)
        tone = np.float32(0.7) + np.float32(self.tones) * (plate.per_cell(canvas.generator) - np.float32(0.5))
        tone = tone + np.float32(0.06) * grain - np.float32(0.7) * open_crack
        image = paint(self.look.colours, tone)
        if canvas.fault == _COLOUR:
            image = canvas.recolour(image, chosen.astype(np.float32))
        height = np.float32(self.curl * self.period) * plate.first**2 * 2 - 2 * open_crack + np.float32(0.12) * grain
        return self.look.finish(canvas, image, height * np.float32(canvas.unit))


@dataclass(frozen=True, eq=False)
class Plain(_Surface):
    """Nearly uniform sheets: paper, card, concrete, paint, with faint clouds, grain, flecks or pinholes."""

    NOUNS: ClassVar[tuple[str, ...]] = ("paper", "concrete", "cardboard", "plain surface", "painted wall", "sheet")
    FAULTS: ClassVar[tuple[str, ...]] = (_TEXTURE, _COLOUR)

    look: _Look
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
            look=_Look.sample(generator, contrast=(0.04, 0.3), relief=(0, 0.5)),
            clouds=generator.uniform(0, 0.2),
            scale=log_uniform(generator, 15, 90),
            fine=generator.uniform(0, 0.25),
            flecks=float(generator.choice([0, generator.uniform(0.05, 0.5)])),
            period=log_uniform(generator, 5, 20),
            fleck=generator.uniform(-0.5, 0.4),
        )

    def _draw(self, canvas: _Canvas) -> np.ndarray:
        fine = np.float32(self.fine) * canvas.noise(3, 1.1)
        tone = np.float32(0.5) + np.float32(self.clouds) * canvas.noise(self.scale, 1.8) + np.float32(0.5) * fine
        if self.flecks:
            u, v, _ = self.look.frame(canvas, self.period)
            spot = cells(canvas.generator, u, v, 1.0)
            size = spot.per_cell(canvas.generator) * np.float32(0.22)
            there = spot.per_cell(canvas.generator) < self.flecks
            tone = tone + np.float32(self.fleck) * smoothstep(0.05, -0.05, spot.first - size) * there
        image = paint(self.look.colours, tone)
        if canvas.fault == _COLOUR:
            image = canvas.recolour(image, canvas.blob)
        return self.look.finish(canvas, image, 2 * fine)


SURFACES: tuple[type[Family], ...] = (
    WovenCloth,
    Knit,
    WoodGrain,
    VeinedStone,
    Granite,
    BrushedMetal,
    CastMetal,
    Leather,
    WireMesh,
    Masonry,
    Foam,
    Print,
    Stripes,
    RandomField,
    Fibres,
    Granules,
    CellTissue,
    Vessels,
    Terrain,
    Carpet,
    Corrugation,
    Crackle,
    Plain,
)
"""All families of surfaces."""
