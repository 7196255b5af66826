"""InCTRL: in-context residual learning, image scores and residual maps."""

from anomalib_inctrl.models.inctrl.lightning_model import InCTRL
from anomalib_inctrl.models.inctrl.torch_model import InCTRLExplanation, InCTRLModel

__all__ = ["InCTRL", "InCTRLExplanation", "InCTRLModel"]
