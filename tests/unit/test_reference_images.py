"""Which images serve as references, and how they are read."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image

from anomalib_inctrl.reference_images import draw, from_source, read_references, require_eight_bits

if TYPE_CHECKING:
    from pathlib import Path

PATHS = [f"{i:02}.png" for i in range(20)]


def keep(image: torch.Tensor) -> torch.Tensor:
    """Stand in for preprocessing: one size for all, the mean colour in every pixel."""
    return image.mean(dim=(1, 2), keepdim=True).expand(-1, 4, 4)


def save(path: Path, colour: object, mode: str = "RGB", size: tuple[int, int] = (6, 5)) -> Path:
    Image.new(mode, size, colour).save(path)
    return path


def test_draws_are_seeded():
    assert draw(PATHS, 4, seed=3) == draw(PATHS, 4, seed=3)
    assert len({tuple(draw(PATHS, 4, seed=seed)) for seed in range(20)}) > 10


def test_draws_do_not_depend_on_the_order_and_repeat_nothing():
    drawn = draw(PATHS, 7, seed=1)
    assert drawn == draw(PATHS[::-1], 7, seed=1)
    assert len(set(drawn)) == 7
    assert set(drawn) <= set(PATHS)


def test_draws_leave_the_global_generator_alone():
    state = torch.get_rng_state()
    draw(PATHS, 4, seed=5)
    assert torch.equal(torch.get_rng_state(), state)


def test_drawing_all_and_none():
    assert draw(PATHS, 20, seed=0) == PATHS
    assert draw(PATHS, 0, seed=0) == []


def test_too_few_images_are_an_error():
    with pytest.raises(ValueError, match=r"k_shot=5 .* there are only 3 normal images\. Set k_shot to 3 or less"):
        draw(PATHS[:3], 5, seed=0)


def test_a_folder_is_searched_in_depth_and_drawn_from(tmp_path: Path):
    for i in range(6):
        folder = tmp_path / ("a" if i % 2 else "b/c")
        folder.mkdir(parents=True, exist_ok=True)
        save(folder / f"{i}.png", (10 * i, 0, 0))
    references = from_source(tmp_path, 4, 0, keep)
    assert references.images.shape == (4, 3, 4, 4)
    assert len(set(references.names)) == 4
    reds = [int(name.removesuffix(".png")[-1]) * 10 / 255 for name in references.names]
    torch.testing.assert_close(references.images[:, 0, 0, 0], torch.tensor(reds))  # names and images in one order
    assert from_source(tmp_path, 4, 0, keep).names == references.names
    assert len({tuple(from_source(tmp_path, 4, seed, keep).names) for seed in range(10)}) > 1


def test_a_folder_with_too_few_gives_all_and_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    save(tmp_path / "1.png", (255, 0, 0))
    with caplog.at_level(logging.WARNING):
        references = from_source(tmp_path, 4, 0, keep)
    assert references.names == [str(tmp_path / "1.png")]
    assert "holds 1 references, fewer than k_shot=4" in caplog.text


def test_a_single_image(tmp_path: Path):
    path = save(tmp_path / "normal.png", (255, 51, 0))
    references = from_source(str(path), 1, 0, keep)
    torch.testing.assert_close(references.images[0, :, 0, 0], torch.tensor([1.0, 0.2, 0.0]))
    assert references.names == [str(path)]


@pytest.mark.parametrize("stacked", [False, True], ids=["list", "stack"])
def test_a_file_of_tensors_is_taken_as_it_is(tmp_path: Path, stacked: bool):
    tensors = [torch.randn(3, 8, 8) for _ in range(3)]
    torch.save(torch.stack(tensors) if stacked else tensors, tmp_path / "metal_nut.pt")
    references = from_source(tmp_path / "metal_nut.pt", 2, 0, keep)
    assert torch.equal(references.images, torch.stack(tensors[:2]))
    assert references.names == ["metal_nut.pt[0]", "metal_nut.pt[1]"]


@pytest.mark.parametrize(
    "content", [[torch.zeros(3, 8, 8), torch.zeros(3, 9, 9)], {"weights": torch.zeros(3)}, [torch.zeros(8, 8)]]
)
def test_another_file_of_tensors_is_refused(tmp_path: Path, content: object):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt (is no list of|must hold a list of).*tensors \[3, H, W\]"):
        from_source(tmp_path / "other.pt", 2, 0, keep)


def test_a_missing_source_is_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"few_shot_source='.*nowhere' does not exist: name a folder"):
        from_source(tmp_path / "nowhere", 2, 0, keep)


def test_a_folder_without_images_is_refused(tmp_path: Path):
    (tmp_path / "readme.txt").write_text("nothing to see")
    with pytest.raises(FileNotFoundError, match="holds no image"):
        from_source(tmp_path, 2, 0, keep)
    with pytest.raises(FileNotFoundError, match=r"readme\.txt' holds no image"):
        from_source(tmp_path / "readme.txt", 2, 0, keep)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp"])
def test_a_corrupt_image_is_named(tmp_path: Path, suffix: str):
    path = tmp_path / f"broken.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(255, size=(40, 40, 3), dtype=np.uint8)).save(path)
    whole = path.read_bytes()
    for content in (b"", b"no image at all", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"broken\.{suffix} can't be read as an image.*Repair or remove it"):
            from_source(tmp_path, 1, 0, keep)


def test_an_image_too_large_for_pillow_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save(tmp_path / "huge.png", 0, size=(50, 50))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"huge\.png can't be read as an image.*exceeds limit"):
        from_source(tmp_path, 1, 0, keep)


@pytest.mark.parametrize(("dtype", "suffix", "mode"), [("uint16", "png", "I;16"), ("float32", "tiff", "F")])
def test_wide_images_are_refused(tmp_path: Path, dtype: str, suffix: str, mode: str):
    path = tmp_path / f"wide.{suffix}"
    Image.fromarray((np.arange(16, dtype=dtype) * 4000).reshape(4, 4)).save(path)
    with pytest.raises(ValueError, match=rf"wide\.{suffix} has more than 8 bits per channel \(mode {mode}\)"):
        from_source(tmp_path, 1, 0, keep)
    with pytest.raises(ValueError, match=r"more than 8 bits"):
        require_eight_bits(path)


def test_every_kind_of_eight_bit_image_becomes_rgb(tmp_path: Path):
    palette = Image.new("P", (3, 2), 1)
    palette.putpalette([0, 0, 0, 255, 51, 0])
    palette.save(tmp_path / "palette.png")
    paths = [
        save(tmp_path / "gray.png", 102, "L", (9, 2)),
        save(tmp_path / "gray-alpha.png", (102, 7), "LA"),
        save(tmp_path / "alpha.png", (255, 51, 0, 255), "RGBA", (7, 3)),
        tmp_path / "palette.png",
        save(tmp_path / "bit.png", 1, "1"),
        save(tmp_path / "pixel.png", (0, 51, 255), "RGB", (1, 1)),
    ]
    gray, orange = [0.4, 0.4, 0.4], [1.0, 0.2, 0.0]
    expected = torch.tensor([gray, gray, orange, orange, [1.0, 1.0, 1.0], [0.0, 0.2, 1.0]])
    references = read_references([str(path) for path in paths], keep)  # of six sizes
    torch.testing.assert_close(references.images[:, :, 0, 0], expected)
    assert references.names == [str(path) for path in paths]
