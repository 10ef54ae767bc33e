"""Wrong arguments of the public functions: an error of the package with one paragraph, at once, and nothing changed."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import secateurs as sc


class Small(nn.Module):
    """``result``: what its forward does with what it computed."""

    def __init__(self, result: Callable[[torch.Tensor], Any] = lambda y: y) -> None:
        super().__init__()
        self.first, self.last, self.result = nn.Conv2d(3, 8, 3), nn.Linear(8, 4), result

    def forward(self, x: torch.Tensor) -> Any:
        return self.result(self.last(self.first(x).relu().mean((2, 3))))


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(16) % 4
IMAGES = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))
BATCHES = [(IMAGES[:8], LABELS[:8]), (IMAGES[8:], LABELS[8:])]


class Items(Dataset):  # type: ignore[type-arg]
    """Sixteen images, of which one is odd."""

    def __init__(self, odd: Callable[[], Any], length: Callable[[], Any] = lambda: 16) -> None:
        self.odd, self.length = odd, length

    def __len__(self) -> int:
        return self.length()  # type: ignore[no-any-return]

    def __getitem__(self, row: int) -> Any:
        if row > 15:
            raise IndexError(row)
        return self.odd() if row == 7 else (IMAGES[row], int(LABELS[row]))


def boom() -> Any:
    raise ValueError("item 7 is broken")


def stop() -> Any:
    sys.exit(0)


def exploding() -> Iterator[Any]:
    yield BATCHES[0]
    raise RuntimeError("the disk is gone")


@pytest.fixture(scope="module")
def graph() -> sc.Graph:
    return sc.trace(Small(), X)


WRONG_MODEL: dict[str, Callable[[], Any]] = {
    "a text": lambda: "resnet18",
    "None": lambda: None,
    "a class": lambda: Small,
    "a state dict": lambda: Small().state_dict(),
    "a function": lambda: torch.relu,
}
TRACE: dict[str, Callable[[], Any]] = {
    **{f"model is {name}": lambda make=make: sc.trace(make(), X) for name, make in WRONG_MODEL.items()},  # type: ignore[misc]
    "example is None": lambda: sc.trace(Small(), None),
    "example is a text": lambda: sc.trace(Small(), "1,3,8,8"),
    "example is a shape": lambda: sc.trace(Small(), (1, 3, 8, 8)),
    "example is a number": lambda: sc.trace(Small(), 3),
    "example of NumPy": lambda: sc.trace(Small(), np.zeros((1, 3, 8, 8), np.float32)),
    "example of other channels": lambda: sc.trace(Small(), torch.zeros(1, 5, 8, 8)),
    "example in half": lambda: sc.trace(Small(), X.half()),
    "complex example": lambda: sc.trace(Small(), X.to(torch.complex64)),
    "an empty example": lambda: sc.trace(Small(), ()),
    "another keyword": lambda: sc.trace(Small(), {"y": X}),
    "barriers are a number": lambda: sc.trace(Small(), X, barriers=3),  # type: ignore[arg-type]
    "barriers are numbers": lambda: sc.trace(Small(), X, barriers=[3]),  # type: ignore[list-item]
    "barriers are None": lambda: sc.trace(Small(), X, barriers=None),  # type: ignore[arg-type]
    "keep is a mapping of numbers": lambda: sc.trace(Small(), X, keep={3: 4}),  # type: ignore[arg-type]
    "keep matches nothing": lambda: sc.trace(Small(), X, keep="nowhere.*"),
    "grid is unknown": lambda: sc.trace(Small(), X, grid="both"),
    "forward gives None": lambda: sc.trace(Small(lambda y: None), X),
    "forward gives a text": lambda: sc.trace(Small(lambda y: "four"), X),
    "forward gives a number": lambda: sc.trace(Small(lambda y: 4), X),
    "forward raises": lambda: sc.trace(Small(lambda y: boom()), X),
    "forward exits": lambda: sc.trace(Small(lambda y: stop()), X),
}
PLAN: dict[str, dict[str, Any]] = {
    "nothing asked": {},
    "a budget and a ratio": {"latency": "60%", "keep": 0.5},
    "keep is 0": {"keep": 0},
    "keep is above 1": {"keep": 1.5},
    "keep is nan": {"keep": float("nan")},
    "keep is a text": {"keep": "half"},
    "seed is negative": {"keep": 0.5, "seed": -1},
    "seed is huge": {"keep": 0.5, "seed": 2**70},
    "seed is a fraction": {"keep": 0.5, "seed": 1.5},
    "seed is a text": {"keep": 0.5, "seed": "1"},
    "strategy is unknown": {"macs": "50%", "strategy": "best"},
    "criterion is unknown": {"keep": 0.5, "criterion": "best"},
    "criterion is a number": {"keep": 0.5, "criterion": 3},
    "latency without costs": {"latency": "60%"},
    "costs are a text": {"latency": "60%", "costs": "onnxruntime-cpu"},
    "macs is a list": {"macs": [3]},
    "macs in other digits": {"macs": "٣M"},
    "macs is nan": {"macs": "nan"},
    "legal is a mapping": {"keep": 0.5, "legal": {"min_width": 3}},
    "data is a number": {"keep": 0.5, "criterion": "taylor", "data": 3},
    "data is a tensor": {"keep": 0.5, "criterion": "taylor", "data": IMAGES},
    "data of no pairs": {"keep": 0.5, "criterion": "taylor", "data": [IMAGES]},
    "data is empty": {"keep": 0.5, "criterion": "taylor", "data": []},
    "fewer labels than images": {"keep": 0.5, "criterion": "taylor", "data": [(IMAGES[:8], LABELS[:5])]},
    "labels of no class": {"keep": 0.5, "criterion": "taylor", "data": [(IMAGES[:8], LABELS[:8] + 9)]},
    "a loader that raises": {"keep": 0.5, "criterion": "taylor", "data": exploding()},
    "no such data": {"keep": 0.5, "criterion": "taylor", "data": "imagefolder:/nowhere"},
}
PRUNE: dict[str, dict[str, Any]] = {
    "data is None": {"data": None},
    "data is a text": {"data": "nowhere"},
    "data is one tensor": {"data": IMAGES},
    "data is empty": {"data": ([], [])},
    "data is of numbers": {"data": (3, 4)},
    "fewer labels than images": {"data": ([(IMAGES[:8], LABELS[:5])], BATCHES)},
    "one label of many images": {"data": ([(IMAGES[:8], LABELS[:1])], BATCHES)},
    "fewer labels in a later batch": {"data": ([*BATCHES, (IMAGES[:8], LABELS[:5])], BATCHES)},
    "labels are fractions": {"data": ([(IMAGES, LABELS + 0.5)], BATCHES)},
    "labels are texts": {"data": ([(IMAGES, ["a"] * 16)], BATCHES)},
    "labels out of range": {"data": ([(IMAGES, LABELS + 1)], BATCHES)},
    "negative labels": {"data": ([(IMAGES, LABELS - 1)], BATCHES)},
    "complex pixels": {"data": ([(IMAGES.to(torch.complex64), LABELS)], BATCHES)},
    "pixels as int64": {"data": ([(IMAGES.long(), LABELS)], BATCHES)},
    "mixed shapes": {"data": ([*BATCHES, (IMAGES[:8, :, :4], LABELS[:8])], BATCHES)},
    "an item that raises": {"data": (DataLoader(Items(boom)), BATCHES)},
    "an item that exits": {"data": (DataLoader(Items(stop)), BATCHES)},
    "an item of another form": {"data": (DataLoader(Items(lambda: None)), BATCHES)},
    "a longer length": {"data": (Items(lambda: (IMAGES[7], 3), lambda: 99), BATCHES)},
    "a length that raises": {"data": (Items(boom, boom), BATCHES)},
    "a length below zero": {"data": (Items(boom, lambda: -1), BATCHES)},
    "a loader that raises": {"data": (exploding(), BATCHES)},
    "no budget": {"latency": None},
    "a budget of a list": {"latency": [60]},
    "other digits": {"latency": "٣ms"},
    "an infinite budget": {"latency": "1e999ms"},
    "a fraction of epochs": {"epochs": 1.5},
    "epochs below zero": {"epochs": -1},
    "epochs as a text": {"epochs": "1"},
    "threads as a fraction": {"threads": 1.5},
    "no threads": {"threads": 0},
    "many threads": {"threads": 100_000},
    "a negative seed": {"seed": -1},
    "a huge seed": {"seed": 2**64},
    "an unknown target": {"target": "gpu"},
    "target is None": {"target": None},
    "an unknown strategy": {"strategy": "best"},
    "an unknown criterion": {"criterion": "best"},
    "settings is a mapping": {"settings": {"latency": "60%"}, "latency": None, "criterion": None},
    "settings and a budget": {"settings": "fast"},
    "normalize is unknown": {"normalize": "mine"},
    "output is a number": {"output": 3},
    "resume without a folder": {"resume": True},
    "example is None": {"example": None},
    "example of other channels": {"example": torch.zeros(1, 5, 8, 8)},
    "forward gives None": {"model": Small(lambda y: None)},
    "forward gives a text": {"model": Small(lambda y: "x")},
    "forward exits": {"model": Small(lambda y: stop())},
    "forward raises": {"model": Small(lambda y: boom())},
    "forward gives NaN": {"model": Small(lambda y: y * float("nan"))},
    "a half network": {"model": Small().half()},
    "model is a text": {"model": "resnet18"},
}


def refused(work: Callable[[], object]) -> str:
    """The message with which a call is refused: whole sentences, no traceback in it."""
    with pytest.raises(sc.SecateursError) as caught:
        work()
    message = str(caught.value)
    assert 20 < len(message) < 1500
    assert "Traceback" not in message
    return message


@pytest.mark.parametrize("name", TRACE)
def test_wrong_arguments_of_trace(name: str) -> None:
    refused(TRACE[name])


@pytest.mark.parametrize("name", PLAN)
def test_wrong_arguments_of_plan(name: str, graph: sc.Graph) -> None:
    given = dict(PLAN[name])
    costs = given.pop("costs", None)
    refused(lambda: sc.plan(graph, costs, **given))


@pytest.mark.parametrize("name", PRUNE)
def test_wrong_arguments_of_prune(name: str, fake_target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(*given: object, **more: object) -> None:
        raise AssertionError("work has begun")

    monkeypatch.setattr("secateurs.measure.bench.Bench.export", measured)
    given: dict[str, Any] = {
        "model": Small(), "example": X, "data": (BATCHES, BATCHES), "latency": "60%", "target": fake_target,
        "epochs": 0, "criterion": "l1", **PRUNE[name],
    }  # fmt: skip
    refused(lambda: sc.prune(given.pop("model"), given.pop("example"), allow_chance=True, **given))


@pytest.mark.parametrize("settings", [
    {"lr": float("nan")}, {"lr": -1.0}, {"lr": 0.0}, {"lr": float("inf")}, {"lr": "fast"}, {"precision": "fp64"},
    {"repair": "all"}, {"features": float("nan")}, {"min_width": 0}, {"keep": [3]}, {"blocks": "no"},
    {"calibrate_values": 1.5}, {"penalty": float("nan")}, {"batch": 0}, {"train_batch": True},
    {"max_loss": float("nan")}, {"finalists": None}, {"schedule": None},
])  # fmt: skip
def test_wrong_settings(settings: dict[str, Any]) -> None:
    from secateurs.jobs.settings import Settings

    refused(lambda: Settings(**{"latency": "60%", **settings}))


@pytest.mark.parametrize("name", ["graph", "target", "threads", "many", "batch", "seed", "store", "fifo"])
def test_wrong_arguments_of_profile(name: str, graph: sc.Graph, fake_target: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    given: dict[str, Any] = {
        "graph": {"graph": Small()}, "target": {"target": 3}, "threads": {"threads": 0}, "many": {"threads": 10**5},
        "batch": {"batch": 0}, "seed": {"seed": -1}, "store": {"store": 3}, "fifo": {"store": tmp_path / "pipe"},
    }[name]  # fmt: skip
    refused(lambda: sc.profile(**{"graph": graph, "target": fake_target, **given}))


@pytest.mark.parametrize("plan", [None, "plan.json", {}, 3])
def test_wrong_arguments_of_apply(plan: Any) -> None:
    refused(lambda: sc.apply(Small(), plan))


def test_labels_that_a_transform_changes_are_the_items_own() -> None:
    from secateurs.data.datasets import _labels_of

    class Transformed(Items):
        targets = (0,) * 16

    assert _labels_of(Transformed(lambda: (IMAGES[7], 3)), "training").tolist() == LABELS.tolist()
