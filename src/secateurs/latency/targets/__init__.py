"""Runtimes on devices. ``open_target`` finds one by its text."""

from __future__ import annotations

from secateurs import registry
from secateurs.errors import TargetUnavailableError
from secateurs.latency.targets._base import Operation, Target

__all__ = ["Operation", "Target", "open_target"]


def open_target(text: str | Target) -> Target:
    """The target called ``text``, ready to use.

    Raises:
        PlanError: unknown name.
        TargetUnavailableError: its runtime is not installed or its device not reachable.
    """
    if not isinstance(text, str):
        return text
    target: Target = registry.load("targets", text)()
    reason = target.available()
    if reason is not None:
        raise TargetUnavailableError(f"Target {text!r} cannot be used here: {reason}. See 'secateurs ls targets'.")
    return target
