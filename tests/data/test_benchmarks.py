"""Benchmarks on small copies of the layouts in which their makers distribute them, and what may go wrong with these."""

from __future__ import annotations

import gzip
import io
import json
import logging
import multiprocessing
import os
import pickle
import shutil
import stat
import struct
import sys
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import anomalib.data
import anomalib.pipelines.components.base.pipeline as pipeline_base
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from anomalib.data import get_datamodule
from jsonargparse import Namespace
from PIL import Image

from anomalib_inctrl.benchmark.pipeline import FewShotBenchmark
from anomalib_inctrl.data import Aitex, AuxiliaryData, BrainMRI, Elpv, HeadCT, KolektorSDD, Mnist
from anomalib_inctrl.data.benchmarks import DATA_MODULES, UnsafeArchiveError, __main__, elpv, preparation
from anomalib_inctrl.data.benchmarks.archives import unpack
from anomalib_inctrl.prompts import class_name_of

SMALL = {"strict": False, "num_workers": 0, "eval_batch_size": 4}


# ------------------------------------------------------------------------------------------------------------ downloads
def picture(seed: int, size: tuple[int, ...] = (12, 16)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


def write(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def make_elpv(folder: Path) -> Path:
    """8 functional cells, 3 and 2 defective ones, and 4 that nobody is sure of."""
    kinds = [(0.0, "mono")] * 5 + [(0.0, "poly")] * 3 + [(1.0, "mono")] * 3 + [(1.0, "poly")] * 2
    kinds += [(1 / 3, "mono")] * 2 + [(2 / 3, "poly")] * 2
    lines = []
    for index, (probability, kind) in enumerate(kinds):
        write(folder / f"images/cell{index:04}.png", picture(index))
        lines.append(f"images/cell{index:04}.png  {probability}    {kind}\n")
    (folder / "labels.csv").write_text("".join(lines))
    return folder


def make_aitex(folder: Path) -> Path:
    """Strips of 16 x 64: three whole ones of two fabrics, and defective ones with all that is odd in the real ones."""
    for index, fabric in enumerate(("2306881-210020u", "2306881-210020u", "2608691-202020u")):
        write(folder / f"NODefect_images/{fabric}/{index:04}_000_0{index}.png", picture(index, (16, 64)))
    marks = {"0001_002_00": [(5, 8)], "0044_019_04": [(0, 4), (30, 34)], "0106_010_03": [], "0094_027_05": [(50, 55)]}
    for name, columns in marks.items():
        width = 56 if name.startswith("0094") else 64
        write(folder / f"Defect_images/{name}.png", picture(50, (16, width)))
        masks = [
            (f"{name}_mask{i + 1}" if len(columns) > 1 else f"{name}_mask", part) for i, part in enumerate(columns)
        ]
        for mask_name, part in masks or [(f"{name}_mask", (0, 0))]:
            mask = np.zeros((16, width), dtype=np.uint8)
            mask[3:9, part[0] : part[1]] = 255
            write(folder / f"Mask_images/{mask_name}.png", mask)
    write(folder / "Defect_images/0100_025_08.png", picture(60, (16, 64)))  # has no mask
    return folder


def make_brain_mri(folder: Path) -> Path:
    """9 and 5 images in several formats, all of them twice, as the archive has them."""
    for place in (folder, folder / "brain_tumor_dataset"):
        for index in range(9):
            write(place / "no" / f"{index} no.{('jpg', 'jpeg', 'png')[index % 3]}", picture(index, (14, 10, 3)))
        for index in range(5):
            write(place / "yes" / f"Y{index}.{('jpg', 'JPG')[index % 2]}", picture(index))
    write(folder / "__MACOSX/no/._0 no.png", picture(0))
    return folder


def make_head_ct(folder: Path) -> Path:
    """Numbered images, the first 6 with a haemorrhage, the other 8 without."""
    lines = ["id, hemorrhage"]
    for index in range(14):
        write(folder / f"head_ct/head_ct/{index:03}.png", picture(index))
        lines.append(f"{index},{int(index < 6)}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


def make_kolektor(folder: Path) -> Path:
    """Four images of 31 rows, two with a mark: one in the lowest third, one from the first to the second."""
    marks = {"kos01/Part0": None, "kos01/Part1": (25, 27), "kos02/Part0": (8, 12), "kos02/Part5": None}
    for index, (name, rows) in enumerate(marks.items()):
        write(folder / f"{name}.jpg", picture(index, (31, 14)))
        mask = np.zeros((31, 14), dtype=np.uint8)
        if rows:
            mask[rows[0] : rows[1], 2:5] = 255
        write(folder / f"{name}_label.bmp", mask)
    return folder


DIGITS = {"train": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9] * 2, "test": [3, 0, 4, 4, 7]}


def make_mnist(folder: Path, compressed: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split, stem in (("train", "train"), ("test", "t10k")):
        labels = np.array(DIGITS[split], dtype=np.uint8)
        images = picture(len(labels), (len(labels), 28, 28))
        content = {
            f"{stem}-images-idx3-ubyte": struct.pack(">4i", 0x803, len(labels), 28, 28) + images.tobytes(),
            f"{stem}-labels-idx1-ubyte": struct.pack(">2i", 0x801, len(labels)) + labels.tobytes(),
        }
        for name, data in content.items():
            (folder / f"{name}{'.gz' * compressed}").write_bytes(gzip.compress(data) if compressed else data)
    return folder


def make_cifar10(folder: Path, copies: int = 1) -> Path:
    for number, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        labels = [number, (number + 3) % 10, 9] * copies
        data = picture(number, (3 * copies, 3072))
        (folder / "cifar-10-batches-py").mkdir(parents=True, exist_ok=True)
        content = {
            b"batch_label": name.encode(),
            b"labels": labels,
            b"data": data,
            b"filenames": [b"a.png"] * len(labels),
        }
        (folder / "cifar-10-batches-py" / name).write_bytes(pickle.dumps(content, protocol=2))
    return folder


MAKERS = {
    "Elpv": make_elpv,
    "Aitex": make_aitex,
    "BrainMRI": make_brain_mri,
    "HeadCT": make_head_ct,
    "KolektorSDD": make_kolektor,
    "Mnist": make_mnist,
    "Cifar10": make_cifar10,
}
COUNTS = {  # train normal, test normal, test anomalous
    "Elpv": (6, 2, 5),
    "Aitex": (9, 3, 5),  # 12 squares; marks in 1, 3, 0 and 1 squares
    "BrainMRI": (6, 3, 5),
    "HeadCT": (6, 2, 6),
    "KolektorSDD": (6, 3, 3),
    "Mnist": (2, 1, 4),
    "Cifar10": (1, 0, 3),
}


@pytest.fixture(scope="module")
def downloads(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("downloads")
    return {name: make(root / name) for name, make in MAKERS.items()}


def build(name: str, root: Path, source: Path | None = None, **options):
    return DATA_MODULES[name](root=root, source=source, **SMALL | options)


@pytest.fixture(scope="module")
def prepared(downloads, tmp_path_factory) -> dict[str, Path]:
    """All of them prepared; shared, so tests only read."""
    root = tmp_path_factory.mktemp("datasets")
    for name, source in downloads.items():
        build(name, root / name, source).prepare_data()
    return {name: root / name for name in downloads}


def pixels(path: str | Path) -> np.ndarray:
    return np.asarray(Image.open(path))


# ------------------------------------------------------------------------------------------------------------ protocols
@pytest.mark.parametrize("name", list(MAKERS))
def test_splits_and_labels_follow_the_protocol(prepared, name):
    datamodule = build(name, prepared[name])
    datamodule.setup()
    train, test = datamodule.train_data.samples, datamodule.test_data.samples
    assert (train.label_index == 0).all()
    assert (len(train), int((test.label_index == 0).sum()), int((test.label_index == 1).sum())) == COUNTS[name]
    assert not set(train.image_path) & set(test.image_path)
    batch = next(iter(datamodule.test_dataloader()))
    assert batch.image.shape[1] == 3
    assert batch.gt_label.tolist() == test.label_index[:4].astype(bool).tolist()
    assert (batch.gt_mask is not None) == (name in {"Aitex", "KolektorSDD"})
    assert json.loads((prepared[name] / "prepared.json").read_text())["strict"] is False


def test_elpv_leaves_the_unsure_out_and_keeps_pixels(prepared, downloads):
    files = sorted(prepared["Elpv"].rglob("*.png"))
    assert Counter(file.parent.name for file in files) == {"good": 8, "mono": 3, "poly": 2}
    for file in files:
        assert np.array_equal(pixels(file), pixels(downloads["Elpv"] / "images" / file.name))


def test_aitex_squares_and_masks_are_cut_alike(prepared, downloads):
    root, source = prepared["Aitex"], downloads["Aitex"]
    found = {
        str(file.relative_to(root / "test")) for file in (root / "test").rglob("*.png") if "good" not in file.parts
    }
    assert found == {
        "broken_end/0001_002_00_00.png",
        "fuzzyball/0044_019_04_00.png",  # marked by the first of its two masks
        "fuzzyball/0044_019_04_01.png",  # by the second, which reaches over the border of two squares
        "fuzzyball/0044_019_04_02.png",
        "knots/0094_027_05_03.png",
    }
    strip = pixels(source / "Defect_images/0094_027_05.png")
    assert np.array_equal(pixels(root / "test/knots/0094_027_05_03.png"), strip[:, 48:])  # the strip's narrow rest
    mask = pixels(source / "Mask_images/0001_002_00_mask.png")
    assert np.array_equal(pixels(root / "ground_truth/broken_end/0001_002_00_00_mask.png"), mask[:, :16])
    assert json.loads((root / "prepared.json").read_text())["without_mask"] == ["0100_025_08.png"]


def test_kolektor_thirds_and_masks_are_cut_alike(prepared, downloads):
    root, source = prepared["KolektorSDD"], downloads["KolektorSDD"]
    assert sorted(file.name for file in (root / "test/defect").iterdir()) == [
        "kos01_Part1_2.png", "kos02_Part0_0.png", "kos02_Part0_1.png",
    ]  # fmt: skip
    image = pixels(source / "kos02/Part0.jpg")
    assert np.array_equal(pixels(root / "test/defect/kos02_Part0_1.png"), image[10:20])
    mask = pixels(root / "ground_truth/defect/kos02_Part0_1_mask.png")
    assert np.argwhere(mask.any(axis=1)).flatten().tolist() == [0, 1]


def test_brain_images_count_once_and_keep_pixels(prepared, downloads):
    files = sorted((prepared["BrainMRI"]).rglob("*.png"))
    assert len(files) == 14
    expected = pixels(downloads["BrainMRI"] / "no/0 no.jpg")
    assert np.array_equal(pixels(next(f for f in files if f.name == "0 no.jpg.png")), expected)


def test_head_ct_follows_the_labels(prepared):
    names = sorted(file.stem for file in (prepared["HeadCT"] / "test/haemorrhage").iterdir())
    assert names == [f"{index:03}" for index in range(6)]


@pytest.mark.parametrize("name", ["Elpv", "Aitex", "BrainMRI", "HeadCT", "KolektorSDD"])
def test_the_split_is_the_same_wherever_it_is_made(downloads, prepared, name, tmp_path):
    copy = shutil.copytree(downloads[name], tmp_path / "elsewhere")
    build(name, tmp_path / "datasets", copy).prepare_data()

    def list_files(root: Path) -> list[Path]:
        return sorted(file.relative_to(root) for file in root.rglob("*.png"))

    assert list_files(tmp_path / "datasets") == list_files(prepared[name])


def test_mnist_one_vs_all_and_several(prepared):
    three = build("Mnist", prepared["Mnist"], category="3")
    three.setup()
    assert three.category == "3"
    assert class_name_of(three) == "digit 3"
    test = three.test_data.samples
    assert {row.object_class: row.label_index for row in test.itertuples()} == {"0": 1, "3": 0, "4": 1, "7": 1}
    assert set(three.train_data.samples.object_class) == {"3"}

    even = build("Mnist", prepared["Mnist"], protocol="multiclass")
    even.setup()
    assert class_name_of(even) == "even digit"
    assert even.category == "0+2+4+6+8"
    assert Counter(even.train_data.samples.object_class) == dict.fromkeys("02468", 2)
    test = even.test_data.samples
    assert {row.object_class: row.label_index for row in test.itertuples()} == {"0": 0, "3": 1, "4": 0, "7": 1}
    own = build("Mnist", prepared["Mnist"], protocol="multiclass", normal_classes=["3", "7"], class_name="number")
    own.setup()
    assert int((own.test_data.samples.label_index == 0).sum()) == 2
    assert (own.category, class_name_of(own)) == ("3+7", "number")


def test_mnist_pixels_and_labels_belong_together(prepared):
    images = picture(len(DIGITS["test"]), (len(DIGITS["test"]), 28, 28))
    for index, digit in enumerate(DIGITS["test"]):
        assert np.array_equal(pixels(prepared["Mnist"] / f"test/{digit}/{index:05}.png"), images[index])


def test_cifar10_one_vs_all_and_several(prepared):
    root = prepared["Cifar10"]
    planes = picture(5, (3, 3072)).reshape(3, 3, 32, 32)  # of the test batch, labels dog, ship and truck
    assert np.array_equal(pixels(root / "test/ship/00001.png"), planes[1].transpose(1, 2, 0))
    truck = build("Cifar10", root, category="truck")
    truck.setup()
    assert len(truck.train_data.samples) == 5
    assert class_name_of(truck) == "truck"
    animals = build("Cifar10", root, protocol="multiclass")
    animals.setup()
    assert class_name_of(animals) == "animal"
    assert set(animals.train_data.samples.object_class) == {"bird", "cat", "deer", "dog", "frog", "horse"}
    assert {r.object_class: r.label_index for r in animals.test_data.samples.itertuples()} == {
        "dog": 0, "ship": 1, "truck": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"category": "10"}, r"Normal classes must be some, not all, of 0, 1, .*9; got 10"),
        ({"protocol": "multiclass", "normal_classes": list("0123456789")}, "some, not all"),
        ({"protocol": "several"}, "protocol must be 'one_vs_all' or 'multiclass', got 'several'"),
    ],
)
def test_classes_that_do_not_exist_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Mnist(**options)


@pytest.mark.parametrize(
    ("kind", "class_name"),
    [(Elpv, "solar cell"), (Aitex, "fabric"), (BrainMRI, "brain"), (HeadCT, "head"), (KolektorSDD, "commutator")],
)
def test_prompts_say_what_the_images_show(kind, class_name):
    assert class_name_of(kind()) == class_name
    assert class_name_of(kind(class_name="thing")) == "thing"
    assert getattr(anomalib.data, kind.__name__) is kind


TINY_TIMM = {"backbone": "inctrl_tiny", "layers": ["blocks.4", "blocks.5"]}
SMALL_MODELS = {  # what takes the place of the published backbones and of weights that are trained on the real data
    "Padim": TINY_TIMM | {"n_features": 20},
    "Patchcore": TINY_TIMM | {"coreset_sampling_ratio": 1.0},
    "CoOp": {"backbone": "inctrl-tiny", "weights": "random", "n_context": 2},
    "InCTRL": {"backbone": "inctrl-tiny"},
    "Spade": {"backbone": "inctrl-tiny"},
    "ClipZeroShot": {"backbone": "inctrl-tiny"},
    "CorrectedWinClip": {"backbone": "inctrl-tiny", "scales": [3]},
}


def write_split(folder: Path) -> None:
    """A category in MVTec AD's layout, which VisA is brought into as well."""
    for i in range(3):
        write(folder / f"train/good/{i}.png", picture(i, (32, 32, 3)))
    for i, kind in enumerate(("good", "bad")):
        write(folder / f"test/{kind}/0.png", picture(10 + i, (32, 32, 3)))
    write(folder / "ground_truth/bad/0_mask.png", np.pad(np.full((8, 8), 255, np.uint8), 12))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_configuration_of_table_1_runs_on_small_copies(prepared, tmp_path, monkeypatch):
    """Every data set, method and protocol of the file; the first category of each, K = 0 and 2, one draw."""
    monkeypatch.setattr(pipeline_base, "redirect_logs", lambda _: None)
    monkeypatch.chdir(tmp_path)
    write_split(tmp_path / "mvtec/bottle")
    write_split(tmp_path / "visa/visa_pytorch/candle")
    cifar10 = tmp_path / "cifar10"  # with more images of every class
    build("Cifar10", cifar10, make_cifar10(tmp_path / "download", copies=4)).prepare_data()
    roots = {**prepared, "MVTecAD": tmp_path / "mvtec", "Visa": tmp_path / "visa", "Cifar10": cifar10}
    config = yaml.safe_load(Path(__file__).parents[2].joinpath("configs/benchmark_inctrl_table1.yaml").read_text())
    config["accelerator"] = "cpu"
    section = config["few_shot_benchmark"] | {"shots": [0, 2], "seeds": [0], "output": str(tmp_path / "results")}
    for entry in section["data"]:
        strict = {"strict": False} if entry["class_path"] in DATA_MODULES else {}
        entry["init_args"] = {**entry.get("init_args", {}), "root": str(roots[entry["class_path"]]), **strict}
        chosen = ["dog"] if entry["class_path"] == "Cifar10" else entry.get("categories", [])  # a dog is tested
        entry["categories"] = chosen[:1] if "categories" in entry else []
        entry.pop("model_args", None)
    section["models"] = [m for m in section["models"] if m["class_path"] != "WinClip"]  # its backbone can't be chosen
    for entry in section["models"]:
        weights = {"weights": "inctrl-tiny"} if entry["name"] == "InCTRL" else {}
        entry["init_args"] = {**entry.get("init_args", {}), **SMALL_MODELS[entry["class_path"]], **weights}
        if entry["class_path"] in {"Padim", "Patchcore"}:
            entry["image_size"] = [112, 112]
    file = tmp_path / "table1.yaml"
    file.write_text(yaml.safe_dump(config | {"few_shot_benchmark": section}))
    FewShotBenchmark().run(Namespace(config=file))

    results = pd.read_csv(tmp_path / "results/results.csv")
    assert set(results.data) == {entry["name"] for entry in section["data"]}
    assert len(set(results.data)) == 9 + 2  # the nine, and two of them in the multi-class protocol
    assert len(results) == 11 * (2 + 6)  # two methods without references, six with them
    assert results.error.isna().all()
    assert results.image_AUROC.between(0, 1).all()
    with_references = results[results.k_shot == 2].groupby(["data", "category"], dropna=False)
    assert (with_references.reference_sha256.nunique() == 1).all()
    published = pd.read_csv(tmp_path / "results/published.csv")
    assert set(published.data) >= {"ELPV", "VisA", "MVTec AD", "CIFAR-10"}
    assert (tmp_path / "results/report.html").stat().st_size > 10_000


def test_configurations_find_them(prepared):
    for name in DATA_MODULES:
        found = get_datamodule({"class_path": name, "init_args": {"root": str(prepared[name]), "strict": False}})
        assert type(found).__name__ == name
    parts = [build("Elpv", prepared["Elpv"]), build("HeadCT", prepared["HeadCT"])]
    pooled = AuxiliaryData(parts, batch_size=4, steps_per_epoch=1, k_shots=[1], validation_share=0)
    pooled.setup()
    assert pooled.train_pool.categories == ["Elpv", "HeadCT"]
    assert {image.class_name for image in pooled.train_pool.images} == {"solar cell", "head"}


# --------------------------------------------------------------------------------------------------- forms of downloads
def pack(folder: Path, archive: Path) -> Path:
    """Pack the content of a folder by the archive's suffix."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as file:
            for path in files:
                file.write(path, path.relative_to(folder))
    else:
        with tarfile.open(archive, "w:gz") as file:
            file.add(folder, "content")
    return archive


@pytest.mark.parametrize(
    ("name", "suffix"),
    [("Elpv", ".zip"), ("BrainMRI", ".zip"), ("HeadCT", ".tar.gz"), ("Cifar10", ".tar.gz"), ("KolektorSDD", ".zip")],
)
def test_an_archive_gives_what_its_folder_gives(downloads, prepared, name, suffix, tmp_path):
    archive = pack(downloads[name], tmp_path / f"download{suffix}")
    build(name, tmp_path / "datasets", archive).prepare_data()
    for file in sorted(prepared[name].rglob("*.png")):
        assert (tmp_path / "datasets" / file.relative_to(prepared[name])).read_bytes() == file.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["datasets", archive.name]  # nothing unpacked is left


def test_aitex_as_three_7z_archives(downloads, prepared, tmp_path):
    py7zr = pytest.importorskip("py7zr")
    (tmp_path / "download").mkdir()
    for part in ("NODefect_images", "Defect_images", "Mask_images"):
        with py7zr.SevenZipFile(tmp_path / "download" / f"{part}.7z", "w") as file:
            file.writeall(downloads["Aitex"] / part, part)
    build("Aitex", tmp_path / "datasets", tmp_path / "download").prepare_data()
    names = sorted(file.name for file in (tmp_path / "datasets").rglob("*.png"))
    assert names == sorted(file.name for file in prepared["Aitex"].rglob("*.png"))


def test_7z_without_py7zr_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "a.7z").write_bytes(b"7z")
    monkeypatch.setitem(sys.modules, "py7zr", None)
    with pytest.raises(ModuleNotFoundError, match=r"takes py7zr: pip install 'anomalib-inctrl\[benchmarks\]'"):
        unpack(tmp_path / "a.7z", tmp_path / "out")


def test_head_ct_as_labels_beside_an_archive(downloads, prepared, tmp_path):
    source = tmp_path / "download"
    source.mkdir()
    shutil.copy(downloads["HeadCT"] / "labels.csv", source)
    pack(downloads["HeadCT"] / "head_ct", source / "head_ct.zip")
    build("HeadCT", tmp_path / "datasets", source).prepare_data()
    assert len(list((tmp_path / "datasets").rglob("*.png"))) == len(list(prepared["HeadCT"].rglob("*.png")))


def test_mnist_as_torchvision_leaves_it(prepared, tmp_path):
    make_mnist(tmp_path / "download/MNIST/raw", compressed=False)
    build("Mnist", tmp_path / "datasets", tmp_path / "download").prepare_data()
    for file in prepared["Mnist"].rglob("*.png"):
        assert (tmp_path / "datasets" / file.relative_to(prepared["Mnist"])).read_bytes() == file.read_bytes()


# ----------------------------------------------------------------------------------------------------- what goes wrong
@pytest.mark.parametrize("name", list(MAKERS))
def test_a_missing_download_says_where_to_get_it(name, tmp_path):
    benchmark = DATA_MODULES[name].benchmark
    for source in (None, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError) as caught:
            build(name, tmp_path / "datasets", source).prepare_data()
        assert benchmark.place in str(caught.value)
        assert benchmark.files in str(caught.value)
        assert f"prepare {name} --source" in str(caught.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="does not hold what is needed"):
        build(name, tmp_path / "datasets", tmp_path / "empty").prepare_data()
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


WRONG = {
    "Elpv": "17 images instead of 2624, 8 functional cells instead of 1508, 5 defective cells instead of 715",
    "Aitex": "3 strips without defects instead of 140 or 141, 5 strips with defects instead of 105 or 106, 5 masks",
    "BrainMRI": "9 images without tumour instead of 98, 5 images with tumour instead of 155",
    "HeadCT": "8 images without haemorrhage instead of 100, 6 images with haemorrhage instead of 100",
    "KolektorSDD": "4 images instead of 399",
    "Mnist": "20 train images instead of 60000, 5 test images instead of 10000",
    "Cifar10": "15 train images instead of 50000, 3 test images instead of 10000",
}


@pytest.mark.parametrize("name", list(MAKERS))
def test_counts_other_than_the_published_are_refused(downloads, name, tmp_path):
    with pytest.raises(ValueError, match="strict=False") as caught:
        build(name, tmp_path / "datasets", downloads[name], strict=True).prepare_data()
    assert WRONG[name] in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_partial_copy_is_taken_on_purpose_and_told_apart(downloads, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        build("BrainMRI", tmp_path / "datasets", downloads["BrainMRI"]).prepare_data()
    assert "9 images without tumour instead of 98" in caplog.text
    assert "6 images in train normal, where the paper's protocol has 73" in caplog.text
    with pytest.raises(ValueError, match="was written with other settings: strict False instead of True"):
        build("BrainMRI", tmp_path / "datasets", strict=True).prepare_data()


def test_nothing_is_taken_from_a_download_without_normal_images(downloads, tmp_path):
    source = shutil.copytree(downloads["BrainMRI"], tmp_path / "download")
    for folder in (source / "no", source / "brain_tumor_dataset/no"):
        shutil.rmtree(folder)
        folder.mkdir()
    with pytest.raises(ValueError, match="0 images without tumour instead of 98"):
        build("BrainMRI", tmp_path / "datasets", source).prepare_data()


def test_prepared_images_need_no_download_and_missing_ones_are_noticed(downloads, tmp_path):
    source = shutil.copytree(downloads["HeadCT"], tmp_path / "download")
    build("HeadCT", tmp_path / "datasets", source).prepare_data()
    shutil.rmtree(source)
    datamodule = build("HeadCT", tmp_path / "datasets")
    datamodule.prepare_data()
    next((tmp_path / "datasets").rglob("*.png")).unlink()
    with pytest.raises(ValueError, match=r"holds 13 images instead of 14\. Choose another root, or delete"):
        datamodule.prepare_data()
    (tmp_path / "own").mkdir()
    with pytest.raises(ValueError, match="exists but was not written by HeadCT"):
        build("HeadCT", tmp_path / "own", downloads["HeadCT"]).prepare_data()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("images/cell0000.png 0.0", "line 1: expected 'path probability mono"),
        ("images/cell0000.png zero mono", "line 1: expected"),
        ("images/cell0000.png 0.0 glass", "line 1: the kind of cell must be one of"),
        ("../../secret.png 0.0 mono", "line 1: expected"),
    ],
)
def test_labels_of_another_form_are_refused(downloads, tmp_path, line, message):
    source = shutil.copytree(downloads["Elpv"], tmp_path / "download")
    (source / "labels.csv").write_text(line + "\n")
    with pytest.raises(ValueError, match=message):
        build("Elpv", tmp_path / "datasets", source).prepare_data()


def damage_elpv(source: Path) -> str:
    (source / "images/cell0003.png").write_bytes(b"no image")
    return r"cell0003\.png can't be read as an image"


def damage_aitex(source: Path) -> str:
    write(source / "Mask_images/0001_002_00_mask.png", np.zeros((16, 60), dtype=np.uint8))
    return r"The mask .*0001_002_00_mask\.png is \(60, 16\), its strip .* \(64, 16\)"


def damage_aitex_name(source: Path) -> str:
    (source / "Defect_images/0001_002_00.png").rename(source / "Defect_images/0001_999_00.png")
    (source / "Mask_images/0001_002_00_mask.png").rename(source / "Mask_images/0001_999_00_mask.png")
    return r"0001_999_00\.png is not named 'number_defect_fabric'"


def damage_head_ct(source: Path) -> str:
    (source / "labels.csv").write_text("id, hemorrhage\n0,2\n")
    return r"labels\.csv, line 2: expected 'id,hemorrhage' as numbers, got '0,2'"


def damage_kolektor(source: Path) -> str:
    write(source / "kos01/Part0_label.bmp", np.zeros((30, 14), dtype=np.uint8))
    return r"The mask .*Part0_label\.bmp is \(14, 30\), its image \(14, 31\)"


def damage_mnist(source: Path) -> str:
    (source / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(struct.pack(">4i", 0x803, 20, 28, 28)))
    return r"train-images-idx3-ubyte\.gz or its labels can't be read"


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("owned",)


def damage_cifar10(source: Path) -> str:
    content = {b"data": picture(0, (3, 3072)), b"labels": [0, 1, 2], b"filenames": Malicious()}
    (source / "cifar-10-batches-py/test_batch").write_bytes(pickle.dumps(content, protocol=2))
    return r"test_batch can't be read: UnpicklingError: it refers to \w+\.mkdir"


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("Elpv", damage_elpv),
        ("Aitex", damage_aitex),
        ("Aitex", damage_aitex_name),
        ("HeadCT", damage_head_ct),
        ("KolektorSDD", damage_kolektor),
        ("Mnist", damage_mnist),
        ("Cifar10", damage_cifar10),
    ],
)
def test_damaged_files_are_named_and_nothing_is_left(downloads, name, damage, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = damage(shutil.copytree(downloads[name], tmp_path / "download"))
    with pytest.raises(ValueError, match=message):
        build(name, tmp_path / "datasets", tmp_path / "download").prepare_data()
    assert [path.name for path in tmp_path.iterdir()] == ["download"]


def _prepare_and_hang(source: Path, root: Path, started) -> None:
    copy_image = elpv.copy_image

    def hang(file: Path, folder: Path) -> Path:
        copy_image(file, folder)
        started.set()
        multiprocessing.Event().wait()
        return file

    elpv.copy_image = hang
    build("Elpv", root, source).prepare_data()


@pytest.mark.skipif(os.name != "posix", reason="kills a forked process")
def test_killed_halfway_leaves_no_data_set_and_the_next_run_tidies_up(downloads, prepared, tmp_path):
    context = multiprocessing.get_context("fork")
    started = context.Event()
    child = context.Process(target=_prepare_and_hang, args=(downloads["Elpv"], tmp_path / "datasets", started))
    child.start()
    try:
        assert started.wait(60)
        assert not (tmp_path / "datasets").exists()
        hidden = [path.name for path in tmp_path.iterdir()]
        assert len(hidden) == 2
        assert all(name.startswith(".datasets-") for name in hidden)  # images so far, and room for archives
    finally:
        child.kill()
        child.join()
    assert not (tmp_path / "datasets").exists()
    build("Elpv", tmp_path / "datasets", downloads["Elpv"]).prepare_data()
    assert [path.name for path in tmp_path.iterdir()] == ["datasets"]
    assert len(list((tmp_path / "datasets").rglob("*.png"))) == len(list(prepared["Elpv"].rglob("*.png")))


def test_what_other_processes_are_writing_is_left_alone(downloads, tmp_path):
    with preparation.temporary_beside(tmp_path / "datasets") as mine:
        build("Elpv", tmp_path / "datasets", downloads["Elpv"]).prepare_data()
        assert mine.is_dir()


# ------------------------------------------------------------------------------------------------------------- archives
def tar_with(path: Path, *entries: tuple[str, bytes | None, bytes]) -> Path:
    """A tar archive of entries: name, content or ``None``, type."""
    with tarfile.open(path, "w") as file:
        for name, content, kind in entries:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            info.size = len(content) if content is not None else 0
            file.addfile(info, io.BytesIO(content) if content is not None else None)
    return path


def zip_with(path: Path, *entries: tuple[str, bytes, int]) -> Path:
    """A zip archive of entries: name, content, Unix file type."""
    with zipfile.ZipFile(path, "w") as file:
        for name, content, kind in entries:
            info = zipfile.ZipInfo(name)
            info.external_attr = (kind | 0o644) << 16
            file.writestr(info, content)
    return path


OUTSIDE = ["../evil.txt", "a/../../evil.txt", "/tmp/evil.txt", "..\\evil.txt", "C:\\evil.txt", "C:evil.txt"]  # noqa: S108


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("kind", ["tar", "zip", "7z"])
def test_paths_out_of_the_folder_are_refused(tmp_path, name, kind, monkeypatch):
    archive = tmp_path / f"a.{kind}"
    if kind == "tar":
        tar_with(archive, ("fine.txt", b"1", tarfile.REGTYPE), (name, b"1", tarfile.REGTYPE))
    elif kind == "zip":
        zip_with(archive, ("fine.txt", b"1", stat.S_IFREG), (name, b"1", stat.S_IFREG))
    else:
        py7zr = pytest.importorskip("py7zr")
        monkeypatch.setattr("py7zr.py7zr.check_archive_path", lambda _name: True)
        with py7zr.SevenZipFile(archive, "w") as file:
            file.writestr(b"1", "fine.txt")
            file.writestr(b"1", name)
    with pytest.raises(UnsafeArchiveError, match="lies outside of the archive's own folder"):
        unpack(archive, tmp_path / "deep/out")
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == [archive.name]
    assert not Path("/tmp/evil.txt").exists()  # noqa: S108


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_tar_archives_are_refused(tmp_path, kind):
    archive = tar_with(tmp_path / "a.tar", ("images", None, kind), ("images/evil.txt", b"1", tarfile.REGTYPE))
    with pytest.raises(UnsafeArchiveError, match="'images' is a link or device, no file"):
        unpack(archive, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_links_in_zip_and_7z_archives_are_refused(tmp_path):
    archive = zip_with(tmp_path / "a.zip", ("images", b"/etc", stat.S_IFLNK))
    with pytest.raises(UnsafeArchiveError, match="is a link or device"):
        unpack(archive, tmp_path / "out")
    py7zr = pytest.importorskip("py7zr")
    folder = tmp_path / "folder"
    write(folder / "a.png", picture(0))
    (folder / "link").symlink_to("a.png")
    with py7zr.SevenZipFile(tmp_path / "a.7z", "w") as file:
        file.writeall(folder, "folder")
    with pytest.raises(UnsafeArchiveError, match="'folder/link' is a link or device"):
        unpack(tmp_path / "a.7z", tmp_path / "out7")


@pytest.mark.parametrize(("first", "second"), [("a.txt", "a.txt"), ("a.txt", "A.txt"), ("./a.txt", "a.txt")])
def test_nothing_is_written_twice(tmp_path, first, second):
    archive = tar_with(tmp_path / "a.tar", (first, b"1", tarfile.REGTYPE), (second, b"2", tarfile.REGTYPE))
    with pytest.raises(UnsafeArchiveError, match="two of its entries are for the same place"):
        unpack(archive, tmp_path / "out")
    archive = tar_with(tmp_path / "b.tar", ("a", b"1", tarfile.REGTYPE), ("a/b", b"2", tarfile.REGTYPE))
    with pytest.raises(UnsafeArchiveError, match="'a' is a file and a folder at once"):
        unpack(archive, tmp_path / "out_b")
    with pytest.raises(FileExistsError):
        unpack(archive, tmp_path / "out")


def test_more_than_the_disk_has_room_for_is_refused(tmp_path, monkeypatch):
    archive = zip_with(tmp_path / "a.zip", ("a.txt", b"1" * 5000, stat.S_IFREG))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=4999))
    with pytest.raises(UnsafeArchiveError, match="has room for"):
        unpack(archive, tmp_path / "out")


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz", "a.tar", "a.7z"])
def test_damaged_archives_are_named(tmp_path, name):
    if name == "a.7z":
        pytest.importorskip("py7zr")
    (tmp_path / name).write_bytes(b"neither this nor that")
    with pytest.raises(ValueError, match=rf"{name} can't be unpacked: .* Download it again"):
        unpack(tmp_path / name, tmp_path / "out")


def test_an_unsafe_download_leaves_nothing(downloads, tmp_path):
    archive = pack(downloads["Elpv"], tmp_path / "download.zip")
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr("../../evil.txt", b"1")
    with pytest.raises(UnsafeArchiveError):
        build("Elpv", tmp_path / "datasets", archive).prepare_data()
    assert [path.name for path in tmp_path.iterdir()] == ["download.zip"]


# -------------------------------------------------------------------------------------------------------------- command
def test_command_prepares_lists_and_explains(downloads, tmp_path, capsys):
    __main__.prepare("headct", downloads["HeadCT"], tmp_path / "datasets", strict=False)
    __main__.prepare("HeadCT", None, tmp_path / "datasets", strict=False)
    assert capsys.readouterr().out == f"Prepared {tmp_path / 'datasets'}.\nFound {tmp_path / 'datasets'}.\n"
    __main__.show()
    listed = capsys.readouterr().out
    assert all(module.benchmark.place in listed for module in DATA_MODULES.values())
    for arguments, message in (
        (("Elpv", None, tmp_path / "none"), "Download it from https://github.com/zae-bayern/elpv-dataset"),
        (("ImageNet",), r"There is no benchmark 'ImageNet'; there are Aitex, BrainMRI"),
        (("HeadCT", downloads["HeadCT"], tmp_path / "new"), "8 images without haemorrhage instead of 100"),
    ):
        with pytest.raises(SystemExit, match=message):
            __main__.prepare(*arguments)


def test_a_mixed_batch_of_sizes_can_be_loaded(prepared):
    datamodule = build("KolektorSDD", prepared["KolektorSDD"])
    datamodule.setup()
    masks = torch.cat([batch.gt_mask.flatten() for batch in datamodule.test_dataloader()])
    assert 0 < int(masks.sum()) < masks.numel()
