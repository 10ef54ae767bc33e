from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from secateurs.recover import precision
from secateurs.recover.averaging import MovingAverage
from secateurs.recover.checkpoint import digest
from secateurs.recover.distillation import distillation_loss
from secateurs.recover.precision import Mode, fastest_mode
from secateurs.recover.recipe import learning_rate


def test_distillation_formula() -> None:
    torch.manual_seed(0)
    logits, teacher, labels = torch.randn(6, 5), torch.randn(6, 5), torch.randint(0, 5, (6,))
    p, q = F.softmax(teacher / 3, 1), F.softmax(logits / 3, 1)
    divergence = float((p * (p / q).log()).sum(1).mean()) * 9
    expected = 0.7 * divergence + 0.3 * float(F.cross_entropy(logits, labels))
    assert float(distillation_loss(logits, labels, teacher, alpha=0.7, temperature=3.0)) == pytest.approx(
        expected, rel=1e-5
    )
    assert float(distillation_loss(logits, labels, teacher, alpha=1.0, temperature=3.0)) == pytest.approx(
        divergence, rel=1e-5
    )
    assert float(distillation_loss(logits, labels, logits, alpha=1.0)) == pytest.approx(0, abs=1e-6)


def test_without_teacher_it_is_cross_entropy() -> None:
    logits, labels = torch.randn(6, 5), torch.randint(0, 5, (6,))
    assert torch.equal(distillation_loss(logits, labels, None), F.cross_entropy(logits, labels))
    assert torch.equal(distillation_loss(logits, labels, -logits, alpha=0.0), F.cross_entropy(logits, labels))
    smoothed = distillation_loss(logits, labels, None, label_smoothing=0.2)
    assert torch.equal(smoothed, F.cross_entropy(logits, labels, label_smoothing=0.2))


def test_learning_rate_rises_and_falls() -> None:
    rates = [learning_rate(step, 100, 0.4, 0.2) for step in range(100)]
    assert rates[0] == pytest.approx(0.02)
    assert rates[20] == pytest.approx(0.4)
    assert all(a < b for a, b in pairwise(rates[:21]))
    assert all(a > b for a, b in pairwise(rates[20:]))
    assert rates[60] == pytest.approx(0.2 * (1 + math.cos(math.pi / 2)))
    assert 0 < rates[-1] < 0.001
    assert learning_rate(0, 1, 0.4, 0.15) == pytest.approx(0.4)


def test_moving_average() -> None:
    module = nn.BatchNorm1d(1)
    average = MovingAverage(module, 0.9)
    with torch.no_grad():
        module.weight.fill_(3.0)
        module.num_batches_tracked.fill_(5)
    average.update(module, 0)
    # decay 0.1 at first
    assert average.tensors["weight"].item() == pytest.approx(0.1 * 1 + 0.9 * 3)
    assert average.tensors["num_batches_tracked"].item() == 5
    average.update(module, 10_000)
    assert average.tensors["weight"].item() == pytest.approx(0.9 * 2.8 + 0.1 * 3)
    other = MovingAverage(nn.BatchNorm1d(1), 0.9)
    other.load(average.tensors)
    assert torch.equal(other.tensors["weight"], average.tensors["weight"])


def test_digest_sees_values_names_and_layout_apart() -> None:
    first = nn.Conv2d(2, 3, 3)
    same = nn.Conv2d(2, 3, 3)
    same.load_state_dict(first.state_dict())
    assert digest(first) == digest(same)
    assert digest(same.to(memory_format=torch.channels_last)) == digest(first)
    with torch.no_grad():
        same.bias[0] += 1
    assert digest(first) != digest(same)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ((1.0, 1.0, 1.0, 1.0), Mode("fp32", "contiguous")),
        ((1.0, 0.8, 0.75, 0.9), Mode("fp32", "channels_last")),
        ((1.0, 0.8, 0.6, 0.5), Mode("bf16", "channels_last")),
        ((1.0, float("inf"), 0.9, 0.95), Mode("fp32", "contiguous")),
        ((1.0, float("inf"), 0.8, 0.9), Mode("bf16", "contiguous")),
    ],
)
def test_fastest_mode(monkeypatch: pytest.MonkeyPatch, seconds: tuple[float, ...], expected: Mode) -> None:
    table = dict(zip([(p, o) for p in ("fp32", "bf16") for o in ("contiguous", "channels_last")], seconds, strict=True))
    monkeypatch.setattr(precision, "_seconds", lambda s, t, i, mode, *hopeless: table[mode.precision, mode.layout])
    assert fastest_mode(nn.Identity(), None, torch.zeros(1, 1, 1, 1)) == expected
    assert fastest_mode(nn.Identity(), None, torch.zeros(1, 1, 1, 1), precision="fp32").precision == "fp32"
    assert fastest_mode(nn.Identity(), None, torch.zeros(1, 1)).layout == "contiguous"


def test_a_network_that_cannot_run_channels_last_is_not_given_it() -> None:
    class Viewed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x).view(len(x), -1)

    module = Viewed()
    mode = fastest_mode(module, None, torch.randn(4, 3, 8, 8), precision="fp32")
    assert mode == Mode("fp32", "contiguous")
    assert module.conv.weight.grad is None
