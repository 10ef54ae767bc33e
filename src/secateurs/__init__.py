"""Prune a trained PyTorch network to a latency budget measured on the runtime it will run on.

The public names; PyTorch is imported when the first of them is used that needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from secateurs.budgets import Budget
from secateurs.errors import (
    DataError,
    ExportError,
    InfeasibleBudgetError,
    PlanError,
    PlanMismatchError,
    SecateursError,
    StructureError,
    TargetError,
    TargetUnavailableError,
    UnstableTimingError,
    UnsupportedOperatorError,
)
from secateurs.plan import Measurement, Plan

# After secateurs.plan, the module: the name then means the function, and importing the module again leaves it so.
from secateurs.planning.entry import plan
from secateurs.search.legal import Legal

if TYPE_CHECKING:
    from secateurs.data.tasks import Task, task
    from secateurs.jobs.entry import prune
    from secateurs.jobs.front_entry import front
    from secateurs.jobs.stages import Result
    from secateurs.latency.model import LatencyModel
    from secateurs.measure.profile import profile
    from secateurs.report.record import Record
    from secateurs.structure import Graph, apply, trace

__version__ = "0.1.0"

__all__ = [
    "Budget",
    "DataError",
    "ExportError",
    "Graph",
    "InfeasibleBudgetError",
    "LatencyModel",
    "Legal",
    "Measurement",
    "Plan",
    "PlanError",
    "PlanMismatchError",
    "Record",
    "Result",
    "SecateursError",
    "StructureError",
    "TargetError",
    "TargetUnavailableError",
    "Task",
    "UnstableTimingError",
    "UnsupportedOperatorError",
    "__version__",
    "apply",
    "front",
    "plan",
    "profile",
    "prune",
    "task",
    "trace",
]

_ON_FIRST_USE = {
    "Graph": "secateurs.structure",
    "LatencyModel": "secateurs.latency.model",
    "Record": "secateurs.report.record",
    "Result": "secateurs.jobs.stages",
    "Task": "secateurs.data.tasks",
    "apply": "secateurs.structure",
    "front": "secateurs.jobs.front_entry",
    "profile": "secateurs.measure.profile",
    "prune": "secateurs.jobs.entry",
    "task": "secateurs.data.tasks",
    "trace": "secateurs.structure",
}


def __getattr__(name: str) -> Any:
    """A public name that is imported on first use."""
    module = _ON_FIRST_USE.get(name)
    if module is None:
        raise AttributeError(f"module 'secateurs' has no attribute {name!r}")
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
