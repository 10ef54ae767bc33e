"""The import-direction check itself: it passes on the package and finds what points the wrong way."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def checker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_imports", ROOT / "scripts" / "check_imports.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_package_points_one_way(checker: ModuleType) -> None:
    assert list(checker.unlisted()) == []
    assert [fault for path in checker.ROOT.rglob("*.py") for fault in checker.faults(path)] == []


@pytest.mark.parametrize(
    ("file", "line", "why"),
    [
        ("search/new.py", "import torch", "search may not import torch"),
        ("search/new.py", "def f():\n    from torch import nn", "search may not import torch"),
        ("plan.py", "from secateurs.structure import trace", "plan may not import secateurs.structure"),
        ("structure/new.py", "from secateurs.jobs import stages", "structure may not import secateurs.jobs"),
        ("structure/new.py", "from ..jobs.stages import Job", "structure may not import secateurs.jobs"),
        ("latency/model.py", "import torch.nn", "latency may not import torch"),
        ("latency/new.py", "from secateurs.export.onnx import export_onnx", "latency may not import secateurs.export"),
        ("jobs/new.py", "from secateurs.cli.app import main", "jobs may not import secateurs.cli"),
    ],
)
def test_a_wrong_direction_is_found(checker: ModuleType, tmp_path: Path, file: str, line: str, why: str) -> None:
    for name in ("search", "structure", "latency", "export", "cli"):
        (tmp_path / name).mkdir()
    (tmp_path / "jobs").mkdir()
    (tmp_path / file).write_text(line + "\n")
    [fault] = list(checker.faults(tmp_path / file, tmp_path))
    assert fault.endswith(why)


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("search/new.py", "import numpy\nfrom secateurs.search import milp\nfrom secateurs.budgets import Budget"),
        ("latency/targets/torch.py", "import torch"),
        ("cli/prune.py", "from secateurs.jobs import stages"),
        ("jobs/new.py", "from secateurs.structure import trace\nimport torch"),
    ],
)
def test_a_right_direction_is_not(checker: ModuleType, tmp_path: Path, file: str, line: str) -> None:
    for name in ("search", "structure", "latency/targets", "cli", "jobs"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("plan.py", "budgets.py"):
        (tmp_path / name).touch()
    (tmp_path / file).write_text(line + "\n")
    assert list(checker.faults(tmp_path / file, tmp_path)) == []


def test_a_part_that_is_not_listed_is_found_and_one_that_is_gone(checker: ModuleType, tmp_path: Path) -> None:
    for part in checker.MAY_IMPORT:
        (tmp_path / part).mkdir()
        (tmp_path / part / "__init__.py").touch()
    (tmp_path / "__init__.py").touch()
    (tmp_path / "kernels").mkdir()  # no package
    assert list(checker.unlisted(tmp_path)) == []
    (tmp_path / "helpers.py").write_text("import json\n")
    (tmp_path / "common").mkdir()
    (tmp_path / "common" / "__init__.py").touch()
    (tmp_path / "search" / "__init__.py").unlink()
    assert list(checker.unlisted(tmp_path)) == [
        "common: no part that the check knows; list it with what it may import",
        "helpers: no part that the check knows; list it with what it may import",
        "search: listed, but not there; delete it from the table",
    ]
