"""Workers end with the process that started them, also while they work on a request."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from secateurs.errors import PlanError, TargetError
from secateurs.latency.process import WORKER_FILE, Worker
from secateurs.latency.targets import check_threads

ENGINE = """
import time
class Session:
    def run(self): time.sleep(0.001)
class Slow(Session):
    def timed(self): time.sleep(120); return 1.0
def describe(): return {}
def load(path, settings): return Slow()
"""
PARENT = """
import sys, threading
from secateurs.latency.process import Worker
worker = Worker("slow", sys.argv[1:])
worker.ask({"do": "load", "key": "a", "file": "/x", "settings": {}})
print(worker.pid, flush=True)
worker.ask({"do": "run", "keys": ["a"], "runs": 1})
"""


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    (tmp_path / "engine.py").write_text(ENGINE)
    return [sys.executable, str(WORKER_FILE), str(tmp_path / "engine.py")]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a worker sees the end of its pipe a little later")
def test_a_worker_dies_with_its_parent(command: list[str]) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, *command], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    time.sleep(0.2)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    until = time.monotonic() + 60
    while _alive(worker) and time.monotonic() < until:
        time.sleep(0.05)
    assert not _alive(worker)


def _alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_worker_is_as_nice_as_before_when_nothing_is_timed(command: list[str]) -> None:
    with Worker("slow", command) as worker:
        assert worker.pid is not None
        assert os.getpriority(os.PRIO_PROCESS, worker.pid) == os.getpriority(os.PRIO_PROCESS, 0)


def test_threads_are_bounded_by_the_device(command: list[str]) -> None:
    with Worker("slow", command) as worker, pytest.raises(TargetError, match="100000 threads are asked for"):
        worker.ask({"do": "load", "key": "a", "file": "/x", "settings": {"threads": 100_000}})
    with pytest.raises(PlanError, match=r"100000 threads .* this machine has"):
        check_threads("onnxruntime-cpu", 100_000)
    check_threads("ssh://host/onnxruntime-cpu", 100_000)  # asked there
