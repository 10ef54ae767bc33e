"""A plan looked at whole before it is carried out: every part of it fits the network and the other parts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from secateurs.errors import PlanError
from secateurs.plan import Bypass, Patch, Plan
from secateurs.structure.groups import digest

_ROWS_ARE_OUTPUTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_FIELDS = ("patches", "bypasses", "scales")


def require_whole(model: nn.Module, plan: Plan) -> None:
    """Nothing, if the plan fits itself and the network, whose names and shapes are known to be the plan's.

    Raises:
        PlanError: naming the first difference.
    """
    for fault in _faults(model, plan):
        raise PlanError(f"The plan is damaged: {fault}. Make the plan again.")


def require_resolved(plan: Plan, fresh: Plan) -> None:
    """Nothing, if a plan that does not work says the same as one that is made anew of its groups.

    Raises:
        PlanError: it decides the same, and something that follows from the decision is another; names it.
    """
    if plan.slices != fresh.slices or plan.blocks_removed != fresh.blocks_removed:
        return
    for name in _FIELDS:
        ours, theirs = getattr(plan, name), getattr(fresh, name)
        for number, (one, other) in enumerate(itertools.zip_longest(ours, theirs)):
            if one != other:
                raise PlanError(
                    f"The plan is damaged: {name}[{number}] is {_short(one)}, from its groups follows {_short(other)}. "
                    "Make the plan again."
                )


def _faults(model: nn.Module, plan: Plan) -> Iterator[str]:
    shapes = plan.fingerprint.shapes
    if plan.fingerprint.digest != digest(shapes):
        yield f"fingerprint.digest is {plan.fingerprint.digest!r}, its shapes give {digest(shapes)!r}"
    modules = dict(model.named_modules(remove_duplicate=False))
    yield from _of_groups(plan, modules)
    for name, axes in plan.slices.items():
        if name not in shapes:
            yield f"slices has {name!r}, which the network lacks"
            continue
        for dim, kept in axes.items():
            if not 0 <= dim < len(shapes[name]):
                yield f"slices cuts {name} along dimension {dim}, but it has {len(shapes[name])}"
            elif not _ascends(kept, shapes[name][dim]):
                yield (
                    f"the index list of {name} along dimension {dim} does not ascend between 0 and "
                    f"{shapes[name][dim] - 1}"
                )
    for number, patch in enumerate(plan.patches):
        yield from (f"patches[{number}] {fault}" for fault in _of_patch(modules, patch))
    for number, bypass in enumerate(plan.bypasses):
        yield from (f"bypasses[{number}] {fault}" for fault in _of_bypass(modules, bypass, plan))
    for number, scale in enumerate(plan.scales):
        shape = shapes.get(scale.parameter)
        if not shape or not _ascends(scale.indices, shape[0]):
            yield f"scales[{number}] names rows of {scale.parameter} that it does not have"
        if not 0 < scale.factor < math.inf:
            yield f"scales[{number}] multiplies by {scale.factor}"
    for name in plan.elements:
        if len(shapes.get(name, ())) < 3:
            yield f"elements has {name!r}, which is no weight of a convolution"


def _of_groups(plan: Plan, modules: dict[str, nn.Module]) -> Iterator[str]:
    if set(plan.groups) != set(plan.group_sizes):
        odd = sorted(set(plan.groups) ^ set(plan.group_sizes))[0]
        yield f"{odd!r} is in one of groups and group_sizes only"
        return
    shapes = plan.fingerprint.shapes
    for name, kept in plan.groups.items():
        size = plan.group_sizes[name]
        if not _ascends(kept, size):
            yield f"the units of group {name} do not ascend between 0 and {size - 1}"
        layer = modules.get(name.removesuffix(":out"))
        if not name.endswith(":out") or not isinstance(layer, _ROWS_ARE_OUTPUTS):
            continue
        weight = f"{name.removesuffix(':out')}.weight"
        rows, cut = shapes.get(weight, (size,))[0], plan.slices.get(weight, {}).get(0)
        if size > rows:
            yield f"group_sizes[{name!r}] is {size}, but {weight} has {rows} rows"
        elif size == rows and kept and cut and tuple(cut) != tuple(kept):  # () is of a block that is removed
            yield f"group {name} keeps other units than slices does of {weight}"
    if len(set(plan.blocks_removed)) != len(plan.blocks_removed):
        yield "a block is removed twice"


def _of_patch(modules: dict[str, nn.Module], patch: Patch) -> Iterator[str]:
    module = modules.get(patch.module)
    if module is None:
        yield f"names module {patch.module!r}, which the network lacks"
        return
    old = getattr(module, patch.attribute, None)
    if not _is_size(old):
        yield f"names {patch.module}.{patch.attribute}, which holds no size"
    elif not _is_size(patch.value) or not _replaces(old, patch.value):
        yield f"sets {patch.module}.{patch.attribute}, {_short(old)}, to {_short(patch.value)}"


def _of_bypass(modules: dict[str, nn.Module], bypass: Bypass, plan: Plan) -> Iterator[str]:
    if bypass.module not in modules:
        yield f"names module {bypass.module!r}, which the network lacks"
        return
    if bypass.block not in plan.blocks_removed:
        yield f"is of block {bypass.block!r}, which is not removed"
    for step in bypass.steps:
        kind, _, name = step.partition(":")
        inner = f"{bypass.module}.{name}" if bypass.module else name
        if (kind != "module" or inner not in modules) and (kind != "call" or not hasattr(torch.nn.functional, name)):
            yield f"has the step {step!r}, which {bypass.module} lacks"


def _replaces(old: Any, new: Any) -> bool:
    """Whether a size may become another: a list stays one; of a number, equal parts may become parts of their own."""
    if isinstance(old, (tuple, list)) or not isinstance(new, (tuple, list)):
        return isinstance(old, (tuple, list)) == isinstance(new, (tuple, list))
    return bool(new) and all(isinstance(part, int) and 0 <= part <= old for part in new)


def _is_size(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(_is_size(item) for item in value)
    return isinstance(value, int) and not isinstance(value, bool)


def _ascends(kept: Sequence[int], size: int) -> bool:
    return all(a < b for a, b in itertools.pairwise((-1, *kept, size)))


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
