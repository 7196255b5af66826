"""The last step of the pre-training: what images and patches say about states, solved instead of learned."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the customary name

from anomalib_inctrl.pretraining.objective import ANOMALOUS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from anomalib_inctrl.clip import ClipBackbone
    from anomalib_inctrl.pretraining.groups import Groups

_DIRECTIONS = 24  # of the joint space in which the states of some word differ
_STILL = 10.0  # weight of the image embeddings' second moments beside the patches' covariance
_LOGIT_SCALE = 100.0  # CLIP's
_SHARE = 0.25  # of the log-odds; with all of them what little varies among images still counts too much


@torch.no_grad()
def align_readout(backbone: ClipBackbone, batches: Iterable[Groups], words: Sequence[str]) -> None:
    """Let patches tell normal from anomalous by the text, and whole images say next to nothing about it.

    Few images tell by themselves whether they are normal. What is left of their states is noise, and CLIP's factor 100
    makes it a large part of a training-free score. So the projection into the joint space loses the few directions in
    which prompts of the two states differ, and gains on the first of them Fisher's linear discriminant of damaged
    patches, among the combinations that do not vary from image to image. Margins of patches become a quarter of its
    log-odds.

    Args:
        backbone (ClipBackbone): Its ``visual.proj`` is changed in place.
        batches (Iterable[Groups]): Pictures to solve it on.
        words (Sequence[str]): Class names whose prompts span the directions, as many and as diverse as can be.
    """
    directions, distance = state_directions(torch.stack([backbone.text_prototypes(word) for word in words]))
    visual = backbone.visual
    projection, visual.proj = visual.proj, None  # without it features are what the projection takes
    try:
        encoded = [(backbone.encode_aligned(backbone.from_pictures(b.images.flatten(0, 1))), b) for b in batches]
    finally:
        visual.proj = projection
    patches = torch.cat([features.aligned.unflatten(0, b.labels.shape) for features, b in encoded])
    images = F.normalize(torch.cat([features.pooled for features, _ in encoded]), dim=-1)
    weights = still_discriminant(patches, torch.cat([b.coverage for _, b in encoded]), images)
    neutral = projection - projection @ directions.mT @ directions
    length = (patches @ neutral).norm(dim=-1).mean()
    projection.copy_(neutral + torch.outer(_SHARE * weights * length / (_LOGIT_SCALE * distance), directions[0]))


def state_directions(prototypes: Tensor, count: int = _DIRECTIONS) -> tuple[Tensor, Tensor]:
    """Principal directions of the differences between anomalous and normal prototypes.

    Args:
        prototypes (Tensor): ``(number of words, 2, D)``.
        count (int): Number of directions.

    Returns:
        tuple[Tensor, Tensor]: Orthonormal ``(count, D)``, the first pointing to the anomalous state; and how far the
        states lie apart along it, a scalar.
    """
    differences = prototypes[:, 1] - prototypes[:, 0]
    directions = torch.linalg.svd(differences, full_matrices=False).Vh[:count]
    along = (differences @ directions[0]).mean()
    directions[0] *= along.sign()
    return directions, along.abs()


def still_discriminant(patches: Tensor, coverage: Tensor, images: Tensor, still: float = _STILL) -> Tensor:
    """Fisher's discriminant of anomalous patches within categories, in which images all score about 0.

    Args:
        patches (Tensor): ``(G, M, N, W)``.
        coverage (Tensor): ``(G, M, N)``, see :class:`anomalib_inctrl.pretraining.groups.Groups`.
        images (Tensor): ``(I, W)``.
        still (float): How much the images' second moments count beside the patches' covariance.

    Returns:
        Tensor: ``(W,)``.

    Raises:
        ValueError: If no category has both kinds of patches.
    """
    width = patches.shape[-1]
    scatter, shifts = [], []
    for tokens, share in zip(patches.double().flatten(1, 2), coverage.flatten(1), strict=True):
        kinds = tokens[share == 0], tokens[share >= ANOMALOUS]
        if all(map(len, kinds)):
            normal, anomalous = (kind.mean(dim=0) for kind in kinds)
            shifts.append(anomalous - normal)
            scatter += [kind.T.cov(correction=0) for kind in kinds if len(kind) > 1]
    if not shifts:
        msg = "There is no category with both normal and anomalous patches."
        raise ValueError(msg)
    covariance = torch.stack(scatter).mean(dim=0)
    moments = images.double().T @ images.double() / len(images)
    ridge = 1e-3 * covariance.trace() / width * torch.eye(width)
    return torch.linalg.solve(covariance + still * moments + ridge, torch.stack(shifts).mean(dim=0)).float()


def whole_words(backbone: ClipBackbone, count: int, generator: torch.Generator) -> list[str]:
    """Draw words that are single tokens of the backbone's tokenizer, of three letters or more."""
    tokenizer = backbone.tokenizer
    tokens = [token for token, number in tokenizer.encoder.items() if number < tokenizer.sot_token_id]
    ends = [token.removesuffix("</w>") for token in tokens if token.endswith("</w>")]
    words = sorted(word for word in ends if word.isalpha() and word.isascii() and len(word) >= 3)
    return [words[i] for i in torch.randperm(len(words), generator=generator)[:count].tolist()]
