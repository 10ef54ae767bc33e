"""Who made a plan, from what, with which versions and for which target."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any

from secateurs.scoring import name_of

if TYPE_CHECKING:
    from secateurs.importance.context import Criterion


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


def provenance(strategy: str, criterion: str | Criterion, seed: int, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Who made a plan and from what."""
    return {"strategy": strategy, "criterion": name_of(criterion), "seed": seed, **facts, "versions": versions()}


def target_label(target: Mapping[str, Any]) -> str:
    """``onnxruntime-cpu, 1 thread`` from a target's fingerprint."""
    threads = target.get("threads", 1)
    return f"{target.get('target', 'target')}, {threads} thread{'s' if threads != 1 else ''}"
