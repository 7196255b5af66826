"""References in, errors out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from anomalib_inctrl.clip import EMBEDDED_TRUNK, image_convention
from anomalib_inctrl.in_context import ResidualAdapter, ScoreHead, image_residual_score, merge
from anomalib_inctrl.models.inctrl.torch_model import HolisticHead, InCTRLExplanation, InCTRLModel
from anomalib_inctrl.models.inctrl_v2.torch_model import InCTRLv2Model

if TYPE_CHECKING:
    from anomalib_inctrl.clip import ClipBackbone
    from anomalib_inctrl.in_context import InContextModel

SIDE = image_convention(EMBEDDED_TRUNK).size[0]  # of the small backbone's images


def images(count: int, size: int = SIDE) -> torch.Tensor:
    return torch.randn(count, 3, size, size)


def test_set_replaces_and_add_extends(model: InContextModel):
    model.set_references(images(2), "cat")
    model.set_references(images(1), "dog")
    assert model.references.class_names == ["dog"]
    model.add_references(images(2))  # to the first class
    model.add_references(images(3), "bird")
    assert dict(zip(model.references.class_names, model.references.counts.tolist(), strict=True)) == {
        "dog": 3,
        "bird": 3,
    }


def test_the_references_are_kept_as_pictures(model: InContextModel):
    pictures = torch.randint(256, (2, 3, SIDE, SIDE), dtype=torch.uint8)
    model.set_references(model.backbone.from_pictures(pictures), "cat")
    assert torch.equal(model.references.pictures_of("cat"), pictures)


def test_without_references_the_message_says_what_to_call(model: InContextModel):
    with pytest.raises(RuntimeError, match=r"call set_references\(images, class_name\)"):
        model(images(1))
    with pytest.raises(RuntimeError, match=r"call set_references"):
        model.explain(images(1), ["cat"])
    with pytest.raises(RuntimeError, match=r"call set_references"):
        model.score_normals()


def test_adding_to_no_class_says_what_to_call(model: InContextModel):
    with pytest.raises(RuntimeError, match=r"call set_references"):
        model.add_references(images(1))
    assert model.references.class_names == []


def test_an_unknown_class_is_refused(model: InContextModel):
    model.set_references(images(1), "cat")
    with pytest.raises(KeyError, match=r"'dog', only of \['cat'\]"):
        model(images(2), ["cat", "dog"])


@pytest.mark.parametrize("names", [["cat"], ["cat", "cat", "cat"]], ids=["too few", "too many"])
def test_every_image_takes_a_class_name(model: InContextModel, names: list[str]):
    model.set_references(images(1), "cat")
    with pytest.raises(ValueError, match=rf"class_names .* {len(names)} .* 2 images"):
        model(images(2), names)


def test_a_refused_class_name_changes_nothing(model: InContextModel):
    model.set_references(images(1), "cat")
    with pytest.raises(ValueError, match="class_name must"):
        model.add_references(images(1), "metal\nnut")
    assert model.references.class_names == ["cat"]
    assert model.references.prototypes.shape[0] == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_references_that_are_not_finite_are_refused_and_change_nothing(model: InContextModel, value: float):
    model.set_references(images(2), "cat")
    spoiled = images(2)
    spoiled[1, 0, 3, 3] = value
    for call in (model.set_references, model.add_references):
        with pytest.raises(ValueError, match="NaN or infinite"):
            call(spoiled, "dog")
    assert model.references.class_names == ["cat"]
    assert model.references.count() == 2


def test_images_of_another_size_are_refused(model: InContextModel):
    message = rf"\(B, 3, {SIDE}, {SIDE}\), got \(1, 3, 64, 64\)"
    with pytest.raises(ValueError, match=message):
        model.set_references(images(1, 64), "cat")
    model.set_references(images(1), "cat")
    with pytest.raises(ValueError, match=message):
        model(images(1, 64))


def test_an_empty_class_name_is_refused(model: InContextModel):
    with pytest.raises(ValueError, match="class_name must name an object"):
        model.set_references(images(1), "_")


def test_calibrating_takes_a_reference(model: InContextModel):
    model.set_references(images(0), "cat")
    with pytest.raises(RuntimeError, match=r"takes at least one, there is none \(k_shot=0\)"):
        model.score_normals()


def test_branches_are_checked_and_kept_in_the_state(model: InContextModel):
    with pytest.raises(ValueError, match=r"branches must be among \['image', .*got \['colour'\]"):
        model.use_branches(["colour"])
    model.use_branches(["image"])
    assert model.branches == {"image"}
    assert model.branch_flags.tolist() == [1] + [0] * (len(model.BRANCHES) - 1)


def test_the_adapter_has_no_skip_connection_and_ends_in_a_relu():
    adapter = ResidualAdapter(4, reduction=2)
    adapter.down.weight.data = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, -1.0, 0.0, 0.0]])
    adapter.up.weight.data = torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0], [1.0, 1.0]])
    torch.testing.assert_close(adapter(torch.tensor([[5.0, -1.0, 9.0, 9.0]])), torch.tensor([[10.0, 3.0, 0.0, 6.0]]))
    assert not any("bias" in name for name, _ in adapter.named_parameters())


def test_the_head_norms_after_its_relu():
    head = ScoreHead(2).eval()
    for parameter in head.parameters():
        torch.nn.init.zeros_(parameter)
    linear1, _, norm1, linear2, _, norm2, linear3 = head.layers
    linear1.weight.data[0] = torch.tensor([1.0, 0.0])
    linear2.weight.data[0, 0] = linear3.weight.data[0, 0] = 1.0
    norm1.weight.data.fill_(1.0)
    norm2.weight.data.fill_(1.0)
    norm1.running_mean[0], norm1.running_var[0] = 1.0, 4.0
    # Linear gives 5 and -5; ReLU 5 and 0; norm (5 - 1) / 2 and (0 - 1) / 2; then 2 and 0 after the next ReLU.
    expected = torch.tensor([2.0, 0.0]).sigmoid()
    torch.testing.assert_close(head(torch.tensor([[5.0, 0.0], [-5.0, 0.0]])), expected, rtol=1e-4, atol=1e-4)


def test_a_holistic_head_that_sorts_sees_how_large_values_are_and_not_where():
    torch.manual_seed(0)
    by_place, sorted_ = HolisticHead(6).eval(), HolisticHead(6, sort_patches=True).eval()
    sorted_.layers.load_state_dict(by_place.layers.state_dict())
    values, order = torch.rand(4, 6), torch.tensor([3, 0, 5, 1, 4, 2])
    assert torch.equal(sorted_(values), sorted_(values[:, order]))
    assert (by_place(values) - by_place(values[:, order])).abs().max() > 1e-4
    torch.testing.assert_close(sorted_(values), by_place(values.sort(descending=True).values))
    assert (sorted_(values) - sorted_(values * torch.tensor([2.0, 1, 1, 1, 1, 1]))).abs().max() > 1e-4


def test_the_image_residual_is_references_minus_query():
    adapter = ResidualAdapter(2, reduction=1)
    adapter.down.weight.data = adapter.up.weight.data = torch.eye(2)
    seen = []
    score = image_residual_score(
        torch.tensor([[1.0, 2.0]]),
        torch.tensor([[4.0, 6.0], [6.0, 0.0]]),
        adapter,
        lambda x: seen.append(x) or x.sum(dim=-1),
    )
    assert seen[0].tolist() == [[4.0, 1.0]]  # mean of the references (5, 3), less the query
    assert score.tolist() == [5.0]


def test_references_of_its_own_for_every_query():
    adapter, head = ResidualAdapter(4), ScoreHead(4).eval()
    query, references = torch.randn(3, 4), torch.randn(3, 2, 4)
    alone = torch.cat([image_residual_score(query[i : i + 1], references[i], adapter, head) for i in range(3)])
    torch.testing.assert_close(image_residual_score(query, references, adapter, head), alone)


def test_merging_joins_and_reorders_and_leaves_out_what_is_none():
    def part(*values: float) -> InCTRLExplanation:
        column = torch.tensor(values)
        return InCTRLExplanation(None, None, None, column, None, column + 1, column[:, None, None, None])

    merged = merge([part(3.0, 1.0), part(2.0)], torch.tensor([1, 2, 0]))
    assert merged.text_score.tolist() == [1.0, 2.0, 3.0]
    assert merged.score.tolist() == [2.0, 3.0, 4.0]
    assert merged.anomaly_map.shape == (3, 1, 1, 1)
    assert merged.patch_residuals is None


# ---------------------------------------------------------------------------------------------- residuals smoothed
@pytest.mark.parametrize("kind", [InCTRLModel, InCTRLv2Model])
@torch.no_grad()
def test_residuals_are_mixed_with_the_mean_of_their_neighbours(tiny_backbone: ClipBackbone, kind: type):
    plain, smoothed = (kind(tiny_backbone, residual_smoothing=share).eval() for share in (0.0, 0.3))
    for model in (plain, smoothed):
        model.set_references(images(2), "cat")
    smoothed.load_state_dict(plain.state_dict())
    queries = images(3)
    rows, columns = tiny_backbone.grid_size
    before = plain.explain(queries).patch_residuals.unflatten(1, (rows, columns))
    found = smoothed.explain(queries)
    after = found.patch_residuals.unflatten(1, (rows, columns))
    for row, column in ((0, 0), (0, 3), (rows - 1, columns - 1), (2, 4)):
        around = before[:, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2].mean(dim=(1, 2))
        torch.testing.assert_close(after[:, row, column], 0.7 * before[:, row, column] + 0.3 * around)
    torch.testing.assert_close(found.patch_score, after.amax(dim=(1, 2)))
    assert (found.patch_score < before.amax(dim=(1, 2))).all()


def test_the_embedded_backbone_smooths_and_others_do_not(tiny_backbone: ClipBackbone, embedded_backbone: ClipBackbone):
    assert InCTRLv2Model(embedded_backbone).options["residual_smoothing"] == 0.5
    assert "residual_smoothing" not in InCTRLv2Model(embedded_backbone, residual_smoothing=0).options
    assert "residual_smoothing" not in InCTRLv2Model(tiny_backbone).options
    with pytest.raises(ValueError, match=r"residual_smoothing must be from 0 to 1, got 1\.5"):
        InCTRLModel(tiny_backbone, residual_smoothing=1.5)


def test_the_embedded_backbone_has_a_factor_for_maps_and_others_that_of_the_training(
    tiny_backbone: ClipBackbone, embedded_backbone: ClipBackbone
):
    embedded, plain = InCTRLv2Model(embedded_backbone), InCTRLv2Model(tiny_backbone, patch_scale=20.0)
    assert (embedded.map_scale, embedded.options["map_scale"]) == (1.0, 1.0)
    assert embedded.discriminative_adapter.scale == pytest.approx(1 / 0.07)
    assert plain.map_scale == 20.0
    assert "map_scale" not in plain.options
    assert "map_scale" not in InCTRLv2Model(embedded_backbone, map_scale=1 / 0.07).options
