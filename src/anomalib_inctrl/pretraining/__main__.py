"""Command line of the pre-training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from safetensors.torch import load_file, save
from torch import Tensor
from torch.utils.data import DataLoader

from anomalib_inctrl.files import write_atomically
from anomalib_inctrl.pretraining.groups import GroupDataset, StepSampler
from anomalib_inctrl.pretraining.readout import align_readout, whole_words
from anomalib_inctrl.pretraining.schedule import PHASES, STEPS, first_step
from anomalib_inctrl.pretraining.training import Pretraining

_EPOCH = 50  # steps from one checkpoint to the next
_READOUT_BATCHES, _READOUT_WORDS = 60, 256  # that the projection into the joint space is solved on at the end


def pretrain(
    output: Path,
    steps: int = STEPS,
    seed: int = 0,
    groups: int = 6,
    normals: int = 4,
    anomalies: int = 3,
    learning_rate: float = 1e-3,
    processes: int = 2,
    stop_after: int | None = None,
    weights: dict[str, float] | None = None,
) -> Path:
    """Train inctrl-tiny from scratch on generated pictures, and write its weights for the wheel.

    Started again with the same arguments, it goes on from its last checkpoint (one every 50 steps). The weights are the
    average of those before and after the last phase (:func:`average_with`).

    Args:
        output: Folder for checkpoints, the log and ``inctrl-tiny.safetensors``.
        steps: Optimiser steps, in multiples of 50.
        seed: Seed of the first weights, the pictures and the references.
        groups: Categories in a batch.
        normals: Normal pictures of each category.
        anomalies: Anomalous pictures of each category.
        learning_rate: Highest learning rate.
        processes: Processes that train together, each with batches of its own; best one for every core.
        stop_after: Step at which to stop for now; the schedule still follows ``steps``.
        weights: Factors of the objective's terms by name; 0 drops a term.

    Returns:
        The file of weights, in half precision.
    """
    seed_everything(seed)
    module = Pretraining(steps, seed=seed, learning_rate=learning_rate, weights=weights)
    convention = module.backbone.convention
    dataset = GroupDataset(
        steps * processes,
        seed=seed,
        side=convention.size[0],
        patch=convention.size[0] // module.backbone.grid_size[0],
        groups=groups,
        normals=normals,
        anomalies=anomalies,
    )
    last, before = output / "last.ckpt", output / "before_last_phase.safetensors"
    trainer = Trainer(
        accelerator="cpu",
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        use_distributed_sampler=False,
        precision="bf16-mixed",
        max_epochs=(stop_after or steps) // _EPOCH,
        gradient_clip_val=1.0,
        callbacks=[
            ModelCheckpoint(output, filename="last", enable_version_counter=False, save_on_train_epoch_end=True),
            _Keeper(before, first_step(PHASES[-1], steps)),
        ],
        logger=CSVLogger(output, name="log", flush_logs_every_n_steps=10),
        log_every_n_steps=10,
        enable_model_summary=False,
    )
    sampler = StepSampler(_EPOCH, lambda: trainer.global_step, processes, trainer.global_rank)
    loader = DataLoader(dataset, sampler=sampler, batch_size=None)
    trainer.fit(module, loader, ckpt_path=last if last.is_file() else None)
    written = output / "inctrl-tiny.safetensors"
    if trainer.is_global_zero and (stop_after is None or stop_after >= steps):
        average_with(module, before)
        words = whole_words(module.backbone, _READOUT_WORDS, torch.Generator().manual_seed(seed))
        dataset.seed = seed + 1  # pictures it was not trained on
        align_readout(module.backbone, map(dataset.__getitem__, range(min(_READOUT_BATCHES, len(dataset)))), words)
    if trainer.is_global_zero:
        write_weights(module, written)
    return written


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


def write_weights(module: Pretraining, path: Path) -> Path:
    """Write both towers in half precision under open_clip's names."""
    from anomalib_inctrl.clip import EMBEDDED_BACKBONE, create_clip

    model = create_clip(EMBEDDED_BACKBONE, None, random=True)
    visual = {f"visual.{k}": v for k, v in module.backbone.visual.state_dict().items()}
    text = module.backbone.text.model.state_dict()
    model.load_state_dict(visual | dict(text))
    state: dict[str, Tensor] = {k: v.half().contiguous() for k, v in model.state_dict().items()}
    write_atomically(path, save(state))
    return path


if __name__ == "__main__":
    auto_cli(pretrain, as_positional=False)
