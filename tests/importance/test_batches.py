"""Calibration data with mistakes: a message names the batch and what it holds; nothing ends in a traceback."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

import secateurs as sc
from secateurs.data.tasks import classification
from secateurs.importance.dynamic import watch_training

X, Y = torch.randn(8, 3, 10, 10, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 4


@pytest.fixture(scope="module")
def graph() -> sc.Graph:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return sc.trace(nn.Sequential(*layers, nn.Linear(8, 4)), torch.randn(1, 3, 10, 10))


def raising() -> Iterator[object]:
    yield X, Y
    raise ZeroDivisionError("worker \x1b[31mgone\x1b[0m")


MISTAKES: list[tuple[Callable[[], object], str]] = [
    (lambda: [X], r"batch 1 is float32 of shape \(8, 3, 10, 10\), no pair"),
    (lambda: [X[:2]], "no pair"),
    (lambda: [(X, Y), None], "batch 2 is a NoneType, no pair"),
    (lambda: [{"image": X, "label": Y}], "batch 1 is a dict, no pair"),
    (lambda: [(X, Y, Y)], "batch 1 is tuple of 3"),
    (lambda: X, "is a Tensor, nothing to go through"),
    (lambda: 3, "is a int, nothing to go through"),
    (lambda: [(X, Y.float())], r"batch 1: RuntimeError.*targets: float32 of shape \(8,\)"),
    (lambda: [(X, Y), (X, Y + 9)], "batch 2: IndexError: Target 9 is out of bounds"),
    (lambda: [(X[:, :1], Y)], r"batch 1: .*Inputs: float32 of shape \(8, 1, 10, 10\)"),
    (lambda: [(X.double(), Y)], "Inputs: float64"),
    (lambda: [(X.byte(), Y)], "Inputs: uint8"),
    (lambda: [(X, Y[:3])], r"targets: int64 of shape \(3,\)"),
    (raising, "data raised ZeroDivisionError: worker gone"),
]


@pytest.mark.parametrize("criterion", ["taylor", "measured", "activation", "acs"])
@pytest.mark.parametrize(("data", "part"), MISTAKES)
def test_mistakes_are_told(graph: sc.Graph, criterion: str, data: Callable[[], object], part: str) -> None:
    with pytest.raises(sc.DataError, match=part):
        sc.plan(graph, macs="60%", criterion=criterion, data=data())  # type: ignore[arg-type]


def test_watched_training_tells_too(graph: sc.Graph) -> None:
    with pytest.raises(sc.DataError, match="Target 9 is out of bounds"):
        watch_training(graph, [(X, Y + 9)], classification())
    with pytest.raises(sc.DataError, match="no pair"):
        watch_training(graph, [X], classification())


def test_images_of_several_sizes(graph: sc.Graph) -> None:
    sizes = [(X, Y), (torch.randn(8, 3, 12, 9), Y)]
    with pytest.raises(sc.DataError, match=r"several sizes \(\(3, 10, 10\), \(3, 12, 9\)\).*fisher_obs"):
        sc.plan(graph, macs="60%", data=sizes)
    assert sc.plan(graph, macs="60%", data=sizes, criterion="fisher_obs").removed()


def test_arrays_are_taken(graph: sc.Graph) -> None:
    made = sc.plan(graph, macs="60%", criterion="taylor", data=[(X.numpy(), Y.numpy())])
    assert made.groups == sc.plan(graph, macs="60%", criterion="taylor", data=[(X, Y)]).groups
