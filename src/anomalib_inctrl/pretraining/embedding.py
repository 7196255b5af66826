"""The second stage of the pre-training: image embeddings that tell members of a family apart."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import Dataset

from anomalib_inctrl.data.procedural import Category
from anomalib_inctrl.pretraining.objective import category_loss, choose_references, prototype_distances
from anomalib_inctrl.pretraining.optimization import adamw
from anomalib_inctrl.pretraining.schedule import cycle_rate

if TYPE_CHECKING:
    from anomalib_inctrl.clip import ClipBackbone

_KINDS = (0.25, 0.25, 0.5)  # shares of surfaces, objects and glyphs among the families


class SiblingDataset(Dataset[Tensor]):
    """Batches by number of normal pictures of categories of one family, in the same light and ink.

    Such categories differ in what they are alone: in which parts there are and where they belong.

    Args:
        steps (int): Number of batches.
        seed (int): Seed of everything drawn.
        side (int): Height and width of the pictures in pixels.
        groups (int): Categories in a batch, ``G``.
        normals (int): Pictures of each, ``R``.
    """

    def __init__(self, steps: int, seed: int = 0, side: int = 112, groups: int = 8, normals: int = 4) -> None:
        self.steps, self.seed, self.side, self.groups, self.normals = steps, seed, side, groups, normals

    def __len__(self) -> int:
        """Count the batches."""
        return self.steps

    def __getitem__(self, step: int) -> Tensor:
        """Draw a batch, ``(G, R, 3, H, W)``, ``uint8``."""
        if not 0 <= step < self.steps:
            raise IndexError(step)
        generator = np.random.default_rng((self.seed, step))
        first = Category.sample(generator, kinds=_KINDS)
        others = [Category(first.family.sibling(generator), first.camera) for _ in range(self.groups - 1)]
        drawn = [category.draw_normal(generator, self.normals, self.side) for category in (first, *others)]
        return torch.from_numpy(np.stack(drawn)).permute(0, 1, 4, 2, 3).contiguous()


class EmbeddingTraining(LightningModule):
    """Trains the blocks after the last one whose patches are compared, and the projection into the joint space.

    All before is frozen, so what residuals tell stays as it is.

    Args:
        backbone (ClipBackbone): Its image tower is trained in place.
        steps (int): Number of optimiser steps.
        seed (int): Seed of the references' draws.
        learning_rate (float): The highest one.
        weight_decay (float): Of the weight matrices.
        scale (float): First factor on the cosines.
    """

    def __init__(
        self,
        backbone: ClipBackbone,
        steps: int,
        seed: int = 0,
        learning_rate: float = 3e-4,
        weight_decay: float = 0.05,
        scale: float = 10.0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore="backbone")
        self.backbone = backbone
        backbone.requires_grad_(requires_grad=False)
        visual = backbone.visual
        for part in (*visual.transformer.resblocks[backbone.blocks[-1] + 1 :], visual.ln_post):
            part.requires_grad_(requires_grad=True)
        visual.proj.requires_grad_(requires_grad=True)
        self.scale = nn.Parameter(torch.tensor(math.log(scale)))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Tell the batch's categories apart by their prototypes."""
        del batch_idx
        torch.manual_seed(hash((self.hparams["seed"], self.global_step, self.global_rank)))
        groups, normals = batch.shape[:2]
        with sdpa_kernel(SDPBackend.MATH):  # see Pretraining
            pooled = self.backbone.encode_image(self.backbone.from_pictures(batch.flatten(0, 1))).pooled
        with torch.autocast(self.device.type, enabled=False):
            pooled = pooled.float().unflatten(0, (groups, normals))
            chosen = choose_references(torch.zeros(groups, normals, dtype=torch.bool), normals)
            loss = category_loss(pooled, prototype_distances(pooled, chosen)[0], self.scale)
        self.log("loss", loss, prog_bar=True, batch_size=1)
        return loss

    def configure_optimizers(self) -> Any:
        """AdamW without decay on vectors, one cycle."""
        options = self.hparams
        return adamw(self, options["learning_rate"], options["weight_decay"], self._rate, faster=[self.scale])

    def _rate(self, step: int) -> float:
        return cycle_rate(step, self.hparams["steps"])
