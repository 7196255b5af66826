"""Episodes: queries with normal references of their own category, balanced, and the same on any number of ranks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class LabelledImage(NamedTuple):
    """One image of the pool.

    Attributes:
        path (str): Image file.
        mask_path (str | None): Mask file, of an anomalous image that has one.
        anomalous (bool): Its label.
        category (str): ``<data module>/<category>``.
        class_name (str): What it shows, for the text prompts.
    """

    path: str
    mask_path: str | None
    anomalous: bool
    category: str
    class_name: str


class Episode(NamedTuple):
    """A query and its references, as positions in the pool."""

    query: int
    references: tuple[int, ...]


class Step(NamedTuple):
    """What one rank does in one training step.

    Attributes:
        mixed (list[Episode]): Half normal, half anomalous queries.
        normal (list[Episode]): Normal queries of the one-class stream; empty if the model has none.
    """

    mixed: list[Episode]
    normal: list[Episode]


@dataclass
class Pool:
    """All images of some categories, and which normal ones may serve as references.

    Attributes:
        images (list[LabelledImage]): Every image.
        references (dict[str, list[int]]): Positions of possible references per category.
    """

    images: list[LabelledImage]
    references: dict[str, list[int]]
    members: dict[tuple[str, bool], list[int]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Group the images by category and label."""
        self.members = {}
        for position, image in enumerate(self.images):
            self.members.setdefault((image.category, image.anomalous), []).append(position)

    @property
    def categories(self) -> list[str]:
        """Categories in alphabetical order."""
        return sorted(self.references)

    def draw_references(self, query: int, count: int, generator: np.random.Generator) -> tuple[int, ...]:
        """Draw references of the query's category, never the query itself.

        Raises:
            ValueError: If there are too few.
        """
        category = self.images[query].category
        candidates = [position for position in self.references[category] if position != query]
        if len(candidates) < count:
            msg = f"{category} has {len(candidates)} references beside the query, K={count} were asked for."
            raise ValueError(msg)
        return tuple(generator.choice(candidates, size=count, replace=False).tolist())


class EpisodeSampler:
    """Plans the steps of an epoch: half normal and half anomalous queries, categories spread evenly, random K per step.

    The plan depends on seed, epoch and global batch size alone. Every rank takes its share of it, so that any number
    of ranks sees the same episodes, and a resumed run those it would have seen.

    Args:
        pool (Pool): Images to draw from.
        steps (int): Steps per epoch.
        batch_size (int): Queries per step over all ranks.
        k_shots (Sequence[int]): Numbers of references to draw from, one for each step.
        seed (int): Of the plan.
        normal_batch_size (int): Normal queries of the one-class stream per step over all ranks; 0 for none.
        rank (int): This process.
        world_size (int): Number of processes.

    Raises:
        ValueError: If a batch can't be halved and shared.
    """

    def __init__(
        self,
        pool: Pool,
        steps: int,
        batch_size: int,
        k_shots: Sequence[int],
        seed: int = 0,
        normal_batch_size: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1 or batch_size % (2 * world_size) or normal_batch_size % world_size:
            msg = (
                f"A batch of {batch_size} can't be shared by {world_size} processes in equal halves of normal and "
                f"anomalous queries (one-class stream: {normal_batch_size}); take a multiple of {2 * world_size}."
            )
            raise ValueError(msg)
        self.pool, self.steps, self.batch_size, self.k_shots = pool, steps, batch_size, tuple(k_shots)
        self.seed, self.normal_batch_size, self.rank, self.world_size = seed, normal_batch_size, rank, world_size
        self.epoch = 0
        self.sampler = self  # Lightning calls `batch_sampler.sampler.set_epoch`

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch to plan next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[Step]]:
        """Yield each step as a list of one, which is what a data loader wants of a batch sampler."""
        generator = np.random.default_rng([self.seed, self.epoch])
        anomalous, normal = (_Rotation(self.pool, label, generator) for label in (True, False))
        half = self.batch_size // 2
        for _ in range(self.steps):
            k_shot = int(generator.choice(self.k_shots))
            queries = (anomalous.take(half), normal.take(half), normal.take(self.normal_batch_size))
            # Drawn for all ranks, then shared, so that the generator's state is the same on each.
            episodes = [
                [Episode(query, self.pool.draw_references(query, k_shot, generator)) for query in group]
                for group in queries
            ]
            mine = [group[self.rank :: self.world_size] for group in episodes]
            yield [Step(mixed=mine[0] + mine[1], normal=mine[2])]


class _Rotation:
    """Endless supply of queries of one label: categories evenly in every take and overall, each shuffled through."""

    def __init__(self, pool: Pool, anomalous: bool, generator: np.random.Generator) -> None:
        members = {category: pool.members.get((category, anomalous), []) for category in pool.categories}
        self.members = {category: positions for category, positions in members.items() if positions}
        self.generator = generator
        self.left: dict[str, list[int]] = {category: [] for category in self.members}
        self.extras = dict.fromkeys(self.members, 0)  # how often a category had one more than others in a take

    def take(self, count: int) -> list[int]:
        rounds, rest = divmod(count, len(self.members))
        shuffled = self.generator.permutation(sorted(self.members)).tolist()
        more = sorted(shuffled, key=self.extras.__getitem__)[:rest]
        for category in more:
            self.extras[category] += 1
        return [self._next(category) for category in rounds * shuffled + more]

    def _next(self, category: str) -> int:
        if not self.left[category]:
            self.left[category] = self.generator.permutation(self.members[category]).tolist()
        return self.left[category].pop()


@dataclass
class EpisodeBatch:
    """Queries and what they are compared with, ready for the model.

    Attributes:
        images (Tensor | None): Preprocessed queries ``(B, 3, H, W)``; ``None`` with cached features.
        reference_images (Tensor | None): ``(B, K, 3, H, W)``; ``None`` with cached features.
        patches (Tensor | None): Cached patch tokens of the queries ``(B, L, N, W)``, in half precision.
        pooled (Tensor | None): Cached image embeddings of the queries ``(B, D)``.
        reference_pooled (Tensor | None): Cached image embeddings of the references ``(B, K, D)``.
        gt_label (Tensor): ``(B,)``, boolean.
        gt_mask (Tensor): ``(B, H, W)``, boolean, preprocessed like the images.
        category (list[str]): Of every query.
        class_name (list[str]): Of every query.
        image_path (list[str]): Of every query.
        reference_paths (list[list[str]]): Of every query.
        normal (EpisodeBatch | None): The one-class stream.
        pred_score (Tensor | None): Filled in by the model.
        anomaly_map (Tensor | None): Filled in by the model.
        pred_label (Tensor | None): Filled in by the post-processor.
        pred_mask (Tensor | None): Filled in by the post-processor.
    """

    images: Any
    reference_images: Any
    patches: Any
    pooled: Any
    reference_pooled: Any
    gt_label: Tensor
    gt_mask: Tensor
    category: list[str]
    class_name: list[str]
    image_path: list[str]
    reference_paths: list[list[str]]
    normal: EpisodeBatch | None = None
    pred_score: Any = None
    anomaly_map: Any = None
    pred_label: Any = None
    pred_mask: Any = None

    def __len__(self) -> int:
        return int(self.gt_label.shape[0])

    def to(self, device: torch.device, non_blocking: bool = False) -> EpisodeBatch:
        """Move all tensors; Lightning calls this."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor | EpisodeBatch):
                setattr(self, name, value.to(device, non_blocking=non_blocking))
        return self
