"""Losses against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from anomalib_inctrl.losses import dice_loss, focal_loss


def usual_dice(predicted: torch.Tensor, wanted: torch.Tensor, smooth: float = 1.0) -> torch.Tensor:
    """The form in common use, of a single image."""
    return 1 - (2 * (predicted * wanted).sum() + smooth) / (predicted.sum() + wanted.sum() + smooth)


def test_focal_loss_by_hand():
    probabilities, targets = torch.tensor([0.9, 0.2, 0.6]), torch.tensor([1.0, 0.0, 0.0])
    cross_entropy = -(math.log(0.9) + math.log(0.8) + math.log(0.4)) / 3
    focal = -(0.01 * math.log(0.9) + 0.04 * math.log(0.8) + 0.36 * math.log(0.4)) / 3
    assert focal_loss(probabilities, targets, gamma=0).item() == pytest.approx(cross_entropy, rel=1e-5)
    assert focal_loss(probabilities, targets).item() == pytest.approx(focal, rel=1e-5)
    assert focal_loss(probabilities, targets.bool()).item() == pytest.approx(focal, rel=1e-5)


def test_double_sigmoid_is_the_loss_of_the_sigmoid():
    probabilities, targets = torch.rand(20), torch.rand(20) > 0.5
    doubled = focal_loss(probabilities, targets, double_sigmoid=True)
    assert torch.equal(doubled, focal_loss(probabilities.sigmoid(), targets))
    assert not torch.isclose(doubled, focal_loss(probabilities, targets))


def test_dice_loss_by_hand():
    probabilities = torch.tensor([[[0.8, 0.4], [0.0, 0.2]], [[0.1, 0.3], [0.0, 0.0]]])
    masks = torch.tensor([[[1, 1], [0, 0]], [[0, 0], [0, 0]]])
    some = 1 - 2 * 1.2 / (1.4 + 2)
    empty = 1 - 2 * 3.6 / (3.6 + 4)  # of the normal pixels
    assert dice_loss(probabilities, masks).item() == pytest.approx((some + empty) / 2, rel=1e-5)
    assert dice_loss(masks.float(), masks).item() == pytest.approx(0, abs=1e-6)
    assert dice_loss(1 - masks.float(), masks).item() == pytest.approx(1)


def test_empty_masks_give_a_gradient_where_the_usual_dice_gives_none():
    """240 x 240 pixels, all predicted at 0.5: the gradients' sums over the pixels."""
    gradients = {}
    for name, loss in {"ours": lambda p, m: dice_loss(p[None], m[None]), "usual": usual_dice}.items():
        probabilities = torch.full((240, 240), 0.5, requires_grad=True)
        loss(probabilities, torch.zeros(240, 240)).backward()
        gradients[name] = probabilities.grad.sum().item()
    # d/dp of 1 - 2(1-p) / (2-p) is 2 / (2-p)^2 = 0.889; of 1 - 1 / (n p + 1), n / (n p + 1)^2 = 6.9e-5.
    assert gradients["ours"] == pytest.approx(0.889, rel=1e-3)
    assert gradients["usual"] == pytest.approx(6.94e-5, rel=1e-2)


@pytest.mark.parametrize("loss", [focal_loss, dice_loss])
def test_shapes_must_agree(loss):
    with pytest.raises(ValueError, match=r"\(2, 4, 4\) and targets \(2, 1, 4, 4\) must have the same shape"):
        loss(torch.rand(2, 4, 4), torch.zeros(2, 1, 4, 4))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("target", [0.0, 1.0])
def test_finite_at_the_edges(gamma, target):
    probabilities = torch.tensor([[0.0, 1.0], [0.0, 0.0], [1.0, 1.0]], requires_grad=True)
    targets = torch.full((3, 2), target)
    loss = focal_loss(probabilities, targets, gamma) + dice_loss(probabilities, targets)
    loss.backward()
    assert loss.isfinite()
    assert probabilities.grad.isfinite().all()


@pytest.mark.parametrize("confidence", [1e-3, 1e-7, 1e-9])
def test_the_surest_mistakes_are_corrected(confidence):
    """A softmax can come this close to 0, and its logit must still learn."""
    logit = torch.tensor([math.log(confidence)], requires_grad=True)
    focal_loss(logit.exp(), torch.ones(1)).backward()
    assert logit.grad.item() == pytest.approx(-1, abs=0.1)
