"""How both stages of the pre-training optimise: AdamW without decay on vectors, a learning rate by schedule."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import nn

_BETAS = (0.9, 0.98)


def adamw(
    module: nn.Module,
    learning_rate: float,
    weight_decay: float,
    rate: Callable[[int], float],
    faster: Iterable[nn.Parameter] = (),
) -> dict[str, Any]:
    """Build what Lightning's ``configure_optimizers`` returns.

    Args:
        module (nn.Module): Its parameters that require a gradient are trained.
        learning_rate (float): The highest one.
        weight_decay (float): Of matrices; vectors and numbers have none.
        rate (Callable): From a step to its learning rate, as a share of the highest.
        faster (Iterable[nn.Parameter]): Those of the parameters that learn ten times as fast, without decay.
    """
    fast = list(faster)
    known = {id(p) for p in fast}
    others = [p for p in module.parameters() if p.requires_grad and id(p) not in known]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in others if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if fast:
        groups.append({"params": fast, "weight_decay": 0.0, "lr": 10 * learning_rate})
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=_BETAS)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
