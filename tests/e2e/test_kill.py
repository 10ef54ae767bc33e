"""The command line killed in fine-tuning: what it ends with is what it would have ended with."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
BRIGHT = '''
"""A small network, and images whose class is their brightness."""

import torch
from torch import nn
from torch.utils.data import TensorDataset


def make():
    def unit(before, after, stride):
        return [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]

    units = [*unit(3, 16, 1), *unit(16, 32, 2), *unit(32, 32, 2)]
    return nn.Sequential(*units, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4))


def images():
    labels = torch.arange(400) % 4
    pixels = torch.randn(400, 3, 16, 16, generator=torch.Generator().manual_seed(0)) + labels[:, None, None, None]
    return TensorDataset(pixels[:300], labels[:300]), TensorDataset(pixels[300:], labels[300:])
'''


def trained(script: Path, weights: Path) -> None:
    """Weights of a network that has learnt a little."""
    spec = importlib.util.spec_from_file_location("bright", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.manual_seed(0)
    network, (images, labels) = module.make(), module.images()[0].tensors
    optimizer = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9)
    for start in list(range(0, 300, 50)) * 4:
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images[start : start + 50]), labels[start : start + 50]).backward()
        optimizer.step()
    save_file(network.state_dict(), weights)


def command(folder: Path) -> list[str]:
    """A job without latency tables and measured values: fine-tuning is what counts here."""
    script = folder.parent / "bright.py"
    job = [
        "prune",
        f"{script}:make",
        "--weights",
        str(folder.parent / "bright.safetensors"),
        "--data",
        f"{script}:images",
    ]
    job += ["--macs", "5%", "--criterion", "taylor", "--min-width", "1"]  # so much that training is worth its while
    options = ["--precision", "fp32", "--epochs", "40", "--dense-epochs", "0", "--train-batch", "20", "--lr", "0.02"]
    return [sys.executable, "-m", "secateurs", *job, "-o", str(folder), *options]


def test_a_kill_in_fine_tuning_and_a_resume_end_alike(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    (tmp_path / "bright.py").write_text(BRIGHT)
    trained(tmp_path / "bright.py", tmp_path / "bright.safetensors")
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
