"""anomalib's WinCLIP for the framework, with its references put right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from anomalib.metrics import Evaluator
from anomalib.models import WinClip
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import Visualizer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from anomalib_inctrl.clip import image_convention
from anomalib_inctrl.models.win_clip.torch_model import AnyBackboneWinClipModel
from anomalib_inctrl.pre_processing import ClipPreProcessor
from anomalib_inctrl.reference_images import from_source


class CorrectedWinClip(WinClip):
    """WinCLIP of anomalib 2.7 with normalised references, a working ``few_shot_source``, and a choice of backbone.

    As released, anomalib 2.7 compares normalised queries with references that are not, and its ``few_shot_source``
    ends in an ``AttributeError``. Everything else is anomalib's own.

    Args:
        class_name (str | None): What the images show, for the prompts. ``None`` takes the data module's category.
        k_shot (int): Number of references; 0 scores by text alone.
        scales (tuple[int, ...]): Sides of the sliding windows, in patches.
        few_shot_source (str | Path | None): Folder or image of references. ``None`` takes the first images of the
            training split's loader.
        backbone (str): open_clip model with a plain vision transformer, or ``"inctrl-tiny"``.
        pretrained (str | Path | None): Its weights: open_clip tag or local file; ``None`` for random ones. Ignored by
            ``"inctrl-tiny"``.
        normalise_references (bool): Normalise references as queries are. ``False`` leaves them as anomalib 2.7 does.
        pre_processor (nn.Module | bool): Own preprocessing, or whether to have the default.
        post_processor (nn.Module | bool): Own post-processing, or whether to have the default.
        evaluator (Evaluator | bool): Own metrics, or whether to have the default.
        visualizer (Visualizer | bool): Own pictures, or whether to have the default.
    """

    def __init__(
        self,
        class_name: str | None = None,
        k_shot: int = 0,
        scales: tuple[int, ...] = (2, 3),
        few_shot_source: str | Path | None = None,
        backbone: str = "ViT-B-16-plus-240",
        pretrained: str | Path | None = "laion400m_e31",
        normalise_references: bool = True,
        pre_processor: nn.Module | bool = True,
        post_processor: nn.Module | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        self._convention = image_convention(backbone, pretrained)
        # WinClip's own constructor would load its backbone first.
        super(WinClip, self).__init__(pre_processor, post_processor, evaluator, visualizer)
        self.model = AnyBackboneWinClipModel(backbone, pretrained, tuple(scales))
        self.class_name = class_name
        self.k_shot = k_shot
        self.few_shot_source = Path(few_shot_source) if few_shot_source else None
        self.normalise_references = normalise_references
        self.is_setup = False

    def configure_pre_processor(self, image_size: tuple[int, int] | None = None) -> PreProcessor:
        """Build the preprocessing of the backbone, both sides resized.

        Raises:
            ValueError: If another size is asked for than the backbone's.
        """
        if image_size is not None and tuple(image_size) != self._convention.size:
            msg = f"The backbone takes images of {self._convention.size}, not {tuple(image_size)}."
            raise ValueError(msg)
        return ClipPreProcessor(self._convention, "squash")

    def setup(self, stage: str) -> None:
        """Collect text prototypes and references, once."""
        if self.is_setup or not (self.k_shot and self.few_shot_source):
            super().setup(stage)
            return
        self.class_name = self._get_class_name()
        references = from_source(self.few_shot_source, self.k_shot, seed=0, transform=self._transform)
        model: Any = self.model
        model.setup(self.class_name, references.images)
        self.is_setup = True

    def collect_reference_images(self, dataloader: DataLoader) -> Tensor:
        """Take the first images of a loader, ``(K, 3, H, W)``, resized by it and normalised here."""
        images = super().collect_reference_images(dataloader)
        return self._transform(images) if self.normalise_references else images

    def _transform(self, image: Tensor) -> Tensor:
        transform = getattr(self.pre_processor, "transform", None)
        return image if transform is None else torch.as_tensor(transform(image))
