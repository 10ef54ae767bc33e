"""The plan stage of the main job: from a traced network to the plan that was measured to be within the budgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from safetensors.torch import save

from secateurs.budgets import Budget
from secateurs.data import Data
from secateurs.errors import InfeasibleBudgetError
from secateurs.importance.scoring import Scorer, calibration_batches
from secateurs.jobs.comparison import RepairedAccuracies, WithinFound
from secateurs.jobs.finalists import chosen_by_training
from secateurs.jobs.footprint import check_binding, dense_figures, limited_files, memory_seen
from secateurs.jobs.run_folder import RunFolder
from secateurs.jobs.settings import Settings
from secateurs.jobs.training import Trainer, prepare
from secateurs.latency.model import LatencyModel
from secateurs.latency.store import Store
from secateurs.measure.bench import Bench
from secateurs.measure.sensitivity import with_measured_sample
from secateurs.measure.targeted import Modelled, Targeted, unsure
from secateurs.models import Loaded
from secateurs.plan import Plan
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
from secateurs.provenance import MadeFrom, name_of
from secateurs.recover.checkpoint import tensors
from secateurs.recover.features import spread
from secateurs.recover.schedules import schedule as find_schedule
from secateurs.recover.schedules._base import Prepared
from secateurs.report.record import ModelError, Point, ValidationStep
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
    was asked for; ``modelled``: of every target but the first, None where there is none.
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
    modelled: tuple[Modelled, ...] | None = None


@dataclass(frozen=True)
class PlanStage:
    """What a plan is made from. ``targets``: the one to deploy on first."""

    loaded: Loaded
    data: Data
    settings: Settings
    folder: RunFolder
    example: Any
    targets: tuple[Targeted, ...]
    store: Store
    trainer: Trainer
    progress: Progress

    def run(self) -> PlanFound:
        """Writes plan.json, and the trained network that it cuts where training came before.

        Raises:
            InfeasibleBudgetError: the budget is below the fastest legal network, measured.
            SecateursError: the network cannot be traced or exported, or the runtime failed.
        """
        if self.settings.features > 0:
            spread(self.loaded.module, self.loaded.module)
        settings = self.settings
        metric, bound = self.data.task.measured, settings.bound
        least = None if bound is None else bound.least(self._accuracies.dense.accuracy, metric)
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
        first, *others = (self._modelled(one, planner, attempts, accepted) for one in self.targets)
        return PlanFound(
            picked=planner.picked,
            strategy=planner.search.name,
            criterion=name_of(planner.criterion),
            predicted_ms=plan.provenance["predicted_ms"],
            gap=solution.gap,
            search=searched,
            rounds=len(attempts),
            points=() if first is None else first.points,
            latency_model=None if first is None else first.latency_model,
            dense_macs=spec.macs(spec.dense_widths),
            macs=macs_left(self.graph, apply(self.loaded.module, plan, self.example, check=False), plan),
            structure_check_rel_error=error,
            plan_notes=(
                *plan.provenance.get("warnings", ()),
                *self._notes(),
                *([found.note(plan)] if isinstance(found, ElementSpace) else []),
                *([] if self.mixed is None else [self.mixed.note(plan)]),
                *notes,
            ),
            within=None if within is None or least is None else self._within(within, least),
            modelled=tuple(one for one in others if one is not None) or None,
        )

    def _modelled(
        self, targeted: Targeted, planner: Planner, attempts: Sequence[Attempt[Choice]], accepted: Attempt[Choice]
    ) -> Modelled | None:
        """What the latency model of a target says of the plan; None where there is none."""
        if targeted.name not in self.models:
            return None
        goal = Goal(1.0, targeted.latency)
        seen = [(attempt.choice.predicted[goal.resource], goal.ratio(attempt)) for attempt in attempts]
        final = next(number for number, attempt in enumerate(attempts) if attempt is accepted)
        return Modelled.of(self.models[targeted.name], planner.dense_costs[goal.resource], seen, final)

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

    @property
    def bench(self) -> Bench:
        """Of the first target."""
        return self.targets[0].bench

    @cached_property
    def models(self) -> dict[str, LatencyModel]:
        """Latency models by the targets' names, where latency is limited and kernel elements stay."""
        if self.settings.elements is not None or not self.settings.needs_latency:
            return {}
        graph = self.graph
        with self.folder.timed("profile"):
            return {one.name: one.model(graph, self.store) for one in self.targets}

    @cached_property
    def costs(self) -> LatencyModel | ElementSpace | None:
        """The first target's latency model, where latency is limited; where kernel elements may go too, all that can be
        chosen."""
        settings, bench, graph = self.settings, self.bench, self.graph
        if settings.elements is None:
            return self.models.get(self.targets[0].name)
        common: dict[str, Any] = {"threads": bench.threads, "batch": bench.batch, "seed": bench.seed}
        common |= {"store": self.store, "progress": self.progress}
        with self.folder.timed("profile"):
            return measured_space(graph, bench.target, settings.elements, settings.legal, **common)

    @cached_property
    def mixed(self) -> MixedSpace | None:
        """Widths and precisions, where both are chosen."""
        settings, costs = self.settings, self.costs
        if settings.precision_mix == "off" or not self.bench.quantises or not isinstance(costs, LatencyModel):
            return None
        given: dict[str, Any] = {"threads": settings.threads, "seed": settings.seed, "progress": self.progress}
        with self.folder.timed("profile"):
            return mixed_space(self._channels, settings.targets[0], self.data, store=self.store, **given)

    @cached_property
    def dense(self) -> dict[str, float]:
        """What the dense network takes of everything that is limited, by the limits' names."""
        found: dict[str, float] = {}
        for one in self.targets:
            costs = self.models.get(one.name, self.costs)
            known = {} if costs is None else {"latency": costs.dense_ms}
            with self.folder.timed("measure"):
                found |= dense_figures(one, self.graph.spec, known)
            found |= {} if self.settings.bound is None else known
        check_binding(self.settings.budgets, self._ratios(found), found)
        return {name: found[name] for name in ([] if self.settings.bound is None else ["latency"]) + [*self._budgets]}

    def _ratios(self, dense: Mapping[str, float]) -> Limits:
        return {name: ratio for one in self.targets for name, ratio in one.ratios(dense).items()}

    @cached_property
    def _budgets(self) -> dict[str, Budget]:
        return {budget.name: budget for budget in self.settings.budgets}

    @cached_property
    def _limits(self) -> Limits:
        """The budgets as ratios to dense, which they are from here on."""
        found = self._ratios(self.dense)
        return {name: found[name] for name in self._budgets}

    @cached_property
    def _goals(self) -> dict[str, Goal]:
        return {name: goal_for(name, limit, self.dense[name]) for name, limit in self._limits.items()}

    @cached_property
    def _channels(self) -> Channels:
        """Widths and blocks, with what was measured of memory and file where these are limited."""
        settings, dense, costs = self.settings, self.dense, self.models.get(self.targets[0].name)
        given = (self.loaded.module, self.graph, settings.legal, self.bench, self.store)
        with self.folder.timed("measure"):
            seen = memory_seen(*given, dense["memory"]) if "memory" in dense else []
            files = limited_files(self.targets, self.graph, settings.legal, self.progress)
        return Channels(self.graph, costs, settings.legal, dense, settings.batch, seen, files, self.models)

    def _planner(self) -> Planner:
        settings, costs = self.settings, self.costs
        search = find_strategy(settings.strategy, options=settings.search_options(self.folder.files.search))
        space: Space = costs if isinstance(costs, ElementSpace) else self.mixed or self._channels
        return Planner(
            space,
            Scorer(
                self.graph,
                settings.criterion,
                calibration_batches(self.data),
                seed=settings.seed,
                task=self.data.task,
                rows=FileRows(self.folder.files.values),
                progress=self.progress,
            ),
            search if self.mixed is None else self.mixed.search(search),
            resources=tuple(self.dense),
            target="; ".join(one.label for one in self.targets),
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
            on = {one.name: one.bench.measure(small, self.store, name, plan) for one in self.targets}
        return Attempt(choice, next(iter(on.values())), on)

    def _close(self, planner: Planner) -> tuple[Attempt[Choice], list[Attempt[Choice]]]:
        """The accepted plan and every plan that was measured."""
        goals = self._goals

        def solve(limits: Limits) -> Choice:
            with self.folder.timed("search"):
                return planner.solve(limits)

        if planner.picked:
            attempt = self._measure(planner, planner.pick())
            return attempt, [attempt]
        with self.folder.timed("search"):
            self.progress.say(planner.reachable())
        try:
            return close(list(goals.values()), solve, partial(self._measure, planner), progress=self.progress)
        except InfeasibleBudgetError as error:
            if error.details.get("conflict"):
                raise
            goal = goals[error.details["constraint"]]
            attempt = self._measure(planner, planner.least(goal.resource))
            if all(other.met(attempt) for other in goals.values()):
                return attempt, [attempt]
            if goal.met(attempt):
                raise
            labels = {one.name: one.label for one in self.targets if one.name}
            where = labels.get(goal.limited.target, planner.target)
            raise out_of_reach(error, goal, attempt, str(self._budgets[goal.resource]), where) from error

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
            self.data.task.measured,
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

    def _notes(self) -> list[str]:
        barriers = self.graph.barriers
        notes = [f"Not pruned through: {barrier}" for barrier in barriers[:10]]
        if len(barriers) > 10:
            notes.append(f"{len(barriers) - 10} more operators are not pruned through; see 'secateurs doctor'.")
        return [*notes, *unsure(self.models)]
