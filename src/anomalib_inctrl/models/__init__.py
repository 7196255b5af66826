"""The models, and their registration with anomalib."""

import anomalib.models

from anomalib_inctrl.models.clip_zero_shot import ClipZeroShot
from anomalib_inctrl.models.coop import CoOp
from anomalib_inctrl.models.dev_prompt import DevPrompt
from anomalib_inctrl.models.inctrl import InCTRL
from anomalib_inctrl.models.inctrl_v2 import InCTRLv2
from anomalib_inctrl.models.spade import Spade
from anomalib_inctrl.models.win_clip import CorrectedWinClip
from anomalib_inctrl.timm_backbone import inctrl_tiny  # noqa: F401 - timm knows the name from now on

__all__ = ["ClipZeroShot", "CoOp", "CorrectedWinClip", "DevPrompt", "InCTRL", "InCTRLv2", "Spade"]


def _register() -> None:
    """Make the models attributes of ``anomalib.models``, and their module one that ``get_model`` accepts."""
    for model in (InCTRL, InCTRLv2, DevPrompt, Spade, ClipZeroShot, CoOp, CorrectedWinClip):
        if not hasattr(anomalib.models, model.__name__):
            setattr(anomalib.models, model.__name__, model)
    anomalib.models.ALLOWED_MODULES.update({"anomalib_inctrl", "anomalib_inctrl.models"})


# Last in the module that defines the classes: whichever of anomalib and the plugin is imported first, and even if the
# start-up hook fires in the middle of it, the classes exist by now.
_register()
