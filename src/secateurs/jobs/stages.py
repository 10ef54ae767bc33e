"""The main job: a trained network in, a smaller one out that was measured to be within the budgets.

Stages, each recorded in the run folder when it ends, as a frozen value: dense → plan (trace, latency model, search and
closed loop) → repair → fine-tune → deploy (export and final measurement; where an accuracy was asked for also whether
it is held), then result.json and report.html, which are made from these values. Of several targets each has a dense and
a deploy stage of its own. A resumed run takes finished stages from the folder; once plan.json is there it never plans
again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import nn

from secateurs.data import Data
from secateurs.importance.scoring import calibration_inputs
from secateurs.jobs.comparison import RepairedAccuracies, on_test_images, told
from secateurs.jobs.deployment import DenseFound, DeployFound, Deployment, ValidationFound
from secateurs.jobs.plan_stage import PlanFound, PlanStage
from secateurs.jobs.record import Findings, FurtherFound, make_record
from secateurs.jobs.recovery import DenseTunedFound, FinetuneFound, Recovery, RepairFound, few_steps
from secateurs.jobs.run_folder import RunFolder
from secateurs.jobs.settings import Aim, Settings
from secateurs.jobs.training import Trainer, training_mode
from secateurs.latency.store import Store
from secateurs.latency.targets import open_target
from secateurs.latency.targets.opening import in_float, make_target
from secateurs.measure.bench import Bench
from secateurs.measure.targeted import Targeted
from secateurs.models import Loaded
from secateurs.plan import Plan
from secateurs.progress import Progress, silent
from secateurs.recover.precision import Mode
from secateurs.report import Record, render
from secateurs.search.rows import FileRows
from secateurs.structure import apply
from secateurs.structure.copies import deep_copy


@dataclass(frozen=True)
class Result:
    """What a run ended with. ``module``: the pruned network in evaluation mode; ``record``: what result.json holds."""

    module: nn.Module
    plan: Plan
    record: Record
    folder: Path


@dataclass
class Job:
    """One run: its inputs and its folder.

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

    def run(self) -> Result:
        """Every stage that is not done yet.

        Raises:
            InfeasibleBudgetError: the budget is below the fastest legal network, measured.
            SecateursError: the input is wrong, a file cannot be written, or a runtime failed.
        """
        if self.folder.files.result.exists():
            return self._finished()
        self._redo_what_is_damaged()
        for note in few_steps(self.settings, self.data):
            self.progress.say(note)
        folder, files, recovery = self.folder, self.folder.files, self._recovery()
        (deployment, dense), *beside = placed = self._placed()
        targets = tuple(self._targeted(one.aim, found) for one, found in placed)
        planned = folder.stage("plan", PlanFound, lambda: self._plan_stage(targets).run())
        plan = Plan.load(files.plan)
        # Under the penalty elements go while the network is trained.
        begin = plan.model_copy(update={"elements": {}}) if self.settings.penalty else plan
        small = apply(self._carrier(), begin, self.example, check=False).eval()
        repaired = folder.stage("repair", RepairFound, lambda: recovery.repair(small, begin))
        tuned = recovery.tune(small, plan, repaired)
        dense, tuned = self._told_image_by_image(dense, small, tuned)
        spent = folder.seconds.get("finetune", 0.0)
        dense_tuned = folder.stage("dense_tuned", DenseTunedFound, lambda: recovery.dense_tuned(planned, spent))

        def deploy(target: Deployment, dense: DenseFound) -> DeployFound:
            work = partial(target.deploy, small, plan, dense, planned, tuned.accuracy)
            return folder.stage(target.aim.stage("deploy"), DeployFound, work)

        deployed = deploy(deployment, dense)
        further = tuple(FurtherFound(one.aim, found, deploy(one, found)) for one, found in beside)
        validated = None if planned.within is None else self._validated(deployment, plan, small)
        found = Findings(dense, planned, repaired, tuned, dense_tuned, deployed, validated, further)
        record = make_record(self.settings, found, plan, folder.seconds, self.command, self.data.task.measured)
        folder.write(files.report, render(record))
        folder.write(files.result, record.to_json())
        for path in files.scratch:
            folder.remove(path)
        return Result(small, plan, record, folder.path)

    def _redo_what_is_damaged(self) -> None:
        """A file between two stages that is missing or not as it was written is made again, and what followed from it:
        from the same stored rows and checkpoints, so that it becomes the same."""
        folder, files, aims = self.folder, self.folder.files, self.settings.aims
        kinds = {aim: open_target(aim.target).artifact for aim in aims}
        deployed = {aim: folder.exported(files.deployed(kind, aim.place)) for aim, kind in kinds.items()}
        needed = {
            **{aim.stage("dense"): folder.exported(files.dense(kind, aim.place)) for aim, kind in kinds.items()},
            "plan": [files.plan, *([files.carrier] if folder.made(files.carrier) else [])],
            "repair": [files.repaired],
            **{aim.stage("deploy"): [*deployed[aim], *([] if aim.place else [files.weights])] for aim in aims},
        }
        stages = ("plan", "repair", "finetune", *(aim.stage("deploy") for aim in aims), "validated")
        for stage, paths in needed.items():
            damaged = [path for path in paths if not folder.sound(path)]
            if folder.has(stage) and damaged:
                self.progress.say(f"{damaged[0]} is missing or is not what the run wrote; it is made again.")
                for path in damaged:
                    folder.remove(path)
                folder.forget(stage, *(stages[stages.index(stage) :] if stage in stages else ()))

    def _finished(self) -> Result:
        files = self.folder.files
        self.folder.require_sound(files.result, files.plan, files.weights)
        record, plan = Record.load(files.result), Plan.load(files.plan)
        small = apply(self.loaded.module, plan, self.example, check=False).eval()
        small.load_state_dict(load_file(files.weights))
        self.progress.say(f"The run in {self.folder.path} has finished already.")
        return Result(small, plan, record, self.folder.path)

    def _validated(self, deployment: Deployment, plan: Plan, small: nn.Module) -> ValidationFound:
        """Whether what is deployed, and the repaired network before it, keep the accuracy that was asked for."""

        def work() -> ValidationFound:
            repaired = apply(self.loaded.module, plan, self.example, check=False).eval()
            repaired.load_state_dict(load_file(self.folder.files.repaired))
            accuracies = RepairedAccuracies(self.trainer, deployment.bench, self.folder)
            with self.folder.timed("recover"), self.progress.task("pruned network on validation images"):
                return deployment.validate(accuracies, repaired, small, plan)

        return self.folder.stage("validated", ValidationFound, work)

    def _told_image_by_image(
        self, dense: DenseFound, small: nn.Module, tuned: FinetuneFound
    ) -> tuple[DenseFound, FinetuneFound]:
        """What an older version, which began the run, did not record of the test images and of the training."""
        if not dense.test_images:
            found = on_test_images(self.loaded.module, self.data, self.progress)
            dense = replace(dense, dense_correct=told(found), test_images=found.images)
        if not tuned.correct:
            right = told(on_test_images(small, self.data, self.progress))
            tuned = replace(tuned, correct=right, tuned_epochs=len(tuned.history))
        return dense, tuned

    def _placed(self) -> list[tuple[Deployment, DenseFound]]:
        """How to deploy on every target, and what was found of the dense network there."""
        first, *others = self.settings.aims
        dense = self.folder.stage("dense", DenseFound, self._deployment(first).dense)
        made = [(self._deployment(first, dense), dense)]
        for aim in others:
            work = partial(self._deployment(aim).dense_too, dense)
            found = self.folder.stage(aim.stage("dense"), DenseFound, work)
            made.append((self._deployment(aim, found), found))
        return made

    def _targeted(self, aim: Aim, dense: DenseFound) -> Targeted:
        return Targeted(aim.name, aim.budgets, self._bench(aim, dense), float(dense.dense_bytes), dense.in_float)

    def _bench(self, aim: Aim, dense: DenseFound | None = None) -> Bench:
        """What measures on a target; ``dense``: what was found there, None before."""
        settings, files = self.settings, self.folder.files
        target = open_target(aim.target if dense is None else used_target(aim.target, dense))
        dense_file, candidate = files.dense(target.artifact, aim.place), files.candidate(target.artifact)
        given = (self.example, settings.threads, settings.batch, settings.seed, self.progress)
        return Bench(target, dense_file, candidate, *given, calibration=calibration_inputs(self.data))

    def _deployment(self, aim: Aim, dense: DenseFound | None = None) -> Deployment:
        bench = self._bench(aim, dense)
        return Deployment(self.loaded, self.data, self.settings, self.folder, bench, self.progress, aim)

    def _recovery(self) -> Recovery:
        return Recovery(self.trainer, self.data, self.settings, self.folder, self.progress)

    def _plan_stage(self, targets: tuple[Targeted, ...]) -> PlanStage:
        return PlanStage(
            self.loaded,
            self.data,
            self.settings,
            self.folder,
            self.example,
            targets,
            Store(self.store, progress=self.progress),
            self.trainer,
            self.progress,
        )

    def _carrier(self) -> nn.Module:
        """The network that is cut: dense, or what training before the cut made of it."""
        path = self.folder.files.carrier
        if not self.folder.made(path):
            return self.loaded.module
        carrier = deep_copy(self.loaded.module, {})
        carrier.load_state_dict(load_file(path))
        return carrier

    @cached_property
    def trainer(self) -> Trainer:
        """Trains this run's networks."""
        folder = self.folder

        def mode(module: nn.Module, steps: int) -> Mode:
            store = Store(self.store, progress=self.progress)
            return folder.stage("mode", Mode, lambda: training_mode(self.trainer, module, steps, store, folder))

        files = folder.files
        given = (self.loaded.module, self.example, self.data, self.settings, files.checkpoints)
        return Trainer(*given, mode, self.progress, FileRows(files.trials), self._most)

    def _most(self) -> int | None:
        """The greatest whole number of a weight in the file that is deployed; None where it is in float."""
        (deployment, _), *_ = self._placed()
        return deployment.bench.most


def used_target(asked: str, dense: DenseFound) -> str:
    """The target that is measured on: the one that was asked for, or in float where that was found to be faster."""
    return asked if make_target(asked).precision == dense.precision else in_float(asked)
