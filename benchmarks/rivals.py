"""Rivals of ``accuracy_at_latency.py``: what torch-pruning 1.6.1 and others would choose, on our groups.

The criteria are written anew from the formulas of torch-pruning 1.6.1 (read in its source; defaults ``mean`` reduction
and ``mean`` normaliser): a unit's scores at every weight that makes it or reads it and at its batch norms are summed,
then divided by the group's mean. Their sum over layers instead of their mean changes nothing after that division.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from secateurs.errors import InfeasibleBudgetError
from secateurs.importance.weights import tensor_of
from secateurs.progress import Progress, silent
from secateurs.search.problem import Problem, Solution
from secateurs.search.values import order
from secateurs.structure import Graph

Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Gradients:
    """Per parameter the mean gradient over batches, and the mean of its square over batches."""

    mean: dict[str, torch.Tensor]
    square: dict[str, torch.Tensor]


def gradients(graph: Graph, batches: Batches) -> Gradients:
    """Gradients of the cross-entropy as torch-pruning's examples gather them: evaluation mode, batch by batch."""
    named = dict(graph.model.named_parameters())
    mean = {name: torch.zeros_like(value) for name, value in named.items()}
    square = {name: torch.zeros_like(value) for name, value in named.items()}
    count = 0
    for inputs, labels in batches:
        found = torch.autograd.grad(F.cross_entropy(graph.model(inputs), labels), list(named.values()))
        for name, gradient in zip(named, found, strict=True):
            mean[name] += gradient
            square[name] += gradient.square()
        count += 1
    return Gradients(
        {name: total / count for name, total in mean.items()}, {name: total / count for name, total in square.items()}
    )


def group_scores(graph: Graph, local: Callable[[str], torch.Tensor]) -> dict[str, np.ndarray]:
    """Scores [units] per group: ``local(parameter)`` (a tensor of its shape) summed where units lie, over the mean."""
    weights = {name for name, _ in graph.model.named_parameters() if not name.endswith(".bias")}
    result = {}
    for group in graph.groups:
        total = np.zeros(group.units)
        for view in graph.views(group.name):
            if view.parameter in weights and view.role in ("out", "in", "norm"):
                total += view.matrix(local(view.parameter)).double().sum(dim=1).numpy()
        result[group.name] = total / max(float(total.mean()), 1e-300)
    return result


def group_l2(graph: Graph) -> dict[str, np.ndarray]:
    """torch-pruning's GroupMagnitudeImportance(p=2)."""
    return group_scores(graph, lambda name: tensor_of(graph, name).square())


def group_taylor(graph: Graph, found: Gradients) -> dict[str, np.ndarray]:
    """torch-pruning's GroupTaylorImportance."""
    return group_scores(graph, lambda name: (tensor_of(graph, name) * found.mean[name]).abs())


def group_hessian(graph: Graph, found: Gradients) -> dict[str, np.ndarray]:
    """torch-pruning's GroupHessianImportance: squared batch gradients for the Hessian's diagonal."""
    return group_scores(graph, lambda name: tensor_of(graph, name).square() * found.square[name])


def isomorphic_classes(graph: Graph) -> tuple[tuple[int, ...], ...]:
    """Groups whose coupled layers are of the same kinds and roles, in order (isomorphic pruning, arXiv 2407.04616)."""
    classes: dict[tuple[tuple[str, str], ...], list[int]] = {}
    for number, group in enumerate(graph.groups):
        key = tuple((view.kind, view.role) for view in graph.views(group.name))
        classes.setdefault(key, []).append(number)
    return tuple(tuple(members) for members in classes.values())


@dataclass(frozen=True)
class Isomorphic:
    """One shared keep ratio; within every class of isomorphic groups the best-scored units stay, wherever they are."""

    classes: tuple[tuple[int, ...], ...]
    name: str = "isomorphic"
    criterion: str | None = None

    def solve(self, problem: Problem, *, seed: int = 0, progress: Progress = silent) -> Solution:
        """The largest ratio that fits.

        Raises:
            InfeasibleBudgetError: none does.
        """
        for keep in np.arange(1.0, 0.0, -0.002):
            widths = self._widths(problem, float(keep))
            if bool(problem.fits(widths)):
                best = problem.candidate(widths)
                return Solution(best.widths, best.removed, best.value, best.predicted, None, 0.0)
        raise InfeasibleBudgetError("No shared ratio is fast enough.")

    def _widths(self, problem: Problem, keep: float) -> np.ndarray:
        widths = problem.widest.copy()
        for members in self.classes:
            scores = [np.diff(problem.values[group]) for group in members]
            owner = np.repeat(np.arange(len(members)), [len(found) for found in scores])
            chosen = order(np.concatenate(scores))[: max(1, round(keep * len(owner)))]
            counts = np.bincount(owner[chosen], minlength=len(members))
            for group, count in zip(members, counts, strict=True):
                options = problem.options[group]
                widths[group] = options[int(np.argmin(np.abs(options - count)))]
        return widths
