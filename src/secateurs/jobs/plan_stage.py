"""The plan stage of the main job: from a traced network to the plan that was measured to be within the budgets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from safetensors.torch import save

from secateurs.budgets import Budget
from secateurs.data import Data
from secateurs.errors import InfeasibleBudgetError
from secateurs.importance.scoring import Scorer, calibration_batches
from secateurs.jobs.comparison import RepairedAccuracies, WithinFound
from secateurs.jobs.finalists import chosen_by_training
from secateurs.jobs.footprint import dense_figures, memory_seen
from secateurs.jobs.run_folder import RunFolder
from secateurs.jobs.settings import Settings
from secateurs.jobs.training import Trainer, prepare
from secateurs.latency.model import LatencyModel
from secateurs.latency.store import Store
from secateurs.measure.bench import Bench
from secateurs.measure.profile import profile
from secateurs.measure.sensitivity import with_measured_sample
from secateurs.models import Loaded
from secateurs.plan import Measurement, Plan
from secateurs.planning.channels import Channels
from secateurs.planning.closed_loop import Attempt, Goal, Limits, close, goal_for
from secateurs.planning.elements.costs import measured_space
from secateurs.planning.elements.refinement import aligned, refined
from secateurs.planning.elements.space import ElementSpace
from secateurs.planning.fastest import FastestSearch, Found
from secateurs.planning.mixed import MixedSpace, mixed_space
from secateurs.planning.out_of_reach import out_of_reach
from secateurs.planning.planner import Choice, Planner
from secateurs.planning.space import Space
from secateurs.progress import Progress
from secateurs.provenance import MadeFrom, name_of, target_label
from secateurs.recover.checkpoint import tensors
from secateurs.recover.features import spread
from secateurs.recover.schedules import schedule as find_schedule
from secateurs.recover.schedules._base import Prepared
from secateurs.report.record import ModelError, Point, ValidationStep
from secateurs.resources import Seen
from secateurs.search.legal import find_strategy
from secateurs.search.rows import FileRows
from secateurs.structure import Graph, apply, trace
from secateurs.structure.apply import check_plan
from secateurs.structure.kernel_elements import macs_left


@dataclass(frozen=True, kw_only=True)
class PlanFound:
    """What the plan stage finds beside plan.json.

    ``picked``: what a person picked in words, None where budgets decide; ``gap``: as the strategy proved it, None where
    it proves none; ``search``: details of a search that judged candidates, as JSON values, {} for others; ``rounds``:
    plans that were measured; ``latency_model``: None where latency was not limited; ``within``: None where no accuracy
    was asked for.
    """

    picked: str | None
    strategy: str
    criterion: str
    predicted_ms: float | None
    gap: float | None
    search: dict[str, Any]
    rounds: int
    points: tuple[Point, ...]
    latency_model: ModelError | None
    dense_macs: int
    macs: int
    structure_check_rel_error: float
    plan_notes: tuple[str, ...]
    within: WithinFound | None = None


@dataclass(frozen=True)
class PlanStage:
    """What a plan is made from. ``dense_bytes``: of the dense network's file; ``float_ratio``: its latency in float /
    in the target's precision."""

    loaded: Loaded
    data: Data
    settings: Settings
    folder: RunFolder
    example: Any
    bench: Bench
    store: Store
    trainer: Trainer
    dense_bytes: float
    progress: Progress
    float_ratio: float = 1.0

    def run(self) -> PlanFound:
        """Writes plan.json, and the trained network that it cuts where training came before.

        Raises:
            InfeasibleBudgetError: the budget is below the fastest legal network, measured.
            SecateursError: the network cannot be traced or exported, or the runtime failed.
        """
        if self.settings.features > 0:
            spread(self.loaded.module, self.loaded.module)
        settings = self.settings
        least = None if settings.bound is None else settings.bound.least(self._accuracies.dense.accuracy)
        spec, planner = self.graph.spec, self._planner()
        schedule = find_schedule(settings.schedule)
        with self.folder.timed("finetune"):
            prepared = prepare(self.trainer, planner, self._limits)
        schedule.check(self.trainer, prepared.planner)
        within = None if least is None else self._fastest(prepared.planner, least)
        accepted, attempts = self._close(prepared.planner) if within is None else (within.accepted, within.attempts)
        notes = list(prepared.notes)
        if settings.finalists > 1:
            accepted, said = self._finalist(prepared.planner, accepted, attempts)
            notes.append(said)
        if schedule.settles:
            with self.folder.timed("finetune"):
                prepared = schedule.settle(self.trainer, prepared.planner, accepted.choice.solution)
            notes += prepared.notes
        planner = self._written(prepared)
        plan, error = self._checked(planner.plan(accepted.choice, planner.picked or settings.asked))
        solution = accepted.choice.solution
        with self.folder.timed("measure"):
            searched = with_measured_sample(
                solution.details,
                self.graph,
                self.bench.target,
                settings.threads,
                settings.batch,
                self.store,
                self.progress,
            )
        self.folder.write(self.folder.files.plan, plan.to_json())
        found = self.costs
        costs = found if isinstance(found, LatencyModel) else None
        return PlanFound(
            picked=planner.picked,
            strategy=planner.search.name,
            criterion=name_of(planner.criterion),
            predicted_ms=plan.provenance["predicted_ms"],
            gap=solution.gap,
            search=searched,
            rounds=len(attempts),
            points=() if costs is None else points(costs, planner.dense_costs["latency"], attempts, accepted),
            latency_model=None if costs is None else model_error(costs),
            dense_macs=spec.macs(spec.dense_widths),
            macs=macs_left(self.graph, apply(self.loaded.module, plan, self.example, check=False), plan),
            structure_check_rel_error=error,
            plan_notes=(
                *plan.provenance.get("warnings", ()),
                *self._notes(costs),
                *([found.note(plan)] if isinstance(found, ElementSpace) else []),
                *([] if self.mixed is None else [self.mixed.note(plan)]),
                *notes,
            ),
            within=None if within is None or least is None else self._within(within, least),
        )

    def _checked(self, plan: Plan) -> tuple[Plan, float]:
        """The plan with its kernel elements as they stay, and the error of the cut."""
        with self.folder.timed("search"):
            plan = aligned(self.loaded.module, plan, self.example, progress=self.progress)
        if self.settings.repair == "least-squares":
            with self.folder.timed("recover"):
                plan = refined(self.loaded.module, plan, self.data, self.example, progress=self.progress)
        with self.folder.timed("recover"), self.progress.task("check the cut"):
            return plan, check_plan(self.loaded.module, plan, self.example)

    @cached_property
    def graph(self) -> Graph:
        """The network's structure."""
        with self.folder.timed("trace"), self.progress.task("trace"):
            return trace(self.loaded.module, self.example, barriers=self.settings.barrier, keep=self.settings.keep)

    @cached_property
    def costs(self) -> LatencyModel | ElementSpace | None:
        """The latency model, where latency is limited; where kernel elements may go too, all that can be chosen."""
        settings = self.settings
        if not settings.needs_latency:
            return None
        common: dict[str, Any] = {
            "threads": settings.threads,
            "batch": settings.batch,
            "store": self.store,
            "seed": settings.seed,
            "progress": self.progress,
        }
        graph = self.graph
        with self.folder.timed("profile"):
            if settings.elements is not None:
                return measured_space(graph, self.bench.target, settings.elements, settings.legal, **common)
            return profile(graph, self.bench.target, **common)

    @cached_property
    def mixed(self) -> MixedSpace | None:
        """Widths and precisions, where both are chosen."""
        settings, costs = self.settings, self.costs
        if settings.precision_mix == "off" or not self.bench.quantises or not isinstance(costs, LatencyModel):
            return None
        channels = Channels(self.graph, costs, settings.legal, self.dense, settings.batch)
        given: dict[str, Any] = {"threads": settings.threads, "seed": settings.seed, "progress": self.progress}
        with self.folder.timed("profile"):
            return mixed_space(channels, settings.target, self.data, store=self.store, **given)

    @cached_property
    def dense(self) -> dict[str, float]:
        """What the dense network takes of every limited resource."""
        known, found = {"file_size": self.dense_bytes}, self.costs
        if found is not None:
            known["latency"] = found.dense_ms
        with self.folder.timed("measure"):
            figures = dense_figures(self.settings, self.graph.spec, self.bench, known, self.float_ratio)
        return figures if self.settings.bound is None else {"latency": known["latency"], **figures}

    @cached_property
    def _budgets(self) -> dict[str, Budget]:
        return {budget.resource: budget for budget in self.settings.budgets}

    @cached_property
    def _limits(self) -> Limits:
        """The budgets as ratios to dense, which they are from here on."""
        return {name: budget.ratio(self.dense[name], self.float_ratio) for name, budget in self._budgets.items()}

    @cached_property
    def _goals(self) -> dict[str, Goal]:
        return {name: goal_for(name, limit, self.dense[name]) for name, limit in self._limits.items()}

    def _planner(self) -> Planner:
        settings, costs, dense, bench = self.settings, self.costs, self.dense, self.bench
        seen: Sequence[Seen] = ()
        if "memory" in dense:
            with self.folder.timed("measure"):
                seen = memory_seen(self.loaded.module, self.graph, settings.legal, bench, self.store, dense["memory"])
        search = find_strategy(settings.strategy, options=settings.search_options(self.folder.files.search))
        space: Space
        if isinstance(costs, ElementSpace):
            space = costs
        else:
            space = self.mixed or Channels(self.graph, costs, settings.legal, dense, settings.batch, seen)
        return Planner(
            space,
            Scorer(
                self.graph,
                settings.criterion,
                calibration_batches(self.data),
                seed=settings.seed,
                classes=self.data.classes,
                rows=FileRows(self.folder.files.values),
                progress=self.progress,
            ),
            search if self.mixed is None else self.mixed.search(search),
            resources=tuple(dense),
            target=target_label(bench.target.fingerprint(settings.threads)),
            images=self.data,
            rows=FileRows(self.folder.files.evaluations),
            made_from=MadeFrom(dict(self.loaded.source), self.data.name),
            progress=self.progress,
        )

    def _written(self, prepared: Prepared) -> Planner:
        """The planner after the training that came before the cut; writes what was trained."""
        if prepared.carrier is not None:
            self.folder.write(self.folder.files.carrier, save(tensors(prepared.carrier)))
        return prepared.planner

    def _measure(self, planner: Planner, choice: Choice) -> Attempt[Choice]:
        plan = planner.plan(choice)
        small = apply(self.loaded.module, plan, self.example, check=False)
        scope = "" if self.settings.elements is None else f"/{self.settings.elements}"
        name = f"{planner.graph.spec.fingerprint}/{choice.key}{scope}"
        with self.folder.timed("measure"):
            return Attempt(choice, self.bench.measure(small, self.store, name, plan))

    def _close(self, planner: Planner) -> tuple[Attempt[Choice], list[Attempt[Choice]]]:
        """The accepted plan and every plan that was measured."""
        goals = self._goals

        def solve(limits: Limits) -> Choice:
            with self.folder.timed("search"):
                return planner.solve(limits)

        def measure(choice: Choice) -> Measurement:
            return self._measure(planner, choice).measured

        if planner.picked:
            attempt = self._measure(planner, planner.pick())
            return attempt, [attempt]
        with self.folder.timed("search"):
            self.progress.say(planner.reachable())
        try:
            return close(list(goals.values()), solve, measure, progress=self.progress)
        except InfeasibleBudgetError as error:
            if error.details.get("conflict"):
                raise
            goal = goals[error.details["constraint"]]
            attempt = self._measure(planner, planner.least(goal.resource))
            if all(other.met(attempt) for other in goals.values()):
                return attempt, [attempt]
            if goal.met(attempt):
                raise
            raise out_of_reach(error, goal, attempt, str(self._budgets[goal.resource]), planner.target) from error

    @cached_property
    def _accuracies(self) -> RepairedAccuracies:
        return RepairedAccuracies(self.trainer, self.bench, self.folder)

    def _fastest(self, planner: Planner, least: float) -> Found[Choice]:
        """The fastest network that keeps an accuracy of ``least`` on the validation images when it is repaired."""

        def solve(limits: Limits) -> Choice:
            with self.folder.timed("search"):
                return planner.solve(limits)

        with self.folder.timed("search"):
            self.progress.say(planner.reachable())
            reach = next(one["ratio"] for one in planner.reach if one["constraint"] == "latency")
        search = FastestSearch(
            solve,
            lambda choice: self._accuracies.of(planner.plan(choice)),
            lambda choice: self._measure(planner, choice).measured,
            self._accuracies.dense.accuracy,
            least,
            tuple(self._goals.values()),
            self.progress,
        )
        return search.run(reach)

    def _within(self, found: Found[Choice], least: float) -> WithinFound:
        """What the search found, for the record."""
        measured = {attempt.choice.key: attempt.measured.ratio for attempt in found.attempts}
        steps = tuple(
            ValidationStep(
                predicted_ratio=one.choice.predicted["latency"],
                latency_ratio=measured.get(one.choice.key),
                accuracy=one.accuracy,
                holds=one.holds,
                chosen=one.choice.key == found.accepted.choice.key,
            )
            for one in found.tried
        )
        return WithinFound(samples=len(self.data.validation), least=least, dense=self._accuracies.dense, steps=steps)

    def _finalist(
        self, planner: Planner, accepted: Attempt[Choice], attempts: list[Attempt[Choice]]
    ) -> tuple[Attempt[Choice], str]:
        """The best of a search's networks after an epoch each, among those that are within every budget."""
        known = {attempt.choice.key: attempt for attempt in attempts}

        def measured(choice: Choice) -> Attempt[Choice]:
            if choice.key not in known:
                known[choice.key] = self._measure(planner, choice)
                attempts.append(known[choice.key])
            return known[choice.key]

        return chosen_by_training(
            planner,
            accepted,
            measured,
            lambda attempt: all(goal.met(attempt) for goal in self._goals.values()),
            self.trainer,
            self.folder,
        )

    def _notes(self, costs: LatencyModel | None) -> list[str]:
        barriers = self.graph.barriers
        notes = [f"Not pruned through: {barrier}" for barrier in barriers[:10]]
        if len(barriers) > 10:
            notes.append(f"{len(barriers) - 10} more operators are not pruned through; see 'secateurs doctor'.")
        if costs is not None and costs.error.mean_abs > 0.05:
            notes.append(
                f"The latency model is off by {costs.error.mean_abs:.1%} on average, so the choice may not be the "
                f"best; the budget is measured and holds. Profile again on a quieter machine."
            )
        return notes


def model_error(costs: LatencyModel) -> ModelError:
    """The latency model's error as the record names it."""
    error = costs.error
    return ModelError(mean_abs=error.mean_abs, p95=error.p95, spearman=error.spearman, networks=error.count)


def points(
    costs: LatencyModel, dense_ms: float, attempts: Sequence[Attempt[Choice]], accepted: Attempt[Choice]
) -> tuple[Point, ...]:
    """Predicted against measured ms: the model's own held-out networks, and the plans of the closed loop.

    ``dense_ms``: the model's figure of the dense network.
    """
    found = [Point(kind="held-out", predicted_ms=one, measured_ms=other) for one, other in costs.error.pairs]
    for attempt in attempts:
        assert attempt.measured.ratio is not None
        kind = "final" if attempt is accepted else "candidate"
        predicted = attempt.choice.predicted["latency"] * dense_ms
        found.append(Point(kind=kind, predicted_ms=predicted, measured_ms=attempt.measured.ratio * dense_ms))
    return tuple(found)
