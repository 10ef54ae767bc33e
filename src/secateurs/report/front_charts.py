"""Charts of a front as inline SVG text: the front itself, hypervolume, and the portfolio's quotas."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from secateurs.budgets import ACCURACY, Metric
from secateurs.report.charts import axis
from secateurs.report.front_record import Front, FrontPoint

LEFT, TOP, BOTTOM, RIGHT = 72, 14, 48, 18
SHADES = ("--blue", "--accent", "--kept", "--bad")


@dataclass(frozen=True)
class Frame:
    """A plot's size and the ranges that it shows."""

    width: int
    height: int
    x: tuple[float, float, list[float]]
    y: tuple[float, float, list[float]]

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Pixels of a point."""
        across, down = self.width - LEFT - RIGHT, self.height - TOP - BOTTOM
        here = (x - self.x[0]) / (self.x[1] - self.x[0])
        there = (y - self.y[0]) / (self.y[1] - self.y[0])
        return LEFT + across * here, TOP + down * (1 - there)

    def open(self, label: str, below: str, beside: str) -> str:
        """The SVG's start: grid, ticks and the two axes' names."""
        parts = [
            f"<svg class='chart' viewBox='0 0 {self.width} {self.height}' role='img' aria-label='{escape(label)}'>"
        ]
        for tick in self.y[2]:
            x, y = self.place(self.x[0], tick)
            parts.append(
                f"<line x1='{x:.1f}' x2='{self.width - RIGHT}' y1='{y:.1f}' y2='{y:.1f}' class='grid'/>"
                f"<text x='{x - 8:.1f}' y='{y + 4:.1f}' class='value end'>{tick:g}</text>"
            )
        for tick in self.x[2]:
            x, y = self.place(tick, self.y[0])
            parts.append(f"<text x='{x:.1f}' y='{y + 18:.1f}' class='value middle'>{tick:g}</text>")
        middle, centre = TOP + (self.height - TOP - BOTTOM) / 2, (LEFT + self.width - RIGHT) / 2
        parts.append(
            f"<text x='{centre}' y='{self.height - 8}' class='label middle'>{escape(below)}</text>"
            f"<text transform='translate(14 {middle}) rotate(-90)' class='label middle'>{escape(beside)}</text>"
        )
        return "".join(parts)

    def line(self, points: Sequence[tuple[float, float]], colour: str, *, steps: bool = False) -> str:
        """A line through points; ``steps``: level until the next one."""
        pixels = [self.place(*point) for point in points]
        if steps:
            corners = [pixels[0]] if pixels else []
            for before, after in itertools.pairwise(pixels):
                corners += [(after[0], before[1]), after]
            pixels = corners
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in pixels)
        return f"<polyline points='{path}' class='line' style='stroke:var({colour})'/>"


def cost_of(front: Front, name: str) -> tuple[float, str]:
    """(factor, unit) that a resource is shown in."""
    unit = front.units[name]
    return {"bytes": (1e-6, "MB"), "macs": (1e-6, "M multiply-adds")}.get(unit, (1.0, unit))


def front_chart(front: Front) -> str:
    """Error against the main cost: the front, what the search began with, dense, the fine-tuned points as measured.

    Every point carries its number, so that the page's script can show and copy.
    """
    factor, unit = cost_of(front, front.main)
    costs = [point.costs[front.main] * factor for point in front.points]
    errors = [100 * point.error for point in front.points]
    dense = front.dense_costs[front.main] * factor, 100 * front.dense_error
    tuned = [_tuned_place(point, front.main, front.metric) for point in front.points if point.tuned is not None]
    tuned = [(cost * factor, error) for cost, error in tuned]
    shown = [*zip(costs, errors, strict=True), dense, *tuned]
    frame = Frame(900, 460, *(axis(min(values), max(values)) for values in zip(*shown, strict=True)))
    parts = [
        frame.open(
            "Error against cost",
            f"{front.main}, {unit} (by the model)",
            "error, %" if front.metric == ACCURACY else f"1 - worth of {front.metric.name}, %",
        )
    ]
    for cost, error in front.seeds:
        x, y = frame.place(cost * factor, 100 * error)
        if y >= TOP and x <= frame.width:
            parts.append(f"<circle cx='{x:.1f}' cy='{y:.1f}' r='3.5' class='seed'/>")
    x, y = frame.place(*dense)
    parts.append(
        f"<rect x='{x - 5:.1f}' y='{y - 5:.1f}' width='10' height='10' class='dense'><title>dense</title></rect>"
    )
    for place in tuned:
        x, y = frame.place(*place)
        parts.append(f"<circle cx='{x:.1f}' cy='{y:.1f}' r='5' class='tuned'/>")
    for point in front.points:
        x, y = frame.place(point.costs[front.main] * factor, 100 * point.error)
        parts.append(f"<circle cx='{x:.1f}' cy='{y:.1f}' r='6' class='point' tabindex='0' data-n='{point.number}'/>")
    return "".join(parts) + "</svg>"


def _tuned_place(point: FrontPoint, name: str, metric: Metric) -> tuple[float, float]:
    """(cost as measured where it was, test error in %) of a fine-tuned point."""
    assert point.tuned is not None
    measured = point.tuned.measured(name)
    return point.costs[name] if measured is None else measured, 100 * (1 - metric.worth(point.tuned.accuracy))


def hypervolume_chart(front: Front) -> str:
    """Hypervolume against real evaluations."""
    points = [(float(line["evaluations"]), float(line["hypervolume"])) for line in front.history]
    if len(points) < 2:
        return "<p class='empty'>One generation only.</p>"
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    frame = Frame(460, 300, axis(min(xs), max(xs)), axis(min(ys), max(ys)))
    head = frame.open("Hypervolume against evaluations", "real evaluations", "hypervolume")
    return head + frame.line(points, "--kept", steps=True) + "</svg>"


def quota_chart(front: Front) -> str:
    """Share of the population that each selection of the portfolio fills, against evaluations."""
    if len(front.history) < 2:
        return "<p class='empty'>One generation only.</p>"
    xs = [float(line["evaluations"]) for line in front.history]
    names = list(front.history[0]["quotas"])
    shares = {name: [100 * float(line["quotas"][name]) for line in front.history] for name in names}
    top = max(value for values in shares.values() for value in values)
    frame = Frame(460, 300, axis(min(xs), max(xs)), axis(0, top))
    parts = [frame.open("Quotas of the selections", "real evaluations", "share, %")]
    for name, shade in zip(names, SHADES, strict=False):
        parts.append(frame.line(list(zip(xs, shares[name], strict=True)), shade))
    key = "".join(
        f"<i style='background:var({shade})'></i>{escape(name)}" for name, shade in zip(names, SHADES, strict=False)
    )
    return f"<p class='key'>{key}</p>" + "".join(parts) + "</svg>"
