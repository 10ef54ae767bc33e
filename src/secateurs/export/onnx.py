"""Writes a network as an ONNX file and proves that the file computes the same."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn
from torch.utils import _pytree as pytree

from secateurs.errors import ExportError, SecateursError, StructureError, shortened, why
from secateurs.export.difference import largest_difference, redrawn, require_real, tensors_of
from secateurs.export.flat import exportable, flattened
from secateurs.files import write_atomic
from secateurs.structure.examples import split_example
from secateurs.structure.untouched import evaluating, exporting, untouched

OPSET = 20
TOLERANCE = 1e-3
KEPT = ("namespace", "pkg.torch.onnx.name_scopes")
"""Notes of an ONNX operator that stay: the path of the module that called it."""


@dataclass(frozen=True)
class ExportReport:
    """What was written: ``max_rel_error`` = max|Δ| / max|y| against PyTorch on random input, and the file's size; of
    quantised files also which layers are in int8 and which in float, by module path."""

    max_rel_error: float
    size_bytes: int
    int8_layers: tuple[str, ...] = ()
    float_layers: tuple[str, ...] = ()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences the exporter: its progress lines, warnings and log records."""
    names = ("torch.onnx", "onnxscript", "onnx_ir", "torch.export", "torch.fx", "torch._dynamo", "torch")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        out, err = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
        with warnings.catch_warnings(), out, err:
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def as_arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """``(args, kwargs)`` of an example in any of the forms that ``trace`` takes.

    Raises:
        ExportError: it has none of them.
    """
    try:
        return split_example(example)
    except StructureError as error:
        raise ExportError(str(error)) from error


def with_batch(value: Any, batch: int) -> Any:
    """Inputs with the batch repeated or cut to ``batch``: the first dimension of the first tensor and of all others
    that are as long (a mask or a table of another length belongs to every sample)."""
    size = _first_size(value)

    def resized(tensor: torch.Tensor) -> torch.Tensor:
        if not _sized(tensor, size):
            return tensor
        repeats = -(-batch // tensor.shape[0])
        return tensor.repeat(repeats, *([1] * (tensor.dim() - 1)))[:batch].contiguous()

    return pytree.tree_map_only(torch.Tensor, resized, value)


def _first_size(value: Any) -> int:
    """Length of the first dimension of the first tensor that has one; 0 where none has."""
    leaves = (leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor) and leaf.dim())
    return next((int(leaf.shape[0]) for leaf in leaves), 0)


def _in_a_row(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether dynamic shapes of every input can be given by position."""
    parameters = inspect.signature(module.forward).parameters.values()
    several = any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in parameters)
    return not kwargs and not several and all(pytree.tree_structure(value).is_leaf() for value in args)


def _sized(value: Any, size: int) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() > 0 and value.shape[0] == size


def to_model(module: nn.Module, example: Any, *, batch: int | None = 1) -> onnx.ModelProto:
    """The module as an ONNX model, in evaluation mode.

    Args:
        module: network; its training mode is restored.
        example: inputs in any of the forms that ``trace`` takes.
        batch: fixed batch size; None leaves the batch open.

    Raises:
        ExportError: torch cannot export it.
    """
    args, kwargs = as_arguments(example)
    require_real("takes", (args, kwargs))
    args, kwargs = with_batch((args, kwargs), batch or 2)
    module, args, kwargs = exportable(module, args, kwargs)
    if batch is None and not _in_a_row(module, args, kwargs):
        (module, args), kwargs = flattened(module, args, kwargs), {}
    shapes = None
    if batch is None:
        free = {0: torch.export.Dim("batch")}
        shapes = tuple(free if _sized(value, _first_size(args)) else None for value in args)
    try:
        with exporting(module), evaluating(module), quiet(), torch.no_grad():
            program = torch.onnx.export(
                module,
                args,
                kwargs=kwargs or None,
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                dynamic_shapes=shapes,
            )
            assert program is not None
            # Now: an evaluation mode that merges weights is undone on leaving.
            return without_code(program.model_proto)
    except SecateursError:
        raise
    except Exception as error:
        raise ExportError(
            f"{type(module).__name__} cannot be exported to ONNX: {why(error)}. "
            f"Replace what the message names by operators that ONNX has, or choose a target that runs PyTorch itself."
        ) from error


def without_code(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model``, changed in place: no stack traces, source lines or paths in it, operators keep their module's path."""
    for part in _parts(model):
        notes = [(entry.key, entry.value) for entry in part.metadata_props if entry.key in KEPT]
        del part.metadata_props[:]
        for key, value in notes:
            part.metadata_props.add(key=key, value=value)
        part.doc_string = ""
    return model


def _parts(model: onnx.ModelProto) -> Iterator[Any]:
    yield model
    yield from _of_graph(model.graph)
    for function in model.functions:
        yield function
        yield from function.value_info
        yield from _of_nodes(function.node)


def _of_graph(graph: onnx.GraphProto) -> Iterator[Any]:
    yield graph
    for values in (graph.input, graph.output, graph.value_info, graph.initializer):
        yield from values
    yield from _of_nodes(graph.node)


def _of_nodes(nodes: Any) -> Iterator[Any]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _of_graph(graph)


def run_onnx(path: str | os.PathLike[str], inputs: list[np.ndarray]) -> list[np.ndarray]:
    """Outputs of the file at ``path`` for ``inputs`` in the order of its inputs, by ONNX Runtime on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    feeds = {entry.name: value for entry, value in zip(session.get_inputs(), inputs, strict=True)}
    return [np.asarray(output) for output in session.run(None, feeds)]


def failure_of(content: bytes) -> str:
    """Why a file does not run in ONNX Runtime on ones and zeros; "" where it does."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        fed = {
            one.name: np.ones(one.shape, np.float32) if one.type == "tensor(float)" else _zeros(one)
            for one in session.get_inputs()
        }
        session.run(None, fed)
    except Exception as error:
        return shortened(why(error))
    return ""


def _zeros(entry: Any) -> np.ndarray:
    kinds = {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(bool)": np.bool_, "tensor(uint8)": np.uint8}
    return np.zeros(entry.shape, kinds.get(entry.type, np.float32))


def max_rel_error(
    module: nn.Module,
    example: Any,
    batch: int,
    path: Path,
    run: Callable[[Path, list[np.ndarray]], list[np.ndarray]] = run_onnx,
) -> float:
    """Largest difference between the file's outputs, computed by ``run``, and PyTorch's, by the largest output.

    Raises:
        ExportError: an output has another shape.
    """
    args, kwargs = redrawn(with_batch(as_arguments(example), batch))
    given = [tensor.numpy().copy() for tensor in tensors_of((args, kwargs))]  # which the network may change
    with untouched(module), evaluating(module), torch.no_grad():
        expected = tensors_of(module(*args, **kwargs))
    require_real("returns", expected)
    return largest_difference(expected, run(path, given), str(path))


def _cure(module: nn.Module, example: Any) -> str:
    """What to do where the runtime lacks an operator."""
    tensors = [*module.parameters(), *module.buffers(), *tensors_of(as_arguments(example))]
    kinds = {t.dtype for t in tensors if t.is_floating_point()} - {torch.float32}
    if not kinds:
        return "Try another target, or report the network's operator that the message names."
    named = " and ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
    return (
        f"The network or its example is of {named}, for which it lacks many operators: export network.float() with a "
        "float32 example."
    )


def export_onnx(
    module: nn.Module, example: Any, path: str | os.PathLike[str], *, batch: int | None = 1
) -> ExportReport:
    """Write ``module`` to ``path`` as ONNX and compare it with PyTorch; the file appears whole or not at all.

    Batch normalisation is folded into the convolutions by the exporter's own optimisation.

    Args:
        module: network, left in the mode it was in.
        example: inputs in any of the forms that ``trace`` takes.
        path: file to write.
        batch: fixed batch size; None leaves the batch open.

    Raises:
        ExportError: it cannot be exported, cannot be written, or computes something else.
    """
    path = Path(path)
    model = to_model(module, example, batch=batch)
    content = model.SerializeToString()
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    try:
        write_atomic(draft, content)
        try:
            error = max_rel_error(module, example, batch or 3, draft)
        except SecateursError:
            raise
        except Exception as failure:
            raise ExportError(
                f"ONNX Runtime cannot run the exported {path.name}: {why(failure)}. {_cure(module, example)}"
            ) from failure
        if not error <= TOLERANCE:
            raise ExportError(
                f"The exported {path.name} differs from PyTorch by {error:.2g} of the largest output "
                f"(limit {TOLERANCE:g}). Nothing was written; choose another target."
            )
        os.replace(draft, path)
    except ExportError:
        raise
    except (OSError, SecateursError) as failure:
        raise ExportError(f"Cannot write {path} ({failure}). Free space or choose another folder.") from failure
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
    return ExportReport(max_rel_error=error, size_bytes=len(content))
