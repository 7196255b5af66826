"""Preprocessing that is the same in the engine and in an exported model."""

from __future__ import annotations

from typing import Any, Literal

import torch
from anomalib.pre_processing import PreProcessor
from torch import Tensor, nn
from torchvision.transforms.v2 import CenterCrop, Compose, InterpolationMode, Normalize, Resize

from anomalib_inctrl.clip import ImageConvention
from anomalib_inctrl.data.episodes import EpisodeBatch

Geometry = Literal["crop", "squash"]


class ClipPreProcessor(PreProcessor):
    """Resize, crop and normalise as a CLIP backbone wants it.

    Args:
        convention (ImageConvention): Size in pixels, mean and standard deviation per channel.
        geometry (str): ``"crop"`` brings the shorter side to size and crops the centre, as InCTRL does; the ends of
            long images are not seen. ``"squash"`` brings both sides to size, so everything is seen, distorted; it is
            what anomalib's WinCLIP does.
    """

    def __init__(self, convention: ImageConvention, geometry: Geometry = "crop") -> None:
        super().__init__(Compose([*resize(convention.size, geometry), Normalize(convention.mean, convention.std)]))
        self.geometry = geometry
        self._set_export_transform()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Preprocess a batch; episodes are preprocessed where they are read."""
        if not isinstance(batch, EpisodeBatch):
            super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Preprocess a batch; episodes are preprocessed where they are read."""
        del dataloader_idx
        if not isinstance(batch, EpisodeBatch):
            super().on_validation_batch_start(trainer, pl_module, batch, batch_idx)

    def on_test_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Preprocess a batch; episodes are preprocessed where they are read."""
        if not isinstance(batch, EpisodeBatch):
            super().on_test_batch_start(trainer, pl_module, batch, batch_idx, dataloader_idx)

    def load_checkpoint_config(self, config: dict[str, Any]) -> None:
        """Restore the transform, and the export transform that goes with it."""
        super().load_checkpoint_config(config)
        self._set_export_transform()

    def _set_export_transform(self) -> None:
        parts = list(getattr(self.transform, "transforms", []))
        crops = [part for part in parts if isinstance(part, CenterCrop)]
        resizes = [part for part in parts if isinstance(part, Resize)]
        if not resizes:
            return
        size = tuple(crops[0].size if crops else resizes[0].size)
        self.geometry = "crop" if crops else "squash"
        self.export_transform = nn.Sequential(ResizeAndCrop(size, self.geometry), parts[-1])


def resize(size: tuple[int, int], geometry: Geometry) -> list[nn.Module]:
    """Transforms that bring an image to size.

    Raises:
        ValueError: If the geometry is unknown, or cropping is to give something other than a square.
    """
    bicubic = InterpolationMode.BICUBIC
    if geometry == "squash":
        return [Resize(size, interpolation=bicubic, antialias=True)]
    if geometry != "crop":
        msg = f"geometry must be 'crop' or 'squash', got {geometry!r}."
        raise ValueError(msg)
    if size[0] != size[1]:
        msg = f"This backbone takes images of {size[0]} x {size[1]}, no square: use geometry='squash'."
        raise ValueError(msg)
    return [Resize(size[0], interpolation=bicubic, antialias=True), CenterCrop(size)]


class ResizeAndCrop(nn.Module):
    """Antialiased bicubic resize and centre crop as two matrix products.

    Equal to torchvision's ``Resize(..., antialias=True)`` and ``CenterCrop`` on float images, but without decisions
    that depend on the image's size. An exported graph therefore takes images of any size, and no runtime's own resize,
    whose antialiasing differs, gets in between.

    Args:
        size (tuple[int, int]): Height and width of the output.
        geometry (str): As for :class:`ClipPreProcessor`.
    """

    def __init__(self, size: tuple[int, int], geometry: Geometry) -> None:
        super().__init__()
        self.size, self.geometry = size, geometry

    def forward(self, images: Tensor) -> Tensor:
        """Map ``(B, 3, h, w)`` to ``(B, 3, H, W)``."""
        height, width = (torch.scalar_tensor(n, dtype=torch.float64, device=images.device) for n in images.shape[-2:])
        rows = self._weights(height, width, images.shape[-2], self.size[0]).to(images.dtype)
        columns = self._weights(width, height, images.shape[-1], self.size[1]).to(images.dtype)
        return rows @ images @ columns.mT

    def _weights(self, length: Tensor, other: Tensor, pixels: int, size: int) -> Tensor:
        """Weights ``(size, pixels)`` of the input pixels in every output pixel along one axis."""
        target = torch.full_like(length, size)
        if self.geometry == "crop":  # the longer side keeps the aspect ratio, cut to a whole number
            target = torch.where(length <= other, target, torch.floor(size * length / other))
        offset = torch.round((target - size) / 2)  # torchvision rounds the crop's corner half to even, too
        scale = length / target
        centre = scale * (torch.arange(size, dtype=length.dtype, device=length.device) + offset + 0.5)[:, None]
        position = torch.arange(pixels, dtype=length.dtype, device=length.device)[None]
        spread = scale.clamp(min=1.0)  # antialiasing: the kernel widens when the image shrinks
        low = torch.floor(centre - 2 * spread + 0.5).clamp(min=0)
        high = torch.minimum(torch.floor(centre + 2 * spread + 0.5), length)
        weights = _cubic((position - centre + 0.5) / spread)
        weights = torch.where((position >= low) & (position < high), weights, torch.zeros_like(weights))
        return weights / weights.sum(dim=1, keepdim=True)


def _cubic(distance: Tensor, a: float = -0.5) -> Tensor:
    """Keys' bicubic kernel, the one of antialiased resizing."""
    x = distance.abs()
    near = ((a + 2) * x - (a + 3)) * x**2 + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
