"""The convolutional part of the embedded backbone: what an image shows where, whoever drew it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the customary name

_CHANNELS = (48, 64, 96, 128)
_SIDE = 80  # pixels to which images are reduced
_CELLS = 5  # rows and columns of the last layer's cells
_GROUPS = 8  # of channels that are normed together
_WIDTH = 144  # of what is said of an image, before the projection into the joint space
_FAINTEST = 0.05  # added to an image's deviation before division by it


class ShapeTower(nn.Module):
    """A small convolutional network whose output joins the class token's in the image embedding.

    Members of a class that people tell by its shape, such as a letter, share next to no pixel and few patches. A vision
    transformer of this size needs more pictures to see past that than a convolutional network, to which parts are
    the same wherever they are (LeCun et al. 1998).

    Args:
        embed_dim (int): Size of the joint space, ``D``.
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        first, *others = _CHANNELS
        self.stem = nn.Sequential(nn.Conv2d(6, first, 5, stride=2, padding=2), *_norm(first))
        stages = []
        for before, after in zip(_CHANNELS, others, strict=False):
            stages += [nn.MaxPool2d(2), nn.Conv2d(before, after, 3, padding=1), *_norm(after)]
            stages += [nn.Conv2d(after, after, 3, padding=1), *_norm(after)]
        self.stages = nn.Sequential(*stages)
        self.readout = nn.Linear(_CHANNELS[-1] * (_CELLS**2 + 2), _WIDTH)
        self.proj = nn.Parameter(torch.randn(_WIDTH, embed_dim) * embed_dim**-0.5)

    def features(self, images: Tensor) -> Tensor:
        """Describe preprocessed images ``(B, 3, H, W)`` by vectors ``(B, 144)`` of length 12."""
        colours = F.adaptive_avg_pool2d(images, _SIDE)
        centred = colours - colours.mean(dim=(1, 2, 3), keepdim=True)
        deviation = centred.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
        seen = self.stages(self.stem(torch.cat([colours, centred / (deviation + _FAINTEST)], dim=1)))
        anywhere = torch.cat([seen.mean(dim=(2, 3)), seen.amax(dim=(2, 3))], dim=1)
        described = self.readout(torch.cat([seen.flatten(1), anywhere], dim=1))
        return F.layer_norm(described, (_WIDTH,))

    def forward(self, images: Tensor) -> Tensor:
        """Embed preprocessed images ``(B, 3, H, W)`` in the joint space, ``(B, D)``."""
        return self.features(images) @ self.proj


def _norm(channels: int) -> tuple[nn.Module, nn.Module]:
    return nn.GroupNorm(_GROUPS, channels), nn.ReLU()
