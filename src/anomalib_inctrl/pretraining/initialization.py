"""Starting values that spare two small transformers the first part of their training."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from anomalib_inctrl.clip import ClipBackbone

_CONSTANTS = 16  # numbers of a token that start as constants
_CONSTANT = 0.3  # their size; together about the length of a patch's own part
_POSITION = 0.05
_BRANCH = 0.1
_WORDS = 10.0  # how much the mean of a sentence's words outweighs its last token


@torch.no_grad()
def initialize(backbone: ClipBackbone, generator: torch.Generator) -> None:
    """Replace a backbone's random weights by informed ones.

    A patch is embedded by its discrete cosine transform beside a constant, without which the first layer norm would
    take its brightness and contrast away; positions by weak sines and cosines. Attention starts mimetic (Trockman &
    Kolter, arXiv 2305.09828): queries meet keys of like tokens, values are partly taken back. Branches add little at
    first, so that distances of tokens start as distances of pixels.

    Text starts as a bag of words. With open_clip's own start, made for larger towers, the embeddings of all sentences
    are alike to the second digit, and training makes them one.

    Args:
        backbone (ClipBackbone): Changed in place.
        generator (torch.Generator): Source of what stays random.
    """
    visual = backbone.visual
    seen = backbone.width - _CONSTANTS
    filters, rest = visual.conv1.weight.split((seen, _CONSTANTS))
    filters.copy_(cosine_filters(filters.shape[-1], seen))
    rest.zero_()
    waves, constant = visual.positional_embedding[1:].split((seen, _CONSTANTS), dim=1)
    waves.copy_(_POSITION * position_waves(*backbone.grid_size, seen))
    constant.copy_(_CONSTANT * torch.tensor([-1.0, 1.0]).repeat(_CONSTANTS // 2))  # of mean 0, which norms remove
    for block in visual.transformer.resblocks:
        _start_mimetic(block.attn, generator)
        for last in (block.attn.out_proj, block.mlp.c_proj):
            last.weight.mul_(_BRANCH)
            last.bias.zero_()
    _start_as_bag_of_words(backbone.text.model, generator)


def cosine_filters(side: int, count: int) -> Tensor:
    """Filters of the discrete cosine transform of a patch, in a brightness and two colour channels.

    High frequencies are amplified, though less than pictures lack them, and colour, so that a token does not only hold
    the mean.

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
    gain = (1 + frequency).sqrt()[..., None] / side * torch.tensor([1.0, 2.0, 2.0])
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


def _start_as_bag_of_words(text: Any, generator: torch.Generator) -> None:
    """Let the first block's last token take the mean of all tokens, and the others add little."""
    words = text.token_embedding.weight
    words.copy_(torch.randn(words.shape, generator=generator))
    text.positional_embedding.mul_(_POSITION / text.positional_embedding.std())
    first, *others = text.transformer.resblocks
    width = words.shape[1]
    query_key, value = first.attn.in_proj_weight.split((2 * width, width))
    query_key.zero_()
    value.copy_(_WORDS * torch.eye(width))
    first.attn.out_proj.weight.copy_(torch.eye(width))
    for branch in (first.mlp, *(b for block in others for b in (block.attn, block.mlp))):
        last = branch.c_proj if hasattr(branch, "c_proj") else branch.out_proj
        last.weight.mul_(_BRANCH)
    nn.init.orthogonal_(text.text_projection, generator=generator)
