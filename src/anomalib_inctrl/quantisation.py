"""INT8 quantisation of vision transformers with OpenVINO: the tower alone, one image at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_MOST_IMAGES = 300  # nncf's own default


class LazyImages(Sequence):
    """Images that are read when asked for, so that memory holds one.

    Args:
        count (int): How many there are; of more than 300, 300 spread evenly count.
        read (Callable): Gives an image by its number, ``(3, H, W)`` float32 in ``[0, 1]``.
    """

    def __init__(self, count: int, read: Callable[[int], np.ndarray]) -> None:
        self._read = read
        self._rows = np.linspace(0, count - 1, min(count, _MOST_IMAGES)).round().astype(int).tolist()

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        """Read an image."""
        return self._read(self._rows[index])


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

    if len(images) == 0:
        msg = "INT8 takes typical images to learn the range of activations from: give some dozens of them."
        raise ValueError(msg)
    return nncf.quantize(
        graph,
        nncf.Dataset(images, lambda image: image[None]),
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


def join(encoder: Any, scorer: Any, constants: Mapping[str, np.ndarray]) -> Any:
    """Make one graph of an encoder and a scorer, in the form of anomalib's exports.

    Args:
        encoder (openvino.Model): From ``images`` to features.
        scorer (openvino.Model): From features and a bank to scores and maps.
        constants (Mapping[str, np.ndarray]): The scorer's other inputs.

    Returns:
        openvino.Model: From ``input`` to scores ``(B,)``, labels, maps ``(B, 1, H, W)`` and masks.
    """
    import openvino
    from openvino import opset13

    features = {output.any_name: output.get_node().input_value(0) for output in encoder.outputs}
    for parameter in scorer.get_parameters():
        name = parameter.output(0).any_name
        source = features[name] if name in features else opset13.constant(constants[name]).output(0)
        for target in parameter.output(0).get_target_inputs():
            target.replace_source_output(source)
    results = []
    for output in scorer.outputs:
        name, value = output.any_name, output.get_node().input_value(0)
        if output.partial_shape.rank.get_length() > 1:
            value = opset13.unsqueeze(value, 1).output(0)
        result = opset13.result(value)
        result.output(0).set_names({name})
        results.append(result)
    images = encoder.get_parameters()
    images[0].output(0).set_names({"input"})
    return openvino.Model(results, images)
