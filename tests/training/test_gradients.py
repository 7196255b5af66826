"""What one step changes, and what it leaves alone."""

from __future__ import annotations

import copy

import pytest
import torch
from anomalib.data.utils import read_image

from anomalib_inctrl import InCTRL
from anomalib_inctrl.checkpoints import save_weights
from anomalib_inctrl.embedding_distance import set_distance
from anomalib_inctrl.in_context import Distortion, image_residual_score

PARTS = {
    "image": {"adapter", "image_head"},
    "holistic": {"holistic_head"},
    "discriminative": {"discriminative_adapter"},
    "one_class": {"one_class_adapter"},
}
PIXEL = {"pixel_focal", "pixel_dice", "pixel_fused_dice"}
ONE_CLASS = {"one_class_focal", "one_class_dice", "one_class_fused_dice"}
CASES = [
    ("InCTRL", {}, {"image", "holistic"}, {"score", "image_score"}),
    ("InCTRL", {"double_sigmoid": True}, {"image", "holistic"}, {"score", "image_score"}),
    ("InCTRL", {"branches": ["holistic"], "sort_patches": True}, {"holistic"}, {"score"}),
    ("InCTRL", {"branches": ["image"]}, {"image"}, {"score", "image_score"}),
    ("InCTRLv2", {}, {"image", "discriminative", "one_class"}, {"image"} | PIXEL | ONE_CLASS),
    ("InCTRLv2", {"branches": ["image"]}, {"image"}, {"image"}),
    ("InCTRLv2", {"branches": ["discriminative"]}, {"discriminative"}, PIXEL),
    ("InCTRLv2", {"branches": ["one_class"]}, {"one_class"}, ONE_CLASS),
    ("InCTRLv2", {"pixel_loss": False}, {"image", "one_class"}, {"image"} | ONE_CLASS),
    (
        "InCTRL",
        {"rotate_embeddings": True, "stretch_embeddings": 2.0},
        {"image", "holistic"},
        {"score", "image_score"},
    ),
    ("InCTRLv2", {"rotate_embeddings": True}, {"image", "discriminative", "one_class"}, {"image"} | PIXEL | ONE_CLASS),
    (
        "InCTRLv2",
        {"image_score_loss": True},
        {"image", "discriminative", "one_class"},
        {"image", "image_score"} | PIXEL | ONE_CLASS,
    ),
    ("InCTRL", {"image_branch": "distance", "stretch_embeddings": 2.0}, {"holistic"}, {"score"}),
    ("InCTRLv2", {"image_branch": "distance"}, {"discriminative", "one_class"}, PIXEL | ONE_CLASS),
    ("InCTRLv2", {"adapter_per_block": True}, {"image", "discriminative", "one_class"}, {"image"} | PIXEL | ONE_CLASS),
]


def touched(model) -> set[str]:
    gradients = {n: p.grad for n, p in model.model.named_parameters() if p.grad is not None}
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    return {n.split(".")[0] for n, gradient in gradients.items() if gradient.abs().max() > 0}


@pytest.mark.parametrize(("name", "options", "branches", "terms"), CASES)
def test_gradients_reach_the_trained_branches_alone(kit, monkeypatch, name, options, branches, terms):
    model = kit.build(name, feature_cache=None, **options)
    logged = {}
    monkeypatch.setattr(model, "log", lambda name, value, **_: logged.update({name: value}))
    monkeypatch.setattr(model, "log_dict", lambda values, **_: logged.update(values))
    loss = model.training_step(kit.batch(model), 0)
    loss.backward()

    assert touched(model) == set().union(*(PARTS[branch] for branch in branches))
    assert logged.keys() == {"loss"} | {f"loss/{term}" for term in terms}
    assert loss.item() == pytest.approx(sum(logged[f"loss/{term}"].item() for term in terms), rel=1e-5)
    assert model.model.branches == branches | ({"image"} if model.image_branch == "distance" else set())
    optimized = {id(p) for group in model.configure_optimizers().param_groups for p in group["params"]}
    assert optimized == {id(p) for p in model.parameters() if p.requires_grad}
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)  # else DDP waits in vain


def test_fresh_heads_begin_at_one_half_and_loaded_ones_as_they_are(kit, tmp_path):
    fresh = kit.build("InCTRL", feature_cache=None)
    batch = kit.batch(fresh)
    found = fresh.eval().explain_episodes(batch)
    for probability in (found.image_score, found.holistic_score):
        torch.testing.assert_close(probability, torch.full_like(probability, 0.5), atol=0.02, rtol=0)
    fresh.model.holistic_head.layers[-1].bias.data.fill_(2.0)
    file = save_weights(fresh.model, tmp_path / "heads.safetensors")
    loaded = kit.build("InCTRL", feature_cache=None, weights=file).eval().explain_episodes(batch)
    assert loaded.holistic_score.min() > 0.8


def test_without_the_image_branch_phi_sees_residuals_and_text(kit, tmp_path):
    model = kit.build("InCTRL", feature_cache=None, branches=["holistic"]).eval()
    model.model.holistic_head.layers[-1].reset_parameters()  # instead of the neutral start
    batch = kit.batch(model)
    found = model.explain_episodes(batch)
    assert found.image_score is None
    phi = model.model.holistic_head(found.patch_residuals + found.text_score[:, None])
    torch.testing.assert_close(found.holistic_score, phi)
    torch.testing.assert_close(found.score, (phi + found.patch_residuals.amax(dim=1)) / 2)
    file = save_weights(model.model, tmp_path / "heads.safetensors")
    loaded = InCTRL(backbone=model.model.backbone.name, pretrained=None, weights=file).eval()
    assert loaded.model.branches == {"holistic"}
    there = loaded.explain_episodes(batch)
    torch.testing.assert_close(there.score, found.score)


@pytest.mark.parametrize("branches", [[], ["one_class"]])
def test_branches_that_inctrl_lacks_are_refused(kit, branches):
    with pytest.raises(ValueError, match=r"take some of \['image', 'holistic'\]"):
        kit.build("InCTRL", branches=branches)


def test_the_loss_of_the_image_score_is_inctrls(kit):
    model = kit.build("InCTRLv2", feature_cache=None, image_score_loss=True, double_sigmoid=False)
    model.model.use_branches(model._trained_branches)
    model.model.image_head.layers[-1].reset_parameters()  # instead of the neutral start
    model.eval()
    batch = kit.batch(model)
    terms = model.loss_terms(batch)
    probability = model.explain_episodes(batch).image_score
    right = torch.where(batch.gt_label.bool(), probability, 1 - probability)
    assert terms["image_score"].item() == pytest.approx((-((1 - right) ** 2) * right.log()).mean().item(), rel=1e-5)
    assert terms["image_score"] != terms["image"]


@pytest.mark.parametrize(
    "options", [{"rotate_embeddings": True}, {"stretch_embeddings": 4.0}, {"scatter_embeddings": 0.5}]
)
def test_a_distortion_reaches_the_image_branch_alone(kit, name, options):
    model = kit.build(name, feature_cache=None, **options)
    batch = kit.batch(model)
    query, context = model._encode(batch)
    model.model.use_branches(model._trained_branches)
    model.model.image_head.layers[-1].reset_parameters()  # instead of the neutral start
    model.eval()
    distortion = model._draw_distortion(batch)
    plain, distorted = model.model.score(query, context), model.model.score(query, context, distortion=distortion)
    assert (plain.image_score - distorted.image_score).abs().max() > 1e-4
    assert torch.equal(plain.text_score, distorted.text_score)
    assert torch.equal(plain.anomaly_map, distorted.anomaly_map)
    there = model.model.score(
        query._replace(pooled=distortion(query.pooled)), context._replace(pooled=distortion(context.pooled))
    )
    torch.testing.assert_close(there.image_score, distorted.image_score)


def test_a_rotation_keeps_distances_and_is_the_same_in_all_processes(kit):
    model = kit.build("InCTRLv2", feature_cache=None, rotate_embeddings=True)
    batch = kit.batch(model)
    rotation, factors, noise = model._draw_distortion(batch)
    width = model.model.backbone.embed_dim
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(width), atol=1e-5, rtol=0)
    assert torch.equal(rotation, model._draw_distortion(batch).rotation)
    assert factors is None
    assert noise is None


def test_a_stretch_is_of_the_episode_whoever_has_it(kit):
    model = kit.build("InCTRLv2", feature_cache=None, stretch_embeddings=4.0)
    batch = kit.batch(model)
    rotation, factors, noise = model._draw_distortion(batch)
    assert rotation is None
    assert noise is None
    assert factors.shape == (len(batch),)
    assert ((factors >= 1) & (factors <= 4)).all()
    assert len(set(factors.tolist())) == len(set(batch.image_path)) > 1
    batch.image_path = [f"/elsewhere{path}" for path in batch.image_path]  # where the data lie is of no account
    assert torch.equal(model._draw_distortion(batch).factors, factors)
    batch.image_path, batch.category = batch.image_path[::-1], batch.category[::-1]
    assert torch.equal(model._draw_distortion(batch).factors, factors.flip(0))
    embeddings, references = torch.randn(len(batch), 5), torch.randn(len(batch), 3, 5)
    stretched = Distortion(factors=factors)
    torch.testing.assert_close(stretched(embeddings).norm(dim=-1), factors * embeddings.norm(dim=-1))
    torch.testing.assert_close(stretched(references)[1], factors[1] * references[1])


def test_a_stretch_below_one_is_refused(kit):
    with pytest.raises(ValueError, match="stretch_embeddings is the largest factor"):
        kit.build("InCTRLv2", stretch_embeddings=0.5)


def test_a_scatter_moves_every_image_of_an_episode_by_itself_whoever_has_it(kit):
    model = kit.build("InCTRLv2", feature_cache=None, scatter_embeddings=0.3)
    batch = kit.batch(model)
    rotation, factors, noise = model._draw_distortion(batch)
    assert rotation is factors is None
    count = len(batch.reference_paths[0])
    assert noise.shape == (len(batch), 1 + count, model.model.backbone.embed_dim)
    lengths = noise.norm(dim=-1)
    torch.testing.assert_close(lengths, lengths[:, :1].expand_as(lengths))  # an episode scatters as a whole
    assert ((lengths >= 0) & (lengths <= 0.3)).all()
    assert len(set(lengths[:, 0].tolist())) == len(set(batch.image_path)) > 1
    cosines = torch.nn.functional.cosine_similarity(noise[:, :1], noise[:, 1:], dim=-1)
    assert cosines.abs().max() < 0.5  # in directions of their own
    embeddings, references = torch.randn(len(batch), noise.shape[-1]), torch.randn(len(batch), *noise.shape[1:])[:, 1:]
    scattered = Distortion(noise=noise)
    moved = (scattered(embeddings) - embeddings).norm(dim=-1) / embeddings.norm(dim=-1)
    torch.testing.assert_close(moved, lengths[:, 0], rtol=1e-4, atol=1e-5)
    moved = (scattered(references) - references).norm(dim=-1) / references.norm(dim=-1)
    torch.testing.assert_close(moved, lengths[:, 1:], rtol=1e-4, atol=1e-5)
    for paths in (batch.image_path, batch.category):
        paths.reverse()
    assert torch.equal(model._draw_distortion(batch).noise, noise.flip(0))


def test_a_negative_scatter_is_refused(kit):
    with pytest.raises(ValueError, match="scatter_embeddings is a share of their lengths"):
        kit.build("InCTRLv2", scatter_embeddings=-0.1)


def test_without_the_options_nothing_is_distorted(kit, name):
    model = kit.build(name, feature_cache=None)
    assert model._draw_distortion(kit.batch(model)) == (None, None, None)


def test_the_normal_stream_changes_the_one_class_branch_alone(kit):
    model = kit.build("InCTRLv2", feature_cache=None)
    batch = kit.batch(model)
    assert not batch.normal.gt_label.any()
    assert not batch.normal.gt_mask.any()
    before = kit.heads_of(model)
    model.train()
    maps = model.model.score_one_class(*model._encode(batch.normal))
    assert all(torch.equal(value, before[key]) for key, value in kit.heads_of(model).items())  # batch norm's too
    sum(model._map_terms("one_class", maps, batch.normal.gt_mask).values()).backward()
    assert touched(model) == {"one_class_adapter"}


def test_batch_norm_sees_the_mixed_batch_alone(kit):
    """The running statistics after a step are the same without the normal stream, and so are the other terms."""
    states, losses = [], []
    for keep in (True, False):
        model = kit.build("InCTRLv2", feature_cache=None).train()
        batch = kit.batch(model)
        batch.normal = batch.normal if keep else None
        losses.append(model.loss_terms(batch))
        states.append({k: v for k, v in model.model.state_dict().items() if "running" in k or "tracked" in k})
    assert states[0]
    assert states[0]["image_head.layers.2.num_batches_tracked"] == 1
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    assert all(torch.equal(losses[0][term], losses[1][term]) for term in losses[1])


def test_the_factor_for_maps_leaves_the_losses_alone(kit):
    losses, maps = [], []
    for scale in (None, 0.5):
        model = kit.build("InCTRLv2", feature_cache=None, map_scale=scale).eval()
        batch = kit.batch(model)
        losses.append(model.loss_terms(batch))
        model.model.use_branches(["discriminative"])
        maps.append(model.explain_episodes(batch).anomaly_map)
    assert losses[0].keys() == losses[1].keys()
    assert all(torch.equal(losses[0][term], losses[1][term]) for term in losses[0])
    assert not torch.allclose(maps[0], maps[1], atol=1e-3)


@pytest.mark.parametrize("options", [{"branches": ["holistic"]}, {"branches": []}])
def test_unknown_or_no_branches(kit, options):
    with pytest.raises(ValueError, match=r"take some of \['image', 'discriminative', 'one_class'\]"):
        kit.build("InCTRLv2", **options)


def test_a_discriminative_branch_needs_pixel_losses(kit):
    with pytest.raises(ValueError, match="discriminative branch has nothing to be trained by"):
        kit.build("InCTRLv2", branches=["discriminative"], pixel_loss=False)


def test_a_loss_of_the_image_score_needs_the_image_branch(kit):
    with pytest.raises(ValueError, match="image_score_loss needs the image branch"):
        kit.build("InCTRLv2", branches=["one_class"], image_score_loss=True)


def test_an_image_branch_that_measures_distances_has_no_loss(kit):
    with pytest.raises(ValueError, match="image_score_loss needs the image branch to be trained"):
        kit.build("InCTRLv2", image_branch="distance", image_score_loss=True)
    with pytest.raises(ValueError, match=r"image_branch='distance' leaves nothing of branches=\['image'\] to train"):
        kit.build("InCTRL", image_branch="distance", branches=["image"])
    with pytest.raises(ValueError, match=r"image_branch must be one of \['trained', 'distance'\], got 'given'"):
        kit.build("InCTRL", image_branch="given")


def test_heads_that_are_not_trained_keep_their_batch_norms(kit, tmp_path):
    """Else their running statistics would follow the batches of a training that is not theirs."""
    fresh = kit.build("InCTRL", feature_cache=None)
    fresh.model.image_head.layers[-1].reset_parameters()  # instead of the neutral start
    file = save_weights(fresh.model, tmp_path / "heads.safetensors", fresh.metadata)
    run = kit.fit(kit.build("InCTRL", weights=file, branches=["holistic"]), tmp_path)
    before = kit.heads_of(fresh)
    changed = {key.split(".")[0] for key, value in run.heads.items() if not torch.equal(value, before[key])}
    assert changed == {"holistic_head"}


@pytest.mark.parametrize("cached", [True, False])
def test_an_image_branch_that_measures_distances_is_set_once(kit, name, tmp_path, cached):
    options = {"image_branch": "distance", **({} if cached else {"feature_cache": None})}
    run = kit.fit(kit.build(name, **options), tmp_path / "run", epochs=2, callbacks=[kit.KeepCheckpoint(1)])
    images = run.engine.trainer.datamodule.train_pool.images
    assert {image.category for image in images} == {"MVTecAD/bolt", "MVTecAD/leaf"}  # tile is held out
    transform, encode = run.model.pre_processor.transform, run.model.model.backbone.encode_image
    embeddings = encode(torch.stack([transform(read_image(image.path, as_tensor=True)) for image in images])).pooled
    adapter, head = (copy.deepcopy(part) for part in (run.model.model.adapter, run.model.model.image_head))
    labels = [image.anomalous for image in images]
    set_distance(adapter, head, embeddings, [image.category for image in images], labels)
    query, context = run.model._encode(kit.batch(run.model))
    scores = image_residual_score(query.pooled, context.pooled, adapter.eval(), head.eval())
    found = run.model.eval().model.score(query, context).image_score
    torch.testing.assert_close(found, scores, atol=2e-2 if cached else 1e-4, rtol=0)  # the cache is in half precision
    assert scores.max() - scores.min() > 0.05

    killed = run.checkpoint.with_name("killed.ckpt")
    resumed = kit.fit(kit.build(name, seed=1, **options), tmp_path / "resumed", epochs=2, ckpt_path=killed)
    assert all(torch.equal(value, resumed.heads[key]) for key, value in run.heads.items())

    file = save_weights(run.model.model, tmp_path / "heads.safetensors", run.model.metadata)
    data = kit.data(parts=[kit.part("leaf"), kit.part("tile")], validation_categories=[])  # other distances
    again = kit.fit(kit.build(name, weights=file, **options), tmp_path / "again", data)
    changed = {key.split(".")[0] for key, value in run.heads.items() if not torch.equal(value, again.heads[key])}
    assert changed == set().union(*(PARTS[branch] for branch in run.model.model.branches - {"image"}))


def test_the_backbone_stays_as_it_is(kit, trained):
    backbone = trained.model.model.backbone
    assert not backbone.training
    assert not any(p.requires_grad for p in backbone.parameters())
    fresh = kit.build(type(trained.model).__name__).model.backbone.state_dict()
    assert all(torch.equal(value, fresh[key]) for key, value in backbone.state_dict().items())


def test_training_lowers_the_loss(kit, name, tmp_path):
    losses = kit.fit(kit.build(name), tmp_path, kit.data(steps_per_epoch=15), epochs=1).losses.of()
    assert losses[-5:].mean() < 0.8 * losses[:5].mean()


def test_a_fresh_image_head_is_neutral_and_a_loaded_one_is_not(kit, name, tmp_path):
    fresh = kit.build(name, feature_cache=None)
    query, context = fresh._encode(kit.batch(fresh))
    fresh.model.use_branches(fresh._trained_branches)
    assert fresh.eval().model.score(query, context).image_score.sub(0.5).abs().max() < 0.01
    with torch.no_grad():
        for parameter in fresh.model.image_head.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    file = save_weights(fresh.model, tmp_path / "heads.safetensors", fresh.metadata)
    loaded = kit.build(name, feature_cache=None, weights=file)
    for key, parameter in fresh.model.image_head.named_parameters():
        torch.testing.assert_close(loaded.model.image_head.get_parameter(key), parameter, atol=1e-6, rtol=1e-6)
