"""CoOp on auxiliary data: what is learned, with and without cached features, and what carries over to a target."""

from __future__ import annotations

import pytest
import torch
from anomalib import LearningType
from anomalib.engine import Engine


@pytest.fixture(scope="module")
def learned(kit, tmp_path_factory):
    """Two epochs of three steps on cached features; shared, so it must not be run again."""
    model = kit.build("CoOp", n_context=4)
    return kit.fit(model, tmp_path_factory.mktemp("CoOp"), epochs=2)


def context(model) -> torch.Tensor:
    return model.model.prompt_learners[0].context.detach().clone()


def test_training_moves_the_context_alone(kit, learned):
    assert kit.build("CoOp").learning_type == LearningType.ONE_CLASS
    fresh = kit.build("CoOp", n_context=4)
    moved = (context(learned.model) - context(fresh)).abs()
    assert moved.amax(dim=1).min() > 1e-4
    assert moved.amax() <= 6 * 2.2e-3  # Adam's steps are as long as its rate, hardly more
    state = learned.model.state_dict()
    for key, value in fresh.state_dict().items():
        if key.startswith("model.backbone."):
            assert torch.equal(value, state[key]), key
    losses = learned.losses.of("loss/prompt")
    assert len(losses) == 6
    assert torch.isfinite(losses).all()
    metrics = learned.engine.trainer.callback_metrics
    assert [name for name in metrics if name.startswith("val/")] == ["val/MVTecAD/tile/image_AUROC", "val/image_AUROC"]


def test_cached_features_give_the_same_loss_as_images(kit):
    model = kit.build("CoOp", n_context=4, feature_cache=None)
    batch = kit.batch(model)
    loss = model.loss_terms(batch)["prompt"]
    features = model.model.backbone.encode_image(batch.images)
    batch.images, batch.patches, batch.pooled = None, features.patches, features.pooled
    torch.testing.assert_close(model.loss_terms(batch)["prompt"], loss)


def test_enough_steps_lower_the_loss(kit):
    model = kit.build("CoOp", n_context=4, feature_cache=None)
    model.train()
    batch = kit.batch(model)
    optimizer = torch.optim.Adam(model.model.prompt_learners.parameters(), lr=0.02)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = model.loss_terms(batch)["prompt"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[4:]) < losses[0]


@pytest.mark.parametrize("file", ["checkpoint", "heads"])
def test_the_context_serves_a_target(kit, learned, tmp_path, file):
    weights = learned.checkpoint if file == "checkpoint" else learned.folder / "weights/heads.safetensors"
    model = kit.build("CoOp", phase="few_shot", weights=weights, n_context=4, feature_cache=None)
    assert model.learning_type == LearningType.ZERO_SHOT
    assert torch.equal(context(model), context(learned.model))
    engine = Engine(default_root_dir=tmp_path, **kit.quiet)
    metrics = engine.test(model=model, datamodule=kit.part("tile"))[0]
    assert "image_AUROC" in metrics
    prototypes = model.model.references.prototypes[0]
    torch.testing.assert_close(prototypes, learned.model.model.text_prototypes("tile"))


def test_what_does_not_fit_is_refused(kit, learned, tmp_path):
    with pytest.raises(ValueError, match=r"The prompt_learners of .* does not fit this backbone"):
        kit.build("CoOp", weights=learned.checkpoint, n_context=5)
    with pytest.raises(ValueError, match="takes AuxiliaryData"):
        Engine(default_root_dir=tmp_path, **kit.quiet).fit(model=kit.build("CoOp"), datamodule=kit.part("tile"))
