"""Criterion ``measured``: what groups are worth is what the network's answers change by."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import secateurs as sc
from secateurs.data.tasks import classification
from secateurs.errors import DataError
from secateurs.importance.context import Context
from secateurs.importance.measured import answers_in, increments, work
from secateurs.importance.output_change import SETTINGS, Answers, images_for
from secateurs.importance.scoring import Scorer, default_criterion, scores
from secateurs.importance.statistics import context_for
from secateurs.progress import silent
from secateurs.recover.refit.least_squares import least_squares
from secateurs.search.rows import MemoryRows
from secateurs.search.values import order
from secateurs.structure import Graph, apply, trace


class Two(nn.Module):
    """A residual block whose branch hardly matters, and a layer that does."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.inner, self.inner_norm = nn.Conv2d(16, 20, 3, padding=1), nn.BatchNorm2d(20)
        self.outer, self.outer_norm = nn.Conv2d(20, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.last, self.head = nn.Conv2d(16, 24, 3, stride=2), nn.Linear(24, 5)
        nn.init.constant_(self.outer_norm.weight, 0.02)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.outer_norm(self.outer(torch.relu(self.inner_norm(self.inner(x)))))
        return self.head(torch.relu(self.last(x)).mean((2, 3)) * 3)


def batches(count: int = 12) -> list[tuple[Tensor, Tensor]]:
    """Images that differ smoothly, so that channels are redundant to a degree."""
    generator = torch.Generator().manual_seed(3)
    small = torch.randn(count * 16, 3, 4, 4, generator=generator)
    images = nn.functional.interpolate(small, size=(12, 12), mode="bilinear")
    return [(part, torch.arange(16) % 5) for part in images.split(16)]


@pytest.fixture
def graph() -> Graph:
    torch.manual_seed(0)
    model = Two()
    for inputs, _ in batches():
        model(inputs)
    return trace(model.eval(), torch.randn(2, 3, 12, 12))


def named(graph: Graph, part: str) -> str:
    return next(group.name for group in graph.groups if part in group.name)


@pytest.fixture
def context(graph: Graph) -> Context:
    return context_for(graph, "measured", batches())


def test_scores_are_geometric_means_of_measured_and_fisher(graph: Graph, context: Context) -> None:
    answers = answers_in(graph, context)
    found = scores(graph, "measured", context)[named(graph, "last")]
    fisher = np.sort(scores(graph, "fisher", context)[named(graph, "last")])
    ranked, rising = order(found), np.sort(found) ** 2 / fisher
    lost = np.append(np.cumsum(rising)[::-1], 0.0)
    measured = []
    for share in (0.2, 0.45, 0.7):
        left = 24 - int(24 * share)
        measured.append(answers.change(graph.plan({named(graph, "last"): tuple(sorted(ranked[:left].tolist()))}, ())))
        assert lost[left] == pytest.approx(measured[-1], rel=0.3)  # made convex
    assert lost[left] == pytest.approx(measured[-1], rel=1e-3)
    assert measured == sorted(measured)
    assert measured[0] > 0


def test_a_block_that_does_little_is_worth_little(graph: Graph, context: Context) -> None:
    found, fisher = scores(graph, "measured", context), scores(graph, "fisher", context)
    inner, last = named(graph, "inner"), named(graph, "last")
    assert len(graph.spec.blocks) == 1
    block = answers_in(graph, context).change(graph.plan({}, (graph.spec.blocks[0].name,)))
    assert (np.sort(found[inner]) ** 2 / np.sort(fisher[inner])).sum() == pytest.approx(block, rel=1e-3)
    assert found[inner].sum() < 0.1 * found[last].sum()
    assert order(found[inner]).tolist() == order(scores(graph, "fisher_obs", context)[inner]).tolist()


def test_nothing_gone_changes_nothing_and_the_network_stays_as_it_is(graph: Graph, context: Context) -> None:
    answers = answers_in(graph, context)
    before = {name: tensor.clone() for name, tensor in graph.model.state_dict().items()}
    graph.model.train()
    assert answers.change(graph.plan({}, ())) == 0.0
    assert answers.change(graph.plan({named(graph, "last"): (0, 1, 2)}, ())) > 0.0
    assert graph.model.training
    for name, tensor in graph.model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_what_was_measured_is_kept(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, given = MemoryRows(), [(inputs,) for inputs, _ in batches()]
    plan = graph.plan({named(graph, "last"): tuple(range(9))}, ())
    first = Answers(graph, given, rows)
    reached = first.change(plan)
    assert len(rows) == 1
    again = Answers(graph, given, rows)
    monkeypatch.setattr(Answers, "_change", lambda self, plan: pytest.fail("measured again"))
    assert again.change(plan) == reached
    others = Answers(graph, given[1:])
    assert others.identity != first.identity


def test_a_second_plan_of_the_same_network_measures_nothing(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[object] = []
    whole = Answers._change
    monkeypatch.setattr(Answers, "_change", lambda self, plan: measured.append(plan) or whole(self, plan))
    first = sc.plan(graph, macs="70%", data=batches())
    count = len(measured)
    assert count >= 3 * len(graph.groups)
    other = sc.plan(graph, macs="50%", data=batches())
    assert len(measured) == count
    assert other.widths() != first.widths()
    with torch.no_grad():
        next(graph.model.parameters()).mul_(1.1)
    sc.plan(graph, macs="50%", data=batches())
    assert len(measured) == 2 * count  # another network


def test_increments_add_up_to_the_losses_and_never_fall() -> None:
    worth = np.sort(np.random.default_rng(0).random(20))
    found = increments(worth, [4, 9, 14], [0.1, 0.5, 2.0])
    total = np.cumsum(found)
    assert total[[3, 8, 13]] == pytest.approx([0.1, 0.5, 2.0], rel=0.02)  # made convex
    assert np.all(np.diff(found) > 0)
    assert found[0] > 0


def test_a_whole_block_bounds_what_most_of_it_costs() -> None:
    found = increments(np.ones(10), [2, 5, 7, 10], [0.1, 0.9, 3.0, 0.5])
    assert found.sum() == pytest.approx(0.5, rel=1e-4)
    assert np.all(np.diff(found) > 0)


@pytest.mark.parametrize("losses", [[0.0, 0.0, 0.0], [0.3, 0.2, 0.1], [0.0, 0.0, 1.0]])
def test_increments_of_useless_and_noisy_groups_are_positive(losses: list[float]) -> None:
    found = increments(np.zeros(10), [2, 4, 7], losses)
    assert np.all(found > 0)
    assert np.all(np.diff(found) > 0)
    assert np.isfinite(found).all()


def test_groups_of_few_units_have_scores() -> None:
    for units in (1, 2, 3):
        found = increments(np.ones(units), [], [])
        assert found.shape == (units,)
        assert np.all(found > 0)


class Pair(nn.Module):
    """Two inputs, two outputs, no classes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(6, 10), nn.Linear(4, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        hidden = torch.relu(self.a(x) + self.b(y))
        return {"logits": self.out(hidden), "size": hidden.mean((1,))}


def test_several_inputs_and_outputs_are_measured_without_refit() -> None:
    torch.manual_seed(0)
    model = Pair().eval()
    graph = trace(model, (torch.randn(2, 6), torch.randn(2, 4)))
    data = [((torch.randn(20, 6), torch.randn(20, 4)), torch.arange(20) % 3) for _ in range(4)]
    context = context_for(graph, "measured", data)
    found = scores(graph, "measured", context)
    assert all((values > 0).all() for values in found.values())


class Timed(nn.Module):
    """Images and one time step for all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Conv2d(3, 8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor, step: Tensor) -> Tensor:
        return self.out(torch.relu(self.a(x) * step).mean((2, 3)))


def test_inputs_without_rows_are_for_all_images() -> None:
    torch.manual_seed(0)
    graph = trace(Timed().eval(), (torch.randn(2, 3, 8, 8), torch.tensor(2.0)))
    data = [((torch.randn(8, 3, 8, 8), torch.tensor(2.0)), torch.arange(8) % 3) for _ in range(3)]
    assert default_criterion(data, graph, silent) == "measured"
    answers = Answers(graph, [inputs for inputs, _ in data])
    assert sum(len(batch) for batch in (*answers.refitted, *answers.judged)) == 24
    found = Scorer(graph, "measured", data).scores
    assert all((values > 0).all() for values in found.values())


def test_few_images_take_little(graph: Graph) -> None:
    assert work(graph, 32) == pytest.approx(work(graph) / 10)
    assert work(graph, 10**6) == work(graph)


def test_images_follow_their_size() -> None:
    assert images_for((torch.zeros(1, 3, 32, 32),)) == 320
    assert images_for((torch.zeros(1, 3, 224, 224),)) == 119
    assert images_for((torch.zeros(1, 3, 2000, 2000),)) == 60
    assert images_for((torch.zeros(1, 3, 224, 224),), macs=3e9) == 83
    assert images_for((torch.zeros(1, 3, 224, 224),), macs=1e12) == 60


def test_least_squares_leaves_what_lies_in_front_of_the_cut(graph: Graph) -> None:
    plan = graph.plan({named(graph, "last"): tuple(range(12))}, ())
    small = apply(graph.model, plan, (graph.args, graph.kwargs), check=False).eval()
    images = [inputs for inputs, _ in batches()]
    done = least_squares(graph.model, small, plan, images, settings=replace(SETTINGS, after=True))
    for layer in ("inner", "outer"):
        assert done.errors[f"{layer}.weight"] == (0.0, 0.0)
        assert torch.equal(small.get_parameter(f"{layer}.weight"), graph.model.get_parameter(f"{layer}.weight"))
    wrong, left = done.errors["head.weight"]
    assert left < wrong


def test_half_precision_is_measured(graph: Graph) -> None:
    model = Two().bfloat16().eval()
    model.load_state_dict(graph.model.state_dict())
    data = [(inputs.bfloat16(), targets) for inputs, targets in batches()]
    half = trace(model, torch.randn(2, 3, 12, 12, dtype=torch.bfloat16))
    found = scores(half, "measured", context_for(half, "measured", data))
    assert all(((values > 0) & np.isfinite(values)).all() for values in found.values())


def test_only_the_classes_that_count_are_compared(graph: Graph) -> None:
    chosen = (0, 2, 4)
    narrow = copy.deepcopy(graph.model)
    narrow.head = nn.Linear(24, 3)
    with torch.no_grad():
        narrow.head.weight.copy_(graph.model.get_parameter("head.weight")[list(chosen)])
        narrow.head.bias.copy_(graph.model.get_parameter("head.bias")[list(chosen)])
    some = [(inputs, targets % 3) for inputs, targets in batches()]
    small = trace(narrow, torch.randn(2, 3, 12, 12))
    expected = Scorer(small, "measured", some).scores
    found = Scorer(graph, "measured", [(x, y * 2) for x, y in some], task=classification(chosen)).scores
    everything = Scorer(graph, "measured", [(x, y * 2) for x, y in some]).scores
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, rel=1e-3)
        assert not np.allclose(everything[name], values, rtol=0.05)
    given = [(inputs,) for inputs, _ in some]
    assert Answers(graph, given).identity != Answers(graph, given, task=classification(chosen)).identity
    with pytest.raises(DataError, match="not among the 3 classes"):
        Scorer(graph, "measured", batches(), task=classification(chosen)).of(graph)
