"""Layers of an ONNX file, the values between them, and files in which some of them stay in float."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from secateurs.errors import ExportError
from secateurs.export.onnx import run_onnx, to_model
from secateurs.export.onnx_layers import layers_of
from secateurs.export.quantised import Quantising, export_onnx_int8
from secateurs.network import Passed

LAYERS = {"stem", "inner", "outer", "head.0", "head.2"}


class Branched(nn.Module):
    """A stem, a residual branch with batch norm, and a head of two linear layers over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.outer = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 24, 3, padding=1), nn.Conv2d(24, 16, 1)
        self.norm = nn.BatchNorm2d(24)
        self.head = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 5, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.outer(torch.relu(self.norm(self.inner(x)))))
        return self.head(x.flatten(2).transpose(1, 2)).mean(1)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return Branched().eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(32, 3, 10, 10, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def model(network: nn.Module, images: Tensor) -> onnx.ModelProto:
    return to_model(network, images[:1])


def written(network: nn.Module, images: Tensor, path: Path, *in_float: str) -> onnx.ModelProto:
    report = export_onnx_int8(network, images[:1], path, quantising=Quantising([images], in_float=in_float))
    assert set(report.float_layers) == set(in_float)
    assert set(report.int8_layers) == LAYERS - set(in_float)
    return onnx.load(path)


def test_operators_belong_to_modules_folded_norms_and_transposed_weights_included(model: onnx.ModelProto) -> None:
    found = layers_of(model)
    assert set(found.own) == LAYERS
    kinds = {node.name: node.op_type for node in model.graph.node}
    assert [kinds[name] for name in found.operators["inner"]] == ["Conv", "Relu"]
    assert [kinds[name] for name in found.operators["outer"]] == ["Conv"], "the sum and what follows go with none"


def test_values_between_layers_have_their_size(model: onnx.ModelProto) -> None:
    passed = layers_of(model).passed
    assert Passed("inner", "outer", 24 * 64) in passed
    assert Passed("stem", None, 16 * 64) in passed, "read by the sum"
    assert Passed("stem", "inner", 16 * 64) in passed
    assert Passed(None, "head.0", 16 * 64) in passed, "made by the sum"
    assert Passed("head.0", "head.2", 8 * 64) in passed
    assert len(passed) == 6


def test_only_the_named_layers_are_float(network: nn.Module, images: Tensor, tmp_path: Path) -> None:
    made = written(network, images, tmp_path / "mixed.onnx", "inner", "head.2")
    makers = {value: node for node in made.graph.node for value in node.output}
    readers: dict[str, list[str]] = {}
    for node in made.graph.node:
        for value in node.input:
            readers.setdefault(value, []).append(node.op_type)
    layers = layers_of(to_model(network, images[:1])).own
    for layer, (name,) in layers.items():
        node = next(one for one in made.graph.node if one.name == name)
        floats = layer in ("inner", "head.2")
        assert (node.input[1] in makers and makers[node.input[1]].op_type == "DequantizeLinear") != floats
        if not floats:
            assert makers[node.input[0]].op_type == "DequantizeLinear"
    inner = next(one for one in made.graph.node if one.name == layers["inner"][0])
    assert readers[inner.output[0]] == ["Relu"], "not quantised between the convolution and what goes with it"


def test_a_mixed_file_answers_between_float_and_int8(network: nn.Module, images: Tensor, tmp_path: Path) -> None:
    def error(*in_float: str) -> float:
        path = tmp_path / "file.onnx"
        written(network, images, path, *in_float)
        found = np.concatenate([run_onnx(path, [image.numpy()])[0] for image in images.split(1)])
        return float(np.abs(found - network(images).detach().numpy()).mean())

    whole, mixed = error(), error("inner", "outer", "head.0")
    assert 0 < mixed < whole
    assert error(*LAYERS) < mixed


def test_a_name_that_is_no_layer_is_refused_before_anything_is_written(
    network: nn.Module, images: Tensor, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=r"Layer 'norm' is to stay in float, but .* they are head.0, head.2"):
        written(network, images, tmp_path / "file.onnx", "norm")
    assert not list(tmp_path.iterdir())
