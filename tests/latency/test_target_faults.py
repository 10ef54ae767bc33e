"""Runtimes that crash or hang: reported, survived, and nothing is left running."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from secateurs.errors import TargetError
from secateurs.latency.collect import Collector
from secateurs.latency.design import Sample, dense
from secateurs.latency.lock import measuring
from secateurs.latency.process import WORKER_FILE, Worker, WorkerLostError
from secateurs.latency.store import Store
from secateurs.latency.targets import Operation, Target, open_target
from secateurs.latency.timing import Protocol, compare
from secateurs.latency.turns import TurnCounts
from secateurs.progress import Task, silent
from secateurs.testing.latency import FakeVariants, network

pytestmark = pytest.mark.alone

ENGINE = """
import os, signal, time

def describe():
    return {"runtime": "faulty"}

class Session:
    def __init__(self, settings):
        self.settings, self.runs = settings, 0

    def run(self):
        self.runs += 1
        if self.runs == self.settings["at"]:
            with open(self.settings["lives"], "a") as file:
                file.write("x")
            if os.path.getsize(self.settings["lives"]) <= self.settings["faults"]:
                if self.settings["fault"] == "crash":
                    os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(600)
        time.sleep(0.0005)

def load(path, settings):
    return Session(settings)
"""


@dataclass
class Faulty:
    """A target whose process fails at the run ``at``, in its first ``faults`` lives."""

    folder: Path
    fault: str
    faults: int
    at: int = 4
    timeout_s: float = 30.0
    name: str = "faulty"
    artifact: str = "onnx"
    precision: str = "f32"
    profiles: bool = False
    started: list[Worker] = field(default_factory=list)

    def available(self) -> str | None:
        return None

    def fingerprint(self, threads: int) -> dict[str, str | int]:
        return {"target": self.name, "threads": threads}

    def start(self) -> Worker:
        engine = self.folder / "faulty.py"
        engine.write_text(ENGINE)
        command = [sys.executable, str(WORKER_FILE), str(engine)]
        self.started.append(Worker(self.name, command, timeout_s=self.timeout_s))
        return self.started[-1]

    def settings(self, *, threads: int, batch: int, profile: bool) -> dict[str, Any]:
        lives = str(self.folder / "lives")
        return {"threads": threads, "lives": lives, "fault": self.fault, "faults": self.faults, "at": self.at}

    def operations(self, profile: Mapping[str, Any]) -> tuple[Operation, ...]:
        return ()

    def all_gone(self) -> bool:
        """Whether no worker process is left."""
        return all(worker._process.poll() is not None for worker in self.started)


class Heard:
    """What a user was told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def task(self, name: str, total: int | None = None) -> Task:
        return silent.task(name, total)

    def say(self, message: str) -> None:
        self.lines.append(message)


QUICK = Protocol(turns=6, runs_per_turn=2, refuse=1e9, extensions=0)


@pytest.fixture(autouse=True)
def own_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECATEURS_LOCK", str(tmp_path / "lock"))


def test_the_fake_is_a_target_once_it_is_opened(tmp_path: Path) -> None:
    assert isinstance(open_target(Faulty(tmp_path, "crash", 0)), Target)


def test_a_crash_in_a_comparison_is_told_and_survived(tmp_path: Path) -> None:
    target, heard = Faulty(tmp_path, "crash", faults=1), Heard()
    found = compare(target, {"dense": b"a", "small": b"b"}, protocol=QUICK, progress=heard)
    assert set(found) == {"dense", "small"}
    assert any("ended unexpectedly with exit code -9" in line and "once more" in line for line in heard.lines)
    assert len(target.started) == 4
    assert target.all_gone()


def test_a_runtime_that_always_crashes_is_an_error(tmp_path: Path) -> None:
    target = Faulty(tmp_path, "crash", faults=99)
    with pytest.raises(WorkerLostError, match="faulty: the runtime's process ended unexpectedly"):
        compare(target, {"dense": b"a"}, protocol=QUICK)
    assert len(target.started) == 2
    assert target.all_gone()
    with measuring(timeout_s=5):
        pass


def test_a_hang_is_ended_and_told(tmp_path: Path) -> None:
    target = Faulty(tmp_path, "hang", faults=1, timeout_s=2.0)
    with pytest.raises(TargetError, match="did not answer within 2 s and was stopped"):
        compare(target, {"dense": b"a", "small": b"b"}, protocol=QUICK)
    assert target.all_gone()
    with measuring(timeout_s=5):
        pass


def test_a_crash_while_profiling_costs_one_block(tmp_path: Path) -> None:
    spec = network(depth=2, units=8)
    target, heard = Faulty(tmp_path, "crash", faults=1, at=2), Heard()
    collector = Collector(spec, FakeVariants(spec), target, progress=heard, effort=TurnCounts(1, 1, 1))
    samples = [dense(spec), *(Sample((width, 8)) for width in range(1, 8))]
    with silent.task("profile", len(samples)) as task:
        found = collector.measure(samples, task)
    assert [row.widths for row in found] == [sample.widths for sample in samples]
    assert all(row.total_ms > 0.4 for row in found)
    assert any("once more" in line for line in heard.lines)
    assert len(target.started) == 2
    assert target.all_gone()


def test_a_process_killed_from_outside_is_told(tmp_path: Path) -> None:
    target = Faulty(tmp_path, "crash", faults=0)
    with target.start() as worker:
        assert worker.peak_bytes() > 0
        os.kill(worker._process.pid, 9)
        with pytest.raises(WorkerLostError, match="exit code -9"):
            worker.peak_bytes()
        with pytest.raises(TargetError):
            worker.peak_bytes()


ORPHANED = """
import os, subprocess, sys, time
process = subprocess.Popen([sys.executable, *sys.argv[1:3]], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
process.stdout.readline()
settings = '{"at": 1, "fault": "hang", "faults": 1, "lives": "%s"}' % sys.argv[3]
process.stdin.write(b'{"do": "load", "key": "a", "file": "/x", "limit_s": 1, "settings": %s}\\n' % settings.encode())
process.stdin.flush()
print(process.pid, flush=True)
while not os.path.exists(sys.argv[3]):
    time.sleep(0.01)
os.kill(os.getpid(), 9)
"""


def test_a_runtime_that_hangs_does_not_outlive_a_killed_parent_for_long(tmp_path: Path) -> None:
    engine, lives = tmp_path / "faulty.py", tmp_path / "lives"
    engine.write_text(ENGINE)
    command = [sys.executable, "-c", ORPHANED, str(WORKER_FILE), str(engine), str(lives)]
    pid = int(subprocess.run(command, stdout=subprocess.PIPE, check=False).stdout)
    until = time.monotonic() + 60
    while _alive(pid) and time.monotonic() < until:
        time.sleep(0.1)
    assert lives.exists()
    assert not _alive(pid)


def _alive(pid: int) -> bool:
    """Whether a process that is not our child runs; a zombie that nobody waits for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_stored_row_that_is_none_is_measured_again(tmp_path: Path) -> None:
    spec = network(depth=2, units=8)
    target, sample = Faulty(tmp_path, "crash", faults=0), Sample((4, 8))
    with Store(tmp_path / "store.sqlite3") as store, silent.task("profile", 1) as task:
        collector = Collector(spec, FakeVariants(spec), target, store=store, effort=TurnCounts(1, 1, 1))
        [row] = collector.measure([sample], task)
        signature = collector._signature(sample)
        whole = store.get(collector.fingerprint, signature)
        assert whole is not None
        poison = [{}, {**whole, "total_ms": -1.0}, {**whole, "widths": [1, 1]}, {**whole, "site_ms": [1.0]}]
        for payload in (*poison, {**whole, "anchor_ms": float("nan")}, {**whole, "removed": None}):
            store.put(collector.fingerprint, {signature: payload})
            started = len(target.started)
            [again] = collector.measure([sample], task)
            assert again.widths == row.widths
            assert len(target.started) == started + 1
        assert store.get(collector.fingerprint, signature) != payload
