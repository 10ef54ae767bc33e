"""Real evaluations of a search: each distinct network once, from the stored rows where it is known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np

from secateurs.errors import PlanError
from secateurs.progress import Task
from secateurs.search.hamp.encoding import Encoding
from secateurs.search.problem import Evaluation, Evaluator, Problem


@runtime_checkable
class ManyAtOnce(Protocol):
    """An evaluator that judges several candidates side by side, on several processes or machines."""

    def many(self, candidates: Sequence[tuple[np.ndarray, frozenset[int]]]) -> Iterable[tuple[int, Evaluation]]:
        """(place in ``candidates``, its evaluation) as they are done, in any order."""


@runtime_checkable
class Fidelities(Protocol):
    """An evaluator that can judge on fewer images."""

    def on_fewer(self, images: int) -> Any:
        """The same evaluator on that many images, with an identity of its own."""


@dataclass(frozen=True)
class KnownNetworks:
    """Networks that were evaluated before this search began: genomes [n, genes] and errors [n]."""

    genes: np.ndarray
    errors: np.ndarray


class Judging:
    """Errors of genomes. Counts the different networks that the search asked for, wherever the answer came from.

    Counting requests and not computations keeps a search the same whether or not rows are there already.
    """

    def __init__(self, encoding: Encoding, task: Task) -> None:
        self.encoding = encoding
        self.count = 0
        """Different networks judged so far."""
        self.computed = 0
        """How many of them were not in the stored rows."""
        self._task = task
        self._errors: dict[bytes, float] = {}

    def known(self, genome: np.ndarray) -> bool:
        """Whether this search has the genome's error already."""
        return genome.tobytes() in self._errors

    def remember(self, known: KnownNetworks) -> None:
        """Errors that cost nothing: they were there before the search."""
        for genome, error in zip(known.genes, known.errors, strict=True):
            self._errors[genome.tobytes()] = float(error)

    def everything(self) -> tuple[np.ndarray, np.ndarray]:
        """Genomes [n, genes] and errors [n] of every network with a known error, in order of asking."""
        genes = np.array([np.frombuffer(key, dtype=np.int64) for key in self._errors])
        return genes.reshape(len(self._errors), len(self.encoding.sizes)), np.array(list(self._errors.values()))

    def errors(self, genes: np.ndarray) -> np.ndarray:
        """Errors [n] of canonical genomes [n, genes]."""
        new = list(dict.fromkeys(genome.tobytes() for genome in genes if not self.known(genome)))
        networks = [self.encoding.network(np.frombuffer(key, dtype=np.int64)) for key in new]
        found = evaluate_all(self.encoding.problem, networks, self._task)
        for key, (evaluation, was_stored) in zip(new, found, strict=True):
            self._errors[key] = 1.0 - evaluation.accuracy
            self.computed += not was_stored
        self.count += len(new)
        return np.array([self._errors[genome.tobytes()] for genome in genes])


def evaluate_all(
    problem: Problem, networks: Sequence[tuple[np.ndarray, frozenset[int]]], task: Task
) -> list[tuple[Evaluation, bool]]:
    """The evaluation of every network, and whether it was stored already; side by side where the evaluator can.

    Raises:
        PlanError: the problem has no evaluator.
    """
    if problem.evaluator is None:
        raise PlanError("This search evaluates candidates on data, but no data was given. Give --data.")
    found: dict[int, tuple[Evaluation, bool]] = {}
    for place, (widths, removed) in enumerate(networks):
        row = None if problem.rows is None else problem.rows.get(problem.key(widths, removed))
        if row is not None:
            stored = Evaluation(float(row["accuracy"]), float(row["seconds"]), dict(row["details"]))
            found[place] = stored, True
            task.advance(1)
    missing = [place for place in range(len(networks)) if place not in found]
    if not isinstance(problem.evaluator, ManyAtOnce):
        for place in missing:
            found[place] = problem.evaluate(*networks[place]), False
            task.advance(1)
    elif missing:
        for position, evaluation in problem.evaluator.many([networks[place] for place in missing]):
            place = missing[position]
            # The evaluator has the answer; storing it goes the one way that all strategies share.
            answered = replace(problem, evaluator=_Answer(problem.evaluator, evaluation))
            found[place] = answered.evaluate(*networks[place]), False
            task.advance(1)
    return [found[place] for place in range(len(networks))]


@dataclass(frozen=True)
class _Answer(Evaluator):
    of: Evaluator
    evaluation: Evaluation

    @property
    def identity(self) -> str:
        return self.of.identity

    def __call__(self, widths: np.ndarray, removed: frozenset[int]) -> Evaluation:
        return self.evaluation


def stored_networks(encoding: Encoding, first: int) -> KnownNetworks:
    """What the first ``first`` stored rows know of this problem: distinct legal networks of the same evaluator."""
    problem, genes, errors = encoding.problem, [], []
    rows = problem.rows
    stored: Iterable[Mapping[str, Any]] = rows if isinstance(rows, Iterable) else ()
    for number, row in enumerate(stored):
        if number >= first:
            break
        if "widths" not in row or "accuracy" not in row or len(row["widths"]) != len(problem.options):
            continue
        widths, removed = np.array(row["widths"], dtype=np.int64), frozenset(row["removed"])
        if rows is None or not removed <= problem.removable or rows.get(problem.key(widths, removed)) != row:
            continue
        genome = encoding.genome(widths, removed)
        if np.array_equal(encoding.network(genome)[0], problem.canonical(widths, removed)):
            genes.append(genome)
            errors.append(1.0 - float(row["accuracy"]))
    return KnownNetworks(np.array(genes, dtype=np.int64).reshape(-1, len(encoding.sizes)), np.array(errors))


def as_row(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts of a search in a form that a stored row keeps."""
    return {"kind": "hamp", **facts}
