"""What sparse convolutions gain over dense ones at every density, as one figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from secateurs.errors import DataError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".pdf")
_SOFT = "#5c6878"


@dataclass(frozen=True)
class LayerCurve:
    """One layer shape: ``sparse_ms`` by kept positions, of ``positions``; it pays up to the share ``density``."""

    name: str
    dense_ms: float
    sparse_ms: Mapping[int, float]
    positions: int
    density: float


def drawable(path: Path) -> None:
    """Nothing, if the figure can be drawn there: to be asked before anything is measured.

    Raises:
        DataError: another ending, or Matplotlib is missing.
    """
    if path.suffix.lower() not in FORMATS:
        raise DataError(f"{path} ends in {path.suffix!r}. The break-even is drawn as {', '.join(FORMATS)}.")
    if find_spec("matplotlib") is None:
        raise DataError(
            "Drawing the break-even needs Matplotlib, which is not installed. Run: pip install 'secateurs[plots]'."
        )


def save(curves: Sequence[LayerCurve], title: str, path: Path) -> None:
    """Write the figure as ``.png``, ``.svg`` or ``.pdf``: speed-up over dense against the share of kept elements.

    Raises:
        DataError: as :func:`drawable`.
    """
    drawable(path)
    from matplotlib import rc_context

    with rc_context({"text.parse_math": False}):  # names may hold dollar signs
        _figure(curves, title).savefig(path, dpi=150)


def _figure(curves: Sequence[LayerCurve], title: str) -> Figure:
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.add_subplot()
    axes.axhline(1.0, color=_SOFT, linewidth=0.8, linestyle="--")
    for index, curve in enumerate(curves):
        colour = colormaps["viridis"](0.9 * index / max(1, len(curves) - 1))
        counts = sorted(curve.sparse_ms)
        shares = [count / curve.positions for count in counts]
        gains = [curve.dense_ms / curve.sparse_ms[count] for count in counts]
        axes.plot(shares, gains, color=colour, marker=".", label=f"{curve.density:.0%}: {curve.name}")
        if 0 < curve.density < 1:
            axes.plot([curve.density], [1.0], color=colour, marker="o", markersize=8, markerfacecolor="none")
    axes.set_yscale("log")
    axes.set_yticks([0.5, 1, 2, 4, 8, 16], ["0.5×", "1×", "2×", "4×", "8×", "16×"])
    axes.minorticks_off()
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("kernel elements kept")
    axes.set_ylabel("speed over the dense convolution")
    axes.set_title(f"Sparse convolutions of {title}", loc="left", fontweight="bold")
    axes.legend(title="pays up to", frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
