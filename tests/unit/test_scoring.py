"""The formulae on numbers that can be checked by hand."""

import math

import pytest
import torch

from anomalib_inctrl import scoring
from anomalib_inctrl.scoring import class_probability, nearest_residuals, to_pixels


def unit(*vectors: tuple[float, ...]) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.tensor(vectors), dim=-1)


def test_residuals_of_right_angles_opposites_and_lengths():
    query = torch.tensor([[2.0, 0.0], [0.0, 0.5], [-3.0, 0.0], [1.0, 1.0]])[None, None]
    expected = [[0.0, 0.5, 1.0, 0.5 * (1 - math.sqrt(0.5))]]
    torch.testing.assert_close(nearest_residuals(query, unit((1.0, 0.0))[None]), torch.tensor(expected))


def test_the_nearest_of_several_references_counts():
    query = torch.tensor([[1.0, 0.0], [0.0, 1.0]])[None, None]
    references = unit((0.6, 0.8), (-1.0, 0.0))[None]
    torch.testing.assert_close(nearest_residuals(query, references), torch.tensor([[0.2, 0.1]]))


def test_blocks_are_compared_apart_and_averaged():
    query = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]]])[None]  # (1, L=2, N=1, W=2)
    references = torch.stack([unit((1.0, 0.0)), unit((-1.0, 0.0))])  # the same in one block, opposite in the other
    torch.testing.assert_close(nearest_residuals(query, references), torch.tensor([[0.5]]))


def test_shared_references_equal_the_same_references_for_every_query():
    query = torch.randn(3, 2, 5, 4)
    shared = torch.nn.functional.normalize(torch.randn(2, 7, 4), dim=-1)
    torch.testing.assert_close(
        nearest_residuals(query, shared), nearest_residuals(query, shared.expand(3, 2, 7, 4)), rtol=0, atol=1e-6
    )


def test_every_query_can_have_references_of_its_own():
    query = torch.randn(3, 2, 5, 4)
    own = torch.nn.functional.normalize(torch.randn(3, 2, 7, 4), dim=-1)
    alone = torch.cat([nearest_residuals(query[i : i + 1], own[i]) for i in range(3)])
    torch.testing.assert_close(nearest_residuals(query, own), alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 7, 4), (2, 7, 5), (2, 0, 4), (1, 3, 7, 4)])
def test_references_that_do_not_fit_are_named_with_both_shapes(shape: tuple[int, ...]):
    query = torch.randn(1, 2, 5, 4)
    with pytest.raises(ValueError, match=r"\(1, 2, 5, 4\).*" + str(shape).replace("(", r"\(").replace(")", r"\)")):
        nearest_residuals(query, torch.zeros(shape))


def test_references_of_another_number_of_queries_are_refused_instead_of_repeated():
    with pytest.raises(ValueError, match=r"\(1, 2, 5, 4\).*\(3, 2, 7, 4\)"):
        nearest_residuals(torch.randn(1, 2, 5, 4), torch.randn(3, 2, 7, 4))


def test_residuals_never_leave_the_unit_interval():
    query = torch.randn(1, 1, 200, 3) * 1e4
    residuals = nearest_residuals(query, torch.nn.functional.normalize(query[0], dim=-1))
    assert residuals.min() >= 0
    torch.testing.assert_close(residuals, torch.zeros(1, 200), rtol=0, atol=1e-6)


def test_class_probability_is_the_softmax_of_scaled_cosines():
    features = torch.tensor([[0.6, 0.8], [1.2, 1.6]])  # the same direction twice
    expected = 1 / (1 + math.exp(-2 * (0.8 - 0.6)))
    probability = class_probability(features, torch.eye(2), scale=2.0)
    torch.testing.assert_close(probability, torch.tensor([expected, expected]))


def test_class_probability_has_clips_scale_by_default():
    feature = torch.tensor([[1.0, 1.01]])
    cosine = feature / feature.norm()
    expected = torch.sigmoid(100 * (cosine[0, 1] - cosine[0, 0]))
    torch.testing.assert_close(class_probability(feature, torch.eye(2))[0], expected)


def test_class_probability_with_prototypes_of_its_own_per_query():
    features, prototypes = torch.randn(3, 4), torch.nn.functional.normalize(torch.randn(3, 2, 4), dim=-1)
    alone = torch.stack([class_probability(features[i], prototypes[i], scale=5.0) for i in range(3)])
    torch.testing.assert_close(class_probability(features, prototypes, scale=5.0), alone)


def test_pixels_keep_rows_and_columns_apart():
    # Two rows and three columns; the second row is hot, its last patch hottest.
    pixels = to_pixels(torch.tensor([[0.0, 0.0, 0.0, 4.0, 4.0, 8.0]]), grid=(2, 3), size=(4, 6))
    assert pixels.shape == (1, 1, 4, 6)
    top, lower, bottom = pixels[0, 0, 0], pixels[0, 0, 2], pixels[0, 0, 3]
    torch.testing.assert_close(top, torch.zeros(6))
    torch.testing.assert_close(bottom, torch.tensor([4.0, 4.0, 4.0, 5.0, 7.0, 8.0]))
    torch.testing.assert_close(lower, 0.75 * bottom)  # a quarter of the way back to the first row


def test_pixels_keep_the_images_of_a_batch_apart():
    maps = torch.rand(3, 6)
    together = to_pixels(maps, grid=(2, 3), size=(8, 9))
    for i in range(3):
        torch.testing.assert_close(together[i], to_pixels(maps[i : i + 1], grid=(2, 3), size=(8, 9))[0])
    torch.testing.assert_close(to_pixels(maps, grid=(2, 3), size=(2, 3)).flatten(1), maps)


def test_nearest_residuals_in_pieces_are_the_same(monkeypatch):
    """With room for 20 products at once, 12 queries against 7 references go in six pieces of two."""
    query = torch.randn(2, 3, 6, 5)
    references = torch.nn.functional.normalize(torch.randn(3, 7, 5), dim=-1)
    whole = nearest_residuals(query, references)
    monkeypatch.setattr(scoring, "_PRODUCTS_AT_ONCE", 20)
    sizes, split = [], torch.Tensor.split
    monkeypatch.setattr(torch.Tensor, "split", lambda self, rows: sizes.append(rows) or split(self, rows))
    torch.testing.assert_close(nearest_residuals(query, references), whole)
    assert sizes == [2, 2, 2]
