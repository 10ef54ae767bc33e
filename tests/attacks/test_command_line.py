"""Wrong words on the command line that are known before any work: one paragraph, its exit code, nothing left behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from secateurs.cli.app import app

PRUNE = ("prune", "digits-resnet", "--data", "digits", "--latency", "60%")
CASES: dict[str, tuple[tuple[str, ...], int, str]] = {
    "lr is nan": ((*PRUNE, "-o", "RUN", "--lr", "nan"), 1, "lr"),
    "lr is below zero": ((*PRUNE, "-o", "RUN", "--lr", "-1"), 1, "lr is -1"),
    "lr is 0": ((*PRUNE, "-o", "RUN", "--lr", "0"), 1, "lr is 0"),
    "lr is infinite": ((*PRUNE, "-o", "RUN", "--lr", "inf"), 1, "lr is inf"),
    "precision": ((*PRUNE, "-o", "RUN", "--precision", "fp64"), 1, "fp64"),
    "a fraction of epochs": ((*PRUNE, "-o", "RUN", "--epochs", "1.5"), 2, "--epochs"),
    "threads": ((*PRUNE, "-o", "RUN", "--threads", "100000"), 1, "100000 threads"),
    "seed below zero": ((*PRUNE, "-o", "RUN", "--seed", "-1"), 2, "no seed"),
    "huge seed": ((*PRUNE, "-o", "RUN", "--seed", str(2**64)), 2, "no seed"),
    "a store that is a text": ((*PRUNE, "-o", "RUN", "--store", "TEXT"), 1, "not a database"),
    "a store that is a pipe": ((*PRUNE, "-o", "RUN", "--store", "PIPE"), 1, "is a pipe"),
    "other digits": ((*PRUNE[:-1], "٣ms", "-o", "RUN"), 1, "not understood"),
    "ratio and latency": (("plan", "digits-resnet", "--ratio", "0.5", "--latency", "60%", "-o", "OUT"), 1, "either"),
    "neither": (("plan", "digits-resnet", "-o", "OUT"), 1, "either"),
    "a ratio of nan": (("plan", "digits-resnet", "--ratio", "nan", "-o", "OUT"), 1, "(0, 1]"),
    "a plan into a device": (("plan", "digits-resnet", "--ratio", "0.5", "-o", "/dev/full"), 1, "is a device"),
    "a plan into a pipe": (("plan", "digits-resnet", "--ratio", "0.5", "-o", "PIPE"), 1, "is a pipe"),
    "a model file that is a pipe": (("doctor", "digits-resnet", "--weights", "PIPE"), 1, "is a pipe"),
    "input of other digits": (("doctor", "digits-resnet", "--input", "1,3,٣٢,٣٢"), 1, "--input"),
    "input of many digits": (("doctor", "digits-resnet", "--input", f"1,3,{'9' * 5000},8"), 1, "--input"),
    "an option of many digits": (("doctor", f"digits-resnet?classes={'9' * 5000}"), 1, "classes"),
    "an option of deep JSON": (("doctor", f"digits-resnet?classes={'[' * 9000}"), 1, "classes"),
    "pad of superscripts": ((*PRUNE[:3], "digits?pad=²", *PRUNE[4:], "-o", "RUN"), 1, "pad"),
    "a factory that exits": (("doctor", "FACTORY:stop"), 1, "SystemExit"),
    "a factory of a forward that exits": (("doctor", "FACTORY:exits", "--input", "1,3,8,8"), 1, "SystemExit"),
    "a forward that gives None": (("doctor", "FACTORY:none", "--input", "1,3,8,8"), 1, "NoneType"),
    "a forward that gives a text": (("doctor", "FACTORY:text", "--input", "1,3,8,8"), 1, "returned str"),
    "a store to check that is none": (("store", "check", "--store", "TEXT"), 1, "not a database"),
    "rows from a pipe": (("store", "import", "PIPE", "--store", "NEW"), 1, "is a pipe"),
}
NETWORKS = """
import sys
from torch import nn
class Net(nn.Module):
    def __init__(self, result):
        super().__init__()
        self.conv, self.result = nn.Conv2d(3, 4, 3), result
    def forward(self, x):
        self.conv(x)
        return self.result()
def stop(): sys.exit(0)
def exits(): return Net(lambda: sys.exit(0))
def none(): return Net(lambda: None)
def text(): return Net(lambda: "four")
"""


@pytest.mark.parametrize("name", CASES)
def test_it_is_told_before_any_work(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(*given: object, **more: object) -> None:
        raise AssertionError("work has begun")

    monkeypatch.setattr("secateurs.jobs.comparison.evaluate", measured)
    os.mkfifo(tmp_path / "PIPE")
    (tmp_path / "TEXT").write_text("my notes, which are no database, but long enough to look at " * 20)
    (tmp_path / "factory.py").write_text(NETWORKS)
    before = {path.name for path in tmp_path.iterdir()}
    places = {word: str(tmp_path / word) for word in ("PIPE", "TEXT", "RUN", "OUT", "NEW")}
    words, code, told = CASES[name]
    given = [places.get(word, word).replace("FACTORY", str(tmp_path / "factory.py")) for word in words]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == code, (result.exit_code, result.stderr, result.exception)
    assert told in " ".join(result.stderr.split()), result.stderr
    assert "Traceback" not in result.stderr
    assert "bug in secateurs" not in result.stderr
    assert {path.name for path in tmp_path.iterdir()} - before <= {"__pycache__"}
    assert (tmp_path / "TEXT").read_text().startswith("my notes")
