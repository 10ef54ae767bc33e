"""``secateurs export --to fpga`` and ``--to qonnx``, and the limits of an FPGA on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from typer.testing import CliRunner

from secateurs.cli.app import app
from secateurs.fpga import build


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "plan.json"
    command = ["plan", "digits-resnet", "--macs", "50%", "--criterion", "l2", "-o", str(path)]
    assert CliRunner().invoke(app, command).exit_code == 0
    return path


def export(plan: Path, *options: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["export", "digits-resnet", str(plan), *options])
    return done.exit_code, done.stdout if done.exit_code == 0 else done.output


def test_a_folder_of_hardware_is_written_and_told(plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "available", lambda: "not in this test")
    options = ["--data", "digits", "--to", "fpga:ecp5-85f", "--multipliers", "80", "--no-synthesis", "--json"]
    code, said = export(plan, *options, "-o", str(tmp_path / "out"))
    assert code == 0, said
    told = json.loads(said)
    assert told["multipliers"] <= 80
    assert told["cycles"] == sum(layer["cycles"] for layer in told["layers"])
    assert (tmp_path / "out" / "hdl" / "kep_engine.sv").is_file()
    assert (tmp_path / "out" / "README.md").read_text().startswith("# A network on the sparse")


def test_a_qonnx_file_is_written(plan: Path, tmp_path: Path) -> None:
    code, said = export(plan, "--data", "digits", "--to", "qonnx", "-o", str(tmp_path / "net.onnx"), "--json")
    assert code == 0, said
    kinds = {node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node}
    assert "Quant" in kinds
    assert not {"QuantizeLinear", "DequantizeLinear"} & kinds


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--to", "fpga"], "calibrated with images. Give --data"),
        (["--to", "fpga:ice40", "--data", "digits"], "FPGA 'ice40' is unknown"),
        (["--to", "onnx", "--multipliers", "9"], "limit what an FPGA holds"),
        (["--to", "qonnx:int4", "--data", "digits"], "takes nothing behind it"),
        (["--to", "fpga", "--data", "digits", "--block-ram", "much"], "is not understood"),
        (["--to", "fpga", "--data", "digits", "--multipliers", "8", "--no-synthesis"], "does not fit on Lattice"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_written(
    plan: Path, tmp_path: Path, options: list[str], words: str
) -> None:
    place = tmp_path / "never"
    code, said = export(plan, *options, "-o", str(place))
    assert code in (1, 2)
    assert words in " ".join(said.replace("│", " ").split())
    assert not place.exists()


@pytest.mark.parametrize("verb", ["plan", "prune", "front", "compare"])
def test_limits_are_of_an_fpga(verb: str, plan: Path, tmp_path: Path) -> None:
    given = {
        "plan": ["plan", "digits-resnet", "-o", str(tmp_path / "p.json")],
        "prune": ["prune", "digits-resnet", "--data", "digits", "--latency", "50%", "-o", str(tmp_path / "run")],
        "front": ["front", "digits-resnet", "--data", "digits", "-o", str(tmp_path / "run")],
        "compare": ["compare", "digits-resnet", str(plan)],
    }[verb]
    done = CliRunner().invoke(app, [*given, "--target", "torch-cpu", "--multipliers", "64"])
    if verb == "front" and "pymoo" in done.output:
        pytest.skip("the extra hamp is not installed")
    assert done.exit_code == 2
    assert "the target is torch-cpu" in " ".join(done.output.replace("│", " ").split())
