"""psi and eta that measure a distance instead of being trained by labels. Ours; the papers train them.

Data flow: embeddings of training images -> their principal directions -> psi passes an embedding's coordinates along
these on, with either sign -> eta adds up the absolute coordinates of the residual -> sigmoid.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from anomalib_inctrl.in_context import ResidualAdapter, ScoreHead

ImageBranch = Literal["trained", "distance"]

# Chosen on generated categories, photographs, textures and letters, see the embedded backbone's model card.
_HALF = 0.85  # distance at which s_I is 0.5; 1 is how far categories lie apart
_STEEPNESS = 5.0


@torch.no_grad()
def set_distance(adapter: ResidualAdapter, head: ScoreHead, embeddings: Tensor, categories: Sequence[str]) -> None:
    """Make s_I rise with the distance of an image from the mean of its references.

    A sum of absolute coordinates, which ReLU layers can form exactly, stands for the length of the residual. It is
    measured by how far the means of two categories lie apart on average, so that it does not depend on the backbone.

    Args:
        adapter (ResidualAdapter): psi; its bottleneck holds a coordinate with either sign.
        head (ScoreHead): eta.
        embeddings (Tensor): Of training images, ``(n, D)`` of any length.
        categories (Sequence[str]): Category of each.

    Raises:
        ValueError: If there are fewer than two categories, or they can't be told apart.
    """
    names = sorted(set(categories))
    if len(names) < 2:
        msg = f"image_branch='distance' measures by how far categories lie apart and needs two, got {names}."
        raise ValueError(msg)
    first, second, last = head.linear_layers
    count = min(adapter.down.out_features // 2, first.out_features // 2, len(embeddings) - 1)
    embeddings = embeddings.float()
    directions = principal_directions(embeddings, count)  # (d, D)
    members = [torch.tensor([name == category for category in categories]) for name in names]
    means = torch.stack([embeddings[rows].mean(dim=0) for rows in members]) @ directions.T  # (C, d)
    apart = torch.cdist(means, means, p=1).sum() / (len(names) * (len(names) - 1))
    if not apart > 0:
        msg = f"image_branch='distance': the image embeddings of {names} are all the same."
        raise ValueError(msg)

    for parameter in (*adapter.parameters(), *head.parameters()):
        parameter.zero_()
    head.reset_norms()
    adapter.down.weight[: 2 * count] = torch.cat([directions, -directions])
    adapter.up.weight[: 2 * count, : 2 * count] = torch.eye(2 * count)
    # psi has put out the positive and the negative parts of the coordinates; eta's first layer joins them again.
    signed = torch.cat([torch.eye(count), -torch.eye(count)], dim=1)
    first.weight[: 2 * count, : 2 * count] = torch.cat([signed, -signed])
    second.weight[:, : 2 * count] = 1 / apart
    last.weight.fill_(_STEEPNESS / last.in_features)
    last.bias.fill_(-_STEEPNESS * _HALF)


def principal_directions(embeddings: Tensor, count: int) -> Tensor:
    """Directions in which embeddings vary most.

    Args:
        embeddings (Tensor): ``(n, D)``.
        count (int): How many, less than ``n`` and at most ``D``.

    Returns:
        Tensor: ``(count, D)``, orthonormal.

    Example:
        >>> import torch
        >>> principal_directions(torch.tensor([[1.0, 2.0], [1.0, 5.0]]), 1).abs()
        tensor([[0., 1.]])
    """
    centred = (embeddings - embeddings.mean(dim=0)).double()
    values, vectors = torch.linalg.eigh(centred.T @ centred)
    return vectors[:, values.argsort(descending=True)[:count]].T.to(embeddings)
