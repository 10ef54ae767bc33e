"""ExecuTorch with XNNPACK, the runtime of phones, on this machine's processor."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from secateurs.latency.process import QUIET, Worker, local_command
from secateurs.latency.targets._base import Operation, Target, lower_half, processor_facts, with_precision

_WEIGHTED = ("XNNConv2d", "XNNDepthwiseConv2d", "XNNFullyConnected")
"""Convolutions of one element run as fully connected layers."""
_KINDS = {
    "Convolution": _WEIGHTED,
    "Deconvolution": ("XNNConvTranspose2d",),
    "Fully": _WEIGHTED,
    "Batch": ("XNNBatchMatrixMultiply",),
    "Add": ("XNNAdd",),
    "Subtract": ("XNNSubtract",),
    "Multiply": ("XNNMultiply",),
    "Divide": ("XNNDiv",),
    "Clamp": ("XNNClamp",),
    "Transpose": ("XNNStaticTranspose",),
    "Constant": ("XNNStaticConstantPad",),
    "Max": ("XNNMaxPooling2d",),
    "Average": ("XNNAvgPooling2d",),
    "Global": ("XNNGlobalAvgPooling2d",),
    "Mean": ("XNNGlobalAvgPooling2d",),
    "Static": ("XNNStaticReshape",),
    "Softmax": ("XNNSoftmax",),
    "Sigmoid": ("XNNSigmoid",),
    "HardSwish": ("XNNHardswish",),
}
"""Kinds of graph nodes by the first word of XNNPACK's operator."""


@dataclass(frozen=True)
class ExecutorchXnnpack(Target):
    """ExecuTorch with everything that XNNPACK knows handed to XNNPACK; ``:int8`` runs quantised files."""

    precision: str = "f32"
    precisions: tuple[str, ...] = field(default=("f32", "int8"), init=False)
    timeout_s: float = field(default=300.0, kw_only=True)
    name: str = field(init=False)
    artifact: str = field(default="pte", init=False)
    profiles: bool = field(default=True, init=False)
    engine: str = field(default="execu_torch", init=False)
    package: str = field(default="executorch", init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", with_precision("executorch-xnnpack", self.precision, self.precisions))

    def available(self) -> str | None:
        """None, or why not."""
        if importlib.util.find_spec("executorch") is None:
            return "the package executorch is not installed (pip install secateurs[executorch])"
        if importlib.util.find_spec("executorch.extension.pybindings._C") is None:
            return (
                f"the package executorch {importlib.metadata.version('executorch')} has no Python runtime for this "
                f"interpreter (install 1.5 or newer from a wheel)"
            )
        return None

    def fingerprint(self, threads: int) -> dict[str, str | int]:
        """Device, runtime version, precision, threads."""
        version = importlib.metadata.version("executorch")
        return processor_facts(self.name, f"executorch {version}", self.precision, threads)

    def start(self) -> Worker:
        """A new worker process."""
        return Worker(self.name, local_command(self.engine), environment=QUIET, timeout_s=self.timeout_s)

    def settings(self, *, threads: int, batch: int, profile: bool) -> dict[str, Any]:
        """Settings of the worker's engine."""
        return {"threads": threads, "batch": batch, "profile": profile}

    def operations(self, profile: Mapping[str, Any]) -> tuple[Operation, ...]:
        """The executed operators, named after the exported program's nodes by their order in every instruction."""
        events: dict[str, list[tuple[str, float]]] = {}
        for key, times in profile["nodes_us"].items():
            _, instruction, kind = key.split("|", 2)
            events.setdefault(instruction, []).append((kind, lower_half(times) / 1e3))
        found: list[Operation] = []
        for instruction, seen in events.items():
            nodes = [(str(kind), str(name)) for kind, name in profile["instructions"].get(instruction, [])]
            names = _names([kind for kind, _ in seen], nodes)
            found += [Operation(own, kind, ms) for own, (kind, ms) in zip(names, seen, strict=True)]
        return tuple(found)


def _names(kinds: Sequence[str], nodes: Sequence[tuple[str, str]]) -> list[tuple[str, ...]]:
    """Names of the executed operators ``kinds`` of one instruction, whose graph holds ``nodes``, both in order.

    XNNPACK fuses and inserts operators. Where a kind occurs as often here as there, the n-th is the n-th; any other
    operator, and one that the lowering invented, belongs to its neighbours.
    """
    exact = [""] * len(kinds)
    for family in {*_KINDS.values(), ("",)}:
        ours = [index for index, kind in enumerate(kinds) if _KINDS.get(kind.partition(" ")[0], ("",)) == family]
        theirs = [name for kind, name in nodes if kind in family]
        if len(ours) == len(theirs):
            for index, name in zip(ours, theirs, strict=True):
                exact[index] = name
    result = []
    for index, name in enumerate(exact):
        before = [other for other in exact[:index][::-1] if other][:1]
        after = [other for other in exact[index:] if other][:1]
        result.append((name,) if name else tuple(before + after))
    return result
