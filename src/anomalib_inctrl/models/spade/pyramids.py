"""Feature pyramids for SPADE, of timm's networks and of CLIP's vision tower."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from anomalib.models.components import TimmFeatureExtractor
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the customary name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anomalib_inctrl.clip import ClipBackbone


class Pyramid(NamedTuple):
    """Features of ``B`` images.

    Attributes:
        pooled (Tensor): One vector an image, ``(B, C)``.
        levels (list[Tensor]): Feature maps, finest first, each ``(B, C_l, h_l, w_l)``.
    """

    pooled: Tensor
    levels: list[Tensor]


class TimmPyramid(nn.Module):
    """Feature maps of a timm network, and the mean of its last one over all places.

    Args:
        backbone (str): Name of the network.
        layers (Sequence[str]): Layers of the pyramid, finest first.
        pooled_layer (str): Layer that is averaged.
        pre_trained (bool): Whether to have timm's weights; else random ones.

    Raises:
        ValueError: If the network lacks a layer.
    """

    def __init__(self, backbone: str, layers: Sequence[str], pooled_layer: str, *, pre_trained: bool) -> None:
        super().__init__()
        self.layers, self.pooled_layer = list(layers), pooled_layer
        wanted = list(dict.fromkeys([*layers, pooled_layer]))
        self.extractor = TimmFeatureExtractor(backbone, wanted, pre_trained=pre_trained)
        missing = [layer for layer in wanted if layer not in self.extractor.layers]
        if missing:
            msg = f"{backbone} has no layers {missing}: name its own by layers and pooled_layer; the log lists them."
            raise ValueError(msg)
        self.requires_grad_(requires_grad=False)

    @property
    def num_levels(self) -> int:
        """Levels of the pyramid."""
        return len(self.layers)

    def forward(self, images: Tensor) -> Pyramid:
        """Extract features of preprocessed images ``(B, 3, H, W)``."""
        maps = self.extractor(images)
        return Pyramid(maps[self.pooled_layer].mean(dim=(-2, -1)), [maps[layer] for layer in self.layers])


class ClipPyramid(nn.Module):
    """Patch tokens of CLIP's layers and its image embedding, all of unit length.

    The levels have one resolution, since a vision transformer keeps its grid. Unit length is a choice of ours: CLIP's
    embeddings are compared by angle, and the length of its tokens says more about their place than their content.

    Args:
        backbone (ClipBackbone): Frozen towers.
    """

    def __init__(self, backbone: ClipBackbone) -> None:
        super().__init__()
        self.backbone = backbone

    @property
    def num_levels(self) -> int:
        """Levels of the pyramid."""
        return len(self.backbone.layers)

    def forward(self, images: Tensor) -> Pyramid:
        """Extract features of preprocessed images ``(B, 3, H, W)`` of the backbone's size."""
        features = self.backbone.encode_image(images)
        maps = F.normalize(features.patches, dim=-1).mT.unflatten(-1, self.backbone.grid_size)  # (B, L, W, h, w)
        return Pyramid(F.normalize(features.pooled, dim=-1), list(maps.unbind(dim=1)))
