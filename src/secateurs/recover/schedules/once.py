"""One cut, then all epochs."""

from __future__ import annotations

from secateurs.recover.schedules._base import Plain


class OnceSchedule(Plain):
    """Card. The network is cut to the plan, repaired, and trained for all epochs with the dense network as teacher.

    When to use: nearly always. When not: hard budgets with many epochs to spend, where cutting in steps may pay.
    """
