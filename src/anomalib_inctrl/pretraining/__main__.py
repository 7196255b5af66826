"""Command line of the pre-training."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jsonargparse import auto_cli
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from safetensors.torch import load_file, save
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from anomalib_inctrl.clip import EMBEDDED_BACKBONE, SHAPES, create_clip, image_convention
from anomalib_inctrl.files import write_atomically
from anomalib_inctrl.pretraining.embedding import EmbeddingTraining, SiblingDataset
from anomalib_inctrl.pretraining.groups import GroupDataset, StepSampler
from anomalib_inctrl.pretraining.growth import grow, resize
from anomalib_inctrl.pretraining.readout import align_patches, align_readout, whole_words
from anomalib_inctrl.pretraining.schedule import PHASES, STEPS, first_step
from anomalib_inctrl.pretraining.shapes import PatchworkDataset, ShapeDataset, ShapeTraining
from anomalib_inctrl.pretraining.training import Pretraining
from anomalib_inctrl.shape_tower import ShapeTower

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anomalib_inctrl.clip import ClipBackbone

_EPOCH = 50  # steps from one checkpoint to the next
_FULL_SIZE_RATE = 1e-4  # highest learning rate of the third stage
_HANDWRITTEN, _HANDWRITING_RATE = 0.6, 7e-4  # share of the fifth stage's batches; its highest learning rate
_LOOKED_AT = 20  # batches that the second stage's first weights are solved on
_READOUT_BATCHES, _READOUT_WORDS = 60, 256  # that the projection into the joint space is solved on at the end
_PROJECTIONS = ("visual.proj", f"{SHAPES}proj", f"{SHAPES}surface")  # of images into the joint space, in the file
_UNEVEN_BATCHES = 120  # of surfaces of two materials, for it besides


def pretrain(
    output: Path,
    steps: int = STEPS,
    embedding_steps: int = 3000,
    full_size_steps: int = 600,
    shape_steps: int = 3600,
    handwriting_steps: int = 1200,
    seed: int = 0,
    groups: int = 6,
    normals: int = 4,
    anomalies: int = 3,
    siblings: int = 8,
    learning_rate: float = 1e-3,
    processes: int = 2,
    stop_after: int | None = None,
    weights: dict[str, float] | None = None,
) -> Path:
    """Train inctrl-tiny from scratch on generated pictures, and write its weights for the wheel.

    Started again with the same arguments, it goes on from its last checkpoint (one every 50 steps). There are five
    stages: patches and texts, whose weights are the average of those before and after the last phase
    (:func:`average_with`); on top of them, blocks for the image embedding alone; these again on images of the
    embedded backbone's full size; the convolutional tower, which needs none of the others; and its second branch, to
    which more is shown of handwriting. At the end the projections of both towers into the joint space are solved.

    Args:
        output: Folder for checkpoints, logs and ``inctrl-tiny.safetensors``.
        steps: Optimiser steps of the first stage, in multiples of 50.
        embedding_steps: Optimiser steps of the second stage, in multiples of 50.
        full_size_steps: Optimiser steps of the third stage, in multiples of 50.
        shape_steps: Optimiser steps of the fourth stage, in multiples of 50.
        handwriting_steps: Optimiser steps of the fifth stage, in multiples of 50.
        seed: Seed of the first weights, the pictures and the references.
        groups: Categories in a batch of the first stage.
        normals: Normal pictures of each category.
        anomalies: Anomalous pictures of each category.
        siblings: Categories in a batch of the second and third stage, all of one family.
        learning_rate: Highest learning rate of the first stage.
        processes: Processes that train together, each with batches of its own; best one for every core.
        stop_after: Step, counted over all stages, at which to stop for now; the schedule follows their lengths.
        weights: Factors of the first objective's terms by name; 0 drops a term.

    Returns:
        The file of weights, see :func:`write_weights`.
    """
    seed_everything(seed)
    weights_file = output / "inctrl-tiny.safetensors"
    ends = list(accumulate((steps, embedding_steps, full_size_steps, shape_steps, handwriting_steps)))
    stop_after = ends[-1] if stop_after is None else stop_after
    module = Pretraining(steps, seed=seed, learning_rate=learning_rate, weights=weights)
    trunk = module.backbone
    patch = trunk.visual.patch_size[0]
    pictures = {"patch": patch, "groups": groups, "normals": normals, "anomalies": anomalies}
    dataset = GroupDataset(steps * processes, seed=seed, side=trunk.image_size[0], **pictures)
    before = output / "before_last_phase.safetensors"
    keeper = _Keeper(before, first_step(PHASES[-1], steps))
    fit(module, dataset, output / "last.ckpt", min(stop_after, steps), processes, [keeper])
    if stop_after < ends[0]:
        return weights_file

    average_with(module, before)
    looked_at = SiblingDataset(_LOOKED_AT, seed + 1, trunk.image_size[0])
    batches = (looked_at[i].flatten(0, 1) for i in range(len(looked_at)))
    backbone = grow(trunk, batches, torch.Generator().manual_seed(seed))
    telling = EmbeddingTraining(backbone, embedding_steps, seed=seed)
    families = SiblingDataset(embedding_steps * processes, seed, trunk.image_size[0], siblings, normals)
    fit(telling, families, output / "embedding.ckpt", min(stop_after, ends[1]) - ends[0], processes)
    if stop_after < ends[1]:
        return weights_file

    size = image_convention(EMBEDDED_BACKBONE).size
    resize(backbone, trunk, size)
    telling = EmbeddingTraining(
        backbone, full_size_steps, seed + 1, _FULL_SIZE_RATE, scale=float(telling.scale.detach().exp())
    )
    families = SiblingDataset(full_size_steps * processes, seed + 2, size[0], siblings, normals)
    fit(telling, families, output / "full_size.ckpt", min(stop_after, ends[2]) - ends[1], processes)
    if stop_after < ends[2]:
        return weights_file

    seed_everything(seed)
    backbone.shapes = ShapeTower(backbone.embed_dim, backbone.width)
    shapes = ShapeDataset(shape_steps * processes, seed + 3)
    trained = ShapeTraining(backbone, shape_steps, seed)
    fit(trained, shapes, output / "shapes.ckpt", min(stop_after, ends[3]) - ends[2], processes)
    if stop_after < ends[3]:
        return weights_file

    shapes = ShapeDataset(handwriting_steps * processes, seed + 4, handwritten=_HANDWRITTEN)
    scale = float(trained.scale.detach().exp())
    trained = ShapeTraining(backbone, handwriting_steps, seed + 1, _HANDWRITING_RATE, scale=scale, branch=1)
    rank = fit(trained, shapes, output / "handwriting.ckpt", stop_after - ends[3], processes)
    if rank == 0 and stop_after >= ends[4]:
        words = whole_words(backbone, _READOUT_WORDS, torch.Generator().manual_seed(seed))
        unseen = GroupDataset(len(dataset), seed=seed + 1, side=size[0], **pictures)
        plain = [unseen[i] for i in range(min(_READOUT_BATCHES, len(unseen)))]
        align_patches(backbone, (batch.images[:, :normals].flatten(0, 1) for batch in plain))
        uneven = PatchworkDataset(_UNEVEN_BATCHES, seed + 1, size[0], groups, normals)
        align_readout(backbone, plain, words, map(uneven.__getitem__, range(len(uneven))))
        write_weights(backbone, weights_file)
    return weights_file


def fit(
    module: LightningModule,
    dataset: Dataset[Any],
    checkpoint: Path,
    steps: int,
    processes: int,
    callbacks: Sequence[Callback] = (),
) -> int:
    """Train a stage to a step, from its checkpoint if there is one.

    Args:
        module: What is trained.
        dataset: Batches by number.
        checkpoint: File that a run goes on from.
        steps: Optimiser step to stop at; nothing happens if it is behind.
        processes: Processes that train together.
        callbacks: Besides the one that writes checkpoints.

    Returns:
        Rank of this process.
    """
    name = checkpoint.stem
    trainer = Trainer(
        accelerator="cpu",
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        use_distributed_sampler=False,
        precision="bf16-mixed",
        max_epochs=steps // _EPOCH,
        gradient_clip_val=1.0,
        callbacks=[
            ModelCheckpoint(
                checkpoint.parent, filename=name, enable_version_counter=False, save_on_train_epoch_end=True
            ),
            *callbacks,
        ],
        logger=CSVLogger(checkpoint.parent, name=f"log_{name}", flush_logs_every_n_steps=10),
        log_every_n_steps=10,
        enable_model_summary=False,
    )
    sampler = StepSampler(_EPOCH, lambda: trainer.global_step, processes, trainer.global_rank)
    loader = DataLoader(dataset, sampler=sampler, batch_size=None)
    trainer.fit(module, loader, ckpt_path=checkpoint if checkpoint.is_file() else None)
    return trainer.global_rank


class _Keeper(Callback):
    """Keeps the weights after some step in a file, for whoever resumes after it as well."""

    def __init__(self, path: Path, step: int) -> None:
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        """Write them, if this is the step."""
        del args, kwargs
        if trainer.global_step == self.step and trainer.is_global_zero:
            write_atomically(self.path, save({k: v.contiguous() for k, v in pl_module.state_dict().items()}))


@torch.no_grad()
def average_with(module: LightningModule, path: Path) -> None:
    """Move a module's weights half the way back to those of a file (arXiv 2109.01903).

    What the last phase teaches comes at the cost of what was learned before; in the middle between both is more of
    either than on any way there.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    if not path.is_file():
        msg = f"{path} is missing, the weights before the last phase: begin anew in another folder."
        raise FileNotFoundError(msg)
    earlier = load_file(path)
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            value.lerp_(earlier[name], 0.5)


def write_weights(backbone: ClipBackbone, path: Path) -> None:
    """Write all towers, those of open_clip's model under its names: half precision, but for the projections of images.

    These keep an image's embedding out of the directions of text. Rounded, they would let into them by chance as much
    as what they are to say there.
    """
    model = create_clip(EMBEDDED_BACKBONE, None, random=True)
    visual = {f"visual.{k}": v for k, v in backbone.visual.state_dict().items()}
    text = backbone.text.model.state_dict()
    model.load_state_dict(visual | dict(text))
    shapes = {} if backbone.shapes is None else backbone.shapes.state_dict(prefix=SHAPES)
    state: dict[str, Tensor] = {
        name: (value if name in _PROJECTIONS else value.half()).contiguous()
        for name, value in (model.state_dict() | shapes).items()
    }
    write_atomically(path, save(state))


if __name__ == "__main__":
    auto_cli(pretrain, as_positional=False)
