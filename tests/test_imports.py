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
    assert [fault for path in checker.ROOT.rglob("*.py") for fault in checker.faults(path)] == []


@pytest.mark.parametrize(
    ("file", "line", "why"),
    [
        ("search/new.py", "import torch", "search may not import torch"),
        ("search/new.py", "def f():\n    from torch import nn", "search may not import torch"),
        ("plan.py", "from secateurs.structure import trace", "plan may not import secateurs.structure"),
        ("structure/new.py", "from secateurs import job", "structure may not import secateurs.job"),
        ("structure/new.py", "from ..job import Job", "structure may not import secateurs.job"),
        ("latency/model.py", "import torch.nn", "latency may not import torch"),
        ("latency/new.py", "from secateurs.export.onnx import export_onnx", "latency may not import secateurs.export"),
        ("job.py", "from secateurs.cli.app import main", "job may not import secateurs.cli"),
    ],
)
def test_a_wrong_direction_is_found(checker: ModuleType, tmp_path: Path, file: str, line: str, why: str) -> None:
    for name in ("search", "structure", "latency", "export", "cli"):
        (tmp_path / name).mkdir()
    (tmp_path / "job.py").touch()
    (tmp_path / file).write_text(line + "\n")
    [fault] = list(checker.faults(tmp_path / file, tmp_path))
    assert fault.endswith(why)


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("search/new.py", "import numpy\nfrom secateurs.search import milp\nfrom secateurs.plan import Budget"),
        ("latency/targets/torch.py", "import torch"),
        ("cli/prune.py", "from secateurs import job"),
        ("job.py", "from secateurs.structure import trace\nimport torch"),
    ],
)
def test_a_right_direction_is_not(checker: ModuleType, tmp_path: Path, file: str, line: str) -> None:
    for name in ("search", "structure", "latency/targets", "cli"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("job.py", "plan.py"):
        (tmp_path / name).touch()
    (tmp_path / file).write_text(line + "\n")
    assert list(checker.faults(tmp_path / file, tmp_path)) == []
