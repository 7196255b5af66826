"""How much faster heads train from cached features than by encoding in every step.

Not a test: run ``python tests/benchmarks/training_speed.py``, with ``--backbone ViT-B-16-plus-240`` for the papers'
size. The configuration is the same for both, down to the episodes of every step. In the first epoch with a cache the
residuals of new pairs of images are computed, later ones mostly find them remembered; both are told. Weights are
random: speed does not depend on them.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from anomalib.engine import Engine
from lightning.pytorch import Callback, seed_everything

from anomalib_inctrl import AuxiliaryData, DemoAD, InCTRL, InCTRLv2

CATEGORIES = ("brick", "moon", "retina")
MODELS: dict[str, Any] = {"InCTRL": InCTRL, "InCTRLv2": InCTRLv2}


class Stopwatch(Callback):
    """Seconds of every step, the fetching of its batch included, and its loss."""

    def __init__(self) -> None:
        self.epochs: list[list[float]] = []
        self.losses: list[float] = []
        self.last = 0.0

    def on_train_epoch_start(self, *_: Any) -> None:
        """Begin an epoch."""
        self.epochs.append([])
        self.last = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
        """Stop the time of a step."""
        del trainer, pl_module
        now = time.perf_counter()
        self.epochs[-1].append(now - self.last)
        self.losses.append(float(outputs["loss"]))
        self.last = now


def train(name: str, cache: Path | None, epochs: int, steps: int, args: argparse.Namespace) -> Stopwatch:
    """Train for some steps."""
    seed_everything(0)
    watch = Stopwatch()
    parts = [DemoAD(root=args.data, category=category) for category in CATEGORIES]
    options = {"batch_size": args.batch_size, "steps_per_epoch": steps, "k_shots": [args.k_shot], "validation_share": 0}
    model = MODELS[name](backbone=args.backbone, pretrained=None, phase="train", feature_cache=cache, visualizer=False)
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(
            default_root_dir=folder,
            accelerator="cpu",
            max_epochs=epochs,
            callbacks=[watch],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        engine.fit(model, datamodule=AuxiliaryData(parts, **options))
    return watch


def main() -> None:
    """Print episodes per second of both ways, and how far their losses lie apart."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="inctrl-tiny")
    parser.add_argument("--data", type=Path, default=Path("datasets/DemoAD"), help="where DemoAD is or comes to be")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--k-shot", type=int, default=4)
    parser.add_argument("--steps", type=int, default=30, help="of an epoch with the cache")
    parser.add_argument("--epochs", type=int, default=6, help="with the cache")
    parser.add_argument("--encoded-steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        for name in args.models:
            cached = train(name, Path(folder), args.epochs, args.steps, args)
            encoded = train(name, None, 1, args.encoded_steps, args)
            first, last, every = (
                args.batch_size / statistics.median(seconds[1:])
                for seconds in (cached.epochs[0], cached.epochs[-1], encoded.epochs[0])
            )
            pairs = zip(cached.losses, encoded.losses, strict=False)
            sys.stdout.write(
                f"{name}, {args.backbone}: {every:.2f} episodes/s encoded, {first:.1f} in the first epoch with a cache "
                f"({first / every:.1f} times), {last:.1f} in the last ({last / every:.1f} times); first loss "
                f"{cached.losses[0]:.6f} and {encoded.losses[0]:.6f}, largest difference "
                f"{max(abs(a - b) for a, b in pairs):.1e} in {len(encoded.losses)} steps\n"
            )
            sys.stdout.flush()


if __name__ == "__main__":
    main()
