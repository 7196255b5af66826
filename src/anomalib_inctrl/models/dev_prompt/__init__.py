"""DevPrompt: a prompt context learned on a few normal images, deviations of patches, visual memory."""

from anomalib_inctrl.models.dev_prompt.lightning_model import DevPrompt
from anomalib_inctrl.models.dev_prompt.torch_model import DevPromptExplanation, DevPromptModel

__all__ = ["DevPrompt", "DevPromptExplanation", "DevPromptModel"]
