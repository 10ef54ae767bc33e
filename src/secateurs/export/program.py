"""Writes a network as an exported PyTorch program (``.pt2``) for targets that run PyTorch itself."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from secateurs.errors import ExportError, SecateursError, why
from secateurs.export.difference import largest_difference, redrawn, tensors_of
from secateurs.export.flat import exportable
from secateurs.export.onnx import TOLERANCE, ExportReport, as_arguments, quiet, with_batch
from secateurs.files import write_atomic
from secateurs.structure.operators import CONVOLUTIONS, is_a
from secateurs.structure.untouched import evaluating, exporting, untouched


def to_program(module: nn.Module, example: Any, *, batch: int = 1) -> torch.export.ExportedProgram:
    """The module as an exported program in evaluation mode, batch normalisation folded into the convolutions.

    Raises:
        ExportError: torch cannot export it.
    """
    args, kwargs = with_batch(as_arguments(example), batch)
    module, args, kwargs = exportable(module, args, kwargs)
    try:
        with exporting(module), evaluating(module), quiet(), torch.no_grad():
            graph = torch.export.export(module, args, kwargs, strict=False).module()
            _fold(graph)
            program = torch.export.export(graph, args, kwargs, strict=False)
            for name, tensor in program.state_dict.items():  # an evaluation mode that merges weights is undone
                program.state_dict[name] = _copied(tensor)
            return without_code(program)
    except Exception as error:
        raise ExportError(
            f"{type(module).__name__} cannot be exported as a PyTorch program: "
            f"{why(error)}. Replace what the message names, or choose another target."
        ) from error


def without_code(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The program without stack traces; its operators keep the path of their module."""
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)
    return program


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    copied = tensor.detach().clone()
    return torch.nn.Parameter(copied, tensor.requires_grad) if isinstance(tensor, torch.nn.Parameter) else copied


def _fold(graph: torch.fx.GraphModule) -> None:
    """Fold every batch normalisation that alone reads a convolution into that convolution."""
    for node in list(graph.graph.nodes):
        if not is_a(node, ("aten.batch_norm",)):
            continue
        source = node.args[0]
        if len(source.users) != 1 or not is_a(source, CONVOLUTIONS):
            continue
        tensors = [None if entry is None else _tensor(graph, entry) for entry in (*source.args[1:3], None)[:2]]
        weight, bias = tensors[0], tensors[1] if len(source.args) > 2 else None
        gain, shift, mean, variance = (None if entry is None else _tensor(graph, entry) for entry in node.args[1:5])
        if weight is None or mean is None or variance is None:
            continue
        scale = (variance.double() + node.args[7]).rsqrt() * (1.0 if gain is None else gain.double())
        base = -mean.double() if bias is None else bias.double() - mean.double()
        new_bias = base * scale + (0.0 if shift is None else shift.double())
        new_weight = weight.double() * scale.view(-1, *[1] * (weight.dim() - 1))
        name = f"folded_{node.name}"
        graph.register_parameter(f"{name}_weight", nn.Parameter(new_weight.to(weight.dtype)))
        graph.register_parameter(f"{name}_bias", nn.Parameter(new_bias.to(weight.dtype)))
        with graph.graph.inserting_before(source):
            source.args = (
                source.args[0],
                graph.graph.get_attr(f"{name}_weight"),
                graph.graph.get_attr(f"{name}_bias"),
                *source.args[3:],
            )
        node.replace_all_uses_with(source)
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    graph.recompile()


def _tensor(graph: torch.fx.GraphModule, node: Any) -> torch.Tensor | None:
    if not isinstance(node, torch.fx.Node) or node.op != "get_attr":
        return None
    owner, _, leaf = str(node.target).rpartition(".")
    value = getattr(graph.get_submodule(owner), leaf)
    return value.detach() if isinstance(value, torch.Tensor) else None


def program_bytes(program: torch.export.ExportedProgram) -> bytes:
    """The file's content."""
    buffer = io.BytesIO()
    with quiet():
        torch.export.save(program, buffer)
    return buffer.getvalue()


def export_program(
    module: nn.Module, example: Any, path: str | os.PathLike[str], *, batch: int | None = 1
) -> ExportReport:
    """Write ``module`` to ``path`` as an exported PyTorch program and compare it with the module.

    Args:
        module: network, left in the mode it was in.
        example: inputs in any of the forms that ``trace`` takes.
        path: file to write; it appears whole or not at all.
        batch: fixed batch size.

    Raises:
        ExportError: it cannot be exported, cannot be written, or computes something else.
    """
    path = Path(path)
    if batch is None:
        raise ExportError("A PyTorch program is exported with a fixed batch size. Leave out the open batch.")
    content = program_bytes(to_program(module, example, batch=batch))
    error = max_rel_error(module, example, batch, content, path.name)
    if not error <= TOLERANCE:
        raise ExportError(
            f"The exported {path.name} differs from the module by {error:.2g} of the largest output "
            f"(limit {TOLERANCE:g}). Nothing was written; choose another target."
        )
    try:
        write_atomic(path, content)
    except (OSError, SecateursError) as failure:
        raise ExportError(f"Cannot write {path} ({failure}). Free space or choose another folder.") from failure
    return ExportReport(max_rel_error=error, size_bytes=len(content))


def max_rel_error(module: nn.Module, example: Any, batch: int, content: bytes, name: str) -> float:
    """Largest difference between the module's outputs and those of the program ``content``, by the largest output."""
    module, args, kwargs = exportable(module, *with_batch(as_arguments(example), batch))
    args, kwargs = redrawn((args, kwargs))
    given = pytree.tree_map_only(torch.Tensor, torch.clone, (args, kwargs))  # which the network may change
    with untouched(module), evaluating(module), torch.no_grad(), quiet():
        wanted = tensors_of(module(*args, **kwargs))
        found = tensors_of(torch.export.load(io.BytesIO(content)).module()(*given[0], **given[1]))
    return largest_difference(wanted, found, name)
