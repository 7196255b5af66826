"""anomalib's WinCLIP with its references put right, on any open_clip backbone."""

from anomalib_inctrl.models.win_clip.lightning_model import CorrectedWinClip

__all__ = ["CorrectedWinClip"]
