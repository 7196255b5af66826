"""The models against oracles written from the equations: one image, one block, one patch, one sentence at a time.

The oracles take nothing from the package but the list of sentences (checked word by word in ``unit``) and the cut
tokenizer of the embedded backbone. Features come from open_clip's own towers, through hooks on its blocks.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import open_clip
import pytest
import torch
from open_clip import factory
from torch import Tensor, nn

from anomalib_inctrl.checkpoints import load_weights
from anomalib_inctrl.clip import EMBEDDED_TRUNK, ClipBackbone, image_convention
from anomalib_inctrl.models.inctrl.torch_model import InCTRLModel
from anomalib_inctrl.models.inctrl_v2.torch_model import InCTRLv2Model
from anomalib_inctrl.prompts import prompt_ensemble

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

TOLERANCE = {"rtol": 0, "atol": 1e-5}
SIDE = image_convention(EMBEDDED_TRUNK).size[0]  # of the small backbone's images


# ------------------------------------------------------------------------------------------------------------- oracle
class Towers:
    """open_clip's own model, its blocks counted from 1 as the papers do."""

    def __init__(self, clip: nn.Module, tokenizer: Callable[[list[str]], Tensor], blocks: tuple[int, ...]) -> None:
        self.clip, self.tokenizer, self.blocks = clip.eval(), tokenizer, blocks
        self._prototypes: dict[str, list[Tensor]] = {}

    @torch.no_grad()
    def image(self, image: Tensor) -> tuple[list[Tensor], Tensor]:
        """Patch tokens ``[N, W]`` of every tapped block, and the embedding ``[D]``, of one image."""
        tokens: list[Tensor] = []
        resblocks = self.clip.visual.transformer.resblocks
        hooks = [
            resblocks[counted - 1].register_forward_hook(lambda _m, _i, output: tokens.append(output.squeeze()))
            for counted in self.blocks
        ]
        embedding = self.clip.encode_image(image[None])[0]
        for hook in hooks:
            hook.remove()
        return [t[1:] for t in tokens], embedding

    @torch.no_grad()
    def prototypes(self, class_name: str) -> list[Tensor]:
        """F_n and F_a: unit embeddings, averaged, brought to unit length."""
        if class_name not in self._prototypes:
            self._prototypes[class_name] = []
            for sentences in prompt_ensemble(class_name):
                embeddings = [e / e.norm() for e in self.clip.encode_text(self.tokenizer(sentences))]
                mean = sum(embeddings) / len(embeddings)
                self._prototypes[class_name].append(mean / mean.norm())
        return self._prototypes[class_name]


class Head(NamedTuple):
    """Two hidden layers as ``(weight, bias, mean, variance, scale, shift)``, and the last ``(weight, bias)``."""

    hidden: list[tuple[Tensor, ...]]
    last: tuple[Tensor, Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        for weight, bias, mean, variance, scale, shift in self.hidden:
            x = weight @ x + bias
            x = torch.where(x > 0, x, torch.zeros_like(x))
            x = (x - mean) / (variance + 1e-5).sqrt() * scale + shift
        return 1 / (1 + torch.exp(-(self.last[0] @ x + self.last[1])[0]))


def residual_map(query: list[Tensor], references: list[list[Tensor]]) -> Tensor:
    """M_x: half of one minus the cosine with the nearest of all patches of all references, averaged over the blocks."""
    total = torch.zeros(query[0].shape[0])
    for block, patches in enumerate(query):
        candidates = [r / r.norm(dim=1, keepdim=True) for r in (reference[block] for reference in references)]
        for n, patch in enumerate(patches):
            nearest = max((c @ patch).max() / patch.norm() for c in candidates)
            total[n] += 0.5 * (1 - nearest)
    return total / len(query)


def adapt(down: Tensor, up: Tensor, embedding: Tensor) -> Tensor:
    """psi."""
    return torch.clamp(up @ torch.clamp(down @ embedding, min=0), min=0)


def abnormal(feature: Tensor, prototypes: list[Tensor], scale: float) -> Tensor:
    """Abnormal entry of the softmax over scaled cosines with F_n and F_a."""
    cosines = ((feature @ p).double() / feature.norm() for p in prototypes)  # single precision ends at exp(88)
    normal, anomalous = (torch.exp(scale * cosine) for cosine in cosines)
    return (anomalous / (normal + anomalous)).float()


def upsample(patch_map: Tensor, size: int = SIDE) -> Tensor:
    """Bilinear interpolation of a square grid, pixel centres in register, pixel by pixel along each axis."""
    side = math.isqrt(len(patch_map))
    grid = patch_map.reshape(side, side)
    matrix = torch.zeros(size, side)
    for pixel in range(size):
        position = min(max((pixel + 0.5) * side / size - 0.5, 0), side - 1)
        below = min(int(position), side - 2)
        matrix[pixel, below] += 1 - (position - below)
        matrix[pixel, below + 1] += position - below
    return matrix @ grid @ matrix.T


class Evidence(NamedTuple):
    """What both models start from."""

    towers: Towers
    query: tuple[list[Tensor], Tensor]
    references: list[tuple[list[Tensor], Tensor]]
    prototypes: list[Tensor]

    @property
    def residuals(self) -> Tensor:
        return residual_map(self.query[0], [r[0] for r in self.references])

    @property
    def text(self) -> Tensor:
        return abnormal(self.query[1], self.prototypes, 100.0)

    def image_score(self, down: Tensor, up: Tensor, head: Head) -> Tensor:
        adapted = [adapt(down, up, r[1]) for r in self.references]
        return head(sum(adapted) / len(adapted) - adapt(down, up, self.query[1]))


def look(towers: Towers, image: Tensor, references: Tensor, class_name: str) -> Evidence:
    return Evidence(towers, towers.image(image), [towers.image(r) for r in references], towers.prototypes(class_name))


def inctrl(evidence: Evidence, down: Tensor, up: Tensor, image_head: Head, holistic_head: Head) -> dict[str, Tensor]:
    """Equations 1-8 in the version of the published code."""
    residuals = evidence.residuals
    image_score, text_score = evidence.image_score(down, up, image_head), evidence.text
    holistic = holistic_head(torch.stack([m + image_score + text_score for m in residuals]))
    return {
        "patch_residuals": residuals,
        "patch_score": residuals.max(),
        "image_score": image_score,
        "text_score": text_score,
        "holistic_score": holistic,
        "score": (holistic + residuals.max()) / 2,
    }


def patch_abnormality(
    query: list[Tensor], stages: list[tuple[Tensor, Tensor]], prototypes: list[Tensor], scale: float = 1 / 0.07
) -> Tensor:
    """S_a: adapted patches against the text, averaged over the blocks."""
    return torch.stack(
        [
            sum(
                abnormal(up @ torch.clamp(down @ tokens[n], min=0), prototypes, scale)
                for tokens, (down, up) in zip(query, stages, strict=True)
            )
            / len(query)
            for n in range(query[0].shape[0])
        ]
    )


# ---------------------------------------------------------------------------------------------------- models at hand
def our_head(head: nn.Module) -> Head:
    linear1, _, norm1, linear2, _, norm2, linear3 = head.layers
    hidden = [
        (linear.weight, linear.bias, norm.running_mean, norm.running_var, norm.weight, norm.bias)
        for linear, norm in ((linear1, norm1), (linear2, norm2))
    ]
    return Head(hidden, (linear3.weight, linear3.bias))


def our_stages(adapter: nn.Module, blocks: int) -> list[tuple[Tensor, Tensor]]:
    stages = [(stage[0].weight, stage[2].weight) for stage in adapter.stages]
    return stages * (blocks // len(stages))


def randomise(model: nn.Module) -> nn.Module:
    """Draw everything but the towers, batch norm statistics included."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if not name.startswith("backbone."):
            nn.init.normal_(parameter, std=0.2, generator=generator)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.normal_(std=0.3, generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
    return model.eval()


@pytest.fixture(scope="module")
def towers(tiny_backbone: ClipBackbone) -> Towers:
    clip = open_clip.create_model(EMBEDDED_TRUNK)
    clip.visual.load_state_dict(tiny_backbone.visual.state_dict())
    text = {k: v for k, v in tiny_backbone.text.model.state_dict().items() if not k.startswith("visual.")}
    assert not clip.load_state_dict(text, strict=False).unexpected_keys
    return Towers(clip, tiny_backbone.tokenizer, blocks=(4, 5, 6))


@pytest.fixture(scope="module")
def model_inctrl(tiny_backbone: ClipBackbone) -> InCTRLModel:
    return randomise(InCTRLModel(tiny_backbone, branches=InCTRLModel.BRANCHES))


@pytest.fixture(scope="module")
def model_v2(tiny_backbone: ClipBackbone) -> InCTRLv2Model:
    return randomise(InCTRLv2Model(tiny_backbone, branches=InCTRLv2Model.BRANCHES))


@pytest.fixture
def branches_restored(model_inctrl: InCTRLModel, model_v2: InCTRLv2Model) -> Iterator[None]:
    yield
    for model in (model_inctrl, model_v2):
        model.use_branches(model.BRANCHES)


def smooth(count: int, size: int = SIDE) -> Tensor:
    """Images with structure at several scales, so that patches differ."""
    coarse = nn.functional.interpolate(torch.randn(count, 3, 9, 9), size=size, mode="bilinear")
    return coarse + 0.3 * torch.randn(count, 3, size, size)


def assert_equal(explanation: NamedTuple, expected: dict[str, Tensor], row: int = 0) -> None:
    """Compare every field with the oracle's, which must have all that are not ``None``."""
    fields = {name: value for name, value in explanation._asdict().items() if value is not None}
    assert fields.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(fields[name][row].squeeze(), value, msg=lambda m, n=name: f"{n}: {m}", **TOLERANCE)


CASES = pytest.mark.parametrize(("k_shot", "class_name"), [(1, "metal_nut"), (2, "cat"), (8, "metal_nut")])


# --------------------------------------------------------------------------------------------------------------- text
@torch.no_grad()
def test_text_prototypes_sentence_by_sentence(tiny_backbone: ClipBackbone, towers: Towers):
    for row, sentence in enumerate(("a photo of cat", "a photo without cat")):
        embedding = towers.clip.encode_text(towers.tokenizer([f"{sentence} for anomaly detection."]))[0]
        torch.testing.assert_close(tiny_backbone.text_prototypes("cat")[row], embedding / embedding.norm(), **TOLERANCE)


def test_text_prototypes_of_the_ensemble(tiny_backbone: ClipBackbone, towers: Towers):
    ours = tiny_backbone.text_prototypes("metal_nut")
    torch.testing.assert_close(ours, torch.stack(towers.prototypes("metal_nut")), **TOLERANCE)


# ------------------------------------------------------------------------------------------------------------- InCTRL
@CASES
@torch.no_grad()
def test_inctrl(k_shot: int, class_name: str, model_inctrl: InCTRLModel, towers: Towers):
    references, images = smooth(k_shot), smooth(2)
    images[1] = references[0] + 0.3 * images[1]
    model_inctrl.set_references(references, class_name)
    explanation = model_inctrl.explain(images)
    for row in range(2):
        evidence = look(towers, images[row], references, class_name)
        heads = our_head(model_inctrl.image_head), our_head(model_inctrl.holistic_head)
        expected = inctrl(evidence, model_inctrl.adapter.down.weight, model_inctrl.adapter.up.weight, *heads)
        expected["anomaly_map"] = upsample(expected["patch_residuals"])
        assert_equal(explanation, expected, row)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@torch.no_grad()
def test_alpha_weighs_the_patch_score(
    alpha: float, model_inctrl: InCTRLModel, model_v2: InCTRLv2Model, monkeypatch: pytest.MonkeyPatch
):
    references, images = smooth(2), smooth(2)
    for model in (model_inctrl, model_v2):
        monkeypatch.setattr(model, "alpha", alpha)
        model.set_references(references, "cat")
        e = model.explain(images)
        rest = e.holistic_score if model is model_inctrl else (e.image_score + e.text_score) / 2
        torch.testing.assert_close(e.score, alpha * e.patch_score + (1 - alpha) * rest, **TOLERANCE)
        assert (e.patch_score - rest).abs().min() > 1e-3  # else alpha would not matter


@torch.no_grad()
def test_inctrl_training_free(model_inctrl: InCTRLModel, towers: Towers, branches_restored: None):
    references, image = smooth(2), smooth(1)[0]
    model_inctrl.use_branches([])
    model_inctrl.set_references(references, "metal_nut")
    evidence = look(towers, image, references, "metal_nut")
    residuals = evidence.residuals
    expected = {
        "patch_residuals": residuals,
        "patch_score": residuals.max(),
        "text_score": evidence.text,
        "score": (evidence.text + residuals.max()) / 2,
        "anomaly_map": upsample(residuals),
    }
    assert_equal(model_inctrl.explain(image[None]), expected)


@torch.no_grad()
def test_inctrl_without_the_holistic_branch(model_inctrl: InCTRLModel, towers: Towers, branches_restored: None):
    references, image = smooth(1), smooth(1)[0]
    model_inctrl.use_branches(["image"])
    model_inctrl.set_references(references, "cat")
    evidence = look(towers, image, references, "cat")
    heads = our_head(model_inctrl.image_head), our_head(model_inctrl.holistic_head)
    expected = inctrl(evidence, model_inctrl.adapter.down.weight, model_inctrl.adapter.up.weight, *heads)
    del expected["holistic_score"]
    expected["score"] = (expected["image_score"] + expected["text_score"]) / 4 + expected["patch_score"] / 2
    expected["anomaly_map"] = upsample(expected["patch_residuals"])
    assert_equal(model_inctrl.explain(image[None]), expected)


@torch.no_grad()
def test_inctrl_zero_shot(model_inctrl: InCTRLModel, towers: Towers):
    image = smooth(1)[0]
    model_inctrl.set_references(torch.zeros(0, 3, SIDE, SIDE), "metal_nut")
    text = look(towers, image, torch.zeros(0, 3, SIDE, SIDE), "metal_nut").text
    expected = {"text_score": text, "score": text, "anomaly_map": text.expand(SIDE, SIDE)}
    assert_equal(model_inctrl.explain(image[None]), expected)


# ----------------------------------------------------------------------------------------------------------- InCTRLv2
def inctrl_v2(evidence: Evidence, model: InCTRLv2Model, beta: float = 0.75, alpha: float = 0.5) -> dict[str, Tensor]:
    """Every intermediate result by the formulae of the paper, with all branches and references."""
    residuals, text = evidence.residuals, evidence.text
    image_score = evidence.image_score(model.adapter.down.weight, model.adapter.up.weight, our_head(model.image_head))
    blocks = len(evidence.query[0])
    abnormality = patch_abnormality(
        evidence.query[0], our_stages(model.discriminative_adapter, blocks), evidence.prototypes
    )
    one_class = patch_abnormality(evidence.query[0], our_stages(model.one_class_adapter, blocks), evidence.prototypes)
    discriminative_map, one_class_map = (residuals + abnormality) / 2, (residuals + one_class) / 2
    return {
        "patch_residuals": residuals,
        "patch_score": residuals.max(),
        "image_score": image_score,
        "text_score": text,
        "abnormality": abnormality,
        "normality": 1 - abnormality,
        "discriminative_map": discriminative_map,
        "one_class_abnormality": one_class,
        "one_class_map": one_class_map,
        "score": (1 - alpha) * (image_score + text) / 2 + alpha * residuals.max(),
        "anomaly_map": (1 - beta) * upsample(discriminative_map) + beta * upsample(one_class_map),
    }


@CASES
@torch.no_grad()
def test_inctrl_v2(k_shot: int, class_name: str, model_v2: InCTRLv2Model, towers: Towers):
    references, images = smooth(k_shot), smooth(2)
    model_v2.set_references(references, class_name)
    explanation = model_v2.explain(images)
    for row in range(2):
        assert_equal(explanation, inctrl_v2(look(towers, images[row], references, class_name), model_v2), row)


@torch.no_grad()
def test_inctrl_v2_with_an_adapter_for_every_block(tiny_backbone: ClipBackbone, towers: Towers):
    model = randomise(InCTRLv2Model(tiny_backbone, branches=InCTRLv2Model.BRANCHES, adapter_per_block=True))
    references, image = smooth(1), smooth(1)[0]
    model.set_references(references, "cat")
    assert_equal(model.explain(image[None]), inctrl_v2(look(towers, image, references, "cat"), model))


@torch.no_grad()
def test_the_discriminative_branch_has_another_factor_where_it_is_not_trained(
    tiny_backbone: ClipBackbone, towers: Towers
):
    model = randomise(InCTRLv2Model(tiny_backbone, branches=InCTRLv2Model.BRANCHES, map_scale=2.5))
    references, image = smooth(1), smooth(1)[0]
    model.set_references(references, "cat")
    evidence = look(towers, image, references, "cat")
    trained = inctrl_v2(evidence, model)
    stages = our_stages(model.discriminative_adapter, len(evidence.query[0]))
    abnormality = patch_abnormality(evidence.query[0], stages, evidence.prototypes, 2.5)
    fused = (evidence.residuals + abnormality) / 2
    expected = trained | {"abnormality": abnormality, "normality": 1 - abnormality, "discriminative_map": fused}
    expected["anomaly_map"] = upsample(0.25 * fused + 0.75 * trained["one_class_map"])
    assert_equal(model.explain(image[None]), expected)
    in_training = model.score(model.encode(image[None]), model.references.context("cat"), scale=1 / 0.07)
    torch.testing.assert_close(in_training.abnormality[0], trained["abnormality"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(in_training.score[0], trained["score"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
@torch.no_grad()
def test_beta_weighs_the_one_class_map(
    beta: float, model_v2: InCTRLv2Model, towers: Towers, monkeypatch: pytest.MonkeyPatch
):
    references, image = smooth(1), smooth(1)[0]
    monkeypatch.setattr(model_v2, "beta", beta)
    model_v2.set_references(references, "cat")
    expected = inctrl_v2(look(towers, image, references, "cat"), model_v2, beta=beta)
    assert_equal(model_v2.explain(image[None]), expected)


@pytest.mark.parametrize(
    "branches",
    [
        (),
        ("image",),
        ("discriminative",),
        ("one_class",),
        ("image", "discriminative"),
        ("image", "one_class"),
        ("discriminative", "one_class"),
    ],
    ids=lambda b: "+".join(b) or "training-free",
)
@torch.no_grad()
def test_inctrl_v2_without_some_branches(
    branches: tuple[str, ...], model_v2: InCTRLv2Model, towers: Towers, branches_restored: None
):
    references, image = smooth(1), smooth(1)[0]
    model_v2.use_branches(branches)
    model_v2.set_references(references, "cat")
    expected = inctrl_v2(look(towers, image, references, "cat"), model_v2)
    residuals = expected["patch_residuals"]
    if "image" not in branches:
        del expected["image_score"]
        expected["score"] = (expected["text_score"] + residuals.max()) / 2
    if "discriminative" not in branches:
        del expected["abnormality"], expected["normality"]
        expected["discriminative_map"] = residuals
    if "one_class" not in branches:
        del expected["one_class_abnormality"]
        expected["one_class_map"] = residuals
    local = {"discriminative", "one_class"} & set(branches)
    if len(local) < 2:  # one map is left, or the residuals
        only = f"{local.pop()}_map" if local else "patch_residuals"
        expected["anomaly_map"] = upsample(expected[only])
    assert_equal(model_v2.explain(image[None]), expected)


@pytest.mark.parametrize("branches", [InCTRLv2Model.BRANCHES, ("one_class",), ("image",)], ids=["all", "one", "image"])
@torch.no_grad()
def test_inctrl_v2_zero_shot(branches: object, model_v2: InCTRLv2Model, towers: Towers, branches_restored: None):
    image = smooth(1)[0]
    model_v2.use_branches(branches)
    model_v2.set_references(torch.zeros(0, 3, SIDE, SIDE), "cat")
    evidence = look(towers, image, torch.zeros(0, 3, SIDE, SIDE), "cat")
    text, blocks = evidence.text, len(evidence.query[0])
    expected = {"text_score": text, "score": text, "anomaly_map": text.expand(SIDE, SIDE)}
    if "discriminative" in branches:
        stages = our_stages(model_v2.discriminative_adapter, blocks)
        expected["abnormality"] = patch_abnormality(evidence.query[0], stages, evidence.prototypes)
        expected["normality"] = 1 - expected["abnormality"]
        expected["discriminative_map"] = expected["abnormality"]
    if "one_class" in branches:
        stages = our_stages(model_v2.one_class_adapter, blocks)
        expected["one_class_abnormality"] = patch_abnormality(evidence.query[0], stages, evidence.prototypes)
        expected["one_class_map"] = expected["one_class_abnormality"]
        expected["anomaly_map"] = upsample(expected["one_class_map"])
    if "discriminative" in branches:
        normal = upsample(expected["discriminative_map"])
        expected["anomaly_map"] = 0.25 * normal + 0.75 * expected["anomaly_map"]
    assert_equal(model_v2.explain(image[None]), expected)


# -------------------------------------------------------------------------------------------------- published files
MICRO = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 12, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture
def micro(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Twelve blocks like the published backbone's, but small; registered until the test ends."""
    image_convention("inctrl-tiny")  # registers itself once per process, which must not be undone
    monkeypatch.setattr(factory, "_MODEL_CONFIG_PATHS", list(factory._MODEL_CONFIG_PATHS))
    monkeypatch.setattr(factory, "_MODEL_CONFIGS", dict(factory._MODEL_CONFIGS))
    (tmp_path / "micro.json").write_text(json.dumps(MICRO))
    open_clip.add_model_config(tmp_path / "micro.json")
    return "micro"


def published_state(clip: nn.Module, num_patches: int) -> dict[str, Tensor]:
    """A state dict in the published layout: towers under open_clip's names, and heads whose ``bn1`` is not in use."""
    state = {k: v.clone() for k, v in clip.state_dict().items() if k != "logit_scale"}
    state |= {"adapter.fc.0.weight": torch.randn(6, 24), "adapter.fc.2.weight": torch.randn(24, 6)}
    for head, width in (("diff_head", num_patches), ("diff_head_ref", 24)):
        sizes = {"projection1": (128, width), "projection2": (64, 128), "projection3": (1, 64)}
        for layer, (rows, columns) in sizes.items():
            state[f"{head}.{layer}.weight"] = torch.randn(rows, columns) * columns**-0.5
            state[f"{head}.{layer}.bias"] = 0.3 * torch.randn(rows)
        for layer, size in (("bn1", width), ("bn2", 128), ("bn3", 64)):
            state[f"{head}.{layer}.weight"] = 1 + 0.3 * torch.randn(size)
            state[f"{head}.{layer}.bias"] = 0.3 * torch.randn(size)
            state[f"{head}.{layer}.running_mean"] = 0.3 * torch.randn(size)
            state[f"{head}.{layer}.running_var"] = 0.5 + torch.rand(size)
            state[f"{head}.{layer}.num_batches_tracked"] = torch.tensor(7)
    return state


def published_head(state: Mapping[str, Tensor], name: str) -> Head:
    def get(layer: str, *keys: str) -> tuple[Tensor, ...]:
        return tuple(state[f"{name}.{layer}.{key}"] for key in keys)

    norm = ("running_mean", "running_var", "weight", "bias")
    hidden = [
        (*get("projection1", "weight", "bias"), *get("bn2", *norm)),
        (*get("projection2", "weight", "bias"), *get("bn3", *norm)),
    ]
    return Head(hidden, get("projection3", "weight", "bias"))


class Published(NamedTuple):
    """A file in the published layout, its content, and the towers it holds."""

    path: Path
    state: dict[str, Tensor]
    towers: Towers

    def oracle(self, image: Tensor, references: Tensor, class_name: str) -> dict[str, Tensor]:
        adapter = self.state["adapter.fc.0.weight"], self.state["adapter.fc.2.weight"]
        heads = published_head(self.state, "diff_head_ref"), published_head(self.state, "diff_head")
        return inctrl(look(self.towers, image, references, class_name), *adapter, *heads)


@pytest.fixture
def published(micro: str, tmp_path: Path) -> Published:
    clip = open_clip.create_model(micro)
    for parameter in clip.parameters():
        nn.init.normal_(parameter, mean=0.05, std=0.3)
    state = published_state(clip, num_patches=16)
    torch.save(state, tmp_path / "published.pyth")
    return Published(
        tmp_path / "published.pyth", state, Towers(clip, open_clip.get_tokenizer(micro), blocks=(7, 9, 11))
    )


@torch.no_grad()
def test_a_published_checkpoint_gives_its_own_scores(published: Published, micro: str):
    model = InCTRLModel(ClipBackbone(micro)).eval()  # other towers, of random weights
    before = model.backbone.fingerprint
    load_weights(model, published.path)
    assert model.branches == {"image", "holistic"}
    assert model.backbone.fingerprint != before
    references, images = smooth(2, 32), smooth(2, 32)
    for class_name in ("metal_nut", "cat"):
        model.set_references(references, class_name)
        explanation = model.explain(images)
        for row in range(2):
            expected = published.oracle(images[row], references, class_name)
            for name, value in expected.items():
                torch.testing.assert_close(getattr(explanation, name)[row], value, **TOLERANCE)
    scores = explanation.score
    assert ((scores > 0.05) & (scores < 0.95)).all()  # not saturated, where parity would say little


@torch.no_grad()
def test_inctrl_v2_takes_the_image_branch_of_a_published_checkpoint(published: Published, micro: str):
    model = InCTRLv2Model(ClipBackbone(micro)).eval()
    load_weights(model, str(published.path))
    assert model.branches == {"image"}
    references, image = smooth(2, 32), smooth(1, 32)[0]
    model.set_references(references, "cat")
    explanation = model.explain(image[None])
    expected = published.oracle(image, references, "cat")
    for name in ("image_score", "text_score", "patch_residuals"):
        torch.testing.assert_close(getattr(explanation, name)[0], expected[name], **TOLERANCE)
    score = (expected["image_score"] + expected["text_score"]) / 4 + expected["patch_score"] / 2
    torch.testing.assert_close(explanation.score[0], score, **TOLERANCE)


def test_other_towers_leave_nothing_of_what_the_former_saw(published: Published, micro: str):
    model = InCTRLModel(ClipBackbone(micro)).eval()
    model.set_references(smooth(1, 32), "cat")
    former = model.references.context().prototypes.clone()
    load_weights(model, published.path)
    with pytest.raises(RuntimeError, match="set_references"):
        model(smooth(1, 32))
    model.set_references(smooth(1, 32), "cat")
    prototypes = model.references.context().prototypes
    torch.testing.assert_close(prototypes, torch.stack(published.towers.prototypes("cat")), **TOLERANCE)
    assert not torch.allclose(prototypes, former, atol=1e-2)


def test_a_published_checkpoint_without_towers_keeps_those_at_hand(published: Published, micro: str):
    heads = {k: v for k, v in published.state.items() if k.startswith(("adapter.", "diff_head"))}
    torch.save(heads, published.path)
    model = InCTRLModel(ClipBackbone(micro))
    before = model.backbone.fingerprint
    load_weights(model, published.path)
    assert model.backbone.fingerprint == before
    assert torch.equal(model.adapter.down.weight, published.state["adapter.fc.0.weight"])


def test_a_published_checkpoint_of_another_backbone_is_refused(published: Published, tiny_backbone: ClipBackbone):
    with pytest.raises(ValueError, match=r"towers in .*published\.pyth do not fit backbone='inctrl-tiny-trunk'"):
        load_weights(InCTRLModel(tiny_backbone), published.path)


def test_a_published_head_of_another_width_is_refused(published: Published, micro: str):
    state: dict[str, Any] = published.state | {"diff_head.projection1.weight": torch.zeros(128, 225)}
    torch.save(state, published.path)
    with pytest.raises(ValueError, match=r"The holistic_head of .*published\.pyth does not fit .*\(micro\)"):
        load_weights(InCTRLModel(ClipBackbone(micro)), published.path)
