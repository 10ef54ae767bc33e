from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateurs.errors import DataError, PlanMismatchError
from secateurs.plan import ElementPattern, Fingerprint, Plan
from secateurs.recover.batch_norm import reestimate
from secateurs.recover.refit.least_squares import RefitSettings, correct_bias, least_squares
from secateurs.recover.refit.lockstep import Lane
from secateurs.recover.refit.normal_equations import NormalEquations
from secateurs.recover.refit.unfolding import Geometry, draw_positions, inputs_at, outputs_at
from secateurs.structure import apply, trace
from secateurs.structure.kernel_elements import cut_elements

EXACT = RefitSettings(damping=1e-9, positions=10_000, sweeps=0)


def _plan(slices: dict[str, dict[int, tuple[int, ...]]]) -> Plan:
    return Plan(groups={}, group_sizes={}, slices=slices, fingerprint=Fingerprint(digest="", shapes={}))


def _batches(count: int = 3, size: int = 16, shape: tuple[int, ...] = (3, 9, 8)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, *shape, generator=generator) for _ in range(count)]


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 6, 3, padding=1),
        nn.Conv2d(4, 6, 3, stride=2, padding=(0, 1), bias=False),
        nn.Conv2d(4, 6, (1, 3), dilation=2, stride=(1, 2)),
        nn.Conv2d(4, 6, 2, groups=2),
        nn.Conv2d(4, 4, 3, groups=4, padding=1),
    ],
)
def test_unfolded_inputs_times_weights_are_the_convolution(conv: nn.Conv2d) -> None:
    x = torch.randn(3, 4, 9, 8)
    expected = conv(x)
    lane = Lane(conv.eval(), x)
    geometry = Geometry.of(lane.weighted[0].node, conv.weight)
    positions = draw_positions(expected, geometry, 7, torch.Generator().manual_seed(0))
    assert len(positions) == 7
    unfolded = inputs_at(x, expected.shape[-1], geometry, positions)
    result = (conv.weight.reshape(geometry.groups, -1, unfolded.shape[1]) @ unfolded).flatten(0, 1)
    if conv.bias is not None:
        result = result + conv.bias[:, None]
    assert torch.allclose(result, outputs_at(expected, geometry, positions), atol=1e-5)


def test_unfolded_inputs_of_linear_layers_on_tokens() -> None:
    linear, x = nn.Linear(5, 4), torch.randn(3, 6, 5)
    geometry = Geometry.of(Lane(linear, x).weighted[0].node, linear.weight)
    positions = draw_positions(linear(x), geometry, 2, torch.Generator().manual_seed(0))
    result = linear.weight @ inputs_at(x, 4, geometry, positions)[0] + linear.bias[:, None]
    assert torch.allclose(result, outputs_at(linear(x), geometry, positions), atol=1e-6)


@pytest.mark.parametrize("constant", [True, False])
def test_normal_equations_against_lstsq(constant: bool) -> None:
    rng = np.random.default_rng(0)
    x, residual = rng.normal(size=(2, 7, 90)) + 0.5, rng.normal(size=(2, 3, 90))
    system = NormalEquations(2, 3, 7)
    for part in (slice(0, 40), slice(40, 90)):
        given = torch.tensor(x[:, :, part])
        system.add_inputs(given)
        system.add_residuals(given, torch.tensor(residual[:, :, part]))
    step, shift = system.solve(1e-12, constant=constant)
    for group in range(2):
        design = np.vstack([x[group], np.ones((1, 90))]) if constant else x[group]
        expected = np.linalg.lstsq(design.T, residual[group].T, rcond=None)[0].T
        assert np.allclose(step[group], expected[:, :7], atol=1e-6)
        assert np.allclose(shift[group], expected[:, 7] if constant else 0.0, atol=1e-6)


class Chain(nn.Module):
    """Two convolutions and a linear layer, with or without batch norm."""

    def __init__(self, *, batch_norm: bool, bias: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=not batch_norm)
        self.bn1 = nn.BatchNorm2d(8) if batch_norm else nn.Identity()
        self.conv2 = nn.Conv2d(8, 6, 3, padding=1, bias=bias and not batch_norm)
        self.bn2 = nn.BatchNorm2d(6) if batch_norm else nn.Identity()
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.fc(F.relu(self.bn2(self.conv2(x))).mean((2, 3)))


def _chain(batch_norm: bool) -> Chain:
    torch.manual_seed(0)
    module = Chain(batch_norm=batch_norm).eval()
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            child.running_mean.uniform_(-0.3, 0.3)
            child.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(child.weight, 0.5, 1.5)
            nn.init.uniform_(child.bias, -0.3, 0.3)
    return module


def _duplicated(module: Chain) -> Chain:
    """Channels 4-7 of the first layer made exact linear copies of 0-3, so that cutting them costs nothing."""
    with torch.no_grad():
        for name in ("weight", "bias"):
            for layer in (module.conv1, module.bn1):
                tensor = getattr(layer, name, None)
                if tensor is not None:
                    tensor[4:] = tensor[:4]
        if isinstance(module.bn1, nn.BatchNorm2d):
            module.bn1.running_mean[4:] = module.bn1.running_mean[:4]
            module.bn1.running_var[4:] = module.bn1.running_var[:4]
    return module


@pytest.mark.parametrize("batch_norm", [True, False])
def test_what_can_be_made_up_for_is_made_up_for_exactly(batch_norm: bool) -> None:
    dense = _duplicated(_chain(batch_norm))
    graph = trace(dense, torch.randn(1, 3, 9, 8))
    first = next(group.name for group in graph.groups if group.name == "conv1:out")
    plan = graph.plan({first: (0, 1, 2, 3)})
    small, batches = apply(dense, plan), _batches()
    x = torch.randn(20, 3, 9, 8)
    with torch.no_grad():
        assert (small(x) - dense(x)).abs().max() > 0.02
        done = least_squares(dense, small, plan, batches, settings=EXACT)
        assert (small(x) - dense(x)).abs().max() < 1e-4
    assert done.errors["conv2.weight"][0] > 0.1
    assert done.errors["conv2.weight"][1] < 1e-6
    assert "conv1.weight" in done.skipped
    assert done.images == 48


@pytest.mark.parametrize("batch_norm", [True, False])
def test_the_solution_is_the_best_one(batch_norm: bool) -> None:
    """No weights and constants of the second layer come closer to the dense layer's outputs than the fitted ones."""
    dense = _chain(batch_norm)
    graph = trace(dense, torch.randn(1, 3, 9, 8))
    plan = graph.plan({"conv1:out": (0, 2, 3, 5, 7)})
    small, batches = apply(dense, plan), _batches()
    least_squares(dense, small, plan, batches, settings=EXACT)
    x = torch.cat(batches)
    with torch.no_grad():
        given = F.relu(small.bn1(small.conv1(x)))
        design = torch.cat([F.unfold(given, 3, padding=1).transpose(1, 2).flatten(0, 1), torch.ones(len(x) * 72, 1)], 1)
        wanted = dense.conv2(F.relu(dense.bn1(dense.conv1(x)))).flatten(2).transpose(1, 2).flatten(0, 1)
        best = torch.linalg.lstsq(design.double(), wanted.double()).solution
    assert torch.allclose(small.conv2.weight.flatten(1).double(), best[:-1].T, atol=1e-4)
    if batch_norm:
        shift = dense.bn2.running_mean - small.bn2.running_mean
        assert torch.allclose(shift.double(), best[-1], atol=1e-4)
    else:
        assert torch.allclose(small.conv2.bias.double(), best[-1], atol=1e-4)


def test_minding_the_activation_never_makes_its_output_worse() -> None:
    dense = _chain(batch_norm=True)
    graph = trace(dense, torch.randn(1, 3, 9, 8))
    plan = graph.plan({"conv1:out": (1, 2, 6)})
    batches = _batches()
    x = torch.cat(batches)

    def hidden(module: Chain) -> Tensor:
        return F.relu(module.bn2(module.conv2(F.relu(module.bn1(module.conv1(x))))))

    errors = []
    for sweeps in (0, 1, 4):
        small = apply(dense, plan)
        least_squares(dense, small, plan, batches, settings=RefitSettings(1e-9, positions=10_000, sweeps=sweeps))
        with torch.no_grad():
            errors.append(float((hidden(small) - hidden(dense)).square().mean()))
    assert errors[0] > errors[1] > errors[2]


def test_no_look_at_what_is_wrong_afterwards_changes_no_weight() -> None:
    dense = _chain(batch_norm=True)
    plan = trace(dense, torch.randn(1, 3, 9, 8)).plan({"conv1:out": (1, 2, 6)})
    found = []
    for after in (True, False):
        small = apply(dense, plan)
        done = least_squares(dense, small, plan, _batches(), settings=replace(EXACT, after=after))
        found.append((small.state_dict(), done.errors["conv2.weight"]))
    assert all(torch.equal(found[0][0][name], values) for name, values in found[1][0].items())
    before, reached = found[0][1]
    assert reached < before
    assert found[1][1] == (before, before)


def test_half_precision_is_refitted_in_single() -> None:
    dense = _chain(batch_norm=True)
    plan = trace(dense, torch.randn(1, 3, 9, 8)).plan({"conv1:out": (1, 2, 6)})
    found = []
    for module in (dense, copy.deepcopy(dense).bfloat16()):
        small = apply(module, plan, check=False)
        done = least_squares(module, small, plan, [x.to(next(module.parameters()).dtype) for x in _batches()])
        found.append((small.state_dict(), done.errors["conv2.weight"]))
    (exact, errors), (rounded, near) = found
    assert all(values.dtype == torch.bfloat16 for values in rounded.values() if values.is_floating_point())
    assert near[1] == pytest.approx(errors[1], rel=0.05)
    assert near[1] < 0.7 * near[0]
    change = (exact["conv2.weight"] - dense.conv2.weight[:, [1, 2, 6]]).norm()
    assert (rounded["conv2.weight"].float() - exact["conv2.weight"]).norm() < 0.2 * change


class Residual(nn.Module):
    """A stem and two residual blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.a1, self.a2 = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.b1, self.b2 = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = x + self.a2(F.relu(self.a1(x)))
        x = x + self.b2(F.relu(self.b1(x)))
        return self.fc(x.mean((2, 3)))


def test_later_branches_make_up_for_what_the_stream_lost() -> None:
    torch.manual_seed(0)
    dense = Residual().eval()
    graph = trace(dense, torch.randn(1, 3, 9, 8))
    plan = graph.plan({"a1:out": (0, 1), "b1:out": tuple(range(7))})
    batches, x = _batches(), torch.randn(64, 3, 9, 8)
    errors = []
    for residual in (False, True):
        small = apply(dense, plan)
        settings = RefitSettings(1e-9, positions=10_000, sweeps=0, residual=residual)
        least_squares(dense, small, plan, batches, settings=settings)

        def stream(module: Residual) -> Tensor:
            y = F.relu(module.stem(x))
            y = y + module.a2(F.relu(module.a1(y)))
            return y + module.b2(F.relu(module.b1(y)))

        with torch.no_grad():
            errors.append(float((stream(small) - stream(dense)).square().mean()))
    assert errors[1] < 0.9 * errors[0]


def test_removed_blocks_are_made_up_for() -> None:
    torch.manual_seed(0)
    from secateurs.models.cifar_resnet import CifarResNet

    dense = CifarResNet(14, classes=4).eval()
    batches = _batches(4, 48, (3, 16, 16))
    reestimate(dense, batches)
    graph = trace(dense, batches[0][:1])
    plan = graph.plan({}, ["layer1.1"])
    small = apply(dense, plan)
    before = copy.deepcopy(small)
    done = least_squares(dense, small, plan, batches)
    x = torch.randn(32, 3, 16, 16)
    with torch.no_grad():
        assert (small(x) - dense(x)).square().mean() < 0.7 * (before(x) - dense(x)).square().mean()
    assert not any("layer1.1" in name for name in done.errors)


def test_depthwise_and_strided_layers() -> None:
    from secateurs.models.mobilenet_v1 import MobileNetV1

    torch.manual_seed(0)
    dense = MobileNetV1(classes=4, width=0.25, batch_norm=False, same=True).eval()
    batches = _batches(4, 24, (3, 32, 32))
    graph = trace(dense, batches[0][:1])
    plan = graph.plan({group.name: tuple(range(group.units * 3 // 4)) for group in graph.groups})
    small = apply(dense, plan)
    before = copy.deepcopy(small)
    done = least_squares(dense, small, plan, batches)
    assert len(done.errors) >= 27
    with torch.no_grad():
        x = batches[0]
        assert (small(x) - dense(x)).square().mean() < 0.5 * (before(x) - dense(x)).square().mean()


@pytest.mark.parametrize("batch_norm", [True, False])
def test_bias_correction_matches_the_means_and_leaves_weights(batch_norm: bool) -> None:
    dense = _chain(batch_norm)
    graph = trace(dense, torch.randn(1, 3, 9, 8))
    plan = graph.plan({"conv1:out": (0, 2, 3, 5, 7)})
    small, batches = apply(dense, plan), _batches()
    weight = small.conv2.weight.clone()
    correct_bias(dense, small, plan, batches)
    assert torch.equal(small.conv2.weight, weight)
    with torch.no_grad():
        x = torch.cat(batches)

        def mean(module: Chain) -> Tensor:
            return module.bn2(module.conv2(F.relu(module.bn1(module.conv1(x))))).mean((0, 2, 3))

        assert torch.allclose(mean(small), mean(dense), atol=1e-4)
        assert torch.allclose(small(x).mean(0), dense(x).mean(0), atol=1e-4)


def test_too_few_images_do_not_mislead() -> None:
    """With fewer samples than unknowns, damping that is chosen on unseen images keeps the repair from doing harm."""
    dense = _chain(batch_norm=False)
    graph = trace(dense, torch.randn(1, 3, 9, 8))
    plan = graph.plan({"conv1:out": (0, 2, 3, 5, 7)})
    x = torch.randn(64, 3, 9, 8)
    errors = []
    for damping in (1e-6, None):
        small = apply(dense, plan)
        settings = RefitSettings(damping, positions=1, samples=0.0, sweeps=0)
        least_squares(dense, small, plan, _batches(8, 4), settings=settings)
        with torch.no_grad():
            errors.append(float((small(x) - dense(x)).square().mean()))
    assert errors[1] < 0.7 * errors[0]


def test_an_uncut_network_stays() -> None:
    dense = _chain(batch_norm=True)
    graph = trace(dense, torch.randn(1, 3, 9, 8))
    plan = graph.plan({})
    small = apply(dense, plan)
    least_squares(dense, small, plan, _batches())
    for name, tensor in small.state_dict().items():
        assert torch.allclose(tensor.double(), dense.state_dict()[name].double(), atol=1e-5), name


def test_memory_bounds_the_images() -> None:
    dense = _chain(batch_norm=False)
    plan = trace(dense, torch.randn(1, 3, 9, 8)).plan({})
    batches = _batches(4, 16)
    lane = Lane(dense, batches[0])
    assert lane.peak_bytes() >= 16 * 8 * 72 * 4
    bound = RefitSettings(memory_bytes=5 * lane.peak_bytes())
    assert least_squares(dense, apply(dense, plan), plan, batches, settings=bound).images == 32
    tiny = RefitSettings(memory_bytes=1)
    assert least_squares(dense, apply(dense, plan), plan, batches, settings=tiny).images == 16


def test_lanes_free_what_is_not_needed() -> None:
    dense = _chain(batch_norm=True)
    batches = _batches(2)
    lane = Lane(dense, batches[0])
    lane.feed(batches)
    lane.advance(lane.weighted[-1].node, after=True)
    result = lane.value(lane.weighted[-1].node)
    assert result is not None
    with torch.no_grad():
        assert torch.allclose(result[1], dense(batches[1]), atol=1e-5)
    assert lane.value(lane.weighted[0].node) is None


def test_same_seed_same_weights() -> None:
    dense = _chain(batch_norm=True)
    plan = trace(dense, torch.randn(1, 3, 9, 8)).plan({"conv1:out": (0, 1, 2)})
    results = []
    for seed in (0, 0, 1):
        small = apply(dense, plan)
        least_squares(dense, small, plan, _batches(), settings=RefitSettings(seed=seed, positions=5, samples=1.0))
        results.append(small.conv2.weight)
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_modes_are_restored() -> None:
    dense = _chain(batch_norm=True)
    plan = trace(dense, torch.randn(1, 3, 9, 8)).plan({})
    small = apply(dense, plan).train()
    dense.train()
    before = {name: value.clone() for name, value in dense.state_dict().items()}
    least_squares(dense, small, plan, _batches())
    assert small.training
    assert dense.training
    assert all(torch.equal(value, before[name]) for name, value in dense.state_dict().items())


def test_shared_weights_and_what_a_pattern_prunes_are_left_alone() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.conv = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1)
            self.last = nn.Conv2d(4, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.conv(self.conv(self.stem(x))))

    dense = Shared().eval()
    plan = _plan({}).model_copy(update={"elements": {"last.weight": ElementPattern(scope="layer", pattern=((0, 1),))}})
    small = copy.deepcopy(dense)
    cut_elements(small, plan.elements)
    done = least_squares(dense, small, plan, _batches())
    assert "several calls" in done.skipped["conv.weight"]
    kept = torch.zeros(3, 3, dtype=torch.bool)
    kept[0, :2] = True
    before, after = (module.get_submodule("last").weight for module in (dense, small))
    assert not torch.equal(before[..., kept], after[..., kept])
    assert not after[..., ~kept].any()
    assert list(done.errors) == ["last.weight"]


def test_mistakes_are_told() -> None:
    dense = _chain(batch_norm=False)
    plan = trace(dense, torch.randn(1, 3, 9, 8)).plan({"conv2:out": (0, 1)})
    with pytest.raises(DataError, match="no images"):
        least_squares(dense, apply(dense, plan), plan, [])
    with pytest.raises(PlanMismatchError, match=r"conv2.weight has 6 outputs, the plan keeps 2 of 6"):
        least_squares(dense, copy.deepcopy(dense), plan, _batches())


def test_what_rounding_made_indefinite_is_damped_until_it_is_not() -> None:
    system = NormalEquations(1, 2, 3)
    system.gram = torch.tensor([[[1.0, 1.0, 0.0], [1.0, 1.0 - 1e-3, 0.0], [0.0, 0.0, 1.0]]], dtype=torch.float64)
    system.cross, system.count = torch.ones(1, 2, 3, dtype=torch.float64), 10
    step, _ = system.solve(1e-6, constant=False)
    assert bool(step.isfinite().all())
    assert float(step[0, 0, 2]) == pytest.approx(1.0, rel=0.1)
    system.gram[0, 0, 0] = float("nan")
    step, shift = system.solve(1e-6, constant=True)
    assert float(step.abs().max()) == float(shift.abs().max()) == 0


class Broadcast(nn.Module):
    """Layers whose outputs are added to what is broadcast; and an input changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.tokens, self.head = nn.Linear(8, 6), nn.Linear(6, 4)
        self.shift, self.place = nn.Parameter(torch.randn(1, 8, 1, 1)), nn.Parameter(torch.randn(1, 64, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x.sub_(0.5).div_(2.0))
        x = self.b(x.relu()) + x.mean((2, 3), keepdim=True) + self.shift
        x = self.tokens(x.relu().flatten(2).transpose(1, 2)) + self.place
        return self.head(x.relu().mean(1))


def test_broadcast_summands_and_inputs_changed_in_place() -> None:
    torch.manual_seed(0)
    dense = Broadcast().eval()
    graph = trace(dense, torch.randn(1, 3, 8, 8))
    plan = graph.plan({group.name: tuple(range(group.units - 2)) for group in graph.groups})
    small, batches = apply(dense, plan), _batches(4, 16, (3, 8, 8))
    kept = [batch.clone() for batch in batches]

    def distance() -> float:
        with torch.no_grad():
            return float(sum((small(x.clone()) - dense(x.clone())).square().mean() for x in kept))

    before = distance()
    done = least_squares(dense, small, plan, batches)
    assert all(torch.equal(batch, other) for batch, other in zip(batches, kept, strict=True))
    assert {"b.weight", "tokens.weight", "head.weight"} <= set(done.errors)
    assert distance() < 0.5 * before


def test_layers_with_too_many_inputs_are_corrected_in_their_constants_only() -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 16), nn.ReLU(), nn.Linear(16, 4)
    )
    graph = trace(dense.eval(), torch.randn(1, 3, 8, 8))
    plan = graph.plan({graph.groups[0].name: tuple(range(4))})
    small = apply(dense, plan)
    bound = RefitSettings(memory_bytes=7 * 8 * 100**2)
    before = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    done = least_squares(dense, small, plan, _batches(4, 16, (3, 8, 8)), settings=bound)
    assert "too many" in done.skipped["3.weight"]
    assert "such as 3" in done.note
    assert torch.equal(before["3.weight"], small.state_dict()["3.weight"])
    assert not torch.equal(before["3.bias"], small.state_dict()["3.bias"])
    assert not torch.equal(before["5.weight"], small.state_dict()["5.weight"])


def test_convolutions_of_other_kinds_are_named() -> None:
    dense = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding="same"), nn.Flatten(), nn.Linear(8 * 36, 4))
    graph = trace(dense.eval(), torch.randn(1, 3, 8, 8))
    plan = graph.plan({graph.groups[0].name: tuple(range(4))})
    done = least_squares(dense, apply(dense, plan), plan, _batches(4, 16, (3, 8, 8)))
    assert "this kind" in done.skipped["1.weight"]
    assert "1 were not, such as 1" in done.note
