"""A judge: what it makes of a plan, on how many images, with which repair; and that the network stays the user's."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import secateurs as sc
from secateurs.data.datasets import TensorSource
from secateurs.data.images import Images
from secateurs.data.tasks import classification
from secateurs.judging import judge as module
from secateurs.judging.judge import Judge, mean_outputs
from secateurs.models.preprocessing import Preprocessing
from secateurs.plan import Plan
from secateurs.structure import Graph


class Normed(nn.Sequential):
    """A convolution and its batch norm, whose statistics are far from the images', and a head."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 4))
        with torch.no_grad():
            self[1].running_mean.fill_(0.3)
            self[1].running_var.fill_(0.05)


class Plain(nn.Sequential):
    """Without batch norms."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 4))


def made(kind: type[nn.Module], **changes: object) -> tuple[Judge, Graph]:
    torch.manual_seed(0)
    network = kind().eval()
    inputs, labels = torch.randn(50, 3, 6, 6), np.arange(50) % 4
    images = Images(TensorSource(inputs, labels), np.arange(50), Preprocessing())
    calibration = tuple(torch.randn(32, 3, 6, 6).split(16))
    graph = sc.trace(network, torch.randn(1, 3, 6, 6))
    return Judge(network, (graph.args, graph.kwargs), calibration, images, **changes), graph  # type: ignore[arg-type]


def half(graph: Graph) -> Plan:
    return graph.plan({group.name: tuple(range(group.units // 2)) for group in graph.groups}, ())


def accuracy(network: nn.Module, images: Images) -> float:
    with torch.no_grad():
        hits = [(network(x).argmax(1) == y).float() for x, y in images.batches(50)]
    return float(torch.cat(hits).mean())


def test_without_repair_it_is_the_cut_network_on_the_images() -> None:
    judge, graph = made(Normed, repair="none")
    small = sc.apply(judge.module, half(graph), graph.args[0])
    found = judge(half(graph))
    assert found.accuracy == pytest.approx(accuracy(small, judge.validation))
    assert set(found.details) == {"loss", "top5"}
    assert found.details["top5"] == 1.0  # of four classes
    assert found.seconds > 0


def test_only_the_first_images_are_asked_about() -> None:
    judge, graph = made(Normed, repair="none")
    small = sc.apply(judge.module, half(graph), graph.args[0])
    assert 0 < judge(half(graph)).accuracy < 1
    assert judge(half(graph), 7).accuracy == pytest.approx(accuracy(small, judge.validation.take(7)))
    assert judge(half(graph), 500).accuracy == judge(half(graph)).accuracy


def test_statistics_are_those_of_the_calibration_images() -> None:
    judge, graph = made(Normed, repair="statistics")
    small = sc.apply(judge.module, half(graph), graph.args[0])
    with torch.no_grad():
        seen = small[0](torch.cat(judge.calibration))  # type: ignore[index]
    small[1].running_mean, small[1].running_var = seen.mean((0, 2, 3)), seen.var((0, 2, 3))  # type: ignore[index]
    assert judge(half(graph)).accuracy == pytest.approx(accuracy(small, judge.validation))
    assert judge(half(graph)).details["loss"] != made(Normed, repair="none")[0](half(graph)).details["loss"]


@pytest.mark.parametrize("repair", ["none", "statistics", "least-squares"])
def test_the_same_plan_has_the_same_figure_and_the_network_stays(repair: str) -> None:
    judge, graph = made(Normed, repair=repair)
    before = copy.deepcopy(judge.module.state_dict())
    first = judge(half(graph))
    judge(graph.plan({}, ()))
    assert judge(half(graph)).details == first.details
    assert all(torch.equal(tensor, before[name]) for name, tensor in judge.module.state_dict().items())
    assert not any(module._forward_hooks for module in judge.module.modules())


def test_only_some_classes_count() -> None:
    judge, graph = made(Normed, repair="none")
    images = judge.validation.select(np.flatnonzero(np.isin(judge.validation.labels, (1, 2))))
    among = Judge(judge.module, judge.example, judge.calibration, images, task=classification((1, 2)), repair="none")
    small = sc.apply(judge.module, half(graph), graph.args[0])
    with torch.no_grad():
        outputs = torch.cat([small(x) for x, _ in images.batches(50)])
    guessed = torch.tensor([1, 2])[outputs[:, [1, 2]].argmax(1)].numpy()
    assert not np.array_equal(guessed, outputs.argmax(1).numpy())
    assert among(half(graph)).accuracy == pytest.approx(float((guessed == images.labels).mean()))


def test_means_of_layers_that_run_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.once, self.twice, self.silent = nn.Linear(5, 4), nn.Linear(4, 4), nn.Linear(4, 4, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.silent(self.twice(self.twice(self.once(x))))

    network, batches = Twice().eval(), torch.randn(6, 7, 5).split(3)
    found = mean_outputs(network, batches)
    assert set(found) == {"once"}
    assert torch.allclose(found["once"], network.once(torch.cat(batches)).mean((0, 1)), atol=1e-6)
    assert not network.once._forward_hooks


def test_without_batch_norms_every_layer_gets_the_mean_that_it_had() -> None:
    judge, graph = made(Plain)
    means = mean_outputs(judge.module, judge.calibration)
    whole = Judge(judge.module, judge.example, judge.calibration, judge.validation, means=means)
    plan = half(graph)
    targets = whole._targets(plan)
    assert {name: len(mean) for name, mean in targets.items()} == {"0": 4, "2": 3, "5": 4}
    small = sc.apply(judge.module, plan, graph.args[0])
    cut = mean_outputs(small, judge.calibration)
    assert max(float((mean - targets[name]).abs().max()) for name, mean in cut.items()) > 0.01
    module._correct_means(small, judge.calibration, targets)
    for name, mean in mean_outputs(small, judge.calibration).items():
        assert torch.allclose(mean, targets[name], atol=1e-5), name
    assert whole(plan).details["loss"] == pytest.approx(
        Judge(small, judge.example, judge.calibration, judge.validation, repair="none")(
            sc.trace(small, graph.args[0]).plan({}, ())
        ).details["loss"],
        rel=1e-4,
    )


@pytest.mark.parametrize(
    ("images", "size"), [(64, 64), (96, 48), (500, 50), (61, 61), (67, 64), (20, 64), (1000, 50), (59 * 61, 61)]
)
def test_no_small_batch_is_left_over(images: int, size: int) -> None:
    assert module._even_batch(images) == size


def test_images_for_the_refit_come_in_four_batches() -> None:
    judge, _ = made(Plain)
    parts = judge.refitted
    assert [len(part) for part in parts][:4] == [len(parts[0])] * 4
    assert torch.equal(torch.cat(parts), torch.cat(judge.calibration)[: sum(map(len, parts))])


def test_it_uses_so_many_threads() -> None:
    before = torch.get_num_threads()
    try:
        made(Plain)[0].limit_threads(2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_it_travels_without_what_can_be_made_again() -> None:
    judge, graph = made(Plain, repair="least-squares")
    plan = half(graph)
    here = judge(plan)
    assert "lane" in vars(judge)
    there = pickle.loads(pickle.dumps(judge))
    assert "lane" not in vars(there)
    assert there(plan).details == here.details
