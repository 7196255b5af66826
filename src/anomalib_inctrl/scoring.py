"""The mathematics the models share, as functions of tensors.

Axis letters: ``B`` queries, ``K`` references, ``L`` layers, ``N`` patches of an image, ``R = K * N`` reference
patches, ``W`` width of the vision tower, ``D`` width of the joint image-text space, ``H, W'`` pixels.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the customary name

Fusion = Literal["harmonic", "mean", "max", "text", "visual"]

_SMALLEST_STD = 1e-6
_PRODUCTS_AT_ONCE = 2**24  # similarities of query and reference patches that are held, 64 MB in single precision


def nearest_residuals(query: Tensor, references: Tensor) -> Tensor:
    """Distance of every query patch to its nearest reference patch, averaged over the layers.

    ``M_x`` of InCTRL (arXiv 2403.06495, equations 1-2) in the scale of the published code, which halves the distance.
    One matrix product per block, or a few to bound the memory; shared references are not repeated for the queries.

    Args:
        query (Tensor): Patch tokens ``(B, L, N, W)`` of any length.
        references (Tensor): Patch tokens of unit length: ``(L, R, W)`` shared by all queries, or ``(B, L, R, W)``.

    Returns:
        Tensor: Residuals ``(B, N)`` in ``[0, 1]``: 0 same direction, 0.5 orthogonal, 1 opposite.

    Raises:
        ValueError: If blocks or widths differ, or there is no reference patch.

    Example:
        >>> import torch
        >>> query = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]])
        >>> nearest_residuals(query, torch.tensor([[[1.0, 0.0]]]))
        tensor([[0.0000, 0.5000]])
    """
    batch, blocks, patches, width = query.shape
    repeated = references.ndim == 4 and references.shape[0] != batch
    if repeated or references.shape[-3] != blocks or references.shape[-1] != width or references.shape[-2] == 0:
        msg = (
            f"Query patches {tuple(query.shape)} and reference patches {tuple(references.shape)} do not fit: expected "
            f"references of shape (L={blocks}, R>0, W={width}), with a leading B={batch} if every query has its own."
        )
        raise ValueError(msg)
    query = F.normalize(query, dim=-1)
    if references.ndim == 4:
        similarity = (query @ references.mT).amax(dim=-1).mean(dim=1)
    else:
        flat = query.transpose(0, 1).reshape(blocks, -1, width)
        nearest = [_nearest_similarity(flat[block], references[block]) for block in range(blocks)]
        similarity = torch.stack(nearest).mean(dim=0).reshape(-1, patches)
    return (0.5 * (1 - similarity)).clamp(0, 1)


def _nearest_similarity(query: Tensor, references: Tensor) -> Tensor:
    """Largest product of every query vector ``(Q, W)`` with the references ``(R, W)``: ``(Q,)``.

    In pieces, so that memory does not grow with ``Q * R``; in a graph, whose sizes are open, in one.
    """
    rows = query.shape[0] if torch.compiler.is_exporting() else max(1, _PRODUCTS_AT_ONCE // references.shape[0])
    if query.shape[0] <= rows:
        return (query @ references.mT).amax(dim=-1)
    return torch.cat([(piece @ references.mT).amax(dim=-1) for piece in query.split(rows)])


def class_probability(features: Tensor, prototypes: Tensor, scale: float = 100.0) -> Tensor:
    """Probability of the anomalous class for features of the joint space.

    ``s_a`` of InCTRL (equation 6, with CLIP's scale as the published code has it).

    Args:
        features (Tensor): ``(..., D)`` of any length.
        prototypes (Tensor): Normal and anomalous text prototype of unit length, ``(2, D)`` or ``(B, 2, D)`` for
            features ``(B, D)``.
        scale (float): Factor on the cosine similarities before the softmax.

    Returns:
        Tensor: Probabilities ``(...)`` in ``[0, 1]``.

    Example:
        >>> import torch
        >>> class_probability(torch.tensor([[3.0, 3.0], [0.0, 2.0]]), torch.eye(2))
        tensor([0.5000, 1.0000])
    """
    return abnormality_margin(F.normalize(features, dim=-1), prototypes, scale).sigmoid()


def to_pixels(patch_map: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Upsample a value per patch to a value per pixel, bilinearly.

    Args:
        patch_map (Tensor): ``(B, N)``, patches in row-major order.
        grid (tuple[int, int]): Rows and columns of patches, ``N = rows * columns``.
        size (tuple[int, int]): Height and width in pixels.

    Returns:
        Tensor: ``(B, 1, H, W')`` in the range of the input.

    Example:
        >>> import torch
        >>> to_pixels(torch.tensor([[0.0, 1.0]]), grid=(1, 2), size=(1, 4))
        tensor([[[[0.0000, 0.2500, 0.7500, 1.0000]]]])
    """
    maps = patch_map.reshape(-1, 1, *grid)
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


class Gaussian(NamedTuple):
    """Mean and standard deviation that scores are measured by, scalars."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, scores: Tensor) -> Gaussian:
        """Estimate both from scores of any shape; scores that are all the same get a tiny deviation instead of none."""
        return cls(scores.mean(), scores.std(correction=0).clamp(min=_SMALLEST_STD))


def abnormality_margin(features: Tensor, prototypes: Tensor, scale: float = 100.0) -> Tensor:
    """By how much features lie nearer to the anomalous than to the normal prototype: the log-odds of the anomaly.

    Its sigmoid is :func:`class_probability`, for features of unit length. Taken in single precision at least: the
    prototypes of both states are nearly alike, and of two cosines in half precision little is left to subtract.

    Args:
        features (Tensor): ``(..., D)``, unit length.
        prototypes (Tensor): Normal and anomalous text prototype of unit length, ``(2, D)``, or ``(..., 2, D)`` that
            broadcasts with the features.
        scale (float): Factor on the cosine similarities; 100 is CLIP's.

    Returns:
        Tensor: ``(...)``, unbounded; 0 where both are equally near.

    Example:
        >>> import torch
        >>> abnormality_margin(torch.tensor([[0.6, 0.8], [1.0, 0.0]]), torch.eye(2), scale=10.0)
        tensor([  2.0000, -10.0000])
    """
    features, prototypes = (
        tensor.to(torch.promote_types(tensor.dtype, torch.float32)) for tensor in (features, prototypes)
    )
    contrast = prototypes[..., 1, :] - prototypes[..., 0, :]
    return scale * (features * contrast).sum(dim=-1)


def deviation(scores: Tensor, reference: Gaussian) -> Tensor:
    """Standard deviations that scores lie above a reference: ``(s - mu) / sigma`` of deviation networks.

    Pang et al., arXiv 1911.08623, equation 5.

    Example:
        >>> import torch
        >>> deviation(torch.tensor([3.0, 1.0]), Gaussian(torch.tensor(2.0), torch.tensor(0.5)))
        tensor([ 2., -2.])
    """
    return (scores - reference.mean) / reference.std


def top_k_mean(values: Tensor, fraction: float) -> Tensor:
    """Mean of the largest values of every row: Top-K multiple instance learning (arXiv 2108.00462).

    Args:
        values (Tensor): ``(B, N)``.
        fraction (float): Share of the ``N`` values that count, at least one of them.

    Returns:
        Tensor: ``(B,)``.

    Example:
        >>> import torch
        >>> top_k_mean(torch.tensor([[1.0, 4.0, 2.0, 3.0]]), 0.5)
        tensor([3.5000])
    """
    count = max(1, round(fraction * values.shape[-1]))
    return values.topk(count, dim=-1).values.mean(dim=-1)


def fuse(text: Tensor, visual: Tensor, how: Fusion) -> Tensor:
    """Join the evidence of text and of visual memory.

    Args:
        text (Tensor): Values in ``[0, 1]``, any shape.
        visual (Tensor): Values in ``[0, 1]``, same shape.
        how (str): ``"harmonic"`` mean, which is small if either is, as PromptAD has it (arXiv 2404.05231);
            arithmetic ``"mean"``; ``"max"``; or one of them alone, ``"text"`` or ``"visual"``.

    Returns:
        Tensor: Values in ``[0, 1]``.

    Example:
        >>> import torch
        >>> text, visual = torch.tensor([0.5, 0.0, 0.0]), torch.tensor([0.25, 1.0, 0.0])
        >>> fuse(text, visual, "harmonic")  # 2 * 0.125 / 0.75
        tensor([0.3333, 0.0000, 0.0000])
        >>> fuse(text, visual, "mean")
        tensor([0.3750, 0.5000, 0.0000])
    """
    if how == "harmonic":
        total = text + visual
        return 2 * text * visual / torch.where(total > 0, total, torch.ones_like(total))
    if how == "mean":
        return (text + visual) / 2
    if how == "max":
        return torch.maximum(text, visual)
    return text if how == "text" else visual
