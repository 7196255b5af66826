"""Features of images kept on disk, so that the frozen backbone sees an image once and not once per epoch."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import time
from contextlib import contextmanager, suppress
from math import ceil, prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from anomalib.pre_processing.utils.spec import transform_to_spec
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from anomalib_inctrl.clip import ClipBackbone, ImageFeatures, fingerprint
from anomalib_inctrl.files import write_atomically
from anomalib_inctrl.reference_images import read_references

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

logger = logging.getLogger(__name__)

_FORMAT = 1  # of the files; another layout needs another number, and so gets another folder
_VALUE = np.dtype("<f2")
_DISK_BLOCK = 4096  # bytes; what file systems commonly round a file's size up to
_DEAD_AFTER = 3600  # seconds; writing a file takes a fraction of one, so an older temporary has lost its writer


class FeatureCache:
    """Features of images in 16-bit floats, one file per image, read through memory maps.

    A file is ``<root>/<backbone>-<key>/<first two digits>/<SHA-256 of the image file>.f16``: patches ``(L, N, W)``,
    then pooled ``(D,)``, little endian, no header. The key stands for backbone, weights, blocks, precision and
    preprocessing, which ``cache.json`` beside the files spells out. Moved, renamed or repeated images are therefore
    found again, and changed ones are not.

    Files appear complete or not at all. Processes may fill the same cache at once, and one that was killed leaves what
    it has finished. A file of another size than its shapes say counts as missing.

    Args:
        root (str | Path): Folder of all caches, made when it is needed.
        backbone (ClipBackbone): With the weights it will encode with.
        transform (Callable): Preprocessing of one image ``[3, H, W]`` in ``[0, 1]``, the same every time.
        transform_spec (Mapping | None): Plain data that tells this preprocessing from others. ``None`` for anomalib's
            own specification of the transform.

    Attributes:
        folder (Path): Where the features of this backbone and preprocessing are.
        bytes_per_image (int): Size of a file, ``2 * (L * N * W + D)``.

    Raises:
        ValueError: If ``transform_spec`` is ``None`` and anomalib can't specify the transform, or is no plain data.

    Example:
        >>> from anomalib_inctrl.pre_processing import ClipPreProcessor
        >>> backbone = ClipBackbone("inctrl-tiny")
        >>> cache = FeatureCache("features", backbone, ClipPreProcessor(backbone.convention).transform)
        >>> cache.bytes_per_image == 2 * (4 * backbone.num_patches * backbone.width + backbone.embed_dim)
        True
    """

    def __init__(
        self,
        root: str | Path,
        backbone: ClipBackbone,
        transform: Callable[[Tensor], Tensor],
        transform_spec: Mapping[str, Any] | None = None,
    ) -> None:
        self.backbone = backbone
        self.transform = transform
        self._patches_shape = (len(backbone.layers), backbone.num_patches, backbone.width)  # L, N, W
        self.bytes_per_image = _VALUE.itemsize * (prod(self._patches_shape) + backbone.embed_dim)
        self._fingerprint = fingerprint(backbone)
        self._description = self._describe(_plain(transform, transform_spec))
        key = hashlib.sha256(self._description.encode()).hexdigest()[:16]
        self.folder = Path(root).expanduser() / f"{re.sub(r'[^A-Za-z0-9._-]', '_', backbone.name)}-{key}"
        self._digests: dict[str, tuple[int, int, str]] = {}  # path: size, time of change, hash

    def missing(self, paths: Sequence[str]) -> list[str]:
        """Tell which images :meth:`fill` would encode: one path per content that is absent or of the wrong size."""
        return [path for _, path in self._missing(paths)]

    def fill(
        self,
        paths: Sequence[str],
        batch_size: int = 32,
        device: torch.device | None = None,
        workers: int = 0,
    ) -> int:
        """Encode the images that are missing.

        Args:
            paths (Sequence[str]): Image files; their sizes may differ, and equal contents are encoded once.
            batch_size (int): Images encoded at once.
            device (torch.device | None): Where to encode; the vision towers are brought there and back. ``None`` for
                where it is.
            workers (int): Processes that read and preprocess images. 0 for this one.

        Returns:
            int: Number of images encoded.

        Raises:
            OSError: If the disk has too little room, which is checked before anything is encoded.
            ValueError: If an image can't be read, or its features do not fit into 16-bit floats. Batches before it
                are kept.
            RuntimeError: If the backbone's weights have changed since the cache was made, or an image changes
                meanwhile.
        """
        self._require_same_weights()
        missing = self._missing(paths)
        if not missing:
            return 0
        self.folder.mkdir(parents=True, exist_ok=True)
        self._remove_leftovers()
        self._require_room(len(missing))
        write_atomically(self.folder / "cache.json", f"{self._description}\n".encode())
        # A generator of its own keeps the loader from drawing from the global one, so that a run is the same whether
        # or not it had to fill the cache.
        batches: DataLoader = DataLoader(
            _Images(missing, self.transform), batch_size, num_workers=workers, generator=torch.Generator()
        )
        with (
            _placed(self.backbone.image_towers, device),
            tqdm(total=len(missing), desc="Features", unit="image") as progress,
        ):
            for digests, names, images in batches:
                self._store(digests, names, self._encode(images))
                progress.update(len(names))
        return len(missing)

    def read(self, paths: Sequence[str]) -> ImageFeatures:
        """Read features of images that have been filled in.

        Returns:
            ImageFeatures: ``float16`` on the CPU, patches ``(B, L, N, W)`` and pooled ``(B, D)``; copies, which may be
            written to.

        Raises:
            RuntimeError: If features are missing, or their file is of the wrong size.
            FileNotFoundError: If an image does not exist.
        """
        patches = torch.empty(len(paths), *self._patches_shape, dtype=torch.float16)
        pooled = torch.empty(len(paths), self.backbone.embed_dim, dtype=torch.float16)
        for path, patches_row, pooled_row in zip(paths, patches.numpy(), pooled.numpy(), strict=True):
            values = self._open(path)
            patches_row[...] = values[: patches_row.size].reshape(patches_row.shape)
            pooled_row[...] = values[patches_row.size :]
        return ImageFeatures(patches, pooled)

    def _describe(self, transform_spec: Any) -> str:
        layers, patches, width = self._patches_shape
        description = {
            "format": _FORMAT,
            "backbone": self.backbone.name,
            "fingerprint": self._fingerprint,
            "blocks": list(self.backbone.blocks),
            "averaged_block": self.backbone.averaged_block,
            "precision": str(self.backbone.visual.conv1.weight.dtype),
            "preprocessing": transform_spec,
            "file": {"type": "float16", "patches": [layers, patches, width], "pooled": [self.backbone.embed_dim]},
            "bytes_per_image": self.bytes_per_image,
        }
        return json.dumps(description, sort_keys=True, indent=2)

    def _missing(self, paths: Sequence[str]) -> list[tuple[str, str]]:
        """Hash and path of every content that is absent or of the wrong size."""
        contents: dict[str, str] = {}
        for path in map(str, paths):
            contents.setdefault(self._digest(path), path)
        return [item for item in contents.items() if _size(self._file(item[0])) != self.bytes_per_image]

    def _digest(self, path: str) -> str:
        """SHA-256 of a file's content, computed again only when its size or time of change differs."""
        stat = Path(path).stat()
        size, changed, digest = self._digests.get(path, (-1, -1, ""))
        if (size, changed) != (stat.st_size, stat.st_mtime_ns):
            digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
            self._digests[path] = (stat.st_size, stat.st_mtime_ns, digest)
        return digest

    def _file(self, digest: str) -> Path:
        return self.folder / digest[:2] / f"{digest}.f16"

    def _open(self, path: str) -> np.ndarray:
        file = self._file(self._digest(str(path)))
        size = _size(file)
        if size != self.bytes_per_image:
            found = "holds no features" if size is None else f"holds damaged features ({file} has {size} bytes)"
            msg = (
                f"The cache {self.folder} {found} of {path}, {self.bytes_per_image} bytes were expected. "
                "Call fill() with this image first, which computes what is missing or damaged."
            )
            raise RuntimeError(msg)
        return np.memmap(file, dtype=_VALUE, mode="r")

    @torch.inference_mode()
    def _encode(self, images: Tensor) -> ImageFeatures:
        weight = self.backbone.visual.conv1.weight
        with torch.autocast(weight.device.type, enabled=False):  # the same features whatever the run's precision
            features = self.backbone.encode_image(images.to(weight.device, weight.dtype))
        return ImageFeatures(*(part.cpu() for part in features))

    def _store(self, digests: Sequence[str], paths: Sequence[str], features: ImageFeatures) -> None:
        for digest, path, patches, pooled in zip(digests, paths, *features, strict=True):
            if self._digest(path) != digest:
                msg = f"{path} changed while its features were computed. Call fill() again when nothing writes to it."
                raise RuntimeError(msg)
            values = torch.cat([patches.flatten(), pooled]).half()
            if not values.isfinite().all():
                raise ValueError(self._overflow(path, patches, pooled))
            write_atomically(self._file(digest), values.numpy().astype(_VALUE).tobytes())

    def _overflow(self, path: str, patches: Tensor, pooled: Tensor) -> str:
        parts = dict(zip(self.backbone.layers, patches, strict=True))
        parts["the image embedding"] = pooled
        where, values = next((name, part) for name, part in parts.items() if not part.half().isfinite().all())
        return (
            f"{path}: {where} of {self.backbone.name} reaches {values.abs().max():.4g}, which 16-bit floats (up to "
            "65504) can't hold. Train without the feature cache, or check the backbone's weights."
        )

    def _require_same_weights(self) -> None:
        if fingerprint(self.backbone) != self._fingerprint:
            msg = (
                f"The weights of {self.backbone.name} have changed since this cache was made, so their features do not "
                f"belong into {self.folder}. Make a new FeatureCache once the weights and their precision are final."
            )
            raise RuntimeError(msg)

    def _require_room(self, images: int) -> None:
        needed = images * ceil(self.bytes_per_image / _DISK_BLOCK) * _DISK_BLOCK
        free = shutil.disk_usage(self.folder).free
        sizes = f"{_mebibytes(needed)} for {images} images of {self.bytes_per_image} bytes; {_mebibytes(free)} are free"
        if needed > free:
            msg = (
                f"The feature cache in {self.folder} needs {sizes}. Make room, give it a folder on another disk, or "
                "train without it."
            )
            raise OSError(msg)
        logger.info("Filling the feature cache in %s: %s.", self.folder, sizes)

    def _remove_leftovers(self) -> None:
        for leftover in self.folder.rglob("*.tmp"):
            with suppress(OSError):  # another process was quicker
                if time.time() - leftover.stat().st_mtime > _DEAD_AFTER:
                    leftover.unlink()


class _Images(Dataset):
    """Hash, path and preprocessed image of files given by hash and path."""

    def __init__(self, files: Sequence[tuple[str, str]], transform: Callable[[Tensor], Tensor]) -> None:
        self.files = files
        self.transform = transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[str, str, Tensor]:
        digest, path = self.files[index]
        try:
            return digest, path, read_references([path], self.transform).images[0]
        except Exception as error:
            if path in str(error):
                raise
            msg = f"{path} can't be read and preprocessed ({type(error).__name__}: {error}). Repair or remove it."
            raise ValueError(msg) from error


def _plain(transform: Callable[[Tensor], Tensor], spec: Mapping[str, Any] | None) -> Any:
    """Check that a specification is plain data; ``None`` asks anomalib for one."""
    try:
        return json.loads(json.dumps(transform_to_spec(transform) if spec is None else dict(spec)))
    except (TypeError, ValueError) as error:
        msg = (
            f"The preprocessing can't be told from others: {error}. Give the feature cache a transform_spec of plain "
            "data (strings, numbers, lists, dictionaries) that changes whenever the preprocessing does."
        )
        raise ValueError(msg) from error


@contextmanager
def _placed(module: nn.Module, device: torch.device | None) -> Iterator[None]:
    """Bring a module to a device for a while."""
    home = next(module.parameters()).device
    module.to(device or home)
    try:
        yield
    finally:
        module.to(home)


def _size(file: Path) -> int | None:
    """Bytes of a file, ``None`` if there is none."""
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return None


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
