"""``secateurs export`` to quantised files: calibrated with the data that the network was pruned with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from secateurs.cli.app import app


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "plan.json"
    command = ["plan", "digits-resnet", "--macs", "50%", "--criterion", "l2", "-o", str(path)]
    assert CliRunner().invoke(app, command).exit_code == 0
    return path


def export(plan: Path, *options: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["export", "digits-resnet", str(plan), *options])
    return done.exit_code, done.stdout if done.exit_code == 0 else done.output


def test_an_int8_file_is_written_and_told(plan: Path) -> None:
    file = plan.parent / "small.onnx"
    code, said = export(plan, "--data", "digits", "--to", "onnx:int8", "-o", str(file), "--json")
    assert code == 0
    told = json.loads(said)
    assert (told["format"], told["precision"], told["file_bytes"]) == ("onnx", "int8", file.stat().st_size)
    held = onnx.load(file).graph.initializer
    assert sum(tensor.data_type == onnx.TensorProto.INT8 for tensor in held) >= 8


def test_openvinos_int8_file_computes_what_the_onnx_file_does(plan: Path) -> None:
    openvino = pytest.importorskip("openvino")
    files = [plan.parent / "one.onnx", plan.parent / "other.xml"]
    for file, to in zip(files, ("onnx:int8", "openvino:int8"), strict=True):
        assert export(plan, "--data", "digits", "--to", to, "-o", str(file))[0] == 0
    image = np.random.default_rng(0).random((1, 3, 32, 32), dtype=np.float32)
    found = [next(iter(openvino.compile_model(str(file), "CPU")([image]).values())) for file in files]
    assert np.allclose(found[0], found[1])
    assert 'type="FakeQuantize"' in files[1].read_text()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--to", "onnx:int8"], "calibrated with images. Give --data"),
        (["--to", "onnx:int8", "--data", "digits", "--dynamic-batch"], "has a fixed batch size"),
        (["--to", "executorch:int4"], "cannot be written in 'int4'"),
    ],
)
def test_what_is_missing_is_said_before_the_work(plan: Path, options: list[str], words: str) -> None:
    file = plan.parent / "never.onnx"
    code, said = export(plan, *options, "-o", str(file))
    assert code == 1
    assert words in " ".join(said.split())
    assert not file.exists()


def left_in_float(plan: Path, name: str, *layers: str) -> Path:
    """The plan, written by hand to leave layers in float."""
    path = plan.parent / name
    path.write_text(json.dumps(json.loads(plan.read_text()) | {"precision": dict.fromkeys(layers, "float")}))
    return path


def test_layers_that_a_plan_leaves_in_float_are_told_and_compared(plan: Path) -> None:
    mixed, file = left_in_float(plan, "mixed.json", "conv1"), plan.parent / "mixed.onnx"
    code, said = export(mixed, "--data", "digits", "--to", "onnx:int8", "-o", str(file), "--json")
    assert code == 0
    told = json.loads(said)
    assert told["float_layers"] == ["conv1"]
    assert told["int8_layers"] >= 7
    done = CliRunner().invoke(app, ["compare", str(plan), str(mixed), "--json"])
    assert json.loads(done.stdout)["precision"] == [[], ["conv1"]]


def test_a_plan_that_names_no_layer_is_refused(plan: Path) -> None:
    wrong = left_in_float(plan, "wrong.json", "conv_1")
    code, said = export(wrong, "--data", "digits", "--to", "onnx:int8", "-o", str(plan.parent / "never.onnx"))
    assert code == 1
    assert "leaves 'conv_1' in float" in said
    assert "conv1" in said
