"""Names and what stands behind them, also behind those of plug-ins that declare less than is read today."""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from secateurs.errors import PlanError, SecateursError
from secateurs.latency.targets import Target, make_target, open_target
from secateurs.planning.elements.costs import check_elements
from secateurs.registry import load
from secateurs.search.lap.strategy import Lap
from secateurs.search.legal import SearchOptions, find_strategy
from secateurs.search.problem import Problem, Solution, Strategy
from secateurs.testing.latency import FakeTarget
from secateurs.testing.problems import random_problem

ROOT = Path(__file__).resolve().parent.parent


def test_a_missing_package_is_named_with_its_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("strategy", "environment"):
        monkeypatch.delitem(sys.modules, f"secateurs.search.lap.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(SecateursError, match="Strategy 'lap' needs gymnasium"):
        load("strategies", "lap")


PLUGINS = """
from dataclasses import dataclass, field

def narrowest(problem):
    from secateurs.search.problem import Solution

    best = problem.candidate(problem.narrowest)
    return Solution(best.widths, best.removed, best.value, best.predicted, None, 0.0)

class Plain:
    def __init__(self, share=1.0):
        self.name, self.criterion, self.asked = "plain", None, 0

    def solve(self, problem, *, seed=0, progress=None):
        self.asked += 1
        return narrowest(problem)

@dataclass(frozen=True, slots=True)
class Slotted:
    name: str = "slotted"
    criterion: str | None = "l1"

    def solve(self, problem, *, seed=0, progress=None):
        return narrowest(problem)

class Learning:
    name, criterion, evaluates = "learning", None, True

    def __init__(self, episodes):
        self.episodes = episodes

    @classmethod
    def tuned(cls, options, folder):
        return cls(options.get("episodes", 7))

    def solve(self, problem, *, seed=0, progress=None):
        return narrowest(problem)

def made():
    return Plain()

class Board:
    def __init__(self, precision="f32"):
        self.name, self.artifact, self.precision, self.profiles = "board", "onnx", precision, False

    def available(self):
        return None

    def fingerprint(self, threads):
        return {"target": self.name, "precision": self.precision, "threads": threads}

    def start(self):
        raise NotImplementedError

    def settings(self, *, threads, batch, profile):
        return {"threads": threads}

    def operations(self, profile):
        return ()

class Broken(Board):
    def __init__(self):
        raise TypeError("a mistake of its own")

def board():
    return Board()

class Sparse(Board):
    skips_pruned_elements = True
"""
NAMED = {
    "strategies": {"plain": "Plain", "slotted": "Slotted", "learning": "Learning", "made": "made"},
    "targets": {"board": "Board", "made-board": "board", "sparse-board": "Sparse", "broken-board": "Broken"},
}


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An installed package whose classes know nothing of what was declared after they were written."""
    (tmp_path / "older_plugins.py").write_text(PLUGINS)
    described = tmp_path / "older_plugins-1.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: older-plugins\nVersion: 1\n")
    lines = []
    for kind, members in NAMED.items():
        lines += [f"[secateurs.{kind}]", *(f"{name} = older_plugins:{member}" for name, member in members.items())]
    (described / "entry_points.txt").write_text("\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import older_plugins

    yield older_plugins
    monkeypatch.delitem(sys.modules, "older_plugins")


@pytest.mark.parametrize("name", ["plain", "slotted", "made"])
def test_older_strategies_have_what_is_declared_since(plugins: Any, name: str) -> None:
    found = find_strategy(name)
    assert Strategy in type(found).__mro__
    assert found.name == ("slotted" if name == "slotted" else "plain")
    assert found.criterion == ("l1" if name == "slotted" else None)
    assert (found.evaluates, found.searches, found.picked) == (False, True, None)
    problem = random_problem(0)
    assert np.array_equal(found.solve(problem, seed=1).widths, problem.narrowest)
    with pytest.raises(PlanError, match=f"{found.name}.* takes no --episodes"):
        find_strategy(name, SearchOptions(episodes=3))


def test_an_older_strategy_keeps_its_own_members(plugins: Any) -> None:
    found = find_strategy("learning", SearchOptions(episodes=3))
    assert found.evaluates
    assert found.episodes == 3  # type: ignore[attr-defined]
    assert find_strategy("learning").episodes == 7  # type: ignore[attr-defined]
    with pytest.raises(PlanError, match="first plan"):
        Lap.tuned({"warm_start": "learning"}, None)
    assert Lap.tuned({"warm_start": "slotted"}, None).criterion == "l1"


def test_an_older_object_stays_the_users_own(plugins: Any) -> None:
    mine = plugins.Plain()
    found = find_strategy(mine)
    found.solve(random_problem(0))
    assert mine.asked == 1
    assert not found.evaluates
    with pytest.raises(AttributeError):
        found.no_such_member  # type: ignore[attr-defined]  # noqa: B018


def test_what_inherits_is_not_wrapped() -> None:
    @dataclass(frozen=True)
    class Mine(Strategy):
        name: str = "mine"

        def solve(self, problem: Problem, **_: Any) -> Solution:
            raise NotImplementedError

    mine, target = Mine(), FakeTarget(lambda content: {})
    assert find_strategy(mine) is mine
    assert open_target(target) is target
    assert type(find_strategy("knapsack")).__name__ == "Knapsack"
    assert type(make_target("onnxruntime-cpu")).__name__ == "OnnxRuntimeCpu"


@pytest.mark.parametrize("name", ["board", "made-board", "sparse-board"])
def test_older_targets_have_what_is_declared_since(plugins: Any, name: str) -> None:
    found = open_target(name)
    assert isinstance(found, Target)
    assert found.fingerprint(2)["threads"] == 2
    assert (found.engine, found.package) == (None, None)
    assert found.skips_pruned_elements == (name == "sparse-board")
    if name != "sparse-board":
        with pytest.raises(PlanError, match="as by any other number"):
            check_elements(found, "block")
    with pytest.raises(PlanError, match="cannot run on another machine"):
        make_target(f"ssh://host/{name}")
    assert open_target(plugins.Board()).skips_pruned_elements is False


def test_an_older_target_with_precisions(plugins: Any) -> None:
    assert make_target("board:bf16").precision == "bf16"
    with pytest.raises(PlanError, match="no precision to choose"):
        make_target("made-board:bf16")
    with pytest.raises(TypeError, match="of its own"):
        make_target("broken-board")


def declared() -> set[str]:
    """Every member that a strategy, a target or a criterion declares."""
    of_both = {*Strategy.__annotations__, *Target.__annotations__, *vars(Strategy), *vars(Target)}
    return {name for name in of_both if not name.startswith("_")} | {"needs", "compares_groups"}


def probes(source: str, members: set[str]) -> list[str]:
    """``getattr`` and ``hasattr`` of a member by its name."""
    return [
        ast.unparse(node)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("getattr", "hasattr")
        and isinstance(node.args[1], ast.Constant)
        and node.args[1].value in members
    ]


def test_nobody_asks_a_strategy_or_a_target_whether_it_has_a_member() -> None:
    assert probes('x = getattr(self.search, "evaluates", False) or hasattr(kind, "tuned")', declared()) == [
        "getattr(self.search, 'evaluates', False)",
        "hasattr(kind, 'tuned')",
    ]
    found = {
        f"{path.relative_to(ROOT)}: {probe}"
        for path in (ROOT / "src").rglob("*.py")
        if "structure" not in path.parts  # which knows of neither, but of nodes with names
        for probe in probes(path.read_text(encoding="utf-8"), declared())
    }
    assert found == set()
