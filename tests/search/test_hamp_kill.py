"""kill -9 of a search's driver and of its workers, as real processes. This file is also the program that is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pymoo")

from secateurs.judging.processes import process_pool
from secateurs.search.hamp import search as engine
from secateurs.search.hamp.local_search import Local
from secateurs.search.hamp.search import HampSettings, Outcome, Search
from secateurs.search.hamp.surrogate import Quadratic
from secateurs.search.problem import Evaluation, Problem
from secateurs.search.rows import FileRows
from secateurs.testing.judges import Crewed, Errand, Formula
from secateurs.testing.problems import random_problem

pytestmark = pytest.mark.alone

LONG = 120.0
SETTINGS = HampSettings(
    population=12,
    evaluations=90,
    stagnation=0,
    local=Local(starts=3, neighbours=40, hops=3, most=6),
    local_every=2,
    surrogate_after=1,
)


def problem_of(rows: Path) -> Problem:
    """Some groups and blocks with limits that do not bind; evaluations are kept in the file ``rows``."""
    problem = random_problem(3, groups=6, units=16)
    free = tuple(replace(c, limit=float(c.model.evaluate(problem.widest))) for c in problem.constraints)
    return replace(problem, constraints=free, evaluator=Formula(problem), rows=FileRows(rows))


def result_of(outcome: Outcome) -> list[Any]:
    """Genomes and objectives of the front, and the hypervolume of every generation, as JSON values."""
    archive = outcome.archive
    volumes = [line.hypervolume for line in outcome.history]
    return [archive.genes.tolist(), archive.objectives.tolist(), volumes]


@dataclass(frozen=True)
class Slow:
    """A formula that takes its time."""

    formula: Formula
    seconds: float

    @property
    def identity(self) -> str:
        """That of the formula."""
        return self.formula.identity

    def __call__(self, widths: np.ndarray, removed: frozenset[int]) -> Evaluation:
        """The formula's evaluation, later."""
        time.sleep(self.seconds)
        return self.formula(widths, removed)


@pytest.fixture(autouse=True)
def only_a_ridge(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the driver; the other surrogates cost seconds."""
    monkeypatch.setattr(engine, "candidates", lambda points, seed: [Quadratic()])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The front and the hypervolumes of a search that nobody killed."""
    problem = problem_of(tmp_path_factory.mktemp("whole") / "rows.sqlite3")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "candidates", lambda points, seed: [Quadratic()])
        outcome = Search(problem, SETTINGS, seed=4).go()
    return json.loads(json.dumps(result_of(outcome)))


def until(ready: Callable[[], bool]) -> None:
    """Wait for it."""
    end = time.monotonic() + LONG
    while not ready():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def evaluated(rows: Path) -> int:
    return sum("accuracy" in row for row in FileRows(rows)) if rows.exists() else 0


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_driver_resumes_to_the_front_of_the_undisturbed_search(
    tmp_path: Path, undisturbed: Any, workers: int
) -> None:
    rows, front = tmp_path / "rows.sqlite3", tmp_path / "front.json"
    command = [sys.executable, __file__, rows, front]
    driver = subprocess.Popen([*map(str, command), "0.03", str(workers)])
    until(lambda: evaluated(rows) >= 30)
    driver.send_signal(signal.SIGKILL)
    assert driver.wait() == -signal.SIGKILL
    left = evaluated(rows)
    assert 30 <= left < 90
    assert not front.exists()
    pids = [int(path.name) for path in (tmp_path / "pids").glob("*")]
    assert len(pids) == workers
    until(lambda: not any(alive(pid) for pid in pids))  # workers of a dead driver end by themselves
    subprocess.run([*map(str, command), "0", "0"], check=True, timeout=LONG)
    assert json.loads(front.read_text()) == undisturbed
    assert evaluated(rows) == 90


def killing(folder: Path, done: threading.Event) -> threading.Thread:
    """Kills one worker after the other, three in all, as soon as they have judged something."""

    def work() -> None:
        killed: set[int] = set()
        while len(killed) < 3 and not done.wait(0.05):
            fresh = {int(path.name) for path in folder.glob("*")} - killed
            for pid in sorted(fresh)[:1]:
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_killed_workers_change_nothing(tmp_path: Path, undisturbed: Any) -> None:
    problem: Problem = problem_of(tmp_path / "rows.sqlite3")
    assert isinstance(problem.evaluator, Formula)
    (tmp_path / "pids").mkdir()
    pool = process_pool(Errand(problem.evaluator, str(tmp_path / "pids"), 0.02), 2, threads=1)
    done = threading.Event()
    killer = killing(tmp_path / "pids", done)
    try:
        crewed = replace(problem, evaluator=Crewed(problem.evaluator, pool))
        outcome = Search(crewed, SETTINGS, seed=4).go()
    finally:
        done.set()
        killer.join()
        pool.close()
    assert pool.lost == 3
    assert json.loads(json.dumps(result_of(outcome))) == undisturbed
    assert evaluated(tmp_path / "rows.sqlite3") == 90


def main(rows: Path, front: Path, seconds: float, workers: int) -> None:
    """The search that a test kills: evaluations that take ``seconds`` are kept in ``rows``, the result is written to
    ``front``. ``workers``: processes that judge and leave their ids in the folder ``pids`` beside ``rows`` (0: none).
    """
    engine.candidates = lambda points, seed: [Quadratic()]
    problem = problem_of(rows)
    assert isinstance(problem.evaluator, Formula)
    judge: Any = Slow(problem.evaluator, seconds)
    if workers:
        pids = rows.parent / "pids"
        pids.mkdir(exist_ok=True)
        pool = process_pool(Errand(problem.evaluator, str(pids), seconds), workers, threads=1)
        judge = Crewed(problem.evaluator, pool)
    outcome = Search(replace(problem, evaluator=judge), SETTINGS, seed=4).go()
    front.write_text(json.dumps(result_of(outcome)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
