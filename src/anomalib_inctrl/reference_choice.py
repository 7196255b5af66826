"""Which of many normal images make good references, and whether given ones look representative.

InCTRL names unrepresentative prompts as its own limit. What is here works on image features alone, so that a choice can
be an experiment: drawn at random, spread out, or central.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the customary name

from anomalib_inctrl.clip import EMBEDDED_BACKBONE, ClipBackbone, ImageFeatures
from anomalib_inctrl.pre_processing import ClipPreProcessor
from anomalib_inctrl.reference_images import Selection, draw, read_references
from anomalib_inctrl.scoring import nearest_residuals

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_IMAGES_AT_ONCE = 32
_ODD_SPREADS = 3.0  # robust standard deviations above the median, the customary limit of outliers
_ODD_FACTOR = 1.25  # and at least this much above the median: references that hardly differ have no odd one
_MAD_TO_DEVIATION = 1.4826  # of a normal distribution
_ENOUGH_TO_TELL = 3  # of two references each is the other's only measure


# ---------------------------------------------------------------------------------------------------------- selection
def select(
    paths: Sequence[str],
    k_shot: int,
    seed: int = 0,
    strategy: Selection = "random",
    backbone: ClipBackbone | None = None,
) -> list[str]:
    """Choose references from a pool of normal images.

    Args:
        paths (Sequence[str]): The pool.
        k_shot (int): How many.
        seed (int): Of the random draw. The other strategies choose the same whatever the seed.
        strategy (str): ``"random"``; ``"k_centre"`` takes images far from each other, which cover the pool;
            ``"medoid"`` takes the centres of ``k_shot`` clusters, which are typical of it.
        backbone (ClipBackbone | None): Whose image embeddings say what is far. ``None`` for the embedded one.

    Returns:
        list[str]: Chosen paths, sorted.

    Raises:
        ValueError: If the pool is smaller than ``k_shot``, or the strategy does not exist.
    """
    if strategy == "random" or len(paths) <= k_shot:
        return draw(paths, k_shot, seed)
    strategies = {"k_centre": k_centre, "medoid": k_medoids}
    if strategy not in strategies:
        msg = f"strategy must be 'random', 'k_centre' or 'medoid', got {strategy!r}."
        raise ValueError(msg)
    ordered = sorted(map(str, paths))
    pooled = encode(ordered, backbone or ClipBackbone(EMBEDDED_BACKBONE)).pooled
    return sorted(ordered[index] for index in strategies[strategy](pairwise_distances(pooled), k_shot))


def k_centre(distances: Tensor, k: int) -> list[int]:
    """Choose points such that no point is far from its nearest chosen one.

    Gonzalez, "Clustering to minimize the maximum intercluster distance", 1985: begin with the medoid, then add the
    point farthest from those chosen. At most twice as far as the best choice.

    Args:
        distances (Tensor): Between all points, ``(N, N)``.
        k (int): How many, 1 to ``N``.

    Example:
        >>> import torch
        >>> points = torch.tensor([0.0, 1.0, 2.0, 10.0])
        >>> k_centre((points[:, None] - points).abs(), 3)
        [1, 3, 0]
    """
    chosen = [int(distances.sum(dim=1).argmin())]
    nearest = distances[chosen[0]].clone()
    while len(chosen) < k:
        nearest[chosen] = -1
        chosen.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, distances[chosen[-1]])
    return chosen


def k_medoids(distances: Tensor, k: int) -> list[int]:
    """Choose points such that the sum of the distances to the nearest chosen one is small.

    Partitioning around medoids (Kaufman & Rousseeuw, 1990): greedy build, then the best swap as long as one helps.

    Args:
        distances (Tensor): Between all points, ``(N, N)``.
        k (int): How many, 1 to ``N``.

    Example:
        >>> import torch
        >>> points = torch.tensor([0.0, 1.0, 2.0, 10.0])
        >>> k_medoids((points[:, None] - points).abs(), 1), k_medoids((points[:, None] - points).abs(), 2)
        ([1], [1, 3])
    """
    chosen: list[int] = []
    nearest = torch.full_like(distances[0], torch.inf)
    while len(chosen) < k:
        costs = torch.minimum(nearest, distances).sum(dim=1)
        costs[chosen] = torch.inf
        chosen.append(int(costs.argmin()))
        nearest = torch.minimum(nearest, distances[chosen[-1]])
    cost = nearest.sum()
    while True:
        swaps = [_best_swap(distances, chosen, out) for out in range(k)]
        best, out, into = min((*swap[:1], index, swap[1]) for index, swap in enumerate(swaps))
        if best >= float(cost) * (1 - 1e-6):  # rounding must not make it swap for ever
            return chosen
        chosen[out], cost = into, torch.tensor(best)


def _best_swap(distances: Tensor, chosen: list[int], out: int) -> tuple[float, int]:
    """Cost and point of the best replacement of ``chosen[out]``."""
    others = chosen[:out] + chosen[out + 1 :]
    rest = distances[others].amin(dim=0) if others else torch.full_like(distances[0], torch.inf)
    costs = torch.minimum(rest, distances).sum(dim=1)
    costs[others] = torch.inf
    return float(costs.min()), int(costs.argmin())


def pairwise_distances(pooled: Tensor) -> Tensor:
    """Cosine distances ``(N, N)`` in ``[0, 2]`` of embeddings ``(N, D)``; 0 on the diagonal."""
    unit = F.normalize(pooled, dim=-1)
    return (1 - unit @ unit.T).clamp(min=0).fill_diagonal_(0)


@torch.no_grad()
def encode(paths: Sequence[str | Path], backbone: ClipBackbone) -> ImageFeatures:
    """Read images as the models of this package do, and encode them."""
    transform: Any = ClipPreProcessor(backbone.convention).transform
    device = next(backbone.parameters()).device
    parts = []
    for start in range(0, len(paths), _IMAGES_AT_ONCE):
        images = read_references([str(p) for p in paths[start : start + _IMAGES_AT_ONCE]], transform).images
        parts.append(backbone.encode_image(images.to(device)))
    return ImageFeatures(*(torch.cat(part) for part in zip(*parts, strict=True)))


# --------------------------------------------------------------------------------------------------------- diagnostic
class ReferenceCheck(NamedTuple):
    """How well references stand for each other, and for other normal images if there are any.

    Attributes:
        names (list[str]): File names of the references, in the order they were given.
        residuals (Tensor): What a model would call an anomaly about each reference if the others were its references:
            the largest patch residual, ``(K,)`` in ``[0, 1]``. NaN for a single reference.
        odd (list[bool]): Whether a reference stands out from the others.
        pool_residuals (Tensor): Of other normal images against all references, ``(M,)``; empty without a pool.
    """

    names: list[str]
    residuals: Tensor
    odd: list[bool]
    pool_residuals: Tensor

    @property
    def uncovered(self) -> float:
        """Share of the pool that lies farther from the references than these from each other; NaN if not known."""
        if not len(self.pool_residuals) or len(self.names) < 2:
            return float("nan")
        return float((self.pool_residuals > self.residuals.amax()).float().mean())

    @property
    def verdict(self) -> str:
        """One sentence for people."""
        odd = [name for name, is_odd in zip(self.names, self.odd, strict=True) if is_odd]
        if len(self.names) < 2:
            return "One reference can't be compared with others: add at least two more to have them checked."
        if odd:
            return f"Look at {', '.join(odd)}: unlike the other references. A defect, another pose or another light?"
        if self.uncovered > 0.5:
            return (
                f"{self.uncovered:.0%} of the other normal images lie farther from the references than these from each "
                "other: they miss part of what is normal. Add more, or choose them with selection='k_centre'."
            )
        if len(self.names) < _ENOUGH_TO_TELL:
            return "Two references measure each other, so neither can be told to be the odd one: a third one would."
        return "The references look alike, none stands out."


@torch.no_grad()
def check_references(
    references: Sequence[str | Path],
    pool: Sequence[str | Path] = (),
    backbone: ClipBackbone | None = None,
) -> ReferenceCheck:
    """Compare references with each other, each left out in turn, and normal images of a pool with all of them.

    A reference is odd if its residual lies more than three robust standard deviations, and a quarter, above the median
    of all. The limits are customary ones, not tuned.

    Args:
        references (Sequence[str | Path]): Image files.
        pool (Sequence[str | Path]): Other normal images; those that are references are left out.
        backbone (ClipBackbone | None): Whose patches are compared. ``None`` for the embedded one.

    Raises:
        ValueError: If there is no reference, or a file is no image.
    """
    if not references:
        msg = "There are no references to check: name at least two images."
        raise ValueError(msg)
    backbone = backbone or ClipBackbone(EMBEDDED_BACKBONE)
    names = [str(path) for path in references]
    patches = F.normalize(encode(names, backbone).patches, dim=-1)  # (K, L, N, W)
    residuals = torch.stack([_residual(patches[i : i + 1], _others(patches, i)) for i in range(len(names))])
    others = sorted({str(path) for path in pool} - set(names))
    outside = torch.empty(0)
    if others:
        outside = torch.cat([_residual(p[None], patches)[None] for p in encode(others, backbone).patches])
    return ReferenceCheck(names, residuals, odd_ones(residuals), outside)


def odd_ones(residuals: Tensor) -> list[bool]:
    """Tell which of ``(K,)`` residuals stand out; none of fewer than three.

    Example:
        >>> import torch
        >>> odd_ones(torch.tensor([0.10, 0.11, 0.12, 0.30]))
        [False, False, False, True]
    """
    if len(residuals) < _ENOUGH_TO_TELL:
        return [False] * len(residuals)
    median = residuals.quantile(0.5)
    spread = _MAD_TO_DEVIATION * (residuals - median).abs().quantile(0.5)
    return ((residuals > median + _ODD_SPREADS * spread) & (residuals > _ODD_FACTOR * median)).tolist()


def _others(patches: Tensor, left_out: int) -> Tensor:
    return torch.cat([patches[:left_out], patches[left_out + 1 :]])


def _residual(query: Tensor, references: Tensor) -> Tensor:
    """Largest patch residual of one query ``(1, L, N, W)`` against references ``(K, L, N, W)``; NaN against none."""
    if not len(references):
        return torch.tensor(torch.nan)
    return nearest_residuals(F.normalize(query, dim=-1), references.transpose(0, 1).flatten(1, 2)).amax()
