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
from anomalib_inctrl.models.win_clip.torch_model import AnyBackboneWinClipModel

if TYPE_CHECKING:
    from anomalib.models.components import AnomalibModule

_METHODS = {
    ClipBackbone: ("encode_image", "encode_aligned", "encode_patches"),
    TimmFeatureExtractor: ("forward",),
    WinClipModel: ("encode_image",),
}
"""Functions of images alone, by class of encoder, that take images ``(B, 3, H, W)`` first and return nested tensors."""

_SENTENCES = "encode_sentences"


class SharedFeatures:
    """A store of features by encoder, weights and content of the preprocessed image.

    An image is encoded alone, so that its features do not depend on what else was in the batch, hence not on which
    cells ran before. An encoder whose features of all images of a category would not fit encodes batches as ever. The
    features of other encoders, not used for longer, make room.

    Args:
        megabytes (int): Limit of the store; 0 turns it off.
    """

    def __init__(self, megabytes: int) -> None:
        self.limit = megabytes * 2**20
        self.group: str | None = None
        self._part: str | None = None
        self._images = 0
        self._held: dict[str, int] = {}  # images by encoder that were there before this part
        self._known: dict[str, dict[bytes, Any]] = {}  # by encoder, the one used last at the end
        self._bytes_per_image: dict[str, int] = {}
        self._off = False

    def __len__(self) -> int:
        """Number of images and ensembles of sentences in the store."""
        return sum(len(features) for features in self._known.values())

    def enter(self, group: str, part: str, images: int) -> None:
        """Forget the features of other groups, and of other parts of the group where there is no room for more.

        Args:
            group (str): What the images belong to, a data set say, whose parts may have the same test images.
            part (str): Which part of it is next, a category say.
            images (int): How many images that has, references included.
        """
        self._images = images
        if group != self.group:
            self._known.clear()
        if (group, part) != (self.group, self._part):
            self.group, self._part = group, part
            for encoder, known in list(self._known.items()):
                if (len(known) + images) * self._bytes_per_image.get(encoder, 0) > self.limit:
                    del self._known[encoder]
            self._held = {encoder: len(known) for encoder, known in self._known.items()}

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
            if isinstance(module, (ClipBackbone, AnyBackboneWinClipModel)):
                identity = f"{_identity(module)}{fingerprint(module)}{_SENTENCES}"
                module.encode_sentences = self._by_sentences(module.encode_sentences, identity)  # type: ignore[method-assign]

    def _by_image(self, encode: Callable[..., Any], encoder: str) -> Callable[..., Any]:
        def encode_shared(images: Tensor, *args: Any, **kwargs: Any) -> Any:
            if self._off or not len(images):
                return encode(images, *args, **kwargs)
            identity = f"{encoder}{args}{sorted(kwargs.items())}{tuple(images.shape[1:])}"
            if identity not in self._bytes_per_image:
                self._bytes_per_image[identity] = _size(encode(images[:1], *args, **kwargs))
            if self._bytes_per_image[identity] * self._images > self.limit:
                return encode(images, *args, **kwargs)
            known = self._open(identity)
            pixels = images.detach().cpu().contiguous().numpy()
            keys = [hashlib.blake2b(p.tobytes()).digest() for p in pixels]
            for index, key in enumerate(keys):
                if key not in known:
                    known[key] = _to(encode(images[index : index + 1], *args, **kwargs), torch.device("cpu"))
            return _to(_join([known[key] for key in keys]), images.device)

        return encode_shared

    def _by_sentences(self, encode: Callable[..., Tensor], encoder: str) -> Callable[..., Tensor]:
        def encode_shared(sentences: Sequence[str]) -> Tensor:
            known = self._open(encoder)
            key = hashlib.blake2b("\n".join(sentences).encode()).digest()
            if key not in known:
                known[key] = encode(sentences)
            return known[key]

        return encode_shared

    def _open(self, encoder: str) -> dict[bytes, Any]:
        """Features of an encoder; others make room for those it may still bring."""
        self._known[encoder] = self._known.pop(encoder, {})
        needed = self._bytes_per_image.get(encoder, 0) * (self._held.get(encoder, 0) + self._images)
        others = {name: sum(map(_size, known.values())) for name, known in self._known.items() if name != encoder}
        for name, size in others.items():
            if needed + sum(others[n] for n in others if n in self._known) <= self.limit:
                break
            if size:
                del self._known[name]
        return self._known[encoder]


def _is_frozen(module: nn.Module) -> bool:
    """Whether no training changes an encoder; its features are found by the weights it has when it is attached."""
    if isinstance(module, TimmFeatureExtractor):
        return not module.requires_grad
    return isinstance(module, WinClipModel) or not any(p.requires_grad for p in module.parameters())


def _identity(module: nn.Module) -> str:
    """What the features of an encoder depend on beside its weights."""
    names = ("name", "blocks", "backbone", "layers", "output_fmt", "norm", "scales", "pretrained")
    return f"{type(module).__qualname__}{[str(getattr(module, n, None)) for n in names]}"


def _size(value: Any) -> int:
    return sum(t.numel() * t.element_size() for t in _tensors(value))


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
