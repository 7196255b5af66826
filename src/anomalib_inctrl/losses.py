"""Losses. Those of InCTRL take probabilities, those of DevPrompt margins and deviations; none takes logits unsaid."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_SMALLEST = 1e-12  # keeps logarithms finite, and lets the surest mistakes, of which softmax makes some, still learn
_LARGEST = 1 - 1e-6


def focal_loss(probabilities: Tensor, targets: Tensor, gamma: float = 2.0, *, double_sigmoid: bool = False) -> Tensor:
    """Binary focal loss with weight 1 for both classes, averaged over all elements.

    ``L_b`` of InCTRL (arXiv 2403.06495, equations 5 and 9) and the focal terms of InCTRLv2.

    Args:
        probabilities (Tensor): Of the anomalous class, in ``[0, 1]``, any shape.
        targets (Tensor): 0 or 1 (or boolean), same shape.
        gamma (float): How much well classified elements are discounted; 0 gives cross entropy.
        double_sigmoid (bool): Pass the probabilities through a sigmoid first, as InCTRL's published code does by
            feeding them to a loss written for logits. Reproduces it; every probability then lies in [0.5, 0.73].

    Returns:
        Tensor: Scalar, not negative.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> import torch
        >>> focal_loss(torch.tensor([0.5]), torch.tensor([1.0]))  # 0.25 * ln 2
        tensor(0.1733)
    """
    _require_same_shape(probabilities, targets)
    if double_sigmoid:
        probabilities = probabilities.sigmoid()
    probabilities = _at_least_single(probabilities)
    right = torch.where(targets.bool(), probabilities, 1 - probabilities).clamp(_SMALLEST, _LARGEST)
    return -((1 - right) ** gamma * right.log()).mean()


def dice_loss(probabilities: Tensor, masks: Tensor) -> Tensor:
    """Soft Dice loss per image, averaged over images.

    An image without anomalous pixels is measured by the Dice of its normal pixels. The usual form is 1 as soon as
    anything is predicted on an empty mask, whatever its amount, and has next to no gradient there; InCTRLv2's
    one-class branch, whose masks are all empty, would learn nothing from it. The choice is ours.

    Args:
        probabilities (Tensor): Of anomalous pixels, in ``[0, 1]``, ``(B, ...)``.
        masks (Tensor): 0 or 1 (or boolean), same shape.

    Returns:
        Tensor: Scalar in ``[0, 1]``.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> import torch
        >>> dice_loss(torch.tensor([[1.0, 0.5]]), torch.tensor([[1.0, 0.0]]))  # 1 - 2 / 2.5
        tensor(0.2000)
        >>> dice_loss(torch.tensor([[0.5, 0.5]]), torch.zeros(1, 2))  # 1 - 2 / 3
        tensor(0.3333)
    """
    _require_same_shape(probabilities, masks)
    predicted = _at_least_single(probabilities).flatten(1)
    wanted = masks.to(predicted).flatten(1)
    empty = wanted.sum(dim=1, keepdim=True) == 0
    predicted = torch.where(empty, 1 - predicted, predicted)
    wanted = torch.where(empty, 1 - wanted, wanted)
    overlap = 2 * (predicted * wanted).sum(dim=1)
    return (1 - overlap / (predicted.sum(dim=1) + wanted.sum(dim=1))).mean()


def deviation_loss(deviations: Tensor, labels: Tensor, margin: float = 5.0) -> Tensor:
    """Deviation loss per image: ``(1 - y) |dev| + y max(0, a - dev)``.

    Of deviation networks (Pang et al., arXiv 1911.08623, equation 6; for images arXiv 2108.00462). Normal images are
    to lie at the mean of the reference, anomalous ones at least ``a`` standard deviations above it.

    Args:
        deviations (Tensor): Deviations of images, ``(B,)``.
        labels (Tensor): 0 or 1 (or boolean), ``(B,)``.
        margin (float): ``a``, the confidence margin.

    Returns:
        Tensor: ``(B,)``, not negative.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> import torch
        >>> deviation_loss(torch.tensor([-1.0, 2.0, 6.0]), torch.tensor([0, 1, 1]))
        tensor([1., 3., 0.])
    """
    _require_same_shape(deviations, labels)
    return torch.where(labels.bool(), (margin - deviations).clamp(min=0), deviations.abs())


def normal_prompt_loss(margins: Tensor) -> Tensor:
    """Cross-entropy of normal features between the two prompts, averaged over all.

    The prompt-learning loss of CoOp (arXiv 2109.01134) for two classes, of which only the normal one has examples:
    ``-log softmax(scale * [cos(z, e_n), cos(z, e_a)])_n``, which is ``log(1 + exp(margin))``.

    Args:
        margins (Tensor): Of normal features, as :func:`anomalib_inctrl.scoring.abnormality_margin` has them, any shape.

    Returns:
        Tensor: Scalar, not negative; ln 2 where both prompts are equally near.

    Example:
        >>> import torch
        >>> normal_prompt_loss(torch.tensor([[0.0, 0.0]]))
        tensor(0.6931)
    """
    return functional.softplus(_at_least_single(margins)).mean()


def _at_least_single(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _require_same_shape(predicted: Tensor, wanted: Tensor) -> None:
    if predicted.shape != wanted.shape:
        msg = f"Predictions {tuple(predicted.shape)} and targets {tuple(wanted.shape)} must have the same shape."
        raise ValueError(msg)
