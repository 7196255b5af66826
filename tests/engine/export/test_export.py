"""Exported models score as the engine does: other images, other batch sizes, other image sizes than traced."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from anomalib.deploy import OpenVINOInferencer, TorchInferencer
from anomalib.engine import Engine
from PIL import Image

TOLERANCE = 1e-4
F32 = {"INFERENCE_PRECISION_HINT": "f32"}  # else some processors compute in bfloat16
# Tracing takes ten seconds and more, hence not every model in every format; `openvino` traces to ONNX on its way.
EXPORTS = pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("InCTRL", "torch"),
        ("InCTRL", "openvino"),
        ("InCTRLv2", "torch"),
        ("InCTRLv2", "onnx"),
        ("InCTRLv2", "openvino"),
    ],
    indirect=["name"],
)
FORMATS = {"torch": "pt", "onnx": "onnx", "openvino": "xml"}
# Batch size, height and width: larger and smaller than the backbone's images, no square among the first four.
INPUTS = [(1, 0.75, 1), (3, 1.25, 1.03), (2, 0.76, 1.65), (2, 0.5, 0.59), (1, 1, 1)]  # in multiples of their side


def images_of(kit, batch, height, width):
    """Noisy images in ``[0, 1]``, each with a bright square."""
    pixels = [kit.with_square(kit.texture(40 + i, (height, width)), 20, 20 + 4 * i, 25)[0] for i in range(batch)]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255


_exported: dict[tuple[str, str], Path] = {}


@pytest.fixture
def exported(trained, name, kit, tmp_path_factory):
    """A file of a format, exported from a checkpoint with a fresh model object, as the command line does; kept."""

    def export(kind: str) -> Path:
        if (name, kind) not in _exported:
            folder = tmp_path_factory.mktemp(f"exported_{name}_{kind}")
            engine = Engine(default_root_dir=folder, **kit.quiet)
            engine.export(model=kit.build(name), export_type=kind, export_root=folder, ckpt_path=trained.checkpoint)
            _exported[name, kind] = next(folder.rglob(f"*.{FORMATS[kind]}"))
        return _exported[name, kind]

    return export


def runner(kind: str, path: Path):
    """A function from images to score, map, label and mask of a file."""
    if kind == "torch":
        model = torch.load(path, weights_only=False)["model"].eval()  # our own file
        with torch.no_grad():
            return lambda images: {k: v.detach().numpy() for k, v in model(images)._asdict().items()}
    if kind == "onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return lambda images: dict(zip(names, session.run(None, {"input": images.numpy()}), strict=True))
    import openvino

    model = openvino.Core().compile_model(path, "CPU", F32)
    names = [output.any_name for output in model.outputs]
    return lambda images: dict(zip(names, model(images.numpy()).to_tuple(), strict=True))


@EXPORTS
def test_equals_the_eager_model(exported, trained, kit, kind):
    run, eager = runner(kind, exported(kind)), trained.model.eval()
    for batch, *multiples in INPUTS:
        shape = (batch, *(round(kit.side * multiple) for multiple in multiples))
        images = images_of(kit, *shape)
        with torch.no_grad():
            expected = eager(images)
        found = run(images)
        assert np.abs(found["pred_score"].ravel() - expected.pred_score.numpy()).max() < TOLERANCE, shape
        difference = np.abs(
            found["anomaly_map"].reshape(batch, kit.side, kit.side) - expected.anomaly_map[:, 0].numpy()
        )
        assert difference.max() < TOLERANCE, shape
        assert (found["pred_label"].ravel() == expected.pred_label.numpy()).all(), shape


@EXPORTS
def test_equals_the_engine_on_the_same_files(exported, trained, name, root, kit, engine, kind):
    run = runner(kind, exported(kind))
    predicted = engine.predict(model=kit.build(name), datamodule=kit.data(root), ckpt_path=trained.checkpoint)
    for item in (item for batch in predicted for item in batch):
        image = torch.from_numpy(np.asarray(Image.open(item.image_path)).copy()).permute(2, 0, 1)[None].float() / 255
        found = run(image)
        assert float(found["pred_score"].item()) == pytest.approx(float(item.pred_score), abs=TOLERANCE)
        assert np.abs(found["anomaly_map"].squeeze() - item.anomaly_map.squeeze().numpy()).max() < TOLERANCE


def test_openvino_inferencer(exported, root, kit, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # the inferencer writes a cache where it runs
    inferencer = OpenVINOInferencer(exported("openvino"), device="CPU", config=F32)
    good, bad = (inferencer.predict(root / f"bolt/test/{kind}/000.png") for kind in ("good", "square"))
    assert (bool(good.pred_label.item()), bool(bad.pred_label.item())) == (False, True)
    assert bad.anomaly_map.shape[-2:] == (kit.side, kit.side)


def test_torch_inferencer(exported, root, monkeypatch):
    monkeypatch.setenv("TRUST_REMOTE_CODE", "1")
    inferencer = TorchInferencer(exported("torch"), device="cpu")
    good, bad = (inferencer.predict(root / f"bolt/test/{kind}/000.png") for kind in ("good", "square"))
    assert (bool(good.pred_label), bool(bad.pred_label)) == (False, True)


@pytest.mark.parametrize(
    ("cls", "kind", "options"),
    [
        ("InCTRL", "torch", {"weights": "random"}),
        ("InCTRLv2", "onnx", {"weights": "random", "geometry": "squash"}),
    ],
)
def test_without_checkpoint_from_a_folder_of_references(root, normals, kit, tmp_path, cls, kind, options):
    """References are collected and calibrate on the way; the file scores as predict with the same options."""
    engine = Engine(default_root_dir=tmp_path, **kit.quiet)
    model = kit.build(cls, few_shot_source=normals, **options)
    run = runner(kind, Path(engine.export(model=model, export_type=kind, export_root=tmp_path)))
    expected = kit.predictions(engine.predict(model=model, data_path=root / "bolt/test"))
    for file, score in expected.scores.items():
        image = Image.open(root / "bolt/test" / file)
        found = run(torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None].float() / 255)
        assert float(found["pred_score"].item()) == pytest.approx(score, abs=TOLERANCE)
        assert np.abs(found["anomaly_map"].squeeze() - expected.maps[file].numpy()).max() < TOLERANCE


@pytest.mark.parametrize("kind", list(FORMATS))
def test_without_references_there_is_nothing_to_export(name, kit, tmp_path, kind):
    engine = Engine(default_root_dir=tmp_path, **kit.quiet)
    with pytest.raises(RuntimeError, match=r"needs 2 normal images as references.*few_shot_source"):
        engine.export(model=kit.build(name), export_type=kind, export_root=tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
