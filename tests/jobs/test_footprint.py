"""What the dense and the smallest network take: measured where a budget needs it, refused where it does not bind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import training_job

import secateurs as sc
from secateurs.errors import PlanError, TargetError
from secateurs.jobs.footprint import check_binding, dense_figures, memory_seen, smallest
from secateurs.jobs.settings import Settings
from secateurs.latency.store import Store
from secateurs.latency.targets import make_target
from secateurs.measure.bench import Bench
from secateurs.measure.targeted import Targeted
from secateurs.plan import Measurement
from secateurs.search.legal import Legal
from secateurs.testing.latency import network

SPEC = network()
MACS = float(SPEC.macs(SPEC.dense_widths))


class Told:
    """A bench that measures the dense network as it is told, and counts how often."""

    def __init__(self, latency_ms: float = 5.0, memory: int | None = 4_000_000) -> None:
        self.measured, self.asked = Measurement(latency_ms, 0.0, 9, memory_bytes=memory), 0

    def measure_dense(self) -> Measurement:
        self.asked += 1
        return self.measured


def figures(bench: Told, known: dict[str, float] | None = None, **budgets: str) -> dict[str, float]:
    known = dict(known or {})
    size = known.pop("file_size", 0.0)
    targeted = Targeted("", Settings(**budgets).budgets, bench, size)  # type: ignore[arg-type]
    found = dense_figures(targeted, SPEC, known)
    check_binding(targeted.budgets, targeted.ratios(found), found)
    return found


@pytest.mark.parametrize(
    ("budgets", "asked", "expected"),
    [
        ({"macs": "50%"}, 0, {"macs": MACS}),
        ({"latency": "60%"}, 0, {"latency": 7.0}),  # the model's figure is as good for a ratio
        ({"latency": "3ms"}, 1, {"latency": 5.0}),  # a time is about now
        ({"memory": "60%"}, 1, {"memory": 4e6}),
        ({"file_size": "50%"}, 0, {"file_size": 1000.0}),
        ({"latency": "60%", "memory": "3MB"}, 1, {"latency": 5.0, "memory": 4e6}),
    ],
)
def test_dense_is_measured_where_a_budget_is_about_now(
    budgets: dict[str, str], asked: int, expected: dict[str, float]
) -> None:
    bench = Told()
    assert figures(bench, {"latency": 7.0, "file_size": 1000.0}, **budgets) == expected
    assert bench.asked == asked


@pytest.mark.parametrize(
    ("budgets", "said"),
    [
        ({"latency": "5ms"}, r"Latency budget 5ms is not below .* 5(\.0+)? ms.*Give a lower --latency"),
        ({"memory": "4MB"}, r"Memory budget 4MB is not below .*Give a lower --memory"),
        ({"file_size": "2kB"}, r"File size budget 2kB is not below .*Give a lower --file-size"),
        ({"macs": "1G"}, r"Macs budget 1G is not below .*Give a lower --macs"),
    ],
)
def test_a_budget_that_dense_meets_is_refused(budgets: dict[str, str], said: str) -> None:
    with pytest.raises(PlanError, match=said):
        figures(Told(), {"file_size": 1000.0}, **budgets)


def test_a_target_that_does_not_tell_memory_is_told() -> None:
    with pytest.raises(TargetError, match="does not tell the memory"):
        figures(Told(memory=None), memory="60%")


def test_the_smallest_legal_network() -> None:
    widths, removed = smallest(SPEC, Legal())
    assert (widths.tolist(), removed) == ([1, 1, 1, 1], frozenset({0}))
    widths, removed = smallest(SPEC, Legal(min_width=9, blocks=False))
    assert (widths.tolist(), removed) == ([9, 9, 9, 9], frozenset())
    assert smallest(SPEC, Legal(min_width=900))[0].tolist() == [64] * 4
    assert smallest(SPEC, Legal(share=0.1))[0].tolist() == [7] * 4
    stiff = replace(SPEC, groups=tuple(replace(group, min_units=5) for group in SPEC.groups))
    assert smallest(stiff, Legal())[0].tolist() == [5] * 4


def test_memory_of_the_smallest_network_is_measured(fake_target: str, tmp_path: Path) -> None:
    loaded, target = training_job.network(), make_target(fake_target)
    graph = sc.trace(loaded.module, loaded.example())
    bench = Bench.inside(tmp_path, target, loaded.example())
    bench.export(loaded.module, bench.dense)
    with Store(tmp_path / "store.sqlite3") as store:
        dense, least = memory_seen(loaded.module, graph, Legal(), bench, store, 123_456.0)
        loads = target.loads  # type: ignore[attr-defined]
        again = memory_seen(loaded.module, graph, Legal(), bench, store, 123_456.0)
        assert target.loads == loads  # type: ignore[attr-defined]
    assert (dense.widths.tolist(), dense.removed, dense.bytes) == (
        graph.spec.dense_widths.tolist(),
        frozenset(),
        123_456.0,
    )
    widths, removed = smallest(graph.spec, Legal())
    assert (least.widths.tolist(), least.removed) == (widths.tolist(), removed)
    # The target says twice the file's size.
    assert 0 < least.bytes < 2 * bench.dense.stat().st_size
    assert again[1].bytes == least.bytes
    wide = memory_seen(loaded.module, graph, Legal(min_width=99, blocks=False), bench, Store(tmp_path / "s"), 1.0)[1]
    assert np.array_equal(wide.widths, graph.spec.dense_widths)
    assert wide.bytes == 2 * bench.dense.stat().st_size


def test_a_target_that_tells_no_memory_of_the_smallest_network_is_told(tmp_path: Path) -> None:
    class Silent:
        def measure(self, *arguments: Any) -> Measurement:
            return Measurement(1.0, 0.0, 9)

    loaded = training_job.network()
    graph = sc.trace(loaded.module, loaded.example())
    with pytest.raises(TargetError, match="does not tell the memory"):
        memory_seen(loaded.module, graph, Legal(), Silent(), Store(tmp_path / "s"), 1.0)  # type: ignore[arg-type]
