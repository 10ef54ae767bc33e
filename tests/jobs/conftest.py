"""Makes the training job beside the tests importable, and latency models of the fake target quick."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="module", autouse=True)
def _quick(few_samples: None) -> None:
    """Jobs are tried here, not latency models."""
