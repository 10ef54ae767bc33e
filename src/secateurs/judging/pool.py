"""Candidates judged side by side: who is free gets the next one, and a lost worker costs only its evaluation."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from secateurs.errors import SecateursError
from secateurs.search.problem import Evaluation

TRIES = 3
"""Workers that one candidate may cost before the search gives up."""


class JudgeWorker(Protocol):
    """Something that judges one item at a time."""

    def give(self, item: tuple[Any, ...]) -> None:
        """Start on an item; the answer comes through :meth:`Workforce.answers`."""

    def close(self) -> None:
        """End it."""


Answer = Evaluation | Exception | None
"""What came of an item: its evaluation, what the judge raised, or None where the worker was lost."""


class Workforce(Protocol):
    """Where workers come from."""

    def hire(self, wanted: int, present: int) -> list[JudgeWorker]:
        """Up to ``wanted`` new workers, as many as there is room for; at least one where ``present`` is 0."""

    def answers(self, busy: Sequence[JudgeWorker]) -> list[tuple[JudgeWorker, Answer]]:
        """Wait until at least one of the busy workers has answered or is lost."""

    def close(self) -> None:
        """Give everything back."""


@dataclass
class Pool:
    """A fixed number of workers of one workforce; ``lost``: how many went missing so far."""

    workforce: Workforce
    size: int
    lost: int = 0
    _idle: list[JudgeWorker] = field(default_factory=list)

    def map(self, items: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Evaluation]]:
        """(place, evaluation) of every item, in the order in which they are done.

        Raises:
            SecateursError: an item cost several workers; or what the judge raised.
        """
        waiting, tries = deque(range(len(items))), [0] * len(items)
        busy: dict[int, tuple[JudgeWorker, int]] = {}
        try:
            while waiting or busy:
                self._staff(len(waiting), len(busy))
                while waiting and self._idle:
                    worker, place = self._idle.pop(), waiting.popleft()
                    worker.give(items[place])
                    busy[id(worker)] = worker, place
                for worker, answer in self.workforce.answers([worker for worker, _ in busy.values()]):
                    _, place = busy.pop(id(worker))
                    if answer is None:
                        self.lost, tries[place] = self.lost + 1, tries[place] + 1
                        _check(tries[place])
                        waiting.appendleft(place)
                        continue
                    self._idle.append(worker)
                    if isinstance(answer, Exception):
                        raise answer
                    yield place, answer
        finally:
            # Whoever is still at work when the caller stops has an answer that nobody waits for.
            for worker, _ in busy.values():
                worker.close()

    def _staff(self, waiting: int, busy: int) -> None:
        present = len(self._idle) + busy
        wanted = min(self.size, waiting + busy) - present
        if wanted > 0:
            self._idle += self.workforce.hire(wanted, present)

    def close(self) -> None:
        """End all workers."""
        for worker in self._idle:
            worker.close()
        self._idle = []
        self.workforce.close()


def _check(tries: int) -> None:
    if tries >= TRIES:
        raise SecateursError(
            f"{tries} workers were lost in a row while they judged the same network. Most often memory is short: use "
            f"fewer --workers or fewer --images. What was evaluated is stored; start again with --resume."
        )
