"""Synthetic defects with exact pixel masks.

Every ``draw_*`` function takes a clean crop and returns the damaged one at the photograph's own resolution; the
enlargement to the written size then softens crop and defect alike. The mask is not what was meant to be drawn but
what visibly changed, see :func:`add_defect`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from anomalib.data.utils.generators.perlin import generate_perlin_noise
from PIL import Image, ImageDraw, ImageFilter
from scipy import ndimage

from anomalib_inctrl.data.photographs import DONORS, read_photograph

CHANGE_THRESHOLD = 6
"""A pixel counts as changed if one of its channels differs by more than this many of the 255 grey levels."""

AREA_RANGE = (0.015, 0.08)
"""Smallest and largest share of the image that a defect may cover."""

CONTRAST_RANGE = (20.0, 60.0)
"""Bounds in grey levels for what counts as a crop's own contrast, to which the strength of a defect is relative."""

MIN_CHANGE = 1.0
"""Smallest mean change inside a mask relative to the crop's own contrast."""

TONES = 3
"""Random colours to choose the colour of a defect from."""

ATTEMPTS = 100
"""Redraws before giving up on a defect that stays too small, too large or too faint."""


@dataclass(frozen=True)
class Damage:
    """A damaged image with its ground truth.

    Args:
        image: ``uint8`` array of shape ``(size, size, 3)``; equal to ``clean`` wherever ``mask`` is ``False``.
        mask: Boolean array of shape ``(size, size)``; where the image visibly changed.
        clean: ``uint8`` array of shape ``(size, size, 3)``; the same crop without the defect.
    """

    image: np.ndarray
    mask: np.ndarray
    clean: np.ndarray


def resize(pixels: np.ndarray, size: int) -> np.ndarray:
    """Resize a square ``uint8`` image of shape ``(side, side, 3)`` to ``(size, size, 3)`` with bicubic weights."""
    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC))


def add_defect(
    crop: np.ndarray,
    kind: str,
    generator: np.random.Generator,
    size: int,
    inside: float = 2.0,
    opacity: float = 1.0,
) -> Damage:
    """Draw one defect, redrawing it until it is neither invisible nor overwhelming.

    Args:
        crop: Clean ``uint8`` crop of shape ``(side, side, 3)``.
        kind: One of :data:`KINDS`.
        generator: Source of the random size, position, orientation and strength.
        size: Side of the returned images in pixels.
        inside: Diameter, relative to the crop's side, of the centred disc that the defect must not leave; from
            ``sqrt(2)`` on there is no limit.
        opacity: Share of the defect's full strength, in ``(0, 1]``.

    Returns:
        The damaged image, its mask and the clean image at the written size.

    Raises:
        RuntimeError: If no attempt gave a usable defect.
    """
    clean = resize(crop, size)
    for _ in range(ATTEMPTS):
        drawn = DRAWERS[kind](crop.astype(np.float64), generator)
        drawn = _blend(crop, drawn, opacity * _disc(len(crop), inside))
        damage = _measure(clean, resize(_to_uint8(drawn), size))
        if _is_usable(damage, MIN_CHANGE * opacity):
            return damage
    msg = f"No visible {kind!r} defect in {ATTEMPTS} attempts; is the crop uniform?"
    raise RuntimeError(msg)


def _measure(clean: np.ndarray, drawn: np.ndarray) -> Damage:
    """Find where the drawing changed the image, and undo what changed too little to be seen.

    Pinholes of up to two pixels, where the drawing happens to match the photograph, are closed; specks are dropped.
    """
    changed = np.abs(drawn.astype(int) - clean).max(axis=-1) > CHANGE_THRESHOLD
    mask = changed | ndimage.binary_closing(changed, structure=np.ones((3, 3)))
    labels, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    speck = np.bincount(labels.ravel()) < 1e-3 * mask.size
    mask &= ~speck[labels]
    return Damage(np.where(mask[..., None], drawn, clean), mask, clean)


def _is_usable(damage: Damage, least: float) -> bool:
    """Tell whether a defect covers a sensible area and changes it by ``least`` times the crop's own contrast."""
    if not AREA_RANGE[0] <= damage.mask.mean() <= AREA_RANGE[1]:
        return False
    change = np.abs(damage.image.astype(int) - damage.clean)[damage.mask].mean()
    return bool(change >= least * _contrast(damage.clean))


def _contrast(image: np.ndarray) -> float:
    """Return the standard deviation of an image's own grey levels, kept inside :data:`CONTRAST_RANGE`."""
    return float(np.clip(image.mean(axis=-1).std(), *CONTRAST_RANGE))


def draw_crack(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Draw a jagged line with one or two branches, much darker or brighter than the surface."""
    side = len(image)
    heading = generator.uniform(0, 2 * np.pi)
    trunk = _walk(_position(side, generator), heading, generator.uniform(0.4, 0.75) * side, generator)
    paths = [trunk]
    for _ in range(generator.integers(1, 3)):
        fork = heading + generator.choice([-1, 1]) * generator.uniform(0.4, 1.0)
        paths.append(_walk(trunk[generator.integers(1, len(trunk) - 1)], fork, 0.22 * side, generator))
    alpha = _strokes(side, paths, generator.uniform(0.03, 0.05) * side)
    return _blend(image, _tone(image, generator, 2.2, 3.4), alpha * generator.uniform(0.85, 1.0))


def draw_cutpaste(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Paste a rotated patch of a photograph that is no category, set off from the surface in brightness or colour."""
    height, width = (generator.uniform(0.16, 0.32, size=2) * len(image)).astype(int).clip(4)
    donor = _donor(image, generator)
    y, x = (generator.integers(0, length) for length in np.subtract(donor.shape[:2], (height, width)))
    patch = donor[y : y + height, x : x + width]
    patch = patch - patch.mean(axis=(0, 1)) + _tone(image, generator, 1.6, 2.8)
    return _paste(image, patch, _position(len(image), generator), generator.uniform(15, 75))


def draw_hole(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Punch an almost round hole (or drop) with a sharp edge, shading inside and a rim."""
    centre, radius = _position(len(image), generator), generator.uniform(0.08, 0.13) * len(image)
    shape = generator.uniform(0, 0.08, size=3), generator.uniform(0, 2 * np.pi, size=3)
    tone = _tone(image, generator, 1.8, 3.2)
    shading = np.linspace(0.85, 1.15, len(image))[:, None, None]
    rim = _blob(len(image), centre, 1.25 * radius, shape, softness=0.12)
    image = _blend(image, 2 * image.mean(axis=(0, 1)) - tone, 0.35 * rim)
    return _blend(image, tone * shading, _blob(len(image), centre, radius, shape, softness=0.1))


def draw_perlin(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Cover an irregular area, which anomalib's own Perlin noise outlines, with the grain of finer Perlin noise.

    The caller's random number states stay as they were: anomalib's noise is drawn from a forked torch state.
    """
    side = len(image)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(generator.integers(2**31)))  # torch.manual_seed would reseed CUDA too
        outline, grain = (
            generate_perlin_noise(side, side, scale=(scale, scale), device=torch.device("cpu")).double().numpy()
            for scale in generator.choice([(2, 16), (4, 16), (2, 32), (4, 32)]).tolist()
        )
    radius = generator.uniform(0.15, 0.24) * side
    shape = generator.uniform(0, 0.25, size=3), generator.uniform(0, 2 * np.pi, size=3)
    area = _blob(side, _position(side, generator), radius, shape, softness=0.08)
    area = area * np.clip(0.5 + 6 * (outline - np.quantile(outline, 0.35)), 0, 1)
    relief = generator.uniform(0.3, 0.8) * _contrast(image) * grain / max(float(grain.std()), 1e-6)
    return _blend(image, _tone(image, generator, 2.0, 3.2) + relief[..., None], area * generator.uniform(0.8, 1.0))


def draw_scratch(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Draw a smoothly curved line with soft edges, brighter or darker than the surface."""
    side = len(image)
    angle, length = generator.uniform(0, np.pi), generator.uniform(0.45, 0.85) * side
    along = np.array([np.sin(angle), np.cos(angle)]) * length / 2
    middle = _position(side, generator)
    bend = middle + along[::-1] * (1, -1) * generator.uniform(-0.6, 0.6)
    t = np.linspace(0, 1, 40)[:, None]
    path = (1 - t) ** 2 * (middle - along) + 2 * t * (1 - t) * bend + t**2 * (middle + along)
    alpha = _strokes(side, [path], generator.uniform(0.035, 0.055) * side)
    return _blend(image, _tone(image, generator, 2.2, 3.4), alpha * generator.uniform(0.8, 1.0))


def draw_stain(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Tint a soft irregular blob; the surface stays visible through it."""
    radius = generator.uniform(0.11, 0.18) * len(image)
    shape = generator.uniform(0, 0.25, size=3), generator.uniform(0, 2 * np.pi, size=3)
    alpha = _blob(len(image), _position(len(image), generator), radius, shape, softness=0.2)
    through = generator.uniform(0.1, 0.35)
    tinted = through * image + (1 - through) * _tone(image, generator, 2.4, 3.6)
    return _blend(image, tinted, alpha)


DRAWERS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "crack": draw_crack,
    "cutpaste": draw_cutpaste,
    "hole": draw_hole,
    "perlin": draw_perlin,
    "scratch": draw_scratch,
    "stain": draw_stain,
}

KINDS: tuple[str, ...] = tuple(DRAWERS)
"""Names of the defect kinds, sorted."""


def _to_uint8(image: np.ndarray) -> np.ndarray:
    return image.round().clip(0, 255).astype(np.uint8)


def _blend(image: np.ndarray, other: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Mix ``other`` (an image or a colour) into an image with weights of shape ``(side, side)`` in ``[0, 1]``."""
    return image + alpha[..., None] * (other - image)


def _disc(side: int, diameter: float) -> np.ndarray:
    """Return a centred disc as weights of shape ``(side, side)``: 1 inside, 0 outside, soft over two pixels."""
    y, x = np.indices((side, side)) - (side - 1) / 2
    return np.clip((diameter * side / 2 - np.hypot(y, x)) / 2, 0, 1)


def _position(side: int, generator: np.random.Generator) -> np.ndarray:
    """Return a random row and column in the middle 60 % of a crop."""
    return generator.uniform(0.2, 0.8, size=2) * side


def _tone(image: np.ndarray, generator: np.random.Generator, low: float, high: float) -> np.ndarray:
    """Return a colour that lies ``low`` to ``high`` times the image's contrast away from its mean colour.

    Of a few random colours, darker and brighter ones, that is taken which the image itself shows least. Grey images
    get a grey tone.

    Returns:
        Array of shape ``(3,)`` in ``[0, 255]``.
    """
    shifts = generator.choice([-1, 1], size=(TONES, 1)) * generator.uniform(low, high, size=(TONES, 3))
    weights = generator.uniform(-0.4, 1.0, size=(TONES, 3))
    weights /= np.abs(weights).max(axis=1, keepdims=True)
    shifts = shifts * weights if _is_coloured(image) else shifts[:, :1].repeat(3, axis=1)
    tones = (image.mean(axis=(0, 1)) + _contrast(image) * shifts).clip(0, 255)
    novelty = [np.quantile(np.abs(image - tone).mean(axis=-1), 0.1) for tone in tones]
    return tones[int(np.argmax(novelty))]


def _is_coloured(image: np.ndarray) -> bool:
    return bool(np.ptp(image, axis=-1).max() > 0)


def _blob(
    side: int,
    centre: np.ndarray,
    radius: float,
    shape: tuple[np.ndarray, np.ndarray],
    softness: float,
) -> np.ndarray:
    """Return an irregular blob as weights of shape ``(side, side)`` in ``[0, 1]``.

    Args:
        side: Side of the crop in pixels.
        centre: Row and column of the blob.
        radius: Mean radius in pixels.
        shape: Amplitudes and phases of the waves that bend the outline, of shape ``(waves,)`` each.
        softness: Width of the edge relative to the radius.
    """
    y, x = np.indices((side, side)) - np.asarray(centre)[:, None, None]
    angle = np.arctan2(y, x)
    waves = [a * np.cos((k + 2) * angle + phase) for k, (a, phase) in enumerate(zip(*shape, strict=True))]
    edge = radius * (1 + np.sum(waves, axis=0))
    return np.clip(0.5 + (edge - np.hypot(y, x)) / (2 * softness * radius), 0, 1)


def _walk(start: np.ndarray, heading: float, length: float, generator: np.random.Generator) -> np.ndarray:
    """Return a jagged path of shape ``(points, 2)`` that keeps roughly to a heading."""
    headings = heading + generator.uniform(-0.7, 0.7, size=9)
    steps = np.stack([np.sin(headings), np.cos(headings)], axis=1) * length / len(headings)
    return np.concatenate([start[None], start + steps.cumsum(axis=0)])


def _strokes(side: int, paths: Sequence[np.ndarray], width: float) -> np.ndarray:
    """Draw paths of rows and columns as soft lines; return weights of shape ``(side, side)`` in ``[0, 1]``."""
    zoom = 4
    canvas = Image.new("L", (zoom * side, zoom * side))
    for path in paths:
        points = [(float(x), float(y)) for y, x in zoom * path]
        ImageDraw.Draw(canvas).line(points, fill=255, width=max(1, round(zoom * width)), joint="curve")
    soft = canvas.filter(ImageFilter.GaussianBlur(zoom * 0.3)).resize((side, side), Image.Resampling.BOX)
    return np.asarray(soft) / 255


def _donor(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return a photograph that is no category; grey if the image is grey."""
    donor = read_photograph(DONORS[generator.integers(len(DONORS))]).astype(np.float64)
    return donor if _is_coloured(image) else donor.mean(axis=-1, keepdims=True).repeat(3, axis=-1)


def _paste(image: np.ndarray, patch: np.ndarray, centre: np.ndarray, angle: float) -> np.ndarray:
    """Paste a patch of shape ``(height, width, 3)`` around a row and column, rotated by an angle in degrees."""
    framed = Image.new("RGBA", (patch.shape[1] + 2, patch.shape[0] + 2))  # a clear frame smooths the rotated edges
    framed.paste(Image.fromarray(_to_uint8(patch)), (1, 1))
    rotated = framed.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    canvas = Image.new("RGBA", (len(image), len(image)))
    canvas.paste(rotated, (round(centre[1] - rotated.width / 2), round(centre[0] - rotated.height / 2)))
    layers = np.asarray(canvas).astype(np.float64)
    return _blend(image, layers[..., :3], layers[..., 3] / 255)
