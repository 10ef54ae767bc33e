"""Brings the networks of several methods to the same measured latency; part of ``accuracy_at_latency.py``.

A method is asked for a network within a model limit, the network is measured beside dense, and the limit is corrected
by what was measured, until the latency lies in the wanted window or the method has no network between.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from secateurs.cost import CostModel, CostTerm
from secateurs.errors import InfeasibleBudgetError, UnstableTimingError
from secateurs.latency.targets._base import Target
from secateurs.latency.timing import Protocol as Timing
from secateurs.latency.timing import compare
from secateurs.planning.channels import Channels
from secateurs.planning.planner import Choice, Planner

WINDOW, FARTHEST = 1.04, 1.5
"""Rivals may be this much slower than ours; a coarse one that has nothing nearer may be so much slower."""
LEAST = 0.97
"""Ours is near enough to the budget from this share of it on."""
TIMING = Timing(turns=16, precision=0.008, extensions=1)
AT_ONCE, ROUNDS, TRIES, MEASURED_AT_MOST = 8, 6, 8, 16
STEP = 1.012
_TABLE_AT_MOST = 1 << 14
Entry = dict[str, Any]
"""``method``, ``budget`` (per cent), ``step`` (model limit / budget), ``key`` (of the network), ``widths``,
``removed``, ``predicted``, ``ratio`` and ``upper`` (measured, None before), ``dense_ms``."""


class Files(Protocol):
    """Builds files of one network at any widths."""

    @property
    def dense_bytes(self) -> bytes: ...

    def build(self, widths: np.ndarray, removed: frozenset[int]) -> bytes: ...


@dataclass
class Candidates:
    """Networks that were made and their measured ratios, in one file, plans beside it."""

    path: Path

    def read(self) -> list[Entry]:
        """Every entry."""
        return json.loads(self.path.read_text()) if self.path.exists() else []

    def write(self, entries: Sequence[Entry]) -> None:
        """Replace the file in one go."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        scratch = self.path.with_suffix(".new")
        scratch.write_text(json.dumps(list(entries), indent=1))
        scratch.replace(self.path)

    def plan(self, entry: Entry) -> Path:
        """Where an entry's plan lies."""
        name = f"{entry['method']}-{entry['budget']}-{entry['step']}".replace(" ", "_")
        return self.path.parent / f"{name}.plan.json"


@dataclass(frozen=True)
class Match:
    """One search for equal latency. ``ours``: the method that sets it; ``planners``: by method; ``held``: results."""

    ours: str
    planners: Mapping[str, Planner]
    files: Files
    target: Target
    held: Candidates

    def run(self, budgets: Sequence[int]) -> None:
        """Measure until every method is in the window of every budget, or cannot get there."""
        for _ in range(ROUNDS):
            wanted = [entry for budget in budgets for method in self.planners if (entry := self._next(method, budget))]
            fresh = list({entry["key"]: entry for entry in wanted}.values())
            if not fresh:
                return
            for start in range(0, len(fresh), AT_ONCE):
                self._measure(fresh[start : start + AT_ONCE])

    def _next(self, method: str, budget: int) -> Entry | None:
        """The network to measure next for a method, None where it is in the window or has no other."""
        entries, share = self.held.read(), budget / 100
        measured = [e for e in entries if e["method"] == method and e["ratio"] is not None]
        if method == self.ours:
            goal, low, high = 0.985 * share, LEAST * share, share
            there = [e for e in measured if e["budget"] == budget and low <= e["ratio"] and e["upper"] <= high]
        else:
            ours = chosen_ours(entries, self.ours, budget)
            low = share if ours is None else ours["ratio"]
            goal, high = (1 + WINDOW) / 2 * low, WINDOW * low
            there = [e for e in measured if low <= e["ratio"] <= high]
        if there or sum(e["budget"] == budget for e in measured) >= MEASURED_AT_MOST:
            return None
        return self._fresh(method, budget, goal, {e["key"]: e for e in measured})

    def _fresh(self, method: str, budget: int, goal: float, known: Mapping[str, Entry]) -> Entry | None:
        """A network that was not measured yet, as near to ``goal`` as the measurements so far tell."""
        planner = self.planners[method]
        low, limit, high = _limits_for(goal, known)
        for _ in range(TRIES):
            try:
                choice = planner.solve({planner.resources[0]: limit})
            except InfeasibleBudgetError:
                low, limit = limit, _middle(limit, high)
                continue
            if choice.key not in known:
                return self._keep(method, budget, limit, choice)
            low, high = (limit, high) if known[choice.key]["ratio"] < goal else (low, limit)
            limit = _middle(low, high)
        return None

    def _keep(self, method: str, budget: int, limit: float, choice: Choice) -> Entry:
        planner, solution = self.planners[method], choice.solution
        assert isinstance(planner.space, Channels)
        costs, dense = planner.space.costs, planner.graph.spec.dense_widths
        assert costs is not None
        entry: Entry = {
            "method": method,
            "budget": budget,
            "step": round(limit * 100 / budget, 5),
            "key": choice.key,
            "widths": solution.widths.tolist(),
            "removed": sorted(solution.removed),
            "predicted": float(costs.predict(solution.widths, solution.removed) / costs.predict(dense)),
            "ratio": None,
        }
        self.held.path.parent.mkdir(parents=True, exist_ok=True)
        self.held.plan(entry).write_text(planner.plan(choice, f"{budget}%").to_json())
        self.held.write([*(e for e in self.held.read() if self.held.plan(e) != self.held.plan(entry)), entry])
        return entry

    def _measure(self, fresh: Sequence[Entry]) -> None:
        names = {f"c{index}": entry for index, entry in enumerate(fresh)}
        files: dict[str, Path | str | bytes] = {"dense": self.files.dense_bytes}
        for name, entry in names.items():
            files[name] = self.files.build(np.array(entry["widths"]), frozenset(entry["removed"]))
        try:
            found = compare(self.target, files, protocol=TIMING)
        except UnstableTimingError as error:
            print(error, flush=True)
            return
        results = {entry["key"]: found[name] for name, entry in names.items()}
        entries = self.held.read()
        for entry in entries:
            measured = results.get(entry["key"])
            if measured is not None:
                dense_ms = found["dense"].latency_ms
                entry |= {"ratio": measured.ratio, "upper": measured.ratio_upper, "dense_ms": dense_ms}
        self.held.write(entries)
        for entry in fresh:
            ratio = results[entry["key"]].ratio
            print(f"{entry['method']:45s} {entry['budget']} %: {entry['predicted']:.4f} -> {ratio:.4f}", flush=True)


def _limits_for(goal: float, known: Mapping[str, Entry]) -> tuple[float, float, float]:
    """Model limits too low, right and too high for a measured ratio, by what is known (0 and inf: nothing is)."""
    points = sorted((entry["ratio"], entry["step"] * entry["budget"] / 100) for entry in known.values())
    below = [point for point in points if point[0] <= goal]
    above = [point for point in points if point[0] > goal]
    if below and above:
        (low, under), (high, over) = below[-1], above[0]
        return under, under + (over - under) * (goal - low) / (high - low), over
    if not points:
        return 0.0, goal, np.inf
    ratio, limit = below[-1] if below else above[0]
    guess = limit * float(np.clip(goal / ratio, 0.8, 1.25))
    return (limit, guess, np.inf) if below else (0.0, guess, limit)


def _middle(low: float, high: float) -> float:
    """A limit between two; a step away from the only one that is known."""
    if high == np.inf:
        return low * STEP
    return high / STEP if low == 0 else (low + high) / 2


def chosen_ours(entries: Sequence[Entry], ours: str, budget: int) -> Entry | None:
    """The slowest of our candidates that are surely within the budget."""
    mine = [e for e in entries if (e["method"], e["budget"]) == (ours, budget) and e["ratio"] is not None]
    within = [e for e in mine if e["upper"] <= budget / 100]
    return max(within, key=lambda entry: entry["ratio"]) if within else None


def chosen(entries: Sequence[Entry], ours: str, methods: Sequence[str], budget: int) -> dict[str, Entry]:
    """Per method the candidate that is compared at a budget: the slowest in the window, else the nearest slower one."""
    best = chosen_ours(entries, ours, budget)
    if best is None:
        return {}
    result = {ours: best}
    for method in methods:
        there = [e for e in entries if e["method"] == method and e["ratio"] is not None]
        slower = [e for e in there if best["ratio"] <= e["ratio"] <= FARTHEST * best["ratio"]]
        near = [e for e in slower if e["ratio"] <= WINDOW * best["ratio"]]
        if slower and method != ours:
            pick = max(near, key=lambda e: e["ratio"]) if near else min(slower, key=lambda e: e["ratio"])
            result[method] = pick
    return result


def tabulated(model: CostModel, dense: np.ndarray) -> CostModel:
    """The same costs up to the widths ``dense``, small terms from tables: searches ask for the same ones often."""
    return replace(model, terms=tuple(_tabulated(term, dense) for term in model.terms))


def _tabulated(term: CostTerm, dense: np.ndarray) -> CostTerm:
    rows = 1 if term.inputs is None else int(term.inputs.length(dense)) + 1
    columns = 1 if term.outputs is None else int(term.outputs.length(dense)) + 1
    if rows * columns > _TABLE_AT_MOST:
        return term
    found = np.asarray(term.cost(np.arange(rows)[:, None], np.arange(columns)[None, :]), dtype=np.float64)
    table = np.broadcast_to(found, (rows, columns)).copy()
    return replace(term, cost=lambda inputs, outputs: table[inputs, outputs])
