"""The frozen towers against open_clip's own forward pass, and what is said when a backbone can't be had."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

import open_clip
import pytest
import torch
from torch import nn

from anomalib_inctrl.clip import ClipBackbone, default_blocks, image_convention
from anomalib_inctrl.shape_tower import ShapeTower, share_of_shapes, weigh

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SIDE = image_convention("inctrl-tiny").size[0]  # of the embedded backbone's images
VARIANTS = {
    "class-token": {},
    "average": {"vision": {"pool_type": "avg"}},
    "average-then-norm": {"vision": {"pool_type": "avg", "final_ln_after_pool": True}},
    "class-token-then-norm": {"vision": {"final_ln_after_pool": True}},
    "layer-scale": {"vision": {"ls_init_value": 0.1}},
    "quick-gelu": {"quick_gelu": True},
    "no-first-norm": {"vision": {"no_ln_pre": True}},
    "patch-dropout": {"vision": {"patch_dropout": 0.5}},
    "fixed-positions": {"vision": {"pos_embed_type": "sin_cos_2d"}},
    "not-square": {"vision": {"image_size": [32, 48]}},
    "custom-text": {"custom_text": True},
}


def randomised(name: str) -> nn.Module:
    """Build open_clip's own model, every parameter different from what it starts with."""
    model = open_clip.create_model(name).eval()
    for parameter in model.visual.parameters():
        nn.init.normal_(parameter, mean=0.1, std=0.2)
    return model


def pair(name: str, **options: object) -> tuple[ClipBackbone, nn.Module]:
    """Build our backbone and open_clip's model, with the same weights."""
    theirs = randomised(name)
    ours = ClipBackbone(name, **options)
    ours.visual.load_state_dict(theirs.visual.state_dict())
    return ours, theirs


@torch.no_grad()
def observe(model: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return open_clip's embedding and, by forward hooks, what each of its blocks put out, ``(B, 1 + N, W)``."""
    outputs: list[torch.Tensor] = []
    blocks = model.visual.transformer.resblocks
    hooks = [block.register_forward_hook(lambda _module, _inputs, output: outputs.append(output)) for block in blocks]
    pooled = model.encode_image(images)
    for hook in hooks:
        hook.remove()
    return pooled, [o if o.shape[0] == images.shape[0] else o.transpose(0, 1) for o in outputs]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("blocks", [None, (0, 2)], ids=["default-blocks", "last-block-tapped"])
def test_the_towers_are_open_clips(variant: str, blocks: tuple[int, ...] | None, register: Callable[..., str]):
    ours, theirs = pair(register(**VARIANTS[variant]), blocks=blocks)
    images = torch.randn(2, 3, *ours.image_size)
    pooled, outputs = observe(theirs, images)
    features = ours.encode_image(images)
    assert ours.blocks == (blocks or (1, 2))
    torch.testing.assert_close(features.pooled, pooled, rtol=1e-5, atol=1e-5)
    expected = torch.stack([outputs[block][:, 1:] for block in ours.blocks], dim=1)
    torch.testing.assert_close(features.patches, expected, rtol=1e-5, atol=1e-5)


def test_the_shortened_last_block_changes_nothing(register: Callable[..., str]):
    name = register()
    short, theirs = pair(name, blocks=(0,))
    images = torch.randn(2, 3, 32, 32)
    pooled, outputs = observe(theirs, images)
    torch.testing.assert_close(short.encode_image(images).pooled, pooled, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(short.encode_image(images).patches[:, 0], outputs[0][:, 1:], rtol=1e-5, atol=1e-5)


def test_the_embedded_backbone_is_open_clips(embedded_backbone: ClipBackbone):
    theirs = open_clip.create_model("inctrl-tiny").eval()
    theirs.visual.load_state_dict(embedded_backbone.visual.state_dict())
    images = torch.randn(2, 3, SIDE, SIDE)
    pooled, outputs = observe(theirs, images)
    features = embedded_backbone.encode_image(images)
    assert len(outputs) == embedded_backbone.depth
    assert embedded_backbone.blocks == (3, 4, 5)
    tower = embedded_backbone.shapes
    assert embedded_backbone.layers == ("block 3", "block 4", "block 5", "convolutions")
    seen = tower.see(images)
    scales, shapes = seen.scales, tower.embed(seen)
    both = pooled + shapes
    torch.testing.assert_close(features.pooled.norm(dim=-1), torch.ones(2), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(features.pooled, both / both.norm(dim=-1, keepdim=True), rtol=1e-5, atol=1e-5)
    assert shapes.norm() > 0.1 * pooled.norm()
    torch.testing.assert_close(embedded_backbone.encode_aligned(images).pooled, features.pooled, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(embedded_backbone.encode_patches(images), features.patches, rtol=1e-5, atol=1e-5)
    # The fourth layer is what the tower's stages see of a cell, brought to the width of tokens.
    assert [scale.shape[1:] for scale in scales] == [(64, 20, 20), *2 * [(96, 10, 10), (128, 5, 5)]]
    linear, row, column = tower.patches, 7, 3
    corner = [scales[0][1, :, row, column]]
    for scale in scales[1:]:  # bilinear, by the centres of cells
        factor = 20 // scale.shape[-1]
        y, x = (row + 0.5) / factor - 0.5, (column + 0.5) / factor - 0.5
        top, left = math.floor(y), max(math.floor(x), 0)
        down, right = y - top, max(x, 0) - left
        rows = scale[1, :, top] * (1 - down) + scale[1, :, top + 1] * down
        corner.append(rows[:, left] * (1 - right) + rows[:, left + 1] * right)
    cell = linear.weight @ torch.cat(corner) + linear.bias
    torch.testing.assert_close(features.patches[1, 3, row * 20 + column], cell, rtol=1e-4, atol=1e-5)
    expected = torch.stack([outputs[block][:, 1:] for block in (3, 4, 5)], dim=1)
    torch.testing.assert_close(features.patches[:, :2], expected[:, :2], rtol=1e-5, atol=1e-5)
    averaged = features.patches[:, 2].unflatten(1, embedded_backbone.grid_size)  # over neighbourhoods
    grid = expected[:, 2].unflatten(1, embedded_backbone.grid_size)
    torch.testing.assert_close(averaged[:, 7, 3], grid[:, 6:9, 2:5].flatten(1, 2).mean(dim=1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(averaged[:, 0, 19], grid[:, :2, 18:].flatten(1, 2).mean(dim=1), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_convolutional_tower_sees_contrast_but_no_more_than_a_quarter_of_the_pixels():
    torch.manual_seed(0)
    tower = ShapeTower(32, 72)
    coarse = torch.randn(2, 3, 80, 80)
    images = coarse.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    features = tower.describe(tower.see(images))
    assert features.shape == (2, 2, 144)
    torch.testing.assert_close(features.norm(dim=2), torch.full((2, 2), 12.0), rtol=1e-4, atol=0)
    torch.testing.assert_close(tower.describe(tower.see(coarse)), features)
    embedded = features[:, 0] @ tower.proj[:144] + features[:, 1] @ tower.proj[144:]
    share = torch.tensor([0.5, 0.5])[:, None]  # noise fills the frame
    rest = 0.75**0.5 * embedded.norm(dim=1, keepdim=True) * tower.surface
    torch.testing.assert_close(tower(images), share * embedded + rest)
    seen = tower.see(images)
    torch.testing.assert_close(seen.share, share[:, 0])
    torch.testing.assert_close(torch.stack([branch(seen.scales[0]) for branch in tower.branches], dim=1), features)
    assert tower.to_patches(seen, (10, 20)).shape == (2, 200, 72)
    # Half of its input is the image brought to mean 0 and deviation 1, written out here.
    taken: list[torch.Tensor] = []
    hook = tower.stem.register_forward_pre_hook(lambda _module, inputs: taken.append(inputs[0]))
    tower.see(images)
    hook.remove()
    mean, deviation = coarse.flatten(1).mean(1), coarse.flatten(1).std(1, correction=0)
    expected = (coarse - mean[:, None, None, None]) / (deviation[:, None, None, None] + 0.05)
    torch.testing.assert_close(taken[0], torch.cat([coarse, expected], dim=1))


@pytest.mark.parametrize(
    ("inner", "border", "share"),
    # Contrast of the border's 76 cells and of the 324 others: at the border 0.4 of the mean of all, or less, 0.6, 0.8.
    [
        (1.0, 0.0, 1.0),
        (1.0, 0.3505, 1.0),
        (1.0, 0.5485, 0.75),
        (0.05, 0.7642 * 0.05, 0.5),
        (0.2, 0.4, 0.5),
        (0.0, 0.0, 1.0),
    ],
)
def test_shapes_count_by_half_where_the_picture_has_no_background(inner: float, border: float, share: float):
    contrast = torch.full((1, 20, 20), border)
    contrast[:, 1:-1, 1:-1] = inner
    sign = (-1.0) ** torch.arange(80)
    grey = contrast.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2) * sign * sign[:, None]
    colours = 3.0 + grey[:, None] * torch.tensor([0.5, 1.0, 1.5])[:, None, None]
    found = share_of_shapes(torch.cat([colours, colours.mT, -2 * colours]))
    torch.testing.assert_close(found, torch.full((3,), share), atol=1e-3, rtol=0)


def test_gradients_reach_images_with_and_without_background():
    torch.manual_seed(0)
    tower = ShapeTower(16, 72)
    images = torch.zeros(2, 3, 80, 80)
    images[0, :, 30:50, 30:50] = torch.randn(3, 20, 20)
    images[1] = torch.randn(3, 80, 80)
    images.requires_grad_()
    assert tower.see(images).share.tolist() == [1.0, 0.5]
    tower(images)[:, 0].sum().backward()
    assert images.grad.isfinite().all()
    assert images.grad.abs().amax(dim=(1, 2, 3)).min() > 0


def test_what_shapes_lose_is_made_up_for_at_a_right_angle():
    torch.manual_seed(0)
    shapes, share = torch.randn(2, 3, 8), torch.tensor([[1.0, 0.5, 0.6], [0.0, 0.9, 0.8]])
    left, rest = weigh(shapes, share)
    torch.testing.assert_close(left, shapes * share[:, :, None])
    torch.testing.assert_close(left.square().sum(-1) + rest[..., 0].square(), shapes.square().sum(-1))
    assert rest[0, 0] == 0


def test_sizes_come_from_the_architecture(register: Callable[..., str]):
    backbone = ClipBackbone(register(vision={"image_size": [32, 48]}))
    assert (backbone.grid_size, backbone.num_patches, backbone.image_size) == ((4, 6), 24, (32, 48))
    assert (backbone.width, backbone.embed_dim, backbone.depth) == (32, 24, 3)


def test_tapped_blocks_are_sorted_and_counted_once(register: Callable[..., str]):
    assert ClipBackbone(register(), blocks=(2, 0, 2)).blocks == (0, 2)


@pytest.mark.parametrize(
    ("depth", "blocks"),
    [(12, (6, 8, 10)), (24, (13, 17, 21)), (32, (18, 23, 28)), (8, (4, 5, 6)), (7, (3, 4, 5)), (3, (1, 2)), (1, (0,))],
)
def test_default_blocks(depth: int, blocks: tuple[int, ...]):
    assert default_blocks(depth) == blocks


@pytest.mark.parametrize("blocks", [(3,), (-1, 1), ()])
def test_blocks_that_do_not_exist_are_refused_with_the_range(blocks: tuple[int, ...], register: Callable[..., str]):
    expected = rf"blocks must be among 0 to 2 \(0-based, at least one\), got {re.escape(str(list(blocks)))}"
    with pytest.raises(ValueError, match=expected):
        ClipBackbone(register(), blocks=blocks)


@pytest.mark.parametrize(
    "shape", [(3, SIDE, SIDE), (1, 1, SIDE, SIDE), (1, 3, SIDE, SIDE - 8), (2, 3, SIDE // 2, SIDE // 2)]
)
def test_images_of_another_shape_are_refused(shape: tuple[int, ...], embedded_backbone: ClipBackbone):
    with pytest.raises(ValueError, match=re.escape(f"(B, 3, {SIDE}, {SIDE}), got {shape}")):
        embedded_backbone.encode_image(torch.zeros(shape))


def test_an_unknown_backbone_is_refused_with_a_close_one():
    with pytest.raises(ValueError, match=r"no model 'ViT-B-16-plus-24'. Did you mean .*ViT-B-16-plus-240"):
        ClipBackbone("ViT-B-16-plus-24")


def test_an_unknown_tag_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"tagged 'laion5b'.*Tags: \['laion400m_e31', 'laion400m_e32'\]"):
        ClipBackbone("ViT-B-16-plus-240", "laion5b")


@pytest.mark.parametrize("file", ["weights.bin", "folder/weights"])
def test_a_missing_local_file_is_refused(file: str, register: Callable[..., str]):
    with pytest.raises(FileNotFoundError, match=rf"pretrained='{file}': there is no such file"):
        ClipBackbone(register(), file)


def test_a_local_file_gives_its_features(tmp_path: Path, register: Callable[..., str]):
    name = register()
    theirs = randomised(name)
    torch.save(theirs.state_dict(), tmp_path / "weights.pt")
    ours = ClipBackbone(name, tmp_path / "weights.pt")
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours.encode_image(images).pooled, theirs.encode_image(images), rtol=1e-5, atol=1e-5)
    assert ours.fingerprint != ClipBackbone(name).fingerprint


def test_a_file_of_another_architecture_is_named(tmp_path: Path, register: Callable[..., str]):
    wide = register("wide", vision={"width": 64})
    torch.save(open_clip.create_model(wide).state_dict(), tmp_path / "wide.pt")
    with pytest.raises(RuntimeError, match=r"(?s)wide\.pt holds no weights for micro: .*size mismatch"):
        ClipBackbone(register(), tmp_path / "wide.pt")


def test_a_file_that_is_no_checkpoint_is_named(tmp_path: Path, register: Callable[..., str]):
    (tmp_path / "notes.txt").write_text("no weights here")
    with pytest.raises(RuntimeError, match=r"notes\.txt holds no weights for micro"):
        ClipBackbone(register(), tmp_path / "notes.txt")


class Stub(nn.Module):
    """Stands in for the 200 million parameters that would be built before the download is tried."""

    def __init__(self, **config: object) -> None:
        super().__init__()
        self.config = config


def test_without_a_network_the_message_tells_the_ways_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from huggingface_hub.constants import HF_HUB_CACHE

    monkeypatch.setattr("open_clip.factory.CLIP", Stub)
    monkeypatch.setenv("HOME", str(tmp_path))  # an empty cache
    with pytest.raises(RuntimeError, match="could not be downloaded") as caught:
        ClipBackbone("ViT-B-16-plus-240", "laion400m_e32")
    message = str(caught.value)
    for part in ("'laion400m_e32'", HF_HUB_CACHE, str(tmp_path / ".cache/clip"), "pretrained=/path", "'inctrl-tiny'"):
        assert part in message


@pytest.mark.parametrize(
    "vision",
    [
        {"layers": [1, 1, 1, 1], "width": 16, "image_size": 64, "patch_size": None},
        {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "", "image_size": 224},
        {"attentional_pool": True},
        {"pool_type": "none"},
    ],
    ids=["ResNet", "timm", "CoCa", "no-pooling"],
)
def test_other_vision_towers_are_refused(vision: dict[str, object], register: Callable[..., str]):
    name = register("other", vision=vision)
    with pytest.raises(ValueError, match=r"other has no plain vision transformer.*Take one such as ViT-B-16-plus-240"):
        ClipBackbone(name)


def test_random_weights_are_the_same_every_time_and_leave_the_generator_alone(register: Callable[..., str]):
    name = register()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = ClipBackbone(name)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    second = ClipBackbone(name)
    assert first.fingerprint == second.fingerprint
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_random_weights_leave_the_generators_of_gpus_alone(
    monkeypatch: pytest.MonkeyPatch, register: Callable[..., str]
):
    seeded: list[int] = []
    monkeypatch.setattr("torch.cuda.manual_seed_all", seeded.append)
    ClipBackbone(register())
    assert seeded == []


def test_the_fingerprint_tells_weights_apart_and_survives_a_copy(register: Callable[..., str]):
    from anomalib_inctrl.clip import fingerprint

    backbone = ClipBackbone(register())
    assert fingerprint(backbone) == backbone.fingerprint
    backbone.visual.ln_post.bias.data[0] += 1e-3
    assert fingerprint(backbone) != backbone.fingerprint


def test_the_towers_are_frozen(register: Callable[..., str]):
    backbone = ClipBackbone(register())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert not any(module.training for module in backbone.train().modules())
    assert not any(module.training for module in nn.Sequential(backbone).train()[0].modules())


def test_pictures_and_images_are_each_others_inverse(tiny_backbone: ClipBackbone):
    pictures = torch.randint(256, (2, 3, SIDE, SIDE), dtype=torch.uint8)
    images = tiny_backbone.from_pictures(pictures)
    torch.testing.assert_close(images[0, 0, 0, 0], (pictures[0, 0, 0, 0] / 255 - 0.48145466) / 0.26862954)
    assert torch.equal(tiny_backbone.to_pictures(images), pictures)


def test_statistics_of_the_tag_are_used():
    assert image_convention("ViT-B-16-SigLIP", "webli") == ((224, 224), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    clip = image_convention("ViT-B-16-plus-240", "laion400m_e32")
    assert clip.size == (240, 240)
    assert clip.mean == (0.48145466, 0.4578275, 0.40821073)
    assert clip.std == (0.26862954, 0.26130258, 0.27577711)


def test_sentences_are_embedded_the_same_alone_and_in_chunks(tiny_backbone: ClipBackbone):
    sentences = [f"a photo of {n} cats." for n in range(131)]  # more than one chunk
    together = tiny_backbone.encode_sentences(sentences)
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(131))
    for i in (0, 64, 127, 128, 130):
        torch.testing.assert_close(together[i], tiny_backbone.encode_sentences([sentences[i]])[0], rtol=0, atol=1e-5)
