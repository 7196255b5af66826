"""The camera: what the conditions of taking a picture do to a scene."""

from __future__ import annotations

import io
from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from typing_extensions import Self

_LUMA = np.array([0.3, 0.55, 0.15], np.float32)
_LEVELS = 4096  # steps of the table of tones
_ORDERS = tuple(permutations(range(3)))


def _maybe(generator: np.random.Generator, probability: float, low: float, high: float, otherwise: float) -> float:
    """A number between ``low`` and ``high`` with that probability, or else another one."""
    value = float(generator.uniform(low, high))
    return value if generator.random() < probability else otherwise


@dataclass(frozen=True)
class Camera:
    """The conditions under which all pictures of a category are taken.

    A picture differs from another by small deviations from them, and no pixel moves.

    Attributes:
        order (tuple[int, ...]): Which colour channel of the scene becomes which of the picture.
        saturation (float): 0 for a grey camera, 1 for the scene's colours.
        inverted (bool): Whether bright and dark are exchanged.
        gamma (float): Exponent of the response.
        contrast (float): Factor on the distance from mid-grey.
        brightness (float): Offset after that.
        cast (tuple[float, ...]): Gains of the three channels.
        falloff (float): How much darker the corners are, as a share.
        slant (float): How much the light changes over half a picture, as a share.
        direction (float): Where the light comes from, in radians.
        blur (float): Deviation of the lens's blur in pixels.
        coarseness (float): Pixels of the picture per pixel of the sensor, at least 1.
        grain (float): Deviation of the noise.
        grain_size (float): Deviation of the noise's own blur in pixels, 0 for independent pixels.
        colour_grain (bool): Whether the channels have noise of their own.
        shot (float): How much of the noise follows the light, 0 to 1.
        quality (int): Quality of JPEG compression, 0 for none.
        steadiness (float): Factor on the deviations between pictures.
    """

    order: tuple[int, ...]
    saturation: float
    inverted: bool
    gamma: float
    contrast: float
    brightness: float
    cast: tuple[float, ...]
    falloff: float
    slant: float
    direction: float
    blur: float
    coarseness: float
    grain: float
    grain_size: float
    colour_grain: bool
    shot: float
    quality: int
    steadiness: float

    @classmethod
    def sample(cls, generator: np.random.Generator) -> Self:
        """Draw the conditions of a new category."""
        grey = generator.random() < 0.25
        return cls(
            order=_ORDERS[generator.integers(6)] if generator.random() < 0.4 else (0, 1, 2),
            saturation=0.0 if grey else _maybe(generator, 0.4, 0.3, 1.4, 1.0),
            inverted=bool(generator.random() < 0.06),
            gamma=float(np.exp(generator.normal(0, 0.2))),
            contrast=float(generator.uniform(0.7, 1.2)),
            brightness=float(np.clip(generator.normal(0, 0.05), -0.12, 0.12)),
            cast=(1.0, 1.0, 1.0) if grey else tuple(np.exp(generator.normal(0, 0.06, 3)).tolist()),
            falloff=_maybe(generator, 0.4, 0.05, 0.4, 0.0),
            slant=_maybe(generator, 0.5, 0.02, 0.2, 0.0),
            direction=float(generator.uniform(0, 2 * np.pi)),
            blur=_maybe(generator, 0.6, 0.3, 1.2, 0.0),
            coarseness=_maybe(generator, 0.25, 1.2, 2.5, 1.0),
            grain=float(np.exp(generator.uniform(np.log(0.002), np.log(0.035)))),
            grain_size=_maybe(generator, 0.25, 0.5, 1.0, 0.0),
            colour_grain=not grey and bool(generator.random() < 0.5),
            shot=float(generator.uniform(0, 1)),
            quality=int(_maybe(generator, 0.35, 45, 96, 0)),
            steadiness=float(np.exp(generator.uniform(np.log(0.3), np.log(1.3)))),
        )

    def take(self, generator: np.random.Generator, image: np.ndarray) -> np.ndarray:
        """Take pictures of scenes.

        Args:
            generator (np.random.Generator): Source of the deviations between pictures.
            image (np.ndarray): Scenes ``(n, side, side, 3)``, ``float32`` in ``[0, 1]``.

        Returns:
            np.ndarray: Pictures ``(n, side, side, 3)``, ``uint8``.
        """
        pictures = [self._take_one(generator, scene) for scene in image]  # single pictures stay within the cache
        return np.stack(pictures) if pictures else np.empty(image.shape, np.uint8)

    def _take_one(self, generator: np.random.Generator, scene: np.ndarray) -> np.ndarray:
        picture = self._focus(generator, self._respond(scene) * self._light(generator, len(scene)))
        picture = picture + self._noise(generator, picture)
        levels = np.clip(picture * 255 + 0.5, 0, 255).astype(np.uint8)
        return self._compress(levels) if self.quality else levels

    def _respond(self, scene: np.ndarray) -> np.ndarray:
        """Colours and tones of the category ``(side, side, 3)``, the same for all of its pictures."""
        grey = np.outer(_LUMA, np.ones(3, np.float32))
        mix = grey + self.saturation * (np.eye(3, dtype=np.float32)[:, list(self.order)] - grey)
        tone = np.linspace(0, 1, _LEVELS, dtype=np.float32)
        tone = (1 - tone if self.inverted else tone) ** self.gamma
        tone = (tone - 0.5) * self.contrast + 0.5 + self.brightness
        mixed = np.clip(scene.reshape(-1, 3) @ (mix * (_LEVELS - 1)).astype(np.float32), 0, _LEVELS - 1)
        picture = np.take(tone.astype(np.float32), (mixed + 0.5).astype(np.int32))
        return (picture * np.array(self.cast, np.float32)).reshape(scene.shape)

    def _light(self, generator: np.random.Generator, side: int) -> np.ndarray:
        """Gains ``(side, side, 3)`` by exposure, white balance, slanting light and dark corners."""
        turn, tilt, lean, exposure = np.clip(self.steadiness * generator.standard_normal(4), -2, 2)
        line = np.linspace(-1, 1, side, dtype=np.float32)
        direction = self.direction + 0.25 * turn
        slant = self.slant * (1 + 0.25 * tilt) + 0.012 * lean
        slope = slant * (np.sin(direction) * line[:, None] + np.cos(direction) * line)
        corners = self.falloff * 0.5 * (line[:, None] ** 2 + line**2)
        gain = ((1 + slope) * (1 - corners) * (1 + 0.03 * exposure)).astype(np.float32)
        unbalance = 0.006 * self.steadiness if self.saturation else 0.0
        return gain[..., None] * (1 + unbalance * generator.standard_normal(3)).astype(np.float32)

    def _focus(self, generator: np.random.Generator, picture: np.ndarray) -> np.ndarray:
        """Blur by the lens, by a little less or more in each picture, and by a coarse sensor."""
        deviation = self.blur * float(np.exp(np.clip(0.1 * self.steadiness * generator.standard_normal(), -0.2, 0.2)))
        side = len(picture)
        line = np.arange(side, dtype=np.float32)
        matrix = np.eye(side, dtype=np.float32)
        if deviation:
            matrix = _rows(np.exp(-((line[:, None] - line) ** 2) / np.float32(2 * deviation**2)))
        if self.coarseness > 1:
            cells = np.arange(round(side / self.coarseness), dtype=np.float32) + 0.5
            gap = np.abs(line[:, None] - (cells * (side / len(cells)) - 0.5)) / self.coarseness
            near = np.clip(1 - gap, 0, None).astype(np.float32)
            matrix = _rows(near) @ _rows(near.T) @ matrix
        return picture if deviation == 0 and self.coarseness == 1 else _both_ways(matrix, picture)

    def _noise(self, generator: np.random.Generator, picture: np.ndarray) -> np.ndarray:
        """Noise ``(side, side, 3)`` of the sensor."""
        side = len(picture)
        noise = generator.standard_normal((side, side, 3 if self.colour_grain else 1), dtype=np.float32)
        if self.grain_size:
            line = np.arange(side, dtype=np.float32)
            kernel = np.exp(-((line[:, None] - line) ** 2) / np.float32(2 * self.grain_size**2))
            noise = _both_ways(kernel / np.linalg.norm(kernel, axis=1, keepdims=True), noise)
        level = self.grain * float(np.exp(np.clip(0.15 * generator.standard_normal(), -0.3, 0.3)))
        light = 1 + self.shot * (np.sqrt(np.clip(picture, 0.02, 1)) * 1.4 - 1)
        return noise * light * np.float32(level)

    def _compress(self, levels: np.ndarray) -> np.ndarray:
        """Artefacts of JPEG compression."""
        with io.BytesIO() as file:
            Image.fromarray(levels).save(file, "JPEG", quality=self.quality)
            return np.asarray(Image.open(file).convert("RGB"))


def _both_ways(matrix: np.ndarray, picture: np.ndarray) -> np.ndarray:
    """Apply weights ``(side, side)`` to the rows and to the columns of a picture ``(side, side, c)``."""
    side, _, channels = picture.shape
    rows = (matrix @ picture.reshape(side, -1)).reshape(side, side, channels)
    return (matrix @ rows.swapaxes(0, 1).reshape(side, -1)).reshape(side, side, channels).swapaxes(0, 1)


def _rows(weights: np.ndarray) -> np.ndarray:
    """Weights whose rows add up to 1."""
    return weights / weights.sum(-1, keepdims=True)
