"""CoOp (Zhou et al., arXiv 2109.01134) with a normal and an anomalous prompt, as a torch module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the customary name

from anomalib_inctrl.models.dev_prompt.prompt_learner import PromptLearner
from anomalib_inctrl.prompts import FIXED_PREFIX
from anomalib_inctrl.text_only import TextOnlyModel

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from anomalib_inctrl.clip import ClipBackbone, ImageFeatures

NORMAL_SUFFIX = "normal {}"
ANOMALOUS_SUFFIX = "abnormal {}"


class CoOpModel(TextOnlyModel):
    """Learned context vectors before "normal <class>." and "abnormal <class>.", against the whole image.

    CoOp learns ``[V]_1 ... [V]_M [CLASS]`` for the classes of one data set. Anomaly detection has two states of any
    class, so the state's word and the class are fixed and the context, learned on other classes, is carried over to
    them. How InCTRL's authors set their CoOp baseline up is not published; this reading is ours.

    Args:
        backbone (ClipBackbone): Frozen towers.
        branches (Iterable[str]): ``"context"`` for the learned context; without, prompts begin with fixed words.
        n_context (int): Number of context vectors, CoOp's M.
        context_per_state (bool): A context for each of the two states, CoOp's class-specific context, instead of a
            shared one.
        scale (float): Factor on the cosine similarities; 100 is CLIP's.
    """

    HEADS: ClassVar[str] = "coop"
    BRANCHES: ClassVar[dict[str, tuple[str, ...]]] = {"context": ("prompt_learners",)}

    def __init__(
        self,
        backbone: ClipBackbone,
        branches: Sequence[str] = (),
        n_context: int = 16,
        context_per_state: bool = False,
        scale: float = 100.0,
    ) -> None:
        super().__init__(backbone, branches, scale)
        self.prompt_learners = nn.ModuleList(
            PromptLearner(backbone.text_width, n_context, [NORMAL_SUFFIX], [ANOMALOUS_SUFFIX])
            for _ in range(2 if context_per_state else 1)
        )

    @property
    def options(self) -> dict[str, Any]:
        """Options of the formula: other ones give other scores."""
        return super().options | {"context_per_state": len(self.prompt_learners) == 2}

    def encode_prompts(self, class_name: str) -> Tensor:
        """Encode the prompts of a class with gradients for the learned context: e_n and e_a, ``(2, D)``."""
        fixed = None if "context" in self.branches else self.backbone.embed_words(FIXED_PREFIX)
        encoded = [learner(self.backbone, class_name, fixed) for learner in self.prompt_learners]
        return torch.stack([encoded[0][0], encoded[-1][1]])

    def text_prototypes(self, class_name: str) -> Tensor:
        """e_n and e_a of a class; encoded anew, since the context may have changed."""
        with torch.inference_mode(mode=False), torch.no_grad():
            return self.encode_prompts(class_name)

    def prototypes_of(self, class_names: Iterable[str]) -> Tensor:
        """Prototypes of every query's class with gradients, ``(B, 2, D)``; each class is encoded once."""
        names = list(class_names)
        encoded = {name: self.encode_prompts(name) for name in dict.fromkeys(names)}
        return torch.stack([encoded[name] for name in names])

    def loss(self, query: ImageFeatures, prototypes: Tensor, anomalous: Tensor) -> Tensor:
        """Cross-entropy of the two states (CoOp, equation 1), mean over the batch.

        Args:
            query (ImageFeatures): Features of ``B`` images.
            prototypes (Tensor): ``(B, 2, D)``, unit length.
            anomalous (Tensor): Labels ``(B,)``, boolean.
        """
        similarity = (F.normalize(query.pooled, dim=-1)[:, None] @ prototypes.mT)[:, 0]
        return F.cross_entropy(self.scale * similarity, anomalous.long())
