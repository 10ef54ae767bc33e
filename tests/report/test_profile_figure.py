from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from secateurs.errors import DataError
from secateurs.latency.model import LatencyModel, profile
from secateurs.profile_drawing import drawing
from secateurs.report.profile_figure import save
from secateurs.testing.latency import FakeTarget, FakeVariants, network, staircase_costs

SPEC = network()


@pytest.fixture(scope="module")
def costs() -> LatencyModel:
    return profile(SPEC, FakeVariants(SPEC), FakeTarget(staircase_costs), samples=48)


def test_what_is_drawn_is_what_the_model_says(costs: LatencyModel) -> None:
    shown = drawing("chain", costs, SPEC.dense_widths)
    assert [bar.name for bar in shown.bars] == [layer.name for layer in SPEC.layers]
    assert sum(bar.ms for bar in shown.bars) + shown.fixed_ms == pytest.approx(costs.predict(SPEC.dense_widths))
    assert len(shown.pairs) == costs.error.count
    assert all(sigma > 0 for _, _, sigma in shown.pairs)
    steepest = shown.staircases[0]
    assert steepest.widths[-1] == 64
    assert steepest.ms[-1] == pytest.approx(max(bar.ms for bar in shown.bars))
    # Measured points, brought to the dense input width, lie on the staircase of the formula.
    widths, ms = steepest.points.T
    wanted = 2e-4 * 64 * np.ceil(widths / 16) * 16 + 0.005
    assert np.median(np.abs(ms / wanted - 1)) < 0.05


def test_many_layers_are_summed_up(costs: LatencyModel) -> None:
    shown = drawing("chain", costs, SPEC.dense_widths, shown=2)
    assert [bar.name for bar in shown.bars][-1] == "3 more"
    whole = drawing("chain", costs, SPEC.dense_widths)
    assert sum(bar.ms for bar in shown.bars) == pytest.approx(sum(bar.ms for bar in whole.bars))


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
