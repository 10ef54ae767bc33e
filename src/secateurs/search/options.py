"""Legal widths per group, and the axis lengths that they can produce."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from secateurs.cost import CostModel
from secateurs.errors import PlanError
from secateurs.network import AxisSpec, NetworkSpec


def legal_widths(
    spec: NetworkSpec,
    *,
    minimum: Mapping[str, int] | int = 1,
    maximum: Mapping[str, int] | None = None,
    pinned: Collection[str] = (),
    grain: Mapping[str, int] | int | None = None,
    most: int = 64,
) -> tuple[np.ndarray, ...]:
    """The legal widths of every group, ascending; the widest one included.

    Args:
        spec: the network.
        minimum: fewest units that stay, for all groups or per group name (never below the group's own ``min_units``).
        maximum: most units that stay, per group name.
        pinned: groups that keep all units.
        grain: offer multiples of this only, for all groups or per group name; None offers every width of a group
            with at most ``most`` units and multiples of the smallest power of two that gives at most ``most`` options
            in wider ones. Widths below one grain are offered as powers of two: they are legal and sometimes right.
        most: see ``grain``.

    Raises:
        PlanError: a name is not a group, or a minimum lies above a maximum.
    """
    names = {group.name for group in spec.groups}
    asked = [*pinned, *(maximum or ())]
    asked += [name for given in (minimum, grain) if isinstance(given, Mapping) for name in given]
    unknown = sorted(set(asked) - names)
    if unknown:
        raise PlanError(f"{unknown[0]!r} is not a group of this network. 'secateurs doctor' lists the groups.")
    result = []
    for group in spec.groups:
        low = max(group.min_units, minimum.get(group.name, 1) if isinstance(minimum, Mapping) else minimum, 1)
        low = min(low, group.units)
        high = min(group.units, (maximum or {}).get(group.name, group.units))
        if group.name in pinned:
            low = high = group.units
        if low > high:
            raise PlanError(
                f"Group {group.name} must keep at least {low} but at most {high} of its {group.units} units. "
                "Lower the minimum or raise the maximum."
            )
        own = grain.get(group.name) if isinstance(grain, Mapping) else grain
        result.append(_ladder(low, high, own or _default_grain(group.units, most)))
    return tuple(result)


def _default_grain(units: int, most: int) -> int:
    grain = 1
    while units // grain > most:
        grain *= 2
    return grain


def _ladder(low: int, high: int, grain: int) -> np.ndarray:
    steps = np.arange(grain, high + 1, grain)
    below = 2 ** np.arange(max(1, grain).bit_length())
    widths = np.unique(np.concatenate([steps, below[below < grain], [low, high]]))
    return widths[(widths >= low) & (widths <= high)].astype(np.int64)


def right_ends(
    spec: NetworkSpec, options: Sequence[np.ndarray], models: Sequence[CostModel], *, noise: float = 0.005
) -> tuple[np.ndarray, ...]:
    """The options without those that a wider one of the same group matches in every cost (docs/methods.md, "Plateaus of
    latency").

    A width goes when, with the other groups dense and again with them at half of their width, a wider option costs
    at most ``noise`` x (the cost of the operators that the group touches) more. Only what is timed has noise. Only for
    single-group axes: a group that is concatenated with others keeps all its options, its plateau depends on them.
    """
    together = {g for model in models for term in model.terms for a in (term.inputs, term.outputs) for g in _mixed(a)}
    contexts = (spec.dense_widths, np.array([widths[len(widths) // 2] for widths in options]))
    slack = np.array([1 + noise if model.unit == "ms" else 1.0 for model in models for _ in contexts])
    result = []
    for group, widths in enumerate(options):
        if group in together or len(widths) < 2:
            result.append(widths)
            continue
        keep = np.ones(len(widths), dtype=bool)
        costs = np.stack([_touched(model, group, widths, context) for model in models for context in contexts])
        for here in range(len(widths) - 1):
            ceiling = (costs[:, here] * slack)[:, None]
            keep[here] = not np.any(np.all(costs[:, here + 1 :] <= ceiling, axis=0))
        keep[0] = True
        result.append(widths[keep])
    return tuple(result)


def _mixed(axis: AxisSpec | None) -> set[int]:
    groups = set() if axis is None else {group for group, _ in axis.parts}
    return groups if len(groups) > 1 else set()


def _touched(model: CostModel, group: int, widths: np.ndarray, context: np.ndarray) -> np.ndarray:
    candidates = np.repeat(context[None, :], len(widths), axis=0)
    candidates[:, group] = widths
    total = np.zeros(len(widths))
    for term in model.terms:
        if any(group == part for axis in (term.inputs, term.outputs) if axis for part, _ in axis.parts):
            total = total + term.evaluate(candidates)
    return total


def reachable_lengths(axis: AxisSpec | None, options: Sequence[np.ndarray]) -> np.ndarray:
    """Every length that the axis takes on legal widths, ascending; [0] for no axis."""
    if axis is None:
        return np.zeros(1, dtype=np.int64)
    lengths = np.array([axis.fixed], dtype=np.int64)
    for group, per_unit in merged_parts(axis):
        lengths = np.unique(lengths[:, None] + per_unit * np.asarray(options[group], dtype=np.int64)[None, :])
    return lengths


def merged_parts(axis: AxisSpec) -> tuple[tuple[int, int], ...]:
    """The parts sorted by group, each group once."""
    total: dict[int, int] = {}
    for group, per_unit in axis.parts:
        total[group] = total.get(group, 0) + per_unit
    return tuple(sorted((group, per_unit) for group, per_unit in total.items() if per_unit))
