"""What computes a graph: ONNX Runtime or OpenVINO."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skpbas.errors import FileFormatError

FORMAT = 1
"""Of the metadata that are written and read."""

PROVIDERS = ("onnxruntime", "openvino")
"""In the order in which "auto" tries them."""

Run = Callable[[Mapping[str, NDArray[Any]]], Mapping[str, NDArray[np.float32]]]
"""Inputs of the graph, such as "images" (1, H, W, 3), to its outputs."""

Shapes = Mapping[str, tuple[int, ...]]
"""Of the inputs; -1 is any number."""


def imported(provider: str) -> tuple[str, Any]:
    """Return the name and the module of a provider that is installed."""
    errors = []
    for name in PROVIDERS if provider == "auto" else (provider,):
        try:
            return name, import_module(name)
        except ImportError as error:
            errors.append(f"{name}: {error}")
    extras = " or ".join(
        f"skpbas[{'onnx' if name == 'onnxruntime' else name}]" for name in PROVIDERS if provider in ("auto", name)
    )
    raise ImportError(f"OnnxDetector needs a runtime ({'; '.join(errors)}): pip install {extras}")


class _OnnxRuntime:
    def __init__(self, module: Any, path: Path, precision: str, n_threads: int | None) -> None:
        options = module.SessionOptions()
        options.log_severity_level = 3
        if n_threads is not None:
            options.intra_op_num_threads = n_threads
        with _reading(path):
            self.session = module.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.metadata = _checked(self.session.get_modelmeta().custom_metadata_map.get("skpbas"), path)

    def prepared(self, shapes: Shapes) -> Run:
        names = [output.name for output in self.session.get_outputs()]
        return lambda inputs: dict(zip(names, self.session.run(names, dict(inputs)), strict=True))


class _OpenVino:
    def __init__(self, module: Any, path: Path, precision: str, n_threads: int | None) -> None:
        self.module, self.core, self.precision = module, module.Core(), precision
        if precision == "bfloat16" and "BF16" not in self.core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise ValueError("precision='bfloat16': this processor has no instructions for it; 'float32' works")
        # its own choice of precision would be bfloat16 for everything where the processor has it
        self.config = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        if n_threads is not None:
            self.config["INFERENCE_NUM_THREADS"] = str(n_threads)
        with _reading(path):
            self.model = self.core.read_model(str(path))
        found = self.model.has_rt_info(["framework", "skpbas"])
        text = self.model.get_rt_info(["framework", "skpbas"]).astype(str) if found else None
        self.metadata = _checked(text, path)
        if precision == "bfloat16" and not self._borders():
            raise FileFormatError(f"{path} does not say what bfloat16 is enough for: export the detector again")

    def prepared(self, shapes: Shapes) -> Run:
        self.model.reshape({name: list(shape) for name, shape in shapes.items()})  # a fixed shape is faster
        if self.precision == "float32":
            return _requested(self.core.compile_model(self.model, "CPU", self.config))
        start, rest = self._divided()
        fast = {**self.config, "INFERENCE_PRECISION_HINT": "bf16"}
        started = _requested(self.core.compile_model(start, "CPU", fast))
        finished = _requested(self.core.compile_model(rest, "CPU", self.config))

        def run(inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[np.float32]]:
            others = {name: values for name, values in inputs.items() if name != "images"}
            return finished({**started(inputs), **others})

        return run

    def _borders(self) -> dict[str, Any]:
        """Return by name the values up to which the graph may be computed in bfloat16."""
        return {
            name: output
            for node in self.model.get_ordered_ops()
            for output in node.outputs()
            for name in output.get_names()
            if name.startswith(("level_", "inner_"))
        }

    def _divided(self) -> tuple[Any, Any]:
        """Return the model from images to these values, and that of everything behind them and of other inputs."""
        openvino, borders = self.module, self._borders()
        start = openvino.Model(list(borders.values()), self.model.get_parameters()).clone()
        inputs = [given for given in self.model.get_parameters() if "images" not in given.output(0).get_names()]
        for name, border in borders.items():
            given = openvino.opset13.parameter(border.get_shape(), border.get_element_type(), name=name)
            given.output(0).set_names({name})
            for target in border.get_target_inputs():
                target.replace_source_output(given.output(0))
            inputs.append(given)
        return start, openvino.Model(self.model.get_results(), inputs)


def _requested(compiled: Any) -> Callable[[Mapping[str, NDArray[Any]]], dict[str, NDArray[np.float32]]]:
    """Return a compiled model as a function that any thread may call."""
    names = [output.get_any_name() for output in compiled.outputs]
    requests = threading.local()  # a request computes for one thread at a time

    def run(inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        if not hasattr(requests, "own"):
            requests.own = compiled.create_infer_request()
        results = requests.own.infer(inputs, share_inputs=True)
        return {name: np.array(results[name]) for name in names}  # the request uses its memory again

    return run


OPENED: dict[str, type[_OnnxRuntime] | type[_OpenVino]] = {"onnxruntime": _OnnxRuntime, "openvino": _OpenVino}


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Convert any error of a runtime that reads a file to a FileFormatError that names it."""
    try:
        yield
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise FileFormatError(f"{path} cannot be read as an ONNX file: {lines[0]}") from error


def _checked(text: str | None, path: Path) -> dict[str, Any]:
    """Return the metadata of a file."""
    if text is None:
        raise FileFormatError(f"{path} is not a detector: it was not written by skpbas.export.to_onnx")
    try:
        metadata: dict[str, Any] = json.loads(text)
        number = metadata["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise FileFormatError(f"{path} is damaged: its metadata cannot be read ({error!r})") from error
    if number != FORMAT:
        raise FileFormatError(
            f"{path} has format {number}, and this version of skpbas reads {FORMAT}: export the detector again"
        )
    return metadata
