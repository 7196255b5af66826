"""What a checkpoint holds, what it reproduces, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from anomalib.engine import Engine

from anomalib_inctrl.clip import embedded_file

# What both models share is tested with one of them.
shared_code = pytest.mark.parametrize("name", ["InCTRLv2"], indirect=True)


@pytest.fixture(scope="module")
def content(trained):
    return torch.load(trained.checkpoint, weights_only=True, map_location="cpu")


@pytest.fixture(scope="module")
def other_backbone(tmp_path_factory):
    """The name of a second small architecture that open_clip knows."""
    import open_clip

    config = json.loads(embedded_file("json").read_text())
    config["vision_cfg"] |= {"patch_size": 16, "width": 64, "layers": 4, "head_width": 16}
    config["text_cfg"] |= {"vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    path = tmp_path_factory.mktemp("backbone") / "inctrl-other.json"
    path.write_text(json.dumps(config))
    open_clip.add_model_config(path)
    return "inctrl-other"


def test_small_and_without_frozen_towers(trained, content):
    assert trained.checkpoint.stat().st_size < 10e6
    assert not [key for key in content["state_dict"] if key.startswith("model.backbone.")]


def test_holds_references_and_their_files(trained, content, normals, kit):
    state, backbone = content["state_dict"], trained.model.model.backbone
    assert state["model.references.patches"].shape == (3, 2, backbone.num_patches, backbone.width)
    assert state["model.references.pictures"].shape == (2, 3, kit.side, kit.side)
    record = content["anomalib_inctrl"]["references"]
    assert record["seed"] == 0
    assert record["origin"] == {"dataset": "MVTecAD", "category": "bolt"}
    files = [Path(file) for file in record["files"]["bolt"]]
    assert len(set(files)) == 2
    assert {file.parent for file in files} == {normals}


def test_hyper_parameters_are_plain_and_hold_no_weights(content, name):
    options = content["hyper_parameters"]
    assert "weights" not in options
    assert options.keys() >= {"backbone", "k_shot", "reference_seed", "few_shot_source", "geometry", "calibration"}
    assert all(value is None or isinstance(value, bool | int | float | str | list) for value in options.values()), name


def test_test_without_the_training_images_gives_the_same_metrics(trained, name, root, kit, engine, tmp_path):
    moved = shutil.copytree(root, tmp_path / "MVTecAD")
    shutil.rmtree(moved / "bolt/train")
    metrics = engine.test(model=kit.build(name), datamodule=kit.data(moved), ckpt_path=trained.checkpoint)[0]
    assert metrics == trained.metrics


def test_load_from_checkpoint_gives_the_same_scores(trained, kit):
    loaded = type(trained.model).load_from_checkpoint(trained.checkpoint, weights_only=True, map_location="cpu")
    loaded.eval()
    assert (loaded.k_shot, loaded.model.references.count("bolt")) == (2, 2)
    image = torch.from_numpy(kit.texture(5)).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        expected, found = trained.model.eval()(image), loaded(image)
    assert torch.equal(found.pred_score, expected.pred_score)
    assert torch.equal(found.anomaly_map, expected.anomaly_map)


@shared_code
@pytest.mark.parametrize("difference", ["blocks", "backbone", "weights"])
def test_another_backbone_is_refused(trained, name, root, kit, engine, difference, other_backbone, monkeypatch):
    options = {"blocks": {"blocks": [0, 1]}, "backbone": {"backbone": other_backbone, "pretrained": None}}
    if difference == "weights":
        monkeypatch.setattr("anomalib_inctrl.clip._SEED", 1)
    model = kit.build(name, **options.get(difference, {}))
    with pytest.raises(ValueError, match=r"was made with backbone='inctrl-tiny-trunk'.*Build it with the same"):
        engine.test(model=model, datamodule=kit.data(root), ckpt_path=trained.checkpoint)


def test_checkpoint_of_the_other_model_is_refused(trained, name, root, kit, engine):
    other = {"InCTRL": "InCTRLv2", "InCTRLv2": "InCTRL"}[name]
    with pytest.raises(ValueError, match=f"The checkpoint was made by {name}, not by {other}"):
        engine.test(model=kit.build(other), datamodule=kit.data(root), ckpt_path=trained.checkpoint)


@shared_code
def test_another_category_is_refused_with_the_remedy(trained, name, root, kit, engine):
    with pytest.raises(ValueError, match=r"references of MVTecAD 'bolt', the data is 'leaf'.*`anomalib train`"):
        engine.test(model=kit.build(name), datamodule=kit.data(root, "leaf"), ckpt_path=trained.checkpoint)


def test_heads_of_a_checkpoint_stay_in_use(name, root, kit, engine, tmp_path):
    """Random heads stand for trained ones: they count in the scores, and nobody says so again on reload."""
    model = kit.build(name, weights="random")
    run = kit.train(model, kit.data(root), tmp_path / "made")
    reloaded = kit.build(name)
    assert not reloaded.model.branches
    assert engine.test(model=reloaded, datamodule=kit.data(root), ckpt_path=run.checkpoint)[0] == run.metrics
    assert reloaded.model.branches == model.model.branches == set(model.model.BRANCHES)
    from_file = kit.build(name, weights=run.checkpoint)
    assert from_file.model.branches == model.model.branches
    assert from_file.model.references.count() == 0
    for key, value in model.model.image_head.state_dict().items():
        assert torch.equal(value, from_file.model.image_head.state_dict()[key]), key


@shared_code
def test_training_free_checkpoint_is_no_source_of_heads(trained, name, kit):
    with pytest.raises(ValueError, match=f"holds no trained heads for {name}"):
        kit.build(name, weights=trained.checkpoint)


def test_geometry_comes_from_the_checkpoint(kit, tmp_path, engine):
    """A model of default options, given a checkpoint of squashed images, prepares images as the checkpoint does."""
    kit.write_category(tmp_path / "MVTecAD/strip", size=(64, 192), side=24)
    made = kit.train(
        kit.build("InCTRLv2", geometry="squash"), kit.data(tmp_path / "MVTecAD", "strip"), tmp_path / "made"
    )
    fresh = kit.build("InCTRLv2")
    data = kit.data(tmp_path / "MVTecAD", "strip")
    assert engine.test(model=fresh, datamodule=data, ckpt_path=made.checkpoint)[0] == made.metrics


def test_zero_shot_on_a_folder_then_on_a_data_module(root, kit, tmp_path):
    """Text alone needs no references, in whatever order data come."""
    model = kit.build("InCTRLv2", k_shot=0)
    engine = Engine(default_root_dir=tmp_path, **kit.quiet)
    engine.predict(model=model, data_path=root / "bolt/test/good")
    assert engine.test(model=model, datamodule=kit.data(root))[0].keys() >= {"image_AUROC"}
