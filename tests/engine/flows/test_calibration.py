"""Where thresholds and score ranges come from."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from anomalib.data import Folder

from anomalib_inctrl.post_processing import InContextPostProcessor

STATISTICS = ("_image_threshold", "_pixel_threshold", "image_min", "image_max", "pixel_min", "pixel_max")

# What both models share is tested with one of them.
shared_code = pytest.mark.parametrize("name", ["InCTRLv2"], indirect=True)


def statistics(post_processor):
    return {name: float(getattr(post_processor, name)) for name in STATISTICS}


def from_references(model):
    """What the references of a model, each scored against the others, give."""
    expected = InContextPostProcessor("references")
    normals = model.model.score_normals()
    expected.calibrate(normals.score, normals.anomaly_map)
    return statistics(expected)


@shared_code
def test_references_give_the_statistics_when_asked(name, root, kit, tmp_path):
    run = kit.train(kit.build(name, calibration="references", k_shot=3), kit.data(root), tmp_path)
    assert statistics(run.model.post_processor) == pytest.approx(from_references(run.model), abs=1e-6)
    saved = torch.load(run.checkpoint, weights_only=True)["state_dict"]
    for key, value in statistics(run.model.post_processor).items():
        assert float(saved[f"post_processor.{key}"]) == value, key


def test_validation_data_give_the_statistics_otherwise(trained, root, kit, engine):
    """The threshold is the F1-best one, so that it lies between normal and damaged images of this easy data."""
    model = trained.model
    items = [i for batch in engine.predict(model=model, datamodule=kit.data(root)) for i in batch]
    with torch.no_grad():
        raw = [model.model(item.image[None]) for item in items]
    scores, maps = torch.cat([r.pred_score for r in raw]), torch.cat([r.anomaly_map for r in raw])
    found = statistics(model.post_processor)
    assert found["image_min"] == pytest.approx(float(scores.min()), abs=1e-6)
    assert found["image_max"] == pytest.approx(float(scores.max()), abs=1e-6)
    assert found["pixel_min"] == pytest.approx(float(maps.min()), abs=1e-6)
    assert found["pixel_max"] == pytest.approx(float(maps.max()), abs=1e-6)
    damaged = torch.tensor([bool(item.gt_label) for item in items])
    assert scores[~damaged].max() < found["_image_threshold"] <= scores[damaged].min() + 1e-6


@shared_code
def test_every_damaged_image_at_the_best_threshold_is_called_damaged(trained, root, kit, engine):
    """The F1-best threshold is the score of an image that counts as damaged, so that image must be called so."""
    found = kit.predictions(engine.predict(model=trained.model, datamodule=kit.data(root)))
    assert found.labels == {path: path.startswith("square") for path in found.labels}


@shared_code
def test_folder_of_references_calibrates_by_itself(name, root, normals, kit, engine):
    model = kit.build(name, few_shot_source=normals, k_shot=6)
    found = kit.predictions(engine.predict(model=model, data_path=root / "bolt/test"))
    assert statistics(model.post_processor) == pytest.approx(from_references(model), abs=1e-6)
    assert found.labels == {path: path.startswith("square") for path in found.labels}


def test_one_reference_calibrates_from_its_mirror_images(root, normals, kit, engine, caplog):
    model = kit.build("InCTRLv2", few_shot_source=normals / "000.png", k_shot=1)
    engine.predict(model=model, data_path=root / "bolt/test/good/000.png")
    assert "mirror images of a single reference" in caplog.text
    assert statistics(model.post_processor) == pytest.approx(from_references(model), abs=1e-6)


@shared_code
def test_normal_images_alone_make_a_checkpoint_and_a_threshold(name, root, kit, tmp_path):
    """What most users have: a folder of normal images and nothing else."""
    shutil.copytree(root / "bolt/train/good", tmp_path / "parts/fine")
    folder = Folder(name="parts", root=tmp_path / "parts", normal_dir="fine", num_workers=0)
    run = kit.train(kit.build(name), folder, tmp_path / "results")
    assert statistics(run.model.post_processor) == pytest.approx(from_references(run.model), abs=1e-6)
    assert run.model.model.references.count() == 2


def test_a_data_module_without_validation_data_does_not_decide_for_the_next(root, kit, tmp_path):
    """One model object, first on normal images alone, then on data with a validation split."""
    shutil.copytree(root / "bolt/train/good", tmp_path / "parts/fine")
    folder = Folder(name="parts", root=tmp_path / "parts", normal_dir="fine", num_workers=0)
    model = kit.build("InCTRLv2")
    kit.train(model, folder, tmp_path / "first")
    kit.train(model, kit.data(root), tmp_path / "second")
    fresh = kit.train(kit.build("InCTRLv2"), kit.data(root), tmp_path / "third").model
    assert statistics(model.post_processor) == pytest.approx(statistics(fresh.post_processor), abs=1e-6)


def test_calibrated_run_without_statistics_of_its_own_says_so(root, kit, engine, caplog):
    engine.predict(model=kit.build("InCTRL", k_shot=0), data_path=root / "bolt/test/good")
    assert "Without references there is no calibration" in caplog.text
    assert Path(engine.trainer.default_root_dir).exists()
