"""The two-graph export and its runtime: as eager, references swapped without torch, each reads the other's banks."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anomalib_inctrl.calibration import UNKNOWN
from anomalib_inctrl.post_processing import InContextPostProcessor
from anomalib_inctrl.runtime import Bank, InContextDetector
from anomalib_inctrl.runtime import __main__ as command_line
from anomalib_inctrl.runtime.detector import Features
from anomalib_inctrl.runtime_export import export_checkpoint, export_runtime, load_bank, save_bank

TOLERANCE = 1e-4
BOLT, LEAF = 90.0, 170.0  # tones of the two categories


def images_of(kit, tone=BOLT, count=3, seed=0, size=(96, 128)):
    return [kit.texture(seed + i, size, tone) for i in range(count)]


def as_batch(images):
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255


@pytest.fixture(scope="module", params=["none"])
def model(request, kit, normals):
    """InCTRLv2 in the full formula with heads that tell images apart, two references and a threshold from them."""
    model = kit.build(
        "InCTRLv2",
        weights="random",
        few_shot_source=normals,
        class_name="bolt",
        geometry="squash",
        reference_views=request.param,
        residual_smoothing=0.5,
    )
    torch.manual_seed(0)
    for name, parameter in model.model.named_parameters():
        if not name.startswith("backbone."):
            torch.nn.init.normal_(parameter, std=0.2)
    model.eval()
    model._prepare_export()
    return model


@pytest.fixture(scope="module")
def export(model, tmp_path_factory):
    """Export for both engines; tests with banks of their own name another directory for them."""
    return export_runtime(model, tmp_path_factory.mktemp("export"), ["object", "leaf"], ["onnx", "openvino"])


@pytest.fixture
def detector(export, tmp_path):
    return InContextDetector(export, tmp_path / "banks", engine="onnx", threads=1)


def same(found, expected, tolerance=TOLERANCE):
    """Compare predictions with what eager says of the same images."""
    assert np.abs(np.array([p.pred_score for p in found]) - expected.pred_score.numpy()).max() < tolerance
    maps = expected.anomaly_map[:, 0].numpy()
    assert np.abs(np.stack([p.anomaly_map for p in found]) - maps).max() < tolerance
    assert [p.pred_label for p in found] == expected.pred_label.tolist()
    masks = expected.pred_mask[:, 0].numpy() if expected.pred_mask.ndim == 4 else expected.pred_mask.numpy()
    certain = np.abs(maps - 0.5) > tolerance
    assert (np.stack([p.pred_mask for p in found]) == masks)[certain].all()


# --------------------------------------------------------------------------------------------------- as the torch model
@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_scores_as_eager(model, export, kit, engine):
    """Other images, batch sizes and image sizes than traced; references and threshold are those of torch."""
    detector = InContextDetector(export, engine=engine, threads=1)
    for count, size in ((1, (96, 128)), (5, (60, 50)), (2, (130, 300)), (3, (kit.side, kit.side))):
        images = [kit.with_square(image, 20, 20, 25)[0] for image in images_of(kit, count=count, seed=40, size=size)]
        with torch.no_grad():
            same(detector.predict(images, batch_size=4), model(as_batch(images)))


@pytest.mark.parametrize("name", ["InCTRL"], indirect=True)
def test_checkpoint_scores_as_eager(trained, kit, tmp_path, root):
    """Training-free InCTRL with the centre crop, exported from a checkpoint whose threshold is of validation data."""
    folder = export_checkpoint(tmp_path / "export", trained.checkpoint)
    files = sorted((root / "bolt/test").rglob("*.png"))
    found = InContextDetector(folder, threads=1).predict(files)
    with torch.no_grad():
        same(found, trained.model.eval()(as_batch([np.asarray(Image.open(file)) for file in files])))
    assert [p.name for p in found] == [str(file) for file in files]
    assert [p.category for p in found] == ["bolt"] * len(files)
    names = InContextDetector(folder).bank("bolt").names
    assert sorted(names) == sorted(trained.model.reference_record["files"]["bolt"])


@pytest.mark.parametrize("model", ["none", "shifted"], indirect=True)
def test_bank_of_the_runtime_serves_torch(model, detector, kit, export, tmp_path):
    """Same references, same threshold, same scores; torch's own features of the same images are the same as well."""
    references, queries = images_of(kit, count=4, size=(70, 90)), images_of(kit, LEAF, seed=50)
    bank = detector.add_references("leaf", references)
    assert (bank.class_name, bank.count, bank.names[0]) == ("leaf", 4, "image 0")
    torch_made = tmp_path / "torch.safetensors"
    state = model.model.references.state_dict(), model.post_processor.statistics
    try:
        load_bank(model, tmp_path / "banks/leaf.safetensors")
        with torch.no_grad():
            same(detector.predict(queries), model(as_batch(queries)))
        assert model.model.references.class_names == ["leaf"]
        calibrated = InContextPostProcessor()
        normals = model.model.score_normals()
        calibrated.calibrate(normals.score, normals.anomaly_map)
        assert calibrated.statistics == pytest.approx(bank.statistics, abs=1e-5)
        with torch.no_grad():
            model.model.set_references(model.pre_processor(as_batch(references)), "leaf")
        model.post_processor.statistics = calibrated.statistics
        ours = Bank.load(save_bank(model, torch_made), detector.model["fingerprint"])
    finally:
        model.model.references.load_state_dict(state[0])
        model.post_processor.statistics = state[1]
    for tensor in ("patches", "pooled", "prototypes"):
        assert np.abs(getattr(ours, tensor) - getattr(bank, tensor)).max() < 1e-5, tensor
    assert np.abs(ours.pictures.astype(int) - bank.pictures).max() <= 1  # rounding of halves
    assert (ours.origins == bank.origins).all()
    assert ours.routing_limit == pytest.approx(bank.routing_limit, abs=1e-5)


@pytest.mark.parametrize("model", ["none", "shifted"], indirect=True)
def test_single_reference_is_calibrated_as_in_torch(model, detector, kit, tmp_path, caplog):
    bank = detector.add_references("single", images_of(kit, count=1))
    assert "single reference" in caplog.text
    state, statistics = model.model.references.state_dict(), model.post_processor.statistics
    try:
        load_bank(model, tmp_path / "banks/single.safetensors")
        normals = model.model.score_normals()
        model.post_processor.calibrate(normals.score, normals.anomaly_map)
        assert model.post_processor.statistics == pytest.approx(bank.statistics, abs=1e-5)
    finally:
        model.model.references.load_state_dict(state)
        model.post_processor.statistics = statistics


# ----------------------------------------------------------------------------------------------------------- references
def test_order_of_references_changes_nothing(detector, kit):
    references, queries = images_of(kit, count=4), images_of(kit, seed=60)
    detector.add_references("one", references)
    detector.add_references("other", references[2:])
    detector.add_references("other", references[:2])
    assert detector.bank("one").statistics == pytest.approx(detector.bank("other").statistics, abs=1e-6)
    for one, other in zip(detector.predict(queries, "one"), detector.predict(queries, "other"), strict=True):
        assert one.pred_score == pytest.approx(other.pred_score, abs=1e-5)
        assert np.abs(one.anomaly_map - other.anomaly_map).max() < 1e-5


def test_removing_undoes_adding(detector, kit, normals):
    files = sorted(normals.iterdir())[:3]
    before = detector.add_references("bolt", files[:2])
    detector.add_references("bolt", files[2:])
    after = detector.remove_references("bolt", [str(files[2])])
    for tensor in ("patches", "origins", "pooled", "pictures"):
        assert (getattr(before, tensor) == getattr(after, tensor)).all(), tensor
    assert after.names == before.names == tuple(map(str, files[:2]))
    assert after.statistics == before.statistics
    with pytest.raises(ValueError, match=r"leave 'bolt' empty: remove_category\('bolt'\)"):
        detector.remove_references("bolt", list(after.names))
    detector.remove_category("bolt")
    assert detector.categories == []


def test_categories_are_read_once_and_do_not_mix(detector, kit, export, tmp_path, monkeypatch):
    queries = images_of(kit, seed=70)
    for category, tone in (("bolt", BOLT), ("leaf", LEAF)):
        detector.add_references(category, images_of(kit, tone))
    scores = {name: [p.pred_score for p in detector.predict(queries, name)] for name in ("bolt", "leaf")}
    assert scores["bolt"] != scores["leaf"]
    reads, load = [], Bank.load
    monkeypatch.setattr(Bank, "load", lambda path, fingerprint: reads.append(path.stem) or load(path, fingerprint))
    fresh = InContextDetector(export, tmp_path / "banks", threads=1)
    for name in ("leaf", "bolt", "leaf", "bolt"):
        assert [p.pred_score for p in fresh.predict(queries, name)] == scores[name]
    assert reads == ["leaf", "bolt"]


def test_routing_by_the_nearest_reference(detector):
    """Two banks at right angles: near one, near the other, between both."""
    width, blank = detector.model["embed_dim"], detector._empty_bank("object")
    axes = np.eye(width, dtype=np.float32)
    patches = np.ones((1, len(detector.model["layers"]), 4, detector.model["width"]), dtype=np.float32)
    for i, category in enumerate(("first", "second")):
        bank = blank.add(patches, axes[i : i + 1], np.zeros((1, *blank.pictures.shape[1:]), np.uint8), ["r"])
        detector._keep(category, replace(bank, routing_limit=0.01))
    queries = np.stack([axes[0] + 0.1 * axes[2], 5 * axes[1], axes[0] + axes[1]])
    features = Features(np.zeros((3, 1, 1, 1), np.float32), queries)
    assert detector.route(features) == ["first", "second", None]
    assert detector.route(features, slack=40.0) == ["first", "second", "first"]
    assert detector.route(features, floor=0.0, slack=0.1) == [None, "second", None]
    detector._keep("second", replace(detector.bank("second"), routing_limit=float("nan")))
    with pytest.raises(ValueError, match=r"call calibrate\('second'\)"):
        detector.route(features)


def test_unknown_product_has_no_score(detector, kit, monkeypatch):
    detector.add_references("bolt", images_of(kit))
    monkeypatch.setattr(detector, "route", lambda features: ["bolt", None][: len(features.pooled)])
    known, unknown = detector.predict(images_of(kit, count=2), "auto")
    assert known.category == "bolt"
    assert known.pred_score == pytest.approx(detector.predict(images_of(kit, count=1), "bolt")[0].pred_score, abs=1e-5)
    assert unknown == ("image 1", None, None, None, None, None)


def test_reduced_bank(detector, kit, tmp_path):
    """All patches: nothing changes. A quarter: residuals can only grow, and the threshold with them."""
    references, queries = images_of(kit, count=3), images_of(kit, seed=80)
    whole = detector.add_references("bolt", references)
    before = detector.predict(queries)
    size = (tmp_path / "banks/bolt.safetensors").stat().st_size
    detector.reduce_bank("bolt", half_precision=True)
    assert (tmp_path / "banks/bolt.safetensors").stat().st_size < size - whole.patches.nbytes / 2 + 4096
    for one, other in zip(before, detector.predict(queries), strict=True):
        assert np.abs(one.anomaly_map - other.anomaly_map).max() < 0.05  # normalised by a range of about a hundredth
    reduced = detector.reduce_bank("bolt", 0.25)
    assert reduced.patches.shape[1] == round(whole.patches.shape[1] / 4)
    assert reduced.statistics.pixel_threshold >= whole.statistics.pixel_threshold - 1e-3
    raw = {}
    for name, bank in (("whole", whole), ("reduced", reduced)):
        detector._keep("bolt", replace(bank, statistics=UNKNOWN))
        raw[name] = np.stack([p.anomaly_map for p in detector.predict(queries)])
    assert (raw["reduced"] >= raw["whole"] - 1e-3).all()
    for change in (lambda: detector.add_references("bolt", queries), lambda: detector.calibrate("bolt")):
        with pytest.raises(ValueError, match="reduced"):
            change()


# ------------------------------------------------------------------------------------------------------------ bad input
@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((20, 20), np.uint8), r"RGB array of shape \(H, W, 3\), got \(20, 20\)"),
        (np.zeros((20, 20, 4), np.uint8), r"got \(20, 20, 4\)"),
        (np.zeros((3, 20, 20), np.uint8), r"got \(3, 20, 20\)"),
        (np.full((20, 20, 3), np.nan, np.float32), r"finite, got values from nan"),
        (np.full((20, 20, 3), 200.0), r"\[0, 1\] and be finite, got values from 200"),
        (np.zeros((20, 20, 3), np.int64), r"uint8, or floats in \[0, 1\], got int64"),
    ],
)
def test_bad_arrays(detector, kit, image, message):
    detector.add_references("bolt", images_of(kit, count=2))
    for call in (lambda: detector.predict([image]), lambda: detector.add_references("bolt", [image])):
        with pytest.raises(ValueError, match=message):
            call()
    assert detector.bank("bolt").count == 2


def test_bad_files(detector, kit, tmp_path):
    detector.add_references("bolt", images_of(kit, count=2))
    broken, wide = tmp_path / "broken.png", tmp_path / "wide.png"
    broken.write_bytes(b"no picture")
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(wide)
    for file, message in ((broken, "can't be read as an image"), (wide, "more than 8 bits per channel")):
        with pytest.raises(ValueError, match=message):
            detector.predict([file])
    with pytest.raises(FileNotFoundError, match="no such image"):
        detector.predict([tmp_path / "none.png"])


def test_bad_references(detector, kit, normals):
    file = next(normals.iterdir())
    with pytest.raises(ValueError, match="Give at least one image"):
        detector.add_references("bolt", [])
    with pytest.raises(ValueError, match=r"classes \['bolt', 'leaf', 'object'\], not for 'nut'.*class_names"):
        detector.add_references("nut", [file], class_name="nut")
    with pytest.raises(ValueError, match="references twice"):
        detector.add_references("bolt", [file, file])
    for name in ("../bolt", "", "a/b", ".hidden", "auto"):
        with pytest.raises(ValueError, match="A category is a file name"):
            detector.add_references(name, [file])
    detector.add_references("bolt", [file])
    with pytest.raises(ValueError, match="of class 'bolt', not 'leaf'"):
        detector.add_references("bolt", images_of(kit), class_name="leaf")
    with pytest.raises(ValueError, match="no reference 'x'"):
        detector.remove_references("bolt", ["x"])


def test_bad_banks(detector, kit, export, tmp_path):
    with pytest.raises(RuntimeError, match=r"holds no bank: call add_references"):
        detector.predict(images_of(kit))
    with pytest.raises(FileNotFoundError, match=r"add references of 'leaf' first"):
        detector.bank("leaf")
    bank = detector.add_references("bolt", images_of(kit, count=2))
    path = tmp_path / "banks/bolt.safetensors"
    whole = path.read_bytes()

    def fails(message: str, content: bytes | None = None) -> None:
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            InContextDetector(export, tmp_path / "banks", threads=1).predict(images_of(kit), "bolt")

    fails("can't be read as a bank .*add the references again", whole[: len(whole) // 2])
    fails("can't be read as a bank", b"")
    replace(bank, pooled=np.full_like(bank.pooled, np.nan)).save(path)
    fails("not finite")
    replace(bank, names=("one",)).save(path)
    fails("contradict each other")
    replace(bank, fingerprint="0" * 16).save(path)
    fails("made by another model")
    detector.add_references("leaf", images_of(kit, count=2))
    with pytest.raises(ValueError, match=r"name the category"):
        detector.predict(images_of(kit))


def test_bank_is_whole_or_not_there(detector, kit, tmp_path, monkeypatch):
    """A write that fails at any moment leaves the bank as it was, and nothing beside it."""
    detector.add_references("bolt", images_of(kit, count=2))
    path = tmp_path / "banks/bolt.safetensors"
    before = path.read_bytes()
    for failing in ("write_bytes", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(Path, failing, lambda *_: (_ for _ in ()).throw(OSError("disk full")))
            with pytest.raises(OSError, match="disk full"):
                detector.add_references("bolt", images_of(kit, seed=90))
        assert path.read_bytes() == before
        assert list(path.parent.iterdir()) == [path]
        assert detector.bank("bolt").count == 2


def test_bad_export(export, tmp_path, model, kit):
    with pytest.raises(FileNotFoundError, match=r"no export directory.*anomalib-inctrl-runtime export"):
        InContextDetector(tmp_path)
    broken = tmp_path / "broken"
    shutil.copytree(export, broken)
    (broken / "encoder.onnx").write_bytes(b"no graph")
    with pytest.raises(ValueError, match=r"encoder.onnx can't be read by onnx .*export the model again"):
        InContextDetector(broken, engine="onnx")
    (broken / "scorer.xml").unlink()
    with pytest.raises(FileNotFoundError, match="holds no scorer for openvino"):
        InContextDetector(broken, engine="openvino")
    with pytest.raises(ValueError, match="for openvino alone, 'int8'"):
        export_runtime(model, tmp_path / "none", precision="int8")
    with pytest.raises(ValueError, match="learns its context on its references"):
        export_runtime(kit.build("DevPrompt"), tmp_path / "none")
    with pytest.raises(ValueError, match="default pre_processor"):
        export_runtime(kit.build("InCTRL", pre_processor=False), tmp_path / "none")
    assert not (tmp_path / "none").exists()


# -------------------------------------------------------------------------------------------------------- without torch
def test_runs_without_torch(export, kit, normals, tmp_path):
    """A process of its own adds references and scores an image; neither torch nor anomalib is ever imported."""
    script = (
        "import sys\n"
        "from anomalib_inctrl.runtime import InContextDetector\n"
        f"detector = InContextDetector({str(export)!r}, {str(tmp_path)!r}, engine='onnx', threads=1)\n"
        f"detector.add_references('bolt', [{str(normals / '000.png')!r}, {str(normals / '001.png')!r}])\n"
        f"print(detector.predict([{str(normals / '002.png')!r}])[0].pred_score)\n"
        "print([name for name in ('torch', 'anomalib', 'torchvision', 'open_clip') if name in sys.modules])\n"
    )
    score, heavy = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    assert heavy == "[]"
    detector = InContextDetector(export, tmp_path, engine="onnx", threads=1)
    assert detector.predict([normals / "002.png"])[0].pred_score == pytest.approx(float(score), abs=1e-6)


def test_signals_are_handled_after_detectors_have_gone(export):
    """With a core of OpenVINO for each, the first signal after two of them kills the process."""
    script = (
        "import gc, os, signal\n"
        "from anomalib_inctrl.runtime import InContextDetector\n"
        f"first, second = (InContextDetector({str(export)!r}, engine='openvino', threads=1) for _ in range(2))\n"
        "del first\n"
        "gc.collect()\n"
        "del second\n"
        "gc.collect()\n"
        "signal.signal(signal.SIGINT, lambda *_: print('handled'))\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
        "print('alive')\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (result.returncode, result.stdout.split()) == (0, ["handled", "alive"])


def run(monkeypatch, capsys, *arguments) -> str:
    monkeypatch.setattr(sys, "argv", ["anomalib-inctrl-runtime", *map(str, arguments)])
    status = command_line.main()
    captured = capsys.readouterr()
    return captured.out if status == 0 else captured.err


def test_command_line(export, root, normals, tmp_path, monkeypatch, capsys):
    common = ("--folder", export, "--banks", tmp_path / "banks")

    def command(name: str, *options) -> str:
        threads = () if name == "list" else ("--threads", 1)
        return run(monkeypatch, capsys, name, *common, *threads, *options)

    added = command("add", "--category", "bolt", "--images", f"[{normals}]")
    assert added.startswith("bolt: 6 references of class 'bolt'")
    removed = command("remove", "--category", "bolt", "--names", f"[{normals / '000.png'}]")
    assert removed.startswith("bolt: 5 references")
    listed = command("list").splitlines()
    assert listed[0] == removed.strip()
    assert [line.strip() for line in listed[1:]] == [str(normals / f"{i:03}.png") for i in range(1, 6)]
    assert command("calibrate", "--category", "bolt") == removed
    assert "float16" in command("reduce", "--category", "bolt", "--half_precision", "true")

    queries = root / "bolt/test"
    scores = json.loads(command("predict", "--images", f"[{queries}]"))
    assert [row["image"] for row in scores] == [str(file) for file in sorted(queries.rglob("*.png"))]
    table = tmp_path / "scores.csv"
    assert command("predict", "--images", f"[{queries}]", "--output", table, "--maps", tmp_path / "maps") == ""
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["pred_score"]) for row in rows] == pytest.approx([row["pred_score"] for row in scores])
    found = InContextDetector(export, tmp_path / "banks", threads=1).predict(sorted(queries.rglob("*.png")))
    for i, prediction in enumerate(found):
        picture = np.asarray(Image.open(tmp_path / "maps" / f"{i:05}_{Path(prediction.name).stem}.png"))
        assert np.abs(picture / 255 - prediction.anomaly_map).max() <= 0.5 / 255 + 1e-6

    assert command("remove", "--category", "bolt") == "bolt: removed\n"
    assert command("predict", "--images", f"[{queries}]").startswith("error: ")
    assert command("add", "--category", "bolt", "--images", "[nowhere.png]").startswith("error: nowhere.png does not")


def test_export_command_explains_itself(monkeypatch, capsys):
    with pytest.raises(SystemExit, match="0"):
        run(monkeypatch, capsys, "export", "--help")
    text = capsys.readouterr().out
    assert all(f"--{name}" in text for name in ("ckpt_path", "class_names", "formats", "precision", "weights"))
