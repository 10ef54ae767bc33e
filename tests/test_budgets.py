"""Budgets as text, and the cost models behind them against the network itself."""

from __future__ import annotations

import numpy as np
import pytest

import secateurs as sc
from secateurs.budgets import AccuracyBound, Budget, describe_budgets, parse_budgets
from secateurs.errors import PlanError
from secateurs.models import load
from secateurs.resources import Seen, macs_model, memory_model, size_model

DENSE, FLOAT_RATIO = 1000.0, 2.5


@pytest.mark.parametrize(
    ("text", "resource", "limit", "shown"),
    [
        ("60%", "latency", 600.0, "60%"),
        ("3.2ms", "latency", 3.2, "3.2ms"),
        ("2x", "latency", 500.0, "2x"),
        (0.25, "macs", 250.0, "25%"),
        ("20MB", "memory", 20e6, "20MB"),
        ("1.5 GB", "memory", 1.5e9, "1.5GB"),
        ("512KiB", "file_size", 524288.0, "524.288kB"),
        ("800B", "file_size", 800.0, "800B"),
        ("300M", "macs", 300e6, "300M"),
        ("1.2G", "macs", 1.2e9, "1.2G"),
        ("50%", "macs", 500.0, "50%"),
        ("20%-of-float", "latency", 500.0, "20%-of-float"),
        ("5x-of-float", "latency", 500.0, "5x-of-float"),
    ],
)
def test_budgets_are_read_and_shown(text: str | float, resource: str, limit: float, shown: str) -> None:
    budget = Budget.parse(text, resource)
    assert budget.limit(DENSE, FLOAT_RATIO) == pytest.approx(limit)
    assert budget.ratio(DENSE, FLOAT_RATIO) == pytest.approx(limit / DENSE)
    assert str(budget) == shown
    assert Budget.parse(shown, resource) == budget


@pytest.mark.parametrize(
    ("text", "resource", "match"),
    [
        ("20MB", "latency", "Latency budget '20MB' is not understood.*3.2ms"),
        ("3ms", "memory", "Memory budget '3ms' is not understood.*20MB"),
        ("20", "memory", "has no unit"),
        ("-1M", "macs", "above zero"),
        ("120%", "file_size", "File size budget '120%' is not below"),
        ("1x", "macs", "above 1x"),
        ("nanMB", "memory", "not understood"),
        ("3ms-of-float", "latency", "-of-float stands behind a share"),
        ("20%-of-float", "macs", "-of-float stands behind a share"),
        ("100%-of-float", "latency", "is not below what the dense network takes"),
    ],
)
def test_nonsense_is_refused(text: str, resource: str, match: str) -> None:
    with pytest.raises(sc.PlanError, match=match):
        Budget.parse(text, resource)


def test_several_budgets_keep_their_order() -> None:
    budgets = parse_budgets("60%", macs="50%", file_size="10MB")
    assert [budget.resource for budget in budgets] == ["latency", "file_size", "macs"]
    assert describe_budgets(budgets) == "latency 60%, file size 10MB, macs 50%"
    assert describe_budgets(budgets[:1]) == "60%"
    assert describe_budgets(budgets[2:]) == "macs 50%"


@pytest.fixture(scope="module")
def graph() -> sc.Graph:
    loaded = load("mobilenet-v1?width=0.25&size=64", seed=0)
    return sc.trace(loaded.module, loaded.example())


def test_models_equal_the_network(graph: sc.Graph) -> None:
    spec, generator = graph.spec, np.random.default_rng(0)
    macs, size = macs_model(spec), size_model(spec)
    for _ in range(20):
        widths = generator.integers(spec.min_widths, spec.dense_widths + 1)
        assert float(macs.evaluate(widths)) == spec.macs(widths)
        assert float(size.evaluate(widths)) == 4 * spec.parameter_count(widths)
    dense = spec.dense_widths
    assert float(size_model(spec, 5e6).evaluate(dense)) == pytest.approx(5e6)


def test_models_know_removed_blocks() -> None:
    loaded = load("digits-resnet", seed=0)
    graph = sc.trace(loaded.module, loaded.example())
    spec, gone = graph.spec, frozenset([0])
    assert float(macs_model(spec).evaluate(spec.dense_widths, gone)) == spec.macs(spec.dense_widths, gone)
    assert float(size_model(spec).evaluate(spec.dense_widths, gone)) == 4 * spec.parameter_count(
        spec.dense_widths, gone
    )


def test_memory_is_weights_and_the_largest_activations(graph: sc.Graph) -> None:
    spec, dense = graph.spec, graph.spec.dense_widths
    weights = 4 * spec.parameter_count(dense)
    largest = max(
        4
        * (
            int(np.prod(layer.input_hw or (1,))) * int(layer.inputs.length(dense))
            + layer.positions * int(layer.outputs.length(dense))
        )
        for layer in spec.layers
    )
    one = float(memory_model(spec).evaluate(dense))
    assert weights + largest <= one <= weights + 1.6 * largest
    batch = float(memory_model(spec, batch=8).evaluate(dense))
    assert weights + 8 * largest <= batch <= weights + 8 * 1.6 * largest


def test_memory_follows_what_was_measured(graph: sc.Graph) -> None:
    spec, bare = graph.spec, memory_model(graph.spec)
    seen = [
        Seen(widths, frozenset(), 17e6 + 2.8 * float(bare.evaluate(widths)))
        for widths in (spec.dense_widths, spec.min_widths)
    ]
    model, half = memory_model(spec, 1, seen), np.maximum(spec.min_widths, spec.dense_widths // 2)
    assert model.offset == pytest.approx(17e6, rel=1e-6)
    assert float(model.evaluate(half)) == pytest.approx(17e6 + 2.8 * float(bare.evaluate(half)), rel=1e-6)


def test_plan_needs_no_latency_model_for_other_budgets(graph: sc.Graph) -> None:
    made = sc.plan(graph, macs="40%", file_size="60%", criterion="l2", legal=sc.Legal(min_width=2))
    assert made.provenance["budget"] == "file size 60%, macs 40%"
    widths = np.array([len(made.groups[group.name]) for group in graph.groups])
    spec = graph.spec
    assert spec.macs(widths) <= 0.4 * spec.macs(spec.dense_widths)
    assert spec.parameter_count(widths) <= 0.6 * spec.parameter_count(spec.dense_widths)
    assert min(widths) >= 2
    assert made.provenance["predicted"]["macs"] == spec.macs(widths)
    assert made.provenance["predicted_ms"] is None


def test_pinned_groups_and_the_least_that_can_be_reached(graph: sc.Graph) -> None:
    names = [group.name for group in graph.groups]
    made = sc.plan(graph, macs="50%", criterion="l2", legal=sc.Legal(pinned=(names[-1],)))
    assert len(made.groups[names[-1]]) == graph.groups[-1].units
    with pytest.raises(
        sc.InfeasibleBudgetError, match=r"smallest legal network, .* multiply-adds.*minimum width"
    ) as caught:
        sc.plan(graph, macs="10%", criterion="l2", legal=sc.Legal(pinned=tuple(names[-4:])))
    assert caught.value.details["constraint"] == "macs"
    assert caught.value.exit_code == 3
    with pytest.raises(sc.PlanError, match="not a group"):
        sc.plan(graph, macs="50%", criterion="l2", legal=sc.Legal(pinned=("nothing",)))


def test_plan_says_what_goes_with_what(graph: sc.Graph) -> None:
    with pytest.raises(sc.PlanError, match="needs a latency model"):
        sc.plan(graph, latency="60%", criterion="l2")
    with pytest.raises(sc.PlanError, match="either budgets"):
        sc.plan(graph)
    with pytest.raises(sc.PlanError, match="either budgets"):
        sc.plan(graph, macs="50%", keep=0.5)


def test_a_budget_above_the_dense_network_is_told(graph: sc.Graph) -> None:
    with pytest.raises(sc.PlanError, match=r"macs 1000G.* nothing to prune. Give a lower --macs"):
        sc.plan(graph, macs="1000G", criterion="l2")
    loose = sc.plan(graph, macs="1000G", file_size="60%", criterion="l2")
    assert loose.groups


def test_barriers_and_kept_layers_hold(graph: sc.Graph) -> None:
    loaded = load("digits-resnet", seed=0)
    kept = sc.trace(loaded.module, loaded.example(), keep=["layer2.*.conv1"])
    made = sc.plan(kept, macs="60%", criterion="l2", legal=sc.Legal(blocks=False))
    small = sc.apply(loaded.module, made, loaded.example())
    before, after = dict(loaded.module.named_parameters()), dict(small.named_parameters())
    changed = [name for name in before if before[name].shape != after[name].shape]
    assert changed
    for name in before:
        if name.startswith("layer2.") and name.endswith("conv1.weight"):
            assert before[name].shape[0] == after[name].shape[0]


@pytest.mark.parametrize(
    ("given", "least"),
    [
        ((1.0, None), 0.89),
        ((2, None), 0.88),
        ((None, "88%"), 0.88),
        ((None, " 88.5 % "), 0.885),
        ((None, "0.9"), 0.9),
        ((None, 0.5), 0.5),
    ],
)
def test_how_much_accuracy_must_stay(given: tuple[float | None, str | float | None], least: float) -> None:
    bound = AccuracyBound.parse(*given)
    assert bound is not None
    assert bound.least(0.9) == pytest.approx(least)


@pytest.mark.parametrize("points", [0, -1.0, 100, float("nan"), float("inf"), True, "1"])
def test_a_loss_that_is_none_is_refused(points: float) -> None:
    with pytest.raises(PlanError, match=r"--max-loss is .* above 0 and below 100"):
        AccuracyBound.parse(points, None)


@pytest.mark.parametrize("share", ["88", "0%", "-3%", "101%", "nan", "1e-400", "high", "", True, float("nan")])
def test_a_share_that_is_none_is_refused(share: str | float) -> None:
    with pytest.raises(PlanError, match=r"--min-accuracy .* Give a share of the images such as 88% or 0.88"):
        AccuracyBound.parse(None, share)


def test_a_bound_that_dense_does_not_keep_is_refused() -> None:
    assert AccuracyBound(min_accuracy=0.9).least(0.9) == 0.9
    with pytest.raises(PlanError, match=r"--min-accuracy 90% is above what the dense network has .*, 89.12%"):
        AccuracyBound(min_accuracy=0.9).least(0.8912)
    with pytest.raises(PlanError, match=r"--max-loss 90 is no less than all .*, 89%"):
        AccuracyBound(max_loss=90).least(0.89)


def test_one_bound_at_most_and_in_words() -> None:
    assert AccuracyBound.parse(None, None) is None
    with pytest.raises(PlanError, match="Give one of them"):
        AccuracyBound.parse(1.0, "88%")
    assert str(AccuracyBound(max_loss=1.0)) == "accuracy loss ≤ 1 point"
    assert str(AccuracyBound(max_loss=0.5)) == "accuracy loss ≤ 0.5 points"
    assert str(AccuracyBound(min_accuracy=0.88)) == "accuracy ≥ 88%"
