"""Cost of scoring an image beside open_clip's own ``encode_image``, on this machine.

Not a test: run ``python tests/benchmarks/scoring_cost.py``. The two are timed in turn, round by round, so that a drift
of the machine's speed meets both; the ratio's median over the rounds is what counts.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from typing import TYPE_CHECKING

import torch

from anomalib_inctrl.clip import ClipBackbone, create_clip
from anomalib_inctrl.models.inctrl.torch_model import InCTRLModel
from anomalib_inctrl.models.inctrl_v2.torch_model import InCTRLv2Model

if TYPE_CHECKING:
    from collections.abc import Callable


def seconds(call: Callable[[], object]) -> float:
    """Time one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    """Print the ratio of scoring to encoding for both models and several batch sizes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="ViT-B-16-plus-240")
    parser.add_argument("--k-shot", type=int, nargs="+", default=[8])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    plain = create_clip(options.backbone, None).eval()
    backbone = ClipBackbone(options.backbone)
    sys.stdout.write("| model | K | batch | encode_image, ms | scoring, ms | ratio (median, min to max) |\n")
    sys.stdout.write("|---|---|---|---|---|---|\n")
    for kind in (InCTRLModel, InCTRLv2Model):
        model = kind(backbone, branches=kind.BRANCHES).eval()
        model._text_prototypes["cat"] = torch.nn.functional.normalize(torch.randn(2, backbone.embed_dim), dim=-1)
        for k_shot in options.k_shot:
            model.set_references(torch.randn(k_shot, 3, *backbone.image_size), "cat")
            for batch in options.batch:
                sys.stdout.write(measure(plain, model, k_shot, batch, options.rounds))
                sys.stdout.flush()


@torch.inference_mode()
def measure(plain: torch.nn.Module, model: torch.nn.Module, k_shot: int, batch: int, rounds: int) -> str:
    """Time both in turn."""
    images = torch.randn(batch, 3, *model.backbone.image_size)
    for _ in range(2):
        plain.encode_image(images), model(images)
    pairs = [(seconds(lambda: plain.encode_image(images)), seconds(lambda: model(images))) for _ in range(rounds)]
    ratios = [scoring / encoding for encoding, scoring in pairs]
    encoding, scoring = (1000 * statistics.median(column) for column in zip(*pairs, strict=True))
    spread = f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
    return f"| {type(model).__name__} | {k_shot} | {batch} | {encoding:.0f} | {scoring:.0f} | {spread} |\n"


if __name__ == "__main__":
    main()
