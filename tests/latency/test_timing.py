from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from secateurs.errors import TargetError, UnstableTimingError
from secateurs.latency.lock import measuring
from secateurs.latency.process import WORKER_FILE, Worker
from secateurs.latency.timing import Protocol, compare, median_interval, spread, warm_up
from secateurs.testing.latency import FakeTarget, FakeWorker

pytestmark = pytest.mark.alone

QUICK = Protocol(turns=12, runs_per_turn=3)


def costs(content: bytes) -> dict[str, float]:
    return {"all": float(content)}


def test_median_interval_covers_the_median() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        low, high = median_interval(rng.normal(size=25))
        hits += low <= 0 <= high
    assert hits >= 0.95 * 400 - 12
    assert median_interval(np.array([3.0, 3.0, 3.0])) == (3.0, 3.0)


def test_spread_is_iqr_over_median() -> None:
    assert spread(np.array([1.0, 2.0, 3.0, 4.0, 5.0])) == pytest.approx(2 / 3)


def test_ratios_to_the_reference() -> None:
    found = compare(FakeTarget(costs, base_ms=0.0), {"dense": b"4", "small": b"2.5"}, protocol=QUICK)
    assert found["dense"].latency_ms == pytest.approx(4)
    assert found["small"].ratio == pytest.approx(0.625)
    assert found["small"].ratio_upper == pytest.approx(0.625)
    assert found["small"].runs == 36
    assert found["small"].peak_memory_bytes == 1 << 20


def test_without_the_reference_there_is_no_ratio() -> None:
    assert compare(FakeTarget(costs), {"only": b"2"}, protocol=QUICK)["only"].ratio is None


def test_one_slow_turn_in_ten_does_not_move_the_ratio() -> None:
    slow = itertools.cycle([1.0] * 30 + [9.0] * 3)
    target = FakeTarget(costs, base_ms=0.0, disturb=lambda: next(slow))
    found = compare(target, {"dense": b"4", "small": b"2"}, protocol=Protocol(turns=40, runs_per_turn=3))
    assert found["small"].ratio == pytest.approx(0.5, rel=0.02)


def test_a_disturbed_machine_is_refused() -> None:
    rng = np.random.default_rng(0)
    target = FakeTarget(costs, disturb=lambda: float(rng.uniform(1, 6)))
    with pytest.raises(UnstableTimingError, match="too disturbed"):
        compare(target, {"dense": b"4", "small": b"2"}, protocol=Protocol(turns=6, runs_per_turn=1, extensions=1))


def test_a_disturbed_machine_is_refused_for_a_file_alone_too() -> None:
    rng = np.random.default_rng(0)
    target = FakeTarget(costs, disturb=lambda: float(rng.uniform(1, 6)))
    with pytest.raises(UnstableTimingError, match="too disturbed"):
        compare(target, {"dense": b"4"}, protocol=Protocol(turns=6, runs_per_turn=1, extensions=1))


def test_a_busy_core_is_waited_for_but_not_for_ever() -> None:
    found = compare(FakeTarget(costs, quiet=0.5), {"dense": b"4"}, protocol=QUICK)
    assert found["dense"].runs == 36


def test_warm_up_lasts_until_runs_are_stable() -> None:
    pace = itertools.chain([4.0] * 3, [3.0] * 3, [2.0] * 3, itertools.repeat(1.0))
    target = FakeTarget(costs, base_ms=0.0, disturb=lambda: next(pace))
    with target.start() as worker:
        worker._models["a"] = {"all": 10.0}
        assert warm_up(worker, "a") == pytest.approx(10.0)


def test_the_slow_first_runs_are_not_part_of_the_result() -> None:
    pace = itertools.chain([9.0] * 12, itertools.repeat(1.0))
    found = compare(FakeTarget(costs, base_ms=0.0, disturb=lambda: next(pace)), {"dense": b"4"}, protocol=QUICK)
    assert found["dense"].latency_ms == pytest.approx(4)


def test_files_take_turns_in_changing_order(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    run = FakeWorker.run

    def noted(self: FakeWorker, keys, *, runs: int, rounds: int = 1, skip: int = 0):
        if skip:
            asked.extend(keys)
        return run(self, keys, runs=runs, rounds=rounds, skip=skip)

    monkeypatch.setattr(FakeWorker, "run", noted)
    compare(FakeTarget(costs), {"dense": b"4", "small": b"2"}, protocol=QUICK)
    turns = [tuple(asked[start : start + 2]) for start in range(0, len(asked), 2)]
    assert all(set(turn) == {"dense", "small"} for turn in turns)
    assert len(set(turns)) == 2


def test_drift_hits_both_sides_alike() -> None:
    pace = itertools.count()
    target = FakeTarget(costs, base_ms=0.0, disturb=lambda: 1 + 0.0005 * next(pace))
    found = compare(target, {"dense": b"4", "small": b"2"}, protocol=Protocol(turns=30, runs_per_turn=3))
    assert found["small"].ratio == pytest.approx(0.5, rel=0.01)


def test_a_difference_inside_the_noise_is_a_tie() -> None:
    rng = np.random.default_rng(1)
    target = FakeTarget(costs, base_ms=0.0, disturb=lambda: float(rng.normal(1, 0.02)))
    rules = Protocol(turns=30, runs_per_turn=3, extensions=0)
    found = compare(target, {"dense": b"4", "same": b"4.004", "small": b"3.6"}, protocol=rules)
    assert found["same"].tie
    assert not found["small"].tie


@pytest.mark.parametrize(("small", "tie"), [(b"4.03", True), (b"3.97", True), (b"4.2", False), (b"3.8", False)])
def test_what_two_processes_of_one_file_differ_by_is_a_tie(small: bytes, tie: bool) -> None:
    found = compare(FakeTarget(costs, base_ms=0.0), {"dense": b"4", "small": small}, protocol=QUICK)
    assert found["small"].tie is tie


def test_loading_and_the_first_run_are_told_apart() -> None:
    found = compare(FakeTarget(costs, base_ms=0.0), {"dense": b"4"}, protocol=QUICK)
    assert found["dense"].first_run_ms == pytest.approx(2.0)
    assert found["dense"].latency_ms == pytest.approx(4)


def test_nothing_to_measure() -> None:
    with pytest.raises(TargetError, match="nothing to measure"):
        compare(FakeTarget(costs), {})


ENGINE = """
import os, sys, time
print("chatter that must not reach the answers")
def describe():
    return {"runtime": "test"}
class Session:
    def __init__(self, word):
        self.word = word
    def run(self):
        if self.word == "crash":
            sys.stderr.write("segmentation of a kind")
            sys.stderr.flush()
            os._exit(3)
        if self.word == "hang":
            time.sleep(60)
        print("more chatter")
def load(path, settings):
    word = open(path).read()
    if word == "refuse":
        raise ValueError("operator Foo is unknown")
    return Session(word)
"""


@pytest.fixture
def start(tmp_path: Path):
    engine = tmp_path / "engine.py"
    engine.write_text(ENGINE)
    workers = []

    def begin(word: str, timeout_s: float = 20.0) -> tuple[Worker, Path]:
        file = tmp_path / word
        file.write_text(word)
        workers.append(Worker("test", [sys.executable, str(WORKER_FILE), str(engine)], timeout_s=timeout_s))
        return workers[-1], file

    yield begin
    for worker in workers:
        worker.close()


def test_a_worker_runs_and_chatter_does_not_matter(start) -> None:
    worker, file = start("fine")
    assert worker.about["runtime"] == "test"
    assert worker.load("a", file, {})["first_ms"] >= 0
    answer = worker.run(["a"], runs=3, rounds=2, skip=1)
    assert len(answer["times_ms"]["a"]) == 6
    assert worker.peak_bytes() > 1 << 20
    worker.drop(["a"])
    with pytest.raises(TargetError):
        worker.run(["a"], runs=1)


@pytest.mark.parametrize(
    ("word", "message"), [("crash", "exit code 3.*segmentation of a kind"), ("refuse", "operator Foo is unknown")]
)
def test_a_failing_runtime_is_an_error_of_the_target(start, word: str, message: str) -> None:
    worker, file = start(word)
    with pytest.raises(TargetError, match=message):
        worker.load("a", file, {})


def test_a_hanging_runtime_is_stopped(start) -> None:
    worker, file = start("hang", timeout_s=1.5)
    with pytest.raises(TargetError, match="did not answer within"):
        worker.load("a", file, {})


def test_files_can_travel_through_the_pipe(tmp_path: Path) -> None:
    engine = tmp_path / "engine.py"
    engine.write_text(ENGINE)
    file = tmp_path / "fine"
    file.write_text("fine")
    with Worker("test", [sys.executable, str(WORKER_FILE), str(engine)], remote=True) as worker:
        worker.load("a", file, {})
        assert len(worker.run(["a"], runs=2)["times_ms"]["a"]) == 2


def test_a_missing_program_is_told() -> None:
    with pytest.raises(TargetError, match="could not be started"):
        Worker("test", ["/no/such/program"])


def test_the_lock_keeps_two_measurements_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECATEURS_LOCK", str(tmp_path / "lock"))
    code = "from secateurs.latency.lock import measuring\nwith measuring():\n print('in', flush=True)\n input()"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"in\n"
        with pytest.raises(UnstableTimingError, match="Another measurement"), measuring(timeout_s=0.2):
            pass
        other.kill()
    start = time.monotonic()
    with measuring(timeout_s=5):
        assert time.monotonic() - start < 5


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    private = tmp_path / "private"
    private.touch(mode=0o600)
    (tmp_path / "lock").symlink_to(private)
    monkeypatch.setenv("SECATEURS_LOCK", str(tmp_path / "lock"))
    with pytest.raises(OSError, match="symbolic links"), measuring():
        pass
    assert private.stat().st_mode & 0o777 == 0o600


def test_a_lock_serves_every_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECATEURS_LOCK", str(tmp_path / "lock"))
    with measuring():
        assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o666
