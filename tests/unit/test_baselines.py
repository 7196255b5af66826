"""SPADE, CLIP zero-shot and CoOp against written-out oracles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import nn
from torch.nn import functional

from anomalib_inctrl import Spade
from anomalib_inctrl.clip import EMBEDDED_TRUNK, ClipBackbone, ImageFeatures, image_convention
from anomalib_inctrl.models.clip_zero_shot.torch_model import ClipZeroShotModel
from anomalib_inctrl.models.coop.torch_model import CoOpModel
from anomalib_inctrl.models.spade.pyramids import ClipPyramid, Pyramid, TimmPyramid
from anomalib_inctrl.models.spade.torch_model import SpadeModel, nearest_places, squared_distances
from anomalib_inctrl.prompts import FIXED_PREFIX, prompt_ensemble

SIDE = image_convention(EMBEDDED_TRUNK).size[0]


def smooth(count: int) -> torch.Tensor:
    """Images with structure at several scales, so that patches differ."""
    coarse = nn.functional.interpolate(torch.randn(count, 3, 9, 9), size=SIDE, mode="bilinear")
    return coarse + 0.3 * torch.randn(count, 3, SIDE, SIDE)


# --------------------------------------------------------------------------------------------------------------- SPADE
class Blocks(nn.Module):
    """Means over blocks of 2, 4 and 8 pixels, and over all: a pyramid that can be worked out by hand."""

    num_levels = 3

    def forward(self, images: torch.Tensor) -> Pyramid:
        levels = [functional.avg_pool2d(images, side) * side for side in (2, 4, 8)]
        return Pyramid(images.mean(dim=(-2, -1)), levels)


def spade(normals: torch.Tensor, **options: object) -> SpadeModel:
    model = SpadeModel(Blocks(), **{"sigma": 1.0} | options).eval()
    model.remember(normals)
    model.fit()
    return model


def spade_by_hand(
    query: torch.Tensor, normals: torch.Tensor, num_neighbors: int, num_places: int
) -> tuple[float, np.ndarray]:
    """d(y) and d(y, p) of one image, in loops over images and places, in double precision."""

    def pyramid(image: torch.Tensor) -> np.ndarray:
        levels = Blocks()(image[None]).levels
        size = levels[0].shape[-2:]
        same = [functional.interpolate(level, size=size, mode="bilinear") for level in levels]
        return torch.cat(same, dim=1)[0].flatten(1).T.double().numpy()

    pooled = [normal.mean(dim=(-2, -1)).double().numpy() for normal in normals]
    own = query.mean(dim=(-2, -1)).double().numpy()
    distances = [float(((own - other) ** 2).sum()) for other in pooled]
    nearest = sorted(range(len(distances)), key=distances.__getitem__)[:num_neighbors]
    gallery = np.concatenate([pyramid(normals[i]) for i in nearest])
    places = [
        np.mean(sorted(float(((place - other) ** 2).sum()) for other in gallery)[:num_places])
        for place in pyramid(query)
    ]
    return float(np.mean([distances[i] for i in nearest])), np.array(places)


@pytest.mark.parametrize(("num_neighbors", "num_places"), [(1, 1), (3, 1), (2, 4), (50, 2)])
def test_spade_equals_the_paper_written_out(num_neighbors, num_places):
    normals, queries = torch.randn(5, 3, 16, 16), torch.randn(2, 3, 16, 16)
    model = spade(normals, num_neighbors=num_neighbors, num_places=num_places)
    found = model.explain(queries)
    for row, query in enumerate(queries):
        score, places = spade_by_hand(query, normals, num_neighbors, num_places)
        assert float(found.score[row]) == pytest.approx(score, rel=1e-4)
        np.testing.assert_allclose(found.place_distances[row].numpy(), places, rtol=1e-4, atol=1e-4)
        pixels = functional.interpolate(torch.from_numpy(places).reshape(1, 1, 8, 8), size=(16, 16), mode="bilinear")
        smoothed = gaussian_filter(pixels[0, 0].numpy(), sigma=1.0, mode="mirror")
        np.testing.assert_allclose(found.anomaly_map[row, 0].numpy(), smoothed, rtol=1e-3, atol=1e-3)


def test_spade_looks_at_places_of_the_nearest_images_alone():
    """A far image that holds the query's own places does not count among the neighbours."""
    query, alike = torch.randn(1, 3, 16, 16), torch.randn(1, 3, 16, 16)
    alike += (query - alike).mean(dim=(-2, -1), keepdim=True)
    shifted = query + 5.0
    shifted[:, :, 2:, :] = query[:, :, 2:, :]
    shifted[:, :, :2, :] += 50.0
    model = spade(torch.cat([shifted, alike]), num_neighbors=1)
    assert model.explain(query).neighbors.tolist() == [[1]]
    both = spade(torch.cat([shifted, alike]), num_neighbors=2)
    assert both.explain(query).place_distances[0, -1] == pytest.approx(0, abs=1e-3)
    assert model.explain(query).place_distances[0, -1] > 0.1


def test_spade_of_a_remembered_image_is_zero_and_a_batch_equals_its_images():
    normals, queries = torch.randn(4, 3, 16, 16), torch.randn(3, 3, 16, 16)
    model = spade(normals, num_neighbors=1)
    same = model(normals)
    torch.testing.assert_close(same.pred_score, torch.zeros(4), rtol=0, atol=1e-5)
    torch.testing.assert_close(same.anomaly_map, torch.zeros(4, 1, 16, 16), rtol=0, atol=1e-4)
    together = model(queries)
    for row in range(3):
        alone = model(queries[row : row + 1])
        torch.testing.assert_close(alone.pred_score[0], together.pred_score[row])
        torch.testing.assert_close(alone.anomaly_map[0], together.anomaly_map[row], rtol=1e-4, atol=1e-4)


def test_spade_memory_grows_and_travels_with_the_state_dict():
    normals, query = torch.randn(4, 3, 16, 16), torch.randn(1, 3, 16, 16)
    model = spade(normals[:1])
    model.remember(normals[1:])
    assert model.pooled.shape == (1, 3)
    model.fit()
    model.fit()  # nothing was taken in since
    expected = spade(normals)(query)
    torch.testing.assert_close(model(query).pred_score, expected.pred_score)
    fresh = SpadeModel(Blocks(), sigma=1.0).eval()
    fresh.load_state_dict(model.state_dict())
    torch.testing.assert_close(fresh(query).anomaly_map, expected.anomaly_map)
    with pytest.raises(RuntimeError, match=r"blur\.kernel"):  # another sigma gives other maps
        SpadeModel(Blocks(), sigma=2.0).load_state_dict(model.state_dict())
    model.forget()
    with pytest.raises(RuntimeError, match=r"SPADE has no normal images to compare with: fit it"):
        model(query)


def test_squared_distances_and_nearest_places_in_chunks():
    a, b = torch.randn(2, 1100, 3), torch.randn(2, 40, 3)
    expected = ((a[:, :, None] - b[:, None]) ** 2).sum(dim=-1)
    torch.testing.assert_close(squared_distances(a, b), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(nearest_places(a, b, 2), expected.topk(2, largest=False).values, rtol=1e-4, atol=1e-4)
    assert nearest_places(a, b, 99).shape == (2, 1100, 40)


def test_timm_pyramid_gives_the_stages_and_the_mean_of_the_last():
    pyramid = TimmPyramid("resnet18", ["layer1", "layer2", "layer3"], "layer4", pre_trained=False).eval()
    images = torch.randn(2, 3, 64, 64)
    found = pyramid(images)
    assert [tuple(level.shape) for level in found.levels] == [(2, 64, 16, 16), (2, 128, 8, 8), (2, 256, 4, 4)]
    torch.testing.assert_close(found.pooled, pyramid.extractor(images)["layer4"].mean(dim=(2, 3)))
    assert not any(parameter.requires_grad for parameter in pyramid.parameters())
    with pytest.raises(ValueError, match=r"resnet18 has no layers \['stage9'\]: name its own by layers"):
        TimmPyramid("resnet18", ["layer1", "stage9"], "layer4", pre_trained=False)


def test_clip_pyramid_keeps_places_in_order(tiny_backbone: ClipBackbone):
    images = smooth(2)
    features = tiny_backbone.encode_image(images)
    found = ClipPyramid(tiny_backbone)(images)
    columns = tiny_backbone.grid_size[1]
    expected = functional.normalize(features.patches[1, 0, 2 * columns + 3], dim=-1)
    torch.testing.assert_close(found.levels[0][1, :, 2, 3], expected)
    assert len(found.levels) == len(tiny_backbone.layers)
    torch.testing.assert_close(found.pooled, functional.normalize(features.pooled, dim=-1))


@pytest.mark.parametrize("name", ["num_neighbors", "num_places", "sigma"])
def test_spade_refuses_numbers_that_are_not_positive(name):
    with pytest.raises(ValueError, match=f"{name} must be larger than 0, got 0"):
        SpadeModel(Blocks(), **{name: 0})


def test_spade_takes_networks_of_timm_with_their_own_preprocessing():
    model = Spade(backbone="resnet18", pre_trained=False, layers=["layer2", "layer3"])
    assert model.model.extractor.layers == ["layer2", "layer3"]
    sizes = [part.size for part in model.pre_processor.transform.transforms if hasattr(part, "size")]
    assert [list(size) for size in sizes] == [[256, 256]]
    with pytest.raises(ValueError, match=rf"takes images of \({SIDE}, {SIDE}\), not \(64, 64\)"):
        Spade(backbone=EMBEDDED_TRUNK, pretrained=None).configure_pre_processor((64, 64))


# ------------------------------------------------------------------------------------------------------ text baselines
def by_hand(backbone: ClipBackbone, image: torch.Tensor, prototypes: torch.Tensor, scale: float) -> float:
    """Anomalous entry of the softmax over scaled cosine similarities."""
    embedding = backbone.encode_image(image[None]).pooled[0].double().numpy()
    logits = [scale * float(embedding @ p.double().numpy()) / np.linalg.norm(embedding) for p in prototypes]
    odds = np.exp(np.array(logits) - max(logits))
    return float(odds[1] / odds.sum())


def test_zero_shot_equals_the_formula(tiny_backbone: ClipBackbone):
    scale, images = 5.0, smooth(3)
    model = ClipZeroShotModel(tiny_backbone, scale=scale).eval()
    model.set_references(torch.empty(0, 3, SIDE, SIDE), "metal_nut")
    found = model(images)
    prototypes = []
    for sentences in prompt_ensemble("metal_nut"):
        mean = tiny_backbone.encode_sentences(sentences).mean(dim=0)
        prototypes.append(mean / mean.norm())
    for row, image in enumerate(images):
        expected = by_hand(tiny_backbone, image, torch.stack(prototypes), scale)
        assert float(found.pred_score[row]) == pytest.approx(expected, rel=1e-4)
    assert found.anomaly_map.shape == (3, 1, SIDE, SIDE)


def test_zero_shot_map_is_the_patches_probability_and_leaves_the_score_alone(tiny_backbone: ClipBackbone):
    images = smooth(2)
    model = ClipZeroShotModel(tiny_backbone).eval()
    model.set_references(torch.empty(0, 3, SIDE, SIDE), "bolt")
    found = model.explain(images)
    aligned = tiny_backbone.encode_aligned(images).aligned
    margins = 100 * (aligned @ (model.text_prototypes("bolt")[1] - model.text_prototypes("bolt")[0]))
    torch.testing.assert_close(found.patch_text_map, margins.sigmoid(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.score, found.text_score)
    pooled = tiny_backbone.encode_image(images)
    torch.testing.assert_close(model.score_by_text(pooled, model.text_prototypes("bolt")).score, found.score)


def test_zero_shot_without_a_class_says_what_to_call(tiny_backbone: ClipBackbone):
    with pytest.raises(RuntimeError, match="call set_references"):
        ClipZeroShotModel(tiny_backbone)(smooth(1))
    with pytest.raises(ValueError, match=r"scale must be larger than 0, got 0"):
        ClipZeroShotModel(tiny_backbone, scale=0)


@pytest.mark.parametrize("context_per_state", [False, True])
def test_coop_prompts_are_context_state_and_class(tiny_backbone: ClipBackbone, context_per_state):
    model = CoOpModel(tiny_backbone, ["context"], n_context=3, context_per_state=context_per_state)
    for learner in model.prompt_learners:
        nn.init.normal_(learner.context, std=0.1)
    contexts = [learner.context for learner in model.prompt_learners]
    assert len(contexts) == 1 + context_per_state
    expected = [
        tiny_backbone.encode_with_context(["normal metal nut."], contexts[0])[0],
        tiny_backbone.encode_with_context(["abnormal metal nut."], contexts[-1])[0],
    ]
    torch.testing.assert_close(model.text_prototypes("metal_nut"), torch.stack(expected))


def test_coop_without_learned_context_says_the_fixed_words(tiny_backbone: ClipBackbone):
    model = CoOpModel(tiny_backbone)
    expected = tiny_backbone.encode_sentences([f"{FIXED_PREFIX} normal bolt.", f"{FIXED_PREFIX} abnormal bolt."])
    torch.testing.assert_close(model.text_prototypes("bolt"), expected, rtol=1e-4, atol=1e-5)


def test_coop_loss_equals_the_formula_and_reaches_the_context_alone(tiny_backbone: ClipBackbone):
    model = CoOpModel(tiny_backbone, ["context"], n_context=3, scale=10.0)
    names, anomalous = ["bolt", "leaf", "bolt"], torch.tensor([True, False, False])
    query = tiny_backbone.encode_image(smooth(3))
    prototypes = model.prototypes_of(names)
    loss = model.loss(query, prototypes, anomalous)
    right = []
    for row, name in enumerate(names):
        cosines = functional.normalize(query.pooled[row], dim=0) @ model.text_prototypes(name).T
        odds = (10 * cosines.double()).exp()
        right.append(-torch.log(odds[int(anomalous[row])] / odds.sum()))
    assert loss.item() == pytest.approx(torch.stack(right).mean().item(), rel=1e-4)
    loss.backward()
    assert model.prompt_learners[0].context.grad.abs().sum(dim=1).min() > 0
    assert all(p.grad is None for p in model.backbone.parameters())


def test_coop_scores_without_patches_have_no_map(tiny_backbone: ClipBackbone):
    model = CoOpModel(tiny_backbone, ["context"], n_context=2)
    pooled = torch.randn(2, tiny_backbone.embed_dim)
    found = model.score_by_text(ImageFeatures(torch.empty(0), pooled), model.prototypes_of(["bolt", "leaf"]))
    assert found.patch_text_map is None
    assert found.anomaly_map.shape == (2, 1, SIDE, SIDE)
    assert torch.equal(found.anomaly_map[:, 0, 0, 0], found.score)
