"""InCTRLv2: in-context residuals with a discriminative and a one-class branch, image scores and pixel maps."""

from anomalib_inctrl.models.inctrl_v2.lightning_model import InCTRLv2
from anomalib_inctrl.models.inctrl_v2.torch_model import InCTRLv2Explanation, InCTRLv2Model

__all__ = ["InCTRLv2", "InCTRLv2Explanation", "InCTRLv2Model"]
