"""The frozen CLIP towers. The only module that talks to open_clip, which it imports when a backbone is built."""

from __future__ import annotations

import difflib
import hashlib
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the customary name

from anomalib_inctrl.prompts import prompt_ensemble
from anomalib_inctrl.shape_tower import Seen, ShapeTower

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.resources.abc import Traversable

    from anomalib_inctrl.reference_views import ReferenceViews

PatchAttention = Literal["self", "all"]

EMBEDDED_BACKBONE = "inctrl-tiny"
EMBEDDED_TRUNK = "inctrl-tiny-trunk"  # what it grows from in its pre-training; has no weights of its own
SHAPES = "shapes."  # what the names of the convolutional tower's weights begin with in the embedded file
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

_TINY_AVERAGED = 5  # block of the embedded backbone whose patches are means over their neighbourhoods
_TINY_SMOOTHING = 0.5  # share of the neighbours in a residual
_TINY_MAP_SCALE = 1.0  # of the discriminative branch of InCTRLv2 where it is not trained
_TINY_BLOCKS = (3, 4, 5)  # whose patches are compared by default; those after them serve the image embedding
_TINY_MERGES = 4096  # of CLIP's byte-pair merges; with 512 bytes and two markers they make the vocabulary of 4610
_SENTENCES_AT_ONCE = 128  # bounds the memory of the text tower
_SEED = 0  # of random weights, which a checkpoint leaves out like trained ones and which must come back the same


class ImageFeatures(NamedTuple):
    """What the vision tower says of a batch.

    Attributes:
        patches (Tensor): Patch tokens of the backbone's layers, ``(B, L, N, W)``, neither normed nor projected.
        pooled (Tensor): Image embedding in the joint space, ``(B, D)``; of unit length from the embedded backbone.
    """

    patches: Tensor
    pooled: Tensor


class AlignedFeatures(NamedTuple):
    """What the vision tower says of a batch, with patches that can be compared with text.

    Attributes:
        patches (Tensor): Patch tokens of the backbone's layers, ``(B, L, N, W)``, neither normed nor projected.
        pooled (Tensor): Image embedding in the joint space, ``(B, D)``; of unit length from the embedded backbone.
        aligned (Tensor): Patch embeddings in the joint space, ``(B, N, D)``, unit length.
    """

    patches: Tensor
    pooled: Tensor
    aligned: Tensor


class ImageConvention(NamedTuple):
    """How a backbone wants its images: size in pixels, mean and standard deviation per channel."""

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]


class ClipBackbone(nn.Module):
    """Frozen image and text towers of an open_clip model with a plain vision transformer.

    The embedded backbone has a small convolutional tower besides (:mod:`anomalib_inctrl.shape_tower`). Its output is
    added to the image embedding, and what its stages see are the patches of one more layer.

    Args:
        name (str): open_clip architecture, or ``"inctrl-tiny"`` for the embedded one.
        pretrained (str | Path | None): open_clip tag or local file. ``None`` for random weights, the same every time.
            Ignored by the embedded backbone.
        blocks (Sequence[int] | None): Blocks whose outputs are tapped, 0-based. ``None`` for
            :func:`default_blocks`, and for blocks 3 to 5 of the embedded backbone, which was trained for them. Patches
            of its block 5 are means over 3 x 3 neighbours, so that what is compared has two scales.
        random (bool): Leave the embedded backbone untrained: its start, and a baseline to measure it by.

    Attributes:
        reference_views (str): Views of references that a model takes unless it is told, see
            :mod:`anomalib_inctrl.reference_views`: ``"shifted"`` for the embedded backbone, whose patches see little
            beyond themselves, ``"none"`` for others, as the papers have it.
        residual_smoothing (float): Share of the neighbours' mean in patch residuals that a model takes unless it is
            told: 0.5 for the embedded backbone, 0 for others, as the papers have it.
        map_scale (float | None): What InCTRLv2 multiplies the similarities of patches and text by for its maps, unless
            it is told: 1 for the embedded backbone, ``None`` for others: as in the training.

    Raises:
        ValueError: If the name, the tag or a block does not exist, or the vision tower is of another kind.
        RuntimeError: If the weights can't be downloaded.
        FileNotFoundError: If the local file does not exist.
    """

    visual: Any  # open_clip's VisionTransformer
    shapes: ShapeTower | None
    text: _TextTower

    def __init__(
        self,
        name: str,
        pretrained: str | Path | None = None,
        blocks: Sequence[int] | None = None,
        *,
        random: bool = False,
    ) -> None:
        super().__init__()
        model = create_clip(name, pretrained, random=random)
        _require_plain_vision_transformer(name, model.visual)
        self.name = name
        self.visual = model.visual
        self.shapes = create_shapes(name, random=random)
        self.text = _TextTower(model)
        self.tokenizer = tokenizer_of(name)
        self.depth = len(self.visual.transformer.resblocks)
        if blocks is None:
            blocks = _TINY_BLOCKS if name == EMBEDDED_BACKBONE else default_blocks(self.depth)
        self.blocks = _check_blocks(blocks, self.depth)
        self.averaged_block = _TINY_AVERAGED if name == EMBEDDED_BACKBONE else None
        self.reference_views: ReferenceViews = "shifted" if name == EMBEDDED_BACKBONE else "none"
        self.residual_smoothing = _TINY_SMOOTHING if name == EMBEDDED_BACKBONE else 0.0
        self.map_scale = _TINY_MAP_SCALE if name == EMBEDDED_BACKBONE else None
        self.grid_size: tuple[int, int] = tuple(self.visual.grid_size)
        self.image_size: tuple[int, int] = tuple(self.visual.image_size)
        self.width: int = self.visual.conv1.out_channels
        self.embed_dim: int = self.visual.output_dim
        self.convention = image_convention(name, pretrained)
        self.requires_grad_(requires_grad=False)
        self.eval()
        self.fingerprint = fingerprint(self)

    @property
    def num_patches(self) -> int:
        """Patches of an image, ``N``."""
        return self.grid_size[0] * self.grid_size[1]

    @property
    def layers(self) -> tuple[str, ...]:
        """What the patch tokens of an image are taken from, ``L`` names."""
        return (*(f"block {index}" for index in self.blocks), *([] if self.shapes is None else ["convolutions"]))

    @property
    def image_towers(self) -> nn.ModuleList:
        """What images pass through, all of the backbone but its text tower."""
        return nn.ModuleList([self.visual] if self.shapes is None else [self.visual, self.shapes])

    @property
    def patch_size(self) -> tuple[int, int]:
        """Height and width of a patch in pixels."""
        return self.image_size[0] // self.grid_size[0], self.image_size[1] // self.grid_size[1]

    def train(self, mode: bool = True) -> ClipBackbone:
        """Stay in evaluation mode: the backbone is frozen."""
        del mode
        return super().train(mode=False)

    def encode_image(self, images: Tensor) -> ImageFeatures:
        """Run the vision tower once; its last block computes only what the image embedding needs.

        Args:
            images (Tensor): Preprocessed images ``(B, 3, H, W)`` of the backbone's own size.

        Returns:
            ImageFeatures: Patch tokens of :attr:`layers`, and an embedding equal to open_clip's ``encode_image``, to
                which the embedded backbone adds what its convolutional tower says.

        Raises:
            ValueError: If the images have another shape.
        """
        taps, tokens, _ = self._run(images)
        patches, seen = self._see(taps, images)
        return ImageFeatures(patches=patches, pooled=self._pool(tokens, seen))

    def encode_aligned(self, images: Tensor, attention: PatchAttention = "self") -> AlignedFeatures:
        """Run the vision tower once, and bring its patches into the joint space as well.

        CLIP is trained to align the image embedding alone. Where it averages values over the patches to get there, the
        value of a single patch lies in the same space: MaskCLIP (arXiv 2112.01071) reads it by letting every patch of
        the last block attend to itself alone.

        Args:
            images (Tensor): As for :meth:`encode_image`.
            attention (str): ``"self"`` for MaskCLIP's reading; ``"all"`` for the tokens the last block puts out, in
                which patches mix.

        Returns:
            AlignedFeatures: Those of :meth:`encode_image`, and the patches' embeddings.
        """
        taps, tokens, before = self._run(images)
        patches, seen = self._see(taps, images)
        last = self.visual.transformer.resblocks[-1]
        mixed = before[:, 1:]
        if attention == "self":
            mixed = mixed + last.ls_1(_value(last.attn, last.ln_1(mixed)))
            mixed = mixed + last.ls_2(last.mlp(last.ln_2(mixed)))
        elif tokens.shape[1] == before.shape[1]:
            mixed = tokens[:, 1:]
        else:
            mixed = _residual_block(last, before, before)[:, 1:]
        return AlignedFeatures(patches, self._pool(tokens, seen), F.normalize(self._project(mixed), dim=-1))

    def encode_patches(self, images: Tensor) -> Tensor:
        """Run the vision tower up to the last tapped block, for whoever needs no image embedding.

        Args:
            images (Tensor): As for :meth:`encode_image`.

        Returns:
            Tensor: Patch tokens of :attr:`layers`, ``(B, L, N, W)``.
        """
        return self._see(self._run(images, self.blocks[-1] + 1)[0], images)[0]

    def _run(self, images: Tensor, depth: int | None = None) -> tuple[list[Tensor], Tensor, Tensor]:
        """Tapped patch tokens ``(B, N, W)`` each, the last block's output and its input, ``(B, 1 + N, W)``.

        The last of ``depth`` blocks, or of all. Of its output there is the class token alone if nobody needs the rest.
        """
        before = tokens = self._embed(images)  # (B, 1 + N, W)
        taps = []
        for index, block in enumerate(self.visual.transformer.resblocks[:depth]):
            only_class_token = index == self.depth - 1 and index not in self.blocks and self.visual.pool_type == "tok"
            before = tokens
            tokens = _residual_block(block, tokens, tokens[:, :1] if only_class_token else tokens)
            if index in self.blocks:
                averaged = index == self.averaged_block
                taps.append(neighbourhood_mean(tokens[:, 1:], self.grid_size) if averaged else tokens[:, 1:])
        return taps, tokens, before

    def _see(self, taps: list[Tensor], images: Tensor) -> tuple[Tensor, Seen | None]:
        """Patch tokens of all layers, and what the convolutional tower sees of the images.

        The tower works in the precision of its weights, under autocast too, see :meth:`_project`.
        """
        if self.shapes is None:
            return torch.stack(taps, dim=1), None
        with torch.autocast(images.device.type, enabled=False):
            seen = self.shapes.see(images.to(self.shapes.proj.dtype))
            patches = self.shapes.to_patches(seen, self.grid_size)
        return torch.stack([*taps, patches.to(taps[0].dtype)], dim=1), seen

    def encode_sentences(self, sentences: Sequence[str]) -> Tensor:
        """Embed sentences in the joint space.

        Returns:
            Tensor: ``(number of sentences, D)``, unit length.
        """
        tokens = self.tokenizer(list(sentences)).to(self.visual.conv1.weight.device)
        features = [self.text(chunk) for chunk in tokens.split(_SENTENCES_AT_ONCE)]
        return F.normalize(torch.cat(features), dim=-1)

    def encode_with_context(self, suffixes: Sequence[str], context: Tensor) -> Tensor:
        """Embed sentences that begin with vectors instead of words.

        Args:
            suffixes (Sequence[str]): What follows the context, such as ``"damaged bottle."``.
            context (Tensor): Vectors in the place of word embeddings, ``(M, text width)``. Gradients reach them.

        Returns:
            Tensor: ``(number of suffixes, D)``, unit length.

        Raises:
            ValueError: If a sentence does not fit into the text tower, or the tower is no plain transformer.
        """
        tokens = self.tokenizer(list(suffixes)).to(context.device)
        return F.normalize(self.text.forward_with_context(tokens, context), dim=-1)

    @torch.no_grad()
    def embed_words(self, words: str) -> Tensor:
        """Look up the token embeddings of words, without the markers of start and end: ``(M, text width)``."""
        tokens = self.tokenizer([words])[0].to(self.visual.conv1.weight.device)
        length = int(self.text.end_of(tokens[None])[0])
        return self.text.tower.token_embedding(tokens[1:length])

    @property
    def text_width(self) -> int:
        """Width of the text tower's token embeddings."""
        return self.text.tower.token_embedding.embedding_dim

    @torch.no_grad()
    def text_prototypes(self, class_name: str) -> Tensor:
        """Average the prompt ensembles of a class.

        ``F_n`` and ``F_a`` of InCTRL (equation 6): embeddings of unit length, averaged, brought to unit length again.

        Returns:
            Tensor: ``(2, D)``, row 0 normal, row 1 anomalous.
        """
        ensembles = prompt_ensemble(class_name)
        return torch.stack([F.normalize(self.encode_sentences(e).mean(dim=0), dim=-1) for e in ensembles])

    def to_pictures(self, images: Tensor) -> Tensor:
        """Undo the normalisation of preprocessed images ``(B, 3, H, W)``: 8-bit images of the same shape."""
        mean, std = self._statistics(images)
        return ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)

    def from_pictures(self, pictures: Tensor) -> Tensor:
        """Normalise 8-bit images ``(B, 3, H, W)`` of the backbone's size."""
        mean, std = self._statistics(self.visual.conv1.weight)
        return (pictures.to(mean) / 255 - mean) / std

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = (torch.tensor(s).to(like)[:, None, None] for s in (self.convention.mean, self.convention.std))
        return mean, std

    def _embed(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, *self.image_size):
            msg = (
                f"{self.name} takes preprocessed images of shape (B, 3, {self.image_size[0]}, {self.image_size[1]}), "
                f"got {tuple(images.shape)}; use the model's own pre-processor."
            )
            raise ValueError(msg)
        visual = self.visual
        patches = visual.conv1(images).flatten(2).transpose(1, 2)  # (B, N, W)
        class_token = visual.class_embedding.to(patches.dtype).expand(patches.shape[0], 1, -1)
        tokens = torch.cat([class_token, patches], dim=1) + visual.positional_embedding.to(patches.dtype)
        return visual.ln_pre(tokens)

    def _pool(self, tokens: Tensor, seen: Seen | None) -> Tensor:
        visual = self.visual
        if self.shapes is not None and seen is not None:
            with torch.autocast(tokens.device.type, enabled=False):
                shapes = self.shapes.embed(seen)
            # Of length 1: normed, embeddings tell categories apart better (table in the model card).
            return F.normalize(self._project(tokens[:, 0]) + shapes, dim=-1)
        if visual.pool_type == "tok":
            return self._project(tokens[:, 0])
        if visual.final_ln_after_pool:
            return self._project(tokens[:, 1:].mean(dim=1))
        return self._project(tokens[:, 1:]).mean(dim=1)

    def _project(self, tokens: Tensor) -> Tensor:
        """Norm tokens and take them into the joint space, under autocast too in the precision of the weights.

        What an image has along the line between two prompts is the small rest of large terms.
        """
        visual, device = self.visual, tokens.device.type
        if torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return self._project(tokens.to(visual.conv1.weight.dtype))
        normed = visual.ln_post(tokens)
        return normed if visual.proj is None else normed @ visual.proj


class _TextTower(nn.Module):
    """The text side of an open_clip model without its vision tower, under open_clip's own parameter names."""

    model: Any  # open_clip's CLIP or CustomTextCLIP

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.model.visual = nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model.encode_text(tokens)

    @property
    def tower(self) -> Any:
        """What holds the transformer: the model itself, or the tower that open_clip's ``CustomTextCLIP`` keeps."""
        return getattr(self.model, "text", self.model)

    def end_of(self, tokens: Tensor) -> Tensor:
        """Position ``(S,)`` in tokens ``(S, T)`` whose output is the sentence's embedding."""
        tower = self.tower
        pooling = getattr(tower, "text_pool_type", getattr(tower, "pool_type", "argmax"))
        if pooling == "eos":
            marker: Any = getattr(tower, "text_eos_id", getattr(tower, "eos_id", None))
            return tokens.eq(marker).int().argmax(dim=-1)
        return tokens.argmax(dim=-1)  # the end marker has the highest number

    def forward_with_context(self, tokens: Tensor, context: Tensor) -> Tensor:
        """Encode tokens ``(S, T)`` with vectors ``(M, width)`` between the start marker and the first word.

        open_clip's ``encode_text`` written out, since it takes numbers of tokens and no embeddings. What comes after
        the end marker can't be seen through the causal mask and is left out.
        """
        tower = self.tower
        _require_plain_text_transformer(tower)
        end = self.end_of(tokens) + context.shape[0]
        length = int(end.max()) + 1
        limit = tower.positional_embedding.shape[0]
        # A full row of tokens may have been cut off.
        if length > limit or bool((self.end_of(tokens) == tokens.shape[1] - 1).any()):
            msg = f"Context ({context.shape[0]} vectors) and suffix need {length} tokens, the text tower takes {limit}."
            raise ValueError(msg)
        words = tower.token_embedding(tokens)
        embedded = torch.cat([words[:, :1], context.to(words).expand(len(words), -1, -1), words[:, 1:]], dim=1)
        states = embedded[:, :length] + tower.positional_embedding[:length].to(words)
        mask = tower.attn_mask[:length, :length].to(words)
        for block in tower.transformer.resblocks:
            states = _residual_block(block, states, states, mask)
        pooled = tower.ln_final(states)[torch.arange(len(states), device=states.device), end]
        projection = tower.text_projection
        if projection is None:
            return pooled
        return projection(pooled) if isinstance(projection, nn.Linear) else pooled @ projection


def neighbourhood_mean(patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """Mean of every patch and its up to eight neighbours, as PatchCore has it (arXiv 2106.08265, equation 2).

    Args:
        patches (Tensor): ``(B, N, W)``, patches in row-major order.
        grid (tuple[int, int]): Rows and columns of patches.

    Returns:
        Tensor: ``(B, N, W)``.

    Example:
        >>> import torch
        >>> neighbourhood_mean(torch.tensor([[[0.0], [3.0], [6.0]]]), (1, 3)).squeeze()
        tensor([1.5000, 3.0000, 4.5000])
    """
    image = patches.unflatten(1, grid).permute(0, 3, 1, 2)
    mean = F.avg_pool2d(image, kernel_size=3, stride=1, padding=1, count_include_pad=False)
    return mean.flatten(2).transpose(1, 2)


def _residual_block(block: Any, tokens: Tensor, queries: Tensor, mask: Tensor | None = None) -> Tensor:
    """Pre-norm transformer block for the leading ``queries`` of ``tokens``, which attend to all the mask lets them.

    open_clip's ``ResidualAttentionBlock`` written out, since its versions differ in token order.
    """
    normed = block.ln_1(tokens)
    queries = queries + block.ls_1(_attention(block.attn, normed[:, : queries.shape[1]], normed, mask))
    return queries + block.ls_2(block.mlp(block.ln_2(queries)))


def _value(attention: nn.MultiheadAttention, tokens: Tensor) -> Tensor:
    """Attention of every token to itself alone."""
    width = attention.embed_dim
    bias = None if attention.in_proj_bias is None else attention.in_proj_bias[2 * width :]
    return attention.out_proj(F.linear(tokens, attention.in_proj_weight[2 * width :], bias))


def _attention(attention: nn.MultiheadAttention, queries: Tensor, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    width, heads = attention.embed_dim, attention.num_heads
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    if queries.shape[1] == tokens.shape[1]:
        query, key, value = F.linear(tokens, weight, bias).chunk(3, dim=-1)
    else:
        query = F.linear(queries, weight[:width], bias[:width])
        key, value = F.linear(tokens, weight[width:], bias[width:]).chunk(2, dim=-1)
    query, key, value = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    mixed = F.scaled_dot_product_attention(query, key, value, mask)
    return attention.out_proj(mixed.transpose(1, 2).flatten(2))


def default_blocks(depth: int) -> tuple[int, ...]:
    """Blocks tapped by default, 0-based.

    Blocks 7, 9 and 11 counted from one of the twelve of ViT-B (InCTRL, section 4.1); other depths tap the same
    fractions of their height, rounded. That rule is ours, the papers only use ViT-B.

    Example:
        >>> default_blocks(12), default_blocks(24), default_blocks(8)
        ((6, 8, 10), (13, 17, 21), (4, 5, 6))
    """
    return tuple(sorted({min(max(round(depth * counted / 12), 1), depth) - 1 for counted in (7, 9, 11)}))


def _check_blocks(blocks: Sequence[int], depth: int) -> tuple[int, ...]:
    chosen = tuple(sorted(set(blocks)))
    if not chosen or chosen[0] < 0 or chosen[-1] >= depth:
        msg = f"blocks must be among 0 to {depth - 1} (0-based, at least one), got {list(blocks)}."
        raise ValueError(msg)
    return chosen


def image_convention(name: str, pretrained: str | Path | None = None) -> ImageConvention:
    """Look up size and statistics of a backbone's images without building it.

    Args:
        name (str): open_clip architecture or ``"inctrl-tiny"``.
        pretrained (str | Path | None): Tag or file; some tags were trained with other statistics than CLIP's.

    Raises:
        ValueError: If open_clip has no such architecture.
    """
    import open_clip

    vision = _model_config(name)["vision_cfg"]
    size = vision.get("image_size", 224)
    tag = open_clip.get_pretrained_cfg(name, str(pretrained)) if pretrained else {}
    return ImageConvention(
        size=(size, size) if isinstance(size, int) else tuple(size),
        mean=tuple(tag.get("mean") or CLIP_MEAN),
        std=tuple(tag.get("std") or CLIP_STD),
    )


def create_clip(name: str, pretrained: str | Path | None, *, random: bool = False) -> Any:
    """Build an open_clip model.

    Args:
        name (str): open_clip architecture or ``"inctrl-tiny"``.
        pretrained (str | Path | None): Tag, local file, or ``None`` for random weights from a fixed seed. The embedded
            backbone ignores it.
        random (bool): Random weights for the embedded backbone too.

    Raises:
        ValueError: If the architecture or tag does not exist.
        FileNotFoundError: If ``pretrained`` looks like a file and is none.
        RuntimeError: If the weights can't be downloaded, or the file does not fit the architecture.
    """
    import open_clip

    _model_config(name)
    if name == EMBEDDED_BACKBONE:
        pretrained = None
    source = None if pretrained is None else _check_pretrained(name, str(pretrained))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(_SEED)  # torch.manual_seed would reseed every GPU as well
        try:
            model = open_clip.create_model(name, pretrained=source)
        except Exception as error:
            if source is None:
                raise
            raise RuntimeError(_weights_help(name, source, error)) from error
    if name == EMBEDDED_BACKBONE and not random:
        model.load_state_dict(_embedded_weights()[0])
    return model


def create_shapes(name: str, *, random: bool = False) -> ShapeTower | None:
    """Build the convolutional tower of a backbone; only the embedded one has any.

    Args:
        name (str): open_clip architecture or ``"inctrl-tiny"``.
        random (bool): Leave it untrained.
    """
    if name != EMBEDDED_BACKBONE:
        return None
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(_SEED)
        config = _model_config(name)
        shapes = ShapeTower(config["embed_dim"], config["vision_cfg"]["width"])
    if not random:
        shapes.load_state_dict(_embedded_weights()[1])
    return shapes.to(memory_format=torch.channels_last)  # a third faster on a CPU


def _embedded_weights() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Read the embedded weights: of open_clip's model, and of the convolutional tower."""
    state = load(embedded_file("safetensors").read_bytes())
    shapes = {name.removeprefix(SHAPES): state.pop(name) for name in list(state) if name.startswith(SHAPES)}
    return state, shapes


def embedded_file(kind: str) -> Traversable:
    """Find a file of the embedded backbone: its architecture (``"json"``) or its weights (``"safetensors"``)."""
    return resources.files("anomalib_inctrl") / "backbones" / f"{EMBEDDED_BACKBONE}.{kind}"


def contrastive_loss() -> nn.Module:
    """Make open_clip's own loss, called with image features, text features and the scale of the logits."""
    from open_clip.loss import ClipLoss

    return ClipLoss()


@cache
def _register_embedded() -> None:
    import open_clip

    with resources.as_file(resources.files("anomalib_inctrl") / "backbones") as folder:
        open_clip.add_model_config(folder)


def _model_config(name: str) -> dict[str, Any]:
    import open_clip

    if name in (EMBEDDED_BACKBONE, EMBEDDED_TRUNK):
        _register_embedded()
    config = open_clip.get_model_config(name)
    if config is None:
        close = difflib.get_close_matches(name, open_clip.list_models(), n=3)
        msg = (
            f"open_clip has no model {name!r}. "
            + (f"Did you mean {' or '.join(close)}? " if close else "")
            + f"open_clip.list_models() lists them all; {EMBEDDED_BACKBONE!r} is embedded here."
        )
        raise ValueError(msg)
    return config


def _check_pretrained(name: str, pretrained: str) -> str:
    import open_clip

    if Path(pretrained).is_file():
        return pretrained
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained in tags or pretrained.lower() in tags:
        return pretrained
    if Path(pretrained).suffix or "/" in pretrained or "\\" in pretrained:
        msg = f"pretrained={pretrained!r}: there is no such file. Give an existing file or one of the tags {tags}."
        raise FileNotFoundError(msg)
    msg = (
        f"open_clip has no weights tagged {pretrained!r} for {name}. Tags: {tags or 'none'}; a local file or None "
        "(random weights) will do as well."
    )
    raise ValueError(msg)


def _weights_help(name: str, source: str, error: Exception) -> str:
    reason = f"{type(error).__name__}: {error}"
    if Path(source).is_file():
        return f"The file {source} holds no weights for {name}: {reason}"
    from huggingface_hub.constants import HF_HUB_CACHE

    older = Path("~/.cache/clip").expanduser()
    return (
        f"The weights tagged {source!r} of {name} could not be downloaded ({reason}). Without a network: bring the "
        f"cache folder of a machine that has them ({HF_HUB_CACHE}, for some tags {older}); or give a local file, "
        "pretrained=/path/to/open_clip_pytorch_model.bin; or use the embedded backbone, "
        f"backbone={EMBEDDED_BACKBONE!r}, which needs none."
    )


def _require_plain_vision_transformer(name: str, visual: Any) -> None:
    from open_clip.transformer import ResidualAttentionBlock, VisionTransformer

    plain = isinstance(visual, VisionTransformer) and visual.attn_pool is None and visual.pool_type in {"tok", "avg"}
    if not plain or not all(type(block) is ResidualAttentionBlock for block in visual.transformer.resblocks):
        msg = (
            f"{name} has no plain vision transformer with a class token ({type(visual).__name__}): ResNets, ConvNeXts, "
            "timm trunks (SigLIP, EVA) and attentional pooling (CoCa) are not supported. Take one such as "
            "ViT-B-16-plus-240, ViT-B-16 or ViT-L-14."
        )
        raise ValueError(msg)


def _require_plain_text_transformer(tower: Any) -> None:
    from open_clip.transformer import ResidualAttentionBlock

    blocks = getattr(getattr(tower, "transformer", None), "resblocks", None)
    pooling = getattr(tower, "text_pool_type", getattr(tower, "pool_type", "argmax"))
    plain = (
        blocks is not None
        and all(type(block) is ResidualAttentionBlock for block in blocks)
        and getattr(tower, "cls_emb", None) is None
        and tower.attn_mask is not None
        and pooling in {"argmax", "eos"}
    )
    if not plain:
        msg = (
            f"{type(tower).__name__} is no plain causal text transformer that ends in an end marker: learned context "
            "needs one, as CLIP has it. Take a backbone such as ViT-B-16-plus-240, ViT-B-16 or ViT-L-14."
        )
        raise ValueError(msg)


@cache
def tokenizer_of(name: str) -> Any:
    """Make the tokenizer of an open_clip model or of the embedded backbone, once: it takes a fifth of a second."""
    import open_clip

    if name not in (EMBEDDED_BACKBONE, EMBEDDED_TRUNK):
        return open_clip.get_tokenizer(name)
    # CLIP's own tokenizer cut to its most frequent merges, so that the embedding table stays small.
    tokenizer = open_clip.SimpleTokenizer()
    tokenizer.bpe_ranks = dict(list(tokenizer.bpe_ranks.items())[:_TINY_MERGES])
    tokenizer.vocab_size = 2 * 256 + _TINY_MERGES + 2
    tokenizer.sot_token_id, tokenizer.eot_token_id = tokenizer.vocab_size - 2, tokenizer.vocab_size - 1
    return tokenizer


def fingerprint(module: nn.Module) -> str:
    """Short hash over names, shapes and leading values of all tensors: tells one backbone from another.

    Sixteen values of every tensor are read, which is quick and enough to tell weights apart.
    """
    digest = hashlib.sha256()
    for key, tensor in sorted(module.state_dict().items()):
        digest.update(f"{key}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().flatten()[:16].cpu().float().numpy().tobytes())
    return digest.hexdigest()[:16]
