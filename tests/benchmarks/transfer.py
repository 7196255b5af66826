"""Whether heads trained on some categories of photographs help on others.

Not a test: run ``python tests/benchmarks/transfer.py``. Every part of ``DemoAD`` in turn is left out: heads are
trained on the other categories through the project's own job, from scratch or, with ``--weights inctrl-tiny``, from the
embedded ones, and compared with the training-free mode on those left out. References and images are the same for both.
The seed sets the weights, the episodes and the references, of which ``--draws`` takes several for every seed: what is
left of the spread over seeds is then more that of training, less that of four images more or less typical.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from anomalib.data import ImageBatch
from anomalib.engine import Engine
from anomalib.metrics import AUPRO, AUROC
from lightning.pytorch import seed_everything
from tiny_evaluation import Task, from_datamodule

from anomalib_inctrl import AuxiliaryData, DemoAD, InCTRL, InCTRLv2
from anomalib_inctrl.clip import ImageFeatures
from anomalib_inctrl.reference_images import draw

PROJECT = Path(__file__).parents[2]
PARTS = (("brick", "coins"), ("grass", "gravel"), ("moon", "retina", "tissue"))
MODELS: dict[str, Any] = {"InCTRL": InCTRL, "InCTRLv2": InCTRLv2}
CONFIGS = {"InCTRL": "recommended_inctrl.yaml", "InCTRLv2": "recommended_inctrl_v2.yaml"}
EPISODES = {"batch_size": 32, "steps_per_epoch": 50, "k_shots": [1, 2, 4, 8], "validation_share": 0}


def train(name: str, categories: list[str], seed: int, folder: Path, args: argparse.Namespace) -> Any:
    """Train heads as ``anomalib fit`` does."""
    seed_everything(seed)
    recommended = yaml.safe_load((PROJECT / "configs" / CONFIGS[name]).read_text())["model"]["init_args"]
    recommended |= yaml.safe_load(args.options)
    parts = [DemoAD(root=args.data, category=category) for category in categories]
    model = MODELS[name](
        backbone="inctrl-tiny",
        weights=args.weights,
        phase="train",
        learning_rate=args.learning_rate,
        feature_cache=folder / "features",
        visualizer=False,
        **recommended,
    )
    engine = Engine(
        default_root_dir=folder / "runs",
        accelerator="cpu",
        max_epochs=args.epochs,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    engine.fit(model, datamodule=AuxiliaryData(parts, seed=seed, **EPISODES))
    return model


@torch.no_grad()
def evaluate(model: Any, task: Task, queries: ImageFeatures, draws: range, k_shot: int) -> np.ndarray:
    """Image AUROC and pixel AUPRO with ``k_shot`` references, means over draws of these."""
    torch_model = model.eval().model
    values = []
    for number in draws:
        references = np.array(draw([f"{i:06}" for i in task.references], k_shot, number), dtype=int)
        torch_model.set_references(task.images[torch.as_tensor(references)], task.class_name)
        explanation = torch_model.score(queries, torch_model.references.context())
        batch = ImageBatch(
            image=torch.zeros(len(task.queries), 3, 1, 1),
            pred_score=explanation.score,
            anomaly_map=explanation.anomaly_map.squeeze(1),
            gt_label=task.labels.bool(),
            gt_mask=task.masks,
        )
        for metric in (AUROC(fields=["pred_score", "gt_label"]), AUPRO(fields=["anomaly_map", "gt_mask"])):
            metric.update(batch)
            values.append(float(metric.compute()))
    return np.reshape(values, (-1, 2)).mean(axis=0)


def report(line: str) -> None:
    """Show what has been found so far."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    """Print the means of every seed and their spread."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("datasets/DemoAD"), help="where DemoAD is or comes to be")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--weights", help="heads to begin with; random ones without")
    parser.add_argument("--options", default="{}", help="of the model, besides the recommended ones, as YAML")
    parser.add_argument("--draws", type=int, default=1, help="of references, for every seed others")
    parser.add_argument("--k-shots", type=int, nargs="+", default=[4], help="numbers of references to try heads with")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    transform = InCTRLv2(backbone="inctrl-tiny").pre_processor.transform
    tasks = {c: from_datamodule(DemoAD(root=args.data, category=c), transform) for part in PARTS for c in part}
    with tempfile.TemporaryDirectory() as folder:
        for name in args.models:
            free = MODELS[name](backbone="inctrl-tiny")
            with torch.no_grad():
                queries = {c: free.model.encode(t.images[torch.as_tensor(t.queries)]) for c, t in tasks.items()}
            results: dict[int, list[np.ndarray]] = {k: [] for k in args.k_shots}
            for seed in range(args.seeds):
                draws = range(seed * args.draws, (seed + 1) * args.draws)
                rows: dict[int, list[np.ndarray]] = {k: [] for k in args.k_shots}
                for left_out in PARTS:
                    trained = train(name, [c for c in tasks if c not in left_out], seed, Path(folder), args)
                    for category, k in itertools.product(left_out, args.k_shots):
                        given = (tasks[category], queries[category], draws, k)
                        rows[k].append(np.concatenate([evaluate(free, *given), evaluate(trained, *given)]))
                        report(f"{name}, seed {seed}, {category}, K = {k}: {np.round(rows[k][-1], 3)}")
                for k in args.k_shots:
                    results[k].append(np.mean(rows[k], axis=0))
            for k in args.k_shots:
                free, after = np.split(np.array(results[k]), 2, axis=1)
                for measure, before, now in zip(("image AUROC", "pixel AUPRO"), free.T, after.T, strict=True):
                    gain = now - before
                    report(
                        f"{name}, K = {k}, {measure}: training-free {before.round(3)}, trained {now.round(3)}, "
                        f"gain {gain.mean():.3f}, its spread over seeds {gain.std(ddof=min(1, len(gain) - 1)):.3f}"
                    )


if __name__ == "__main__":
    main()
