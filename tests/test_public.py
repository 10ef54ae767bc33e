"""The public surface, pinned: a name that goes, or a heavy import that comes, is a decision and not an accident."""

from __future__ import annotations

import subprocess
import sys

import pytest

import secateurs as sc

PUBLIC = [
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


def test_the_public_names_are_these() -> None:
    assert sc.__all__ == PUBLIC
    for name in PUBLIC:
        assert getattr(sc, name) is not None
    assert set(PUBLIC) <= set(dir(sc))
    with pytest.raises(AttributeError, match="no attribute 'prun'"):
        sc.prun  # type: ignore[attr-defined]  # noqa: B018


def test_plan_is_the_function_whatever_was_imported() -> None:
    code = "import secateurs.plan, secateurs as sc; from secateurs.plan import Plan; print(callable(sc.plan))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "True\n"


def test_importing_is_light() -> None:
    code = "import sys, secateurs, secateurs.cli.app; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"torch", "onnx", "onnxruntime", "scipy", "sklearn", "pyarrow"} & set(loaded)


def test_every_error_is_one_of_ours() -> None:
    for name in PUBLIC:
        if name.endswith("Error"):
            assert issubclass(getattr(sc, name), sc.SecateursError)
    assert sc.InfeasibleBudgetError("x").exit_code == 3
    assert sc.DataError("x").exit_code == 1
