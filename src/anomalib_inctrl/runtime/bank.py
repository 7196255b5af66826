"""References of one category as a file: what an exported model compares its queries with.

Without torch. The same file serves the torch models, see :mod:`anomalib_inctrl.runtime_export`. Axis letters as in
:mod:`anomalib_inctrl.scoring`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from math import nan
from typing import TYPE_CHECKING

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from anomalib_inctrl.calibration import UNKNOWN, Statistics
from anomalib_inctrl.coreset import k_centres
from anomalib_inctrl.files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SUFFIX = ".safetensors"
_KEY = "anomalib_inctrl.bank"
_FORMAT = 1


@dataclass(frozen=True, eq=False)
class Bank:
    """Features of ``K`` references, ``R`` reference patches in all.

    Attributes:
        patches (np.ndarray): Patch tokens of unit length, float32 or float16, ``(L, R, W)``.
        origins (np.ndarray): Which reference a patch is of, ascending, int32 ``(R,)``. Each has ``V * N`` patches, or
            fewer after :meth:`reduce`.
        pooled (np.ndarray): Image embeddings, float32 ``(K, D)``.
        pictures (np.ndarray): The references themselves as the model sees them, uint8 ``(K, 3, H, W)``.
        prototypes (np.ndarray): Normal and anomalous text prototype, float32 ``(2, D)``.
        fingerprint (str): Of the model that made it.
        class_name (str): What the prompts call the things.
        names (tuple[str, ...]): One for each reference.
        statistics (Statistics): Threshold and range of this category.
        routing_limit (float): Distance from the nearest reference up to which an image is of this category; NaN if
            not known.
        reduced (bool): Whether patches have been left out.
        views (int): Views ``V`` of a reference that its patches are of, its own before further ones.
    """

    patches: np.ndarray
    origins: np.ndarray
    pooled: np.ndarray
    pictures: np.ndarray
    prototypes: np.ndarray
    fingerprint: str
    class_name: str
    names: tuple[str, ...] = ()
    statistics: Statistics = UNKNOWN
    routing_limit: float = nan
    reduced: bool = False
    views: int = 1

    @property
    def count(self) -> int:
        """Number of references, ``K``."""
        return len(self.pooled)

    @property
    def is_calibrated(self) -> bool:
        """Whether there is a threshold of its own."""
        return not np.isnan(self.statistics.image_min)

    def add(self, patches: np.ndarray, pooled: np.ndarray, pictures: np.ndarray, names: Sequence[str]) -> Bank:
        """Append references; threshold and range, which were those of others, go.

        Args:
            patches (np.ndarray): Patch tokens of any length, of all views, ``(k, L, V * N, W)``.
            pooled (np.ndarray): ``(k, D)``.
            pictures (np.ndarray): ``(k, 3, H, W)``.
            names (Sequence[str]): ``k`` of them.
        """
        unit = patches / np.maximum(np.linalg.norm(patches, axis=-1, keepdims=True), 1e-12)
        added = unit.swapaxes(0, 1).reshape(patches.shape[1], -1, patches.shape[-1]).astype(self.patches.dtype)
        origins = np.repeat(np.arange(len(pooled), dtype=np.int32) + self.count, patches.shape[2])
        return replace(
            self,
            patches=np.concatenate([self.patches, added], axis=1),
            origins=np.concatenate([self.origins, origins]),
            pooled=np.concatenate([self.pooled, pooled.astype(np.float32)]),
            pictures=np.concatenate([self.pictures, pictures]),
            names=(*self.names, *names),
            statistics=UNKNOWN,
            routing_limit=nan,
        )

    def without(self, index: int) -> Bank:
        """Leave out a reference; threshold and range go."""
        kept = self.origins != index
        origins = self.origins[kept]
        return replace(
            self,
            patches=self.patches[:, kept],
            origins=origins - (origins > index),
            pooled=np.delete(self.pooled, index, axis=0),
            pictures=np.delete(self.pictures, index, axis=0),
            names=(*self.names[:index], *self.names[index + 1 :]),
            statistics=UNKNOWN,
            routing_limit=nan,
        )

    def patches_of(self, index: int) -> np.ndarray:
        """Patch tokens of a reference in its own view, ``(L, N, W)``."""
        of_all_views = self.patches[:, self.origins == index]
        return of_all_views[:, : of_all_views.shape[1] // self.views]

    def distances_left_out(self) -> np.ndarray:
        """Distance of every reference to the nearest other one by image embedding, ``(K,)``, for two or more."""
        others = [np.delete(self.pooled, i, axis=0) for i in range(self.count)]
        return np.concatenate([nearest_distances(self.pooled[i : i + 1], other) for i, other in enumerate(others)])

    def reduce(self, share: float) -> Bank:
        """Keep a share of the reference patches, above 0 up to 1: those that lie near all the others."""
        if not 0 < share <= 1:
            msg = f"share must be above 0 and at most 1, got {share}."
            raise ValueError(msg)
        points = self.patches.swapaxes(0, 1).reshape(len(self.origins), -1)  # a patch with all its blocks
        kept = k_centres(points, max(1, round(share * len(points))))
        return replace(
            self,
            patches=np.ascontiguousarray(self.patches[:, kept]),
            origins=self.origins[kept],
            reduced=self.reduced or share < 1,
        )

    def save(self, path: Path) -> Path:
        """Write the bank to a file, which appears complete or not at all."""
        tensors = {name: np.ascontiguousarray(getattr(self, name)) for name in _TENSORS}
        record = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _TENSORS}
        write_atomically(path, save(tensors, {_KEY: json.dumps(record | {"format": _FORMAT})}))
        return path

    @classmethod
    def load(cls, path: Path, fingerprint: str) -> Bank:
        """Read a bank.

        Args:
            path (Path): File of :meth:`save`.
            fingerprint (str): Of the model that is to use it.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it can't be read, contradicts itself, or was made by another model.
        """
        if not path.is_file():
            msg = f"There is no bank {path}: add references of {path.stem!r} first."
            raise FileNotFoundError(msg)
        try:
            with safe_open(path, "np") as file:
                record = json.loads((file.metadata() or {})[_KEY])
                tensors = {name: file.get_tensor(name) for name in _TENSORS}
            if record.pop("format") != _FORMAT:
                msg = "it has the format of another version of anomalib-inctrl"
                raise ValueError(msg)
            record |= {"names": tuple(record["names"]), "statistics": Statistics(*record["statistics"])}
            bank = cls(**tensors, **record)
            bank._check()
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            msg = f"{path} can't be read as a bank ({error}): delete it and add the references again."
            raise ValueError(msg) from error
        if bank.fingerprint != fingerprint:
            msg = (
                f"{path} was made by another model ({bank.fingerprint}; this one is {fingerprint}): its features and "
                "its threshold do not fit. Delete it and add the references again, or load the model it belongs to."
            )
            raise ValueError(msg)
        return bank

    def _check(self) -> None:
        blocks, patches, _ = self.patches.shape
        count, width = self.pooled.shape
        fits = (
            self.origins.shape == (patches,)
            and self.pictures.shape[:2] == (count, 3)
            and self.prototypes.shape == (2, width)
            and len(self.names) == count
            and (patches == 0 or (self.origins.min() >= 0 and self.origins.max() < count))
        )
        finite = all(np.isfinite(array).all() for array in (self.patches, self.pooled, self.prototypes))
        if not fits or not finite:
            msg = f"its {blocks} x {patches} patches and {count} references contradict each other or are not finite"
            raise ValueError(msg)


_TENSORS = ("patches", "origins", "pooled", "pictures", "prototypes")


def nearest_distances(queries: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Cosine distance of embeddings ``(B, D)`` to the nearest of references ``(K, D)``: ``(B,)`` in ``[0, 2]``."""
    unit = [v / np.maximum(np.linalg.norm(v, axis=-1, keepdims=True), 1e-12) for v in (queries, references)]
    return 1 - (unit[0] @ unit[1].T).max(axis=1)
