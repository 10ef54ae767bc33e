"""Runtimes on devices. ``open_target`` finds one by its text."""

from __future__ import annotations

from secateurs import registry
from secateurs.errors import PlanError, TargetUnavailableError
from secateurs.latency.targets._base import Operation, Target, lower_half

__all__ = ["Operation", "Target", "lower_half", "open_target"]


def open_target(text: str | Target) -> Target:
    """The target that ``text`` names, ready to use: ``onnxruntime-cpu``, with a precision ``openvino-cpu:bf16``,
    or on another machine ``ssh://host/onnxruntime-cpu``.

    Raises:
        PlanError: unknown name or precision.
        TargetUnavailableError: its runtime is not installed or its device not reachable.
    """
    target = make_target(text) if isinstance(text, str) else text
    reason = target.available()
    if reason is not None:
        raise TargetUnavailableError(
            f"Target {target.name} cannot be used here: {reason}. 'secateurs ls targets' shows what can."
        )
    return target


def make_target(text: str) -> Target:
    """The target that ``text`` names, whether it can be used here or not.

    Raises:
        PlanError: unknown name or precision.
    """
    if text.startswith("ssh:"):
        from secateurs.latency.targets.ssh import SshTarget

        return SshTarget.parse(text)
    name, colon, precision = text.partition(":")
    kind = registry.load("targets", name)
    if colon and not precision:
        raise PlanError(f"Target {text!r} names no precision behind the colon. Write {name}, or {name}:PRECISION.")
    try:
        target: Target = kind(precision) if precision else kind()
    except TypeError as error:
        raise PlanError(
            f"Target {name} has no precision to choose, but {precision!r} was asked. Leave it out."
        ) from error
    return target
