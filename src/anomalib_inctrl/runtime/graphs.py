"""Exported graphs as functions from arrays to arrays, run by ONNX Runtime or OpenVINO, whichever is installed."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

Engine = Literal["onnx", "openvino"]

SUFFIXES: dict[Engine, str] = {"onnx": ".onnx", "openvino": ".xml"}


class Graph(Protocol):
    """A graph that can be called with its inputs by name."""

    def __call__(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Compute all outputs, by name."""


class OnnxGraph:
    """A graph run by ONNX Runtime on the CPU.

    Args:
        path (Path): The ``.onnx`` file.
        threads (int | None): ``None`` for as many as there are cores.
    """

    def __init__(self, path: Path, threads: int | None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.enable_cpu_mem_arena = False  # else the memory of the largest batch is held for good
        if threads is not None:
            options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._outputs = [output.name for output in self._session.get_outputs()]

    def __call__(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Compute all outputs, by name."""
        return dict(zip(self._outputs, self._session.run(None, inputs), strict=True))


class OpenVinoGraph:
    """A graph run by OpenVINO on the CPU, in single precision, which OpenVINO would leave on some processors.

    Args:
        path (Path): The ``.xml`` file.
        threads (int | None): ``None`` for as many as there are cores.
    """

    def __init__(self, path: Path, threads: int | None) -> None:
        config: dict[str, str | int] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        if threads is not None:
            config["INFERENCE_NUM_THREADS"] = threads
        self._model = openvino_core().compile_model(path, "CPU", config)
        self._outputs = [output.any_name for output in self._model.outputs]

    def __call__(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Compute all outputs, by name."""
        return dict(zip(self._outputs, self._model(inputs, share_inputs=True).to_tuple(), strict=True))


@cache
def openvino_core() -> Any:
    """OpenVINO's entry point, one for the whole process and for as long as it lives.

    Every core that computes on the CPU sets up a stack for signal handlers, and hands the one it found back when it
    goes. Of two that go in the order they came, the second hands back the freed stack of the first, and the next signal
    with a handler in Python, be it Ctrl+C or the end of a child process, kills the process.
    """
    import openvino

    return openvino.Core()


def open_graph(folder: Path, name: str, engine: Engine | None, threads: int | None) -> Graph:
    """Load a graph of an export.

    Args:
        folder (Path): Export directory.
        name (str): ``"encoder"`` or ``"scorer"``.
        engine (str | None): ``"onnx"`` or ``"openvino"``; ``None`` for what is there, ONNX first.
        threads (int | None): ``None`` for as many as there are cores.

    Raises:
        FileNotFoundError: If the graph was not exported for the engine.
        ModuleNotFoundError: If the engine is not installed.
        ValueError: If the file can't be read.
    """
    there = [kind for kind, suffix in SUFFIXES.items() if (folder / f"{name}{suffix}").is_file()]
    if not there or engine not in {None, *there}:
        msg = f"{folder} holds no {name} for {engine or 'any engine'}, only for {there}: export the model again."
        raise FileNotFoundError(msg)
    engine = engine or there[0]
    path = folder / f"{name}{SUFFIXES[engine]}"
    try:
        return OnnxGraph(path, threads) if engine == "onnx" else OpenVinoGraph(path, threads)
    except ModuleNotFoundError as error:
        package = "onnxruntime" if engine == "onnx" else "openvino"
        msg = f"Running {path.name} takes {package}: pip install {package}."
        raise ModuleNotFoundError(msg, name=package) from error
    except Exception as error:  # each engine has exceptions of its own
        msg = f"{path} can't be read by {engine} ({type(error).__name__}: {error}): export the model again."
        raise ValueError(msg) from error
