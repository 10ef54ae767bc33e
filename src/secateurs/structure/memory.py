"""Remembers what a network and its code hold, and puts it back: attributes, containers, tensors, globals, caches."""

from __future__ import annotations

import collections
import copy
import functools
import itertools
import random
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from secateurs.structure.reach import CACHED, Reach, functions_of, is_library

_CLASS_MACHINERY = frozenset({"__dict__", "__weakref__", "__doc__", "__module__", "__abstractmethods__", "_abc_impl"})
_PLAIN = (type(None), bool, int, float, complex, str, bytes, type, types.ModuleType, torch.dtype, torch.device)
_GENERATORS = (random.Random, np.random.Generator, np.random.RandomState, torch.Generator)
_LOOKED_AT = 64
"""Items of a list in which generators are looked for: a list of data holds none further on."""
_CONTAINERS = (dict, list, set, collections.deque, bytearray)
RandomSource = random.Random | np.random.Generator | np.random.RandomState
"""Objects that random numbers are asked of outside PyTorch."""


class Memory:
    """What a network's modules, classes and global names hold now; :meth:`restore` puts all of it back.

    Bindings and the contents of containers are remembered by identity. ``values``: the contents of tensors and arrays
    are copied as well (``parameters``: those of parameters, too); ``modules``: what the modules themselves hold counts.
    Objects that cannot be wound back (caches of functions, counters of ``itertools``, random numbers of the system) are
    replaced by fresh ones until then. ``sources``: random numbers of the network's own, Python's and NumPy's.
    """

    def __init__(self, model: nn.Module, *, values: bool = True, parameters: bool = True, modules: bool = True) -> None:
        self._values, self._parameters, self._modules = values, parameters, modules
        self._seen: dict[int, Any] = {}
        self._undo: list[Callable[[], None]] = []
        self._substitutes: dict[int, Any] = {}
        self.sources: list[RandomSource] = []
        self._reach = Reach(model)
        self._open: list[Any] = list(model.modules()) if modules else []
        self._known: dict[int, set[str]] = {}
        while self._open or self._reached():
            self._visit(self._open.pop())

    def restore(self) -> None:
        """Everything as it was when this memory was made."""
        failures = []
        for undo in reversed(self._undo):
            try:
                undo()
            except Exception as error:
                failures.append(error)
        if failures:
            warnings.warn(f"Part of the network's state could not be put back: {failures[0]}", stacklevel=3)

    def _reached(self) -> bool:
        """Opens what the code seen so far can reach and was not opened yet; whether there was anything."""
        for cls in [cls for cls in self._reach.classes if id(cls) not in self._seen]:
            self._seen[id(cls)] = cls
            self._class(cls)
        self._open.extend(function for function in self._reach.functions if id(function) not in self._seen)
        for key, (namespace, names) in list(self._reach.globals.items()):
            fresh = names - self._known.setdefault(key, set())
            if fresh:
                self._known[key] |= fresh
                self._namespace(namespace, fresh)
        return bool(self._open)

    def _visit(self, value: Any) -> None:
        if isinstance(value, _PLAIN) or id(value) in self._seen:
            return
        if isinstance(value, nn.Module) and not self._modules:
            return
        self._seen[id(value)] = value
        if isinstance(value, torch.Tensor):
            self._tensor(value)
        elif isinstance(value, np.ndarray):
            self._array(value)
        elif isinstance(value, _CONTAINERS):
            self._container(value)
            self._attributes(value)
        elif isinstance(value, tuple | frozenset):
            self._open.extend(value)
        elif isinstance(value, random.SystemRandom):
            self.sources.append(self._substitute(value))
        elif isinstance(value, RandomSource):
            self.sources.append(value)
            self._undo.append(_random_state(value))
        elif isinstance(value, torch.Generator):
            self._undo.append(_random_state(value))
        elif isinstance(value, functools.partial):
            self._open.extend((value.func, *value.args, *value.keywords.values()))
        elif isinstance(value, types.MethodType):
            self._open.extend((value.__func__, value.__self__))
        elif isinstance(value, types.BuiltinMethodType):
            self._open.append(value.__self__)
        elif isinstance(value, types.FunctionType):
            self._function(value)
        elif isinstance(value, CACHED):
            self._open.extend(functions_of(value))
        elif isinstance(value, nn.Module) or self._reach.is_own(value) or type(value) is types.SimpleNamespace:
            self._attributes(value)
            self._reach.adopt(type(value))

    def _substitute(self, value: Any) -> Any:
        """What stands in for something that cannot be wound back, or the same object."""
        if isinstance(value, _PLAIN):
            return value
        if id(value) not in self._substitutes:
            self._substitutes[id(value)] = _stand_in(value)
        return self._substitutes[id(value)]

    def _attributes(self, value: Any) -> None:
        if isinstance(getattr(value, "__dict__", None), dict):
            self._container(value.__dict__)
        for name in _slots(type(value)):
            if hasattr(value, name):
                self._open.append(getattr(value, name))
                self._undo.append(functools.partial(object.__setattr__, value, name, getattr(value, name)))

    def _container(self, value: Any) -> None:
        held = list(value.items()) if isinstance(value, dict) else list(value)
        items = [item for _, item in held] if isinstance(value, dict) else held
        if not isinstance(value, bytearray):
            self._open.extend(items)
        self._undo.append(functools.partial(_refill, value, held))
        if isinstance(value, dict | list):
            for key, item in held if isinstance(value, dict) else enumerate(held):
                fresh = self._substitute(item)
                if fresh is not item:
                    value[key] = fresh

    def _class(self, cls: type) -> None:
        held = {name: value for name, value in vars(cls).items() if name not in _CLASS_MACHINERY}
        for name, value in held.items():
            if not isinstance(value, types.FunctionType):
                self._open.append(value)
                fresh = self._substitute(value)
                if fresh is not value:
                    type.__setattr__(cls, name, fresh)
        self._undo.append(functools.partial(_reset_class, cls, held))

    def _namespace(self, namespace: dict[str, Any], names: set[str]) -> None:
        held = {name: namespace[name] for name in names if name in namespace}
        for name, value in held.items():
            self._open.append(value)
            fresh = self._substitute(value)
            if fresh is not value:
                namespace[name] = fresh
        self._undo.append(functools.partial(_reset_names, namespace, names, held))

    def _function(self, function: types.FunctionType) -> None:
        if is_library(function.__module__):
            return
        self._reach.follow(function)
        self._open.extend(
            (function.__dict__, *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
        )
        for cell in function.__closure__ or ():
            try:
                held = cell.cell_contents
            except ValueError:  # not set yet
                continue
            self._open.append(held)
            fresh = self._substitute(held)
            if fresh is not held:
                cell.cell_contents = fresh
            self._undo.append(functools.partial(setattr, cell, "cell_contents", held))

    def _tensor(self, tensor: torch.Tensor) -> None:
        if not self._values or type(tensor) not in (torch.Tensor, nn.Parameter, nn.Buffer):
            return
        self._open.extend(vars(tensor).values())
        if tensor.is_leaf and tensor.grad is not None:
            self._open.append(tensor.grad)
        copied = self._parameters or not isinstance(tensor, nn.Parameter)
        self._undo.append(_tensor_state(tensor, copied and tensor.device.type != "meta"))

    def _array(self, array: np.ndarray) -> None:
        if self._values and array.flags.writeable:
            self._undo.append(functools.partial(np.copyto, array, array.copy()))


def _tensor_state(tensor: torch.Tensor, copied: bool) -> Callable[[], None]:
    """Puts back where a tensor lies, what it holds (``copied``), its gradient and its flag.

    A tensor that nobody wrote to is not written to: graphs of autograd that hold it stay valid.
    """
    needs_gradient, place = tensor.requires_grad, tensor.detach()
    gradient = tensor.grad if tensor.is_leaf else None
    held = place.to("cpu", copy=True) if copied else None
    attributes = list(vars(tensor).items())

    def undo() -> None:
        with torch.inference_mode(tensor.is_inference()), torch.no_grad():
            if (
                tensor.data_ptr() != place.data_ptr()
                or tensor.shape != place.shape
                or tensor.stride() != place.stride()
            ):
                tensor.data = place
            if held is not None and not torch.equal(tensor.detach().cpu(), held):
                tensor.data.copy_(held)
            if tensor.is_leaf and tensor.requires_grad != needs_gradient:
                tensor.requires_grad_(needs_gradient)
            if tensor.is_leaf and tensor.grad is not gradient:
                tensor.grad = gradient
        _refill(vars(tensor), attributes)

    return undo


_DEPTH = 6
"""How far below a loader its generators are looked for: loader, sampler, data set, what a data set wraps."""


def random_states(values: Any) -> list[Callable[[], None]]:
    """A function for each generator of random numbers that these objects hold in attributes and lists; it winds the
    generator back."""
    found: list[Callable[[], None]] = []
    seen: dict[int, Any] = {}
    level = [values]
    for _ in range(_DEPTH):
        below: list[Any] = []
        for value in level:
            if isinstance(value, (*_PLAIN, torch.Tensor, np.ndarray)) or id(value) in seen:
                continue
            seen[id(value)] = value
            if isinstance(value, random.SystemRandom):
                continue
            if isinstance(value, _GENERATORS):
                found.append(_random_state(value))
            elif isinstance(value, dict):
                below.extend(list(value.values())[:_LOOKED_AT])
            elif isinstance(value, (list, tuple)):
                below.extend(value[:_LOOKED_AT])
            elif not isinstance(value, type) and isinstance(getattr(value, "__dict__", None), dict):
                below.extend(vars(value).values())
        level = below
    return found


def _random_state(source: Any) -> Callable[[], None]:
    if isinstance(source, random.Random):
        return functools.partial(source.setstate, source.getstate())
    if isinstance(source, torch.Generator | np.random.RandomState):
        reset: Callable[..., Any] = source.set_state
        return functools.partial(reset, source.get_state())
    return functools.partial(setattr, source.bit_generator, "state", copy.deepcopy(source.bit_generator.state))


def _stand_in(value: Any) -> Any:
    if isinstance(value, CACHED):
        settings = value.cache_parameters()
        fresh = functools.lru_cache(settings["maxsize"], settings["typed"])(value.__wrapped__)
        vars(fresh).update(vars(value))
        return fresh
    if isinstance(value, staticmethod | classmethod):
        inner = _stand_in(value.__func__)
        return value if inner is value.__func__ else type(value)(inner)
    if isinstance(value, random.SystemRandom):  # which knows no state and no seed
        return random.Random(0)
    if isinstance(value, itertools.count | itertools.cycle):
        return copy.copy(value)
    return value


def _slots(cls: type) -> Iterator[str]:
    for base in cls.__mro__:
        names = vars(base).get("__slots__", ())
        yield from (n for n in ((names,) if isinstance(names, str) else names) if n not in ("__dict__", "__weakref__"))


def _refill(container: Any, held: list[Any]) -> None:
    """The container with the items it held; one that holds just them is left alone."""
    if isinstance(container, dict):
        now = list(container.items())
        same = len(now) == len(held) and all(a[0] is b[0] and a[1] is b[1] for a, b in zip(now, held, strict=True))
    elif isinstance(container, set):
        same = len(container) == len(held) and all(item in container for item in held)
    else:
        same = len(container) == len(held) and all(a is b for a, b in zip(container, held, strict=True))
    if same:
        return
    kind: Any = next(base for base in (collections.OrderedDict, *_CONTAINERS) if isinstance(container, base))
    kind.clear(container)  # the built-in type's own methods: a subclass may do something else besides
    if isinstance(container, dict):
        for key, item in held:
            kind.__setitem__(container, key, item)
    elif isinstance(container, set):
        kind.update(container, held)
    else:
        kind.extend(container, held)


def _reset_class(cls: type, held: dict[str, Any]) -> None:
    now = dict(vars(cls))
    for name in now:
        if name not in held and name not in _CLASS_MACHINERY:
            type.__delattr__(cls, name)
    for name, value in held.items():
        if now.get(name, _reset_class) is not value:
            type.__setattr__(cls, name, value)


def _reset_names(namespace: dict[str, Any], names: set[str], held: dict[str, Any]) -> None:
    for name in names:
        if name in held:
            if namespace.get(name, _reset_names) is not held[name]:
                namespace[name] = held[name]
        elif name in namespace:
            del namespace[name]
