"""Biases that take back what rounding the weights shifts: mean outputs of int8 layers are those of the float ones."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from secateurs.export.bias_correction import corrected
from secateurs.export.onnx import run_onnx, to_model
from secateurs.export.quantised import quantised, ranges_of, samples


class Biased(nn.Module):
    """Weights that rounding moves all one way: one large one sets the step, the others lie under the next step."""

    def __init__(self) -> None:
        super().__init__()
        self.deep = nn.Conv2d(6, 6, 3, groups=3)
        self.plain, self.head = nn.Conv2d(6, 8, 1), nn.Linear(8, 4)
        for weight in (self.deep.weight, self.plain.weight, self.head.weight):
            with torch.no_grad():
                weight.fill_(0.4 / 63)
                weight.reshape(len(weight), -1)[:, 0] = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.plain(torch.relu(self.deep(x)))).mean((2, 3)))


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(32, 6, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model(images: Tensor) -> onnx.ModelProto:
    torch.manual_seed(0)
    return to_model(Biased().eval(), images[:1], batch=8)


@pytest.mark.parametrize("signed", [False, True])
def test_mean_outputs_are_those_of_the_float_network(
    model: onnx.ModelProto, images: Tensor, tmp_path_factory: pytest.TempPathFactory, *, signed: bool
) -> None:
    given, folder = list(samples([images], 8)), tmp_path_factory.mktemp("bias")
    ranges = ranges_of(model, given)

    def means(file: onnx.ModelProto) -> np.ndarray:
        onnx.save(file, folder / "a.onnx")
        return np.mean([run_onnx(folder / "a.onnx", one)[0].mean(0) for one in given], axis=0)

    made = quantised(model, ranges, seven_bits=True, signed=signed)
    mended = quantised(corrected(model, made, given), ranges, seven_bits=True, signed=signed)
    exact = means(model)
    before, after = np.abs(means(made) - exact).max(), np.abs(means(mended) - exact).max()
    assert before > 0.02 * np.abs(exact).max(), "rounding is felt"
    assert after < 0.2 * before


def test_the_file_that_is_given_stays_and_weights_too(model: onnx.ModelProto, images: Tensor) -> None:
    given = list(samples([images], 8))
    ranges, before = ranges_of(model, given), model.SerializeToString()
    mended = corrected(model, quantised(model, ranges, seven_bits=True), given)
    assert model.SerializeToString() == before
    changed = {
        tensor.name
        for tensor, old in zip(mended.graph.initializer, model.graph.initializer, strict=True)
        if not np.array_equal(numpy_helper.to_array(tensor), numpy_helper.to_array(old))
    }
    assert changed == {node.input[2] for node in model.graph.node if node.op_type in ("Conv", "Gemm")}
