"""What an episode is worth to the agent.

Card. E = 1 - accuracy, T = latency. R1 = -E ln(T in µs); R2 = -E ln(1 + κ max(0.02, 1 - Σ_g S_g)), κ = e²; R3 = -E.
Source: our reading (docs/methods.md, "LAP rewards"); R1 is AMC's -E log(FLOPs) with latency in its place. The trap: -E
ln(T) turns into a reward for errors once T < 1 in its unit, so T is never taken in milliseconds here. When to use: R3
under a budget (the action wall holds it), R2 without one, R1 without one and without the sensitivity prior.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from secateurs.errors import PlanError

Reward = Callable[[float, float, float], float]
"""(error as a fraction, latency in ms, sum of the sensitivities at the chosen ratios) to a reward."""

KAPPA = math.exp(2.0)
LEAST_LEFT = 0.02
"""Share of the latency that is left at least: the sum counts twice what two cut neighbours save together."""


def resource_free(error: float, latency_ms: float, saved: float) -> float:
    """R1 = -E ln(T / 1 µs): falls with the error and with the latency.

    Raises:
        PlanError: the latency is not above 1 µs, where the logarithm would turn the sign.
    """
    micros = 1000.0 * latency_ms
    if not micros > 1.0:
        raise PlanError(
            f"The latency model says {latency_ms:.3g} ms for a whole network; reward r1 needs more than 0.001 ms. "
            "Give --latency (reward r3), or check the latency model's unit."
        )
    return -error * math.log(micros)


def sensitivity_form(error: float, latency_ms: float, saved: float) -> float:
    """R2 = -E ln(1 + κ max(0.02, 1 - ΣS)): the logarithm is positive whatever the unit."""
    return -error * math.log1p(KAPPA * max(LEAST_LEFT, 1.0 - saved))


def within_budget(error: float, latency_ms: float, saved: float) -> float:
    """R3 = -E: the budget is the wall's business."""
    return -error


REWARDS: dict[str, Reward] = {"r1": resource_free, "r2": sensitivity_form, "r3": within_budget}
