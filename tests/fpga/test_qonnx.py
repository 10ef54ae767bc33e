"""QONNX files, read back and run with the package that FINN reads them with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from secateurs.errors import ExportError
from secateurs.fpga.qonnx import DOMAIN, to_qonnx


def test_the_quantisers_package_gives_what_the_runtime_gives(
    quantised_file: Path, samples: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapper = pytest.importorskip("qonnx.core.modelwrapper", reason="the extra fpga-sim is not installed")
    from qonnx.core.onnx_exec import execute_onnx
    from qonnx.transformation.infer_shapes import InferShapes

    # Its files of single nodes are written in the newest format, which ONNX Runtime of the same day does not read yet.
    monkeypatch.setattr(onnx, "IR_VERSION", 10)
    file = tmp_path / "net.onnx"
    onnx.save(to_qonnx(onnx.load(quantised_file)), file)
    model = wrapper.ModelWrapper(str(file)).transform(InferShapes())
    session = onnxruntime.InferenceSession(str(quantised_file), providers=["CPUExecutionProvider"])
    for image in samples[:2].numpy():
        found = execute_onnx(model, {model.graph.input[0].name: image[None]})[model.graph.output[0].name]
        np.testing.assert_array_equal(found, session.run(None, {session.get_inputs()[0].name: image[None]})[0])


def test_every_quantiser_became_one_node(quantised_file: Path) -> None:
    model = onnx.load(quantised_file)
    made = to_qonnx(model)
    kinds = [node.op_type for node in made.graph.node]
    assert not {"QuantizeLinear", "DequantizeLinear"} & set(kinds)
    assert kinds.count("Quant") == sum(node.op_type == "DequantizeLinear" for node in model.graph.node)
    assert {node.domain for node in made.graph.node if node.op_type == "Quant"} == {DOMAIN}


def test_what_nothing_quantised_is_refused(quantised_file: Path) -> None:
    model = onnx.load(quantised_file)
    quantiser = next(node for node in model.graph.node if node.op_type == "QuantizeLinear")
    quantiser.op_type = "Identity"
    with pytest.raises(ExportError, match="nothing quantised it"):
        to_qonnx(model)
