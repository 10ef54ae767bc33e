"""The command line as a user runs it, on ONNX Runtime and real digits. Slow: some minutes in all."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

ROOT = Path(__file__).resolve().parents[2]
# Whole jobs, and a slow machine may take thrice as long.
pytestmark = [pytest.mark.e2e, pytest.mark.alone, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with weights of a trained network, as the demo makes them (fewer epochs)."""
    folder = tmp_path_factory.mktemp("real")
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'examples')!r}); import train_digits as t, dataclasses, pathlib\n"
        "t.RECIPE = dataclasses.replace(t.RECIPE, epochs=5)\n"
        f"print(t.train(pathlib.Path({str(folder / 'digits.safetensors')!r})))"
    )
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert float(result.stdout) >= 0.93
    return folder


def command(place: Path, out: str, *words: str) -> list[str]:
    job = ["prune", "digits-resnet", "--weights", str(place / "digits.safetensors"), "--data", "digits"]
    return [sys.executable, "-m", "secateurs", *job, "-o", str(place / out), "--precision", "fp32", *words]


@pytest.fixture(scope="module", params=["fisher_obs", pytest.param("measured", marks=pytest.mark.long)])
def finished(request: pytest.FixtureRequest, place: Path) -> Path:
    """A finished run: with scores that are quick, and with those that are the default."""
    words = ["--latency", "50%", "--epochs", "2", "--criterion", request.param]
    subprocess.run(command(place, f"run-{request.param}", *words), check=True, capture_output=True)
    return place / f"run-{request.param}"


def test_the_run_keeps_its_promise(finished: Path) -> None:
    result = json.loads((finished / "result.json").read_text())
    assert result["latency_ratio_upper"] <= 0.5
    assert result["speedup"] >= 1.9
    assert result["budget_used"] >= 0.9  # 0.94 when the plan was chosen; the deployed files are measured anew
    assert result["pruned"]["accuracy"] >= result["dense"]["accuracy"] - 0.05
    assert result["export_max_rel_error"] <= 1e-4
    assert result["structure_check_rel_error"] <= 1e-6
    assert {"plan.json", "model.safetensors", "model.onnx", "report.html", "events.jsonl"} <= {
        path.name for path in finished.iterdir()
    }
    assert "<svg" in (finished / "report.html").read_text()


def test_the_files_hold_what_the_result_says(finished: Path) -> None:
    result = json.loads((finished / "result.json").read_text())
    for side, name in (("dense", "dense.onnx"), ("pruned", "model.onnx")):
        assert result[side]["file_bytes"] == (finished / name).stat().st_size
        session = onnxruntime.InferenceSession(finished / name, providers=["CPUExecutionProvider"])
        [entry] = session.get_inputs()
        [logits] = session.run(None, {entry.name: np.zeros((1, 3, 32, 32), np.float32)})
        assert logits.shape == (1, 10)


def test_other_verbs_take_what_the_run_left(place: Path, finished: Path) -> None:
    weights = ["--weights", str(place / "digits.safetensors")]

    def verb(*words: str) -> object:
        line = [sys.executable, "-m", "secateurs", *words, "--json"]
        return json.loads(subprocess.run(line, check=True, capture_output=True, text=True).stdout)

    plan = str(finished / "plan.json")
    out = str(place / "small.onnx")
    checkpoint = ["--checkpoint", str(finished / "model.safetensors")]
    exported = verb("export", "digits-resnet", plan, *weights, *checkpoint, "-o", out)
    assert isinstance(exported, dict)
    assert exported["file_bytes"] == json.loads((finished / "result.json").read_text())["pruned"]["file_bytes"]
    rows = verb("compare", "digits-resnet", plan, *weights)
    assert isinstance(rows, list)
    assert rows[1]["ratio"] < 0.6
    report = verb("report", str(finished))
    assert isinstance(report, dict)
    assert report["schema"] == "secateurs.result/1"
