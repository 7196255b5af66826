"""anomalib's WinCLIP on backbones other than its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from anomalib.models.image.winclip.prompting import create_prompt_ensemble
from anomalib.models.image.winclip.torch_model import TEMPERATURE, WinClipModel
from torchvision.transforms.v2 import Compose

from anomalib_inctrl.clip import create_clip, create_shapes, tokenizer_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class AnyBackboneWinClipModel(WinClipModel):
    """WinCLIP as anomalib has it, but for where its CLIP comes from.

    Args:
        backbone (str): open_clip model with a plain vision transformer, or ``"inctrl-tiny"``.
        pretrained (str | Path | None): Its weights: open_clip tag or local file; ``None`` for random ones.
        scales (tuple[int, ...]): Sides of the sliding windows, in patches.
    """

    def __init__(self, backbone: str, pretrained: str | Path | None, scales: tuple[int, ...] = (2, 3)) -> None:
        super(WinClipModel, self).__init__()  # WinClipModel's own would load its backbone first
        self.backbone, self.pretrained = backbone, str(pretrained)
        self.temperature = TEMPERATURE
        self.class_name: str | None = None
        self.reference_images: torch.Tensor | None = None
        self.scales = scales
        self.apply_transform = False
        self.k_shot = 0
        self.clip = create_clip(backbone, pretrained)
        self.shapes = create_shapes(backbone)
        self._transform = Compose([torch.nn.Identity()])
        self.tokenize = tokenizer_of(backbone)
        self.clip.visual.output_tokens = True
        self.grid_size = self.clip.visual.grid_size
        self.register_buffer_list("masks", self._generate_masks(), persistent=False)
        self.register_buffer("_text_embeddings", torch.empty(0))
        self.register_buffer_list("_visual_embeddings", [torch.empty(0) for _ in self.scales])
        self.register_buffer("_patch_embeddings", torch.empty(0))

    @torch.no_grad()
    def _collect_text_embeddings(self, class_name: str) -> None:
        """Average the prompt ensembles of a class, in the words of this backbone's tokenizer."""
        ensembles = create_prompt_ensemble(class_name)
        self._text_embeddings = torch.stack([self.encode_sentences(e).mean(dim=0) for e in ensembles])

    def encode_image(self, batch: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
        """Embed images ``(B, 3, H, W)``, their windows and patches.

        The embedded backbone's convolutional tower sees whole images and joins their embeddings alone.
        """
        images, windows, patches = super().encode_image(batch)
        return images if self.shapes is None else images + self.shapes(batch), windows, patches

    def encode_sentences(self, sentences: Sequence[str]) -> torch.Tensor:
        """Embed sentences in the joint space: ``(number of sentences, D)``, of any length."""
        device = next(self.parameters()).device
        return self.clip.encode_text(self.tokenize(list(sentences)).to(device))
