"""Who judges: the pool that is made, what an evaluator has of it, and what is asked of a cluster beforehand."""

from __future__ import annotations

import builtins
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from secateurs.errors import SecateursError
from secateurs.judging.crew import Crew
from secateurs.judging.evaluator import NetworkEvaluator


class Pool:
    """Notes how it was made, and whether it was closed."""

    made: list[Pool] = []  # noqa: RUF012

    def __init__(self, *arguments: Any) -> None:
        self.arguments, self.closed = arguments, False
        Pool.made.append(self)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Pool]:
    monkeypatch.setattr(Pool, "made", [])
    monkeypatch.setattr("secateurs.judging.processes.process_pool", Pool)
    return Pool.made


def evaluator() -> NetworkEvaluator:
    return SimpleNamespace(judge="the judge", pool=None)  # type: ignore[return-value]


@pytest.mark.parametrize("workers", [None, 1])
def test_one_process_judges_by_itself(made: list[Pool], workers: int | None) -> None:
    one = evaluator()
    with Crew(workers=workers).at_work(one):
        assert one.pool is None
    assert made == []


def test_several_processes_are_there_while_they_work(made: list[Pool]) -> None:
    one = evaluator()
    with Crew(workers=3, threads=2).at_work(one):
        [pool] = made
        assert one.pool is pool  # type: ignore[comparison-overlap]
        assert pool.arguments == ("the judge", 3, 2)
        assert not pool.closed
    assert one.pool is None
    assert pool.closed


def test_they_are_sent_home_after_an_error_too(made: list[Pool]) -> None:
    one = evaluator()
    with pytest.raises(KeyboardInterrupt), Crew(workers=2).at_work(one):
        raise KeyboardInterrupt
    assert one.pool is None
    assert made[0].closed


def test_a_cluster_is_asked_for_its_actors(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = SimpleNamespace(ray_pool=Pool)
    monkeypatch.setattr(Pool, "made", [])
    monkeypatch.setitem(sys.modules, "secateurs.judging.cluster", cluster)
    one = evaluator()
    with Crew(workers=4, ray="auto").at_work(one):
        assert one.pool is Pool.made[0]  # type: ignore[comparison-overlap]
    assert Pool.made[0].arguments == ("the judge", "auto", 4, 1)  # one thread each where nothing else is said
    assert Pool.made[0].closed


def test_latencies_are_measured_where_the_node_carries_the_label(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []
    cluster = SimpleNamespace(
        connect=lambda address, target: asked.append((address, target)),
        require_label=lambda target: asked.append((target,)),
    )
    monkeypatch.setitem(sys.modules, "secateurs.judging.cluster", cluster)
    Crew(workers=2).check("onnxruntime-cpu")
    assert asked == []
    Crew(ray="host:6379").check("onnxruntime-cpu")
    assert asked == [("host:6379", "onnxruntime-cpu"), ("onnxruntime-cpu",)]


def test_a_missing_ray_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **settings: Any) -> Any:
        if name == "secateurs.judging.cluster":
            raise ModuleNotFoundError("No module named 'ray'", name="ray")
        return real(name, *arguments, **settings)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(SecateursError, match=r"--ray needs ray.*secateurs\[ray\].*--workers"):
        Crew(ray="auto").check("onnxruntime-cpu")
