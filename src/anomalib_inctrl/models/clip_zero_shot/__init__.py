"""The CLIP zero-shot baseline: WinCLIP's prompts against the whole image."""

from anomalib_inctrl.models.clip_zero_shot.lightning_model import ClipZeroShot
from anomalib_inctrl.models.clip_zero_shot.torch_model import ClipZeroShotModel

__all__ = ["ClipZeroShot", "ClipZeroShotModel"]
