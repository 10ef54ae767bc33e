"""From which density on the sparse convolution pays, per layer shape of a network; kept, and measured once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import secateurs as sc
from secateurs.elements import native
from secateurs.errors import PlanError
from secateurs.latency.store import Store
from secateurs.measure import break_even as module
from secateurs.measure.break_even import break_evens
from secateurs.measure.kernel_times import ConvShape, KernelPoint, KernelTimes

SHAPE = ConvShape((3, 3), (1, 1), (1, 1), (1, 1, 1, 1), (8, 8))
needs_kernels = pytest.mark.skipif(native.missing() is not None, reason="no compiled kernels")


def test_break_even_of_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(KernelTimes, "ms", lambda self, ps: np.array([1.25 * p.count for p in ps]))
    monkeypatch.setattr(KernelTimes, "fingerprint", {"target": "t"})
    monkeypatch.setattr(module, "_dense_ms", lambda *args: 9.0)
    net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), *(nn.Conv2d(16, 16, 3, padding=1) for _ in range(3))).eval()
    graph = sc.trace(net, torch.randn(1, 3, 16, 16))
    store = Store(tmp_path / "store.sqlite3")
    [one] = break_evens(graph, KernelTimes(store))
    assert (one.count, one.channels, one.filters) == (3, 16, 16)
    assert one.density == pytest.approx(7.2 / 9)
    pointwise = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 48, 1)).eval()
    [other] = break_evens(sc.trace(pointwise, torch.randn(1, 3, 16, 16)), KernelTimes(store))
    assert (other.layer, other.positions, other.density) == ("1", 8, 1.0)
    assert other.sparse_ms[4] == pytest.approx(1.25 * 0.5)
    monkeypatch.setattr(module, "_dense_ms", lambda *args: 1 / 0)
    assert break_evens(graph, KernelTimes(store)) == [one]
    with pytest.raises(PlanError, match="No convolution of this network has kernel elements to lose"):
        break_evens(sc.trace(nn.Sequential(nn.Conv2d(3, 8, 3)).eval(), torch.randn(1, 3, 9, 9)), KernelTimes(store))


@needs_kernels
def test_the_dense_side_runs() -> None:
    assert module._dense_ms(SHAPE, 16, 16, KernelTimes()) > 0
    uneven = ConvShape((3, 3), (2, 2), (1, 1), (0, 0, 1, 1), (8, 8))
    assert module._dense_ms(uneven, 16, 16, KernelTimes()) > 0


def test_all_points_are_timed_in_one_go(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[KernelPoint]] = []

    def ms(self: KernelTimes, points: list[KernelPoint]) -> np.ndarray:
        asked.append(list(points))
        return np.array([point.count for point in points])

    monkeypatch.setattr(KernelTimes, "ms", ms)
    monkeypatch.setattr(module, "_dense_ms", lambda *args: 4.5)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3), nn.Conv2d(16, 16, 5), nn.Conv2d(16, 4, 1)).eval()
    found = break_evens(sc.trace(net, torch.randn(1, 3, 12, 12)), KernelTimes())
    assert [one.layer for one in found] == ["1", "2", "3"]
    everything = {point for points in asked[1:] for point in points}
    assert set(asked[0]) == everything  # so that they take turns
    assert [len(one.sparse_ms) for one in found] == [9, 9, 8]  # nine of 25 positions are enough
    assert min(found[1].sparse_ms) == 1
    assert max(found[1].sparse_ms) == found[1].positions == 25


def test_grouped_convolutions_and_the_first_one_stay_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KernelTimes, "ms", lambda self, points: np.ones(len(points)))
    monkeypatch.setattr(module, "_dense_ms", lambda *args: 4.5)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 3, groups=2)).eval()
    with pytest.raises(PlanError, match="all are grouped, depthwise, or read the image"):
        break_evens(sc.trace(net, torch.randn(1, 3, 12, 12)), KernelTimes())
