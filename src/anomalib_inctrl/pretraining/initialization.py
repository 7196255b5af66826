"""Starting values that spare a small vision transformer the first part of its training."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from anomalib_inctrl.clip import ClipBackbone


@torch.no_grad()
def initialize(backbone: ClipBackbone, generator: torch.Generator) -> None:
    """Replace a backbone's random vision weights by informed ones.

    Patches are embedded by their discrete cosine transform, positions by sines and cosines; attention starts mimetic
    (Trockman & Kolter, arXiv 2305.09828): queries meet keys of like tokens, values are partly taken back.

    Args:
        backbone (ClipBackbone): Changed in place.
        generator (torch.Generator): Source of what stays random.
    """
    visual = backbone.visual
    visual.conv1.weight.copy_(cosine_filters(visual.conv1.weight.shape[-1], visual.conv1.out_channels))
    rows, columns = backbone.grid_size
    visual.positional_embedding[1:] = 0.1 * position_waves(rows, columns, backbone.width)
    for block in visual.transformer.resblocks:
        _start_mimetic(block.attn, generator)


def cosine_filters(side: int, count: int) -> Tensor:
    """Filters of the discrete cosine transform of a patch, in a brightness and two colour channels.

    High frequencies are amplified about as much as pictures lack them, so that a token does not only hold the mean.

    Returns:
        Tensor: ``(count, 3, side, side)``, ordered by frequency; ``count`` at most ``3 * side ** 2``.
    """
    steps = torch.arange(side)
    basis = torch.cos(math.pi / side * (steps + 0.5) * steps[:, None])  # (frequency, pixel)
    basis[0] /= math.sqrt(2)
    basis *= math.sqrt(2 / side)
    channels = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [0.5, -1.0, 0.5]])
    channels = nn.functional.normalize(channels, dim=1)
    filters = torch.einsum("ky,lx,cd->klcdyx", basis, basis, channels)  # (k, l, channel, 3, side, side)
    frequency = (steps[:, None] ** 2 + steps**2).sqrt()
    gain = (1 + frequency)[..., None] / side * torch.tensor([1.0, 1.5, 1.5])
    order = frequency[..., None].expand(-1, -1, 3).flatten().argsort(stable=True)[:count]
    return (filters * gain[..., None, None, None]).flatten(0, 2)[order]


def position_waves(rows: int, columns: int, width: int) -> Tensor:
    """Sines and cosines of row and column at several wavelengths: ``(rows * columns, width)``."""
    frequencies = math.pi / 2 ** torch.linspace(1, math.log2(4 * max(rows, columns)), width // 4)
    y, x = (torch.outer(torch.arange(float(n)), frequencies) for n in (rows, columns))
    waves = [torch.cat([w.sin(), w.cos()], dim=1) for w in (y, x)]
    half = width // 2
    return torch.cat([waves[0][:, None].expand(-1, columns, half), waves[1].expand(rows, -1, half)], -1).flatten(0, 1)


def _start_mimetic(attention: Any, generator: torch.Generator) -> None:
    width, heads = attention.embed_dim, attention.num_heads
    size = width // heads

    def noisy_identity(identity: float, noise: float) -> Tensor:
        random = torch.randn(width, width, generator=generator) / math.sqrt(width)
        return noise * random + identity * torch.eye(width)

    query, key, value = attention.in_proj_weight.chunk(3)
    for head in range(heads):
        left, scale, right = torch.linalg.svd(noisy_identity(0.7, 0.7))
        rows = slice(head * size, (head + 1) * size)
        root = scale[:size].sqrt()[:, None]
        query[rows], key[rows] = left.T[:size] * root, right[:size] * root
    left, scale, right = torch.linalg.svd(noisy_identity(-0.4, 0.4))
    value.copy_(scale.sqrt()[:, None] * right)
    attention.out_proj.weight.copy_(left * scale.sqrt())
