"""Runtimes on devices. ``open_target`` finds one by its text."""

from secateurs.latency.targets._base import Operation, Target, lower_half
from secateurs.latency.targets.opening import (
    DEFAULT_TARGET,
    check_threads,
    make_target,
    open_target,
    open_targets,
    target_names,
)

__all__ = [
    "DEFAULT_TARGET",
    "Operation",
    "Target",
    "check_threads",
    "lower_half",
    "make_target",
    "open_target",
    "open_targets",
    "target_names",
]
