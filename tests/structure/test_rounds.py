"""Plans of several rounds as one plan for the dense network."""

from __future__ import annotations

import pytest
import torch
from networks import ResNet, image, plan_of
from torch import nn
from traits import load_all

from secateurs.errors import PlanError, PlanMismatchError
from secateurs.plan import ElementPattern, Plan
from secateurs.structure import apply, trace
from secateurs.testing.structure import call_with, random_cut, redrawn, tensors

TRAITS = load_all()
VARIED = (
    "residual_projection", "padded_shortcut", "grouped_residual", "recurrent_lstm", "dict_input",
    "weight_norm_old", "weight_norm", "squeeze_excite", "dense_concat", "inverted_residual",
    "flatten_channels_last",
)  # fmt: skip


def same(one: nn.Module, two: nn.Module, example: object) -> bool:
    """Weights and buffers, and outputs, bit for bit."""
    ours, theirs = one.state_dict(), two.state_dict()
    with torch.no_grad():
        outputs = zip(tensors(call_with(one, example)), tensors(call_with(two, example)), strict=True)
        return (
            ours.keys() == theirs.keys()
            and all(torch.equal(ours[name], theirs[name]) for name in ours)
            and all(torch.equal(a, b) for a, b in outputs)
        )


def rounds(model: nn.Module, example: object, count: int = 2, **options: object) -> tuple[list[Plan], nn.Module]:
    """Random plans, each made for what the one before left, and the last network."""
    plans: list[Plan] = []
    for seed in range(count):
        graph = trace(model, example)
        plans.append(graph.plan(random_cut(graph, 0.25, seed), **(options if seed == 0 else {})))
        model = apply(model, plans[-1], example)
    return plans, model


@pytest.mark.parametrize("name", VARIED)
def test_two_rounds_are_one_plan_bit_for_bit(name: str) -> None:
    torch.manual_seed(0)
    dense, example = redrawn(TRAITS[name].build(), 1).float().eval(), TRAITS[name].example()
    (first, second), small = rounds(dense, example)
    both = first.then(second)
    assert both.fingerprint == first.fingerprint
    assert same(apply(dense, both, example), small, example)
    assert Plan.from_json(both.to_json()) == both
    assert {n: len(k) for n, k in second.groups.items()} == {n: both.widths()[n] for n in second.groups}


def test_three_rounds_with_blocks_removed_are_one_plan() -> None:
    torch.manual_seed(0)
    dense, example = redrawn(ResNet(), 1).float().eval(), image()
    blocks = [block.name for block in trace(dense, example).removable_blocks]
    plans, small = rounds(dense, example, 3, blocks_removed=blocks[-1:])
    last = trace(small, example)
    assert blocks[0] in [block.name for block in last.removable_blocks]
    plans.append(last.plan({}, blocks_removed=blocks[:1]))
    small = apply(small, plans[-1], example)
    whole = plans[0].then(plans[1]).then(plans[2]).then(plans[3])
    assert whole == plans[0].then(plans[1].then(plans[2]).then(plans[3]))
    assert whole.blocks_removed == (blocks[-1], blocks[0])
    assert len(whole.provenance["rounds"]) == 4
    assert same(apply(dense, whole, example), small, example)


@pytest.mark.parametrize("name", ["padded_shortcut", pytest.param("einsum_attention", marks=pytest.mark.long)])
def test_rounds_that_rebuild_the_network_are_one_plan(name: str) -> None:
    torch.manual_seed(0)
    dense, example = redrawn(TRAITS[name].build(), 1).float().eval(), TRAITS[name].example()
    (first, second), small = rounds(dense, example)
    assert first.rebuild is not None
    both = first.then(second)
    assert both.rebuild == first.rebuild
    assert same(apply(dense, both, example), small, example)


class Attention(nn.Module):
    """Four heads with an implicit scale."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.q, self.k, self.v = nn.Linear(6, 16), *(nn.Linear(16, 24) for _ in range(3))
        self.out, self.heads = nn.Linear(24, 5), 4

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inp(x)
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def test_scales_of_both_rounds_are_rounded_one_after_the_other() -> None:
    torch.manual_seed(0)
    dense, example = redrawn(Attention(), 1).float().eval(), torch.randn(2, 7, 6)
    plans, model = [], dense
    for _ in range(2):
        graph = trace(model, example, grid="columns")
        plans.append(graph.plan(random_cut(graph, 0.2, 0)))
        model = apply(model, plans[-1], example)
    first, second = plans
    assert first.scales
    assert second.scales
    both = first.then(second)
    assert same(apply(dense, both, example), model, example)
    with pytest.raises(PlanError, match="scales rows of"):
        first.model_copy(update={"rebuild": "it does not run"}).then(second)


def test_a_second_round_in_other_units_is_refused_and_the_advice_helps() -> None:
    torch.manual_seed(0)
    dense, example = redrawn(Attention(), 1).float().eval(), torch.randn(2, 7, 6)
    first = trace(dense, example, grid="rows").plan({"q:out": [0, 1, 3]})
    small = apply(dense, first, example)
    second = trace(small, example, grid="columns").plan({"q:out": [0, 2]})
    with pytest.raises(PlanMismatchError, match=r"q:out in \d units.*grid='rows'"):
        first.then(second)
    second = trace(small, example, grid="rows").plan({"q:out": [0, 2]})
    both = first.then(second)
    assert both.groups["q:out"] == (0, 3)
    assert same(apply(dense, both, example), apply(small, second, example), example)


def test_plans_that_do_not_follow_each_other_are_refused() -> None:
    torch.manual_seed(0)
    dense, example = redrawn(ResNet(), 1).float().eval(), image()
    graph = trace(dense, example)
    plan = plan_of(graph)
    with pytest.raises(PlanMismatchError, match=r"is \[\d+.*\] after the first and \[\d+.*\] in the second"):
        plan.then(plan)
    small = apply(dense, plan, example)
    small.extra = nn.Linear(2, 2)
    with pytest.raises(PlanMismatchError, match=r"extra.weight is not there after the first"):
        plan.then(trace(small, example).plan({}))


@pytest.mark.parametrize(
    "scopes",
    [
        ("layer", "filter"),
        ("block", "block"),
        pytest.param(("filter", "in_channel"), marks=pytest.mark.long),
        pytest.param(("kernel", ""), marks=pytest.mark.long),
    ],
)
def test_kernel_elements_of_both_rounds(scopes: tuple[str, str]) -> None:
    torch.manual_seed(0)
    dense, example = redrawn(ResNet(), 1).float().eval(), image()
    name = next(n for n, p in dense.named_parameters() if p.dim() == 4 and p.shape[2] == 3 and p.shape[1] > 3)
    plans, model = [], dense
    for number, scope in enumerate(scopes):
        graph = trace(model, example)
        plan = graph.plan(random_cut(graph, 0.25, number))
        filters, channels = (
            len(plan.slices[name].get(d, range(s))) for d, s in enumerate(model.state_dict()[name].shape[:2])
        )
        if scope:
            plan = plan.model_copy(update={"elements": {name: pattern(scope, filters, channels, number)}})
        plans.append(plan)
        model = apply(model, plan, example)
    both = plans[0].then(plans[1])
    assert same(apply(dense, both, example), model, example)
    assert int((model.state_dict()[name] == 0).sum()) > 0


def pattern(scope: str, filters: int, channels: int, seed: int) -> ElementPattern:
    """Six of nine positions at random per unit; blocks of two filters in an order of their own."""
    generator = torch.Generator().manual_seed(seed)
    units = {"layer": 1, "filter": filters, "in_channel": channels, "kernel": filters * channels}
    count = units.get(scope, -(-filters // 2) * channels)
    kept = tuple(tuple(sorted(torch.randperm(9, generator=generator)[:6].tolist())) for _ in range(count))
    order = tuple(torch.randperm(filters, generator=generator).tolist()) if scope == "block" else ()
    return ElementPattern(scope=scope, block=2 if scope == "block" else 1, pattern=kept, order=order)
