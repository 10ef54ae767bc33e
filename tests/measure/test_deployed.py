"""A deployed file called like a network: what comes back is what the runtime answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from secateurs.errors import TargetError
from secateurs.export.onnx import export_onnx
from secateurs.latency.targets import open_target
from secateurs.measure.deployed import running


class Two(nn.Module):
    """Two inputs, one of them not per sample, and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        y = self.layer(x)
        return y, y.argmax(1) + bias


@pytest.mark.parametrize("target", ["onnxruntime-cpu", "openvino-cpu"])
@pytest.mark.parametrize("batch", [1, 4])
def test_answers_are_those_of_the_network_for_any_number_of_samples(tmp_path: Path, batch: int, target: str) -> None:
    torch.manual_seed(0)
    module, file = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)).eval(), tmp_path / "a.onnx"
    export_onnx(module, torch.randn(1, 3), file, batch=batch)
    with running(open_target(target), file, batch=batch) as deployed:
        for samples in (1, 4, 7):
            inputs = torch.randn(samples, 3)
            found = deployed(inputs)
            assert isinstance(found, Tensor)
            assert found.shape == (samples, 2)
            assert torch.allclose(found, module(inputs), atol=1e-5)
            assert torch.equal(found, deployed(inputs))


def test_several_inputs_and_outputs_of_several_types(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, file = Two().eval(), tmp_path / "a.onnx"
    bias = torch.tensor(2)
    export_onnx(module, (torch.randn(1, 3), bias), file, batch=2)
    inputs = torch.randn(5, 3)
    with running(open_target("onnxruntime-cpu"), file, batch=2) as deployed:
        scores, best = deployed(inputs, bias=bias)
    expected = module(inputs, bias)
    assert torch.allclose(scores, expected[0], atol=1e-5)
    assert best.dtype == torch.int64
    assert np.array_equal(best.numpy(), expected[1].numpy())


def test_a_file_that_the_runtime_refuses_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"no model")
    with (
        pytest.raises(TargetError, match="the runtime refused the model"),
        running(open_target("onnxruntime-cpu"), tmp_path / "a.onnx"),
    ):
        pass
