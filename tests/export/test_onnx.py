from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from secateurs.errors import ExportError
from secateurs.export.onnx import export_onnx, run_onnx, with_batch

torch.set_num_threads(1)


def network() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))
    model[1].running_mean.normal_()
    model[1].running_var.uniform_(0.5, 2)
    return model


def test_the_file_computes_the_same(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = network().train()
    report = export_onnx(model, torch.randn(2, 3, 8, 8), tmp_path / "m.onnx")
    assert report.max_rel_error < 1e-5
    assert report.size_bytes == (tmp_path / "m.onnx").stat().st_size
    assert model.training
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
    kinds = {node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node}
    assert "BatchNormalization" not in kinds
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""


@pytest.mark.parametrize(("batch", "shape"), [(1, (1, 4)), (5, (5, 4))])
def test_batch(tmp_path: Path, batch: int, shape: tuple[int, ...]) -> None:
    export_onnx(network(), torch.randn(1, 3, 8, 8), tmp_path / "m.onnx", batch=batch)
    x = np.zeros((batch, 3, 8, 8), np.float32)
    assert run_onnx(tmp_path / "m.onnx", [x])[0].shape == shape


def test_open_batch(tmp_path: Path) -> None:
    export_onnx(network(), torch.randn(1, 3, 8, 8), tmp_path / "m.onnx", batch=None)
    for batch in (1, 7):
        assert run_onnx(tmp_path / "m.onnx", [np.zeros((batch, 3, 8, 8), np.float32)])[0].shape == (batch, 4)


def test_examples_in_every_form(tmp_path: Path) -> None:
    class Two(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return x + 2 * y

    x = torch.randn(1, 4)
    assert export_onnx(Two(), (x, x), tmp_path / "a.onnx").max_rel_error < 1e-6
    assert export_onnx(Two(), ((x,), {"y": x}), tmp_path / "b.onnx").max_rel_error < 1e-6
    with pytest.raises(ExportError, match="Give a tensor"):
        export_onnx(Two(), "x", tmp_path / "c.onnx")


class Impossible(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(np.linalg.inv(x.numpy()))


def test_what_cannot_be_exported_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="Impossible cannot be exported"):
        export_onnx(Impossible(), torch.eye(3)[None], tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="Cannot write"):
        export_onnx(network(), torch.randn(1, 3, 8, 8), tmp_path / "no" / "m.onnx")


class TwoFaced(nn.Module):
    """Computes something else when it is exported."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * (2 if torch.compiler.is_exporting() else 3)


def test_another_result_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="differs from PyTorch"):
        export_onnx(TwoFaced(), torch.randn(1, 4), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_with_batch_repeats_and_cuts() -> None:
    x = torch.arange(3)[:, None]
    assert with_batch(x, 5)[:, 0].tolist() == [0, 1, 2, 0, 1]
    assert with_batch({"a": (x,)}, 1)["a"][0].shape == (1, 1)


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_other_number_formats_are_told_what_to_do(kind: torch.dtype, tmp_path: Path) -> None:
    named = str(kind).removeprefix("torch.")
    with pytest.raises(ExportError, match=rf"cannot run .*is of {named}.*export network\.float\(\)"):
        export_onnx(network().to(kind), torch.randn(1, 3, 8, 8, dtype=kind), tmp_path / "m.onnx")
