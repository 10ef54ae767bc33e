"""OpenVINO on this machine's processor."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from secateurs.latency.process import QUIET, Worker, local_command
from secateurs.latency.targets._base import (
    QUANTISED,
    Operation,
    Target,
    before_quantising,
    instructions,
    lower_half,
    overflows,
    processor_facts,
    with_precision,
)

_CAPABILITIES = {"f32": "FP32", "bf16": "BF16", "f16": "FP16", "int8": "INT8"}
"""What OpenVINO calls a processor's instructions for a precision."""
_REACH = 12


@dataclass(frozen=True)
class OpenVinoCpu(Target):
    """OpenVINO's CPU plug-in; ``openvino-cpu:bf16`` and ``:f16`` compute in half precision where the processor can,
    ``openvino-cpu:int8`` runs quantised files."""

    precision: str = "f32"
    precisions: tuple[str, ...] = field(default=tuple(_CAPABILITIES), init=False)
    timeout_s: float = field(default=300.0, kw_only=True)
    name: str = field(init=False)
    artifact: str = field(default="onnx", init=False)
    profiles: bool = field(default=True, init=False)
    engine: str = field(default="open_vino", init=False)
    package: str = field(default="openvino", init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", with_precision("openvino-cpu", self.precision, self.precisions))

    @property
    def saturates(self) -> bool:
        """As this machine's processor is."""
        return overflows(platform.machine(), instructions())

    def available(self) -> str | None:
        """None, or why not."""
        if importlib.util.find_spec("openvino") is None:
            return "the package openvino is not installed (pip install openvino)"
        if self.precision == "f32":
            return None
        able = _able()
        if _CAPABILITIES[self.precision] in able:
            return None
        known = ", ".join(name for name, capability in _CAPABILITIES.items() if capability in able)
        return f"this processor has no instructions for {self.precision}, OpenVINO names {known}"

    def fingerprint(self, threads: int) -> dict[str, str | int]:
        """Device, runtime version, precision, threads."""
        version = importlib.metadata.version("openvino")
        return processor_facts(self.name, f"openvino {version}", self.precision, threads)

    def start(self) -> Worker:
        """A new worker process."""
        quiet = {**QUIET, "OPENVINO_TELEMETRY": "0"}
        return Worker(self.name, local_command(self.engine), environment=quiet, timeout_s=self.timeout_s)

    def settings(self, *, threads: int, batch: int, profile: bool) -> dict[str, Any]:
        """Settings of the worker's engine."""
        return {
            "threads": threads,
            "batch": batch,
            "profile": profile,
            "precision": "f32" if self.precision in QUANTISED else self.precision,
        }

    def operations(self, profile: Mapping[str, Any]) -> tuple[Operation, ...]:
        """The executed operators in the model file's names, from OpenVINO's counters and its execution graph."""
        graph: Mapping[str, Mapping[str, Any]] = profile["graph"]
        return tuple(
            Operation(_candidates(name, graph), str(graph.get(name, {}).get("kind", "")), lower_half(times) / 1e3)
            for name, times in profile["nodes_us"].items()
        )


@functools.cache
def _able() -> frozenset[str]:
    """What OpenVINO says that this machine's processor can compute in."""
    import openvino

    return frozenset(openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


def _candidates(name: str, graph: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """Names of the model file for an executed node, likeliest first: its parts, what feeds it, what reads it."""
    found: list[str] = []
    frontier, seen = [name], set[str]()
    while frontier and len(seen) < _REACH:
        current = frontier.pop(0)
        if current in seen:
            continue
        seen.add(current)
        node = graph.get(current, {"names": [current], "reads": []})
        found.extend(map(before_quantising, node["names"]))
        frontier.extend(node["reads"])
    # A layout change of the network's input belongs to who reads it.
    for reader in graph.values():
        if name in reader["reads"]:
            found.extend(map(before_quantising, reader["names"]))
    return tuple(dict.fromkeys(found))
