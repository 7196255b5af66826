"""Trained heads from files of ours, and what is said of other files. The published ones are in `parity`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
import torch

from anomalib_inctrl.checkpoints import METADATA_KEY, check_backbone, load_weights, save_weights
from anomalib_inctrl.models.inctrl.torch_model import InCTRLModel
from anomalib_inctrl.models.inctrl_v2.torch_model import InCTRLv2Model

if TYPE_CHECKING:
    from pathlib import Path

    from anomalib_inctrl.clip import ClipBackbone
    from anomalib_inctrl.in_context import InContextModel


def record(backbone: ClipBackbone) -> dict[str, Any]:
    return {
        "name": backbone.name,
        "pretrained": None,
        "blocks": list(backbone.blocks),
        "fingerprint": backbone.fingerprint,
    }


def write(path: Path, model: InContextModel, **metadata: Any) -> Path:
    """Write a checkpoint as the Lightning models do: without the towers, the torch model under ``model.``."""
    state = {f"model.{k}": v for k, v in model.state_dict().items() if not k.startswith("backbone.")}
    metadata = {"branches": list(model.BRANCHES), "backbone": record(model.backbone)} | metadata
    torch.save({"state_dict": state, METADATA_KEY: metadata}, path)
    return path


def images_for(model: InContextModel, count: int) -> torch.Tensor:
    return torch.randn(count, 3, *model.backbone.image_size)


def test_a_checkpoint_of_ours_brings_heads_and_branches(model: InContextModel, tmp_path: Path):
    path = write(tmp_path / "ours.ckpt", model)
    fresh = type(model)(
        model.backbone, reference_views=model.reference_views, residual_smoothing=model.residual_smoothing
    ).eval()
    load_weights(fresh, path)
    assert fresh.branches == set(model.BRANCHES)
    references, images = images_for(model, 2), images_for(model, 2)
    for each in (model, fresh):
        each.set_references(references, "cat")
    assert torch.equal(fresh(images).pred_score, model(images).pred_score)


@pytest.mark.parametrize("sort_patches", [True, False])
def test_heads_say_whether_they_see_patches_in_order(tiny_backbone: ClipBackbone, tmp_path: Path, sort_patches: bool):
    trained = InCTRLModel(tiny_backbone, InCTRLModel.BRANCHES, sort_patches=sort_patches)
    for file in (write(tmp_path / "ours.ckpt", trained), save_weights(trained, tmp_path / "ours.safetensors")):
        fresh = InCTRLModel(tiny_backbone, sort_patches=not sort_patches)
        load_weights(fresh, file)
        assert fresh.holistic_head.sort_patches is sort_patches
        assert bool(fresh.holistic_head.sorts) is sort_patches


def test_heads_of_a_file_that_does_not_say_go_by_place(tiny_backbone: ClipBackbone, tmp_path: Path):
    path = write(tmp_path / "earlier.ckpt", InCTRLModel(tiny_backbone, InCTRLModel.BRANCHES))
    content = torch.load(path, weights_only=True)
    del content["state_dict"]["model.holistic_head.sorts"]
    torch.save(content, path)
    fresh = InCTRLModel(tiny_backbone, sort_patches=True)
    load_weights(fresh, path)
    assert fresh.holistic_head.sort_patches is False


def test_references_of_the_file_stay_there(model: InContextModel, tmp_path: Path):
    model.set_references(images_for(model, 1), "cat")
    fresh = type(model)(model.backbone)
    load_weights(fresh, write(tmp_path / "ours.ckpt", model))
    assert fresh.references.class_names == []


def test_only_the_branches_in_use_are_loaded(tiny_backbone: ClipBackbone, tmp_path: Path):
    saved = InCTRLv2Model(tiny_backbone, branches=["discriminative"])
    torch.nn.init.ones_(saved.discriminative_adapter.stages[0][0].weight)
    torch.nn.init.ones_(saved.adapter.down.weight)
    fresh = InCTRLv2Model(tiny_backbone)
    load_weights(fresh, write(tmp_path / "ours.ckpt", saved))
    assert fresh.branches == {"discriminative"}
    assert (fresh.discriminative_adapter.stages[0][0].weight == 1).all()
    assert not (fresh.adapter.down.weight == 1).any()


def test_random_puts_every_branch_to_use(tiny_backbone: ClipBackbone):
    model = InCTRLModel(tiny_backbone)
    assert model.branches == set()
    load_weights(model, "random")
    assert model.branches == {"image", "holistic"}


@pytest.mark.parametrize(
    ("key", "value"), [("name", "ViT-B-16-plus-240"), ("blocks", [6, 8, 10]), ("fingerprint", "0123456789abcdef")]
)
def test_another_backbone_is_refused(model: InContextModel, tmp_path: Path, key: str, value: object):
    other = record(model.backbone) | {key: value}
    path = write(tmp_path / "other.ckpt", model, backbone=other)
    fresh = type(model)(model.backbone)
    with pytest.raises(ValueError, match=r"other\.ckpt was made with backbone=.*Build it with the same") as info:
        load_weights(fresh, path)
    assert str(value) in str(info.value)
    assert fresh.branches == set()


def test_the_same_backbone_passes(tiny_backbone: ClipBackbone):
    check_backbone(tiny_backbone, record(tiny_backbone), "a test")
    with pytest.raises(ValueError, match=r"a test was made with backbone='inctrl-tiny-trunk'.*blocks=\[1\]"):
        check_backbone(tiny_backbone, record(tiny_backbone) | {"blocks": [1]}, "a test")


def test_inctrl_does_not_score_with_a_head_that_a_checkpoint_of_inctrl_v2_lacks(
    tiny_backbone: ClipBackbone, tmp_path: Path
):
    path = write(tmp_path / "v2.ckpt", InCTRLv2Model(tiny_backbone, branches=InCTRLv2Model.BRANCHES))
    model = InCTRLModel(tiny_backbone).eval()
    load_weights(model, path)
    assert model.branches == {"image"}
    model.set_references(images_for(model, 1), "cat")
    image = images_for(model, 1)
    before = model(image).pred_score
    torch.nn.init.normal_(model.holistic_head.layers[-1].bias, std=10)  # never trained, so it must not matter
    assert torch.equal(model(image).pred_score, before)


def test_a_checkpoint_without_heads_for_the_model_is_refused(tiny_backbone: ClipBackbone, tmp_path: Path):
    one_class = InCTRLv2Model(tiny_backbone, branches=["one_class"])
    path = write(tmp_path / "v2.ckpt", one_class)
    with pytest.raises(ValueError, match=r"v2\.ckpt holds no trained heads for InCTRLModel, .*'holistic', 'image'"):
        load_weights(InCTRLModel(tiny_backbone), path)


def test_a_training_free_checkpoint_is_refused(tiny_backbone: ClipBackbone, tmp_path: Path):
    path = write(tmp_path / "free.ckpt", InCTRLModel(tiny_backbone))
    with pytest.raises(ValueError, match=r"free\.ckpt holds no trained heads for InCTRLModel"):
        load_weights(InCTRLModel(tiny_backbone), path)


def test_a_part_of_another_size_is_named(tiny_backbone: ClipBackbone, tmp_path: Path):
    per_block = InCTRLv2Model(tiny_backbone, branches=["discriminative"], adapter_per_block=True)
    path = write(tmp_path / "per-block.ckpt", per_block)
    with pytest.raises(ValueError, match=r"The discriminative_adapter of .*per-block\.ckpt does not fit"):
        load_weights(InCTRLv2Model(tiny_backbone), path)


def test_embedded_heads_are_looked_up_for_the_model(
    model: InContextModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """And said to be missing where there are none."""
    monkeypatch.setattr("anomalib_inctrl.checkpoints.embedded_file", lambda kind: tmp_path / f"inctrl-tiny.{kind}")
    fresh = type(model)(model.backbone)
    name = f"inctrl-tiny.{model.HEADS}.safetensors"
    with pytest.raises(FileNotFoundError, match=rf"weights='.*{re.escape(name)}': there is no such file"):
        load_weights(fresh, "inctrl-tiny")
    assert fresh.branches == set()
    save_weights(model, tmp_path / name)
    load_weights(fresh, "inctrl-tiny")
    assert fresh.branches == set(model.BRANCHES)
    assert torch.equal(fresh.image_head.layers[0].weight, model.image_head.layers[0].weight)


def test_a_missing_file_is_refused(model: InContextModel, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"weights='.*nowhere\.ckpt': there is no such file.*'random', or None"):
        load_weights(model, tmp_path / "nowhere.ckpt")


def test_a_text_file_is_refused(model: InContextModel, tmp_path: Path):
    path = tmp_path / "notes.txt"
    path.write_text("no weights here")
    with pytest.raises(ValueError, match=r"notes\.txt can't be read as a checkpoint"):
        load_weights(model, path)


@pytest.mark.parametrize(
    ("content", "keys"),
    [({"conv1.weight": torch.zeros(1)}, r"keys such as \['conv1.weight'\]"), ([1, 2], r"keys such as list")],
)
def test_another_kind_of_file_is_refused(model: InContextModel, tmp_path: Path, content: object, keys: str):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=rf"other\.pt is neither .* nor one published by InCTRL's authors \({keys}"):
        load_weights(model, tmp_path / "other.pt")
