"""Criterion ``obs``: loss increase when units go and their readers' other weights make up for it.

Card. Formula: for every consumer l with H = E XᵀX + δI (δ = 1 % of the mean diagonal) and columns S of a unit, cost(S)
= ½ Σ_o λ_o W_{o,S} [(H⁻¹)_SS]⁻¹ W_{o,S}ᵀ; units go one after the other, cheapest sum over consumers first, with W and
H⁻¹ downdated (docs/methods.md, "Brain surgeon score"); s_i = cost at removal, made non-decreasing in the order of
removal. λ_o = mean square of the loss's gradient at output o, which turns layer errors into loss. Source: OBS family:
OBC (arXiv 2208.11580), ZipLM (arXiv 2302.04089), OSSCAR (arXiv 2403.12983); λ is ours, the diagonal of K-FAC's output
factor. In wide groups several units go per step (1/32 of those left). Cost: one backward pass, and per group units x D²
with D the consumers' unfolded inputs: seconds to a minute. When to use: with least-squares repair after the cut, whose
effect it predicts. When not: without repair it is too hopeful.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from secateurs.errors import PlanError
from secateurs.importance.context import Context, needs
from secateurs.importance.probes import WIDEST
from secateurs.importance.statistics import SecondMoments
from secateurs.importance.weights import tensor_of
from secateurs.structure.graph import Graph

DAMPING = 0.01
PER_STEP = 32


@needs("moments")
def score(graph: Graph, group: str, context: Context) -> np.ndarray:
    """Loss increases at removal, float64 [units].

    Raises:
        PlanError: no consumer of the group can be unfolded.
    """
    return remove_in_order(readers(graph, group, context, "obs", weighted=True))


@dataclass
class Reader:
    """One consumer during removal: ``weight`` [outputs, D], ``inverse`` of H [D, D], ``gain`` [outputs],
    ``columns`` [units, columns per unit]."""

    weight: torch.Tensor
    inverse: torch.Tensor
    gain: torch.Tensor
    columns: torch.Tensor

    def costs(self, units: torch.Tensor) -> torch.Tensor:
        """½ Σ_o gain_o W_S [(H⁻¹)_SS]⁻¹ W_Sᵀ for each of the units."""
        columns = self.columns[units]
        blocks = self.inverse[columns[:, :, None], columns[:, None, :]]
        weights = (self.weight * self.gain.sqrt()[:, None])[:, columns].transpose(0, 1)
        solved = torch.linalg.solve(blocks, weights.transpose(1, 2))
        return 0.5 * (weights.transpose(1, 2) * solved).sum(dim=(1, 2))

    def remove(self, units: torch.Tensor) -> None:
        """Take the units' columns out, the others making up for it."""
        columns = self.columns[units].flatten()
        rows = self.inverse[columns]
        solved = torch.linalg.solve(rows[:, columns], rows)
        self.weight -= self.weight[:, columns] @ solved
        self.inverse.addmm_(rows.T, solved, alpha=-1.0)
        self.weight[:, columns] = 0.0
        self.inverse[columns] = 0.0
        self.inverse[:, columns] = 0.0
        self.inverse[columns, columns] = 1.0


def readers(graph: Graph, group: str, context: Context, criterion: str, *, weighted: bool) -> list[Reader]:
    """The group's consumers ready for removal; ``weighted``: by the loss's gradient, else by their output's energy.

    Raises:
        PlanError: no consumer of the group can be unfolded.
    """
    found = readers_if_any(graph, group, context, criterion, weighted=weighted)
    if not found:
        raise PlanError(
            f"Criterion {criterion} needs a plain convolution or linear layer of at most {WIDEST} unfolded inputs that "
            f"reads group {group}; there is none. Choose fisher or splamp, or keep the group whole."
        )
    return found


def readers_if_any(graph: Graph, group: str, context: Context, criterion: str, *, weighted: bool) -> list[Reader]:
    """As :func:`readers`; empty where there is none."""
    moments = context.gathered(criterion, "moments").moments
    return [
        _reader(tensor_of(graph, view.parameter), view.indices, moments[view.layer], weighted=weighted)
        for view in graph.views(group)
        if view.role == "in" and view.layer in moments
    ]


def _reader(weight: torch.Tensor, indices: np.ndarray, moments: SecondMoments, *, weighted: bool) -> Reader:
    matrix = weight.double().cpu().reshape(weight.shape[0], -1).clone()
    per_channel = matrix.shape[1] // weight.shape[1]
    offsets = torch.arange(per_channel)
    columns = (torch.from_numpy(indices)[:, :, None] * per_channel + offsets).reshape(len(indices), -1)
    gram = moments.gram.double()
    if weighted:
        gain = moments.gradient.double()
    else:
        energy = ((matrix @ gram) * matrix).sum().clamp_min(1e-300)
        gain = torch.full((len(matrix),), 1.0, dtype=torch.float64) / energy
    damping = DAMPING * gram.diagonal().mean().clamp_min(1e-12)
    inverse = torch.linalg.inv(gram + damping * torch.eye(len(gram), dtype=torch.float64))
    return Reader(matrix, inverse, gain, columns)


def remove_in_order(found: list[Reader]) -> np.ndarray:
    """Costs at removal of every unit, cheapest first, non-decreasing in that order: float64 [units]."""
    count = len(found[0].columns)
    alive = torch.arange(count)
    result, highest = np.zeros(count), 0.0
    while len(alive):
        costs = torch.stack([reader.costs(alive) for reader in found]).sum(dim=0)
        step = max(1, len(alive) // PER_STEP)
        cheapest = torch.argsort(costs, stable=True)[:step]
        for position in cheapest.tolist():
            unit = int(alive[position])
            highest = max(highest, float(costs[position]))
            result[unit] = highest
        for reader in found:
            reader.remove(alive[cheapest])
        keep = torch.ones(len(alive), dtype=torch.bool)
        keep[cheapest] = False
        alive = alive[keep]
    return result
