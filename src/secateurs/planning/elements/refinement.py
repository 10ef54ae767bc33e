"""Patterns of a plan made better: filters that need like patterns share one, and images say what can go."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from secateurs.data.images import Data
from secateurs.elements.alignment import align
from secateurs.elements.patterns import PatternChoice, to_pattern
from secateurs.elements.selection import patterns
from secateurs.errors import StructureError
from secateurs.plan import ElementPattern, Plan
from secateurs.progress import Progress, silent
from secateurs.recover.refit.element_choice import ElementCount
from secateurs.recover.refit.least_squares import least_squares
from secateurs.recover.repair import batch_size
from secateurs.structure import apply, trace
from secateurs.structure.kernel_elements import groups_of, masks_of

IMAGES = 512
"""Calibration images that patterns are chosen on."""
_SCOPES = ("block", "in_channel")


def aligned(dense: nn.Module, plan: Plan, example: Any = None, *, progress: Progress = silent) -> Plan:
    """The plan with as many elements per layer, whose blocks are cut from filters ordered so that like patterns meet.

    Where a residual stream, for example, ties the filters of several layers, all have one order, and together they keep
    no smaller share of their energy than before. Filters that the structure of the network does not let change places
    stay, and so do patterns of other scopes and those that have an order.

    Args:
        dense: the network before the cut.
        plan: with patterns.
        example: see :func:`secateurs.trace`.
        progress: shows groups of filters.
    """
    choices = {
        name: PatternChoice("block", sum(map(len, pattern.pattern)) / len(pattern.pattern), pattern.block)
        for name, pattern in plan.elements.items()
        if pattern.scope == "block" and not pattern.order
    }
    bare = plan.model_copy(update={"elements": {}})
    small = apply(dense, bare, example, check=False).eval() if choices else dense
    parameters = dict(small.named_parameters(remove_duplicate=False))
    choices = {name: choice for name, choice in choices.items() if len(parameters[name]) > choice.block}
    if not choices:
        return plan
    try:
        _, orders = align(trace(small, example), choices, progress=progress)
    except StructureError as error:
        progress.say(f"Filters keep their order: {error}")
        return plan
    found = dict(plan.elements)
    for name, order in orders.items():
        one = {name: choices[name].keep}
        found |= patterns(small, one, block=choices[name].block, orders={name: order})
    return plan.model_copy(update={"elements": found})


def refined(dense: nn.Module, plan: Plan, data: Data, example: Any = None, *, progress: Progress = silent) -> Plan:
    """The plan with as many elements per layer, chosen by :func:`secateurs.recover.refit.element_choice.surgeon`.

    Layer after layer, each on the inputs that the pruned layers in front of it give it. Patterns of other scopes than
    ``block`` and ``in_channel`` stay as they are: their constraints are of another kind.

    Args:
        dense: the network before the cut.
        plan: with patterns, such as those by magnitude.
        data: calibration images.
        example: see :func:`secateurs.apply`.
        progress: shows layers.
    """
    found = {name: pattern for name, pattern in plan.elements.items() if pattern.scope in _SCOPES}
    if not found:
        return plan
    bare = plan.model_copy(update={"elements": {}})
    small = apply(dense, bare, example, check=False).eval()
    counts = {}
    for name, mask in masks_of(small, found).items():
        block = found[name].block if found[name].scope == "block" else mask.shape[0]
        counts[name] = ElementCount(float(mask.double().mean()), block, found[name].order)
    data = replace(data, calibration=data.calibration.take(IMAGES))
    batches = list(data.inputs(data.calibration, batch_size(data)))
    masks = least_squares(dense, small, bare, batches, counts=counts, progress=progress).masks
    chosen: dict[str, ElementPattern] = dict(plan.elements)
    for name, mask in masks.items():
        scope = found[name].scope
        choice = PatternChoice(scope, 1, max(8, found[name].block), pool="block" if scope == "block" else "unit")
        chosen[name] = to_pattern(mask, choice, groups=groups_of(small, name), order=found[name].order)
    return plan.model_copy(update={"elements": chosen})
