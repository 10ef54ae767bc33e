"""Wrong arguments of the public classes and methods: an error of the package, whole sentences, nothing changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import secateurs as sc
from secateurs.budgets import AccuracyBound


class Small(nn.Module):
    """A convolution and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x).relu().mean((2, 3)))


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
MODEL = Small()
NAN, DEEP = float("nan"), "[" * 5000
NO_BUDGETS = (
    "", " ", "fast", "60", "60%%", "-60%", "0%", "101%", "nan%", "inf%", "0ms", "-3ms", "nan ms", "1e999ms",
    "٣ms", "3 ms 4", "3 hours", "60% of", "\x00", "½", "0x10ms", "1_0ms", "--latency", "[/b]",
    "9" * 5000 + "ms", None, True, [], {}, NAN, -0.5, 1j, b"60%", object(),
)  # fmt: skip
LOSSES: tuple[tuple[Any, Any], ...] = (
    (NAN, None), (-0.1, None), (float("inf"), None), ("a lot", None), (None, "fast"), (None, "nan%"), (None, "-3"),
    (None, "101%"), (None, ""), ([1], None), (None, [1]), (True, None), (None, {}),
)  # fmt: skip


def refused(work: Callable[[], object]) -> str:
    """The message with which a call is refused."""
    with pytest.raises(sc.SecateursError) as caught:
        work()
    message = str(caught.value)
    assert 20 < len(message) < 1500
    assert "Traceback" not in message
    assert message.rstrip("'\"").endswith((".", ")", "…"))
    return message


@pytest.fixture(scope="module")
def graph() -> sc.Graph:
    return sc.trace(MODEL, X)


@pytest.fixture(scope="module")
def plan(graph: sc.Graph) -> sc.Plan:
    return graph.plan({graph.groups[0].name: range(4)})


@pytest.mark.parametrize("given", NO_BUDGETS, ids=lambda given: repr(given)[:20])
@pytest.mark.parametrize("resource", ["latency", "macs"])
def test_what_is_no_budget(given: Any, resource: str) -> None:
    refused(lambda: sc.Budget.parse(given, resource))


@pytest.mark.parametrize(("loss", "least"), LOSSES)
def test_what_is_no_accuracy(loss: Any, least: Any) -> None:
    refused(lambda: AccuracyBound.parse(loss, least))


PLANS: dict[str, Callable[[sc.Graph], object]] = {
    "kept is None": lambda graph: graph.plan(None),  # type: ignore[arg-type]
    "kept is a list": lambda graph: graph.plan([3]),  # type: ignore[arg-type]
    "kept is a text": lambda graph: graph.plan("first:out"),  # type: ignore[arg-type]
    "an unknown group": lambda graph: graph.plan({"nowhere": [0]}),
    "a group by number": lambda graph: graph.plan({0: [0]}),  # type: ignore[dict-item]
    "a group of None": lambda graph: graph.plan({graph.groups[0].name: None}),  # type: ignore[dict-item]
    "units as a number": lambda graph: graph.plan({graph.groups[0].name: 3}),  # type: ignore[dict-item]
    "units as a text": lambda graph: graph.plan({graph.groups[0].name: "all"}),
    "units as fractions": lambda graph: graph.plan({graph.groups[0].name: [0.5]}),  # type: ignore[list-item]
    "units below zero": lambda graph: graph.plan({graph.groups[0].name: [-1, 0]}),
    "units beyond the group": lambda graph: graph.plan({graph.groups[0].name: [0, 8]}),
    "no unit": lambda graph: graph.plan({graph.groups[0].name: []}),
    "a mask of truths": lambda graph: graph.plan({graph.groups[0].name: torch.ones(2, 8)}),  # type: ignore[dict-item]
    "an unknown block": lambda graph: graph.plan({}, ["nowhere"]),
    "blocks as a number": lambda graph: graph.plan({}, 3),  # type: ignore[arg-type]
    "blocks as numbers": lambda graph: graph.plan({}, [3]),  # type: ignore[list-item]
    "cut of None": lambda graph: graph.cut(None),  # type: ignore[arg-type]
    "cut beyond": lambda graph: graph.cut({graph.groups[0].name: [99]}),
    "views of an unknown group": lambda graph: graph.views("nowhere"),
    "views beyond": lambda graph: graph.views(99),
    "views of None": lambda graph: graph.views(None),  # type: ignore[arg-type]
    "barriers as a number": lambda graph: graph.with_barriers(3),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", PLANS)
def test_wrong_arguments_of_a_graph(name: str, graph: sc.Graph) -> None:
    refused(lambda: PLANS[name](graph))


METHODS: dict[str, Callable[[sc.Plan, Path], object]] = {
    "apply to a text": lambda plan, path: sc.apply("Small", plan),  # type: ignore[arg-type]
    "apply to None": lambda plan, path: sc.apply(None, plan),  # type: ignore[arg-type]
    "apply to a class": lambda plan, path: sc.apply(Small, plan),  # type: ignore[arg-type]
    "apply to another network": lambda plan, path: sc.apply(nn.Linear(3, 3), plan),
    "apply with a text": lambda plan, path: sc.apply(MODEL, plan, "x"),
    "apply with other channels": lambda plan, path: sc.apply(MODEL, plan, torch.zeros(1, 5, 8, 8)),
    "apply with a shape": lambda plan, path: sc.apply(MODEL, plan, (1, 3, 8, 8)),
    "apply with an optimiser's class": lambda plan, path: sc.apply(MODEL, plan, X, optimizer=torch.optim.SGD),  # type: ignore[arg-type]
    "apply with another network's optimiser": lambda plan, path: sc.apply(
        MODEL, plan, X, optimizer=torch.optim.SGD(nn.Linear(3, 3).parameters(), lr=1.0)
    ),
    "diff with None": lambda plan, path: plan.diff(None),  # type: ignore[arg-type]
    "then with a text": lambda plan, path: plan.then("plan.json"),  # type: ignore[arg-type]
    "then twice the same": lambda plan, path: plan.then(plan),
    "load of None": lambda plan, path: sc.Plan.load(None),  # type: ignore[arg-type]
    "load of a number": lambda plan, path: sc.Plan.load(3),  # type: ignore[arg-type]
    "load of a folder": lambda plan, path: sc.Plan.load(path),
    "load of nothing": lambda plan, path: sc.Plan.load(path / "no.json"),
    "load of a name with a zero": lambda plan, path: sc.Plan.load("a\0b"),
    "load of a long name": lambda plan, path: sc.Plan.load("a" * 5000),
    "from a number": lambda plan, path: sc.Plan.from_json(3),  # type: ignore[arg-type]
    "from None": lambda plan, path: sc.Plan.from_json(None),  # type: ignore[arg-type]
    "from depth": lambda plan, path: sc.Plan.from_json(DEEP),
    "save to a folder": lambda plan, path: plan.save(path),
    "save to nowhere": lambda plan, path: plan.save(path / "no" / "plan.json"),
    "save to None": lambda plan, path: plan.save(None),  # type: ignore[arg-type]
    "save below a file": lambda plan, path: plan.save(Path(__file__) / "plan.json"),
    "save to a long name": lambda plan, path: plan.save(path / ("a" * 5000)),
    "save to a name with a zero": lambda plan, path: plan.save(str(path / "a\0b")),
    "a record of a folder": lambda plan, path: sc.Record.load(path),
    "a record of None": lambda plan, path: sc.Record.load(None),  # type: ignore[arg-type]
    "a record of a name with a zero": lambda plan, path: sc.Record.load("a\0b"),
    "a latency model of a number": lambda plan, path: sc.LatencyModel.from_json(3),  # type: ignore[arg-type]
    "a latency model of depth": lambda plan, path: sc.LatencyModel.from_json(DEEP),
    "a latency model of None": lambda plan, path: sc.LatencyModel.from_json(None),  # type: ignore[arg-type]
    "a task of no name": lambda plan, path: sc.task("nothing"),
    "a task of a number": lambda plan, path: sc.task(3),  # type: ignore[arg-type]
    "a task of None": lambda plan, path: sc.task(None),  # type: ignore[arg-type]
    "fewest units below one": lambda plan, path: sc.Legal(min_width=0),
    "fewest units as a text": lambda plan, path: sc.Legal(min_width="3"),  # type: ignore[arg-type]
    "a share of nan": lambda plan, path: sc.Legal(share=NAN),
    "a share above one": lambda plan, path: sc.Legal(share=2.0),
    "pinned as a number": lambda plan, path: sc.Legal(pinned=3),  # type: ignore[arg-type]
    "widest as a list": lambda plan, path: sc.Legal(widest=[3]),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", METHODS)
def test_wrong_arguments_of_methods(name: str, plan: sc.Plan, tmp_path: Path) -> None:
    before = {key: value.clone() for key, value in MODEL.state_dict().items()}
    (tmp_path / "mine").write_text("mine")
    refused(lambda: METHODS[name](plan, tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert all(torch.equal(value, before[key]) for key, value in MODEL.state_dict().items())
