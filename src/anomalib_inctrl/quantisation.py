"""INT8 quantisation of vision transformers with OpenVINO: the tower alone, one image at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np


def quantise_encoder(graph: Any, images: Sequence[np.ndarray]) -> Any:
    """Quantise weights and activations of an encoder graph.

    What comes before the patch embedding, the resize as matrix products, keeps its precision. Images pass one by one,
    so that memory holds the activations of one.

    Args:
        graph (openvino.Model): Encoder with one input, images ``(B, 3, h, w)``.
        images (Sequence[np.ndarray]): Typical images ``(3, h, w)``, float32 in ``[0, 1]``.

    Returns:
        openvino.Model: The quantised graph.

    Raises:
        ValueError: If there is no image.
        ModuleNotFoundError: If nncf is not installed.
    """
    import nncf

    if not images:
        msg = "INT8 takes typical images to learn the range of activations from: give some dozens of them."
        raise ValueError(msg)
    return nncf.quantize(
        graph,
        nncf.Dataset([image[None] for image in images]),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(images),
        ignored_scope=nncf.IgnoredScope(names=before_patch_embedding(graph), validate=False),
    )


def before_patch_embedding(graph: Any) -> list[str]:
    """Names of the operations that feed the first convolution of an OpenVINO graph, through its first input."""
    first = next(node for node in graph.get_ordered_ops() if node.get_type_name() == "Convolution")
    found, pending = set(), [first.input_value(0).get_node()]
    while pending:
        node = pending.pop()
        if node.get_friendly_name() not in found:
            found.add(node.get_friendly_name())
            pending += [value.get_node() for value in node.input_values()]
    return sorted(found)
