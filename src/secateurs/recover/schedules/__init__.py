"""When units and kernel elements go while a network trains: one file per schedule."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from secateurs.recover.schedules._base import Schedule

SCHEDULES = {
    "once": "one cut, then all epochs",
    "gradual": "up to three cuts, each planned anew, half of the epochs between them",
    "soft": "half of the epochs before the cut, while it is decided again and again what stays",
    "regrow": "half of the epochs before the cut, down to the planned widths; a surplus that shrinks may return",
}
"""Schedules by name, and what they do in words. The class of ``soft`` is ``SoftSchedule`` in ``soft.py``, and so on."""


def schedule(name: str) -> Schedule:
    """The schedule of that name."""
    found: Schedule = getattr(importlib.import_module(f"{__name__}.{name}"), f"{name.capitalize()}Schedule")()
    return found
