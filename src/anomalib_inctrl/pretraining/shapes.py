"""The stage of the pre-training that teaches shapes: categories of one family told apart, many at a time."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import Dataset

from anomalib_inctrl.data.procedural import Category
from anomalib_inctrl.data.procedural.glyphs import Handwriting
from anomalib_inctrl.data.procedural.surfaces import SURFACES
from anomalib_inctrl.pretraining.objective import category_loss, choose_references, prototype_distances
from anomalib_inctrl.pretraining.optimization import adamw
from anomalib_inctrl.pretraining.schedule import cycle_rate
from anomalib_inctrl.pretraining.variation import hand_held, patchwork
from anomalib_inctrl.shape_tower import reduce

if TYPE_CHECKING:
    from anomalib_inctrl.clip import ClipBackbone
    from anomalib_inctrl.shape_tower import ShapeTower


_KINDS = (0.35, 0.4, 0.25)  # shares of surfaces, objects and glyphs among the families
_UNRELATED = 0.12  # of the batches, in which categories are of any families
_MOVED = 0.5  # of the batches, whose pictures are taken by hand
_SAME_FAMILY = 0.5  # of the batches of two materials


class ShapeDataset(Dataset[Tensor]):
    """Batches by number of normal pictures of many categories, mostly of one family and in the same light and ink.

    In half of the batches the camera is held by hand: every picture has its own place, size, turn and exposure.

    Args:
        steps (int): Number of batches.
        seed (int): Seed of everything drawn.
        side (int): Height and width of the pictures in pixels.
        groups (int): Categories in a batch, ``G``.
        normals (int): Pictures of each, ``R``.
        handwritten (float): Share of the batches that are handwriting, in which normal pictures differ most from each
            other.
    """

    def __init__(
        self,
        steps: int,
        seed: int = 0,
        side: int = 80,
        groups: int = 16,
        normals: int = 4,
        handwritten: float = 0.4,
    ) -> None:
        self.steps, self.seed, self.side, self.groups, self.normals = steps, seed, side, groups, normals
        self.handwritten = handwritten

    def __len__(self) -> int:
        """Count the batches."""
        return self.steps

    def __getitem__(self, step: int) -> Tensor:
        """Draw a batch, ``(G, R, 3, H, W)``, ``uint8``."""
        if not 0 <= step < self.steps:
            raise IndexError(step)
        generator = np.random.default_rng((self.seed, step))
        kind, moved = generator.random(2)
        pictures = self._draw(generator, kind)
        return hand_held(pictures, generator) if moved < _MOVED else pictures

    def _draw(self, generator: np.random.Generator, kind: float) -> Tensor:
        first = Category.sample(generator, Handwriting if kind < self.handwritten else None, _KINDS)
        return self._draw_relatives(generator, first, unrelated=kind > 1 - _UNRELATED)

    def _draw_relatives(self, generator: np.random.Generator, first: Category, *, unrelated: bool = False) -> Tensor:
        """Draw pictures of a category and of siblings under its camera, or of any others."""
        categories = [first]
        while len(categories) < self.groups:
            other = (
                Category.sample(generator, kinds=_KINDS)
                if unrelated
                else Category(first.family.sibling(generator), first.camera)
            )
            categories.append(other)
        drawn = np.stack([category.draw_normal(generator, self.normals, self.side) for category in categories])
        return torch.from_numpy(drawn).permute(0, 1, 4, 2, 3).contiguous()


class PatchworkDataset(ShapeDataset):
    """Batches of surfaces whose normal pictures differ as photographs do: in places they show a second material.

    That is another of the same family or, in half of the batches, of any; light differs by places as well
    (:func:`patchwork`). Arguments, and how often the camera is held by hand, are those of :class:`ShapeDataset`.
    """

    def _draw(self, generator: np.random.Generator, kind: float) -> Tensor:
        del kind
        first = self._sample_surface(generator)
        ground = self._draw_relatives(generator, first)
        second = first if generator.random() < _SAME_FAMILY else self._sample_surface(generator)
        second = Category(second.family.sibling(generator), first.camera)
        return patchwork(ground, self._draw_relatives(generator, second), generator)

    @staticmethod
    def _sample_surface(generator: np.random.Generator) -> Category:
        return Category.sample(generator, SURFACES[generator.integers(len(SURFACES))])


class ShapeTraining(LightningModule):
    """Trains a branch of the embedded backbone's convolutional tower, on pictures of the size it reduces images to.

    What both branches share is trained with the first alone. Another one begins as a copy of the first.

    Args:
        backbone (ClipBackbone): Its convolutional tower is trained in place.
        steps (int): Number of optimiser steps.
        seed (int): Seed of the references' draws.
        learning_rate (float): The highest one.
        weight_decay (float): Of the weight matrices.
        scale (float): First factor on the cosines.
        branch (int): The branch.
    """

    def __init__(
        self,
        backbone: ClipBackbone,
        steps: int,
        seed: int = 0,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.05,
        scale: float = 10.0,
        branch: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore="backbone")
        self.tower = cast("ShapeTower", backbone.shapes)
        self.tower.requires_grad_(requires_grad=False)  # the projection is solved at the end
        if branch:
            self.branch.load_state_dict(self.tower.branches[0].state_dict())
        else:
            self.tower.stem.requires_grad_(requires_grad=True)
        self.branch.requires_grad_(requires_grad=True)
        self._from_pictures = backbone.from_pictures
        self.scale = nn.Parameter(torch.tensor(math.log(scale)))

    @property
    def branch(self) -> nn.Module:
        """The branch that is trained."""
        return self.tower.branches[self.hparams["branch"]]

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Tell the batch's categories apart by their prototypes."""
        del batch_idx
        torch.manual_seed(hash((self.hparams["seed"], self.global_step, self.global_rank)))
        groups, normals = batch.shape[:2]
        described = self.branch(self.tower.begin(reduce(self._from_pictures(batch.flatten(0, 1)))))
        with torch.autocast(self.device.type, enabled=False):
            described = described.float().unflatten(0, (groups, normals))
            chosen = choose_references(torch.zeros(groups, normals, dtype=torch.bool), normals)
            loss = category_loss(described, prototype_distances(described, chosen)[0], self.scale)
        self.log("loss", loss, prog_bar=True, batch_size=1)
        return loss

    def configure_optimizers(self) -> Any:
        """AdamW without decay on vectors, one cycle."""
        options = self.hparams
        return adamw(self, options["learning_rate"], options["weight_decay"], self._rate, faster=[self.scale])

    def _rate(self, step: int) -> float:
        return cycle_rate(step, self.hparams["steps"])
