from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from secateurs.elements.patterns import from_pattern
from secateurs.elements.rectangles import crop
from secateurs.elements.selection import eligible, patterns
from secateurs.errors import PlanError, PlanMismatchError
from secateurs.structure import apply, trace
from secateurs.structure.kernel_elements import masks_of


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.point = nn.Conv2d(16, 16, 1)
        self.body = nn.Conv2d(16, 40, 3, padding=1)
        self.line = nn.Conv2d(40, 24, (1, 5), padding=(0, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.line(F.relu(self.body(self.point(self.depthwise(self.stem(x)))))).mean((2, 3))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def test_what_can_lose_elements(net: Net) -> None:
    assert eligible(net) == ["body.weight", "line.weight"]
    assert eligible(net, pointwise=True) == ["point.weight", "body.weight", "line.weight"]


@pytest.mark.parametrize("scope", ["block", "filter", "in_channel", "kernel", "layer"])
def test_patterns_keep_the_count(net: Net, scope: str) -> None:
    found = patterns(net, {"body.weight": 4, "line.weight": 5}, scope=scope)
    assert list(found) == ["body.weight"]  # all five positions of the other stay
    kept = from_pattern(found["body.weight"], (40, 16, 3, 3))
    assert int(kept.sum()) == 40 * 16 * 4


def test_layer_patterns_are_rectangles(net: Net) -> None:
    kept = from_pattern(patterns(net, {"body.weight": 4}, scope="layer")["body.weight"], (40, 16, 3, 3))[0, 0]
    rows, columns = kept.any(1).nonzero().flatten(), kept.any(0).nonzero().flatten()
    with torch.no_grad():
        net.body.weight *= kept
        small = crop(net.body, slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
        x = torch.randn(2, 16, 9, 7)
        torch.testing.assert_close(small(x), net.body(x))


def test_names_that_are_no_convolutions(net: Net) -> None:
    with pytest.raises(PlanError, match=r"'body\.bias' is no convolution's weight"):
        patterns(net, {"body.bias": 4})


def test_apply_cuts_channels_then_elements(net: Net) -> None:
    graph = trace(net, torch.randn(1, 3, 8, 8))
    group = next(g for g in graph.groups if "body.weight" in {v.parameter for v in graph.views(g.name)})
    plan = graph.plan({group.name: tuple(range(0, group.units, 2))})
    narrow = apply(net, plan)
    found = patterns(narrow, {"body.weight": 3, "line.weight": 2})
    both = apply(net, plan.model_copy(update={"elements": found}))
    masks = masks_of(both, found)
    for name, weight in narrow.named_parameters():
        cut = dict(both.named_parameters())[name]
        assert torch.equal(cut, weight * masks[name] if name in masks else weight)


def test_patterns_of_another_network_are_refused(net: Net) -> None:
    graph = trace(net, torch.randn(1, 3, 8, 8))
    empty, found = graph.plan({}), patterns(net, {"body.weight": 4})
    with pytest.raises(PlanError, match=r"elements has 'gone\.weight', which is no weight of a convolution"):
        apply(net, empty.model_copy(update={"elements": {"gone.weight": found["body.weight"]}}))
    with pytest.raises(PlanMismatchError, match=r"line\.weight: A pattern of 32 units"):
        apply(net, empty.model_copy(update={"elements": {"line.weight": found["body.weight"]}}))
