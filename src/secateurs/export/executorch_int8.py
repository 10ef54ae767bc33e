"""ExecuTorch programs of int8 operators: PyTorch's own quantisation (PT2E) by the rules of XNNPACK's quantizer.

What the quantizer decides: signed activations with one scale per tensor, whose range is cut where that leaves the least
squared error; symmetric weights with one scale per output channel; operators that it does not know stay in float.
XNNPACK adds products in 32 bits on every processor, so weights have eight.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.utils import _pytree as pytree

from secateurs.errors import ExportError, SecateursError, why
from secateurs.export.difference import largest_difference, redrawn, tensors_of
from secateurs.export.executorch import Lowered, lower, require_executorch, run_executorch, silent
from secateurs.export.executorch_variants import ExecutorchVariants
from secateurs.export.onnx import TOLERANCE, ExportReport, quiet
from secateurs.export.program import max_rel_error, program_bytes, to_program
from secateurs.export.quantised import (
    Quantising,
    require_enough,
    require_finite,
    require_finite_input,
    require_varying,
    samples,
    unrunnable,
)
from secateurs.files import write_atomic
from secateurs.structure.operators import CONVOLUTIONS, is_a

_LAYERS = (*CONVOLUTIONS, "aten.linear", "aten.matmul")
_RELU = ("aten.relu",)
_APART = 0.25
"""So much of the largest output XNNPACK's answer may differ from the quantised program's, which rounds elsewhere."""
Span = tuple[torch.Tensor, torch.Tensor]


def export_executorch_int8(
    module: torch.nn.Module,
    example: Any,
    path: str | os.PathLike[str],
    *,
    batch: int | None = 1,
    quantising: Quantising | None = None,
) -> ExportReport:
    """Write ``module`` to ``path`` as an ExecuTorch program of int8 operators; it appears whole or not at all.

    The float program that it is made of is compared with the module, and how far they are apart is reported; the file
    is run once beside the quantised program.

    Args:
        module: network, left in the mode it was in.
        example: inputs in any of the forms that ``trace`` takes.
        path: file to write.
        batch: fixed batch size.
        quantising: calibration samples; weights have eight bits whatever it says.

    Raises:
        ExportError: no or too few calibration samples, or a tensor without a range, which is named; layers are to stay
            in float, which is not possible here; the network cannot be exported, quantised or lowered; the file
            computes something else.
    """
    path = Path(path)
    if quantising is None:
        raise ExportError("An int8 file needs calibration samples, from which ranges are read. Give data.")
    if batch is None:
        raise ExportError("An ExecuTorch program is exported with a fixed batch size. Leave out the open batch.")
    if quantising.in_float:
        raise ExportError(
            f"The plan leaves {', '.join(sorted(quantising.in_float))} in float, which ExecuTorch's int8 programs "
            f"cannot follow. Choose an int8 target of ONNX Runtime or OpenVINO, or a plan without precisions."
        )
    program = to_program(module, example, batch=batch)
    error = max_rel_error(module, example, batch, program_bytes(program), path.name)
    if not error <= TOLERANCE:
        raise ExportError(
            f"The program that {path.name} would be made of differs from the module by {error:.2g} of the largest "
            f"output (limit {TOLERANCE:g}). Nothing was written; choose another target."
        )
    prepared = prepare(program)
    calibrate(prepared, program, samples(quantising.calibration, batch, quantising.most))
    int8 = converted(prepared, program)
    content = lower(int8, program).content
    _check_answer(int8, content, path.name)
    try:
        write_atomic(path, content)
    except (OSError, SecateursError) as failure:
        raise ExportError(f"Cannot write {path} ({failure}). Free space or choose another folder.") from failure
    return ExportReport(max_rel_error=error, size_bytes=len(content))


@dataclass(frozen=True)
class Observed:
    """A program with observers: ``graph`` runs, ``observers`` of activations by name, in the order of the graph."""

    graph: fx.GraphModule
    observers: dict[str, Any]


def prepare(program: torch.export.ExportedProgram, *, plain: bool = False) -> Observed:
    """``program`` with what watches the tensors that XNNPACK's quantizer wants in int8.

    ``plain``: ranges are least and greatest value, which is quicker and enough where values do not matter.

    Raises:
        ExportError: ExecuTorch is not installed, or the quantizer refuses the program.
    """
    require_executorch()
    try:
        with silent():
            from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as xnnpack
            from torchao.quantization.pt2e import MinMaxObserver, PerChannelMinMaxObserver
            from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

            rules = xnnpack.get_symmetric_quantization_config(is_per_channel=True)
            if plain:
                watch = MinMaxObserver.with_args(eps=2**-12)
                activations = replace(rules.input_activation, observer_or_fake_quant_ctr=watch)
                rules = replace(rules, input_activation=activations, output_activation=activations)
            quantizer = xnnpack.XNNPACKQuantizer()
            # Batch norms are folded by now, and compiling the patterns that look for them takes seconds.
            quantizer.SUPPORTED_PATTERNS = [one for one in quantizer.SUPPORTED_PATTERNS if "_bn" not in one.name]
            graph = prepare_pt2e(_simplified(program.module()), quantizer.set_global(rules))
    except Exception as error:
        raise _refused(error) from error
    named = {
        str(node.target): graph.get_submodule(node.target) for node in graph.graph.nodes if node.op == "call_module"
    }
    return Observed(
        graph, {name: found for name, found in named.items() if not isinstance(found, PerChannelMinMaxObserver)}
    )


def _simplified(graph: fx.GraphModule) -> fx.GraphModule:
    """The graph without slices that take everything, and without a ReLU of a ReLU, which a removed block leaves:
    lowering drops them, but not where they are quantised."""
    for node in list(graph.graph.nodes):
        whole = is_a(node, ("aten.slice",)) and _shape(node) == _shape(node.args[0]) is not None
        if whole or (is_a(node, _RELU) and is_a(node.args[0], _RELU)):
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
    graph.recompile()
    return graph


def _shape(node: fx.Node) -> tuple[int, ...] | None:
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, torch.Tensor) else None


def calibrate(prepared: Observed, program: torch.export.ExportedProgram, given: Iterable[list[np.ndarray]]) -> None:
    """Show the observers calibration samples, each a list of arrays in the order of the program's inputs.

    Raises:
        ExportError: too few samples; samples that the network does not take; a tensor that is not finite or does not
            vary, which is named.
    """
    leaves, spec = pytree.tree_flatten(program.example_inputs)
    places = [number for number, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
    names = [node.name for node in prepared.graph.graph.nodes if node.op == "placeholder"]
    watching, count = _Watching(prepared.graph), 0
    for arrays in given:
        for name, array in zip(names, arrays, strict=False):
            require_finite_input(name, array, count)
        for place, array in zip(places, arrays, strict=True):
            leaves[place] = torch.from_numpy(np.array(array))
        try:
            with torch.no_grad():
                watching.run(*pytree.tree_leaves(pytree.tree_unflatten(leaves, spec)))
        except ExportError:
            raise
        except Exception as error:
            raise unrunnable(error) from error
        count += len(arrays[0])
    require_enough(count)
    for name, (low, high) in watching.spans.items():
        require_varying(name, low, high)


class _Watching(fx.Interpreter):
    """Runs a graph and keeps the ``spans`` of its inputs and of what layers give."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.spans: dict[str, tuple[float, float]] = {}

    def run_node(self, node: fx.Node) -> Any:
        """What the node gives.

        Raises:
            ExportError: a number that is not finite.
        """
        found = super().run_node(node)
        watched = node.op in ("placeholder", "call_function") and isinstance(found, torch.Tensor)
        if watched and found.is_floating_point() and found.numel():
            low, high = (float(end) for end in torch.aminmax(found))
            require_finite(node.name, low, high)
            if node.op == "placeholder" or is_a(node, _LAYERS):
                before = self.spans.get(node.name, (low, high))
                self.spans[node.name] = min(low, before[0]), max(high, before[1])
        return found


def converted(prepared: Observed, program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The program of quantised numbers that the observers have seen the ranges of.

    Raises:
        ExportError: PyTorch cannot quantise it.
    """
    try:
        with silent(), torch.no_grad():
            from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

            graph = convert_pt2e(prepared.graph)
            return torch.export.export(graph, *program.example_inputs, strict=False)
    except Exception as error:
        raise _refused(error) from error


def _refused(error: Exception) -> ExportError:
    if isinstance(error, ExportError):
        return error
    return ExportError(
        f"PyTorch's quantizer for XNNPACK refuses the network: {why(error)}. Choose the float target instead."
    )


def _check_answer(program: torch.export.ExportedProgram, content: bytes, name: str) -> None:
    """Nothing, if the file ``content`` answers about as the quantised program does.

    Raises:
        ExportError: it does not.
    """
    args, kwargs = redrawn(program.example_inputs)
    with torch.no_grad(), quiet():
        wanted = pytree.tree_leaves(program.module()(*args, **kwargs))
    pairs = zip(wanted, run_executorch(content, tensors_of((args, kwargs))), strict=True)
    kept = [pair for pair in pairs if isinstance(pair[0], torch.Tensor)]
    error = largest_difference([one for one, _ in kept], [other for _, other in kept], name)
    if not error <= _APART:
        raise ExportError(
            f"XNNPACK answers otherwise than the quantised program that {name} was made of, by {error:.2g} of the "
            f"largest output (limit {_APART:g}). Nothing was written; choose the float target instead."
        )


class ExecutorchInt8Variants(ExecutorchVariants):
    """Builds the int8 program of a traced network at any widths; arguments and errors as of its base class.

    The networks whose sizes tell the lengths of axes are quantised by the ranges that one random input has in the dense
    network, so that nothing but sizes differs between their files. Weights, biases and scales are cut to size.
    """

    def __init__(self, graph: Any, batch: int = 1) -> None:
        self._spans: dict[str, Span] = {}
        super().__init__(graph, batch)

    def _lower(self, program: torch.export.ExportedProgram) -> Lowered:
        prepared = prepare(program, plain=True)
        args, kwargs = redrawn(program.example_inputs)
        with torch.no_grad():  # also of weights the ranges are read then
            prepared.graph(*args, **kwargs)
        for name, observer in prepared.observers.items():
            span = self._spans.setdefault(name, (observer.min_val.clone(), observer.max_val.clone()))
            observer.min_val, observer.max_val = span
        return lower(converted(prepared, program), program)
