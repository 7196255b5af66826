"""DevPrompt through the framework: what ``fit`` learns and keeps, and what later runs do without."""

from __future__ import annotations

import logging
import shutil

import numpy as np
import pytest
import torch
from anomalib import LearningType
from anomalib.engine import Engine
from PIL import Image

from anomalib_inctrl import DevPrompt
from anomalib_inctrl.clip import ClipBackbone
from anomalib_inctrl.data import AuxiliaryData

STEPS = 6
FEW = {"steps": STEPS, "synthetic_images": 6, "batch_size": 3, "learning_rate": 0.01}


@pytest.fixture(scope="module")
def run(kit, root, tmp_path_factory):
    """``train`` with pictures; shared, so it must not be run again."""
    return kit.train(
        kit.build("DevPrompt", visualizer=True, **FEW), kit.data(root), tmp_path_factory.mktemp("trained_DevPrompt")
    )


@pytest.fixture(scope="module")
def content(run):
    return torch.load(run.checkpoint, weights_only=True, map_location="cpu")


def test_fit_takes_its_steps_and_moves_the_context_alone(run, content, kit):
    assert content["global_step"] == STEPS
    state = run.model.state_dict()
    for key, value in kit.build("DevPrompt", **FEW).state_dict().items():
        if key.startswith("model.backbone."):
            assert torch.equal(value, state[key]), key
    start = kit.build("DevPrompt").model.prompt_learner.context
    moved = (state["model.prompt_learner.context"] - start).abs()
    assert moved.amax() <= STEPS * 0.011  # Adam's steps are as long as its rate, hardly more
    assert (moved.amax(dim=1) > 0.01).all()
    assert run.model.training_record == {"steps": STEPS, "deviation_weight": 1.0}
    assert run.model._features is None


def test_checkpoint_is_small_and_holds_what_was_learned(run, content, normals):
    state = content["state_dict"]
    assert run.checkpoint.stat().st_size < 2e6
    assert not [key for key in state if key.startswith("model.backbone.")]
    model = run.model.model
    expected = model.encode_prompts("bolt").detach()  # of the context after its last step
    torch.testing.assert_close(state["model.references.prototypes"][0], expected, rtol=0, atol=1e-5)
    scores = model.score_patches(model.references.aligned, expected)
    torch.testing.assert_close(state["model.normal"], torch.stack([scores.mean(), scores.std(correction=0)]))
    files = content["anomalib_inctrl"]["references"]["files"]["bolt"]
    assert len(files) == 2
    assert all(str(normals) in file for file in files)
    options = content["hyper_parameters"]
    assert all(value is None or isinstance(value, bool | int | float | str | list) for value in options.values())


def test_test_from_a_checkpoint_needs_neither_training_images_nor_text(run, root, kit, engine, tmp_path, monkeypatch):
    moved = shutil.copytree(root, tmp_path / "MVTecAD")
    shutil.rmtree(moved / "bolt/train")
    model = kit.build("DevPrompt", **FEW)
    for method in ("encode_with_context", "encode_sentences"):
        monkeypatch.setattr(ClipBackbone, method, None)
    assert engine.test(model=model, datamodule=kit.data(moved), ckpt_path=run.checkpoint)[0] == run.metrics
    loaded = DevPrompt.load_from_checkpoint(run.checkpoint, weights_only=True, map_location="cpu").eval()
    image = torch.from_numpy(kit.texture(5)).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        expected, found = run.model.eval()(image), loaded(image)
    assert torch.equal(found.pred_score, expected.pred_score)
    assert torch.equal(found.anomaly_map, expected.anomaly_map)


def test_pictures_show_the_three_maps(run):
    pictures = [path for path in run.folder.rglob("*.png") if "images" in path.parts]
    assert len(pictures) == 8
    row = run.model.visualizer._evidence_row(0, run.model, (14, 14), (112, 112))[0]
    assert [panel.label.split(",")[0] for panel in row] == [
        "patch residual M_x", "text probability", "deviation in sigma",
    ]  # fmt: skip


def test_the_same_seed_learns_the_same_another_something_else(run, root, kit, tmp_path):
    same = kit.train(kit.build("DevPrompt", **FEW), kit.data(root), tmp_path / "same")
    assert torch.equal(same.model.model.prompt_learner.context, run.model.model.prompt_learner.context)
    other = kit.train(kit.build("DevPrompt", reference_seed=1, **FEW), kit.data(root), tmp_path / "other")
    assert not torch.equal(other.model.model.prompt_learner.context, run.model.model.prompt_learner.context)


def test_the_data_module_gets_its_loader_back(root, kit, engine):
    datamodule = kit.data(root)
    engine.fit(model=kit.build("DevPrompt", **FEW | {"steps": 1}), datamodule=datamodule)
    assert len(datamodule.train_dataloader().dataset) == 6
    assert "train_dataloader" not in vars(datamodule)
    with pytest.raises(ValueError, match="k_shot=7"):
        Engine(default_root_dir=engine.trainer.default_root_dir, **kit.quiet).fit(
            model=kit.build("DevPrompt", k_shot=7), datamodule=datamodule
        )
    datamodule.trainer = None  # as another model's run sets another trainer
    assert len(datamodule.train_dataloader().dataset) == 6


def test_without_deviation_loss_its_term_is_gone(root, kit, tmp_path, monkeypatch):
    logged = []
    monkeypatch.setattr(DevPrompt, "log_dict", lambda _self, values, **_: logged.append(set(values)))
    for options in ({"deviation_loss": False}, {"deviation_weight": 0.0}, {}):
        model = kit.build("DevPrompt", **FEW | {"steps": 1} | options)
        Engine(default_root_dir=tmp_path, **kit.quiet).fit(model=model, datamodule=kit.data(root))
    assert logged == [{"loss/prompt"}, {"loss/prompt"}, {"loss/prompt", "loss/deviation"}]


def test_without_learnable_context_nothing_is_trained(root, kit, tmp_path):
    model = kit.build("DevPrompt", learnable_context=False)
    assert model.learning_type == LearningType.FEW_SHOT
    assert model.configure_optimizers() is None
    run = kit.train(model, kit.data(root), tmp_path)
    content = torch.load(run.checkpoint, weights_only=True)
    assert content["global_step"] == 0
    assert not content["state_dict"]["model.branch_flags"].any()


def test_predict_on_a_folder_without_training_says_so(root, normals, kit, engine, caplog):
    model = kit.build("DevPrompt", few_shot_source=normals)
    with caplog.at_level(logging.WARNING):
        predictions = kit.predictions(engine.predict(model=model, data_path=root / "bolt/test"))
    assert len(predictions.scores) == 8
    assert "has learned no context: its prompts begin with fixed words" in caplog.text


def test_other_normal_images_forget_the_context(root, kit, tmp_path, caplog):
    """A model object that goes on to another category does not carry over what it learned on the first."""
    model = kit.build("DevPrompt", **FEW | {"steps": 1})
    Engine(default_root_dir=tmp_path / "a", **kit.quiet).fit(model=model, datamodule=kit.data(root))
    with caplog.at_level(logging.WARNING):
        Engine(default_root_dir=tmp_path / "b", **kit.quiet).fit(model=model, datamodule=kit.data(root, "leaf"))
    assert "the context learned on the previous ones is forgotten" in caplog.text
    fresh = kit.build("DevPrompt", **FEW | {"steps": 1})
    Engine(default_root_dir=tmp_path / "c", **kit.quiet).fit(model=fresh, datamodule=kit.data(root, "leaf"))
    assert torch.equal(model.model.prompt_learner.context, fresh.model.prompt_learner.context)


def test_another_category_is_refused_with_the_remedy(run, root, kit, engine):
    with pytest.raises(ValueError, match=r"references of MVTecAD 'bolt', the data is 'leaf'"):
        engine.test(model=kit.build("DevPrompt"), datamodule=kit.data(root, "leaf"), ckpt_path=run.checkpoint)


def test_other_options_are_refused(run, root, kit, engine):
    with pytest.raises(ValueError, match=r"was made with .*'fusion': 'harmonic'.* this model has .*'fusion': 'mean'"):
        engine.test(model=kit.build("DevPrompt", fusion="mean"), datamodule=kit.data(root), ckpt_path=run.checkpoint)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k_shot": 0}, r"k_shot must be 1 or more, got 0: DevPrompt learns from normal images"),
        ({"phase": "train"}, r"phase must be 'few_shot', got 'train': DevPrompt learns on its target"),
        ({"steps": 0}, r"steps must be larger than 0, got 0"),
        ({"synthetic_images": 0}, r"synthetic_images must be larger than 0"),
        ({"deviation_weight": -1.0}, r"deviation_weight must be 0 or more, got -1\.0"),
        ({"fusion": "sum"}, r"fusion must be one of"),
    ],
)
def test_options_out_of_range_are_refused(kit, options, message):
    with pytest.raises(ValueError, match=message):
        kit.build("DevPrompt", **options)


def test_data_that_do_not_fit_are_refused(root, kit, tmp_path):
    engine = Engine(default_root_dir=tmp_path, **kit.quiet)
    with pytest.raises(ValueError, match="AuxiliaryData is for training"):
        engine.fit(
            model=kit.build("DevPrompt"), datamodule=AuxiliaryData(parts=[kit.data(root), kit.data(root, "leaf")])
        )
    with pytest.raises(RuntimeError, match=r"DevPrompt needs 2 normal images as references"):
        Engine(default_root_dir=tmp_path, **kit.quiet).predict(
            model=kit.build("DevPrompt"), data_path=root / "bolt/test"
        )
    with pytest.raises(ValueError, match=r"k_shot=7 references were asked for, but there are only 6"):
        Engine(default_root_dir=tmp_path, **kit.quiet).fit(
            model=kit.build("DevPrompt", k_shot=7, **FEW), datamodule=kit.data(root)
        )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_exported_models_score_as_the_engine(run, root, kit, engine, tmp_path, kind):
    path = engine.export(
        model=kit.build("DevPrompt", **FEW), export_type=kind, export_root=tmp_path, ckpt_path=run.checkpoint
    )
    if kind == "torch":
        model = torch.load(path, weights_only=False)["model"].eval()  # our own file
        assert not list(model.model.backbone.text.parameters())

        def score(image):
            with torch.no_grad():
                return {key: value.numpy() for key, value in model(image)._asdict().items()}
    else:
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]

        def score(image):
            return dict(zip(names, session.run(None, {"input": image.numpy()}), strict=True))

    fresh = kit.build("DevPrompt", **FEW)
    expected = kit.predictions(engine.predict(model=fresh, datamodule=kit.data(root), ckpt_path=run.checkpoint))
    assert len(expected.scores) == 8
    for file, value in expected.scores.items():
        pixels = np.asarray(Image.open(root / "bolt/test" / file)).copy()
        found = score(torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255)
        assert float(found["pred_score"].item()) == pytest.approx(value, abs=1e-4)
        assert np.abs(found["anomaly_map"].squeeze() - expected.maps[file].numpy()).max() < 1e-4
