"""What a target is: a runtime on a device that can say how long a network takes there."""

from __future__ import annotations

import functools
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from secateurs.errors import PlanError
from secateurs.latency.process import Worker


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


@runtime_checkable
class Target(Protocol):
    """A runtime on a device.

    ``artifact``: what it runs (``"onnx"``); ``profiles``: it has a profiler of its own operators.
    """

    @property
    def name(self) -> str: ...

    @property
    def artifact(self) -> str: ...

    @property
    def precision(self) -> str: ...

    @property
    def profiles(self) -> bool: ...

    def available(self) -> str | None:
        """None, or the reason why this target cannot be used here."""

    def fingerprint(self, threads: int) -> dict[str, str | int]:
        """What a measurement depends on besides the model: device, runtime version, precision, threads."""

    def start(self) -> Worker:
        """A new worker process."""

    def settings(self, *, threads: int, batch: int, profile: bool) -> dict[str, Any]:
        """What the worker's engine needs to load a model."""

    def operations(self, profile: Mapping[str, Any]) -> tuple[Operation, ...]:
        """The operators of one profiled model, in the model file's own names."""


def skips_pruned_elements(target: Target) -> bool:
    """Whether the target's kernels leave out kernel elements that are zero: those that do have this attribute."""
    return bool(getattr(target, "skips_pruned_elements", False))


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
