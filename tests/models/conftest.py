"""Finds the real networks, which are not part of the repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def stored() -> Path:
    """Folder of the real networks and images."""
    default = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    folder = Path(os.environ.get("SECATEURS_DATA", default))
    if not (folder / "resnet20_cifar10.safetensors").is_file():
        pytest.skip(f"no stored networks in {folder}; set SECATEURS_DATA to their folder")
    return folder
