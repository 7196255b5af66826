"""What is embedded: the trained backbone and the heads trained on its features."""

import pytest
import torch
from safetensors.torch import load

from anomalib_inctrl import InCTRL, InCTRLv2
from anomalib_inctrl.checkpoints import load_weights
from anomalib_inctrl.clip import EMBEDDED_BACKBONE, ClipBackbone, embedded_file
from anomalib_inctrl.data.procedural import FAMILIES
from anomalib_inctrl.models.inctrl.torch_model import InCTRLModel
from anomalib_inctrl.models.inctrl_v2.torch_model import InCTRLv2Model

BOTH = pytest.mark.parametrize("kind", [InCTRLModel, InCTRLv2Model], ids=lambda kind: kind.__name__)


def test_backbone_holds_the_file_in_half_precision_but_for_the_projections_of_images():
    state = load(embedded_file("safetensors").read_bytes())
    single = {name for name, tensor in state.items() if tensor.dtype != torch.half}
    assert single == {"visual.proj", "shapes.proj", "shapes.surface"}
    assert {state[name].dtype for name in single} == {torch.float}
    backbone = ClipBackbone(EMBEDDED_BACKBONE)
    towers = backbone.visual.state_dict(prefix="visual.") | backbone.shapes.state_dict(prefix="shapes.")
    assert all(torch.equal(tensor, state[name].float()) for name, tensor in towers.items())
    assert {name for name in state if name.startswith(("visual.", "shapes."))} == towers.keys()


def test_embedded_files_are_small():
    folder = embedded_file("json").parent
    assert sum(len(file.read_bytes()) for file in folder.iterdir() if file.is_file()) < 16e6


def test_random_weights_are_others_and_always_the_same():
    trained, random = ClipBackbone(EMBEDDED_BACKBONE), ClipBackbone(EMBEDDED_BACKBONE, random=True)
    assert trained.fingerprint == ClipBackbone(EMBEDDED_BACKBONE, pretrained="ignored").fingerprint
    assert random.fingerprint == ClipBackbone(EMBEDDED_BACKBONE, random=True).fingerprint
    assert trained.fingerprint != random.fingerprint


@BOTH
def test_embedded_heads_put_every_branch_to_use_and_say_what_they_learned_from(kind):
    model = kind(ClipBackbone(EMBEDDED_BACKBONE))
    record = load_weights(model, EMBEDDED_BACKBONE)
    assert model.branches == model.BRANCHES.keys()
    assert record["licences"].keys() == {"ProceduralAD"}
    assert len(record["trained_on"]) + len(record["validated_on"]) == 6 * len(FAMILIES)
    assert len(record["validated_on"]) == round(0.1 * 6 * len(FAMILIES))


@BOTH
@torch.no_grad()
def test_scores_in_half_precision_are_those_in_single(kind, embedded_backbone):
    model = kind(embedded_backbone)
    load_weights(model, EMBEDDED_BACKBONE)
    model.eval()
    coarse = torch.nn.functional.interpolate(torch.randn(7, 3, 9, 9), size=embedded_backbone.image_size[0])
    images = coarse + 0.3 * torch.randn(7, 3, *embedded_backbone.image_size)
    model.set_references(images[:3], "cat")
    exact = model.explain(images[3:])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model.explain(images[3:])
    for name in ("patch_residuals", "patch_score", "image_score", "text_score", "score", "anomaly_map"):
        assert (getattr(rough, name).float() - getattr(exact, name)).abs().max() < 0.01, name


@BOTH
def test_embedded_heads_of_another_backbone_are_refused(kind):
    with pytest.raises(ValueError, match=r"was made with backbone='inctrl-tiny'.*Build it with the same backbone"):
        load_weights(kind(ClipBackbone(EMBEDDED_BACKBONE, random=True)), EMBEDDED_BACKBONE)


@pytest.mark.parametrize("kind", [InCTRL, InCTRLv2], ids=lambda kind: kind.__name__)
def test_models_take_the_embedded_heads_by_name(kind):
    model = kind(backbone=EMBEDDED_BACKBONE, weights=EMBEDDED_BACKBONE)
    assert model.model.branches == model.model.BRANCHES.keys()
