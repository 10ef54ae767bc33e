"""Forms in which networks come: wrappers are taken off, and what cannot be cut is refused with the reason."""

from __future__ import annotations

import copy
import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from secateurs.errors import StructureError, UnsupportedOperatorError, why
from secateurs.structure.places import place_of
from secateurs.structure.reach import own_classes, tensors_within

_INNER = {
    "torch._dynamo.eval_frame.OptimizedModule": "_orig_mod",
    "torch.nn.parallel.data_parallel.DataParallel": "module",
    "torch.nn.parallel.distributed.DistributedDataParallel": "module",
    "torch.optim.swa_utils.AveragedModel": "module",
}
"""Wrappers that add nothing to what a network computes, and the attribute that holds the network."""
QUANTISED = (
    "Prune the float network first (trace, plan, apply), then quantise the smaller one: steps and packed weights "
    "belong to the channels that they were made for."
)
_INTEGER_LAYERS = (
    "torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.nn.quantized", "torch.nn.intrinsic.quantized",
    "bitsandbytes.",
)  # fmt: skip
_OBSERVERS = ("FakeQuantizeBase", "ObserverBase", "FakeQuantizerBase", "FakeQuantizer")


def plain(model: Any) -> nn.Module:
    """The module that is traced and cut, with the very tensors of ``model``.

    ``torch.compile``, ``DataParallel``, ``DistributedDataParallel`` and averaged models are taken off; the module of
    an exported program is opened so that it can change its mode.

    Raises:
        StructureError: it cannot be cut, with the reason and what to do.
    """
    if isinstance(model, torch.export.ExportedProgram):
        raise StructureError(
            "This is an exported program, not a module. Give program.module(), or better the nn.Module that it was "
            "exported from, whose class is kept then."
        )
    if not isinstance(model, nn.Module):
        raise StructureError(f"The network is a {type(model).__name__}; it must be a torch.nn.Module.")
    while (inner := _inner(model)) is not None:
        model = inner
    for name, module in model.named_modules():
        for holds, reason in _REFUSED:
            if holds(module):
                raise StructureError(f"{name or 'The network'} is a {type(module).__name__}: {reason}")
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        _require_dense(name, tensor)
    _require_values(model)
    if isinstance(model, torch.fx.GraphModule) and "eval" in vars(model):
        return copy.copy(model)  # an exported module refuses to change its mode; its copy has the same tensors
    return model


def _inner(model: nn.Module) -> nn.Module | None:
    for base in type(model).__mro__:
        held = getattr(model, _INNER.get(f"{base.__module__}.{base.__qualname__}", ""), None)
        if isinstance(held, nn.Module):
            return held
    return None


def _is_script(module: nn.Module) -> bool:
    return isinstance(module, torch.jit.ScriptModule)


def _is_sharded(module: nn.Module) -> bool:
    return "FullyShardedDataParallel" in type(module).__name__ or type(module).__name__.startswith("FSDP")


def _is_integer(module: nn.Module) -> bool:
    """True for layers of integers, and for any that packs its weights into an object of PyTorch's C++ side."""
    packed = any(isinstance(value, torch.ScriptObject) for value in vars(module).values())
    return packed or f"{type(module).__module__}.".startswith(_INTEGER_LAYERS)


def _is_observed(module: nn.Module) -> bool:
    return any(
        base.__name__ in _OBSERVERS and base.__module__.startswith(("torch.ao.", "torchao."))
        for base in type(module).__mro__
    )


_REFUSED: tuple[tuple[Callable[[nn.Module], bool], str], ...] = (
    (
        _is_script,
        "TorchScript cannot be exported or cut. Give the nn.Module that it was made from.",
    ),
    (
        _is_sharded,
        "its parameters lie in pieces on several processes. Gather them into the plain module "
        "(torch.distributed.checkpoint, get_model_state_dict), prune that, then shard it again.",
    ),
    (_is_integer, f"its weights are packed integers, of which no channel can be sliced. {QUANTISED}"),
    (_is_observed, f"it observes or rounds to the steps of a quantisation of the dense network. {QUANTISED}"),
)


def _require_dense(name: str, tensor: torch.Tensor) -> None:
    if isinstance(tensor, (nn.parameter.UninitializedParameter, nn.parameter.UninitializedBuffer)):
        raise StructureError(
            f"{name} has no shape yet (a lazy module). Run the network once on an example, then trace it."
        )
    kind, module = type(tensor).__name__, type(tensor).__module__
    if module.startswith("torch.distributed"):
        raise StructureError(
            f"{name} is a {kind}, of which every process holds a part. Gather the whole tensors "
            "(tensor.full_tensor()) into the plain module, prune that, then distribute it again."
        )
    floats = tensor.is_floating_point() or tensor.is_complex()
    own_class = type(tensor) not in (torch.Tensor, nn.Parameter, nn.Buffer)
    if is_traceable_wrapper_subclass(tensor) or (own_class and not floats):
        raise StructureError(
            f"{name} is a {kind} of {tensor.dtype} (module {module}): packed or quantised weights, of which no "
            f"channel can be sliced. {QUANTISED}"
        )
    if tensor.is_meta:
        raise StructureError(
            f"{name} is on the meta device and has no values. Load the weights (to_empty, then load_state_dict), "
            "then trace the network."
        )
    if tensor.layout is not torch.strided:
        raise StructureError(
            f"{name} is stored in the layout {tensor.layout}; only dense tensors can be sliced. Make it dense "
            "(tensor.to_dense()), then prune."
        )


def _require_values(model: nn.Module) -> None:
    owners = [(path or type(model).__name__, vars(module)) for path, module in model.named_modules()]
    owners += [(cls.__qualname__, dict(vars(cls))) for cls in own_classes(model)]
    for owner, attributes in owners:
        for name, value in attributes.items():
            if any(isinstance(tensor, FakeTensor) for tensor in tensors_within([value])):
                raise StructureError(
                    f"{owner}.{name} holds a tensor without values, which an earlier export of the network left there. "
                    "Make it anew, or give the attribute its first value again, then trace the network."
                )


_BY_VALUES = ("GuardOnDataDependentSymNode", "DataDependentOutputException", "PendingUnbackedSymbolNotFound")


def _packs(failure: Exception) -> bool:
    """Whether it failed where a packed sequence is made or read."""
    frames = [frame for frame, _ in traceback.walk_tb(failure.__traceback__)]
    return any(
        frame.f_globals.get("__name__") == nn.utils.rnn.__name__
        or any(isinstance(value, nn.utils.rnn.PackedSequence) for value in frame.f_locals.values())
        for frame in frames
    )


def not_captured(model: nn.Module, failure: Exception) -> StructureError:
    """The error for a network that runs but cannot be exported: what in its forward is in the way, and where."""
    name, place = type(model).__name__, str(place_of(failure, model))
    place = f", in {place}" if place else ""
    what = f"torch.export cannot capture {name} ({why(failure)}){place}. The network runs, but "
    kinds = {base.__name__ for error in (failure, failure.__cause__) if error for base in type(error).__mro__}
    if "UnsupportedOperatorException" in kinds or "no fake impl registered" in str(failure):
        return UnsupportedOperatorError(
            f"{what}PyTorch cannot tell the shapes that this operator gives. Register them "
            "(torch.library.register_fake), or write that part with other operators."
        )
    if "is being modified inplace" in str(failure):
        return StructureError(
            f"{what}it writes in place into one of several views that one call made (split, chunk, unbind). Write the "
            "result to a new tensor, or take the part by slicing."
        )
    if _packs(failure):
        return StructureError(
            f"{what}a packed sequence is as long as values of a tensor say. Let the recurrent layer read the padded "
            "sequence (mask what lies beyond an end), which computes the same up to it in one direction."
        )
    if kinds.intersection(_BY_VALUES):  # torch says so in symbols of its own
        return StructureError(
            f"torch.export cannot capture {name}: its Python code branches or loops on values of a tensor, "
            f"counts what passes a condition, or makes a number of one{place}. Write that line so that it does the "
            "same for all values (torch.where, torch.cond, topk of a fixed number), or trace the modules before it by "
            "themselves: what they return stays as it is. See https://pytorch.org/docs/stable/export.html."
        )
    return StructureError(
        f"{what}its forward does what cannot be exported; see https://pytorch.org/docs/stable/export.html, or prune "
        "the part of it that can."
    )
