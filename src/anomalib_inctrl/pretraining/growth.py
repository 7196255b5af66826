"""From the trunk to the embedded backbone: lanes that carry positions past the trunk, and blocks that use them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the customary name

from anomalib_inctrl.clip import EMBEDDED_BACKBONE, ClipBackbone

if TYPE_CHECKING:
    from collections.abc import Iterable

_CELLS = 7  # rows and columns of the layout
_LANE = 0.5  # size of a position's lanes among the tokens, whose own numbers have a deviation of about 1
_BRANCH = 0.1  # of the new blocks' first weights
_GATE, _SLOPE, _LAYOUT = 10.0, 0.75, 3.0  # a cell's gate, its brightness before and after the activation
_GAINS = (45.0, 0.3)  # of the layout and of the mean token in the image embedding
_POOLED = 3.0  # weight of both beside the class token


@torch.no_grad()
def grow(trunk: ClipBackbone, pictures: Iterable[Tensor], generator: torch.Generator) -> ClipBackbone:
    """Make the embedded backbone out of a trained trunk.

    Patches of the trunk are compared wherever they lie, so it forgets positions on its way; what an image shows where
    can't be told from its last tokens. The tower gets a few more numbers per token: the patch's row and column,
    coarsely, and its brightness. They pass the trunk's blocks untouched, and are small enough to leave its residuals
    alone. New blocks follow those whose patches are compared. They begin with an image's layout (:func:`start_layout`),
    the brightness of 7 x 7 cells, beside its mean token: like the trunk, the embedding starts with distances of pixels.

    Args:
        trunk (ClipBackbone): Its last block, which only serves its own image embedding, is left behind.
        pictures (Iterable[Tensor]): Batches ``(B, 3, H, W)``, ``uint8``, on which mean tokens are looked at.
        generator (torch.Generator): Source of what is random.

    Returns:
        ClipBackbone: Of the embedded architecture, but for images of the trunk's size; see :func:`resize`. Its text
            tower is the trunk's.
    """
    backbone = ClipBackbone(EMBEDDED_BACKBONE, random=True)
    backbone.averaged_block = None  # tokens as they are
    backbone.shapes = None  # trained by itself
    visual, old = backbone.visual, trunk.visual
    _grow_text(trunk, backbone, generator)
    _embed_brightness(old, visual)
    resize(backbone, trunk, trunk.image_size)
    for source, target in zip(old.transformer.resblocks, visual.transformer.resblocks[: _kept(backbone)], strict=False):
        widen_block(source, target)
    new = visual.transformer.resblocks[_kept(backbone) :]
    for block in new:
        for last in (block.attn.out_proj, block.mlp.c_proj):
            last.weight.normal_(std=_BRANCH * last.in_features**-0.5, generator=generator)
            last.bias.zero_()
    tokens = [backbone.encode_image(backbone.from_pictures(batch)).patches[:, -1] for batch in pictures]
    start_layout(backbone, torch.cat([F.layer_norm(t, t.shape[-1:]) for t in tokens]), generator)
    return backbone


def _kept(backbone: ClipBackbone) -> int:
    return backbone.blocks[-1] + 1


def _grow_text(trunk: ClipBackbone, backbone: ClipBackbone, generator: torch.Generator) -> None:
    """Copy the text tower into the wider joint space, which keeps all products of texts."""
    state = trunk.text.model.state_dict()
    narrow = state["text_projection"]
    into = orthonormal(narrow.shape[1], backbone.embed_dim, generator)
    backbone.text.model.load_state_dict({**state, "text_projection": narrow @ into})


def orthonormal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Draw a matrix with orthonormal rows."""
    return torch.linalg.qr(torch.randn(columns, rows, generator=generator)).Q.T


@torch.no_grad()
def resize(backbone: ClipBackbone, trunk: ClipBackbone, size: tuple[int, int]) -> None:
    """Let a grown tower take images of another size, with as many pixels to a patch.

    Small images train fast; a larger one shows more (arXiv 1906.06423). The trunk's positions are interpolated, the
    lanes of rows and columns still tell one cell of 7 x 7 from another.

    Args:
        backbone (ClipBackbone): Changed in place.
        trunk (ClipBackbone): What it grew from.
        size (tuple[int, int]): Height and width in pixels, multiples of a patch's.
    """
    visual, old = backbone.visual, trunk.visual
    rows, columns = (side // patch for side, patch in zip(size, visual.patch_size, strict=True))
    width = old.conv1.out_channels
    known = old.positional_embedding[1:].T.unflatten(1, old.grid_size)[None]
    if (rows, columns) != tuple(old.grid_size):
        known = F.interpolate(known, size=(rows, columns), mode="bicubic", align_corners=False)
    row = torch.arange(rows).repeat_interleave(columns) * _CELLS // rows
    column = torch.arange(columns).repeat(rows) * _CELLS // columns
    where = torch.cat([F.one_hot(row, _CELLS), F.one_hot(column, _CELLS)], dim=1)
    positions = torch.zeros(1 + rows * columns, visual.conv1.out_channels)
    positions[0, :width] = old.positional_embedding[0]
    positions[1:, :width] = known[0].flatten(1).T
    positions[1:, width : width + 2 * _CELLS] = _spread(old) * where
    visual.positional_embedding = nn.Parameter(positions, requires_grad=visual.positional_embedding.requires_grad)
    visual.image_size = backbone.image_size = size
    visual.grid_size = backbone.grid_size = (rows, columns)


def _embed_brightness(old: Any, visual: Any) -> None:
    """Copy the embedding of patches, and put their brightness beside it."""
    width, wide = old.conv1.out_channels, visual.conv1.out_channels
    for parameter in (visual.conv1.weight, visual.class_embedding):
        parameter.zero_()
    visual.conv1.weight[:width] = old.conv1.weight
    visual.conv1.weight[width + 2 * _CELLS] = _spread(old) / visual.conv1.weight[0].numel()
    visual.class_embedding[:width] = old.class_embedding
    widen_norm(old.ln_pre, visual.ln_pre)
    visual.ln_pre.weight[width:wide] = _LANE


def _spread(old: Any) -> Tensor:
    """How large the trunk's embedding of a patch is before the norm, and so what goes beside it."""
    return old.conv1.weight.flatten(1).norm(dim=1).mean()


def widen_norm(source: nn.LayerNorm, target: nn.LayerNorm) -> None:
    """Copy a norm into a wider one that gives the same for tokens whose further numbers are small, and 0 for these."""
    width, wide = source.weight.numel(), target.weight.numel()
    target.weight.zero_()
    target.bias.zero_()
    target.weight[:width] = source.weight * math.sqrt(width / wide)  # the deviation is taken over more numbers
    target.bias[:width] = source.bias


def widen_block(source: Any, target: Any) -> None:
    """Copy a transformer block into a wider one with as many heads, which neither reads nor writes what is new."""
    for name in ("ln_1", "ln_2"):
        widen_norm(getattr(source, name), getattr(target, name))
    heads, width, wide = source.attn.num_heads, source.attn.embed_dim, target.attn.embed_dim
    size, room = width // heads, wide // heads
    taken = (torch.arange(heads)[:, None] * room + torch.arange(size)).flatten()  # a head's part of the wider numbers
    for parameter in (*target.attn.parameters(), *target.mlp.parameters()):
        parameter.zero_()
    for part in range(3):
        scale = math.sqrt(room / size) if part == 0 else 1.0  # attention divides by the root of a head's width
        place, of = part * wide + taken, slice(part * width, (part + 1) * width)
        target.attn.in_proj_weight[place, :width] = scale * source.attn.in_proj_weight[of]
        target.attn.in_proj_bias[place] = scale * source.attn.in_proj_bias[of]
    target.attn.out_proj.weight[:width, taken] = source.attn.out_proj.weight
    target.attn.out_proj.bias[:width] = source.attn.out_proj.bias
    hidden = source.mlp.c_fc.out_features
    target.mlp.c_fc.weight[:hidden, :width] = source.mlp.c_fc.weight
    target.mlp.c_fc.bias[:hidden] = source.mlp.c_fc.bias
    target.mlp.c_proj.weight[:width, :hidden] = source.mlp.c_proj.weight
    target.mlp.c_proj.bias[:width] = source.mlp.c_proj.bias


def start_layout(backbone: ClipBackbone, tokens: Tensor, generator: torch.Generator) -> None:
    """Let the last two blocks begin with the layout of an image: the brightness of each of its cells.

    In the last but one, a pair of hidden units for each cell lets brightness through where a patch's row and column are
    the cell's, and writes it to a direction of the cell's own, one of those in which the mean tokens of images differ
    least. The last one attends to all tokens alike and passes these directions on, amplified, beside the others.

    Args:
        backbone (ClipBackbone): Changed in place.
        tokens (Tensor): What comes out of the last block whose patches are compared, normed, ``(B, N, W)``.
        generator (torch.Generator): Source of the directions of the joint space.
    """
    visual = backbone.visual
    wide, cells = backbone.width, _CELLS * _CELLS
    lanes = wide - 2 * _CELLS - 2
    rows, columns, bright = lanes, lanes + _CELLS, lanes + 2 * _CELLS
    lane = tokens[..., rows:columns].amax(dim=-1).mean()
    means = tokens.mean(dim=1)
    mean = means.mean(dim=0)
    variances, directions = torch.linalg.eigh((means - mean)[:, :lanes].T.cov())
    quiet, telling = (F.pad(part, (0, 0, 0, wide - lanes)) for part in directions.tensor_split([cells], dim=1))

    through, out = visual.transformer.resblocks[-2].mlp.c_fc, visual.transformer.resblocks[-2].mlp.c_proj
    slope, gate = _SLOPE / tokens[..., bright].std(), _GATE / lane
    cell = torch.arange(cells)
    for first, sign in ((0, 1.0), (cells, -1.0)):  # a pair, so that what opens the gate cancels
        units = first + cell
        through.weight[units] = 0
        through.bias[units] = 0
        through.weight[units, rows + cell // _CELLS] = gate
        through.weight[units, columns + cell % _CELLS] = gate
        through.weight[units, rows:columns] -= 1.5 * gate  # one lane of them is open, whatever the norm
        through.weight[units, bright] = sign * slope
        out.weight[:, units] = sign * _LAYOUT / (2 * _SLOPE) * quiet

    attention = visual.transformer.resblocks[-1].attn
    query_key, value = attention.in_proj_weight.split((2 * wide, wide))
    query_key *= _BRANCH
    layout, rest = _GAINS
    spread = variances[cells:].clamp(min=1e-4).sqrt()
    value.zero_()
    value[:lanes] = torch.cat([layout * quiet, rest * telling / spread], dim=1).T
    attention.in_proj_bias.zero_()
    attention.in_proj_bias[2 * wide :] = -(value @ mean)
    attention.out_proj.weight.copy_(_POOLED * orthonormal(wide, wide, generator))
    visual.proj.copy_(orthonormal(wide, backbone.embed_dim, generator))
