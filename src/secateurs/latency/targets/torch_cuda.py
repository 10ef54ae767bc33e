"""PyTorch on an NVIDIA device: channels-last, replayed as a CUDA graph, optionally compiled."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from secateurs.latency.process import Worker, local_command
from secateurs.latency.targets._base import Operation, Target, lower_half, with_precision
from secateurs.latency.targets._cuda import device_facts, find_device


@dataclass(frozen=True)
class TorchCuda(Target):
    """PyTorch's own kernels, captured as a CUDA graph and timed with CUDA events.

    ``torch-cuda:tf32`` lets float32 convolutions use tensor cores at reduced precision; ``:fp16`` and ``:bf16`` hold
    weights and activations in half precision.
    """

    precision: str = "f32"
    precisions: tuple[str, ...] = field(default=("f32", "tf32", "fp16", "bf16"), init=False)
    timeout_s: float = field(default=300.0, kw_only=True)
    compiled: bool = field(default=False, init=False)
    base_name: str = field(default="torch-cuda", init=False)
    name: str = field(init=False)
    artifact: str = field(default="pt2", init=False)
    profiles: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", with_precision(self.base_name, self.precision, self.precisions))

    def available(self) -> str | None:
        """None, or why not: no device, or a PyTorch without CUDA."""
        if importlib.util.find_spec("torch") is None:
            return "the package torch is not installed (pip install torch)"
        import torch

        if torch.version.cuda is None:
            return f"this build of torch ({torch.__version__}) has no CUDA (install one from PyTorch's CUDA index)"
        found = find_device()
        return found if isinstance(found, str) else None

    def fingerprint(self, threads: int) -> dict[str, str | int]:
        """Device, host, driver and runtime version, precision, threads of the host."""
        version = importlib.metadata.version("torch")
        return device_facts(self.name, f"torch {version}", self.precision, threads)

    def start(self) -> Worker:
        """A new worker process."""
        return Worker(self.name, local_command("torch_cuda"), timeout_s=self.timeout_s)

    def settings(self, *, threads: int, batch: int, profile: bool) -> dict[str, Any]:
        """Settings of the worker's engine."""
        chosen = {"threads": threads, "batch": batch, "profile": profile, "compile": self.compiled}
        return {**chosen, "precision": self.precision}

    def operations(self, profile: Mapping[str, Any]) -> tuple[Operation, ...]:
        """The executed operators; the program's nodes keep their names. None where it is compiled."""
        times: Mapping[str, list[float]] = profile["nodes_us"] if self.profiles else {}
        return tuple(Operation((name,), "", lower_half(seen) / 1e3) for name, seen in times.items())


@dataclass(frozen=True)
class TorchCompileCuda(TorchCuda):
    """The same with ``torch.compile``; every new shape is compiled, so a latency model takes long to build."""

    timeout_s: float = field(default=1200.0, kw_only=True)
    compiled: bool = field(default=True, init=False)
    base_name: str = field(default="torch-compile-cuda", init=False)
    profiles: bool = field(default=False, init=False)

    def available(self) -> str | None:
        """None, or why not: also no Triton, which writes the kernels."""
        reason = super().available()
        if reason is None and importlib.util.find_spec("triton") is None:
            return "torch.compile needs the package triton on CUDA devices, which is not installed (pip install triton)"
        return reason
