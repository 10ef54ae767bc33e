"""The figure of densities at which the sparse convolution pays."""

from __future__ import annotations

from pathlib import Path

import pytest

from secateurs.errors import DataError
from secateurs.report.break_even_figure import LayerCurve, save


def test_the_figure(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    curve = LayerCurve("layer", 9.0, {n: 1.25 * n for n in range(1, 10)}, 9, 0.8)
    save([curve], "net", tmp_path / "figure.svg")
    assert "layer: 80%" in (tmp_path / "figure.svg").read_text() or (tmp_path / "figure.svg").stat().st_size > 5000
    with pytest.raises(DataError, match="drawn as"):
        save([curve], "net", tmp_path / "figure.txt")
