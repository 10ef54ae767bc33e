"""A real local Ray cluster of several nodes: actors judge, a killed node or actor costs only its evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray")

import ray
from ray.cluster_utils import Cluster

from secateurs.errors import TargetUnavailableError
from secateurs.search.hamp.cluster import connect, label_of, ray_pool, require_label
from secateurs.search.problem import Evaluation
from secateurs.testing.judges import Marking

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    started = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 1,
            "object_store_memory": 100 << 20,
            "resources": {label_of("here"): 1},
            "include_dashboard": False,
        },
    )
    started.extra = started.add_node(num_cpus=1, object_store_memory=100 << 20, resources={label_of("elsewhere"): 1})
    started.wait_for_nodes()
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


def test_a_killed_node_loses_nothing(cluster: Any, tmp_path: Path) -> None:
    pool = ray_pool(Marking(str(tmp_path), seconds=0.5), cluster.address)
    answers: dict[int, Evaluation] = {}
    for place, answer in pool.map([(i,) for i in range(8)]):
        answers[place] = answer
        if len(answers) == 2:
            cluster.remove_node(cluster.extra, allow_graceful=False)
    pool.close()
    assert {place: answer.accuracy for place, answer in answers.items()} == {i: i / 100 for i in range(8)}
    assert pool.lost >= 1
