"""InCTRL (Zhu & Pang, CVPR 2024, arXiv 2403.06495) as a torch module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from anomalib_inctrl.in_context import InContextModel, ResidualAdapter, ScoreHead, image_residual_score, require_share
from anomalib_inctrl.scoring import class_probability, to_pixels

if TYPE_CHECKING:
    from collections.abc import Iterable

    from anomalib_inctrl.clip import ClipBackbone, ImageFeatures
    from anomalib_inctrl.in_context import Distortion
    from anomalib_inctrl.reference_views import ReferenceViews
    from anomalib_inctrl.references import Context


class InCTRLExplanation(NamedTuple):
    """Every intermediate result of InCTRL, all in ``[0, 1]``.

    ``None`` stands for what was not computed: parts whose branch is not in use, residuals without references.

    Attributes:
        patch_residuals (Tensor | None): M_x, ``(B, N)``.
        patch_score (Tensor | None): s_p, the largest residual, ``(B,)``.
        image_score (Tensor | None): s_i, ``(B,)``.
        text_score (Tensor): s_a, ``(B,)``.
        holistic_score (Tensor | None): phi of the holistic map, ``(B,)``.
        score (Tensor): s, ``(B,)``.
        anomaly_map (Tensor): M_x in pixels, ``(B, 1, H, W)``; without references s_a everywhere.
    """

    patch_residuals: Tensor | None
    patch_score: Tensor | None
    image_score: Tensor | None
    text_score: Tensor
    holistic_score: Tensor | None
    score: Tensor
    anomaly_map: Tensor


class HolisticHead(ScoreHead):
    """phi of InCTRL (equation 8): from a value per patch to a probability.

    By place, as the paper has it, or in descending order, which is ours: what the largest values, those after them and
    the mean say then holds wherever a defect lies, and has to be learned once and not for every place. Weights say
    which of the two they were trained for.

    Args:
        patches (int): Number of patches ``N``.
        sort_patches (bool): Whether to sort.
    """

    sorts: Tensor

    def __init__(self, patches: int, *, sort_patches: bool = False) -> None:
        super().__init__(patches)
        self.register_buffer("sorts", torch.tensor(sort_patches, dtype=torch.uint8))
        self.sort_patches = sort_patches  # a graph can't ask a tensor

    def forward(self, features: Tensor) -> Tensor:
        """Map ``(B, N)`` to probabilities ``(B,)``."""
        return super().forward(features.sort(dim=-1, descending=True).values if self.sort_patches else features)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: object) -> None:
        state_dict.setdefault(f"{prefix}sorts", torch.zeros_like(self.sorts))  # published and earlier files have none
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.sort_patches = bool(self.sorts)


class InCTRLModel(InContextModel):
    """In-context residual learning: image-level score from patch, image and text evidence.

    The pixel map is the patch residual; the paper scores images only.

    Args:
        backbone (ClipBackbone): Frozen towers.
        branches (Iterable[str]): ``"image"`` (psi and eta) and ``"holistic"`` (phi); both for the full formula, none
            for the training-free one. The image branch alone, as an InCTRLv2 checkpoint has it, takes phi's place
            together with the text, ``(s_i + s_a) / 2``; without it phi sees ``M_x + s_a``.
        alpha (float): Weight of the patch score, 0 to 1. The full formula is
            ``(1 - alpha) * phi + alpha * s_p``, at 0.5 the published code; training-free text takes phi's place.
        sort_patches (bool): Whether phi sees patches in descending order, see :class:`HolisticHead`; loaded weights
            decide for themselves.
        reference_views (str | None): See :class:`InContextModel`.
        residual_smoothing (float | None): See :class:`InContextModel`.
    """

    HEADS: ClassVar[str] = "inctrl"
    BRANCHES: ClassVar[dict[str, tuple[str, ...]]] = {
        "image": ("adapter", "image_head"),
        "holistic": ("holistic_head",),
    }

    def __init__(
        self,
        backbone: ClipBackbone,
        branches: Iterable[str] = (),
        alpha: float = 0.5,
        *,
        sort_patches: bool = False,
        reference_views: ReferenceViews | None = None,
        residual_smoothing: float | None = None,
    ) -> None:
        super().__init__(backbone, branches, reference_views, residual_smoothing)
        require_share("alpha", alpha)
        self.alpha = alpha
        self.adapter = ResidualAdapter(backbone.embed_dim)  # psi
        self.image_head = ScoreHead(backbone.embed_dim)  # eta
        self.holistic_head = HolisticHead(backbone.num_patches, sort_patches=sort_patches)  # phi

    @property
    def options(self) -> dict[str, Any]:
        """What is set by hand and changes scores."""
        return super().options | {"alpha": self.alpha}

    def score(self, query: ImageFeatures, context: Context, distortion: Distortion | None = None) -> InCTRLExplanation:
        """Fuse patch, image and text evidence (equations 1-8).

        Args:
            query (ImageFeatures): Of ``B`` images.
            context (Context): What they are compared with.
            distortion (Distortion | None): What image embeddings go through before the image branch sees them, in
                training.
        """
        text_score = class_probability(query.pooled, context.prototypes)  # s_a
        if not context.has_references:
            return self._score_by_text(text_score)
        patch_residuals = self.compare_patches(query, context)  # M_x
        patch_score = patch_residuals.amax(dim=1)  # s_p
        image_score = holistic_score = None
        added, global_score = text_score, text_score
        if "image" in self.branches:
            image_score = image_residual_score(  # s_i
                query.pooled, context.pooled, self.adapter, self.image_head, distortion
            )
            added, global_score = image_score + text_score, (image_score + text_score) / 2
        if "holistic" in self.branches:
            global_score = holistic_score = self.holistic_head(patch_residuals + added[:, None])  # phi(M_x^+)
        return InCTRLExplanation(
            patch_residuals=patch_residuals,
            patch_score=patch_score,
            image_score=image_score,
            text_score=text_score,
            holistic_score=holistic_score,
            score=(1 - self.alpha) * global_score + self.alpha * patch_score,
            anomaly_map=to_pixels(patch_residuals, self.backbone.grid_size, self.backbone.image_size),
        )

    def _score_by_text(self, text_score: Tensor) -> InCTRLExplanation:
        anomaly_map = text_score[:, None, None, None].expand(-1, 1, *self.backbone.image_size)
        return InCTRLExplanation(None, None, None, text_score, None, text_score, anomaly_map)
