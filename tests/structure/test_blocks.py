"""Whole residual branches: found, removed, and equal to the branch multiplied by zero."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from networks import PaddedResidual, Residual, ResNet, close, image
from torch import nn
from traits import load_all

from secateurs.errors import PlanError
from secateurs.plan import Plan
from secateurs.structure import apply, check_plan, trace
from secateurs.structure.groups import digest
from secateurs.testing.structure import judge, random_cut, redrawn


class Silent(nn.Module):
    """Zero times what a module gives."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 0 * self.inner(x)


def silenced(model: nn.Module, last_layers: Sequence[str]) -> nn.Module:
    """A copy in which the last layer of each branch gives zero."""
    quiet = copy.deepcopy(model)
    for path in last_layers:
        parent, _, leaf = path.rpartition(".")
        owner = quiet.get_submodule(parent)
        setattr(owner, leaf, Silent(getattr(owner, leaf)))
    return quiet


def test_blocks_of_a_resnet() -> None:
    graph = trace(ResNet(), image())
    assert [block.name for block in graph.blocks] == ["blocks.0", "blocks.1", "blocks.2"]
    inner = [{graph.groups[g].name for g in block.groups} for block in graph.blocks]
    assert inner == [{"blocks.0.conv1:out"}, {"blocks.1.conv1:out"}, {"blocks.2.conv1:out"}]
    assert all(block.add in block.nodes for block in graph.blocks)


@pytest.mark.parametrize("removed", [["blocks.0"], ["blocks.1"], ["blocks.2"], ["blocks.0", "blocks.2"]])
def test_removed_blocks_equal_silent_branches(removed: list[str]) -> None:
    model = redrawn(ResNet(), 3).float()
    graph = trace(model, image())
    plan = graph.plan({}, removed)
    assert plan.blocks_removed == tuple(removed)
    small = apply(model, plan, image())
    assert type(small) is ResNet
    with torch.no_grad():
        assert close(small(image()), silenced(model, [f"{name}.bn2" for name in removed])(image()))
    left = {name for name, _ in small.named_parameters()}
    assert left == {
        name
        for name, _ in model.named_parameters()
        if not name.startswith(tuple(f"{b}.{x}" for b in removed for x in ("conv", "bn")))
    }
    widths = [0 if not plan.groups[group.name] else group.units for group in graph.groups]
    numbers = [number for number, block in enumerate(graph.blocks) if block.name in removed]
    assert graph.spec.parameter_count(widths, numbers) == sum(p.numel() for p in small.parameters())


class Branch(nn.Module):
    """A residual branch that a function follows."""

    def __init__(self, after: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.conv, self.after = nn.Conv2d(6, 6, 3, padding=1), after

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.after(x + self.conv(x))


FUNCTIONS = {
    "relu6": lambda x: F.hardtanh(x, 0.0, 6.0),
    "hardtanh": F.hardtanh,
    "hardtanh of other bounds": lambda x: F.hardtanh(x, -0.25, 0.75),
    "leaky relu of another slope": lambda x: F.leaky_relu(x, 0.5),
    "gelu by tanh": lambda x: F.gelu(x, approximate="tanh"),
}


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_what_follows_a_removed_branch_keeps_its_settings(kind: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), Branch(FUNCTIONS[kind]), nn.Conv2d(6, 2, 1)).eval()
    graph = trace(model, torch.randn(2, 3, 6, 6))
    plan = graph.plan({}, ["1"])
    steps = [step for bypass in plan.bypasses for step in bypass.steps]
    assert steps == ([f"call:{kind}"] if kind in ("relu6", "hardtanh") else [])
    small = apply(model, plan, torch.randn(2, 3, 6, 6))
    with torch.no_grad():
        model[1].conv.weight.zero_()
        model[1].conv.bias.zero_()
        x = 3 * torch.randn(2, 3, 6, 6)
        assert close(small(x), model(x))


def test_blocks_and_units_go_together() -> None:
    model = redrawn(ResNet(), 5).float()
    graph = trace(model, image())
    kept = random_cut(graph, 0.4, 1)
    small = apply(model, graph.plan(kept, ["blocks.2"]), image())
    quiet = silenced(model, ["blocks.2.bn2"])
    plan = graph.plan({name: units for name, units in kept.items() if not name.startswith("blocks.2.conv1")})
    assert close(small(image()), apply(silenced_twin(quiet, plan), _renamed(plan), check=False)(image()))


def silenced_twin(quiet: nn.Module, plan: Plan) -> nn.Module:
    """The silenced network itself; its last layer lies one level deeper, see :func:`_renamed`."""
    return quiet


def _renamed(plan: Plan) -> Plan:
    def rename(name: str) -> str:
        return name.replace("blocks.2.bn2.", "blocks.2.bn2.inner.")

    shapes = {rename(name): shape for name, shape in plan.fingerprint.shapes.items()}
    return plan.model_copy(
        update={
            "slices": {rename(name): axes for name, axes in plan.slices.items()},
            "fingerprint": plan.fingerprint.model_copy(update={"shapes": shapes, "digest": digest(shapes)}),
        }
    )


def test_padded_shortcuts_stay_when_their_branch_goes() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), PaddedResidual(8, 16), PaddedResidual(16, 32), nn.Flatten(), nn.Linear(288, 5)
    )
    graph = trace(model, image())
    assert [block.name for block in graph.blocks] == ["1", "2"]
    small = apply(model, graph.plan({}, ["1"]), image())
    with torch.no_grad():
        assert close(small(image()), silenced(model, ["1.conv2"])(image()))
    kept = random_cut(graph, 0.4, 2)
    check_plan(model, graph.plan(kept, ["2"]), image())


def test_a_network_of_projections_only() -> None:
    model = redrawn(nn.Sequential(Residual(3, 8), Residual(8, 12, 2), nn.Flatten(), nn.Linear(432, 3)), 1).float()
    graph = trace(model, image())
    names = [block.name for block in graph.blocks]
    assert "1" in names
    small = apply(model, graph.plan({}, ["1"]), image())
    with torch.no_grad():
        assert close(small(image()), silenced(model, ["1.bn2"])(image()))


def test_transformer_branches_are_blocks() -> None:
    torch.manual_seed(0)
    trait = load_all()["transformer_fused"]
    model, example = redrawn(trait.build(), 2).float(), trait.example()
    graph = trace(model, example)
    assert len(graph.blocks) == 2
    for block, last in zip(graph.blocks, ("attn.proj", "mlp.2"), strict=True):
        small = apply(model, graph.plan({}, [block.name]), example)
        with torch.no_grad():
            assert close(small(example), silenced(model, [last])(example))


def test_removed_blocks_survive_json_and_train() -> None:
    model = redrawn(ResNet(), 3).float()
    plan = trace(model, image()).plan({}, ["blocks.1"])
    small = apply(model, Plan.from_json(plan.to_json()), image()).train()
    small(image(4)).sum().backward()
    assert all(p.grad is not None for p in small.parameters())
    with pytest.raises(PlanError, match="cannot be removed"):
        trace(model, image()).plan({}, ["stem"])


def test_units_of_a_removed_block_cannot_matter() -> None:
    model = redrawn(ResNet(), 3).float()
    graph = trace(model, image())
    plan = graph.plan({"blocks.1.conv1:out": [0, 1]}, ["blocks.1"])
    assert plan.groups["blocks.1.conv1:out"] == ()
    assert judge_removed(model, plan) <= 1e-5


def judge_removed(model: nn.Module, plan: Plan) -> float:
    """Difference to the network with a silent branch."""
    small = apply(model, plan, image())
    with torch.no_grad():
        ours, theirs = small(image()), silenced(model, ["blocks.1.bn2"])(image())
    return float((ours - theirs).abs().max() / theirs.abs().max())


def test_blocks_left_alone_change_nothing_for_the_judge() -> None:
    model = redrawn(ResNet(), 3).float()
    graph = trace(model, image())
    assert judge(model, graph.plan(random_cut(graph, 0.4, 0)), image()) <= 1e-12
