"""ONNX Runtime on this machine's processor."""

from __future__ import annotations

import base64
import importlib.metadata
import importlib.util
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx

from secateurs.latency.process import QUIET, Worker, local_command
from secateurs.latency.targets._base import (
    Operation,
    Target,
    before_quantising,
    instructions,
    lower_half,
    overflows,
    processor_facts,
    with_precision,
)

_SUFFIX = re.compile(r"(_nchwc)?(_token_\d+)?$")
_REACH = 12


@dataclass(frozen=True)
class OnnxRuntimeCpu(Target):
    """ONNX Runtime with its CPU provider; ``onnxruntime-cpu:int8`` runs quantised files."""

    precision: str = "f32"
    precisions: tuple[str, ...] = field(default=("f32", "int8"), init=False)
    timeout_s: float = field(default=300.0, kw_only=True)
    name: str = field(init=False)
    artifact: str = field(default="onnx", init=False)
    profiles: bool = field(default=True, init=False)
    engine: str = field(default="onnx_runtime", init=False)
    package: str = field(default="onnxruntime", init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", with_precision("onnxruntime-cpu", self.precision, self.precisions))

    @property
    def saturates(self) -> bool:
        """As this machine's processor is."""
        return overflows(platform.machine(), instructions())

    def available(self) -> str | None:
        """None, or why not."""
        if importlib.util.find_spec("onnxruntime") is None:
            return "the package onnxruntime is not installed (pip install onnxruntime)"
        return None

    def fingerprint(self, threads: int) -> dict[str, str | int]:
        """Device, runtime version, precision, threads."""
        version = importlib.metadata.version("onnxruntime")
        return processor_facts(self.name, f"onnxruntime {version}", self.precision, threads)

    def start(self) -> Worker:
        """A new worker process."""
        return Worker(self.name, local_command(self.engine), environment=QUIET, timeout_s=self.timeout_s)

    def settings(self, *, threads: int, batch: int, profile: bool) -> dict[str, Any]:
        """Settings of the worker's engine."""
        return {"threads": threads, "batch": batch, "profile": profile}

    def operations(self, profile: Mapping[str, Any]) -> tuple[Operation, ...]:
        """The executed operators in the model file's names, from ONNX Runtime's profile and its optimized graph."""
        graph = onnx.load_model_from_string(base64.b64decode(profile["graph"])).graph
        by_name = {node.name: node for node in graph.node}
        producer = {value: node for node in graph.node for value in node.output}
        operations = []
        for name, times_us in profile["nodes_us"].items():
            node = by_name.get(name)
            names = (_own(name),) if node is None else _candidates(node, producer)
            operations.append(Operation(names, node.op_type if node else "", lower_half(times_us) / 1e3))
        return tuple(operations)


def _own(name: str) -> str:
    """The name of the node or value in the float model file that a name in an optimized graph was made of."""
    return before_quantising(_SUFFIX.sub("", name))


def _candidates(node: onnx.NodeProto, producer: Mapping[str, onnx.NodeProto]) -> tuple[str, ...]:
    """Value names for ``node``, likeliest first.

    The layout optimizer names a block ``VALUE_nchwc`` and its outputs ``reorder_token_7``; a layout change belongs to
    what it reads.
    """
    found: list[str] = []
    frontier = [node]
    seen: set[str] = set()
    while frontier and len(seen) < _REACH:
        current = frontier.pop(0)
        if current.name in seen:
            continue
        seen.add(current.name)
        if not current.op_type.startswith("Reorder"):
            found.append(_own(current.name))
            found.extend(map(before_quantising, current.output))
        for value in current.input:
            if value in producer:
                frontier.append(producer[value])
            else:
                found.append(value)
    return tuple(dict.fromkeys(found))
