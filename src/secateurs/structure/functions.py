"""A network's own functions that reach into it, and their copies: Python's deep copy leaves functions as they are."""

from __future__ import annotations

import collections
import contextlib
import copy
import functools
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from secateurs.structure.reach import closure_of, is_library, own_classes

_PLAIN = (str, bytes, int, float, complex, type(None), type, types.ModuleType, torch.dtype, torch.device, torch.Size)


class FunctionsOf:
    """The functions a network holds, anywhere, that enclose or default to something of that network: hooks, lambdas.

    :meth:`fresh` gives their empty copies for a deep copy's memo, and :meth:`fill` lets those reach into the copy.
    Functions that enclose each other, or themselves, and variables that several share stay so. What a function
    encloses that has nothing of the network in it is shared with the original.
    """

    def __init__(self, model: nn.Module) -> None:
        held = _held_by(model)
        functions = [value for value in held.values() if isinstance(value, types.FunctionType)]
        self._own = {key: value for key, value in held.items() if not isinstance(value, types.FunctionType)}
        self._packages = {cls.__module__.partition(".")[0] for cls in own_classes(model)}
        self._reaching = self._that_reach(functions)
        found = [value for value in self._reaching.values() if isinstance(value, types.FunctionType)]
        self.functions: list[types.FunctionType] = found

    def fresh(self) -> dict[int, Any]:
        """By identity, copies of the functions that enclose nothing yet."""
        cells = {id(cell): types.CellType() for function in self.functions for cell in function.__closure__ or ()}
        return {id(function): _empty(function, cells) for function in self.functions}

    def fill(self, memo: dict[int, Any]) -> None:
        """Let the copies enclose and default to what stands for what the functions do; ``memo``: after the copy."""
        for function in self.functions:
            new = memo[id(function)]
            for cell, old in zip(new.__closure__ or (), function.__closure__ or (), strict=True):
                with contextlib.suppress(ValueError):  # not set yet
                    cell.cell_contents = self._for(old.cell_contents, memo)
            new.__defaults__ = self._for(function.__defaults__, memo)
            new.__kwdefaults__ = self._for(function.__kwdefaults__, memo)
            new.__dict__.update({name: self._for(value, memo) for name, value in vars(function).items()})

    def _that_reach(self, functions: Iterable[types.FunctionType]) -> dict[int, Any]:
        """Of the functions and of what they hold: that which holds something of the network, by identity."""
        holders: dict[int, list[Any]] = {}
        seen: dict[int, Any] = {}
        opened: list[Any] = list(functions)
        while opened:
            value = opened.pop()
            if id(value) in seen or id(value) in self._own:
                continue
            seen[id(value)] = value
            for part in self._parts_of(value):
                if not isinstance(part, _PLAIN):
                    holders.setdefault(id(part), []).append(value)
                    opened.append(part)
        reaching: dict[int, Any] = {}
        opened = [holder for one, some in holders.items() if one in self._own for holder in some]
        while opened:
            value = opened.pop()
            if id(value) not in reaching:
                reaching[id(value)] = value
                opened.extend(holders.get(id(value), ()))
        return reaching

    def _parts_of(self, value: Any) -> Iterator[Any]:
        """What a value holds. A trainer or a logger that a hook encloses is nothing of the network's: it is not opened,
        as its class was not written with the network."""
        if isinstance(value, types.FunctionType):
            yield from closure_of(value)
            yield from (value.__defaults__, value.__kwdefaults__, *vars(value).values())
        elif type(value).__module__.partition(".")[0] in self._packages or is_library(type(value).__module__):
            yield from _parts(value)

    def _for(self, value: Any, memo: dict[int, Any]) -> Any:
        if id(value) not in self._reaching and id(value) not in memo:
            return value
        try:
            return copy.deepcopy(value, memo)
        except Exception:  # a helper that holds a lock, a handle, a logger: the copy shares it
            return value


def _empty(function: types.FunctionType, cells: Mapping[int, types.CellType]) -> types.FunctionType:
    closure = tuple(cells[id(cell)] for cell in function.__closure__ or ())
    new = types.FunctionType(function.__code__, function.__globals__, function.__name__, None, closure)
    new.__qualname__, new.__annotations__ = function.__qualname__, function.__annotations__
    return new


def _held_by(model: nn.Module) -> dict[int, Any]:
    """Everything that attributes hold, by identity: functions, but nothing that only they hold."""
    found: dict[int, Any] = {}
    opened: list[Any] = [model]
    while opened:
        value = opened.pop()
        if id(value) not in found and not isinstance(value, _PLAIN):
            found[id(value)] = value
            opened.extend(_parts(value))
    return found


def _parts(value: Any) -> Iterator[Any]:
    """What a container, a partial, a method, a module or a plain object holds."""
    if isinstance(value, Mapping):
        yield from value.values()
    elif isinstance(value, list | tuple | set | frozenset | collections.deque):
        yield from value
    elif isinstance(value, types.MethodType):
        yield value.__self__
    elif isinstance(value, functools.partial):
        yield from (value.func, value.args, value.keywords)
    elif isinstance(value, nn.Module | types.SimpleNamespace) or (
        isinstance(getattr(value, "__dict__", None), dict) and not is_library(type(value).__module__)
    ):
        yield from vars(value).values()
