"""The pre-training job of the embedded backbone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from anomalib_inctrl.clip import EMBEDDED_TRUNK, ClipBackbone
from anomalib_inctrl.pretraining.descriptor import describe
from anomalib_inctrl.pretraining.initialization import initialize
from anomalib_inctrl.pretraining.objective import Encoded, PretrainingObjective
from anomalib_inctrl.pretraining.optimization import adamw
from anomalib_inctrl.pretraining.schedule import phase_at, rate_at

if TYPE_CHECKING:
    from anomalib_inctrl.pretraining.groups import Groups


class Pretraining(LightningModule):
    """Trains both towers of the trunk, what the embedded backbone grows from, from informed random weights.

    Args:
        steps (int): Number of optimiser steps, which the schedule is scaled to.
        seed (int): Seed of the first weights.
        learning_rate (float): The highest one.
        weight_decay (float): Of the weight matrices.
        weights (dict[str, float] | None): Factors of the objective's terms.
    """

    def __init__(
        self,
        steps: int,
        seed: int = 0,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.05,
        weights: dict[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.backbone = ClipBackbone(EMBEDDED_TRUNK)
        initialize(self.backbone, torch.Generator().manual_seed(seed))
        self.backbone.requires_grad_(requires_grad=True)
        self.backbone.text.model.logit_scale.requires_grad_(requires_grad=False)  # the objective has its own
        self.objective = PretrainingObjective(weights)

    def encode(self, batch: Groups) -> Encoded:
        """Run both towers over a batch of groups."""
        groups, members = batch.labels.shape
        pictures = self.backbone.from_pictures(batch.images.flatten(0, 1))
        # The fused attention of CPUs is slower in bfloat16 than products and softmax one by one.
        with sdpa_kernel(SDPBackend.MATH):
            features = self.backbone.encode_aligned(pictures)
        with torch.autocast(self.device.type, enabled=False), torch.no_grad():
            descriptors = describe(pictures, self.backbone.image_size[0] // self.backbone.grid_size[0])
        sentences = self.backbone.encode_sentences([*batch.captions, *batch.states])
        captions, states = sentences[: 2 * groups], sentences[2 * groups :]
        prototypes = states.unflatten(0, (groups, 2, -1)).mean(dim=2)
        return Encoded(
            patches=features.patches.unflatten(0, (groups, members)),
            pooled=features.pooled.unflatten(0, (groups, members)),
            aligned=features.aligned.unflatten(0, (groups, members)),
            captions=captions,
            prototypes=torch.nn.functional.normalize(prototypes, dim=-1),
            descriptors=descriptors.unflatten(0, (groups, members)),
        )

    def training_step(self, batch: Groups, batch_idx: int) -> Tensor:
        """Compute and log the terms of the objective."""
        del batch_idx
        # The draws of a step depend on nothing before it, so that a resumed run makes the same ones.
        torch.manual_seed(hash((self.hparams["seed"], self.global_step, self.global_rank)))
        encoded = Encoded(*(features.float() for features in self.encode(batch)))
        with torch.autocast(self.device.type, enabled=False):
            factors = phase_at(self.global_step, self.hparams["steps"]).factors
            terms = self.objective(encoded, batch.coverage, batch.labels, factors)
        self.log_dict(terms, prog_bar=True, batch_size=1)
        return terms["loss"]

    def configure_optimizers(self) -> Any:
        """AdamW without decay on vectors, cycles of warm-up and cosine."""
        return adamw(self, self.hparams["learning_rate"], self.hparams["weight_decay"], self._rate)

    def _rate(self, step: int) -> float:
        return rate_at(step, self.hparams["steps"])
