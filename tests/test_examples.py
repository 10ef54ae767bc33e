"""The examples do what they say, run as a user runs them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_an_operator_of_ones_own_keeps_its_class_and_its_number_follows() -> None:
    run = subprocess.run([sys.executable, EXAMPLES / "own_operator.py"], capture_output=True, text=True, timeout=200)
    assert run.returncode == 0, run.stderr
    assert "0 barriers" in run.stdout
    assert "first: 5 of 12 channels -> 3 of 6" in run.stdout


@pytest.mark.timeout(600)
def test_the_example_on_one_page() -> None:
    example = EXAMPLES / "mini_prune.py"
    assert len(example.read_text().splitlines()) <= 150
    run = subprocess.run([sys.executable, example], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "fine-tuned" in run.stdout
