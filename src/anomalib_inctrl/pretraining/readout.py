"""The last step of the pre-training: what images and patches say about states, solved instead of learned."""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the customary name

from anomalib_inctrl.clip import fingerprint
from anomalib_inctrl.embedding_distance import principal_directions
from anomalib_inctrl.pretraining.objective import ANOMALOUS
from anomalib_inctrl.shape_tower import side_by_side, weigh

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from anomalib_inctrl.clip import ClipBackbone
    from anomalib_inctrl.pretraining.groups import Groups
    from anomalib_inctrl.shape_tower import ShapeTower

_RIDGE = 1e-2  # of the mean variance within categories
_DIRECTIONS = 200  # of the joint space in which the states of some word differ
_STILL = 40.0  # weight of the image embeddings' second moments beside the patches' covariance
_LOGIT_SCALE = 100.0  # CLIP's
_SHAPES = 2.0  # length of what the convolutional tower says of an image, its branches together; the class token's is 1
_WHITENED = 0.7  # power of whitening of the convolutional tower's patches; 1 would be all of it
_FURTHER_SCALES = 0.7  # length of what each stage of its branches says of patches; that of the shared layers is 1
_SHARE = 0.25  # of the log-odds; with all of them what little varies among images still counts too much


@torch.no_grad()
def align_readout(
    backbone: ClipBackbone,
    batches: Iterable[Groups],
    words: Sequence[str],
    uneven: Iterable[Tensor] = (),
) -> None:
    """Let images tell categories apart, patches normal from anomalous by the text, and images next to nothing of that.

    What images are projected to, by their class token and by each branch of the convolutional tower, is scaled so that
    those of one category vary alike in all directions (Fisher's discriminant for categories). A direction of
    its own takes what shapes lose in pictures without background (:func:`~anomalib_inctrl.shape_tower.weigh`). All of
    it is turned to where the captions of images are (:func:`turn_to`), which changes no distance among images but by
    what has no room there.

    Few images tell by themselves whether they are normal. What is left of their states is noise, and CLIP's factor 100
    makes it a large part of a training-free score. So the directions of the joint space in which prompts of the two
    states differ are left free of images. The projection gains on the first of them Fisher's linear discriminant of
    damaged patches, among the combinations that do not vary from image to image. Margins of patches become a quarter
    of its log-odds.

    Args:
        backbone (ClipBackbone): Its ``visual.proj``, ``shapes.proj`` and ``shapes.surface`` are changed in place.
        batches (Iterable[Groups]): Pictures to solve it on.
        words (Sequence[str]): Class names whose prompts span the directions, as many and as diverse as can be.
        uneven (Iterable[Tensor]): Normal pictures of further categories, ``(G, R, 3, H, W)``, ``uint8``, which are to
            vary alike in all directions as well.

    Raises:
        ValueError: If the backbone has no convolutional tower.
    """
    batches = list(batches)
    patches, tokens, shapes, share = _encode(backbone, batches)
    branches, width = shapes.shape[-2:]
    images = torch.cat([tokens, shapes.flatten(-2)], dim=-1)
    normals = int((~batches[0].labels[0]).sum())
    directions, distance = state_directions(torch.stack([backbone.text_prototypes(word) for word in words]))

    # Tokens as their projection has them, but for a rotation; shapes as they are.
    projection, tower = backbone.visual.proj, cast("ShapeTower", backbone.shapes)
    varied = (_encode_images(backbone, pictures) for pictures in uneven)
    normal_tokens, normal_shapes = zip((tokens[:, :normals], shapes[:, :normals]), *varied, strict=True)
    parts = [balance(torch.linalg.qr(projection.mT).R.mT, normal_tokens)]
    for branch in range(branches):
        described = [images[..., branch, :] for images in normal_shapes]
        parts.append(_SHAPES / math.sqrt(branches) * balance(torch.eye(width), described))
    coordinates = torch.block_diag(*parts)
    room = min(len(coordinates), projection.shape[1] - len(directions) - 1)  # and one for surfaces
    normal_images = images[:, :normals].flatten(0, 1)
    coordinates = coordinates @ principal_directions(normal_images @ coordinates, room).mT
    captions = backbone.encode_sentences([caption for batch in batches for caption in batch.captions])
    of_tokens, of_shapes = coordinates.split((tokens.shape[-1], branches * width))
    left, rest = weigh(shapes.flatten(-2) @ of_shapes, share)
    shown = F.normalize(torch.cat([tokens @ of_tokens + left, rest], dim=-1)[:, [0, -1]].flatten(0, 1), dim=-1)
    turned = turn_to(shown, captions, directions)
    of_tokens, of_shapes = of_tokens @ turned[:-1], of_shapes @ turned[:-1]

    coverage = torch.cat([batch.coverage for batch in batches])
    weights = still_discriminant(patches, coverage, F.normalize(tokens.flatten(0, 1), dim=-1))
    length = (patches @ of_tokens).norm(dim=-1).mean()
    telling = torch.outer(_SHARE * weights * length / (_LOGIT_SCALE * distance), directions[0])
    projection.copy_(of_tokens + telling)
    tower.proj.copy_(of_shapes)
    tower.surface.copy_(turned[-1])
    backbone.fingerprint = fingerprint(backbone)


@torch.no_grad()
def align_patches(backbone: ClipBackbone, pictures: Iterable[Tensor]) -> None:
    """Let patches of the convolutional tower differ alike in most directions, and little where there is little to see.

    What its stages see lies far from 0 and varies in few directions, so that cosines are near 1 and say the same as
    the blocks'. It is taken from its mean, every scale brought to a length of its own (the shared layers' count most),
    whitened in part along the principal directions there is room for, and set beside a constant as long as it is itself
    in the quadratic mean: patches that show nothing are then alike, instead of pointing anywhere.

    Args:
        backbone (ClipBackbone): Its ``shapes.patches`` are changed in place.
        pictures (Iterable[Tensor]): Normal ones, ``(I, 3, H, W)`` each, ``uint8``, at least one.

    Raises:
        ValueError: If the backbone has no convolutional tower.
    """
    tower = _tower_of(backbone)
    width, channels = tower.patches.weight.shape
    total, products, count = torch.zeros(channels).double(), torch.zeros(channels, channels).double(), 0
    for batch in pictures:
        scales = tower.see(backbone.from_pictures(batch)).scales
        cells = side_by_side(scales, backbone.grid_size).flatten(0, 1).double()
        total, products, count = total + cells.sum(dim=0), products + cells.mT @ cells, count + len(cells)
        sizes = [scale.shape[1] for scale in scales]
    mean = total / count
    covariance = products / count - torch.outer(mean, mean)
    shares = [1.0, *[_FURTHER_SCALES] * (len(sizes) - 1)]
    variances = covariance.diag().split(sizes)
    lengths = torch.cat([s / v.sum().sqrt() * torch.ones_like(v) for s, v in zip(shares, variances, strict=True)])
    values, vectors = torch.linalg.eigh(lengths[:, None] * covariance * lengths)
    room = min(width - 1, channels)
    factors = (values.clamp(min=0) + _RIDGE * values.mean()).pow(-_WHITENED / 2)[-room:]
    length = (values[-room:] * factors.square()).sum().sqrt()
    weight, bias = torch.zeros(width, channels), torch.zeros(width)
    weight[:room] = factors[:, None] * vectors[:, -room:].mT * lengths / length
    bias[:room], bias[-1] = -weight[:room] @ mean.float(), 1
    tower.patches.load_state_dict({"weight": weight, "bias": bias})
    backbone.fingerprint = fingerprint(backbone)


def _tower_of(backbone: ClipBackbone) -> ShapeTower:
    if backbone.shapes is None:
        msg = f"{backbone.name} has no convolutional tower; the readout is solved after the training of all towers."
        raise ValueError(msg)
    return backbone.shapes


@contextmanager
def _unprojected(backbone: ClipBackbone) -> Iterator[ShapeTower]:
    """Take the projections away, so that towers put out what these take, and give the convolutional one.

    Raises:
        ValueError: If the backbone has no convolutional tower.
    """
    visual, tower = backbone.visual, _tower_of(backbone)
    projection, visual.proj, backbone.shapes = visual.proj, None, None
    try:
        yield tower
    finally:
        visual.proj, backbone.shapes = projection, tower


def _encode(backbone: ClipBackbone, batches: Sequence[Groups]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the projections take: of patches ``(G, M, N, W)``, class tokens, shapes, and how much these count."""
    found: list[tuple[Tensor, ...]] = []
    with _unprojected(backbone) as tower:
        for batch in batches:
            pictures = backbone.from_pictures(batch.images.flatten(0, 1))
            features = backbone.encode_aligned(pictures)
            seen = tower.see(pictures)
            parts = features.aligned, features.pooled, tower.describe(seen), seen.share
            found.append(tuple(part.unflatten(0, batch.labels.shape) for part in parts))
    patches, tokens, shapes, share = (torch.cat(parts) for parts in zip(*found, strict=True))
    return patches, tokens, shapes, share


def _encode_images(backbone: ClipBackbone, images: Tensor) -> tuple[Tensor, Tensor]:
    """Class tokens and shapes of pictures ``(G, R, 3, H, W)``."""
    with _unprojected(backbone) as tower:
        pictures = backbone.from_pictures(images.flatten(0, 1))
        parts = backbone.encode_image(pictures).pooled, tower.describe(tower.see(pictures))
    tokens, shapes = (part.unflatten(0, images.shape[:2]) for part in parts)
    return tokens, shapes


def balance(start: Tensor, images: Sequence[Tensor]) -> Tensor:
    """Whiten what is said of images, and bring it to a mean length of 1.

    Args:
        start (Tensor): Projection to begin with, ``(E, E)``.
        images (Sequence[Tensor]): What is said of normal ones, ``(G, R, E)`` each, see :func:`category_whitening`.

    Returns:
        Tensor: ``(E, E)``.
    """
    projection = start @ category_whitening([part @ start for part in images])
    return projection / torch.cat([(part @ projection).norm(dim=-1).flatten() for part in images]).mean()


def turn_to(images: Tensor, captions: Tensor, avoided: Tensor) -> Tensor:
    """Turn embeddings into a wider space, to where their captions are (orthogonal Procrustes, Schoenemann 1966).

    Args:
        images (Tensor): ``(I, E)``.
        captions (Tensor): Of the same pictures, ``(I, D)``, ``D`` at least ``E`` and the number of avoided directions.
        avoided (Tensor): Orthonormal directions that images are to stay out of, ``(A, D)``.

    Returns:
        Tensor: ``(E, D)`` with orthonormal rows, orthogonal to what is avoided.
    """
    free = torch.linalg.qr(avoided.mT, mode="complete").Q[:, len(avoided) :]
    centred = [(embeddings - embeddings.mean(dim=0)).double() for embeddings in (images, captions @ free)]
    left, _, right = torch.linalg.svd(centred[0].mT @ centred[1], full_matrices=False)
    return (left @ right).to(images) @ free.mT


def category_whitening(parts: Sequence[Tensor]) -> Tensor:
    """Symmetric map after which embeddings of one category's normal images vary alike in all directions.

    Args:
        parts (Sequence[Tensor]): ``(G, R, D)`` each; numbers of categories and images may differ.

    Returns:
        Tensor: ``(D, D)``, positive definite.
    """
    scatters = []
    for images in parts:
        centred = (images - images.mean(dim=1, keepdim=True)).double()
        scatters.append(centred.mT @ centred / (images.shape[1] - 1))
    scatter = torch.cat(scatters).mean(dim=0)
    ridge = _RIDGE * scatter.trace() / len(scatter) * torch.eye(len(scatter))
    values, vectors = torch.linalg.eigh(scatter + ridge)
    return (vectors * (scatter.trace() / len(scatter) / values).sqrt() @ vectors.mT).to(parts[0])


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
