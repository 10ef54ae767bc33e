from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from secateurs.latency.model import LatencyModel, profile
from secateurs.latency.store import Store
from secateurs.testing.latency import FakeTarget, FakeVariants, network, staircase_costs

SPEC = network()
VARIANTS = FakeVariants(SPEC)


def target() -> FakeTarget:
    return FakeTarget(staircase_costs, profiles=False)


@pytest.fixture(scope="module")
def model() -> LatencyModel:
    return profile(SPEC, VARIANTS, target(), samples=144)


def truth(widths: np.ndarray) -> float:
    return sum(staircase_costs(VARIANTS.build(widths)).values()) + 0.1


def test_whole_runs_are_enough(model: LatencyModel) -> None:
    widths = np.random.default_rng(5).integers(8, 65, (60, len(SPEC.groups)))
    wanted = np.array([truth(row) for row in widths])
    off = np.abs(model.predict(widths) / wanted - 1)
    assert off.mean() < 0.03
    assert np.percentile(off, 95) < 0.08


def test_the_interface_is_the_same(model: LatencyModel) -> None:
    dense = SPEC.dense_widths
    assert model.cost_model().evaluate(dense) == pytest.approx(model.predict(dense))
    assert len(model.by_site(dense)) == len(SPEC.layers)
    assert 0 < model.uncertainty(dense) < 0.2 * model.predict(dense)
    again = LatencyModel.from_json(model.to_json())
    assert again.predict(dense) == model.predict(dense)
    assert again.uncertainty(dense) == model.uncertainty(dense)


def test_steps_are_found_without_a_profile(model: LatencyModel) -> None:
    # Outputs are rounded up to 16: 49 to 64 cost the same, 48 less.
    at = [model.predict([64, width, 64, 64]) for width in (48, 49, 64)]
    assert at[2] - at[1] < 0.5 * (at[1] - at[0]) + 0.5 * (at[2] - at[0])
    assert at[0] < at[1]


def test_what_was_measured_is_found_again(tmp_path: Path) -> None:
    made = target()
    with Store(tmp_path / "s.sqlite3") as store:
        profile(SPEC, VARIANTS, made, store=store, samples=24)
        loads = made.loads
        profile(SPEC, VARIANTS, made, store=store, samples=24)
    assert made.loads == loads
