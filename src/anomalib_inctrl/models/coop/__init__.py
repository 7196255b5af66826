"""CoOp: prompts learned on auxiliary data, for the normal and the anomalous state."""

from anomalib_inctrl.models.coop.lightning_model import CoOp
from anomalib_inctrl.models.coop.torch_model import CoOpModel

__all__ = ["CoOp", "CoOpModel"]
