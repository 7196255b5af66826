"""The CLIP zero-shot baseline as a torch module."""

from __future__ import annotations

from typing import ClassVar

from anomalib_inctrl.text_only import TextOnlyModel


class ClipZeroShotModel(TextOnlyModel):
    """WinCLIP's prompt ensemble (arXiv 2303.14814) against the whole image; nothing is trained.

    The ensemble and its averaging are those of InCTRL's text prior, :meth:`ClipBackbone.text_prototypes`, so the score
    is the ``s_a`` of InCTRL (arXiv 2403.06495, equation 6). WinCLIP itself adds windows and references.
    """

    HEADS: ClassVar[str] = "clip_zero_shot"
    BRANCHES: ClassVar[dict[str, tuple[str, ...]]] = {}
