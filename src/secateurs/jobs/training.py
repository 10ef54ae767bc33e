"""Training around the cut: after it, in several cuts, or while it is still open what stays; alone or with helpers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from secateurs.data.images import Data
from secateurs.errors import PlanError
from secateurs.importance.dynamic import Dynamics
from secateurs.jobs.run_folder import RunFolder
from secateurs.jobs.settings import Settings
from secateurs.judging.evaluator import NetworkEvaluator, make_evaluator
from secateurs.latency.store import Store
from secateurs.latency.targets._base import processor_name
from secateurs.plan import Plan
from secateurs.planning.multipliers import fit_multipliers
from secateurs.planning.planner import Planner
from secateurs.progress import Progress, silent
from secateurs.provenance import store_key
from secateurs.recover import parallel
from secateurs.recover.amount import steps_per_epoch
from secateurs.recover.batch_norm import reestimate
from secateurs.recover.checkpoint import digest
from secateurs.recover.companion import Companion
from secateurs.recover.features import Features
from secateurs.recover.finetune import Finetuned, finetune
from secateurs.recover.precision import Mode, fastest_mode
from secateurs.recover.quantisation import QuantiseAware
from secateurs.recover.recipe import Recipe
from secateurs.recover.repair import repair
from secateurs.recover.schedules import schedule
from secateurs.recover.schedules._base import Prepared
from secateurs.recover.schedules.elements import ElementTraining
from secateurs.recover.schedules.regrow import PruneRegrow
from secateurs.recover.schedules.soft import SoftMasks
from secateurs.search.problem import Rows
from secateurs.structure import Graph, apply, trace
from secateurs.structure.copies import deep_copy
from secateurs.structure.groups import ONLY

QUANTISED_SHARE = 0.5
"""Last part of a training that computes with rounded numbers, where that is asked for."""
JUDGED = 512
"""Images that a network is judged on while values are calibrated."""


def epochs_before(settings: Settings) -> int:
    """Epochs of training before the final cut; the others follow it."""
    return schedule(settings.schedule).epochs_before(settings.training[0])


@dataclass(frozen=True)
class Trainer:
    """Fine-tunes networks of one run; under ``torchrun`` the other processes take part in every training.

    ``folder``: where checkpoints go; ``mode``: number format and layout for a network that is trained
    for so many steps in all; ``trials``: where networks are kept that are tried to make values of groups comparable;
    ``most``: the greatest whole number of a weight in the file that is deployed, None where that is in float.
    """

    dense: nn.Module
    example: Any
    data: Data
    settings: Settings
    folder: Path
    mode: Callable[[nn.Module, int], Mode] | None = None
    progress: Progress = silent
    trials: Rows | None = None
    most: Callable[[], int | None] | None = None

    def train(
        self, student: nn.Module, name: str, epochs: int, plan: Plan | None = None, masks: SoftMasks | None = None
    ) -> Finetuned:
        """``student`` (in place) after ``epochs``; goes on from checkpoints of that name.

        ``plan``: what ``student`` is cut by; None: it has the dense network's shape.
        """
        settings = self.settings
        mode = Mode() if self.mode is None else self.mode(student, self.epochs * self.steps_per_epoch)
        recipe = Recipe(
            epochs=epochs,
            lr=settings.lr,
            batch=settings.training[1],
            precision=mode.precision,
            layout=mode.layout,
            seed=settings.seed,
        )
        folder = (self.folder / name).absolute()
        order: dict[str, Any] = {
            "recipe": asdict(recipe),
            "folder": str(folder),
            "plan": None if plan is None else plan.to_json(),
        }
        order["masks"] = None if masks is None else masks.settings
        order["most"] = most = self.most() if settings.quantise_aware and self.most is not None else None
        self._tell(json.dumps(order))
        return self._run(student, recipe, folder, self._companion(plan, masks, epochs, most))

    @property
    def epochs(self) -> int:
        """Of the whole run."""
        return self.settings.training[0]

    @property
    def steps_per_epoch(self) -> int:
        """Training steps of an epoch, one at least."""
        return steps_per_epoch(len(self.data.train), self.settings.training[1])

    def watcher(self, graph: Graph) -> Dynamics:
        """What scores units by how their filters change."""
        return Dynamics(graph)

    def mend(self, small: nn.Module, plan: Plan) -> tuple[str, list[str]]:
        """Repair a cut network (in place) as the settings say.

        Returns:
            What was done in words ("" for nothing), and lines for the user.
        """
        how, notes, settings, data = "", [], self.settings, self.data
        if not (plan.removed() or plan.elements or plan.blocks_removed):
            notes.append("Nothing was cut before the training: kernel elements go with it.")
        elif settings.repair == "least-squares":
            done = repair(self.dense, small, plan, data, progress=self.progress)
            how, notes = "" if done.chosen == "nothing" else done.chosen, list(done.notes)
        elif settings.repair == "statistics":
            batches = data.inputs(data.calibration, CALIBRATION_BATCH)
            how = "batch norm" if reestimate(small, batches, progress=self.progress).layers else ""
        if not how:
            notes.append("The cut weights were not repaired.")
        return how, notes

    def dismiss(self, message: str) -> None:
        """Let the helpers go; :meth:`assist` returns the message."""
        self._tell(json.dumps({"message": message}))

    def assist(self) -> str:
        """Take part in every training of process 0, until it dismisses its helpers with a message."""
        while "message" not in (order := json.loads(parallel.same_text(""))):
            plan = None if order["plan"] is None else Plan.from_json(order["plan"])
            student = deep_copy(self.dense, {}) if plan is None else apply(self.dense, plan, self.example, check=False)
            masks = None if order["masks"] is None else self._same_masks(student, order["masks"])
            recipe = Recipe(**order["recipe"])
            companion = self._companion(plan, masks, recipe.epochs, order["most"])
            self._run(student, recipe, Path(order["folder"]), companion)
        return str(order["message"])

    def traced(self, module: nn.Module) -> Graph:
        """The structure of the dense network, or of what is left of it: patterns that only name what is gone are left
        out."""

        def there(pattern: str) -> bool:
            try:
                trace(module, self.example, barriers=[pattern.removeprefix(ONLY)])
            except PlanError:
                return False
            return True

        barrier, keep = self.settings.barrier, self.settings.keep
        try:
            return trace(module, self.example, barriers=barrier, keep=keep)
        except PlanError:
            left = tuple(filter(there, keep))
            none_left = any(one.startswith(ONLY) for one in keep) and not any(one.startswith(ONLY) for one in left)
            return trace(module, self.example, barriers=filter(there, barrier), keep="*" if none_left else left)

    def _same_masks(self, student: nn.Module, settings: dict[str, Any]) -> SoftMasks:
        """The masks of process 0, for a process that helps."""
        graph = self.traced(student)
        if "widths" in settings:
            return PruneRegrow(graph, watcher=Dynamics(graph), **settings)
        return SoftMasks(graph, lambda scores: {}, **settings)

    def _run(self, student: nn.Module, recipe: Recipe, folder: Path, companion: Companion | None) -> Finetuned:
        return finetune(
            student,
            self.data,
            recipe,
            teacher=self.dense,
            companion=companion,
            checkpoint_dir=folder,
            resume=True,
            progress=self.progress,
        )

    def _companion(self, plan: Plan | None, masks: SoftMasks | None, epochs: int, most: int | None) -> Companion | None:
        also: Companion | None = masks
        if masks is None and plan is not None and self.settings.features > 0:
            also = Features(plan, weight=self.settings.features)
        steps = epochs * self.steps_per_epoch
        if plan is not None and most is not None:
            also = QuantiseAware(steps - int(QUANTISED_SHARE * steps), most, plan.in_float, also)
        if plan is None or not plan.elements:
            return also
        return ElementTraining(plan.elements, int(self.settings.penalty * steps), also)

    def _tell(self, text: str) -> None:
        if parallel.size() > 1:
            parallel.same_text(text)


CALIBRATION_BATCH = 128


def training_mode(trainer: Trainer, student: nn.Module, steps: int, store: Store, folder: RunFolder) -> Mode:
    """Number format and memory layout that train fastest here, where the training is long enough to try.

    The choice is kept in the store: another run of the same network trains in the same way, to the same bits.
    """
    settings = trainer.settings
    device = {"device": processor_name(), "torch": torch.__version__, "threads": torch.get_num_threads()}
    batch = settings.training[1]
    signature = store_key("training-mode", digest(student), f"b{batch}", settings.precision, f"s{steps}")
    held = store.get(device, signature)
    if held is not None:
        return Mode(**held)
    with folder.timed("finetune"), trainer.progress.task("choose number format"):
        inputs = next(trainer.data.inputs(trainer.data.train, batch))
        found = fastest_mode(student, trainer.dense, inputs, precision=settings.precision, steps=steps)
    store.put(device, {signature: asdict(found)})
    return found


def prepare(trainer: Trainer, planner: Planner, limits: Mapping[str, float]) -> Prepared:
    """What comes before the final cut: values are calibrated and networks trained, as the settings say.

    ``limits``: by resource, as ratios to dense.

    Raises:
        PlanError: the network cannot be trained under this schedule.
        InfeasibleBudgetError: soft training finds no network within the limits without removing blocks.
    """
    settings, notes = trainer.settings, []
    if settings.calibrate_values:
        judge, trials = _judge(trainer, planner), settings.calibrate_values
        fitted = fit_multipliers(planner, limits, judge, trials=trials, seed=settings.seed, progress=trainer.progress)
        planner, notes = fitted.planner, [fitted.note]
    prepared = schedule(settings.schedule).prepare(trainer, planner, limits)
    return replace(prepared, notes=(*notes, *prepared.notes))


def _judge(trainer: Trainer, planner: Planner) -> NetworkEvaluator:
    """Judges networks on calibration images alone, half of them for their statistics; keeps what it found."""
    calibration = trainer.data.calibration
    half = len(calibration) // 2
    trainer.folder.mkdir(parents=True, exist_ok=True)
    return make_evaluator(
        planner.graph,
        planner.scores,
        calibration.take(half),
        calibration.select(np.arange(half, len(calibration))[:JUDGED]),
        task=trainer.data.task,
        rows=trainer.trials,
    )
