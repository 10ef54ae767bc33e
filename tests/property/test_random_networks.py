"""Random networks that mix the traits of real ones: cut right, or refused by name."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from secateurs.structure import apply, trace
from secateurs.testing.structure import gap, random_cut, tensors, verdict
from secateurs.testing.structure_networks import SIZE, random_network, seeded

QUIET = settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.generate),
)


@QUIET
@given(st.data())
def test_random_networks_are_cut_right(data: st.DataObject) -> None:
    torch.manual_seed(0)
    model = random_network(lambda count: data.draw(st.integers(0, count - 1))).eval()
    found = verdict(model, torch.randn(2, 3, SIZE, SIZE), seed=data.draw(st.integers(0, 9)))
    assert found.outcome in ("right", "pinned"), (found, model)


@settings(QUIET, max_examples=2)
@given(st.integers(0, 10_000))
def test_empty_plans_change_nothing_and_small_networks_train(seed: int) -> None:
    torch.manual_seed(seed)
    model, example = random_network(seeded(seed)).eval(), torch.randn(2, 3, SIZE, SIZE)
    graph = trace(model, example)
    same = apply(model, graph.plan({}), example)
    with torch.no_grad():
        assert gap(tensors(same(example)), tensors(model(example))) <= 1e-6
    small = apply(model, graph.plan(random_cut(graph, 0.4, seed)), example)
    five = torch.randn(5, 3, SIZE, SIZE)
    sum(y.pow(2).mean() for y in tensors(small.train()(five))).backward()
    assert all(bool(p.grad.isfinite().all()) for p in small.parameters() if p.grad is not None)
    with torch.no_grad():
        small.eval()
        assert gap([y[:1] for y in tensors(small(five))], tensors(small(five[:1]))) <= 1e-4


@pytest.mark.parametrize("seed", range(4))
def test_the_same_seed_makes_the_same_network(seed: int) -> None:
    assert str(random_network(seeded(seed))) == str(random_network(seeded(seed)))
