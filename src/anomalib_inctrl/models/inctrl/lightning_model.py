"""InCTRL for the framework: image scores and residual maps."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.visualization import Visualizer
from torch import Tensor, nn

from anomalib_inctrl.clip import ClipBackbone
from anomalib_inctrl.data.episodes import EpisodeBatch
from anomalib_inctrl.embedding_distance import ImageBranch
from anomalib_inctrl.in_context_mixin import InContextMixin, Phase
from anomalib_inctrl.losses import focal_loss
from anomalib_inctrl.models.inctrl.torch_model import InCTRLModel
from anomalib_inctrl.post_processing import Calibration
from anomalib_inctrl.pre_processing import Geometry
from anomalib_inctrl.reference_views import ReferenceViews


class InCTRL(InContextMixin, AnomalibModule):
    """InCTRL: few-shot generalist detection by in-context residual learning.

    Zhu & Pang, "Toward Generalist Anomaly Detection via In-context Residual Learning with Few-shot Sample Prompts",
    CVPR 2024, arXiv 2403.06495. Scores images; its pixel map is the patch residual.

    Args:
        backbone (str): open_clip architecture with a plain vision transformer, or ``"inctrl-tiny"``, the small one
            that comes with the package and needs no download.
        pretrained (str | Path | None): open_clip tag or local file of weights; ``None`` for random weights, for tests.
            Ignored by ``"inctrl-tiny"``.
        class_name (str | None): What the images show, for the text prompts. ``None`` takes the data module's category,
            or else ``"object"``.
        k_shot (int): Number of normal reference images; 0 scores by text alone.
        reference_seed (int): Seed of the draw of references.
        few_shot_source (str | Path | None): Where references come from: a folder, an image, or a ``.pt`` list of
            preprocessed tensors. ``None`` draws them from the training split of the data module.
        phase (str): ``"few_shot"`` runs on a target without training. ``"train"`` trains
            the heads on :class:`AuxiliaryData`.
        weights (str | Path | None): Trained heads: a checkpoint of this package, or one published by InCTRL's authors;
            ``"inctrl-tiny"`` for those embedded with that backbone; ``"random"`` for untrained heads in the full
            formula, for tests. ``None`` runs training-free, on residuals and text alone.
        blocks (list[int] | None): Blocks of the vision tower whose patches are compared, 0-based. ``None`` takes
            those the papers take: 6, 8, 10 of 12, and the same fractions of other depths.
        alpha (float): Weight of the largest patch residual in the score, 0 to 1; the papers have 0.5.
        branches (list[str] | None): Branches to train: ``"image"`` (psi and eta) and ``"holistic"`` (phi); ``None`` for
            both, as the paper does. One that is neither trained nor loaded leaves the formula. With few and small
            auxiliary categories phi alone, with ``sort_patches``, is what helps on others.
        image_branch (str): How psi and eta come about: ``"trained"`` by labels, as in the papers, or ``"distance"``:
            set when training begins, to say how far an image lies from its references, in units of how far the
            training categories lie apart (:mod:`anomalib_inctrl.embedding_distance`). What labels of few or of drawn
            categories say about that distance need not hold on others. Left as they are if ``weights`` bring them.
        learning_rate (float): Of Adam, in training.
        feature_cache (str | Path | None): Folder in which training keeps the backbone's features, so that an image is
            encoded once; ``None`` encodes it in every step.
        double_sigmoid (bool): Train with the second sigmoid that the published code of InCTRL puts on probabilities.
        rotate_embeddings (bool): Turn the image embeddings by a random rotation in every training step before the image
            branch sees them, so that it learns how far an image lies from its references and not in which direction:
            what directions mean on auxiliary categories need not hold on others. Ours; the papers do not.
        stretch_embeddings (float): Stretch the image embeddings of every episode by a random factor from 1 to this, in
            training, before the image branch sees them: normal images of other categories can lie farther apart than
            those of auxiliary ones. 1 for none. Ours; the papers do not.
        scatter_embeddings (float): Move the image embeddings of a query and of its references, each in a direction of
            its own, by up to this share of their lengths, in training: normal images of other categories can differ in
            more ways than those of auxiliary ones. 0 for none. Ours; the papers do not.
        decay_learning_rate (bool): Let the learning rate fall to 0 along a line over the whole training. Ours; the
            published code keeps it.
        sort_patches (bool): Train phi on residuals in descending order instead of by place, so that what it learns of
            large and of many residuals holds for things of any shape. Loaded weights bring their own. Ours.
        reference_views (str | None): Views of the references whose patches join theirs: ``"shifted"`` by half a patch
            each way, ``"turned"`` by quarter turns and mirrored, for products in any orientation, or ``"none"``.
            ``None`` takes ``"shifted"`` for ``"inctrl-tiny"`` and else none, as the papers do. Training compares with
            the references alone.
        residual_smoothing (float | None): Share of the mean over 3 x 3 neighbours in every patch residual, 0 to 1, so
            that a single patch counts less than several. ``None`` takes 0.5 for ``"inctrl-tiny"`` and else 0, as the
            papers do.
        geometry (str): ``"crop"`` resizes the shorter side and crops the centre, as the papers do; ``"squash"`` resizes
            both sides, so that the ends of long images are seen, distorted.
        calibration (str): Where threshold and score range come from: ``"validation"`` data, or the normal
            ``"references"`` alone.
        pre_processor (nn.Module | bool): Own preprocessing, or whether to have the default.
        post_processor (nn.Module | bool): Own post-processing, or whether to have the default.
        evaluator (Evaluator | bool): Own metrics, or whether to have the default.
        visualizer (Visualizer | bool): Own pictures, or whether to have the default.

    Raises:
        ValueError: If an option is out of range, or backbone and weights do not fit.
        RuntimeError: If the backbone's weights can't be downloaded.
        FileNotFoundError: If a file of weights does not exist.

    Example:
        >>> from anomalib_inctrl import InCTRL
        >>> model = InCTRL(backbone="inctrl-tiny", k_shot=2)
        >>> model.learning_type
        <LearningType.FEW_SHOT: 'few_shot'>
    """

    def __init__(
        self,
        backbone: str = "ViT-B-16-plus-240",
        pretrained: str | Path | None = "laion400m_e32",
        class_name: str | None = None,
        k_shot: int = 4,
        reference_seed: int = 0,
        few_shot_source: str | Path | None = None,
        phase: Phase = "few_shot",
        weights: str | Path | None = None,
        blocks: list[int] | None = None,
        alpha: float = 0.5,
        branches: list[str] | None = None,
        image_branch: ImageBranch = "trained",
        learning_rate: float = 1e-3,
        feature_cache: str | Path | None = None,
        double_sigmoid: bool = False,
        rotate_embeddings: bool = False,
        stretch_embeddings: float = 1.0,
        scatter_embeddings: float = 0.0,
        decay_learning_rate: bool = False,
        sort_patches: bool = False,
        reference_views: ReferenceViews | None = None,
        residual_smoothing: float | None = None,
        geometry: Geometry = "crop",
        calibration: Calibration = "validation",
        pre_processor: nn.Module | bool = True,
        post_processor: nn.Module | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        self._set_options(
            backbone=backbone,
            pretrained=pretrained,
            class_name=class_name,
            k_shot=k_shot,
            reference_seed=reference_seed,
            few_shot_source=few_shot_source,
            phase=phase,
            geometry=geometry,
            calibration=calibration,
            image_branch=image_branch,
            learning_rate=learning_rate,
            feature_cache=feature_cache,
            double_sigmoid=double_sigmoid,
            rotate_embeddings=rotate_embeddings,
            stretch_embeddings=stretch_embeddings,
            scatter_embeddings=scatter_embeddings,
            decay_learning_rate=decay_learning_rate,
        )
        self._trained_branches = list(InCTRLModel.BRANCHES) if branches is None else branches
        if not self._trained_branches or not set(self._trained_branches) <= InCTRLModel.BRANCHES.keys():
            msg = f"branches={branches}: take some of {list(InCTRLModel.BRANCHES)}."
            raise ValueError(msg)
        super().__init__(
            pre_processor=pre_processor,
            post_processor=post_processor,
            evaluator=evaluator,
            visualizer=visualizer,
        )
        self.model = InCTRLModel(
            ClipBackbone(backbone, pretrained, blocks),
            alpha=alpha,
            reference_views=reference_views,
            residual_smoothing=residual_smoothing,
            sort_patches=sort_patches,
        )
        self._finish(weights)

    model: InCTRLModel

    def loss_terms(self, batch: EpisodeBatch) -> dict[str, Tensor]:
        """Focal losses of the score and of the image-level score (equation 9)."""
        explanation = self.model.score(*self._encode(batch), self._draw_distortion(batch))
        options = {"double_sigmoid": self.double_sigmoid}
        terms = {"score": focal_loss(explanation.score, batch.gt_label, **options)}
        if "image" in self._trained_branches:
            image_score = cast("Tensor", explanation.image_score)
            terms["image_score"] = focal_loss(image_score, batch.gt_label, **options)
        return terms
