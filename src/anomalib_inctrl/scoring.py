"""The mathematics the models share, as functions of tensors.

Axis letters: ``B`` queries, ``K`` references, ``L`` tapped blocks, ``N`` patches of an image, ``R = K * N`` reference
patches, ``W`` width of the vision tower, ``D`` width of the joint image-text space, ``H, W'`` pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the customary name


def nearest_residuals(query: Tensor, references: Tensor) -> Tensor:
    """Distance of every query patch to its nearest reference patch, averaged over the tapped blocks.

    ``M_x`` of InCTRL (arXiv 2403.06495, equations 1-2) in the scale of the published code, which halves the distance.
    One matrix product per block; shared references are not repeated for the queries.

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
        nearest = [(flat[block] @ references[block].mT).amax(dim=-1) for block in range(blocks)]
        similarity = torch.stack(nearest).mean(dim=0).reshape(-1, patches)
    return (0.5 * (1 - similarity)).clamp(0, 1)


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
    features = F.normalize(features, dim=-1)
    similarity = (features.unsqueeze(-2) @ prototypes.mT).squeeze(-2)
    return (scale * similarity).softmax(dim=-1)[..., 1]


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
