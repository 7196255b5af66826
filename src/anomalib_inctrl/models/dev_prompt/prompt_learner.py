"""The learned part of DevPrompt: context vectors in the place of a prompt's first words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the customary name

from anomalib_inctrl.prompts import ANOMALOUS_SUFFIXES, NORMAL_SUFFIXES, suffix_ensemble

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anomalib_inctrl.clip import ClipBackbone

_STD = 0.02  # of the first draw, CoOp's
_SEED = 0


class PromptLearner(nn.Module):
    """Context vectors that normal and anomalous prompts share; what tells the prompts apart is their fixed suffixes.

    ``T_n = [C ; suffix_n]`` and ``T_a = [C ; suffix_a]``: that C is shared and takes the place of a fixed prefix is
    DevPrompt's (arXiv 2601.15453). How many vectors there are and how they start is not public; CoOp's
    (arXiv 2109.01134) random start is taken, always from the same seed.

    Args:
        width (int): Width of the text tower's token embeddings.
        n_context (int): Number of vectors.
        normal_suffixes (Sequence[str]): Patterns for the normal state, ``{}`` for the class.
        anomalous_suffixes (Sequence[str]): Patterns for the anomalous state.

    Raises:
        ValueError: If there is no vector, or a pattern does not name the class.
    """

    def __init__(
        self,
        width: int,
        n_context: int = 12,
        normal_suffixes: Sequence[str] = NORMAL_SUFFIXES,
        anomalous_suffixes: Sequence[str] = ANOMALOUS_SUFFIXES,
    ) -> None:
        super().__init__()
        if n_context < 1:
            msg = f"n_context must be 1 or more, got {n_context}; learnable_context=False uses a fixed prefix instead."
            raise ValueError(msg)
        suffix_ensemble("object", normal_suffixes, anomalous_suffixes)  # refuses what can't serve
        self.normal_suffixes, self.anomalous_suffixes = tuple(normal_suffixes), tuple(anomalous_suffixes)
        self.context = nn.Parameter(torch.empty(n_context, width))  # C
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Forget what was learned."""
        start = torch.randn(self.context.shape, generator=torch.Generator().manual_seed(_SEED))
        self.context.copy_(_STD * start)

    def forward(self, backbone: ClipBackbone, class_name: str, context: Tensor | None = None) -> Tensor:
        """Encode the prompts of a class: embeddings of unit length, averaged per state, brought to unit length again.

        Args:
            backbone (ClipBackbone): Frozen towers.
            class_name (str): What the images show.
            context (Tensor | None): Vectors ``(M, width)`` to begin the prompts with; ``None`` for the learned ones.

        Returns:
            Tensor: e_n and e_a, ``(2, D)``.
        """
        suffixes = suffix_ensemble(class_name, self.normal_suffixes, self.anomalous_suffixes)
        features = backbone.encode_with_context(
            [*suffixes[0], *suffixes[1]], self.context if context is None else context
        )
        states = features.split([len(state) for state in suffixes])
        return torch.stack([F.normalize(state.mean(dim=0), dim=-1) for state in states])
