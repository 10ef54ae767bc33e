"""A network whose inputs and outputs are tensors in a row, for formats that know nothing else."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn
from torch.utils import _pytree as pytree

from secateurs.structure.containers import make_known
from secateurs.structure.untouched import evaluating, untouched


def exportable(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    """The module and its inputs, in the row that :func:`flattened` makes of them where the exporter needs one."""
    if is_plain(module, args, kwargs):
        return module, args, kwargs
    return *flattened(module, args, kwargs), {}


def is_plain(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the exporter takes the module as it is: its inputs and outputs are tensors in containers of Python's own.

    The exporter takes a mapping in the last place for keyword inputs, names outputs that are no tensors, renames inputs
    that are outputs, too, and knows no classes.
    """
    if args and isinstance(args[-1], Mapping):
        return False
    try:
        with untouched(module), evaluating(module), torch.no_grad():
            found = module(*args, **kwargs)
    except Exception:
        return True  # the exporter says why
    make_known(found)
    leaves, given = pytree.tree_leaves(found), {id(leaf) for leaf in pytree.tree_leaves((args, kwargs))}
    return (
        all(leaf is None or id(leaf) not in given for leaf in leaves)
        and _of_python(found)
        and _of_python((args, kwargs))
        and all(leaf is None or isinstance(leaf, torch.Tensor) for leaf in leaves)
    )


def _of_python(value: Any) -> bool:
    """Whether all containers are tuples, lists and dictionaries."""
    if isinstance(value, (tuple, list)):
        return type(value) in (tuple, list) and all(_of_python(part) for part in value)
    if isinstance(value, Mapping):
        return type(value) is dict and all(_of_python(part) for part in value.values())
    return type(value) not in pytree.SUPPORTED_NODES


def flattened(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[nn.Module, tuple[Any, ...]]:
    """The module as one that takes the tensors of the inputs in order and returns those of its outputs; these tensors.

    Parameters keep their names, inputs are named by where they stand. Inputs that are no tensors keep the value that
    they have here.
    """
    leaves, spec = pytree.tree_flatten((args, kwargs))
    places = [number for number, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
    # A graph writes its forward anew where it is copied, and two graphs in one hold theirs: no subclass replaces it.
    own = isinstance(module, torch.fx.GraphModule) or "forward" in vars(module)

    def forward(self: nn.Module, *given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        mine = list(leaves)
        for place, tensor in zip(places, given, strict=True):
            mine[place] = tensor
        positional, named = pytree.tree_unflatten(mine, spec)
        found = module.forward(*positional, **named) if own else type(module).forward(self, *positional, **named)
        tensors = (leaf for leaf in pytree.tree_leaves(found) if isinstance(leaf, torch.Tensor))
        same = {id(tensor) for tensor in given}
        return tuple(tensor.clone() if id(tensor) in same else tensor for tensor in tensors)

    names = _names(module, args, kwargs, places)
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    first = inspect.Parameter("self", kind)
    forward.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [first, *(inspect.Parameter(name, kind) for name in names)]
    )
    if own:
        flat = nn.Module()
        flat.__dict__.update({name: value for name, value in vars(module).items() if name in _HELD})
    else:
        flat = copy.copy(module)
    base = nn.Module if own else type(module)
    flat.__class__ = type(type(module).__name__, (base,), {"forward": forward})
    return flat, tuple(leaves[place] for place in places)


_HELD = ("training", "_parameters", "_buffers", "_non_persistent_buffers_set", "_modules")


def _names(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], places: list[int]) -> list[str]:
    """``x``, ``both_one``, ``batch_image``: a Python name for every tensor, none of them twice."""
    starts = _positions(module, args)
    paths = [path for path, _ in pytree.tree_flatten_with_path((args, kwargs))[0]]
    names: list[str] = []
    for place in places:
        side, first, *rest = cast("tuple[Any, ...]", paths[place])
        start = starts[first.idx] if side.idx == 0 else str(first.key)
        name = re.sub(r"\W+", "_", f"{start}{pytree.keystr(tuple(rest))}").strip("_") or "input"
        names.append(name if name not in names else f"{name}_{len(names)}")
    return names


def _positions(module: nn.Module, args: tuple[Any, ...]) -> list[str]:
    """A name for every positional input: the forward's, ``rest_0``, ``rest_1`` … for those of ``*rest``."""
    try:
        bound = inspect.signature(module.forward).bind_partial(*args)
    except (TypeError, ValueError):
        return [f"input_{number}" for number in range(len(args))]
    names: list[str] = []
    for name, value in bound.arguments.items():
        several = bound.signature.parameters[name].kind is inspect.Parameter.VAR_POSITIONAL
        names += [f"{name}_{number}" for number in range(len(value))] if several else [name]
    return names
