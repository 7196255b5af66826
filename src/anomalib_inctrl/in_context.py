"""What the models have in common: a frozen backbone, a bank of references, and scores built from both."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

import torch
import torch.distributed.nn
from anomalib.data import InferenceBatch
from torch import Tensor, nn

from anomalib_inctrl.calibration import MIRRORS
from anomalib_inctrl.clip import ClipBackbone, ImageFeatures, neighbourhood_mean
from anomalib_inctrl.reference_views import ReferenceViews, count_views, further_views
from anomalib_inctrl.references import Context, ReferenceBank

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence


_NEUTRAL = 0.01  # of a head's last weights; with none at all nothing before them would learn


class Explanation(Protocol):
    """What every model's named tuple of intermediate results has."""

    @property
    def score(self) -> Tensor:
        """Image scores ``(B,)`` in ``[0, 1]``."""

    @property
    def anomaly_map(self) -> Tensor:
        """Pixel scores ``(B, 1, H, W)`` in ``[0, 1]``."""

    def _asdict(self) -> dict[str, Tensor | None]: ...


class ResidualAdapter(nn.Module):
    """Bottleneck for image embeddings without a skip connection: psi of InCTRL (arXiv 2403.06495, equation 3).

    Args:
        width (int): Input and output width ``D``.
        reduction (int): Factor by which the bottleneck is narrower.
    """

    def __init__(self, width: int, reduction: int = 4) -> None:
        super().__init__()
        self.down = nn.Linear(width, width // reduction, bias=False)
        self.up = nn.Linear(width // reduction, width, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Map ``(..., D)`` to ``(..., D)``, not negative."""
        return self.up(self.down(features).relu()).relu()


class GlobalBatchNorm(nn.BatchNorm1d):
    """Batch norm over the batches of all processes, so that training does not depend on how many share a batch.

    torch's ``SyncBatchNorm`` needs a GPU; this gathers the few values there are on any device.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise ``(B, width)``."""
        if not self.training or not is_distributed():
            return super().forward(input)
        gathered = torch.cat(torch.distributed.nn.functional.all_gather(input.contiguous()))
        start = torch.distributed.get_rank() * input.shape[0]
        return super().forward(gathered)[start : start + input.shape[0]]


def is_distributed() -> bool:
    """Whether several processes train together."""
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


class ScoreHead(nn.Module):
    """Small classifier that ends in a probability: eta and phi of InCTRL (equations 5 and 8).

    Linear, ReLU and batch norm twice, then linear and sigmoid, in the order of the published code.

    Args:
        width (int): Input width.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, 128), nn.ReLU(), GlobalBatchNorm(128),
            nn.Linear(128, 64), nn.ReLU(), GlobalBatchNorm(64),
            nn.Linear(64, 1),
        )  # fmt: skip

    @torch.no_grad()
    def start_neutral(self) -> None:
        """Make every probability next to 0.5, so that training begins with what the other parts of a score say."""
        last: Any = self.layers[-1]
        last.weight.mul_(_NEUTRAL)
        last.bias.zero_()

    @property
    def linear_layers(self) -> tuple[nn.Linear, ...]:
        """The three linear layers in their order."""
        return tuple(layer for layer in self.layers if isinstance(layer, nn.Linear))

    def reset_norms(self) -> None:
        """Let both batch norms pass on what they get, in evaluation."""
        for layer in self.layers:
            if isinstance(layer, GlobalBatchNorm):
                layer.reset_parameters()

    def forward(self, features: Tensor) -> Tensor:
        """Map ``(B, width)`` to probabilities ``(B,)``."""
        return self.layers(features).squeeze(-1).sigmoid()


class Distortion(NamedTuple):
    """What image embeddings go through in training before the image branch sees them. Ours; the papers do not.

    Attributes:
        rotation (Tensor | None): Orthogonal matrix ``(D, D)``.
        factors (Tensor | None): Of the embeddings of every episode, ``(B,)``, positive.
        noise (Tensor | None): What is added to a query and to each of its references, as shares of their lengths,
            ``(B, 1 + K, D)``.
    """

    rotation: Tensor | None = None
    factors: Tensor | None = None
    noise: Tensor | None = None

    def __call__(self, embeddings: Tensor) -> Tensor:
        """Distort the embeddings of queries ``(B, D)`` or of their references ``(B, K, D)``."""
        if self.noise is not None:
            noise = self.noise[:, 0] if embeddings.ndim == 2 else self.noise[:, 1:]
            embeddings = embeddings + embeddings.norm(dim=-1, keepdim=True) * noise
        if self.rotation is not None:
            embeddings = embeddings @ self.rotation
        if self.factors is not None:
            embeddings = embeddings * self.factors.reshape(-1, *[1] * (embeddings.ndim - 1))
        return embeddings


def image_residual_score(
    query: Tensor,
    references: Tensor,
    adapter: ResidualAdapter,
    head: ScoreHead,
    distortion: Distortion | None = None,
) -> Tensor:
    """Score the difference between an image and the mean of its references: s_i of InCTRL (equations 3-5).

    The residual is references minus query, as in the published code; the paper has it the other way round, which a
    trained head cannot tell apart but a published checkpoint can.

    Args:
        query (Tensor): Image embeddings ``(B, D)``.
        references (Tensor): Image embeddings ``(K, D)`` for all, or ``(B, K, D)``.
        adapter (ResidualAdapter): psi.
        head (ScoreHead): eta.
        distortion (Distortion | None): What all embeddings go through first, in training.

    Returns:
        Tensor: ``(B,)`` in ``[0, 1]``.
    """
    if distortion is not None:
        query, references = distortion(query), distortion(references)
    prototype = adapter(references).mean(dim=-2)  # I_p
    return head(prototype - adapter(query))


def require_share(name: str, value: float) -> None:
    """Refuse a weight outside ``[0, 1]``.

    Raises:
        ValueError: Naming it.
    """
    if not 0 <= value <= 1:
        msg = f"{name} must be from 0 to 1, got {value}."
        raise ValueError(msg)


class InContextModel(nn.Module, ABC):
    """Base of the torch models: references in, scores and maps out.

    A subclass names its trainable parts in :attr:`BRANCHES` and implements :meth:`score`. A branch counts only once it
    is in use: trained, loaded, or asked for at random. With none in use a model is training-free.

    Args:
        backbone (ClipBackbone): Frozen towers.
        branches (Iterable[str]): Branches in use from the start.
        reference_views (str | None): Views of references whose patches queries are compared with, see
            :mod:`anomalib_inctrl.reference_views`; ``None`` for the backbone's.
        residual_smoothing (float | None): Share of the mean over 3 x 3 neighbours in every patch residual, 0 to 1;
            ``None`` for the backbone's.

    Raises:
        ValueError: If there is no such branch or view, or the share is none.
    """

    HEADS: ClassVar[str]
    """What the file of heads embedded with ``inctrl-tiny`` is called."""

    BRANCHES: ClassVar[dict[str, tuple[str, ...]]]
    SWAPPABLE: ClassVar[bool] = True
    """Whether a score depends on references through their features alone, so that others can take their place."""

    branch_flags: Tensor

    def __init__(
        self,
        backbone: ClipBackbone,
        branches: Iterable[str] = (),
        reference_views: ReferenceViews | None = None,
        residual_smoothing: float | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.residual_smoothing = backbone.residual_smoothing if residual_smoothing is None else residual_smoothing
        require_share("residual_smoothing", self.residual_smoothing)
        self.reference_views: ReferenceViews = backbone.reference_views if reference_views is None else reference_views
        self.references = self._new_bank(backbone, count_views(self.reference_views))
        self._text_prototypes: dict[str, Tensor] = {}
        self.register_buffer("branch_flags", torch.zeros(len(self.BRANCHES), dtype=torch.uint8))
        self.use_branches(branches)

    @staticmethod
    def _new_bank(backbone: ClipBackbone, views: int) -> ReferenceBank:
        return ReferenceBank(backbone, views)

    def encode(self, images: Tensor) -> ImageFeatures:
        """Encode preprocessed images ``(B, 3, H, W)``; a model that needs more of the towers takes more."""
        return self.backbone.encode_image(images)

    @property
    def options(self) -> dict[str, Any]:
        """What is set by hand and changes scores; what is off leaves no trace, as in checkpoints that don't know it."""
        views = {} if self.references.views == 1 else {"reference_views": self.reference_views}
        return views | ({"residual_smoothing": self.residual_smoothing} if self.residual_smoothing else {})

    @property
    def branches(self) -> frozenset[str]:
        """Branches in use."""
        return self._branches

    def use_branches(self, branches: Iterable[str]) -> None:
        """Say which trainable parts count.

        Raises:
            ValueError: If a branch does not exist.
        """
        chosen = frozenset(branches)
        if not chosen <= self.BRANCHES.keys():
            msg = f"branches must be among {list(self.BRANCHES)}, got {sorted(chosen)}."
            raise ValueError(msg)
        flags = [name in chosen for name in self.BRANCHES]
        self.branch_flags = torch.tensor(flags, dtype=torch.uint8, device=self.branch_flags.device)
        self._branches = chosen

    def set_references(self, images: Tensor, class_name: str = "object") -> None:
        """Replace all references.

        Args:
            images (Tensor): Preprocessed images of normal objects ``(K, 3, H, W)``. ``K = 0`` scores by text alone.
            class_name (str): What the images show, for the text prompts.

        Raises:
            ValueError: If the images have another shape or hold values that are not finite.
        """
        reference = self._encode_references(images, class_name)
        with torch.inference_mode(mode=False), torch.no_grad():
            self.references.clear()
            self.references.extend(class_name, *reference)

    def add_references(self, images: Tensor, class_name: str | None = None) -> None:
        """Add references to a class, or open another class.

        Args:
            images (Tensor): Preprocessed images ``(K, 3, H, W)``.
            class_name (str | None): ``None`` for the first class.

        Raises:
            RuntimeError: If there is no class yet and none is named.
            ValueError: If the images have another shape or hold values that are not finite.
        """
        if class_name is None:
            class_name = self.references.resolve(None)
        reference = self._encode_references(images, class_name)
        with torch.inference_mode(mode=False), torch.no_grad():
            self.references.extend(class_name, *reference)

    def forget_references(self) -> None:
        """Forget references and text prototypes, as other towers demand."""
        self._text_prototypes.clear()
        self.references.clear()

    def _encode_references(self, images: Tensor, class_name: str) -> tuple[ImageFeatures, Tensor, Tensor]:
        if not torch.isfinite(images).all():
            msg = "Reference images hold NaN or infinite values."
            raise ValueError(msg)
        # Ordinary tensors even inside the evaluation loops' inference mode, else a later load_state_dict fails.
        with torch.inference_mode(mode=False), torch.no_grad():
            images = images.clone()
            features, pictures = self.encode(images), self.backbone.to_pictures(images)
            patches = torch.cat([features.patches, *self._patches_of_views(pictures)], dim=2)
            return features._replace(patches=patches), self.text_prototypes(class_name), pictures

    def _patches_of_views(self, pictures: Tensor) -> Iterator[Tensor]:
        """Patches ``(K, L, N, W)`` of every further view of references, which are 8-bit images ``(K, 3, H, W)``."""
        for view in further_views(pictures.cpu().numpy(), self.reference_views, self.backbone.patch_size):
            images = torch.from_numpy(view.copy()).to(pictures.device)
            yield self.backbone.encode_patches(self.backbone.from_pictures(images))

    def text_prototypes(self, class_name: str) -> Tensor:
        """Text prototypes of a class, ``(2, D)``, encoded once."""
        if class_name not in self._text_prototypes:
            with torch.inference_mode(mode=False):
                self._text_prototypes[class_name] = self.backbone.text_prototypes(class_name)
        return self._text_prototypes[class_name].to(self.branch_flags.device)

    def forward(self, images: Tensor, class_names: Sequence[str] | None = None) -> InferenceBatch:
        """Score images.

        Args:
            images (Tensor): Preprocessed images ``(B, 3, H, W)``.
            class_names (Sequence[str] | None): Class of every image if the references are of several.

        Returns:
            InferenceBatch: ``pred_score`` ``(B,)`` and ``anomaly_map`` ``(B, 1, H, W)``, both in ``[0, 1]``.

        Raises:
            RuntimeError: If there are no references.
        """
        explanation = self.explain(images, class_names)
        return InferenceBatch(pred_score=explanation.score, anomaly_map=explanation.anomaly_map)

    def explain(self, images: Tensor, class_names: Sequence[str] | None = None) -> Explanation:
        """Score images and return every intermediate result by name. Arguments as for :meth:`forward`."""
        if class_names is None:
            context = self.references.context()
            return self.score(self.encode(images), context)
        if len(class_names) != images.shape[0]:
            msg = f"class_names must name the class of each image: got {len(class_names)} for {images.shape[0]} images."
            raise ValueError(msg)
        contexts = {name: self.references.context(name) for name in class_names}
        query = self.encode(images)
        rows = {name: [i for i, n in enumerate(class_names) if n == name] for name in contexts}
        parts = [self.score(type(query)(*(f[rows[name]] for f in query)), contexts[name]) for name in contexts]
        order = torch.tensor([row for name in contexts for row in rows[name]], device=images.device).argsort()
        return merge(parts, order)

    def compare_patches(self, query: ImageFeatures, context: Context) -> Tensor:
        """Compare queries' patches with the references': M_x.

        Returns:
            Tensor: Residuals ``(B, N)`` in ``[0, 1]``, to ``residual_smoothing`` the mean over their neighbours.
        """
        residuals = context.patch_residuals(query.patches)
        if not self.residual_smoothing:
            return residuals
        means = neighbourhood_mean(residuals[..., None], self.backbone.grid_size).squeeze(-1)
        return torch.lerp(residuals, means, self.residual_smoothing)

    @abstractmethod
    def score(self, query: ImageFeatures, context: Context) -> Explanation:
        """Compare queries with their context; the model's own formulae."""

    @torch.no_grad()
    def score_normals(self, class_name: str | None = None) -> Explanation:
        """Score normal images that are at hand, to calibrate a threshold: every reference against the others.

        The bank's features serve as queries, nothing is encoded. Scores lie a little above those of new normal images,
        which have one more reference to be compared with. A single reference is compared with its mirror images and
        its half turn instead, in its own view alone, which says little about how far other normal images lie.

        Args:
            class_name (str | None): ``None`` for the first class.

        Returns:
            Explanation: Of ``K`` queries, or of 3 for a single reference.

        Raises:
            RuntimeError: If there are no references.
        """
        return merge([self.score(query, context) for query, context in self.left_out(class_name)])

    def left_out(self, class_name: str | None = None) -> Iterator[tuple[ImageFeatures, Context]]:
        """Pair every reference with the others, or a single one's mirror images and half turn with itself.

        Yields:
            tuple[ImageFeatures, Context]: Queries, and what they are to be compared with.

        Raises:
            RuntimeError: If there are no references.
        """
        features = self.references.features(class_name)
        count = features.pooled.shape[0]
        if count == 0:
            msg = "Calibrating from references takes at least one, there is none (k_shot=0)."
            raise RuntimeError(msg)
        if count == 1:
            picture = self.references.pictures_of(class_name)
            turned = torch.cat([picture.flip(axes) for axes in MIRRORS])
            own = self.references.context(class_name)._replace(patches=features.patches[0])  # views may be turned too
            yield self.encode(self.backbone.from_pictures(turned)), own
            return
        for i in range(count):
            query = type(features)(*(f[i : i + 1] for f in features))
            yield query, self.references.context(class_name, without=i)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: object) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        flags = self.branch_flags.tolist()
        self._branches = frozenset(name for name, flag in zip(self.BRANCHES, flags, strict=True) if flag)


def merge(parts: Sequence[Any], order: Tensor | None = None) -> Any:
    """Join explanations along the batch, then put the rows into an order."""
    columns = zip(*parts, strict=True)  # of a class without references some are None, which leaves them out for all
    joined = (None if any(part is None for part in column) else torch.cat(column) for column in columns)
    return type(parts[0])(*(c if c is None or order is None else c[order] for c in joined))
