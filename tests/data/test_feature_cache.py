"""The cache of features: what it holds, when it computes, and what it survives."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from anomalib.pre_processing.utils.spec import transform_to_spec
from PIL import Image

from anomalib_inctrl import feature_cache
from anomalib_inctrl.clip import ClipBackbone, ImageFeatures, embedded_file
from anomalib_inctrl.feature_cache import FeatureCache
from anomalib_inctrl.pre_processing import ClipPreProcessor
from anomalib_inctrl.reference_images import read_references

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

CONFIG = json.loads(embedded_file("json").read_text())
VISION = CONFIG["vision_cfg"]
BLOCKS = (3, 4, 5)  # and what the convolutional tower sees
PATCHES = [len(BLOCKS) + 1, (VISION["image_size"] // VISION["patch_size"]) ** 2, VISION["width"]]
POOLED = [CONFIG["embed_dim"]]
PER_IMAGE = 2 * (math.prod(PATCHES) + math.prod(POOLED))  # bytes
Usage = namedtuple("Usage", "total used free")

# Fills two caches one after the other in a process of its own, 0.1 s an image: root, root, images.
FILL = """
import sys, time, torch
from anomalib_inctrl.clip import ClipBackbone
from anomalib_inctrl.feature_cache import FeatureCache
from anomalib_inctrl.pre_processing import ClipPreProcessor
from anomalib.pre_processing.utils.spec import transform_to_spec
first, second, *paths = sys.argv[1:]
torch.set_num_threads(1)
backbone = ClipBackbone("inctrl-tiny")
transform = ClipPreProcessor(backbone.convention).transform
def slow(image):
    time.sleep(0.1)
    return transform(image)
for root in (first, second):
    FeatureCache(root, backbone, slow, transform_to_spec(transform)).fill(paths, batch_size=1)
"""


def on_disk(size: int) -> int:
    """Bytes that a file takes in whole blocks of 4 KiB."""
    return -(-size // 4096) * 4096


def mebibytes(size: int) -> str:
    """As messages have it."""
    return f"{size / 2**20:.1f} MiB"


def save(path: Path, seed: int, size: tuple[int, int] = (40, 30)) -> str:
    """Write an image of noise, width and height in pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return str(path)


def preprocessing(backbone: ClipBackbone, geometry: str = "crop") -> torch.nn.Module:
    return ClipPreProcessor(backbone.convention, geometry).transform


def direct(backbone: ClipBackbone, paths: Sequence[str]) -> ImageFeatures:
    """Encode without the cache, one by one."""
    images = [read_references([path], preprocessing(backbone)).images for path in paths]
    with torch.no_grad():
        features = [backbone.encode_image(image) for image in images]
    return ImageFeatures(*(torch.cat(parts) for parts in zip(*features, strict=True)))


def records(cache: FeatureCache) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in cache.folder.rglob("*.f16")}


def leftovers(cache: FeatureCache) -> list[Path]:
    return list(cache.folder.rglob("*.tmp"))


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    folder = tmp_path / "images"
    folder.mkdir()
    return [save(folder / f"{i}.png", seed=i) for i in range(5)]


@pytest.fixture
def make(tmp_path: Path, embedded_backbone: ClipBackbone) -> Callable[..., FeatureCache]:
    """Make caches below the temporary folder."""

    def make(name: str = "cache", backbone: ClipBackbone = embedded_backbone, geometry: str = "crop") -> FeatureCache:
        return FeatureCache(tmp_path / name, backbone, preprocessing(backbone, geometry))

    return make


@pytest.fixture
def cache(make: Callable[..., FeatureCache]) -> FeatureCache:
    return make()


# What it holds


def test_features_equal_direct_encoding_to_the_rounding_of_sixteen_bits(cache, paths, embedded_backbone):
    assert cache.fill(paths, batch_size=2) == 5
    read, expected = cache.read(paths), direct(embedded_backbone, paths)
    assert read.patches.shape == (5, *PATCHES)
    assert read.pooled.shape == (5, *POOLED)
    for ours, theirs in zip(read, expected, strict=True):
        assert ours.dtype == torch.float16
        torch.testing.assert_close(ours.float(), theirs, rtol=2**-10, atol=1e-5)


def test_read_follows_the_order_asked_for_and_gives_copies_one_may_write_to(cache, paths):
    cache.fill(paths)
    before = records(cache)
    read = cache.read([paths[3], paths[0], paths[3]])
    assert torch.equal(read.patches[0], read.patches[2])
    assert not torch.equal(read.patches[0], read.patches[1])
    assert torch.equal(read.pooled[1:2], cache.read(paths[:1]).pooled)
    read.patches.zero_()
    read.pooled.zero_()
    assert records(cache) == before
    assert cache.read([]).patches.shape == (0, *PATCHES)


def test_images_of_many_sizes_and_modes_share_a_batch(cache, tmp_path, embedded_backbone):
    side = VISION["image_size"]
    paths = [save(tmp_path / f"{w}x{h}.png", 0, (w, h)) for w, h in [(7, 9), (300, 40), (side, side), (33, 200)]]
    Image.new("L", (20, 50), 90).save(tmp_path / "grey.png")
    paths.append(str(tmp_path / "grey.png"))
    assert cache.fill(paths, batch_size=5) == 5
    expected = direct(embedded_backbone, paths).patches
    torch.testing.assert_close(cache.read(paths).patches.float(), expected, rtol=2**-10, atol=1e-5)


def test_workers_read_the_same(make, paths):
    alone, together = make("alone"), make("together")
    alone.fill(paths, batch_size=2)
    assert together.fill(paths, batch_size=2, workers=2) == 5
    assert records(together) == records(alone)


def test_autocast_around_it_changes_nothing(make, paths):
    plain, mixed = make("plain"), make("mixed")
    plain.fill(paths)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed.fill(paths)
    assert records(mixed) == records(plain)


def test_filling_leaves_the_global_generator_alone(cache, paths):
    state = torch.get_rng_state()
    cache.fill(paths)
    assert torch.equal(torch.get_rng_state(), state)


def test_size_on_disk_is_what_the_shapes_say(cache, paths):
    cache.fill(paths)
    files = [file for file in cache.folder.rglob("*") if file.is_file()]
    assert cache.bytes_per_image == PER_IMAGE
    assert len(files) == len(paths) + 1
    assert len(paths) * PER_IMAGE < sum(file.stat().st_size for file in files) < 1.05 * len(paths) * PER_IMAGE


def test_a_file_beside_the_features_tells_what_they_are(cache, paths, embedded_backbone):
    cache.fill(paths)
    told = json.loads((cache.folder / "cache.json").read_text())
    assert told["backbone"] == "inctrl-tiny"
    assert told["fingerprint"] == embedded_backbone.fingerprint
    assert told["blocks"] == list(BLOCKS)
    assert told["file"] == {"type": "float16", "patches": PATCHES, "pooled": POOLED}
    assert told["preprocessing"] == transform_to_spec(preprocessing(embedded_backbone))


# When it computes


def test_what_is_there_is_not_computed_again(cache, make, paths, tmp_path):
    assert cache.fill(paths) == 5
    before = records(cache)
    assert cache.fill(paths) == 0
    assert make().fill(paths) == 0  # as another run would
    assert cache.fill([*paths, save(tmp_path / "new.png", seed=9)]) == 1
    assert before.items() < records(cache).items()


def test_names_do_not_count(cache, paths):
    twice = str(shutil.copy(paths[0], Path(paths[0]).with_name("copy.png")))
    assert cache.missing([*paths, twice, *paths]) == paths
    assert cache.fill([*paths, twice, *paths]) == 5
    moved = str(Path(paths[1]).rename(Path(paths[1]).with_name("moved.png")))
    assert cache.fill([moved]) == 0
    assert torch.equal(cache.read([twice]).patches, cache.read(paths[:1]).patches)


def test_changed_content_counts(cache, paths):
    cache.fill(paths)
    old = cache.read(paths[:1])
    save(Path(paths[0]), seed=77)
    assert cache.missing(paths) == paths[:1]
    with pytest.raises(RuntimeError, match=r"holds no features of .*0\.png.*fill\(\)"):
        cache.read(paths)
    assert cache.fill(paths) == 1
    assert not torch.equal(cache.read(paths[:1]).pooled, old.pooled)


def test_reading_does_not_hash_again(cache, paths, monkeypatch):
    cache.fill(paths)
    opened = []
    monkeypatch.setattr(Path, "read_bytes", lambda self: opened.append(self))
    cache.read(paths)
    assert not opened


def test_other_weights_blocks_precision_or_preprocessing_have_another_folder(make, embedded_backbone):
    other = ClipBackbone("inctrl-tiny")
    other.visual.conv1.weight.data.mul_(1.5)
    caches = [
        make(),
        make(backbone=other),
        make(backbone=ClipBackbone("inctrl-tiny", blocks=(0, 1, 2))),
        make(backbone=ClipBackbone("inctrl-tiny").half()),
        make(geometry="squash"),
    ]
    assert len({cache.folder for cache in caches}) == len(caches)
    assert make(backbone=ClipBackbone("inctrl-tiny")).folder == make().folder
    spec = transform_to_spec(preprocessing(embedded_backbone))
    explicit = FeatureCache(make().folder.parent, embedded_backbone, torch.nn.Identity(), spec)
    assert explicit.folder == make().folder


def test_weights_that_change_later_do_not_get_into_the_cache(make, paths):
    backbone = ClipBackbone("inctrl-tiny")
    cache = make(backbone=backbone)
    backbone.visual.conv1.weight.data.mul_(1.5)
    with pytest.raises(RuntimeError, match="Make a new FeatureCache"):
        cache.fill(paths)
    assert not cache.folder.exists()


def test_preprocessing_that_can_not_be_told_from_others_is_refused(tmp_path, embedded_backbone):
    with pytest.raises(ValueError, match="transform_spec"):
        FeatureCache(tmp_path, embedded_backbone, lambda image: image)
    with pytest.raises(ValueError, match="plain data"):
        FeatureCache(tmp_path, embedded_backbone, lambda image: image, {"size": torch.Size([1]), "scale": object()})


# What it survives


@pytest.mark.parametrize("size", [0, 1000, PER_IMAGE - 1, PER_IMAGE + 2])
def test_a_file_of_the_wrong_size_is_noticed_and_repaired(cache, paths, size):
    cache.fill(paths)
    before = records(cache)
    damaged = cache._file(cache._digest(paths[2]))
    damaged.write_bytes((damaged.read_bytes() + b"more")[:size])
    assert cache.missing(paths) == [paths[2]]
    with pytest.raises(RuntimeError, match=rf"damaged.* {size} bytes.*2\.png, {PER_IMAGE} bytes.*fill\(\)"):
        cache.read(paths)
    assert cache.fill(paths, batch_size=5) == 1
    assert records(cache).keys() == before.keys()
    assert cache.missing(paths) == []
    cache.read(paths)


def test_missing_features_name_the_remedy(cache, paths):
    with pytest.raises(RuntimeError, match=r"no features of .*0\.png.*Call fill\(\)"):
        cache.read(paths)
    assert cache.missing(paths) == paths
    assert not cache.folder.exists()


def test_leftovers_of_dead_writers_are_removed_and_those_of_the_living_are_not(cache, paths):
    cache.fill(paths[:1])
    record = next(cache.folder.rglob("*.f16"))
    dead, alive = (record.with_name(f"{record.name}.{name}.tmp") for name in ("dead", "alive"))
    for file in (dead, alive):
        file.write_bytes(b"half of it")
    long_ago = time.time() - 2 * 3600
    os.utime(dead, (long_ago, long_ago))
    assert cache.fill(paths) == 4
    assert leftovers(cache) == [alive]
    assert cache.missing(paths) == []


def test_a_write_that_fails_leaves_nothing_half_done(cache, paths, monkeypatch):
    whole = Path.write_bytes

    def full_after_two(self: Path, content: bytes) -> int:
        if len(records(cache)) == 2 and self.suffix == ".tmp":
            whole(self, content[:100])
            raise OSError(28, "No space left on device")
        return whole(self, content)

    monkeypatch.setattr(Path, "write_bytes", full_after_two)
    with pytest.raises(OSError, match="No space left"):
        cache.fill(paths)
    monkeypatch.undo()
    assert leftovers(cache) == []
    assert len(records(cache)) == 2
    assert cache.fill(paths) == 3


def test_too_small_a_disk_is_told_before_anything_is_encoded(cache, paths, monkeypatch):
    free = 5 * PER_IMAGE - 1
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(free, 0, free))
    monkeypatch.setattr(FeatureCache, "_encode", lambda *_: pytest.fail("encoded something"))
    needs = rf"needs {mebibytes(5 * on_disk(PER_IMAGE))} for 5 images .*{mebibytes(free)} are free"
    with pytest.raises(OSError, match=needs + r"\. Make room, give it a folder"):
        cache.fill(paths)
    assert records(cache) == {}


def test_room_is_needed_for_what_is_missing_only_and_the_estimate_is_logged(cache, paths, monkeypatch, caplog):
    cache.fill(paths[:4])
    free = 2 * PER_IMAGE
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(free, 0, free))
    with caplog.at_level(logging.INFO, logger=feature_cache.__name__):
        assert cache.fill(paths) == 1
    told = f"{mebibytes(on_disk(PER_IMAGE))} for 1 images of {PER_IMAGE} bytes; {mebibytes(free)} are free"
    assert told in caplog.text


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_named_and_finished_ones_stay(cache, paths, workers):
    Path(paths[3]).write_bytes(Path(paths[3]).read_bytes()[:200])
    with pytest.raises(ValueError, match=r"3\.png can't be read.*Repair or remove it"):
        cache.fill(paths, batch_size=1, workers=workers)
    assert cache.missing(paths) == paths[3:]
    assert cache.fill([*paths[:3], paths[4]]) == 1


def test_errors_that_do_not_name_the_image_are_made_to(tmp_path, embedded_backbone, paths):
    def broken(image: torch.Tensor) -> torch.Tensor:
        raise SyntaxError("broken PNG file")

    with pytest.raises(ValueError, match=r"0\.png can't be read and preprocessed \(SyntaxError: broken PNG file\)"):
        FeatureCache(tmp_path / "cache", embedded_backbone, broken, {}).fill(paths)


def test_an_image_that_changes_meanwhile_is_not_stored_under_its_old_content(tmp_path, embedded_backbone, paths):
    transform = preprocessing(embedded_backbone)

    def meddle(image: torch.Tensor) -> torch.Tensor:
        save(Path(paths[0]), seed=5, size=(50, 50))
        return transform(image)

    cache = FeatureCache(tmp_path / "cache", embedded_backbone, meddle, {})
    with pytest.raises(RuntimeError, match=r"0\.png changed while"):
        cache.fill(paths[:1])
    assert records(cache) == {}


@pytest.mark.parametrize(("part", "where"), [(0, f"block {BLOCKS[1]}"), (1, "the image embedding")])
def test_values_beyond_sixteen_bits_are_refused(cache, paths, monkeypatch, embedded_backbone, part, where):
    encode = embedded_backbone.encode_image

    def huge(images: torch.Tensor) -> ImageFeatures:
        features = encode(images)
        features[part][(0, 1, 7, 3) if part == 0 else (0, 3)] = -70000.0
        return features

    monkeypatch.setattr(embedded_backbone, "encode_image", huge)
    with pytest.raises(ValueError, match=rf"0\.png: {where} of inctrl-tiny reaches 7e\+04.*65504.*without the feature"):
        cache.fill(paths)
    assert records(cache) == {}


def wait_for_records(cache: FeatureCache, number: int, process: subprocess.Popen) -> None:
    limit = time.monotonic() + 200
    while len(records(cache)) < number:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < limit
        time.sleep(0.005)


def test_processes_may_fill_at_once_and_be_killed(make, tmp_path):
    """One process, since imports take long: this one fills along with it, and kills it in its next cache."""
    paths = [save(tmp_path / f"{i}.png", seed=i) for i in range(16)]
    calm, shared, killed = make("calm"), make("shared"), make("killed")
    arguments = [str(tmp_path / "shared"), str(tmp_path / "killed"), *paths]
    other = subprocess.Popen([sys.executable, "-c", FILL, *arguments], stderr=subprocess.PIPE, text=True)
    calm.fill(paths, batch_size=1)
    expected = records(calm)

    wait_for_records(shared, 3, other)
    assert 0 < shared.fill(paths, batch_size=1) <= 13  # the rest of the same list, overtaking the other
    assert records(shared) == expected

    wait_for_records(killed, 4, other)  # the other has come to the end of the first cache without an error
    assert records(shared) == expected
    assert leftovers(shared) == []
    other.kill()
    other.communicate()
    done = records(killed)
    assert 4 <= len(done) < len(paths)
    assert done.items() < expected.items()
    assert killed.fill(paths, batch_size=1) == len(paths) - len(done)
    assert records(killed) == expected
