"""The main job: a trained network in, a smaller one out that was measured to be within the budgets.

Stages, each recorded in the run folder when it ends: dense → plan (trace, latency model, search and closed loop) →
repair → fine-tune → deploy (export and final measurement), then result.json and report.html. A resumed run takes
finished stages from the folder; once plan.json is there it never plans again.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import nn

from secateurs.bench import Bench
from secateurs.data import Data, accuracy
from secateurs.latency.store import Store
from secateurs.latency.targets._base import processor_name
from secateurs.models import Loaded
from secateurs.outcome import Facts, check_budgets, make_record
from secateurs.plan import Plan
from secateurs.planning_stage import CARRIER, PlanStage
from secateurs.profiling import open_target
from secateurs.progress import Progress, silent
from secateurs.recover.checkpoint import digest, tensors
from secateurs.recover.finetune import Finetuned
from secateurs.recover.precision import Mode, fastest_mode
from secateurs.report import Record, render
from secateurs.run_folder import RunFolder
from secateurs.search_options import SEARCH
from secateurs.settings import Settings
from secateurs.structure import apply
from secateurs.structure.kernel_elements import elements_pruned
from secateurs.tuning import Trainer, epochs_before, mend

REPAIRED = "repaired.safetensors"
"""The cut network after its repair."""
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
        facts = {**facts, **self._stage("plan", lambda: self._planned(facts).run())}
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

    def _planned(self, facts: Facts) -> PlanStage:
        return PlanStage(
            self.loaded,
            self.data,
            self.settings,
            self.folder,
            self.example,
            self._bench(),
            Store(self.store, progress=self.progress),
            self.trainer,
            float(facts["dense_bytes"]),
            self._timed,
            self.progress,
        )

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

    def _repair(self, small: nn.Module, plan: Plan) -> Facts:
        """Refitted weights and re-estimated statistics, and the accuracy before and after."""
        cut = self._test_accuracy(small)
        with self._timed("recover"):
            changed, notes = mend(self.trainer, small, plan)
        self.folder.write(REPAIRED, save(tensors(small)))
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
        repaired = copy.deepcopy(small)
        with self._timed("finetune"):
            tuned = self.trainer.train(small, "", epochs, plan)
        found = self._stage("finetune", lambda: self._tuned(small, repaired, plan, tuned))
        if found.get("kept") == "repaired":
            small.load_state_dict(repaired.state_dict())
        return found

    def _tuned(self, small: nn.Module, repaired: nn.Module, plan: Plan, tuned: Finetuned) -> Facts:
        """What fine-tuning came to; where the repaired network did better on the validation images, that one stays."""
        before, after = 0.0, tuned.epochs[-1].validation_accuracy
        if not self.settings.penalty:  # under which elements go while the network is trained
            before = accuracy(repaired, self.data.validation, classes=self.data.classes, progress=self.progress)
        notes = []
        if before > after:
            notes.append(
                f"Fine-tuning ended below the repaired network ({after:.2%} after {before:.2%} on the validation "
                "images), so that one was kept. Give more --epochs, or another --lr."
            )
        return {
            "accuracy": self._test_accuracy(repaired if before > after else small),
            "kept": "repaired" if before > after else "tuned",
            "tune_notes": notes,
            "train_mode": str(tuned.mode),
            "history": [asdict(epoch) for epoch in tuned.epochs],
        }

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


def parameter_count(module: nn.Module) -> int:
    """Trainable scalars, tied ones once."""
    return sum(parameter.numel() for parameter in module.parameters())
