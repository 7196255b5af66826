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
_HALF = 1.1  # distance at which s_I is 0.5, see :func:`unit_of_distance`
_STEEPNESS = 5.0
_OWN = 0.95  # share of normal images whose distance from their own category's mean counts as ordinary
_BEYOND = 2.0  # how many times an ordinary distance is far, tried on photographs and textures


@torch.no_grad()
def set_distance(
    adapter: ResidualAdapter, head: ScoreHead, embeddings: Tensor, categories: Sequence[str], anomalous: Sequence[bool]
) -> None:
    """Make s_I rise with the distance of an image from the mean of its references.

    A sum of absolute coordinates, which ReLU layers can form exactly, stands for the length of the residual. It is
    measured in :func:`unit_of_distance`, so that it does not depend on the backbone.

    Args:
        adapter (ResidualAdapter): psi; its bottleneck holds a coordinate with either sign.
        head (ScoreHead): eta.
        embeddings (Tensor): Of training images, ``(n, D)`` of any length.
        categories (Sequence[str]): Category of each.
        anomalous (Sequence[bool]): Label of each.

    Raises:
        ValueError: If there are fewer than two categories, or they can't be told apart.
    """
    first, second, last = head.linear_layers
    count = min(adapter.down.out_features // 2, first.out_features // 2, len(embeddings) - 1)
    embeddings = embeddings.float()
    directions = principal_directions(embeddings, count)  # (d, D)
    unit = unit_of_distance(embeddings @ directions.T, categories, anomalous)

    for parameter in (*adapter.parameters(), *head.parameters()):
        parameter.zero_()
    head.reset_norms()
    adapter.down.weight[: 2 * count] = torch.cat([directions, -directions])
    adapter.up.weight[: 2 * count, : 2 * count] = torch.eye(2 * count)
    # psi has put out the positive and the negative parts of the coordinates; eta's first layer joins them again.
    signed = torch.cat([torch.eye(count), -torch.eye(count)], dim=1)
    first.weight[: 2 * count, : 2 * count] = torch.cat([signed, -signed])
    second.weight[:, : 2 * count] = 1 / unit
    last.weight.fill_(_STEEPNESS / last.in_features)
    last.bias.fill_(-_STEEPNESS * _HALF)


def unit_of_distance(coordinates: Tensor, categories: Sequence[str], anomalous: Sequence[bool]) -> float:
    """How far an image lies from what it does not belong to: the unit of the distance that s_I rises with.

    The mean distance between the means of two categories; or, where normal images differ almost as much as categories
    do, as photographs of few categories may, twice what nineteen of twenty stay within of their own mean.

    Args:
        coordinates (Tensor): Of image embeddings, ``(n, d)``.
        categories (Sequence[str]): Category of each.
        anomalous (Sequence[bool]): Label of each; means are those of all images.

    Returns:
        float: A sum of absolute differences of coordinates.

    Raises:
        ValueError: If there are fewer than two categories, or they can't be told apart.

    Example:
        >>> import torch
        >>> coordinates = torch.tensor([[0.0, 1.0], [0.0, 3.0], [4.0, 2.0], [6.0, 2.0]])
        >>> unit_of_distance(coordinates, ["nut", "nut", "bolt", "bolt"], [False] * 4)
        5.0
    """
    names = sorted(set(categories))
    if len(names) < 2:
        msg = f"image_branch='distance' measures by how far categories lie apart and needs two, got {names}."
        raise ValueError(msg)
    places = torch.tensor([names.index(category) for category in categories], device=coordinates.device)
    means = torch.stack([coordinates[places == i].mean(dim=0) for i in range(len(names))])
    apart = torch.cdist(means, means, p=1).sum() / (len(names) * (len(names) - 1))
    if not apart > 0:
        msg = f"image_branch='distance': the image embeddings of {names} are all the same."
        raise ValueError(msg)
    normal = ~torch.tensor(anomalous, device=coordinates.device)
    own = (coordinates - means[places]).abs().sum(dim=1)[normal]
    return max(float(apart), _BEYOND * float(own.quantile(_OWN)))


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
