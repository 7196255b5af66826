"""Models that compare images with text alone: what they share beside the backbone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, cast

from torch import Tensor

from anomalib_inctrl.clip import AlignedFeatures
from anomalib_inctrl.in_context import InContextModel
from anomalib_inctrl.scoring import class_probability, to_pixels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anomalib_inctrl.clip import ClipBackbone, ImageFeatures
    from anomalib_inctrl.references import Context


class TextExplanation(NamedTuple):
    """Every intermediate result of a model of text alone, all in ``[0, 1]``.

    Attributes:
        text_score (Tensor): Probability of the anomalous prompts for the image, ``(B,)``.
        patch_text_map (Tensor | None): The same for every patch, ``(B, N)``; ``None`` if patches were not brought into
            the joint space.
        score (Tensor): The text score, ``(B,)``.
        anomaly_map (Tensor): The patches' probabilities in pixels, ``(B, 1, H, W)``; without them the text score
            everywhere.
    """

    text_score: Tensor
    patch_text_map: Tensor | None
    score: Tensor
    anomaly_map: Tensor


class TextOnlyModel(InContextModel):
    """Images against a normal and an anomalous text prototype, without references.

    The image score is the anomalous entry of ``softmax(scale * [<x, F_n>, <x, F_a>])`` for the whole image. The map is
    the same for single patches and plays no part in the score. CLIP aligns no patches with text, so they are read from
    its last block as MaskCLIP does (arXiv 2112.01071), each attending to itself alone: coarse, and of a quality that
    differs between backbones.

    Args:
        backbone (ClipBackbone): Frozen towers.
        branches (Sequence[str]): Trained parts in use from the start.
        scale (float): Factor on the cosine similarities before the softmax; 100 is CLIP's.

    Raises:
        ValueError: If the scale is not above 0.
    """

    def __init__(self, backbone: ClipBackbone, branches: Sequence[str] = (), scale: float = 100.0) -> None:
        super().__init__(backbone, branches, reference_views="none", residual_smoothing=0.0)  # no patch is compared
        if not scale > 0:
            msg = f"scale must be larger than 0, got {scale}."
            raise ValueError(msg)
        self.scale = scale

    @property
    def options(self) -> dict[str, Any]:
        """Numbers of the formula that are set by hand."""
        return {"scale": self.scale}

    def encode(self, images: Tensor) -> ImageFeatures:
        """Encode preprocessed images ``(B, 3, H, W)`` as :class:`AlignedFeatures`."""
        return cast("ImageFeatures", self.backbone.encode_aligned(images))

    def score(self, query: ImageFeatures, context: Context) -> TextExplanation:
        """Compare images and patches with the text prototypes of their class."""
        return self.score_by_text(query, context.prototypes)

    def score_by_text(self, query: ImageFeatures | AlignedFeatures, prototypes: Tensor) -> TextExplanation:
        """Compare images, and patches if they are in the joint space, with text.

        Args:
            query (ImageFeatures | AlignedFeatures): Features of ``B`` images.
            prototypes (Tensor): Normal and anomalous prototype of unit length, ``(2, D)`` for all images or, without
                patches, ``(B, 2, D)``.
        """
        text_score = class_probability(query.pooled, prototypes, self.scale)
        if not isinstance(query, AlignedFeatures):
            everywhere = text_score[:, None, None, None].expand(-1, 1, *self.backbone.image_size)
            return TextExplanation(text_score, None, text_score, everywhere)
        patch_map = class_probability(query.aligned, prototypes, self.scale)
        pixels = to_pixels(patch_map, self.backbone.grid_size, self.backbone.image_size)
        return TextExplanation(text_score, patch_map, text_score, pixels)
