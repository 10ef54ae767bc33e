"""The main job: a trained network in, a smaller one out that was measured to be within the budgets.

Stages, each recorded in the run folder when it ends: dense → plan (trace, latency model, search and closed loop) →
repair → fine-tune → deploy (export and final measurement), then result.json and report.html. A resumed run takes
finished stages from the folder; once plan.json is there it never plans again.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import nn

from secateurs.bench import Bench, out_of_reach
from secateurs.closed_loop import Attempt, Limits, close, goal_for
from secateurs.data import Data, accuracy
from secateurs.data.images import BatchesOf
from secateurs.element_choices import ElementSpace
from secateurs.element_planning import measured_space
from secateurs.element_refinement import aligned, refined
from secateurs.errors import InfeasibleBudgetError
from secateurs.footprint import dense_figures, memory_seen
from secateurs.latency.model import LatencyModel
from secateurs.latency.store import Store
from secateurs.latency.targets._base import processor_name
from secateurs.models import Loaded
from secateurs.outcome import Facts, check_budgets, make_record, model_error, points
from secateurs.plan import Measurement, Plan, describe_budgets
from secateurs.planning import Choice, Planner
from secateurs.profiling import open_target, profile
from secateurs.progress import Progress, silent
from secateurs.provenance import target_label
from secateurs.recover.batch_norm import reestimate
from secateurs.recover.checkpoint import digest
from secateurs.recover.precision import Mode, fastest_mode
from secateurs.recover.repair import repair
from secateurs.report import Record, render
from secateurs.resources import Seen
from secateurs.run_folder import RunFolder
from secateurs.scoring import Batches, name_of
from secateurs.search_options import SEARCH
from secateurs.sensitivity import with_measured_sample
from secateurs.settings import Settings
from secateurs.structure import Graph, apply, trace
from secateurs.structure.kernel_elements import elements_pruned, macs_left
from secateurs.structure.verify import check_plan
from secateurs.tuning import Trainer, epochs_before, prepare

CALIBRATION_BATCH = 128
SCORED, SCORED_BATCH = 512, 64
"""Images that loss-aware criteria are gathered over, and how many at once."""
REPAIRED, CARRIER = "repaired.safetensors", "carrier.safetensors"
"""The cut network after its repair; the uncut one after training that came before the cut."""
CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class Result:
    """What a run ended with. ``module``: the pruned network in evaluation mode; ``record``: what result.json holds."""

    module: nn.Module
    plan: Plan
    record: Record
    folder: Path


@dataclass
class Job:
    """One run: its inputs, its folder, and the seconds that each stage has taken so far.

    ``example``: what the network is traced and exported with; ``command``: shown in the report; ``store``: where
    latency measurements are kept (None: the user's own store).
    """

    loaded: Loaded
    data: Data
    settings: Settings
    folder: RunFolder
    example: Any
    command: str = ""
    store: Path | None = None
    progress: Progress = silent
    seconds: dict[str, float] = field(default_factory=dict)
    began: float = 0.0

    def run(self) -> Result:
        """Every stage that is not done yet.

        Raises:
            InfeasibleBudgetError: the budget is below the fastest legal network, measured.
            SecateursError: the input is wrong, a file cannot be written, or a runtime failed.
        """
        if (self.folder.path / "result.json").exists():
            return self._finished()
        self.seconds = dict(self.folder.done("seconds") or {})
        self.began = time.monotonic() - self.seconds.get("total", 0.0)
        facts: Facts = self._stage("dense", self._dense)
        facts = {**facts, **self._stage("plan", lambda: self._plan(facts))}
        plan = Plan.load(self.folder.path / "plan.json")
        # Under the penalty elements go while the network is trained.
        begin = plan.model_copy(update={"elements": {}}) if self.settings.penalty else plan
        small = apply(self._carrier(), begin, self.example, check=False).eval()
        facts |= self._stage("repair", lambda: self._repair(small, begin))
        small.load_state_dict(load_file(self.folder.path / REPAIRED))
        facts |= self._tune(small, plan, facts)
        facts |= self._stage("deploy", lambda: self._deploy(small, plan, facts))
        record = make_record(self.settings, facts, plan, self.seconds, self.command)
        self.folder.write("report.html", render(record))
        self.folder.write("result.json", record.to_json())
        self.folder.remove(CHECKPOINTS)
        self.folder.remove(REPAIRED)
        self.folder.remove(CARRIER)
        self.folder.remove(SEARCH)
        return Result(small, plan, record, self.folder.path)

    def _finished(self) -> Result:
        record = Record.load(self.folder.path / "result.json")
        plan = Plan.load(self.folder.path / "plan.json")
        small = apply(self.loaded.module, plan, self.example, check=False).eval()
        small.load_state_dict(load_file(self.folder.path / "model.safetensors"))
        self.progress.say(f"The run in {self.folder.path} has finished already.")
        return Result(small, plan, record, self.folder.path)

    def _stage(self, name: str, work: Callable[[], Facts]) -> Facts:
        """What a stage found, from the folder where an earlier sitting finished it."""
        held = self.folder.done(name)
        if held is None:
            held = self.folder.record(name, work())
            self.seconds["total"] = time.monotonic() - self.began
            self.folder.record("seconds", self.seconds)
        return held

    @contextlib.contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        """Adds the time spent inside to ``seconds[name]``, also when it ends with an error."""
        before, start = self.seconds.get(name, 0.0), time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = before + time.monotonic() - start

    def _bench(self) -> Bench:
        settings = self.settings
        target, folder = open_target(settings.target), self.folder.path
        return Bench(target, folder, self.example, settings.threads, settings.batch, settings.seed, self.progress)

    def _test_accuracy(self, module: nn.Module) -> float:
        return accuracy(module, self.data.test, classes=self.data.classes, progress=self.progress)

    def _dense(self) -> Facts:
        """The dense network's accuracy, size and file. First, because it also proves data, weights and export."""
        bench, module = self._bench(), self.loaded.module
        reached = self._test_accuracy(module)
        with self._timed("measure"), self.progress.task("export dense"):
            written = bench.export(module, bench.dense)
        target, threads = bench.target, self.settings.threads
        return {
            "model": self.loaded.name,
            "weights": str(self.loaded.source.get("weights") or ""),
            "input_shape": list(self.loaded.input_shape),
            "data": self.data.name,
            "class_count": len(self.data.classes) if self.data.classes is not None else self.loaded.classes or 0,
            "classes": "all" if self.data.classes is None else "present",
            "target": {key: str(value) for key, value in target.fingerprint(threads).items()},
            "precision": target.precision,
            "dense_accuracy": reached,
            "dense_params": parameter_count(module),
            "dense_bytes": written.size_bytes,
            "notes": [*self.data.notes, *(() if self.loaded.source.get("weights") else self.loaded.notes)],
        }

    def _plan(self, facts: Facts) -> Facts:
        """Trace, latency model, search and closed loop; writes plan.json."""
        settings, bench, store = self.settings, self._bench(), Store(self.store, progress=self.progress)
        with self._timed("trace"), self.progress.task("trace"):
            graph = trace(self.loaded.module, self.example, barriers=settings.barrier, keep=settings.keep)
            spec = graph.spec
        found = self._profile(graph, bench, store)
        with self._timed("measure"):
            known = {"file_size": float(facts["dense_bytes"])} | ({} if found is None else {"latency": found.dense_ms})
            dense = dense_figures(settings, spec, bench, known)
            seen: Sequence[Seen] = ()
            if "memory" in dense:
                seen = memory_seen(self.loaded.module, graph, settings.legal, bench, store, dense["memory"])
        planner, schedule_notes = self._prepared(self._planner(graph, found, bench, dense, seen), dense)
        costs = found if isinstance(found, LatencyModel) else None
        accepted, attempts = self._close(planner, dense, bench, store)
        plan = planner.plan(accepted.choice, planner.picked or describe_budgets(settings.budgets))
        with self._timed("search"):
            plan = aligned(self.loaded.module, plan, self.example, progress=self.progress)
        if settings.repair == "least-squares":
            with self._timed("recover"):
                plan = refined(self.loaded.module, plan, self.data, self.example, progress=self.progress)
        with self._timed("recover"), self.progress.task("check the cut"):
            error = check_plan(self.loaded.module, plan, self.example)
        solution = accepted.choice.solution
        with self._timed("measure"):
            searched = with_measured_sample(
                solution.details, graph, bench.target, settings.threads, settings.batch, store, self.progress
            )
        self.folder.write("plan.json", plan.to_json())
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
            "macs": macs_left(graph, apply(self.loaded.module, plan, self.example, check=False), plan),
            "structure_check_rel_error": error,
            "plan_notes": [
                *self._plan_notes(graph, costs),
                *([found.note(plan)] if isinstance(found, ElementSpace) else []),
                *schedule_notes,
            ],
        }

    def _profile(self, graph: Graph, bench: Bench, store: Store) -> LatencyModel | ElementSpace | None:
        """The latency model, where latency is limited; where kernel elements may go too, all that can be chosen."""
        settings = self.settings
        if settings.latency is None:
            return None
        with self._timed("profile"):
            if settings.elements is not None:
                return measured_space(
                    graph,
                    bench.target,
                    settings.elements,
                    settings.legal,
                    threads=settings.threads,
                    batch=settings.batch,
                    store=store,
                    seed=settings.seed,
                    progress=self.progress,
                )
            return profile(
                graph,
                bench.target,
                threads=settings.threads,
                batch=settings.batch,
                store=store,
                seed=settings.seed,
                progress=self.progress,
            )

    def _planner(
        self,
        graph: Graph,
        costs: LatencyModel | ElementSpace | None,
        bench: Bench,
        dense: dict[str, float],
        seen: Sequence[Seen],
    ) -> Planner:
        settings = self.settings
        return Planner(
            graph,
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

    def _prepared(self, planner: Planner, dense: dict[str, float]) -> tuple[Planner, tuple[str, ...]]:
        """The planner after the training that comes before the cut, and notes; writes what was trained."""
        limits = {b.resource: b.limit(dense[b.resource]) / dense[b.resource] for b in self.settings.budgets}
        with self._timed("finetune"):
            prepared = prepare(self.trainer, planner, limits)
        if prepared.carrier is not None:
            self.folder.write(CARRIER, save(tensors(prepared.carrier)))
        return prepared.planner, prepared.notes

    def _carrier(self) -> nn.Module:
        """The network that is cut: dense, or what training before the cut made of it."""
        path = self.folder.path / CARRIER
        if not path.exists():
            return self.loaded.module
        carrier = copy.deepcopy(self.loaded.module)
        carrier.load_state_dict(load_file(path))
        return carrier

    @cached_property
    def trainer(self) -> Trainer:
        """Trains this run's networks."""

        def mode(module: nn.Module) -> Mode:
            return Mode(**self._stage("mode", lambda: self._training_mode(module)))

        checkpoints = self.folder.path / CHECKPOINTS
        return Trainer(self.loaded.module, self.example, self.data, self.settings, checkpoints, mode, self.progress)

    def _close(
        self, planner: Planner, dense: dict[str, float], bench: Bench, store: Store
    ) -> tuple[Attempt[Choice], list[Attempt[Choice]]]:
        """The accepted plan and every plan that was measured."""
        budgets = {budget.resource: budget for budget in self.settings.budgets}
        goals = {name: goal_for(name, budget.limit(dense[name]), dense[name]) for name, budget in budgets.items()}

        def solve(limits: Limits) -> Choice:
            with self._timed("search"):
                return planner.solve(limits)

        def measure(choice: Choice) -> Measurement:
            plan = planner.plan(choice)
            small = apply(self.loaded.module, plan, self.example, check=False)
            with self._timed("measure"):
                scope = "" if self.settings.elements is None else f"/{self.settings.elements}"
                return bench.measure(small, store, f"{planner.graph.spec.fingerprint}/{choice.key}{scope}", plan)

        if planner.picked:
            attempt = Attempt(choice := planner.pick(), measure(choice))
            return attempt, [attempt]
        with self._timed("search"):
            self.progress.say(planner.reachable())
        try:
            return close(list(goals.values()), solve, measure, progress=self.progress)
        except InfeasibleBudgetError as error:
            if error.details.get("conflict"):
                raise
            goal = goals[error.details["constraint"]]
            least = planner.least(goal.resource)
            attempt = Attempt(least, measure(least))
            if all(other.met(attempt) for other in goals.values()):
                return attempt, [attempt]
            if goal.met(attempt):
                raise
            raise out_of_reach(error, goal, attempt, str(budgets[goal.resource]), planner.target) from error

    def _plan_notes(self, graph: Graph, costs: LatencyModel | None) -> list[str]:
        notes = [f"Not pruned through: {barrier}" for barrier in graph.barriers[:10]]
        if len(graph.barriers) > 10:
            notes.append(f"{len(graph.barriers) - 10} more operators are not pruned through; see 'secateurs doctor'.")
        if costs is not None and costs.error.mean_abs > 0.05:
            notes.append(
                f"The latency model is off by {costs.error.mean_abs:.1%} on average, so the choice may not be the "
                f"best; the budget is measured and holds. Profile again on a quieter machine."
            )
        return notes

    def _repair(self, small: nn.Module, plan: Plan) -> Facts:
        """Refitted weights and re-estimated statistics, and the accuracy before and after."""
        cut = self._test_accuracy(small)
        changed, notes = False, []
        with self._timed("recover"):
            if not (plan.removed() or plan.elements or plan.blocks_removed):
                notes.append("Nothing was cut before the training: kernel elements go with it.")
            elif self.settings.repair == "least-squares":
                done = repair(self.loaded.module, small, plan, self.data, progress=self.progress)
                changed, notes = done.chosen != "nothing", list(done.notes)
            elif self.settings.repair == "statistics":
                batches = self.data.calibration.batches(CALIBRATION_BATCH)
                changed = reestimate(small, batches, progress=self.progress).layers > 0
        self.folder.write(REPAIRED, save(tensors(small)))
        if not changed:
            notes.append("The cut weights were not repaired.")
        return {
            "accuracy_cut": cut,
            "accuracy_recalibrated": self._test_accuracy(small) if changed else cut,
            "repair_notes": notes,
        }

    def _tune(self, small: nn.Module, plan: Plan, facts: Facts) -> Facts:
        """Fine-tuning with the dense network as teacher; a finished one is restored from its last checkpoint."""
        epochs = self.settings.epochs - epochs_before(self.settings)
        if epochs == 0:
            before = epochs_before(self.settings)
            notes = [f"All {before} epochs came before the cut." if before else "No fine-tuning was done (--epochs 0)."]
            return {"accuracy": facts["accuracy_recalibrated"], "tune_notes": notes}
        with self._timed("finetune"):
            tuned = self.trainer.train(small, "", epochs, plan)
        return self._stage(
            "finetune",
            lambda: {
                "accuracy": self._test_accuracy(small),
                "tune_notes": [],
                "train_mode": str(tuned.mode),
                "history": [asdict(epoch) for epoch in tuned.epochs],
            },
        )

    def _training_mode(self, small: nn.Module) -> Facts:
        """Number format and memory layout that train fastest here.

        The choice is kept in the store: another run of the same network trains in the same way, to the same bits.
        """
        settings, store = self.settings, Store(self.store, progress=self.progress)
        device = {"device": processor_name(), "torch": torch.__version__, "threads": torch.get_num_threads()}
        signature = f"training-mode/1/{digest(small)}/b{settings.train_batch}/{settings.precision}"
        held = store.get(device, signature)
        if held is None:
            with self._timed("finetune"), self.progress.task("choose number format"):
                inputs, _ = next(iter(self.data.train.batches(settings.train_batch)))
                held = asdict(fastest_mode(small, self.loaded.module, inputs, precision=settings.precision))
            store.put(device, {signature: held})
        return held

    def _deploy(self, small: nn.Module, plan: Plan, facts: Facts) -> Facts:
        """The files to deploy, and their measurement beside dense."""
        bench = self._bench()
        self.folder.write("model.safetensors", save(tensors(small)))
        with self._timed("measure"):
            with self.progress.task("export pruned"):
                written = bench.export(small, bench.deployed, plan)
            found: Facts = {
                "params": parameter_count(small) - elements_pruned(small, plan),
                "file_bytes": written.size_bytes,
                "export_max_rel_error": written.max_rel_error,
            }
            for _ in range(3):
                found |= {name: asdict(measured) for name, measured in bench.final().items()}
                if all(budget.met for budget in check_budgets(self.settings.budgets, {**facts, **found})):
                    break
                self.progress.say("The final measurement is not clearly within the budget; measuring again.")
        return found


def calibration_batches(data: Data) -> Batches:
    """The images that loss-aware criteria are gathered over, in batches."""
    return BatchesOf(data.calibration.take(SCORED), SCORED_BATCH)


def parameter_count(module: nn.Module) -> int:
    """Trainable scalars, tied ones once."""
    return sum(parameter.numel() for parameter in module.parameters())


def tensors(module: nn.Module) -> dict[str, Any]:
    """The module's state as tensors that share no memory, for safetensors."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in module.state_dict().items()}
