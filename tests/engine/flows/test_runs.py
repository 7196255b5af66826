"""Every flow of the engine: what it reports, and that all of them report the same."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from anomalib.engine import Engine
from PIL import Image
from sklearn.metrics import roc_auc_score

IMAGE_METRICS = {"image_AUROC", "image_AUPR", "image_F1Max"}
PIXEL_METRICS = {"pixel_AUROC", "pixel_AUPRO", "pixel_AUPR", "pixel_F1Max"}

# What both models share is tested with one of them.
shared_code = pytest.mark.parametrize("name", ["InCTRLv2"], indirect=True)


def test_train_reports_every_metric(trained):
    assert trained.metrics.keys() == IMAGE_METRICS | PIXEL_METRICS
    assert trained.metrics["image_AUROC"] == pytest.approx(1.0)
    assert trained.metrics["pixel_AUROC"] > 0.95
    assert trained.metrics["pixel_AUPRO"] > 0.9


@shared_code
def test_fit_then_test_reports_what_train_does(trained, name, root, kit, engine):
    model = kit.build(name)
    engine.fit(model=model, datamodule=kit.data(root))
    assert engine.test(model=model, datamodule=kit.data(root))[0] == trained.metrics


def test_test_without_a_checkpoint_reports_what_train_does(trained, name, root, kit, engine):
    assert engine.test(model=kit.build(name), datamodule=kit.data(root))[0] == trained.metrics


@shared_code
def test_validate_collects_references_and_statistics(name, root, kit, engine):
    model = kit.build(name)
    engine.validate(model=model, datamodule=kit.data(root))
    assert model.model.references.count() == 2
    assert model.post_processor.is_calibrated
    assert model.learning_type.value == "few_shot"


def test_no_gradient_step_is_taken(trained):
    checkpoint = torch.load(trained.checkpoint, weights_only=True)
    assert (checkpoint["global_step"], checkpoint["optimizer_states"]) == (0, [])


@shared_code
def test_results_dir_survives_test_before_fit(name, root, kit, tmp_path):
    """The folder a first test makes must not be in the way of a later fit."""
    for run in ("test", "fit", "test"):
        engine = Engine(default_root_dir=tmp_path, **kit.quiet)
        getattr(engine, run)(model=kit.build(name), datamodule=kit.data(root))
    category = tmp_path / name / "MVTecAD" / "bolt"
    assert (category / "latest").is_symlink()
    assert (category / "latest" / "weights/lightning/model.ckpt").is_file()


@shared_code
def test_predict_from_a_data_module(trained, name, root, kit, engine):
    found = kit.predictions(engine.predict(model=kit.build(name), datamodule=kit.data(root)))
    normal = [s for n, s in found.scores.items() if n.startswith("good")]
    damaged = [s for n, s in found.scores.items() if n.startswith("square")]
    assert (len(normal), len(damaged)) == (4, 4)
    assert max(normal) < min(damaged)
    assert not any(found.labels[n] for n in found.labels if n.startswith("good"))
    assert all(m.min() >= 0 and m.max() <= 1 and m.shape == (kit.side, kit.side) for m in found.maps.values())


def test_predict_on_a_folder_with_a_folder_of_references(name, root, normals, kit, engine):
    """No data module, no checkpoint, no labels: what users have."""
    model = kit.build(name, few_shot_source=normals)
    found = kit.predictions(engine.predict(model=model, data_path=root / "bolt/test"))
    assert len(found.scores) == 8
    for path, score in found.scores.items():
        assert found.labels[path] == path.startswith("square"), (path, score)
        top = np.unravel_index(found.maps[path].argmax(), (kit.side, kit.side))
        if path.startswith("square"):
            mask = Image.open(root / "bolt/ground_truth" / path.replace(".png", "_mask.png"))
            width = kit.side * mask.width // mask.height  # resized to the side, then cut around the centre
            left = (width - kit.side) // 2
            assert np.asarray(mask.resize((width, kit.side)).crop((left, 0, left + kit.side, kit.side)))[top] > 0


@shared_code
def test_predict_on_one_image(name, root, normals, kit, engine):
    model = kit.build(name, few_shot_source=normals)
    found = kit.predictions(engine.predict(model=model, data_path=root / "bolt/test/square/000.png"))
    assert found.labels == {"square/000.png": True}


def test_predict_from_a_checkpoint_equals_predict_from_the_data_module(trained, name, root, kit, engine):
    from_data = Engine(default_root_dir=trained.folder / "again", **kit.quiet)
    expected = kit.predictions(from_data.predict(model=kit.build(name), datamodule=kit.data(root)))
    found = kit.predictions(
        engine.predict(model=kit.build(name), data_path=root / "bolt/test", ckpt_path=trained.checkpoint)
    )
    assert found.labels == expected.labels
    for path, score in expected.scores.items():
        assert found.scores[path] == pytest.approx(score, abs=1e-5)
        torch.testing.assert_close(found.maps[path], expected.maps[path], atol=1e-4, rtol=0)


@shared_code
@pytest.mark.parametrize("calibration", ["validation", "references"])
def test_metrics_are_those_of_the_raw_scores(name, kit, engine, calibration, tmp_path):
    """Normalising the scores, whatever the threshold, takes nothing from the metrics."""
    hard = kit.write_category(tmp_path / "MVTecAD" / "swapped", seed=7)
    good, square = hard / "test/good/000.png", hard / "test/square/000.png"
    normal, damaged = good.read_bytes(), square.read_bytes()
    good.write_bytes(damaged)  # so that no model gets everything right
    square.write_bytes(normal)
    model = kit.build(name, calibration=calibration)
    reported = kit.train(model, kit.data(hard.parent, "swapped"), tmp_path / "results").metrics
    predicted = engine.predict(model=model, datamodule=kit.data(hard.parent, "swapped"))
    items = [item for batch in predicted for item in batch]
    with torch.no_grad():
        raw = [model.model(item.image[None]) for item in items]
    image_auroc = roc_auc_score([bool(i.gt_label) for i in items], [float(r.pred_score) for r in raw])
    maps, masks = torch.stack([r.anomaly_map.squeeze() for r in raw]), torch.stack([i.gt_mask for i in items])
    assert 0.2 < image_auroc < 1  # else the test would show nothing
    assert reported["image_AUROC"] == pytest.approx(image_auroc, abs=1e-6)
    pixel_auroc = roc_auc_score(masks.flatten().numpy(), maps.flatten().numpy())
    assert 0.2 < pixel_auroc < 0.99
    assert reported["pixel_AUROC"] == pytest.approx(pixel_auroc, abs=1e-4)


@shared_code
def test_unmasked_data_reports_image_metrics_only(name, root, kit, engine, tmp_path):
    from anomalib.data import Folder

    folder = tmp_path / "parts"
    shutil.copytree(root / "bolt/train/good", folder / "fine")
    shutil.copytree(root / "bolt/test/square", folder / "bad")
    datamodule = Folder(
        name="parts", root=folder, normal_dir="fine", abnormal_dir="bad", num_workers=0, normal_split_ratio=0.4, seed=0
    )
    metrics = engine.train(model=kit.build(name), datamodule=datamodule)[0]
    assert metrics.keys() == IMAGE_METRICS
    assert metrics["image_AUROC"] > 0.9
    assert list(Path(engine.trainer.default_root_dir).rglob("*.ckpt"))
