"""The shared pass against plain autograd, and the OBS formulas against least squares."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateurs.errors import DataError
from secateurs.importance.context import KINDS
from secateurs.importance.obs import Reader, remove_in_order
from secateurs.importance.probes import unfolded
from secateurs.importance.statistics import Statistics, gather
from secateurs.structure.graph import Graph
from secateurs.structure.trace import trace


class Net(nn.Module):
    """Two convolutions with batch norm and an in-place shortcut, a strided one, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.first_bn = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.second_bn = nn.BatchNorm2d(4)
        self.third = nn.Conv2d(4, 5, 3, stride=2, padding=1)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first_bn(self.first(x)))
        y = self.second_bn(self.second(x))
        y += x
        return self.head(torch.relu(self.third(torch.relu_(y))).mean((2, 3)))


@pytest.fixture(scope="module")
def graph() -> Graph:
    torch.manual_seed(0)
    model = Net()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return trace(model.train(), torch.randn(2, 2, 6, 6))


def data() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(n, 2, 6, 6, generator=generator), torch.randint(0, 3, (n,), generator=generator)) for n in (4, 3)
    ]


@pytest.fixture(scope="module")
def found(graph: Graph) -> Statistics:
    return gather(graph, data(), KINDS)


def gradients(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    F.cross_entropy(model(x), y).backward()
    return {name: p.grad.detach().double().clone() for name, p in model.named_parameters() if p.grad is not None}


def per_image(model: nn.Module) -> list[dict[str, Tensor]]:
    model.eval()
    return [gradients(model, x[i : i + 1], y[i : i + 1]) for x, y in data() for i in range(len(x))]


def test_effects_equal_weight_times_gradient(graph: Graph, found: Statistics) -> None:
    model = graph.model
    single = per_image(model)
    weights = {name: p.detach().double() for name, p in model.named_parameters()}
    stream, inner = (next(g.name for g in graph.groups if g.units == n) for n in (4, 5))

    def effect(names: tuple[str, ...]) -> np.ndarray:
        return np.stack(
            [
                sum(
                    (weights[n] * g[n])
                    .flatten(1 if weights[n].ndim > 1 else 0)
                    .reshape(len(weights[n]), -1)
                    .sum(1)
                    .numpy()
                    for n in names
                )
                for g in single
            ]
        )

    outputs = effect(("first.weight", "second.weight"))
    assert found.outputs[stream].absolute == pytest.approx(np.abs(outputs).mean(axis=0), rel=1e-4, abs=1e-8)
    assert found.outputs[stream].square == pytest.approx((outputs**2).mean(axis=0), rel=1e-4, abs=1e-9)
    by_batch = np.stack([outputs[:4].mean(axis=0), outputs[4:].mean(axis=0)])
    assert found.outputs[stream].batch == pytest.approx(np.abs(by_batch).mean(axis=0), rel=1e-4, abs=1e-8)
    norms = effect(("first_bn.weight", "first_bn.bias", "second_bn.weight", "second_bn.bias"))
    assert found.norms[stream].absolute == pytest.approx(np.abs(norms).mean(axis=0), rel=1e-4, abs=1e-8)
    third = effect(("third.weight", "third.bias"))
    assert found.norms[inner].square == pytest.approx((third**2).mean(axis=0), rel=1e-4, abs=1e-9)


def test_loss_inputs_and_gradients(graph: Graph, found: Statistics) -> None:
    model = graph.model.eval()
    images = sum(len(x) for x, _ in data())
    with torch.no_grad():
        loss = sum(float(F.cross_entropy(model(x), y)) * len(x) for x, y in data()) / images
    assert found.samples == images
    assert found.loss == pytest.approx(loss, rel=1e-5)
    squares = sum(((gradients(model, x, y)["third.weight"] * len(x)) ** 2).numpy() for x, y in data()) / images
    assert found.gradients["third.weight"] == pytest.approx(squares, rel=1e-4, abs=1e-10)
    seen: list[Tensor] = []
    handle = model.get_submodule("second").register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    with torch.no_grad():
        for x, _ in data():
            model(x)
    handle.remove()
    norm = torch.cat(seen).double().square().sum((0, 2, 3)).div(images).sqrt()
    assert found.inputs["second"] == pytest.approx(norm.numpy(), rel=1e-5)


def test_moments_equal_unfolding(graph: Graph, found: Statistics) -> None:
    model = graph.model.eval()
    images = sum(len(x) for x, _ in data())
    rows: list[Tensor] = []
    slopes: list[Tensor] = []

    def watch(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        rows.append(F.unfold(args[0].detach(), 3, padding=1, stride=2).transpose(1, 2).reshape(-1, 36))
        output.register_hook(lambda grad: slopes.append(grad.detach()))

    handle = model.get_submodule("third").register_forward_hook(watch)
    for x, y in data():
        F.cross_entropy(model(x), y, reduction="sum").backward()
    handle.remove()
    model.zero_grad()
    joined = torch.cat(rows).double()
    assert found.moments["third"].gram.numpy() == pytest.approx(
        (joined.T @ joined / images).numpy(), rel=1e-4, abs=1e-5
    )
    slope = torch.cat([s.double().square().sum((0, 2, 3)) for s in slopes]).reshape(2, -1).sum(0) / (images * 9)
    assert found.moments["third"].gradient.numpy() == pytest.approx(slope.numpy(), rel=1e-4, abs=1e-12)


def test_the_model_is_not_touched() -> None:
    model = Net().train()
    graph = trace(model, torch.randn(2, 2, 6, 6))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    gather(graph, data(), KINDS)
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_no_data_and_bad_data(graph: Graph) -> None:
    with pytest.raises(DataError, match="no batches"):
        gather(graph, [], ["inputs"])
    with pytest.raises(DataError, match="batch 1 is nan"):
        gather(graph, [(torch.full((2, 2, 6, 6), float("nan")), torch.zeros(2, dtype=torch.long))], ["outputs"])


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
        nn.Conv2d(3, 4, 3, padding="same"),
        nn.Conv1d(3, 4, 5, stride=2, padding=2),
        nn.Conv3d(3, 4, 2),
    ],
    ids=["strided", "same", "1d", "3d"],
)
def test_unfolded_rows_reproduce_the_convolution(module: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> None:
    x = torch.randn(2, 3, *(6, 5, 4)[: module.weight.ndim - 2])
    output = module(x)
    rows, total = unfolded(module, x, output.shape, torch.Generator().manual_seed(0))
    assert module.bias is not None
    again = rows @ module.weight.flatten(1).T + module.bias
    expected = output.movedim(1, -1).reshape(-1, 4)
    assert total == len(expected) == len(rows)
    assert torch.allclose(again, expected, atol=1e-5)


def reader(seed: int, units: int = 6, per_unit: int = 2, outputs: int = 4) -> tuple[Reader, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    size = units * per_unit
    inputs = torch.randn(60, size, generator=generator, dtype=torch.float64)
    weight = torch.randn(outputs, size, generator=generator, dtype=torch.float64)
    gram = inputs.T @ inputs
    columns = torch.arange(size).reshape(units, per_unit)
    ones = torch.ones(outputs, dtype=torch.float64)
    return Reader(weight.clone(), torch.linalg.inv(gram), ones, columns), inputs, weight


def test_removal_equals_least_squares() -> None:
    one, inputs, weight = reader(0)
    cost = float(one.costs(torch.tensor([2]))[0])
    one.remove(torch.tensor([2]))
    rest = [c for c in range(12) if c not in (4, 5)]
    best = torch.linalg.lstsq(inputs[:, rest], inputs @ weight.T).solution.T
    assert torch.allclose(one.weight[:, rest], best, atol=1e-9)
    assert torch.all(one.weight[:, 4:6] == 0)
    error = float((inputs @ (one.weight - weight).T).square().sum())
    assert 2 * cost == pytest.approx(error, rel=1e-9)
    gram = inputs[:, rest].T @ inputs[:, rest]
    assert torch.allclose(one.inverse[rest][:, rest], torch.linalg.inv(gram), atol=1e-12)


def test_costs_add_up_over_removals() -> None:
    one, inputs, weight = reader(3)
    total = 0.0
    for unit in (5, 0, 3):
        total += float(one.costs(torch.tensor([unit]))[0])
        one.remove(torch.tensor([unit]))
    assert 2 * total == pytest.approx(float((inputs @ (one.weight - weight).T).square().sum()), rel=1e-9)


def test_order_of_removal() -> None:
    one, _, weight = reader(1)
    cheapest = int(torch.argmin(one.costs(torch.arange(6))))
    found = remove_in_order([one, reader(1)[0]])
    assert int(np.argmin(found)) == cheapest
    assert len(np.unique(found)) == 6
    assert np.all(found > 0)
    assert weight.shape == (4, 12)


class Sided(nn.Module):
    """One layer's output is not used, and one runs without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.side, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 1), nn.Conv2d(6, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.stem(x)
        return self.head(x).mean((2, 3)) + 0.0 * self.side(x).detach().mean()


def test_moments_of_layers_without_gradient_are_held_and_their_gradient_is_zero() -> None:
    torch.manual_seed(0)
    graph = trace(Sided().eval(), torch.randn(2, 3, 8, 8))
    batch = (torch.randn(4, 3, 8, 8), torch.arange(4))
    found = gather(graph, [batch], ("moments",)).moments
    assert set(found) >= {"side", "head"}
    assert not found["side"].gradient.any()
    assert found["head"].gradient.all()
    assert (found["side"].gram.diagonal() > 0).all()


def test_units_that_leave_as_one_block_leave_what_one_after_the_other_leaves() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(200, 12, generator=generator, dtype=torch.float64)
    weight = torch.randn(5, 12, generator=generator, dtype=torch.float64)

    def fresh() -> Reader:
        columns = torch.arange(12).reshape(4, 3)
        return Reader(weight.clone(), torch.linalg.inv(rows.T @ rows), torch.ones(5, dtype=torch.float64), columns)

    together, single = fresh(), fresh()
    together.remove(torch.tensor([0, 2]))
    single.remove(torch.tensor([0]))
    single.remove(torch.tensor([2]))
    assert torch.allclose(together.weight, single.weight, atol=1e-10)
    assert torch.allclose(together.inverse, single.inverse, atol=1e-10)
