"""OpenVINO inside a worker process. Self-contained: numpy and openvino only."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import openvino

_CORE = openvino.Core()
_CAPABILITIES = {"f32": "FP32", "bf16": "BF16", "f16": "FP16"}


def describe() -> dict[str, Any]:
    """Runtime name and version."""
    return {"runtime": f"openvino {openvino.__version__}"}


def _inputs(model: Any, batch: int) -> list[np.ndarray]:
    generator, values = np.random.default_rng(0), []
    for port in model.inputs:
        shape = [int(size.get_length()) if size.is_static else batch for size in port.partial_shape]
        drawn = generator.standard_normal(shape).astype(port.element_type.to_dtype())
        values.append(drawn if drawn.dtype.kind == "f" else np.zeros_like(drawn))  # every table has a row 0
    return values


def unpacked(entry: dict[str, Any]) -> np.ndarray:
    """An array from its type, shape and bytes in base64."""
    return np.frombuffer(base64.b64decode(entry["data"]), dtype=entry["dtype"]).reshape(entry["shape"])


def packed(array: np.ndarray) -> dict[str, Any]:
    """What :func:`unpacked` makes an array of."""
    data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")
    return {"dtype": str(array.dtype), "shape": list(array.shape), "data": data}


class Session:
    """One compiled model with its input; its performance counters are read only while it is profiled."""

    def __init__(self, path: str, settings: dict[str, Any]) -> None:
        self._profiling = bool(settings.get("profile"))
        precision = str(settings.get("precision", "f32"))
        able = _CORE.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if _CAPABILITIES[precision] not in able:
            raise RuntimeError(f"this processor has no instructions for {precision}, only for {', '.join(able)}")
        self._model = _CORE.compile_model(
            path,
            "CPU",
            {
                "INFERENCE_NUM_THREADS": int(settings["threads"]),
                "NUM_STREAMS": 1,
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_PRECISION_HINT": precision,
                "PERF_COUNT": self._profiling,
            },
        )
        self._request = self._model.create_infer_request()
        for index, value in enumerate(_inputs(self._model, int(settings.get("batch", 1)))):
            self._request.set_input_tensor(index, openvino.Tensor(value))
        self._times: dict[str, list[float]] = {}

    def run(self) -> None:
        """One inference."""
        self._request.infer()
        if self._profiling:
            for entry in self._request.get_profiling_info():
                if entry.status == entry.Status.EXECUTED:
                    microseconds = entry.real_time.total_seconds() * 1e6
                    self._times.setdefault(entry.node_name, []).append(microseconds)

    def infer(self, given: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Outputs for inputs in the file's order, all packed; as many samples go through at once as the file takes."""
        arrays = [unpacked(entry) for entry in given]
        samples, ports = len(arrays[0]), self._model.inputs
        first = ports[0].partial_shape[0]
        step = max(1, first.get_length() if first.is_static else samples)
        request, parts = self._model.create_infer_request(), []
        for start in range(0, samples, step):
            for index, array in enumerate(arrays):
                part = array[start : start + step] if array.ndim and len(array) == samples else array
                request.set_input_tensor(index, openvino.Tensor(np.ascontiguousarray(part)))
            request.infer()
            parts.append([tensor.data.copy() for tensor in request.output_tensors])
        return [packed(np.concatenate(outputs)) for outputs in zip(*parts, strict=True)]

    def profile(self) -> dict[str, Any]:
        """Times in µs per executed node and run, and for each node what it was made of and what it reads."""
        self._profiling = False
        nodes = {}
        for node in self._model.get_runtime_model().get_ordered_ops():
            facts = node.get_rt_info()
            nodes[node.get_friendly_name()] = {
                "kind": _text(facts["layerType"]),
                "names": [name for name in _text(facts["originalLayersNames"]).split(",") if name],
                "reads": [port.get_node().get_friendly_name() for port in node.input_values()],
            }
        return {"nodes_us": self._times, "graph": nodes}


def _text(value: Any) -> str:
    """Text of runtime information, which comes wrapped in some versions."""
    return str(getattr(value, "value", value))


def load(path: str, settings: dict[str, Any]) -> Session:
    """The model at ``path``; settings: ``threads``, ``batch``, ``precision``, ``profile``."""
    return Session(path, settings)
