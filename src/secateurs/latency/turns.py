"""Turns of timed runs, and which of them the rest of the machine left in peace."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from secateurs.latency.process import QUIET_SHARE, Worker

_TURN_MS = 8.0
_SLOWER = 1.06
"""A turn whose median lies this far above the fastest turn of the same file was disturbed: processor cores share
caches, memory and often execution units, so other work slows ours even when it takes no time from it."""


@dataclass
class Turns:
    """Turns of one file: run times in ms per turn, and the share of the processor that each turn had."""

    runs: int
    times: list[list[float]] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)

    def quiet(self) -> np.ndarray:
        """Which turns were undisturbed, bool [turns]; all of them where none seems so."""
        medians = np.array([np.median(turn) for turn in self.times])
        own = np.array(self.shares) >= QUIET_SHARE
        if not own.any():
            return np.ones(len(medians), dtype=bool)
        return own & (medians <= _SLOWER * medians[own].min())

    def fastest(self) -> float:
        """Median of the fastest turn."""
        return min(float(np.median(turn)) for turn in self.times)

    def clean(self) -> list[float]:
        """Times of all runs in undisturbed turns."""
        return [ms for turn, good in zip(self.times, self.quiet(), strict=True) if good for ms in turn]

    def marks(self, before: int) -> list[bool]:
        """Per run since loading whether it counts: not the ``before`` ones, nor the first of a turn."""
        flags = [False] * before
        for good in self.quiet().tolist():
            flags += [False, *[good] * self.runs]
        return flags


@dataclass(frozen=True)
class TurnCounts:
    """``rounds``: turns per file at least; ``needed``: undisturbed ones among them; ``most``: turns at most."""

    rounds: int = 4
    needed: int = 3
    most: int = 16


WARM_RUNS = 2
"""Runs per file before the first turn of :func:`round_robin`."""


def round_robin(
    worker: Worker, keys: Sequence[str], effort: TurnCounts, *, anchor: str | None = None, anchor_ms: float = math.inf
) -> dict[str, Turns]:
    """Turns of about 8 ms of every loaded file, all files in turn, until each has enough undisturbed ones.

    Args:
        worker: holds the loaded files.
        keys: their keys.
        effort: how many turns.
        anchor: file whose undisturbed latency is known: while it is slower than that, the machine is busy.
        anchor_ms: that latency.
    """
    turns: dict[str, Turns] = {}
    for key in keys:
        first = worker.run([key], runs=1, skip=WARM_RUNS - 1)["times_ms"][key][0]
        turns[key] = Turns(max(2, min(40, math.ceil(_TURN_MS / first))))
    for number in range(effort.most):
        busy = anchor is not None and number > 0 and turns[anchor].fastest() > _SLOWER * anchor_ms
        waiting = [key for key in keys if busy or number < effort.rounds or turns[key].quiet().sum() < effort.needed]
        if not waiting:
            break
        for key in waiting:
            answer = worker.run([key], runs=turns[key].runs, skip=1)
            turns[key].times.append(answer["times_ms"][key])
            turns[key].shares.append(answer["cpu_ms"] / max(answer["wall_ms"], 1e-9))
    return turns


def clean_profile(profile: dict[str, Any], marks: Sequence[bool]) -> dict[str, Any]:
    """``profile`` with only the runs that count."""
    nodes = {}
    for name, times in profile["nodes_us"].items():
        kept = [ms for ms, good in zip(times, marks, strict=False) if good]
        nodes[name] = kept if len(times) == len(marks) and kept else times
    return {**profile, "nodes_us": nodes}
