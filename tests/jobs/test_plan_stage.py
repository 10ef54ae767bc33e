"""The plan stage: from budgets to the plan that was measured to be within them, and what it finds."""

from __future__ import annotations

import functools
import tempfile
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import training_job
from safetensors.torch import load_file

import secateurs as sc
from secateurs.errors import InfeasibleBudgetError
from secateurs.export.onnx import export_onnx
from secateurs.jobs import plan_stage
from secateurs.jobs.plan_stage import PlanFound, PlanStage
from secateurs.jobs.run_folder import RunFolder
from secateurs.jobs.settings import Settings
from secateurs.jobs.training import Trainer
from secateurs.latency import model
from secateurs.latency.store import Store
from secateurs.latency.targets import open_target
from secateurs.measure.bench import Bench
from secateurs.measure.targeted import Targeted
from secateurs.plan import Measurement, Plan
from secateurs.planning.closed_loop import Attempt
from secateurs.progress import silent
from secateurs.recover.schedules._base import Prepared
from secateurs.recover.schedules.once import OnceSchedule

NETWORK = training_job.network()


@functools.cache
def traced(barriers: tuple[str, ...]) -> sc.Graph:
    return sc.trace(NETWORK.module, NETWORK.example(), barriers=barriers)


@functools.cache
def exported() -> bytes:
    """The dense network's file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "dense.onnx"
        export_onnx(NETWORK.module, NETWORK.example(), path)
        return path.read_bytes()


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake target is exact, so a small design is enough; the network is traced once."""
    monkeypatch.setattr(model, "profile", partial(model.profile, samples=30))
    monkeypatch.setattr(plan_stage, "trace", lambda module, example, barriers, keep: traced(tuple(barriers)))


def stage(folder: Path, target: str, **chosen: Any) -> PlanStage:
    network, data = NETWORK, training_job.images()
    settings = Settings(target=target, criterion="l1", epochs=0, train_batch=16, repair="none", **chosen)
    opened, runtime = RunFolder.create(folder, settings.to_dict()), open_target(target)
    example, files = network.example(), opened.files
    bench = Bench(runtime, files.dense(runtime.artifact), files.candidate(runtime.artifact), example)
    bench.dense.write_bytes(exported())
    targeted = Targeted("", settings.budgets, bench, float(len(exported())))
    trainer = Trainer(network.module, example, data, settings, files.checkpoints)
    store = Store(folder.parent / "store.sqlite3")
    return PlanStage(network, data, settings, opened, example, (targeted,), store, trainer, silent)


def test_what_it_finds_is_of_the_plan_that_it_writes(fake_target: str, tmp_path: Path) -> None:
    made = stage(tmp_path / "run", fake_target, latency="60%", macs="70%")
    found = made.run()
    plan, spec = Plan.load(made.folder.files.plan), made.graph.spec
    assert (found.picked, found.strategy, found.criterion) == (None, "knapsack", "l1")
    assert found.predicted_ms == plan.provenance["predicted_ms"]
    assert plan.provenance["budget"] == "latency 60%, macs 70%"
    assert (plan.provenance["source"], plan.provenance["data"]) == ({}, made.data.name)
    small = sc.apply(made.loaded.module, plan, made.example)
    assert found.dense_macs == spec.macs(spec.dense_widths)
    assert found.macs <= 0.7 * found.dense_macs
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in made.loaded.module.parameters())
    assert found.structure_check_rel_error <= 1e-6
    assert found.latency_model is not None
    assert found.rounds == sum(point.kind in ("candidate", "final") for point in found.points)
    [final] = [point for point in found.points if point.kind == "final"]
    assert final.measured_ms <= 0.6 * made.dense["latency"]
    assert made.folder.seconds.keys() >= {"trace", "profile", "search", "measure", "recover"}
    assert made.folder.record("plan", found, PlanFound) == found
    assert not made.folder.files.carrier.exists()
    assert not made.bench.candidate.exists()


def test_budgets_are_ratios_from_here_on(fake_target: str, tmp_path: Path) -> None:
    made = stage(tmp_path / "run", fake_target, file_size="2x", macs="50%")
    assert made._limits == {"file_size": pytest.approx(0.5), "macs": 0.5}
    assert {name: goal.limit for name, goal in made._goals.items()} == made._limits
    assert made.costs is None, "without a latency budget nothing is profiled"
    found = made.run()
    assert (found.predicted_ms, found.latency_model, found.points) == (None, None, ())


def test_a_budget_out_of_reach_is_told_as_measured(fake_target: str, tmp_path: Path) -> None:
    made = stage(tmp_path / "run", fake_target, macs="1k")
    with pytest.raises(sc.InfeasibleBudgetError, match=r"Macs budget 1k .* when counted.*Raise --macs"):
        made.run()
    assert not made.folder.files.plan.exists()


def test_what_is_not_pruned_through_is_noted(fake_target: str, tmp_path: Path) -> None:
    made = stage(tmp_path / "run", fake_target, macs="90%", barrier=("layer2.0*",))
    found = made.run()
    assert any(note.startswith("Not pruned through: ") and "layer2.0" in note for note in found.plan_notes)


def test_the_network_that_a_schedule_trained_is_kept_for_the_cut(
    fake_target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = stage(tmp_path / "run", fake_target, macs="50%")
    trained = training_job.network().module
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(1.0)

    def prepare(self: OnceSchedule, trainer: Any, planner: Any, limits: dict[str, float]) -> Prepared:
        assert limits == {"macs": 0.5}
        return Prepared(trained, planner, ("Trained before.",))

    monkeypatch.setattr(OnceSchedule, "prepare", prepare)
    found = made.run()
    assert "Trained before." in found.plan_notes
    held = load_file(made.folder.files.carrier)
    assert all(torch.equal(held[name], tensor) for name, tensor in trained.state_dict().items())


def test_a_repair_by_least_squares_refines_the_plan(
    fake_target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def refined(module: Any, plan: Plan, *given: Any, **more: Any) -> Plan:
        seen.append("refined")
        return plan

    monkeypatch.setattr(plan_stage, "refined", refined)
    stage(tmp_path / "none", fake_target, macs="50%").run()
    assert seen == []
    made = stage(tmp_path / "refitted", fake_target, macs="50%")
    replace(made, settings=replace(made.settings, repair="least-squares")).run()
    assert seen == ["refined"]


class Solver:
    """A planner of which only the answers matter: ``reached``: what its least network takes when measured."""

    def __init__(self, error: InfeasibleBudgetError | None = None, picked: str | None = None) -> None:
        self.error, self.picked, self.target = error, picked, "fake, 1 thread"
        self.asked: list[str] = []

    def reachable(self) -> str:
        return "within reach"

    def solve(self, limits: dict[str, float]) -> Any:
        self.asked.append("solve")
        if self.error is not None:
            raise self.error
        return SimpleNamespace(key="solved", predicted=dict(limits))

    def pick(self) -> Any:
        self.asked.append("pick")
        return SimpleNamespace(key="picked", predicted={"latency": 2.0})

    def least(self, resource: str) -> Any:
        self.asked.append(f"least {resource}")
        return SimpleNamespace(key="least", predicted={"latency": 0.7})


class Closing(PlanStage):
    """Measures what it is told."""

    ratios: dict[str, float]

    @cached_property
    def dense(self) -> dict[str, float]:
        return {"latency": 10.0}

    def _measure(self, planner: Any, choice: Any) -> Attempt[Any]:
        ratio = self.ratios[choice.key]
        return Attempt(choice, Measurement(10 * ratio, 0.0, 9, ratio, ratio))


def closing(folder: Path, **ratios: float) -> Closing:
    settings = Settings(latency="60%")
    opened, nothing = RunFolder.create(folder, settings.to_dict()), None
    targeted = Targeted("", settings.budgets, nothing, 0.0)  # type: ignore[arg-type]
    made = Closing(NETWORK, training_job.images(), settings, opened, nothing, (targeted,), nothing, nothing, silent)  # type: ignore[arg-type]
    object.__setattr__(made, "ratios", ratios)
    return made


def unreachable(**details: Any) -> InfeasibleBudgetError:
    return InfeasibleBudgetError("Not that fast. Raise the budget.", {"constraint": "latency", **details})


def test_what_a_person_picked_is_measured_and_kept_whatever_it_takes(tmp_path: Path) -> None:
    solver = Solver(picked="point 3 of the front")
    accepted, attempts = closing(tmp_path / "run", picked=1.7)._close(solver)  # type: ignore[arg-type]
    assert (accepted.choice.key, attempts, solver.asked) == ("picked", [accepted], ["pick"])


def test_a_plan_within_its_window_is_the_first(tmp_path: Path) -> None:
    solver = Solver()
    accepted, attempts = closing(tmp_path / "run", solved=0.58)._close(solver)  # type: ignore[arg-type]
    assert (accepted.measured.ratio, len(attempts), solver.asked) == (0.58, 1, ["solve"])


def test_where_no_plan_is_within_reach_the_least_network_is_measured(tmp_path: Path) -> None:
    """The model may be wrong about it: then the budget is met all the same."""
    solver = Solver(unreachable())
    accepted, attempts = closing(tmp_path / "run", least=0.5)._close(solver)  # type: ignore[arg-type]
    assert (accepted.choice.key, attempts) == ("least", [accepted])
    assert solver.asked[-1] == "least latency"


def test_a_budget_below_the_least_network_is_told_as_measured(tmp_path: Path) -> None:
    with pytest.raises(InfeasibleBudgetError, match=r"budget 60% .* 7(\.\d+)? ms when measured, 70\.0% of dense"):
        closing(tmp_path / "run", least=0.7)._close(Solver(unreachable()))  # type: ignore[arg-type]


def test_budgets_in_conflict_are_told_as_the_search_tells_them(tmp_path: Path) -> None:
    solver = Solver(unreachable(conflict=True))
    with pytest.raises(InfeasibleBudgetError, match="Not that fast"):
        closing(tmp_path / "run")._close(solver)  # type: ignore[arg-type]
    assert not any(word.startswith("least") for word in solver.asked)


@pytest.mark.parametrize(("barriers", "error", "lines"), [(0, 0.01, 0), (3, 0.01, 3), (13, 0.01, 11), (2, 0.08, 3)])
def test_what_was_not_pruned_through_and_a_poor_model_are_told(
    tmp_path: Path, barriers: int, error: float, lines: int
) -> None:
    made = closing(tmp_path / "run")
    vars(made)["graph"] = SimpleNamespace(barriers=[f"operator {n}" for n in range(barriers)])
    vars(made)["models"] = {"": SimpleNamespace(error=SimpleNamespace(mean_abs=error))}
    notes = made._notes()
    assert len(notes) == lines
    assert sum(note.startswith("Not pruned through: operator") for note in notes) == min(barriers, 10)
    assert any("3 more operators" in note for note in notes) == (barriers == 13)
    assert any("off by 8.0%" in note for note in notes) == (error == 0.08)


def test_a_second_stage_measures_nothing_and_plans_the_same(fake_target: str, tmp_path: Path) -> None:
    first = stage(tmp_path / "first", fake_target, latency="60%")
    second = stage(tmp_path / "second", fake_target, latency="60%")
    first.run()
    loads = second.bench.target.loads  # type: ignore[attr-defined]
    second.run()
    assert second.bench.target.loads == loads == 0  # type: ignore[attr-defined]
    plans = [Plan.load(made.folder.files.plan) for made in (first, second)]
    assert plans[0].groups == plans[1].groups
