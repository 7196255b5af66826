"""SPADE (Cohen & Hoshen, arXiv 2005.02357) as a torch module.

Axis letters: ``B`` queries, ``M`` normal images at hand, ``K`` of them nearest to a query, ``P`` places of the finest
level, ``C`` channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from anomalib.data import InferenceBatch
from anomalib.models.components import DynamicBufferMixin, GaussianBlur2d
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the customary name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anomalib_inctrl.models.spade.pyramids import ClipPyramid, Pyramid, TimmPyramid

_PLACES_AT_ONCE = 512  # bounds the memory of the distances between places


class SpadeExplanation(NamedTuple):
    """Every intermediate result of SPADE. Distances are squared and have no upper bound.

    Attributes:
        neighbors (Tensor): Nearest normal images, nearest first, ``(B, K)``, in the order they were remembered.
        score (Tensor): Mean distance to them, d(y), ``(B,)``.
        place_distances (Tensor): Mean distance of every place to the nearest places of these images, d(y, p),
            ``(B, P)``.
        anomaly_map (Tensor): The same in pixels, smoothed, ``(B, 1, H, W)``.
    """

    neighbors: Tensor
    score: Tensor
    place_distances: Tensor
    anomaly_map: Tensor


class SpadeModel(DynamicBufferMixin):
    """Memory of normal images: whole-image neighbours first, then correspondences of places with those alone.

    Of the paper are both formulae, the numbers of neighbours, the pyramid of concatenated levels and the smoothing. How
    coarser levels are brought to the finest one's resolution is not in it; here bilinearly. The memory keeps levels at
    their own resolution and concatenates those of a query's neighbours when it needs them.

    Args:
        extractor (TimmPyramid | ClipPyramid): Frozen network.
        num_neighbors (int): Nearest normal images, the paper's K; all of them if there are fewer.
        num_places (int): Nearest places in their pyramids, the paper's kappa.
        sigma (float): Standard deviation of the Gaussian that smooths the map, in pixels.

    Raises:
        ValueError: If a number is not above 0.
    """

    pooled: Tensor

    def __init__(
        self,
        extractor: TimmPyramid | ClipPyramid,
        num_neighbors: int = 50,
        num_places: int = 1,
        sigma: float = 4.0,
    ) -> None:
        super().__init__()
        for name, value in (("num_neighbors", num_neighbors), ("num_places", num_places), ("sigma", sigma)):
            if not value > 0:
                msg = f"{name} must be larger than 0, got {value}."
                raise ValueError(msg)
        self.extractor = extractor
        self.num_neighbors, self.num_places = num_neighbors, num_places
        self.blur = GaussianBlur2d(sigma=sigma)
        self._names = [f"level_{index}" for index in range(extractor.num_levels)]
        for name in ("pooled", *self._names):
            self.register_buffer(name, torch.empty(0))
        self._pending: list[Pyramid] = []

    @property
    def levels(self) -> list[Tensor]:
        """Remembered feature maps, ``(M, C_l, h_l, w_l)`` each."""
        return [getattr(self, name) for name in self._names]

    def forget(self) -> None:
        """Forget all normal images."""
        self._pending.clear()
        for name in ("pooled", *self._names):
            setattr(self, name, torch.empty(0, device=self.pooled.device))

    @torch.no_grad()
    def remember(self, images: Tensor) -> None:
        """Take preprocessed normal images ``(n, 3, H, W)`` in; :meth:`fit` puts them to use."""
        self._pending.append(self.extractor(images))

    def fit(self) -> None:
        """Put what was taken in to use, beside what was there."""
        if not self._pending:
            return
        pooled, levels = zip(*self._pending, strict=True)
        columns = dict(zip(("pooled", *self._names), (pooled, *zip(*levels, strict=True)), strict=True))
        self._pending.clear()
        with torch.inference_mode(mode=False):  # ordinary tensors, else a later load_state_dict fails
            for name, parts in columns.items():
                known = getattr(self, name)
                together = torch.cat([*([known] if known.numel() else []), *(p.clone() for p in parts)])
                # A checkpoint gives them back in this order of memory, by which products round.
                setattr(self, name, together.contiguous())

    def forward(self, images: Tensor) -> InferenceBatch:
        """Score images.

        Args:
            images (Tensor): Preprocessed images ``(B, 3, H, W)``.

        Returns:
            InferenceBatch: ``pred_score`` ``(B,)`` and ``anomaly_map`` ``(B, 1, H, W)``, neither with an upper bound.

        Raises:
            RuntimeError: If there are no normal images to compare with.
        """
        explanation = self.explain(images)
        return InferenceBatch(pred_score=explanation.score, anomaly_map=explanation.anomaly_map)

    def explain(self, images: Tensor) -> SpadeExplanation:
        """Score images and return every intermediate result by name. As :meth:`forward`."""
        if self.pooled.shape[0] == 0:
            msg = "SPADE has no normal images to compare with: fit it, or call remember(images) and fit()."
            raise RuntimeError(msg)
        query = self.extractor(images)
        count = min(self.num_neighbors, self.pooled.shape[0])
        nearest = squared_distances(query.pooled, self.pooled).topk(count, dim=1, largest=False)
        places = self._place_distances(query.levels, nearest.indices)
        maps = places.reshape(-1, 1, *query.levels[0].shape[-2:])
        pixels = F.interpolate(maps, size=images.shape[-2:], mode="bilinear", align_corners=False)
        return SpadeExplanation(nearest.indices, nearest.values.mean(dim=1), places, self.blur(pixels))

    def _place_distances(self, levels: Sequence[Tensor], neighbors: Tensor) -> Tensor:
        """Mean distance ``(B, P)`` of places to the nearest ``num_places`` of all places of the neighbours."""
        query = concatenate_levels(levels)
        smallest: Tensor | None = None
        for rank in range(neighbors.shape[1]):
            gallery = concatenate_levels([level[neighbors[:, rank]] for level in self.levels])
            found = nearest_places(query, gallery, self.num_places)
            joined = found if smallest is None else torch.cat([smallest, found], dim=-1)
            smallest = joined.topk(min(self.num_places, joined.shape[-1]), dim=-1, largest=False).values
        if smallest is None:
            msg = "A query has at least one neighbour."
            raise ValueError(msg)
        return smallest.mean(dim=-1)


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared Euclidean distances of rows as one matrix product.

    Args:
        a (Tensor): ``(..., n, C)``.
        b (Tensor): ``(..., m, C)``.

    Returns:
        Tensor: ``(..., n, m)``, not negative.

    Example:
        >>> import torch
        >>> squared_distances(torch.tensor([[0.0, 0.0], [3.0, 4.0]]), torch.tensor([[0.0, 0.0]]))
        tensor([[ 0.],
                [25.]])
    """
    lengths = (a**2).sum(dim=-1)[..., :, None] + (b**2).sum(dim=-1)[..., None, :]
    return (lengths - 2 * a @ b.mT).clamp(min=0)


def concatenate_levels(levels: Sequence[Tensor]) -> Tensor:
    """Bring feature maps ``(B, C_l, h_l, w_l)`` to the first one's size; places with all channels, ``(B, P, C)``."""
    size = levels[0].shape[-2:]
    same = [
        level if level.shape[-2:] == size else F.interpolate(level, size=size, mode="bilinear", align_corners=False)
        for level in levels
    ]
    return torch.cat(same, dim=1).flatten(2).mT


def nearest_places(query: Tensor, gallery: Tensor, count: int) -> Tensor:
    """Squared distances of every place to the nearest places of a gallery.

    Args:
        query (Tensor): ``(B, P, C)``.
        gallery (Tensor): ``(B, R, C)``.
        count (int): How many, at most ``R``.

    Returns:
        Tensor: ``(B, P, count)``.
    """
    count = min(count, gallery.shape[1])
    found = [
        squared_distances(rows, gallery).topk(count, dim=-1, largest=False).values
        for rows in query.split(_PLACES_AT_ONCE, dim=1)
    ]
    return torch.cat(found, dim=1)
