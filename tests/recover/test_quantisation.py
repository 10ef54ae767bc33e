"""Training with quantisation in the aware."""

from __future__ import annotations

from pathlib import Path

import pytest
import small_job
import torch
from torch import Tensor, nn

from secateurs.data.calls import Inputs
from secateurs.recover import finetune as loop
from secateurs.recover.companion import Companion
from secateurs.recover.quantisation import QuantiseAware


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.up, self.fc = nn.ConvTranspose2d(4, 5, 2, 2), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.up(self.norm(self.conv(x)).relu()).mean((2, 3)))


def network() -> Net:
    torch.manual_seed(0)
    return Net().train()


def rounded_by_hand(weight: Tensor, axis: int, most: int) -> Tensor:
    rows = weight.movedim(axis, 0)
    scale = rows.abs().flatten(1).amax(1).view(-1, *[1] * (rows.ndim - 1)) / most
    return ((rows / scale).round() * scale).movedim(0, axis)


@pytest.mark.parametrize("most", [127, 63])
def test_a_step_computes_with_rounded_weights_and_inputs(most: int) -> None:
    net, images = network(), torch.randn(8, 3, 6, 6)
    aware = QuantiseAware(0, most)
    seen: list[Tensor] = []
    net.conv.register_forward_hook(lambda layer, given, out: seen.extend((given[0], layer.weight, out)))
    net.up.register_forward_hook(lambda layer, given, out: seen.append(layer.weight))
    with aware.attached(net, None):
        aware.forward(net, images)
    given, weight, output, other = seen
    step = (images.max() - images.min()) / 255
    assert 0 < (given - images).abs().max() <= step * 0.51
    assert len(given.unique()) <= 256
    torch.testing.assert_close(weight, rounded_by_hand(net.conv.weight, 0, most))
    torch.testing.assert_close(other, rounded_by_hand(net.up.weight, 1, most))
    torch.testing.assert_close(output, nn.functional.conv2d(given, weight, padding=1))


def test_gradients_pass_and_the_network_is_as_before() -> None:
    net = network()
    aware, images = QuantiseAware(0), torch.randn(8, 3, 6, 6)
    held = {name: tensor.clone() for name, tensor in net.named_parameters()}
    with aware.attached(net, None):
        aware.forward(net, images).square().sum().backward()
        aware.after_backward(net, 0)
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in net.parameters())
    assert all(torch.equal(held[name], parameter) for name, parameter in net.named_parameters())
    assert not any(module._forward_pre_hooks for module in net.modules())
    assert torch.equal(net(images), net(images))


def test_nothing_is_rounded_before_the_step_in_evaluation_or_in_float_layers() -> None:
    net, images = network(), torch.randn(8, 3, 6, 6)
    plain = net(images)
    aware = QuantiseAware(1, in_float=["conv", "up", "fc"])
    with aware.attached(net, None):
        assert torch.equal(aware.forward(net, images), plain)
        aware.after_backward(net, 0)
        assert torch.equal(aware.forward(net, images), plain)  # every layer stays in float
    aware = QuantiseAware(1)
    with aware.attached(net, None):
        assert torch.equal(aware.forward(net, images), plain)
        aware.after_backward(net, 0)
        assert not torch.equal(aware.forward(net, images), plain)
        assert torch.equal(net.eval()(images), net(images))


def test_ranges_run_behind_the_batches_and_are_taken_up_again() -> None:
    net = network()
    aware = QuantiseAware(0)
    with aware.attached(net, None):
        for step, scale in enumerate((1.0, 3.0)):
            images = torch.full((4, 3, 6, 6), scale)
            images[0] = -scale
            aware.forward(net, images)
            aware.after_backward(net, step)
    held = aware.tensors()
    torch.testing.assert_close(held["quantise.ranges.conv"], torch.tensor([-1.2, 1.2]))
    again = QuantiseAware(0)
    again.restore(held)
    assert {name: tensor.tolist() for name, tensor in again.tensors().items()} == {
        name: tensor.tolist() for name, tensor in held.items()
    }


class Doubled(Companion):
    identity = "doubled"

    def forward(self, student: nn.Module, inputs: Inputs) -> Tensor:
        return 2 * super().forward(student, inputs)

    def loss(self) -> Tensor:
        return torch.tensor(7.0)


def test_another_companion_takes_part() -> None:
    net, images = network(), torch.randn(4, 3, 6, 6)
    alone, both = QuantiseAware(0), QuantiseAware(0, also=Doubled())
    with alone.attached(net, None):
        one = alone.forward(net, images)
    with both.attached(net, None):
        torch.testing.assert_close(both.forward(net, images), 2 * one)
    assert float(both.loss()) == 7.0  # type: ignore[arg-type]
    assert "doubled" in both.identity


class Interrupting(small_job.Killer):
    """Progress on which the user presses Ctrl-C at one step."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.step -= steps
        if self.step == 0 and steps:
            raise KeyboardInterrupt


def test_a_training_that_was_interrupted_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_SAVE_SECONDS", 0.0)
    monkeypatch.setattr(loop, "_SAVE_FACTOR", 0.0)

    def trained(folder: str, steps: int = 10**9, first: int = 3) -> dict[str, Tensor]:
        given = {"companion": QuantiseAware(first), "checkpoint_dir": tmp_path / folder, "resume": True}
        return loop.finetune(
            small_job.network(), small_job.data(), small_job.RECIPE, progress=Interrupting(steps), **given
        ).module.state_dict()

    whole = trained("whole")
    with pytest.raises(KeyboardInterrupt):
        trained("cut", 7)
    again = trained("cut")
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert not all(torch.equal(whole[name], tensor) for name, tensor in trained("plain", first=10**9).items())
