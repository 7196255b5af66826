"""Anomalies drawn on normal images: what DevPrompt's deviation loss learns from where nobody has seen a defect."""

from __future__ import annotations

import torch
from anomalib.data.utils.generators.perlin import PerlinAnomalyGenerator
from torch import Tensor

_SMALLEST_AREA, _LARGEST_AREA = 0.005, 0.4  # share of pixels that change
_VISIBLE = 0.03  # smallest change of a pixel that counts, of the range [0, 1]
_ATTEMPTS = 20


def draw_anomalies(pictures: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Put blotches of Perlin noise on normal pictures, with anomalib's generator, the same for the same seed.

    A blotch that nobody could see, or that leaves next to nothing of the picture, is drawn again. The paper does not
    say where its anomalies come from; that they come from here is a choice of ours.

    Args:
        pictures (Tensor): 8-bit images ``(K, 3, H, W)``; they take turns.
        count (int): Number of pictures to draw.
        seed (int): Of everything drawn; other generators of random numbers are left alone.

    Returns:
        tuple[Tensor, Tensor]: 8-bit images ``(count, 3, H, W)`` and where they changed, ``bool`` ``(count, H, W)``.

    Raises:
        RuntimeError: If nothing visible can be drawn on a picture.
    """
    sources = pictures.cpu().float() / 255
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        generator = PerlinAnomalyGenerator(probability=1.0)
        drawn = [_draw(sources[i % len(sources)], generator) for i in range(count)]
    images, masks = zip(*drawn, strict=True)
    return torch.stack(images).mul(255).round().to(torch.uint8), torch.stack(masks)


def _draw(picture: Tensor, generator: PerlinAnomalyGenerator) -> tuple[Tensor, Tensor]:
    for _ in range(_ATTEMPTS):
        anomalous = generator(picture)[0].clamp(0, 1)
        changed = (anomalous - picture).abs().amax(dim=0) > _VISIBLE
        if _SMALLEST_AREA <= changed.float().mean() <= _LARGEST_AREA:
            return anomalous, changed
    msg = f"No visible anomaly could be drawn on a reference image in {_ATTEMPTS} attempts; is it a picture at all?"
    raise RuntimeError(msg)
