"""The demonstration data: real photographs, disjoint splits, exact masks, written once."""

import importlib
import json
import random
import socket
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anomalib.data
import numpy as np
import pytest
import pytest_socket
import torch
from PIL import Image
from scipy import ndimage

from anomalib_inctrl.data import DemoAD, defects, demo, photographs
from anomalib_inctrl.data.demo import CATEGORIES, crops_of_category, samples_of_category
from anomalib_inctrl.data.folders import ensure_folder

SIZE = 96
SMALL = {"image_size": SIZE, "train_batch_size": 4, "eval_batch_size": 8, "num_workers": 0}


@pytest.fixture(scope="module")
def samples():
    """All samples of every category, generated once."""
    return {category: list(samples_of_category(category, SIZE)) for category in CATEGORIES}


@pytest.fixture
def quick(monkeypatch, samples):
    """Let the writer take the samples that were generated before instead of drawing them again."""
    monkeypatch.setattr(demo, "samples_of_category", lambda category, size, seed: iter(samples[category]))


@pytest.fixture(scope="module")
def written_root(tmp_path_factory):
    """A data root with the coins written."""
    root = tmp_path_factory.mktemp("data")
    DemoAD(root=root, category="coins", **SMALL).prepare_data()
    return root


def _pixels(samples):
    return [(s.path, s.image.tobytes(), None if s.mask is None else s.mask.tobytes()) for s in samples]


def _damaged(samples):
    return [sample for sample in samples if sample.mask is not None]


@pytest.mark.parametrize("category", CATEGORIES)
def test_counts_per_split(samples, category):
    folders = Counter(str(sample.path.parent.as_posix()) for sample in samples[category])
    good = {"train/good": 12, "test/good": 12} if category == "coins" else {"train/good": 16, "test/good": 24}
    expected = {f"test/{kind}": 4 for kind in defects.KINDS} | good
    assert folders == expected
    assert len({sample.path for sample in samples[category]}) == len(samples[category])


@pytest.mark.parametrize("category", CATEGORIES)
def test_damaged_image_is_its_clean_twin_outside_the_mask(samples, category):
    good = {
        sample.path.name: sample.image for sample in samples[category] if sample.path.parent.as_posix() == "test/good"
    }
    used = Counter(sample.path.name for sample in _damaged(samples[category]))
    assert used == dict.fromkeys(good, 24 // len(good))  # without their defects both classes are the same images
    for sample in _damaged(samples[category]):
        twin = good[sample.path.name]
        assert np.array_equal(sample.clean, twin)
        assert np.array_equal(sample.image[~sample.mask], twin[~sample.mask])
        assert (sample.image[sample.mask] != twin[sample.mask]).any()


@pytest.mark.parametrize("category", CATEGORIES)
def test_mask_is_where_the_image_changed(samples, category):
    for sample in _damaged(samples[category]):
        difference = np.abs(sample.image.astype(int) - sample.clean).max(axis=-1)
        changed = (difference > defects.CHANGE_THRESHOLD) & sample.mask
        assert sample.mask.dtype == bool
        assert sample.mask.shape == sample.image.shape[:2] == (SIZE, SIZE)
        assert not difference[~sample.mask].any(), sample.path
        near = ndimage.binary_dilation(changed, np.ones((3, 3)))
        assert not (sample.mask & ~near).any(), sample.path  # only pinholes were closed
        assert changed.sum() > 0.7 * sample.mask.sum(), sample.path


@pytest.mark.parametrize("category", CATEGORIES)
def test_defects_are_visible_and_moderate(samples, category):
    for sample in _damaged(samples[category]):
        assert 0.015 <= sample.mask.mean() <= 0.08
        assert np.abs(sample.image.astype(int) - sample.clean)[sample.mask].mean() > 9, sample.path


@pytest.mark.parametrize("category", ["coins", "grass", "gravel", "tissue"])
def test_defects_outdo_the_contrast_of_a_cluttered_surface(samples, category):
    damaged = _damaged(samples[category])
    changes = [np.abs(s.image.astype(int) - s.clean)[s.mask].mean() / s.clean.mean(axis=-1).std() for s in damaged]
    assert np.median(changes) > 1.2


@pytest.mark.parametrize("category", CATEGORIES)
def test_clean_image_is_the_crop_of_the_photograph(samples, category):
    crops = crops_of_category(category)
    photograph = photographs.read_photograph(photographs.PHOTOGRAPHS[category].file)
    for sample in samples[category]:
        crop = crops[sample.path.parts[0]][int(sample.path.stem)]
        assert np.array_equal(sample.clean, defects.resize(photographs.cut(photograph, crop), SIZE))


@pytest.mark.parametrize("category", CATEGORIES)
@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_no_pixel_is_shared_between_splits(category, seed):
    photograph = photographs.read_photograph(photographs.PHOTOGRAPHS[category].file)
    seen = np.zeros(photograph.shape[:2], dtype=int)
    for role, crops in crops_of_category(category, seed).items():
        used = np.zeros_like(seen, dtype=bool)
        for left, top, right, bottom in (crop.box for crop in crops):
            assert 0 <= left < right <= seen.shape[1], role
            assert 0 <= top < bottom <= seen.shape[0], role
            assert right - left == bottom - top
            used[top:bottom, left:right] = True
        seen += used
    assert seen.max() == 1


@pytest.mark.parametrize("category", CATEGORIES)
@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_crops_of_a_role_differ(category, seed):
    for role, crops in crops_of_category(category, seed).items():
        assert len(set(crops)) == len(crops) == photographs.PHOTOGRAPHS[category].counts[role]
    if category == "coins":
        assert len({crop.box for crops in crops_of_category(category, seed).values() for crop in crops}) == 24


def test_cut_applies_the_eight_symmetries():
    photograph = np.arange(5 * 6 * 3, dtype=np.uint8).reshape(5, 6, 3)
    views = [photographs.cut(photograph, photographs.Crop((1, 2, 4, 5), turn)) for turn in range(8)]
    assert len({view.tobytes() for view in views}) == 8
    assert np.array_equal(views[0], photograph[2:5, 1:4])
    assert np.array_equal(views[4], photograph[2:5, 1:4][:, ::-1])


def test_other_seed_other_pixels(samples):
    other = list(samples_of_category("gravel", SIZE, generation_seed=1))
    same = [a.path for a, b in zip(samples["gravel"], other, strict=True) if np.array_equal(a.image, b.image)]
    assert not same


def test_same_seed_same_pixels_in_any_order_and_global_random_states_are_untouched(samples):
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    assert _pixels(samples_of_category("moon", SIZE)) == _pixels(samples["moon"])
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert random.getstate() == states[2]


def test_global_random_states_do_not_matter():
    crop = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    first, second = [], []
    for seed, images in ((1, first), (2, second)):
        torch.manual_seed(seed)
        images.append(defects.add_defect(crop // 4 + 90, "perlin", np.random.default_rng(3), SIZE).image)
    assert np.array_equal(first, second)


@pytest.mark.parametrize("kind", defects.KINDS)
def test_every_kind_stays_inside_its_object(kind):
    crop = photographs.cut(
        photographs.read_photograph("gravel.png"),
        photographs.Crop((0, 0, 128, 128), 0),
    )
    damage = defects.add_defect(crop, kind, np.random.default_rng(0), SIZE, inside=0.6)
    y, x = np.indices((SIZE, SIZE)) - (SIZE - 1) / 2
    assert np.hypot(y, x)[damage.mask].max() < 0.33 * SIZE


def test_hopeless_defect_is_an_error(monkeypatch):
    monkeypatch.setitem(defects.DRAWERS, "hole", lambda image, generator: image)
    with pytest.raises(RuntimeError, match="No visible 'hole' defect"):
        defects.add_defect(np.zeros((32, 32, 3), np.uint8), "hole", np.random.default_rng(0), 64)


def test_written_files_are_the_samples(written_root, samples):
    folder = written_root / "coins"
    for sample in samples["coins"]:
        assert np.array_equal(np.asarray(Image.open(folder / sample.path)), sample.image)
        if sample.mask is not None:
            mask = np.asarray(Image.open(folder / sample.mask_path))
            assert np.array_equal(mask, 255 * sample.mask)
    assert sorted(path.name for path in written_root.iterdir()) == ["coins"]
    metadata = json.loads((folder / demo.METADATA).read_text())
    assert metadata["image_size"] == SIZE
    assert metadata["photograph"] == "coins.png"


def test_batches(written_root):
    datamodule = DemoAD(root=written_root, category="coins", **SMALL)
    datamodule.prepare_data()
    datamodule.setup()
    train = next(iter(datamodule.train_dataloader()))
    assert train.image.shape == (4, 3, SIZE, SIZE)
    assert not train.gt_label.any()
    batches = list(datamodule.test_dataloader())
    labels = torch.cat([batch.gt_label for batch in batches])
    masks = torch.cat([batch.gt_mask for batch in batches])
    assert labels.dtype == torch.bool
    assert labels.sum() == 24
    assert len(labels) == 36
    assert masks.shape == (36, SIZE, SIZE)
    assert torch.equal(masks.flatten(1).any(dim=1), labels)
    assert len(datamodule.val_data) == 36
    assert datamodule.category == "coins"
    assert datamodule.name == "DemoAD"


@pytest.mark.usefixtures("quick")
def test_setup_alone_writes_the_category(tmp_path):
    datamodule = DemoAD(root=tmp_path / "new" / "root", category="moon", **SMALL)
    datamodule.setup()
    assert len(datamodule.train_data) == 16
    assert len(datamodule.test_data) == 48


def test_existing_folder_is_reused(written_root):
    before = {path: path.stat().st_mtime_ns for path in written_root.rglob("*")}
    assert not demo.ensure_category(written_root, "coins", SIZE, 0)
    assert {path: path.stat().st_mtime_ns for path in written_root.rglob("*")} == before


@pytest.mark.parametrize(
    ("settings", "difference"),
    [
        ({"image_size": 128}, "image_size 96 instead of 128"),
        ({"generation_seed": 7}, "generation_seed 0 instead of 7"),
    ],
)
def test_other_settings_are_an_error(written_root, settings, difference):
    datamodule = DemoAD(root=written_root, category="coins", **(SMALL | settings))
    with pytest.raises(ValueError, match="other settings") as error:
        datamodule.prepare_data()
    assert difference in str(error.value)
    assert str(written_root / "coins") in str(error.value)
    assert "delete that folder" in str(error.value)


def test_older_version_is_an_error(written_root, monkeypatch):
    monkeypatch.setattr(demo, "VERSION", demo.VERSION + 1)
    with pytest.raises(ValueError, match=f"version {demo.VERSION - 1} instead of {demo.VERSION}"):
        DemoAD(root=written_root, category="coins", **SMALL).setup()


@pytest.mark.parametrize("content", [None, "not json", "[]"])
def test_foreign_folder_is_an_error(tmp_path, content):
    (tmp_path / "brick").mkdir()
    if content is not None:
        (tmp_path / "brick" / demo.METADATA).write_text(content)
    with pytest.raises(ValueError, match="Choose another root, or delete that folder"):
        DemoAD(root=tmp_path, category="brick", **SMALL).prepare_data()


@pytest.mark.usefixtures("quick")
def test_incomplete_folder_is_an_error(tmp_path):
    DemoAD(root=tmp_path, category="moon", **SMALL).prepare_data()
    (tmp_path / "moon" / "train" / "good" / "003.png").unlink()
    with pytest.raises(ValueError, match="87 images instead of 88"):
        DemoAD(root=tmp_path, category="moon", **SMALL).prepare_data()


@pytest.mark.parametrize("interruption", [RuntimeError, KeyboardInterrupt])
@pytest.mark.usefixtures("quick")
def test_interrupted_writing_leaves_nothing(tmp_path, monkeypatch, interruption):
    save, saved = demo.save_image, []

    def fail_later(pixels, path):
        save(pixels, path)
        saved.append(path)
        if len(saved) == 5:
            raise interruption

    monkeypatch.setattr(demo, "save_image", fail_later)
    with pytest.raises(interruption):
        DemoAD(root=tmp_path, category="grass", **SMALL).prepare_data()
    assert len(saved) == 5
    assert not list(tmp_path.iterdir())


@pytest.fixture
def before_placing(monkeypatch):
    """Have something done with the arguments of ``ensure_folder`` when the images are written but not in place yet."""
    ensure = demo.ensure_folder

    def install(act):
        def ensure_late(folder, settings, write, metadata):
            def write_and_act(written):
                extra = write(written)
                act(folder, settings, write, metadata)
                return extra

            return ensure(folder, settings, write_and_act, metadata)

        monkeypatch.setattr(demo, "ensure_folder", ensure_late)

    return install


@pytest.mark.usefixtures("quick")
def test_losing_the_race_to_an_equal_folder_is_fine(tmp_path, before_placing):
    before_placing(ensure_folder)
    assert not demo.ensure_category(tmp_path, "moon", SIZE, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["moon"]


@pytest.mark.usefixtures("quick")
def test_losing_the_race_to_a_different_folder_is_an_error(tmp_path, before_placing):
    def write_another(folder, settings, write, metadata):
        ensure_folder(folder, settings | {"generation_seed": 9}, write, metadata)

    before_placing(write_another)
    with pytest.raises(ValueError, match="generation_seed 9 instead of 0"):
        demo.ensure_category(tmp_path, "moon", SIZE, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["moon"]


@pytest.mark.usefixtures("quick")
def test_two_writers_at_once(tmp_path, before_placing):
    both_have_written = threading.Barrier(2)
    before_placing(lambda *_: both_have_written.wait(timeout=60))
    with ThreadPoolExecutor(2) as pool:
        writers = [pool.submit(demo.ensure_category, tmp_path, "moon", SIZE, 0) for _ in range(2)]
    assert sorted(writer.result() for writer in writers) == [False, True]
    assert [path.name for path in tmp_path.iterdir()] == ["moon"]
    assert not demo.ensure_category(tmp_path, "moon", SIZE, 0)


@pytest.fixture
def forgotten():
    """Take anomalib and the plugin out of the loaded modules for one test, and put them back afterwards."""

    def forget():
        names = [n for n in sys.modules if n.partition(".")[0] in {"anomalib", "anomalib_inctrl", "open_clip"}]
        return {name: sys.modules.pop(name) for name in names}

    loaded = forget()
    yield
    forget()
    sys.modules.update(loaded)


@pytest.mark.usefixtures("forgotten")
@pytest.mark.parametrize("first", ["anomalib.data", "anomalib_inctrl.data"])
def test_registers_itself_in_either_import_order(first):
    importlib.import_module(first)
    ours, theirs = importlib.import_module("anomalib_inctrl.data"), importlib.import_module("anomalib.data")
    assert ours.DemoAD is not DemoAD
    assert theirs.DemoAD is ours.DemoAD
    assert not {"anomalib.engine", "open_clip"} & sys.modules.keys()


def test_wrong_category_lists_the_categories():
    with pytest.raises(ValueError, match="Unknown category 'bottle'") as error:
        DemoAD(category="bottle")
    assert all(category in str(error.value) for category in CATEGORIES)


@pytest.mark.parametrize("arguments", [{"image_size": 0}, {"image_size": -256}, {"image_size": 63}])
def test_wrong_image_size(arguments):
    with pytest.raises(ValueError, match="image_size must be at least 64"):
        DemoAD(**arguments)


def test_negative_seed():
    with pytest.raises(ValueError, match="generation_seed must not be negative"):
        DemoAD(generation_seed=-1)


def test_missing_photograph_names_the_remedy():
    with pytest.raises(FileNotFoundError, match="Reinstall it: pip install --force-reinstall scikit-image"):
        photographs.read_photograph("no_such_photograph.png")


def test_missing_scikit_image_names_the_remedy(monkeypatch):
    monkeypatch.setattr(photographs.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="scikit-image"):
        photographs.photograph_path("brick.png")


def test_runs_without_sockets(tmp_path):
    with pytest.raises(pytest_socket.SocketBlockedError):
        socket.socket()
    assert demo.ensure_category(tmp_path, "moon", 64, 3)


def test_anomalib_finds_the_class_by_name(tmp_path):
    config = {"class_path": "DemoAD", "init_args": {"root": str(tmp_path), "category": "retina", "num_workers": 1}}
    datamodule = anomalib.data.get_datamodule(config)
    assert isinstance(datamodule, DemoAD)
    assert (Path(datamodule.root), datamodule.category) == (tmp_path, "retina")


def test_root_defaults_to_the_cache_of_anomalib(monkeypatch, tmp_path):
    monkeypatch.setattr("anomalib.utils.path.get_datasets_dir", lambda: tmp_path)
    assert DemoAD(root=None).root == tmp_path / "DemoAD"
