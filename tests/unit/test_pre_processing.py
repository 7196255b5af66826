"""The export's resize against torchvision's."""

from __future__ import annotations

import pytest
import torch
from torchvision.transforms.v2 import CenterCrop, Compose, InterpolationMode, Normalize, Resize

from anomalib_inctrl.clip import ImageConvention
from anomalib_inctrl.pre_processing import ClipPreProcessor, ResizeAndCrop

SIZE = (32, 32)
CONVENTION = ImageConvention(SIZE, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
INPUTS = [
    (1, 1), (1, 5), (5, 1), (3, 300), (300, 3), (32, 32), (31, 33), (33, 31), (20, 27), (64, 32), (97, 240), (240, 97),
    (16, 100), (121, 120), (31, 47), (90, 67),
]  # fmt: skip


def theirs(geometry: str, size: tuple[int, int] = SIZE) -> Compose:
    bicubic = InterpolationMode.BICUBIC
    if geometry == "squash":
        return Compose([Resize(size, interpolation=bicubic, antialias=True)])
    return Compose([Resize(size[0], interpolation=bicubic, antialias=True), CenterCrop(size)])


@pytest.mark.parametrize("geometry", ["crop", "squash"])
@pytest.mark.parametrize("size", INPUTS, ids=str)
def test_resize_and_crop_equal_torchvisions(size: tuple[int, int], geometry: str):
    images = torch.rand(2, 3, *size)
    ours = ResizeAndCrop(SIZE, geometry)(images)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs(geometry)(images), rtol=0, atol=1e-5)


def test_squashing_to_a_size_that_is_no_square():
    images = torch.rand(1, 3, 50, 70)
    ours = ResizeAndCrop((24, 48), "squash")(images)
    torch.testing.assert_close(ours, theirs("squash", (24, 48))(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize("geometry", ["crop", "squash"])
def test_the_export_transform_equals_the_transform(geometry: str):
    pre_processor = ClipPreProcessor(CONVENTION, geometry)
    images = torch.rand(2, 3, 45, 71)
    expected = Normalize(CONVENTION.mean, CONVENTION.std)(theirs(geometry)(images))
    torch.testing.assert_close(pre_processor.transform(images), expected)
    torch.testing.assert_close(pre_processor.export_transform(images), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("saved", "fresh"), [("crop", "squash"), ("squash", "crop")])
def test_a_checkpoint_restores_the_geometry(saved: str, fresh: str):
    images = torch.rand(1, 3, 45, 71)
    source, target = ClipPreProcessor(CONVENTION, saved), ClipPreProcessor(CONVENTION, fresh)
    assert not torch.allclose(source.export_transform(images), target.export_transform(images), atol=1e-2)
    target.load_checkpoint_config(source.checkpoint_config())
    assert target.geometry == saved
    assert torch.equal(target.transform(images), source.transform(images))
    assert torch.equal(target.export_transform(images), source.export_transform(images))


def test_an_unknown_geometry_is_refused():
    with pytest.raises(ValueError, match="geometry must be 'crop' or 'squash', got 'stretch'"):
        ClipPreProcessor(CONVENTION, "stretch")


def test_cropping_takes_a_square():
    oblong = CONVENTION._replace(size=(32, 48))
    with pytest.raises(ValueError, match=r"32 x 48, no square: use geometry='squash'"):
        ClipPreProcessor(oblong)
    assert ClipPreProcessor(oblong, "squash").transform(torch.rand(3, 10, 10)).shape == (3, 32, 48)
