"""Prune and regrow: training with a surplus of units that shrinks to nothing, and returns as they were."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from secateurs.data.calls import Inputs, called
from secateurs.errors import PlanError
from secateurs.recover.schedules._base import Plain, Planning, Prepared, Training
from secateurs.recover.schedules.soft import FROZEN_SHARE, SoftMasks
from secateurs.structure.apply import apply
from secateurs.structure.copies import deep_copy
from secateurs.structure.graph import Graph
from secateurs.structure.training import scatter

if TYPE_CHECKING:
    from secateurs.search.problem import Solution

REGROWTHS = 10
"""Rounds of prune and regrow, at most."""
LOOKS = 4
"""Snapshots per round."""


class Watcher(Protocol):
    """Scores units by how their filters change (:class:`secateurs.importance.dynamic.Dynamics`).

    ``changes``: intervals between snapshots seen so far.
    """

    changes: int

    def observe(self, module: nn.Module) -> None:
        """Take a snapshot."""

    def scores(self, group: str) -> np.ndarray:
        """Scores float64 [units], higher = keep."""

    def tensors(self) -> dict[str, Tensor]:
        """State that a resumed run needs."""

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up that state."""


def surplus_at(round_number: int, rounds: int, first: float) -> float:
    """g_r = g₀ ½ (1 + cos(π r / R)), 0 from round R on."""
    if round_number >= rounds:
        return 0.0
    return first * 0.5 * (1 + math.cos(math.pi * round_number / rounds))


class PruneRegrow(SoftMasks):
    """A companion of fine-tuning that prunes to a policy's widths in rounds, each with a smaller surplus.

    Card. In round r every group keeps its width plus g_r of its units, g_r = g₀ ½ (1 + cos(π r / R)), the best-scored
    ones; the columns that read the others count as zero, so nothing of theirs is trained, and a unit that comes back
    starts from the weights it was last used with. Round R keeps the widths exactly, from then on the choice stays.
    Source: LAP's regrowth (reported); the cosine decay follows CHEX, arXiv 2203.15794; rounds, surplus and the restored
    weights are our reading (docs/methods.md, "Prune and regrow"). Scores are refreshed four times a round. Cost: one
    further product per column, a copy of the weights. When to use: with several epochs to train and a criterion of
    dynamics. When not: without training. Blocks are not removed in this phase; groups without a width keep all units.

    Use: ``finetune(copy of the dense network, data, recipe, teacher=dense, companion=PruneRegrow(graph, widths,
    dynamics))``, then ``graph.plan(companion.kept)`` on the trained copy, ``apply``, and a shorter ``finetune``.

    Args:
        graph: the traced network; the trained module has the same names.
        widths: units that stay in the end, by group name.
        watcher: where scores come from; with ``changes`` above 0 it decides about the first round already.
        rounds: R.
        interval: steps per round, such as those of half an epoch.
        surplus: g₀, a share of each group's units.
    """

    def __init__(
        self,
        graph: Graph,
        widths: Mapping[str, int],
        watcher: Watcher,
        *,
        rounds: int = 10,
        interval: int = 200,
        surplus: float = 0.2,
    ) -> None:
        if rounds < 1 or not 0 <= surplus <= 1:
            raise PlanError(f"Prune and regrow needs rounds >= 1 and a surplus of 0 to 1; given {rounds}, {surplus}.")
        for name, width in widths.items():
            units = graph.groups[graph.group_index(name)].units
            if not 1 <= width <= units:
                raise PlanError(f"Group {name} cannot keep {width} of {units} units. Give a width from 1 to {units}.")
        label = f"regrow {rounds} {surplus} {sorted(widths.items())}"
        super().__init__(graph, self._best, interval=interval, freeze_after=rounds * interval, label=label)
        self.widths, self.watcher, self.rounds, self.surplus = dict(widths), watcher, rounds, surplus
        self.settings = {"widths": self.widths, "rounds": rounds, "interval": interval, "surplus": surplus}
        self.round = -1
        self._views = {group.name: list(graph.views(group.name)) for group in graph.groups}
        self._memory: dict[str, Tensor] = {}

    def attached(self, student: nn.Module, teacher: nn.Module | None) -> AbstractContextManager[object]:
        """Before the first step: the first snapshot, and round 0 where the filters were watched before."""
        if self.round < 0:
            self.round = 0
            self.watcher.observe(student)
            if self.watcher.changes:
                self._next_round(student)
        return super().attached(student, teacher)

    def forward(self, student: nn.Module, inputs: Inputs) -> Any:
        """Outputs of the network without the units that are out; nothing flows back to them."""
        parameters = dict(student.named_parameters())
        changed = {name: parameters[name] * mask.to(parameters[name].device) for name, mask in self._masks.items()}
        return called(lambda *args, **kwargs: functional_call(student, changed, args, kwargs), inputs)

    def after_backward(self, student: nn.Module, step: int) -> None:
        """Snapshots within a round, and the next round at its end."""
        done = step + 1
        if self.round >= self.rounds:
            return
        if done % max(1, self.interval // LOOKS) == 0:
            self.watcher.observe(student)
        if done % self.interval == 0:
            self.round = done // self.interval
            self._next_round(student)

    def tensors(self) -> dict[str, Tensor]:
        """Choice, round, scores and the weights that wait for their return."""
        held = {**super().tensors(), "round": torch.tensor(self.round)}
        held.update({f"memory.{name}": tensor for name, tensor in self._memory.items()})
        held.update({f"watcher.{name}": tensor for name, tensor in self.watcher.tensors().items()})
        return held

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take all of it up."""
        super().restore(tensors)
        self.round = int(tensors["round"])
        self._memory = {n.removeprefix("memory."): t.clone() for n, t in tensors.items() if n.startswith("memory.")}
        self.watcher.restore({n.removeprefix("watcher."): t for n, t in tensors.items() if n.startswith("watcher.")})

    def _next_round(self, student: nn.Module) -> None:
        """Remember the weights in use, choose anew, and give those that come back what they had."""
        used = self._in_use()
        parameters = {name: value for name, value in student.named_parameters() if name in used}
        for name, value in parameters.items():
            now = value.detach().cpu()
            self._memory[name] = torch.where(used[name], now, self._memory.get(name, now)).clone()
        for name in self.scores:
            self.scores[name] = torch.from_numpy(np.array(self.watcher.scores(name), dtype=np.float64))
        self._choose()
        with torch.no_grad():
            for name, mask in self._in_use().items():
                back = (mask & ~used[name]).to(parameters[name].device)
                parameters[name].copy_(
                    torch.where(back, self._memory[name].to(parameters[name].device), parameters[name])
                )

    def _best(self, scores: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
        """The best-scored units of every group that has a width: the width and the round's surplus."""
        share, kept = surplus_at(self.round, self.rounds, self.surplus), {}
        for name, width in self.widths.items():
            count = min(self.units[name], width + round(share * self.units[name]))
            kept[name] = tuple(sorted(np.argsort(-scores[name], kind="stable")[:count].tolist()))
        return kept

    def _in_use(self) -> dict[str, Tensor]:
        """Which entries of every parameter belong to units that are in, bool of its shape."""
        masks: dict[str, Tensor] = {}
        for name, views in self._views.items():
            out = np.setdiff1d(np.arange(self.units[name]), self.kept[name])
            for view in views:
                if view.parameter in self._shapes:
                    mask = masks.setdefault(view.parameter, torch.ones(self._shapes[view.parameter], dtype=torch.bool))
                    mask.index_fill_(view.dim, torch.from_numpy(view.indices[out].reshape(-1)), False)
        return masks


class RegrowSchedule(Plain):
    """Card. The plan is measured first; then half of the epochs train the network down to exactly its widths.

    Blocks that go are gone from the beginning; a surplus of units that shrinks to nothing may return as it was, see
    :class:`PruneRegrow`.
    """

    settles = True

    def epochs_before(self, epochs: int) -> int:
        """Half of them, one at least."""
        return max(1, epochs // 2)

    def check(self, trainer: Training, planner: Planning) -> None:
        """Whether blocks can go before the training, and every unit be switched off.

        Raises:
            PlanError: the network has to be rebuilt to lose blocks, or has units that cannot be switched off.
        """
        graph = planner.graph
        if planner.legal.blocks and graph.plan({}, [block.name for block in graph.spec.blocks]).rebuild:
            raise PlanError(
                "This network has to be rebuilt to lose blocks, so it cannot lose them before it is trained. Give "
                "--no-blocks, or --schedule once."
            )
        PruneRegrow(graph, {}, trainer.watcher(graph))

    def settle(self, trainer: Training, planner: Planning, solution: Solution) -> Prepared:
        """Trains the network down to the widths of ``solution`` in rounds, chosen by how the filters change."""
        graph = planner.graph
        begin = graph.plan({}, [graph.spec.blocks[index].name for index in sorted(solution.removed)])
        student = apply(trainer.dense, begin, trainer.example, check=False)
        left = trainer.traced(student)
        names = _same_groups(graph, left)
        widths = {inner: int(solution.widths[graph.group_index(outer)]) for inner, outer in names.items()}
        epochs = self.epochs_before(trainer.epochs)
        steps = int(FROZEN_SHARE * epochs * trainer.steps_per_epoch)
        rounds = max(1, min(REGROWTHS, steps))
        masks = PruneRegrow(left, widths, trainer.watcher(left), rounds=rounds, interval=max(1, steps // rounds))
        trainer.train(student, "regrow", epochs, begin, masks=masks)
        carrier = deep_copy(trainer.dense, {})
        scatter(carrier, student, begin)
        known = dict(planner.scores)
        known.update({outer: _reordered(known[outer], masks, inner) for inner, outer in names.items()})
        note = (
            f"Before the cut, {epochs} epochs of prune and regrow in {rounds} rounds, down to the plan's widths, "
            f"without the {len(solution.removed)} blocks that go."
        )
        return Prepared(carrier, planner.knowing(known), (note,))


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
