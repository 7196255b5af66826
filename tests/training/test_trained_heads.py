"""Resuming, and the files a training leaves."""

from __future__ import annotations

import json

import pytest
import torch
from anomalib.utils.serialization import anomalib_safe_globals
from lightning import Callback
from safetensors import safe_open

from anomalib_inctrl.checkpoints import METADATA_KEY, load_weights, save_weights
from anomalib_inctrl.clip import EMBEDDED_TRUNK

RECORD = {
    "trained_on": ["MVTecAD/bolt", "MVTecAD/leaf"],
    "validated_on": ["MVTecAD/tile"],
    "licences": {"MVTecAD": "CC BY-NC-SA 4.0"},
    "k_shots": [1, 2],
    "images": 32,
    "seed": 0,
}


def largest_difference(first: dict, second: dict) -> float:
    assert first.keys() == second.keys()
    return max((first[key].float() - second[key].float()).abs().max().item() for key in first)


def metadata_of(path) -> dict:
    with safe_open(path, "pt") as file:
        return {k: json.loads(v) for k, v in file.metadata().items()}


@pytest.mark.parametrize("killed", [False, True])
def test_resuming_gives_the_same_weights(kit, name, trained, tmp_path, killed):
    if killed:
        checkpoint = trained.checkpoint.with_name("killed.ckpt")
    else:
        checkpoint = kit.fit(kit.build(name), tmp_path / "half", epochs=2).checkpoint
    resumed = kit.fit(kit.build(name, seed=1), tmp_path / "whole", epochs=4, ckpt_path=checkpoint)
    assert len(resumed.losses.steps) == 6
    difference = largest_difference(resumed.heads, trained.heads)
    assert difference < 1e-6
    assert resumed.losses.steps == trained.losses.steps[6:]


class Rates(Callback):
    """Remembers the learning rate of every step."""

    def __init__(self) -> None:
        self.steps: list[float] = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        self.steps.append(trainer.optimizers[0].param_groups[0]["lr"])


def test_a_learning_rate_that_decays(kit, tmp_path):
    """To 0 at the end of the whole run, from where it was when a run is gone on with."""
    options = {"decay_learning_rate": True, "learning_rate": 0.06}
    rates, resumed = Rates(), Rates()

    def fit(model, folder, **arguments):
        return kit.fit(model, folder, data=kit.data_without_validation(), epochs=2, **arguments)

    run = fit(kit.build("InCTRL", **options), tmp_path / "whole", callbacks=[rates, kit.KeepCheckpoint(1)])
    assert rates.steps == pytest.approx([0.06, 0.05, 0.04, 0.03, 0.02, 0.01])

    model, killed = kit.build("InCTRL", seed=1, **options), run.checkpoint.with_name("killed.ckpt")
    again = fit(model, tmp_path / "resumed", callbacks=[resumed], ckpt_path=killed)
    assert resumed.steps == pytest.approx([0.03, 0.02, 0.01])
    assert all(torch.equal(value, again.heads[key]) for key, value in run.heads.items())


def test_a_learning_rate_that_decays_needs_an_end(kit, tmp_path):
    model = kit.build("InCTRL", decay_learning_rate=True)
    with pytest.raises(ValueError, match="max_epochs or max_steps"):
        kit.fit(model, tmp_path, data=kit.data_without_validation(), epochs=-1)


def test_the_checkpoint_records_the_training(trained):
    with anomalib_safe_globals():
        content = torch.load(trained.checkpoint, weights_only=True)
    metadata = content[METADATA_KEY]
    assert metadata["training"] == RECORD
    assert metadata["backbone"]["name"] == EMBEDDED_TRUNK
    assert metadata["model"] == type(trained.model).__name__
    assert not any("backbone" in key for key in content["state_dict"])


def test_the_run_leaves_heads(trained):
    path = trained.folder / "weights/heads.safetensors"
    metadata = metadata_of(path)
    assert metadata["training"] == RECORD
    assert metadata["backbone"]["fingerprint"] == trained.model.model.backbone.fingerprint
    assert path.stat().st_size < 4e6
    with safe_open(path, "pt") as file:
        assert not any("backbone" in key or "references" in key for key in file.keys())  # noqa: SIM118


@pytest.mark.parametrize("file", ["lightning/model.ckpt", "heads.safetensors"])
def test_trained_heads_score_alike_in_few_shot_models(kit, name, trained, file):
    torch.manual_seed(0)
    references, images = torch.randn(2, 3, *trained.model.model.backbone.image_size).chunk(2)
    model = kit.build(name, phase="few_shot", weights=trained.folder / "weights" / file, seed=1)
    assert model.training_record == RECORD
    results = []
    for torch_model in (model.model.eval(), trained.model.model.eval()):
        with torch.no_grad():
            torch_model.set_references(references, "bolt")
            results.append(torch_model(images))
            torch_model.forget_references()
    assert torch.equal(results[0].pred_score, results[1].pred_score)
    assert torch.equal(results[0].anomaly_map, results[1].anomaly_map)


def test_training_goes_on_from_heads(kit, name, trained):
    model = kit.build(name, weights=trained.folder / "weights/heads.safetensors", seed=1)
    assert largest_difference(kit.heads_of(model), trained.heads) == 0


def test_a_branch_is_added_to_heads_from_a_file(kit, tmp_path):
    """The one from the file stays in use and as it is; the new one alone is trained."""
    first = kit.build("InCTRLv2", branches=["image"])
    path = save_weights(first.model, tmp_path / "image.safetensors", first.metadata)
    assert metadata_of(path)["options"] == first.model.options
    model = kit.build("InCTRLv2", seed=1, weights=path, branches=["one_class"], feature_cache=None)
    assert model.model.branches == {"image", "one_class"}
    assert {n.split(".")[0] for n, p in model.model.named_parameters() if p.requires_grad} == {"one_class_adapter"}
    assert set(model.loss_terms(kit.batch(model))) == {"one_class_focal", "one_class_dice", "one_class_fused_dice"}


def test_round_trip_without_metadata(kit, name, tmp_path):
    first, second = (kit.build(name, seed=seed).model for seed in (0, 1))
    path = save_weights(first, tmp_path / "deep" / "heads.safetensors")
    load_weights(second, path)
    assert second.branches == first.branches
    parts = [part for branch in first.branches for part in first.BRANCHES[branch]]
    for part in parts:
        assert largest_difference(first.get_submodule(part).state_dict(), second.get_submodule(part).state_dict()) == 0
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_files_that_cannot_be_used(kit, tmp_path):
    model = kit.build("InCTRLv2").model
    path = save_weights(model, tmp_path / "heads.safetensors")
    record = {"name": "ViT-B-16", "blocks": [5], "fingerprint": "0"}
    other = save_weights(model, tmp_path / "other.safetensors", {"backbone": record})
    scaled = save_weights(model, tmp_path / "scaled.safetensors", {"options": {"patch_scale": 100.0}})
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(path.read_bytes()[:-100])
    for source, message in (
        (other, "made with backbone='ViT-B-16'.*this model has 'inctrl-tiny-trunk'"),
        (scaled, r"trained with patch_scale=100.0, this model has 14.28"),
        (cut, "cut.safetensors can't be read as a checkpoint: SafetensorError"),
    ):
        with pytest.raises(ValueError, match=message):
            load_weights(model, source)
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        load_weights(model, tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match=r"saved to a \.safetensors file, got 'heads.pt'"):
        save_weights(model, tmp_path / "heads.pt")
    model.use_branches([])
    with pytest.raises(ValueError, match=r"branches in use: \[\]"):
        save_weights(model, path)


def test_a_failed_write_leaves_the_old_file(kit, tmp_path, monkeypatch):
    model = kit.build("InCTRL").model
    path = save_weights(model, tmp_path / "heads.safetensors")
    before = path.read_bytes()

    def fail(self, content):
        self.touch()
        raise OSError("the disk is full")

    monkeypatch.setattr("pathlib.Path.write_bytes", fail)
    with pytest.raises(OSError, match="disk is full"):
        save_weights(model, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
