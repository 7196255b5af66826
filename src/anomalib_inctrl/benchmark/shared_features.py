"""Features of frozen encoders, kept in memory so that the cells of a category encode an image once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from anomalib.models.components import TimmFeatureExtractor
from anomalib.models.image.winclip.torch_model import WinClipModel
from torch import Tensor, nn

from anomalib_inctrl.clip import ClipBackbone, fingerprint

if TYPE_CHECKING:
    from anomalib.models.components import AnomalibModule

_METHODS = {
    ClipBackbone: ("encode_image", "encode_aligned"),
    TimmFeatureExtractor: ("forward",),
    WinClipModel: ("encode_image",),
}
"""Functions of images alone, by class of encoder, that take images ``(B, 3, H, W)`` first and return nested tensors."""

_SENTENCES = "encode_sentences"


class SharedFeatures:
    """A store of features by encoder, weights and content of the preprocessed image.

    An image is always encoded alone, so that its features do not depend on what else was in the batch, hence not on
    which cells ran before. When the store is full, further images are encoded anew each time.

    Args:
        megabytes (int): Limit of the store; 0 turns it off.
    """

    def __init__(self, megabytes: int) -> None:
        self.limit = megabytes * 2**20
        self.group: str | None = None
        self._known: dict[bytes, Any] = {}
        self._size = 0
        self._off = False

    def enter(self, group: str) -> None:
        """Forget the features of other groups; cells of one group share images."""
        if group != self.group:
            self.group = group
            self._known.clear()
            self._size = 0

    @contextmanager
    def off(self) -> Iterator[None]:
        """Encode every image, as timing needs it."""
        self._off = True
        try:
            yield
        finally:
            self._off = False

    def attach(self, model: AnomalibModule) -> None:
        """Let the frozen encoders of a model ask the store first. Encoders of other kinds go on as ever."""
        if not self.limit:
            return
        for module in model.modules():
            for kind, methods in _METHODS.items():
                if isinstance(module, kind) and _is_frozen(module):
                    identity = f"{_identity(module)}{fingerprint(module)}"
                    for method in methods:
                        setattr(module, method, self._by_image(getattr(module, method), f"{identity}{method}"))
            if isinstance(module, ClipBackbone):
                identity = f"{_identity(module)}{fingerprint(module)}{_SENTENCES}"
                module.encode_sentences = self._by_sentences(module.encode_sentences, identity)  # type: ignore[method-assign]

    def _by_image(self, encode: Callable[..., Any], identity: str) -> Callable[..., Any]:
        def encode_shared(images: Tensor, *args: Any, **kwargs: Any) -> Any:
            if self._off or not len(images):
                return encode(images, *args, **kwargs)
            options = f"{identity}{args}{sorted(kwargs.items())}{tuple(images.shape[1:])}"
            pixels = images.detach().cpu().contiguous().numpy()
            keys = [hashlib.blake2b(p.tobytes(), key=_short(options)).digest() for p in pixels]
            found = []
            for index, key in enumerate(keys):
                features = self._known.get(key)
                if features is None:
                    features = _to(encode(images[index : index + 1], *args, **kwargs), torch.device("cpu"))
                    self._keep(key, features)
                found.append(features)
            return _to(_join(found), images.device)

        return encode_shared

    def _by_sentences(self, encode: Callable[..., Tensor], identity: str) -> Callable[..., Tensor]:
        def encode_shared(sentences: Sequence[str]) -> Tensor:
            key = hashlib.blake2b("\n".join(sentences).encode(), key=_short(identity)).digest()
            if key not in self._known:
                self._keep(key, encode(sentences))
                return encode(sentences) if key not in self._known else self._known[key]
            return self._known[key]

        return encode_shared

    def _keep(self, key: bytes, features: Any) -> None:
        tensors = _tensors(features)
        size = sum(t.numel() * t.element_size() for t in tensors)
        if self._size + size <= self.limit and not any(t.requires_grad for t in tensors):
            self._known[key] = features
            self._size += size


def _is_frozen(module: nn.Module) -> bool:
    """Whether no training changes an encoder; its features are found by the weights it has when it is attached."""
    if isinstance(module, TimmFeatureExtractor):
        return not module.requires_grad
    return isinstance(module, WinClipModel) or not any(p.requires_grad for p in module.parameters())


def _identity(module: nn.Module) -> str:
    """What the features of an encoder depend on beside its weights."""
    names = ("name", "blocks", "backbone", "layers", "output_fmt", "norm", "scales", "pretrained")
    return f"{type(module).__qualname__}{[str(getattr(module, n, None)) for n in names]}"


def _short(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=32).digest()


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value
    return [tensor for part in parts for tensor in _tensors(part)]


def _map(function: Callable[[list[Tensor]], Tensor], values: Sequence[Any]) -> Any:
    """Apply a function to the tensors that stand at the same place of equally nested values."""
    first = values[0]
    if isinstance(first, Tensor):
        return function(list(values))
    if isinstance(first, dict):
        return {key: _map(function, [value[key] for value in values]) for key in first}
    parts = [_map(function, part) for part in zip(*values, strict=True)]
    return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)


def _join(values: Sequence[Any]) -> Any:
    return _map(torch.cat, values)


def _to(value: Any, device: torch.device) -> Any:
    return _map(lambda tensors: tensors[0].to(device), [value])
