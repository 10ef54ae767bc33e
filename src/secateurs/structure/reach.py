"""What a network's own code can reach beyond its modules: classes, functions, and the names they use."""

from __future__ import annotations

import builtins
import collections
import functools
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

_LIBRARIES = frozenset({*sys.stdlib_module_names, "torch", "numpy", "secateurs", "builtins"}) - {"__main__"}
_NEVER_RUN = frozenset({"__init__", "__new__", "__init_subclass__", "__reduce__", "__reduce_ex__", "__setstate__"})
CACHED = type(functools.lru_cache(None)(len))


def is_library(module: str | None) -> bool:
    """Whether a module of that name belongs to Python, PyTorch, NumPy or this package."""
    return (module or "builtins").partition(".")[0] in _LIBRARIES


def own_classes(model: nn.Module) -> dict[type, None]:
    """Every class of the tree's modules and of what they inherit from, PyTorch's own left out."""
    found = {cls: None for module in model.modules() for cls in type(module).__mro__}
    return {cls: None for cls in found if not is_library(cls.__module__)}


class Reach:
    """Which functions a forward may run and which global names they use, found by the names in their code.

    ``classes``: the network's own; ``globals``: by namespace (its identity) the namespace and the names of it that
    are used; ``functions``: every function that may run.
    """

    def __init__(self, model: nn.Module) -> None:
        self.classes = own_classes(model)
        self.packages = frozenset(
            type(module).__module__.partition(".")[0] for module in model.modules() if type(module) in self.classes
        )
        self.globals: dict[int, tuple[dict[str, Any], set[str]]] = {}
        self.functions: dict[types.FunctionType, None] = {}
        self._names: set[str] = set()
        self._open: list[Any] = []
        self._methods: dict[str, list[Any]] = {}
        for cls in self.classes:
            for name, value in vars(cls).items():
                self._methods.setdefault(name, []).append(value)
        special = [name for name in self._methods if name.startswith("__") and name not in _NEVER_RUN]
        self._use(["forward", *special])
        for module in model.modules():
            self._open.extend(_callables(module))
        self._follow()

    def follow(self, function: Any) -> None:
        """Count a callable among those that may run."""
        self._open.append(function)
        self._follow()

    def adopt(self, cls: type) -> None:
        """A helper class of the network's own: what it holds counts, and so do its methods of names that are used."""
        if cls in self.classes or is_library(cls.__module__):
            return
        self.classes[cls] = None
        for name, value in vars(cls).items():
            self._methods.setdefault(name, []).append(value)
            if name in self._names or (name.startswith("__") and name not in _NEVER_RUN - {"__init__", "__new__"}):
                self._open.append(value)
        self._follow()

    def is_own(self, value: Any) -> bool:
        """Whether an object's class was written with the network, so that its state is the network's."""
        return type(value).__module__.partition(".")[0] in self.packages

    def _use(self, names: Iterable[str]) -> None:
        for name in names:
            if name not in self._names:
                self._names.add(name)
                self._open.extend(self._methods.get(name, ()))

    def _follow(self) -> None:
        while self._open:
            for function in functions_of(self._open.pop()):
                if function not in self.functions and not is_library(function.__module__):
                    self.functions[function] = None
                    self._read(function)

    def _read(self, function: types.FunctionType) -> None:
        names = set(_names_in(function.__code__))
        self._use(names)
        self._look_up(function.__globals__, names)
        self._open.extend(cell for cell in closure_of(function) if callable(cell))

    def _look_up(self, namespace: dict[str, Any], names: set[str]) -> None:
        """Names of a namespace that code uses; those of a module that it names are looked up there, too."""
        _, known = self.globals.setdefault(id(namespace), (namespace, set()))
        fresh = names - known
        known |= fresh
        for name in fresh:
            value = namespace.get(name)
            if isinstance(value, types.ModuleType):
                if not is_library(value.__name__):
                    self._look_up(vars(value), self._names | names)
            elif isinstance(value, type):
                if value.__module__.partition(".")[0] in self.packages:
                    self.adopt(value)
            elif callable(value):
                self._open.append(value)


def held_tensors(model: nn.Module) -> Iterator[torch.Tensor]:
    """Every tensor that attributes of the modules hold, through containers and plain objects; not the parameters."""
    yield from tensors_within(
        value
        for module in model.modules()
        for name, value in vars(module).items()
        if name not in ("_parameters", "_modules")
    )


def tensors_within(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    """Every tensor in some values, through containers and plain objects, but not through modules."""
    seen: set[int] = set()
    opened = list(values)
    while opened:
        value = opened.pop()
        if id(value) in seen or isinstance(value, (str, int, float, type, types.ModuleType, nn.Module)):
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, Mapping):
            opened.extend(value.values())
        elif isinstance(value, list | tuple | set | frozenset | collections.deque):
            opened.extend(value)
        elif isinstance(getattr(value, "__dict__", None), dict) and not is_library(type(value).__module__):
            opened.extend(vars(value).values())


def _callables(module: nn.Module) -> Iterator[Any]:
    for name, value in vars(module).items():
        if name.endswith("_hooks") and isinstance(value, Mapping):
            yield from value.values()
        elif callable(value) and not isinstance(value, nn.Module):
            yield value


def functions_of(value: Any) -> Iterator[types.FunctionType]:
    """The Python functions behind a callable: methods, partials, properties, caches and decorators unwrapped."""
    if isinstance(value, types.FunctionType):
        yield value
        yield from functions_of(getattr(value, "__wrapped__", None))
    elif isinstance(value, types.MethodType | classmethod | staticmethod):
        yield from functions_of(value.__func__)
    elif isinstance(value, functools.partial | functools.partialmethod | functools.cached_property):
        yield from functions_of(value.func)
    elif isinstance(value, property):
        for part in (value.fget, value.fset):
            yield from functions_of(part)
    elif isinstance(value, CACHED):
        yield from functions_of(value.__wrapped__)


def closure_of(function: types.FunctionType) -> Iterator[Any]:
    """What the enclosed variables of a function hold now."""
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not set yet
            continue


def _names_in(code: types.CodeType) -> Iterator[str]:
    yield from (name for name in code.co_names if not hasattr(builtins, name))
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names_in(constant)
        elif isinstance(constant, str) and constant.isidentifier():
            yield constant  # getattr(self, "name")
