"""Image, mask and map stay in register for any shape of image, alone or in a batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

SHAPES = {"wide": (2, 3), "tall": (3, 2), "square": (2, 2)}  # height and width in multiples of the backbone's side

# What both models share is tested with one of them.
shared_code = pytest.mark.parametrize("name", ["InCTRLv2"], indirect=True)


def one_image(kit, category, size, top, left, side):
    """A category with one damaged test image."""
    for i in range(2):
        kit.write(category / f"train/good/{i}.png", kit.texture(i, size))
    kit.write(category / "test/good/0.png", kit.texture(50, size))
    damaged, mask = kit.with_square(kit.texture(60, size), top, left, side)
    kit.write(category / "test/square/0.png", damaged)
    kit.write(category / "ground_truth/square/0_mask.png", mask)
    return category


def predict_damaged(kit, engine, model, category):
    batches = engine.predict(model=model, datamodule=kit.data(category.parent, category.name))
    (item,) = [item for batch in batches for item in batch if item.gt_label]
    return item


@pytest.mark.parametrize("geometry", ["crop", "squash"])
@pytest.mark.parametrize("shape", list(SHAPES))
def test_square_stays_in_register(kit, engine, tmp_path, shape, geometry):
    height, width = (multiple * kit.side for multiple in SHAPES[shape])
    # Edges on whole pixels at a half and at a third of the size as well, else those of the mask were off by one.
    corner = height // 2 - 7 * kit.side // 16, width // 2 - 3 * kit.side // 16
    top, left, side = (length // 6 * 6 for length in (*corner, 3 * kit.side // 4))
    category = one_image(kit, tmp_path / "MVTecAD" / shape, (height, width), top, left, side)
    model = kit.build("InCTRLv2", geometry=geometry)
    item = predict_damaged(kit, engine, model, category)
    seen = model.model.backbone.to_pictures(item.image[None])[0].float().mean(dim=0)
    bright, mask = seen > 170, item.gt_mask.bool()  # half way between the ground and the square
    assert mask.shape == seen.shape == (kit.side, kit.side)
    assert (bright & mask).sum() / (bright | mask).sum() > 0.95
    anomaly_map = item.anomaly_map.squeeze()
    assert mask[np.unravel_index(anomaly_map.argmax(), (kit.side, kit.side))]
    assert roc_auc_score(mask.flatten(), anomaly_map.flatten()) > 0.97


def test_squash_keeps_what_crop_cuts_off(kit, tmp_path):
    from anomalib.engine import Engine

    category = one_image(kit, tmp_path / "MVTecAD/strip", (64, 256), 16, 4, 40)
    found = {}
    for geometry in ("crop", "squash"):
        engine = Engine(default_root_dir=tmp_path / geometry, **kit.quiet)
        found[geometry] = predict_damaged(kit, engine, kit.build("InCTRLv2", geometry=geometry), category)
    assert not found["crop"].gt_mask.any()
    assert found["squash"].gt_mask.float().mean() == pytest.approx(40 * 40 / (64 * 256), rel=0.1)
    mask = found["squash"].gt_mask.bool()
    assert mask[np.unravel_index(found["squash"].anomaly_map.squeeze().argmax(), (kit.side, kit.side))]


@pytest.mark.parametrize("geometry", ["crop", "squash"])
def test_mixed_shapes_in_one_batch_score_as_alone(kit, tmp_path, geometry):
    from anomalib.engine import Engine

    category = tmp_path / "MVTecAD/mixed"
    for i, size in enumerate([(96, 128), (128, 96), (70, 70), (60, 150)]):
        kit.write(category / f"train/good/{i}.png", kit.texture(i, size))
        kit.write(category / f"test/good/{i}.png", kit.texture(10 + i, size))
        damaged, mask = kit.with_square(kit.texture(20 + i, size), size[0] // 2 - 10, size[1] // 2 - 5, 20)
        kit.write(category / f"test/square/{i}.png", damaged)
        kit.write(category / f"ground_truth/square/{i}_mask.png", mask)
    found = []
    model = kit.build("InCTRLv2", geometry=geometry, k_shot=4)
    for size in (1, 8):
        engine = Engine(default_root_dir=tmp_path / str(size), **kit.quiet)
        data = kit.data(category.parent, "mixed", eval_batch_size=size)
        found.append(kit.predictions(engine.predict(model=model, datamodule=data)))
    alone, together = found
    for path, score in alone.scores.items():
        assert together.scores[path] == pytest.approx(score, abs=1e-5)
        torch.testing.assert_close(together.maps[path], alone.maps[path], atol=1e-4, rtol=0)


@shared_code
def test_folder_and_data_module_see_the_same(trained, root, kit, engine, tmp_path):
    """The data module resizes before it makes a batch, a folder of images is resized after: no difference."""
    model = trained.model
    alone = kit.predictions(engine.predict(model=model, data_path=root / "bolt/test"))
    again = kit.predictions(engine.predict(model=model, datamodule=kit.data(root)))
    assert alone.scores == pytest.approx(again.scores, abs=1e-5)


@shared_code
def test_mask_of_another_size_is_an_error_that_names_both_files(name, kit, engine, tmp_path):
    category = one_image(kit, tmp_path / "MVTecAD/bolt", (96, 128), 20, 30, 28)
    kit.write(category / "ground_truth/square/0_mask.png", np.full((48, 128), 255, dtype=np.uint8))
    with pytest.raises(ValueError, match=r"0_mask\.png is 128 x 48, its image 128 x 96"):
        engine.test(model=kit.build(name), datamodule=kit.data(category.parent))
