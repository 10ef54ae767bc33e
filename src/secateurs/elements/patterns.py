"""Which kernel elements stay: sharing scopes, projection, pattern libraries, and the value of every count.

KEP (Zhang et al., Neural Networks 180, 2024, 106708) prunes elements of the kernel plane under a constraint set. Its
full text was not available to us: scopes, budgets and defaults are our reading (docs/methods.md, "KEP constraint
sets").
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from secateurs.errors import PlanError
from secateurs.plan import ElementPattern
from secateurs.structure.kernel_elements import mask_of, units_of

SCOPES = ("layer", "in_channel", "filter", "kernel", "block")
POOLS = ("unit", "block", "layer")
_EXHAUSTIVE = 5000


@dataclass(frozen=True)
class PatternChoice:
    """How the elements of one convolution are chosen.

    ``scope``: what shares a pattern: the whole ``layer``, an ``in_channel``, a ``filter``, a single ``kernel``, or one
    input channel of a ``block`` of filters; ``keep``: kernel positions that stay; ``block``: filters in a block, the
    sparse kernels' width; ``pool``: ``unit`` keeps exactly ``keep`` positions everywhere, ``block`` (scope ``block``)
    and ``layer`` keep that many on average, so that input channels may vanish for a block and others stay whole;
    ``library``: with scope ``kernel``, how many different patterns there may be (0: any).
    """

    scope: str = "block"
    keep: float = 4
    block: int = 32
    pool: str = "block"
    library: int = 0

    def __post_init__(self) -> None:
        if self.scope not in SCOPES:
            raise PlanError(f"Element scope {self.scope!r} is unknown. Choose one of {', '.join(SCOPES)}.")
        if self.pool not in POOLS or (self.pool == "block" and self.scope != "block"):
            raise PlanError(
                f"Pool {self.pool!r} does not go with scope {self.scope!r}. Scope block takes unit, block or layer, "
                f"the others unit or layer."
            )
        if self.keep < 0 or (self.pool == "unit" and self.keep != int(self.keep)):
            raise PlanError(
                f"keep={self.keep} with pool {self.pool!r}: give a count of positions, whole for pool unit."
            )
        if self.block < 8 or self.block % 8:
            raise PlanError(f"block={self.block} is not a multiple of 8. Choose 8, 16 or 32.")
        if self.library < 0 or (self.library and (self.scope != "kernel" or self.pool != "unit")):
            raise PlanError(f"library={self.library} is for scope kernel with pool unit. Leave it 0, or choose those.")


def unit_of(shape: tuple[int, ...], choice: PatternChoice, groups: int = 1) -> Tensor:
    """Scope unit of every kernel, int64 [filters, channels per group]; units count from 0 in row-major order."""
    return units_of(shape, choice.scope, choice.block, groups)


def unit_scores(score: Tensor, choice: PatternChoice, groups: int = 1) -> Tensor:
    """Scores summed over what shares a pattern: [units, positions] from [filters, channels, kh, kw]."""
    flat = score.flatten(2)
    unit = unit_of(tuple(score.shape), choice, groups).to(score.device)
    total = score.new_zeros(int(unit.max()) + 1, flat.shape[2], dtype=torch.float64)
    return total.index_add(0, unit.flatten(), flat.reshape(-1, flat.shape[2]).double())


def choose(
    score: Tensor, choice: PatternChoice, *, groups: int = 1, incumbent: Tensor | None = None, hysteresis: float = 0.0
) -> Tensor:
    """True where an element stays: bool, shaped like ``score`` [filters, channels, kh, kw] (or [.., k]).

    The choice keeps the largest possible sum of scores under the constraint. With squared weights as scores that is
    the Euclidean projection onto the constraint set (docs/methods.md, "KEP metric and projection"). Ties go to the
    earlier position.

    Args:
        score: importance of every weight, at least 0.
        choice: scope and count.
        groups: of the convolution.
        incumbent: the mask now in force, of the same scope; a challenger must beat it by ``hysteresis``.
        hysteresis: 0.1 means by 10 %.

    Raises:
        PlanError: more positions asked for than there are, or scores that are not numbers.
    """
    if score.dim() < 3 or score.shape[0] % groups:
        raise PlanError(f"Scores of shape {tuple(score.shape)} with {groups} groups are not a convolution's.")
    if not bool(torch.isfinite(score).all()):
        raise PlanError(f"Scores of shape {tuple(score.shape)} contain values that are not finite. Check the weights.")
    positions = score[0, 0].numel()
    if choice.keep > positions:
        raise PlanError(f"keep={choice.keep:g} is more than the {positions} positions of this kernel. Choose fewer.")
    totals = unit_scores(score, choice, groups)
    if incumbent is not None:
        held = unit_scores(incumbent.double(), choice, groups) > 0
        totals = torch.where(held, totals * (1 + hysteresis), totals)
    if choice.library:
        kept = _from_library(totals, int(choice.keep), choice.library)
    else:
        kept = _largest(totals, choice, score.shape[1])
    return kept[unit_of(tuple(score.shape), choice, groups).to(score.device)].reshape(score.shape)


def _largest(totals: Tensor, choice: PatternChoice, channels: int) -> Tensor:
    """The largest entries of every pool, bool like ``totals``."""
    if choice.pool == "unit":
        rows, count = totals, int(choice.keep)
    else:
        units = channels if choice.pool == "block" else totals.shape[0]
        rows, count = totals.reshape(-1, units * totals.shape[1]), round(choice.keep * units)
    order = rows.argsort(dim=1, descending=True, stable=True)
    kept = torch.zeros_like(rows, dtype=torch.bool)
    kept.scatter_(1, order[:, :count], True)
    return kept.reshape(totals.shape)


def library(totals: Tensor, keep: int, size: int) -> Tensor:
    """``size`` patterns of ``keep`` positions that together retain most, bool [size, positions]: greedy, one by one.

    ``totals``: [units, positions]. Candidates are all patterns where they are few (126 for 4 of 9), else those that
    are best for some unit. PatDNN counts frequencies; taking what adds most retained energy is our choice.
    """
    positions = totals.shape[1]
    if _binomial(positions, keep) <= _EXHAUSTIVE:
        picks = torch.tensor(list(itertools.combinations(range(positions), keep)), dtype=torch.int64)
        candidates = torch.zeros(len(picks), positions, dtype=torch.bool).scatter_(1, picks, True)
    else:
        order = totals.argsort(dim=1, descending=True, stable=True)[:, :keep]
        best = torch.zeros_like(totals, dtype=torch.bool).scatter_(1, order, True)
        candidates = torch.unique(best, dim=0)[:_EXHAUSTIVE]
    retained = totals @ candidates.double().t()
    covered = torch.zeros(totals.shape[0], dtype=torch.float64)
    chosen: list[int] = []
    for _ in range(min(size, len(candidates))):
        gain = (retained - covered.unsqueeze(1)).clamp(min=0).sum(0)
        gain[chosen] = -1.0
        chosen.append(int(gain.argmax()))
        covered = torch.maximum(covered, retained[:, chosen[-1]])
    return candidates[chosen]


def _binomial(n: int, k: int) -> int:
    result = 1
    for i in range(k):
        result = result * (n - i) // (i + 1)
    return result


def _from_library(totals: Tensor, keep: int, size: int) -> Tensor:
    patterns = library(totals, keep, size)
    return patterns[(totals @ patterns.double().t()).argmax(1)]


def project(weight: Tensor, choice: PatternChoice, *, groups: int = 1) -> Tensor:
    """The nearest weight (Euclidean) in the constraint set: [filters, channels, kh, kw] with zeros off the patterns."""
    return weight * choose(weight.detach().double().square(), choice, groups=groups)


def value_curve(score: Tensor, choice: PatternChoice, *, groups: int = 1, steps: int | None = None) -> np.ndarray:
    """Share of the layer's score that stays when 0, 1 … K·K positions do, float64 [positions + 1]; concave.

    What a knapsack over layers consumes, together with measured times per count. ``steps``: another number of even
    steps from nothing to everything, where positions are pooled: float64 [steps + 1].
    """
    totals = unit_scores(score, choice, groups)
    positions = totals.shape[1]
    units = {"unit": 1, "block": score.shape[1], "layer": totals.shape[0]}[choice.pool]
    rows = totals.reshape(-1, units * positions).sort(dim=1, descending=True).values
    kept = np.concatenate([[0.0], np.cumsum(rows.sum(0).cpu().numpy())])
    curve = kept[np.linspace(0, units * positions, (steps or positions) + 1).round().astype(int)]
    return curve / curve[-1] if curve[-1] > 0 else np.linspace(0.0, 1.0, len(curve))


def to_pattern(kept: Tensor, choice: PatternChoice, *, groups: int = 1, order: Sequence[int] = ()) -> ElementPattern:
    """The mask as a plan stores it: kept positions per scope unit.

    ``order``: filters in the order in which blocks are cut, where that is not how they stand.

    Raises:
        PlanError: the mask is not shared as the scope says.
    """
    unit = unit_of(tuple(kept.shape), choice, groups).flatten()
    flat = (kept[list(order)] if order else kept).flatten(2).reshape(unit.numel(), -1).cpu()
    rows = torch.zeros(int(unit.max()) + 1, flat.shape[1], dtype=torch.bool)
    rows[unit] = flat
    if not torch.equal(rows[unit], flat):
        raise PlanError(
            f"A mask of shape {tuple(kept.shape)} differs within a unit of scope {choice.scope!r}. Choose it with "
            f"that scope, or store it with scope 'kernel'."
        )
    pattern = tuple(tuple(int(p) for p in row.nonzero().flatten()) for row in rows)
    block = choice.block if choice.scope == "block" else 1
    return ElementPattern(scope=choice.scope, block=block, pattern=pattern, order=tuple(order))


def from_pattern(pattern: ElementPattern, shape: tuple[int, ...], *, groups: int = 1) -> Tensor:
    """The mask that a plan stored, bool of ``shape`` (the weight's).

    Raises:
        PlanError: the pattern was made for another shape.
    """
    return mask_of(pattern, shape, groups)
