"""The command line killed in fine-tuning: what it ends with is what it would have ended with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]
ROOT = Path(__file__).resolve().parents[2]
NETWORK = "digits-resnet?width=1"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def trained(weights: Path) -> None:
    """Weights of a network that has begun to learn."""
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'examples')!r}); import train_digits as t, dataclasses, pathlib\n"
        f"t.MODEL, t.RECIPE = {NETWORK!r}, dataclasses.replace(t.RECIPE, epochs=3)\n"
        f"t.train(pathlib.Path({str(weights)!r}))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=ENVIRONMENT)


def command(folder: Path) -> list[str]:
    """A job without latency tables and measured values: fine-tuning is what counts here."""
    job = [
        "prune",
        NETWORK,
        "--weights",
        str(folder.parent / "digits.safetensors"),
        "--data",
        "digits",
        "--macs",
        "20%",  # so much that training is worth its while on any machine
    ]
    options = ["--criterion", "taylor", "--precision", "fp32", "--epochs", "3"]
    return [sys.executable, "-m", "secateurs", *job, "-o", str(folder), *options]


def test_a_kill_in_fine_tuning_and_a_resume_end_alike(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    trained(tmp_path / "digits.safetensors")
    subprocess.run(command(whole), check=True, capture_output=True, env=ENVIRONMENT)
    process = subprocess.Popen(command(killed), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=ENVIRONMENT)
    checkpoint = killed / "checkpoints" / "checkpoint.safetensors"
    first = None
    deadline = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < deadline:
        if checkpoint.exists():
            first = first or checkpoint.stat().st_mtime_ns
            if checkpoint.stat().st_mtime_ns != first:  # written again: at least one epoch is over
                process.send_signal(signal.SIGKILL)
        time.sleep(0.005)
    assert process.wait() == -signal.SIGKILL
    assert not (killed / "result.json").exists()
    resume = [sys.executable, "-m", "secateurs", "prune", "--resume", "-o", str(killed), "--json"]
    resumed = subprocess.run(resume, check=True, capture_output=True, text=True, env=ENVIRONMENT)
    result, expected = json.loads(resumed.stdout), json.loads((whole / "result.json").read_text())
    assert (killed / "plan.json").read_text() == (whole / "plan.json").read_text()
    assert result["pruned"]["accuracy"] == expected["pruned"]["accuracy"]
    assert result["pruned"]["accuracy"] >= 0.7
    assert not any("repaired network" in note for note in result["notes"]), "what was trained is kept"
    assert (killed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
