"""Criteria ``acs`` and ``acs_self``: units by how their filters change while the network trains, not by a snapshot.

Card. Formula: Δ_i = change of filter i between two snapshots, D_i = Δ_i - mean_j Δ_j (per coordinate); adjusted cosine
similarity ACS(i, j) = Σ_e ⟨D_i, D_j⟩ / (√Σ‖D_i‖² √Σ‖D_j‖²); redundancy r_i = mean of the k = 3 largest ACS(i, ·); s_i =
1 - r_i. Of two near duplicates the one of smaller norm goes first, and redundancies are computed anew (``acs``). Second
reading (``acs_self``): r_i = cosine of the filter's own centred state before and after an interval, mean over the
intervals; what has settled goes first. Source: LAP, Chen et al. 2022: that filters are chosen by their dynamic changes
(paper says) and by adjusted cosine similarity (reported); the operands, the top k, the greedy rule and both readings
are ours (docs/methods.md, "Adjusted cosine similarity of changes"). The mean over *all* partners would be -1/(n - 1)
for every filter: centring forces Σ D = 0. Filters are folded with their batch norms; coupled layers are joined. Cost: a
short training of a copy, one n x n product per snapshot and group; no snapshot is kept but the last. When to use: with
training data, where filters repeat each other. When not: the scores say who is redundant in a group, not what a group
is worth to the loss.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from secateurs.data.calls import called, on
from secateurs.data.nests import moved
from secateurs.data.tasks.task import Task
from secateurs.errors import DataError, PlanError
from secateurs.importance.batches import checked, told
from secateurs.importance.context import Context, Criterion, needs, within_groups
from secateurs.importance.duplicates import removal_scores
from secateurs.importance.weights import filters, producers
from secateurs.progress import Progress, silent
from secateurs.structure.copies import deep_copy
from secateurs.structure.graph import Graph

ACS_MODES = ("pairs", "self")
PARTNERS = 3
SNAPSHOTS, INTERVAL = 12, 10
"""Snapshots of the short training, and steps between two."""
_RATE_WITH_NORM, _RATE_WITHOUT, _MOMENTUM, _DECAY = 0.01, 0.001, 0.9, 5e-4


@within_groups
@needs("dynamics")
def score(graph: Graph, group: str, context: Context) -> np.ndarray:
    """1 - redundancy among the group's filters, float64 [units]."""
    return _gathered(context, "acs").scores(group)


@within_groups
@needs("dynamics")
def score_self(graph: Graph, group: str, context: Context) -> np.ndarray:
    """1 - similarity of each filter to itself an interval earlier, float64 [units]."""
    return _gathered(context, "acs_self").scores(group, acs_mode="self")


def _gathered(context: Context, criterion: str) -> Dynamics:
    found = context.gathered(criterion, "dynamics").dynamics
    assert isinstance(found, Dynamics)
    return found


@dataclass
class Dynamics:
    """How the filters of every group moved: streamed, so that snapshots need not be kept.

    Call :meth:`observe` on the module in training as often as wanted; the first call only sets the start. Groups whose
    units no weight produces are not watched.

    Attributes:
        gram: per group Σ_e D Dᵀ, float64 [units, units].
        norms: per group the folded Euclidean norms at the first snapshot, float64 [units].
        changes: intervals seen.
    """

    graph: Graph
    gram: dict[str, Tensor] = field(default_factory=dict)
    norms: dict[str, np.ndarray] = field(default_factory=dict)
    changes: int = 0
    _last: dict[str, Tensor] = field(default_factory=dict, repr=False)
    _own: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def observe(self, module: nn.Module) -> None:
        """Take a snapshot of ``module``, a network with the graph's parameter names and shapes."""
        seen = copy.copy(self.graph)
        seen.model = module
        first = not self._last
        for group in self.graph.groups:
            if not any(view.role == "out" for view in self.graph.views(group.name)):
                continue
            now = torch.cat([matrix for _, matrix in filters(seen, group.name)], dim=1)
            if first:
                self.norms[group.name] = now.norm(dim=1).cpu().numpy()
                self.gram[group.name] = torch.zeros(len(now), len(now), dtype=torch.float64)
                self._own[group.name] = torch.zeros(len(now), dtype=torch.float64)
            else:
                before = self._last[group.name].to(now.device)
                moved = centred(now - before)
                self.gram[group.name] += (moved @ moved.T).cpu()
                self._own[group.name] += nn.functional.cosine_similarity(centred(before), centred(now), dim=1).cpu()
            self._last[group.name] = now
        self.changes += not first

    def similarity(self, group: str) -> np.ndarray:
        """Adjusted cosine similarities, float64 [units, units]; 0 for filters that did not move.

        Raises:
            DataError: fewer than two snapshots were taken.
        """
        self._check()
        gram = self.gram[group].numpy()
        lengths = np.sqrt(np.maximum(np.diagonal(gram), 0.0))
        scale = np.outer(lengths, lengths)
        return np.clip(np.divide(gram, scale, out=np.zeros_like(gram), where=scale > 0), -1.0, 1.0)

    def scores(self, group: str, *, acs_mode: str = "pairs", partners: int = PARTNERS) -> np.ndarray:
        """Importances float64 [units], at least 0; higher = keep.

        Args:
            group: a group's name.
            acs_mode: ``pairs`` compares filters with each other, ``self`` each with its own earlier state.
            partners: k, how many of the most similar filters count.

        Raises:
            PlanError: unknown mode, or fewer than one partner.
            DataError: fewer than two snapshots were taken.
            StructureError: no weight produces the group's units.
        """
        if group not in self._last:
            self._check()
            producers(self.graph, group)
        if acs_mode not in ACS_MODES or partners < 1:
            raise PlanError(
                f"acs_mode={acs_mode!r} with {partners} partners is not understood. "
                f"Give one of {', '.join(ACS_MODES)} and at least one partner."
            )
        if acs_mode == "pairs":
            return removal_scores(self.similarity(group), self.norms[group], partners)
        self._check()
        return np.clip(1.0 - self._own[group].numpy() / self.changes, 0.0, 2.0)

    def criterion(self, *, acs_mode: str = "pairs", partners: int = PARTNERS) -> Criterion:
        """These scores as a criterion for any strategy."""

        def acs(graph: Graph, group: str, context: Context) -> np.ndarray:
            return self.scores(group, acs_mode=acs_mode, partners=partners)

        return acs

    def tensors(self) -> dict[str, Tensor]:
        """What :meth:`restore` needs to go on observing."""
        held = {"changes": torch.tensor(self.changes)}
        for name in self._last:
            held |= {f"gram.{name}": self.gram[name], f"norms.{name}": torch.from_numpy(self.norms[name])}
            held |= {f"last.{name}": self._last[name], f"own.{name}": self._own[name]}
        return held

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up what :meth:`tensors` gave."""
        self.changes = int(tensors["changes"])
        for group in self.graph.groups:
            name = group.name
            if f"last.{name}" in tensors:
                self.gram[name] = tensors[f"gram.{name}"].clone()
                self.norms[name] = tensors[f"norms.{name}"].numpy().copy()
                self._last[name], self._own[name] = tensors[f"last.{name}"].clone(), tensors[f"own.{name}"].clone()

    def _check(self) -> None:
        if self.changes == 0:
            raise DataError(
                "Filters were seen once only, so nothing is known of how they change. Call observe() again after some "
                "training steps."
            )


def centred(rows: Tensor) -> Tensor:
    """The rows without their mean: what all filters have in common goes."""
    return rows - rows.mean(dim=0, keepdim=True)


def watch_training(
    graph: Graph,
    batches: Iterable[Any],
    task: Task,
    *,
    snapshots: int = SNAPSHOTS,
    interval: int = INTERVAL,
    lr: float | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Dynamics:
    """The dynamics of a copy of the graph's model while it trains as usual for ``snapshots * interval`` steps.

    Stochastic gradient descent with Nesterov momentum at a constant rate. Batches that are too few are used again.

    Args:
        graph: the traced network; its model is not touched.
        batches: training batches, best of one to five epochs.
        task: says how the network is called, and its loss.
        snapshots: after the first one.
        interval: steps between two snapshots.
        lr: learning rate; None: 0.01 with batch norms, else 0.001.
        seed: of dropout and the like.
        progress: shows the steps.

    Raises:
        DataError: there are no batches, one is none, or the loss is not finite.
    """
    module = deep_copy(graph.model, {}).train().requires_grad_(True)
    normed = any(isinstance(child, _BatchNorm) for child in module.modules())
    rate = lr if lr is not None else (_RATE_WITH_NORM if normed else _RATE_WITHOUT)
    optimizer = torch.optim.SGD(module.parameters(), rate, _MOMENTUM, weight_decay=_DECAY, nesterov=True)
    device = next(module.parameters()).device
    found, source = Dynamics(graph), _again_and_again(batches, task)
    found.observe(module)
    with torch.random.fork_rng(devices=[]), progress.task("filter dynamics", snapshots * interval) as shown:
        torch.manual_seed(seed)
        for step in range(snapshots * interval):
            batch = next(source)
            with told(step + 1, batch):
                inputs = on(task.called_with(batch), device, copy=True)
                value = task.loss_of(called(module, inputs), moved(batch, device))
            if not bool(torch.isfinite(value)):
                raise DataError(
                    f"The loss became {float(value.detach())} in step {step + 1} of the short training that watches "
                    f"filters, at rate {rate:g}. Check inputs and labels, or give a smaller lr to watch_training."
                )
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            optimizer.step()
            if (step + 1) % interval == 0:
                found.observe(module)
            shown.advance(1, f"loss {float(value.detach()):.3f}")
    return found


def _again_and_again(batches: Iterable[Any], task: Task) -> Iterator[Any]:
    """The batches without end; what a generator gave is kept for the next round."""
    kept = []
    for batch in checked(batches, task):
        kept.append(batch)
        yield batch
    if not kept:
        raise DataError("There are no batches to watch the filters train on. Give training data.")
    while True:
        yield from kept
