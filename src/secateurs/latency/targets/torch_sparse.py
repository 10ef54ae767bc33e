"""PyTorch with this package's own sparse convolution: networks whose kernel elements are pruned run fast here."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from secateurs.elements import native
from secateurs.latency.process import WORKER_FILE, Worker
from secateurs.latency.targets._base import Operation, Target, processor_facts


@dataclass(frozen=True)
class TorchSparseCpu(Target):
    """The compiled sparse kernels on fixed memory, float32; convolutions that keep all elements run on them, too.

    The first answer may take a minute: in a source checkout the kernels are compiled on first use.
    """

    timeout_s: float = field(default=300.0, kw_only=True)
    name: str = field(default="torch-sparse-cpu", init=False)
    artifact: str = field(default="pt2", init=False)
    precision: str = field(default="f32", init=False)
    profiles: bool = field(default=False, init=False)
    skips_pruned_elements: bool = field(default=True, init=False)

    def available(self) -> str | None:
        """None, or why not."""
        return native.missing()

    def fingerprint(self, threads: int) -> dict[str, str | int]:
        """Device, runtime version, precision, threads."""
        runtime = f"secateurs {importlib.metadata.version('secateurs')}, torch {importlib.metadata.version('torch')}"
        return {**processor_facts(self.name, runtime, self.precision, threads), "memory": "kept between runs"}

    def start(self) -> Worker:
        """A new worker process."""
        command = [sys.executable, str(WORKER_FILE), str(WORKER_FILE.parent / "engines" / "torch_sparse.py")]
        return Worker(self.name, command, timeout_s=self.timeout_s)

    def settings(self, *, threads: int, batch: int, profile: bool) -> dict[str, Any]:
        """Settings of the worker's engine."""
        return {"threads": threads, "batch": batch}

    def operations(self, profile: Mapping[str, Any]) -> tuple[Operation, ...]:
        """None: this runtime has no profiler."""
        return ()
