"""The plan stage of the main job: from a traced network to the plan that was measured to be within the budgets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from safetensors.torch import save

from secateurs.bench import Bench, out_of_reach
from secateurs.closed_loop import Attempt, Goal, Limits, close, goal_for
from secateurs.data import Data
from secateurs.data.images import BatchesOf
from secateurs.element_choices import ElementSpace
from secateurs.element_planning import measured_space
from secateurs.element_refinement import aligned, refined
from secateurs.errors import InfeasibleBudgetError
from secateurs.finalists import chosen_by_training
from secateurs.footprint import dense_figures, memory_seen
from secateurs.latency.model import LatencyModel
from secateurs.latency.store import Store
from secateurs.models import Loaded
from secateurs.outcome import Facts, model_error, points
from secateurs.plan import Budget, Measurement, describe_budgets
from secateurs.planning import Choice, Planner
from secateurs.profiling import profile
from secateurs.progress import Progress
from secateurs.provenance import target_label
from secateurs.recover.checkpoint import tensors
from secateurs.recover.features import spread
from secateurs.resources import Seen
from secateurs.run_folder import RunFolder
from secateurs.scoring import Batches, name_of
from secateurs.sensitivity import with_measured_sample
from secateurs.settings import Settings
from secateurs.structure import Graph, apply, trace
from secateurs.structure.kernel_elements import macs_left
from secateurs.structure.verify import check_plan
from secateurs.tuning import Prepared, Trainer, check_regrow, prepare, regrow

SCORED, SCORED_BATCH = 512, 64
"""Images that loss-aware criteria are gathered over, and how many at once."""
SCORED_AT_ONCE = 2_500_000
"""Input numbers per batch of them at most, for every activation is held: 16 images at 224x224."""
CARRIER = "carrier.safetensors"
"""The uncut network after training that came before the cut."""


def calibration_batches(data: Data) -> Batches:
    """The images that loss-aware criteria are gathered over, in batches."""
    images = data.calibration.take(SCORED)
    numbers = images.batch(np.arange(1))[0].numel()
    return BatchesOf(images, max(1, min(SCORED_BATCH, SCORED_AT_ONCE // max(1, numbers))))


@dataclass(frozen=True)
class PlanStage:
    """What a plan is made from; ``timed`` counts the seconds of what runs inside it under a name.

    ``dense_bytes``: of the dense network's file.
    """

    loaded: Loaded
    data: Data
    settings: Settings
    folder: RunFolder
    example: Any
    bench: Bench
    store: Store
    trainer: Trainer
    dense_bytes: float
    timed: Callable[[str], AbstractContextManager[None]]
    progress: Progress

    def run(self) -> Facts:
        """Writes plan.json, and the trained network that it cuts where training came before.

        Raises:
            InfeasibleBudgetError: the budget is below the fastest legal network, measured.
            SecateursError: the network cannot be traced or exported, or the runtime failed.
        """
        if self.settings.features > 0:
            spread(self.loaded.module, self.loaded.module)
        settings, spec, planner = self.settings, self.graph.spec, self._planner()
        limits = {name: budget.limit(self.dense[name]) / self.dense[name] for name, budget in self._budgets.items()}
        with self.timed("finetune"):
            prepared = prepare(self.trainer, planner, limits)
        if settings.schedule == "regrow":
            check_regrow(prepared.planner)
        accepted, attempts = self._close(prepared.planner)
        notes = list(prepared.notes)
        if settings.finalists > 1:
            accepted, said = self._finalist(prepared.planner, accepted, attempts)
            notes.append(said)
        if settings.schedule == "regrow":
            with self.timed("finetune"):
                prepared = regrow(self.trainer, prepared.planner, accepted.choice.solution)
            notes += prepared.notes
        planner = self._written(prepared)
        plan = planner.plan(accepted.choice, planner.picked or describe_budgets(settings.budgets))
        with self.timed("search"):
            plan = aligned(self.loaded.module, plan, self.example, progress=self.progress)
        if settings.repair == "least-squares":
            with self.timed("recover"):
                plan = refined(self.loaded.module, plan, self.data, self.example, progress=self.progress)
        with self.timed("recover"), self.progress.task("check the cut"):
            error = check_plan(self.loaded.module, plan, self.example)
        solution = accepted.choice.solution
        with self.timed("measure"):
            searched = with_measured_sample(
                solution.details,
                self.graph,
                self.bench.target,
                settings.threads,
                settings.batch,
                self.store,
                self.progress,
            )
        self.folder.write("plan.json", plan.to_json())
        found = self.costs
        costs = found if isinstance(found, LatencyModel) else None
        return {
            "picked": planner.picked,
            "strategy": planner.search.name,
            "criterion": name_of(planner.criterion_used),
            "predicted_ms": plan.provenance["predicted_ms"],
            "gap": solution.gap,
            "search": searched,
            "rounds": len(attempts),
            "points": [] if costs is None else points(costs, planner.dense_costs["latency"], attempts, accepted),
            "latency_model": None if costs is None else model_error(costs),
            "dense_macs": spec.macs(spec.dense_widths),
            "macs": macs_left(self.graph, apply(self.loaded.module, plan, self.example, check=False), plan),
            "structure_check_rel_error": error,
            "plan_notes": [
                *self._notes(costs),
                *([found.note(plan)] if isinstance(found, ElementSpace) else []),
                *notes,
            ],
        }

    @cached_property
    def graph(self) -> Graph:
        """The network's structure."""
        with self.timed("trace"), self.progress.task("trace"):
            return trace(self.loaded.module, self.example, barriers=self.settings.barrier, keep=self.settings.keep)

    @cached_property
    def costs(self) -> LatencyModel | ElementSpace | None:
        """The latency model, where latency is limited; where kernel elements may go too, all that can be chosen."""
        settings = self.settings
        if settings.latency is None:
            return None
        common: dict[str, Any] = {
            "threads": settings.threads,
            "batch": settings.batch,
            "store": self.store,
            "seed": settings.seed,
            "progress": self.progress,
        }
        graph = self.graph
        with self.timed("profile"):
            if settings.elements is not None:
                return measured_space(graph, self.bench.target, settings.elements, settings.legal, **common)
            return profile(graph, self.bench.target, **common)

    @cached_property
    def dense(self) -> dict[str, float]:
        """What the dense network takes of every limited resource."""
        known, found = {"file_size": self.dense_bytes}, self.costs
        if found is not None:
            known["latency"] = found.dense_ms
        with self.timed("measure"):
            return dense_figures(self.settings, self.graph.spec, self.bench, known)

    @cached_property
    def _budgets(self) -> dict[str, Budget]:
        return {budget.resource: budget for budget in self.settings.budgets}

    @cached_property
    def _goals(self) -> dict[str, Goal]:
        return {
            name: goal_for(name, budget.limit(self.dense[name]), self.dense[name])
            for name, budget in self._budgets.items()
        }

    def _planner(self) -> Planner:
        settings, costs, dense, bench = self.settings, self.costs, self.dense, self.bench
        seen: Sequence[Seen] = ()
        if "memory" in dense:
            with self.timed("measure"):
                seen = memory_seen(self.loaded.module, self.graph, settings.legal, bench, self.store, dense["memory"])
        return Planner(
            self.graph,
            costs if isinstance(costs, LatencyModel) else None,
            settings.strategy,
            settings.criterion,
            seed=settings.seed,
            legal=settings.legal,
            target=target_label(bench.target.fingerprint(settings.threads)),
            data=calibration_batches(self.data),
            resources=tuple(dense),
            dense=dense,
            batch=settings.batch,
            seen=seen,
            images=self.data,
            options=settings.search_options(self.folder.path),
            elements=costs if isinstance(costs, ElementSpace) else None,
            facts={"source": dict(self.loaded.source), "data": self.data.name},
            progress=self.progress,
        )

    def _written(self, prepared: Prepared) -> Planner:
        """The planner after the training that came before the cut; writes what was trained."""
        if prepared.carrier is not None:
            self.folder.write(CARRIER, save(tensors(prepared.carrier)))
        return prepared.planner

    def _measure(self, planner: Planner, choice: Choice) -> Attempt[Choice]:
        plan = planner.plan(choice)
        small = apply(self.loaded.module, plan, self.example, check=False)
        scope = "" if self.settings.elements is None else f"/{self.settings.elements}"
        name = f"{planner.graph.spec.fingerprint}/{choice.key}{scope}"
        with self.timed("measure"):
            return Attempt(choice, self.bench.measure(small, self.store, name, plan))

    def _close(self, planner: Planner) -> tuple[Attempt[Choice], list[Attempt[Choice]]]:
        """The accepted plan and every plan that was measured."""
        goals = self._goals

        def solve(limits: Limits) -> Choice:
            with self.timed("search"):
                return planner.solve(limits)

        def measure(choice: Choice) -> Measurement:
            return self._measure(planner, choice).measured

        if planner.picked:
            attempt = self._measure(planner, planner.pick())
            return attempt, [attempt]
        with self.timed("search"):
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
            self.timed,
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
