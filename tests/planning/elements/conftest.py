"""Kernels by formula, a small network and few images for every test of joint plans."""

from __future__ import annotations

import sys
import types
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from secateurs import registry
from secateurs.data import Data, open_data
from secateurs.measure.kernel_times import KernelPoint, KernelTimes
from secateurs.models import Loaded, own

sys.path.insert(0, str(Path(__file__).parent))

from chains import FakeSparse, Residual, formula, kept_costs


@pytest.fixture(autouse=True)
def times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that take what the formula says."""

    def ms(self: KernelTimes, points: Sequence[KernelPoint]) -> np.ndarray:
        return np.array([formula(point) for point in points])

    monkeypatch.setattr(KernelTimes, "ms", ms)
    monkeypatch.setattr(KernelTimes, "fingerprint", {"target": "sparse", "threads": 1})


@pytest.fixture
def fake_sparse(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a target that counts the weights that are not zero."""
    module = types.ModuleType("secateurs_fake_sparse")
    made = FakeSparse(kept_costs, base_ms=0.02, name="fake-sparse", artifact="pt2")
    module.make = lambda: made  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "secateurs_fake_sparse", module)
    monkeypatch.setitem(registry._BUILT_IN["targets"], "fake-sparse", "secateurs_fake_sparse:make")
    return "fake-sparse"


@pytest.fixture(scope="module")
def network() -> Loaded:
    torch.manual_seed(3)
    return own(Residual().eval(), torch.randn(1, 3, 12, 12))


@pytest.fixture(scope="module")
def data(network: Loaded) -> Data:
    data = open_data("digits", network)
    few = {part: getattr(data, part).take(64) for part in ("train", "calibration", "validation", "test")}
    return replace(data, **few)
