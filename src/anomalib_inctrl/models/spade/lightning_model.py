"""SPADE for the framework: remembers the normal images of a data module in one epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from anomalib import LearningType
from anomalib.data import Batch
from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import Visualizer
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torchvision.transforms.v2 import Compose, Normalize, Resize

from anomalib_inctrl.clip import EMBEDDED_BACKBONE, EMBEDDED_TRUNK, ClipBackbone, image_convention
from anomalib_inctrl.evaluation import few_shot_evaluator
from anomalib_inctrl.models.spade.pyramids import ClipPyramid, TimmPyramid
from anomalib_inctrl.models.spade.torch_model import SpadeModel
from anomalib_inctrl.pre_processing import ClipPreProcessor

_SIZE = (256, 256)
_LAYERS, _POOLED_LAYER = ("layer1", "layer2", "layer3"), "layer4"  # a ResNet's


class Spade(AnomalibModule):
    """SPADE: distance to the nearest normal images, map by correspondence with their feature pyramids.

    Cohen & Hoshen, "Sub-Image Anomaly Detection with Deep Pyramid Correspondences", arXiv 2005.02357. Nothing is
    trained: one epoch over the training split remembers its features, so its cost in memory and time grows with that
    split. The paper crops the centre of images; here they are resized as anomalib's PatchCore does.

    Args:
        backbone (str): Network of timm by name; or CLIP's vision tower by open_clip's name, which begins with
            ``"ViT-"``, or ``"inctrl-tiny"``, the small one that comes with the package and needs no download.
        pre_trained (bool): Whether a network of timm has its trained weights; ``False`` for random ones, for tests.
        pretrained (str | Path | None): Weights of a CLIP backbone: open_clip tag or local file; ``None`` for random
            ones. Ignored by ``"inctrl-tiny"`` and by networks of timm.
        layers (list[str | int] | None): Layers of the pyramid, finest first. ``None`` takes the first three stages of a
            ResNet, as the paper does, or the default blocks of a CLIP backbone, whose layers are numbers of blocks.
        pooled_layer (str): Layer of a network of timm whose mean is compared first.
        num_neighbors (int): Nearest normal images, the paper's K; all if there are fewer.
        num_places (int): Nearest places in their pyramids, the paper's kappa.
        sigma (float): Standard deviation in pixels of the Gaussian that smooths the map.
        pre_processor (nn.Module | bool): Own preprocessing, or whether to have the default.
        post_processor (nn.Module | bool): Own post-processing, or whether to have the default.
        evaluator (Evaluator | bool): Own metrics, or whether to have the default.
        visualizer (Visualizer | bool): Own pictures, or whether to have the default.

    Raises:
        ValueError: If a number is not above 0, or the backbone lacks a layer.
        RuntimeError: If the backbone's weights can't be downloaded.

    Example:
        >>> from anomalib_inctrl import Spade
        >>> model = Spade(backbone="inctrl-tiny")
        >>> model.learning_type
        <LearningType.ONE_CLASS: 'one_class'>
    """

    def __init__(
        self,
        backbone: str = "wide_resnet50_2",
        pre_trained: bool = True,
        pretrained: str | Path | None = "laion400m_e32",
        layers: list[str | int] | None = None,
        pooled_layer: str = _POOLED_LAYER,
        num_neighbors: int = 50,
        num_places: int = 1,
        sigma: float = 4.0,
        pre_processor: nn.Module | bool = True,
        post_processor: nn.Module | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        is_clip = backbone in (EMBEDDED_BACKBONE, EMBEDDED_TRUNK) or backbone.startswith("ViT-")
        self._convention = image_convention(backbone, pretrained) if is_clip else None  # super().__init__ reads it
        super().__init__(
            pre_processor=pre_processor,
            post_processor=post_processor,
            evaluator=evaluator,
            visualizer=visualizer,
        )
        extractor: ClipPyramid | TimmPyramid
        if is_clip:
            blocks = None if layers is None else [int(layer) for layer in layers]
            extractor = ClipPyramid(ClipBackbone(backbone, pretrained, blocks))
        else:
            names = _LAYERS if layers is None else [str(layer) for layer in layers]
            extractor = TimmPyramid(backbone, names, pooled_layer, pre_trained=pre_trained)
        self.model = SpadeModel(extractor, num_neighbors, num_places, sigma)

    model: SpadeModel

    def configure_pre_processor(self, image_size: tuple[int, int] | None = None) -> PreProcessor:
        """Resize to the size asked for, by default 256 x 256; a CLIP backbone has its own.

        Raises:
            ValueError: If a CLIP backbone is asked for another size.
        """
        if self._convention is None:
            resize = Resize(image_size or _SIZE, antialias=True)
            return PreProcessor(Compose([resize, Normalize(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)]))
        if image_size is not None and tuple(image_size) != self._convention.size:
            msg = f"The backbone takes images of {self._convention.size}, not {tuple(image_size)}."
            raise ValueError(msg)
        return ClipPreProcessor(self._convention, "squash")

    @staticmethod
    def configure_post_processor() -> PostProcessor:
        """Build the post-processor."""
        return PostProcessor()

    @staticmethod
    def configure_evaluator() -> Evaluator:
        """Build the evaluator."""
        return few_shot_evaluator()

    @property
    def learning_type(self) -> LearningType:
        """One-class: it sees normal images alone."""
        return LearningType.ONE_CLASS

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """One pass over the training split, in one process, before which there is nothing to check."""
        return {"gradient_clip_val": 0, "max_epochs": 1, "num_sanity_val_steps": 0, "devices": 1}

    @staticmethod
    def configure_optimizers() -> None:
        """Have no optimizer: nothing is trained."""

    def on_fit_start(self) -> None:
        """Forget the images of an earlier run."""
        self.model.forget()

    def training_step(self, batch: Batch, *args: Any, **kwargs: Any) -> Tensor:
        """Remember a batch; the loss is there for Lightning alone."""
        del args, kwargs
        self.model.remember(torch.as_tensor(batch.image))
        return torch.tensor(0.0, requires_grad=True, device=self.device)

    def on_validation_start(self) -> None:
        """Put what was remembered to use."""
        self.model.fit()

    def on_train_epoch_end(self) -> None:
        """Put what was remembered to use, if no validation did."""
        self.model.fit()

    def validation_step(self, batch: Batch, *args: Any, **kwargs: Any) -> Batch:
        """Score a batch."""
        del args, kwargs
        return batch.update(**self.model(batch.image)._asdict())
