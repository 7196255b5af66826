"""The bank of reference features a model compares its queries with."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from anomalib.models.components.base.dynamic_buffer import DynamicBufferMixin
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the customary name

from anomalib_inctrl.clip import AlignedFeatures, ClipBackbone, ImageFeatures
from anomalib_inctrl.scoring import nearest_residuals


class Context(NamedTuple):
    """What queries of one class are compared with.

    With a leading ``B`` every query has a context of its own.

    Attributes:
        patches (Tensor | None): Reference patch tokens of unit length, ``(L, R, W)``; ``R`` is 0 without references.
            ``None`` if the residuals are given.
        pooled (Tensor): Reference image embeddings ``(K, D)``, not of unit length.
        prototypes (Tensor): Normal and anomalous text prototype of unit length, ``(2, D)``.
        residuals (Tensor | None): Patch residuals ``(B, N)`` if they are known already.
    """

    patches: Tensor | None
    pooled: Tensor
    prototypes: Tensor
    residuals: Tensor | None = None

    @property
    def has_references(self) -> bool:
        """Whether there is any reference; without one only the text can tell."""
        return self.pooled.shape[-2] > 0

    def patch_residuals(self, query: Tensor) -> Tensor:
        """Residuals ``(B, N)`` of query patches ``(B, L, N, W)`` to the nearest reference patches."""
        if self.residuals is not None:
            return self.residuals
        if self.patches is None:
            msg = "A context has reference patches or residuals."
            raise ValueError(msg)
        return nearest_residuals(query, self.patches)


class ReferenceBank(DynamicBufferMixin):
    """Reference features and text prototypes, one bank per class, as buffers of a growing size.

    The features of a class lie side by side, so that selecting a class takes a view and no copy. The first class is
    the one used when none is named.

    Args:
        backbone (ClipBackbone): Whose features it holds.
        views (int): Views of a reference whose patches it holds, itself included.

    Attributes:
        patches (Tensor): Unit length, ``(L, M, V * N, W)`` for ``M`` references of all classes in ``V`` views, their
            own before the further ones.
        pooled (Tensor): ``(M, D)``.
        pictures (Tensor): The references themselves as 8-bit images, ``(M, 3, H, W)``, to be shown beside results.
        prototypes (Tensor): ``(C, 2, D)`` for ``C`` classes.
        counts (Tensor): References per class, ``(C,)``.
        encoded_names (Tensor): Class names in UTF-8, one a line, so that the state dict holds tensors alone.
    """

    patches: Tensor
    pooled: Tensor
    pictures: Tensor
    prototypes: Tensor
    counts: Tensor
    encoded_names: Tensor

    def __init__(self, backbone: ClipBackbone, views: int = 1) -> None:
        super().__init__()
        self.views = views
        size = (views * backbone.num_patches, backbone.width)
        self.register_buffer("patches", torch.zeros(len(backbone.layers), 0, *size))
        self.register_buffer("pooled", torch.zeros(0, backbone.embed_dim))
        self.register_buffer("pictures", torch.zeros(0, 3, *backbone.image_size, dtype=torch.uint8))
        self.register_buffer("prototypes", torch.zeros(0, 2, backbone.embed_dim))
        self.register_buffer("counts", torch.zeros(0, dtype=torch.long))
        self.register_buffer("encoded_names", torch.zeros(0, dtype=torch.uint8))
        self._rows: dict[str, slice] = {}

    @property
    def class_names(self) -> list[str]:
        """Classes in the order they were added."""
        return list(self._rows)

    def count(self, class_name: str | None = None) -> int:
        """Number of references of a class, by default of the first; 0 if there is no class."""
        if not self._rows:
            return 0
        rows = self._rows[self.resolve(class_name)]
        return rows.stop - rows.start

    def clear(self) -> None:
        """Forget all classes."""
        self.patches = self.patches[:, :0].clone()
        self.pooled, self.pictures = self.pooled[:0].clone(), self.pictures[:0].clone()
        self.prototypes = self.prototypes[:0].clone()
        self._index({})

    def extend(self, class_name: str, features: ImageFeatures, prototypes: Tensor, pictures: Tensor) -> None:
        """Add references to a class, opening it if it is new.

        Args:
            class_name (str): Name of the class.
            features (ImageFeatures): Of the references, patches of all their views ``(K, L, V * N, W)``; a batch of 0
                opens a class for the text alone.
            prototypes (Tensor): Text prototypes of the class, ``(2, D)``; ignored if the class is there.
            pictures (Tensor): The references as 8-bit images, ``(K, 3, H, W)``.
        """
        counts = {name: rows.stop - rows.start for name, rows in self._rows.items()}
        if class_name not in counts:
            counts[class_name] = 0
            self.prototypes = torch.cat([self.prototypes, prototypes[None].to(self.prototypes)])
        at = sum(list(counts.values())[: list(counts).index(class_name) + 1])
        added = F.normalize(features.patches, dim=-1).transpose(0, 1).to(self.patches)
        self.patches = torch.cat([self.patches[:, :at], added, self.patches[:, at:]], dim=1)
        self.pooled = torch.cat([self.pooled[:at], features.pooled.to(self.pooled), self.pooled[at:]])
        self.pictures = torch.cat([self.pictures[:at], pictures.to(self.pictures), self.pictures[at:]])
        counts[class_name] += features.pooled.shape[0]
        self._index(counts)

    def context(self, class_name: str | None = None, without: int | None = None) -> Context:
        """Select what queries of a class are compared with.

        Args:
            class_name (str | None): ``None`` for the first class.
            without (int | None): Reference to leave out, in all its views.

        Raises:
            RuntimeError: If the bank is empty.
            KeyError: If the class is not in the bank.
        """
        name = self.resolve(class_name)
        rows = self._rows[name]
        patches, pooled = self.patches[:, rows], self.pooled[rows]
        if without is not None:
            kept = [i for i in range(len(pooled)) if i != without]
            patches, pooled = patches[:, kept], pooled[kept]
        return Context(patches.flatten(1, 2), pooled, self.prototypes[self.class_names.index(name)])

    def features(self, class_name: str | None = None) -> ImageFeatures:
        """Features of the references of a class, ``K`` of them in their own view, patches at unit length."""
        rows = self._rows[self.resolve(class_name)]
        own = self.patches.shape[2] // self.views
        return ImageFeatures(self.patches[:, rows, :own].transpose(0, 1), self.pooled[rows])

    def pictures_of(self, class_name: str | None = None) -> Tensor:
        """References of a class as 8-bit images, ``(K, 3, H, W)``."""
        return self.pictures[self._rows[self.resolve(class_name)]]

    def resolve(self, class_name: str | None) -> str:
        """Name of the class meant: the first one for ``None``.

        Raises:
            RuntimeError: If the bank is empty.
            KeyError: If the class is not in the bank.
        """
        if not self._rows:
            msg = (
                "The model has no references: call set_references(images, class_name) with preprocessed images of "
                "normal objects first, or with no image (shape (0, 3, H, W)) to score by text alone."
            )
            raise RuntimeError(msg)
        if class_name is None:
            return next(iter(self._rows))
        if class_name not in self._rows:
            msg = f"There are no references of class {class_name!r}, only of {self.class_names}: call add_references."
            raise KeyError(msg)
        return class_name

    def _index(self, counts: dict[str, int]) -> None:
        device = self.pooled.device
        self.counts = torch.tensor(list(counts.values()), dtype=torch.long, device=device)
        self.encoded_names = torch.tensor(list("\n".join(counts).encode()), dtype=torch.uint8, device=device)
        self._read_index()

    def _read_index(self) -> None:
        ends = self.counts.cumsum(0).tolist()
        names = bytes(self.encoded_names.tolist()).decode().split("\n") if ends else []
        counts = self.counts.tolist()
        self._rows = {n: slice(end - count, end) for n, end, count in zip(names, ends, counts, strict=True)}

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        patches = state_dict.get(f"{prefix}patches")
        if patches is not None and patches.shape[2] != self.patches.shape[2]:
            *_, messages = args
            messages.append(
                f"The references have {patches.shape[2]} patches each, this model's have {self.patches.shape[2]}: set "
                "the same backbone and reference_views."
            )
            return
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._read_index()


class AlignedReferenceBank(ReferenceBank):
    """A bank that keeps the references' patches in the joint space as well, to be compared with text again and again.

    Attributes:
        aligned (Tensor): Unit length, ``(M, N, D)``.
    """

    aligned: Tensor

    def __init__(self, backbone: ClipBackbone, views: int = 1) -> None:
        super().__init__(backbone, views)
        self.register_buffer("aligned", torch.zeros(0, backbone.num_patches, backbone.embed_dim))

    def clear(self) -> None:
        """Forget all classes."""
        super().clear()
        self.aligned = self.aligned[:0].clone()

    def extend(self, class_name: str, features: ImageFeatures, prototypes: Tensor, pictures: Tensor) -> None:
        """Add references; features are :class:`AlignedFeatures`."""
        at = self._end_of(class_name)
        added = cast("AlignedFeatures", features).aligned.to(self.aligned)
        self.aligned = torch.cat([self.aligned[:at], added, self.aligned[at:]])
        super().extend(class_name, features, prototypes, pictures)

    def features(self, class_name: str | None = None) -> ImageFeatures:
        """Features of the references of a class, as :class:`AlignedFeatures`."""
        rows = self._rows[self.resolve(class_name)]
        aligned = AlignedFeatures(*super().features(class_name), self.aligned[rows])
        return cast("ImageFeatures", aligned)

    def _end_of(self, class_name: str) -> int:
        return self._rows[class_name].stop if class_name in self._rows else self.pooled.shape[0]
