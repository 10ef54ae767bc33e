"""Which tensors of a training's checkpoint are the network's weights, under which names; everything done is told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from secateurs.errors import DataError

BEHIND = "::"
"""Between a file and the part of it that is wanted: ``last.pth::state_dict_ema``."""
_AVERAGED = ("ema", "avg", "average", "swa", "teacher", "shadow")
_WRAPPERS = {"module.": "DataParallel", "_orig_mod.": "torch.compile"}
_COUNTS = ("n_averaged",)
"""What ``torch.optim.swa_utils`` keeps beside the weights."""
_DEPTH, _LISTED = 3, 5

State = dict[str, Tensor]
Notes = tuple[str, ...]


def weights_in(held: Any, part: str, path: str) -> tuple[State, Notes]:
    """The weights in what a checkpoint holds.

    Args:
        held: the file's content: tensors by name, or a dict with such dicts in it.
        part: the wanted one, ``model.ema`` in a dict of dicts; "" for the only one, or the trained one beside running
            averages of it.
        path: for messages.

    Raises:
        DataError: there are none, or several and none is named.
    """
    found = dict(_states(held))
    if part:
        if part not in found:
            raise DataError(
                f"Weights file {path} has no weights under {part!r}. It has {_some(found) or 'none'}: give "
                f"FILE{BEHIND}NAME."
            )
        return found[part], ()
    if not found:
        raise DataError(
            f"Weights file {path} holds no state dict of tensors (found {_described(held)}). "
            f"Save model.state_dict() with safetensors.torch.save_file."
        )
    if len(found) == 1:
        [(name, state)] = found.items()
        return state, (f"The weights are {name!r} of {path}.",) if name else ()
    averaged = [name for name in found if _is_average(name)]
    others = [name for name in found if name not in averaged]
    if len(others) == 1:
        return found[others[0]], (
            f"The weights are {others[0]!r} of {path}; for a running average of them give --weights "
            f"{path}{BEHIND}{averaged[0]}.",
        )
    raise DataError(
        f"Weights file {path} holds several sets of weights: {_some(found)}. Say which: "
        f"{path}{BEHIND}{next(iter(found))}."
    )


def named_plainly(state: Mapping[str, Tensor], path: str) -> tuple[State, Notes]:
    """Weights without what wrappers put in front of their names."""
    tensors, removed = dict(state), []
    if any(name in tensors for name in _COUNTS) and all(
        name.startswith("module.") or name in _COUNTS for name in tensors
    ):
        tensors = {name: value for name, value in tensors.items() if name not in _COUNTS}
        removed.append("an average's count")
    changed = True
    while changed:
        changed = False
        for prefix, wrapper in _WRAPPERS.items():
            if tensors and all(name.startswith(prefix) for name in tensors):
                tensors, changed = {name[len(prefix) :]: value for name, value in tensors.items()}, True
                removed.append(f"{prefix!r} of {wrapper}")
    if any("._orig_mod." in name for name in tensors):  # parts that were compiled alone
        tensors = {name.replace("._orig_mod.", "."): value for name, value in tensors.items()}
        removed.append("'_orig_mod.' of torch.compile")
    notes = (f"From the names in {path} was taken off: {', '.join(dict.fromkeys(removed))}.",) if removed else ()
    half = sorted({str(value.dtype).removeprefix("torch.") for value in tensors.values() if _is_half(value)})
    if half:
        notes = (*notes, f"{path} holds {' and '.join(half)}; the network computes in its own type.")
    return tensors, notes


def below_a_name(state: Mapping[str, Tensor], own: Iterable[str], path: str) -> tuple[State, Notes]:
    """Weights whose names all lack in the network, but fit below one name, as where the network was part of a larger
    module; else as they are."""
    wanted = {name for name in own if not name.endswith("num_batches_tracked")}
    if not wanted or wanted & set(state):
        return dict(state), ()
    first = min(wanted)
    for name in state:
        prefix = name.removesuffix(first)
        if prefix == name or not prefix.endswith("."):
            continue
        inside = {one[len(prefix) :]: value for one, value in state.items() if one.startswith(prefix)}
        if wanted <= set(inside):
            left = [one for one in state if not one.startswith(prefix)]
            more = f"; left out: {_some(left)}" if left else ""
            return inside, (f"The weights are those below {prefix!r} in {path}{more}.",)
    return dict(state), ()


def _states(held: Any, name: str = "", depth: int = 0) -> Iterable[tuple[str, State]]:
    """Every dict of tensors in a nest, with where it lies."""
    if not isinstance(held, Mapping) or not held or depth > _DEPTH:
        return
    if all(isinstance(value, Tensor) for value in held.values()):
        odd = next((key for key in held if not isinstance(key, str)), None)
        if odd is None:
            yield name, dict(held)
        elif not name:
            raise DataError(
                f"A weights file has the key {odd!r}, which is no name of a tensor. Save model.state_dict()."
            )
        return
    for key, value in held.items():
        if isinstance(key, str) and not any(part in key.lower() for part in ("optim", "sched", "scaler")):
            yield from _states(value, f"{name}.{key}" if name else key, depth + 1)


def _is_average(name: str) -> bool:
    words = name.lower().replace(".", "_").split("_")
    return any(word in words for word in _AVERAGED)


def _is_half(value: Tensor) -> bool:
    return value.dtype in (torch.float16, torch.bfloat16)


def _described(held: Any) -> str:
    if not isinstance(held, Mapping):
        return type(held).__name__
    others = [f"{key}: {type(value).__name__}" for key, value in held.items() if not isinstance(value, Tensor)]
    return f"a dict with {_some(others)}" if others else "an empty dict"


def _some(names: Iterable[str]) -> str:
    listed: Sequence[str] = list(names)
    return ", ".join(listed[:_LISTED]) + (f" and {len(listed) - _LISTED} more" if len(listed) > _LISTED else "")
