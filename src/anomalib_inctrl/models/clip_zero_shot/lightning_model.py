"""The CLIP zero-shot baseline for the framework."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.visualization import Visualizer
from torch import Tensor, nn

from anomalib_inctrl.clip import ClipBackbone
from anomalib_inctrl.in_context_mixin import InContextMixin
from anomalib_inctrl.models.clip_zero_shot.torch_model import ClipZeroShotModel
from anomalib_inctrl.pre_processing import Geometry


class ClipZeroShot(InContextMixin, AnomalibModule):
    """CLIP zero-shot: whole images against WinCLIP's normal and anomalous prompts, without references or training.

    The baseline that few-shot methods have to beat, called "Baseline (0-shot)" in InCTRL's table. Its map compares
    patches with the same prompts; see :class:`TextOnlyModel` for how far to trust it.

    Args:
        backbone (str): open_clip architecture with a plain vision transformer, or ``"inctrl-tiny"``, the small one
            that comes with the package and needs no download.
        pretrained (str | Path | None): open_clip tag or local file of weights; ``None`` for random weights, for tests.
            Ignored by ``"inctrl-tiny"``.
        class_name (str | None): What the images show, for the text prompts. ``None`` takes the data module's category,
            or else ``"object"``.
        scale (float): Factor on the cosine similarities before the softmax; 100 is CLIP's.
        geometry (str): ``"crop"`` resizes the shorter side and crops the centre, as the papers do; ``"squash"`` resizes
            both sides, so that the ends of long images are seen, distorted.
        pre_processor (nn.Module | bool): Own preprocessing, or whether to have the default.
        post_processor (nn.Module | bool): Own post-processing, or whether to have the default.
        evaluator (Evaluator | bool): Own metrics, or whether to have the default.
        visualizer (Visualizer | bool): Own pictures, or whether to have the default.

    Raises:
        ValueError: If an option is out of range.
        RuntimeError: If the backbone's weights can't be downloaded.
        FileNotFoundError: If a file of weights does not exist.

    Example:
        >>> from anomalib_inctrl import ClipZeroShot
        >>> ClipZeroShot(backbone="inctrl-tiny").learning_type
        <LearningType.ZERO_SHOT: 'zero_shot'>
    """

    def __init__(
        self,
        backbone: str = "ViT-B-16-plus-240",
        pretrained: str | Path | None = "laion400m_e32",
        class_name: str | None = None,
        scale: float = 100.0,
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
            phase="few_shot",
            geometry=geometry,
            calibration="validation",
            learning_rate=0.0,
            feature_cache=None,
            double_sigmoid=False,
        )
        self._trained_branches = []
        super().__init__(
            pre_processor=pre_processor,
            post_processor=post_processor,
            evaluator=evaluator,
            visualizer=visualizer,
        )
        self.model = ClipZeroShotModel(ClipBackbone(backbone, pretrained), scale=scale)
        self._finish(None)

    model: ClipZeroShotModel

    def loss_terms(self, batch: Any) -> dict[str, Tensor]:
        """Refuse: there is nothing to train.

        Raises:
            TypeError: Always.
        """
        msg = "ClipZeroShot has nothing to train: validate, test or predict with it; CoOp learns its prompts."
        raise TypeError(msg)

    def _say_training_free(self) -> None:
        """Say nothing, as it has no other way to run."""
