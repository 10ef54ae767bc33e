"""What every search strategy solves: legal widths, what they are worth, what they cost. Numbers only, no torch."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from secateurs.cost import CostModel
from secateurs.errors import PlanError
from secateurs.network import NetworkSpec
from secateurs.progress import Progress, silent
from secateurs.provenance import digest
from secateurs.search.lookup import Lookup

SLACK = 1e-9
"""Relative tolerance with which a cost counts as within its limit (rounding of sums, nothing else)."""


@dataclass(frozen=True)
class Constraint:
    """``model`` evaluated at the chosen network must not exceed ``limit`` (in the model's unit).

    ``where``: what the figure holds for, shown in messages, such as ``"onnxruntime-cpu, 1 thread"``.
    """

    name: str
    model: CostModel
    limit: float
    where: str = ""

    def __post_init__(self) -> None:
        if not np.isfinite(self.limit):
            raise PlanError(f"The limit of {self.name} is {self.limit}. Give a finite number of {self.model.unit}.")


@dataclass(frozen=True)
class Evaluation:
    """What a real evaluation of a candidate gave: ``accuracy`` (fraction 0-1), seconds spent, further figures."""

    accuracy: float
    seconds: float = 0.0
    details: Mapping[str, float] = field(default_factory=dict)


class Evaluator(Protocol):
    """Judges a candidate for real (cut, recalibrate, validate). ``identity`` names everything its result depends on.

    ``rows``: where it keeps evaluations itself, None where it does not.
    """

    rows: Rows | None = None

    @property
    def evaluations_per_second(self) -> float:
        """So far; 0 where it does not count."""
        return 0.0

    @property
    def identity(self) -> str:
        """Data, split, seed, repair and network; rows stored under another identity are never used."""

    def __call__(self, widths: np.ndarray, removed: frozenset[int]) -> Evaluation:
        """The evaluation of one legal candidate."""


class Rows(Protocol):
    """Where evaluations are kept between searches and across kills."""

    def get(self, key: str) -> Mapping[str, Any] | None:
        """The row stored under ``key``, or None."""

    def put(self, key: str, row: Mapping[str, Any]) -> None:
        """Store ``row`` for good before returning."""


@dataclass(frozen=True)
class Candidate:
    """A network that a search looked at: widths, removed blocks, value, predicted costs, accuracy if evaluated."""

    widths: np.ndarray
    removed: frozenset[int]
    value: float
    predicted: Mapping[str, float]
    accuracy: float | None = None


@dataclass(frozen=True)
class Solution:
    """What a strategy chose.

    ``widths``: int64 [groups] (groups inside a removed block stand at their narrowest option); ``removed``: block
    indices; ``value``: the problem's value of it; ``predicted``: cost per constraint name; ``gap``: proven relative
    distance to the optimum, None where nothing is proven; ``seconds``: search time; ``candidates``: further points
    worth keeping (for fronts and for re-fitting latency models), best first.
    """

    widths: np.ndarray
    removed: frozenset[int]
    value: float
    predicted: Mapping[str, float]
    gap: float | None
    seconds: float
    candidates: tuple[Candidate, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


class Strategy(Protocol):
    """A search: inherit, name it, and write :meth:`solve`. Everything that is read of a strategy is declared here.

    ``name``: the registered one; ``criterion``: the only criterion whose values it may be given, None for any;
    ``evaluates``: it judges candidates on data, so the problem has an evaluator; ``searches``: False where it only
    picks from what an earlier search left behind; ``picked``: what a person picked, in words, where it holds that
    network whatever the limits; ``replans``: a plan costs so little that a schedule may ask for several while it
    trains; ``finalists``: its candidates are the best networks within the limits, of which training may choose one.
    """

    name: str
    criterion: str | None = None
    evaluates: bool = False
    searches: bool = True
    picked: str | None = None
    replans: bool = True
    finalists: bool = False

    @classmethod
    def tuned(cls, options: Mapping[str, Any], folder: Path | None) -> Strategy:
        """The strategy by the options that a user gave (``episodes``, ``warm_start``, ``agent``).

        ``folder``: where it keeps what a killed search resumes from, None: nowhere.

        Raises:
            PlanError: it does not take these options.
        """
        made = cls()
        if options:
            raise takes_none(made.name, options)
        return made

    def solve(self, problem: Problem, *, seed: int = 0, progress: Progress = silent) -> Solution:
        """The chosen network; the same seed, problem and stored rows give the same one."""


def takes_none(strategy: str, options: Iterable[str]) -> PlanError:
    """The error for options that are given to a strategy without any."""
    typed = ", ".join(f"--{option.replace('_', '-')}" for option in options)
    return PlanError(f"Strategy {strategy!r} does not learn, so it takes no {typed}. Leave it out, or choose lap.")


@dataclass(frozen=True)
class Problem:
    """Legal choices, their values and their costs.

    ``options``: per group the legal widths, ascending (see :mod:`secateurs.search.options`); ``values``: per group
    the value of keeping w units, index w = 0 … units; ``constraints``: costs with limits, the first one is the
    main budget; ``block_values``: extra value of keeping each block [blocks], zeros by default; ``removable``:
    indices of blocks that may go; ``evaluator`` and ``rows``: for strategies that judge candidates for real.

    Removing a block drops the cost terms that name it and its block value; its inner groups count as keeping 0 units.
    """

    spec: NetworkSpec
    options: tuple[np.ndarray, ...]
    values: tuple[np.ndarray, ...]
    constraints: tuple[Constraint, ...] = ()
    block_values: np.ndarray | None = None
    removable: frozenset[int] = frozenset()
    evaluator: Evaluator | None = None
    rows: Rows | None = None

    def __post_init__(self) -> None:
        groups = self.spec.groups
        if not len(groups) == len(self.options) == len(self.values):
            raise PlanError(
                f"The network has {len(groups)} groups, but {len(self.options)} option lists and "
                f"{len(self.values)} value curves were given. Give one of each per group, in the order of the groups."
            )
        for group, options, values in zip(groups, self.options, self.values, strict=True):
            self._check_group(group.name, group.units, np.asarray(options), np.asarray(values))
        if len({constraint.name for constraint in self.constraints}) < len(self.constraints):
            raise PlanError("Two constraints have the same name. Give each its own.")
        if not self.removable <= frozenset(range(len(self.spec.blocks))):
            raise PlanError(f"removable names blocks {sorted(self.removable)}; there are {len(self.spec.blocks)}.")
        if self.block_values is not None and len(self.block_values) != len(self.spec.blocks):
            raise PlanError(f"{len(self.block_values)} block values for {len(self.spec.blocks)} blocks.")

    @staticmethod
    def _check_group(name: str, units: int, options: np.ndarray, values: np.ndarray) -> None:
        legal = options.ndim == 1 and len(options) > 0 and bool(np.all(np.diff(options) > 0))
        if not legal or options[0] < 1 or options[-1] > units:
            raise PlanError(f"Group {name} has legal widths {options.tolist()}; they must ascend within 1 … {units}.")
        if values.shape != (units + 1,) or not np.all(np.isfinite(values)):
            raise PlanError(f"Group {name} needs {units + 1} finite values (of keeping 0 … {units} units).")

    @cached_property
    def inner_blocks(self) -> tuple[frozenset[int], ...]:
        """Per group the removable blocks with which it vanishes."""
        return tuple(
            frozenset(b for b in self.removable if group in self.spec.blocks[b].groups)
            for group in range(len(self.spec.groups))
        )

    @cached_property
    def narrowest(self) -> np.ndarray:
        """The smallest legal width of every group, int64 [groups]."""
        return np.array([options[0] for options in self.options], dtype=np.int64)

    @cached_property
    def widest(self) -> np.ndarray:
        """The largest legal width of every group, int64 [groups]."""
        return np.array([options[-1] for options in self.options], dtype=np.int64)

    @cached_property
    def keep_values(self) -> np.ndarray:
        """Extra value of keeping each block, float64 [blocks]."""
        if self.block_values is None:
            return np.zeros(len(self.spec.blocks))
        return np.asarray(self.block_values, dtype=np.float64)

    def gone(self, removed: Collection[int] | np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Which blocks are removed, bool [*shape, blocks], from block indices or from such an array."""
        count = len(self.spec.blocks)
        if isinstance(removed, np.ndarray) and removed.dtype == bool:
            return np.broadcast_to(removed, (*shape, count))
        mask = np.zeros(count, dtype=bool)
        mask[list(removed)] = True
        return np.broadcast_to(mask, (*shape, count))

    def value(self, widths: np.ndarray, removed: Collection[int] | np.ndarray = ()) -> np.ndarray:
        """Values [...] of widths [..., groups]; ``removed``: block indices, or bool [..., blocks] per candidate."""
        widths = np.asarray(widths, dtype=np.int64)
        gone = self.gone(removed, widths.shape[:-1])
        total = (~gone) @ self.keep_values
        for group, curve in enumerate(self.values):
            worth = np.asarray(curve, dtype=np.float64)[widths[..., group]]
            inner = sorted(self.inner_blocks[group])
            total = total + (np.where(gone[..., inner].any(axis=-1), float(curve[0]), worth) if inner else worth)
        return total

    def costs(self, widths: np.ndarray, removed: Collection[int] | np.ndarray = ()) -> np.ndarray:
        """Costs [..., constraints] of widths [..., groups]; ``removed`` as for :meth:`value`.

        Networks on legal widths are read from tables that are filled on first use, others are computed.
        """
        widths = np.asarray(widths, dtype=np.int64)
        gone = self.gone(removed, widths.shape[:-1])
        rows = int(np.prod(widths.shape[:-1], dtype=np.int64))
        costs = self._lookup.costs(widths.reshape(rows, len(self.options)), gone.reshape(rows, len(self.spec.blocks)))
        return costs.reshape(*widths.shape[:-1], len(self.constraints))

    @cached_property
    def _lookup(self) -> Lookup:
        return Lookup(self.options, tuple(constraint.model for constraint in self.constraints))

    def fits(self, widths: np.ndarray, removed: Collection[int] | np.ndarray = ()) -> np.ndarray:
        """Whether every cost is within its limit, bool [...]."""
        return np.all(self.costs(widths, removed) <= self.limits + SLACK * np.abs(self.limits), axis=-1)

    @cached_property
    def limits(self) -> np.ndarray:
        """The limits, float64 [constraints]."""
        return np.array([constraint.limit for constraint in self.constraints], dtype=np.float64)

    def predicted(self, widths: np.ndarray, removed: Collection[int] = ()) -> dict[str, float]:
        """Cost of one candidate per constraint name, by the full models."""
        return {c.name: float(c.model.evaluate(np.asarray(widths), removed)) for c in self.constraints}

    def canonical(self, widths: np.ndarray | Sequence[int], removed: Collection[int]) -> np.ndarray:
        """The widths with every group inside a removed block at its narrowest option, so that equals look equal."""
        result, gone = np.array(widths, dtype=np.int64), set(removed)
        for group, blocks in enumerate(self.inner_blocks):
            if not gone.isdisjoint(blocks):
                result[group] = self.narrowest[group]
        return result

    def candidate(
        self, widths: np.ndarray | Sequence[int], removed: Collection[int] = (), accuracy: float | None = None
    ) -> Candidate:
        """The candidate in canonical form with its value and predicted costs."""
        widths = self.canonical(widths, removed)
        value = float(self.value(widths, removed))
        return Candidate(widths, frozenset(removed), value, self.predicted(widths, removed), accuracy)

    def key(self, widths: np.ndarray | Sequence[int], removed: Collection[int] = ()) -> str:
        """The name under which an evaluation of this candidate is stored."""
        identity = "" if self.evaluator is None else self.evaluator.identity
        text = f"{self.spec.fingerprint}|{identity}|{self.canonical(widths, removed).tolist()}|{sorted(removed)}"
        return digest(text)

    def evaluate(self, widths: np.ndarray | Sequence[int], removed: Collection[int] = ()) -> Evaluation:
        """The real evaluation of a candidate, from the stored rows where it is known.

        Raises:
            PlanError: the problem has no evaluator.
        """
        if self.evaluator is None:
            raise PlanError("This search evaluates candidates on data, but no data was given. Give --data.")
        widths, key = self.canonical(widths, removed), self.key(widths, removed)
        row = None if self.rows is None else self.rows.get(key)
        if row is not None:
            return Evaluation(float(row["accuracy"]), float(row["seconds"]), dict(row["details"]))
        result = self.evaluator(widths, frozenset(removed))
        if self.rows is not None:
            row = {"accuracy": result.accuracy, "seconds": result.seconds, "details": dict(result.details)}
            self.rows.put(key, {**row, "widths": widths.tolist(), "removed": sorted(removed)})
        return result


def widths_of(problem: Problem, states: np.ndarray) -> np.ndarray:
    """Widths int64 [groups] of option indices [groups]; the index past the last option is a group that is gone."""
    return np.array(
        [options[int(s) % len(options)] for s, options in zip(states, problem.options, strict=True)],
        dtype=np.int64,
    )
