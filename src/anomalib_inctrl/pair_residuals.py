"""Patch residuals from cached features: computed once for every pair of query and reference, then remembered."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the customary name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anomalib_inctrl.feature_cache import FeatureCache

_FIRST_ROOM = 1024  # pairs


class PairResiduals:
    """Distances of a query's patches to a reference image, remembered in half precision.

    Neither CLIP nor the patch residual is trained, so the residual to K references is the smallest of K remembered
    distances per patch. A pair takes ``2 * L * N`` bytes: 1.4 kB for ViT-B/16+, and there are as many as queries times
    ``max_references`` of the data, at most. They lie in one block that doubles: many small ones between the large and
    short-lived products would tear the heap to pieces, by gigabytes.

    Args:
        cache (FeatureCache): Filled cache.
        device (torch.device): Where to compare.
    """

    def __init__(self, cache: FeatureCache, device: torch.device) -> None:
        self.cache, self.device = cache, device
        self._rows: dict[tuple[str, str], int] = {}
        self._distances = torch.empty(0, dtype=torch.float16)  # (pairs that fit, L, N)

    def __len__(self) -> int:
        return len(self._rows)

    def __call__(self, queries: Sequence[str], references: Sequence[Sequence[str]]) -> Tensor:
        """Compare queries with their references.

        Args:
            queries (Sequence[str]): Image files of ``B`` queries.
            references (Sequence[Sequence[str]]): Image files of ``K`` references of each.

        Returns:
            Tensor: M_x, ``(B, N)`` in ``[0, 1]``, as :func:`anomalib_inctrl.scoring.nearest_residuals` gives it up to
            the cache's half precision.
        """
        for query, paths in zip(queries, references, strict=True):
            missing = [path for path in paths if (query, path) not in self._rows]
            if missing:
                self._compare(query, missing)
        pairs = [(query, path) for query, paths in zip(queries, references, strict=True) for path in paths]
        distances = self._distances[[self._rows[pair] for pair in pairs]].to(self.device).float()
        distances = distances.unflatten(0, (len(queries), -1))  # (B, K, L, N)
        return 0.5 * distances.amin(dim=1).mean(dim=1)

    def _compare(self, query: str, references: Sequence[str]) -> None:
        patches = F.normalize(self.cache.read([query, *references]).patches.to(self.device).float(), dim=-1)
        one, others = patches[0], patches[1:]  # (L, N, W), (m, L, N, W)
        for path, other in zip(references, others, strict=True):
            self._remember(query, path, (1 - (one @ other.mT).amax(dim=-1)).clamp(min=0))

    def _remember(self, query: str, path: str, distance: Tensor) -> None:
        row, room = len(self._rows), len(self._distances)
        if row == room:
            larger = torch.empty(max(_FIRST_ROOM, 2 * room), *distance.shape, dtype=torch.float16)
            if room:
                larger[:room] = self._distances
            self._distances = larger
        self._distances[row] = distance
        self._rows[query, path] = row
