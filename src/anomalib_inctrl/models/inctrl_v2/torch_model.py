"""InCTRLv2 (arXiv 2604.04632) as a torch module. Its authors have published no code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from anomalib_inctrl.in_context import InContextModel, ResidualAdapter, ScoreHead, image_residual_score, require_share
from anomalib_inctrl.scoring import class_probability, to_pixels

if TYPE_CHECKING:
    from collections.abc import Iterable

    from anomalib_inctrl.clip import ClipBackbone, ImageFeatures
    from anomalib_inctrl.in_context import Distortion
    from anomalib_inctrl.reference_views import ReferenceViews
    from anomalib_inctrl.references import Context


PATCH_SCALE = 1 / 0.07
"""Factor on the similarities of patches and text, that of AnomalyCLIP (arXiv 2310.18961): not public, hence ours.

CLIP's own, 100, saturates. Heads trained with it on generated categories have AUPRO 0.615 on held-out ones instead of
0.627 (one seed), and find less on photographs.
"""


class InCTRLv2Explanation(NamedTuple):
    """Every intermediate result of InCTRLv2, all in ``[0, 1]``.

    ``None`` stands for what was not computed: parts whose branch is not in use, residuals without references.

    Attributes:
        patch_residuals (Tensor | None): M_x, ``(B, N)``.
        patch_score (Tensor | None): s_p, the largest residual, ``(B,)``.
        image_score (Tensor | None): s_I, ``(B,)``.
        text_score (Tensor): s_q, ``(B,)``.
        abnormality (Tensor | None): S_a, ``(B, N)``.
        normality (Tensor | None): S_n = 1 - S_a, ``(B, N)``.
        discriminative_map (Tensor | None): M_p, ``(B, N)``.
        one_class_abnormality (Tensor | None): S^_a, ``(B, N)``.
        one_class_map (Tensor | None): M_n, ``(B, N)``.
        score (Tensor): s, ``(B,)``.
        anomaly_map (Tensor): M', ``(B, 1, H, W)``.
    """

    patch_residuals: Tensor | None
    patch_score: Tensor | None
    image_score: Tensor | None
    text_score: Tensor
    abnormality: Tensor | None
    normality: Tensor | None
    discriminative_map: Tensor | None
    one_class_abnormality: Tensor | None
    one_class_map: Tensor | None
    score: Tensor
    anomaly_map: Tensor


class PatchTextAdapter(nn.Module):
    """Takes patch tokens into the joint space and asks the text how abnormal they are: phi_1 and phi_2.

    A bottleneck without biases, so that the result does not depend on the length of a token. Not public, hence ours:
    the bottleneck's form, one adapter for all layers (or one for each), and the scale of the softmax.

    Args:
        width (int): Width ``W`` of the patch tokens.
        embed_dim (int): Width ``D`` of the joint space.
        adapters (int): 1 to share the adapter among the layers, or the number of layers.
        scale (float): Factor on the cosine similarities; 1 would pin every result near 0.5.
        reduction (int): Factor by which the bottleneck is narrower than the tokens.
    """

    def __init__(
        self, width: int, embed_dim: int, adapters: int = 1, scale: float = PATCH_SCALE, reduction: int = 4
    ) -> None:
        super().__init__()
        self.scale = scale
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Linear(width, width // reduction, bias=False),
                nn.ReLU(),
                nn.Linear(width // reduction, embed_dim, bias=False),
            )
            for _ in range(adapters)
        )

    def forward(self, patches: Tensor, prototypes: Tensor, scale: float | None = None) -> Tensor:
        """Abnormality of every patch, averaged over the layers.

        Args:
            patches (Tensor): ``(B, L, N, W)``.
            prototypes (Tensor): ``(2, D)``, or ``(B, 2, D)``.
            scale (float | None): Another factor on the similarities than :attr:`scale`.

        Returns:
            Tensor: S_a, ``(B, N)`` in ``[0, 1]``.
        """
        scale = self.scale if scale is None else scale
        if len(self.stages) == 1:
            return self._abnormality(self.stages[0], patches, prototypes, scale).mean(dim=1)
        blocks = zip(self.stages, patches.unbind(dim=1), strict=True)
        return torch.stack([self._abnormality(stage, block, prototypes, scale) for stage, block in blocks]).mean(dim=0)

    @staticmethod
    def _abnormality(stage: Any, patches: Tensor, prototypes: Tensor, scale: float) -> Tensor:
        """Softmax of the cosines for patches ``(B, ..., W)``: ``(B, ...)``.

        For tokens adapted to ``U h``, with ``h`` as wide as the bottleneck. Only their angles to the two prototypes
        count, so the wide ``U h`` is never there: its length is the root of ``h (U'U) h``, its products are those of
        ``h`` with ``U'`` times the prototypes.
        """
        narrow, widening = stage[:-1](patches), stage[-1].weight
        contrast = (prototypes[..., 1, :] - prototypes[..., 0, :]) @ widening  # (bottleneck) or (B, bottleneck)
        if contrast.ndim == 2:
            contrast = contrast[(slice(None), *[None] * (patches.ndim - 2))]
        length = (narrow @ (widening.mT @ widening) * narrow).sum(dim=-1)
        length = length.clamp(min=torch.finfo(length.dtype).tiny).sqrt()
        return (scale * (narrow * contrast).sum(dim=-1) / length).sigmoid()


class InCTRLv2Model(InContextModel):
    """In-context residuals with a discriminative and a one-class branch per patch: image scores and pixel maps.

    Args:
        backbone (ClipBackbone): Frozen towers.
        branches (Iterable[str]): ``"image"`` (psi and eta of InCTRL), ``"discriminative"`` (DASL) and ``"one_class"``
            (OASL). A branch that is not in use leaves its formula: ``s_I`` the mean with ``s_q``, S_a the mean with
            M_x, M_n or M_p the mixture of both. With none in use the model is training-free.
        alpha (float): Weight of the patch score in the image score, 0 to 1.
        beta (float): Weight of the one-class map in the pixel map, 0 to 1.
        patch_scale (float): Factor on the similarities of patches and text; not public, see :data:`PATCH_SCALE`.
        map_scale (float | None): The factor that the discriminative branch has instead where it is not trained.
            ``None`` takes the backbone's, else ``patch_scale``. Training drives S_a to 0 and 1, and in the mean with
            residuals of a tenth it leaves these no say: temperature scaling after training (Guo et al.,
            arXiv 1706.04599).
        adapter_per_block (bool): Whether every layer of the backbone has an adapter of its own; not public.
        reference_views (str | None): See :class:`InContextModel`.
        residual_smoothing (float | None): See :class:`InContextModel`.
    """

    HEADS: ClassVar[str] = "inctrl_v2"
    BRANCHES: ClassVar[dict[str, tuple[str, ...]]] = {
        "image": ("adapter", "image_head"),
        "discriminative": ("discriminative_adapter",),
        "one_class": ("one_class_adapter",),
    }

    def __init__(
        self,
        backbone: ClipBackbone,
        branches: Iterable[str] = (),
        alpha: float = 0.5,
        beta: float = 0.75,
        patch_scale: float = PATCH_SCALE,
        map_scale: float | None = None,
        *,
        adapter_per_block: bool = False,
        reference_views: ReferenceViews | None = None,
        residual_smoothing: float | None = None,
    ) -> None:
        super().__init__(backbone, branches, reference_views, residual_smoothing)
        require_share("alpha", alpha)
        require_share("beta", beta)
        map_scale = backbone.map_scale if map_scale is None else map_scale
        self.map_scale = patch_scale if map_scale is None else map_scale
        for name, scale in (("patch_scale", patch_scale), ("map_scale", self.map_scale)):
            if not scale > 0:
                msg = f"{name} must be larger than 0, got {scale}."
                raise ValueError(msg)
        self.alpha, self.beta = alpha, beta
        self.adapter = ResidualAdapter(backbone.embed_dim)  # psi
        self.image_head = ScoreHead(backbone.embed_dim)  # eta
        adapters = len(backbone.layers) if adapter_per_block else 1
        sizes = (backbone.width, backbone.embed_dim, adapters, patch_scale)
        self.discriminative_adapter = PatchTextAdapter(*sizes)  # phi_1
        self.one_class_adapter = PatchTextAdapter(*sizes)  # phi_2

    @property
    def options(self) -> dict[str, Any]:
        """What is set by hand and changes scores."""
        patch_scale = self.discriminative_adapter.scale
        own = {"alpha": self.alpha, "beta": self.beta, "patch_scale": patch_scale}
        return super().options | own | ({} if self.map_scale == patch_scale else {"map_scale": self.map_scale})

    @property
    def undecided(self) -> float:
        """S_a of a patch of which the text says nothing, where pictures of it begin.

        0 with the factor of the training, which leaves no patch undecided, else 0.5.
        """
        return 0.0 if self.map_scale == self.discriminative_adapter.scale else 0.5

    def score(
        self,
        query: ImageFeatures,
        context: Context,
        branches: frozenset[str] | None = None,
        distortion: Distortion | None = None,
        scale: float | None = None,
    ) -> InCTRLv2Explanation:
        """Score images and patches against references and text.

        Args:
            query (ImageFeatures): Of ``B`` images.
            context (Context): What they are compared with.
            branches (frozenset[str] | None): Branches to compute, for a loss that needs no others; ``None`` for those
                in use.
            distortion (Distortion | None): What image embeddings go through before the image branch sees them, in
                training.
            scale (float | None): Factor on the similarities in the discriminative branch; ``None`` for ``map_scale``.
        """
        branches = self.branches if branches is None else branches
        patch_residuals = patch_score = image_score = None
        text_score = score = class_probability(query.pooled, context.prototypes)  # s_q
        if context.has_references:
            patch_residuals = self.compare_patches(query, context)  # M_x
            patch_score = patch_residuals.amax(dim=1)  # s_p
            if "image" in branches:
                image_score = image_residual_score(  # s_I
                    query.pooled, context.pooled, self.adapter, self.image_head, distortion
                )
                score = (image_score + text_score) / 2
            score = (1 - self.alpha) * score + self.alpha * patch_score  # s
        # S_a and S^_a
        abnormality, one_class_abnormality = (
            adapter(query.patches, context.prototypes, factor) if branch in branches else None
            for branch, adapter, factor in (
                ("discriminative", self.discriminative_adapter, self.map_scale if scale is None else scale),
                ("one_class", self.one_class_adapter, None),
            )
        )
        discriminative_map = mean_of(patch_residuals, abnormality)  # M_p
        one_class_map = mean_of(patch_residuals, one_class_abnormality)  # M_n
        return InCTRLv2Explanation(
            patch_residuals=patch_residuals,
            patch_score=patch_score,
            image_score=image_score,
            text_score=text_score,
            abnormality=abnormality,
            normality=None if abnormality is None else 1 - abnormality,
            discriminative_map=discriminative_map,
            one_class_abnormality=one_class_abnormality,
            one_class_map=one_class_map,
            score=score,
            anomaly_map=self._pixel_map(branches, discriminative_map, one_class_map, text_score),
        )

    def score_one_class(self, query: ImageFeatures, context: Context) -> tuple[Tensor, Tensor]:
        """Score patches by the one-class branch alone.

        Returns:
            tuple[Tensor, Tensor]: S^_a and M_n, both ``(B, N)``.
        """
        abnormality = self.one_class_adapter(query.patches, context.prototypes)
        return abnormality, (self.compare_patches(query, context) + abnormality) / 2

    def _pixel_map(
        self,
        branches: frozenset[str],
        discriminative_map: Tensor | None,
        one_class_map: Tensor | None,
        text_score: Tensor,
    ) -> Tensor:
        """Mix the branches' maps in pixels, M'; one that is not in use leaves the other alone."""
        size = self.backbone.image_size
        in_use = branches & {"discriminative", "one_class"}
        beta = float("one_class" in in_use) if len(in_use) == 1 else self.beta
        if discriminative_map is None or one_class_map is None:
            mixed = one_class_map if discriminative_map is None else discriminative_map
        else:
            # Upsampling is linear, so mixing the patch maps equals mixing the pixel maps.
            mixed = (1 - beta) * discriminative_map + beta * one_class_map
        if mixed is None:
            return text_score[:, None, None, None].expand(-1, 1, *size)
        return to_pixels(mixed, self.backbone.grid_size, size)


def mean_of(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """Mean of two tensors of one shape, or the one that is there."""
    if first is None or second is None:
        return second if first is None else first
    return (first + second) / 2
