"""Weights of an ONNX file in half precision, computed with in single."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from anomalib_inctrl.runtime_export import halve_weights


def test_large_weights_are_halved_and_small_ones_kept():
    weight = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    bias = np.full(64, 1 + 2**-20, np.float32)  # which half precision could not keep
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("Add", ["y", "b"], ["z"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 64])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    size = len(model.SerializeToString())
    halve_weights(model)
    onnx.checker.check_model(model)
    assert len(model.SerializeToString()) < size - weight.nbytes / 2 + 200
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.eye(64, dtype=np.float32)
    assert (session.run(None, {"x": x})[0] == weight.astype(np.float16).astype(np.float32) + bias).all()
