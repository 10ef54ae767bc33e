"""Workers that are processes: what they may use, who is lost, errors on their way home, and nobody left behind."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from secateurs.judging.processes import _portable, process_pool
from secateurs.testing.judges import Marking
from secateurs.testing.targets import alive

pytestmark = pytest.mark.alone


class Unsendable(Exception):
    """Holds something that no other process can have."""


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
    pids = {int(path.name.rpartition("-")[2]) for path in tmp_path.iterdir()}
    assert pids
    assert not any(alive(pid) for pid in pids)


def test_threads_are_those_that_were_asked_for_and_ours_stay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    pool = process_pool(Marking(str(tmp_path)), 1, threads=3)
    try:
        assert dict(pool.map([(1,)]))[0].details == {"threads": 3.0}
    finally:
        pool.close()
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert "MKL_NUM_THREADS" not in os.environ


def test_cores_are_shared_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    pool = process_pool(Marking(str(tmp_path)), 4)
    try:
        assert dict(pool.map([(1,)]))[0].details == {"threads": 3.0}
    finally:
        pool.close()


def test_a_worker_that_dies_between_two_items_is_lost_and_replaced(tmp_path: Path) -> None:
    pool = process_pool(Marking(str(tmp_path)), 1)
    try:
        assert dict(pool.map([(1,)]))[0].accuracy == 0.01
        [pid] = [int(path.name.rpartition("-")[2]) for path in tmp_path.iterdir()]
        os.kill(pid, 9)
        while alive(pid):
            time.sleep(0.01)
        assert dict(pool.map([(2,)]))[0].accuracy == 0.02
        assert pool.lost == 1
    finally:
        pool.close()


def test_errors_that_cannot_be_sent_arrive_in_words() -> None:
    assert isinstance(_portable(KeyError("x")), KeyError)
    found = _portable(Unsendable(lambda: 1))
    assert type(found) is RuntimeError
    assert str(found).startswith("Unsendable: ")
