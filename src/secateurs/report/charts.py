"""Charts as inline SVG text. Colours come from the page's CSS variables, so they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from secateurs.budgets import ACCURACY, Metric
from secateurs.report.record import GroupRecord, Point
from secateurs.report.wording import milliseconds, percent

ROW = 20
"""Height of one bar's row, in pixels."""


def widths_chart(groups: Sequence[GroupRecord], removed: Sequence[GroupRecord] = ()) -> str:
    """Horizontal bars, one per group: dense width as the frame, kept units filled. [groups] to SVG text.

    ``removed``: groups that vanished with a removed block; they are drawn empty and marked.
    """
    if not groups:
        return "<p class='empty'>No group could be pruned.</p>"
    gone = {group.name for group in removed}
    label = min(300, 14 + round(6.7 * max(len(group.name) for group in groups)))
    width, bar = 900, 900 - label - 120
    widest = max(group.units for group in groups)
    height = ROW * len(groups) + 8
    parts = [f"<svg class='chart' viewBox='0 0 {width} {height}' role='img' aria-label='Units kept per group'>"]
    for index, group in enumerate(groups):
        y = 4 + index * ROW
        frame, fill = _bar(bar, group.units, widest), _bar(bar, group.kept, widest)
        kept = 0 if group.name in gone else group.kept
        text = "removed with its block" if group.name in gone else f"{kept} / {group.units}"
        name = escape(group.name if len(group.name) <= 44 else "…" + group.name[-43:])
        parts.append(
            f"<g><title>{escape(group.name)}: {kept} of {group.units} units kept</title>"
            f"<text x='{label - 8}' y='{y + 13}' class='label end'>{name}</text>"
            f"<rect x='{label}' y='{y + 3}' width='{frame:.1f}' height='{ROW - 7}' rx='2' class='frame'/>"
        )
        if kept:
            parts.append(f"<rect x='{label}' y='{y + 3}' width='{fill:.1f}' height='{ROW - 7}' rx='2' class='kept'/>")
        parts.append(f"<text x='{label + frame + 8:.1f}' y='{y + 13}' class='value'>{text}</text></g>")
    parts.append("</svg>")
    return "".join(parts)


def _bar(full: float, units: int, widest: int) -> float:
    """Length of a bar. Square root, so that 16 units stay visible beside 2048."""
    return full * math.sqrt(units / widest) if widest > 256 else full * units / widest


def prediction_chart(points: Sequence[Point]) -> str:
    """Predicted against measured latency with the diagonal; one mark per network. [points] to SVG text."""
    if not points:
        return "<p class='empty'>No measured network to compare predictions with.</p>"
    values = [value for point in points for value in (point.predicted_ms, point.measured_ms)]
    low, high, ticks = axis(min(values), max(values))
    width, height, left, top, bottom = 460, 360, 60, 12, 48
    plot_w, plot_h = width - left - 16, height - top - bottom

    def x(value: float) -> float:
        return left + plot_w * (value - low) / (high - low)

    def y(value: float) -> float:
        return top + plot_h * (1 - (value - low) / (high - low))

    parts = [
        f"<svg class='chart small' viewBox='0 0 {width} {height}' role='img' "
        f"aria-label='Predicted against measured latency'>"
    ]
    for tick in ticks:
        parts.append(
            f"<line x1='{left}' x2='{left + plot_w}' y1='{y(tick):.1f}' y2='{y(tick):.1f}' class='grid'/>"
            f"<text x='{left - 8}' y='{y(tick) + 4:.1f}' class='value end'>{tick:g}</text>"
            f"<text x='{x(tick):.1f}' y='{top + plot_h + 18}' class='value middle'>{tick:g}</text>"
        )
    parts.append(f"<line x1='{x(low)}' y1='{y(low)}' x2='{x(high)}' y2='{y(high)}' class='diagonal'/>")
    for point in sorted(points, key=lambda point: point.kind != "held-out"):
        parts.append(_mark(point, x(point.predicted_ms), y(point.measured_ms)))
    parts.append(
        f"<text x='{left + plot_w / 2}' y='{height - 8}' class='label middle'>predicted, ms</text>"
        f"<text transform='translate(16 {top + plot_h / 2}) rotate(-90)' class='label middle'>measured, ms</text></svg>"
    )
    return "".join(parts)


def _mark(point: Point, x: float, y: float) -> str:
    error = point.predicted_ms / point.measured_ms - 1 if point.measured_ms else 0.0
    title = (
        f"{point.kind}: predicted {milliseconds(point.predicted_ms)}, measured {milliseconds(point.measured_ms)} "
        f"({'+' if error >= 0 else '−'}{percent(abs(error), 1)})"
    )
    radius = {"final": 6, "candidate": 5}.get(point.kind, 3.5)
    return f"<circle cx='{x:.1f}' cy='{y:.1f}' r='{radius}' class='mark {point.kind}'><title>{title}</title></circle>"


def axis(low: float, high: float) -> tuple[float, float, list[float]]:
    """A padded range and round ticks inside it."""
    pad = 0.06 * (high - low) or 0.1 * high or 1.0
    low, high = max(0.0, low - pad), high + pad
    raw = (high - low) / 5
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= raw)
    first = math.ceil(low / step)
    ticks = [round(index * step, 10) for index in range(first, math.floor(high / step) + 1)]
    return low, high, ticks


def metric_chart(stages: Sequence[tuple[str, float]], metric: Metric = ACCURACY) -> str:
    """A metric from dense over the cut to the finished network, as a line. [(stage, value)] to SVG text."""
    scale = 100 if metric.unit == "%" else 1
    values = [value for _, value in stages]
    low, high, ticks = axis(scale * min(values), scale * max(values))
    width, height, left, top, bottom = 460, 300, 52, 22, 56
    plot_w, plot_h = width - left - 28, height - top - bottom
    step = plot_w / max(1, len(stages) - 1)

    def y(value: float) -> float:
        return top + plot_h * (1 - (value - low) / (high - low))

    label = f"{escape(metric.words)} by stage"
    parts = [f"<svg class='chart small' viewBox='0 0 {width} {height}' role='img' aria-label='{label}'>"]
    for tick in ticks:
        parts.append(
            f"<line x1='{left}' x2='{left + plot_w}' y1='{y(tick):.1f}' y2='{y(tick):.1f}' class='grid'/>"
            f"<text x='{left - 8}' y='{y(tick) + 4:.1f}' class='value end'>{tick:g}</text>"
        )
    line = " ".join(f"{left + index * step:.1f},{y(scale * value):.1f}" for index, value in enumerate(values))
    parts.append(f"<polyline points='{line}' class='line'/>")
    for index, (name, value) in enumerate(stages):
        x, above = left + index * step, y(scale * value)
        anchor = "start" if index == 0 else "end" if index == len(stages) - 1 else "middle"
        shown = f"{100 * value:.2f}" if scale == 100 else f"{value:.4g}"
        beside = [values[other] for other in (index - 1, index + 1) if 0 <= other < len(values)]
        dip = all(value < other for other in beside)
        parts.append(
            f"<circle cx='{x:.1f}' cy='{above:.1f}' r='4.5' class='mark final'/>"
            f"<text x='{x:.1f}' y='{above + (19 if dip else -9):.1f}' class='label middle'>{shown}</text>"
            f"<text x='{x:.1f}' y='{height - 10}' class='value {anchor}'>{escape(name)}</text>"
        )
    parts.append("</svg>")
    return "".join(parts)
