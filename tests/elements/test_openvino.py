"""The OpenVINO extension: converted networks give the same results there, from the saved file as well."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateurs.elements import native
from secateurs.elements import openvino as sparse_openvino
from secateurs.elements.convert import convert
from secateurs.elements.patterns import PatternChoice, choose
from secateurs.errors import StructureError, TargetUnavailableError
from secateurs.models.cifar_resnet import CifarResNet

openvino = pytest.importorskip("openvino", reason="the extra openvino is not installed")
compiles = pytest.mark.skipif(
    sys.platform != "linux" or not any(shutil.which(c) for c in ("g++", "clang++", "c++")),
    reason="compiling the extension needs a C++ compiler and OpenVINO for Linux",
)


class Zoo(nn.Module):
    """Every activation, a residual, stride, dilation, groups, no bias, a layer without any element, a dense pool."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, stride=2, padding=1, bias=False)
        self.wide = nn.Conv2d(24, 40, 3, padding=2, dilation=2)
        self.grouped = nn.Conv2d(40, 40, 3, padding=1, groups=5)
        self.empty = nn.Conv2d(40, 40, 3, padding=1)
        self.one = nn.Conv2d(40, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu6(self.stem(x)), 2)
        x = F.silu(self.wide(x))
        x = F.relu(self.grouped(x) + x)
        x = x + self.empty(x)
        return self.one(x).mean((2, 3))


def pruned(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            keep = 4 if module.kernel_size == (3, 3) else 0.5
            block = 8 if module.groups > 1 else 32
            module.weight.data *= choose(torch.rand_like(module.weight), PatternChoice(keep=keep, block=block))
    if isinstance(model, Zoo):
        model.empty.weight.data.zero_()
    return model.eval()


def compiled(path: Path, threads: int) -> object:
    core = openvino.Core()
    core.add_extension(str(sparse_openvino.extension()))
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    return core.compile_model(core.read_model(path), "CPU", settings)


@compiles
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("make", "size"), [(lambda: CifarResNet(8), 32), (Zoo, 21)], ids=["cifar", "zoo"])
def test_networks_keep_their_results(make, size: int, threads: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = pruned(make()), torch.randn(3, 3, size, size)
    exported = sparse_openvino.to_openvino(convert(model, x), x)
    kinds = [node.get_type_name() for node in exported.get_ops()]
    convolutions = sum(isinstance(m, nn.Conv2d) for m in model.modules())
    assert kinds.count(sparse_openvino.OPERATOR) == convolutions
    assert "Convolution" not in kinds
    openvino.save_model(exported, tmp_path / "sparse.xml", compress_to_fp16=False)
    with torch.inference_mode():
        expected = model(x).numpy()
    actual = compiled(tmp_path / "sparse.xml", threads)(x.numpy())[0]
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


@compiles
def test_neighbours_exchange_channels_last_tensors() -> None:
    """One transposition at the input and one where the pool begins to matter, none between two convolutions."""
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3))
    x = torch.randn(1, 3, 12, 12)
    exported = sparse_openvino.to_openvino(convert(pruned(model), x, block=8), x)
    assert [n.get_type_name() for n in exported.get_ordered_ops()].count("Transpose") == 2


@compiles
def test_file_without_the_extension_is_refused_by_name(tmp_path: Path) -> None:
    x = torch.randn(1, 3, 8, 8)
    exported = sparse_openvino.to_openvino(convert(pruned(nn.Sequential(nn.Conv2d(3, 8, 3))), x), x)
    openvino.save_model(exported, tmp_path / "sparse.xml", compress_to_fp16=False)
    with pytest.raises(RuntimeError, match=sparse_openvino.OPERATOR):
        openvino.Core().read_model(tmp_path / "sparse.xml")


@compiles
def test_the_library_is_made_once_and_stands_alone(tmp_path: Path) -> None:
    library = sparse_openvino.extension()
    assert library.name == sparse_openvino.LIBRARY
    changed = library.stat().st_mtime_ns
    assert sparse_openvino.extension() == library
    assert library.stat().st_mtime_ns == changed
    copy = shutil.copy(library, tmp_path)  # what an application ships
    openvino.Core().add_extension(str(copy))


@compiles
def test_what_openvino_does_not_know_is_told() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return torch.special.bessel_j0(self.conv(x))

    x = torch.randn(1, 3, 8, 8)
    with pytest.raises(StructureError, match="does not translate"):
        sparse_openvino.to_openvino(convert(Odd(), x), x)


def test_missing_headers_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(openvino, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(TargetUnavailableError, match="has no headers"):
        sparse_openvino.extension()


def test_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(native.shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(TargetUnavailableError, match=r"No C\+\+ compiler"):
        sparse_openvino.extension(tmp_path)
