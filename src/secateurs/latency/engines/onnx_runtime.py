"""ONNX Runtime inside a worker process. Self-contained: numpy and onnxruntime only."""

from __future__ import annotations

import base64
import json
import os
import tempfile
import time
from typing import Any

import numpy as np
import onnxruntime

_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


def describe() -> dict[str, Any]:
    """Runtime name and version."""
    return {"runtime": f"onnxruntime {onnxruntime.__version__}"}


def _inputs(session: onnxruntime.InferenceSession, batch: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    feeds: dict[str, np.ndarray] = {}
    for entry in session.get_inputs():
        shape = [size if isinstance(size, int) else batch for size in entry.shape]
        drawn: np.ndarray = generator.standard_normal(shape).astype(_TYPES[entry.type])
        feeds[entry.name] = drawn if drawn.dtype.kind == "f" else np.zeros_like(drawn)  # every table has a row 0
    return feeds


def unpacked(entry: dict[str, Any]) -> np.ndarray:
    """An array from its type, shape and bytes in base64."""
    content = base64.b64decode(entry["data"])
    return np.frombuffer(content, dtype=entry["dtype"]).reshape(entry["shape"])


def packed(array: np.ndarray) -> dict[str, Any]:
    """What :func:`unpacked` makes an array of."""
    data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")
    return {"dtype": str(array.dtype), "shape": list(array.shape), "data": data}


class Session:
    """One loaded model with its input and, if asked for, ONNX Runtime's own profiler running."""

    def __init__(self, path: str, settings: dict[str, Any]) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(settings["threads"])
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        # Pools may spin during a run but not between runs, where they would slow the other worker.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        if settings.get("profile"):
            self._folder = tempfile.TemporaryDirectory(prefix="secateurs-profile-", dir=os.path.dirname(path))
            options.enable_profiling = True
            options.profile_file_prefix = os.path.join(self._folder.name, "profile")
            options.optimized_model_filepath = os.path.join(self._folder.name, "graph.onnx")
            options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "graph.bin")
            options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "64")
        providers = [(name, chosen) for name, chosen in settings.get("providers", [["CPUExecutionProvider", {}]])]
        self._session = onnxruntime.InferenceSession(path, options, providers=providers)
        used = self._session.get_providers()
        if not used or used[0] != providers[0][0]:
            raise RuntimeError(
                f"ONNX Runtime gave up {providers[0][0]} and would run on {', '.join(used)} instead (a library that it "
                f"needs, of CUDA, cuDNN or TensorRT, is missing or has the wrong version)"
            )
        self._feeds = _inputs(self._session, int(settings.get("batch", 1)))
        self._outputs = [entry.name for entry in self._session.get_outputs()]

    def run(self) -> None:
        """One inference."""
        self._session.run(self._outputs, self._feeds)

    def infer(self, given: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Outputs for inputs in the file's order, all packed; as many samples go through at once as the file takes."""
        arrays = [unpacked(entry) for entry in given]
        entries = self._session.get_inputs()
        size = entries[0].shape[0] if entries[0].shape else None
        samples = len(arrays[0])
        step = max(1, size if isinstance(size, int) else samples)
        parts = []
        for start in range(0, samples, step):
            feeds = {
                entry.name: array[start : start + step] if array.ndim and len(array) == samples else array
                for entry, array in zip(entries, arrays, strict=True)
            }
            parts.append(self._session.run(self._outputs, feeds))
        return [packed(np.concatenate(outputs)) for outputs in zip(*parts, strict=True)]

    def profile(self) -> dict[str, Any]:
        """Times in µs per node name and run, and the optimized graph. Later runs are not profiled."""
        assert self._folder is not None
        with open(self._session.end_profiling(), encoding="utf-8") as file:
            events = json.load(file)
        times: dict[str, list[float]] = {}
        for event in events:
            name = event.get("name", "")
            if event.get("cat") == "Node" and name.endswith("_kernel_time"):
                times.setdefault(name[: -len("_kernel_time")], []).append(event["dur"])
        with open(os.path.join(self._folder.name, "graph.onnx"), "rb") as graph:
            proto = base64.b64encode(graph.read()).decode("ascii")
        self._folder.cleanup()
        return {"nodes_us": times, "graph": proto}


class DeviceSession(Session):
    """One loaded model whose input and outputs stay on a device; a run waits for the device."""

    def __init__(self, path: str, settings: dict[str, Any]) -> None:
        super().__init__(path, settings)
        self._device = str(settings["device"])
        self._binding = self._session.io_binding()
        for name, value in self._feeds.items():
            self._binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(value, self._device, 0))
        for name in self._outputs:
            self._binding.bind_output(name, self._device, 0)
        self._binding.synchronize_inputs()

    def run(self) -> None:
        """One inference, to its end."""
        self._session.run_with_iobinding(self._binding)
        self._binding.synchronize_outputs()

    def timed(self) -> float:
        """One inference and its time in ms."""
        before = time.perf_counter_ns()
        self.run()
        return (time.perf_counter_ns() - before) / 1e6


def load(path: str, settings: dict[str, Any]) -> Session:
    """The model at ``path``; settings: ``threads``, ``batch``, ``profile``, ``providers``, ``device``."""
    return DeviceSession(path, settings) if settings.get("device") else Session(path, settings)
