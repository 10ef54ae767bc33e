"""A latency model as one figure: time per layer, staircases of the costliest layers, predicted against measured."""

from __future__ import annotations

import base64
import importlib.util
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from secateurs.errors import DataError
from secateurs.report.wording import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".pdf", ".html")
_INK, _SOFT, _GRID = "#1c2430", "#5c6878", "#e3e8ee"
_GREEN, _BLUE, _ORANGE = "#2f7d5b", "#2563a8", "#c2410c"


@dataclass(frozen=True)
class Bar:
    """One layer's ``ms`` in the dense network, ± ``sigma_ms``."""

    name: str
    ms: float
    sigma_ms: float


@dataclass(frozen=True)
class Staircase:
    """Predicted ``ms`` [n] of a layer at ``widths`` [n], its relative ``spread``, and measured ``points`` [k, 2].

    ``side``: the side that varies (``"output"`` or ``"input"``), the other being dense.
    """

    name: str
    side: str
    widths: np.ndarray
    ms: np.ndarray
    spread: float
    points: np.ndarray


@dataclass(frozen=True)
class ProfileDrawing:
    """What the figure shows. ``pairs``: (predicted, measured, sigma) ms; ``plans``: (predicted, measured) ms."""

    title: str
    error: str
    bars: tuple[Bar, ...]
    fixed_ms: float
    staircases: tuple[Staircase, ...]
    pairs: tuple[tuple[float, float, float], ...]
    plans: tuple[tuple[float, float], ...]


def check(path: Path) -> None:
    """Raises DataError where :func:`save` would: another ending, or Matplotlib is missing."""
    if path.suffix.lower() not in FORMATS:
        raise DataError(f"{path} ends in {path.suffix!r}. A profile is drawn as {', '.join(FORMATS)}.")
    if importlib.util.find_spec("matplotlib") is None:
        raise DataError(
            "Drawing a profile needs Matplotlib, which is not installed. Run: pip install 'secateurs[plots]'."
        )


def save(drawing: ProfileDrawing, path: Path) -> None:
    """Write the figure as ``.png``, ``.svg``, ``.pdf`` or, as a page, ``.html``.

    Raises:
        DataError: another ending, or Matplotlib is missing.
    """
    check(path)
    figure = _figure(drawing)
    if path.suffix.lower() != ".html":
        figure.savefig(path, dpi=150)
        return
    memory = io.BytesIO()
    figure.savefig(memory, format="png", dpi=150)
    image = base64.b64encode(memory.getvalue()).decode("ascii")
    path.write_text(
        f"<!doctype html>\n<html lang='en'><head><meta charset='utf-8'><title>{escape(drawing.title)}</title></head>\n"
        f"<body style='margin:0;background:#fff'><img alt='{escape(drawing.title)}' "
        f"style='width:100%;max-width:1600px;display:block;margin:auto' src='data:image/png;base64,{image}'>"
        f"</body></html>\n",
        encoding="utf-8",
    )


def _figure(drawing: ProfileDrawing) -> Figure:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style = {
        "font.size": 9, "axes.edgecolor": _SOFT, "axes.labelcolor": _INK, "text.color": _INK, "xtick.color": _SOFT,
        "ytick.color": _SOFT, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 9.5,
        "axes.titlelocation": "left", "axes.titleweight": "bold", "text.parse_math": False,
    }  # fmt: skip
    with rc_context(style):
        figure = Figure(figsize=(13, max(8.0, 2.6 + 0.2 * len(drawing.bars))), layout="constrained")
        figure.suptitle(f"{drawing.title}\n\n", x=0.01, ha="left", fontsize=13, fontweight="bold")
        figure.text(0.01, 0.985 - 0.28 / figure.get_figheight(), drawing.error, color=_SOFT, va="top")
        grid = figure.add_gridspec(3, 3, width_ratios=(1.35, 1, 1))
        _draw_bars(figure.add_subplot(grid[:, 0]), drawing.bars, drawing.fixed_ms)
        cells = [grid[0, 1], grid[0, 2], grid[1, 1], grid[1, 2], grid[2, 1]]
        for cell, staircase in zip(cells, drawing.staircases, strict=False):
            _draw_staircase(figure.add_subplot(cell), staircase)
        _draw_pairs(figure.add_subplot(grid[2, 2]), drawing)
    return figure


def _draw_bars(axes: Axes, bars: Sequence[Bar], fixed_ms: float) -> None:
    rows = [*bars, Bar("fixed", fixed_ms, 0.0)]
    places, total = np.arange(len(rows)), sum(bar.ms for bar in rows)
    colours = [_GREEN] * len(bars) + [_SOFT]
    # Only the upper whisker: a lower one would hide in the bar.
    axes.barh(places, [bar.ms for bar in rows], color=colours, height=0.72)
    axes.errorbar(
        [bar.ms for bar in rows], places, xerr=[bar.sigma_ms for bar in rows], fmt="none", ecolor=_INK, elinewidth=0.8,
        capsize=1.5,
    )  # fmt: skip
    for place, bar in enumerate(rows):
        axes.text(
            bar.ms + bar.sigma_ms, place, f"  {percent(bar.ms / total, 1)}", va="center", color=_SOFT, fontsize=7.5
        )
    axes.set_yticks(places, [bar.name if len(bar.name) <= 34 else "…" + bar.name[-33:] for bar in rows])
    axes.tick_params(axis="y", labelcolor=_INK, labelsize=8, length=0)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 1.14 * max(bar.ms + bar.sigma_ms for bar in rows))
    axes.set_xlabel("ms in the dense network, ± one standard deviation")
    axes.set_title("Time per layer, in order of execution")
    _light(axes, "x")


def _draw_staircase(axes: Axes, staircase: Staircase) -> None:
    low, high = staircase.ms * (1 - staircase.spread), staircase.ms * (1 + staircase.spread)
    axes.fill_between(staircase.widths, low, high, color=_GREEN, alpha=0.15, linewidth=0, step="mid")
    thickness = 1.3 if len(staircase.widths) <= 130 else 0.6
    axes.step(staircase.widths, staircase.ms, where="mid", color=_GREEN, linewidth=thickness, label="model")
    if len(staircase.points):
        axes.plot(*staircase.points.T, "o", color=_BLUE, alpha=0.5, markersize=3, markeredgewidth=0, label="measured")
    axes.set_title(staircase.name)
    axes.set_xlabel(f"{staircase.side} channels")
    axes.set_ylabel("ms")
    axes.set_xlim(0, 1.02 * float(staircase.widths[-1]))
    # One disturbed point must not flatten the staircase.
    top = float(np.percentile(staircase.points[:, 1], 98)) if len(staircase.points) else 0.0
    axes.set_ylim(0, 1.1 * max(float(high.max()), top))
    axes.legend(frameon=False, loc="upper left", handlelength=1.2)
    _light(axes, "both")


def _draw_pairs(axes: Axes, drawing: ProfileDrawing) -> None:
    if drawing.pairs:
        predicted, measured, sigma = (np.array(column) for column in zip(*drawing.pairs, strict=True))
        axes.vlines(measured, predicted - sigma, predicted + sigma, color=_BLUE, alpha=0.55, linewidth=0.7)
        axes.plot(measured, predicted, "o", color=_BLUE, alpha=0.55, markersize=3, mew=0, label="random widths")
    if drawing.plans:
        predicted, measured = (np.array(column) for column in zip(*drawing.plans, strict=True))
        axes.plot(
            measured,
            predicted,
            "D",
            color=_ORANGE,
            alpha=0.75,
            markersize=3.5,
            markeredgewidth=0,
            label="solver's plans",
        )
    values = [value for pair in (*drawing.pairs, *drawing.plans) for value in pair[:2]]
    if values:
        ends = [0.0, 1.04 * max(values)]
        axes.plot(ends, ends, "--", color=_SOFT, linewidth=0.8, zorder=0)
        axes.set_xlim(*ends)
        axes.set_ylim(*ends)
        axes.legend(frameon=False, loc="upper left", handlelength=1.2)
    axes.set_title("Networks the model had not seen")
    axes.set_xlabel("measured ms")
    axes.set_ylabel("predicted ms, ± one s.d.")
    _light(axes, "both")


def _light(axes: Any, which: str) -> None:
    axes.grid(axis=which, color=_GRID, linewidth=0.7)
    axes.set_axisbelow(True)
