"""DevPrompt for the framework: learns its context in ``fit``, gives image scores and pixel maps."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from anomalib import LearningType
from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.visualization import Visualizer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from anomalib_inctrl.clip import ClipBackbone, PatchAttention
from anomalib_inctrl.in_context_mixin import InContextMixin
from anomalib_inctrl.models.dev_prompt.synthesis import draw_anomalies
from anomalib_inctrl.models.dev_prompt.torch_model import DevPromptModel, PatchScoring, Reference, require_positive
from anomalib_inctrl.post_processing import Calibration
from anomalib_inctrl.pre_processing import Geometry
from anomalib_inctrl.prompts import ANOMALOUS_SUFFIXES, NORMAL_SUFFIXES
from anomalib_inctrl.reference_views import ReferenceViews
from anomalib_inctrl.scoring import Fusion

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anomalib.data import AnomalibDataModule

    from anomalib_inctrl.models.dev_prompt.torch_model import TrainingFeatures
    from anomalib_inctrl.reference_images import ReferenceImages

logger = logging.getLogger(__name__)


@dataclass
class Step:
    """A training batch: nothing but the right to take a step, since all features are at hand.

    The images and masks that the framework's preprocessing looks for are not there.
    """

    image: None = None
    gt_mask: None = None

    def __len__(self) -> int:
        """Count as one sample."""
        return 1


class DevPrompt(InContextMixin, AnomalibModule):
    """DevPrompt: deviation-guided prompt learning from a few normal images of one class.

    arXiv 2601.15453. Learns the context of its text prompts, and nothing else, on ``k_shot`` normal images and on
    synthetic anomalies drawn on them; in ``fit``, with the images encoded once, in minutes on a CPU. Its authors have
    published no code; what is ours by choice says so in :class:`DevPromptModel`.

    Args:
        backbone (str): open_clip architecture with plain transformers, or ``"inctrl-tiny"``, the small one that comes
            with the package and needs no download.
        pretrained (str | Path | None): open_clip tag or local file of weights; ``None`` for random weights, for tests.
            Ignored by ``"inctrl-tiny"``.
        class_name (str | None): What the images show, for the text prompts. ``None`` takes the data module's category,
            or else ``"object"``.
        k_shot (int): Number of normal images to learn from, at least one.
        reference_seed (int): Seed of the draw of normal images, and of what is drawn in training.
        few_shot_source (str | Path | None): Where normal images come from: a folder, an image, or a ``.pt`` list of
            preprocessed tensors. ``None`` draws them from the training split of the data module.
        phase (str): Only ``"few_shot"``: the model learns on its target, not on auxiliary data.
        blocks (list[int] | None): Blocks of the vision tower whose patches are compared, 0-based. ``None`` takes
            those the papers take: 6, 8, 10 of 12, and the same fractions of other depths.
        learnable_context (bool): Whether to learn the context; without, prompts begin with fixed words and nothing is
            trained. An ablation of the paper.
        n_context (int): Number of context vectors.
        normal_suffixes (list[str] | None): What follows the context in normal prompts, ``{}`` for the class. ``None``
            for a generic list.
        anomalous_suffixes (list[str] | None): What follows the context in anomalous prompts, ``{}`` for the class.
            ``None`` for a generic list.
        patch_attention (str): How patches get into the joint space: ``"self"`` lets each attend to itself alone in the
            last block, ``"all"`` takes the last block's own output.
        patch_scoring (str): A patch's score: ``"margin"``, the log-odds of the anomalous prompts, or their
            ``"probability"``.
        patch_scale (float): Factor on the similarity of patches and text; CLIP's.
        deviation_loss (bool): Whether to train with the deviation loss. An ablation of the paper.
        deviation_weight (float): Weight of the deviation loss, the paper's lambda.
        margin (float): Standard deviations that anomalies are to lie above normal images, the paper's a.
        top_k (float): Share of an image's patches that make its score, the paper's Top-K.
        train_reference (str): What training scores deviate from: ``"prior"``, draws from a standard normal
            distribution, or ``"normals"``, the normal images' own patches.
        test_reference (str): What test scores deviate from: ``"normals"`` or ``"prior"``.
        softness (float): Standard deviations to a unit of the sigmoid that brings deviations to 0 to 1; ours by choice.
        fusion (str): How text deviation and visual memory make the map: ``"harmonic"`` mean, ``"mean"``, ``"max"``, or
            one alone, ``"text"`` or ``"visual"``.
        alpha (float): Weight of the patches in the image score, 0 to 1; the rest has the image-level text score.
        steps (int): Gradient steps.
        learning_rate (float): Of Adam.
        synthetic_images (int): Synthetic anomalies to draw, once.
        batch_size (int): How many of them a step takes; it takes all normal images.
        reference_views (str | None): Views of the references whose patches join theirs: ``"shifted"`` by half a patch
            each way, ``"turned"`` by quarter turns and mirrored, for products in any orientation, or ``"none"``.
            ``None`` takes ``"shifted"`` for ``"inctrl-tiny"`` and else none, as the papers do. Training compares with
            the references alone.
        residual_smoothing (float | None): Share of the mean over 3 x 3 neighbours in every patch residual, 0 to 1, so
            that a single patch counts less than several. ``None`` takes 0.5 for ``"inctrl-tiny"`` and else 0, as the
            papers do.
        geometry (str): ``"crop"`` resizes the shorter side and crops the centre; ``"squash"`` resizes both sides, so
            that the ends of long images are seen, distorted.
        calibration (str): Where threshold and score range come from: ``"validation"`` data, or the normal
            ``"references"`` alone.
        pre_processor (nn.Module | bool): Own preprocessing, or whether to have the default.
        post_processor (nn.Module | bool): Own post-processing, or whether to have the default.
        evaluator (Evaluator | bool): Own metrics, or whether to have the default.
        visualizer (Visualizer | bool): Own pictures, or whether to have the default.

    Raises:
        ValueError: If an option is out of range, or the backbone's text tower is of another kind.
        RuntimeError: If the backbone's weights can't be downloaded.
        FileNotFoundError: If a file of weights does not exist.

    Example:
        >>> from anomalib_inctrl import DevPrompt
        >>> model = DevPrompt(backbone="inctrl-tiny", k_shot=1)
        >>> model.learning_type
        <LearningType.ONE_CLASS: 'one_class'>
    """

    def __init__(
        self,
        backbone: str = "ViT-B-16-plus-240",
        pretrained: str | Path | None = "laion400m_e32",
        class_name: str | None = None,
        k_shot: int = 4,
        reference_seed: int = 0,
        few_shot_source: str | Path | None = None,
        phase: Literal["few_shot"] = "few_shot",
        blocks: list[int] | None = None,
        learnable_context: bool = True,
        n_context: int = 12,
        normal_suffixes: list[str] | None = None,
        anomalous_suffixes: list[str] | None = None,
        patch_attention: PatchAttention = "self",
        patch_scoring: PatchScoring = "margin",
        patch_scale: float = 100.0,
        deviation_loss: bool = True,
        deviation_weight: float = 1.0,
        margin: float = 5.0,
        top_k: float = 0.1,
        train_reference: Reference = "prior",
        test_reference: Reference = "normals",
        softness: float = 2.0,
        fusion: Fusion = "harmonic",
        alpha: float = 0.5,
        steps: int = 300,
        learning_rate: float = 2e-3,
        synthetic_images: int = 64,
        batch_size: int = 8,
        reference_views: ReferenceViews | None = None,
        residual_smoothing: float | None = None,
        geometry: Geometry = "crop",
        calibration: Calibration = "validation",
        pre_processor: nn.Module | bool = True,
        post_processor: nn.Module | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        if phase != "few_shot":
            msg = f"phase must be 'few_shot', got {phase!r}: DevPrompt learns on its target, not on auxiliary data."
            raise ValueError(msg)
        if k_shot < 1:
            msg = f"k_shot must be 1 or more, got {k_shot}: DevPrompt learns from normal images."
            raise ValueError(msg)
        require_positive(
            steps=steps, learning_rate=learning_rate, synthetic_images=synthetic_images, batch_size=batch_size
        )
        if deviation_weight < 0:
            msg = f"deviation_weight must be 0 or more, got {deviation_weight}."
            raise ValueError(msg)
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
            learning_rate=learning_rate,
            feature_cache=None,
            double_sigmoid=False,
        )
        self.learnable_context = learnable_context
        self.deviation_weight = deviation_weight if deviation_loss else 0.0
        self.steps, self.synthetic_images, self.batch_size = steps, synthetic_images, batch_size
        self._features: TrainingFeatures | None = None
        self._trained_branches = ["context"]
        super().__init__(
            pre_processor=pre_processor,
            post_processor=post_processor,
            evaluator=evaluator,
            visualizer=visualizer,
        )
        self.model = DevPromptModel(
            ClipBackbone(backbone, pretrained, blocks),
            n_context=n_context,
            normal_suffixes=NORMAL_SUFFIXES if normal_suffixes is None else normal_suffixes,
            anomalous_suffixes=ANOMALOUS_SUFFIXES if anomalous_suffixes is None else anomalous_suffixes,
            patch_attention=patch_attention,
            patch_scoring=patch_scoring,
            patch_scale=patch_scale,
            train_reference=train_reference,
            test_reference=test_reference,
            top_k=top_k,
            margin=margin,
            softness=softness,
            fusion=fusion,
            alpha=alpha,
            reference_views=reference_views,
            residual_smoothing=residual_smoothing,
        )
        self._finish(None)

    model: DevPromptModel

    @property
    def learning_type(self) -> LearningType:
        """One-class (which anomalib calls what it trains); few-shot if there is nothing to learn."""
        return LearningType.ONE_CLASS if self.learnable_context else LearningType.FEW_SHOT

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """There is nothing to check for sanity before the first step."""
        return {"num_sanity_val_steps": 0} if self.learnable_context else {}

    def configure_optimizers(self) -> torch.optim.Optimizer | None:
        """Adam on the context."""
        return self._optimizer() if self.learnable_context else None

    # --------------------------------------------------------------------------------------------------------- runs
    def setup(self, stage: str) -> None:
        """Prepare the run; ``fit`` takes steps on features that are at hand, and reads no images for them."""
        super().setup(stage)
        datamodule = self._datamodule()
        if stage == "fit" and self.learnable_context and datamodule is not None:
            self._lend_loader(datamodule)

    def teardown(self, stage: str) -> None:
        """Give the data module its own loader again."""
        del stage
        datamodule = self._datamodule()
        if datamodule is not None:
            vars(datamodule).pop("train_dataloader", None)

    def _lend_loader(self, datamodule: AnomalibDataModule) -> None:
        """Have the data module give steps to this model until `teardown`, which a run that fails does not reach."""
        own = datamodule.train_dataloader

        def train_dataloader() -> Any:
            for_this_model = getattr(datamodule.trainer, "lightning_module", None) is self
            return DataLoader([Step()] * self.steps, batch_size=None) if for_this_model else own()  # type: ignore[arg-type]

        datamodule.train_dataloader = train_dataloader  # type: ignore[method-assign]

    def on_fit_start(self) -> None:
        """Encode the normal images and the anomalies drawn on them, once."""
        self._said_training_free = True
        self._prepare_references()
        self.model.use_branches(["context"])
        self.model.refresh()
        drawn, _ = draw_anomalies(self.model.references.pictures, self.synthetic_images, self.reference_seed)
        self._features = self.model.training_features(self.model.backbone.from_pictures(drawn.to(self.device)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Take a step on all normal images and some of the synthetic anomalies; what the batch holds is not used."""
        return super().training_step(batch, batch_idx)

    def loss_terms(self, batch: Any) -> dict[str, Tensor]:
        """Prompt loss and weighted deviation loss, by name."""
        del batch
        if self._features is None:
            msg = "Training steps are taken in the trainer's fit, which encodes the images first."
            raise RuntimeError(msg)
        synthetic = self._features.synthetic
        rows = rows_of_step(synthetic.shape[0], self.batch_size, self.reference_seed, self.global_step)
        terms = self.model.losses(self._features._replace(synthetic=synthetic[rows.to(synthetic.device)]))
        weights = {"prompt": 1.0, "deviation": self.deviation_weight}
        return {name: weights[name] * term for name, term in terms.items() if weights[name]}

    def on_train_batch_end(self, *args: Any) -> None:
        """Stop after the last step, however many epochs the trainer would go on for."""
        del args
        if self.global_step >= self.steps:
            self.trainer.should_stop = True

    def on_validation_start(self) -> None:
        """Let scores know what was learned so far; collect references if there are none yet."""
        if self._features is not None:
            self.model.refresh()
        super().on_validation_start()

    def on_train_epoch_end(self) -> None:
        """Let the checkpoint hold what was learned."""
        self.model.refresh()
        self.training_record = {"steps": self.global_step, "deviation_weight": self.deviation_weight}

    def on_fit_end(self) -> None:
        """Let go of the training features."""
        self._features = None

    # --------------------------------------------------------------------------------------------------- references
    def _use(self, references: dict[str, ReferenceImages], datamodule: AnomalibDataModule | None) -> None:
        if len(references) > 1:
            msg = f"A DevPrompt model is of one class, the data is of {sorted(references)}: make a model for each."
            raise ValueError(msg)
        if self.training_record is not None:
            logger.warning("Normal images have changed: the context learned on the previous ones is forgotten.")
            self.training_record = None
            self.model.reset_context()
        super()._use(references, datamodule)

    def _say_training_free(self) -> None:
        logger.warning("DevPrompt has learned no context: its prompts begin with fixed words. Train it by `fit`.")

    # ------------------------------------------------------------------------------------------------------- export
    def to_torch(self, *args: Any, **kwargs: Any) -> Path:
        """Export to a torch file without the text tower; see anomalib."""
        self._prepare_export()
        with _without_text(self.model.backbone):
            return super().to_torch(*args, **kwargs)


def rows_of_step(available: int, batch_size: int, seed: int, step: int) -> Tensor:
    """Draw which of the synthetic anomalies a step takes; seed and step decide, so a run resumes anywhere."""
    generator = torch.Generator().manual_seed(1_000_003 * seed + step)
    return torch.randint(available, (batch_size,), generator=generator)


@contextmanager
def _without_text(backbone: Any) -> Iterator[None]:
    text, backbone.text = backbone.text, nn.Identity()
    try:
        yield
    finally:
        backbone.text = text
