"""Cached features change nothing but the time a step takes."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from anomalib_inctrl.clip import ClipBackbone, ImageFeatures
from anomalib_inctrl.feature_cache import FeatureCache
from anomalib_inctrl.pair_residuals import PairResiduals
from anomalib_inctrl.scoring import nearest_residuals

# Half precision rounds features by 5e-4 of their size. Batch norm amplifies that where a batch varies little, as these
# drawn images do, and Adam's first steps do where a gradient is near 0; hence no training here, and rounding below.
TOLERANCE = 3e-3


def largest_difference(kit, folder, name: str, **options) -> float:
    """Largest difference of any loss term at any step, with and without cache."""
    models = {cache: kit.build(name, feature_cache=cache, **options) for cache in (kit.cache, None)}
    cached, encoded = (
        kit.fit(model, folder / str(bool(cache)), kit.data_without_validation()).losses.steps
        for cache, model in models.items()
    )
    assert len(cached) == len(encoded) == 3
    return max(abs(c[term] - e[term]) for c, e in zip(cached, encoded, strict=True) for term in c)


def test_same_losses_with_and_without_cache(kit, name, tmp_path):
    difference = largest_difference(kit, tmp_path, name, learning_rate=0.0)
    assert difference < TOLERANCE


def test_rounding_is_all_that_differs_in_training(kit, name, tmp_path, monkeypatch):
    """Encoding in every step, rounded as the cache does, trains alike."""
    encode = ClipBackbone.encode_image

    def rounded(self: ClipBackbone, images: torch.Tensor) -> ImageFeatures:
        return ImageFeatures(*(part.half().float() for part in encode(self, images)))

    monkeypatch.setattr(ClipBackbone, "encode_image", rounded)
    difference = largest_difference(kit, tmp_path, name)
    assert difference < TOLERANCE


def test_pair_residuals_are_nearest_residuals(kit, monkeypatch):
    monkeypatch.setattr("anomalib_inctrl.pair_residuals._FIRST_ROOM", 5)  # so that twelve pairs make it grow twice
    model = kit.build("InCTRL")
    data = kit.data()
    data.setup()
    cache = FeatureCache(kit.cache, model.model.backbone, model.pre_processor.transform)
    paths = [image.path for image in data.train_pool.images]
    cache.fill(paths)
    queries, references = paths[:4], [paths[4:7], paths[5:8], paths[8:11], [paths[0], paths[20], paths[21]]]
    pairs = PairResiduals(cache, torch.device("cpu"))
    found = pairs(queries, references)

    others = torch.stack([cache.read(row).patches.float() for row in references])  # (B, K, L, N, W)
    others = F.normalize(others.transpose(1, 2).flatten(2, 3), dim=-1)
    wanted = nearest_residuals(cache.read(queries).patches.float(), others)
    assert (found - wanted).abs().max() < 2**-11  # half precision of values below 1
    assert len(pairs) == 12
    assert torch.equal(pairs(queries, references), found)
    assert len(pairs) == 12


def test_no_image_is_encoded_once_the_cache_is_full(kit, name, monkeypatch, tmp_path):
    kit.fit(kit.build(name), tmp_path / "first")
    model = kit.build(name)
    monkeypatch.setattr(model.model.backbone, "encode_image", lambda _: pytest.fail("an image was encoded"))
    kit.fit(model, tmp_path / "second")
