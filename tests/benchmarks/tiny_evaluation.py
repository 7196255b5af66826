"""What the embedded backbone and its heads find on images they never saw, beside simpler methods.

Not a test: run ``python tests/benchmarks/tiny_evaluation.py``. Every method sees the same references, drawn as the
models draw them, and the same queries. The sets of real images (``demo``, ``digits``, ``faces``) serve for this report
alone; whatever is chosen about the backbone is chosen on ``generated``, whose categories no training sees.

Methods: the project's models with their embedded heads and without any; without any on the same backbone with random
weights; PatchCore's nearest neighbours (anomalib's default of 3 x 3 pooling; all patches kept, no re-weighting, which
matter little for so few references) on either backbone's features; nearest neighbours of the pixels (of images at
14 x 14 for the image score, of 8 x 8 patches at the backbone's size for the map).
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from anomalib.data.utils import read_image, read_mask
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the customary name
from torchmetrics.functional.classification import binary_auroc
from torchvision.tv_tensors import Mask

from anomalib_inctrl import DemoAD, InCTRL, InCTRLv2, ProceduralAD
from anomalib_inctrl.clip import EMBEDDED_BACKBONE, ClipBackbone, ImageFeatures
from anomalib_inctrl.data import demo, generated
from anomalib_inctrl.in_context import InContextModel
from anomalib_inctrl.models.inctrl.torch_model import InCTRLModel
from anomalib_inctrl.models.inctrl_v2.torch_model import InCTRLv2Model
from anomalib_inctrl.reference_images import draw
from anomalib_inctrl.references import Context
from anomalib_inctrl.scoring import to_pixels

UNSEEN_MEMBER = 1000  # of the generated families; training takes smaller numbers


class Task(NamedTuple):
    """Preprocessed images ``(M, 3, H, W)``, which may be references, which are queries, labels, masks of queries."""

    name: str
    class_name: str
    images: Tensor
    references: np.ndarray
    queries: np.ndarray
    labels: Tensor
    masks: Tensor | None


def from_datamodule(datamodule: Any, transform: Any) -> Task:
    """Take the training images as references, all test images as queries."""
    datamodule.prepare_data()
    datamodule.setup()
    train, test = datamodule.train_data.samples, datamodule.test_data.samples
    images = [transform(read_image(path, as_tensor=True)) for path in train.image_path]
    masks = []
    for row in test.itertuples():
        image = read_image(row.image_path, as_tensor=True)
        mask = read_mask(row.mask_path, as_tensor=True) if row.label_index else torch.zeros(image.shape[-2:])
        image, mask = transform(image, Mask(mask))
        images.append(image)
        masks.append(torch.as_tensor(mask).bool())
    return Task(
        name=datamodule.category,
        class_name=getattr(datamodule, "class_name", datamodule.category),
        images=torch.stack(images),
        references=np.arange(len(train)),
        queries=np.arange(len(train), len(images)),
        labels=torch.tensor(test.label_index.to_numpy()),
        masks=torch.stack(masks),
    )


def demo_tasks(transform: Any, root: Path) -> Iterator[Task]:
    """Real photographs with generated defects."""
    for category in demo.CATEGORIES:
        yield from_datamodule(DemoAD(root=root / "DemoAD", category=category), transform)


def generated_tasks(transform: Any, root: Path) -> Iterator[Task]:
    """Members of all generated families that no training saw."""
    for family in generated.CATEGORIES:
        category = f"{family}-{UNSEEN_MEMBER}"
        yield from_datamodule(ProceduralAD(root=root / "ProceduralAD", category=category), transform)


def digit_tasks(transform: Any, root: Path) -> Iterator[Task]:
    """Handwritten digits, one normal and the nine others anomalous: 50 queries of each, references from the rest."""
    del root
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels = torch.from_numpy((data.images / 16).astype(np.float32))[:, None].expand(-1, 3, -1, -1)
    images = torch.stack([transform(image) for image in pixels])
    order = np.random.default_rng(0).permutation(len(images))
    shuffled = [order[data.target[order] == digit] for digit in range(10)]
    queries = np.concatenate([members[:50] for members in shuffled])
    for digit in range(10):
        labels = torch.from_numpy((data.target[queries] != digit).astype(np.int64))
        yield Task(f"digit {digit}", "digit", images, shuffled[digit][50:], queries, labels, None)


def face_tasks(transform: Any, root: Path) -> Iterator[Task]:
    """Faces normal, other crops of the same photographs anomalous."""
    del root
    from skimage.data import lfw_subset

    pixels = torch.from_numpy(lfw_subset().astype(np.float32))[:, None].expand(-1, 3, -1, -1)
    images = torch.stack([transform(image) for image in pixels])
    labels = (torch.arange(len(images)) >= len(images) // 2).long()
    yield Task("faces", "face", images, np.arange(len(images) // 2), np.arange(len(images)), labels, None)


TASKS: dict[str, Callable[[Any, Path], Iterator[Task]]] = {
    "generated": generated_tasks,
    "demo": demo_tasks,
    "digits": digit_tasks,
    "faces": face_tasks,
}


class Method(NamedTuple):
    """A name, the features it works on, and what turns features, references and queries into scores and maps."""

    name: str
    features: str
    score: Callable[[ImageFeatures, np.ndarray, np.ndarray, Tensor], tuple[Tensor, Tensor | None]]


def from_model(name: str, features: str, model: InContextModel) -> Method:
    """Wrap a model of the project."""

    def score(f: ImageFeatures, chosen: np.ndarray, queries: np.ndarray, prototypes: Tensor) -> tuple[Tensor, Tensor]:
        reference = F.normalize(f.patches[chosen], dim=-1).transpose(0, 1).flatten(1, 2)
        found = model.score(
            ImageFeatures(f.patches[queries], f.pooled[queries]), Context(reference, f.pooled[chosen], prototypes)
        )
        return found.score, found.anomaly_map

    return Method(name, features, score)


def nearest_pooled_patches(
    f: ImageFeatures, chosen: np.ndarray, queries: np.ndarray, _: Tensor
) -> tuple[Tensor, Tensor]:
    """PatchCore: concatenated blocks, pooled 3 x 3, Euclidean distance to the nearest reference patch."""
    side = int(f.patches.shape[2] ** 0.5)
    grid = f.patches.transpose(2, 3).flatten(1, 2).unflatten(-1, (side, side))
    pooled = F.avg_pool2d(grid, 3, 1, 1).flatten(2).transpose(1, 2)
    bank = pooled[chosen].flatten(0, 1)
    distances = torch.stack([torch.cdist(query, bank).amin(dim=-1) for query in pooled[queries]])
    return distances.amax(dim=-1), to_pixels(distances, (side, side), (8 * side, 8 * side))


def nearest_pixels(f: ImageFeatures, chosen: np.ndarray, queries: np.ndarray, _: Tensor) -> tuple[Tensor, Tensor]:
    """Images and patches of pixels, carried as features."""
    scores = torch.cdist(f.pooled[queries], f.pooled[chosen]).amin(dim=-1)
    bank = f.patches[chosen].flatten(0, 2)
    distances = torch.stack([torch.cdist(query.flatten(0, 1), bank).amin(dim=-1) for query in f.patches[queries]])
    side = int(distances.shape[1] ** 0.5)
    return scores, to_pixels(distances, (side, side), (8 * side, 8 * side))


@torch.no_grad()
def features_of(images: Tensor, backbones: dict[str, ClipBackbone]) -> dict[str, ImageFeatures]:
    """Encode images by every backbone, and take their pixels as features too."""
    found = {}
    for name, backbone in backbones.items():
        parts = [backbone.encode_image(chunk) for chunk in images.split(64)]
        found[name] = ImageFeatures(*(torch.cat(p) for p in zip(*parts, strict=True)))
    patches = F.unfold(images, 8, stride=8).transpose(1, 2)[:, None]
    found["pixels"] = ImageFeatures(patches, F.avg_pool2d(images, 8).flatten(1))
    return found


def methods(*, weights: bool) -> tuple[list[Method], dict[str, ClipBackbone], Any]:
    """All methods, the backbones they share, and how images are prepared for them."""
    v2 = InCTRLv2(backbone=EMBEDDED_BACKBONE, weights=EMBEDDED_BACKBONE if weights else None).eval()
    v1 = InCTRL(backbone=EMBEDDED_BACKBONE, weights=EMBEDDED_BACKBONE if weights else None).eval()
    trained, random = v2.model.backbone, ClipBackbone(EMBEDDED_BACKBONE, random=True)
    chosen = [
        *((from_model("InCTRLv2", "trained", v2.model), from_model("InCTRL", "trained", v1.model)) if weights else ()),
        from_model("InCTRLv2, training-free", "trained", InCTRLv2Model(trained)),
        from_model("InCTRL, training-free", "trained", InCTRLModel(trained)),
        from_model("InCTRL, training-free, random weights", "random", InCTRLModel(random)),
        Method("PatchCore", "trained", nearest_pooled_patches),
        Method("PatchCore, random weights", "random", nearest_pooled_patches),
        Method("nearest pixels", "pixels", nearest_pixels),
    ]
    return chosen, {"trained": trained, "random": random}, v2.pre_processor.transform


@torch.no_grad()
def main() -> None:
    """Print image and pixel AUROC of every method, set and number of references."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=["demo", "digits", "faces"], choices=sorted(TASKS))
    parser.add_argument("--k-shots", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--root", type=Path, default=Path("datasets"))
    parser.add_argument("--training-free", action="store_true", help="leave out the embedded heads")
    parser.add_argument("--each", action="store_true", help="print every category as well")
    options = parser.parse_args()
    compared, backbones, transform = methods(weights=not options.training_free)
    for which in options.sets:
        found: dict[tuple[str, int, str], list[list[float]]] = defaultdict(list)
        encoded: tuple[Tensor, dict[str, ImageFeatures]] | None = None
        for task in TASKS[which](transform, options.root):
            if encoded is None or encoded[0] is not task.images:
                encoded = (task.images, features_of(task.images, backbones))
            prototypes = {name: backbone.text_prototypes(task.class_name) for name, backbone in backbones.items()}
            for k_shot in options.k_shots:
                for seed in range(options.seeds):
                    names = draw([f"{index:05}" for index in task.references], k_shot, seed)
                    chosen = np.array([int(name) for name in names])
                    kept = ~np.isin(task.queries, chosen)
                    for method in compared:
                        scores, maps = method.score(
                            encoded[1][method.features],
                            chosen,
                            task.queries[kept],
                            prototypes.get(method.features, torch.empty(0)),
                        )
                        result = areas(task, kept, scores, maps)
                        found[method.name, k_shot, task.name].append(result)
        report(which, found, [m.name for m in compared], options.k_shots, options.each)


def areas(task: Task, kept: np.ndarray, scores: Tensor, maps: Tensor | None) -> list[float]:
    """Image AUROC, and pixel AUROC if there are masks."""
    # Scaled, since torchmetrics takes numbers above 1 for logits and sends them through a sigmoid, where they tie.
    found = [float(binary_auroc(scores / scores.amax().clamp(min=1e-9), task.labels[kept]))]
    if task.masks is not None and maps is not None:
        scaled = (maps / maps.amax().clamp(min=1e-9)).flatten()
        found.append(float(binary_auroc(scaled, task.masks[kept].flatten().int(), thresholds=1000)))
    return found


def report(which: str, found: dict, names: list[str], k_shots: list[int], each: bool) -> None:
    """Print one table: means over categories and seeds, and the standard deviation of the seeds' means."""
    tasks = list(dict.fromkeys(task for _, _, task in found))
    sys.stdout.write(
        f"\n{which}: image AUROC / pixel AUROC, mean over {len(tasks)} categories (deviation over seeds)\n"
    )
    sys.stdout.write("| method | " + " | ".join(f"K={k}" for k in k_shots) + " |\n|---|" + "---|" * len(k_shots) + "\n")
    for name in names:
        rows = [(name, tasks)] + [(f"- {task}", [task]) for task in tasks if each]
        for label, among in rows:
            cells = []
            for k in k_shots:
                values = np.array([found[name, k, task] for task in among]).mean(axis=0)  # (seeds, 1 or 2)
                cells.append(
                    " / ".join(f"{m:.3f} ({s:.3f})" for m, s in zip(values.mean(0), values.std(0), strict=True))
                )
            sys.stdout.write(f"| {label} | " + " | ".join(cells) + " |\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
