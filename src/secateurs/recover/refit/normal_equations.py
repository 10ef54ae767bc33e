"""Least squares of one layer by its normal equations, in float64."""

from __future__ import annotations

import torch
from torch import Tensor

_SMALLEST = 1e-12
_TRIALS = 8
"""Dampings that are tried, each a hundred times the one before."""


class NormalEquations:
    """min over step and shift of Σ‖residual - step·x - shift‖² + δ‖step‖², for every convolution group on its own.

    Sums are kept in float64; products of one batch are taken in the inputs' own precision. Without ``products`` of the
    inputs, which take unknowns² numbers, only shifts can be found.
    """

    def __init__(self, groups: int, outputs: int, unknowns: int, *, products: bool = True) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(groups, *shape, dtype=torch.float64)

        self.unknowns, self.products = unknowns, products
        wide = unknowns if products else 0
        self.gram, self.inputs = zeros(wide, wide), zeros(unknowns)
        self.cross, self.rest = zeros(outputs, unknowns), zeros(outputs)
        self.energy = zeros(outputs)
        self.count = 0

    def add_inputs(self, x: Tensor) -> None:
        """Take in inputs [groups, unknowns, samples]."""
        if self.products:
            self.gram += x @ x.transpose(1, 2)
        self.inputs += x.sum(2)
        self.count += x.shape[2]

    def clear_residuals(self) -> None:
        """Forget the residuals, keep the inputs."""
        for held in (self.cross, self.rest, self.energy):
            held.zero_()

    def add_residuals(self, x: Tensor, residual: Tensor) -> None:
        """Take in what is missing [groups, outputs, samples] at the inputs ``x``."""
        self.cross += residual @ x.transpose(1, 2)
        self.rest += residual.sum(2)
        self.energy += residual.square().sum(2)

    def merged(self, other: NormalEquations) -> NormalEquations:
        """The equations over the samples of both."""
        both = NormalEquations(*self.cross.shape, products=self.products)
        for name in ("gram", "inputs", "cross", "rest", "energy", "count"):
            setattr(both, name, getattr(self, name) + getattr(other, name))
        return both

    def solve(self, damping: float, *, constant: bool, stays: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Step [groups, outputs, unknowns] and shift [groups, outputs] (zero without a ``constant``).

        ``damping``: δ as a share of the inputs' mean square; ``stays``: bool like the step, False where it must be
        zero.
        """
        gram, cross = self.gram, self.cross
        if constant:
            gram = gram - self.inputs[:, :, None] * self.inputs[:, None, :] / self.count
            cross = cross - self.rest[:, :, None] * self.inputs[:, None, :] / self.count
        mean_square = gram.diagonal(dim1=1, dim2=2).mean(1)
        added = (damping * mean_square).clamp_min(_SMALLEST * max(1, self.count))
        step = _solved(gram, cross, added) if stays is None else _solved_within(gram, cross, added, stays)
        if step is None:  # activations that are no numbers: nothing to learn
            return torch.zeros_like(cross), torch.zeros_like(self.rest)
        return step, self.shift(step) if constant else torch.zeros_like(self.rest)

    def shift(self, step: Tensor) -> Tensor:
        """The best constant [groups, outputs] beside ``step``."""
        return (self.rest - (step @ self.inputs[:, :, None])[:, :, 0]) / self.count

    def error(self, step: Tensor, shift: Tensor) -> float:
        """Sum of squares that ``step`` and ``shift`` leave on these samples."""
        moved = (step @ self.inputs[:, :, None])[:, :, 0]
        left = self.energy - 2 * (step * self.cross).sum(2) + ((step @ self.gram) * step).sum(2)
        return float((left + shift * (2 * moved - 2 * self.rest + self.count * shift)).sum())


def _solved(gram: Tensor, cross: Tensor, added: Tensor) -> Tensor | None:
    """cross · (gram + added · 1)⁻¹ for every group, with more added where rounding made it indefinite; None where that
    does not help."""
    for _ in range(_TRIALS):
        factor, failed = torch.linalg.cholesky_ex(gram + torch.diag_embed(added[:, None].expand(gram.shape[:2])))
        if not failed.any() and bool(factor.isfinite().all()):
            return torch.cholesky_solve(cross.transpose(1, 2), factor).transpose(1, 2)
        added = torch.where(failed > 0, 100 * added, added)
    return None


def _solved_within(gram: Tensor, cross: Tensor, added: Tensor, stays: Tensor) -> Tensor | None:
    """The same with unknowns that are zero: outputs that keep the same ones are solved together."""
    step = torch.zeros_like(cross)
    for group, masks in enumerate(stays):
        patterns, which = masks.unique(dim=0, return_inverse=True)
        for number, pattern in enumerate(patterns):
            free, outputs = pattern.nonzero().flatten(), (which == number).nonzero().flatten()
            if not len(free):
                continue
            part = _solved(
                gram[group][free][:, free][None], cross[group][outputs][:, free][None], added[group : group + 1]
            )
            if part is None:
                return None
            step[group, outputs[:, None], free] = part[0]
    return step
