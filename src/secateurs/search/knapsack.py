"""Strategy ``knapsack``: the exact optimum for any criterion's value curves.

Card. Formula: maximise Σ_g V_g(w_g) + Σ_b U_b over legal widths and kept blocks, subject to every cost model within its
limit; costs over (c_in, c_out) stay linear (docs/methods.md, "Exact allocation"). Source: the multiple-choice knapsack
of SP-LAMP and SMCP with MDP's two-sided layer costs and block binaries, as a linear program instead of a MINLP; the
Lagrangian core and the handling of summed axes are ours. Cost: seconds. When to use: always, when the criterion's
values of different groups are comparable. When not: the sum of values ignores how groups interact.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from secateurs.progress import Progress, silent
from secateurs.search.exact import Effort, solve_exact
from secateurs.search.problem import Problem, Solution, Strategy


@dataclass(frozen=True)
class Knapsack(Strategy):
    """``effort``: gap, time limit and resolution of the solve."""

    effort: Effort = field(default_factory=Effort)
    name: str = "knapsack"
    criterion: str | None = None

    def solve(self, problem: Problem, *, seed: int = 0, progress: Progress = silent) -> Solution:
        """The optimum; nothing is random.

        Raises:
            InfeasibleBudgetError: nothing legal meets the limits.
        """
        return solve_exact(problem, self.effort, progress)
