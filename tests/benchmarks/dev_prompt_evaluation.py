"""What DevPrompt finds with and without its deviation loss, beside the same model untrained and training-free InCTRL.

Not a test: run ``python tests/benchmarks/dev_prompt_evaluation.py``. Every method has the same normal images, queries
and embedded backbone; training is what ``fit`` does, with its defaults. Choices are made on ``generated``, whose
categories no training of the backbone sees; ``demo`` serves for the report alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from tiny_evaluation import Task, demo_tasks, generated_tasks
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from anomalib_inctrl import DevPrompt
from anomalib_inctrl.clip import EMBEDDED_BACKBONE, ClipBackbone
from anomalib_inctrl.models.dev_prompt.lightning_model import rows_of_step
from anomalib_inctrl.models.dev_prompt.synthesis import draw_anomalies
from anomalib_inctrl.models.dev_prompt.torch_model import DevPromptModel
from anomalib_inctrl.models.inctrl.torch_model import InCTRLModel
from anomalib_inctrl.pre_processing import ClipPreProcessor

DEFAULTS = {name: p.default for name, p in signature(DevPrompt.__init__).parameters.items() if name != "self"}
IMAGES_AT_ONCE = 32


def train(model: DevPromptModel, seed: int, steps: int, deviation_weight: float) -> None:
    """Learn the context on the model's references."""
    model.use_branches(["context"])
    drawn, _ = draw_anomalies(model.references.pictures, DEFAULTS["synthetic_images"], seed)
    features = model.training_features(model.backbone.from_pictures(drawn))
    optimizer = torch.optim.Adam(model.prompt_learner.parameters(), lr=DEFAULTS["learning_rate"])
    for step in range(steps):
        rows = rows_of_step(len(features.synthetic), DEFAULTS["batch_size"], seed, step)
        losses = model.losses(features._replace(synthetic=features.synthetic[rows]))
        optimizer.zero_grad()
        (losses["prompt"] + deviation_weight * losses["deviation"]).backward()
        optimizer.step()
    model.refresh()


@torch.no_grad()
def measure(model: Any, images: Tensor, labels: Tensor, masks: Tensor) -> tuple[float, float]:
    """Image and pixel AUROC."""
    parts = [model(chunk) for chunk in images.split(IMAGES_AT_ONCE)]
    scores, maps = (torch.cat([getattr(part, name) for part in parts]) for name in ("pred_score", "anomaly_map"))
    maps = (maps - maps.min()) / (maps.max() - maps.min())
    pixel = binary_auroc(maps.flatten(), masks.flatten().int(), thresholds=1000)
    return float(binary_auroc(scores, labels)), float(pixel)


def compare(task: Task, k_shot: int, seed: int, steps: int, options: dict) -> dict[str, tuple[float, float]]:
    """Measure all methods on one task with one draw of normal images."""
    backbone = ClipBackbone(EMBEDDED_BACKBONE)
    order = torch.randperm(len(task.references), generator=torch.Generator().manual_seed(seed))[:k_shot].numpy()
    references = task.images[task.references[order]]
    queries = (task.images[task.queries], task.labels, task.masks)
    found = {}
    inctrl = InCTRLModel(backbone).eval()
    inctrl.set_references(references, task.class_name)
    found["InCTRL, training-free"] = measure(inctrl, *queries)
    weight = options.pop("deviation_weight", DEFAULTS["deviation_weight"])
    variants = {"fixed prompts": None, "without deviation loss": 0.0, "full": weight}
    for name, deviation_weight in variants.items():
        model = DevPromptModel(backbone, **options).eval()
        model.set_references(references, task.class_name)
        if deviation_weight is not None:
            train(model, seed, steps, deviation_weight)
        found[f"DevPrompt, {name}"] = measure(model, *queries)
        model.fusion = "text"  # what the learned prompts see without the visual memory
        found[f"DevPrompt, {name}, no memory"] = measure(model, *queries)
    return found


def main() -> None:
    """Print image and pixel AUROC of every method, set and number of normal images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=["demo"], choices=["demo", "generated"])
    parser.add_argument("--categories", nargs="*", help="only these")
    parser.add_argument("--k-shots", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=DEFAULTS["steps"])
    parser.add_argument("--option", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    parser.add_argument("--root", type=Path, default=Path("datasets"))
    arguments = parser.parse_args()
    options = {name: json.loads(value) if value[0] in "-0123456789[" else value for name, value in arguments.option}
    transform = ClipPreProcessor(ClipBackbone(EMBEDDED_BACKBONE).convention).transform
    for which in arguments.sets:
        found: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
        for task in (demo_tasks if which == "demo" else generated_tasks)(transform, arguments.root):
            if arguments.categories and task.name.partition("-")[0] not in arguments.categories:
                continue
            for k_shot in arguments.k_shots:
                for seed in range(arguments.seeds):
                    for name, values in compare(task, k_shot, seed, arguments.steps, dict(options)).items():
                        found[name, k_shot].append(values)
                        line = f"{which} {task.name} K={k_shot} seed {seed} {name}: {values[0]:.3f} / {values[1]:.3f}\n"
                        sys.stderr.write(line)
        sys.stdout.write(f"\n{which}: image AUROC / pixel AUROC, mean over categories and {arguments.seeds} seeds\n")
        for name in dict.fromkeys(name for name, _ in found):
            cells = []
            for k_shot in arguments.k_shots:
                image, pixel = torch.tensor(found[name, k_shot]).mean(dim=0).tolist()
                cells.append(f"K={k_shot}: {image:.3f} / {pixel:.3f}")
            sys.stdout.write(f"{name:45} {'   '.join(cells)}\n")


if __name__ == "__main__":
    main()
