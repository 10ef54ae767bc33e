"""Settings are stated once: the command line and the Python verb take their defaults and choices from them."""

from __future__ import annotations

import ast
import inspect
import sys
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import get_type_hints

import pytest

from secateurs import cli, registry
from secateurs.cli import apply, compare, doctor, elements, export, front, plan, profile, prune
from secateurs.errors import DataError, PlanError
from secateurs.jobs import entry
from secateurs.jobs.front import FrontJob
from secateurs.jobs.front_settings import FrontSettings
from secateurs.jobs.run_folder import RunFolder
from secateurs.jobs.settings import Settings, defaults
from secateurs.planning.elements.costs import check_elements
from secateurs.recover.schedules import SCHEDULES
from secateurs.recover.schedules import schedule as find_schedule
from secateurs.search.lap.settings import Agent
from secateurs.search.problem import Strategy
from secateurs.testing.latency import FakeTarget

OTHERWISE = {
    ("plan", "strategy"): "none is uniform where --ratio is given, else that of the settings",
    ("plan", "target"): "a list, in which none is that of the settings",
    ("prune", "target"): "a list, in which none is that of the settings",
}


@pytest.mark.parametrize("module", [apply, compare, doctor, elements, export, plan, profile, prune, entry])
def test_every_default_is_that_of_the_settings(module: ModuleType) -> None:
    verb = module.prune if module is entry else module.verb
    wanted, asked = defaults(Settings), inspect.signature(verb).parameters
    short = module.__name__.rpartition(".")[2] if module is not entry else "entry"
    shared = [name for name in wanted if name in asked and (short, name) not in OTHERWISE]
    assert shared
    for name in shared:
        assert (asked[name].default or None) == (wanted[name] or None), name


def test_no_verb_states_a_default_of_the_settings_itself() -> None:
    """A number or a name there would stay where the settings change."""
    known, said = set(defaults(Settings)) | set(defaults(FrontSettings)), []
    for path in Path(cli.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name == "verb":
                given = [*node.args.args, *node.args.kwonlyargs][-len(node.args.defaults) :]
                for argument, default in zip(given, node.args.defaults, strict=True):
                    if argument.arg in known and isinstance(default, ast.Constant) and default.value is not None:
                        said.append((path.name, argument.arg, default.value))
    assert said == []


def test_choices_that_help_texts_name_are_those_that_are_taken() -> None:
    asked = get_type_hints(prune.verb, include_extras=True)

    def choices(name: str) -> list[str]:
        return str(asked[name].__metadata__[0].metavar).split("|")

    target = FakeTarget(lambda content: {})
    target.skips_pruned_elements = True
    for scope in choices("elements"):
        check_elements(target, scope)
    for kind in choices("agent"):
        assert Agent(kind=kind).kind == kind
    for name in ("precision", "repair", "schedule"):
        for value in choices(name):
            assert getattr(Settings(latency="60%", epochs=1, **{name: value}), name) == value  # type: ignore[arg-type]


def test_a_picked_point_is_carried_on_with_every_setting_that_both_kinds_have() -> None:
    chosen = FrontSettings(
        target="torch-cpu",
        threads=2,
        batch=3,
        seed=4,
        epochs=5,
        min_width=6,
        blocks=False,
        keep=("a",),
        barrier=("b",),
        allow_chance=True,
    )
    shared = {item.name for item in fields(Settings)} & {item.name for item in fields(FrontSettings)} - {"criterion"}
    assert all(getattr(chosen, name) != getattr(Settings, name) for name in shared), "every one is put to the test"
    job = FrontJob(None, None, chosen, None, None)  # type: ignore[arg-type]
    found = job._main_settings(SimpleNamespace(criterion="l1"), {"latency": "60%"})  # type: ignore[arg-type]
    assert {name: getattr(found, name) for name in shared} == {name: getattr(chosen, name) for name in shared}
    assert (found.strategy, found.criterion, found.dense_epochs, found.latency) == ("front", "l1", 0, "60%")


def test_budgets_are_parsed_once() -> None:
    settings = Settings(latency="60%", macs="300M")
    assert settings.budgets is settings.budgets
    assert [budget.resource for budget in replace(settings, macs=None).budgets] == ["latency"]


def test_the_front_takes_its_defaults_from_its_settings() -> None:
    wanted, asked = defaults(FrontSettings), inspect.signature(front.verb).parameters
    for name in set(wanted) - {"objectives"}:
        assert (asked[name].default or None) == (wanted[name] or None), name
    assert asked["objectives"].default == ",".join(FrontSettings.objectives)


def test_settings_survive_a_round_trip_and_what_was_not_known_has_its_default() -> None:
    settings = Settings(latency="60%", keep=("layer1.*",), epochs=3)
    held = settings.to_dict()
    assert Settings.from_dict(held) == settings
    del held["allow_chance"], held["finalists"]
    assert Settings.from_dict({**held, "later": 1}) == settings
    assert FrontSettings.from_dict({"objectives": ["macs"]}) == FrontSettings(objectives=("macs",))


def test_a_run_of_an_older_version_is_resumed(tmp_path: Path) -> None:
    settings = Settings(latency="60%")
    old = {name: value for name, value in settings.to_dict().items() if name != "allow_chance"}
    RunFolder.create(tmp_path / "run", old)
    RunFolder.resume(tmp_path / "run", settings.to_dict(), defaults(Settings))
    with pytest.raises(DataError, match="holds a run with allow_chance False, now it is True"):
        RunFolder.resume(tmp_path / "run", {**settings.to_dict(), "allow_chance": True}, defaults(Settings))


@pytest.mark.parametrize(("name", "value"), [("precision", "fp64"), ("repair", "magic"), ("schedule", "never")])
def test_unknown_choices_are_refused_with_the_known_ones(name: str, value: str) -> None:
    with pytest.raises(PlanError, match=f"{value}' is unknown. Known: "):
        Settings(latency="60%", **{name: value})  # type: ignore[arg-type]


def test_every_setting_can_be_typed() -> None:
    asked = inspect.signature(prune.verb).parameters
    assert {item.name for item in fields(Settings)} <= set(asked)


@pytest.fixture
def slow_search(monkeypatch: pytest.MonkeyPatch) -> str:
    """A registered strategy that says of itself what lap says of itself."""

    class Slow(Strategy):
        name, replans, finalists = "slow", False, True

    module = ModuleType("slow_search")
    module.Slow = Slow  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "slow_search", module)
    monkeypatch.setitem(registry._BUILT_IN["strategies"], "slow", "slow_search:Slow")
    return "slow"


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_who_may_plan_anew_is_said_by_strategy_and_schedule(slow_search: str, schedule: str) -> None:
    Settings(latency="60%", schedule=schedule, epochs=2)
    if find_schedule(schedule).plans_anew:
        with pytest.raises(PlanError, match=f"{schedule}.* strategy slow judges hundreds of networks"):
            Settings(latency="60%", schedule=schedule, strategy=slow_search, epochs=2)
    else:
        Settings(latency="60%", schedule=schedule, strategy=slow_search, epochs=2)


def test_whose_candidates_are_finalists_is_said_by_the_strategy(slow_search: str) -> None:
    assert Settings(latency="60%", strategy=slow_search, finalists=3, epochs=1).finalists == 3
    for strategy in ("knapsack", "uniform"):
        with pytest.raises(PlanError, match="finalists are the best networks"):
            Settings(latency="60%", strategy=strategy, finalists=3, epochs=1)


def test_a_bound_on_accuracy_stands_instead_of_a_latency() -> None:
    settings = Settings(max_loss=1.0, macs="50%")
    assert settings.needs_latency
    assert [budget.resource for budget in settings.budgets] == ["macs"]
    assert settings.asked == "accuracy loss ≤ 1 point, macs 50%"
    assert Settings.from_dict(settings.to_dict()) == settings
    assert Settings(latency="60%").asked == "60%"
    assert not Settings(macs="50%").needs_latency


@pytest.mark.parametrize(
    ("others", "told"),
    [
        ({"latency": "60%"}, "--max-loss asks how fast .* --latency 60% says it. Give one"),
        ({"min_accuracy": "88%"}, "Give one of them"),
        ({"elements": "layer"}, "does not go with --elements"),
        ({"schedule": "soft", "epochs": 2}, "does not go with --schedule soft"),
        ({"calibrate_values": 4}, "does not go with --calibrate-values"),
        ({"max_loss": 0.0}, "above 0 and below 100"),
    ],
)
def test_what_does_not_go_with_a_bound_is_refused(others: dict[str, object], told: str) -> None:
    with pytest.raises(PlanError, match=told):
        Settings(**{"max_loss": 1.0, **others})  # type: ignore[arg-type]


def test_a_search_that_judges_hundreds_of_networks_for_a_plan_does_not_go_with_a_bound(slow_search: str) -> None:
    with pytest.raises(PlanError, match=r"--min-accuracy .* does not go with --strategy slow"):
        Settings(min_accuracy="88%", strategy=slow_search)
