"""What the embedded backbone is trained for: captions, residuals that show defects, and categories told apart."""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the customary name
from torchmetrics.functional.classification import binary_auroc

from anomalib_inctrl.clip import contrastive_loss
from anomalib_inctrl.scoring import abnormality_margin

_RELATED = 96  # patches of every group that are compared with each other and with those of other groups
_KERNEL = 0.5  # mean squared difference of descriptors at which their kernel has fallen to 1/e
_RANKING_SCALE = 20.0  # of differences of residuals
ANOMALOUS = 0.25  # share of a patch from which it must be found


class Encoded(NamedTuple):
    """Features of a batch of groups.

    Attributes:
        patches (Tensor): ``(G, M, L, N, W)``, of any length.
        pooled (Tensor): ``(G, M, D)``, of any length.
        aligned (Tensor): Patches in the joint space, ``(G, M, N, D)``; unit length.
        captions (Tensor): ``(2 * G, D)``, of the first and last picture of every group; unit length.
        prototypes (Tensor): ``(G, 2, D)``, of the normal and the anomalous state; unit length.
        descriptors (Tensor): ``(G, M, N, F)``, see :func:`anomalib_inctrl.pretraining.descriptor.describe`.
    """

    patches: Tensor
    pooled: Tensor
    aligned: Tensor
    captions: Tensor
    prototypes: Tensor
    descriptors: Tensor


class Judge(NamedTuple):
    """Turns a distance into the logit of being anomalous.

    One judge serves all categories, so that distances mean the same for each of them. It is not learned: thresholds
    that are fall with the distances, which then shrink to nothing.

    Attributes:
        scale (float): Logits per unit of distance.
        threshold (float): Distance of logit 0.
    """

    scale: float
    threshold: float

    def __call__(self, distance: Tensor) -> Tensor:
        """Map distances of any shape to logits."""
        return self.scale * (distance - self.threshold)


_IMAGE_JUDGE = Judge(20.0, 0.2)
_DISTANCE_JUDGE = Judge(20.0, 0.1)


class PretrainingObjective(nn.Module):
    """Sum of ten terms, most over pictures that are queries of their own or another group's normal pictures.

    - ``relation``: similarities of patches among each other against those of a classic descriptor, which sets the
      backbone on its way (relational distillation, arXiv 1904.05068);
    - ``patch``: residuals of anomalous patches to their nearest reference patches above those of normal ones;
    - ``image``: largest residuals of anomalous pictures above those of normal ones;
    - ``calibration``: largest residuals against the labels by one threshold for all categories, pictures of another
      category counting as anomalous;
    - ``category``: nearest prototype among the batch's categories (prototypical networks, arXiv 1703.05175);
    - ``distance``: distance of the image embedding to its group's mean against the label;
    - ``caption``: open_clip's contrastive loss;
    - ``state``: probability of the anomalous prompts, s_a of InCTRL, against the label;
    - ``dense``: the same probability of every patch in the joint space, as DevPrompt reads it, against its share of
      defect;
    - ``opposite``: how far the prompts of both states are from orthogonal, without which the two before teach nothing.

    Patches and pictures are ranked within their category, as they are when a model is used: to find one threshold for
    all categories is a task of its own, which would take up most of a small tower's attention.

    The references of a query are a random part of its group's other normal pictures, so that any number will do.

    Args:
        weights (dict[str, float] | None): Factors of the terms, by name, instead of :attr:`WEIGHTS`; 0 drops a
            term.

    Raises:
        ValueError: If a weight names no term.
    """

    WEIGHTS: ClassVar[dict[str, float]] = {
        "relation": 5.0,
        "patch": 3.0,
        "image": 2.0,
        "calibration": 0.5,
        "category": 1.0,
        "distance": 0.5,
        "caption": 0.5,
        "state": 0.1,
        "dense": 0.3,
        "opposite": 1.0,
    }

    def __init__(self, weights: dict[str, float] | None = None) -> None:
        super().__init__()
        unknown = (weights or {}).keys() - self.WEIGHTS.keys()
        if unknown:
            msg = f"No term is called {', '.join(sorted(unknown))}; there are {', '.join(self.WEIGHTS)}."
            raise ValueError(msg)
        self.weights = self.WEIGHTS | (weights or {})
        self.category_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.caption_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.caption_loss = contrastive_loss()

    def forward(
        self,
        encoded: Encoded,
        coverage: Tensor,
        labels: Tensor,
        factors: dict[str, float] | None = None,
    ) -> dict[str, Tensor]:
        """Compute the terms; ``loss``, their weighted sum; and ``auroc``, of the largest residuals in the batch.

        Args:
            encoded (Encoded): Features.
            coverage (Tensor): ``(G, M, N)``, see :class:`Groups`.
            labels (Tensor): ``(G, M)``, ``bool``; normal pictures first in every group.
            factors (dict[str, float] | None): What this step multiplies the weights by; 1 where a term is not named.
        """
        normals = int((~labels[0]).sum())
        chosen = choose_references(labels, normals)
        own, other = group_residuals(encoded.patches, normals, chosen)
        means, distances = prototype_distances(encoded.pooled, chosen)
        named = F.normalize(encoded.pooled[:, [0, -1]].flatten(0, 1), dim=-1)
        # What pictures look like must not move the text: prototypes that are alike would serve these terms best.
        prototypes = encoded.prototypes.detach()[:, None]
        pooled = F.normalize(encoded.pooled, dim=-1)
        terms = {
            "relation": relation_loss(encoded.patches, encoded.descriptors),
            "patch": patch_ranking_loss(own, coverage),
            "image": ranking_loss(own.amax(dim=-1), labels),
            "calibration": balanced_bce(
                _IMAGE_JUDGE(torch.cat([own, other], dim=1).amax(dim=-1)),
                torch.cat([labels, torch.ones_like(other[..., 0], dtype=torch.bool)], dim=1),
            ),
            "category": category_loss(encoded.pooled[:, :normals], means[:, :normals], self.category_scale),
            "distance": balanced_bce(_DISTANCE_JUDGE(distances), labels),
            "caption": self.caption_loss(named, encoded.captions, self.caption_scale.exp().clamp(max=100)),
            "state": balanced_bce(abnormality_margin(pooled, prototypes), labels),
            "dense": patch_loss(abnormality_margin(encoded.aligned, prototypes[:, None]), coverage),
            "opposite": encoded.prototypes.prod(dim=1).sum(dim=-1).square().mean(),
        }
        factors = factors or {}
        loss = sum(
            (self.weights[name] * factors.get(name, 1.0) * term for name, term in terms.items()), torch.zeros(())
        )
        with torch.no_grad():
            auroc = binary_auroc(own.amax(dim=-1).flatten(), labels.flatten().int())
        return terms | {"auroc": auroc, "loss": loss}


def choose_references(labels: Tensor, normals: int) -> Tensor:
    """Choose at random which normal pictures are a query's references: one to all of them, never itself.

    Returns:
        Tensor: ``(G, M, R)`` of 0 and 1.
    """
    groups, members = labels.shape
    rank = torch.rand(groups, members, normals)
    rank[:, torch.arange(normals), torch.arange(normals)] = 2  # a picture is the last choice for itself
    count = torch.randint(1, normals, (groups, members, 1))
    return (rank.argsort(dim=-1).argsort(dim=-1) < count).float()


def prototype_distances(pooled: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Prototype of every query, the mean embedding of its references, and the query's distance to it.

    Args:
        pooled (Tensor): ``(G, M, D)``, of any length.
        chosen (Tensor): ``(G, M, R)``, which of the first ``R`` pictures are a query's references.

    Returns:
        tuple[Tensor, Tensor]: ``(G, M, D)``, unit length, and ``(G, M)`` in ``[0, 1]``.
    """
    unit = F.normalize(pooled, dim=-1)
    weights = chosen / chosen.sum(dim=-1, keepdim=True)
    means = F.normalize(weights @ unit[:, : chosen.shape[-1]], dim=-1)
    return means, 0.5 * (1 - (unit * means).sum(dim=-1))


def category_loss(queries: Tensor, own: Tensor, log_scale: Tensor) -> Tensor:
    """Cross-entropy of normal queries over their own prototype and those of the other groups.

    Prototypical networks, arXiv 1703.05175.

    Args:
        queries (Tensor): ``(G, R, D)``, of any length.
        own (Tensor): ``(G, R, D)``, of every query, which is none of the references it is made of; unit length.
        log_scale (Tensor): Logarithm of the factor on the cosines, a scalar; the factor is 100 at most.
    """
    groups, normals = queries.shape[:2]
    queries = F.normalize(queries, dim=-1)
    prototypes = F.normalize(queries.mean(dim=1), dim=-1)
    similarity = torch.einsum("grd,hd->grh", queries, prototypes)
    index = torch.arange(groups)
    similarity[index, :, index] = (queries * own).sum(dim=-1)  # leaves the query out of its own prototype
    logits = log_scale.exp().clamp(max=100) * similarity
    return F.cross_entropy(logits.flatten(0, 1), index.repeat_interleave(normals))


def group_residuals(patches: Tensor, normals: int, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Residuals of all pictures to their own references, and of normal pictures to the next group's.

    Args:
        patches (Tensor): ``(G, M, L, N, W)``.
        normals (int): Number ``R`` of normal pictures of a group, its first.
        chosen (Tensor): ``(G, M, R)``, which of them are a query's references.

    Returns:
        tuple[Tensor, Tensor]: ``(G, M, N)`` and ``(G, 1, N)``, in ``[0, 1]``.
    """
    tokens = F.normalize(patches, dim=-1)
    queries = torch.cat([tokens, tokens[:, :1].roll(1, dims=0)], dim=1)
    chosen = torch.cat([chosen, torch.ones_like(chosen[:, :1])], dim=1).bool()
    similarity = [
        nearest_similarity(group, references, among)
        for group, references, among in zip(queries, tokens[:, :normals], chosen, strict=True)
    ]
    residuals = 0.5 * (1 - torch.stack(similarity))
    return residuals[:, :-1], residuals[:, -1:]


def nearest_similarity(queries: Tensor, references: Tensor, among: Tensor) -> Tensor:
    """Cosine of every query patch with its nearest reference patch, averaged over the blocks.

    The nearest is searched without gradients; only its own cosine is differentiated. Not in half precision, for tokens
    may be alike to the third digit.

    Args:
        queries (Tensor): ``(M, L, N, W)``, unit length.
        references (Tensor): ``(R, L, N, W)``, unit length.
        among (Tensor): ``(M, R)``, ``bool``, which references a query has.

    Returns:
        Tensor: ``(M, N)``.
    """
    members, blocks, patches, width = queries.shape
    pool = references.transpose(0, 1).flatten(1, 2)  # (L, R * N, W)
    with torch.no_grad():
        similarity = queries.transpose(0, 1).flatten(1, 2) @ pool.mT
        similarity = similarity.view(blocks, members, patches, *among.shape[1:], patches)
        similarity = similarity.masked_fill(~among[None, :, None, :, None], -2)
        index = similarity.flatten(3).argmax(dim=-1).flatten(1)  # (L, M * N)
    nearest = pool.gather(1, index[..., None].expand(-1, -1, width)).view(blocks, members, patches, width)
    return (queries.transpose(0, 1) * nearest).sum(dim=-1).mean(dim=0)


def relation_loss(patches: Tensor, descriptors: Tensor) -> Tensor:
    """Squared difference between cosines of tokens and a Gaussian kernel of their descriptors, for random patches.

    Args:
        patches (Tensor): ``(G, M, L, N, W)``.
        descriptors (Tensor): ``(G, M, N, F)``, standardised.
    """
    groups, _, blocks, _, width = patches.shape
    tokens = patches.transpose(2, 3).reshape(groups, -1, blocks, width)
    chosen = torch.randint(tokens.shape[1], (groups, _RELATED))
    index = torch.arange(groups)[:, None]
    tokens = F.normalize(tokens[index, chosen].flatten(0, 1).transpose(0, 1), dim=-1)  # (L, G * related, W)
    described = descriptors.flatten(1, 2)[index, chosen].flatten(0, 1)
    kernel = (-(torch.cdist(described, described) ** 2) / (_KERNEL * described.shape[-1])).exp()
    return (tokens @ tokens.mT - kernel).square().mean()


def patch_loss(logits: Tensor, coverage: Tensor) -> Tensor:
    """Cross-entropy of patches that are clearly anomalous or entirely normal, both kinds weighted alike."""
    anomalous = coverage >= ANOMALOUS
    clear = anomalous | (coverage == 0)
    return balanced_bce(logits[clear], anomalous[clear])


def patch_ranking_loss(residuals: Tensor, coverage: Tensor) -> Tensor:
    """Ranking loss of patches that are clearly anomalous or entirely normal within every group.

    Args:
        residuals (Tensor): ``(G, M, N)``.
        coverage (Tensor): ``(G, M, N)``, see :class:`anomalib_inctrl.pretraining.groups.Groups`.
    """
    anomalous = (coverage >= ANOMALOUS).flatten(1)
    clear = anomalous | (coverage == 0).flatten(1)
    groups = zip(residuals.flatten(1), anomalous, clear, strict=True)
    losses = [ranking_loss(r[c][None], a[c][None]) for r, a, c in groups if a.any() and (c & ~a).any()]
    return torch.stack(losses).mean() if losses else residuals.sum() * 0


def ranking_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Logistic loss of the differences between anomalous and normal members of a group, which AUROC counts.

    Args:
        scores (Tensor): ``(G, M)``.
        labels (Tensor): ``(G, M)``, ``bool``; as many in every group.
    """
    groups = len(scores)
    anomalous, normal = (scores[chosen].view(groups, -1) for chosen in (labels, ~labels))
    return F.softplus(_RANKING_SCALE * (normal[:, None] - anomalous[..., None])).mean()


def balanced_bce(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy in which both labels weigh the same; one that does not occur is left out."""
    loss = F.binary_cross_entropy_with_logits(logits, labels.to(logits), reduction="none")
    parts = [loss[chosen].mean() for chosen in (labels, ~labels) if chosen.any()]
    return torch.stack(parts).mean()
