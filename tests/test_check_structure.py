"""The check of rooms, circles and lengths: it finds what it is for on a made-up package, and no more."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def checker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_structure", ROOT / "scripts" / "check_structure.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A package of two rooms and some values that obeys every rule."""
    write(tmp_path, "__init__", "from secateurs.jobs.run import run")
    write(tmp_path, "plan", "WIDTH = 1")
    write(tmp_path, "structure/__init__", "from secateurs.structure.graph import Graph")
    write(tmp_path, "structure/graph", "from secateurs.plan import WIDTH\nclass Graph: ...")
    write(tmp_path, "jobs/__init__", "")
    write(tmp_path, "jobs/run", "from secateurs.structure import Graph\ndef run(): ...")
    test = tmp_path / "tests" / "jobs" / "test_run.py"
    test.parent.mkdir(parents=True)
    test.touch()
    return tmp_path


def write(root: Path, name: str, text: str) -> None:
    path = root / "src" / "secateurs" / f"{name}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def faults(checker: ModuleType, root: Path) -> list[str]:
    rules = [rule for rule in checker.RULES if rule not in (checker.size_faults, checker.name_faults)]
    given = [*checker.size_faults(root, {}), *checker.name_faults(root, {})]
    return [*(fault for rule in rules for fault in rule(root)), *given]


def test_a_tree_that_obeys_has_no_faults(checker: ModuleType, tree: Path) -> None:
    assert faults(checker, tree) == []


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("structure/new", "from secateurs.jobs.run import run", "packages in a circle: jobs → structure → jobs"),
        ("structure/new", "def f():\n    import secateurs.jobs.run", "packages in a circle: jobs → structure → jobs"),
        ("structure/new", "from ..jobs import run", "packages in a circle: jobs → structure → jobs"),
        ("plan", "from secateurs.structure import Graph", "packages in a circle: plan → structure → plan"),
        ("structure/new", "from secateurs import jobs", "packages in a circle: jobs → structure → jobs"),
    ],
)
def test_a_circle_among_packages_is_found(checker: ModuleType, tree: Path, name: str, text: str, told: str) -> None:
    write(tree, name, text)
    assert faults(checker, tree) == [told]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("from secateurs.structure.b import B", "from secateurs.structure.a import A"),
        ("from .b import B", "def f():\n    from . import a"),
        ("import secateurs.structure.b", "try:\n    from secateurs.structure import a\nexcept ImportError: ..."),
        ("from secateurs.structure.deep.c import C", "A = 1"),
    ],
)
def test_a_circle_among_files_is_found(checker: ModuleType, tree: Path, first: str, second: str) -> None:
    write(tree, "structure/a", first)
    write(tree, "structure/b", second)
    write(tree, "structure/deep/__init__", "")
    write(tree, "structure/deep/c", "from secateurs.structure.a import A")
    [fault] = [fault for fault in faults(checker, tree) if "structure.graph" not in fault]
    assert fault.startswith("src/secateurs/structure/a.py:1: files in a circle: structure.a → ")
    assert fault.endswith(" → structure.a")


def test_the_door_of_a_room_can_be_part_of_a_circle(checker: ModuleType, tree: Path) -> None:
    write(tree, "structure/graph", "from secateurs.structure import Graph")
    assert faults(checker, tree) == [
        "src/secateurs/structure/__init__.py:1: files in a circle: structure → structure.graph → structure"
    ]


def test_imports_for_annotations_make_no_circle(checker: ModuleType, tree: Path) -> None:
    head = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    "
    write(tree, "structure/new", head + "from secateurs.jobs.run import run\nelse:\n    X = 1")
    write(tree, "structure/graph", head + "from secateurs.structure.new import X\nclass Graph: ...")
    assert faults(checker, tree) == []
    write(tree, "structure/new", head + "from secateurs.plan import X\nelse:\n    from secateurs.jobs.run import run")
    assert faults(checker, tree) == ["packages in a circle: jobs → structure → jobs"]


def _function(body: int, parameters: str = "") -> str:
    """So many lines of body, with a docstring, a decorator and a signature that do not count."""
    lines = "\n".join("    a = 1" for _ in range(body))
    return f'@staticmethod\ndef long(\n    {parameters}\n):\n    """First.\n\n    Second.\n    """\n{lines}'


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("\n" * 399, None),
        ("\n" * 400, ":1: the module has 401 lines, 400 at most"),
        (_function(60), None),
        (_function(61), ":2: long() has 61 lines in its body, 60 at most"),
        ("class A:\n    def f(self, a, b, c, d, *, e, f, g, h): ...", None),
        ("class A:\n    def f(self, a, b, c, d, *, e, f, g, h, i): ...", ":2: A.f() has 9 parameters, 8 at most"),
        ("def f(a, /, b, c, d, e, f, g, *args, **more): ...", ":1: f() has 9 parameters, 8 at most"),
        ("def f():\n    async def g(a, b, c, d, e, f, g, h, i): ...", ":2: f.g() has 9 parameters, 8 at most"),
        ("if True:\n    def f(a, b, c, d, e, f, g, h, i): ...", ":2: f() has 9 parameters, 8 at most"),
    ],
)
def test_what_is_too_long_is_found(checker: ModuleType, tree: Path, text: str, told: str | None) -> None:
    write(tree, "structure/new", text)
    wanted = [] if told is None else [f"src/secateurs/structure/new.py{told}"]
    assert faults(checker, tree) == wanted


def test_verbs_of_the_command_line_have_as_many_options_as_they_need(checker: ModuleType, tree: Path) -> None:
    write(tree, "cli/new", "def verb(a, b, c, d, e, f, g, h, i): ...")
    assert faults(checker, tree) == []


def test_an_exception_holds_for_one_place_and_limit_and_not_longer_than_needed(checker: ModuleType, tree: Path) -> None:
    write(tree, "structure/new", "def f(a, b, c, d, e, f, g, h, i): ...")
    place = "structure/new.py:f"
    assert list(checker.size_faults(tree, {(place, "parameters"): "why"})) == []
    for other in ((place, "body"), ("structure/new.py:g", "parameters"), ("structure/new.py", "parameters")):
        told = list(checker.size_faults(tree, {other: "why"}))
        assert len(told) == 2
        assert "9 parameters" in told[0]
        assert "is needed no more" in told[1]
    write(tree, "structure/new", "def f(a): ...")
    [told] = checker.size_faults(tree, {(place, "parameters"): "why"})
    assert "is needed no more" in told


def test_every_exception_has_a_reason(checker: ModuleType) -> None:
    assert all(len(reason) > 20 for reason in checker.EXCEPTIONS.values())
    assert all(reason for reason in checker.WITHOUT_LIMIT.values())
    assert all(len(reason) > 20 for _, reason in checker.ONE_NAME.values())


def test_crowded_rooms_are_found(checker: ModuleType, tree: Path) -> None:
    for number in range(11):
        write(tree, f"value{number}", "")
    for number in range(15):
        write(tree, f"report/page{number}", "")
        write(tree, f"search/strategy{number}", "")
    for name in ("report", "search"):
        write(tree, f"{name}/__init__", "")
    assert faults(checker, tree) == [
        "src/secateurs: 13 files at the top, 12 at most",
        "src/secateurs/report: 15 modules, 14 at most",
    ]
    for number in range(14):
        write(tree, f"room{number}/__init__", "")
    assert "src/secateurs: 18 packages, 17 at most" in faults(checker, tree)


def test_a_module_without_a_test_is_found(checker: ModuleType, tree: Path) -> None:
    write(tree, "jobs/record", "")
    write(tree, "structure/more", "")
    assert faults(checker, tree) == ["src/secateurs/jobs/record.py: there is no tests/jobs/test_record.py"]


def test_two_classes_of_one_name_are_found(checker: ModuleType, tree: Path) -> None:
    write(tree, "jobs/run", "def run(): ...\nclass Graph: ...")
    told = ["src/secateurs/jobs/run.py:2: Graph is also the name of a class in structure/graph.py:2"]
    assert faults(checker, tree) == told
    both, reason = frozenset({"jobs/run.py", "structure/graph.py"}), "why"
    assert list(checker.name_faults(tree, {"Graph": (both, reason)})) == []
    write(tree, "plan", "class Graph: ...")
    assert len(list(checker.name_faults(tree, {"Graph": (both, reason)}))) == 1, "an exception holds for its files"
    for name in ("plan", "jobs/run"):
        write(tree, name, "class _Graph: ...\ndef run():\n    class Graph: ...")
    assert faults(checker, tree) == [], "what is private or inside a function has no name of its own"
    [told] = checker.name_faults(tree, {"Graph": (both, reason)})
    assert "is needed no more" in told


def test_every_rule_is_looked_at(checker: ModuleType, tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert {rule.__name__ for rule in checker.RULES} == {name for name in vars(checker) if name.endswith("_faults")}
    write(tree, "structure/new", "from secateurs.jobs.run import run")
    assert checker.main(tree) == 1
    assert "packages in a circle" in capsys.readouterr().out


def test_the_package_obeys_every_rule(checker: ModuleType) -> None:
    assert [fault for rule in checker.RULES for fault in rule(ROOT)] == []


def test_the_check_that_everyone_runs_looks_at_all_of_this() -> None:
    """Unlisted parts and directions are found by check_imports.py, dangling citations by check_citations.py; each has
    tests of its own."""
    steps = (ROOT / "scripts" / "check").read_text(encoding="utf-8")
    for name in ("check_imports", "check_structure", "check_citations"):
        assert f"step $bin/python scripts/{name}.py\n" in steps, name
    assert "exit $status" in steps
