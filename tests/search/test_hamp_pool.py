"""Judging side by side: who is lost costs only its evaluation, and the order of answers does not matter."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from secateurs.errors import SecateursError
from secateurs.search.hamp.pool import Answer, Pool, Worker
from secateurs.search.hamp.processes import process_pool
from secateurs.search.problem import Evaluation
from secateurs.testing.judges import Marking


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

    def hire(self, wanted: int, present: int) -> list[Worker]:
        new = [Hand(len(self.hired) + i < self.dooms) for i in range(max(min(wanted, self.room), 0 if present else 1))]
        self.hired += new
        return list(new)

    def answers(self, busy: Sequence[Worker]) -> list[tuple[Worker, Answer]]:
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


def test_processes_share_the_work_and_one_killed_costs_one_evaluation(tmp_path: Path) -> None:
    pool = process_pool(Marking(str(tmp_path), 0.02, fatal=3), 2, threads=1)
    try:
        answers = dict(pool.map([(i,) for i in range(8)]))
    finally:
        pool.close()
    assert {place: answer.accuracy for place, answer in answers.items()} == {i: i / 100 for i in range(8)}
    assert all(answer.details == {"threads": 1.0} for answer in answers.values())
    assert pool.lost == 1
    marks = [path.name.split("-") for path in tmp_path.iterdir()]
    assert len(marks) == 9
    assert len({pid for _, pid in marks}) == 3
    assert str(os.getpid()) not in {pid for _, pid in marks}


def test_an_error_in_a_process_arrives_and_processes_end(tmp_path: Path) -> None:
    pool = process_pool(Marking(str(tmp_path)), 1)
    try:
        with pytest.raises(ValueError, match="item -1"):
            list(pool.map([(-1,)]))
        assert dict(pool.map([(5,)]))[0].accuracy == 0.05
    finally:
        pool.close()
