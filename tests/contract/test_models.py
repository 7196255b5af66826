"""What holds for every model, whatever its formula."""

from __future__ import annotations

import copy
import pickle
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from anomalib_inctrl.clip import EMBEDDED_TRUNK, ClipBackbone, image_convention

if TYPE_CHECKING:
    from anomalib_inctrl.in_context import Explanation, InContextModel

SIDE = image_convention(EMBEDDED_TRUNK).size[0]  # of the small backbone's images

pytestmark = pytest.mark.usefixtures("_no_gradients")


@pytest.fixture
def _no_gradients() -> object:
    with torch.no_grad():
        yield


def smooth(count: int) -> Tensor:
    """Images with structure at several scales, so that patches differ."""
    coarse = torch.nn.functional.interpolate(torch.randn(count, 3, 9, 9), size=SIDE, mode="bilinear")
    return coarse + 0.3 * torch.randn(count, 3, SIDE, SIDE)


def assert_same(first: Explanation, second: Explanation, **tolerance: float) -> None:
    """Compare two explanations field by field."""
    assert type(first) is type(second)
    for name, value in first._asdict().items():
        other = getattr(second, name)
        if value is None:
            assert other is None, name
        else:
            torch.testing.assert_close(value, other, msg=lambda m, n=name: f"{n}: {m}", **tolerance)


def rows(explanation: Explanation, index: object) -> Explanation:
    return type(explanation)(*(None if v is None else v[index] for v in explanation))


# -------------------------------------------------------------------------------------------------------------- batch
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-5)], ids=str)
def test_a_batch_equals_its_images_one_by_one(model: InContextModel, dtype: torch.dtype, tolerance: float):
    model = copy.deepcopy(model).to(dtype)
    images = smooth(5).to(dtype)
    model.set_references(smooth(2).to(dtype), "cat")
    together = model.explain(images)
    assert together.score.dtype == dtype
    for i in range(5):
        assert_same(rows(together, slice(i, i + 1)), model.explain(images[i : i + 1]), rtol=tolerance, atol=tolerance)


def test_forward_is_explain(model: InContextModel):
    images = smooth(3)
    model.set_references(smooth(2), "cat")
    result, explanation = model(images), model.explain(images)
    assert torch.equal(result.pred_score, explanation.score)
    assert torch.equal(result.anomaly_map, explanation.anomaly_map)


@pytest.mark.parametrize("k_shot", [0, 1, 3])
@pytest.mark.parametrize("training_free", [False, True])
def test_shapes_and_ranges(model: InContextModel, k_shot: int, training_free: bool):
    if training_free:
        model.use_branches([])
    images = torch.cat([smooth(2), 20 * torch.randn(1, 3, SIDE, SIDE), torch.full((1, 3, SIDE, SIDE), -9.0)])
    model.set_references(smooth(k_shot), "cat")
    explanation = model.explain(images)
    assert explanation.score.shape == (4,)
    assert explanation.anomaly_map.shape == (4, 1, SIDE, SIDE)
    for name, value in explanation._asdict().items():
        if value is not None:
            assert value.shape[0] == 4, name
            assert value.min() >= 0, name
            assert value.max() <= 1, name
    assert len(set(explanation.score.tolist())) == 4  # images differ


def test_gradients_reach_the_heads_but_not_the_towers(model: InContextModel):
    model.set_references(smooth(2), "cat")
    with torch.enable_grad():
        explanation = model.explain(smooth(2))
        (explanation.score.sum() + explanation.anomaly_map.sum()).backward()
    reached = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == {part for parts in model.BRANCHES.values() for part in parts}


# --------------------------------------------------------------------------------------------------------- references
def test_the_order_of_references_does_not_matter(model: InContextModel):
    references, images = smooth(4), smooth(2)
    model.set_references(references, "cat")
    first = model.explain(images)
    model.set_references(references[[2, 0, 3, 1]], "cat")
    assert_same(model.explain(images), first, rtol=0, atol=1e-6)


@pytest.mark.parametrize("k_shot", [1, 4])
def test_a_reference_has_no_residual(model: InContextModel, k_shot: int):
    references = smooth(k_shot)
    model.set_references(references, "cat")
    explanation = model.explain(references)
    torch.testing.assert_close(
        explanation.patch_residuals, torch.zeros(k_shot, model.backbone.num_patches), rtol=0, atol=1e-6
    )
    torch.testing.assert_close(explanation.patch_score, torch.zeros(k_shot), rtol=0, atol=1e-6)
    assert (model.explain(smooth(1)).patch_score > 1e-3).all()


def test_adding_equals_setting_all_at_once(model: InContextModel):
    references, images = smooth(3), smooth(2)
    model.set_references(references, "cat")
    at_once = model.explain(images)
    model.set_references(references[:1], "cat")
    assert model.explain(images).score.ne(at_once.score).all()
    model.add_references(references[1:])
    assert_same(model.explain(images), at_once, rtol=0, atol=1e-6)


def test_classes_in_one_batch_equal_each_class_alone(model: InContextModel):
    images, cats, dogs = smooth(5), smooth(2), smooth(3)
    images[[0, 2, 3]] += dogs[0]  # near one of the dogs, so that a mix-up would show
    names = ["dog", "cat", "dog", "dog", "cat"]
    alone = {}
    for name, references in (("cat", cats), ("dog", dogs)):
        model.set_references(references, name)
        alone[name] = model.explain(images)
    model.set_references(cats[:1], "cat")
    model.add_references(dogs, "dog")
    model.add_references(cats[1:], "cat")
    mixed = model.explain(images, names)
    for i, name in enumerate(names):
        assert_same(rows(mixed, slice(i, i + 1)), rows(alone[name], slice(i, i + 1)), rtol=0, atol=1e-5)
    differences = (alone["cat"].patch_residuals - alone["dog"].patch_residuals).abs().amax(dim=1)
    assert differences.min() > 1e-2  # else a mix-up would not show
    assert_same(model.explain(images), alone["cat"], rtol=0, atol=1e-6)  # the first class is meant if none is named


@pytest.mark.parametrize("names", [["cat", "dog", "cat"], ["dog", "cat", "dog"]], ids="-".join)
def test_a_class_without_references_in_one_batch_with_one_that_has_some(model: InContextModel, names: list[str]):
    images = smooth(3)
    model.set_references(smooth(2), "cat")
    model.add_references(smooth(0), "dog")
    mixed = model(images, names)
    for i, name in enumerate(names):
        alone = model(images[i : i + 1], [name])
        torch.testing.assert_close(mixed.pred_score[i : i + 1], alone.pred_score, rtol=0, atol=1e-5)
        torch.testing.assert_close(mixed.anomaly_map[i : i + 1], alone.anomaly_map, rtol=0, atol=1e-5)


def test_text_is_encoded_once_per_class_and_never_in_forward(model: InContextModel, monkeypatch: pytest.MonkeyPatch):
    calls: list[str] = []
    encode = ClipBackbone.text_prototypes
    monkeypatch.setattr(ClipBackbone, "text_prototypes", lambda self, name: calls.append(name) or encode(self, name))
    references, images = smooth(2), smooth(2)
    model.set_references(references, "cat")
    model.add_references(references)
    model.add_references(references, "dog")
    model.set_references(references, "cat")
    assert calls == ["cat", "dog"]
    monkeypatch.setattr(ClipBackbone, "encode_sentences", None)
    model(images)
    model.score_normals()
    assert calls == ["cat", "dog"]


def test_no_images_are_encoded_again_when_scoring(model: InContextModel, monkeypatch: pytest.MonkeyPatch):
    batches: list[int] = []
    run = ClipBackbone._run  # behind all that encodes images
    monkeypatch.setattr(ClipBackbone, "_run", lambda self, x, *args: batches.append(x.shape[0]) or run(self, x, *args))
    model.set_references(smooth(3), "cat")
    model(smooth(2))
    model.add_references(smooth(1), "dog")
    model(smooth(2), ["dog", "cat"])
    further = model.references.views - 1
    assert batches == [3] * (1 + further) + [2] + [1] * (1 + further) + [2]  # classes share one pass


# ------------------------------------------------------------------------------------------------- leave-one-out
def test_normals_are_scored_against_the_others(model: InContextModel):
    references = smooth(4)
    model.set_references(references[:1], "dog")
    model.add_references(references, "cat")
    scored = model.score_normals("cat")
    assert scored.score.shape == (4,)
    for i in range(4):
        others = torch.cat([references[:i], references[i + 1 :]])
        model.set_references(others, "cat")
        expected = model.explain(references[i : i + 1])
        assert_same(rows(scored, slice(i, i + 1)), expected, rtol=0, atol=1e-5)


def test_a_single_normal_is_scored_in_its_mirror_images(model: InContextModel):
    pictures = torch.randint(256, (1, 3, SIDE, SIDE), dtype=torch.uint8)
    reference = model.backbone.from_pictures(pictures)
    model.set_references(reference, "cat")
    turned = torch.cat([reference.flip(-1), reference.flip(-2), reference.rot90(2, (-2, -1))])
    scored = model.score_normals()
    assert scored.score.shape == (3,)
    heads = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("references.")}
    smoothing = model.residual_smoothing
    plain = type(model)(model.backbone, model.branches, reference_views="none", residual_smoothing=smoothing).eval()
    plain.load_state_dict(heads, strict=False)
    plain.set_references(reference, "cat")
    assert_same(scored, plain.explain(turned), rtol=0, atol=1e-6)


# -------------------------------------------------------------------------------------------------------------- state
def test_a_state_dict_carries_everything(model: InContextModel):
    images = smooth(3)
    model.set_references(smooth(2), "cat")
    model.add_references(smooth(1), "dog")
    model.use_branches(["image"])
    fresh = type(model)(
        model.backbone, reference_views=model.reference_views, residual_smoothing=model.residual_smoothing
    ).eval()
    fresh.load_state_dict(model.state_dict())
    assert fresh.branches == {"image"}
    assert fresh.references.class_names == ["cat", "dog"]
    for names in (None, ["dog", "cat", "dog"]):
        ours, theirs = fresh.explain(images, names), model.explain(images, names)
        for name, value in theirs._asdict().items():
            assert value is None or torch.equal(getattr(ours, name), value), name
    for name in ("cat", "dog"):
        assert torch.equal(fresh.references.context(name).prototypes, model.references.context(name).prototypes)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])  # noqa: S301
def test_a_copy_scores_the_same_and_lives_on_its_own(model: InContextModel, duplicate: object):
    images = smooth(2)
    model.set_references(smooth(2), "cat")
    before = model.explain(images)
    other = duplicate(model)
    assert torch.equal(other.explain(images).score, before.score)
    other.set_references(smooth(1), "dog")
    assert other.references.class_names == ["dog"]
    assert model.references.class_names == ["cat"]
    assert torch.equal(model.explain(images).score, before.score)


def test_scoring_changes_no_buffer_in_evaluation_but_statistics_in_training(model: InContextModel):
    model.set_references(smooth(2), "cat")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model(smooth(3))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.train()
    assert not model.backbone.training
    model(smooth(3))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all("running_" in name or "num_batches_tracked" in name for name in changed)


def test_references_from_inference_mode_are_ordinary_tensors(model: InContextModel):
    with torch.inference_mode():
        references, images = smooth(2), smooth(2)
        model.set_references(references, "cat")
        model.add_references(references[:1], "dog")
        inside = model(images).pred_score
    assert not any(buffer.is_inference() for buffer in model.buffers())
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.set_references(smooth(1), "bird")
    model.load_state_dict(state)
    assert torch.equal(model(images.clone()).pred_score, inside)


# --------------------------------------------------------------------------------------------------------- robustness
@pytest.mark.parametrize("value", [0.0, 1.5])
def test_constant_images_give_numbers(model: InContextModel, value: float):
    constant = torch.full((2, 3, SIDE, SIDE), value)
    for references in (constant, smooth(2)):
        model.set_references(references, "cat")
        for field, tensor in model.explain(constant)._asdict().items():
            assert torch.isfinite(tensor).all(), field


def test_patches_of_length_zero_give_numbers(model: InContextModel, monkeypatch: pytest.MonkeyPatch):
    model.set_references(smooth(1), "cat")
    features = model.backbone.encode_image(smooth(2))
    monkeypatch.setattr(ClipBackbone, "encode_image", lambda _self, _images: type(features)(*(0 * f for f in features)))
    explanation = model.explain(smooth(2))
    for field, tensor in explanation._asdict().items():
        assert torch.isfinite(tensor).all(), field
    right_angle = torch.full((2, model.backbone.num_patches), 0.5)  # to what has no direction
    torch.testing.assert_close(explanation.patch_residuals, right_angle)
    torch.testing.assert_close(explanation.text_score, torch.full((2,), 0.5))


# Measured 0.0053 and, where cosines good to 2 ** -8 are multiplied by 100 for every patch, 0.020.
BFLOAT16 = {"": 0.01, "abnormality": 0.05, "normality": 0.05, "one_class_abnormality": 0.05}
BFLOAT16 |= {"discriminative_map": 0.03, "one_class_map": 0.03, "anomaly_map": 0.03}


def test_bfloat16_is_close_to_float32(model: InContextModel):
    images = smooth(3)
    model.set_references(smooth(2), "cat")
    exact = model.explain(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model.explain(images)
    for name, value in exact._asdict().items():
        difference = (getattr(rough, name).float() - value).abs().max()
        assert difference < BFLOAT16.get(name, BFLOAT16[""]), name


# --------------------------------------------------------------------------------------------------------- the host
def test_the_models_are_direct_subclasses_which_is_what_the_host_lists():
    from anomalib.models.components import AnomalibModule

    import anomalib_inctrl

    direct = [cls for cls in AnomalibModule.__subclasses__() if cls.__module__.startswith("anomalib_inctrl")]
    names = ("ClipZeroShot", "CoOp", "DevPrompt", "InCTRL", "InCTRLv2", "Spade")
    assert {cls.__name__: cls for cls in direct} == {name: getattr(anomalib_inctrl, name) for name in names}
