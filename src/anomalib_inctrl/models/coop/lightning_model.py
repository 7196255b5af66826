"""CoOp for the framework: learns its context on auxiliary data, then scores any class."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.visualization import Visualizer
from torch import Tensor, nn

from anomalib_inctrl.clip import ClipBackbone, ImageFeatures
from anomalib_inctrl.data.episodes import EpisodeBatch
from anomalib_inctrl.in_context_mixin import InContextMixin, Phase
from anomalib_inctrl.models.coop.torch_model import CoOpModel
from anomalib_inctrl.pre_processing import Geometry
from anomalib_inctrl.text_only import TextExplanation

logger = logging.getLogger(__name__)


class CoOp(InContextMixin, AnomalibModule):
    """CoOp: learned normal and abnormal prompts against whole images.

    arXiv 2109.01134, a baseline of InCTRL's table. The context is learned on labelled auxiliary data
    (``phase="train"``, :class:`AuxiliaryData`); a target then takes neither training nor references. Its map compares
    patches with the same prompts; see :class:`TextOnlyModel` for how far to trust it.

    Args:
        backbone (str): open_clip architecture with plain transformers, or ``"inctrl-tiny"``, the small one that comes
            with the package and needs no download.
        pretrained (str | Path | None): open_clip tag or local file of weights; ``None`` for random weights, for tests.
            Ignored by ``"inctrl-tiny"``.
        class_name (str | None): What the images show, for the text prompts. ``None`` takes the data module's category,
            or else ``"object"``.
        phase (str): ``"few_shot"`` runs on a target. ``"train"`` learns the context on :class:`AuxiliaryData`.
        weights (str | Path | None): Learned context: a checkpoint or heads file of this model; ``"random"`` for an
            unlearned one, for tests. ``None`` begins the prompts with fixed words.
        n_context (int): Number of context vectors.
        context_per_state (bool): Whether normal and abnormal prompts have a context of their own.
        scale (float): Factor on the cosine similarities before the softmax; 100 is CLIP's.
        learning_rate (float): Of Adam, in training.
        feature_cache (str | Path | None): Folder in which training keeps the backbone's features, so that an image is
            encoded once; ``None`` encodes it in every step.
        geometry (str): ``"crop"`` resizes the shorter side and crops the centre, as the papers do; ``"squash"`` resizes
            both sides, so that the ends of long images are seen, distorted.
        pre_processor (nn.Module | bool): Own preprocessing, or whether to have the default.
        post_processor (nn.Module | bool): Own post-processing, or whether to have the default.
        evaluator (Evaluator | bool): Own metrics, or whether to have the default.
        visualizer (Visualizer | bool): Own pictures, or whether to have the default.

    Raises:
        ValueError: If an option is out of range, or the backbone's text tower is of another kind.
        RuntimeError: If the backbone's weights can't be downloaded.
        FileNotFoundError: If a file of weights does not exist.

    Example:
        >>> from anomalib_inctrl import CoOp
        >>> CoOp(backbone="inctrl-tiny", phase="train").learning_type
        <LearningType.ONE_CLASS: 'one_class'>
    """

    def __init__(
        self,
        backbone: str = "ViT-B-16-plus-240",
        pretrained: str | Path | None = "laion400m_e32",
        class_name: str | None = None,
        phase: Phase = "few_shot",
        weights: str | Path | None = None,
        n_context: int = 16,
        context_per_state: bool = False,
        scale: float = 100.0,
        learning_rate: float = 2e-3,
        feature_cache: str | Path | None = None,
        geometry: Geometry = "crop",
        pre_processor: nn.Module | bool = True,
        post_processor: nn.Module | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        self._set_options(
            backbone=backbone,
            pretrained=pretrained,
            class_name=class_name,
            k_shot=0,
            reference_seed=0,
            few_shot_source=None,
            phase=phase,
            geometry=geometry,
            calibration="validation",
            learning_rate=learning_rate,
            feature_cache=feature_cache,
            double_sigmoid=False,
        )
        self._trained_branches = list(CoOpModel.BRANCHES)
        super().__init__(
            pre_processor=pre_processor,
            post_processor=post_processor,
            evaluator=evaluator,
            visualizer=visualizer,
        )
        self.model = CoOpModel(
            ClipBackbone(backbone, pretrained),
            n_context=n_context,
            context_per_state=context_per_state,
            scale=scale,
        )
        self._finish(weights)

    model: CoOpModel

    def loss_terms(self, batch: EpisodeBatch) -> dict[str, Tensor]:
        """Cross-entropy of the queries; their references play no part."""
        query = self._encode_queries(batch)
        return {"prompt": self.model.loss(query, self.model.prototypes_of(batch.class_name), batch.gt_label)}

    def explain_episodes(self, batch: EpisodeBatch) -> TextExplanation:
        """Score the queries by text."""
        return self.model.score_by_text(self._encode_queries(batch), self.model.prototypes_of(batch.class_name))

    def _encode_queries(self, batch: EpisodeBatch) -> ImageFeatures:
        if batch.images is None:
            return ImageFeatures(batch.patches, batch.pooled.to(self.model.prompt_learners[0].context))
        return self.model.backbone.encode_image(batch.images)

    @staticmethod
    def _category_metrics(batches: list[Any]) -> list[Any]:
        """Image AUROC alone: in training there is no map."""
        return InContextMixin._category_metrics(batches)[:1]

    def _say_training_free(self) -> None:
        logger.warning("CoOp has learned no context: its prompts begin with fixed words. Train it by phase='train'.")
