"""Fair measurement of several files against each other: one process each, turn by turn."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from secateurs.errors import TargetError, UnstableTimingError
from secateurs.files import Scratch
from secateurs.latency.lock import measuring
from secateurs.latency.process import QUIET_SHARE, Worker, WorkerLostError
from secateurs.latency.targets._base import Target
from secateurs.plan import Measurement
from secateurs.progress import Progress, Task, silent

TURN_MS = 25.0
"""A turn lasts about this long: longer than a scheduler's slice, short against clock drift."""
_WARM_UP_S = 3.0
_SLOWER, _FEWEST_QUIET = 1.08, 12
"""A turn this much slower than a file's fastest ones was disturbed; so many clean turns are enough to drop those."""


@dataclass(frozen=True)
class Protocol:
    """How long to measure and when to give up.

    ``turns``: turns of every file; ``runs_per_turn``: timed runs a turn (None: about 25 ms worth);
    ``precision``: wanted half width of the 95 % interval, relative; ``refuse``: half width above which the result is
    refused; ``extensions``: how often ``turns`` more are added to get there.
    """

    turns: int = 30
    runs_per_turn: int | None = None
    precision: float = 0.01
    refuse: float = 0.05
    extensions: int = 4


@dataclass
class _Candidate:
    """One file, its process and what was timed so far: a list of run times in ms per turn.

    ``empty_bytes``: peak memory of the process before it loaded the file; ``first_run_ms``: loading it, compiling and
    the first run.
    """

    name: str
    worker: Worker
    empty_bytes: int = 0
    first_run_ms: float = 0.0
    runs: int = 1
    turns: list[list[float]] = field(default_factory=list)

    def medians(self) -> np.ndarray:
        return np.array([np.median(turn) for turn in self.turns])

    def all_runs(self, chosen: np.ndarray) -> np.ndarray:
        return np.concatenate([np.asarray(turn) for turn, good in zip(self.turns, chosen, strict=True) if good])


def median_interval(values: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided confidence interval of the median from order statistics; needs no distribution."""
    ordered = np.sort(values)
    count = len(ordered)
    rank = int(stats.binom.ppf((1 - confidence) / 2, count, 0.5))
    # The interval between the order statistics rank and count+1-rank covers at least ``confidence``.
    while rank > 0 and stats.binom.cdf(rank - 1, count, 0.5) > (1 - confidence) / 2:
        rank -= 1
    rank = max(rank, 1)
    return float(ordered[rank - 1]), float(ordered[count - rank])


REFERENCE = "dense"
"""Name of the file that others are compared with."""


def spread(values: np.ndarray) -> float:
    """Interquartile range over median."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return float((high - low) / middle)


def compare(
    target: Target,
    files: Mapping[str, Path | str | bytes],
    *,
    threads: int = 1,
    batch: int = 1,
    protocol: Protocol | None = None,
    progress: Progress = silent,
    seed: int = 0,
) -> dict[str, Measurement]:
    """Latency of every file, and its ratio to the one named ``dense`` where there is one, from one interleaved run.

    Every file has its own process. In every turn each process in random order gets the token for a few runs; the
    ratio is taken turn by turn, so that clock changes and other load hit both sides alike. Turns in which other work
    ran on our core are thrown away and repeated. If the runtime's process ends by itself, it is started once more.

    Args:
        target: runtime on a device.
        files: model files by name, as paths or bytes.
        threads: threads of the runtime.
        batch: batch size where the model leaves it open.
        protocol: turns, runs per turn, precision.
        progress: where to report.
        seed: of the order within turns.

    Raises:
        TargetError: the runtime refused a file, crashed or hung.
        UnstableTimingError: the machine is too disturbed for a trustworthy figure.
    """
    if not files:
        raise TargetError("There is nothing to measure: no model file was given. Give at least one.")
    rules = protocol or Protocol()
    settings = target.settings(threads=threads, batch=batch, profile=False)
    try:
        return _compared(target, files, settings, rules, threads, seed, progress)
    except WorkerLostError as lost:
        progress.say(f"{lost} It is started once more.")
    return _compared(target, files, settings, rules, threads, seed, progress)


def _compared(
    target: Target,
    files: Mapping[str, Path | str | bytes],
    settings: Mapping[str, Any],
    rules: Protocol,
    threads: int,
    seed: int,
    progress: Progress,
) -> dict[str, Measurement]:
    order = random.Random(seed)
    with ExitStack() as stack:
        candidates = _loaded(stack, target, files, settings)
        stack.enter_context(measuring(progress, worker=candidates[0].worker))
        for candidate in candidates:
            latency_ms = warm_up(candidate.worker, candidate.name)
            candidate.runs = rules.runs_per_turn or max(2, min(200, math.ceil(TURN_MS / latency_ms)))
        task = stack.enter_context(progress.task("measure", rules.turns))
        _take_turns(candidates, rules, REFERENCE, threads, order, task)
        peaks = {candidate.name: candidate.worker.peak_bytes() for candidate in candidates}
    return _summarise(candidates, REFERENCE, peaks)


def _loaded(
    stack: ExitStack, target: Target, files: Mapping[str, Path | str | bytes], settings: Mapping[str, Any]
) -> list[_Candidate]:
    """Every file loaded in a process of its own; ``stack`` ends them."""
    folder = Path(stack.enter_context(Scratch("compare")))
    candidates = []
    for index, (name, content) in enumerate(files.items()):
        worker = stack.enter_context(target.start())
        path = content if isinstance(content, (str, Path)) else folder / f"{index}.{target.artifact}"
        if isinstance(content, bytes):
            Path(path).write_bytes(content)
        empty_bytes = worker.peak_bytes()
        answer = worker.load(name, Path(path), settings)
        candidates.append(_Candidate(name, worker, empty_bytes, answer["load_ms"] + answer["first_ms"]))
    return candidates


def warm_up(worker: Worker, key: str) -> float:
    """Run until two windows of runs agree within 2 % (or 3 s are over); returns the latency in ms."""
    before, spent_ms = math.inf, 0.0
    runs = 3
    while True:
        times = worker.run([key], runs=runs)["times_ms"][key]
        now = float(np.median(times))
        spent_ms += sum(times)
        if abs(now - before) <= 0.02 * now or spent_ms > _WARM_UP_S * 1e3:
            return now
        before = now
        runs = max(3, min(100, math.ceil(2 * TURN_MS / now)))


def _take_turns(
    candidates: list[_Candidate],
    rules: Protocol,
    reference: str,
    threads: int,
    order: random.Random,
    task: Task,
) -> None:
    """Fill ``candidates`` with clean turns until the result is precise enough.

    Raises:
        UnstableTimingError: it never is.
    """
    width = math.inf
    for _ in range(1 + rules.extensions):
        wanted, attempts = len(candidates[0].turns) + rules.turns, 0
        while len(candidates[0].turns) < wanted:
            attempts += 1
            # When the machine is never quiet, disturbed turns are better than none; the interval decides.
            clean = _turn(candidates, threads, order, accept_disturbed=attempts > 2 * rules.turns)
            if clean:
                task.advance(note=f"{np.median(candidates[0].turns[-1]):.3g} ms")
        width = max(_half_width(candidate, candidates, reference) for candidate in candidates)
        if width <= rules.precision:
            return
    if width > rules.refuse:
        names = ", ".join(f"{item.name}: {spread(item.medians()) * 100:.0f} %" for item in candidates)
        raise UnstableTimingError(
            f"Timings on this machine are too disturbed: after {len(candidates[0].turns)} turns the 95 % interval is "
            f"still ±{width * 100:.1f} % wide (limit {rules.refuse * 100:.0f} %; IQR/median {names}). "
            f"Close other programs, fix the processor's clock, or measure again later."
        )


def _turn(candidates: list[_Candidate], threads: int, order: random.Random, *, accept_disturbed: bool) -> bool:
    """Give every candidate the token once; keep the turn if nothing disturbed it."""
    times: dict[str, list[float]] = {}
    quiet = True
    for candidate in order.sample(candidates, len(candidates)):
        # The first run after a switch refills the caches and is not counted.
        answer = candidate.worker.run([candidate.name], runs=candidate.runs, skip=1)
        times[candidate.name] = answer["times_ms"][candidate.name]
        quiet = quiet and (threads > 1 or answer["cpu_ms"] >= QUIET_SHARE * answer["wall_ms"])
    if quiet or accept_disturbed:
        for candidate in candidates:
            candidate.turns.append(times[candidate.name])
        return True
    return False


def _ratios(candidate: _Candidate, candidates: list[_Candidate], reference: str) -> np.ndarray | None:
    base = next((other for other in candidates if other.name == reference), None)
    if base is None:
        return None
    return (candidate.medians() / base.medians())[_quiet(candidates)]


def _quiet(candidates: list[_Candidate]) -> np.ndarray:
    """Turns in which no candidate was slowed by other work on the machine; all turns where too few are."""
    tables = np.stack([candidate.medians() for candidate in candidates])
    quiet = np.asarray((tables <= _SLOWER * np.percentile(tables, 5, axis=1, keepdims=True)).all(axis=0))
    return quiet if quiet.sum() >= _FEWEST_QUIET else np.ones(tables.shape[1], dtype=bool)


def _half_width(candidate: _Candidate, candidates: list[_Candidate], reference: str) -> float:
    """Relative half width of the 95 % interval of the ratio (of the latency, where there is no reference)."""
    values = _ratios(candidate, candidates, reference)
    if values is None or len(candidates) == 1:
        # A file alone is its own reference: the ratio would be exactly 1 on the most disturbed machine.
        values = candidate.medians()[_quiet(candidates)]
    low, high = median_interval(values)
    return (high - low) / 2 / float(np.median(values))


def _summarise(candidates: list[_Candidate], reference: str, peaks: Mapping[str, int]) -> dict[str, Measurement]:
    results, quiet = {}, _quiet(candidates)
    for candidate in candidates:
        runs, ratios = candidate.all_runs(quiet), _ratios(candidate, candidates, reference)
        results[candidate.name] = Measurement(
            latency_ms=float(np.median(runs)),
            spread=spread(runs),
            runs=len(runs),
            ratio=None if ratios is None else float(np.median(ratios)),
            ratio_upper=None if ratios is None else median_interval(ratios)[1],
            peak_memory_bytes=peaks[candidate.name] or None,
            memory_bytes=(peaks[candidate.name] - candidate.empty_bytes) or None,
            first_run_ms=candidate.first_run_ms,
        )
    return results
