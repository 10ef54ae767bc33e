"""Copies of a network in which other tensors stand for its own."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from secateurs.errors import StructureError, why
from secateurs.structure.functions import FunctionsOf
from secateurs.structure.places import place_of
from secateurs.structure.reach import held_tensors, is_library


def deep_copy(model: nn.Module, replaced: dict[int, object]) -> nn.Module:
    """A deep copy in which the objects of the given identities are replaced.

    A module whose own ``__deepcopy__`` fails, or copies other tensors than those, is copied as Python copies any other.

    Raises:
        StructureError: the module cannot be copied.
    """
    for value in held_tensors(model):
        # What a forward left (the tensor that an old-style weight_norm computed) cannot be copied with its gradient.
        if type(value) is torch.Tensor:
            replaced.setdefault(id(value), value.detach().clone().requires_grad_(value.is_leaf and value.requires_grad))
    try:
        return _copied(model, replaced)
    except Exception:
        for value in (value for module in model.modules() for value in vars(module).values()):
            if id(value) not in replaced and not _can_be_copied(value, replaced):
                replaced[id(value)] = value  # a lock, a handle, a logger: the copy shares it
    try:
        return _copied(model, replaced)
    except Exception as error:
        raise StructureError(_uncopied(model, error)) from error


def _copied(model: nn.Module, replaced: dict[int, object]) -> nn.Module:
    """A deep copy; the first error of a module's own way to copy, where Python's fails as well."""
    failure: Exception | None = None
    functions = FunctionsOf(model)
    try:
        memo = {**replaced, **functions.fresh()}
        small = copy.deepcopy(model, memo)
        if not _copies_itself(model) or _holds_its_own(small, model, replaced):
            functions.fill(memo)
            return small
    except Exception as error:
        failure = error
        if not _copies_itself(model):
            raise
    memo = {**replaced, **functions.fresh()}
    fresh = [(module, type(module).__new__(type(module))) for module in _copies_itself(model)]
    memo.update({id(module): new for module, new in fresh})
    try:
        for module, new in fresh:
            new.__dict__.update(copy.deepcopy(vars(module), memo))
        small = copy.deepcopy(model, memo)
        functions.fill(memo)
        return small
    except Exception as error:
        raise failure or error from None


def _copies_itself(model: nn.Module) -> list[nn.Module]:
    """Modules that define how they are copied."""
    ways = [(module, getattr(type(module), "__deepcopy__", None)) for module in model.modules()]
    return [module for module, way in ways if way is not None and not is_library(getattr(way, "__module__", None))]


def _holds_its_own(small: nn.Module, model: nn.Module, replaced: Mapping[int, object]) -> bool:
    """Whether a copy has the tensors that it should have, and nothing of the original."""
    if {id(module) for module in small.modules()} & {id(module) for module in model.modules()}:
        return False
    mine, others = dict(_tensors(model)), dict(_tensors(small))
    return mine.keys() == others.keys() and all(
        others[name] is replaced[id(tensor)]
        if id(tensor) in replaced
        else others[name] is not tensor and torch.equal(others[name].nan_to_num(), tensor.nan_to_num())
        for name, tensor in mine.items()
    )


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _uncopied(model: nn.Module, error: Exception) -> str:
    """Which module cannot be copied and why, and what to do."""
    named = {path: module for path, module in model.named_modules() if not _can_be_copied(module, {})}
    path = max(named, key=lambda path: path.count(".") + bool(path), default="")
    module = named.get(path, model)
    place = place_of(error, model).source
    cure = "Move what cannot be copied out of the module."
    if module in _copies_itself(model):
        cure = (
            "Let its __deepcopy__ copy what the module holds (copy.deepcopy of each, with the memo that it is given), "
            "or leave that method out."
        )
    return (
        f"{path or 'The network'} ({type(module).__name__}) cannot be copied: {why(error)}"
        f"{f' ({place})' if place else ''}. Pruning cuts a copy. {cure}"
    )


def _can_be_copied(value: Any, replaced: Mapping[int, object]) -> bool:
    if isinstance(value, dict) and any(isinstance(item, (nn.Module, nn.Parameter)) for item in value.values()):
        return True  # children and parameters of a module
    try:
        copy.deepcopy(value, dict(replaced))
    except Exception:
        return False
    return True
