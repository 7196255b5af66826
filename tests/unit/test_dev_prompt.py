"""DevPrompt's formulae against written-out oracles, what its training touches, and what it refuses."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING

import open_clip
import pytest
import torch
from torch import nn

from anomalib_inctrl.clip import EMBEDDED_TRUNK, ClipBackbone, image_convention
from anomalib_inctrl.losses import deviation_loss, normal_prompt_loss
from anomalib_inctrl.models.dev_prompt.synthesis import draw_anomalies
from anomalib_inctrl.models.dev_prompt.torch_model import DevPromptModel, TrainingFeatures
from anomalib_inctrl.scoring import Gaussian, abnormality_margin, class_probability, deviation, fuse, top_k_mean

if TYPE_CHECKING:
    from collections.abc import Callable

SIDE = image_convention(EMBEDDED_TRUNK).size[0]
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
TOWERS = {
    "CLIP": {},
    "CustomTextCLIP": {"custom_text": True},
    "quick-gelu": {"quick_gelu": True},
    "linear-projection": {"text_cfg": TEXT | {"proj_bias": True}, "custom_text": True},
    "layer-scale": {"text_cfg": TEXT | {"ls_init_value": 0.1}},
}


def smooth(count: int) -> torch.Tensor:
    """Images with structure at several scales, so that patches differ."""
    coarse = nn.functional.interpolate(torch.randn(count, 3, 9, 9), size=SIDE, mode="bilinear")
    return coarse + 0.3 * torch.randn(count, 3, SIDE, SIDE)


def build(backbone: ClipBackbone, **options: object) -> DevPromptModel:
    return DevPromptModel(backbone, **{"branches": ["context"]} | options).eval()


@pytest.fixture
def model(tiny_backbone: ClipBackbone) -> DevPromptModel:
    return build(tiny_backbone)


# -------------------------------------------------------------------------------------------------------- text tower
def words_are_context(backbone: ClipBackbone) -> tuple[torch.Tensor, torch.Tensor]:
    context = backbone.embed_words("a photo of the")
    suffixes = ["damaged metal nut.", "unblemished cat without any flaw."]
    expected = backbone.encode_sentences([f"a photo of the {suffix}" for suffix in suffixes])
    return backbone.encode_with_context(suffixes, context), expected


@pytest.mark.parametrize("tower", TOWERS)
def test_words_as_context_give_the_sentence(tower: str, register: Callable[..., str]):
    backbone = ClipBackbone(register(**{"text_cfg": TEXT} | TOWERS[tower]))
    for parameter in backbone.text.parameters():
        nn.init.normal_(parameter, std=0.5)
    found, expected = words_are_context(backbone)
    assert abs(float(expected[0] @ expected[1])) < 0.998  # the sentences differ
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_words_as_context_give_the_sentence_with_the_embedded_backbone(embedded_backbone: ClipBackbone):
    torch.testing.assert_close(*words_are_context(embedded_backbone), rtol=1e-5, atol=1e-5)


def test_a_text_tower_of_another_kind_is_refused(register: Callable[..., str]):
    backbone = ClipBackbone(register(text_cfg=TEXT | {"no_causal_mask": True}, custom_text=True))
    with pytest.raises(ValueError, match=r"TextTransformer is no plain causal text transformer.*ViT-B-16-plus-240"):
        backbone.encode_with_context(["cat."], torch.zeros(2, 16))


@pytest.mark.parametrize(("vectors", "words"), [(74, 1), (2, 76), (1, 200)])
def test_what_does_not_fit_is_refused(tiny_backbone: ClipBackbone, vectors: int, words: int):
    context = torch.zeros(vectors, tiny_backbone.text_width)
    with pytest.raises(ValueError, match=rf"Context \({vectors} vectors\) and suffix need \d+ tokens.*takes 77"):
        tiny_backbone.encode_with_context(["cat " * words + "."], context)


# ----------------------------------------------------------------------------------------------------- image tower
@torch.no_grad()
@pytest.mark.parametrize("pooling", [{}, {"pool_type": "avg"}, {"final_ln_after_pool": True}])
@pytest.mark.parametrize("blocks", [(0, 1), (1, 2)])
def test_aligned_patches_are_the_last_blocks(register: Callable[..., str], pooling: dict, blocks: tuple[int, ...]):
    backbone = ClipBackbone(register(vision=pooling), blocks=blocks)
    for parameter in backbone.visual.parameters():
        nn.init.normal_(parameter, mean=0.1, std=0.2)
    images, visual, seen = torch.randn(2, 3, 32, 32), backbone.visual, []
    theirs = open_clip.create_model(backbone.name).eval()
    theirs.visual.load_state_dict(visual.state_dict())
    last = theirs.visual.transformer.resblocks[-1]
    hook = last.register_forward_hook(lambda _module, inputs, output: seen.extend([inputs[0], output]))
    theirs.encode_image(images)
    hook.remove()
    before, after = (t if t.shape[0] == 2 else t.transpose(0, 1) for t in seen)
    alone = before[:, 1:].flatten(0, 1)  # every patch is a sequence of its own
    alone = last(alone[:, None] if getattr(last.attn, "batch_first", False) else alone[None])
    for attention, tokens in (("self", alone.reshape(2, 16, 32)), ("all", after[:, 1:])):
        found = backbone.encode_aligned(images, attention)
        expected = nn.functional.normalize(visual.ln_post(tokens) @ visual.proj, dim=-1)
        torch.testing.assert_close(found.aligned, expected, rtol=1e-5, atol=1e-5)
        plain = backbone.encode_image(images)
        assert torch.equal(found.patches, plain.patches)
        assert torch.equal(found.pooled, plain.pooled)


# -------------------------------------------------------------------------------------------------------- formulae
def test_margin_is_the_log_odds_of_the_probability():
    features, prototypes = (nn.functional.normalize(torch.randn(n, 8), dim=-1) for n in (20, 2))
    margins = abnormality_margin(features, prototypes, 10.0)
    torch.testing.assert_close(margins.sigmoid(), class_probability(features, prototypes, 10.0))


def test_deviation_of_four_scores():
    reference = Gaussian.of(torch.tensor([[1.0, 3.0], [1.0, 3.0]]))  # mean 2, standard deviation 1
    assert (float(reference.mean), float(reference.std)) == (2.0, 1.0)
    assert deviation(torch.tensor([2.0, 5.0, 0.5]), reference).tolist() == [0.0, 3.0, -1.5]


def test_equal_scores_deviate_from_each_other_by_nothing():
    assert deviation(torch.full((3,), 0.7), Gaussian.of(torch.full((3,), 0.7))).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(("fraction", "expected"), [(0.01, 4.0), (0.25, 4.0), (0.5, 3.5), (1.0, 2.5)])
def test_top_k_mean(fraction: float, expected: float):
    values = torch.tensor([[1.0, 4.0, 2.0, 3.0], [3.0, 2.0, 4.0, 1.0]])
    assert top_k_mean(values, fraction).tolist() == [expected, expected]


def test_deviation_loss_by_hand():
    deviations = torch.tensor([-1.5, 0.5, 2.0, 3.0, 9.0])
    labels = torch.tensor([0, 0, 1, 1, 1])
    assert deviation_loss(deviations, labels, 4.0).tolist() == [1.5, 0.5, 2.0, 1.0, 0.0]
    with pytest.raises(ValueError, match=r"\(5,\) and targets \(2,\)"):
        deviation_loss(deviations, labels[:2])


def test_normal_prompt_loss_is_cross_entropy_of_the_normal_prompt():
    similarities = torch.tensor([[0.2, 0.5], [0.6, 0.1]])  # to normal and anomalous
    expected = nn.functional.cross_entropy(10 * similarities, torch.tensor([0, 0]))
    margins = 10 * (similarities[:, 1] - similarities[:, 0])
    torch.testing.assert_close(normal_prompt_loss(margins), expected)


@pytest.mark.parametrize(
    ("how", "expected"), [("harmonic", 0.3), ("mean", 0.4), ("max", 0.6), ("text", 0.6), ("visual", 0.2)]
)
def test_fusion(how: str, expected: float):
    fused = fuse(torch.tensor([0.6, 0.0]), torch.tensor([0.2, 0.0]), how)
    assert fused.tolist() == pytest.approx([expected, 0.0])


def test_the_prior_is_of_5000_standard_normal_draws(model: DevPromptModel):
    draws = torch.randn(5000, generator=torch.Generator().manual_seed(0))
    mean, std = model.reference_of("prior")
    assert float(mean) == pytest.approx(float(draws.mean()), abs=1e-6)
    assert float(std) == pytest.approx(float(draws.std(correction=0)), rel=1e-5)
    assert abs(float(mean)) < 0.05
    assert float(std) == pytest.approx(1, abs=0.05)


def cosine(first: torch.Tensor, second: torch.Tensor) -> float:
    return float(first @ second / (first.norm() * second.norm()))


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"patch_scoring": "probability", "fusion": "mean", "alpha": 0.3, "top_k": 0.02},
        {"test_reference": "prior", "margin": 2.0, "softness": 0.7, "patch_scale": 30.0, "patch_attention": "all"},
    ],
)
def test_scores_are_those_of_the_equations(tiny_backbone: ClipBackbone, options: dict):
    """Loops over patches in double precision, from the similarities on."""
    model = copy.deepcopy(build(tiny_backbone, **options)).double()
    references, query = smooth(2).double(), smooth(1).double()
    model.set_references(references, "metal_nut")
    found = model.explain(query)
    scale, margin = options.get("patch_scale", 100.0), options.get("margin", 5.0)
    attention = options.get("patch_attention", "self")

    patterns = ("normal {}", "flawless {}", "perfect {}", "unblemished {}", "{} without flaw", "{} without defect")
    normal = [*patterns, "{} without damage"]
    anomalous = [f"{word} {{}}" for word in ("abnormal", "damaged", "defective", "imperfect")]
    anomalous += [f"{{}} with {word}" for word in ("flaw", "defect", "damage")]
    prompts = []
    for patterns in (normal, anomalous):
        encoded = [
            model.backbone.encode_with_context([p.format("metal nut") + "."], model.prompt_learner.context)[0]
            for p in patterns
        ]
        prompts.append(sum(encoded) / len(encoded))

    def patch_score(patch: torch.Tensor) -> float:
        odds = scale * (cosine(patch, prompts[1]) - cosine(patch, prompts[0]))
        return odds if options.get("patch_scoring") != "probability" else 1 / (1 + math.exp(-odds))

    known = [patch_score(p) for image in model.backbone.encode_aligned(references, attention).aligned for p in image]
    mean = sum(known) / len(known)
    std = math.sqrt(sum((s - mean) ** 2 for s in known) / len(known))
    if options.get("test_reference") == "prior":
        mean, std = (float(v) for v in model.prior)
    features = model.backbone.encode_aligned(query, attention)
    deviations = [(patch_score(p) - mean) / std for p in features.aligned[0]]
    softness = options.get("softness", 2.0)
    squashed = [1 / (1 + math.exp((margin - d) / softness)) for d in deviations]
    residuals = found.patch_residuals[0].tolist()  # InCTRL's, tested there
    if options.get("fusion") == "mean":
        fused = [(t + v) / 2 for t, v in zip(squashed, residuals, strict=True)]
    else:
        fused = [2 * t * v / (t + v) for t, v in zip(squashed, residuals, strict=True)]
    count = max(1, round(options.get("top_k", 0.1) * len(fused)))
    patch, image = (sum(sorted(values)[-count:]) / count for values in (fused, deviations))
    odds = scale * (cosine(features.pooled[0], prompts[1]) - cosine(features.pooled[0], prompts[0]))
    text, alpha = 1 / (1 + math.exp(-odds)), options.get("alpha", 0.5)

    close = {"rel": 1e-4, "abs": 1e-6}
    assert found.deviation[0].tolist() == pytest.approx(deviations, rel=1e-4, abs=1e-4)
    assert found.deviation_map[0].tolist() == pytest.approx(squashed, **close)
    assert found.fused_map[0].tolist() == pytest.approx(fused, **close)
    assert float(found.image_deviation) == pytest.approx(image, rel=1e-4, abs=1e-4)
    assert float(found.image_score) == pytest.approx(1 / (1 + math.exp((margin - image) / softness)), **close)
    assert float(found.patch_score) == pytest.approx(patch, **close)
    assert float(found.text_score) == pytest.approx(text, **close)
    assert float(found.score) == pytest.approx((1 - alpha) * text + alpha * patch, **close)
    assert torch.equal(found.visual_map, found.patch_residuals)
    expected = nn.functional.interpolate(found.fused_map.view(1, 1, 14, 14), size=SIDE, mode="bilinear")
    torch.testing.assert_close(found.anomaly_map, expected)


@pytest.mark.parametrize("reference", ["prior", "normals"])
def test_losses_are_those_of_the_equations(tiny_backbone: ClipBackbone, reference: str, monkeypatch):
    """Two patches an image in two dimensions, prototypes along the axes, numbers to follow by hand."""
    model = build(tiny_backbone, patch_scale=1.0, top_k=0.5, margin=3.0, train_reference=reference)
    monkeypatch.setattr(model, "encode_prompts", lambda _name: torch.eye(2))
    monkeypatch.setattr(model.references, "resolve", lambda _name: "cat")
    features = TrainingFeatures(
        normal=torch.tensor([[[1.0, 0.0], [0.6, 0.8]]]),  # margins -1 and 0.2
        synthetic=torch.tensor([[[0.0, 1.0], [1.0, 0.0]], [[0.8, 0.6], [0.8, 0.6]]]),  # 1 and -1, -0.2 twice
        normal_pooled=torch.tensor([[0.8, 0.6]]),  # -0.2
    )
    mean, std = (float(v) for v in model.prior) if reference == "prior" else (-0.4, 0.6)
    found = model.losses(features)
    patches = (math.log1p(math.exp(-1)) + math.log1p(math.exp(0.2))) / 2
    assert float(found["prompt"]) == pytest.approx((patches + math.log1p(math.exp(-0.2))) / 2, rel=1e-5)
    normal, first, second = ((top - mean) / std for top in (0.2, 1.0, -0.2))
    assert float(found["deviation"]) == pytest.approx((abs(normal) + (3 - first + 3 - second) / 2) / 2, rel=1e-4)


# -------------------------------------------------------------------------------------------------------- training
@pytest.fixture
def features(model: DevPromptModel) -> TrainingFeatures:
    references = smooth(2)
    model.set_references(references, "cat")
    drawn, _ = draw_anomalies(model.references.pictures, 4, seed=0)
    return model.training_features(model.backbone.from_pictures(drawn))


def test_gradients_reach_the_context_and_nothing_else(model: DevPromptModel, features: TrainingFeatures):
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {"prompt_learner.context"}
    for name, loss in model.losses(features).items():
        (gradient,) = torch.autograd.grad(loss, model.prompt_learner.context, retain_graph=True)
        assert gradient.isfinite().all(), name
        assert (gradient.abs().amax(dim=1) > 0).all(), name  # every vector
    assert not any(tensor.requires_grad for tensor in features)


@pytest.mark.parametrize("reference", ["prior", "normals"])
def test_training_lowers_the_loss_and_parts_the_prompts(
    model: DevPromptModel, features: TrainingFeatures, reference: str
):
    model.train_reference = reference
    optimizer = torch.optim.Adam([model.prompt_learner.context], lr=5e-3)
    losses, similarities = [], []
    for _ in range(25):
        normal, anomalous = model.encode_prompts("cat")
        similarities.append(float(normal.detach() @ anomalous.detach()))
        loss = torch.stack(list(model.losses(features).values())).sum()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]
    assert similarities[-1] < similarities[0] - 0.01
    before = model.explain(smooth(1))
    model.refresh()
    after = model.explain(smooth(1))
    assert not torch.equal(before.text_score, after.text_score)
    statistics = model.score_patches(model.references.aligned, model.text_prototypes("cat"))
    torch.testing.assert_close(model.normal, torch.stack([statistics.mean(), statistics.std(correction=0)]))


def test_synthetic_anomalies_are_where_the_mask_is():
    pictures = (smooth(2).sigmoid() * 255).to(torch.uint8)
    state = torch.get_rng_state()
    images, masks = draw_anomalies(pictures, 6, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    again, _ = draw_anomalies(pictures, 6, seed=3)
    other, _ = draw_anomalies(pictures, 6, seed=4)
    assert torch.equal(images, again)
    assert not torch.equal(images, other)
    for i in range(6):
        difference = (images[i].int() - pictures[i % 2].int()).abs().amax(dim=0)
        assert (difference[~masks[i]] <= 8).all()  # 0.03 of 255, rounded
        assert (difference[masks[i]] >= 7).all()
        assert 0.005 <= masks[i].float().mean() <= 0.4


# ------------------------------------------------------------------------------------------------------ behaviour
@torch.no_grad()
def test_a_batch_equals_its_images_one_by_one(tiny_backbone: ClipBackbone):
    model, images = copy.deepcopy(build(tiny_backbone)).double(), smooth(3).double()
    model.set_references(smooth(2).double(), "cat")
    together = model.explain(images)
    for i in range(3):
        for name, value in model.explain(images[i : i + 1])._asdict().items():
            torch.testing.assert_close(getattr(together, name)[i : i + 1], value, rtol=1e-6, atol=1e-6, msg=name)


@torch.no_grad()
def test_the_order_of_references_does_not_matter_nor_when_they_come(model: DevPromptModel):
    references, images = smooth(3), smooth(2)
    model.set_references(references, "cat")
    first = model.explain(images)
    model.set_references(references[[2, 0]], "cat")
    model.add_references(references[1:2])
    for name, value in model.explain(images)._asdict().items():
        torch.testing.assert_close(value, getattr(first, name), rtol=1e-4, atol=1e-4, msg=name)


@torch.no_grad()
def test_a_reference_has_no_residual_and_ranges_hold(model: DevPromptModel):
    references = smooth(2)
    model.set_references(references, "cat")
    found = model.explain(torch.cat([references, 20 * torch.randn(1, 3, SIDE, SIDE)]))
    assert found.patch_residuals[:2].max() < 1e-6
    assert found.fused_map[:2].max() < 1e-5  # the harmonic mean with nothing is nothing
    assert found.deviation[:2].mean().abs() < 1e-3  # of the very patches that gave mean and deviation
    assert float(found.deviation[:2].std(correction=0)) == pytest.approx(1, abs=1e-3)
    for name, value in found._asdict().items():
        assert value.isfinite().all(), name
        if name not in {"deviation", "image_deviation"}:
            assert value.min() >= 0, name
            assert value.max() <= 1, name
    result = model(references)
    assert result.pred_score.shape == (2,)
    assert result.anomaly_map.shape == (2, 1, SIDE, SIDE)


@torch.no_grad()
def test_a_state_dict_carries_all_that_scoring_needs(model: DevPromptModel, monkeypatch: pytest.MonkeyPatch):
    images = smooth(2)
    model.prompt_learner.context.normal_(std=0.1)
    model.set_references(smooth(2), "cat")
    expected = model.explain(images)
    fresh = DevPromptModel(model.backbone).eval()
    fresh.set_references(smooth(1), "dog")
    fresh.load_state_dict(model.state_dict())
    assert fresh.branches == {"context"}
    assert torch.equal(fresh.text_prototypes("cat"), model.text_prototypes("cat"))
    monkeypatch.setattr(ClipBackbone, "encode_with_context", None)  # no text work from here on
    for name, value in fresh.explain(images)._asdict().items():
        assert torch.equal(value, getattr(expected, name)), name
    assert fresh.score_normals().score.shape == (2,)


@torch.no_grad()
def test_without_the_branch_prompts_begin_with_fixed_words(tiny_backbone: ClipBackbone):
    model = build(tiny_backbone, branches=[], normal_suffixes=["good {}"], anomalous_suffixes=["bad {}"])
    sentences = ["a photo of a good metal nut.", "a photo of a bad metal nut."]
    expected = tiny_backbone.encode_sentences(sentences)
    torch.testing.assert_close(model.text_prototypes("metal_nut"), expected, rtol=0, atol=1e-5)
    model.prompt_learner.context.normal_()
    model.set_references(smooth(1), "metal_nut")
    torch.testing.assert_close(model.references.context().prototypes, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_normals_are_scored_against_the_others(model: DevPromptModel):
    references = smooth(3)
    model.set_references(references, "cat")
    scored = model.score_normals()
    statistics, context = model.normal.clone(), model.references
    for i in range(3):
        kept = [j for j in range(3) if j != i]
        residuals = model.explain(references[i : i + 1])
        others = 0.5 * (1 - torch.einsum(
            "lnw,lrw->lnr", context.patches[:, i], context.patches[:, kept].flatten(1, 2)).amax(-1).mean(0)
        )  # fmt: skip
        torch.testing.assert_close(scored.patch_residuals[i], others, rtol=0, atol=1e-5)
        torch.testing.assert_close(scored.deviation[i], residuals.deviation[0], rtol=0, atol=1e-3)
    assert torch.equal(model.normal, statistics)


# ------------------------------------------------------------------------------------------------------- bad input
def test_without_references_the_message_says_what_to_call(model: DevPromptModel):
    with pytest.raises(RuntimeError, match=r"no references: call set_references"):
        model(smooth(1))


def test_no_image_and_another_class_are_refused(model: DevPromptModel):
    with pytest.raises(ValueError, match="give at least one reference"):
        model.set_references(torch.empty(0, 3, SIDE, SIDE), "cat")
    model.set_references(smooth(1), "cat")
    with pytest.raises(ValueError, match=r"of one class, this one of 'cat': make another for 'dog'"):
        model.add_references(smooth(1), "dog")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0.0}, r"top_k must be larger than 0, got 0\.0"),
        ({"top_k": 1.5}, r"top_k must be from 0 to 1, got 1\.5"),
        ({"margin": -1.0}, r"margin must be larger than 0"),
        ({"softness": 0.0}, r"softness must be larger than 0"),
        ({"alpha": 2.0}, r"alpha must be from 0 to 1"),
        ({"fusion": "sum"}, r"fusion must be one of \['harmonic', 'mean', 'max', 'text', 'visual'\], got 'sum'"),
        ({"patch_scoring": "cosine"}, r"patch_scoring must be one of \['margin', 'probability'\]"),
        ({"patch_attention": "none"}, r"patch_attention must be one of \['self', 'all'\]"),
        ({"train_reference": "images"}, r"train_reference must be one of \['prior', 'normals'\]"),
        ({"n_context": 0}, r"n_context must be 1 or more, got 0; learnable_context=False"),
        ({"normal_suffixes": []}, r"normal_suffixes must be patterns with one \{\} for the class"),
        ({"anomalous_suffixes": ["broken"]}, r"anomalous_suffixes must be patterns.*\['broken'\]"),
    ],
)
def test_options_out_of_range_are_refused(tiny_backbone: ClipBackbone, options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        DevPromptModel(tiny_backbone, **options)
