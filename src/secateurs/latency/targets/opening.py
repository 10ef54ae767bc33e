"""Targets by the text that names them: the one door to a runtime on a device."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from secateurs import registry
from secateurs.errors import PlanError, TargetUnavailableError, checked
from secateurs.latency.targets._base import QUANTISED, Target
from secateurs.latency.worker import FEW_THREADS

DEFAULT_TARGET = "onnxruntime-cpu"


def open_target(text: str | Target) -> Target:
    """The target that ``text`` names, ready to use: ``onnxruntime-cpu``, with a precision ``openvino-cpu:bf16``,
    or on another machine ``ssh://host/onnxruntime-cpu``.

    Raises:
        PlanError: unknown name or precision.
        TargetUnavailableError: its runtime is not installed or its device not reachable.
    """
    if text is None or isinstance(text, (int, float, bytes, dict, list, tuple)):
        raise PlanError(f"The target is a {type(text).__name__}. Give its name, such as {DEFAULT_TARGET}.")
    target: Target = make_target(text) if isinstance(text, str) else registry.completed(text, Target)
    reason = target.available()
    if reason is not None:
        raise TargetUnavailableError(
            f"Target {target.name} cannot be used here: {reason}. 'secateurs ls targets' shows what can."
        )
    return target


def check_threads(text: str | Target, threads: int) -> None:
    """Nothing, if the device has so many processors, where it is this machine; another one is asked when it is used.

    Raises:
        PlanError: it has fewer.
    """
    name = text if isinstance(text, str) else text.name
    there = os.cpu_count() or 1
    checked(Annotated[int, Field(ge=1)], threads, "threads", "Give --threads 1")
    if not name.startswith("ssh:") and threads > max(there, FEW_THREADS):
        raise PlanError(
            f"{threads} threads are asked for, and this machine has {there} processors: more only wait for each other. "
            f"Give --threads {there} or fewer."
        )


def open_targets(texts: Sequence[str], threads: int) -> list[Target]:
    """The targets of one run, each ready to use.

    Raises:
        PlanError: unknown name or precision, or two are the same runtime on the same device.
        TargetUnavailableError: one cannot be used here.
    """
    found: dict[str, tuple[str, Target]] = {}
    for text in texts:
        target = open_target(text)
        facts = str(sorted(target.fingerprint(threads).items()))
        if facts in found:
            raise PlanError(
                f"Targets {found[facts][0]} and {text} are the same runtime on the same device. Give it once, with the "
                f"latency that holds on it."
            )
        found[facts] = text, target
    return [target for _, target in found.values()]


def make_target(text: str) -> Target:
    """The target that ``text`` names, whether it can be used here or not.

    Raises:
        PlanError: unknown name or precision.
    """
    if text.startswith("ssh:"):
        from secateurs.latency.targets.ssh import SshTarget

        return SshTarget.parse(text, make_target)
    name, colon, precision = text.partition(":")
    kind = registry.load("targets", name)
    if colon and not precision:
        raise PlanError(f"Target {text!r} names no precision behind the colon. Write {name}, or {name}:PRECISION.")
    try:
        made = kind(precision) if precision else kind()
    except TypeError as error:
        if not precision:
            raise
        raise PlanError(
            f"Target {name} has no precision to choose, but {precision!r} was asked. Leave it out."
        ) from error
    target: Target = registry.completed(made, Target)
    return target


def in_float(text: str) -> str:
    """The text of the same target on float files: ``onnxruntime-cpu`` of ``onnxruntime-cpu:int8``."""
    name, question, options = text.partition("?")
    for precision in QUANTISED:
        name = name.removesuffix(f":{precision}")
    return name + question + options


def target_names() -> list[str]:
    """Every registered target."""
    return registry.names("targets")
