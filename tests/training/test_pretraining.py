"""The pre-training of the embedded backbone: its batches, its objective, and a run that is broken off."""

import copy
import math
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812 - the customary name

from anomalib_inctrl.clip import EMBEDDED_TRUNK, ClipBackbone
from anomalib_inctrl.data.procedural.glyphs import Handwriting
from anomalib_inctrl.pretraining import __main__ as job
from anomalib_inctrl.pretraining import readout, shapes
from anomalib_inctrl.pretraining.descriptor import describe
from anomalib_inctrl.pretraining.embedding import EmbeddingTraining, SiblingDataset
from anomalib_inctrl.pretraining.groups import GroupDataset, StepSampler
from anomalib_inctrl.pretraining.growth import grow, orthonormal, resize, start_layout
from anomalib_inctrl.pretraining.initialization import cosine_filters, initialize, position_waves
from anomalib_inctrl.pretraining.objective import (
    Encoded,
    Judge,
    PretrainingObjective,
    balanced_bce,
    choose_references,
    group_residuals,
    patch_loss,
    patch_ranking_loss,
    ranking_loss,
    relation_loss,
)
from anomalib_inctrl.pretraining.readout import (
    align_patches,
    align_readout,
    balance,
    category_whitening,
    state_directions,
    still_discriminant,
    turn_to,
    whole_words,
)
from anomalib_inctrl.pretraining.schedule import PHASES, STEPS, phase_at, rate_at
from anomalib_inctrl.pretraining.shapes import PatchworkDataset, ShapeDataset, ShapeTraining
from anomalib_inctrl.pretraining.variation import hand_held, light_unevenly, patchwork, smooth_fields
from anomalib_inctrl.scoring import abnormality_margin, class_probability, nearest_residuals
from anomalib_inctrl.shape_tower import ShapeTower

GROUPS, NORMALS, MEMBERS, BLOCKS, PATCHES, WIDTH, DIM = 3, 4, 6, 2, 9, 8, 5
LABELS = (torch.arange(MEMBERS) >= NORMALS).expand(GROUPS, -1)


@pytest.fixture
def encoded():
    """Random features of three groups."""
    torch.manual_seed(0)
    return Encoded(
        patches=torch.randn(GROUPS, MEMBERS, BLOCKS, PATCHES, WIDTH, requires_grad=True),
        pooled=torch.randn(GROUPS, MEMBERS, DIM, requires_grad=True),
        aligned=F.normalize(torch.randn(GROUPS, MEMBERS, PATCHES, DIM, requires_grad=True), dim=-1),
        captions=F.normalize(torch.randn(2 * GROUPS, DIM), dim=-1),
        prototypes=F.normalize(torch.randn(GROUPS, 2, DIM, requires_grad=True), dim=-1),
        descriptors=torch.randn(GROUPS, MEMBERS, PATCHES, 7),
    )


def test_references_are_other_normal_pictures_of_any_number():
    torch.manual_seed(0)
    chosen = choose_references(LABELS.repeat(50, 1), NORMALS)
    own = torch.arange(NORMALS)
    assert chosen.shape == (50 * GROUPS, MEMBERS, NORMALS)
    assert not chosen[:, own, own].any()
    assert set(chosen.sum(dim=-1).unique().tolist()) == {1, 2, 3}
    assert chosen[:, NORMALS:].mean(dim=(0, 1)).sub(0.5).abs().max() < 0.1  # no picture is preferred


def test_residuals_equal_those_of_the_models(encoded):
    torch.manual_seed(1)
    chosen = choose_references(LABELS, NORMALS)
    own, other = group_residuals(encoded.patches, NORMALS, chosen)
    tokens = F.normalize(encoded.patches, dim=-1)
    for group in range(GROUPS):
        for member in range(MEMBERS):
            among = tokens[group, :NORMALS][chosen[group, member].bool()].transpose(0, 1).flatten(1, 2)
            expected = nearest_residuals(encoded.patches[group, member][None], among)[0]
            torch.testing.assert_close(own[group, member], expected, atol=1e-5, rtol=0)
    references = tokens[0, :NORMALS].transpose(0, 1).flatten(1, 2)
    torch.testing.assert_close(other[0], nearest_residuals(encoded.patches[-1, :1], references), atol=1e-5, rtol=0)


def test_equal_pictures_have_no_residual():
    patches = torch.randn(1, 1, BLOCKS, PATCHES, WIDTH).expand(GROUPS, MEMBERS, -1, -1, -1)
    own, other = group_residuals(patches, NORMALS, choose_references(LABELS, NORMALS))
    assert own.abs().max() < 1e-6
    assert other.abs().max() < 1e-6


def test_every_term_is_finite_and_reaches_its_features(encoded):
    terms = PretrainingObjective()(encoded, torch.randint(2, (GROUPS, MEMBERS, PATCHES)).float(), LABELS)
    assert terms.keys() == {*PretrainingObjective.WEIGHTS, "auroc", "loss"}
    reached = {
        **dict.fromkeys(("relation", "patch", "image", "calibration"), "patches"),
        **dict.fromkeys(("category", "distance", "state"), "pooled"),
        "dense": "aligned",
        "opposite": "prototypes",
    }
    for name, features in reached.items():
        names = ("patches", "pooled", "aligned", "prototypes")
        sources = tuple(getattr(encoded, n) for n in names)
        gradients = torch.autograd.grad(terms[name], sources, retain_graph=True, allow_unused=True)
        found = [n for n, g in zip(names, gradients, strict=True) if g is not None]
        assert found == [features], name
    expected = sum(PretrainingObjective.WEIGHTS[name] * terms[name] for name in PretrainingObjective.WEIGHTS)
    torch.testing.assert_close(terms["loss"], expected)


def test_a_steps_factors_multiply_the_weights(encoded):
    coverage = torch.zeros(GROUPS, MEMBERS, PATCHES)
    losses = []
    for factors in ({}, {"state": 10.0}):
        torch.manual_seed(0)
        terms = PretrainingObjective()(encoded, coverage, LABELS, factors)
        losses.append(terms["loss"])
    torch.testing.assert_close(losses[1] - losses[0], 9 * PretrainingObjective.WEIGHTS["state"] * terms["state"])


def test_phases_follow_each_other_at_any_length_and_name_terms():
    found = [phase_at(step, STEPS) for step in (0, 1899, 1900, 2199, 2200, STEPS - 1)]
    assert found == [PHASES[i] for i in (0, 0, 1, 1, 2, 2)]
    assert phase_at(4399, 2 * STEPS) is PHASES[1]  # two processes count their batches together
    assert phase_at(4400, 2 * STEPS) is PHASES[2]
    for phase in PHASES:
        assert sum(phase.kinds) == pytest.approx(1)
        assert phase.factors.keys() <= PretrainingObjective.WEIGHTS.keys()


def test_the_learning_rate_rises_and_falls_in_every_cycle():
    rates = [rate_at(step, STEPS) for step in range(STEPS)]
    assert rates[0] == pytest.approx(1 / 200)
    assert max(rates[:2200]) == pytest.approx(1.0)
    assert rates[2199] == pytest.approx(0.01, abs=1e-4)
    assert max(rates[2200:]) == pytest.approx(0.5)
    assert rates[-1] == pytest.approx(0.005, abs=1e-4)
    for first, last in ((0, 2200), (2200, STEPS)):
        cycle = rates[first:last]
        assert cycle[:200] == sorted(cycle[:200])
        assert cycle[200:] == sorted(cycle[200:], reverse=True)
    assert all(0 < rate_at(step, 3) <= 1 for step in range(3))


def test_a_dropped_term_leaves_the_sum_and_an_unknown_one_is_refused(encoded):
    coverage = torch.zeros(GROUPS, MEMBERS, PATCHES)
    torch.manual_seed(2)
    terms = PretrainingObjective(dict.fromkeys(PretrainingObjective.WEIGHTS, 0.0) | {"caption": 2.0})(
        encoded, coverage, LABELS
    )
    torch.testing.assert_close(terms["loss"], 2 * terms["caption"])
    with pytest.raises(ValueError, match="No term is called colour; there are relation, patch"):
        PretrainingObjective({"colour": 1.0})


def test_tokens_with_the_geometry_of_the_descriptor_relate_as_it_does():
    angles = torch.linspace(0, math.pi / 2, PATCHES)
    tokens = torch.stack([angles.cos(), angles.sin()], dim=-1).expand(GROUPS, MEMBERS, BLOCKS, -1, -1)
    # A Gaussian kernel whose value at this distance is the cosine between neighbours; farther pairs deviate a little.
    step = math.sqrt(-0.5 * math.log(math.cos(float(angles[1]))))
    descriptors = (torch.arange(PATCHES) * step)[:, None].expand(GROUPS, MEMBERS, -1, 1)
    assert relation_loss(tokens, descriptors) < 0.01
    assert relation_loss(tokens.flip(3).roll(3, dims=1), descriptors.roll(4, dims=2)) > 0.05


def test_descriptor_tells_direction_scale_and_colour_apart():
    y, x = torch.meshgrid(torch.arange(112.0), torch.arange(112.0), indexing="ij")
    waves = [torch.sin(0.8 * x), torch.sin(0.8 * y), torch.sin(0.3 * x), torch.zeros_like(x)]
    images = torch.stack([wave.expand(3, -1, -1) for wave in waves])
    images = torch.cat([images, torch.tensor([1.0, 0.0, -1.0])[:, None, None].expand(1, 3, 112, 112)])
    described = describe(images, 8)
    assert described.shape == (5, 196, 72)
    torch.testing.assert_close(described.mean(dim=(0, 1)), torch.zeros(72), atol=1e-3, rtol=0)
    inner = described.unflatten(1, (14, 14))[:, 3:-3, 3:-3].flatten(1, 2)
    nearest = torch.cdist(inner.flatten(0, 1), inner.mean(dim=1)).argmin(dim=1)
    assert torch.equal(nearest, torch.arange(5).repeat_interleave(inner.shape[1]))


def test_patches_that_nobody_can_tell_do_not_count():
    logits = torch.tensor([4.0, -4.0, 50.0, -50.0])
    coverage = torch.tensor([1.0, 0.0, 0.1, math.nan])  # anomalous, normal, hardly touched, unknown
    torch.testing.assert_close(patch_loss(logits, coverage), torch.tensor(math.log1p(math.exp(-4))))


def test_ranking_counts_the_pairs_in_the_wrong_order():
    scores = torch.tensor([[0.1, 0.5, 0.3, 0.9], [0.5, 0.5, 0.5, 0.5]])
    labels = torch.tensor([[False, False, True, True], [True, False, True, False]])
    wrong, right = math.log1p(math.exp(4)), [math.log1p(math.exp(-x)) for x in (4, 16, 8)]
    expected = ((wrong + sum(right)) / 4 + math.log(2)) / 2
    torch.testing.assert_close(ranking_loss(scores, labels), torch.tensor(expected))


def test_patches_are_ranked_within_their_group_and_unclear_ones_are_not():
    coverage = torch.tensor([[[0.0, 0.1], [1.0, 0.0]], [[0.0, 0.0], [math.nan, math.nan]]])
    residuals = torch.tensor([[[0.2, 9.0], [0.3, 0.1]], [[5.0, 5.0], [0.0, 0.0]]])
    expected = (math.log1p(math.exp(-2)) + math.log1p(math.exp(-4))) / 2  # 0.3 over 0.2 and over 0.1
    torch.testing.assert_close(patch_ranking_loss(residuals, coverage), torch.tensor(expected))
    assert patch_ranking_loss(residuals, torch.zeros_like(coverage)) == 0


def test_both_labels_weigh_the_same_however_rare():
    logits, labels = torch.tensor([2.0, 0.0, 0.0, 0.0]), torch.tensor([True, False, False, False])
    expected = (math.log1p(math.exp(-2)) + math.log(2)) / 2
    torch.testing.assert_close(balanced_bce(logits, labels), torch.tensor(expected))
    alone = torch.tensor([math.log1p(math.exp(-2)), math.log(2), math.log(2), math.log(2)]).mean()
    torch.testing.assert_close(balanced_bce(logits, torch.ones(4, dtype=torch.bool)), alone)


def test_judge_turns_its_threshold_into_even_odds():
    judge = Judge(scale=20.0, threshold=0.25)
    torch.testing.assert_close(judge(torch.tensor([0.25, 0.35])), torch.tensor([0.0, 2.0]))


def test_state_and_dense_are_about_the_text_scores_of_the_models(encoded):
    coverage = torch.randint(2, (GROUPS, MEMBERS, PATCHES)).float()
    normal = encoded.prototypes[:, :1]  # and an anomalous one not far from it, so that no probability becomes 0 or 1
    near = F.normalize(normal + 0.02 * torch.randn(GROUPS, 1, DIM), dim=-1)
    encoded = encoded._replace(prototypes=torch.cat([normal, near], dim=1))
    terms = PretrainingObjective()(encoded, coverage, LABELS)
    text_score = torch.stack(
        [class_probability(*pair) for pair in zip(encoded.pooled, encoded.prototypes, strict=True)]
    )
    torch.testing.assert_close(terms["state"], balanced_bce(text_score.double().logit(), LABELS).float())
    text_map = torch.stack([class_probability(*pair) for pair in zip(encoded.aligned, encoded.prototypes, strict=True)])
    torch.testing.assert_close(terms["dense"], patch_loss(text_map.double().logit(), coverage).float())


def test_prompts_of_both_states_are_opposite_when_orthogonal(encoded):
    same = encoded._replace(prototypes=encoded.prototypes[:, :1].expand(-1, 2, -1))
    apart = encoded._replace(prototypes=torch.eye(DIM)[:2].expand(GROUPS, -1, -1))
    coverage = torch.zeros(GROUPS, MEMBERS, PATCHES)
    for features, expected in ((same, 1.0), (apart, 0.0)):
        terms = PretrainingObjective()(features, coverage, LABELS)
        torch.testing.assert_close(terms["opposite"], torch.tensor(expected))


def test_untrained_towers_start_with_what_they_are_shown():
    torch.manual_seed(0)
    backbone = ClipBackbone(EMBEDDED_TRUNK)
    initialize(backbone, torch.Generator().manual_seed(0))
    # Even patches of different brightness are alike to a tower whose norm takes it away.
    levels = torch.tensor([0.0, 0.1, 0.3, 1.0])
    tokens = backbone.encode_image(levels[:, None, None, None].expand(-1, 3, *backbone.image_size)).patches[:, 0, 0]
    distance = 1 - F.cosine_similarity(tokens[0], tokens[1:])
    assert distance[0] > 1e-4
    assert torch.all(distance[1:] > 2 * distance[:-1])
    # Sentences are the more alike the more words they share, and never the same.
    same, near, far = backbone.encode_sentences(["a red gear", "a red gear with a scratch", "photo of smooth wood"])
    assert same @ far < same @ near < 0.99


def test_filters_hold_the_whole_patch_and_positions_differ():
    filters = F.normalize(cosine_filters(8, 192).flatten(1), dim=1)
    torch.testing.assert_close(filters @ filters.T, torch.eye(192), atol=1e-5, rtol=0)
    assert filters[0].reshape(3, -1).std(dim=1).max() < 1e-6  # the first is plain brightness
    waves = F.normalize(position_waves(14, 14, 128), dim=1)
    similarity = waves @ waves.T - 2 * torch.eye(196)
    assert similarity.max() < 0.999
    assert set(similarity[0].topk(2).indices.tolist()) == {1, 14}  # its neighbours to the right and below


def test_states_differ_along_few_directions():
    apart, wavering = torch.eye(DIM)[:2]
    normal = F.normalize(torch.randn(20, DIM), dim=-1)
    differences = 1.4 * apart + 0.1 * torch.linspace(-1, 1, 20)[:, None] * wavering
    for sign in (1, -1):  # whatever sign the decomposition comes with
        prototypes = torch.stack([normal, normal + sign * differences], dim=1)
        directions, distance = state_directions(prototypes, count=2)
        torch.testing.assert_close(directions[0], sign * apart, atol=1e-5, rtol=0)
        torch.testing.assert_close(directions[1].abs(), wavering, atol=1e-5, rtol=0)
        torch.testing.assert_close(distance, torch.tensor(1.4))


def test_discriminant_is_fishers_and_stays_clear_of_what_images_vary_in():
    shift, spread = torch.tensor([1.0, 1.0, 0.0]), torch.tensor([1.0, 2.0, 1.0])
    coverage = torch.zeros(2, 1, 8000)
    coverage[..., :4000] = 1
    coverage[..., -10:] = math.nan  # nobody knows about these
    offsets = 5 * torch.randn(2, 1, 1, 3)  # of the categories, which do not count
    patches = spread * torch.randn(2, 1, 8000, 3) + offsets + (coverage == 1)[..., None] * shift
    fisher = still_discriminant(patches, coverage, torch.zeros(1, 3))
    torch.testing.assert_close(fisher, torch.tensor([1.0, 0.25, 0.0]), atol=0.06, rtol=0)
    images = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])
    still = still_discriminant(patches, coverage, images, still=1000.0)
    torch.testing.assert_close(still, torch.tensor([0.0, 0.25, 0.0]), atol=0.06, rtol=0)
    with pytest.raises(ValueError, match="no category with both"):
        still_discriminant(patches, torch.zeros_like(coverage), images)


def test_whitening_makes_a_category_vary_alike_in_all_directions():
    torch.manual_seed(0)
    spread = torch.tensor([[2.0, 0.5, 0.0], [0.0, 1.0, 0.3], [0.0, 0.0, 0.6]])
    images = 10 * torch.randn(400, 1, 3) + torch.randn(400, 5, 3) @ spread
    whitened = images @ category_whitening([images])
    centred = (whitened - whitened.mean(dim=1, keepdim=True)).flatten(0, 1)
    scatter = centred.T @ centred / (400 * 4)
    mean = (spread.T @ spread).trace() / 3
    torch.testing.assert_close(scatter, mean * torch.eye(3), atol=0.35, rtol=0)  # a ridge of a hundredth
    torch.testing.assert_close(category_whitening([whitened]), torch.eye(3), atol=0.15, rtol=0)
    halves = [images[:300], images[300:, :3]]  # categories of fewer images count as much
    torch.testing.assert_close(category_whitening(halves), category_whitening([images]), atol=0.15, rtol=0)


def test_embeddings_turn_to_their_captions_and_away_from_what_is_avoided():
    torch.manual_seed(0)
    hidden = orthonormal(4, 9, torch.Generator().manual_seed(1))
    images = torch.randn(50, 4)
    avoided = orthonormal(2, 9, torch.Generator().manual_seed(2))
    away = hidden - hidden @ avoided.T @ avoided
    turn = turn_to(images, images @ away + 5.0, avoided)
    torch.testing.assert_close(turn @ turn.T, torch.eye(4), atol=1e-5, rtol=0)
    assert (turn @ avoided.T).abs().max() < 1e-5
    agreement = F.cosine_similarity(images @ turn, images @ away, dim=-1)
    assert agreement.mean() > 0.9
    exact = turn_to(images, images @ hidden, torch.linalg.qr(hidden.T, mode="complete").Q[:, 4:6].T)
    torch.testing.assert_close(exact, hidden, atol=1e-5, rtol=0)


@pytest.mark.parametrize("avoided", [6, 200])  # room for all that is said of images, or for the most of it
def test_readout_quietens_images_and_lets_patches_tell(trunk, avoided, monkeypatch):
    found = []

    def more(prototypes):
        directions, distance = state_directions(prototypes)
        _, _, rest = torch.linalg.svd(directions)
        found.append(torch.cat([directions, rest[len(directions) : avoided]]))
        return found[-1], distance

    monkeypatch.setattr(readout, "state_directions", more)
    backbone = ClipBackbone("inctrl-tiny", random=True)
    initialize(backbone, torch.Generator().manual_seed(0))
    resize(backbone, trunk, trunk.image_size)
    backbone.fingerprint = "initialized"  # else the prototypes of the weights before would be remembered
    data = GroupDataset(4, seed=5, side=backbone.image_size[0], groups=4, normals=2, anomalies=4)
    words = whole_words(backbone, 6, torch.Generator().manual_seed(0))
    assert len(set(words)) == 6
    assert all(word.isalpha() and len(backbone.tokenizer.encode(word)) == 1 for word in words)
    unseen = data[3]
    pictures = backbone.from_pictures(unseen.images.flatten(0, 1))

    def margins():
        prototypes = backbone.text_prototypes("object")
        features = backbone.encode_aligned(pictures)
        images = abnormality_margin(F.normalize(features.pooled, dim=-1), prototypes)
        return features.patches, images, abnormality_margin(features.aligned, prototypes)

    texts = backbone.encode_sentences(["a photo of a brick", "a damaged coin"])
    taps, images, patches = margins()
    align_readout(backbone, [data[i] for i in range(3)], words)
    same_taps, quiet, telling = margins()
    assert torch.equal(taps, same_taps)
    assert quiet.std() < 0.2 * images.std()
    assert quiet.abs().max() < 0.1 < images.abs().max()  # probabilities within 0.025 of 0.5
    assert torch.equal(texts, backbone.encode_sentences(["a photo of a brick", "a damaged coin"]))
    anomalous, normal = (unseen.coverage >= 0.25).flatten(), (unseen.coverage == 0).flatten()

    def shift(values):
        values = values.flatten()
        return (values[anomalous].mean() - values[normal].mean()) / values[normal].std()

    assert shift(telling) > max(0.3, shift(patches))
    projections = torch.cat([backbone.visual.proj, backbone.shapes.proj])
    (directions,) = found
    assert len(directions) == avoided
    assert (projections @ directions[1:].T).norm() < 1e-4 * projections.norm()
    off = projections - projections @ directions.T @ directions
    assert torch.linalg.matrix_rank(off.double(), rtol=1e-5) == min(len(off), 512 - avoided - 1)
    surface = backbone.shapes.surface  # a direction of its own
    assert surface.norm().item() == pytest.approx(1, abs=1e-5)
    assert (directions @ surface).abs().max() < 1e-5
    assert (off @ surface).norm() < 1e-4 * off.norm()


def test_what_is_said_of_images_is_whitened_and_of_length_one():
    torch.manual_seed(0)
    images = [torch.randn(300, 4, 5) @ torch.diag(torch.arange(1.0, 6)) + 3, torch.randn(200, 3, 5)]
    start = torch.eye(5) + 0.2 * torch.randn(5, 5)
    described = [part @ balance(start, images) for part in images]
    assert torch.cat([part.norm(dim=-1).flatten() for part in described]).mean() == pytest.approx(1)
    scatter = torch.cat([torch.stack([group.T.cov() for group in part]) for part in described]).mean(dim=0)
    torch.testing.assert_close(scatter / scatter.diag().mean(), torch.eye(5), atol=0.1, rtol=0)  # but for the ridge


def test_batches_repeat_by_seed_and_hold_what_they_say():
    data = GroupDataset(5, seed=3, groups=2, normals=2, anomalies=2)
    batch, again, other = data[1], data[1], data[2]
    assert torch.equal(batch.images, again.images)
    assert not torch.equal(batch.images, other.images)
    assert batch.images.shape == (2, 4, 3, 112, 112)
    assert batch.captions == again.captions
    assert len(batch.captions) == 4
    assert len(batch.states) == 4
    assert not batch.coverage[:, :2].any()
    marked = batch.coverage[:, 2:]
    assert (marked.isnan() | ((marked >= 0) & (marked <= 1))).all()
    assert (marked.nan_to_num(1.0).amax(dim=-1) > 0).all()
    with pytest.raises(IndexError):
        data[5]


def test_weights_move_half_the_way_back(tmp_path):
    from safetensors.torch import save_file

    module = torch.nn.Linear(2, 1)
    later = {k: v.clone() for k, v in module.state_dict().items()}
    earlier = {k: torch.randn_like(v) for k, v in later.items()}
    save_file(earlier, tmp_path / "earlier.safetensors")
    job.average_with(module, tmp_path / "earlier.safetensors")
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value, (earlier[name] + later[name]) / 2)
    with pytest.raises(FileNotFoundError, match="begin anew in another folder"):
        job.average_with(module, tmp_path / "none.safetensors")


def test_processes_share_the_batches_and_epochs_follow_each_other():
    seen = []
    for done in (0, 3):
        for rank in range(2):
            seen += list(StepSampler(3, done=lambda done=done: done, processes=2, rank=rank))
    assert sorted(seen) == list(range(12))
    assert max(seen[:6]) < min(seen[6:])


@pytest.fixture(scope="module")
def trunk():
    """Trunk with informed random weights, whose tokens have a mean of 0, near which training brings them."""
    torch.manual_seed(0)
    backbone = ClipBackbone(EMBEDDED_TRUNK)
    initialize(backbone, torch.Generator().manual_seed(0))
    for block in backbone.visual.transformer.resblocks:
        for norm in (block.ln_1, block.ln_2):
            torch.nn.init.normal_(norm.weight, 1.0, 0.1)
        for last in (block.attn.out_proj, block.mlp.c_proj):
            torch.nn.init.normal_(last.weight, std=0.01)
            last.weight.data -= last.weight.data.mean(dim=0)
    backbone.visual.conv1.weight.data -= backbone.visual.conv1.weight.data.mean(dim=0)
    backbone.visual.positional_embedding.data -= backbone.visual.positional_embedding.data.mean(dim=1, keepdim=True)
    return backbone


@pytest.fixture(scope="module")
def grown(trunk):
    """What grows from it."""
    data = SiblingDataset(6, seed=9)
    return grow(trunk, (data[i].flatten(0, 1) for i in range(6)), torch.Generator().manual_seed(0))


def test_what_grows_keeps_residuals_and_texts(trunk, grown):
    pictures = trunk.from_pictures(SiblingDataset(7, seed=9)[6].flatten(0, 1))
    before, after = trunk.encode_image(pictures).patches, grown.encode_image(pictures).patches
    assert grown.blocks == trunk.blocks
    assert F.cosine_similarity(before, after[..., : trunk.width], dim=-1).min() > 0.99
    residuals = [
        nearest_residuals(p[8:], F.normalize(p[:4], dim=-1).transpose(0, 1).flatten(1, 2)).flatten()
        for p in (before, after)
    ]
    assert torch.corrcoef(torch.stack(residuals))[0, 1] > 0.99
    sentences = ["a photo of a brick", "a damaged coin", "letter"]
    texts = [tower.encode_sentences(sentences) for tower in (trunk, grown)]
    torch.testing.assert_close(texts[0] @ texts[0].T, texts[1] @ texts[1].T, atol=1e-5, rtol=1e-5)


def test_a_grown_tower_starts_with_the_brightness_of_cells(grown):
    backbone = copy.deepcopy(grown)
    torch.manual_seed(0)
    tokens = torch.randn(30, 196, backbone.width)
    tokens -= tokens[..., :128].mean(dim=-1, keepdim=True)  # near which a trained trunk's tokens are
    tokens[..., 128:] = 0
    cells = torch.arange(14) // 2
    row, column = cells.repeat_interleave(14), cells.repeat(14)
    tokens[:, torch.arange(196), 128 + row] = 0.5
    tokens[:, torch.arange(196), 135 + column] = 0.5
    tokens[..., 142] = 0.3 * torch.randn(30, 196)
    normed = F.layer_norm(tokens, tokens.shape[-1:])
    start_layout(backbone, normed, torch.Generator().manual_seed(0))
    mlp = backbone.visual.transformer.resblocks[-2].mlp
    pairs = mlp.gelu(mlp.c_fc(normed))[..., :98].mean(dim=1).unflatten(1, (2, 49))
    layout = pairs[:, 0] - pairs[:, 1]
    brightness = F.avg_pool2d(tokens[..., 142].unflatten(1, (14, 14)), 2).flatten(1)
    assert torch.corrcoef(torch.stack([layout.flatten(), brightness.flatten()]))[0, 1] > 0.98
    # Every cell writes to a direction of its own.
    directions = F.normalize(mlp.c_proj.weight[:, :49], dim=0)
    torch.testing.assert_close(directions.T @ directions, torch.eye(49), atol=1e-5, rtol=0)


def test_a_grown_tower_takes_larger_images(trunk, grown):
    backbone = copy.deepcopy(grown)
    assert backbone.image_size == trunk.image_size
    resize(backbone, trunk, (160, 160))
    assert (backbone.image_size, backbone.grid_size) == ((160, 160), (20, 20))
    positions = backbone.visual.positional_embedding
    assert not positions.requires_grad
    lanes = positions[1:, trunk.width : trunk.width + 14].unflatten(0, (20, 20))
    open_lanes = torch.stack([lanes[..., :7].argmax(dim=-1), lanes[..., 7:].argmax(dim=-1)], dim=-1)
    assert torch.equal(open_lanes[3, 16], torch.tensor([1, 5]))  # of 7 rows and columns
    assert (lanes != 0).sum(dim=-1).unique().tolist() == [2]
    # Interpolated: taken back to fewer patches, they are the trunk's again, but for what bicubic weights blur.
    body = positions[1:, : trunk.width].T.unflatten(1, (20, 20))[None]
    back = F.interpolate(body, size=(14, 14), mode="bicubic", align_corners=False)[0].flatten(1).T
    known = trunk.visual.positional_embedding[1:]
    assert F.cosine_similarity(back.flatten(), known.flatten(), dim=0) > 0.95
    assert torch.equal(positions[0], grown.visual.positional_embedding[0])
    # Nearly the same picture, at both sizes.
    small = SiblingDataset(1, seed=4)[0][:, 0]
    large = F.interpolate(small.float(), size=(160, 160), mode="bicubic").round().clamp(0, 255).to(torch.uint8)
    few = grown.encode_image(grown.from_pictures(small)).patches.mean(dim=2)
    many = backbone.encode_image(backbone.from_pictures(large)).patches.mean(dim=2)
    assert F.cosine_similarity(few, many, dim=-1).min() > 0.9
    resize(backbone, trunk, trunk.image_size)
    assert torch.equal(backbone.visual.positional_embedding, grown.visual.positional_embedding)


def test_later_stages_train_what_no_residual_sees_and_nothing_else(grown):
    backbone = copy.deepcopy(grown)
    module = EmbeddingTraining(backbone, steps=30, seed=0)
    module.log = lambda *args, **kwargs: None
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    assert all(
        name == "scale" or name.startswith(("backbone.visual.ln_post", "backbone.visual.proj"))
        or int(name.split("resblocks.")[1].split(".")[0]) > backbone.blocks[-1]
        for name in trained
    )  # fmt: skip
    start = {name: p.detach().clone() for name, p in module.named_parameters()}
    pictures = backbone.from_pictures(SiblingDataset(1, seed=4)[0].flatten(0, 1))
    before = backbone.encode_image(pictures)
    optimizer = module.configure_optimizers()["optimizer"]
    for group in optimizer.param_groups:
        group["lr"] = 1e-4
    batch = SiblingDataset(1, seed=3, groups=4, normals=3)[0]
    losses = []
    for _ in range(6):
        loss = module.training_step(batch, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    changed = {name for name, p in module.named_parameters() if not torch.equal(p, start[name])}
    assert changed <= trained
    assert len(changed) > 0.8 * len(trained)
    after = backbone.encode_image(pictures)
    assert torch.equal(before.patches, after.patches)
    assert not torch.equal(before.pooled, after.pooled)


def test_siblings_repeat_by_seed_and_are_of_one_family(monkeypatch):
    from anomalib_inctrl.data.procedural import Category

    families = []
    draw = Category.draw_normal
    monkeypatch.setattr(
        Category, "draw_normal", lambda self, *args: families.append(type(self.family)) or draw(self, *args)
    )
    data = SiblingDataset(5, seed=3, groups=3, normals=2)
    for step in range(5):
        families.clear()
        batch = data[step]
        assert batch.shape == (3, 2, 3, 112, 112)
        assert batch.dtype == torch.uint8
        assert len(families) == 3
        assert len(set(families)) == 1
        assert not torch.equal(batch[0], batch[1])
        assert torch.equal(batch, data[step])
    assert not torch.equal(data[0], data[1])
    with pytest.raises(IndexError):
        data[5]


def test_batches_of_shapes_are_handwriting_as_often_as_wanted(monkeypatch):
    families = []
    monkeypatch.setattr(
        ShapeDataset, "_draw_relatives", lambda self, generator, first, **kwargs: families.append(type(first.family))
    )
    monkeypatch.setattr(shapes, "hand_held", lambda pictures, generator: pictures)
    for share in (0.0, 0.7):
        families.clear()
        data = ShapeDataset(200, seed=1, handwritten=share)
        [data[step] for step in range(200)]
        found = sum(family is Handwriting for family in families) / 200
        assert found == pytest.approx(share + 0.05 * (1 - share), abs=0.06)  # one of five families of a quarter


def test_shapes_repeat_by_seed_and_a_camera_held_by_hand_moves_them():
    data = ShapeDataset(12, seed=3, groups=3, normals=2)
    batches = [data[step] for step in range(12)]
    assert all(batch.shape == (3, 2, 3, 80, 80) and batch.dtype == torch.uint8 for batch in batches)
    assert all(torch.equal(batch, data[step]) for step, batch in enumerate(batches[:3]))
    with pytest.raises(IndexError):
        data[12]
    dot = torch.zeros(40, 3, 41, 41, dtype=torch.uint8)
    dot[:, :, 18:23, 18:23] = 200
    moved = hand_held(dot[None], np.random.default_rng(0))[0].float()
    assert torch.equal(moved, hand_held(dot[None], np.random.default_rng(0))[0].float())
    ink = (moved.mean(dim=1) - moved.mean(dim=1).amin(dim=(1, 2), keepdim=True)).flatten(1)
    row = torch.arange(41.0).repeat_interleave(41)
    centres = (ink * row).sum(dim=1) / ink.sum(dim=1)
    assert centres.mean() == pytest.approx(20, abs=1)
    assert 0.5 < centres.std() < 4.1 * 0.7  # at most a fifth of half a picture, evenly spread
    levels = moved.amax(dim=(1, 2, 3))
    assert levels.std() > 5  # exposed each on its own


def test_a_second_material_shows_to_an_extent_that_differs_from_picture_to_picture():
    ground = torch.full((3, 40, 3, 40, 40), 40, dtype=torch.uint8)
    seeds = range(12)
    shares = []
    for seed in seeds:
        mixed = patchwork(ground, ground + 160, np.random.default_rng(seed))
        assert torch.equal(mixed, patchwork(ground, ground + 160, np.random.default_rng(seed)))
        assert torch.equal(mixed[:, :, 0], mixed[:, :, 2])  # grey stays grey
        shares.append((mixed.float() > 100).float().mean(dim=(2, 3, 4)))
    shares = torch.stack(shares)  # (seeds, categories, pictures)
    assert 0.3 < shares.mean() < 0.7
    assert (shares.std(dim=2) > 0.01).all()
    assert shares.mean(dim=2).std(dim=1).mean() > 0.05  # categories differ in it as well


def test_uneven_light_multiplies_pictures_by_smooth_fields():
    pictures = torch.full((2, 3, 3, 60, 60), 100.0)
    pictures[..., 30:] = 50
    lit = [light_unevenly(pictures, np.random.default_rng(seed)) for seed in range(10)]
    changed = [found for found in lit if not torch.equal(found, pictures)]
    assert 3 < len(changed) < 10  # mostly
    for found in changed:
        gain = found / pictures
        torch.testing.assert_close(gain[:, :, 0], gain[:, :, 1])
        assert gain.diff(dim=-1).abs().max() < 0.25
        assert (gain[0, 0] - gain[0, 1]).abs().max() > 1e-3  # every picture has a light of its own


def test_smooth_fields_are_as_coarse_as_asked():
    fine, coarse = (smooth_fields(np.random.default_rng(0), 64, 80, scale) for scale in (8.0, 40.0))
    assert fine.shape == coarse.shape == (64, 1, 80, 80)
    steps = [field.diff(dim=-1).square().mean().sqrt() / field.std() for field in (fine, coarse)]
    assert steps[0] / steps[1] == pytest.approx(5, rel=0.25)


def test_every_batch_of_uneven_pictures_has_two_materials(monkeypatch):
    data = PatchworkDataset(3, seed=3, side=64, groups=2, normals=2)
    recorder = Mock(wraps=patchwork)
    monkeypatch.setattr(shapes, "patchwork", recorder)
    batches = [data[step] for step in range(3)]
    assert recorder.call_count == 3
    assert all(batch.shape == (2, 2, 3, 64, 64) and batch.dtype == torch.uint8 for batch in batches)
    assert torch.equal(batches[1], data[1])
    for call in recorder.call_args_list:
        ground, patches, _ = call.args
        assert not torch.equal(ground, patches)


@pytest.mark.parametrize("branch", [0, 1])
def test_a_branch_of_the_convolutional_tower_learns_shapes_alone(grown, branch):
    backbone = copy.deepcopy(grown)
    torch.manual_seed(0)
    tower = backbone.shapes = ShapeTower(backbone.embed_dim, backbone.width)
    module = ShapeTraining(backbone, steps=30, seed=0, branch=branch)
    module.log = lambda *args, **kwargs: None
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    own = ("scale", f"tower.branches.{branch}.", *(["tower.stem."] if branch == 0 else []))
    assert trained == {name for name, _ in module.named_parameters() if name.startswith(own)}
    assert not any(p.requires_grad for p in backbone.visual.transformer.resblocks[0].parameters())
    if branch:  # it goes on from the first
        first = tower.branches[0].state_dict()
        assert all(torch.equal(value, first[name]) for name, value in tower.branches[1].state_dict().items())
    before = copy.deepcopy(tower.state_dict())
    optimizer = module.configure_optimizers()["optimizer"]
    for group in optimizer.param_groups:
        group["lr"] = 3e-4
    batch = ShapeDataset(1, seed=3, groups=4, normals=3)[0]
    losses = []
    for _ in range(8):
        loss = module.training_step(batch, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    changed = {f"tower.{name}" for name, value in tower.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == trained - {"scale"}


@torch.no_grad()
def test_patches_of_the_convolutional_tower_are_whitened_in_part_beside_a_constant():
    backbone = ClipBackbone("inctrl-tiny", random=True)
    towers = {name: value.clone() for name, value in backbone.state_dict().items() if "shapes.patches" not in name}
    before = backbone.fingerprint
    pictures = torch.randint(256, (2, 5, 3, 20, 20), dtype=torch.uint8)
    pictures = pictures.repeat_interleave(8, dim=-1).repeat_interleave(8, dim=-2)
    align_patches(backbone, pictures)
    assert backbone.fingerprint != before
    assert all(torch.equal(value, towers[name]) for name, value in backbone.state_dict().items() if name in towers)
    images = backbone.from_pictures(pictures.flatten(0, 1))
    patches = backbone.encode_patches(images)[:, -1].flatten(0, 1).double()
    torch.testing.assert_close(patches[:, -1], torch.ones(len(patches)).double())
    own = patches[:, :-1]
    torch.testing.assert_close(own.mean(dim=0), torch.zeros(143).double(), atol=1e-4, rtol=0)
    assert own.square().sum(dim=1).mean().item() == pytest.approx(1, rel=1e-4)
    # Written out: every scale of a length of its own, the 143 directions of largest variance, deviations to the power
    # of 0.3, but for a ridge of a hundredth of the mean over all directions.
    scales = backbone.shapes.see(images).scales
    parts = [
        F.interpolate(scale, size=(20, 20), mode="bilinear").flatten(2).mT.flatten(0, 1).double() for scale in scales
    ]
    parts = [part - part.mean(dim=0) for part in parts]
    parts = [part / part.square().sum(dim=1).mean().sqrt() for part in parts]
    joined = torch.cat([parts[0], *[0.7 * part for part in parts[1:]]], dim=1)
    values, vectors = torch.linalg.eigh(joined.mT @ joined / len(joined))
    expected = joined @ vectors[:, -143:] / (values[-143:] + 0.01 * values.mean()) ** 0.35
    expected = expected / expected.square().sum(dim=1).mean().sqrt()
    few = torch.randperm(len(own))[:300]
    torch.testing.assert_close(own[few] @ own[few].T, expected[few] @ expected[few].T, atol=1e-3, rtol=1e-3)


def test_a_readout_without_convolutional_tower_is_refused(grown):
    batch = GroupDataset(1, side=112, groups=1, normals=2, anomalies=1)[0]
    with pytest.raises(ValueError, match="inctrl-tiny has no convolutional tower"):
        align_readout(grown, [batch], ["cat"])
    with pytest.raises(ValueError, match="inctrl-tiny has no convolutional tower"):
        align_patches(grown, [batch.images[0]])


@pytest.mark.slow
def test_a_run_broken_off_ends_as_one_that_was_not(tmp_path, monkeypatch):
    monkeypatch.setattr(job, "_EPOCH", 1)
    monkeypatch.setattr(job, "_READOUT_WORDS", 4)
    monkeypatch.setattr(job, "_LOOKED_AT", 2)
    monkeypatch.setattr(job, "_UNEVEN_BATCHES", 2)
    stages = {"steps": 4, "embedding_steps": 2, "full_size_steps": 2, "shape_steps": 2, "handwriting_steps": 2}
    small = stages | {"groups": 2, "normals": 2, "anomalies": 1, "siblings": 2, "processes": 1}
    job.pretrain(tmp_path / "broken", stop_after=3, **small)
    assert (tmp_path / "broken/before_last_phase.safetensors").is_file()
    assert not (tmp_path / "broken/embedding.ckpt").is_file()
    job.pretrain(tmp_path / "broken", stop_after=5, **small)
    assert (tmp_path / "broken/embedding.ckpt").is_file()
    assert not (tmp_path / "broken/full_size.ckpt").is_file()
    job.pretrain(tmp_path / "broken", stop_after=7, **small)
    assert (tmp_path / "broken/full_size.ckpt").is_file()
    assert not (tmp_path / "broken/shapes.ckpt").is_file()
    job.pretrain(tmp_path / "broken", stop_after=9, **small)
    assert (tmp_path / "broken/shapes.ckpt").is_file()
    assert not (tmp_path / "broken/handwriting.ckpt").is_file()
    job.pretrain(tmp_path / "broken", stop_after=11, **small)
    assert (tmp_path / "broken/handwriting.ckpt").is_file()
    assert not (tmp_path / "broken/inctrl-tiny.safetensors").is_file()
    broken = job.pretrain(tmp_path / "broken", **small)
    whole = job.pretrain(tmp_path / "whole", **small)
    assert broken.read_bytes() == whole.read_bytes()
    assert whole.stat().st_size < 16e6
    from safetensors.torch import load_file

    written = load_file(whole)
    start = ClipBackbone("inctrl-tiny", random=True).state_dict()
    single = {name for name, tensor in written.items() if tensor.dtype != torch.half}
    assert single == {"visual.proj", "shapes.proj", "shapes.surface"}
    for name in ("visual.class_embedding", "shapes.stem.0.weight", "shapes.patches.weight", *single):
        assert not torch.equal(written[name].float(), start[name])
