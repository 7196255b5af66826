"""Training of the heads on auxiliary data, as Lightning runs it."""

from __future__ import annotations

import logging
import math
import zlib
from abc import abstractmethod
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import torch
from anomalib.data import ImageBatch
from anomalib.data.utils import read_image
from anomalib.metrics import AUPRO, AUROC
from anomalib.pre_processing.utils.spec import transform_to_spec
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the customary name

from anomalib_inctrl.checkpoints import save_weights
from anomalib_inctrl.clip import ImageFeatures
from anomalib_inctrl.data.auxiliary import AuxiliaryData
from anomalib_inctrl.data.episodes import EpisodeBatch
from anomalib_inctrl.embedding_distance import ImageBranch, set_distance
from anomalib_inctrl.feature_cache import FeatureCache
from anomalib_inctrl.in_context import Distortion
from anomalib_inctrl.pair_residuals import PairResiduals
from anomalib_inctrl.references import Context

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from anomalib.data import AnomalibDataModule
    from anomalib.models.components import AnomalibModule

    from anomalib_inctrl.in_context import InContextModel, ResidualAdapter, ScoreHead

    _Host = AnomalibModule
else:
    _Host = object  # see InContextMixin

logger = logging.getLogger(__name__)

IMAGE_BRANCH = "image"
"""The branch of psi and eta."""

_EMBEDDINGS = 4096  # images at most, or nearly, that say how image embeddings vary
_IMAGES_AT_ONCE = 64


class EpisodicTrainingMixin(_Host):
    """Training and validation steps on :class:`AuxiliaryData`.

    CLIP is frozen, so with a cache an image is encoded once in its life and a step costs the heads alone. Subclasses
    say what they lose by :meth:`loss_terms`.
    """

    model: InContextModel
    phase: str
    _trained_branches: list[str]
    _sets_distance: bool
    _restored: bool
    metadata: dict[str, Any]

    def _set_training_options(
        self,
        learning_rate: float,
        feature_cache: str | Path | None,
        *,
        double_sigmoid: bool,
        rotate_embeddings: bool,
        stretch_embeddings: float,
        scatter_embeddings: float,
        decay_learning_rate: bool,
        image_branch: ImageBranch,
    ) -> None:
        if image_branch not in get_args(ImageBranch):
            msg = f"image_branch must be one of {list(get_args(ImageBranch))}, got {image_branch!r}."
            raise ValueError(msg)
        self.image_branch, self._sets_distance = image_branch, False
        if not stretch_embeddings >= 1:
            msg = f"stretch_embeddings is the largest factor, 1 for none or more, got {stretch_embeddings}."
            raise ValueError(msg)
        if not scatter_embeddings >= 0:
            msg = f"scatter_embeddings is a share of their lengths, 0 for none or more, got {scatter_embeddings}."
            raise ValueError(msg)
        self.learning_rate, self.decay_learning_rate = learning_rate, decay_learning_rate
        self.double_sigmoid = double_sigmoid
        self.rotate_embeddings, self.stretch_embeddings = rotate_embeddings, stretch_embeddings
        self.scatter_embeddings = scatter_embeddings
        self._cache_root = feature_cache
        self._pairs: PairResiduals | None = None
        self.training_record: dict[str, Any] | None = None
        self._validated: dict[str, list[ImageBatch]] = defaultdict(list)

    @abstractmethod
    def loss_terms(self, batch: EpisodeBatch) -> dict[str, Tensor]:
        """Score a batch of episodes and name what is lost on it."""

    # -------------------------------------------------------------------------------------------------------- runs
    def _setup_training(self, datamodule: AnomalibDataModule | None) -> None:
        if not isinstance(datamodule, AuxiliaryData):
            name = type(datamodule).__name__ if datamodule is not None else "no data module"
            msg = (
                f"phase='train' takes AuxiliaryData (labelled images of several categories), got {name}: give "
                "--data AuxiliaryData with parts, or leave the phase at 'few_shot' to use a target without training."
            )
            raise ValueError(msg)
        self._check_training_data(datamodule)
        transform: Any = getattr(self.pre_processor, "transform", None)
        size = self.model.backbone.image_size
        datamodule.attach(transform, size, None, normal_stream=self._wants_normal_stream())
        self.training_record = datamodule.summary

    def _check_training_data(self, datamodule: AuxiliaryData) -> None:
        """Refuse data the loss can't use."""

    def _wants_normal_stream(self) -> bool:
        """Whether the loss has a part for normal images alone."""
        return False

    def _fill_cache(self, datamodule: AuxiliaryData, root: str | Path) -> None:
        """Encode what the cache lacks, once per node; other processes of the node wait.

        Made here and not in ``setup``, since the trainer brings the weights to its precision in between.
        """
        transform: Any = getattr(self.pre_processor, "transform", None)
        cache = FeatureCache(root, self.model.backbone, transform, transform_to_spec(transform))
        if self.trainer.local_rank == 0:
            cache.fill(datamodule.image_paths, device=self.device)
        self.trainer.strategy.barrier("feature cache")
        datamodule.cache = cache
        self._pairs = PairResiduals(cache, self.device)

    def on_fit_start(self) -> None:
        """Fill the cache, and set the image branch if it is not to be trained, before the first step."""
        datamodule = getattr(self.trainer, "datamodule", None)
        if not isinstance(datamodule, AuxiliaryData):
            return
        if self._cache_root is not None:
            self._fill_cache(datamodule, self._cache_root)
        if self._sets_distance and not self._restored:
            images = datamodule.sample(_EMBEDDINGS)
            embeddings = self._embed([image.path for image in images], datamodule)
            psi, eta = (self.model.get_submodule(part) for part in self.model.BRANCHES[IMAGE_BRANCH])
            categories, labels = [image.category for image in images], [image.anomalous for image in images]
            set_distance(cast("ResidualAdapter", psi), cast("ScoreHead", eta), embeddings, categories, labels)

    @torch.no_grad()
    def _embed(self, paths: Sequence[str], datamodule: AuxiliaryData) -> Tensor:
        """Image embeddings ``(n, D)`` of files on the CPU, from the cache if there is one."""
        embedded_in = next(self.model.backbone.parameters())
        found = []
        for start in range(0, len(paths), _IMAGES_AT_ONCE):
            chunk = paths[start : start + _IMAGES_AT_ONCE]
            if datamodule.cache is not None:
                found.append(datamodule.cache.read(chunk).pooled)
            else:
                images = torch.stack([datamodule.transform(read_image(path, as_tensor=True)) for path in chunk])
                found.append(self.model.encode(images.to(embedded_in)).pooled)
        return torch.cat(found).cpu().float()

    def train(self, mode: bool = True) -> Any:
        """Switch to training, but for heads that are not trained: their batch norms are to stay what they are."""
        super().train(mode)
        for head in self._heads(trained=False):
            head.eval()
        return self

    def on_fit_end(self) -> None:
        """Write the trained heads to ``weights/heads.safetensors`` of the run's folder."""
        if self.phase == "train" and self.trainer.is_global_zero:
            path = Path(self.trainer.default_root_dir) / "weights" / "heads.safetensors"
            logger.info("Trained heads: %s", save_weights(self.model, path, self.metadata))

    def training_step(self, batch: EpisodeBatch, batch_idx: int) -> Tensor:
        """Add up the loss terms of a batch, each logged by name."""
        del batch_idx
        terms = self.loss_terms(batch)
        loss = torch.stack(list(terms.values())).sum()
        options: dict[str, Any] = {"batch_size": len(batch), "sync_dist": True}
        self.log("loss", loss, prog_bar=True, **options)
        self.log_dict({f"loss/{name}": term for name, term in terms.items()}, **options)
        return loss

    def _draw_distortion(self, batch: EpisodeBatch) -> Distortion:
        """Draw what happens to the image embeddings in this step.

        The same in all processes, whichever of them has an episode, in a run that is gone on with, and wherever the
        data lie.
        """
        drawn: Any
        rotation = factors = noise = None
        if self.rotate_embeddings:
            width = self.model.backbone.embed_dim
            drawn = torch.randn(width, width, generator=torch.Generator().manual_seed(self.global_step))
            rotation = torch.linalg.qr(drawn).Q.to(self.device, self.dtype)
        episodes = zip(batch.category, batch.image_path, strict=True)
        seeds = [zlib.crc32(f"{self.global_step} {name} {Path(path).parts[-3:]}".encode()) for name, path in episodes]
        if self.stretch_embeddings > 1:
            drawn = self.stretch_embeddings ** torch.tensor([seed / 2**32 for seed in seeds])
            factors = drawn.to(self.device, self.dtype)
        if self.scatter_embeddings > 0:
            drawn = self._draw_noise(seeds, 1 + len(batch.reference_paths[0]))
            noise = drawn.to(self.device, self.dtype)
        return Distortion(rotation, factors, noise)

    def _draw_noise(self, seeds: list[int], images: int) -> Tensor:
        """Draw directions for the images of every episode, as long as that episode scatters: ``(B, images, D)``."""
        drawn = []
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            directions = F.normalize(torch.randn(images, self.model.backbone.embed_dim, generator=generator), dim=-1)
            drawn.append(self.scatter_embeddings * torch.rand(1, generator=generator) * directions)
        return torch.stack(drawn)

    def _heads(self, *, trained: bool) -> Iterator[nn.Module]:
        """Parts of the branches that are trained, or of the others."""
        for branch in sorted(self.model.BRANCHES):
            if (branch in self._trained_branches) == trained:
                yield from (self.model.get_submodule(part) for part in self.model.BRANCHES[branch])

    def _train_only_what_is_used(self) -> None:
        """Take gradients and batch statistics from other heads; processes would wait for the former in vain."""
        for head in self._heads(trained=False):
            head.requires_grad_(requires_grad=False)
        self.train()

    def _optimizer(self) -> torch.optim.Optimizer:
        parameters = [parameter for head in self._heads(trained=True) for parameter in head.parameters()]
        return torch.optim.Adam(parameters, lr=self.learning_rate)

    def _schedule(self, optimizer: torch.optim.Optimizer) -> Any:
        """Let the learning rate fall to 0 along a line over all steps of the run, if it is to."""
        if not self.decay_learning_rate:
            return optimizer
        steps = self.trainer.estimated_stepping_batches
        if not math.isfinite(steps):
            msg = "decay_learning_rate needs an end of the training: give the trainer max_epochs or max_steps."
            raise ValueError(msg)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # ------------------------------------------------------------------------------------------------------ scores
    def explain_episodes(self, batch: EpisodeBatch) -> Any:
        """Score a batch in which every query has references of its own."""
        return self.model.score(*self._encode(batch))

    def _encode(self, batch: EpisodeBatch) -> tuple[ImageFeatures, Context]:
        with torch.no_grad():
            prototypes = torch.stack([self.model.text_prototypes(name) for name in batch.class_name])
            if batch.images is None:
                return self._encode_cached(batch, prototypes)
            query = self.model.backbone.encode_image(batch.images)
            flat = self.model.backbone.encode_image(batch.reference_images.flatten(0, 1))
            patches, pooled = (f.unflatten(0, (len(batch), -1)) for f in flat)  # (B, K, L, N, W), (B, K, D)
            patches = F.normalize(patches.transpose(1, 2).flatten(2, 3), dim=-1)  # (B, L, R, W)
            return query, Context(patches, pooled, prototypes)

    def _encode_cached(self, batch: EpisodeBatch, prototypes: Tensor) -> tuple[ImageFeatures, Context]:
        if self._pairs is None:
            msg = "Batches of cached features come from a data module with a cache."
            raise RuntimeError(msg)
        residuals = self._pairs(batch.image_path, batch.reference_paths)
        features = (batch.patches, batch.pooled, batch.reference_pooled, residuals)
        patches, pooled, reference_pooled, residuals = (part.to(prototypes) for part in features)
        return ImageFeatures(patches, pooled), Context(None, reference_pooled, prototypes, residuals)

    # -------------------------------------------------------------------------------------------------- validation
    def _score_episodes(self, batch: EpisodeBatch) -> EpisodeBatch:
        explanation = self.explain_episodes(batch)
        batch.pred_score, batch.anomaly_map = explanation.score.float(), explanation.anomaly_map.float()
        return batch

    def _remember(self, batch: EpisodeBatch) -> None:
        """Keep scores and maps of held-out categories, apart by category."""
        for category in sorted(set(batch.category)):
            rows = [i for i, name in enumerate(batch.category) if name == category]
            kept = ImageBatch(
                image=torch.zeros(len(rows), 3, 1, 1),
                pred_score=batch.pred_score[rows].cpu(),
                anomaly_map=batch.anomaly_map[rows].squeeze(1).cpu(),
                gt_label=batch.gt_label[rows].cpu(),
                gt_mask=batch.gt_mask[rows].cpu(),
            )
            self._validated[category].append(kept)

    def _log_validation(self) -> None:
        """Log image AUROC and pixel AUPRO of every held-out category and their means."""
        results: dict[str, list[Tensor]] = defaultdict(list)
        for category, batches in sorted(self._validated.items()):
            for metric in self._category_metrics(batches):
                metric.sync_on_compute = False  # every process has seen all of them
                for batch in batches:
                    metric.update(batch)
                value = metric.compute().float()
                results[metric.name].append(value)
                self.log(f"val/{category}/{metric.name}", value)
        for name, values in results.items():
            self.log(f"val/{name}", torch.stack(values).mean(), prog_bar=True)
        self._validated.clear()

    @staticmethod
    def _category_metrics(batches: list[ImageBatch]) -> list[Any]:
        metrics: list[Any] = [AUROC(fields=["pred_score", "gt_label"], prefix="image_")]
        if any(bool(torch.as_tensor(batch.gt_mask).any()) for batch in batches):
            metrics.append(AUPRO(fields=["anomaly_map", "gt_mask"], prefix="pixel_"))
        return metrics
