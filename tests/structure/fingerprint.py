"""Everything a network holds as one nested value: equal before and after, or something left a mark."""

from __future__ import annotations

import collections
import functools
import os
import random
import types
from typing import Any

import numpy as np
import torch
from torch import nn


def fingerprint(model: nn.Module, *modules: types.ModuleType) -> dict[str, Any]:
    """Attributes, classes, globals of ``modules``, random states and settings."""
    seen: dict[int, int] = {}
    return {
        "modules": {name: _described(part, seen) for name, part in model.named_modules()},
        "classes": {
            cls.__name__: _table({n: v for n, v in vars(cls).items() if n != "__dict__"}, seen)
            for part in model.modules()
            for cls in type(part).__mro__
            if not cls.__module__.startswith("torch") and cls is not object
        },
        "globals": {module.__name__: _globals(module, seen) for module in modules},
        "random": (random.getstate(), repr(np.random.get_state()), torch.get_rng_state().tolist()),
        "settings": (
            torch.is_grad_enabled(),
            torch.get_default_dtype(),
            torch.are_deterministic_algorithms_enabled(),
            torch.is_autocast_enabled("cpu"),
            torch.get_num_threads(),
            dict(os.environ),
            [len(getattr(torch.nn.modules.module, n)) for n in dir(torch.nn.modules.module) if n.endswith("_hooks")],
        ),
    }


def differences(before: Any, after: Any, path: str = "") -> list[str]:
    """Paths at which two fingerprints differ."""
    if type(before) is type(after) is dict:
        keys = [*before, *(key for key in after if key not in before)]
        missing = object()
        return [
            line
            for key in keys
            for line in differences(before.get(key, missing), after.get(key, missing), f"{path}.{key}")
        ]
    return [] if before == after else [f"{path}: {str(before)[:80]} -> {str(after)[:80]}"]


def _globals(module: types.ModuleType, seen: dict[int, int]) -> dict[str, Any]:
    return _table({n: v for n, v in vars(module).items() if not n.startswith("__")}, seen)


def _table(table: Any, seen: dict[int, int]) -> dict[str, Any]:
    return {str(key): _described(value, seen) for key, value in table.items()}


def _described(value: Any, seen: dict[int, int]) -> Any:
    if isinstance(value, torch.Tensor):
        kind = type(value).__name__
        assert "Fake" not in kind
        held = value.detach().cpu().contiguous()
        bits = held.view(torch.uint8).numpy().tobytes() if held.dim() else str(held.item())
        return (id(value), kind, str(value.dtype), tuple(value.shape), bits, value.requires_grad, id(value.grad))
    if isinstance(value, (type(None), bool, int, float, str, bytes, torch.Size, torch.dtype)):
        return value
    if id(value) in seen:
        return ("again", seen[id(value)])
    seen[id(value)] = len(seen)
    name = (type(value).__name__, id(value))
    if isinstance(value, np.ndarray):
        return (*name, value.tobytes())
    if isinstance(value, (random.Random, np.random.Generator)):
        state = value.getstate() if isinstance(value, random.Random) else repr(value.bit_generator.state)
        return (*name, state)
    if isinstance(value, dict):
        return {"is": name, **_table(value, seen)}
    if isinstance(value, (list, tuple, collections.deque)):
        return {"is": name, **{str(i): _described(item, seen) for i, item in enumerate(value)}}
    if isinstance(value, (set, frozenset)):
        return (*name, sorted(map(str, value)))
    if isinstance(value, functools._lru_cache_wrapper):
        return (*name, value.cache_info())
    if isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        return {
            "is": name,
            "cells": [_described(cell, seen) for cell in cells],
            "defaults": _described(value.__defaults__, seen),
            **_table(vars(value), seen),
        }
    if isinstance(value, types.MethodType):
        return (_described(value.__func__, seen), id(value.__self__))
    if isinstance(value, (type, types.ModuleType)):
        return id(value)
    slots = {n: getattr(value, n) for n in getattr(type(value), "__slots__", ()) if hasattr(value, n)}
    return {"is": name, "repr": "" if hasattr(value, "__dict__") else repr(value), **_table(slots, seen),
            **_table(getattr(value, "__dict__", {}), seen)}  # fmt: skip
