"""What the figure of a latency model shows."""

from __future__ import annotations

import numpy as np

from secateurs.latency.predictor import LatencyModel
from secateurs.provenance import target_label
from secateurs.report.profile_figure import Bar, ProfileDrawing, Staircase
from secateurs.report.wording import milliseconds


def drawing(model: str, costs: LatencyModel, dense: np.ndarray, steepest: int = 5, shown: int = 36) -> ProfileDrawing:
    """What a latency model's figure shows.

    Args:
        model: the network's name.
        costs: its latency model.
        dense: dense widths [groups].
        steepest: layers whose staircase is drawn.
        shown: layers with a bar of their own.
    """
    times, names = costs.by_site(dense), [entry.site.name for entry in costs.sites]
    costliest = np.argsort(-times, kind="stable")
    own = sorted(costliest[:shown].tolist())
    bars = [Bar(names[index], float(times[index]), _sigma(costs, index, float(times[index]))) for index in own]
    rest = costliest[shown:]
    if len(rest):
        sigma = float(np.sqrt(sum(_sigma(costs, index, float(times[index])) ** 2 for index in rest.tolist())))
        bars.append(Bar(f"{len(rest)} more", float(times[rest].sum()), sigma))
    # Layers that do the same work share a staircase: draw it once.
    kinds: dict[int, list[int]] = {}
    for index in costliest.tolist():
        entry = costs.sites[index]
        if entry.site.inputs or entry.site.outputs:
            kinds.setdefault(entry.curve, []).append(index)
    sigmas = costs.error.sigmas or (0.0,) * len(costs.error.pairs)
    return ProfileDrawing(
        title=f"{model} on {target_label(costs.target)}: {milliseconds(costs.dense_ms)}",
        error=f"On networks it had not seen: {costs.error}.",
        bars=tuple(bars),
        fixed_ms=costs.fixed_ms,
        staircases=tuple(_staircase(costs, alike, dense) for alike in list(kinds.values())[:steepest]),
        pairs=tuple((*pair, sigma) for pair, sigma in zip(costs.error.pairs, sigmas, strict=True)),
        plans=costs.error.plans,
    )


def _spread(costs: LatencyModel, index: int) -> float:
    if not costs.spreads:
        return costs.error.mean_abs
    return min(1.0, costs.doubt * costs.spreads[costs.sites[index].curve])


def _sigma(costs: LatencyModel, index: int, ms: float) -> float:
    return _spread(costs, index) * abs(ms)


def _staircase(costs: LatencyModel, alike: list[int], dense: np.ndarray) -> Staircase:
    index = alike[0]
    entry = costs.sites[index]
    site, curve = entry.site, costs.curves[entry.curve]
    inputs = 0 if site.inputs is None else int(site.inputs.length(dense))
    outputs = 0 if site.outputs is None else int(site.outputs.length(dense))
    by_output = site.outputs is not None
    widths = np.arange(1, (outputs if by_output else inputs) + 1)
    scale = costs.gain * entry.scale
    ms = scale * (curve.predict(np.array(inputs), widths) if by_output else curve.predict(widths, np.array(outputs)))
    points = np.zeros((0, 2))
    if len(curve.points):
        first, second, measured = curve.points[:, 0].astype(int), curve.points[:, 1].astype(int), curve.points[:, 2]
        # Points were measured at other widths of the other side: the model brings them to its dense width.
        first_there, second_there = (
            (np.full_like(first, inputs), second) if by_output else (first, second * 0 + outputs)
        )
        moved = curve.predict(first_there, second_there)
        own = second if by_output else first
        points = np.stack([own, scale * measured * moved / curve.predict(first, second)], axis=1)
    name = site.name if len(alike) == 1 else f"{site.name} and {len(alike) - 1} more alike"
    return Staircase(name, "output" if by_output else "input", widths, ms, _spread(costs, index), points)
