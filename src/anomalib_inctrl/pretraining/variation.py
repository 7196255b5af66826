"""How normal pictures of a category are made to differ more than the rules that draw them say."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the customary name

from anomalib_inctrl.data.procedural.noise import log_uniform

if TYPE_CHECKING:
    import numpy as np

_ZOOM, _TURN, _SHIFT = 0.22, 0.15, 0.2  # most of it: logarithm, radians, share of half a picture
_CONTRAST, _BRIGHTNESS = 0.3, 30.0  # most of it: logarithm, 8-bit levels
_PLACES, _BORDERS = (8.0, 50.0), (0.05, 0.8)  # size of a patch in pixels; softness in deviations of the field
_LIGHT, _LIT = 0.35, (20.0, 70.0)  # most deviation of its logarithm; pixels from one light to another


def patchwork(ground: Tensor, patches: Tensor, generator: np.random.Generator) -> Tensor:
    """Let a second material show on surfaces, in places and to an extent that differ from picture to picture.

    How large the places are, and how soft their borders, is drawn for all categories together, so that they are told
    apart by their materials and by how much of each there is.

    Args:
        ground (Tensor): ``(G, R, 3, H, W)``, ``uint8``.
        patches (Tensor): Of the same shape.
        generator (np.random.Generator): Source of everything random.

    Returns:
        Tensor: Of the same shape, ``uint8``, unevenly lit (:func:`light_unevenly`).
    """
    groups, normals, _, side, _ = ground.shape
    scale = log_uniform(generator, *_PLACES)
    softness = log_uniform(generator, *_BORDERS)
    level = torch.from_numpy(generator.normal(0, 0.5, (groups, 1))).float()
    spread = generator.uniform(0.1, 0.6)
    mixed = []
    for number in range(groups):
        field = smooth_fields(generator, normals, side, scale)
        if generator.random() < 0.5:
            field = 0.75 * field + 0.5 * smooth_fields(generator, normals, side, max(scale / 3, 4))
        extent = level[number] + spread * torch.from_numpy(generator.standard_normal(normals)).float()
        share = torch.sigmoid((field - extent[:, None, None, None]) / softness)
        mixed.append(ground[number].float() * (1 - share) + patches[number].float() * share)
    return to_bytes(light_unevenly(torch.stack(mixed), generator))


def light_unevenly(pictures: Tensor, generator: np.random.Generator) -> Tensor:
    """Mostly, multiply pictures ``(G, R, 3, H, W)`` by smooth fields of light, one each."""
    strength = generator.uniform(0, _LIGHT) if generator.random() < 0.7 else 0.0
    if not strength:
        return pictures
    groups, normals, _, side, _ = pictures.shape
    fields = smooth_fields(generator, groups * normals, side, log_uniform(generator, *_LIT))
    return pictures * torch.exp(strength * fields.unflatten(0, (groups, normals)))


def smooth_fields(generator: np.random.Generator, count: int, side: int, scale: float) -> Tensor:
    """Random numbers ``scale`` pixels apart, and what lies smoothly between them: ``(count, 1, side, side)``."""
    knots = max(2, round(side / scale)) + 3
    drawn = torch.from_numpy(generator.standard_normal((count, 1, knots, knots))).float()
    field = F.interpolate(drawn, size=int(knots * scale) + 8, mode="bicubic")
    first = generator.integers(0, max(1, field.shape[-1] - side - 1))
    return field[..., first : first + side, first : first + side]


def to_bytes(pictures: Tensor) -> Tensor:
    """Round to 8-bit levels."""
    return pictures.round().clamp(0, 255).to(torch.uint8)


def hand_held(pictures: Tensor, generator: np.random.Generator) -> Tensor:
    """Take every picture ``(..., 3, H, W)``, ``uint8``, from another place and with another exposure.

    How much they differ is drawn for all of them together.
    """
    flat = pictures.flatten(0, -4).float()
    strength = generator.uniform(0.2, 1)
    drawn = torch.from_numpy(strength * generator.uniform(-1, 1, (6, len(flat)))).float()
    size, angle = torch.exp(_ZOOM * drawn[0]), _TURN * drawn[1]
    cosine, sine, shift = size * angle.cos(), size * angle.sin(), _SHIFT * drawn[2:4]
    rows = [torch.stack([cosine, -sine, shift[0]], dim=1), torch.stack([sine, cosine, shift[1]], dim=1)]
    grid = F.affine_grid(torch.stack(rows, dim=1), list(flat.shape), align_corners=False)
    moved = F.grid_sample(flat, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    level = moved.mean(dim=(1, 2, 3), keepdim=True)
    contrast, brightness = (d[:, None, None, None] for d in (torch.exp(_CONTRAST * drawn[4]), _BRIGHTNESS * drawn[5]))
    exposed = (moved - level) * contrast + level + brightness
    return to_bytes(exposed).unflatten(0, pictures.shape[:-3])
