"""Batches for the pre-training: groups of normal and anomalous pictures of freshly drawn categories."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the customary name
from torch.utils.data import Dataset, Sampler

from anomalib_inctrl.data.procedural import OTHER, Category, name_colour
from anomalib_inctrl.pretraining.schedule import Phase, phase_at
from anomalib_inctrl.prompts import prompt_ensemble

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_UNKNOWN_WORD = 0.3  # how often a category goes by a word that says nothing
_SENTENCES = 1  # for each state of a category, at every step
_ATTEMPTS = 5  # at drawing a group
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


_Group: TypeAlias = "tuple[np.ndarray, np.ndarray, tuple[str, str], list[str]]"  # images, masks, captions, states


class Groups(NamedTuple):
    """One step's batch: ``G`` categories with ``M`` pictures each, the normal ones first.

    Attributes:
        images (Tensor): ``(G, M, 3, H, W)``, ``uint8``.
        coverage (Tensor): ``(G, M, N)``, share of every patch that is anomalous; ``nan`` where nobody can tell.
        labels (Tensor): ``(G, M)``, ``bool``.
        captions (list[str]): One for the first and one for the last picture of every group, ``2 * G`` in this order.
        states (list[str]): Sentences on the normal, then the anomalous state; ``2 * sentences`` for every group.
    """

    images: Tensor
    coverage: Tensor
    labels: Tensor
    captions: list[str]
    states: list[str]


class GroupDataset(Dataset[Groups]):
    """Batches by number; number and seed decide what is in them, so a run resumes anywhere.

    Args:
        steps (int): Number of batches, which the phases of the schedule are scaled to.
        seed (int): Seed of everything drawn.
        side (int): Height and width of the pictures in pixels.
        patch (int): Side of a patch in pixels.
        groups (int): Categories in a batch, ``G``.
        normals (int): Normal pictures of each.
        anomalies (int): Anomalous pictures of each.
    """

    def __init__(
        self,
        steps: int,
        seed: int = 0,
        side: int = 112,
        patch: int = 8,
        groups: int = 8,
        normals: int = 4,
        anomalies: int = 4,
    ) -> None:
        self.steps, self.seed, self.side, self.patch = steps, seed, side, patch
        self.groups, self.normals, self.anomalies = groups, normals, anomalies

    def __len__(self) -> int:
        """Count the batches."""
        return self.steps

    def __getitem__(self, step: int) -> Groups:
        """Draw a batch."""
        if not 0 <= step < self.steps:
            raise IndexError(step)
        phase = phase_at(step, self.steps)
        if np.random.default_rng((self.seed, step)).random() < phase.alike:
            phase = phase._replace(siblings=1.0)
        categories: list[Category] = []
        parts = []
        for index in range(self.groups):
            generator = np.random.default_rng((self.seed, step, index))
            category, part = self._draw_group(generator, phase, categories[-1] if categories else None)
            categories.append(category)
            parts.append(part)
        images, masks, captions, states = zip(*parts, strict=True)
        labels = torch.arange(self.normals + self.anomalies) >= self.normals
        pixels = torch.from_numpy(np.stack(images))
        return Groups(
            images=pixels.permute(0, 1, 4, 2, 3).contiguous(),
            coverage=F.avg_pool2d(torch.from_numpy(np.stack(masks)), self.patch).flatten(2),
            labels=labels.expand(self.groups, -1),
            captions=[c for pair in captions for c in pair],
            states=[s for sentences in states for s in sentences],
        )

    def _draw_group(
        self,
        generator: np.random.Generator,
        phase: Phase,
        previous: Category | None,
    ) -> tuple[Category, _Group]:
        """Draw a category and its group; one on which no damage shows gives way to another."""
        for attempt in range(_ATTEMPTS):
            category = self._draw_category(generator, phase, previous)
            try:
                return category, self._draw_pictures(generator, category)
            except RuntimeError:
                if attempt == _ATTEMPTS - 1:
                    raise
        raise AssertionError

    @staticmethod
    def _draw_category(generator: np.random.Generator, phase: Phase, previous: Category | None) -> Category:
        if previous is None or generator.random() > phase.siblings:
            return Category.sample(generator, kinds=phase.kinds)
        return Category(previous.family.sibling(generator), previous.camera)

    def _draw_pictures(self, generator: np.random.Generator, category: Category) -> _Group:
        kinds = [category.draw_kind(generator) for _ in range(self.anomalies)]
        normal = category.draw_normal(generator, self.normals, self.side)
        anomalous = category.draw_anomalous(generator, kinds, self.side)
        masks = np.zeros((self.normals + self.anomalies, self.side, self.side), dtype=np.float32)
        masks[self.normals :] = anomalous.masks
        masks[self.normals :][[kind == OTHER for kind in anomalous.kinds]] = np.nan
        images = np.concatenate([normal, anomalous.images])
        noun = str(generator.choice(category.family.NOUNS))
        captions = [str(generator.choice(ensemble)) for ensemble in prompt_ensemble(f"{name_colour(normal)} {noun}")]
        word = self._draw_word(generator) if generator.random() < _UNKNOWN_WORD else noun
        states = [
            str(sentence)
            for ensemble in prompt_ensemble(word)
            for sentence in generator.choice(ensemble, size=_SENTENCES)
        ]
        return images, masks, (captions[0], captions[1]), states

    @staticmethod
    def _draw_word(generator: np.random.Generator) -> str:
        return (
            "object"
            if generator.random() < 0.3
            else "".join(generator.choice(list(_LETTERS), generator.integers(3, 9)))
        )


class StepSampler(Sampler[int]):
    """Goes through the batches once, so many in an epoch, and goes on where a run was broken off.

    Args:
        steps (int): Steps of an epoch.
        done (Callable[[], int]): Tells how many steps the run has behind it.
        processes (int): Processes that train together; each takes a batch of its own in every step.
        rank (int): Which of them this is.
    """

    def __init__(self, steps: int, done: Callable[[], int], processes: int = 1, rank: int = 0) -> None:
        self.steps, self.done, self.processes, self.rank = steps, done, processes, rank

    def __len__(self) -> int:
        """Count the steps of an epoch."""
        return self.steps

    def __iter__(self) -> Iterator[int]:
        """Go through this process's batches of the epoch."""
        first = self.done()
        return iter(step * self.processes + self.rank for step in range(first, first + self.steps))
