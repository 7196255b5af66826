"""The pictures of a run: one for every image, in register."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from anomalib_inctrl.visualization import InContextVisualizer

PANEL, MARGIN, LABEL = 224, 8, 18


def pictures_of(folder: Path) -> dict[str, Path]:
    return {str(Path(*path.parts[-2:])): path for path in Path(folder).rglob("*.png") if "images" in path.parts}


def panel(picture: Image.Image, index: int, width: int = PANEL) -> np.ndarray:
    """A panel of the upper row of a picture of square panels."""
    left, top = MARGIN + index * (width + MARGIN), MARGIN + 2 * LABEL
    return np.asarray(picture.convert("RGB").crop((left, top, left + width, top + PANEL))).astype(int)


def box(region: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.nonzero(region)
    return rows.min(), rows.max(), columns.min(), columns.max()


def test_one_picture_for_every_test_image(trained):
    expected = {f"good/{i:03}.png" for i in range(4)} | {f"square/{i:03}.png" for i in range(4)}
    found = pictures_of(trained.folder)
    assert found.keys() == expected
    for path in found.values():
        with Image.open(path) as picture:
            assert picture.width >= 4 * PANEL + 5 * MARGIN
            assert picture.height >= 3 * (PANEL + MARGIN)


def test_contour_lies_where_the_mask_is(trained):
    patch = PANEL / trained.model.model.backbone.grid_size[0]  # at the size of the panel
    for path in (p for name, p in pictures_of(trained.folder).items() if name.startswith("square")):
        with Image.open(path) as picture:
            mask, contour = panel(picture, 1).mean(axis=2) > 127, panel(picture, 3)
        red = (contour[..., 0] > 180) & (contour[..., 1] < 90) & (contour[..., 2] < 90)
        assert red.any()
        for found, expected in zip(box(red), box(mask), strict=True):
            assert abs(found - expected) < 2 * patch


def test_image_panel_shows_the_square_where_the_mask_panel_does(trained):
    for path in (p for name, p in pictures_of(trained.folder).items() if name.startswith("square")):
        with Image.open(path) as picture:
            bright, mask = panel(picture, 0).mean(axis=2) > 170, panel(picture, 1).mean(axis=2) > 127
        assert (bright & mask).sum() / (bright | mask).sum() > 0.85  # nearest-neighbour masks are off by a pixel


@pytest.mark.parametrize(("undecided", "references"), [(0.5, True), (0.5, False), (0.0, True)])
def test_the_discriminative_map_is_drawn_from_where_it_says_nothing(undecided, references):
    low = undecided / 2 if references else undecided
    maps = {"discriminative_map": torch.full((1, 16), low + 0.03), "one_class_map": torch.full((1, 16), 0.03)}
    maps |= {"patch_residuals": torch.full((1, 16), 0.01)} if references else {}
    module = SimpleNamespace(
        explanation=SimpleNamespace(_asdict=lambda: maps),
        model=SimpleNamespace(branches={"discriminative", "one_class"}, undecided=undecided),
        post_processor=SimpleNamespace(pixel_threshold=torch.tensor(0.05)),
    )
    panels, top = InContextVisualizer(panel_size=40)._evidence_row(0, module, (4, 4), (40, 40))
    assert top == pytest.approx(0.1)
    discriminative, one_class = panels[-2:]
    assert discriminative.label == f"discriminative M_p{f' from {low:g}' if low else ''}, max {low + 0.03:.3f}"
    difference = np.asarray(discriminative.image).astype(int) - np.asarray(one_class.image).astype(int)
    assert np.abs(difference).max() <= 4  # a step of the colour map


def test_zero_shot_pictures_have_no_row_of_references(root, kit, engine):
    engine.predict(model=kit.build("InCTRLv2", k_shot=0, visualizer=True), data_path=root / "bolt/test/good")
    found = pictures_of(engine.trainer.default_root_dir)
    assert len(found) == 4
    with Image.open(found["good/000.png"]) as picture:
        assert picture.height < 2 * PANEL


@pytest.mark.parametrize("second", ["b/side/1.png", "a/side/1.jpg"], ids=["another-folder", "another-suffix"])
def test_equal_names_do_not_overwrite_each_other(root, normals, kit, engine, tmp_path, second):
    images = tmp_path / "in"
    kit.write(images / "a/side/1.png", kit.texture(1))
    kit.write(images / second, kit.texture(2))
    engine.predict(model=kit.build("InCTRL", few_shot_source=normals, visualizer=True), data_path=images)
    found = [p for p in Path(engine.trainer.default_root_dir).rglob("*.png") if "images" in p.parts]
    assert len(found) == 2
