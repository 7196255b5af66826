"""What all families of surfaces share: the canvas they are drawn on, colours, light and how they lie."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from anomalib_inctrl.data.procedural.family import Family, Rendering
from anomalib_inctrl.data.procedural.noise import (
    mix,
    palette,
    ramp,
    shade,
    smoothstep,
    spectral_noise,
)

if TYPE_CHECKING:
    pass

MISSING, DOUBLED, MISPLACED = "missing_part", "doubled_part", "misplaced_part"
TEXTURE, COLOUR = "local_texture", "wrong_colour"
TURN = np.float32(2 * np.pi)


class SurfaceCanvas:
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
        if self.fault != TEXTURE:
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


class Frame(NamedTuple):
    """Coordinates on the material, in periods, ``(n, h, w)``; and the direction of the first of them, ``(n,)``."""

    u: np.ndarray
    v: np.ndarray
    angle: np.ndarray


@dataclass(frozen=True, eq=False)
class Look:
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
    ) -> Look:
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

    def frame(self, canvas: SurfaceCanvas, period: float, aspect: float = 1.0) -> Frame:
        """Lay coordinates of a period in pixels over each picture; turned and scaled within a fault of texture.

        The second coordinate has a period ``aspect`` times as long.
        """
        angle = self.angle + canvas.each(-1, 1) * np.float32(self.turn)
        scale = np.float32(period * canvas.unit) * (1 + np.float32(self.stretch) * canvas.each(-1, 1))
        x, y = canvas.x - canvas.side / 2, canvas.y - canvas.side / 2
        cosine, sine = np.cos(angle) / scale, np.sin(angle) / scale
        u, v = x * cosine + y * sine, y * cosine - x * sine
        if canvas.fault == TEXTURE:
            turn, size = canvas.flawed(0.35, 1.2), np.exp(canvas.flawed(0.2, 0.6))
            du, dv = u - canvas.at_spot(u), v - canvas.at_spot(v)
            turned_u = canvas.at_spot(u) + size * (du * np.cos(turn) + dv * np.sin(turn))
            turned_v = canvas.at_spot(v) + size * (dv * np.cos(turn) - du * np.sin(turn))
            u, v = mix(u, turned_u, canvas.blob), mix(v, turned_v, canvas.blob)
        u, v = u + canvas.each(0, 60), v / np.float32(aspect) + canvas.each(0, 60)
        return Frame(u.astype(np.float32), v.astype(np.float32), angle[:, 0, 0])

    def direction(self, canvas: SurfaceCanvas) -> np.ndarray:
        """Draw the direction of each picture's structures, ``(n,)``."""
        return (self.angle + canvas.each(-1, 1) * np.float32(self.turn))[:, 0, 0]

    def finish(self, canvas: SurfaceCanvas, image: np.ndarray, height: np.ndarray | None = None) -> np.ndarray:
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


class Surface(Family):
    """A family whose members fill the picture."""

    def render(
        self,
        generator: np.random.Generator,
        count: int,
        side: int,
        fault: str | None = None,
    ) -> Rendering:
        """Draw members of the category; see `Family.render`."""
        image = self._draw(SurfaceCanvas(generator, count, side, fault))
        return Rendering(np.clip(image, 0, 1).astype(np.float32), np.ones((count, side, side), np.float32))

    @abstractmethod
    def _draw(self, canvas: SurfaceCanvas) -> np.ndarray:
        """Draw the pictures, ``(n, side, side, 3)``."""
