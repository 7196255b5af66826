"""Trained heads from files: our own, and the checkpoints InCTRL's authors published."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from anomalib.utils.serialization import anomalib_safe_globals
from safetensors import safe_open
from safetensors.torch import save

from anomalib_inctrl.clip import EMBEDDED_BACKBONE, embedded_file, fingerprint
from anomalib_inctrl.files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from anomalib_inctrl.clip import ClipBackbone
    from anomalib_inctrl.in_context import InContextModel

METADATA_KEY = "anomalib_inctrl"
_OWN_PREFIX = "model."
_SAFETENSORS = ".safetensors"
_FORMAT = "1"  # of our .safetensors files

# Published name -> ours. Each head's `bn1` is never used in the published forward pass and left out.
_PUBLISHED_HEADS = {"diff_head_ref": "image_head", "diff_head": "holistic_head"}
_PUBLISHED_LAYERS = {"projection1": 0, "bn2": 2, "projection2": 3, "bn3": 5, "projection3": 6}
_PUBLISHED_ADAPTER = {"adapter.fc.0.weight": "adapter.down.weight", "adapter.fc.2.weight": "adapter.up.weight"}


def save_weights(model: InContextModel, path: str | Path, metadata: Mapping[str, Any] | None = None) -> Path:
    """Write the heads in use, without towers and references, to a file that appears complete or not at all.

    Args:
        model (InContextModel): Trained model.
        path (str | Path): File to write, with the suffix ``.safetensors``.
        metadata (Mapping[str, Any] | None): Plain data to go with it beside ``branches`` and ``backbone``; every value
            is kept as JSON.

    Returns:
        Path: The file.

    Raises:
        ValueError: If the suffix is another one, or no branch is in use.
    """
    path = Path(path)
    if path.suffix != _SAFETENSORS or not model.branches:
        msg = f"Heads are saved to a {_SAFETENSORS} file, got {path.name!r}; branches in use: {sorted(model.branches)}."
        raise ValueError(msg)
    parts = [f"{part}." for branch in model.branches for part in model.BRANCHES[branch]]
    state = {f"{_OWN_PREFIX}{k}": v for k, v in model.state_dict().items() if k.startswith(tuple(parts))}
    state[f"{_OWN_PREFIX}branch_flags"] = model.branch_flags
    backbone = model.backbone
    record = {"name": backbone.name, "blocks": list(backbone.blocks), "fingerprint": backbone.fingerprint}
    metadata = {"branches": list(model.BRANCHES), "backbone": record} | dict(metadata or {})
    content = save(
        {key: tensor.detach().cpu().contiguous() for key, tensor in state.items()},
        {METADATA_KEY: _FORMAT, **{key: json.dumps(value) for key, value in metadata.items()}},
    )
    write_atomically(path, content)
    return path


def load_weights(model: InContextModel, source: str | Path) -> dict[str, Any] | None:
    """Load trained heads and put their branches to use.

    Args:
        model (InContextModel): Model to load into.
        source (str | Path): ``"random"`` for untrained heads in the full formula; ``"inctrl-tiny"`` for those embedded
            with that backbone; a checkpoint of ours, or one published by InCTRL's authors, recognised by its content;
            or a ``.safetensors`` file of :func:`save_weights`. The towers of a published checkpoint are loaded as well,
            so that it needs no other weights.

    Returns:
        dict | None: What the heads were trained on, if the file says so.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is of no known kind, or of another backbone, or has nothing for this model.
    """
    if str(source) == "random":
        model.use_branches(model.BRANCHES)
        return None
    if str(source) == EMBEDDED_BACKBONE:
        with resources.as_file(embedded_file(f"{model.HEADS}.safetensors")) as path:
            state, metadata = _read(path)
    else:
        state, metadata = _read(Path(source))
    if _is_published(state):
        _load_published_towers(model.backbone, state, source)
        model.forget_references()  # those at hand were seen through other towers
        state, branches = _convert_published(state), {"image", "holistic"}
    else:
        check_backbone(model.backbone, metadata.get("backbone", {}), source)
        state = {key.removeprefix(_OWN_PREFIX): value for key, value in state.items() if key.startswith(_OWN_PREFIX)}
        branches = _branches_in_use(state, metadata)
    branches &= model.BRANCHES.keys()
    if not branches:
        msg = f"{source} holds no trained heads for {type(model).__name__}, which has {sorted(model.BRANCHES)}."
        raise ValueError(msg)
    _check_scale(model, branches, metadata, source)
    for branch in sorted(branches):
        for part in model.BRANCHES[branch]:
            _load_part(model, part, state, source)
    model.use_branches(branches)
    return metadata.get("training")


def check_backbone(backbone: ClipBackbone, recorded: Mapping[str, Any], source: str | Path) -> None:
    """Refuse what was made with another backbone.

    Args:
        backbone (ClipBackbone): The backbone at hand.
        recorded (Mapping[str, Any]): ``name``, ``pretrained``, ``blocks`` and ``fingerprint`` as a checkpoint has them.
        source (str | Path): Where they come from, for the message.

    Raises:
        ValueError: If they differ from the backbone at hand.
    """
    here = {"name": backbone.name, "blocks": list(backbone.blocks), "fingerprint": backbone.fingerprint}
    other = {key: recorded[key] for key in here if key in recorded and recorded[key] != here[key]}
    if other:
        msg = (
            f"{source} was made with backbone={recorded.get('name')!r}, pretrained={recorded.get('pretrained')!r}, "
            f"blocks={recorded.get('blocks')}, weights {recorded.get('fingerprint')}; this model has {here['name']!r}, "
            f"blocks={here['blocks']}, weights {here['fingerprint']}. Build it with the same backbone and weights."
        )
        raise ValueError(msg)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not path.is_file():
        msg = f"weights={str(path)!r}: there is no such file. Give a checkpoint, 'random', or None for training-free."
        raise FileNotFoundError(msg)
    try:
        if path.suffix == _SAFETENSORS:
            content = _read_safetensors(path)
        else:
            with anomalib_safe_globals():
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        msg = f"{path} can't be read as a checkpoint: {type(error).__name__}: {error}"
        raise ValueError(msg) from error
    if isinstance(content, dict) and METADATA_KEY in content:
        return content["state_dict"], content[METADATA_KEY]
    if isinstance(content, dict) and _is_published(content):
        return content, {}
    msg = (
        f"{path} is neither a checkpoint of anomalib-inctrl nor one published by InCTRL's authors "
        f"(keys such as {list(content)[:3] if isinstance(content, dict) else type(content).__name__})."
    )
    raise ValueError(msg)


def _read_safetensors(path: Path) -> dict[str, Any]:
    """Bring a file of ours into a checkpoint's form; other files give their tensors."""
    with safe_open(path, "pt") as file:
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
        metadata = dict(file.metadata() or {})
    if metadata.pop(METADATA_KEY, None) is None:
        return state
    return {"state_dict": state, METADATA_KEY: {key: json.loads(value) for key, value in metadata.items()}}


def _branches_in_use(state: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> set[str]:
    names = metadata.get("branches", [])
    return {name for name, flag in zip(names, state["branch_flags"].tolist(), strict=True) if flag}


def _check_scale(model: InContextModel, branches: set[str], metadata: Mapping[str, Any], source: str | Path) -> None:
    """Refuse patch adapters trained at another scale; alpha and beta, in contrast, may be chosen freely afterwards."""
    recorded, here = metadata.get("options", {}).get("patch_scale"), model.options.get("patch_scale")
    if recorded != here and None not in (recorded, here) and branches & {"discriminative", "one_class"}:
        msg = f"{source} was trained with patch_scale={recorded}, this model has {here}: set the same."
        raise ValueError(msg)


def _load_part(model: InContextModel, part: str, state: Mapping[str, Tensor], source: str | Path) -> None:
    tensors = {k.removeprefix(f"{part}."): v for k, v in state.items() if k.startswith(f"{part}.")}
    try:
        model.get_submodule(part).load_state_dict(tensors)
    except RuntimeError as error:
        msg = f"The {part} of {source} does not fit this backbone ({model.backbone.name}): {error}"
        raise ValueError(msg) from error


def _is_published(state: Mapping[str, Any]) -> bool:
    return "adapter.fc.0.weight" in state and "diff_head_ref.projection1.weight" in state


def _convert_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    converted = {ours: state[theirs] for theirs, ours in _PUBLISHED_ADAPTER.items()}
    for theirs, ours in _PUBLISHED_HEADS.items():
        for layer, position in _PUBLISHED_LAYERS.items():
            start = f"{theirs}.{layer}."
            converted |= {
                f"{ours}.layers.{position}.{key.removeprefix(start)}": value
                for key, value in state.items()
                if key.startswith(start)
            }
    return converted


def _load_published_towers(backbone: ClipBackbone, state: Mapping[str, Tensor], source: str | Path) -> None:
    heads = ("adapter.", *(f"{head}." for head in _PUBLISHED_HEADS))
    towers = {k: v for k, v in state.items() if not k.startswith(heads) and k not in {"logit_scale", "attn_mask"}}
    if not towers:
        return
    renamed = {k if k.startswith("visual.") else f"text.model.{k}": v for k, v in towers.items()}
    scale = {k: v for k, v in backbone.state_dict().items() if k.endswith("logit_scale")}  # not in use
    try:
        backbone.load_state_dict(renamed | scale)
    except RuntimeError as error:
        msg = f"The CLIP towers in {source} do not fit backbone={backbone.name!r}: {error}"
        raise ValueError(msg) from error
    backbone.fingerprint = fingerprint(backbone)
