"""Writes a network as an ExecuTorch program (``.pte``) whose operators run in XNNPACK, for mobile devices."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from secateurs.errors import ExportError, SecateursError, why
from secateurs.export.difference import largest_difference, redrawn, tensors_of
from secateurs.export.onnx import TOLERANCE, ExportReport, quiet
from secateurs.export.program import to_program
from secateurs.files import write_atomic


@dataclass(frozen=True)
class Lowered:
    """An ExecuTorch program.

    ``content``: the file; ``names``: the exported program's node by debug handle; ``calls``: that node by instruction,
    for operators outside XNNPACK.
    """

    content: bytes
    names: dict[int, str]
    calls: dict[int, str]


def require_executorch() -> None:
    """Nothing, if ExecuTorch can be imported.

    Raises:
        ExportError: it is not installed.
    """
    if importlib.util.find_spec("executorch") is None:
        raise ExportError(
            "Files for ExecuTorch need the package executorch, which is not installed. Install it with "
            "'pip install secateurs[executorch]'."
        )


def lower(program: torch.export.ExportedProgram, named: torch.export.ExportedProgram | None = None) -> Lowered:
    """The exported program for ExecuTorch, with everything that XNNPACK knows handed to it.

    ``named``: the program that operators are named after, where ``program`` was made of another one.

    Raises:
        ExportError: ExecuTorch is not installed or refuses the program.
    """
    require_executorch()
    try:
        with silent():
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower
        with quiet(), torch.no_grad():
            edge = to_edge_transform_and_lower(
                program,
                partitioner=[XnnpackPartitioner()],
                compile_config=EdgeCompileConfig(_check_ir_validity=False),
            )
            names = _names(edge.exported_program(), program if named is None else named)
            finished = edge.to_executorch()
    except Exception as error:
        raise ExportError(
            f"The network cannot be lowered to ExecuTorch: {why(error)}. "
            f"Replace what the message names, or choose another target."
        ) from error
    calls = {
        int(instruction): names[handle]
        for instruction, handle in finished.debug_handle_map["forward"].items()
        if isinstance(handle, int) and handle in names
    }
    return Lowered(bytes(finished.buffer), names, calls)


def _names(edge: torch.export.ExportedProgram, program: torch.export.ExportedProgram) -> dict[int, str]:
    """Node of ``program`` by debug handle, from the lowered graph and the graphs handed to XNNPACK."""
    ours = {origin_of(node): node.name for node in program.graph.nodes}
    graphs = [edge.graph]
    for module in edge.graph_module.modules():
        inner = getattr(module, "original_module", None)
        if inner is not None:
            graphs.append(inner.graph)
    names: dict[int, str] = {}
    for graph in graphs:
        for node in graph.nodes:
            handle, name = node.meta.get("debug_handle"), ours.get(origin_of(node))
            if node.op == "call_function" and isinstance(handle, int) and name is not None:
                names[handle] = name
    return names


def origin_of(node: torch.fx.Node) -> str:
    """Name of the node, in the first graph it was exported to, that ``node`` came from."""
    name: str = node.name
    sources = node.meta.get("from_node") or []
    while sources:
        name, sources = sources[-1].name, sources[-1].from_node
    return name


def export_executorch(
    module: nn.Module, example: Any, path: str | os.PathLike[str], *, batch: int | None = 1
) -> ExportReport:
    """Write ``module`` to ``path`` as an ExecuTorch program for XNNPACK and compare it with the module.

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
        raise ExportError("An ExecuTorch program is exported with a fixed batch size. Leave out the open batch.")
    program = to_program(module, example, batch=batch)
    content = lower(program).content
    error = _max_rel_error(program, content, path.name)
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


def _max_rel_error(program: torch.export.ExportedProgram, content: bytes, name: str) -> float:
    """max|Δ| / max|y| between the program and the file on random input."""
    args, kwargs = redrawn(program.example_inputs)
    with torch.no_grad(), quiet():
        wanted = pytree.tree_leaves(program.module()(*args, **kwargs))
    found = run_executorch(content, tensors_of((args, kwargs)))
    pairs = [pair for pair in zip(wanted, found, strict=True) if isinstance(pair[0], torch.Tensor)]
    return largest_difference([one for one, _ in pairs], [other for _, other in pairs], name)


def run_executorch(content: bytes, inputs: list[torch.Tensor]) -> list[Any]:
    """Outputs of the program ``content`` for ``inputs``.

    Raises:
        ExportError: ExecuTorch cannot run it.
    """
    try:
        with silent():
            from executorch.extension.pybindings import _C as runtime

            program = runtime._load_program_from_buffer(content)
            return list(program.load_method("forward")(tuple(inputs)))
    except (ImportError, RuntimeError) as error:
        raise ExportError(
            f"ExecuTorch cannot run the exported program: {why(error)}. Choose another target, or another "
            f"version of the package executorch."
        ) from error


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Silences what native code writes to the standard streams, and the log records of imported packages."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    kept = [os.dup(1), os.dup(2)]
    disabled = logging.root.manager.disable
    with open(os.devnull, "w") as sink:
        os.dup2(sink.fileno(), 1)
        os.dup2(sink.fileno(), 2)
    logging.disable(logging.CRITICAL)
    try:
        with quiet():
            yield
    finally:
        logging.disable(disabled)
        for number, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, number)
            os.close(copy)
