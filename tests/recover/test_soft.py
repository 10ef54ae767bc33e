from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small_job
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateurs.errors import PlanError
from secateurs.recover.features import Features
from secateurs.recover.finetune import finetune
from secateurs.recover.recipe import Recipe
from secateurs.recover.schedules.soft import SoftMasks
from secateurs.structure import Graph, apply, trace

RECIPE = Recipe(epochs=2, lr=0.05, batch=16, precision="fp32", layout="contiguous", seed=1)


class Net(nn.Module):
    """A residual stream behind batch norms, and a part without any."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.conv1, self.bn1 = nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.conv2, self.bn2 = nn.Conv2d(12, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.plain = nn.Conv2d(8, 10, 3)
        self.fc = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn0(self.stem(x)))
        x = F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return self.fc(F.relu(self.plain(x)).mean((2, 3)))


@pytest.fixture
def graph() -> Graph:
    torch.manual_seed(0)
    return trace(Net().eval(), torch.randn(1, 3, 8, 8))


def _halves(scores: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(np.sort(np.argsort(-score)[: len(score) // 2]).tolist()) for name, score in scores.items()}


def test_masked_is_the_cut_network(graph: Graph) -> None:
    masks = SoftMasks(graph, _halves)
    masks._set({group.name: tuple(range(1, group.units, 2)) for group in graph.groups})
    small = apply(graph.model, graph.plan(masks.kept))
    x = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        assert torch.allclose(masks.forward(graph.model, x), small(x), atol=1e-5)
        assert not torch.allclose(graph.model(x), small(x), atol=1e-2)


def test_gradients_reach_what_is_masked_and_weights_stay(graph: Graph) -> None:
    masks = SoftMasks(graph, _halves)
    name = next(group.name for group in graph.groups if "bn1" in str(group.layers))
    masks._set({**masks.kept, name: (0, 1)})
    before = graph.model.conv2.weight.detach().clone()
    masks.forward(graph.model.train(), torch.randn(8, 3, 8, 8)).square().mean().backward()
    # nothing reads unit 5, yet the columns that would are told how much they are missed
    assert graph.model.conv2.weight.grad[:, 5].abs().sum() > 0
    assert graph.model.conv1.weight.grad[5].abs().sum() == 0
    assert torch.equal(graph.model.conv2.weight, before)
    masks.after_backward(graph.model, 0)
    assert float(masks.scores[name][5]) > 0


def test_decisions_come_at_intervals_and_units_return(graph: Graph) -> None:
    calls: list[dict[str, np.ndarray]] = []

    def alternate(scores: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
        calls.append({name: score.copy() for name, score in scores.items()})
        shift = len(calls) % 2
        return {name: tuple(range(shift, len(score), 2)) for name, score in scores.items()}

    masks = SoftMasks(graph, alternate, interval=3, freeze_after=8)
    finetune(graph.model, small_job.data(), RECIPE, companion=masks)
    # ten steps: decisions after steps 3, 6 and (frozen from the ninth on) none after 9
    assert len(calls) == 2
    assert all(np.all(score >= 0) and score.max() > 0 for score in calls[-1].values())
    assert all(units[0] == 0 for units in masks.kept.values())


def test_resumed_soft_pruning_ends_the_same(graph: Graph, tmp_path: Path) -> None:
    start = {name: tensor.clone() for name, tensor in graph.model.state_dict().items()}
    results = []
    for stop in (None, 7):
        graph.model.load_state_dict(start)
        masks = SoftMasks(graph, _halves, interval=2)
        folder = tmp_path / str(stop)
        if stop is not None:
            masks.after_backward = _interrupting(masks, stop)  # type: ignore[method-assign]
            with pytest.raises(KeyboardInterrupt):
                finetune(graph.model, small_job.data(), RECIPE, companion=masks, checkpoint_dir=folder)
            graph.model.load_state_dict(start)
            masks = SoftMasks(graph, _halves, interval=2)
        done = finetune(
            graph.model, small_job.data(), RECIPE, companion=masks, checkpoint_dir=folder, resume=stop is not None
        )
        assert done.resumed_at == (0 if stop is None else 5)
        results.append((masks.kept, {name: tensor.clone() for name, tensor in graph.model.state_dict().items()}))
    assert results[0][0] == results[1][0]
    assert all(torch.equal(tensor, results[1][1][name]) for name, tensor in results[0][1].items())


def _interrupting(masks: SoftMasks, stop: int):  # type: ignore[no-untyped-def]
    original = type(masks).after_backward

    def after(student: nn.Module, step: int) -> None:
        if step == stop:
            raise KeyboardInterrupt
        original(masks, student, step)

    return after


def test_another_budgets_checkpoint_is_refused(graph: Graph, tmp_path: Path) -> None:
    start = {name: tensor.clone() for name, tensor in graph.model.state_dict().items()}
    short = replace(RECIPE, epochs=1)
    finetune(
        graph.model, small_job.data(), short, companion=SoftMasks(graph, _halves, label="50%"), checkpoint_dir=tmp_path
    )
    graph.model.load_state_dict(start)
    with pytest.raises(PlanError, match="companion"):
        finetune(
            graph.model,
            small_job.data(),
            short,
            companion=SoftMasks(graph, _halves, label="60%"),
            checkpoint_dir=tmp_path,
            resume=True,
        )


def test_settings_out_of_range(graph: Graph) -> None:
    with pytest.raises(PlanError, match="interval >= 1"):
        SoftMasks(graph, _halves, interval=0)


def test_a_group_that_nothing_reads_is_told(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "views", lambda group: ())
    with pytest.raises(PlanError, match="cannot be switched off"):
        SoftMasks(graph, _halves)


def test_features_compare_the_same_units(graph: Graph) -> None:
    dense, x = graph.model, torch.randn(4, 3, 8, 8)
    name = next(group.name for group in graph.groups if "bn1" in str(group.layers))
    plan = graph.plan({name: (1, 4, 7)})
    small = apply(dense, plan)
    features = Features(plan, weight=2.0, places=["bn1"])
    with torch.no_grad(), features.attached(small, dense):
        dense(x)
        features.forward(small, x)
        # inputs of conv1 are uncut, so the kept units are exactly the dense ones
        assert float(features.loss()) == pytest.approx(0, abs=1e-8)  # type: ignore[arg-type]
        small.bn1.bias.add_(1.0)
        dense(x)
        features.forward(small, x)
        wanted = dense.bn1(dense.conv1(F.relu(dense.bn0(dense.stem(x)))))[:, [1, 4, 7]]
        scale = float((wanted.square().mean() + (wanted + 1).square().mean()) / 2)
        assert float(features.loss()) == pytest.approx(2 / scale, rel=1e-4)  # type: ignore[arg-type]
    assert not any(module._forward_hooks for net in (small, dense) for module in net.modules())


def test_features_train(graph: Graph) -> None:
    dense, (inputs, _) = graph.model, small_job.data().train.batch(np.arange(64))
    plan = graph.plan({group.name: tuple(range(group.units // 2)) for group in graph.groups})
    small, features = apply(dense, plan), Features(plan)
    optimizer = torch.optim.Adam(small.parameters(), lr=0.01)
    losses = []
    with features.attached(small, dense):
        for _ in range(40):
            dense(inputs)
            small(inputs)
            loss = features.loss()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_features_take_part_in_fine_tuning(graph: Graph) -> None:
    plan = graph.plan({group.name: tuple(range(group.units // 2)) for group in graph.groups})
    short = replace(RECIPE, epochs=1, lr=1e-6)
    losses = [
        finetune(apply(graph.model, plan), small_job.data(), short, teacher=graph.model, companion=companion)
        for companion in (None, Features(plan, weight=10.0))
    ]
    assert losses[1].epochs[0].loss > losses[0].epochs[0].loss + 1


def test_features_need_a_teacher_and_known_places(graph: Graph) -> None:
    plan = graph.plan({})
    small = apply(graph.model, plan)
    with (
        pytest.raises(PlanError, match="cannot compare 'nowhere'"),
        Features(plan, places=["nowhere"]).attached(small, graph.model),
    ):
        pass
    with (
        pytest.raises(PlanError, match="no batch norms, convolutions"),
        Features(plan).attached(nn.Linear(3, 3), nn.Linear(3, 3)),
    ):
        pass
    with pytest.raises(PlanError, match="none was given"), Features(plan).attached(small, None):
        pass
    with pytest.raises(PlanError, match="above zero"):
        Features(plan, weight=0)
