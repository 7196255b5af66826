"""What a smaller bank costs in accuracy: patch residuals of generated categories against coresets of their references.

Not a test: run ``python tests/benchmarks/bank_reduction.py``. Image AUROC is that of the largest residual, pixel AUROC
that of the residual map, both means over the categories.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
import torch
from torchmetrics.functional import auroc

from anomalib_inctrl.clip import ClipBackbone
from anomalib_inctrl.data.generated import CATEGORIES, FAMILY_BY_NAME
from anomalib_inctrl.data.procedural import Category
from anomalib_inctrl.runtime import Bank
from anomalib_inctrl.scoring import nearest_residuals, to_pixels


def encode(backbone: ClipBackbone, images: np.ndarray) -> torch.Tensor:
    """Patches ``(n, L, N, W)`` of images ``(n, H, W, 3)``, uint8."""
    pictures = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    return torch.cat([backbone.encode_image(backbone.from_pictures(part)).patches for part in pictures.split(8)])


def bank_of(patches: torch.Tensor) -> Bank:
    """A bank of nothing but patches ``(K, L, N, W)``."""
    count, blocks, _, width = patches.shape
    empty = Bank(
        patches=np.zeros((blocks, 0, width), np.float32),
        origins=np.zeros(0, np.int32),
        pooled=np.zeros((0, 1), np.float32),
        pictures=np.zeros((0, 3, 1, 1), np.uint8),
        prototypes=np.zeros((2, 1), np.float32),
        fingerprint="",
        class_name="object",
    )
    return empty.add(patches.numpy(), np.zeros((count, 1)), np.zeros((count, 3, 1, 1), np.uint8), [""] * count)


@torch.inference_mode()
def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="inctrl-tiny")
    parser.add_argument("--categories", type=int, default=10)
    parser.add_argument("--k-shot", type=int, default=64)
    parser.add_argument("--queries", type=int, default=24, help="normal ones, and as many anomalous ones")
    parser.add_argument("--shares", type=float, nargs="+", default=[1.0, 0.5, 0.25, 0.1])
    options = parser.parse_args()
    backbone = ClipBackbone(options.backbone)
    side, results = backbone.image_size[0], {}
    for number, name in enumerate(CATEGORIES[:: max(1, len(CATEGORIES) // options.categories)]):
        generator = np.random.default_rng([20, number])
        category = Category.sample(generator, FAMILY_BY_NAME[name])
        references = bank_of(encode(backbone, category.draw_normal(generator, options.k_shot, side)))
        normal = category.draw_normal(generator, options.queries, side)
        kinds = [category.draw_kind(generator) for _ in range(options.queries)]
        images, masks, _ = category.draw_anomalous(generator, kinds, side)
        queries = encode(backbone, np.concatenate([normal, images]))
        pixels = torch.from_numpy(np.concatenate([np.zeros_like(masks), masks])).int().flatten()
        labels = (torch.arange(len(queries)) >= options.queries).int()
        for share in options.shares:
            bank = torch.from_numpy(references.reduce(share).patches)
            for kind, kept in (("float32", bank), ("float16", bank.half().float())):
                residuals = nearest_residuals(queries, kept)
                maps = to_pixels(residuals, backbone.grid_size, (side, side)).flatten()
                found = (auroc(residuals.amax(1), labels, "binary"), auroc(maps, pixels, "binary", thresholds=500))
                results.setdefault((share, kind), []).append([float(value) for value in found])
    sys.stdout.write("| share kept | patches in | image AUROC | pixel AUROC |\n|---|---|---|---|\n")
    for (share, kind), found in results.items():
        image, pixel = np.mean(found, axis=0)
        sys.stdout.write(f"| {share:g} | {kind} | {image:.4f} | {pixel:.4f} |\n")


if __name__ == "__main__":
    main()
