"""A real local Ray cluster of several nodes: actors judge, a killed node or actor costs only its evaluation."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ray")
pytest.importorskip("pymoo")

import ray
from ray.cluster_utils import Cluster

from secateurs.errors import TargetUnavailableError
from secateurs.judging.cluster import connect, label_of, ray_pool, require_label
from secateurs.search.hamp.search import HampSettings, Search
from secateurs.search.problem import Evaluation
from secateurs.search.rows import FileRows, MemoryRows
from secateurs.testing.judges import Crewed, Errand, Formula, Marking
from secateurs.testing.problems import random_problem

pytestmark = [pytest.mark.slow, pytest.mark.alone]


def _started() -> Any:
    """A head and another node, one core each."""
    memory = 100 << 20
    head = {
        "num_cpus": 1,
        "object_store_memory": memory,
        "resources": {label_of("here"): 1},
        "include_dashboard": False,
    }
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.extra = cluster.add_node(num_cpus=1, object_store_memory=memory, resources={label_of("elsewhere"): 1})
    cluster.wait_for_nodes()
    return cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    try:
        started = _started()
    except Exception as error:  # Ray raises nothing narrower when a busy machine takes more than 30 s for a node
        if "timed out during startup" not in str(error):
            raise
        started = _started()
    try:
        connect(started.address)
        yield started
    finally:
        ray.shutdown()
        started.shutdown()


def test_actors_on_two_nodes_judge_and_a_killed_one_costs_one_evaluation(cluster: Any, tmp_path: Path) -> None:
    pool = ray_pool(Marking(str(tmp_path), fatal=2), cluster.address)
    assert pool.size == 2
    answers = dict(pool.map([(i,) for i in range(6)]))
    pool.close()
    assert {place: answer.accuracy for place, answer in answers.items()} == {i: i / 100 for i in range(6)}
    assert pool.lost == 1


def test_a_cluster_without_room_says_so(cluster: Any, tmp_path: Path) -> None:
    with pytest.raises(TargetUnavailableError, match="no room for an evaluator of 999 CPU"):
        ray_pool(Marking(str(tmp_path)), cluster.address, threads=999)


def test_latencies_are_measured_on_labelled_nodes_only(cluster: Any) -> None:
    require_label("here")
    with pytest.raises(TargetUnavailableError, match="does not carry the label 'secateurs-elsewhere'"):
        require_label("elsewhere")


def test_a_node_killed_during_a_search_changes_nothing(cluster: Any, tmp_path: Path) -> None:
    """kill -9 of all of a node's processes, its actor among them."""
    problem = random_problem(3, groups=6, units=16)
    free = tuple(replace(c, limit=float(c.model.evaluate(problem.widest))) for c in problem.constraints)
    formula = Formula(problem)
    problem = replace(problem, constraints=free, rows=FileRows(tmp_path / "rows.sqlite3"))
    settings = HampSettings(population=12, evaluations=60, stagnation=0, local=None)
    alone = Search(replace(problem, evaluator=formula, rows=MemoryRows()), settings, seed=4).go()
    pids = tmp_path / "pids"
    pids.mkdir()
    pool = ray_pool(Errand(formula, str(pids), 0.05), cluster.address)
    assert pool.size == 2
    while len(list(pids.iterdir())) < 2:  # until an actor works on either node
        list(pool.map([(problem.widest, frozenset())] * 4))
    crewed = replace(problem, evaluator=Killing(formula, pool, cluster.extra, after=20))
    outcome = Search(crewed, settings, seed=4).go()
    pool.close()
    assert pool.lost >= 1
    assert cluster.extra.killed
    assert outcome.archive.genes.tolist() == alone.archive.genes.tolist()
    assert outcome.archive.objectives.tolist() == alone.archive.objectives.tolist()
    assert sum("accuracy" in row for row in FileRows(tmp_path / "rows.sqlite3")) == 60


@dataclass(frozen=True)
class Killing(Crewed):
    """Judges by the pool's workers, and kills a node's processes after so many answers, while others are judged."""

    node: Any
    after: int
    answered: list[int] = field(default_factory=list)

    def many(self, candidates: Sequence[tuple[np.ndarray, frozenset[int]]]) -> Iterator[tuple[int, Evaluation]]:
        for place, found in self.pool.map(candidates):
            self.answered.append(place)
            if len(self.answered) == self.after:
                self.node.killed = _processes_of(self.node)
                for pid in self.node.killed:
                    os.kill(pid, signal.SIGKILL)
            yield place, found


def _processes_of(node: Any) -> list[int]:
    """The node's own processes and their children, the actors."""
    own = [held.process.pid for processes in node.all_processes.values() for held in processes]
    children = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(path.read_text().rpartition(")")[2].split()[1]) in own:
                children.append(int(path.parent.name))
    return own + [pid for pid in children if pid not in own]
