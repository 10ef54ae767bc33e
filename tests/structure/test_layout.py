"""Networks whose tensors lie channels last come back so: own class, rebuilt graph, optimiser, in two and three axes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import secateurs as sc
from secateurs.structure import trace
from secateurs.structure.layout import arranged_as

LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


class Net(nn.Module):
    """Plain, depthwise, pointwise, grouped and transposed convolutions, batch norm and a classifier."""

    def __init__(self, rank: int = 2, hidden: int = 16) -> None:
        super().__init__()
        conv = nn.Conv2d if rank == 2 else nn.Conv3d
        back = nn.ConvTranspose2d if rank == 2 else nn.ConvTranspose3d
        norm = nn.BatchNorm2d if rank == 2 else nn.BatchNorm3d
        self.a, self.bn = conv(3, hidden, 3, padding=1), norm(hidden)
        self.depthwise = conv(hidden, hidden, 3, padding=1, groups=hidden)
        self.pointwise, self.grouped = conv(hidden, 24, 1), conv(24, 24, 3, padding=1, groups=4)
        self.back, self.fc = back(24, 12, 2, 2), nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.depthwise(torch.relu(self.bn(self.a(x))))
        x = torch.relu(self.back(self.grouped(torch.relu(self.pointwise(x)))))
        return self.fc(x.mean(tuple(range(2, x.dim()))))


class Fixed(Net):
    """Sizes written into the forward: its graph must be rebuilt."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn(self.a(x)))
        x = self.depthwise((x.reshape(-1, 16, 64) * 2).reshape(-1, 16, 8, 8).contiguous(memory_format=LAST[4]))
        return self.fc(torch.relu(self.back(self.grouped(torch.relu(self.pointwise(x))))).mean((2, 3)))


def every_last(module: nn.Module) -> bool:
    """Whether every weight of a convolution lies channels last."""
    weights = [tensor for tensor in module.parameters() if tensor.dim() in LAST]
    assert len(weights) == 5
    return all(weight.is_contiguous(memory_format=LAST[weight.dim()]) for weight in weights)


def images(rank: int, batch: int = 2) -> torch.Tensor:
    """Images, or volumes, channels last."""
    return torch.randn(batch, 3, *(8,) * rank).to(memory_format=LAST[rank + 2])


@pytest.mark.parametrize(("build", "rank"), [(Net, 2), (lambda: Net(3), 3), (Fixed, 2)])
@pytest.mark.parametrize("batch", [1, 2])
def test_what_lies_channels_last_stays_so(build: Callable[[], nn.Module], rank: int, batch: int) -> None:
    model, example = build().eval().to(memory_format=LAST[rank + 2]), images(rank, batch)
    before = example.clone(memory_format=torch.preserve_format)
    graph = trace(model, example)
    small = sc.apply(model, sc.plan(graph, keep=0.5, criterion="l2"), example)
    assert hasattr(small, "secateurs_rebuilt") == (build is Fixed)
    assert every_last(small)
    assert every_last(model)
    assert not small.get_parameter("grouped.weight").is_contiguous()
    assert example.equal(before)
    assert example.stride() == before.stride()
    seen = {}
    if build is not Fixed:
        small.get_submodule("grouped").register_forward_hook(lambda module, given, out: seen.update(out=out))
        small(example)
        assert seen["out"].is_contiguous(memory_format=LAST[rank + 2])


def test_what_lies_plainly_stays_so() -> None:
    model = Net().eval()
    small = sc.apply(model, sc.plan(trace(model, images(2).contiguous()), keep=0.5, criterion="l2"))
    assert all(tensor.is_contiguous() for tensor in small.parameters())


def test_a_mixed_network_stays_mixed() -> None:
    model = Net().eval()
    model.grouped.to(memory_format=torch.channels_last)
    model.fc.weight = nn.Parameter(model.fc.weight.detach().t().contiguous().t())
    small = sc.apply(model, sc.plan(trace(model, images(2)), keep=0.5, criterion="l2"))
    assert not small.grouped.weight.is_contiguous()
    assert small.pointwise.weight.stride() == model.pointwise.weight[:, :8].contiguous().stride()
    assert small.fc.weight.stride() == (1, 5)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.SGD])
def test_the_state_of_an_optimiser_lies_as_its_parameter(kind: type[torch.optim.Optimizer]) -> None:
    model = Net().to(memory_format=torch.channels_last)
    options = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    optimizer = kind(model.parameters(), lr=0.1, **options)  # type: ignore[call-arg]
    model(images(2)).sum().backward()
    optimizer.step()
    small = sc.apply(model, sc.plan(trace(model, images(2)), keep=0.5, criterion="l2"), optimizer=optimizer)
    for parameter in small.parameters():
        for value in optimizer.state[parameter].values():
            if isinstance(value, torch.Tensor) and value.dim():
                assert value.stride() == parameter.stride()


def test_a_removed_block_leaves_the_others_as_they_lie() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(x + self.two(torch.relu(self.one(x))))

    model = nn.Sequential(nn.Conv2d(3, 16, 3), Block(), Block(), nn.Conv2d(16, 5, 1)).to(memory_format=LAST[4]).eval()
    graph = trace(model, images(2))
    made = graph.plan({"0:out": range(8)}, blocks_removed=[graph.blocks[0].name])
    small = sc.apply(model, made, images(2))
    weights = [tensor for tensor in small.parameters() if tensor.dim() == 4]
    assert len(weights) == 4
    assert all(tensor.is_contiguous(memory_format=LAST[4]) for tensor in weights)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1), (3, 2, 1, 0), (1, 0, 2, 3)])
def test_any_order_of_axes(order: tuple[int, ...]) -> None:
    like = torch.empty_permuted((4, 3, 2, 5), order)
    tensor = torch.randn(2, 3, 2, 4)
    found = arranged_as(tensor, like)
    assert found.equal(tensor)
    assert found.stride() == torch.empty_permuted((2, 3, 2, 4), order).stride()
