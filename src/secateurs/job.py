"""The main job: a trained network in, a smaller one out that was measured to be within the latency budget.

Stages, each recorded in the run folder when it ends: dense → plan (trace, latency model, search and closed loop) →
repair → fine-tune → deploy (export and final measurement), then result.json and report.html. A resumed run takes
finished stages from the folder; once plan.json is there it never plans again.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import nn

from secateurs.bench import Bench, out_of_reach
from secateurs.closed_loop import Attempt, Goal, close, upper
from secateurs.data import Data, accuracy
from secateurs.errors import InfeasibleBudgetError, PlanError
from secateurs.latency.model import LatencyModel
from secateurs.latency.store import Store
from secateurs.latency.targets._base import processor_name
from secateurs.models import Loaded
from secateurs.outcome import Facts, make_record
from secateurs.plan import Measurement, Plan
from secateurs.planning import Choice, Planner, name_of, target_label
from secateurs.profiling import open_target, profile
from secateurs.progress import Progress, silent
from secateurs.recover.batch_norm import reestimate
from secateurs.recover.checkpoint import digest
from secateurs.recover.finetune import finetune
from secateurs.recover.least_squares import least_squares
from secateurs.recover.precision import fastest_mode
from secateurs.recover.recipe import Recipe
from secateurs.report import Record, render, wording
from secateurs.run_folder import RunFolder
from secateurs.settings import Settings
from secateurs.structure import Graph, apply, trace
from secateurs.structure.verify import check_plan

CALIBRATION_BATCH = 128
REFITTED, REFITTED_BATCH = 256, 64
"""Images that layers are refitted on, and how many at once."""
SCORED, SCORED_BATCH = 512, 64
"""Images that loss-aware criteria are gathered over, and how many at once."""
REPAIRED = "repaired.safetensors"
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
        facts: Facts = {**self._stage("dense", self._dense), **self._stage("plan", self._plan)}
        plan = Plan.load(self.folder.path / "plan.json")
        small = apply(self.loaded.module, plan, self.example, check=False).eval()
        facts |= self._stage("repair", lambda: self._repair(small, plan))
        small.load_state_dict(load_file(self.folder.path / REPAIRED))
        facts |= self._tune(small, facts)
        facts |= self._stage("deploy", lambda: self._deploy(small))
        record = make_record(self.settings, facts, plan, self.seconds, self.command)
        self.folder.write("report.html", render(record))
        self.folder.write("result.json", record.to_json())
        self.folder.remove(CHECKPOINTS)
        self.folder.remove(REPAIRED)
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
        return Bench(
            open_target(settings.target),
            self.folder.path,
            self.example,
            settings.threads,
            settings.batch,
            settings.seed,
            self.progress,
        )

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

    def _plan(self) -> Facts:
        """Trace, latency model, search and closed loop; writes plan.json."""
        settings, bench, store = self.settings, self._bench(), Store(self.store, progress=self.progress)
        with self._timed("trace"), self.progress.task("trace"):
            graph = trace(self.loaded.module, self.example, barriers=settings.barrier, keep=settings.keep)
            spec = graph.spec
        with self._timed("profile"):
            costs = profile(
                graph,
                bench.target,
                threads=settings.threads,
                batch=settings.batch,
                store=store,
                seed=settings.seed,
                progress=self.progress,
            )
        planner = self._planner(graph, costs, bench)
        accepted, attempts = self._close(planner, costs, bench, store)
        plan = planner.plan(accepted.choice, str(settings.budget))
        with self._timed("recover"), self.progress.task("check the cut"):
            error = check_plan(self.loaded.module, plan, self.example)
        solution = accepted.choice.solution
        self.folder.write("plan.json", plan.to_json())
        return {
            "strategy": planner.search.name,
            "criterion": name_of(planner.criterion_used),
            "predicted_ms": accepted.choice.predicted * planner.dense_ms,
            "gap": solution.gap,
            "rounds": len(attempts),
            "points": self._points(costs, planner, attempts, accepted),
            "latency_model": model_error(costs),
            "dense_macs": spec.macs(spec.dense_widths),
            "macs": spec.macs(solution.widths, solution.removed),
            "structure_check_rel_error": error,
            "plan_notes": self._plan_notes(graph, costs, accepted),
        }

    def _planner(self, graph: Graph, costs: LatencyModel, bench: Bench) -> Planner:
        settings = self.settings
        return Planner(
            graph,
            costs,
            settings.strategy,
            settings.criterion,
            seed=settings.seed,
            legal=settings.legal,
            target=target_label(bench.target.fingerprint(settings.threads)),
            data=self.data.calibration.take(SCORED).batches(SCORED_BATCH),
            facts={"source": dict(self.loaded.source), "data": self.data.name},
            progress=self.progress,
        )

    def _close(
        self, planner: Planner, costs: LatencyModel, bench: Bench, store: Store
    ) -> tuple[Attempt[Choice], list[Attempt[Choice]]]:
        """The accepted plan and every plan that was measured."""
        budget = self.settings.budget
        with self._timed("measure"):
            # A budget in ms is about now: the latency model's dense figure may be from another day.
            dense_ms = bench.dense_ms() if budget.kind == "ms" else costs.dense_ms
        goal = Goal(budget.limit_ms(dense_ms) / dense_ms)
        if goal.limit >= 1:
            raise PlanError(
                f"Budget {budget} is not below what the dense network takes on {planner.target}, "
                f"{wording.milliseconds(dense_ms)}: there is nothing to prune. Give a lower --latency."
            )

        def solve(limit: float) -> Choice:
            with self._timed("search"):
                return planner.solve(limit)

        def measure(choice: Choice) -> Measurement:
            small = apply(self.loaded.module, planner.plan(choice), self.example, check=False)
            with self._timed("measure"):
                return bench.measure(small, store, f"{planner.graph.spec.fingerprint}/{choice.key}")

        try:
            return close(goal, solve, measure, progress=self.progress)
        except InfeasibleBudgetError as error:
            fastest = planner.fastest()
            attempt = Attempt(fastest, measure(fastest))
            if goal.met(attempt.measured):
                return attempt, [attempt]
            raise out_of_reach(error, attempt.measured, goal.limit, str(budget), planner.target) from error

    def _points(
        self, costs: LatencyModel, planner: Planner, attempts: list[Attempt[Choice]], accepted: Attempt[Choice]
    ) -> list[dict[str, Any]]:
        """Predicted against measured: the model's own held-out networks, and the plans of the closed loop."""
        points = [
            {"kind": "held-out", "predicted_ms": predicted, "measured_ms": measured}
            for predicted, measured in costs.error.pairs
        ]
        for attempt in attempts:
            assert attempt.measured.ratio is not None
            points.append(
                {
                    "kind": "final" if attempt is accepted else "candidate",
                    "predicted_ms": attempt.choice.predicted * planner.dense_ms,
                    "measured_ms": attempt.measured.ratio * planner.dense_ms,
                }
            )
        return points

    def _plan_notes(self, graph: Graph, costs: LatencyModel, accepted: Attempt[Choice]) -> list[str]:
        notes = [f"Not pruned through: {barrier}" for barrier in graph.barriers[:10]]
        if len(graph.barriers) > 10:
            notes.append(f"{len(graph.barriers) - 10} more operators are not pruned through; see 'secateurs doctor'.")
        if costs.error.mean_abs > 0.05:
            notes.append(
                f"The latency model is off by {costs.error.mean_abs:.1%} on average, so the choice may not be the "
                f"best; the budget is measured and holds. Profile again on a quieter machine."
            )
        return notes

    def _repair(self, small: nn.Module, plan: Plan) -> Facts:
        """Refitted weights and re-estimated statistics, and the accuracy before and after."""
        cut = self._test_accuracy(small)
        changed, notes, calibration = False, [], self.data.calibration
        with self._timed("recover"):
            if self.settings.repair == "least-squares":
                batches = [inputs for inputs, _ in calibration.take(REFITTED).batches(REFITTED_BATCH)]
                fitted = least_squares(self.loaded.module, small, plan, batches, progress=self.progress)
                changed = bool(fitted.errors)
                notes += [f"Not refitted: {name}, {reason}." for name, reason in fitted.skipped.items()][:5]
            if self.settings.repair != "none":
                done = reestimate(small, calibration.batches(CALIBRATION_BATCH), progress=self.progress)
                changed = changed or done.layers > 0
        self.folder.write(REPAIRED, save(tensors(small)))
        if not changed:
            notes.append("The cut weights were not repaired.")
        return {
            "accuracy_cut": cut,
            "accuracy_recalibrated": self._test_accuracy(small) if changed else cut,
            "repair_notes": notes,
        }

    def _tune(self, small: nn.Module, facts: Facts) -> Facts:
        """Fine-tuning with the dense network as teacher; a finished one is restored from its last checkpoint."""
        settings = self.settings
        if settings.epochs == 0:
            notes = ["No fine-tuning was done (--epochs 0)."]
            return {"accuracy": facts["accuracy_recalibrated"], "tune_notes": notes}
        mode = self._stage("mode", lambda: self._training_mode(small))
        recipe = Recipe(
            epochs=settings.epochs,
            lr=settings.lr,
            batch=settings.train_batch,
            precision=mode["precision"],
            layout=mode["layout"],
            seed=settings.seed,
        )
        with self._timed("finetune"):
            tuned = finetune(
                small,
                self.data,
                recipe,
                teacher=self.loaded.module,
                checkpoint_dir=self.folder.path / CHECKPOINTS,
                resume=True,
                progress=self.progress,
            )
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

    def _deploy(self, small: nn.Module) -> Facts:
        """The files to deploy, and their measurement beside dense."""
        bench = self._bench()
        self.folder.write("model.safetensors", save(tensors(small)))
        with self._timed("measure"):
            with self.progress.task("export pruned"):
                written = bench.export(small, bench.deployed)
            for _ in range(3):
                measured = bench.final()
                dense, pruned = measured["dense"], measured["pruned"]
                limit = self.settings.budget.limit_ms(dense.latency_ms) / dense.latency_ms
                if upper(pruned) <= limit:
                    break
                self.progress.say("The final measurement is not clearly within the budget; measuring again.")
        return {
            "dense": asdict(dense),
            "pruned": asdict(pruned),
            "params": parameter_count(small),
            "file_bytes": written.size_bytes,
            "export_max_rel_error": written.max_rel_error,
        }


def parameter_count(module: nn.Module) -> int:
    """Trainable scalars, tied ones once."""
    return sum(parameter.numel() for parameter in module.parameters())


def tensors(module: nn.Module) -> dict[str, Any]:
    """The module's state as tensors that share no memory, for safetensors."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in module.state_dict().items()}


def model_error(costs: LatencyModel) -> dict[str, Any]:
    """The latency model's error as the record names it."""
    error = costs.error
    return {"mean_abs": error.mean_abs, "p95": error.p95, "spearman": error.spearman, "networks": error.count}
