"""anomalib's own models on the embedded backbone: WinCLIP with its references put right, and the name for timm."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from anomalib.models import get_model
from anomalib.models.image.winclip.prompting import create_prompt_ensemble
from anomalib.models.image.winclip.utils import visual_association_score
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torchvision.transforms.v2.functional import normalize

from anomalib_inctrl import CorrectedWinClip
from anomalib_inctrl.clip import CLIP_MEAN, CLIP_STD, ClipBackbone
from anomalib_inctrl.models.win_clip.torch_model import AnyBackboneWinClipModel

SIDE = ClipBackbone("inctrl-tiny", random=True).image_size[0]


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def test_timm_knows_the_embedded_backbone(images, embedded_backbone):
    """The same tokens as the backbone's own, from images normalised as anomalib's models do."""
    features = timm.create_model("inctrl_tiny", pretrained=True, features_only=True, out_indices=(4, 6))
    maps = features(normalize(images, list(IMAGENET_DEFAULT_MEAN), list(IMAGENET_DEFAULT_STD)))
    backbone = ClipBackbone("inctrl-tiny", blocks=[4, 6])
    expected = backbone.encode_image(normalize(images, list(CLIP_MEAN), list(CLIP_STD))).patches
    rows, columns = backbone.grid_size
    for found, tokens in zip(maps, expected[:, :2].unbind(1), strict=True):
        torch.testing.assert_close(found[1, :, 2, 3], tokens[1, 2 * columns + 3], atol=1e-4, rtol=1e-4)
        assert found.shape == (2, backbone.width, rows, columns)
    assert features.feature_info.channels() == [backbone.width] * 2
    assert features.backbone.fingerprint == embedded_backbone.fingerprint
    untrained = timm.create_model("inctrl_tiny", pretrained=False, features_only=True)
    assert untrained.backbone.fingerprint != embedded_backbone.fingerprint
    with pytest.raises(ValueError, match="no classifier"):
        timm.create_model("inctrl_tiny", features_only=False)


@pytest.fixture(scope="module")
def model() -> CorrectedWinClip:
    return CorrectedWinClip(k_shot=2, backbone="inctrl-tiny", class_name="nut").eval()


def test_queries_that_are_references_have_no_residual(model, images):
    """As released they would have one, since only queries are normalised."""
    queries = model.pre_processor.transform(images)
    loader = [SimpleNamespace(image=images[:1]), SimpleNamespace(image=images[1:])]
    for normalised in (True, False):
        model.normalise_references = normalised
        references = model.collect_reference_images(loader)
        assert torch.equal(references, queries if normalised else images)
        model.model.setup("nut", references)
        _, windows, patches = model.model.encode_image(queries)
        compared = [(patches, model.model.patch_embeddings), *zip(windows, model.model.visual_embeddings, strict=True)]
        residual = max(float(visual_association_score(found, known).amax()) for found, known in compared)
        assert (residual < 1e-5) == normalised
    model.normalise_references = True


def test_zero_shot_score_is_the_softmax_of_the_ensembles(model, images):
    """By hand: cosines to the mean embeddings of anomalib's prompts, in this backbone's own words."""
    torch_model = AnyBackboneWinClipModel("inctrl-tiny", None).eval()
    torch_model.setup("nut")
    queries = normalize(images, list(CLIP_MEAN), list(CLIP_STD))
    backbone = ClipBackbone("inctrl-tiny")
    with torch.no_grad():
        pooled = backbone.encode_image(queries).pooled
        means = [backbone.text(backbone.tokenizer(e)).mean(0) for e in create_prompt_ensemble("nut")]
        cosines = torch.stack([torch.cosine_similarity(pooled, mean[None]) for mean in means], dim=1)
    expected = (cosines / 0.07).softmax(dim=1)[:, 1]
    torch.testing.assert_close(torch_model(queries).pred_score, expected, atol=1e-5, rtol=1e-4)


def test_few_shot_source(tmp_path):
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 255, (SIDE, SIDE, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    model = CorrectedWinClip(backbone="inctrl-tiny", k_shot=3, class_name="nut", few_shot_source=tmp_path)
    model.setup("test")
    assert model.model.k_shot == 3
    pixels = torch.from_numpy(np.asarray(Image.open(tmp_path / "1.png"))).permute(2, 0, 1) / 255
    torch.testing.assert_close(model.model.reference_images[1], normalize(pixels, list(CLIP_MEAN), list(CLIP_STD)))


def test_wrong_size():
    with pytest.raises(ValueError, match="takes images of"):
        CorrectedWinClip(backbone="inctrl-tiny").configure_pre_processor((240, 240))


def test_by_class_path():
    """Known to anomalib like the others; not by `get_model`'s bare name, which sees direct subclasses alone."""
    model = get_model({"class_path": "CorrectedWinClip", "init_args": {"backbone": "inctrl-tiny", "k_shot": 1}})
    assert isinstance(model, CorrectedWinClip)
