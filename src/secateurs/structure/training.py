"""Pruning inside a running training: the optimiser's state is sliced along, and every process gets the same plan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from secateurs.errors import PlanError, StructureError, checked
from secateurs.plan import Plan
from secateurs.structure.layout import arranged_as


def slice_optimizer(optimizer: torch.optim.Optimizer, dense: nn.Module, small: nn.Module, plan: Plan) -> None:
    """Point ``optimizer`` at the parameters of ``small`` and slice its state (momentum, Adam's moments) alike.

    State tensors of a parameter's own shape are sliced by the plan; scalars such as step counts stay; state of any
    other shape (factored second moments) is dropped, so that the optimiser starts it anew. Parameters that went
    with a removed block leave the optimiser.

    Raises:
        StructureError: the optimiser holds a tensor that is not a parameter of ``dense``.
    """
    names = {id(parameter): name for name, parameter in dense.named_parameters()}
    fresh = dict(small.named_parameters())
    require_own(optimizer, dense)
    for group in optimizer.param_groups:
        kept: list[torch.Tensor] = []
        for parameter in group["params"]:
            name = names[id(parameter)]
            state = optimizer.state.pop(parameter, None)
            if name not in fresh:
                continue
            kept.append(fresh[name])
            if state is not None:
                optimizer.state[fresh[name]] = _sliced_state(state, parameter, plan.slices.get(name, {}))
        group["params"] = kept


def require_own(optimizer: torch.optim.Optimizer, dense: nn.Module) -> None:
    """Nothing, if an optimiser trains parameters of this network alone.

    Raises:
        StructureError: it does not, or is none.
    """
    checked(
        torch.optim.Optimizer, optimizer, "optimizer=", "Give the optimiser that trains the network", StructureError
    )
    own = {id(parameter) for parameter in dense.parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if id(parameter) not in own:
                raise StructureError(
                    f"The optimiser holds a tensor of shape {list(parameter.shape)} that is no parameter of "
                    f"{type(dense).__name__}. Pass the optimiser that trains this very network."
                )


def _sliced_state(state: dict[str, Any], parameter: torch.Tensor, axes: dict[int, tuple[int, ...]]) -> dict[str, Any]:
    result = {}
    for key, value in state.items():
        if isinstance(value, torch.Tensor) and value.dim() and value.shape == parameter.shape:
            for dim, kept in axes.items():
                value = value.index_select(dim, torch.tensor(kept, dtype=torch.long, device=value.device))
            result[key] = arranged_as(value, state[key]).clone(memory_format=torch.preserve_format)
        elif not isinstance(value, torch.Tensor) or value.numel() == 1:
            result[key] = value
        else:
            return {}
    return result


def agree_on_plan(decide: Callable[[], Plan], group: Any = None) -> Plan:
    """The plan that rank 0 decides, the same on every process; without ``torch.distributed`` just ``decide()``.

    The plan travels as JSON text (no pickle). A failure on rank 0 is raised on every rank, so that none hangs.

    Raises:
        PlanError: deciding failed on rank 0.
    """
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return decide()
    source = distributed.get_global_rank(group, 0) if group is not None else 0
    device = torch.device("cuda") if distributed.get_backend(group) == "nccl" else torch.device("cpu")
    text = b""
    failure: Exception | None = None
    if distributed.get_rank() == source:
        try:
            text = b"+" + decide().to_json().encode()
        except Exception as error:
            failure = error
            text = b"-" + str(error).encode()
    size = torch.tensor([len(text)], dtype=torch.int64, device=device)
    distributed.broadcast(size, source, group=group)
    buffer = torch.zeros(int(size), dtype=torch.uint8, device=device)
    if text:
        buffer.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
    distributed.broadcast(buffer, source, group=group)
    if failure is not None:
        raise failure
    received = bytes(buffer.cpu().numpy().tobytes())
    if received[:1] == b"-":
        raise PlanError(f"Rank 0 could not decide on a plan: {received[1:].decode()}")
    return Plan.from_json(received[1:].decode(), "the plan from rank 0")


@torch.no_grad()
def scatter(dense: nn.Module, small: nn.Module, plan: Plan) -> None:
    """Write the tensors of ``small = apply(dense, plan)`` back to where they were cut from (in place)."""
    wide = dense.state_dict()
    for name, tensor in small.state_dict().items():
        index: list[torch.Tensor] = []
        for dim, size in enumerate(wide[name].shape):
            kept = torch.tensor(plan.slices.get(name, {}).get(dim, tuple(range(size))), device=tensor.device)
            index.append(kept.reshape([-1 if axis == dim else 1 for axis in range(tensor.ndim)]))
        if index:
            wide[name][tuple(index)] = tensor
        else:
            wide[name].copy_(tensor)
