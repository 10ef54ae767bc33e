from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from secateurs.elements import native
from secateurs.elements.convert import convert
from secateurs.elements.module import SparseConv2d
from secateurs.elements.patterns import PatternChoice, choose
from secateurs.elements.rectangles import deployable
from secateurs.elements.runner import Runner
from secateurs.elements.selection import patterns
from secateurs.errors import PlanError, StructureError
from secateurs.models.cifar_resnet import CifarResNet
from secateurs.models.resnet import ResNet
from secateurs.structure import apply, trace
from secateurs.structure.kernel_elements import masks_of


def settle(model: nn.Module) -> nn.Module:
    """Batch norm statistics and gains that hide no mistake."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.3)
    return model.eval()


def prune(model: nn.Module) -> dict[str, Tensor]:
    masks = {}
    for name, parameter in model.named_parameters():
        if parameter.dim() == 4 and parameter.shape[-1] == 3:
            masks[name] = choose(parameter.detach().square(), PatternChoice(keep=4))
            parameter.data *= masks[name]
    return masks


def layers(module: nn.Module) -> list[SparseConv2d]:
    return [child for child in module.modules() if isinstance(child, SparseConv2d)]


@pytest.mark.parametrize(
    ("make", "size"), [(lambda: CifarResNet(14), 32), (lambda: ResNet(18, classes=10), 64)], ids=["cifar", "resnet18"]
)
def test_networks_keep_their_results(make, size: int) -> None:
    model = settle(make())
    prune(model)
    x = torch.randn(1, 3, size, size)
    converted = convert(model, x)
    counted = sum(isinstance(m, nn.Conv2d) for m in model.modules())
    assert len(layers(converted)) == counted
    assert not any("batch_norm" in str(n.target) or "aten.add" in str(n.target) for n in converted.graph.nodes)
    with torch.inference_mode():
        for batch in (1, 3):
            x = torch.randn(batch, 3, size, size)
            torch.testing.assert_close(converted(x), model(x), rtol=1e-4, atol=1e-4)
    if native.missing() is None:
        runner = Runner(converted, x)
        for _ in range(2):
            x = torch.randn(3, 3, size, size)
            with torch.inference_mode():
                torch.testing.assert_close(runner(x), model(x), rtol=1e-4, atol=1e-4)
        assert len({buffer.data_ptr() for buffer in runner._buffers.values()}) < counted
        assert 1 in runner._borders.values()  # some convolutions read their input where it lies


def test_zeros_padded_ahead_are_the_convolutions_padding() -> None:
    """As in networks whose kernels were cut to rectangles."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.ZeroPad2d((1, 0, 0, 2)), nn.Conv2d(8, 8, 2, padding=1), nn.ReLU(),
        nn.ConstantPad2d((1, 1, 1, 1), 0.5), nn.Conv2d(8, 8, 3),
        nn.ZeroPad2d((-1, 1, 0, 0)), nn.Conv2d(8, 8, (1, 3)),
    ).eval()  # fmt: skip
    x = torch.randn(2, 8, 9, 7)
    converted = convert(model, x)
    with torch.inference_mode():
        torch.testing.assert_close(converted(x), model(x), rtol=1e-4, atol=1e-5)
    assert layers(converted)[0].call[4:8] == [1, 2, 3, 1]
    pads = [node for node in converted.graph.nodes if "pad" in str(node.target)]
    assert len(pads) == 2  # another value, and a border that is cut off


def test_a_pointwise_convolution_of_blocks_reads_only_their_channels() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(24, 64, 1), nn.ReLU()).eval()
    found = patterns(model, {"0.weight": 1 / 4})
    with torch.no_grad():
        model[0].weight *= masks_of(model, found)["0.weight"]
    converted = convert(model, x := torch.randn(1, 24, 5, 7))
    with torch.inference_mode():
        torch.testing.assert_close(converted(x), model(x), rtol=1e-4, atol=1e-5)
    assert layers(converted)[0].density == 1 / 4


class Line(nn.Module):
    """1-D convolutions, as of sound: stride, dilation, a residual, names of padding."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv1d(8, 16, 5, stride=2, padding=3), nn.BatchNorm1d(16)
        self.second = nn.Conv1d(16, 16, 3, padding="same", dilation=2)
        self.last = nn.Conv1d(16, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.first(x)))
        return self.last(F.relu(self.second(x) + x))


def test_convolutions_of_one_dimension() -> None:
    torch.manual_seed(0)
    model = Line().eval()
    model.norm.running_var.uniform_(0.5, 1.5)
    found = patterns(model, {"first.weight": 2, "second.weight": 1, "last.weight": 2}, block=8)
    with torch.no_grad():
        for name, mask in masks_of(model, found).items():
            model.get_parameter(name).mul_(mask)
    x = torch.randn(2, 8, 37)
    converted = convert(model, x, block=8)
    assert [round(layer.density, 2) for layer in layers(converted)] == [0.4, 0.33, 0.67]
    with torch.inference_mode():
        torch.testing.assert_close(converted(x), model(x), rtol=1e-4, atol=1e-5)
        if native.missing() is None:
            torch.testing.assert_close(Runner(converted, x)(x), model(x), rtol=1e-4, atol=1e-5)
    plan = trace(model, x).plan({})
    plan = plan.model_copy(update={"elements": patterns(model, {"first.weight": 2, "last.weight": 2}, scope="layer")})
    small = apply(model, plan)
    smaller = deployable(small, plan)
    shorter = {name for name, weight in smaller.named_parameters() if weight.dim() == 3 and weight.shape[2] == 2}
    assert shorter == {"first.1.weight", "last.1.weight"}
    with torch.inference_mode():
        torch.testing.assert_close(smaller(x), small(x), rtol=1e-4, atol=1e-5)


class Trap(nn.Module):
    """What must not be fused, or only with care."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.scale = nn.Parameter(torch.randn(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        a = self.first(x)
        b = F.relu(a) + a  # a is read twice
        c = self.second(b) + self.scale  # broadcast, not a residual
        d = self.norm(c)  # not the convolution's direct reader
        e = self.depthwise(d) + d  # a residual that is fused
        f = F.relu6(self.second(F.silu(e)))  # shared weights
        return torch.cat([f, F.relu_(self.first(x)), b], 1)


def test_fusions_are_careful() -> None:
    model = settle(Trap())
    model.first.weight.data[:, 1] = 0
    x = torch.randn(2, 3, 9, 7)
    converted = convert(model, x, block=8)
    with torch.inference_mode():
        torch.testing.assert_close(converted(x), model(x), rtol=1e-4, atol=1e-5)
    assert sorted(layer.activation for layer in layers(converted)) == ["none", "none", "relu", "relu6"]
    assert any("aten.conv2d" in str(n.target) for n in converted.graph.nodes)  # the depthwise one, nothing pruned


class Spread(nn.Module):
    """Additions that spread what a convolution gives, which must not be fused into it."""

    def __init__(self) -> None:
        super().__init__()
        self.context, self.own, self.first = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3)
        self.counted = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.context(F.adaptive_avg_pool2d(x, 1))  # over pixels
        x = self.own(x) + self.context(F.adaptive_avg_pool2d(x, 1))
        x = self.counted(x) + (x > 0).to(torch.int32)  # of another type
        return F.relu(x[:, :, 1:-1, 1:-1] + self.first(x[:1]))  # over images


def test_additions_that_spread_are_not_fused() -> None:
    torch.manual_seed(0)
    model, x = Spread().eval(), torch.randn(2, 8, 9, 7)
    converted = convert(model, x)
    runs = [converted] if native.missing() is not None else [converted, Runner(converted, x)]
    with torch.inference_mode():
        for run in runs:
            torch.testing.assert_close(run(x), model(x), rtol=1e-5, atol=1e-5)


def test_masks_decide_and_are_checked() -> None:
    model = settle(CifarResNet(8))
    x = torch.randn(1, 3, 32, 32)
    mask = choose(torch.rand(16, 16, 3, 3), PatternChoice(keep=2))
    converted = convert(model, x, {"layer1.0.conv1.weight": mask}, dense_too=False)
    assert len(layers(converted)) == 1
    assert layers(converted)[0].density == pytest.approx(2 / 9)
    with pytest.raises(PlanError, match="not a convolution's weight"):
        convert(model, x, {"linear.weight": mask})
    with pytest.raises(PlanError, match="one truth value"):
        convert(model, x, {"layer1.0.conv1.weight": mask[:8]})


def test_what_cannot_be_exported_is_named() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if float(x.sum()) > 0 else -x

    with pytest.raises(StructureError, match="Branching"):
        convert(Branching(), torch.randn(1, 3, 4, 4))


@pytest.mark.skipif(native.missing() is not None, reason="needs the kernels")
def test_runner_serves_one_shape() -> None:
    converted = convert(settle(CifarResNet(8)), torch.randn(1, 3, 32, 32))
    runner = Runner(converted, torch.randn(1, 3, 32, 32), threads=1)
    with pytest.raises(PlanError, match="made for inputs"):
        runner(torch.randn(2, 3, 32, 32))

    class Two(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a + b

    with pytest.raises(PlanError, match="2 inputs"):
        Runner(fx.symbolic_trace(Two()), torch.randn(1, 3, 4, 4))
