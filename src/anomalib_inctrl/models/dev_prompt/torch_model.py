"""DevPrompt (arXiv 2601.15453) as a torch module. Its authors have published no code; choices of ours are named."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor
from torch.nn import functional

from anomalib_inctrl.clip import AlignedFeatures, PatchAttention
from anomalib_inctrl.in_context import InContextModel, require_share
from anomalib_inctrl.losses import deviation_loss, normal_prompt_loss
from anomalib_inctrl.models.dev_prompt.prompt_learner import PromptLearner
from anomalib_inctrl.prompts import ANOMALOUS_SUFFIXES, FIXED_PREFIX, NORMAL_SUFFIXES
from anomalib_inctrl.references import AlignedReferenceBank
from anomalib_inctrl.scoring import (
    Fusion,
    Gaussian,
    abnormality_margin,
    class_probability,
    deviation,
    fuse,
    to_pixels,
    top_k_mean,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anomalib_inctrl.clip import ClipBackbone, ImageFeatures
    from anomalib_inctrl.reference_views import ReferenceViews
    from anomalib_inctrl.references import Context, ReferenceBank

PatchScoring = Literal["margin", "probability"]
Reference = Literal["prior", "normals"]

_PRIOR_DRAWS = 5000  # of deviation networks
_PRIOR_SEED = 0
_IMAGES_AT_ONCE = 16  # bounds the memory of the vision tower


class DevPromptExplanation(NamedTuple):
    """Every intermediate result of DevPrompt, in ``[0, 1]`` but for the deviations.

    Attributes:
        patch_residuals (Tensor): Distance of every patch to the nearest of the normal images, M_x of InCTRL,
            ``(B, N)``.
        text_map (Tensor): Probability of the anomalous prompts for every patch, ``(B, N)``.
        deviation (Tensor): Standard deviations of every patch's score above the normal ones, unbounded, ``(B, N)``.
        deviation_map (Tensor): Deviations brought to ``[0, 1]``, 0.5 at the margin, ``(B, N)``.
        visual_map (Tensor): What the deviations are fused with: the residuals, ``(B, N)``.
        fused_map (Tensor): Deviation and visual map fused, ``(B, N)``.
        image_deviation (Tensor): Mean deviation of the Top-K patches, which training works on, unbounded, ``(B,)``.
        image_score (Tensor): The same brought to ``[0, 1]``, ``(B,)``.
        patch_score (Tensor): Mean of the Top-K patches of the fused map, ``(B,)``.
        text_score (Tensor): Probability of the anomalous prompts for the image, ``(B,)``.
        score (Tensor): Patch score and text score, mixed by alpha, ``(B,)``.
        anomaly_map (Tensor): The fused map in pixels, ``(B, 1, H, W)``.
    """

    patch_residuals: Tensor
    text_map: Tensor
    deviation: Tensor
    deviation_map: Tensor
    visual_map: Tensor
    fused_map: Tensor
    image_deviation: Tensor
    image_score: Tensor
    patch_score: Tensor
    text_score: Tensor
    score: Tensor
    anomaly_map: Tensor


class TrainingFeatures(NamedTuple):
    """What training works on, encoded once.

    Attributes:
        normal (Tensor): Patches of the normal images in the joint space, ``(K, N, D)``, unit length.
        synthetic (Tensor): The same of images with synthetic anomalies, ``(S, N, D)``.
        normal_pooled (Tensor): Embeddings of the normal images, ``(K, D)``, unit length.
    """

    normal: Tensor
    synthetic: Tensor
    normal_pooled: Tensor


class DevPromptModel(InContextModel):
    """Patches aligned with prompts whose context is learned, scored by their deviation from normal patches.

    Of the paper are the shared learned context with fixed suffixes, patch-to-prompt alignment, Gaussian deviation,
    Top-K MIL and the deviation loss. Of deviation networks are the reference of 5000 draws from N(0, 1) and the margin
    of 5. Everything else is a choice of ours, made for the reasons given and, but for one, before any result was seen:

    - Patches reach the joint space by attending to themselves alone (``patch_attention``), since CLIP aligns no others.
    - A patch's score is its log-odds (``patch_scoring="margin"``): a Gaussian has no bounds and a probability has, and
      on that scale the prior's unit is a sensible one.
    - Test scores deviate from the normal images' own patches (``test_reference="normals"``), whose statistics are known
      then; training may do so as well.
    - A deviation becomes a value in ``[0, 1]`` by ``sigmoid((dev - a) / softness)``, hence 0.5 where training wants
      anomalies to be. That softness is 2 was picked on one generated category (pixel AUROC 0.92; 0.81 for 1, which lets
      next to nothing of the residual through where the text sees little).
    - It is fused with the residual to the normal images' patches by PromptAD's harmonic mean (``fusion``).
    - The image score is the mean of Top-K mean and image-level text score, as InCTRL weighs its two (``alpha``).

    Args:
        backbone (ClipBackbone): Frozen towers.
        branches (Iterable[str]): ``"context"`` for the learned context; without, prompts begin with fixed words.
        n_context (int): Number of context vectors.
        normal_suffixes (Sequence[str]): Patterns for the normal state, ``{}`` for the class.
        anomalous_suffixes (Sequence[str]): Patterns for the anomalous state.
        patch_attention (str): ``"self"`` or ``"all"``, see :meth:`ClipBackbone.encode_aligned`.
        patch_scoring (str): ``"margin"`` (log-odds) or ``"probability"``.
        patch_scale (float): Factor on the cosine similarities; CLIP's.
        train_reference (str): What training scores deviate from: ``"prior"``, draws from N(0, 1), or ``"normals"``, the
            normal images' patches at that step.
        test_reference (str): The same for test scores.
        top_k (float): Share of an image's patches that make its score, above 0 up to 1.
        margin (float): ``a`` of the deviation loss.
        softness (float): Standard deviations to a unit of the sigmoid that brings deviations to ``[0, 1]``.
        fusion (str): How deviation and residual are joined, see :func:`anomalib_inctrl.scoring.fuse`.
        alpha (float): Weight of the patch score in the image score, 0 to 1.
        reference_views (str | None): See :class:`InContextModel`; the prompts learn on the references alone.
        residual_smoothing (float | None): See :class:`InContextModel`.

    Raises:
        ValueError: If an option is out of range.
    """

    HEADS: ClassVar[str] = "dev_prompt"
    BRANCHES: ClassVar[dict[str, tuple[str, ...]]] = {"context": ("prompt_learner",)}
    SWAPPABLE: ClassVar[bool] = False  # the context is learned on them

    references: AlignedReferenceBank
    prior: Tensor
    normal: Tensor

    def __init__(
        self,
        backbone: ClipBackbone,
        branches: Sequence[str] = (),
        n_context: int = 12,
        normal_suffixes: Sequence[str] = NORMAL_SUFFIXES,
        anomalous_suffixes: Sequence[str] = ANOMALOUS_SUFFIXES,
        patch_attention: PatchAttention = "self",
        patch_scoring: PatchScoring = "margin",
        patch_scale: float = 100.0,
        train_reference: Reference = "prior",
        test_reference: Reference = "normals",
        top_k: float = 0.1,
        margin: float = 5.0,
        softness: float = 2.0,
        fusion: Fusion = "harmonic",
        alpha: float = 0.5,
        reference_views: ReferenceViews | None = None,
        residual_smoothing: float | None = None,
    ) -> None:
        super().__init__(backbone, branches, reference_views, residual_smoothing)
        require_share("alpha", alpha)
        require_share("top_k", top_k)
        require_positive(top_k=top_k, margin=margin, softness=softness, patch_scale=patch_scale)
        require_one_of("patch_attention", patch_attention, PatchAttention)
        require_one_of("patch_scoring", patch_scoring, PatchScoring)
        require_one_of("train_reference", train_reference, Reference)
        require_one_of("test_reference", test_reference, Reference)
        require_one_of("fusion", fusion, Fusion)
        self.patch_attention, self.patch_scoring, self.patch_scale = patch_attention, patch_scoring, patch_scale
        self.train_reference, self.test_reference = train_reference, test_reference
        self.top_k, self.margin, self.softness, self.fusion, self.alpha = top_k, margin, softness, fusion, alpha
        self.prompt_learner = PromptLearner(backbone.text_width, n_context, normal_suffixes, anomalous_suffixes)
        draws = torch.randn(_PRIOR_DRAWS, generator=torch.Generator().manual_seed(_PRIOR_SEED))
        self.register_buffer("prior", torch.stack(Gaussian.of(draws)))  # mu and sigma
        self.register_buffer("normal", torch.tensor([0.0, 1.0]))  # of the references' patches

    @staticmethod
    def _new_bank(backbone: ClipBackbone, views: int) -> ReferenceBank:
        return AlignedReferenceBank(backbone, views)

    @property
    def options(self) -> dict[str, Any]:
        """Options of the formula: other ones give other scores."""
        names = (
            "patch_attention",
            "patch_scoring",
            "patch_scale",
            "test_reference",
            "top_k",
            "margin",
            "softness",
            "fusion",
            "alpha",
        )
        return super().options | {name: getattr(self, name) for name in names}

    # --------------------------------------------------------------------------------------------------- references
    def encode(self, images: Tensor) -> ImageFeatures:
        """Encode preprocessed images ``(B, 3, H, W)`` as :class:`AlignedFeatures`."""
        return cast("ImageFeatures", self.backbone.encode_aligned(images, self.patch_attention))

    def set_references(self, images: Tensor, class_name: str = "object") -> None:
        """Replace all references, at least one, and take the statistics of their patches.

        Args:
            images (Tensor): Preprocessed images of normal objects ``(K, 3, H, W)``.
            class_name (str): What the images show, for the prompts.

        Raises:
            ValueError: If there is no image, or images have another shape or hold values that are not finite.
        """
        if images.shape[0] == 0:
            msg = "DevPrompt measures deviations from normal images: give at least one reference."
            raise ValueError(msg)
        super().set_references(images, class_name)
        self.refresh()

    def add_references(self, images: Tensor, class_name: str | None = None) -> None:
        """Add references to the class there is.

        Raises:
            RuntimeError: If there is no class yet.
            ValueError: If another class is named; or as :meth:`set_references`.
        """
        known = self.references.resolve(None)
        if class_name not in {None, known}:
            msg = f"A DevPrompt model is of one class, this one of {known!r}: make another for {class_name!r}."
            raise ValueError(msg)
        super().add_references(images, known)
        self.refresh()

    def text_prototypes(self, class_name: str) -> Tensor:
        """e_n and e_a of a class, ``(2, D)``: of the learned context if it is in use, else of fixed words."""
        if class_name not in self._text_prototypes:
            with torch.inference_mode(mode=False), torch.no_grad():
                self._text_prototypes[class_name] = self.encode_prompts(class_name)
        return self._text_prototypes[class_name].to(self.branch_flags.device)

    def encode_prompts(self, class_name: str) -> Tensor:
        """Encode the prompts of a class with gradients for the learned context, ``(2, D)``."""
        fixed = None if "context" in self.branches else self.backbone.embed_words(FIXED_PREFIX)
        return self.prompt_learner(self.backbone, class_name, fixed)

    @torch.no_grad()
    def refresh(self) -> None:
        """Bring prototypes and statistics up to date with the context; only then do scores know what was learned."""
        with torch.inference_mode(mode=False):
            self._text_prototypes.clear()
            prototypes = self.text_prototypes(self.references.resolve(None))
            self.references.prototypes = prototypes[None].to(self.references.prototypes)
            scores = self.score_patches(self.references.aligned, prototypes.to(self.references.aligned))
            self.normal = torch.stack(Gaussian.of(scores))

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: object) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._text_prototypes.clear()  # another context has come

    def reset_context(self) -> None:
        """Forget the learned context and put it out of use."""
        self.prompt_learner.reset()
        self.use_branches(())
        self._text_prototypes.clear()

    # ------------------------------------------------------------------------------------------------------ scoring
    def score_patches(self, aligned: Tensor, prototypes: Tensor) -> Tensor:
        """Score patches by the prompts: s.

        Args:
            aligned (Tensor): ``(B, N, D)``, unit length.
            prototypes (Tensor): e_n and e_a, ``(2, D)``.

        Returns:
            Tensor: ``(B, N)``, log-odds or probabilities of the anomaly, as ``patch_scoring`` has it.
        """
        margins = abnormality_margin(aligned, prototypes, self.patch_scale)
        return margins if self.patch_scoring == "margin" else margins.sigmoid()

    def reference_of(self, which: Reference) -> Gaussian:
        """Mean and standard deviation by name: the prior's, or those of the references' patches."""
        return Gaussian(*(self.prior if which == "prior" else self.normal).unbind())

    def score(self, query: ImageFeatures, context: Context) -> DevPromptExplanation:
        """Compare patches with prompts and with the normal images' patches."""
        aligned, prototypes = cast("AlignedFeatures", query).aligned, context.prototypes
        scores = self.score_patches(aligned, prototypes)  # s
        deviations = deviation(scores, self.reference_of(self.test_reference))  # dev
        deviation_map = self.squash(deviations)
        residuals = self.compare_patches(query, context)  # the visual memory
        fused = fuse(deviation_map, residuals, self.fusion)
        image_deviation = top_k_mean(deviations, self.top_k)
        patch_score = top_k_mean(fused, self.top_k)
        text_score = class_probability(query.pooled, prototypes, self.patch_scale)
        return DevPromptExplanation(
            patch_residuals=residuals,
            text_map=scores.sigmoid() if self.patch_scoring == "margin" else scores,
            deviation=deviations,
            deviation_map=deviation_map,
            visual_map=residuals,
            fused_map=fused,
            image_deviation=image_deviation,
            image_score=self.squash(image_deviation),
            patch_score=patch_score,
            text_score=text_score,
            score=(1 - self.alpha) * text_score + self.alpha * patch_score,
            anomaly_map=to_pixels(fused, self.backbone.grid_size, self.backbone.image_size),
        )

    # ----------------------------------------------------------------------------------------------------- training
    def training_features(self, synthetic: Tensor) -> TrainingFeatures:
        """Put together what the losses need: features of the references, and of anomalies drawn on them.

        Args:
            synthetic (Tensor): Preprocessed images with synthetic anomalies, ``(S, 3, H, W)``.
        """
        with torch.inference_mode(mode=False), torch.no_grad():
            chunks = [self.backbone.encode_aligned(c, self.patch_attention) for c in synthetic.split(_IMAGES_AT_ONCE)]
            return TrainingFeatures(
                normal=self.references.aligned.clone(),
                synthetic=torch.cat([chunk.aligned for chunk in chunks]),
                normal_pooled=functional.normalize(self.references.pooled, dim=-1),
            )

    def losses(self, features: TrainingFeatures, class_name: str | None = None) -> dict[str, Tensor]:
        """Losses of the context, unweighted, by name.

        - ``prompt``: normal patches are to be nearer to the normal than to the anomalous prompt, and normal images as
          well, since their embeddings are compared with the same prompts. The latter is a choice of ours.
        - ``deviation``: the deviation loss of the Top-K mean of every image, the normal ones' mean and the synthetic
          ones' weighing the same, however many there are.

        Args:
            features (TrainingFeatures): Of all normal images and some synthetic anomalies.
            class_name (str | None): ``None`` for the references' class.
        """
        prototypes = self.encode_prompts(self.references.resolve(class_name))
        normal = abnormality_margin(features.normal, prototypes, self.patch_scale)
        images = abnormality_margin(features.normal_pooled, prototypes, self.patch_scale)
        normal_scores = self.score_patches(features.normal, prototypes)
        scores = torch.cat([normal_scores, self.score_patches(features.synthetic, prototypes)])
        # A reference is what scores are held against, not what they may change, hence no gradient.
        by_prior = self.train_reference == "prior"
        reference = self.reference_of("prior") if by_prior else Gaussian.of(normal_scores.detach())
        labels = torch.arange(len(scores), device=scores.device) >= len(normal_scores)
        per_image = deviation_loss(top_k_mean(deviation(scores, reference), self.top_k), labels, self.margin)
        return {
            "prompt": (normal_prompt_loss(normal) + normal_prompt_loss(images)) / 2,
            "deviation": (per_image[~labels].mean() + per_image[labels].mean()) / 2,
        }

    def squash(self, deviations: Tensor) -> Tensor:
        """Bring deviations to ``[0, 1]``, in their order and with 0.5 at the margin."""
        return ((deviations - self.margin) / self.softness).sigmoid()


def require_positive(**numbers: float) -> None:
    """Refuse numbers that are not above 0.

    Raises:
        ValueError: Naming the first.
    """
    for name, value in numbers.items():
        if not value > 0:
            msg = f"{name} must be larger than 0, got {value}."
            raise ValueError(msg)


def require_one_of(name: str, value: str, literal: Any) -> None:
    """Refuse a word that a ``Literal`` does not have.

    Raises:
        ValueError: Naming those it has.
    """
    if value not in get_args(literal):
        msg = f"{name} must be one of {list(get_args(literal))}, got {value!r}."
        raise ValueError(msg)
