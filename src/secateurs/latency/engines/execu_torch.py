"""ExecuTorch inside a worker process. Self-contained: torch, numpy and executorch only.

A file is an ExecuTorch program (``.pte``), or one line of JSON ``{"instructions": {index: [[kind, node], …]}}``, which
says what the operators of every instruction belong to, and then the program.
"""

from __future__ import annotations

import base64
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import tempfile
from typing import Any

import numpy as np
import torch

# The package's own Python layer would import its whole compiler.
from executorch.extension.pybindings import _C as _runtime

_TYPES = {
    0: torch.uint8, 1: torch.int8, 2: torch.int16, 3: torch.int32, 4: torch.int64, 5: torch.float16, 6: torch.float32,
    7: torch.float64, 11: torch.bool, 15: torch.bfloat16,
}  # fmt: skip
_OUTSIDE = "OPERATOR_CALL"
_threads = 0


def describe() -> dict[str, Any]:
    """Runtime name and version."""
    return {"runtime": f"executorch {importlib.metadata.version('executorch')}"}


def _use_threads(wanted: int) -> None:
    """Give XNNPACK's pool so many threads; all programs of this process share it."""
    global _threads
    if wanted != _threads:
        _runtime._unsafe_reset_threadpool(wanted)
        torch.set_num_threads(wanted)
        _threads = wanted


def _inputs(method: Any) -> tuple[torch.Tensor, ...]:
    generator, meta = torch.Generator().manual_seed(0), method.method_meta()
    values = []
    for index in range(meta.num_inputs()):
        entry = meta.input_tensor_meta(index)
        drawn = torch.randn(entry.sizes(), generator=generator).to(_TYPES[entry.dtype()])
        values.append(drawn if drawn.is_floating_point() else torch.zeros_like(drawn))  # every table has a row 0
    return tuple(values)


def unpacked(entry: dict[str, Any]) -> np.ndarray:
    """An array from its type, shape and bytes in base64."""
    return np.frombuffer(base64.b64decode(entry["data"]), dtype=entry["dtype"]).reshape(entry["shape"])


def packed(array: np.ndarray) -> dict[str, Any]:
    """What :func:`unpacked` makes an array of."""
    data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")
    return {"dtype": str(array.dtype), "shape": list(array.shape), "data": data}


class Session:
    """One loaded program with its input and, if asked for, ExecuTorch's own event trace."""

    def __init__(self, path: str, settings: dict[str, Any]) -> None:
        _use_threads(int(settings["threads"]))
        self._folder = os.path.dirname(path)
        with open(path, "rb") as file:
            content = file.read()
        self._instructions: dict[str, Any] = {}
        if content[:1] == b"{":
            header, _, content = content.partition(b"\n")
            self._instructions = json.loads(header)["instructions"]
        self._profiling = bool(settings.get("profile"))
        self._content = content
        self._load()
        self._inputs = _inputs(self._method)

    def _load(self) -> None:
        self._program = _runtime._load_program_from_buffer(self._content, enable_etdump=self._profiling)
        self._method = self._program.load_method("forward")

    def run(self) -> None:
        """One inference."""
        self._method(self._inputs, clone_outputs=False)

    def infer(self, given: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Outputs for inputs in the file's order, all packed; as many samples go through at once as the file takes."""
        arrays = [unpacked(entry) for entry in given]
        samples, step = len(arrays[0]), max(1, len(self._inputs[0]))
        parts = []
        for start in range(0, samples, step):
            fed = [array[start : start + step] if array.ndim and len(array) == samples else array for array in arrays]
            found = self._method(tuple(torch.from_numpy(array.copy()) for array in fed), clone_outputs=True)
            parts.append([tensor.numpy() for tensor in found])
        return [packed(np.concatenate(outputs)) for outputs in zip(*parts, strict=True)]

    def profile(self) -> dict[str, Any]:
        """Times in µs per event and run, and what the instructions belong to. Later runs are not profiled."""
        events: dict[str, list[float]] = {}
        if self._profiling and self._program.has_etdump():
            for run in _events(self._program, self._folder):
                for index, (instruction, kind, microseconds) in enumerate(run):
                    events.setdefault(f"{index}|{instruction}|{kind}", []).append(microseconds)
        self._profiling = False
        self._load()
        return {"nodes_us": events, "instructions": self._instructions}


def _events(program: Any, place: str) -> list[list[tuple[int, str, float]]]:
    """Per run, what was executed: (instruction, kind, µs); inside XNNPACK its operators, outside ExecuTorch's.

    ``place``: folder that others remove if this process dies.
    """
    folder = tempfile.mkdtemp(prefix="secateurs-profile-", dir=place)
    try:
        program.write_etdump_result_to_file(os.path.join(folder, "trace.etdp"), None)
        package = importlib.util.find_spec("executorch")
        assert package is not None
        assert package.submodule_search_locations is not None
        root = package.submodule_search_locations[0]
        for name in ("etdump_schema_flatcc.fbs", "scalar_type.fbs"):
            shutil.copy(os.path.join(root, "devtools", "etdump", name), folder)
        flatc = os.path.join(root, "data", "bin", "flatc")
        command = [flatc if os.path.exists(flatc) else "flatc", "--json", "--defaults-json", "--strict-json"]
        command += ["--size-prefixed", "-o", folder, os.path.join(folder, "etdump_schema_flatcc.fbs"), "--"]
        subprocess.run([*command, os.path.join(folder, "trace.etdp")], check=True, capture_output=True)
        with open(os.path.join(folder, "trace.json"), encoding="utf-8") as file:
            trace = json.load(file)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    runs = []
    for block in trace["run_data"]:
        if block.get("name") == "Execute":
            found = [event["profile_event"] for event in block.get("events", []) if event.get("profile_event")]
            runs.append([entry for entry in map(_event, found) if entry is not None])
    return runs


def _event(event: dict[str, Any]) -> tuple[int, str, float] | None:
    kind = event.get("delegate_debug_id_str")
    if not kind:
        if event.get("name") != _OUTSIDE:
            return None
        kind = ""
    return int(event["instruction_id"]), str(kind), (event["end_time"] - event["start_time"]) / 1e3


def load(path: str, settings: dict[str, Any]) -> Session:
    """The program at ``path``; settings: ``threads``, ``profile``."""
    return Session(path, settings)
