"""Evaluators for tests of searches: accuracy by a formula, counted, and able to stop a search half way."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from secateurs.search.problem import Evaluation, Evaluator, Problem

if TYPE_CHECKING:
    from secateurs.judging.pool import Pool


class Killed(BaseException):
    """What a kill looks like from inside: nothing catches it."""


@dataclass
class Formula(Evaluator):
    """Accuracy falls with every cut, steeply in some groups; ``stop_after`` real evaluations it raises Killed."""

    problem: Problem
    seed: int = 0
    stop_after: int | None = None
    images: int = 500
    calls: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        generator = np.random.default_rng(self.seed)
        groups = len(self.problem.options)
        self.steep = generator.lognormal(-1, 1, groups) / groups * 5
        self.blocks = generator.lognormal(-2, 1, len(self.problem.spec.blocks))

    @property
    def identity(self) -> str:
        """Names the formula and how many images it claims to use."""
        return f"formula {self.seed} {self.images}"

    def __call__(self, widths: np.ndarray, removed: frozenset[int]) -> Evaluation:
        """The evaluation of one candidate."""
        if self.stop_after is not None and len(self.calls) >= self.stop_after:
            raise Killed
        self.calls.append(f"{np.asarray(widths).tolist()} {sorted(removed)}")
        gone = [blocks & removed for blocks in self.problem.inner_blocks]
        share = np.where([bool(g) for g in gone], 1.0, np.asarray(widths) / self.problem.spec.dense_widths)
        loss = float((self.steep * (1 - share) ** 1.5).sum()) + sum(float(self.blocks[b]) for b in removed)
        rough = 0.03 * np.sin(1000 * loss) / self.images**0.5
        return Evaluation(round(float(0.9 * np.exp(-loss) + rough), 4), 0.0, {"loss": loss})

    def on_fewer(self, images: int) -> Formula:
        """A rougher formula."""
        return Formula(self.problem, self.seed, self.stop_after, images)


@dataclass(frozen=True)
class Errand:
    """For workers in other processes: what ``formula`` says, after ``seconds``, with a file ``PID`` left in ``folder``
    beforehand, so that a test knows whom to kill."""

    formula: Formula
    folder: str
    seconds: float = 0.0

    def __call__(self, widths: np.ndarray, removed: frozenset[int]) -> Evaluation:
        """The formula's evaluation."""
        Path(self.folder, str(os.getpid())).touch()
        time.sleep(self.seconds)
        return self.formula(widths, removed)


@dataclass(frozen=True)
class Crewed(Evaluator):
    """The evaluator of a search whose candidates the workers of ``pool`` judge by ``formula``."""

    formula: Formula
    pool: Pool

    @property
    def identity(self) -> str:
        """That of the formula: who computes makes no difference."""
        return self.formula.identity

    def __call__(self, widths: np.ndarray, removed: frozenset[int]) -> Evaluation:
        """The evaluation of one candidate."""
        ((_, found),) = self.many([(widths, removed)])
        return found

    def many(self, candidates: Sequence[tuple[np.ndarray, frozenset[int]]]) -> Iterator[tuple[int, Evaluation]]:
        """(place, evaluation) of every candidate as they are done."""
        return self.pool.map(candidates)


@dataclass(frozen=True)
class Marking:
    """For workers in other processes: leaves a file ``ITEM-PID`` in ``folder``, takes its time, and answers.

    The first process that judges the item ``fatal`` is killed by it; a negative item raises ValueError.
    """

    folder: str
    seconds: float = 0.0
    fatal: int | None = None

    def __call__(self, item: int) -> Evaluation:
        """Accuracy item / 100, and what this process may use of the processor."""
        Path(self.folder, f"{item}-{os.getpid()}").touch()
        if item == self.fatal and len(list(Path(self.folder).glob(f"{item}-*"))) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.seconds)
        if item < 0:
            raise ValueError(f"item {item}")
        return Evaluation(item / 100, details={"threads": float(os.environ.get("OMP_NUM_THREADS", 0))})
