from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from secateurs.elements.alignment import align, order_filters, retained
from secateurs.elements.metrics import energy_weighted, gradient_products, input_energies, magnitude
from secateurs.elements.patterns import (
    SCOPES,
    PatternChoice,
    choose,
    from_pattern,
    library,
    project,
    to_pattern,
    unit_of,
    value_curve,
)
from secateurs.elements.rectangles import best_rectangle, crop, crop_network
from secateurs.elements.reference import compact_im2col, masked, shift_gemm, sub_kernel
from secateurs.errors import PlanError, PlanMismatchError, StructureError


def squared_distance(weight: Tensor, choice: PatternChoice, groups: int) -> float:
    """Smallest distance to the constraint set over all supports of every unit, by exhaustion."""
    unit = unit_of(tuple(weight.shape), choice, groups)
    total = 0.0
    for u in range(int(unit.max()) + 1):
        energy = weight.double().square().flatten(2)[unit == u].sum(0)
        whole = float(energy.sum())
        total += min(whole - float(energy[list(s)].sum()) for s in itertools.combinations(range(9), int(choice.keep)))
    return total


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("groups", [1, 2])
def test_projection_is_the_nearest_point_and_idempotent(scope: str, groups: int) -> None:
    weight = torch.randn(12, 4, 3, 3)
    choice = PatternChoice(scope=scope, keep=4, block=8, pool="unit")
    nearest = project(weight, choice, groups=groups)
    distance = float((weight.double() - nearest.double()).square().sum())
    assert distance == pytest.approx(squared_distance(weight, choice, groups), rel=1e-9)
    assert torch.equal(project(nearest, choice, groups=groups), nearest)


@pytest.mark.parametrize("scope", SCOPES)
def test_every_unit_keeps_exactly_what_was_asked(scope: str) -> None:
    for keep in (0, 1, 9):
        kept = choose(torch.rand(20, 6, 3, 3), PatternChoice(scope=scope, keep=keep, block=8, pool="unit"))
        assert (kept.flatten(2).sum(2) == keep).all()


@pytest.mark.parametrize(("pool", "keep"), [("block", 2.5), ("layer", 3.25), ("block", 4)])
def test_pools_keep_the_count_on_average_and_more_of_the_score(pool: str, keep: float) -> None:
    score = torch.rand(64, 16, 3, 3) ** 4
    kept = choose(score, PatternChoice(keep=keep, block=32, pool=pool))
    per_block = [int(kept[rows][0].sum()) for rows in (slice(0, 32), slice(32, 64))]
    assert sum(per_block) == round(keep * 32)
    if pool == "block":
        assert per_block == [round(keep * 16)] * 2
    strict = choose(score, PatternChoice(keep=int(keep), block=32, pool="unit"))
    assert (score * kept).sum() >= (score * strict).sum()


def test_whole_input_channels_may_vanish_for_a_block() -> None:
    score = torch.rand(32, 4, 3, 3)
    score[:, 2] *= 1e-6
    assert not choose(score, PatternChoice(keep=4)).flatten(2)[:, 2].any()


def test_hysteresis_protects_the_incumbent() -> None:
    score = torch.ones(8, 1, 3, 3)
    choice = PatternChoice(keep=4, block=8, pool="unit")
    incumbent = choose(torch.arange(9.0).view(1, 1, 3, 3).expand(8, 1, 3, 3), choice)
    challenged = torch.where(incumbent, score, score * 1.05)
    assert torch.equal(choose(challenged, choice, incumbent=incumbent, hysteresis=0.1), incumbent)
    stronger = torch.where(incumbent, score, score * 1.15)
    assert not torch.equal(choose(stronger, choice, incumbent=incumbent, hysteresis=0.1), incumbent)


def test_pattern_library_is_small_and_keeps_what_it_can() -> None:
    score = torch.rand(24, 8, 3, 3)
    choice = PatternChoice(scope="kernel", keep=4, pool="unit", library=6)
    kept = choose(score, choice).flatten(2).reshape(-1, 9)
    assert len(torch.unique(kept, dim=0)) <= 6
    assert (kept.sum(1) == 4).all()
    free = choose(score, PatternChoice(scope="kernel", keep=4, pool="unit")).flatten(2).reshape(-1, 9)
    flat = score.reshape(-1, 9)
    assert 0.85 < float((flat * kept).sum() / (flat * free).sum()) <= 1.0
    single = library(flat.double(), 4, 1)
    best = max(itertools.combinations(range(9), 4), key=lambda s: float(flat[:, list(s)].sum()))
    assert single[0].nonzero().flatten().tolist() == list(best)
    assert len(library(torch.rand(50, 49).double(), 20, 4)) == 4  # too many patterns to try them all


@pytest.mark.parametrize(
    "choice",
    [
        PatternChoice(keep=3, pool="unit", block=8),
        PatternChoice(keep=3, block=8),
        PatternChoice("kernel", 3, pool="layer"),
    ],
)
def test_value_curve_is_what_choosing_retains(choice: PatternChoice) -> None:
    score = torch.rand(16, 6, 3, 3)
    curve = value_curve(score, choice)
    assert curve[0] == 0
    assert curve[9] == pytest.approx(1)
    assert (np.diff(curve, 2) <= 1e-12).all()
    assert curve[3] == pytest.approx(float((score * choose(score, choice)).sum() / score.sum()), rel=1e-6)


@pytest.mark.parametrize("scope", SCOPES)
def test_patterns_survive_a_plan(scope: str) -> None:
    choice = PatternChoice(scope=scope, keep=4, block=16, pool="unit")
    kept = choose(torch.rand(24, 6, 3, 3), choice, groups=2)
    pattern = to_pattern(kept, choice, groups=2)
    assert torch.equal(
        from_pattern(type(pattern).model_validate_json(pattern.model_dump_json()), (24, 6, 3, 3), groups=2), kept
    )
    with pytest.raises(PlanError, match="does not fit"):
        from_pattern(pattern, (24, 6, 1, 1), groups=2)
    if scope not in ("layer", "in_channel"):
        with pytest.raises(PlanError, match="does not fit"):
            from_pattern(pattern, (50, 6, 3, 3), groups=1)
    if scope != "kernel":
        with pytest.raises(PlanError, match="differs within"):
            to_pattern(torch.rand(24, 6, 3, 3) < 0.5, choice, groups=2)


@pytest.mark.parametrize(
    "bad",
    [
        {"scope": "row"},
        {"pool": "page"},
        {"scope": "filter"},
        {"keep": -1},
        {"keep": 2.5, "pool": "unit"},
        {"block": 12},
        {"library": 3},
    ],
)
def test_senseless_choices_are_refused(bad: dict) -> None:
    with pytest.raises(PlanError):
        PatternChoice(**bad)


def test_scores_must_fit() -> None:
    with pytest.raises(PlanError, match="more than the 9"):
        choose(torch.rand(8, 2, 3, 3), PatternChoice(keep=10))
    with pytest.raises(PlanError, match="not finite"):
        choose(torch.full((8, 2, 3, 3), float("nan")), PatternChoice())
    with pytest.raises(PlanError, match="convolution"):
        choose(torch.rand(8, 2), PatternChoice())


# --- metrics


def test_metrics() -> None:
    weight = torch.randn(4, 3, 3, 3)
    gains = torch.tensor([1.0, 2.0, 0.5, 1.0])
    torch.testing.assert_close(magnitude(weight, gains=gains)[1], (2 * weight[1]).double().square())
    torch.testing.assert_close(magnitude(weight, power=1.0), weight.double().abs())
    energy = torch.tensor([1.0, 0.0, 4.0])
    torch.testing.assert_close(energy_weighted(weight, energy)[:, 2], 4 * weight[:, 2].double().square())
    assert not energy_weighted(weight, energy)[:, 1].any()
    grouped = energy_weighted(weight, torch.arange(6.0), groups=2)
    torch.testing.assert_close(grouped[2, 0], 3 * weight[2, 0].double().square())
    with pytest.raises(PlanError, match="one per input channel"):
        energy_weighted(weight, torch.ones(4))


def test_statistics_from_data() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.ReLU(), torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten())
    batches = [(torch.randn(2, 2, 6, 6), torch.tensor([0, 1])), (torch.randn(2, 2, 6, 6), torch.tensor([2, 3]))]
    energies = input_energies(model, ["0", "2"], batches)
    whole = torch.cat([x for x, _ in batches]).double()
    torch.testing.assert_close(energies["0"], whole.square().mean((0, 2, 3)))
    assert energies["2"].shape == (3,)
    products = gradient_products(model, ["2.weight"], batches)
    assert products["2.weight"].shape == (4, 3, 3, 3)
    assert float(products["2.weight"].sum()) > 0
    assert model.training
    assert all(p.grad is None for p in model.parameters())


# --- the three executions


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("dilation", [1, 2])
def test_executions_agree(stride: int, padding: int, dilation: int) -> None:
    x, weight = torch.randn(2, 5, 11, 9, dtype=torch.float64), torch.randn(7, 5, 3, 3, dtype=torch.float64)
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    for scope in ("filter", "in_channel", "layer", "kernel"):
        kept = choose(torch.rand(7, 5, 3, 3), PatternChoice(scope=scope, keep=4, pool="unit"))
        expected = masked(x, weight, kept, **options)
        torch.testing.assert_close(shift_gemm(x, weight, kept, **options), expected)
        torch.testing.assert_close(compact_im2col(x, weight, kept, **options), expected)
    for rows, columns in ((slice(0, 2), slice(1, 3)), (slice(1, 2), slice(0, 3)), (slice(2, 3), slice(2, 3))):
        kept = torch.zeros(7, 5, 3, 3, dtype=torch.bool)
        kept[:, :, rows, columns] = True
        expected = masked(x, weight, kept, **options)
        torch.testing.assert_close(sub_kernel(x, weight, rows, columns, **options), expected)
        conv = torch.nn.Conv2d(5, 7, 3, bias=False, dtype=torch.float64, **options)
        conv.weight.data.copy_(weight)
        torch.testing.assert_close(crop(conv, rows, columns)(x), expected)


def test_rectangles() -> None:
    score = torch.zeros(1, 1, 3, 3)
    score[..., 1, :] = torch.tensor([1.0, 5.0, 2.0])
    score[..., 2, 1] = 1.5
    assert best_rectangle(score, 3) == (slice(1, 2), slice(0, 3))
    assert best_rectangle(score, 2) == (slice(1, 2), slice(1, 3))
    assert best_rectangle(score, 1) == (slice(1, 2), slice(1, 2))
    with pytest.raises(PlanError):
        best_rectangle(score, 0)
    model = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3, padding=1), torch.nn.ReLU())
    small = crop_network(model, {"0": (slice(0, 3), slice(1, 2))})
    assert isinstance(small[0], torch.nn.Conv2d)  # the padding stays even
    assert small[0].padding == (1, 0)
    assert model[0].weight.shape == (3, 2, 3, 3)
    with pytest.raises(StructureError, match="not a Conv1d or Conv2d"):
        crop_network(model, {"1": (slice(0, 1), slice(0, 1))})
    with pytest.raises(StructureError, match="do not lie"):
        crop(model[0], slice(0, 4), slice(0, 1))
    with pytest.raises(StructureError, match="cannot be cropped"):
        crop(torch.nn.Conv2d(2, 3, 3, padding="same"), slice(0, 1), slice(0, 1))


# --- order of filters


def test_ordering_brings_like_patterns_together() -> None:
    score = torch.rand(64, 8, 3, 3) * 0.05
    left = torch.randperm(64) < 32
    score[left, :, :, 0] += 1.0
    score[~left, :, :, 2] += 1.0
    choice = PatternChoice(keep=3, block=8, pool="unit")
    order = order_filters(score, choice, trials=200)
    assert sorted(order.tolist()) == list(range(64))
    assert retained(score, range(64), choice) < 0.8
    assert retained(score, order, choice) > 0.9
    assert np.array_equal(order, order_filters(score, choice, trials=200))
    assert np.array_equal(order_filters(score[:8], choice), np.arange(8))
    with pytest.raises(PlanError, match="scope"):
        order_filters(score, PatternChoice("filter", 3, pool="unit"))


def test_alignment_changes_no_result_and_keeps_more() -> None:
    from secateurs.models.cifar_resnet import CifarResNet
    from secateurs.structure import trace

    model = CifarResNet(8).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1.5)
    x = torch.randn(2, 3, 32, 32)
    graph = trace(model, x)
    choices = {
        n: PatternChoice(keep=3, block=8) for n, p in model.named_parameters() if p.dim() == 4 and p.shape[0] > 8
    }
    ordered, orders = align(graph, choices)
    assert orders["conv1.weight"] == orders["layer1.0.conv2.weight"]  # of one residual stream
    assert all(sorted(order) == list(range(len(order))) and np.diff(order).min() < 0 for order in orders.values())
    torch.testing.assert_close(ordered(x), model(x), rtol=1e-4, atol=1e-5)
    before, after = (
        sum(float(project(p.detach(), choices[n]).square().sum()) for n, p in m.named_parameters() if n in choices)
        for m in (model, ordered)
    )
    assert after > before


class Shuffling(torch.nn.Module):
    """A chain, a residual stream, a concatenation, and channels that change places."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = (torch.nn.Conv2d(c, 16, 3, padding=1) for c in (3, 16, 16))
        self.side, self.last = torch.nn.Conv2d(16, 16, 3, padding=1), torch.nn.Conv2d(32, 24, 3)
        self.point, self.head = torch.nn.Conv2d(24, 24, 1), torch.nn.Linear(24, 5)
        self.grouped = torch.nn.Conv2d(24, 24, 3, groups=3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        x = (x + self.two(self.one(x).relu())).relu()
        x = torch.cat([self.side(x), x.roll(3, 1)], 1)
        return self.head(self.grouped(self.point(self.last(x).relu())).mean((2, 3)))


def test_orders_are_kept_in_plans_and_folded_where_the_network_is_deployed() -> None:
    from secateurs.elements.packing import pack
    from secateurs.elements.rectangles import deployable
    from secateurs.elements.selection import patterns
    from secateurs.plan import Plan
    from secateurs.planning.elements.refinement import aligned
    from secateurs.structure import apply, trace
    from secateurs.structure.kernel_elements import masks_of

    torch.manual_seed(2)
    model, x = Shuffling().eval(), torch.randn(1, 3, 8, 8)
    graph = trace(model, x)
    counts = {f"{name}.weight": 2.5 for name in ("one", "two", "side", "last", "grouped")}
    first = next(g.name for g in graph.groups if "one.weight" in {v.parameter for v in graph.views(g.name)})
    bare = graph.plan({first: tuple(range(1, 16))})
    narrow = apply(model, bare)
    plain = bare.model_copy(update={"elements": patterns(narrow, counts, block=8)})
    plan = aligned(model, plain, x)
    plan = Plan.from_json(plan.to_json())
    ordered = {name for name, pattern in plan.elements.items() if pattern.order}
    assert {"one.weight", "last.weight"} <= ordered
    assert "grouped.weight" not in ordered
    weights = dict(narrow.named_parameters())
    before, after = masks_of(narrow, plain.elements), masks_of(narrow, plan.elements)
    for name in ordered:
        energy = weights[name].detach().square()
        # What stays is not less, and no more elements do.
        assert float(energy[after[name]].sum()) > float(energy[before[name]].sum())
        assert int(after[name].sum()) == int(before[name].sum())
    small = apply(model, plan)
    deployed = deployable(small, plan, x, skips=True)
    inputs = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(deployed(inputs), small(inputs), rtol=1e-4, atol=1e-5)
    for name in ordered:
        wanted = float(after[name].double().mean())
        weight = deployed.get_submodule(name.removesuffix(".weight")).weight
        assert pack(weight, block=8).density == pytest.approx(wanted, rel=0.02)
        assert pack(weights[name] * after[name], block=8).density > 1.2 * wanted  # as they stand, blocks share little
    assert aligned(model, plan, x) == plan
    with pytest.raises(PlanError, match="Give an example"):
        deployable(small, plan)
    damaged = plan.elements["one.weight"].model_copy(update={"order": (0, *plan.elements["one.weight"].order[1:])})
    with pytest.raises(PlanMismatchError, match="orders 16 filters"):
        apply(model, plan.model_copy(update={"elements": {"one.weight": damaged}}))
