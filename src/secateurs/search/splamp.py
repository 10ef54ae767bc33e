"""Strategy ``splamp``: SP-LAMP scores and an exact group knapsack, our reading of arXiv 2305.14403.

Card. Formula: V_g(w) = Σ of the w largest s_i, s_i = m_i / Σ_{m_j ≥ m_i} m_j; one width per group by
the multiple-choice knapsack under the latency limit. Source: Pan et al. 2023 say score and knapsack; the rest is our
reading (docs/methods.md, "SP-LAMP score" and docs/methods.md, "SP-LAMP allocation"). Ours:
BN-folded norms, costs priced on both sides (the consumer's narrower input counts), the exact solver. Every group
keeps its score-1 unit, so no group empties and no block is removed. Cost: seconds, no data. When to use: as the
data-free default. When not: it is blind to the loss; with calibration data use ``knapsack`` and a loss-aware
criterion.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from secateurs.progress import Progress, silent
from secateurs.search.exact import Effort, solve_exact
from secateurs.search.problem import Problem, Solution, Strategy


@dataclass(frozen=True)
class SpLamp(Strategy):
    """``effort``: gap, time limit and resolution of the solve."""

    effort: Effort = field(default_factory=Effort)
    name: str = "splamp"
    criterion: str | None = "splamp"

    def solve(self, problem: Problem, *, seed: int = 0, progress: Progress = silent) -> Solution:
        """The optimum with all blocks kept; nothing is random.

        Raises:
            InfeasibleBudgetError: nothing legal meets the limits with all blocks kept.
        """
        return solve_exact(replace(problem, removable=frozenset()), self.effort, progress)
