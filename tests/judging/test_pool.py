"""Judging side by side: who is lost costs only its evaluation, and the order of answers does not matter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from secateurs.errors import SecateursError
from secateurs.judging.pool import Answer, JudgeWorker, Pool
from secateurs.search.problem import Evaluation


class Hand:
    """Works when told to; some are doomed."""

    def __init__(self, doomed: bool) -> None:
        self.doomed, self.item, self.closed = doomed, (0,), False

    def give(self, item: tuple[Any, ...]) -> None:
        self.item = item

    def close(self) -> None:
        self.closed = True


@dataclass
class Hands:
    """The last to be given something answers first; the first ``dooms`` workers are lost with their first item."""

    dooms: int = 0
    room: int = 99
    hired: list[Hand] = field(default_factory=list)

    def hire(self, wanted: int, present: int) -> list[JudgeWorker]:
        new = [Hand(len(self.hired) + i < self.dooms) for i in range(max(min(wanted, self.room), 0 if present else 1))]
        self.hired += new
        return list(new)

    def answers(self, busy: Sequence[JudgeWorker]) -> list[tuple[JudgeWorker, Answer]]:
        worker = busy[-1]
        assert isinstance(worker, Hand)
        if worker.doomed:
            return [(worker, None)]
        if worker.item[0] == "bad":
            return [(worker, ValueError("bad"))]
        return [(worker, Evaluation(float(worker.item[0])))]

    def close(self) -> None:
        pass


@pytest.mark.parametrize("size", [1, 2, 5, 20])
@pytest.mark.parametrize("dooms", [0, 1, 2])
def test_every_item_is_answered_once(size: int, dooms: int) -> None:
    hands = Hands(dooms)
    pool = Pool(hands, size)
    answers = list(pool.map([(i,) for i in range(12)]))
    assert sorted(place for place, _ in answers) == list(range(12))
    assert all(answer.accuracy == place for place, answer in answers)
    assert pool.lost == dooms
    assert min(size, 12) <= len(hands.hired) <= min(size, 12) + dooms
    hired = len(hands.hired)
    again = list(pool.map([(i,) for i in range(3)]))
    assert len(again) == 3
    assert len(hands.hired) <= max(hired, min(size, 3)) + 1
    pool.close()
    assert all(hand.closed for hand in hands.hired if not hand.doomed)


def test_an_item_that_costs_three_workers_ends_the_search() -> None:
    with pytest.raises(SecateursError, match="3 workers were lost"):
        list(Pool(Hands(dooms=99), 2).map([(1,), (2,)]))


def test_what_the_judge_raises_arrives() -> None:
    hands = Hands()
    with pytest.raises(ValueError, match="bad"):
        list(Pool(hands, 2).map([(1,), ("bad",), (2,)]))


def test_fewer_workers_do_the_work_where_there_is_no_room() -> None:
    hands = Hands(dooms=1, room=0)
    assert len(list(Pool(hands, 4).map([(i,) for i in range(5)]))) == 5
    assert len(hands.hired) == 2
