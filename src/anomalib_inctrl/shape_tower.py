"""The convolutional part of the embedded backbone: what an image shows where, whoever drew it."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the customary name

if TYPE_CHECKING:
    from collections.abc import Sequence

_CHANNELS = (48, 64, 96, 128)
_SIDE = 80  # pixels to which images are reduced
_CELLS = 5  # rows and columns of the last layer's cells
_GROUPS = 8  # of channels that are normed together
_WIDTH = 144  # of what a branch says of an image, before the projection into the joint space
_BRANCHES = 2
_LAYERS = 7  # of a stage: pooling, then twice convolution, norm and ReLU
_FAINTEST = 0.05  # added to an image's deviation before division by it
_CONTRAST_CELLS = 20  # rows and columns in which contrast is measured
_PLAIN, _BUSY = 0.4, 0.8  # contrast at the border, in the mean of all cells: an object's, and what fills the frame
_NO_CONTRAST = 1e-3  # least mean of all cells that is divided by
_CUT_ANYWHERE = 0.5  # share of the shapes that is left of what fills the frame


class Seen(NamedTuple):
    """What the tower sees of images.

    Attributes:
        scales (list[Tensor]): What the shared layers put out, ``(B, 64, 20, 20)``, then the stages of each branch,
            ``(B, 96, 10, 10)`` and ``(B, 128, 5, 5)``.
        share (Tensor): How much shapes are to count, see :func:`share_of_shapes`, ``(B,)``.
    """

    scales: list[Tensor]
    share: Tensor


class ShapeTower(nn.Module):
    """A small convolutional network whose output joins the class token's in the image embedding.

    Members of a class that people tell by its shape, such as a letter, share next to no pixel and few patches. A vision
    transformer of this size needs more pictures to see past that than a convolutional network, to which parts are
    the same wherever they are (LeCun et al. 1998).

    Its two branches begin after the first layers, so that what the second learns of handwriting leaves alone what the
    first says of surfaces (compared with other ways in the model card).

    What its stages see, of 20 x 20, 10 x 10 and 5 x 5 cells, joins the patch tokens as well, one layer more to compare:
    they look less closely and further than the vision transformer's patches.

    Shapes count less where the picture has no background (:func:`share_of_shapes`), and one direction of the joint
    space takes what they lose.

    Args:
        embed_dim (int): Size of the joint space, ``D``.
        width (int): Width ``W`` of patch tokens.
    """

    def __init__(self, embed_dim: int, width: int) -> None:
        super().__init__()
        first, second, *others = _CHANNELS
        self.stem = nn.Sequential(nn.Conv2d(6, first, 5, stride=2, padding=2), *_norm(first), *_stage(first, second))
        self.patches = nn.Linear(second + _BRANCHES * sum(others), width)
        self.branches: Any = nn.ModuleList(_Branch((second, *others)) for _ in range(_BRANCHES))
        self.proj = nn.Parameter(torch.randn(_BRANCHES * _WIDTH, embed_dim) * embed_dim**-0.5)
        self.surface = nn.Parameter(F.normalize(torch.randn(embed_dim), dim=0))

    def see(self, images: Tensor) -> Seen:
        """Take preprocessed images ``(B, 3, H, W)`` through all stages."""
        colours = reduce(images)
        shared = self.begin(colours)
        scales = [shared, *(scale for branch in self.branches for scale in branch.scales(shared))]
        return Seen(scales, share_of_shapes(colours))

    def begin(self, colours: Tensor) -> Tensor:
        """Take images reduced to ``(B, 3, 80, 80)`` through the layers that branches share, ``(B, 64, 20, 20)``."""
        centred = colours - colours.mean(dim=(1, 2, 3), keepdim=True)
        deviation = centred.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
        return self.stem(torch.cat([colours, centred / (deviation + _FAINTEST)], dim=1))

    def to_patches(self, seen: Seen, grid: tuple[int, int]) -> Tensor:
        """Bring all scales to patch tokens.

        Args:
            seen (Seen): As it comes from :meth:`see`.
            grid (tuple[int, int]): Rows and columns of patches.

        Returns:
            Tensor: ``(B, N, W)``, patches in row-major order.
        """
        return self.patches(side_by_side(seen.scales, grid))

    def describe(self, seen: Seen) -> Tensor:
        """Turn what was seen into a vector of length 12 from each branch, ``(B, 2, 144)``."""
        last = seen.scales[2::2]
        return torch.stack([branch.read(scale) for branch, scale in zip(self.branches, last, strict=True)], dim=1)

    def embed(self, seen: Seen) -> Tensor:
        """Take what was seen into the joint space, ``(B, D)``."""
        shapes, rest = weigh(self.describe(seen).flatten(1) @ self.proj, seen.share)
        return shapes + rest * self.surface

    def forward(self, images: Tensor) -> Tensor:
        """Embed preprocessed images ``(B, 3, H, W)`` in the joint space, ``(B, D)``."""
        return self.embed(self.see(images))


def reduce(images: Tensor) -> Tensor:
    """Bring images ``(B, 3, H, W)`` to the size the tower takes, ``(B, 3, 80, 80)``."""
    return F.adaptive_avg_pool2d(images, _SIDE)


def share_of_shapes(colours: Tensor) -> Tensor:
    """Tell by the border of images how much it matters where in them something is.

    An object stands in front of a background, and its parts have their places. What fills the frame has been cut out
    anywhere, and normal pictures of it differ by that. The measure is the contrast within the outermost of 20 x 20
    cells in the mean of all cells': up to 0.4 shapes count in full, from 0.8 on by half, linearly between.

    Args:
        colours (Tensor): Images, ``(B, 3, H, W)``, height and width divisible by 20.

    Returns:
        Tensor: 0.5 to 1, ``(B,)``; 1 for a picture that shows nothing.
    """
    cells = colours.mean(dim=1).unflatten(2, (_CONTRAST_CELLS, -1)).unflatten(1, (_CONTRAST_CELLS, -1))
    contrast = cells.std(dim=(2, 4), correction=0)  # (B, 20, 20)
    total, inner = contrast.sum(dim=(1, 2)), contrast[:, 1:-1, 1:-1].sum(dim=(1, 2))
    count, inner_count = _CONTRAST_CELLS**2, (_CONTRAST_CELLS - 2) ** 2
    border = (total - inner) / (count - inner_count) / (total / count).clamp(min=_NO_CONTRAST)
    return 1 - (1 - _CUT_ANYWHERE) * ((border - _PLAIN) / (_BUSY - _PLAIN)).clamp(0, 1)


def weigh(shapes: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Let shapes count by a share, and tell what is missing at their length.

    Args:
        shapes (Tensor): ``(..., D)``.
        share (Tensor): 0 to 1, ``(...)``.

    Returns:
        tuple[Tensor, Tensor]: What is left of them, and how long something at a right angle to it has to be for both
            together to be as long as they were, ``(..., 1)``.
    """
    share = share[..., None]
    return share * shapes, (1 - share.square()).sqrt() * shapes.norm(dim=-1, keepdim=True)


def side_by_side(scales: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
    """Bring maps ``(B, C, rows, columns)`` to one grid of cells and join their channels, ``(B, N, sum of C)``."""
    sized = [F.interpolate(scale, size=grid, mode="bilinear", align_corners=False) for scale in scales]
    return torch.cat(sized, dim=1).flatten(2).mT


class _Branch(nn.Module):
    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.stages = nn.Sequential(*(layer for pair in pairwise(channels) for layer in _stage(*pair)))
        self.readout = nn.Linear(channels[-1] * (_CELLS**2 + 2), _WIDTH)

    def scales(self, seen: Tensor) -> list[Tensor]:
        """What every stage puts out."""
        scales = []
        for start in range(0, len(self.stages), _LAYERS):
            seen = self.stages[start : start + _LAYERS](seen)
            scales.append(seen)
        return scales

    def read(self, seen: Tensor) -> Tensor:
        """Describe images by what the last stage puts out."""
        anywhere = torch.cat([seen.mean(dim=(2, 3)), seen.amax(dim=(2, 3))], dim=1)
        return F.layer_norm(self.readout(torch.cat([seen.flatten(1), anywhere], dim=1)), (_WIDTH,))

    def forward(self, seen: Tensor) -> Tensor:
        return self.read(self.stages(seen))


def _stage(before: int, after: int) -> tuple[nn.Module, ...]:
    first, second = nn.Conv2d(before, after, 3, padding=1), nn.Conv2d(after, after, 3, padding=1)
    return nn.MaxPool2d(2), first, *_norm(after), second, *_norm(after)


def _norm(channels: int) -> tuple[nn.Module, nn.Module]:
    return nn.GroupNorm(_GROUPS, channels), nn.ReLU()
