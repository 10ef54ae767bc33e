"""Ways that a forward goes where Python's or NumPy's random numbers decide: layers that are dropped now and then."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from torch import nn

from secateurs.structure.draws import Call
from secateurs.structure.modes import recorded

TRIED, PATIENCE, MOST = 64, 32, 8
"""Draws that are run at most, those without anything new after which no more are run, and ways that are looked at in
full."""


def ways_of(model: nn.Module, call: Call) -> Iterator[int]:
    """Seeds under which the forward in training mode goes other ways, at most :data:`MOST`.

    Two ways differ where a call that takes parameters follows another one. Every such step that was seen is taken under
    one of the seeds, unless there are too many. A draw under which the forward fails shows nothing.
    """
    steps: dict[int, set[tuple[Any, ...]]] = {}
    missing: set[tuple[Any, ...]] = set()
    last = 0
    for seed in range(TRIED):
        if seed - last > PATIENCE:
            break
        with contextlib.suppress(Exception):
            steps[seed] = steps_of(recorded(model, call, training=True, seed=seed).calls)
            last = last if steps[seed] <= missing else seed
            missing |= steps[seed]
    for _ in range(MOST):
        if not missing:
            return
        best = max(steps, key=lambda seed: len(steps[seed] & missing))
        yield best
        missing -= steps[best]


def steps_of(calls: tuple[tuple[str, tuple[Any, ...]], ...]) -> set[tuple[Any, ...]]:
    """Which call that takes parameters follows which."""
    takes = [(name, *(entry for entry in given if isinstance(entry, str))) for name, given in calls]
    return set(pairwise(["", *(entry for entry in takes if len(entry) > 1), ""]))
