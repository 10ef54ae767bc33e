"""Every error that secateurs raises on purpose.

The tree::

    SecateursError
    ├── StructureError            the network cannot be analysed or cut correctly
    │   └── UnsupportedOperatorError
    ├── PlanError                 a plan, a budget or a search cannot be carried out
    │   ├── InfeasibleBudgetError     no legal network is that fast
    │   └── PlanMismatchError         the plan belongs to another network
    ├── TargetError               a runtime or a device
    │   ├── TargetUnavailableError    not installed or not reachable
    │   └── UnstableTimingError       the machine is too disturbed to measure
    ├── DataError                 images, labels, folders, weights
    └── ExportError               the deployed file cannot be written or differs

Each message says what happened (with the values), where, and what to do. The
command line prints it as one paragraph without a traceback.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class SecateursError(Exception):
    """Base of every error raised on purpose. ``exit_code`` is what the command line ends with."""

    exit_code = 1


class StructureError(SecateursError):
    """The network cannot be analysed, or the cut network is not the same function."""


class UnsupportedOperatorError(StructureError):
    """An operator without a rule stands where a rule is needed."""


class PlanError(SecateursError):
    """A plan, a budget or a search setting cannot be carried out."""


class InfeasibleBudgetError(PlanError):
    """No legal network meets the budget; the message names the fastest point and what limits it.

    ``details``: the same as data (see :func:`secateurs.search.reach.infeasible`).
    """

    exit_code = 3

    def __init__(self, message: str, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.details: Mapping[str, Any] = dict(details or {})


class PlanMismatchError(PlanError):
    """The plan was made for another network; the message names the first difference."""


class TargetError(SecateursError):
    """A runtime or a device failed."""


class TargetUnavailableError(TargetError):
    """The target's runtime is not installed or its device is not reachable."""


class UnstableTimingError(TargetError):
    """Timings spread too widely to be trusted, even after retries."""


class DataError(SecateursError):
    """Input data, weights or folders are missing, broken or of the wrong kind."""


class ExportError(SecateursError):
    """The deployed file cannot be written, or computes something else than the module."""
