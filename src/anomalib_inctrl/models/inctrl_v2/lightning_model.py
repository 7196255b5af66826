"""InCTRLv2 for the framework: image scores and pixel maps."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.visualization import Visualizer
from torch import Tensor, nn

from anomalib_inctrl.clip import ClipBackbone
from anomalib_inctrl.data.auxiliary import AuxiliaryData
from anomalib_inctrl.data.episodes import EpisodeBatch
from anomalib_inctrl.embedding_distance import ImageBranch
from anomalib_inctrl.in_context_mixin import InContextMixin, Phase
from anomalib_inctrl.losses import dice_loss, focal_loss
from anomalib_inctrl.models.inctrl_v2.torch_model import PATCH_SCALE, InCTRLv2Model
from anomalib_inctrl.post_processing import Calibration
from anomalib_inctrl.pre_processing import Geometry
from anomalib_inctrl.reference_views import ReferenceViews
from anomalib_inctrl.scoring import to_pixels


class InCTRLv2(InContextMixin, AnomalibModule):
    """InCTRLv2: few-shot generalist detection and segmentation with two branches.

    arXiv 2604.04632. A discriminative branch (DASL) and a one-class branch (OASL) give a pixel map beside InCTRL's
    residuals. Its authors have published no code; what is ours by choice says so.

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
        alpha (float): Weight of the largest patch residual in the image score, 0 to 1; the paper has 0.5.
        beta (float): Weight of the one-class map in the pixel map, 0 to 1; the paper has 0.75.
        patch_scale (float): Factor on the similarity of patches and text before the softmax; ours by choice.
            AnomalyCLIP has 1 / 0.07 (arXiv 2310.18961), CLIP 100.
        map_scale (float | None): The factor that S_a has instead where it is not trained. Training drives S_a to 0 and
            1, and in the mean with small residuals it leaves these no say. ``None`` takes 1 for ``"inctrl-tiny"`` and
            else ``patch_scale``.
        adapter_per_block (bool): Whether every tapped block has an adapter of its own; ours by choice.
        branches (list[str] | None): Branches to train: ``"image"``, ``"discriminative"`` (DASL) and ``"one_class"``
            (OASL); ``None`` for all.
        pixel_loss (bool): Whether to train the maps with masks (L_P); without, the discriminative branch is not
            trained.
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
        image_score_loss (bool): Add the focal loss of s_I itself, as InCTRL has it (arXiv 2403.06495, equation 9).
            InCTRLv2 has a loss of the whole score alone. A quarter of that is s_I, so where residuals are small it
            stays below 0.5 whatever s_I is, and that loss drives s_I to 1 for most images.
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
        >>> from anomalib_inctrl import InCTRLv2
        >>> model = InCTRLv2(backbone="inctrl-tiny", k_shot=2)
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
        beta: float = 0.75,
        patch_scale: float = PATCH_SCALE,
        map_scale: float | None = None,
        adapter_per_block: bool = False,
        branches: list[str] | None = None,
        pixel_loss: bool = True,
        image_branch: ImageBranch = "trained",
        learning_rate: float = 1e-3,
        feature_cache: str | Path | None = None,
        double_sigmoid: bool = False,
        rotate_embeddings: bool = False,
        stretch_embeddings: float = 1.0,
        scatter_embeddings: float = 0.0,
        decay_learning_rate: bool = False,
        image_score_loss: bool = False,
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
        self._trained_branches = trained_branches(branches, pixel_loss=pixel_loss)
        if image_score_loss and (image_branch == "distance" or "image" not in self._trained_branches):
            msg = (
                f"image_score_loss needs the image branch to be trained, which branches={branches} with "
                f"image_branch={image_branch!r} leaves out."
            )
            raise ValueError(msg)
        self.pixel_loss = pixel_loss
        self.image_score_loss = image_score_loss
        super().__init__(
            pre_processor=pre_processor,
            post_processor=post_processor,
            evaluator=evaluator,
            visualizer=visualizer,
        )
        self.model = InCTRLv2Model(
            ClipBackbone(backbone, pretrained, blocks),
            alpha=alpha,
            reference_views=reference_views,
            residual_smoothing=residual_smoothing,
            beta=beta,
            patch_scale=patch_scale,
            map_scale=map_scale,
            adapter_per_block=adapter_per_block,
        )
        self._finish(weights)

    model: InCTRLv2Model

    def loss_terms(self, batch: EpisodeBatch) -> dict[str, Tensor]:
        """L_I and L_P on the mixed batch, L_OASL on the normal one, term by term; that of s_I if it is asked for."""
        mixed = frozenset(self._trained_branches) - {"one_class"}
        scale = self.model.discriminative_adapter.scale
        explanation = self.model.score(*self._encode(batch), mixed, self._draw_distortion(batch), scale)
        terms = {}
        if "image" in self._trained_branches:
            terms["image"] = self._focal(explanation.score, batch.gt_label)
            if self.image_score_loss:
                terms["image_score"] = self._focal(cast("Tensor", explanation.image_score), batch.gt_label)
        if "discriminative" in self._trained_branches:
            maps = (explanation.abnormality, explanation.discriminative_map)
            terms |= self._map_terms("pixel", maps, batch.gt_mask)
        if batch.normal is not None:
            maps = self.model.score_one_class(*self._encode(batch.normal))
            terms |= self._map_terms("one_class", maps, batch.normal.gt_mask)
        return terms

    def _map_terms(self, name: str, maps: tuple[Tensor | None, Tensor | None], masks: Tensor) -> dict[str, Tensor]:
        """Focal and Dice of the abnormality, Dice of its mean with the residual, all in pixels."""
        backbone = self.model.backbone
        abnormality, fused = (
            to_pixels(m, backbone.grid_size, backbone.image_size).squeeze(1) for m in maps if m is not None
        )
        return {
            f"{name}_focal": self._focal(abnormality, masks),
            f"{name}_dice": dice_loss(abnormality, masks),
            f"{name}_fused_dice": dice_loss(fused, masks),
        }

    def _focal(self, probabilities: Tensor, targets: Tensor) -> Tensor:
        return focal_loss(probabilities, targets, double_sigmoid=self.double_sigmoid)

    def _wants_normal_stream(self) -> bool:
        return "one_class" in self._trained_branches

    def _check_training_data(self, datamodule: AuxiliaryData) -> None:
        if "discriminative" in self._trained_branches and datamodule.lacks_masks:
            msg = (
                f"The pixel losses need masks, which {datamodule.lacks_masks} lack: leave these out of parts, set "
                "pixel_loss=False, or train InCTRL, which needs none."
            )
            raise ValueError(msg)


def trained_branches(branches: list[str] | None, *, pixel_loss: bool) -> list[str]:
    """Branches that some loss trains: without pixel losses nothing trains the discriminative one.

    Raises:
        ValueError: If a branch does not exist, or none is left.
    """
    wanted = list(InCTRLv2Model.BRANCHES) if branches is None else branches
    unknown = sorted(set(wanted) - InCTRLv2Model.BRANCHES.keys())
    trained = [branch for branch in wanted if pixel_loss or branch != "discriminative"]
    if unknown or not trained:
        msg = f"branches={branches} with pixel_loss={pixel_loss}: take some of {list(InCTRLv2Model.BRANCHES)}" + (
            "; without pixel losses the discriminative branch has nothing to be trained by."
        )
        raise ValueError(msg)
    return trained
