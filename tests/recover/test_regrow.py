from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import small_job
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateurs.errors import PlanError
from secateurs.importance.dynamic import Dynamics, watch_training
from secateurs.recover.finetune import finetune
from secateurs.recover.recipe import Recipe
from secateurs.recover.schedules.regrow import PruneRegrow, surplus_at
from secateurs.structure import Graph, apply, trace

RECIPE = Recipe(epochs=3, lr=0.05, batch=16, precision="fp32", layout="contiguous", seed=1)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(3, 10, 3, bias=False), nn.BatchNorm2d(10)
        self.conv1, self.bn1 = nn.Conv2d(10, 20, 3, padding=1, bias=False), nn.BatchNorm2d(20)
        self.conv2, self.bn2 = nn.Conv2d(20, 10, 3, padding=1, bias=False), nn.BatchNorm2d(10)
        self.fc = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn0(self.stem(x)))
        x = F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return self.fc(x.mean((2, 3)))


@pytest.fixture
def graph() -> Graph:
    torch.manual_seed(0)
    return trace(Net().eval(), torch.randn(1, 3, 8, 8))


class Turning:
    """Scores that turn around with every question; counts its snapshots."""

    def __init__(self, graph: Graph, changes: int = 1) -> None:
        self.units = {group.name: group.units for group in graph.groups}
        self.asked: dict[str, int] = dict.fromkeys(self.units, 0)
        self.changes, self.seen = changes, 0

    def observe(self, module: nn.Module) -> None:
        self.seen += 1

    def scores(self, group: str) -> np.ndarray:
        self.asked[group] += 1
        rising = np.arange(self.units[group], dtype=np.float64)
        return rising if self.asked[group] % 2 else -rising

    def tensors(self) -> dict[str, Tensor]:
        return {"asked": torch.tensor(list(self.asked.values()))}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        self.asked = dict(zip(self.asked, tensors["asked"].tolist(), strict=True))


def inner(graph: Graph) -> str:
    return next(group.name for group in graph.groups if group.units == 20)


def test_surplus_falls_along_a_cosine() -> None:
    assert surplus_at(0, 10, 0.2) == pytest.approx(0.2)
    assert surplus_at(5, 10, 0.2) == pytest.approx(0.1)
    assert surplus_at(10, 10, 0.2) == 0.0
    assert surplus_at(3, 10, 0.2) == pytest.approx(0.2 * 0.5 * (1 + np.cos(0.3 * np.pi)))


def test_rounds_end_at_the_policys_widths(graph: Graph) -> None:
    name = inner(graph)
    watcher = Turning(graph)
    companion = PruneRegrow(graph, {name: 8}, watcher, rounds=4, interval=3, surplus=0.4)
    counts = []
    for step in range(15):
        if step == 0:
            companion.attached(graph.model, None)
        companion.after_backward(graph.model, step)
        counts.append(len(companion.kept[name]))
    wanted = [8 + round(surplus_at(r, 4, 0.4) * 20) for r in range(5)]
    assert [counts[0], *counts[2::3][:4]] == wanted
    assert counts[-1] == 8
    assert watcher.asked[name] == 5, "after the last round the choice stays"
    other = [group for group in graph.groups if group.name != name]
    assert all(len(companion.kept[group.name]) == group.units for group in other)


def test_units_return_with_the_weights_they_were_last_used_with(graph: Graph) -> None:
    name, model = inner(graph), graph.model
    companion = PruneRegrow(graph, {name: 8}, Turning(graph), rounds=6, interval=1, surplus=0.0)
    start = {key: value.detach().clone() for key, value in model.named_parameters()}
    companion.attached(model, None)
    assert companion.kept[name] == tuple(range(12, 20))
    with torch.no_grad():
        for value in model.parameters():
            value += 1.0
    used = {key: value.detach().clone() for key, value in model.named_parameters()}
    companion.after_backward(model, 0)
    assert companion.kept[name] == tuple(range(8))
    with torch.no_grad():
        for value in model.parameters():
            value += 10.0
    companion.after_backward(model, 1)
    assert companion.kept[name] == tuple(range(12, 20))
    assert torch.equal(model.conv1.weight[12:], used["conv1.weight"][12:])
    assert torch.equal(model.bn1.bias[12:], used["bn1.bias"][12:])
    assert torch.equal(model.conv2.weight[:, 12:], used["conv2.weight"][:, 12:])
    assert torch.equal(model.conv1.weight[:8], start["conv1.weight"][:8] + 10), "out in round 0"
    assert torch.equal(model.fc.weight, used["fc.weight"] + 10), "what was in use all along is left alone"


def test_masked_is_the_cut_network_and_nothing_flows_back(graph: Graph) -> None:
    name = inner(graph)
    companion = PruneRegrow(graph, {name: 8}, Turning(graph), surplus=0.0)
    companion.attached(graph.model, None)
    small = apply(graph.model, graph.plan(companion.kept))
    x = torch.randn(4, 3, 8, 8)
    assert torch.allclose(companion.forward(graph.model, x), small(x), atol=1e-5)
    companion.forward(graph.model.train(), x).square().mean().backward()
    assert graph.model.conv2.weight.grad[:, :12].abs().sum() == 0
    assert graph.model.conv1.weight.grad[:12].abs().sum() == 0
    assert graph.model.conv2.weight.grad[:, 12:].abs().sum() > 0


def test_as_a_schedule_of_fine_tuning_with_dynamics(graph: Graph) -> None:
    data = small_job.data()
    name = inner(graph)
    dynamics = watch_training(graph, data.train.batches(16), data.task, snapshots=2, interval=2)
    companion = PruneRegrow(graph, {name: 7}, dynamics, rounds=3, interval=4)
    finetune(graph.model, data, RECIPE, companion=companion)
    assert companion.round == 3
    assert len(companion.kept[name]) == 7
    assert dynamics.changes > 2
    small = apply(graph.model, graph.plan(companion.kept))
    assert small.conv1.out_channels == 7


def test_resumed_it_ends_the_same(graph: Graph, tmp_path: Path) -> None:
    name, data = inner(graph), small_job.data()
    start = {key: value.clone() for key, value in graph.model.state_dict().items()}
    results = []
    for stop in (None, 7):
        graph.model.load_state_dict(start)
        folder = tmp_path / str(stop)
        companion = PruneRegrow(graph, {name: 7}, Dynamics(graph), rounds=3, interval=4)
        if stop is not None:
            original = companion.after_backward

            def cut(student: nn.Module, step: int, original=original, stop=stop) -> None:
                if step == stop:
                    raise KeyboardInterrupt
                original(student, step)

            companion.after_backward = cut  # type: ignore[method-assign]
            with pytest.raises(KeyboardInterrupt):
                finetune(graph.model, data, RECIPE, companion=companion, checkpoint_dir=folder)
            graph.model.load_state_dict(start)
            companion = PruneRegrow(graph, {name: 7}, Dynamics(graph), rounds=3, interval=4)
        done = finetune(graph.model, data, RECIPE, companion=companion, checkpoint_dir=folder, resume=stop is not None)
        assert done.resumed_at == (0 if stop is None else 5)
        results.append((companion.kept, {key: value.clone() for key, value in graph.model.state_dict().items()}))
    assert results[0][0] == results[1][0]
    assert all(torch.equal(value, results[1][1][key]) for key, value in results[0][1].items())


def test_wrong_settings_are_named(graph: Graph) -> None:
    name = inner(graph)
    for wrong in ({"rounds": 0}, {"surplus": 1.5}):
        with pytest.raises(PlanError, match="rounds"):
            PruneRegrow(graph, {name: 8}, Turning(graph), **wrong)
    with pytest.raises(PlanError, match="21 of 20"):
        PruneRegrow(graph, {name: 21}, Turning(graph))
