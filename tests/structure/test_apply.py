"""Laws of plans and of ``apply``."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from networks import PaddedResidual, Residual, ResNet, close, image, plan_of
from torch import nn
from traits import load_all

from secateurs.errors import PlanError, PlanMismatchError, StructureError
from secateurs.plan import Plan
from secateurs.structure import apply, check_plan, trace
from secateurs.structure.inspection import inspect
from secateurs.structure.scratch import mask_removed
from secateurs.testing.structure import call_with, judge, random_cut, redrawn, tensors

TRAITS = load_all()
VARIED = (
    "residual_projection",
    "padded_shortcut",
    "shuffle_unit",
    "transformer_fused",
    "grouped_residual",
    "recurrent_lstm",
    "dict_input",
)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return redrawn(ResNet(), 1).float()


@pytest.mark.parametrize("name", VARIED)
def test_empty_plan_is_the_identity_bit_for_bit(name: str) -> None:
    torch.manual_seed(0)
    dense, example = TRAITS[name].build().eval(), TRAITS[name].example()
    small = apply(dense, trace(dense, example).plan({}), example)
    with torch.no_grad():
        ours, theirs = tensors(call_with(small, example)), tensors(call_with(dense, example))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("name", VARIED)
def test_plan_survives_json_and_cuts_the_same(name: str) -> None:
    torch.manual_seed(0)
    dense, example = TRAITS[name].build().eval(), TRAITS[name].example()
    plan = plan_of(trace(dense, example))
    again = Plan.from_json(plan.to_json())
    assert again == plan
    small, other = apply(dense, plan, example).state_dict(), apply(dense, again).state_dict()
    assert small.keys() == other.keys()
    assert all(torch.equal(small[key], other[key]) for key in small)


def test_random_cut_of_a_resnet_equals_the_dense_net_without_the_removed_units(model: nn.Module) -> None:
    graph = trace(model, image())
    assert max(judge(model, plan_of(graph, share, seed), image()) for share in (0.2, 0.9) for seed in (0, 1)) <= 1e-12


def test_the_network_itself_is_untouched(model: nn.Module) -> None:
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.train().modules()]
    graph = trace(model, image())
    apply(model, plan_of(graph), image())
    assert [module.training for module in model.modules()] == modes
    assert model.stem[0].out_channels == 16
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_users_class_and_names_stay(model: nn.Module) -> None:
    small = apply(model, plan_of(trace(model, image())), image())
    assert type(small) is ResNet
    assert list(small.state_dict()) == list(model.state_dict())
    assert small.stem[0].out_channels == small.stem[0].weight.shape[0] == small.stem[1].num_features == 10
    assert sum(p.numel() for p in small.parameters()) < 0.5 * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    "name", ["residual_projection", "padded_shortcut", "transformer_fused", "separate_projections"]
)
def test_small_trains_and_takes_other_batch_sizes(name: str) -> None:
    torch.manual_seed(0)
    dense, example = TRAITS[name].build().eval(), TRAITS[name].example()
    small = apply(dense, plan_of(trace(dense, example)), example)
    five = torch.cat([example, example, example])[:5]
    with torch.no_grad():
        assert close(small(five)[:2], small(example))
    small.train()
    small(five).pow(2).mean().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in small.parameters())
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    before = [p.detach().clone() for p in small.parameters()]
    optimizer.step()
    assert any(not torch.equal(a, b) for a, b in zip(before, small.parameters(), strict=True))


def test_training_mode_of_a_rebuilt_network_uses_batch_statistics() -> None:
    torch.manual_seed(0)
    dense, example = TRAITS["padded_shortcut"].build().eval(), image(4)
    small = apply(dense, plan_of(trace(dense, example)), example)
    assert hasattr(small, "secateurs_rebuilt")
    with torch.no_grad():
        quiet = small.eval()(example)
        loud = small.train()(example)
        assert not close(quiet, loud)
        assert not close(quiet, small.eval()(example))  # the running statistics moved


def test_plans_compose(model: nn.Module) -> None:
    once = apply(model, plan_of(trace(model, image()), 0.3), image())
    graph = trace(once, image())
    assert judge(once, plan_of(graph, 0.5, 2), image()) <= 1e-12
    twice = apply(once, plan_of(graph, 0.5, 2), image())
    assert twice.stem[0].out_channels == 6  # 16 → 11 → 6


def test_rebuilt_networks_can_be_pruned_again() -> None:
    torch.manual_seed(0)
    dense, example = TRAITS["padded_shortcut"].build().eval(), image()
    once = apply(dense, plan_of(trace(dense, example), 0.25), example)
    graph = trace(once, example)
    assert judge(once, plan_of(graph, 0.4, 1), example) <= 1e-12


def test_wrong_network_is_refused_with_the_first_difference(model: nn.Module) -> None:
    plan = plan_of(trace(model, image()))
    wider = ResNet()
    wider.blocks[0].conv1 = nn.Conv2d(16, 20, 3, 1, 1, bias=False)
    with pytest.raises(PlanMismatchError, match=r"blocks\.0\.conv1\.weight is \[16, 16, 3, 3\].*\[20, 16, 3, 3\]"):
        apply(wider, plan, image())
    with pytest.raises(PlanMismatchError, match="lacks"):
        apply(nn.Linear(2, 2), plan, image())
    more = ResNet()
    more.extra = nn.Linear(2, 2)
    with pytest.raises(PlanMismatchError, match="which the plan does not know"):
        apply(more, plan, image())


def test_a_plan_fits_other_weights_of_the_same_network(model: nn.Module) -> None:
    plan = plan_of(trace(model, image()))
    other = redrawn(ResNet(), 9).float()
    small = apply(other, plan)
    kept = list(plan.slices["stem.0.weight"][0])
    assert torch.equal(small.stem[0].weight, other.stem[0].weight[kept])


def test_unknown_groups_and_units_are_refused(model: nn.Module) -> None:
    graph = trace(model, image())
    with pytest.raises(PlanError, match="no group 'nowhere'"):
        graph.plan({"nowhere": [0]})
    name = graph.groups[0].name
    with pytest.raises(PlanError, match=r"0 to 15"):
        graph.plan({name: [16]})
    with pytest.raises(PlanError, match="at least 1"):
        graph.plan({name: []})
    with pytest.raises(PlanError, match="cannot be removed"):
        graph.plan({}, ["nowhere"])


def test_removed_names_every_lost_index(model: nn.Module) -> None:
    graph = trace(model, image())
    plan = plan_of(graph)
    small = apply(model, plan, image())
    for name, tensor in model.state_dict().items():
        lost = plan.removed().get(name, {})
        shape = [size - len(lost.get(dim, ())) for dim, size in enumerate(tensor.shape)]
        assert list(small.state_dict()[name].shape) == shape
        for dim, indices in lost.items():
            assert set(indices).isdisjoint(plan.slices[name][dim])


def test_damaged_plans_are_refused(model: nn.Module) -> None:
    plan = plan_of(trace(model, image()))
    kept = plan.slices["stem.0.weight"][0]
    swapped = {**plan.slices, "stem.0.weight": {0: (kept[1], kept[0], *kept[2:])}}
    with pytest.raises(PlanError, match=r"group stem\.0:out keeps other units than slices does of stem\.0\.weight"):
        apply(model, plan.model_copy(update={"slices": swapped}), image())
    unsorted = next(name for name, axes in plan.slices.items() if name.endswith(".weight") and len(axes.get(1, ())) > 1)
    backwards = {**plan.slices, unsorted: {**plan.slices[unsorted], 1: plan.slices[unsorted][1][::-1]}}
    with pytest.raises(PlanError, match="along dimension 1 does not ascend between"):
        apply(model, plan.model_copy(update={"slices": backwards}), image())
    others = tuple(i for i in range(16) if i not in kept) + kept
    others = tuple(sorted(others[: len(kept)]))
    moved: dict[str, Any] = {"slices": {**plan.slices, "stem.0.weight": {0: others}}}
    with pytest.raises(PlanError, match=r"group stem\.0:out keeps other units than slices does of stem\.0\.weight"):
        apply(model, plan.model_copy(update=moved), image())
    moved["groups"] = {**plan.groups, "stem.0:out": others}
    with pytest.raises(StructureError, match=r"computes something else.*stem"):
        apply(model, plan.model_copy(update=moved), image())
    shorter: dict[str, Any] = {"slices": {**plan.slices, "stem.0.weight": {0: kept[1:]}}}
    shorter["groups"] = {**plan.groups, "stem.0:out": kept[1:]}
    with pytest.raises(StructureError, match="does not run"):
        apply(model, plan.model_copy(update=shorter), image())


def test_check_returns_the_error_and_needs_no_example(model: nn.Module) -> None:
    plan = plan_of(trace(model, image()))
    assert 0 <= check_plan(model, plan) <= 1e-6
    assert plan.example_shapes == ([[2, 3, 12, 12], "float32"],)


@pytest.mark.parametrize("name", ["tied_embedding", "tied_transpose", "shared_module", "shared_head", "tied_layers"])
def test_ties_stay_tied(name: str) -> None:
    torch.manual_seed(0)
    dense, example = TRAITS[name].build().eval(), TRAITS[name].example()
    small = apply(dense, plan_of(trace(dense, example)), example)

    def ties(module: nn.Module) -> list[list[str]]:
        owners: dict[int, list[str]] = {}
        for key, parameter in module.named_parameters(remove_duplicate=False):
            owners.setdefault(id(parameter), []).append(key)
        return sorted(keys for keys in owners.values() if len(keys) > 1)

    assert ties(small) == ties(dense)


def test_padded_shortcuts_keep_the_users_class_where_the_padding_is_an_attribute() -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), PaddedResidual(8, 16), PaddedResidual(16, 32), nn.Flatten(), nn.Linear(288, 5)
    )
    graph = trace(dense, image())
    stage = {group.name: group.units for group in graph.groups}
    assert stage["0:out"] == 8  # the stem's units run through both stages
    assert sum(view.indices.size for view in graph.views("0:out") if view.parameter == "4.weight") == 8 * 9
    even = {name: range(units - units // 4) for name, units in stage.items()}
    assert judge(dense, graph.plan(even), image()) <= 1e-12
    assert judge(dense, plan_of(graph), image()) <= 1e-12


def test_keep_and_barriers(model: nn.Module) -> None:
    whole = trace(model, image())
    pinned = trace(model, image(), keep=["blocks.0.*"])
    assert {g.name for g in whole.groups} - {g.name for g in pinned.groups} == {"stem.0:out", "blocks.0.conv1:out"}
    by_group = trace(model, image(), keep=["blocks.2.conv1:out"])
    assert len(by_group.groups) == len(whole.groups) - 1
    blocked = trace(model, image(), barriers=["blocks.1.conv2"])
    assert [barrier.module for barrier in blocked.barriers] == ["blocks.1.conv2"]
    assert "conv2d" in str(blocked.barriers[0])
    assert judge(model, plan_of(blocked), image()) <= 1e-12
    assert not trace(model, image(), barriers=["aten.*"]).groups
    with pytest.raises(PlanError, match="matches no operator"):
        trace(model, image(), barriers=["nowhere"])


def test_widths_and_counts_follow_the_plan(model: nn.Module) -> None:
    graph = trace(model, image())
    plan = plan_of(graph)
    small = apply(model, plan, image())
    widths = np.array([len(plan.groups[group.name]) for group in graph.groups])
    assert graph.spec.parameter_count(widths) == sum(p.numel() for p in small.parameters())
    assert graph.spec.parameter_count(graph.spec.dense_widths) == sum(p.numel() for p in model.parameters())
    again = trace(small, image()).spec
    assert graph.spec.macs(widths) == again.macs(again.dense_widths)


def test_diff_tells_two_plans_apart(model: nn.Module) -> None:
    graph = trace(model, image())
    first, second = graph.plan({"stem.0:out": [0, 1, 2]}), graph.plan({"stem.0:out": [1, 2, 5]})
    assert first.diff(second) == {"groups": {"stem.0:out": ((0,), (5,))}, "blocks_removed": ((), ())}
    assert not first.diff(first)["groups"]


def test_two_traces_make_the_same_plan(model: nn.Module) -> None:
    first, second = trace(model, image()), trace(redrawn(ResNet(), 4).float(), image(1))
    kept = random_cut(first, 0.4, 7)
    assert first.plan(kept).slices == second.plan(kept).slices


def test_models_that_cannot_be_exported_are_refused() -> None:
    class Wild(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if float(x.sum()) > 0 else x.flip(0)

    with pytest.raises(StructureError, match=r"cannot capture Wild"):
        trace(Wild(), image())
    with pytest.raises(StructureError, match="does not run on the example"):
        trace(ResNet(), torch.randn(2, 4, 12, 12))
    with pytest.raises(StructureError, match="grid is 'both'"):
        trace(ResNet(), image(), grid="both")
    with pytest.raises(StructureError, match="example is a str"):
        trace(ResNet(), "image")


def test_frozen_parameters_stay_frozen() -> None:
    block = Residual(3, 8)
    block.conv1.weight.requires_grad_(False)
    small = apply(block, plan_of(trace(block, image())), image())
    assert [name for name, p in small.named_parameters() if not p.requires_grad] == ["conv1.weight"]


class Noisy(nn.Module):
    """Adds noise and drops out even in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.gain = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 2, 1), nn.Parameter(torch.ones(1, 12, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        x = x + self.gain * torch.randn(x.size(0), 1, *x.shape[2:])
        return self.b(nn.functional.dropout(x, 0.5, training=True))


def test_chance_in_the_forward_does_not_disturb_the_check() -> None:
    model, example = Noisy().eval(), torch.randn(2, 3, 6, 6)
    plan = trace(model, example).plan({"a:out": [0, 2, 3, 7]})
    assert type(apply(model, plan, example)) is Noisy
    damaged = plan.model_copy(update={"slices": {**plan.slices, "gain": {1: (0, 2, 3, 8)}}})
    with pytest.raises(StructureError, match="computes something else"):
        check_plan(model, damaged, example)


class Literal(nn.Module):
    """Cuts at a literal channel, so that only a rebuilt graph follows; divides by a size it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 14, 3), nn.Conv2d(8, 10, 1), nn.Linear(10, 3)
        self.register_buffer("calls", torch.zeros(1, dtype=torch.long))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        x = self.b(self.a(x).relu()[:, :8]) + torch.zeros(1, device=x.device)
        return self.c(x.sum((2, 3)) / (x.shape[2] * x.shape[3]))


def test_a_rebuilt_network_takes_other_sizes_and_refuses_what_it_was_not_made_for() -> None:
    model, example = Literal().eval(), torch.randn(1, 3, 16, 16)
    plan = trace(model, example).plan({"b:out": [0, 2, 3, 7], "a:out": list(range(6))})
    assert plan.rebuild
    assert int(model.calls) == 0
    small = apply(model, plan, example)
    assert small(torch.randn(5, 3, 16, 16)).shape == (5, 3)
    other = torch.randn(1, 3, 20, 24)
    assert close(small(other), mask_removed(copy.deepcopy(model), plan)(other))
    with pytest.raises(StructureError, match=r"shape \[1, 4, 20, 20\].*\[any, 3, any, any\]"):
        small(torch.randn(1, 4, 20, 20))
    assert trace(small, example).groups
    assert small.to("meta")(example.to("meta")).device.type == "meta"


class CountsItsBatch(Literal):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = super().forward(x)
        return torch.stack([rows[i] * (i + 1) for i in range(len(x))])


def test_a_forward_that_counts_its_batch_is_rebuilt_for_the_given_one() -> None:
    model, example = CountsItsBatch().eval(), torch.randn(1, 3, 16, 16)
    small = apply(model, trace(model, example).plan({"b:out": [0, 2, 3, 7], "a:out": list(range(6))}), example)
    assert small(example).shape == (1, 3)
    with pytest.raises(StructureError, match="Prune again"):
        small(torch.randn(2, 3, 16, 16))


def test_what_cannot_be_traced_says_so() -> None:
    with pytest.raises(StructureError, match="TorchScript"):
        trace(torch.jit.script(nn.Linear(3, 2)), torch.zeros(1, 3))
    with pytest.raises(StructureError, match="no shape yet"):
        trace(nn.LazyLinear(4), torch.zeros(1, 3))
    graph = trace(ResNet(), image())
    with pytest.raises(PlanError, match="whole numbers"):
        graph.plan({graph.groups[0].name: [1.5]})


def test_a_cut_made_in_inference_mode_can_be_trained() -> None:
    model = ResNet().eval()
    plan = trace(model, image()).plan({"blocks.0.conv1:out": [0, 1]})
    with torch.inference_mode():
        small = apply(model, plan, image())
    small(image()).sum().backward()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in small.parameters())


def test_what_the_forward_never_reads_is_told() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3))
    model[0].extra = nn.Linear(8, 2)
    assert inspect(trace(model, torch.randn(1, 3, 8, 8))).unread == ("0.extra.weight", "0.extra.bias")


class Thirds(nn.Module):
    """A number says how wide the parts are; after a cut they are of unequal widths."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.conv = 8, nn.Conv2d(3, 24, 3, padding=1)
        self.left, self.right = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second, third = self.conv(x).split(self.width, 1)
        return torch.cat([self.left(first), self.right(second), third.mean(1, keepdim=True)], 1)


def test_equal_parts_become_parts_of_unequal_widths() -> None:
    model, example = Thirds().eval(), torch.randn(2, 3, 8, 8)
    graph = trace(model, example)
    kept = {group.name: tuple(range(group.units - 1 - place)) for place, group in enumerate(graph.groups)}
    plan = graph.plan(kept)
    patch = next(patch for patch in plan.patches if patch.attribute == "width")
    assert isinstance(patch.value, list)
    assert len(set(patch.value)) > 1
    assert apply(model, plan, example)(example).shape == model(example).shape
    for wrong in ([], [4, 9, 3], [4, "4"], -1):
        odd = plan.model_copy(update={"patches": (patch.model_copy(update={"value": wrong}),)})
        with pytest.raises(PlanError, match="damaged"):
            apply(model, odd, example)
