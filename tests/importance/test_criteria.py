"""SP-LAMP's laws, what single criteria compute, and a user's own function; laws of all are in tests/contract."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import secateurs.importance.scoring
from secateurs.errors import PlanError
from secateurs.importance.bottlenecks import bottlenecks
from secateurs.importance.context import KINDS, Context, needs
from secateurs.importance.measured import work
from secateurs.importance.obs import readers_if_any
from secateurs.importance.random import score as random_score
from secateurs.importance.scoring import default_criterion, scores
from secateurs.importance.splamp import layer_adaptive
from secateurs.importance.statistics import LossSensitivity, Statistics, context_for, gather
from secateurs.importance.weights import filters
from secateurs.progress import silent
from secateurs.search.values import curve, keep, order
from secateurs.structure.graph import Graph
from secateurs.structure.trace import trace


class Small(nn.Module):
    """A stem, one residual block, one depthwise pair and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.stem_bn = nn.BatchNorm2d(6)
        self.inner = nn.Conv2d(6, 5, 3, padding=1, bias=False)
        self.inner_bn = nn.BatchNorm2d(5)
        self.outer = nn.Conv2d(5, 6, 3, padding=1, bias=False)
        self.outer_bn = nn.BatchNorm2d(6)
        self.depthwise = nn.Conv2d(6, 6, 3, groups=6, bias=False)
        self.depthwise_bn = nn.BatchNorm2d(6)
        self.wide = nn.Conv2d(6, 8, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem_bn(self.stem(x)))
        y = torch.relu_(self.inner_bn(self.inner(x)))
        y = self.outer_bn(self.outer(y))
        y += x
        y = torch.relu(self.depthwise_bn(self.depthwise(torch.relu_(y))))
        return self.head(self.wide(y).mean((2, 3)))


def randomised(seed: int = 0) -> Small:
    generator = torch.Generator().manual_seed(seed)
    model = Small().eval()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.dtype.is_floating_point:
                noise = torch.rand(tensor.shape, generator=generator)
                tensor.copy_(noise + 0.5 if "running_var" in name else noise - 0.4)
    return model


def batches(count: int = 3, size: int = 4) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(7)
    return [
        (torch.randn(size, 3, 7, 7, generator=generator), torch.randint(0, 4, (size,), generator=generator))
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def graph() -> Graph:
    return trace(randomised(), torch.randn(2, 3, 7, 7))


@pytest.fixture(scope="module")
def statistics(graph: Graph) -> Statistics:
    return gather(graph, batches(), KINDS)


@pytest.mark.parametrize(
    "criterion",
    ["taylor", "taylor_bn", "fisher", "obd", "activation", "reconstruction", "obs", "fisher_obs", "measured"],
)
def test_criteria_over_data_ask_for_data(graph: Graph, criterion: str) -> None:
    with pytest.raises(PlanError, match="needs calibration data"):
        scores(graph, criterion)
    with pytest.raises(PlanError, match="statistics; the pass gathered"):
        scores(graph, criterion, Context(statistics=Statistics(frozenset(), 1, 0.0)))


def test_splamp_laws() -> None:
    mass = np.array([0.5, 4.0, 1.0, 2.0])
    found = layer_adaptive(mass)
    assert found.max() == 1.0
    assert found[1] == 1.0
    assert np.all(np.diff(found[np.argsort(-mass)]) < 0)
    assert found == pytest.approx([0.5 / 7.5, 1.0, 1.0 / 7.0, 2.0 / 6.0])
    assert layer_adaptive(7.3e20 * mass) == pytest.approx(found, rel=1e-12)
    assert layer_adaptive(np.full(5, 0.3)) == pytest.approx(1 / np.arange(1, 6))
    assert layer_adaptive(np.zeros(3)) == pytest.approx(1 / np.arange(1, 4))


def test_splamp_reads_folded_filters_of_all_coupled_layers(graph: Graph) -> None:
    model = graph.model
    assert isinstance(model, Small)
    mass = np.zeros(6)
    for conv, norm in (
        (model.stem, model.stem_bn),
        (model.outer, model.outer_bn),
        (model.depthwise, model.depthwise_bn),
    ):
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        mass += (conv.weight * scale[:, None, None, None]).detach().double().square().sum((1, 2, 3)).numpy()
    name = next(g.name for g in graph.groups if g.units == 6)
    assert scores(graph, "splamp")[name] == pytest.approx(layer_adaptive(mass), rel=1e-6)
    assert scores(graph, "l2_folded")[name] == pytest.approx(np.sqrt(mass), rel=1e-6)


def test_splamp_does_not_see_a_rescaling_that_the_batch_norm_undoes() -> None:
    model, rescaled = randomised(), randomised()
    with torch.no_grad():
        rescaled.stem.weight *= 3.0
        rescaled.stem_bn.running_mean *= 3.0
        rescaled.stem_bn.running_var.copy_(9.0 * (model.stem_bn.running_var + 1e-5) - 1e-5)
    example = torch.randn(2, 3, 7, 7)
    first, second = (scores(trace(m, example), "splamp") for m in (model, rescaled))
    for name, found in first.items():
        assert second[name] == pytest.approx(found, rel=1e-5)


def test_unfolded_filters_are_the_weights(graph: Graph) -> None:
    name = next(g.name for g in graph.groups if g.units == 5)
    ((view, matrix),) = filters(graph, name, folded=False)
    assert view.layer == "inner"
    assert isinstance(graph.model, Small)
    assert torch.equal(matrix, graph.model.inner.weight.detach().double().flatten(1))


COMPUTED = {
    "product": lambda u, v: torch.kron(u, v),
    "rows of two": lambda u, v: torch.cat([u.repeat(1, 3), v.repeat(1, 4), u.repeat(1, 3)[:2], v.repeat(1, 4)[:3]]),
    "low rank": lambda u, v: u.reshape(12, 1) @ v.reshape(1, 12),
    "padded": lambda u, v: torch.nn.functional.pad(torch.kron(u[:, :3], v), (0, 3, 0, 4))[:12],
    "repeated rows": lambda u, v: u.reshape(1, 12).repeat_interleave(12, 0) * v.reshape(12, 1),
}


@pytest.mark.parametrize("criterion", ["splamp", "l1", "l2", "lamp", "fpgm"])
@pytest.mark.parametrize("name", COMPUTED)
def test_filters_that_the_forward_computes(name: str, criterion: str) -> None:
    """Every group has scores, also where no parameter is a layer's filters."""

    class Computed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 12), nn.Linear(12, 4)
            self.u, self.v = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(4, 3))

        def forward(self, x: Tensor) -> Tensor:
            return self.b(nn.functional.linear(self.a(x).relu(), COMPUTED[name](self.u, self.v)).relu())

    torch.manual_seed(0)
    graph = trace(Computed().eval(), torch.randn(2, 6))
    found = scores(graph, criterion)
    assert {group.name: group.units for group in graph.groups} == {name: len(values) for name, values in found.items()}
    assert all(values.any() for values in found.values())


def test_random_depends_on_seed_and_group_only(graph: Graph) -> None:
    first, second = (g.name for g in graph.groups if g.units in (5, 6))
    assert np.array_equal(random_score(graph, first, Context(1)), random_score(graph, first, Context(1)))
    assert not np.array_equal(random_score(graph, first, Context(1)), random_score(graph, first, Context(2)))
    assert not np.array_equal(random_score(graph, first, Context(1))[:5], random_score(graph, second, Context(1))[:5])


def test_a_function_of_ones_own(graph: Graph) -> None:
    @needs("outputs")
    def mine(graph: Graph, group: str, context: Context) -> np.ndarray:
        return context.gathered("mine", "outputs").outputs[group].square

    context = context_for(graph, mine, batches())
    assert context.statistics is not None
    assert context.statistics.kinds == {"outputs"}
    found = scores(graph, mine, context)
    assert set(found) == {group.name for group in graph.groups}


def test_context_gathers_only_what_is_needed(graph: Graph) -> None:
    assert context_for(graph, "splamp", batches()).statistics is None
    assert context_for(graph, "fisher", None).statistics is None
    with pytest.raises(PlanError, match="'weather' are unknown"):
        needs("weather")


@pytest.mark.parametrize(("wrong", "match"), [(np.zeros(3), "shape"), (np.full(6, np.nan), "not finite")])
def test_wrong_scores_are_refused(graph: Graph, wrong: np.ndarray, match: str) -> None:
    def mine(graph: Graph, group: str, context: Context) -> np.ndarray:
        units = next(g.units for g in graph.groups if g.name == group)
        return wrong if len(wrong) == 3 else np.full(units, np.nan)

    with pytest.raises(PlanError, match=match):
        scores(graph, mine)


def test_values_and_kept_units() -> None:
    found = np.array([0.5, 2.0, 0.5, 1.0])
    assert order(found).tolist() == [1, 3, 0, 2]
    assert curve(found).tolist() == [0.0, 2.0, 3.0, 3.5, 4.0]
    assert keep(found, 3) == (0, 1, 3)
    assert keep(found, 4) == (0, 1, 2, 3)


def test_a_group_without_a_way_around_is_worth_as_much_as_others_like_it(graph: Graph) -> None:
    stream, wide = (next(g.name for g in graph.groups if g.units == units) for units in (6, 8))
    inner = next(g.name for g in graph.groups if g.units == 5)
    assert bottlenecks(graph) == {stream, wide}

    def effects(*values: float) -> LossSensitivity:
        found = np.array(values)
        return LossSensitivity(found, found, found)

    norms = {stream: effects(*[2.0] * 6), inner: effects(*[0.001] * 5), wide: effects(*[0.1] * 7, 0.3)}
    context = Context(statistics=Statistics(frozenset({"norms"}), 1, 0.0, norms=norms))
    found = scores(graph, "fisher", context)
    assert found[stream] == pytest.approx(np.full(6, 1.0))
    assert found[inner] == pytest.approx(np.full(5, 0.0005))
    assert found[wide].sum() == pytest.approx((6.0 + 0.5) / 2)
    assert found[wide][-1] == pytest.approx(3 * found[wide][0])


def test_fisher_obs_values_widths_by_one_criterion_and_units_by_the_other() -> None:
    graph = trace(randomised(), torch.randn(2, 3, 8, 8))
    context = context_for(graph, "fisher_obs", batches())
    both, worth, spared = (scores(graph, name, context) for name in ("fisher_obs", "fisher", "obs"))
    differing = 0
    for group in graph.groups:
        name = group.name
        assert curve(both[name]) == pytest.approx(curve(worth[name]))
        assert both[name][order(spared[name])].tolist() == sorted(both[name], reverse=True)
        differing += not np.array_equal(order(both[name]), order(worth[name]))
    assert differing


class Attention(nn.Module):
    """One head: no weight reads the units of its queries and keys."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v, self.head = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unsqueeze(1) for layer in (self.q, self.k, self.v))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).squeeze(1)
        return self.head(mixed).mean(1)


def test_fisher_obs_of_units_that_no_weight_reads() -> None:
    graph = trace(Attention().eval(), torch.randn(1, 3, 4))
    generator = torch.Generator().manual_seed(1)
    data = [(torch.randn(8, 3, 4, generator=generator), torch.arange(8) % 4) for _ in range(2)]
    context = context_for(graph, "fisher_obs", data)
    both, worth = scores(graph, "fisher_obs", context), scores(graph, "fisher", context)
    assert set(both) == {"q:out", "v:out"}
    assert np.array_equal(both["q:out"], worth["q:out"])
    assert both["q:out"].min() > 0


def test_fisher_obs_falls_back_where_no_reader_can_be_unfolded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateurs.importance.probes.WIDEST", 40)
    graph = trace(randomised(), torch.randn(2, 3, 8, 8))
    context = context_for(graph, "fisher_obs", batches())
    assert context.statistics is not None
    held = {len(moments.gram) for moments in context.statistics.moments.values()}
    assert held
    assert max(held) <= 40
    both, worth = scores(graph, "fisher_obs", context), scores(graph, "fisher", context)
    lacking = []
    for group in graph.groups:
        if not readers_if_any(graph, group.name, context, "fisher_obs", weighted=True):
            lacking.append(group.name)
            assert np.array_equal(both[group.name], worth[group.name])
    assert lacking
    with pytest.raises(PlanError, match="that reads group"):
        scores(graph, "obs", context)


def test_scores_that_no_sum_can_be_made_of_are_refused() -> None:
    graph = trace(randomised(), torch.randn(2, 3, 8, 8))
    with pytest.raises(PlanError, match="at least 0"):
        scores(graph, lambda graph, group, context: -np.ones(graph.groups[graph.group_index(group)].units))
    with pytest.raises(PlanError, match="must return"):
        scores(graph, lambda graph, group, context: np.array(["many"]))
    weights = torch.ones(64, requires_grad=True)
    found = scores(graph, lambda g, name, context: weights[: g.groups[g.group_index(name)].units])
    assert all((values == 1).all() for values in found.values())
    assert np.isnan(layer_adaptive(np.array([1.0, np.nan, 2.0]))).all()
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(silent), "say", lambda self, message: said.append(message))
        scores(graph, lambda g, name, context: np.zeros(g.groups[g.group_index(name)].units))
    assert any("every unit 0" in line for line in said)


class Functional(nn.Module):
    """Its hidden units are made outside of modules."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.head = nn.Parameter(torch.rand(8, 147) - 0.5), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(nn.functional.linear(x.flatten(1), self.w)))


@pytest.mark.parametrize("criterion", ["fisher", "taylor", "taylor_bn"])
def test_units_made_outside_of_modules_are_named(criterion: str) -> None:
    graph = trace(Functional(), torch.randn(2, 3, 7, 7))
    with pytest.raises(PlanError, match="none produces the units of group"):
        scores(graph, criterion, context_for(graph, criterion, batches()))


@pytest.mark.parametrize(
    ("model", "shape", "expected"),
    [
        (Functional(), (2, 3, 7, 7), "splamp"),
        (
            nn.Sequential(nn.Conv2d(3, 6, 3), nn.ConvTranspose2d(6, 8, 2), nn.Flatten(), nn.Linear(288, 4)),
            (2, 3, 7, 7),
            "splamp",
        ),
        (randomised(), (2, 3, 8, 8), "measured"),
    ],
)
def test_the_default_is_one_that_can_score_the_network(model: nn.Module, shape: tuple[int, ...], expected: str) -> None:
    graph = trace(model.eval(), torch.randn(shape))
    data = [(torch.randn(4, *shape[1:]), torch.arange(4))]
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(silent), "say", lambda self, message: said.append(message))
        chosen = default_criterion(data, graph, silent)
    assert chosen == expected
    assert bool(said) == (expected != "measured")
    assert set(scores(graph, chosen, context_for(graph, chosen, data))) == {group.name for group in graph.groups}
    assert default_criterion(None, graph, silent) == "splamp"


def test_the_default_does_not_measure_for_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = trace(randomised().eval(), torch.randn(2, 3, 8, 8))
    data = [(torch.randn(4, 3, 8, 8), torch.arange(4))]
    said: list[str] = []
    monkeypatch.setattr(type(silent), "say", lambda self, message: said.append(message))
    monkeypatch.setattr(secateurs.importance.scoring, "MOST_WORK", work(graph) / 1.9)
    assert default_criterion(data, graph, silent) == "fisher_obs"
    assert "28 minutes" in said[0]
    assert "--criterion measured" in said[0]
    assert default_criterion(data, graph, silent, order_only=True) == "fisher_obs"
    assert len(said) == 1
    monkeypatch.setattr(secateurs.importance.scoring, "MOST_WORK", work(graph))
    assert default_criterion(data, graph, silent) == "measured"
