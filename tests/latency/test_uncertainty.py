from __future__ import annotations

import numpy as np
import pytest

from secateurs.latency.model import LatencyModel, profile
from secateurs.testing.latency import FakeTarget, FakeVariants, network, staircase_costs

SPEC = network()
VARIANTS = FakeVariants(SPEC)


def rough_costs(content: bytes) -> dict[str, float]:
    """Every loading of a file is up to some percent faster or slower, as on real machines."""
    draw = np.random.default_rng(np.frombuffer(content[:4096], dtype=np.uint8).astype(np.uint64))
    return {name: ms * float(np.exp(draw.normal(0, 0.05))) for name, ms in staircase_costs(content).items()}


@pytest.fixture(scope="module")
def model() -> LatencyModel:
    return profile(SPEC, VARIANTS, FakeTarget(rough_costs), samples=96)


def test_it_covers_what_it_says(model: LatencyModel) -> None:
    widths = np.random.default_rng(3).integers(6, 65, (200, len(SPEC.groups)))
    measured = np.array([sum(rough_costs(VARIANTS.build(row)).values()) + 0.1 for row in widths])
    off = np.abs(model.predict(widths) - measured)
    sigma = model.uncertainty(widths)
    assert sigma.shape == (200,)
    # 68 % and 95 % are promised; 200 networks and a model's own error leave room on both sides.
    assert 0.55 < (off <= sigma).mean() < 0.85
    assert (off <= 2 * sigma).mean() > 0.88
    assert (off <= 4 * sigma).mean() > 0.97


def test_a_single_network_gives_one_number(model: LatencyModel) -> None:
    one = model.uncertainty([64, 64, 64, 64])
    assert isinstance(one, float)
    assert 0 < one < 0.2 * model.predict([64, 64, 64, 64])
    assert model.uncertainty({}) == pytest.approx(one)


def test_a_steadier_machine_is_surer() -> None:
    steady = profile(SPEC, VARIANTS, FakeTarget(staircase_costs), samples=96)
    rough = profile(SPEC, VARIANTS, FakeTarget(rough_costs), samples=96)
    assert steady.uncertainty([32, 32, 32, 32]) < rough.uncertainty([32, 32, 32, 32])


def test_it_survives_json(model: LatencyModel) -> None:
    widths = np.random.default_rng(0).integers(1, 65, (20, 4))
    assert np.array_equal(LatencyModel.from_json(model.to_json()).uncertainty(widths), model.uncertainty(widths))
