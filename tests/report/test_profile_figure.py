from __future__ import annotations

from pathlib import Path

import pytest

from secateurs.errors import DataError
from secateurs.latency.model import LatencyModel, profile
from secateurs.measure.drawing import drawing
from secateurs.report.profile_figure import save
from secateurs.testing.latency import FakeTarget, FakeVariants, network, staircase_costs

SPEC = network()


@pytest.fixture(scope="module")
def costs() -> LatencyModel:
    return profile(SPEC, FakeVariants(SPEC), FakeTarget(staircase_costs), samples=48)


@pytest.mark.parametrize(("ending", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".html", b"<!doctype html>")])
def test_it_is_written(costs: LatencyModel, tmp_path: Path, ending: str, start: bytes) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / f"profile{ending}"
    save(drawing("chain", costs, SPEC.dense_widths), file)
    assert file.read_bytes().startswith(start)
    assert file.stat().st_size > 20_000


def test_another_ending_is_told(costs: LatencyModel, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\.png, \.svg"):
        save(drawing("chain", costs, SPEC.dense_widths), tmp_path / "profile.bmp")
