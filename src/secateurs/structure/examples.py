"""Example inputs: their forms, their batch, and what a plan keeps of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils import _pytree as pytree

from secateurs.errors import StructureError
from secateurs.plan import Plan
from secateurs.structure.containers import holds_tensors, make_known


def split_example(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword inputs of an example in any of its forms; PyTorch knows their containers from now on.

    A tensor or an object that holds tensors is the only input, a mapping the keyword inputs, a tuple or list the
    positional ones, a pair of a tuple and a mapping both.

    Raises:
        StructureError: the example is of none of these forms.
    """
    args, kwargs = _split(example)
    make_known(args, kwargs)
    return args, kwargs


def _split(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example, Mapping):
        return (), dict(example)
    if isinstance(example, (tuple, list)):
        if len(example) == 2 and isinstance(example[0], (tuple, list)) and isinstance(example[1], Mapping):
            return tuple(example[0]), dict(example[1])
        return tuple(example), {}
    if holds_tensors(example):
        return (example,), {}
    raise StructureError(
        f"The example is a {type(example).__name__}. Give a tensor, a tuple of positional inputs, or (args, kwargs)."
    )


def require_plain(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Nothing, if every input is a tensor, a number, a text or None.

    Raises:
        StructureError: one is something else, in which there is no tensor; names it.
    """
    for path, leaf in pytree.tree_flatten_with_path((args, kwargs))[0]:
        if leaf is not None and not isinstance(leaf, (torch.Tensor, bool, int, float, str)):
            kind = f"{type(leaf).__module__}.{type(leaf).__qualname__}"
            name = "args" if path[0].idx == 0 else "kwargs"  # type: ignore[attr-defined]
            raise StructureError(
                f"Input {name}{pytree.keystr(path[1:])} is a {kind}, which torch.export does not take. Give tensors, "
                "Python numbers, texts and None; leave the rest to the forward's defaults or the network's attributes."
            )


def batch_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | None:
    """The common first size of all tensor inputs, or None."""
    sizes = {
        leaf.shape[0] for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor) and leaf.dim()
    }
    return sizes.pop() if len(sizes) == 1 else None


def doubled(tree: Any) -> Any:
    """Inputs with a batch of one repeated to two."""

    def repeat(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor) and leaf.dim() and leaf.shape[0] == 1:
            return torch.cat([leaf, leaf])  # in the memory format that it has
        return leaf

    return pytree.tree_map(repeat, tree)


def shapes_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Shapes of the tensors of an example, in words."""
    leaves = pytree.tree_leaves((args, kwargs))
    return ", ".join(str(tuple(leaf.shape)) for leaf in leaves if isinstance(leaf, torch.Tensor)) or "none"


def example_shapes(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """Shapes and types of an example as JSON values: ``[[shape, dtype], …]``, keyword inputs last with their name.

    Inside an input, containers of Python's stand as ``{"list": […]}``, ``{"tuple": […]}``, ``{"dict": {…}}`` and, where
    keys are numbers, ``{"items": [[key, …], …]}``; numbers, texts and None stand for themselves. Of anything else only
    its class is kept, ``{"class": "Batch"}``.
    """
    found: list[Any] = [_shape_of(item) for item in args]
    for name, item in kwargs.items():
        found.append(
            [*_shape_of(item), name] if isinstance(item, torch.Tensor) else {"keyword": name, "is": _shape_of(item)}
        )
    return tuple(found)


def _shape_of(item: Any) -> Any:
    if isinstance(item, torch.Tensor):
        return [list(item.shape), str(item.dtype).removeprefix("torch.")]
    if item is None or isinstance(item, (bool, int, float, str)):
        return item
    if type(item) in (tuple, list, torch.Size):
        return {"list" if type(item) is list else "tuple": [_shape_of(entry) for entry in item]}
    if type(item) in (dict, OrderedDict) and all(isinstance(key, str) for key in item):
        return {"dict": {key: _shape_of(entry) for key, entry in item.items()}}
    if type(item) in (dict, OrderedDict) and all(isinstance(key, (str, bool, int, float)) for key in item):
        return {"items": [[key, _shape_of(entry)] for key, entry in item.items()]}
    return {"class": type(item).__name__}


def stored_example(plan: Plan) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """An example of the shapes and types that the plan stores; every tensor is zeros.

    Raises:
        StructureError: the plan was made with an object of which it stores no more than the class.
    """
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for entry in plan.example_shapes:
        if isinstance(entry, dict) and "keyword" in entry:
            kwargs[entry["keyword"]] = _from_shape(entry["is"])
        elif isinstance(entry, (list, tuple)) and len(entry) == 3:
            kwargs[entry[2]] = _from_shape(entry[:2])
        else:
            args.append(_from_shape(entry))
    return tuple(args), kwargs


def _from_shape(entry: Any) -> Any:
    if isinstance(entry, (list, tuple)):
        return torch.zeros(tuple(entry[0]), dtype=getattr(torch, entry[1]))
    if not isinstance(entry, dict):
        return entry
    kind, held = next(iter(entry.items()))
    if kind == "class":
        raise StructureError(
            f"The plan was made with an example that holds a {held}, and a plan stores tensors, numbers and Python's "
            "own containers only. Give the example again: apply(model, plan, example)."
        )
    if kind == "dict":
        return {key: _from_shape(item) for key, item in held.items()}
    if kind == "items":
        return {key: _from_shape(item) for key, item in held}
    return [_from_shape(item) for item in held] if kind == "list" else tuple(_from_shape(item) for item in held)


def image_shape(plan: Plan) -> tuple[int, ...] | None:
    """[batch, channels, height, width] of the image that is a plan's only input; None where it has others."""
    first = plan.example_shapes[0] if len(plan.example_shapes) == 1 else None
    if not isinstance(first, (list, tuple)) or len(first) != 2 or len(first[0]) != 4:
        return None
    return tuple(first[0]) if first[1].startswith("float") else None
