"""Bad input ends in an error that names the cause and the remedy, or in documented behaviour."""

from __future__ import annotations

import json
import shutil
from importlib.resources import files

import numpy as np
import pytest
import torch
from anomalib.data import Folder
from anomalib.engine import Engine
from PIL import Image

from anomalib_inctrl.clip import EMBEDDED_TRUNK

ARCHITECTURE = files("anomalib_inctrl") / "backbones" / f"{EMBEDDED_TRUNK}.json"
LAYERS = json.loads(ARCHITECTURE.read_text())["vision_cfg"]["layers"]


def predict(kit, engine, images, **options):
    return kit.predictions(engine.predict(model=kit.build("InCTRLv2", **options), data_path=images))


def save(path, mode, seed=0, size=(96, 128)):
    """A drawn image in one of Pillow's modes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(60, 120, size, dtype=np.uint8)
    if mode == "I;16":
        Image.fromarray(noise.astype(np.uint16) * 256).save(path)
    elif mode == "F":
        Image.fromarray(noise.astype(np.float32)).save(path)
    else:
        Image.fromarray(noise).convert(mode).save(path)
    return path


# ------------------------------------------------------------------------------------------------------- references
def test_no_references_at_all(name, root, kit, engine):
    with pytest.raises(RuntimeError, match=f"{name} needs 2 normal images.*few_shot_source.*k_shot=0"):
        engine.predict(model=kit.build(name), data_path=root / "bolt/test/good")


def test_torch_model_without_references(name, kit):
    with pytest.raises(RuntimeError, match="has no references: call set_references"):
        kit.build(name).model(torch.zeros(1, 3, kit.side, kit.side))


def test_more_references_than_the_training_split_has(name, root, kit, engine, tmp_path):
    with pytest.raises(ValueError, match="k_shot=7 references were asked for, but there are only 6 normal images"):
        engine.train(model=kit.build(name, k_shot=7), datamodule=kit.data(root))
    assert not list(tmp_path.rglob("*.ckpt"))


def test_more_references_than_the_source_has(root, normals, kit, engine, caplog):
    model = kit.build("InCTRL", k_shot=9, few_shot_source=normals)
    engine.predict(model=model, data_path=root / "bolt/test/good")
    assert "holds 6 references, fewer than k_shot=9" in caplog.text
    assert model.model.references.count() == 6


def test_reference_folder_that_does_not_exist(root, kit, engine, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.*does not exist: name a folder of normal images"):
        predict(kit, engine, root / "bolt/test/good", few_shot_source=tmp_path / "nowhere")


def test_reference_folder_without_an_image(root, kit, engine, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/notes.txt").write_text("no image")
    with pytest.raises(FileNotFoundError, match=r"few_shot_source=.*empty.* holds no image"):
        predict(kit, engine, root / "bolt/test/good", few_shot_source=tmp_path / "empty")


def test_corrupt_reference(root, normals, kit, engine, tmp_path):
    source = shutil.copytree(normals, tmp_path / "normals")
    (source / "000.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(ValueError, match=r"000\.png can't be read as an image.*Repair or remove it"):
        predict(kit, engine, root / "bolt/test/good", few_shot_source=source, k_shot=6)


def test_truncated_reference(root, normals, kit, engine, tmp_path):
    source = shutil.copytree(normals, tmp_path / "normals")
    whole = (source / "000.png").read_bytes()
    (source / "000.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"000\.png can't be read as an image.*Repair or remove it"):
        predict(kit, engine, root / "bolt/test/good", few_shot_source=source, k_shot=6)


def test_references_of_several_sizes(root, kit, engine, tmp_path):
    for i, size in enumerate([(96, 128), (128, 96), (64, 64)]):
        kit.write(tmp_path / f"normals/{i}.png", kit.texture(i, size))
    found = predict(kit, engine, root / "bolt/test", few_shot_source=tmp_path / "normals", k_shot=3)
    assert found.labels == {path: path.startswith("square") for path in found.labels}


def test_file_that_is_no_list_of_tensors(root, kit, engine, tmp_path):
    torch.save({"a": 1}, tmp_path / "references.pt")
    with pytest.raises(ValueError, match="is no list of equally large image tensors"):
        predict(kit, engine, root / "bolt/test/good", few_shot_source=tmp_path / "references.pt")


def test_tensors_of_another_size_than_the_backbone_takes(root, kit, engine, tmp_path):
    torch.save([torch.zeros(3, 240, 240)] * 2, tmp_path / "references.pt")
    message = rf"takes preprocessed images of shape \(B, 3, {kit.side}, {kit.side}\), got \(2, 3, 240"
    with pytest.raises(ValueError, match=message):
        predict(kit, engine, root / "bolt/test/good", few_shot_source=tmp_path / "references.pt")


def test_references_that_are_not_finite(kit):
    images = torch.zeros(1, 3, kit.side, kit.side)
    images[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinite"):
        kit.build("InCTRL").model.set_references(images)


def test_data_module_without_a_training_split(root, kit, engine, tmp_path):
    moved = shutil.copytree(root, tmp_path / "MVTecAD")
    shutil.rmtree(moved / "bolt/train")
    with pytest.raises(ValueError, match=r"has no training split to take references from.*few_shot_source"):
        engine.train(model=kit.build("InCTRL"), datamodule=kit.data(moved))
    assert not list(tmp_path.rglob("*.ckpt"))


# ------------------------------------------------------------------------------------------------------ image modes
@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1"])
def test_other_eight_bit_modes_are_read_as_rgb(kit, engine, tmp_path, mode):
    for i in range(2):
        save(tmp_path / f"normals/{i}.png", mode, seed=i)
    save(tmp_path / "queries/0.png", mode, seed=5)
    found = predict(kit, engine, tmp_path / "queries", few_shot_source=tmp_path / "normals")
    (score,) = found.scores.values()
    assert 0 <= score <= 1


@pytest.mark.parametrize("name_and_mode", [("0.png", "I;16"), ("0.tiff", "I;16"), ("0.tiff", "F")])
@pytest.mark.parametrize("role", ["references", "queries"])
def test_more_than_eight_bits_are_refused(normals, kit, engine, tmp_path, role, name_and_mode):
    path = save(tmp_path / "deep" / name_and_mode[0], name_and_mode[1])
    deep, eight = path.parent, normals
    images, source = (eight, deep) if role == "references" else (deep, eight)
    with pytest.raises(ValueError, match=r"0\.(png|tiff) has more than 8 bits per channel.*would saturate it"):
        predict(kit, engine, images, few_shot_source=source, k_shot=1)


@pytest.mark.parametrize("geometry", ["crop", "squash"])
def test_one_pixel_images(normals, kit, engine, tmp_path, geometry):
    kit.write(tmp_path / "queries/0.png", np.full((1, 1, 3), 90, dtype=np.uint8))
    kit.write(tmp_path / "queries/1.png", np.full((1, 2, 3), 90, dtype=np.uint8))
    found = predict(kit, engine, tmp_path / "queries", few_shot_source=normals, geometry=geometry)
    assert all(0 <= score <= 1 for score in found.scores.values())
    assert all(torch.isfinite(m).all() and m.shape == (kit.side, kit.side) for m in found.maps.values())


@pytest.mark.parametrize("value", [0, 255])
def test_images_of_one_colour(kit, engine, tmp_path, value):
    for i in range(2):
        kit.write(tmp_path / f"normals/{i}.png", np.full((40, 60, 3), value, dtype=np.uint8))
    found = predict(kit, engine, tmp_path / "normals", few_shot_source=tmp_path / "normals")
    assert found.labels == {"normals/0.png": False, "normals/1.png": False}
    assert all(torch.isfinite(m).all() for m in found.maps.values())


def test_corrupt_query(normals, kit, engine, tmp_path):
    (tmp_path / "queries").mkdir()
    (tmp_path / "queries/0.png").write_bytes(b"broken")
    with pytest.raises(Exception, match=r"0\.png"):
        predict(kit, engine, tmp_path / "queries", few_shot_source=normals)


def test_folder_without_a_query(normals, kit, engine, tmp_path):
    (tmp_path / "queries").mkdir()
    with pytest.raises(ValueError, match="Found 0 images"):
        predict(kit, engine, tmp_path / "queries", few_shot_source=normals)


# ---------------------------------------------------------------------------------------------------------- options
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "ViT-B-16-plus-24"}, "open_clip has no model 'ViT-B-16-plus-24'. Did you mean ViT-B-16-plus-240"),
        ({"backbone": "ViT-B-16-plus-240", "pretrained": "laion"}, "no weights tagged 'laion'.*laion400m_e32"),
        ({"backbone": "RN50", "pretrained": None}, "RN50 has no plain vision transformer"),
        ({"k_shot": -1}, r"k_shot must be 0 \(text alone\) or more, got -1"),
        ({"phase": "nonsense"}, "phase must be 'few_shot' or 'train', got 'nonsense'"),
        ({"calibration": "nonsense"}, "calibration must be 'validation' or 'references', got 'nonsense'"),
        ({"geometry": "nonsense"}, "geometry must be 'crop' or 'squash', got 'nonsense'"),
        ({"blocks": [LAYERS]}, rf"blocks must be among 0 to {LAYERS - 1} .*got \[{LAYERS}\]"),
        ({"blocks": []}, rf"blocks must be among 0 to {LAYERS - 1} .*got \[\]"),
        ({"alpha": 1.5}, "alpha must be"),
    ],
    ids=str,
)
def test_option_out_of_range(name, kit, options, message):
    with pytest.raises(ValueError, match=message):
        kit.build(name, **options)


@pytest.mark.parametrize("options", [{"beta": -0.1}, {"patch_scale": 0.0}, {"map_scale": -1.0}], ids=str)
def test_option_of_the_second_version_out_of_range(kit, options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
        kit.build("InCTRLv2", **options)


def test_file_of_backbone_weights_that_is_not_there(kit):
    with pytest.raises(FileNotFoundError, match=r"pretrained='missing/clip\.bin': there is no such file"):
        kit.build("InCTRL", backbone="ViT-B-32", pretrained="missing/clip.bin")


def test_file_of_heads_that_is_not_there(name, kit):
    with pytest.raises(FileNotFoundError, match=r"weights='missing\.ckpt': there is no such file"):
        kit.build(name, weights="missing.ckpt")


def test_file_of_heads_that_is_something_else(name, kit, tmp_path):
    torch.save({"state_dict": {"a": torch.zeros(1)}}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=r"other\.ckpt is neither a checkpoint of anomalib-inctrl nor"):
        kit.build(name, weights=tmp_path / "other.ckpt")
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    with pytest.raises(ValueError, match=r"text\.ckpt can't be read as a checkpoint"):
        kit.build(name, weights=tmp_path / "text.ckpt")


@pytest.mark.parametrize("class_name", [None, ""])
def test_class_without_a_name_is_an_object(root, normals, kit, engine, class_name):
    model = kit.build("InCTRL", class_name=class_name, few_shot_source=normals)
    engine.predict(model=model, data_path=root / "bolt/test/good/000.png")
    assert model.model.references.class_names == ["object"]


@pytest.mark.parametrize(("class_name", "expected"), [(None, "bolt"), ("", "bolt"), ("screw", "screw")])
def test_class_name_of_a_data_module(root, kit, engine, class_name, expected):
    model = kit.build("InCTRL", class_name=class_name)
    engine.validate(model=model, datamodule=kit.data(root))
    assert model.model.references.class_names == [expected]


def test_images_of_a_wrong_size_without_preprocessing(root, normals, kit, engine):
    message = rf"takes preprocessed images of shape \(B, 3, {kit.side}, {kit.side}\), got \(.*pre-proc"
    with pytest.raises(ValueError, match=message):
        predict(kit, engine, root / "bolt/test/good", few_shot_source=normals, pre_processor=False)
    with pytest.raises(ValueError, match=message):
        engine.train(model=kit.build("InCTRL", pre_processor=False), datamodule=kit.data(root))


def test_components_that_are_switched_off(root, kit, tmp_path):
    """Raw scores without a post-processor, no metrics without an evaluator."""
    engine = Engine(default_root_dir=tmp_path, **kit.quiet)
    model = kit.build("InCTRL", post_processor=False, evaluator=False)
    engine.fit(model=model, datamodule=kit.data(root))
    batches = engine.predict(model=model, datamodule=kit.data(root))
    for item in (item for batch in batches for item in batch):
        with torch.no_grad():
            assert float(item.pred_score) == pytest.approx(float(model.model(item.image[None]).pred_score), abs=1e-6)


def test_own_post_processor_of_the_framework(root, kit, engine):
    from anomalib.post_processing import PostProcessor

    metrics = engine.train(model=kit.build("InCTRL", post_processor=PostProcessor()), datamodule=kit.data(root))[0]
    assert metrics["image_AUROC"] == pytest.approx(1.0)


# --------------------------------------------------------------------------------------------------- nothing half-made
def test_failed_run_leaves_no_checkpoint(root, kit, engine, tmp_path):
    """The last image of the test split can't be read."""
    moved = shutil.copytree(root, tmp_path / "MVTecAD")
    (moved / "bolt/test/square/003.png").write_bytes(b"broken")
    with pytest.raises(Exception, match=r"003\.png"):
        engine.train(model=kit.build("InCTRL"), datamodule=kit.data(moved))
    assert not list((tmp_path / "results").rglob("*.ckpt"))


def test_failed_run_of_normal_images_leaves_no_checkpoint(normals, kit, engine, tmp_path):
    source = shutil.copytree(normals, tmp_path / "parts/fine")
    for path in source.iterdir():
        path.write_bytes(b"broken")
    datamodule = Folder(name="parts", root=tmp_path / "parts", normal_dir="fine", num_workers=0)
    with pytest.raises(ValueError, match=r"\d\.png can't be read as an image"):
        engine.train(model=kit.build("InCTRL"), datamodule=datamodule)
    assert not list((tmp_path / "results").rglob("*.ckpt"))
