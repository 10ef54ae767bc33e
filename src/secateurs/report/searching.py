"""What the report shows of a search that judged candidates: how it learnt, and what it does with which layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from secateurs.report.charts import axis
from secateurs.report.wording import percent

PHASES = {"start": "final", "warm-up": "held-out", "agent": "candidate"}
"""Marks of the learning curve by phase."""
TRUSTED = 0.9
"""Rank correlation from which modelled sensitivities count as the measured ones.

docs/methods.md, "LAP latency sensitivity".
"""
ROW, LABEL, CELL = 20, 220, 200


def sections(search: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """(heading, HTML) pairs for a search's details; none where it left no episodes."""
    episodes = search.get("episodes")
    if not episodes:
        return ()
    found = [("How the search learnt", f"{_summary(search)}{learning_curve(episodes)}")]
    if search.get("policy") and search.get("groups"):
        found.append(
            (f"Policy per group beside {_cost(search)} sensitivity", _agreement(search) + policy_chart(search))
        )
    return tuple(found)


def _cost(search: Mapping[str, Any]) -> str:
    """What the sensitivities are about: the cost that was limited first."""
    unit = search.get("unit", "ms")
    return {"ms": "latency", "macs": "multiply-add", "bytes": "byte"}.get(unit, str(unit))


def _summary(search: Mapping[str, Any]) -> str:
    facts = search.get("summary", {})
    start = f", started from {escape(str(facts['warm_start']))}" if facts.get("warm_start") else ""
    return (
        "<p class='key'><i style='background:var(--blue)'></i>warm-up<i style='background:var(--accent)'></i>agent"
        "<i style='background:var(--kept)'></i>start; the line is the best so far</p>"
        f"<p class='soft'>{escape(str(facts.get('agent', '')))}, reward {escape(str(facts.get('reward', '')))}{start}: "
        f"{facts.get('evaluations', len(search['episodes']))} different networks judged, "
        f"{float(facts.get('evaluations_per_second', 0.0)):.2f} a second.</p>"
    )


def _agreement(search: Mapping[str, Any]) -> str:
    """How well the curves of the latency model agree with the measured ones."""
    measured = search.get("measured")
    if not measured:
        return ""
    rank = measured["agreement"]
    told = "" if rank is None else f"; the rank correlation of both is {float(rank):.2f}"
    if rank is not None and float(rank) < TRUSTED:
        told += f", below {TRUSTED}: the model's sensitivities were a rough guide on this network"
    return (
        "<p class='key'><i style='background:var(--kept)'></i>by the latency model"
        f"<i style='background:var(--accent)'></i>measured, {len(measured['groups'])} groups{told}</p>"
    )


def learning_curve(episodes: Sequence[Mapping[str, Any]]) -> str:
    """Validation accuracy of every episode and the best so far, as SVG text."""
    accuracies = [100 * float(episode["accuracy"]) for episode in episodes]
    low, high, ticks = axis(min(accuracies), max(accuracies))
    width, height, left, top, bottom = 900, 300, 52, 12, 44
    across, down = width - left - 16, height - top - bottom

    def x(index: int) -> float:
        return left + across * (index + 0.5) / len(accuracies)

    def y(value: float) -> float:
        return top + down * (1 - (value - low) / (high - low))

    parts = [f"<svg class='chart' viewBox='0 0 {width} {height}' role='img' aria-label='Accuracy by episode'>"]
    for tick in ticks:
        parts.append(
            f"<line x1='{left}' x2='{left + across}' y1='{y(tick):.1f}' y2='{y(tick):.1f}' class='grid'/>"
            f"<text x='{left - 8}' y='{y(tick) + 4:.1f}' class='value end'>{tick:g}</text>"
        )
    best, line = low, []
    for index, (episode, value) in enumerate(zip(episodes, accuracies, strict=True)):
        best = max(best, value)
        line.append(f"{x(index):.1f},{y(best):.1f}")
        title = f"episode {index + 1}, {episode['phase']}: {value:.2f} %, reward {float(episode['reward']):.3f}"
        parts.append(
            f"<circle cx='{x(index):.1f}' cy='{y(value):.1f}' r='3' class='mark {PHASES.get(episode['phase'], '')}'>"
            f"<title>{escape(title)}</title></circle>"
        )
    parts.append(f"<polyline points='{' '.join(line)}' class='line'/>")
    parts.append(
        f"<text x='{left + across / 2}' y='{height - 8}' class='label middle'>episode (validation accuracy, %)</text>"
    )
    return "".join(parts) + "</svg>"


def policy_chart(search: Mapping[str, Any]) -> str:
    """Per group the pruned share, the sensitivity ŝ, and the curve S(ρ), also as measured, as SVG text."""
    groups, policy, relative = search["groups"], search["policy"], search["relative_sensitivity"]
    curves = search["sensitivity"]["saved"]
    sampled = search.get("measured") or {"groups": (), "saved": ()}
    measured = dict(zip(sampled["groups"], sampled["saved"], strict=True))
    highest = max(1e-9, max(max(map(abs, curve)) for curve in (*curves, *measured.values())))
    height = ROW * len(groups) + 30
    starts = [LABEL + (CELL + 20) * column for column in range(3)]
    heads = (
        "pruned",
        f"sensitivity ({_cost(search)} saved per share pruned)",
        f"its curve, up to {percent(highest, 1)} saved",
    )
    parts = [f"<svg class='chart' viewBox='0 0 900 {height}' role='img' aria-label='Policy and sensitivity per group'>"]
    parts += [
        f"<text x='{x}' y='14' class='value'>{escape(head)}</text>" for x, head in zip(starts, heads, strict=True)
    ]
    for index, name in enumerate(groups):
        y = 24 + index * ROW
        short = name if len(name) <= 32 else "…" + name[-31:]
        parts.append(f"<text x='{LABEL - 8}' y='{y + 13}' class='label end'>{escape(short)}</text>")
        shares = (float(policy[index]), max(0.0, float(relative[index])))
        for x, share, value in zip(starts, shares, (policy[index], relative[index]), strict=False):
            parts.append(
                f"<rect x='{x}' y='{y + 3}' width='{CELL}' height='{ROW - 7}' rx='2' class='frame'/>"
                f"<rect x='{x}' y='{y + 3}' width='{CELL * share:.1f}' height='{ROW - 7}' rx='2' class='kept'>"
                f"<title>{escape(name)}: {float(value):.2f}</title></rect>"
            )
        parts.append(f"<polyline points='{_curve(curves[index], highest, starts[2], y)}' class='line'/>")
        if name in measured:
            parts.append(f"<polyline points='{_curve(measured[name], highest, starts[2], y)}' class='line seen'/>")
    return "".join(parts) + "</svg>"


def _curve(saved: Sequence[float], highest: float, left: float, top: float) -> str:
    """Points of one group's curve S(ρ), from nothing pruned on."""
    heights = [0.0, *(max(0.0, float(value)) for value in saved)]
    return " ".join(
        f"{left + CELL * 0.1 * step:.1f},{top + ROW - 4 - (ROW - 7) * value / highest:.1f}"
        for step, value in enumerate(heights)
    )
