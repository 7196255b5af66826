"""A classic descriptor of texture and colour, which teaches the backbone what alike means before it knows better."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the customary name

_SPREAD = (0.8, 0.25, 0.25)  # about the deviation of brightness and of the two colour channels
_FLOOR = 0.01  # energy below which nothing is seen
_WINDOW = 8
_RADII = (0.5, 1.5, 2.9, 4.5, 6.5)  # bounds of the frequency bands, in steps of the cosine transform
_ANGLES = (0.4, 1.17)  # bounds of horizontal, diagonal and vertical


def describe(images: Tensor, patch: int) -> Tensor:
    """Describe every patch by colour, contrast, and energy in bands of frequency and direction at two scales.

    Energies come from the cosine transform of overlapping windows; neighbourhood means are added to all numbers. Each
    number is standardised over the batch.

    Args:
        images (Tensor): ``(B, 3, H, W)``, preprocessed.
        patch (int): Side of a patch in pixels.

    Returns:
        Tensor: ``(B, N, F)``, mean 0 and deviation 1.
    """
    rows, columns = (length // patch for length in images.shape[-2:])
    channels = torch.tensor([[1 / 3, 1 / 3, 1 / 3], [0.5, 0.0, -0.5], [0.25, -0.5, 0.25]])
    opponent = torch.einsum("cd,bdhw->bchw", channels, images)
    mean = F.avg_pool2d(opponent, patch)
    variance = (F.avg_pool2d(opponent**2, patch) - mean**2).clamp(min=0)
    brightness = opponent[:, :1]
    numbers = [
        mean / torch.tensor(_SPREAD)[:, None, None],
        0.5 * (variance + _FLOOR).log(),
        *(
            F.interpolate(_band_energies(scaled), size=(rows, columns), mode="bilinear")
            for scaled in (brightness, F.avg_pool2d(brightness, 2))
        ),
    ]
    described = torch.cat(numbers, dim=1)
    around = F.avg_pool2d(described, 3, stride=1, padding=1, count_include_pad=False)
    flat = torch.cat([described, around], dim=1).flatten(2).transpose(1, 2)  # (B, N, F)
    return (flat - flat.mean(dim=(0, 1))) / flat.std(dim=(0, 1)).clamp(min=1e-3)


def _band_energies(brightness: Tensor) -> Tensor:
    """Logarithm of the mean energy in every band, half a window apart: ``(B, bands, rows, columns)``."""
    steps = torch.arange(_WINDOW)
    basis = torch.cos(math.pi / _WINDOW * (steps + 0.5) * steps[:, None])
    basis[0] /= math.sqrt(2)
    basis *= math.sqrt(2 / _WINDOW)
    filters = torch.einsum("ky,lx->klyx", basis, basis).flatten(0, 1)[:, None]
    padded = F.pad(brightness, [_WINDOW // 2] * 4, mode="reflect")
    energies = F.conv2d(padded, filters, stride=_WINDOW // 2) ** 2
    y, x = torch.meshgrid(steps.float(), steps.float(), indexing="ij")
    ring = torch.bucketize((y**2 + x**2).sqrt().flatten(), torch.tensor(_RADII))
    sector = torch.bucketize(torch.atan2(y, x).flatten(), torch.tensor(_ANGLES))
    band = F.one_hot((ring - 1).clamp(min=0) * 3 + sector).float() * (ring > 0)[:, None]
    band = band[:, band.sum(dim=0) > 0]
    means = torch.einsum("bfyx,fg->bgyx", energies, band / band.sum(dim=0))
    return 0.5 * (F.avg_pool2d(means, 3, stride=2, count_include_pad=False) + _FLOOR).log()
