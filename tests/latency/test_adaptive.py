from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from secateurs.latency import model
from secateurs.latency.model import LatencyModel, Profiler
from secateurs.latency.store import Store
from secateurs.testing.latency import FakeTarget, FakeVariants, network, staircase_costs

SPEC = network()
VARIANTS = FakeVariants(SPEC)
Plans = list[tuple[np.ndarray, frozenset[int]]]
Costs = Callable[[bytes], dict[str, float]]


def surprising_costs(content: bytes) -> dict[str, float]:
    """Where the first layer is very narrow, the second takes another, slower path: random widths rarely see it."""
    costs = staircase_costs(content)
    if costs["v0"] < 2e-4 * 3 * 16 + 0.0051 and costs.get("v1", 0) > 0.1:
        costs["v1"] *= 1.6
    return costs


def plans(costs: LatencyModel, number: int) -> Plans:
    """What a solver might want: the first layer narrow, the others wide."""
    rng = np.random.default_rng(number)
    return [
        (np.array([rng.integers(9, 17), *rng.integers(48, 65, 3)]), frozenset[int]()) for _ in range(12)
    ]  # fmt: skip


def profiler(costs=staircase_costs, **options) -> Profiler:
    return Profiler(SPEC, VARIANTS, FakeTarget(costs), **options)


def test_a_good_model_takes_no_more_samples_than_it_needs() -> None:
    easy = profiler().run()
    assert easy.error.count <= 100


def test_a_poor_model_takes_more_where_it_is_unsure(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    monkeypatch.setattr(model, "_ROUNDS", 3)
    poor = profiler(lambda content: {k: v * rng.uniform(0.8, 1.25) for k, v in staircase_costs(content).items()})
    # Coarse grains draw some networks of the design twice; they are measured once, and none again later.
    design = {sample for number in range(3) for sample in poor.chunk(number)}
    assert poor.run(seconds=1e9).error.count == len(design) + 3 * 12


def test_time_is_bounded() -> None:
    assert profiler(surprising_costs).run(seconds=0.0).error.count <= 25


def test_plans_are_predicted_before_they_are_measured_and_then_learnt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "_ROUNDS", 3)
    found = profiler(surprising_costs, propose=plans).run(seconds=1e9)
    pairs = np.array(found.error.plans)
    first = np.abs(pairs[:12, 0] / pairs[:12, 1] - 1).mean()
    last = np.abs(pairs[-12:, 0] / pairs[-12:, 1] - 1).mean()
    assert len(pairs) >= 24
    assert last < 0.6 * first


def test_unsure_samples_are_the_least_sure_of_a_fresh_portion() -> None:
    made = profiler(surprising_costs)
    fitted = made.run(samples=48)
    chosen = made.unsure_of(fitted, 0)
    assert len(chosen) == len(set(chosen)) == 12
    doubt = [fitted.uncertainty(sample.array(), sample.removed) for sample in chosen]
    assert min(doubt) > 0
    assert chosen == made.unsure_of(fitted, 0)


@pytest.mark.parametrize("costs", [surprising_costs, staircase_costs])  # plans are mispredicted, or as predicted
def test_the_second_time_everything_is_in_the_store(
    costs: Costs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "_ROUNDS", 1)
    target = FakeTarget(costs)
    with Store(tmp_path / "s.sqlite3") as store:
        first = Profiler(SPEC, VARIANTS, target, store=store, propose=plans)
        found, loads = first.run(seconds=1e9), target.loads
        again = Profiler(SPEC, VARIANTS, target, store=store, propose=plans)
        assert again.run().to_json() == found.to_json()
        assert target.loads == loads
        assert again.seconds == pytest.approx(first.seconds)


def test_measured_latencies_follow_the_pace_of_the_table() -> None:
    fitted = profiler().run(samples=48)
    dense = fitted.dense_ms
    assert fitted.measured_ms([2.0], [dense]) == pytest.approx([2.0])
    # A machine that became slower as a whole, and one disturbed turn.
    assert fitted.measured_ms([4.0] * 3, [2 * dense] * 3) == pytest.approx([2.0] * 3)
    disturbed = fitted.measured_ms([2.0] * 3, [dense, dense, 1.1 * dense])
    assert disturbed[2] == pytest.approx(2.0 / 1.1**fitted.drift)


def test_a_profile_can_be_measured_anew(tmp_path: Path) -> None:
    def slow(content: bytes) -> dict[str, float]:
        return {key: 2 * ms for key, ms in staircase_costs(content).items()}

    with Store(tmp_path / "store.sqlite3") as store:
        disturbed = profiler(slow, store=store).run()
        kept = profiler(store=store)
        assert kept.run().dense_ms == disturbed.dense_ms
        elsewhere = FakeTarget(staircase_costs).fingerprint(7)
        store.put(elsewhere, {"variant/x": {"total_ms": 1.0}})
        assert kept.forget() > disturbed.error.count
        assert profiler(store=store).run().dense_ms < 0.6 * disturbed.dense_ms
        assert store.get(elsewhere, "variant/x") is not None
