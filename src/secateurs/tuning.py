"""Training around the cut: after it, in several cuts, or while it is still open what stays; alone or with helpers."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateurs.data.images import Data
from secateurs.element_training import ElementTraining
from secateurs.errors import InfeasibleBudgetError, PlanError
from secateurs.evaluation import Evaluator, make_evaluator
from secateurs.importance.dynamic import Dynamics
from secateurs.importance.values import keep
from secateurs.multipliers import fit_multipliers
from secateurs.plan import Plan
from secateurs.planning import Planner
from secateurs.progress import Progress, silent
from secateurs.recover import parallel
from secateurs.recover.batch_norm import reestimate
from secateurs.recover.companion import Companion
from secateurs.recover.features import Features
from secateurs.recover.finetune import Finetuned, finetune
from secateurs.recover.precision import Mode
from secateurs.recover.recipe import Recipe
from secateurs.recover.regrow import PruneRegrow
from secateurs.recover.repair import repair
from secateurs.recover.soft import SoftMasks
from secateurs.search.problem import Solution
from secateurs.search.rows import FileRows
from secateurs.settings import Settings
from secateurs.structure import Graph, apply, trace

FROZEN_SHARE = 0.75
"""Share of soft training after which the choice stays, so that the statistics settle."""
DECISIONS, INTERVAL_AT_MOST = 10, 200
"""Decisions of soft training at least, and steps between two of them at most."""
REGROWTHS = 10
"""Rounds of prune and regrow, at most."""
CUTS = 3
"""Cuts of the gradual schedule, at most."""
JUDGED = 512
"""Images that a network is judged on while values are calibrated."""


def epochs_before(settings: Settings) -> int:
    """Epochs of training before the final cut; the others follow it."""
    if settings.schedule in ("soft", "regrow"):
        return max(1, settings.epochs // 2)
    return settings.epochs // 2 if settings.schedule == "gradual" else 0


@dataclass(frozen=True)
class Trainer:
    """Fine-tunes networks of one run; under ``torchrun`` the other processes take part in every training.

    ``folder``: where checkpoints go; ``mode``: number format and layout for a network.
    """

    dense: nn.Module
    example: Any
    data: Data
    settings: Settings
    folder: Path
    mode: Callable[[nn.Module], Mode] | None = None
    progress: Progress = silent

    def train(
        self, student: nn.Module, name: str, epochs: int, plan: Plan | None = None, masks: SoftMasks | None = None
    ) -> Finetuned:
        """``student`` (in place) after ``epochs``; goes on from checkpoints of that name.

        ``plan``: what ``student`` is cut by; None: it has the dense network's shape.
        """
        settings = self.settings
        mode = Mode() if self.mode is None else self.mode(student)
        recipe = Recipe(
            epochs=epochs,
            lr=settings.lr,
            batch=settings.train_batch,
            precision=mode.precision,
            layout=mode.layout,
            seed=settings.seed,
        )
        folder = (self.folder / name).absolute()
        order = {"recipe": asdict(recipe), "folder": str(folder), "plan": None if plan is None else plan.to_json()}
        order["masks"] = None if masks is None else masks.settings
        self._tell(json.dumps(order))
        return self._run(student, recipe, folder, self._companion(plan, masks, epochs))

    def dismiss(self, message: str) -> None:
        """Let the helpers go; :meth:`assist` returns the message."""
        self._tell(json.dumps({"message": message}))

    def assist(self) -> str:
        """Take part in every training of process 0, until it dismisses its helpers with a message."""
        while "message" not in (order := json.loads(parallel.same_text(""))):
            plan = None if order["plan"] is None else Plan.from_json(order["plan"])
            student = copy.deepcopy(self.dense) if plan is None else apply(self.dense, plan, self.example, check=False)
            masks = None if order["masks"] is None else self._same_masks(student, order["masks"])
            recipe = Recipe(**order["recipe"])
            self._run(student, recipe, Path(order["folder"]), self._companion(plan, masks, recipe.epochs))
        return str(order["message"])

    def traced(self, module: nn.Module) -> Graph:
        """The structure of the dense network, or of what is left of it: patterns that only name what is gone are left
        out."""

        def there(pattern: str) -> bool:
            try:
                trace(module, self.example, barriers=[pattern])
            except PlanError:
                return False
            return True

        barrier, keep = self.settings.barrier, self.settings.keep
        try:
            return trace(module, self.example, barriers=barrier, keep=keep)
        except PlanError:
            return trace(module, self.example, barriers=filter(there, barrier), keep=filter(there, keep))

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

    def _companion(self, plan: Plan | None, masks: SoftMasks | None, epochs: int) -> Companion | None:
        also: Companion | None = masks
        if masks is None and plan is not None and self.settings.features > 0:
            also = Features(plan, weight=self.settings.features)
        if plan is None or not plan.elements:
            return also
        steps = epochs * max(1, len(self.data.train) // self.settings.train_batch)
        return ElementTraining(plan.elements, int(self.settings.penalty * steps), also)

    def _tell(self, text: str) -> None:
        if parallel.size() > 1:
            parallel.same_text(text)


CALIBRATION_BATCH = 128


def mend(trainer: Trainer, small: nn.Module, plan: Plan) -> tuple[bool, list[str]]:
    """Repair a cut network (in place) as the settings say.

    Returns:
        Whether anything changed, and lines for the user.
    """
    changed, notes, settings, data = False, [], trainer.settings, trainer.data
    if not (plan.removed() or plan.elements or plan.blocks_removed):
        notes.append("Nothing was cut before the training: kernel elements go with it.")
    elif settings.repair == "least-squares":
        done = repair(trainer.dense, small, plan, data, progress=trainer.progress)
        changed, notes = done.chosen != "nothing", list(done.notes)
    elif settings.repair == "statistics":
        batches = data.calibration.batches(CALIBRATION_BATCH)
        changed = reestimate(small, batches, progress=trainer.progress).layers > 0
    if not changed:
        notes.append("The cut weights were not repaired.")
    return changed, notes


@dataclass(frozen=True)
class Prepared:
    """What the final cut starts from: the dense network's shape with trained weights (None: untouched), and what
    knows the scores of its units."""

    carrier: nn.Module | None
    planner: Planner
    notes: tuple[str, ...] = ()


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
    prepared = Prepared(None, planner)
    if settings.schedule == "gradual":
        prepared = _gradual(trainer, planner, limits)
    if settings.schedule == "soft":
        prepared = _soft(trainer, planner, limits)
    return replace(prepared, notes=(*notes, *prepared.notes))


def _judge(trainer: Trainer, planner: Planner) -> Evaluator:
    """Judges networks on calibration images alone, half of them for their statistics; keeps what it found."""
    calibration = trainer.data.calibration
    half = len(calibration) // 2
    trainer.folder.mkdir(parents=True, exist_ok=True)
    return make_evaluator(
        planner.graph,
        planner.scores,
        calibration.take(half),
        calibration.select(np.arange(half, len(calibration))[:JUDGED]),
        classes=trainer.data.classes,
        rows=FileRows(trainer.folder / "values.sqlite3"),
    )


def _soft(trainer: Trainer, planner: Planner, limits: Mapping[str, float]) -> Prepared:
    """Trains the uncut network under masks that are decided again and again within the limits."""
    without_blocks = replace(planner.legal, blocks=False)

    def decide(scores: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
        now = replace(planner, criterion=planner.criterion_used, known=scores, legal=without_blocks, progress=silent)
        chosen = now.solve(limits).solution.widths
        return {group.name: keep(scores[group.name], int(w)) for group, w in zip(now.graph.groups, chosen, strict=True)}

    epochs = epochs_before(trainer.settings)
    steps = epochs * max(1, len(trainer.data.train) // trainer.settings.train_batch)
    masks = SoftMasks(
        planner.graph,
        decide,
        interval=max(1, min(INTERVAL_AT_MOST, steps // DECISIONS)),
        freeze_after=int(FROZEN_SHARE * steps),
        label=f"{sorted(limits.items())}",
    )
    decide({name: np.asarray(found) for name, found in planner.scores.items()})
    carrier = copy.deepcopy(trainer.dense)
    trainer.train(carrier, "soft", epochs, masks=masks)
    scores = {name: found.numpy() for name, found in masks.scores.items()}
    note = f"Before the cut, {epochs} epochs of soft pruning: what stays was decided every {masks.interval} steps."
    return Prepared(carrier, replace(planner, criterion=planner.criterion_used, known=scores), (note,))


def check_regrow(planner: Planner) -> None:
    """Before the search: whether what it finds can be regrown.

    Raises:
        PlanError: the network has to be rebuilt to lose blocks, or has units that cannot be switched off.
    """
    graph = planner.graph
    if planner.legal.blocks and graph.plan({}, [block.name for block in graph.spec.blocks]).rebuild:
        raise PlanError(
            "This network has to be rebuilt to lose blocks, so it cannot lose them before it is trained. Give "
            "--no-blocks, or --schedule once."
        )
    PruneRegrow(graph, {}, Dynamics(graph))


def regrow(trainer: Trainer, planner: Planner, solution: Solution) -> Prepared:
    """Trains the network down to the widths of ``solution`` in rounds, chosen by how the filters change.

    Blocks that it removes are gone from the beginning.
    """
    graph, settings = planner.graph, trainer.settings
    begin = graph.plan({}, [graph.spec.blocks[index].name for index in sorted(solution.removed)])
    student = apply(trainer.dense, begin, trainer.example, check=False)
    left = trainer.traced(student)
    names = _same_groups(graph, left)
    widths = {inner: int(solution.widths[graph.group_index(outer)]) for inner, outer in names.items()}
    epochs = epochs_before(settings)
    steps = int(FROZEN_SHARE * epochs * max(1, len(trainer.data.train) // settings.train_batch))
    rounds = max(1, min(REGROWTHS, steps))
    masks = PruneRegrow(left, widths, Dynamics(left), rounds=rounds, interval=max(1, steps // rounds))
    trainer.train(student, "regrow", epochs, begin, masks=masks)
    carrier = copy.deepcopy(trainer.dense)
    scatter(carrier, student, begin)
    known = dict(planner.scores)
    known.update({outer: _reordered(known[outer], masks, inner) for inner, outer in names.items()})
    note = (
        f"Before the cut, {epochs} epochs of prune and regrow in {rounds} rounds, down to the plan's widths, without "
        f"the {len(solution.removed)} blocks that go."
    )
    return Prepared(carrier, replace(planner, criterion=planner.criterion_used, known=known), (note,))


def _same_groups(graph: Graph, left: Graph) -> dict[str, str]:
    """Groups of a network without some blocks to the same groups of the whole one: those with the same weights."""
    whole = {
        view.parameter: group.name for group in graph.groups for view in graph.views(group.name) if view.role == "out"
    }
    found = {}
    for group in left.groups:
        outer = {whole.get(view.parameter) for view in left.views(group.name) if view.role == "out"}
        name = outer.pop() if len(outer) == 1 else None
        if name is not None and graph.groups[graph.group_index(name)].units == group.units:
            found[group.name] = name
    return found


def _reordered(scores: np.ndarray, masks: PruneRegrow, group: str) -> np.ndarray:
    """The same scores [units], given to the units in the order of ``masks``: those it kept first.

    So a group is worth at every width what it was, and regrowth decides which units those are.
    """
    last = np.full(len(scores), True)
    last[list(masks.kept[group])] = False
    order = np.lexsort((-masks.scores[group].numpy(), last))
    ranked = np.sort(scores)[::-1]
    given = np.empty_like(scores)
    # of equal ones those that regrowth kept come first, too
    given[order] = ranked + max(float(np.abs(ranked).max()), 1e-30) * 1e-9 * np.linspace(1.0, 0.0, len(ranked))
    return given


def _gradual(trainer: Trainer, planner: Planner, limits: Mapping[str, float]) -> Prepared:
    """Cuts in equal steps of the ratio, each repaired and trained; units are scored anew before every cut.

    Whole blocks go only with the final cut; a step that is out of reach without them is left out.
    """
    epochs = epochs_before(trainer.settings)
    early = min(CUTS - 1, epochs)
    carrier, notes, done = copy.deepcopy(trainer.dense), [], 0
    for step in range(1, early + 1):
        share = {name: limit ** (step / (early + 1)) for name, limit in limits.items()}
        now = replace(planner, criterion=planner.criterion_used, legal=replace(planner.legal, blocks=False))
        try:
            plan = now.plan(now.solve(share))
        except InfeasibleBudgetError:
            notes.append(f"Cut {step} of {early + 1} was left out: it is out of reach without removing blocks.")
            continue
        if plan.rebuild:
            raise PlanError(
                "This network has to be rebuilt for a cut, so it cannot be cut several times. Give --schedule once."
            )
        small = apply(carrier, plan, trainer.example, check=False).eval()
        _, said = mend(trainer, small, plan)
        notes.extend(f"Cut {step} of {early + 1}: {line}" for line in said)
        part = epochs * step // early - done
        trainer.train(small, f"cut{step}", part, plan)
        done += part
        scatter(carrier, small, plan)
        planner = _rescored(trainer, planner, small, plan)
    return Prepared(carrier if done else None, planner, tuple(notes))


def _rescored(trainer: Trainer, planner: Planner, small: nn.Module, plan: Plan) -> Planner:
    """The planner that knows the scores of what is left, by the network as it is now, and offers nothing else."""
    graph = trace(small, trainer.example, barriers=trainer.settings.barrier, keep=trainer.settings.keep)
    found = planner.score(graph)
    known = {}
    for group in planner.graph.groups:
        kept = list(plan.groups.get(group.name, range(group.units)))
        values = found.get(group.name, np.zeros(len(kept)))
        known[group.name] = np.full(group.units, values.min() - 1.0)
        known[group.name][kept] = values
    widest = {name: len(kept) for name, kept in plan.groups.items()}
    return replace(planner, criterion=planner.criterion_used, known=known, legal=replace(planner.legal, widest=widest))


@torch.no_grad()
def scatter(dense: nn.Module, small: nn.Module, plan: Plan) -> None:
    """Write the tensors of ``small = apply(dense, plan)`` back to where they were cut from (in place)."""
    wide = dense.state_dict()
    for name, tensor in small.state_dict().items():
        index: list[Tensor] = []
        for dim, size in enumerate(wide[name].shape):
            kept = torch.tensor(plan.slices.get(name, {}).get(dim, tuple(range(size))), device=tensor.device)
            index.append(kept.reshape([-1 if axis == dim else 1 for axis in range(tensor.ndim)]))
        if index:
            wide[name][tuple(index)] = tensor
        else:
            wide[name].copy_(tensor)
