"""Views of references beside themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from anomalib_inctrl.models.inctrl_v2.torch_model import InCTRLv2Model
from anomalib_inctrl.reference_views import count_views, further_views

if TYPE_CHECKING:
    from anomalib_inctrl.clip import ClipBackbone
    from anomalib_inctrl.reference_views import ReferenceViews

PATCH = (4, 6)


@pytest.fixture
def pictures() -> np.ndarray:
    return np.random.default_rng(0).integers(256, size=(2, 3, 24, 24), dtype=np.uint8)


def test_there_are_as_many_as_counted(pictures: np.ndarray):
    for views in ("none", "shifted", "turned"):
        found = list(further_views(pictures, views, PATCH))
        assert len(found) == count_views(views) - 1
        assert all(view.shape == pictures.shape and view.dtype == np.uint8 for view in found)


def test_shifts_are_half_a_patch_and_repeat_the_edge(pictures: np.ndarray):
    right, down, both = further_views(pictures, "shifted", PATCH)
    assert np.array_equal(right[..., :-3], pictures[..., 3:])
    assert np.array_equal(down[..., :-2, :], pictures[..., 2:, :])
    assert np.array_equal(both[..., :-2, :-3], pictures[..., 2:, 3:])
    assert (right[..., -3:] == pictures[..., -1:]).all()
    assert (down[..., -2:, :] == pictures[..., -1:, :]).all()


def test_turns_are_all_there_once(pictures: np.ndarray):
    found = [pictures, *further_views(pictures, "turned", PATCH)]
    assert all((first != second).any() for i, first in enumerate(found) for second in found[:i])
    turned = [np.rot90(pictures, axes=(-1, -2)), pictures[..., ::-1], pictures[..., ::-1, :], pictures.swapaxes(-1, -2)]
    for expected in turned:
        assert any(np.array_equal(expected, view) for view in found)


def test_what_can_t_be_made_is_refused(tiny_backbone: ClipBackbone):
    with pytest.raises(ValueError, match=r"square images, not of 8 x 12"):
        list(further_views(np.zeros((1, 3, 8, 12), np.uint8), "turned", PATCH))
    with pytest.raises(ValueError, match=r"must be one of \['none', 'shifted', 'turned'\], got 'mirrored'"):
        InCTRLv2Model(tiny_backbone, reference_views="mirrored")


@pytest.mark.parametrize("views", ["shifted", "turned"])
@torch.no_grad()
def test_a_query_seen_in_a_view_has_no_residual(tiny_backbone: ClipBackbone, views: ReferenceViews):
    side = tiny_backbone.image_size[0]
    coarse = torch.nn.functional.interpolate(torch.rand(3, 3, 11, 11), size=side, mode="bicubic").clamp(0, 1)
    references = (coarse * 255).round().to(torch.uint8)
    queries = [torch.from_numpy(v.copy()) for v in further_views(references.numpy(), views, tiny_backbone.patch_size)]
    found = {}
    for name in ("none", views):
        model = InCTRLv2Model(tiny_backbone, reference_views=name).eval()
        model.set_references(tiny_backbone.from_pictures(references), "nut")
        found[name] = torch.stack([model.explain(tiny_backbone.from_pictures(query)).patch_score for query in queries])
    assert found[views].max() < 1e-6 < 1e-3 < found["none"].min()
    assert model.references.features().patches.shape[2] == tiny_backbone.num_patches  # own ones, as queries
    assert model.references.pooled.shape[0] == 3


def test_the_embedded_backbone_has_its_own_default(tiny_backbone: ClipBackbone, embedded_backbone: ClipBackbone):
    default, none = InCTRLv2Model(embedded_backbone), InCTRLv2Model(embedded_backbone, reference_views="none")
    assert default.reference_views == "shifted"
    assert InCTRLv2Model(tiny_backbone).reference_views == "none"
    assert default.options["reference_views"] == "shifted"
    assert "reference_views" not in none.options  # what older checkpoints have


def test_references_of_other_views_are_refused(tiny_backbone: ClipBackbone):
    saved = InCTRLv2Model(tiny_backbone, reference_views="shifted").state_dict()
    with pytest.raises(RuntimeError, match="set the same backbone and reference_views"):
        InCTRLv2Model(tiny_backbone).load_state_dict(saved)
