"""Dynamic filter selection (similarities, duplicates), and the short training around it."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from secateurs.data.tasks import classification
from secateurs.errors import DataError, PlanError, StructureError
from secateurs.importance.context import Context
from secateurs.importance.duplicates import removal_scores
from secateurs.importance.dynamic import Dynamics, centred, watch_training
from secateurs.importance.scoring import scores
from secateurs.importance.statistics import context_for
from secateurs.importance.weights import filters
from secateurs.search.values import keep
from secateurs.structure import trace
from secateurs.structure.graph import Graph


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(6)
        self.b = nn.Conv2d(6, 5, 3, padding=1)
        self.head = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.a(x)))
        return self.head(torch.relu(self.b(x)).mean((2, 3)))


@pytest.fixture
def graph() -> Graph:
    torch.manual_seed(0)
    return trace(Net().eval(), torch.randn(2, 3, 8, 8))


def batches(count: int = 4) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(8, 3, 8, 8, generator=generator), torch.randint(0, 4, (8,), generator=generator))
        for _ in range(count)
    ]


def moved(module: nn.Module, step: int) -> nn.Module:
    """The module with every weight of ``a`` and ``b`` changed at random."""
    other = copy.deepcopy(module)
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for layer in (other.a, other.b):
            layer.weight += 0.1 * torch.randn(layer.weight.shape, generator=generator)
    return other


def path_of(graph: Graph, steps: int = 5) -> list[nn.Module]:
    modules = [graph.model]
    for step in range(steps):
        modules.append(moved(modules[-1], step))
    return modules


def watched(graph: Graph, modules: list[nn.Module]) -> Dynamics:
    found = Dynamics(graph)
    for module in modules:
        found.observe(module)
    return found


def test_streaming_equals_stored_snapshots(graph: Graph) -> None:
    """The Gram matrix that is summed up equals the one from all snapshots at once."""
    modules = path_of(graph)
    streamed = watched(graph, modules)
    for group in graph.groups:
        rows = []
        for module in modules:
            seen = copy.copy(graph)
            seen.model = module
            rows.append(torch.cat([matrix for _, matrix in filters(seen, group.name)], dim=1))
        changes = torch.cat([centred(after - before) for before, after in itertools.pairwise(rows)], dim=1)
        assert torch.allclose(streamed.gram[group.name], changes @ changes.T, atol=1e-12)
        unit = nn.functional.normalize(changes, dim=1)
        assert np.allclose(streamed.similarity(group.name), (unit @ unit.T).numpy(), atol=1e-9)


def test_duplicates_have_similarity_one(graph: Graph) -> None:
    """Filters 1 and 4 make the same way, up to a positive factor."""
    modules = path_of(graph)
    for module in modules:
        with torch.no_grad():
            module.a.weight[4] = 0.5 * module.a.weight[1]
            # the mean is taken off, so the factor alone would not do: cancel the others' mean
            module.a.weight -= module.a.weight.mean(dim=0, keepdim=True)
    with torch.no_grad():
        for module in modules:
            module.a.weight[4] = module.a.weight[1]
    found = watched(graph, modules).similarity("a:out")
    assert found[1, 4] == pytest.approx(1.0)
    assert np.all(found <= 1.0)


def test_a_common_drift_changes_nothing(graph: Graph) -> None:
    """What moves all filters alike is what 'adjusted' takes off."""
    modules = path_of(graph)
    before = watched(graph, modules).similarity("b:out")
    generator = torch.Generator().manual_seed(9)
    drift = torch.zeros_like(modules[0].b.weight[:1])
    with torch.no_grad():
        for module in modules:
            module.b.weight += drift
            drift = drift + 3 * torch.randn(drift.shape, generator=generator)
    assert np.allclose(watched(graph, modules).similarity("b:out"), before, atol=1e-5)


def test_the_mean_over_all_partners_says_nothing() -> None:
    """The trap: with equal lengths every filter's mean similarity to the others is -1/(n - 1)."""
    generator = torch.Generator().manual_seed(0)
    rows = nn.functional.normalize(centred(torch.randn(400, 40, generator=generator).double().T), dim=1)
    similarity = (rows @ rows.T).numpy()
    others = (similarity.sum(axis=1) - 1) / 39
    assert np.allclose(others, -1 / 39, atol=0.02)
    assert np.ptp(others) < 0.2 * np.ptp(np.sort(similarity, axis=1)[:, -4:-1].mean(axis=1))


@pytest.mark.parametrize("smaller", [2, 5])
def test_of_two_duplicates_one_survives(smaller: int) -> None:
    """And the one of larger norm; the next to go is somebody else."""
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((8, 60))
    rows[2] = rows[5]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    norms = np.full(8, 2.0)
    norms[smaller] = 1.0
    found = removal_scores(rows @ rows.T, norms, 3)
    order = np.argsort(found)
    assert order[0] == smaller
    assert order[1] != 7 - smaller
    for width in (7, 6, 5):
        survivors = {2, 5} & set(np.argsort(-found)[:width].tolist())
        assert survivors == {7 - smaller}
    plain = 1 - np.sort(rows @ rows.T - 2 * np.eye(8), axis=1)[:, -3:].mean(axis=1)
    assert set(np.argsort(plain)[:2].tolist()) == {2, 5}, "without the greedy rule both would go"


def test_three_copies_leave_one() -> None:
    rows = np.eye(6)
    rows[1] = rows[2] = rows[0]
    found = removal_scores(rows @ rows.T, np.array([3.0, 1.0, 2.0, 5.0, 5.0, 5.0]), 1)
    assert np.argsort(found)[:2].tolist() == [1, 2]
    assert np.all(np.diff(np.sort(found)) > 0)


@pytest.mark.parametrize("count", [1, 2, 3, 30])
@pytest.mark.parametrize("partners", [1, 3, 50])
def test_removal_scores_are_those_of_the_slow_rule(count: int, partners: int) -> None:
    rng = np.random.default_rng(count)
    rows = rng.standard_normal((count, 7))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    similarity, norms = rows @ rows.T, rng.uniform(1, 2, count)
    found = removal_scores(similarity, norms, partners)
    left, order = list(range(count)), []
    while left:
        means = {}
        for i in left:
            others = sorted((similarity[i, j] for j in left if j != i), reverse=True)[:partners]
            means[i] = float(np.mean(others)) if others else -1.0
        gone = min((i for i in left if means[i] >= max(means.values()) - 1e-12), key=lambda i: norms[i])
        near = max((j for j in left if j != gone), key=lambda j: similarity[gone, j], default=gone)
        if near != gone and similarity[gone, near] >= 0.95 and norms[near] < norms[gone]:
            gone = near
        order.append(gone)
        left.remove(gone)
    assert np.argsort(found).tolist() == order


def test_both_readings_as_criteria(graph: Graph) -> None:
    for name in ("acs", "acs_self"):
        found = scores(graph, name, context_for(graph, name, iter(batches()), seed=1))
        again = scores(graph, name, context_for(graph, name, iter(batches()), seed=1))
        for group in graph.groups:
            assert np.array_equal(found[group.name], again[group.name])
            assert np.all(found[group.name] >= 0)
    with pytest.raises(PlanError, match="calibration data"):
        scores(graph, "acs", Context())


def test_own_settings_make_a_criterion(graph: Graph) -> None:
    found = watched(graph, path_of(graph))
    pairs, alone = found.criterion(partners=2), found.criterion(acs_mode="self")
    one, other = scores(graph, pairs), scores(graph, alone)
    assert not np.allclose(one["a:out"], other["a:out"])
    assert len(keep(one["a:out"], 3)) == 3
    with pytest.raises(PlanError, match="pairs, self"):
        found.scores("a:out", acs_mode="both")
    with pytest.raises(PlanError, match="at least one partner"):
        found.scores("a:out", partners=0)


def test_settled_filters_go_first(graph: Graph) -> None:
    """Second reading: a filter that stays where it is has similarity one to its own past."""
    modules = path_of(graph)
    with torch.no_grad():
        for module in modules[1:]:
            # the others move around a mean that stays
            module.b.weight[3] = modules[0].b.weight[3]
            shift = module.b.weight.mean(0) - modules[0].b.weight.mean(0)
            module.b.weight[0] -= 5 * shift
    found = watched(graph, modules).scores("b:out", acs_mode="self")
    assert int(np.argmin(found)) == 3
    assert found[3] == pytest.approx(0.0, abs=1e-6)


def test_folded_with_the_batch_norm_of_the_moment(graph: Graph) -> None:
    """A filter whose γ grows moves, although its weight does not."""
    louder = copy.deepcopy(graph.model)
    with torch.no_grad():
        louder.bn.weight[2] *= 3
    found = watched(graph, [graph.model, louder])
    assert int(np.argmax(np.diagonal(found.gram["a:out"].numpy()))) == 2
    assert float(found.gram["b:out"].abs().sum()) == 0
    assert np.all(found.similarity("b:out") == 0)


def test_short_training_leaves_the_model_alone_and_repeats_itself(graph: Graph) -> None:
    before = copy.deepcopy(graph.model.state_dict())
    one = watch_training(graph, iter(batches(3)), classification(), snapshots=3, interval=2, seed=4)
    other = watch_training(graph, batches(3), classification(), snapshots=3, interval=2, seed=4)
    assert one.changes == 3
    assert torch.equal(one.gram["a:out"], other.gram["a:out"])
    assert float(one.gram["a:out"].diagonal().min()) > 0
    assert not graph.model.training
    for name, tensor in graph.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_nothing_to_see_is_said(graph: Graph) -> None:
    with pytest.raises(DataError, match="once only"):
        watched(graph, [graph.model]).scores("a:out")
    with pytest.raises(DataError, match="no batches"):
        watch_training(graph, [], classification())
    with pytest.raises(DataError, match=r"smaller lr"):
        watch_training(graph, batches(), classification(), lr=1e30, snapshots=3)


class Two(nn.Module):
    """Two inputs, and units that only one of them makes by a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x) + y.mean(1, keepdim=True)))


def test_networks_with_several_inputs_are_watched() -> None:
    graph = trace(Two(), (torch.randn(2, 6), torch.randn(2, 5)))
    pairs = [((torch.randn(8, 6), torch.randn(8, 5)), torch.arange(8) % 4)]
    found = watch_training(graph, pairs, classification(), snapshots=2, interval=2)
    assert found.scores("a:out").shape == (8,)


def test_groups_that_no_weight_produces_are_not_watched() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 8)), nn.ReLU(), nn.Linear(8, 5), nn.ReLU())
    model.append(nn.Linear(5, 4))
    graph = trace(model.eval(), torch.randn(2, 6))
    unseen = [g.name for g in graph.groups if not any(view.role == "out" for view in graph.views(g.name))]
    if not unseen:
        pytest.skip("every group has a weight that produces it")
    found = watch_training(graph, [(torch.randn(8, 6), torch.arange(8) % 4)], classification(), snapshots=2, interval=2)
    with pytest.raises(StructureError, match="No weight produces"):
        found.scores(unseen[0])
