"""Deployed files tell nothing of the machine that wrote them."""

from __future__ import annotations

import importlib.util
import zipfile
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from secateurs.export.artifacts import export_artifact


class Branching(nn.Module):
    """A module in a module, and a branch that becomes two graphs inside an operator."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = self.trunk(x).mean((2, 3))
        x = torch.cond(x.mean() > 0.2, lambda y: y.sin(), lambda y: y.cos(), (x,))
        return self.head(x)


def contents(path: Path) -> bytes:
    """Everything in a file, and what an archive holds unpacked."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return b"".join(archive.read(name) for name in archive.namelist())
    return path.read_bytes()


@pytest.mark.parametrize("suffix", ["onnx", "pt2", "xml"])
def test_no_paths_and_no_lines_of_code(suffix: str, tmp_path: Path) -> None:
    if suffix == "xml" and importlib.util.find_spec("openvino") is None:
        pytest.skip("OpenVINO is not installed")
    file = tmp_path / f"network.{suffix}"
    export_artifact(suffix, Branching(), torch.randn(2, 3, 6, 6), file)
    found = contents(file)
    for told in (b".py", str(Path(__file__).parent).encode(), b"self.trunk(x)", str(tmp_path).encode()):
        assert told not in found


def test_operators_keep_the_path_of_their_module(tmp_path: Path) -> None:
    export_artifact("onnx", Branching(), torch.randn(2, 3, 6, 6), tmp_path / "network.onnx")
    nodes = onnx.load(tmp_path / "network.onnx").graph.node
    scopes = {entry.value for node in nodes for entry in node.metadata_props if entry.key == "namespace"}
    for module in ("trunk", "head"):
        assert any(module in scope for scope in scopes)
