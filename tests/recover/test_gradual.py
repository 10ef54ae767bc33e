from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from secateurs.errors import PlanError
from secateurs.models.cifar_resnet import CifarResNet
from secateurs.plan import Plan
from secateurs.recover.schedules.callbacks import lightning_callback, trainer_callback
from secateurs.recover.schedules.gradual import Gradual, compose
from secateurs.structure import apply, trace

EXAMPLE = torch.randn(1, 3, 16, 16)


def _replan(module: nn.Module, share: float) -> Plan:
    """Keeps the first units of every group, without any latency model."""
    graph = trace(module, EXAMPLE)
    kept = {group.name: tuple(range(max(1, round(group.units * share)))) for group in graph.groups}
    return graph.plan(kept, provenance={"share": share})


def _network() -> nn.Module:
    torch.manual_seed(0)
    return CifarResNet(14, classes=4).eval()


def test_two_plans_are_one() -> None:
    dense = _network()
    graph = trace(dense, EXAMPLE)
    rng = torch.Generator().manual_seed(1)
    kept = {
        group.name: sorted(torch.randperm(group.units, generator=rng)[: group.units * 3 // 4].tolist())
        for group in graph.groups
    }
    first = graph.plan(kept, ["layer1.1"])
    middle = apply(dense, first, EXAMPLE)
    second = _replan(middle, 0.6)
    small = apply(middle, second, EXAMPLE)
    both = compose(first, second)
    once = apply(dense, both, EXAMPLE)
    for name, tensor in small.state_dict().items():
        assert torch.equal(tensor, once.state_dict()[name]), name
    with torch.no_grad():
        assert torch.equal(small(EXAMPLE), once(EXAMPLE))
    assert both.blocks_removed == ("layer1.1",)
    assert len(both.provenance["steps"]) == 2
    assert Plan.from_json(both.to_json()) == both
    assert both.widths() == {**first.widths(), **second.widths()}


def test_plans_of_other_networks_do_not_compose() -> None:
    graph = trace(_network(), EXAMPLE)
    first = graph.plan({graph.groups[0].name: (0, 1, 2)})
    with pytest.raises(PlanError, match="made for another network"):
        compose(first, graph.plan({graph.groups[0].name: (0, 1, 2, 3)}))
    other = trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)).eval(), EXAMPLE)
    with pytest.raises(PlanError, match="which the first one's network lacks"):
        compose(first, other.plan({other.groups[0].name: (0, 1)}))


def test_steps_of_a_training_loop() -> None:
    module = _network().train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)
    gradual = Gradual(lambda network, share: _replan(network.eval(), share), [(1, 0.75), (3, 0.5)])
    dense = _network()
    widths = []
    for epoch in range(4):
        module = gradual.step(module, epoch, optimizer, EXAMPLE)
        assert module.training
        loss = F.cross_entropy(module(torch.randn(8, 3, 16, 16)), torch.arange(8) % 4)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        widths.append(module.layer3[0].conv1.out_channels)
    assert widths == [64, 48, 48, 24]
    assert gradual.plan is not None
    assert apply(dense, gradual.plan, EXAMPLE).layer3[0].conv1.out_channels == 24
    for name, tensor in apply(dense, gradual.plan, EXAMPLE).state_dict().items():
        assert tensor.shape == module.state_dict()[name].shape


@pytest.mark.parametrize(
    "schedule", [[], [(0, 0.5), (0, 0.4)], [(0, 0.5), (1, 0.6)], [(0, 1.0)], [(-1, 0.5)], [(0, 0.0)]]
)
def test_wrong_schedules(schedule: list[tuple[int, float]]) -> None:
    with pytest.raises(PlanError, match="must be pairs"):
        Gradual(_replan, schedule)


def test_lightning(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lightning", "lightning.pytorch"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["lightning.pytorch"].Callback = object  # type: ignore[attr-defined]
    network = _network().train()
    owner = SimpleNamespace(model=network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    callback = lightning_callback(Gradual(_replan, [(1, 0.5)]))
    for epoch in range(2):
        callback.on_train_epoch_start(SimpleNamespace(optimizers=[optimizer], current_epoch=epoch), owner)
    assert owner.model.layer3[0].conv1.out_channels == 32
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in owner.model.parameters()}
    with pytest.raises(PlanError, match="one optimizer"):
        callback.on_train_epoch_start(SimpleNamespace(optimizers=[], current_epoch=1), owner)


def test_hugging_face_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", ModuleType("transformers"))
    sys.modules["transformers"].TrainerCallback = object  # type: ignore[attr-defined]
    model = nn.ModuleDict({"net": _network().train()})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    callback = trainer_callback(Gradual(_replan, [(0, 0.5)]), "net")
    callback.on_epoch_begin(None, SimpleNamespace(epoch=0.0), None, model=model, optimizer=optimizer)
    assert model["net"].layer3[0].conv1.out_channels == 32
    other = torch.optim.SGD([*model.parameters(), nn.Parameter(torch.ones(1))], lr=0.01)
    with pytest.raises(PlanError, match="outside the pruned part"):
        callback.on_epoch_begin(None, SimpleNamespace(epoch=0.0), None, model=model, optimizer=other)
    with pytest.raises(PlanError, match="name the part"):
        trainer_callback(Gradual(_replan, [(0, 0.5)]))


@pytest.mark.parametrize("make", [lightning_callback, lambda gradual: trainer_callback(gradual, "net")])
def test_absent_packages_are_explained(monkeypatch: pytest.MonkeyPatch, make) -> None:  # type: ignore[no-untyped-def]
    for name in ("lightning", "lightning.pytorch", "pytorch_lightning", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(PlanError, match="pip install"):
        make(Gradual(_replan, [(0, 0.5)]))
