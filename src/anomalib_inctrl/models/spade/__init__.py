"""SPADE: nearest normal images, and pixel correspondences with them."""

from anomalib_inctrl.models.spade.lightning_model import Spade
from anomalib_inctrl.models.spade.torch_model import SpadeModel

__all__ = ["Spade", "SpadeModel"]
