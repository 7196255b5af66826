"""SPADE, CLIP zero-shot and CoOp through the framework: fit, test, checkpoint, prediction, pictures."""

from __future__ import annotations

import logging

import pytest
import torch
from anomalib import LearningType
from anomalib.engine import Engine
from PIL import Image

from anomalib_inctrl import ClipZeroShot, CoOp, Spade
from anomalib_inctrl.clip import EMBEDDED_TRUNK
from anomalib_inctrl.data import AuxiliaryData

METRICS = {f"image_{m}" for m in ("AUROC", "AUPR", "F1Max")} | {
    f"pixel_{m}" for m in ("AUROC", "AUPRO", "AUPR", "F1Max")
}


def build(kit, kind, **options):
    return kind(**{"backbone": EMBEDDED_TRUNK, "pretrained": None, "visualizer": False} | options)


@pytest.fixture(scope="module", params=[Spade, ClipZeroShot, CoOp], ids=lambda kind: kind.__name__)
def run(request, kit, root, tmp_path_factory):
    """``train`` with pictures; shared, so it must not be run again."""
    model = build(kit, request.param, visualizer=True)
    return kit.train(model, kit.data(root), tmp_path_factory.mktemp(request.param.__name__))


def test_train_reports_image_and_pixel_metrics(run):
    assert run.metrics.keys() == METRICS
    assert all(0 <= value <= 1 for value in run.metrics.values())
    if isinstance(run.model, Spade):  # bright squares on a ramp: found whatever the weights
        assert run.metrics["image_AUROC"] == 1.0
        assert run.metrics["pixel_AUROC"] > 0.9


def test_test_from_the_checkpoint_gives_the_same(run, kit, root, engine):
    model = build(kit, type(run.model))
    assert engine.test(model=model, datamodule=kit.data(root), ckpt_path=run.checkpoint)[0] == run.metrics
    loaded = type(run.model).load_from_checkpoint(run.checkpoint, weights_only=True, map_location="cpu").eval()
    image = torch.from_numpy(kit.texture(5)).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        expected, found = run.model.eval()(image), loaded(image)
    assert torch.equal(found.pred_score, expected.pred_score)
    assert torch.equal(found.anomaly_map, expected.anomaly_map)


def test_predict_on_a_folder_from_the_checkpoint(run, kit, root, engine):
    model = build(kit, type(run.model))
    found = kit.predictions(engine.predict(model=model, data_path=root / "bolt/test/square", ckpt_path=run.checkpoint))
    assert len(found.scores) == 4
    assert all(0 <= score <= 1 for score in found.scores.values())


def test_every_test_image_has_its_picture(run):
    pictures = [path for path in run.folder.rglob("*.png") if "images" in path.parts]
    assert len(pictures) == 8
    if not isinstance(run.model, Spade):  # drawn by our visualizer, with the text map as evidence
        row, top = run.model.visualizer._evidence_row(0, run.model, (14, 14), (112, 112))
        assert [panel.label.split(",")[0] for panel in row] == ["text probability of patches"]
        assert 0 < top <= 1
        assert Image.open(pictures[0]).height > 2 * 224


def test_spade_forgets_the_category_before(kit, root, tmp_path):
    model = build(kit, Spade)
    for category in ("bolt", "leaf"):
        Engine(default_root_dir=tmp_path / category, **kit.quiet).fit(
            model=model, datamodule=kit.data(root, category, train_batch_size=4)
        )
    fresh = build(kit, Spade)
    Engine(default_root_dir=tmp_path / "fresh", **kit.quiet).fit(model=fresh, datamodule=kit.data(root, "leaf"))
    assert model.model.pooled.shape[0] == 6
    order = [model.model.pooled.sum(dim=1).argsort(), fresh.model.pooled.sum(dim=1).argsort()]
    torch.testing.assert_close(model.model.pooled[order[0]], fresh.model.pooled[order[1]])


def test_zero_shot_needs_no_data_module(kit, root, engine):
    model = build(kit, ClipZeroShot, class_name="bolt")
    assert model.learning_type == LearningType.ZERO_SHOT
    found = kit.predictions(engine.predict(model=model, data_path=root / "bolt/test"))
    assert len(found.scores) == 8
    with torch.no_grad():
        expected = model.model.backbone.text_prototypes("bolt")
    torch.testing.assert_close(model.model.references.prototypes[0], expected)


def test_zero_shot_refuses_to_be_trained(kit, root, engine):
    model = build(kit, ClipZeroShot)
    with pytest.raises(ValueError, match="AuxiliaryData is for training"):
        engine.fit(model=model, datamodule=AuxiliaryData(parts=[kit.data(root), kit.data(root, "leaf")]))
    with pytest.raises(TypeError, match="ClipZeroShot has nothing to train"):
        model.loss_terms(None)


def test_coop_without_weights_says_so(kit, root, engine, caplog):
    with caplog.at_level(logging.WARNING):
        engine.test(model=build(kit, CoOp), datamodule=kit.data(root))
    assert "CoOp has learned no context: its prompts begin with fixed words" in caplog.text


@pytest.mark.slow
def test_spade_exported_to_onnx_scores_as_the_engine(kit, root, engine, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    model = build(kit, Spade)
    engine.fit(model=model, datamodule=kit.data(root))
    path = engine.export(model=model, export_type="onnx", export_root=tmp_path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    images = torch.stack([torch.from_numpy(kit.texture(seed)).permute(2, 0, 1) / 255 for seed in (5, 6, 7)])
    scores, _, maps, _ = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.no_grad():
        expected = model.eval()(images)
    torch.testing.assert_close(torch.from_numpy(scores).flatten(), expected.pred_score.flatten(), rtol=0, atol=1e-3)
    torch.testing.assert_close(torch.from_numpy(maps).squeeze(), expected.anomaly_map.squeeze(), rtol=0, atol=1e-3)
