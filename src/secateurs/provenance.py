"""Who made a plan, from what, with which versions and for which target; under which name a figure is found again.

Every key of the store of measurements and of the rows of evaluations is made here, from plain texts and numbers: what a
class is called plays no part, so that renaming one measures nothing anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from importlib import metadata
from typing import Any


def versions() -> dict[str, str]:
    """Versions that a plan and its figures depend on."""
    import platform

    found = {"python": platform.python_version()}
    for name in ("secateurs", "torch", "onnx", "onnxruntime", "numpy", "scipy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@dataclass(frozen=True)
class MadeFrom:
    """What a plan was made from: where the network was opened, as JSON values, and the name of the data."""

    source: Mapping[str, Any]
    data: str


def provenance(strategy: str, criterion: object, seed: int, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Who made a plan and from what."""
    return {"strategy": strategy, "criterion": name_of(criterion), "seed": seed, **facts, "versions": versions()}


def target_label(target: Mapping[str, Any]) -> str:
    """``onnxruntime-cpu, 1 thread`` from a target's fingerprint."""
    threads = target.get("threads", 1)
    return f"{target.get('target', 'target')}, {threads} thread{'s' if threads != 1 else ''}"


def name_of(criterion: object) -> str:
    """A criterion's registered name, or the name of the user's function."""
    return criterion if isinstance(criterion, str) else getattr(criterion, "__name__", type(criterion).__name__)


STORED = {
    "candidate": 2,  # a cut network beside dense: batch, input shape, network
    "memory": 1,  # peak of a network: batch, network, widths, removed blocks
    "rectangles": 1,  # networks whose kernels were cut to rectangles: network, batch
    "mixes": 1,  # files with layers in float at random beside the quantised one: batch, network
    "elements-dense": 1,  # the dense network beside its sparse layers: network
    "sparse-conv": 1,  # one layer in the sparse kernels: shape, widths, count, block
    "break-even": 1,  # the same beside the dense convolution: shape, widths
    "training-mode": 1,  # number format and layout that train fastest: weights, batch, precision
}
"""What the store of measurements keeps, and the version of its rows: one that rises makes older rows unknown."""


def store_key(kind: str, *parts: object) -> str:
    """The name of a measurement in the store: ``candidate/2/b1/3x32x32/…``; ``kind``: one of :data:`STORED`."""
    return "/".join([kind, str(STORED[kind]), *map(str, parts)])


def spelled(value: object) -> str:
    """A value as text for an identity: of a dataclass its fields under the name ``spelled_as`` that the class states.

    Raises:
        TypeError: a dataclass without that name.
    """
    if isinstance(value, tuple):
        return f"({', '.join(map(spelled, value))}{',' if len(value) == 1 else ''})"
    if not is_dataclass(value):
        return repr(value)
    name = getattr(value, "spelled_as", None)
    if name is None:
        raise TypeError(f"{type(value).__name__} is part of an identity, so it must state spelled_as.")
    shown = [f"{one.name}={spelled(getattr(value, one.name))}" for one in fields(value) if one.repr]
    return f"{name}({', '.join(shown)})"


def digest(text: str, length: int = 64) -> str:
    """The first ``length`` hexadecimal digits of a text's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:length]
