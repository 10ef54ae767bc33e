"""Wrong input from the command line: one paragraph that says what, where and what to do; no traceback, no leftovers."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from secateurs.cli.app import app
from secateurs.models import load


def call(*words: str | Path) -> Result:
    """The command line, in this process."""
    return CliRunner().invoke(app, [str(word) for word in words])


def paragraph(result: Result, code: int = 1) -> str:
    """The message of a failed call, which must be one paragraph."""
    assert result.exit_code == code, (result.exit_code, result.stderr, result.exception)
    assert "Traceback" not in result.stderr
    message = result.stderr.strip().splitlines()[-1]
    assert message.startswith("secateurs: "), result.stderr
    assert len(message) < 1200
    return message


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights that fit digits-resnet."""
    path = tmp_path_factory.mktemp("weights") / "digits.safetensors"
    save_file(load("digits-resnet", seed=1).module.state_dict(), path)
    return path


def prune(*words: str | Path, out: Path) -> Result:
    return call("prune", "digits-resnet", "--data", "digits", "--latency", "50%", "-o", out, *words)


def test_a_missing_weights_file(run_folder: Path) -> None:
    message = paragraph(prune("--weights", "nowhere.safetensors", out=run_folder))
    assert "nowhere.safetensors" in message
    assert not run_folder.exists()


def test_weights_of_another_network(run_folder: Path, tmp_path: Path) -> None:
    state = load("digits-resnet", seed=1).module.state_dict()
    missing = {name: tensor for name, tensor in state.items() if name != "layer1.0.conv1.weight"}
    save_file(missing, tmp_path / "missing.safetensors")
    assert "layer1.0.conv1.weight" in paragraph(prune("--weights", tmp_path / "missing.safetensors", out=run_folder))
    save_file({**state, "extra.weight": torch.zeros(3)}, tmp_path / "extra.safetensors")
    assert "extra.weight" in paragraph(prune("--weights", tmp_path / "extra.safetensors", out=run_folder))
    (tmp_path / "broken.safetensors").write_bytes(b"not a weights file")
    assert "broken.safetensors" in paragraph(prune("--weights", tmp_path / "broken.safetensors", out=run_folder))
    assert not run_folder.exists()


@pytest.mark.parametrize("budget", ["0", "0ms", "0%", "-3ms", "150%", "100%", "1x", "fast", "nan%", ""])
def test_a_budget_that_is_none(budget: str, run_folder: Path) -> None:
    message = paragraph(call("prune", "digits-resnet", "--data", "digits", "--latency", budget, "-o", run_folder))
    assert f"'{budget}'" in message
    assert not run_folder.exists()


def test_unknown_names_list_the_known_ones(run_folder: Path) -> None:
    assert "onnxruntime-cpu" in paragraph(prune("--target", "onnxruntme-cpu", out=run_folder))
    assert "knapsack" in paragraph(prune("--strategy", "knapsak", out=run_folder))
    assert "splamp" in paragraph(prune("--criterion", "splmp", out=run_folder))
    message = paragraph(call("prune", "resnet57", "--data", "digits", "--latency", "50%", "-o", run_folder))
    assert "cifar-resnet56" in message
    message = paragraph(call("prune", "digits-resnet", "--data", "digitz", "--latency", "50%", "-o", run_folder))
    assert "parquet:TRAIN,TEST" in message
    assert not run_folder.exists()


def test_a_wrong_input_shape(run_folder: Path) -> None:
    assert "--input" in paragraph(prune("--input", "1,3", out=run_folder))
    assert "--input" in paragraph(prune("--input", "1,3,0,8", out=run_folder))
    assert "--input" in paragraph(prune("--input", "1,5,32,32", out=run_folder))
    assert "--batch" in paragraph(prune("--input", "4,3,32,32", out=run_folder))
    assert not run_folder.exists()


def jpeg(rng: np.random.Generator) -> bytes:
    import io

    stream = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(stream, "jpeg")
    return stream.getvalue()


def table(path: Path, images: list[bytes], labels: list[int]) -> Path:
    pq.write_table(pa.table({"jpeg": images, "label": labels}), path)
    return path


def test_labels_out_of_range_and_a_broken_image(run_folder: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = [jpeg(rng) for _ in range(40)]
    labels = [int(label) for label in rng.integers(0, 10, 40)]
    good = table(tmp_path / "good.parquet", images, labels)
    wrong = table(tmp_path / "wrong.parquet", images, [*labels[:-1], 10])
    arguments = ("prune", "digits-resnet", "--latency", "50%", "-o", run_folder)
    message = paragraph(call(*arguments, "--data", f"parquet:{wrong},{good}"))
    assert "label 10" in message
    assert "0 to 9" in message
    broken = table(tmp_path / "broken.parquet", [*images[:7], b"\xff\xd8 not an image", *images[8:]], labels)
    message = paragraph(call(*arguments, "--data", f"parquet:{good},{broken}"))
    assert "broken.parquet" in message
    assert "7" in message
    message = paragraph(call(*arguments, "--data", f"parquet:{good}"))
    assert "TRAIN,TEST" in message
    message = paragraph(call(*arguments, "--data", f"parquet:{good},{tmp_path / 'none.parquet'}"))
    assert "none.parquet" in message
    assert not run_folder.exists()


def test_a_folder_that_holds_something(run_folder: Path) -> None:
    run_folder.mkdir()
    (run_folder / "thesis.tex").write_text("mine")
    assert "thesis.tex" in paragraph(prune(out=run_folder))
    assert [path.name for path in run_folder.iterdir()] == ["thesis.tex"]
    (run_folder / "thesis.tex").unlink()
    (run_folder / "job.json").write_text("{}")
    assert "--resume" in paragraph(prune(out=run_folder))


def test_resuming_what_is_not_there(run_folder: Path) -> None:
    assert "no run to resume" in paragraph(call("prune", "--resume", "-o", run_folder))


def test_usage_errors_exit_2(run_folder: Path) -> None:
    for words in (
        ("prune", "digits-resnet"),
        ("prune", "digits-resnet", "-o", run_folder, "--latency", "50%"),
        ("prune", "digits-resnet", "-o", run_folder, "--epochs", "many"),
        ("prune", "digits-resnet", "-o", run_folder, "--epochs", "-1"),
        ("frobnicate",),
    ):
        result = call(*words)
        assert result.exit_code == 2, (words, result.exit_code)
        assert "Traceback" not in result.stderr


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_no_write_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert "not writable" in paragraph(prune(out=tmp_path / "run"))


def test_a_folder_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert "cannot be used" in paragraph(prune(out=tmp_path / "file" / "run"))


@pytest.mark.parametrize("text", ["", "{}", '{"schema": "other"}', '{"schema": "secateurs.plan/1"}'])
def test_a_damaged_plan(text: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(text)
    message = paragraph(call("apply", "digits-resnet", tmp_path / "plan.json", "-o", tmp_path / "out.safetensors"))
    assert "plan.json" in message
    assert not (tmp_path / "out.safetensors").exists()


def test_a_plan_for_another_network(tmp_path: Path) -> None:
    made = call("plan", "digits-resnet", "--ratio", "0.5", "--criterion", "random", "-o", tmp_path / "plan.json")
    assert made.exit_code == 0, made.stderr
    message = paragraph(call("apply", "cifar-resnet20", tmp_path / "plan.json", "-o", tmp_path / "out.safetensors"))
    assert "another network" in message
    assert re.search(r"layer|conv|bn", message)


def test_output_in_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    message = paragraph(call("plan", "digits-resnet", "--ratio", "0.5", "-o", tmp_path / "no" / "plan.json"))
    assert "does not exist" in message


def test_plan_wants_one_of_latency_and_ratio(tmp_path: Path) -> None:
    assert "either" in paragraph(call("plan", "digits-resnet", "-o", tmp_path / "plan.json"))
    assert "(0, 1]" in paragraph(call("plan", "digits-resnet", "--ratio", "1.5", "-o", tmp_path / "plan.json"))


def test_report_of_what_is_no_run(tmp_path: Path) -> None:
    assert "holds no run" in paragraph(call("report", tmp_path))
    (tmp_path / "job.json").write_text(json.dumps({"schema": "secateurs.job/1"}))
    assert "has not finished" in paragraph(call("report", tmp_path))
    assert "no folder" in paragraph(call("report", tmp_path / "none"))


def test_a_full_disk_is_a_message(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device", str(run_folder / "dense.onnx"))

    monkeypatch.setattr("secateurs.jobs.comparison.evaluate", full)
    message = paragraph(prune(out=run_folder))
    assert "disk is full" in message
    assert "dense.onnx" in message


def test_a_bug_is_named_as_one(run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("secateurs.jobs.comparison.evaluate", broken)
    message = paragraph(prune(out=run_folder))
    assert "bug in secateurs: ZeroDivisionError" in message
    [report] = tmp_path.glob("secateurs-report-*.txt")
    assert f"The traceback is in {report}: report it" in message
    assert "ZeroDivisionError: division by zero" in report.read_text()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "no"))
    assert "SECATEURS_DEBUG=1" in paragraph(prune(out=tmp_path / "other"))


def test_ctrl_c_says_how_to_go_on(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("secateurs.jobs.comparison.evaluate", interrupted)
    message = paragraph(prune(out=run_folder), code=130)
    assert f"secateurs prune --resume -o {run_folder}" in message
