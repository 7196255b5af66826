"""The embedded backbone under timm's interface, so that anomalib's models can use it by name, without any download.

``Patchcore(backbone="inctrl_tiny", layers=["blocks.4", "blocks.6"])`` and so on, for every model that takes the name of
a timm network. The name is known as soon as this module is imported, which the package's models do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import FeatureInfo, register_model
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the customary name

from anomalib_inctrl.clip import EMBEDDED_BACKBONE, ClipBackbone

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__: list[str] = []  # timm adds the names it registers


class TinyFeatures(nn.Module):
    """Patch tokens of the embedded backbone as maps.

    Args:
        out_indices (Sequence[int] | None): Blocks, 0-based; ``None`` for all.
        random (bool): Random weights instead of the trained ones.
    """

    def __init__(self, out_indices: Sequence[int] | None = None, *, random: bool = False) -> None:
        super().__init__()
        depth = ClipBackbone(EMBEDDED_BACKBONE, random=True).depth
        blocks = range(depth) if out_indices is None else out_indices
        self.backbone = ClipBackbone(EMBEDDED_BACKBONE, blocks=list(blocks), random=random)
        self.backbone.shapes = None  # a map for every block, no more
        patch = self.backbone.image_size[0] // self.backbone.grid_size[0]
        info = [{"num_chs": self.backbone.width, "reduction": patch, "module": f"blocks.{i}"} for i in range(depth)]
        self.feature_info = FeatureInfo(info, tuple(blocks))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Encode images normalised by ImageNet's statistics.

        Args:
            images (Tensor): ``(B, 3, H, W)`` of any size; they are brought to the backbone's.

        Returns:
            list[Tensor]: A map ``(B, W, rows, columns)`` for every block, in ascending order.
        """
        # What anomalib's models normalise with.
        imagenet = (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
        mean, std = (torch.tensor(s).to(images)[:, None, None] for s in imagenet)
        own_mean, own_std = (torch.tensor(s).to(images)[:, None, None] for s in self.backbone.convention[1:])
        images = (images * std + mean - own_mean) / own_std
        if tuple(images.shape[-2:]) != self.backbone.image_size:
            images = F.interpolate(images, self.backbone.image_size, mode="bicubic", antialias=True)
        patches = self.backbone.encode_image(images).patches  # (B, L, N, W)
        return [p.mT.unflatten(-1, self.backbone.grid_size) for p in patches.unbind(dim=1)]


@register_model
def inctrl_tiny(pretrained: bool = False, features_only: bool = True, **options: Any) -> TinyFeatures:
    """Build the embedded backbone for timm; see :class:`TinyFeatures`.

    Args:
        pretrained (bool): Trained weights, which come with the package.
        features_only (bool): Must be true: there is no classifier.
        **options (Any): ``out_indices``; timm's other options do not matter here.

    Raises:
        ValueError: If a classifier is asked for.
    """
    if not features_only:
        msg = "inctrl_tiny has features alone, no classifier: ask timm for features_only=True."
        raise ValueError(msg)
    return TinyFeatures(options.get("out_indices"), random=not pretrained)
