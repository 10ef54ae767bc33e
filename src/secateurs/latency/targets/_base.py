"""What a target is: a runtime on a device that can say how long a network takes there."""

from __future__ import annotations

import functools
import platform
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from secateurs.errors import PlanError
from secateurs.latency.process import Worker

if TYPE_CHECKING:
    from secateurs.latency.predictor import LatencyModel
    from secateurs.network import NetworkSpec

QUANTISED = ("int8",)
"""Precisions that are in the file; others a runtime computes in by itself."""
_MIXED_FILES = ("onnx", "xml")
_NO_OVERFLOW = {"avx512_vnni", "avx_vnni", "avx_vnni_int8"}


@dataclass(frozen=True)
class Operation:
    """One operator as the runtime executed it.

    ``names``: names that may be values or nodes of the model file, the likeliest first: what it is or produces (after
    fusion, one of the fused operators), then, for layout changes and invented operators, what it reads, nearest
    first; ``kind``: the runtime's operator type; ``ms``: its time in one run.
    """

    names: tuple[str, ...]
    kind: str
    ms: float


class KnownLatency(Protocol):
    """Latencies that are known, not measured. ``fingerprint``: of the target."""

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """What they depend on besides the network."""

    def latency_model(self) -> LatencyModel:
        """Of the network at any widths."""

    def ms(self, points: Sequence[Any]) -> np.ndarray:
        """Of convolutions with pruned elements [points], as :class:`secateurs.measure.kernel_times.KernelTimes`."""


@runtime_checkable
class Target(Protocol):
    """A runtime on a device: inherit, name it, and write the first four methods. What is read of one is declared here.

    ``name``: the registered one, with the precision where there are several; ``artifact``: the kind of file that it
    runs (``"onnx"``, ``"pt2"`` or ``"pte"``); ``precision``: numbers that it computes with, one of ``precisions``,
    which stand behind a colon; ``profiles``: it has a profiler of its own operators; ``skips_pruned_elements``: its
    kernels leave out kernel elements that are zero; ``runs_float``: it runs float files, too; ``engine``: file of
    ``latency/engines`` without its ending that a worker needs on another machine, None where files are made for this
    one; ``package``: what must be installed there.
    """

    name: str
    artifact: str
    precision: str = "f32"
    precisions: tuple[str, ...] = ("f32",)
    profiles: bool = False
    skips_pruned_elements: bool = False
    runs_float: bool = True
    engine: str | None = None
    package: str | None = None

    @property
    def exporter(self) -> str:
        """What writes its files: the format, with the precision where files hold quantised numbers."""
        return f"{self.artifact}:{self.precision}" if self.precision in QUANTISED else self.artifact

    @property
    def saturates(self) -> bool:
        """Whether sums of two products of 8-bit numbers overflow there, so that weights are held in seven bits."""
        return False

    @property
    def mixes(self) -> bool:
        """Whether its files can hold layers in float beside quantised ones."""
        return self.precision in QUANTISED and self.artifact in _MIXED_FILES

    def available(self) -> str | None:
        """None, or the reason why this target cannot be used here."""

    def fingerprint(self, threads: int) -> dict[str, str | int]:
        """What a measurement depends on besides the model: device, runtime version, precision, threads."""

    def start(self) -> Worker:
        """A new worker process."""

    def settings(self, *, threads: int, batch: int, profile: bool) -> dict[str, Any]:
        """What the worker's engine needs to load a model."""

    def operations(self, profile: Mapping[str, Any]) -> tuple[Operation, ...]:
        """The operators of one profiled model, in the model file's own names; none without a profiler."""
        return ()

    def formula(self, spec: NetworkSpec, content: bytes, *, threads: int, batch: int) -> KnownLatency | None:
        """What tells latencies without a measurement, of a network and its dense file; None: they are measured."""
        return None


_QUANTISER = re.compile(r"_(Deq|Q)uantizeLinear(_Output|_Input)?(/duplicated)?$")


def before_quantising(name: str) -> str:
    """The node or value of the float ONNX file that one of a quantised file was made of."""
    return _QUANTISER.sub("", name)


def processor_facts(target: str, runtime: str, precision: str, threads: int) -> dict[str, str | int]:
    """What a measurement on this machine's processor depends on; ``runtime``: name and version."""
    return {
        "target": target,
        "device": processor_name(),
        "system": f"{platform.system()} {platform.machine()}",
        "runtime": runtime,
        "precision": precision,
        "threads": threads,
    }


def with_precision(target: str, precision: str, known: Sequence[str]) -> str:
    """The target's name, with the precision where it is not f32.

    Raises:
        PlanError: it is not one of the ``known`` precisions.
    """
    if precision not in known:
        raise PlanError(
            f"Target {target} has no precision {precision!r}. It knows {', '.join(known)}, "
            f"for example {target}:{known[-1]}."
        )
    return target if precision == "f32" else f"{target}:{precision}"


def overflows(machine: str, instructions: Collection[str]) -> bool:
    """Whether a processor adds two products of unsigned and signed 8-bit numbers in 16 bits, which may overflow.

    ``machine``: as Python's ``platform.machine`` names it; ``instructions``: what the processor says it has.
    """
    return machine.lower() in ("x86_64", "amd64", "i686") and not _NO_OVERFLOW & set(instructions)


@functools.cache
def instructions() -> frozenset[str]:
    """Instruction sets of this machine's processor, as the system names them; none where it does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    told = next((line for line in lines if line.partition(":")[0].strip() in ("flags", "Features")), "")
    return frozenset(told.partition(":")[2].split())


@functools.cache
def processor_name() -> str:
    """The processor of this machine, as exactly as the system tells it."""
    try:
        fields: dict[str, str] = {}
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip():
                fields.setdefault(key.strip(), value.strip())
        name = fields.get("model name") or fields.get("Hardware") or platform.processor()
        detail = " ".join(
            f"{label} {fields[label]}" for label in ("cpu family", "model", "stepping") if label in fields
        )
        return f"{name} ({detail})" if detail else name or platform.machine()
    except OSError:
        return platform.processor() or platform.machine()


def lower_half(times: Sequence[float]) -> float:
    """Mean of the times between the 10th and the 50th percentile.

    It estimates the lower quartile, but finer than a profiler's whole microseconds.
    """
    ordered = np.sort(np.asarray(times, dtype=np.float64))
    first, last = int(0.1 * len(ordered)), max(int(0.5 * len(ordered)), 1)
    return float(ordered[min(first, last - 1) : last].mean())
