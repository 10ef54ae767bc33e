"""PyTorch itself on this machine's processor: operator by operator, or compiled."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from secateurs.latency.process import Worker, local_command
from secateurs.latency.targets._base import Operation, Target, lower_half, processor_facts


@dataclass(frozen=True)
class TorchCpu(Target):
    """PyTorch in eager mode, float32, on an exported program with folded batch normalisation."""

    timeout_s: float = field(default=300.0, kw_only=True)
    compiled: bool = field(default=False, init=False)
    name: str = field(default="torch-cpu", init=False)
    artifact: str = field(default="pt2", init=False)
    precision: str = field(default="f32", init=False)
    profiles: bool = field(default=True, init=False)

    def available(self) -> str | None:
        """None, or why not."""
        if importlib.util.find_spec("torch") is None:
            return "the package torch is not installed (pip install torch)"
        return None

    def fingerprint(self, threads: int) -> dict[str, str | int]:
        """Device, runtime version, precision, threads."""
        version = importlib.metadata.version("torch")
        facts = processor_facts(self.name, f"torch {version}", self.precision, threads)
        return {**facts, "memory": "kept between runs"}

    def start(self) -> Worker:
        """A new worker process."""
        return Worker(self.name, local_command("py_torch"), timeout_s=self.timeout_s)

    def settings(self, *, threads: int, batch: int, profile: bool) -> dict[str, Any]:
        """Settings of the worker's engine."""
        return {"threads": threads, "batch": batch, "profile": profile, "compile": self.compiled}

    def operations(self, profile: Mapping[str, Any]) -> tuple[Operation, ...]:
        """The executed operators; the program's nodes keep their names. None where it is compiled."""
        times: Mapping[str, list[float]] = profile["nodes_us"] if self.profiles else {}
        return tuple(Operation((name,), "", lower_half(seen) / 1e3) for name, seen in times.items())


@dataclass(frozen=True)
class TorchCompileCpu(TorchCpu):
    """PyTorch with ``torch.compile``; every new shape is compiled, so a latency model takes long to build."""

    compiled: bool = field(default=True, init=False)
    name: str = field(default="torch-compile-cpu", init=False)
    profiles: bool = field(default=False, init=False)

    def available(self) -> str | None:
        """None, or why not."""
        if shutil.which("g++") is None and shutil.which("clang++") is None:
            return "torch.compile needs a C++ compiler (g++ or clang++), and none was found"
        return super().available()
