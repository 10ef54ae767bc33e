from __future__ import annotations

import pytest
import torch
from torch import nn

from secateurs.errors import DataError
from secateurs.recover.batch_norm import reestimate


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, 5, 1))
    return module.append(nn.BatchNorm2d(5, momentum=0.3)).eval()


def test_statistics_are_the_averages_over_batches() -> None:
    module, batches = _network(), [torch.randn(8, 3, 6, 6) * 2 + 1 for _ in range(3)]
    weights = {key: value.clone() for key, value in module.named_parameters()}
    done = reestimate(module, batches)
    assert (done.layers, done.images) == (2, 24)
    outputs = [module[0](batch) for batch in batches]
    mean = torch.stack([out.mean((0, 2, 3)) for out in outputs]).mean(0)
    variance = torch.stack([out.transpose(0, 1).flatten(1).var(1) for out in outputs]).mean(0)
    assert torch.allclose(module[1].running_mean, mean, atol=1e-6)
    assert torch.allclose(module[1].running_var, variance, atol=1e-5)
    for key, value in module.named_parameters():
        assert torch.equal(value, weights[key])


def test_modes_and_momenta_are_restored_and_dropout_is_off() -> None:
    module = _network()
    module[5].train()
    module[2].train()
    before = [child.training for child in module.modules()]
    reestimate(module, [(torch.randn(8, 3, 6, 6), torch.zeros(8)) for _ in range(2)])
    first = module[5].running_mean.clone()
    assert [child.training for child in module.modules()] == before
    assert (module[1].momentum, module[5].momentum) == (0.1, 0.3)
    torch.manual_seed(5)
    inputs = torch.randn(8, 3, 6, 6)
    reestimate(module, [inputs])
    second = module[5].running_mean.clone()
    reestimate(module, [inputs])
    assert torch.equal(second, module[5].running_mean)
    assert not torch.equal(first, second)


def test_a_smaller_last_batch_is_left_out() -> None:
    module, full = _network(), torch.randn(8, 3, 6, 6)
    assert reestimate(module, [full, full[:3] * 100]).images == 8
    expected = module[1].running_mean.clone()
    reestimate(module, [full])
    assert torch.equal(module[1].running_mean, expected)


def test_without_batch_norm_nothing_happens_and_that_is_said() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
    done = reestimate(module, [torch.full((2, 3, 5, 5), float("nan"))])
    assert done.layers == 0
    assert "nothing was re-estimated" in done.note


def test_mistakes_are_told() -> None:
    with pytest.raises(DataError, match="no images"):
        reestimate(_network(), [])
    with pytest.raises(DataError, match="NaN"):
        reestimate(_network(), [torch.full((4, 3, 6, 6), float("nan"))])
