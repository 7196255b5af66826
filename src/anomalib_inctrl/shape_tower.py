"""The convolutional part of the embedded backbone: what an image shows where, whoever drew it."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

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
_FAINTEST = 0.05  # added to an image's deviation before division by it


class ShapeTower(nn.Module):
    """A small convolutional network whose output joins the class token's in the image embedding.

    Members of a class that people tell by its shape, such as a letter, share next to no pixel and few patches. A vision
    transformer of this size needs more pictures to see past that than a convolutional network, to which parts are
    the same wherever they are (LeCun et al. 1998).

    Its two branches begin after the first layers, so that what the second learns of handwriting leaves alone what the
    first says of surfaces (compared with other ways in the model card).

    What the shared layers see joins the patch tokens as well, one layer more to compare: they look less closely and
    further than the vision transformer's patches.

    Args:
        embed_dim (int): Size of the joint space, ``D``.
        width (int): Width ``W`` of patch tokens, larger than the 64 channels of the shared layers.
    """

    def __init__(self, embed_dim: int, width: int) -> None:
        super().__init__()
        first, second, *others = _CHANNELS
        self.stem = nn.Sequential(nn.Conv2d(6, first, 5, stride=2, padding=2), *_norm(first), *_stage(first, second))
        self.patches = nn.Linear(second, width)
        self.branches = nn.ModuleList(_Branch((second, *others)) for _ in range(_BRANCHES))
        self.proj = nn.Parameter(torch.randn(_BRANCHES * _WIDTH, embed_dim) * embed_dim**-0.5)

    def see(self, images: Tensor) -> Tensor:
        """Take preprocessed images ``(B, 3, H, W)`` through the layers that branches share, ``(B, 64, 20, 20)``."""
        colours = F.adaptive_avg_pool2d(images, _SIDE)
        centred = colours - colours.mean(dim=(1, 2, 3), keepdim=True)
        deviation = centred.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
        return self.stem(torch.cat([colours, centred / (deviation + _FAINTEST)], dim=1))

    def to_patches(self, seen: Tensor, grid: tuple[int, int]) -> Tensor:
        """Bring what :meth:`see` put out to patch tokens.

        Args:
            seen (Tensor): ``(B, 64, 20, 20)``.
            grid (tuple[int, int]): Rows and columns of patches; 20 and 20 are the cells as they are.

        Returns:
            Tensor: ``(B, N, W)``, patches in row-major order.
        """
        return self.patches(F.adaptive_avg_pool2d(seen, grid).flatten(2).mT)

    def describe(self, seen: Tensor) -> Tensor:
        """Turn what :meth:`see` put out into a vector of length 12 from each branch, ``(B, 2, 144)``."""
        return torch.stack([branch(seen) for branch in self.branches], dim=1)

    def embed(self, seen: Tensor) -> Tensor:
        """Take what :meth:`see` put out into the joint space, ``(B, D)``."""
        return self.describe(seen).flatten(1) @ self.proj

    def forward(self, images: Tensor) -> Tensor:
        """Embed preprocessed images ``(B, 3, H, W)`` in the joint space, ``(B, D)``."""
        return self.embed(self.see(images))


class _Branch(nn.Module):
    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.stages = nn.Sequential(*(layer for pair in pairwise(channels) for layer in _stage(*pair)))
        self.readout = nn.Linear(channels[-1] * (_CELLS**2 + 2), _WIDTH)

    def forward(self, seen: Tensor) -> Tensor:
        seen = self.stages(seen)
        anywhere = torch.cat([seen.mean(dim=(2, 3)), seen.amax(dim=(2, 3))], dim=1)
        return F.layer_norm(self.readout(torch.cat([seen.flatten(1), anywhere], dim=1)), (_WIDTH,))


def _stage(before: int, after: int) -> tuple[nn.Module, ...]:
    first, second = nn.Conv2d(before, after, 3, padding=1), nn.Conv2d(after, after, 3, padding=1)
    return nn.MaxPool2d(2), first, *_norm(after), second, *_norm(after)


def _norm(channels: int) -> tuple[nn.Module, nn.Module]:
    return nn.GroupNorm(_GROUPS, channels), nn.ReLU()
