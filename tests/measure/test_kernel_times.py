"""Times of the sparse kernels: never measured twice, linear between widths; the density at which they break even."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import secateurs as sc
from secateurs.elements import native
from secateurs.latency.store import Store
from secateurs.measure.kernel_times import ConvShape, KernelPoint, KernelTimes, LayerTimes, break_even

SHAPE = ConvShape((3, 3), (1, 1), (1, 1), (1, 1, 1, 1), (8, 8))
needs_kernels = pytest.mark.skipif(native.missing() is not None, reason="no compiled kernels")


@needs_kernels
def test_what_is_stored_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = [KernelPoint(SHAPE, 16, 16, n) for n in (1, 4, 9)]
    first = KernelTimes(Store(tmp_path / "store.sqlite3")).ms(points)
    assert (first > 0).all()

    def refuse(self: KernelTimes, points: Sequence[KernelPoint]) -> list[float]:
        raise AssertionError("measured again")

    monkeypatch.setattr(KernelTimes, "_measure", refuse)
    assert np.array_equal(KernelTimes(Store(tmp_path / "store.sqlite3")).ms(points), first)


def test_times_are_linear_between_measured_widths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        KernelTimes, "ms", lambda self, ps: np.array([p.channels * 2.0 + p.filters * p.count for p in ps])
    )
    table = LayerTimes.measured(KernelTimes(), SHAPE, [8, 16, 32], [16, 48], [2, 9])
    channels, filters = np.array([8, 12, 24, 32]), np.array([16, 20, 40, 48])
    for count in (2, 9):
        assert np.allclose(table(channels, filters, np.array(count)), channels * 2.0 + filters * count)
    assert table(channels[:, None], filters[None, :], np.array(2)).shape == (4, 4)
    single = LayerTimes.measured(KernelTimes(), SHAPE, [3], [16], [9])
    assert float(single(np.array(3), np.array(16), np.array(9))) == 6 + 144


def test_shapes_follow_from_the_layer_however_it_pads() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding="same"), nn.Conv2d(16, 16, 5, stride=2, padding=2), nn.Conv2d(16, 8, 3, dilation=2)
    ).eval()
    graph = sc.trace(net, torch.randn(1, 3, 16, 16))
    shapes = [ConvShape.of(layer, net[int(layer.name)]) for layer in graph.spec.layers]
    assert [s.padding for s in shapes] == [(1, 1, 1, 1), (1, 1, 2, 2), (0, 0, 0, 0)]
    assert [s.positions for s in shapes] == [9, 25, 9]


@pytest.mark.parametrize(("dense_ms", "expected"), [(20.0, 1.0), (0.5, 0.0), (5.0, 5 / 9), (8.5, 8.5 / 9), (9.0, 1.0)])
def test_break_even_density(dense_ms: float, expected: float) -> None:
    assert break_even({n: float(n) for n in range(1, 10)}, dense_ms, 9) == pytest.approx(expected)
