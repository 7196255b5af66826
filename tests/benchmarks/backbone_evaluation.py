"""What the embedded backbone's features tell apart, on generated categories and on parts of photographs.

Not a test: run ``python tests/benchmarks/backbone_evaluation.py``. This is the data that choices about the backbone are
made on. No category is one that it was trained on, and ``DemoAD``, ``DigitsAD`` and ``FacesAD`` take nothing from the
photographs. ``--weights`` takes a file that the pre-training wrote, ``--heads InCTRLv2:inctrl-tiny`` or
``--heads InCTRL:heads.safetensors`` asks for the whole score of a model as well. ``--fonts`` takes files of handwriting
fonts: a letter is a category then, its fonts are normal and other letters anomalous. ``--textures`` takes photographs
of surfaces, each of which is a category; damage is of the kinds that ``DemoAD`` has.
"""

from __future__ import annotations

import argparse
import string
import sys
from collections import defaultdict
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the customary name
from torchmetrics.functional.classification import binary_auroc
from torchvision.transforms.v2.functional import InterpolationMode, resize

import anomalib_inctrl
from anomalib_inctrl.clip import EMBEDDED_BACKBONE, ClipBackbone
from anomalib_inctrl.data.defects import KINDS, add_defect
from anomalib_inctrl.data.defects import resize as enlarge
from anomalib_inctrl.data.procedural import FAMILIES, GLOBAL_KINDS, LOCAL_KINDS, OTHER, Category
from anomalib_inctrl.data.procedural.damage import apply_damage
from anomalib_inctrl.data.procedural.glyphs import GLYPHS
from anomalib_inctrl.in_context import InContextModel
from anomalib_inctrl.models.inctrl.torch_model import InCTRLModel
from anomalib_inctrl.pretraining.objective import ANOMALOUS
from anomalib_inctrl.reference_views import ReferenceViews

REFERENCES = 4
BICUBIC = InterpolationMode.BICUBIC
SIDE = 224  # of the pictures, before the backbone's preprocessing
PHOTOGRAPHS = {  # rows and columns of the part that is taken for one kind of surface
    "astronaut": (330, 512, 0, 150),
    "camera": (300, 512, 0, 512),
    "hubble_deep_field": (0, 872, 0, 1000),
    "page": (0, 191, 0, 384),
    "text": (0, 172, 0, 448),
    "rocket": (0, 200, 0, 640),
    "clock": (0, 300, 0, 400),
    "china.jpg": (0, 427, 0, 640),
    "flower.jpg": (0, 427, 0, 640),
}


class Task(NamedTuple):
    """Pictures ``(M, S, S, 3)``: references, normal ones, then anomalous ones by kind; masks of the first kind."""

    name: str
    normal: np.ndarray
    anomalous: dict[str, np.ndarray]
    masks: np.ndarray


def generated() -> Iterator[Task]:
    """Two categories of every family, eight of one of glyphs; six pictures each with local and with other anomalies."""
    for number, family in enumerate(FAMILIES):
        for member in range(8 if family in GLYPHS else 2):
            generator = np.random.default_rng((77, number, member))
            category = Category.sample(generator, family)
            name = "surface" if category.is_surface else "glyph" if family in GLYPHS else "object"
            try:
                normal = [category.draw_normal(generator, count, SIDE) for count in (REFERENCES, 6)]
                kinds = [LOCAL_KINDS[generator.integers(len(LOCAL_KINDS))] for _ in range(6)]
                local = category.draw_anomalous(generator, kinds, SIDE)
                kinds = [
                    GLOBAL_KINDS[generator.integers(len(GLOBAL_KINDS))] if category.is_surface else OTHER
                    for _ in range(6)
                ]
                other = category.draw_anomalous(generator, kinds, SIDE)
            except RuntimeError:  # no damage shows on it
                continue
            yield Task(name, np.concatenate(normal), {"local": local.images, "other": other.images}, local.masks)


def photographed() -> Iterator[Task]:
    """Parts of photographs at two scales, ten normal and sixteen damaged ones each."""
    import skimage.data
    from sklearn.datasets import load_sample_image

    for number, (name, (top, bottom, left, right)) in enumerate(PHOTOGRAPHS.items()):
        loaded = np.asarray(load_sample_image(name) if name.endswith(".jpg") else getattr(skimage.data, name)())
        rgb = loaded[..., :3] if loaded.ndim == 3 else np.repeat(loaded[..., None], 3, axis=-1)
        photograph = rgb[top:bottom, left:right].astype(np.float32) / 255
        for size in (64, 112):
            if min(photograph.shape[:2]) >= size + 8:
                yield photographed_task(photograph, size, np.random.default_rng((5, number, size)))


def photographed_task(photograph: np.ndarray, size: int, generator: np.random.Generator) -> Task:
    """Cut normal and damaged squares out of a photograph."""

    def cut() -> np.ndarray:
        y = generator.integers(0, photograph.shape[0] - size)
        x = generator.integers(0, photograph.shape[1] - size)
        part = photograph[y : y + size, x : x + size]
        part = part[:, ::-1] if generator.random() < 0.5 else part
        enlarged = Image.fromarray((part * 255).astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        return np.asarray(enlarged, dtype=np.float32) / 255

    normal = [cut() for _ in range(REFERENCES + 10)]
    damaged: list[np.ndarray] = []
    masks: list[np.ndarray] = []
    while len(damaged) < 16:
        kind = LOCAL_KINDS[generator.integers(len(LOCAL_KINDS))]
        donor = Category.sample(generator).family.render(generator, 1, SIDE).image
        try:
            image, mask = apply_damage(generator, kind, cut()[None], np.ones((1, SIDE, SIDE), np.float32), donor)
        except RuntimeError:  # it does not show
            continue
        damaged.append(image[0])
        masks.append(mask[0])
    pictures = [(np.clip(np.stack(p), 0, 1) * 255).round().astype(np.uint8) for p in (normal, damaged)]
    return Task("photograph", pictures[0], {"local": pictures[1]}, np.stack(masks))


def textured(files: list[Path]) -> Iterator[Task]:
    """Parts of surfaces, fine and blurred or large and sharp: references of the left half, all others of the right."""
    for number, file in enumerate(files):
        surface = np.asarray(Image.open(file).convert("RGB"))
        for name, share in (("fine texture", None), ("texture", 0.33)):
            generator = np.random.default_rng((57, number, share is None))
            shorter = min(surface.shape[:2])
            side = (64 if shorter >= 500 else 48) if share is None else max(64, int(share * shorter))
            cuts = [texture_cut(surface, side, half, generator) for half in [0] * REFERENCES + [1] * 18]
            damaged = []
            for index in range(4 * len(KINDS)):
                clean = cuts[REFERENCES + index % 18]
                try:
                    damaged.append(
                        add_defect(clean, KINDS[index // 4], generator, SIDE, opacity=generator.uniform(0.35, 0.8))
                    )
                except RuntimeError:  # it does not show
                    continue
            if damaged:
                normal = np.stack([enlarge(cut, SIDE) for cut in cuts])
                masks = np.stack([damage.mask for damage in damaged])
                yield Task(name, normal, {"local": np.stack([damage.image for damage in damaged])}, masks)


def texture_cut(surface: np.ndarray, side: int, half: int, generator: np.random.Generator) -> np.ndarray:
    """Cut a square out of the left (0) or the right (1) half of a surface, ``(side, side, 3)``."""
    height, width = surface.shape[:2]
    x = generator.integers(half * width // 2, max((half + 1) * width // 2 - side, half * width // 2) + 1)
    y = generator.integers(0, height - side + 1)
    return surface[y : y + side, x : x + side]


def lettered(fonts: list[Path]) -> Iterator[Task]:
    """Letters, white on black, filling their box, at the few pixels of a scan and at more."""
    for pixels in (8, 28):
        written = {c: np.stack([letter(font, c, pixels) for font in fonts]) for c in string.ascii_lowercase}
        for draw in range(3):
            generator = np.random.default_rng((9, draw))
            for character, images in written.items():
                others = [v[generator.permutation(len(v))[:3]] for c, v in written.items() if c != character]
                drawn = images[generator.permutation(len(images))]
                yield Task(f"letter of {pixels} pixels", drawn, {"other": np.concatenate(others)}, np.empty(0))


def letter(font: Path, character: str, pixels: int) -> np.ndarray:
    """Write a letter and scan it, ``(pixels, pixels, 3)``, ``uint8``."""
    page = Image.new("L", (480, 480))
    ImageDraw.Draw(page).text((120, 100), character, fill=255, font=ImageFont.truetype(font, 160))
    ink = page.crop(page.getbbox())
    side = int(1.15 * max(ink.size))
    framed = Image.new("L", (side, side))
    framed.paste(ink, ((side - ink.width) // 2, (side - ink.height) // 2))
    scan = np.asarray(framed.resize((pixels, pixels), Image.Resampling.BOX))
    return np.repeat(scan[..., None], 3, axis=-1)


def prepare(backbone: ClipBackbone, pictures: np.ndarray) -> Tensor:
    """Bring pictures ``(M, S, S, 3)`` into the form that the backbone takes."""
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    return backbone.from_pictures(resize(pixels, list(backbone.image_size), BICUBIC))


def evaluate(model: InContextModel, task: Task) -> Iterator[tuple[str, float]]:
    """AUROC of patches, of largest residuals, and of the embedding's distance to the nearest reference."""
    model.set_references(prepare(model.backbone, task.normal[:REFERENCES]))
    embeddings = F.normalize(model.references.pooled, dim=-1)

    def score(pictures: np.ndarray) -> tuple[Tensor, Tensor]:
        features = model.encode(prepare(model.backbone, pictures))
        distance = 1 - (F.normalize(features.pooled, dim=-1) @ embeddings.T).amax(dim=-1)
        return model.references.context().patch_residuals(features.patches), distance

    normal, normal_distance = score(task.normal[REFERENCES:])
    for kind, pictures in task.anomalous.items():
        anomalous, distance = score(pictures)
        yield f"{task.name}, images, {kind}", auroc(normal.amax(dim=-1), anomalous.amax(dim=-1))
        yield f"{task.name}, embedding, {kind}", auroc(normal_distance, distance)
        if kind == "local":
            masks = torch.from_numpy(task.masks).float()
            coverage = F.adaptive_avg_pool2d(masks, model.backbone.grid_size).flatten(1)
            intact = torch.cat([normal.flatten(), anomalous[coverage == 0]])
            yield f"{task.name}, patches", auroc(intact, anomalous[coverage >= ANOMALOUS])


def evaluate_heads(model: InContextModel, task: Task, name: str) -> Iterator[tuple[str, float]]:
    """AUROC of a model's whole score, with the task's first pictures as its references."""
    model.set_references(prepare(model.backbone, task.normal[:REFERENCES]))
    normal = model(prepare(model.backbone, task.normal[REFERENCES:])).pred_score
    for kind, pictures in task.anomalous.items():
        anomalous = model(prepare(model.backbone, pictures)).pred_score
        yield f"{task.name}, {name}, {kind}", auroc(normal, anomalous)


def auroc(normal: Tensor, anomalous: Tensor) -> float:
    """AUROC of normal against anomalous scores, which are ranked so that no sigmoid can make ties of them."""
    ranks = torch.cat([normal, anomalous]).unique(return_inverse=True)[1].double()
    labels = torch.arange(len(ranks)) >= len(normal)
    return float(binary_auroc(ranks / max(float(ranks.max()), 1), labels.int()))


@torch.inference_mode()
def main() -> None:
    """Print a line per figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, help="file of the pre-training; the embedded weights without it")
    parser.add_argument("--heads", nargs="*", default=[], help="models and their heads, with a colon between")
    parser.add_argument("--fonts", type=Path, nargs="*", default=[], help="handwriting, for letters; twenty or more")
    parser.add_argument(
        "--textures", type=Path, nargs="*", default=[], help="photographs of surfaces, 250 pixels or more"
    )
    parser.add_argument("--views", choices=get_args(ReferenceViews), help="of references; the backbone's without it")
    options = parser.parse_args()
    if options.weights and options.heads:
        parser.error("heads belong to the embedded weights: measure those of --weights without --heads")
    backbone = ClipBackbone(EMBEDDED_BACKBONE)
    if options.weights:
        from safetensors.torch import load_file

        state = {name: value.float() for name, value in load_file(options.weights).items()}
        for name, tower in (("visual.", backbone.visual), ("shapes.", backbone.shapes)):
            tower.load_state_dict({k.removeprefix(name): value for k, value in state.items() if k.startswith(name)})
    models = {}
    for heads in options.heads:
        name, _, file = heads.partition(":")
        kind = getattr(anomalib_inctrl, name)
        built = kind(backbone=EMBEDDED_BACKBONE, weights=file or None, reference_views=options.views)
        models[heads] = built.model.eval()
    comparison = InCTRLModel(backbone, reference_views=options.views).eval()
    found: dict[str, list[float]] = defaultdict(list)
    more = (textured(options.textures), lettered(options.fonts) if options.fonts else ())
    for tasks in (generated(), photographed(), *more):
        for task in tasks:
            values = [evaluate(comparison, task)]
            values += [evaluate_heads(model, task, heads) for heads, model in models.items()]
            for name, value in chain.from_iterable(values):
                found[name].append(value)
    for name, values in sorted(found.items()):
        sys.stdout.write(f"{name}: {np.mean(values):.3f} ({len(values)} categories)\n")


if __name__ == "__main__":
    main()
