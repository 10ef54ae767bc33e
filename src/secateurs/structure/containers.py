"""Containers of classes that PyTorch does not know: mappings, dataclasses and objects that hold tensors.

``torch.export`` takes apart what it knows and refuses the rest, and a forward may take or return any object. Whatever
holds tensors is made known to PyTorch before a network is traced, so that it is taken apart and put together again as
the class that it is.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

_PLAIN = (torch.Tensor, torch.nn.Module, torch.Size, np.ndarray, str, bytes, int, float, complex, type(None), type)


def make_known(*values: Any) -> list[type]:
    """Classes of containers in ``values`` that PyTorch did not know and knows from now on.

    Only what holds a tensor counts, at any depth. Classes that a library registers itself are left alone.
    """
    found: list[type] = []
    for value in values:
        for one in _unknown(value, ()):
            cls = type(one)
            if cls not in pytree.SUPPORTED_NODES:
                _HELD[cls] = tuple(name for name, part in _parts(one).items() if holds_tensors(part))
                name = f"{cls.__module__}.{cls.__qualname__}"
                pytree.register_pytree_node(
                    cls, _taken_apart, _put_together, serialized_type_name=name, flatten_with_keys_fn=_with_keys
                )
                found.append(cls)
    return found


_HELD: dict[type, tuple[Any, ...]] = {}
"""Attributes of a class that held tensors when it was first seen; those of others stay as they are."""


def _unknown(value: Any, around: tuple[int, ...]) -> Iterator[Any]:
    """Containers that PyTorch takes for leaves."""
    if isinstance(value, _PLAIN) or id(value) in around or not holds_tensors(value):
        return
    known = pytree.tree_flatten(value, is_leaf=lambda part: part is not value)[0]
    if len(known) == 1 and known[0] is value:
        yield value
        known = list(_parts(value).values())
    for part in known:
        yield from _unknown(part, (*around, id(value)))


def holds_tensors(value: Any, around: tuple[int, ...] = ()) -> bool:
    """Whether a tensor is in it, at any depth."""
    if isinstance(value, torch.Tensor):
        return True
    if isinstance(value, _PLAIN) or id(value) in around:
        return False
    return any(holds_tensors(part, (*around, id(value))) for part in _parts(value).values())


def _parts(value: Any) -> dict[Any, Any]:
    """What a container holds, by key, position or name."""
    if isinstance(value, Mapping):
        return dict(value.items())
    if isinstance(value, (list, tuple)):
        return dict(enumerate(value))
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return dict(getattr(value, "__dict__", {}))


class _Form:
    """What is left of a container without its tensors: its class, the names of its parts, a hollow copy of it.

    Two are equal where class and names are: the exporter compares the form of later inputs with that of the example.
    """

    def __init__(self, value: Any, names: list[Any]) -> None:
        self.cls, self.names = type(value), names
        self.hollow = copy.copy(value)
        with contextlib.suppress(Exception):
            self.hollow = _filled(copy.copy(value), dict.fromkeys(names))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Form) and (self.cls, self.names) == (other.cls, other.names)

    def __hash__(self) -> int:
        return hash((self.cls, tuple(self.names)))

    def __repr__(self) -> str:
        return f"{self.cls.__qualname__}({', '.join(map(str, self.names))})"


def _taken_apart(value: Any) -> tuple[list[Any], _Form]:
    parts = _parts(value)
    if not isinstance(value, (Mapping, list, tuple)) and not dataclasses.is_dataclass(value):
        parts = {name: part for name, part in parts.items() if name in _HELD[type(value)]}
    return list(parts.values()), _Form(value, list(parts))


def _with_keys(value: Any) -> tuple[list[tuple[Any, Any]], _Form]:
    parts, form = _taken_apart(value)
    key = pytree.MappingKey if isinstance(value, (Mapping, list, tuple)) else pytree.GetAttrKey
    return [(key(name), part) for name, part in zip(form.names, parts, strict=True)], form


def _put_together(values: Any, form: _Form) -> Any:
    parts = dict(zip(form.names, values, strict=True))
    if issubclass(form.cls, (list, tuple)):
        return form.cls(*values) if hasattr(form.cls, "_fields") else form.cls(list(values))
    if issubclass(form.cls, Mapping):
        with contextlib.suppress(Exception):  # most take their fields by name and set attributes along
            made: Any = form.cls(**parts)
            if dict(made.items()).keys() == parts.keys() and all(made[name] is parts[name] for name in parts):
                return made
    return _filled(copy.copy(form.hollow), parts)


def _filled(made: Any, parts: Mapping[Any, Any]) -> Any:
    for name, part in parts.items():
        if isinstance(made, Mapping):
            made[name] = part  # type: ignore[index]
        else:
            object.__setattr__(made, name, part)
    return made


def marked(tree: Any, mark: Callable[[Any], Any]) -> Any:
    """``mark`` of every leaf in the form that ``torch.export`` wants: a list for a class that it does not know."""
    parts, _ = pytree.tree_flatten(tree, is_leaf=lambda part: part is not tree)
    if len(parts) == 1 and parts[0] is tree:
        return mark(tree)
    found = [marked(part, mark) for part in parts]
    if type(tree) not in pytree.BUILTIN_TYPES and not hasattr(tree, "_fields"):
        return found
    return pytree.tree_unflatten(found, pytree.tree_structure(tree, is_leaf=lambda part: part is not tree))
