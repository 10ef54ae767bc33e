"""The check of citations itself: the repository answers all of its own, and one that dangles is found."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def checker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_citations", ROOT / "scripts" / "check_citations.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A repository of one page, one module, one test and one benchmark."""
    for folder in ("docs", "src/secateurs/search", "tests", "benchmarks"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "docs" / "methods.md").write_text("# Methods\n\n## Exact allocation\n")
    (tmp_path / "src/secateurs/__init__.py").write_text("")
    (tmp_path / "src/secateurs/search/__init__.py").write_text('__all__ = [\n    "Plan",\n]\n')
    (tmp_path / "src/secateurs/search/exact.py").write_text("GAP = 1e-4\n\n\ndef solve(): ...\n")
    (tmp_path / "tests/test_exact.py").write_text("def test_equals_brute_force(): ...\n")
    (tmp_path / "benchmarks/solver.py").write_text("")
    return tmp_path


def found(checker: ModuleType, root: Path, file: str, text: str) -> list[str]:
    (root / file).write_text(text)
    return list(checker.faults(root / file, checker.Repository(root)))


def test_the_repository_answers_its_own_citations(checker: ModuleType) -> None:
    repository = checker.Repository(ROOT)
    assert [fault for path in checker.files(ROOT) for fault in checker.faults(path, repository)] == []


@pytest.mark.parametrize(
    ("file", "text", "why"),
    [
        ("src/secateurs/new.py", '"""METHODS §4.3."""\n', "cites what the repository does not hold"),
        ("src/secateurs/new.py", "x = 1  # as DESIGN asks\n", "cites what the repository does not hold"),
        ("src/secateurs/new.py", '"""Source: a paper [V-abs]."""\n', "cites what the repository does not hold"),
        ("src/secateurs/new.py", '"""See docs/gone.md."""\n', "there is no docs/gone.md"),
        ("tests/test_new.py", '"""docs/methods.md, "Nothing"."""\n', "no heading 'Nothing'"),
        ("docs/new.md", '[x](methods.md), docs/methods.md, "Exact\nthing"\n', "no heading 'Exact thing'"),
        ("docs/new.md", "rows: benchmarks/results/gone.csv\n", "there is no benchmarks/results/gone.csv"),
        ("docs/new.md", "shown by `test_gone`\n", "there is no test test_gone"),
        ("docs/new.md", "`secateurs.search.gone` solves it\n", "secateurs.search.gone does not exist"),
        ("docs/new.md", "`secateurs.search.exact.gone`\n", "secateurs.search.exact.gone does not exist"),
        ("src/secateurs/new.py", '"""See :func:`~secateurs.search.gone`."""\n', "secateurs.search.gone does not exist"),
        ("src/secateurs/new.py", "x = 1  # ``secateurs.search.exact.gone``\n", "exact.gone does not exist"),
        ("src/secateurs/new.py", '"""Rows: benchmarks/results/gone.csv."""\n', "no benchmarks/results/gone.csv"),
        ("src/secateurs/new.py", "x = 1  # as issue 7 asks\n", "cites what the repository does not hold"),
        ("docs/new.md", "Asked for in Issue #12.\n", "cites what the repository does not hold"),
        ("docs/new.md", "```\nfrom secateurs.search.exact import gone\n```\n", "secateurs.search.exact has no gone"),
        ("docs/new.md", "```\nfrom secateurs.search import (\n    Plan,\n    gone as here,\n)\n```\n", "has no gone"),
        ("docs/new.md", "See [there](gone.md#part).\n", "leads to gone.md"),
        ("docs/new.md", "See [there](../src/gone.py).\n", "leads to ../src/gone.py"),
    ],
)
def test_a_dangling_citation_is_found(checker: ModuleType, small: Path, file: str, text: str, why: str) -> None:
    faults = found(checker, small, file, text)
    assert faults, text
    assert all(why in fault for fault in faults)


def test_the_line_is_that_of_the_citation(checker: ModuleType, small: Path) -> None:
    text = '"""A module.\n\nSource: METHODS.\n"""\n\nx = 1  # docs/gone.md\n'
    assert [fault.split(":")[1] for fault in found(checker, small, "src/secateurs/new.py", text)] == ["3", "6"]


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("src/secateurs/new.py", '"""docs/methods.md, "Exact\n    allocation"."""\n'),
        ("src/secateurs/new.py", '"""``secateurs.search.exact.solve``, one issue of 3, benchmarks/solver.py."""\n'),
        ("src/secateurs/new.py", 'x = "benchmarks/made_up.csv"\ny = "`secateurs.gone`"\n'),
        (
            "docs/new.md",
            "[a](methods.md#exact), [b](https://example.org/x.md), [c](#here), [d](../benchmarks/solver.py)\n",
        ),
        ("docs/new.md", "```\nfrom secateurs.search import Plan, exact as e  # and more\nfrom os import gone\n```\n"),
        ("src/secateurs/new.py", "METHODS = {}\nfor name in METHODS:\n    print(METHODS[name])\n"),
        ("docs/new.md", "`secateurs.search.exact.solve`, `secateurs.search.exact.GAP`, `secateurs.search.Plan`\n"),
        (
            "docs/new.md",
            'benchmarks/solver.py, `test_equals_brute_force`, "secateurs.targets", ops.secateurs.conv\n',
        ),
    ],
)
def test_an_answered_citation_is_not(checker: ModuleType, small: Path, file: str, text: str) -> None:
    assert found(checker, small, file, text) == []
