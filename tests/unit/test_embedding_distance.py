"""psi and eta that measure a distance, against the distance written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from anomalib_inctrl.embedding_distance import principal_directions, set_distance, unit_of_distance
from anomalib_inctrl.in_context import ResidualAdapter, ScoreHead, image_residual_score

WIDTH = 64  # of which psi's bottleneck holds 8 directions with either sign


@pytest.fixture
def embeddings() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(3, 1, WIDTH, generator=generator)
    return (centres + 0.3 * torch.randn(3, 20, WIDTH, generator=generator)).flatten(0, 1) + 1


CATEGORIES = [name for name in ("nut", "bolt", "gear") for _ in range(20)]


def heads(embeddings: torch.Tensor, categories: list[str]) -> tuple[ResidualAdapter, ScoreHead]:
    adapter, head = ResidualAdapter(WIDTH), ScoreHead(WIDTH)
    set_distance(adapter, head, embeddings, categories, [False] * len(categories))
    return adapter.eval(), head.eval()


def written_out(embeddings: np.ndarray, query: np.ndarray, references: np.ndarray, count: int = 8) -> float:
    centred = embeddings - embeddings.mean(axis=0)
    directions = np.linalg.svd(centred, full_matrices=False)[2][:count]
    means = [embeddings[[c == name for c in CATEGORIES]].mean(axis=0) for name in sorted(set(CATEGORIES))]
    pairs = [(a, b) for i, a in enumerate(means) for b in means[:i]]
    apart = np.mean([np.abs(directions @ (a - b)).sum() for a, b in pairs])
    distance = np.abs(directions @ (references.mean(axis=0) - query)).sum() / apart
    return 1 / (1 + np.exp(-5 * (distance - 1.1)))


def test_the_score_is_a_sigmoid_of_the_distance(embeddings: torch.Tensor):
    adapter, head = heads(embeddings, CATEGORIES)
    queries, references = embeddings[[0, 1, 25, 59]], embeddings[2:6]
    found = image_residual_score(queries, references, adapter, head)
    arrays = embeddings.double().numpy()
    expected = [written_out(arrays, query, arrays[2:6]) for query in queries.double().numpy()]
    np.testing.assert_allclose(found.numpy(force=True), expected, rtol=1e-4)
    assert found[:2].max() < 0.2 < 0.5 < found[2:].min()  # of the same category, of others


def test_the_length_of_embeddings_is_of_no_account(embeddings: torch.Tensor):
    small = image_residual_score(embeddings[:30], embeddings[30:34], *heads(embeddings, CATEGORIES))
    large = image_residual_score(7 * embeddings[:30], 7 * embeddings[30:34], *heads(7 * embeddings, CATEGORIES))
    torch.testing.assert_close(small, large, rtol=1e-3, atol=1e-5)


def test_the_score_rises_on_the_way_to_another_category(embeddings: torch.Tensor):
    adapter, head = heads(embeddings, CATEGORIES)
    here, there = embeddings[:20].mean(dim=0), embeddings[20:40].mean(dim=0)
    way = torch.linspace(0, 1, 11)[:, None]
    scores = image_residual_score(here + way * (there - here), here[None], adapter, head)
    assert (scores.diff() > 0).all()
    assert scores[0].item() == pytest.approx(1 / (1 + np.exp(5 * 1.1)), rel=1e-3)


def test_a_few_images_span_fewer_directions(embeddings: torch.Tensor):
    adapter, head = heads(embeddings[[0, 1, 20, 21]], ["nut", "nut", "bolt", "bolt"])
    assert adapter.down.weight.abs().sum(dim=1).count_nonzero() == 6
    near, far = image_residual_score(embeddings[[1, 20]], embeddings[:1], adapter, head)
    assert near < 0.3 < 0.5 < far


def test_normal_images_that_differ_as_much_as_categories_set_the_measure():
    """Of two categories whose means lie 1 apart: twice what 95 of 100 stay within of their own."""
    offsets = torch.linspace(-4, 4, 21)
    coordinates = torch.cat([torch.stack([offsets, torch.zeros(21)], 1), torch.stack([offsets, torch.ones(21)], 1)])
    categories = ["nut"] * 21 + ["bolt"] * 21
    expected = 2 * np.quantile(np.abs(np.concatenate([offsets, offsets])), 0.95)
    assert unit_of_distance(coordinates, categories, [False] * 42) == pytest.approx(expected)
    outer = (coordinates[:, 0].abs() > 0.5).tolist()  # anomalous ones may lie far off
    assert unit_of_distance(coordinates, categories, outer) == pytest.approx(1)


def test_one_category_gives_no_measure(embeddings: torch.Tensor):
    with pytest.raises(ValueError, match=r"how far categories lie apart and needs two, got \['nut'\]"):
        heads(embeddings[:20], CATEGORIES[:20])


def test_categories_that_look_the_same_give_no_measure():
    with pytest.raises(ValueError, match=r"embeddings of \['bolt', 'gear', 'nut'\] are all the same"):
        heads(torch.ones(60, WIDTH), CATEGORIES)


def test_principal_directions_are_those_of_the_singular_values(embeddings: torch.Tensor):
    found = principal_directions(embeddings, 5)
    expected = torch.linalg.svd(embeddings - embeddings.mean(dim=0)).Vh[:5]
    torch.testing.assert_close((found @ expected.T).abs(), torch.eye(5), atol=1e-4, rtol=0)
