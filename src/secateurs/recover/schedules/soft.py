"""Soft pruning with return: which units stay is decided again and again while the whole network trains."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from secateurs.data.calls import Inputs, called
from secateurs.errors import PlanError
from secateurs.progress import silent
from secateurs.recover import parallel
from secateurs.recover.companion import Companion
from secateurs.recover.schedules._base import Plain, Planning, Prepared, Training
from secateurs.search.values import keep
from secateurs.structure.copies import deep_copy
from secateurs.structure.graph import Graph

FROZEN_SHARE = 0.75
"""Share of soft training after which the choice stays, so that the statistics settle."""
DECISIONS, INTERVAL_AT_MOST = 10, 200
"""Decisions of soft training at least, and steps between two of them at most."""
Decide = Callable[[Mapping[str, np.ndarray]], Mapping[str, Sequence[int]]]
"""Scores float64 [units] per group (higher = keep) to the units that stay per group, within the budget."""


class SoftMasks(Companion):
    """A companion of fine-tuning that trains the uncut network as if it were cut, and lets units come back.

    Card. Every ``interval`` steps ``decide`` chooses the units that stay from the scores s_u = moving average of (Σ
    gradient · weight over all columns that read the unit)², a Taylor score (docs/methods.md, "Soft masks"). The columns
    that read the others count as zero in the forward pass, which is what a cut amounts to; their gradients are those of
    the real columns, and the unit itself is computed on, so one that is missed shows it and comes back. Source: SMCP
    (ECCV 2022) masks inputs in the same way; the moving average of squares is our own reading. Cost: one further
    product per column, one decision per interval. When to use: hard budgets with several epochs to train. When not:
    without training. Whole blocks are not removed in this phase.

    Use: ``finetune(copy of the dense network, data, recipe, teacher=dense, companion=SoftMasks(graph, decide))``, then
    ``graph.plan(masks.kept)`` on the trained copy, ``apply``, and a second, shorter ``finetune``.

    Args:
        graph: the traced network; the trained module has the same names.
        decide: see :data:`Decide`; called on the first process only.
        interval: steps between decisions; the first comes after one interval.
        freeze_after: step from which the choice stays, None for never.
        decay: of the scores' moving average.
        label: settings of ``decide`` as text, so that a checkpoint of another budget is refused.
    """

    def __init__(
        self,
        graph: Graph,
        decide: Decide,
        *,
        interval: int = 200,
        freeze_after: int | None = None,
        decay: float = 0.98,
        label: str = "",
    ) -> None:
        if interval < 1 or not 0 <= decay < 1:
            raise PlanError(f"Soft pruning needs interval >= 1 and 0 <= decay < 1; given {interval} and {decay}.")
        self.decide, self.interval, self.freeze_after = decide, interval, freeze_after
        self.decay, self.label = decay, label
        self.units = {group.name: group.units for group in graph.groups}
        self.readers = {group.name: _readers(graph, group.name) for group in graph.groups}
        self.kept: dict[str, tuple[int, ...]] = {name: tuple(range(count)) for name, count in self.units.items()}
        self.scores = {name: torch.zeros(count, dtype=torch.float64) for name, count in self.units.items()}
        self._shapes = {name: tuple(tensor.shape) for name, tensor in graph.model.named_parameters()}
        self._masks: dict[str, Tensor] = {}
        names = hashlib.sha256(repr(sorted(self.units.items())).encode()).hexdigest()[:12]
        self.identity = f"soft masks {interval} {freeze_after} {decay} {names} {label}"
        self.settings: dict[str, Any] = {
            "interval": interval,
            "freeze_after": freeze_after,
            "decay": decay,
            "label": label,
        }

    def forward(self, student: nn.Module, inputs: Inputs) -> Any:
        """Outputs of the network without the units that are out."""
        if not self._masks:
            return called(student, inputs)
        parameters = dict(student.named_parameters())
        changed = {}
        for name, mask in self._masks.items():
            value = parameters[name]
            # the value of the masked tensor, the gradient of the whole one
            changed[name] = value + (value * (mask.to(value.device) - 1)).detach()
        return called(lambda *args, **kwargs: functional_call(student, changed, args, kwargs), inputs)

    def after_backward(self, student: nn.Module, step: int) -> None:
        """Add this step's scores; every ``interval`` steps decide anew."""
        parameters = dict(student.named_parameters())
        for group, readers in self.readers.items():
            effect = torch.zeros(self.units[group], dtype=torch.float64)
            for name, dim, indices in readers:
                value = parameters[name]
                if value.grad is not None:
                    along = [axis for axis in range(value.ndim) if axis != dim]
                    product = (value.detach() * value.grad).double().cpu()
                    product = product.sum(along) if along else product
                    effect += product[indices].sum(1)
            self.scores[group].mul_(self.decay).add_(effect.square(), alpha=1 - self.decay)
        frozen = self.freeze_after is not None and step >= self.freeze_after
        if (step + 1) % self.interval == 0 and not frozen:
            self._choose()

    def tensors(self) -> dict[str, Tensor]:
        """Scores and choice."""
        held = {f"score.{name}": tensor for name, tensor in self.scores.items()}
        held.update({f"kept.{name}": torch.tensor(units, dtype=torch.int64) for name, units in self.kept.items()})
        return held

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up scores and choice."""
        for name in self.units:
            self.scores[name].copy_(tensors[f"score.{name}"])
        self._set({name: tuple(tensors[f"kept.{name}"].tolist()) for name in self.units})

    def _choose(self) -> None:
        """Let process 0 decide, and all follow."""
        text = ""
        if parallel.rank() == 0:
            found = self.decide({name: score.numpy().copy() for name, score in self.scores.items()})
            kept = {name: found.get(name, range(count)) for name, count in self.units.items()}
            text = json.dumps({name: sorted(int(unit) for unit in units) for name, units in kept.items()})
        self._set({name: tuple(units) for name, units in json.loads(parallel.same_text(text)).items()})

    def _set(self, kept: Mapping[str, tuple[int, ...]]) -> None:
        self.kept = dict(kept)
        masks: dict[str, Tensor] = {}
        for group, readers in self.readers.items():
            out = np.setdiff1d(np.arange(self.units[group]), self.kept[group])
            for name, dim, indices in readers:
                if len(out):
                    mask = masks.setdefault(name, torch.ones(self._shapes[name]))
                    mask.index_fill_(dim, indices[torch.from_numpy(out)].flatten(), 0.0)
        self._masks = masks


def _readers(graph: Graph, group: str) -> list[tuple[str, int, Tensor]]:
    """Columns that read the group's units: (parameter, dimension, indices [units, n])."""
    known = dict(graph.model.named_parameters())
    found = [view for view in graph.views(group) if view.role == "in" and view.parameter in known]
    if not found:
        raise PlanError(
            f"No trained weight reads the units of group {group}, so they cannot be switched off while training. Keep "
            f"the group whole (--keep), or choose another schedule."
        )
    return [(view.parameter, view.dim, torch.from_numpy(np.ascontiguousarray(view.indices))) for view in found]


class SoftSchedule(Plain):
    """Card. Half of the epochs come before the cut, under :class:`SoftMasks` decided by the planner within the limits.

    Whole blocks go only with the final cut. Source, cost and when to use: see :class:`SoftMasks`.
    """

    plans_anew = True

    def epochs_before(self, epochs: int) -> int:
        """Half of them, one at least."""
        return max(1, epochs // 2)

    def prepare(self, trainer: Training, planner: Planning, limits: Mapping[str, float]) -> Prepared:
        """Trains the uncut network under masks that are decided again and again within the limits."""
        open_masks = planner.allowing(replace(planner.legal, blocks=False))

        def decide(scores: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
            now = open_masks.knowing(scores, silent)
            chosen, groups = now.solve(limits).solution.widths, now.graph.groups
            return {group.name: keep(scores[group.name], int(w)) for group, w in zip(groups, chosen, strict=True)}

        epochs = self.epochs_before(trainer.epochs)
        steps = epochs * trainer.steps_per_epoch
        masks = SoftMasks(
            planner.graph,
            decide,
            interval=max(1, min(INTERVAL_AT_MOST, steps // DECISIONS)),
            freeze_after=int(FROZEN_SHARE * steps),
            label=f"{sorted(limits.items())}",
        )
        decide({name: np.asarray(found) for name, found in planner.scores.items()})
        carrier = deep_copy(trainer.dense, {})
        trainer.train(carrier, "soft", epochs, masks=masks)
        scores = {name: found.numpy() for name, found in masks.scores.items()}
        note = f"Before the cut, {epochs} epochs of soft pruning: what stays was decided every {masks.interval} steps."
        return Prepared(carrier, planner.knowing(scores), (note,))
