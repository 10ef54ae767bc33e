"""The error for a budget below what any legal network takes, with what was measured."""

from __future__ import annotations

from typing import Any

from secateurs.budgets import RESOURCES
from secateurs.cost import quantity
from secateurs.errors import InfeasibleBudgetError
from secateurs.planning.closed_loop import Attempt, Goal
from secateurs.report import wording


def out_of_reach(
    error: InfeasibleBudgetError, goal: Goal, attempt: Attempt[Any], budget: str, target: str
) -> InfeasibleBudgetError:
    """The error for a budget below what any legal network takes, with the *measured* figure of the least one."""
    limited, details = goal.limited, dict(error.details)
    what = RESOURCES[limited.resource]
    removed, narrow = details.get("removed", []), details.get("at_minimum", [])
    costliest = ", ".join(f"{name} ({quantity(cost, what.unit)})" for name, cost in details.get("costliest", []))
    limits = f"There {len(narrow)} of {len(details.get('widths', {}))} groups are at their minimum width"
    limits += f", {len(removed)} blocks are removed" if removed else ""
    limits += f", and what still costs most is {costliest}" if costliest else ""
    measured, ratio = goal.seen(attempt), goal.ratio(attempt)
    dense = measured.latency_ms / ratio if limited.timed and ratio else goal.dense
    found = {"measured": ratio * dense, "measured_ratio": ratio, "measured_ms": measured.latency_ms}
    told = "counted" if goal.exact else "measured"
    return InfeasibleBudgetError(
        f"{what.words.capitalize()} budget {budget} ({wording.amount(goal.limit * dense, what.unit)}) cannot be "
        f"reached on {target}: the {'fastest' if limited.timed else 'smallest'} legal network takes "
        f"{wording.amount(ratio * dense, what.unit)} when {told}, {ratio:.1%} of dense "
        f"({wording.amount(dense, what.unit)}). {limits}. "
        f"Raise {limited.option} to {wording.percent(1.02 * ratio, 0).replace(' ', '')} or more, "
        f"or give the search more freedom (a smaller --min-width, --blocks, fewer --keep).",
        {**details, **found},
    )
