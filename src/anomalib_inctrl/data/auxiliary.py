"""Auxiliary training data: any of anomalib's image data modules, pooled into episodes."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from anomalib.data import AnomalibDataModule
from anomalib.data.utils import LabelName, read_image, read_mask
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.tv_tensors import Mask

from anomalib_inctrl.data.episodes import Episode, EpisodeBatch, EpisodeSampler, LabelledImage, Pool, Step
from anomalib_inctrl.instantiation import Builder
from anomalib_inctrl.prompts import class_name_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from anomalib_inctrl.feature_cache import FeatureCache

logger = logging.getLogger(__name__)

_LICENCES = {
    "MVTecAD": "CC BY-NC-SA 4.0",
    "MVTecAD2": "CC BY-NC-SA 4.0",
    "Visa": "CC BY 4.0",
    "ProceduralAD": "generated, none",
}
_VALIDATION_EPOCH = 2**31  # seeds the draws of validation apart from those of any training epoch
_SAMPLE_EPOCH = _VALIDATION_EPOCH + 1


class AuxiliaryData(AnomalibDataModule):
    """Labelled images of many categories as training episodes: a query, K normal references of its category, a mask.

    All images of the parts serve: normal ones of both splits, and the anomalous ones of the test split with their
    masks. Whole categories are held out for validation, so that choosing a model never looks at the target, nor at
    categories that were trained on. Batches are half normal and half anomalous with the categories spread evenly. A
    query is never among its own references.

    Args:
        parts (list[AnomalibDataModule] | None): Data modules of one category each, as objects or as
            ``{"class_path": ..., "init_args": ...}``.
        pools (list[dict] | None): Many categories of one data module at once:
            ``{"class_path": ..., "init_args": ..., "categories": [...]}``. They come after the parts.
        batch_size (int): Queries per step over all processes; even, half of them normal.
        steps_per_epoch (int): Steps of an epoch.
        k_shots (list[int]): Numbers of references; every step draws one of them, so that one model serves all.
        max_references (int): Most normal images of a category that serve as references; drawn by ``seed``. All serve
            as queries.
        validation_share (float): Share of the categories that is held out, rounded, at least one if not 0.
        validation_categories (list[str] | None): Held-out categories by name (``"<data>/<category>"``) instead.
        eval_batch_size (int): Queries per step of validation.
        num_workers (int): Processes that read images; 0 is best with cached features.
        seed (int): Of the hold-out, the references and the episodes.

    Raises:
        ValueError: If a pool does not name its class and categories, a category is given twice, lacks anomalous images
            or enough normal ones, nothing is left to train on, or a batch can't be halved.
    """

    def __init__(
        self,
        parts: list[AnomalibDataModule] | None = None,
        pools: list[dict[str, Any]] | None = None,
        batch_size: int = 48,
        steps_per_epoch: int = 100,
        k_shots: list[int] | None = None,
        max_references: int = 32,
        validation_share: float = 0.2,
        validation_categories: list[str] | None = None,
        eval_batch_size: int = 16,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, seed=seed)
        self.parts = [
            part if isinstance(part, AnomalibDataModule) else Builder(AnomalibDataModule, dict(part))()
            for part in parts or []
        ]
        self.parts += [part for pool in pools or [] for part in _parts_of(pool)]
        self.steps_per_epoch = steps_per_epoch
        self.k_shots = list(k_shots or (1, 2, 4, 8))
        self.max_references = max_references
        self.validation_share, self.validation_categories = validation_share, validation_categories
        self.normal_stream = False
        self.transform: Any = None
        self.cache: Any = None
        self.size: tuple[int, int] = (0, 0)
        self.category = ""
        names = [_category_of(part) for part in self.parts]
        if len(set(names)) != len(names) or not names:
            msg = f"parts and pools must be data modules of different categories, at least one, got {names}."
            raise ValueError(msg)
        if batch_size < 1 or batch_size % 2:
            msg = f"batch_size must be even and positive, as half of the queries are normal, got {batch_size}."
            raise ValueError(msg)
        if min(self.k_shots) < 1:
            msg = f"k_shots must be positive numbers of references, got {self.k_shots}."
            raise ValueError(msg)

    def prepare_data(self) -> None:
        """Let every part fetch what it needs."""
        for part in self.parts:
            part.prepare_data()

    def setup(self, stage: str | None = None) -> None:
        """Pool the parts and hold categories out."""
        del stage
        if hasattr(self, "train_pool"):
            return
        names = [_category_of(part) for part in self.parts]
        held_out = self._held_out(names)
        groups: dict[bool, list[tuple[str, AnomalibDataModule]]] = {False: [], True: []}
        for name, part in zip(names, self.parts, strict=True):
            groups[name in held_out].append((name, part))
        if not groups[False]:
            msg = f"All of {names} are held out for validation, nothing is left to train on: lower validation_share."
            raise ValueError(msg)
        self.train_pool = self._pool(groups[False])
        self.val_pool = self._pool(groups[True])
        logger.info("Training on %s, validating on %s.", self.train_pool.categories, self.val_pool.categories)

    def _setup(self, _stage: str | None = None) -> None:
        self.setup()

    def attach(
        self,
        transform: Callable[..., Any],
        size: tuple[int, int],
        cache: FeatureCache | None,
        *,
        normal_stream: bool,
    ) -> None:
        """Say how a model takes its episodes; called by the model before data loaders are made.

        Args:
            transform (Callable): Preprocessing of an image, or of an image and its mask.
            size (tuple[int, int]): Height and width after preprocessing.
            cache (FeatureCache | None): Filled cache to read features from; ``None`` reads images.
            normal_stream (bool): Whether the one-class stream is needed.

        Raises:
            ValueError: If the processes can't share a batch.
        """
        self.transform, self.size, self.cache = transform, size, cache
        self.normal_stream = normal_stream
        self._train_sampler()  # refuses a batch that can't be shared now, not after features have been computed

    @property
    def image_paths(self) -> list[str]:
        """All images of training and validation."""
        return [image.path for pool in (self.train_pool, self.val_pool) for image in pool.images]

    def sample(self, count: int) -> list[LabelledImage]:
        """Take images for training, of every category as many, the same ones every time.

        Args:
            count (int): How many to take of all; where categories are many, a few more.
        """
        pool = self.train_pool
        share = math.ceil(count / len(pool.categories))
        generator = np.random.default_rng([self.seed or 0, _SAMPLE_EPOCH])
        taken = []
        for category in pool.categories:
            members = [*pool.members.get((category, False), []), *pool.members.get((category, True), [])]
            taken += [pool.images[i] for i in sorted(generator.permutation(members)[:share])]
        return taken

    @property
    def lacks_masks(self) -> list[str]:
        """Categories of training in which an anomalous image has no mask."""
        return sorted({i.category for i in self.train_pool.images if i.anomalous and i.mask_path is None})

    @property
    def summary(self) -> dict[str, Any]:
        """Plain description for checkpoints: what is trained on, under which licence."""
        return {
            "trained_on": self.train_pool.categories,
            "validated_on": self.val_pool.categories,
            "licences": {p.name: _LICENCES.get(p.name, "see the data set") for p in self.parts},
            "k_shots": self.k_shots,
            "images": len(self.train_pool.images),
            "seed": self.seed,
        }

    def train_dataloader(self) -> DataLoader:
        """Load the planned episodes of this process."""
        return DataLoader(
            EpisodeDataset(self.train_pool, self),
            batch_sampler=self._train_sampler(),
            collate_fn=_first,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )

    def val_dataloader(self) -> DataLoader | list:
        """Load the held-out categories, each query with references drawn once and for all."""
        if not self.val_pool.images:
            return []
        generator = np.random.default_rng([self.seed or 0, _VALIDATION_EPOCH])
        k_shot = max(k for k in self.k_shots if k <= self._smallest_reserve(self.val_pool))
        episodes = [
            Episode(query, self.val_pool.draw_references(query, k_shot, generator))
            for query in range(len(self.val_pool.images))
        ]
        size = self.eval_batch_size
        steps = [Step(mixed=episodes[start : start + size], normal=[]) for start in range(0, len(episodes), size)]
        return DataLoader(
            EpisodeDataset(self.val_pool, self),
            sampler=_Fixed(steps),
            batch_size=1,
            collate_fn=_first,
            num_workers=self.num_workers,
        )

    def test_dataloader(self) -> DataLoader | list:
        """Load the held-out categories; a target of one's own is tested with its own data module."""
        return self.val_dataloader()

    def _train_sampler(self) -> EpisodeSampler:
        trainer = self.trainer
        return EpisodeSampler(
            self.train_pool,
            self.steps_per_epoch,
            self.train_batch_size,
            self.k_shots,
            seed=self.seed or 0,
            normal_batch_size=self.train_batch_size // 2 if self.normal_stream else 0,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
        )

    def _held_out(self, names: Sequence[str]) -> set[str]:
        if self.validation_categories is not None:
            unknown = set(self.validation_categories) - set(names)
            if unknown:
                msg = f"validation_categories {sorted(unknown)} are not among the parts {list(names)}."
                raise ValueError(msg)
            return set(self.validation_categories)
        if not self.validation_share:
            return set()
        count = max(1, round(self.validation_share * len(names)))
        generator = np.random.default_rng([self.seed or 0, 0])
        return set(generator.permutation(sorted(names))[:count].tolist())

    def _pool(self, parts: Iterable[tuple[str, AnomalibDataModule]]) -> Pool:
        images: list[LabelledImage] = []
        references: dict[str, list[int]] = {}
        for name, part in parts:
            part.setup()
            start = len(images)
            images += _images_of(part, name)
            normal = [i for i in range(start, len(images)) if not images[i].anomalous]
            self._check_category(name, normal, len(images) - start - len(normal))
            # By name, so that what a category's references are does not depend on the other parts.
            generator = np.random.default_rng([self.seed or 0, *name.encode()])
            references[name] = sorted(generator.permutation(normal)[: self.max_references].tolist())
        return Pool(images, references)

    def _check_category(self, name: str, normal: Sequence[int], anomalous: int) -> None:
        if not anomalous:
            msg = f"{name} has no anomalous images to train or validate on: leave it out of parts."
            raise ValueError(msg)
        if min(len(normal), self.max_references) <= max(self.k_shots):
            msg = (
                f"{name} has {len(normal)} normal images ({self.max_references} may be references), which leaves a "
                f"query fewer than K={max(self.k_shots)}: lower k_shots, raise max_references or leave it out of parts."
            )
            raise ValueError(msg)

    @staticmethod
    def _smallest_reserve(pool: Pool) -> int:
        return min(len(references) for references in pool.references.values()) - 1


def _parts_of(pool: dict[str, Any]) -> list[AnomalibDataModule]:
    """Make one data module for every category of a pool."""
    unknown = pool.keys() - {"class_path", "init_args", "categories"}
    if unknown or "class_path" not in pool or not pool.get("categories"):
        msg = f"A pool has class_path, categories and, if need be, init_args; got {dict(pool)}."
        raise ValueError(msg)
    categories = list(pool["categories"])
    shared = (pool.get("init_args") or {}) | {"category": categories[0]}
    build = Builder(AnomalibDataModule, {"class_path": pool["class_path"], "init_args": shared})
    return [build(category=category) for category in categories]


class EpisodeDataset(Dataset):
    """Turns a planned step into a batch.

    Args:
        pool (Pool): Images.
        source (AuxiliaryData): Knows preprocessing and cache.
    """

    def __init__(self, pool: Pool, source: AuxiliaryData) -> None:
        self.pool, self.source = pool, source
        self._masks: dict[str, Tensor] = {}
        self._pooled_of: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self.pool.images)

    def __getitem__(self, step: Step) -> EpisodeBatch:
        """Read a step.

        Raises:
            RuntimeError: If no model has been attached.
        """
        if self.source.transform is None:
            msg = "AuxiliaryData gives episodes to a model in phase='train': run `anomalib fit --model.phase train`."
            raise RuntimeError(msg)
        batch = self._batch(step.mixed)
        if step.normal:
            batch.normal = self._batch(step.normal)
        return batch

    def _batch(self, episodes: list[Episode]) -> EpisodeBatch:
        queries = [self.pool.images[episode.query] for episode in episodes]
        references = [[self.pool.images[i].path for i in episode.references] for episode in episodes]
        features = self._read_features(queries, references) if self.source.cache else self._read(queries, references)
        return EpisodeBatch(
            **features,
            reference_paths=references,
            gt_label=torch.tensor([query.anomalous for query in queries]),
            gt_mask=torch.stack([self._mask(query) for query in queries]),
            category=[query.category for query in queries],
            class_name=[query.class_name for query in queries],
            image_path=[query.path for query in queries],
        )

    def _read(self, queries: Sequence[LabelledImage], references: Sequence[Sequence[str]]) -> dict[str, Any]:
        transform = self.source.transform
        images = torch.stack([transform(read_image(query.path, as_tensor=True)) for query in queries])
        shown = [[transform(read_image(path, as_tensor=True)) for path in paths] for paths in references]
        return {
            "images": images,
            "reference_images": torch.stack([torch.stack(row) for row in shown]),
            "patches": None,
            "pooled": None,
            "reference_pooled": None,
        }

    def _read_features(
        self,
        queries: Sequence[LabelledImage],
        references: Sequence[Sequence[str]],
    ) -> dict[str, Any]:
        cache = self.source.cache
        features = cache.read([query.path for query in queries])
        pooled = torch.stack([self._pooled(path) for paths in references for path in paths])
        return {
            "images": None,
            "reference_images": None,
            "patches": features.patches,
            "pooled": features.pooled,
            "reference_pooled": pooled.unflatten(0, (len(queries), -1)),
        }

    def _pooled(self, path: str) -> Tensor:
        if path not in self._pooled_of:
            self._pooled_of[path] = self.source.cache.read([path]).pooled[0]
        return self._pooled_of[path]

    def _mask(self, image: LabelledImage) -> Tensor:
        size = self.source.size
        if image.mask_path is None:
            return torch.zeros(size, dtype=torch.bool)
        if image.path not in self._masks:
            mask = read_mask(image.mask_path, as_tensor=True)
            blank = torch.zeros(3, *mask.shape[-2:])
            _, mask = self.source.transform(blank, Mask(mask))
            self._masks[image.path] = mask.reshape(size).bool()
        return self._masks[image.path]


class _Fixed:
    """Sampler of given steps."""

    def __init__(self, steps: list[Step]) -> None:
        self.steps = steps

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    def __len__(self) -> int:
        return len(self.steps)


def _first(batches: list[EpisodeBatch]) -> EpisodeBatch:
    return batches[0]


def _category_of(part: AnomalibDataModule) -> str:
    return f"{part.name}/{part.category}" if part.category else part.name


def _images_of(part: AnomalibDataModule, name: str) -> list[LabelledImage]:
    """All images of a data module: its splits may share images, which count once."""
    images: dict[str, LabelledImage] = {}
    for subset in ("train_data", "test_data", "val_data"):
        dataset = getattr(part, subset, None)
        if dataset is None:
            continue
        for row in dataset.samples.itertuples():
            mask = getattr(row, "mask_path", None)
            anomalous = int(row.label_index) == int(LabelName.ABNORMAL)
            images[str(row.image_path)] = LabelledImage(
                path=str(row.image_path),
                mask_path=str(mask) if anomalous and isinstance(mask, str) and mask else None,
                anomalous=anomalous,
                category=name,
                class_name=class_name_of(part),
            )
    return sorted(images.values())
