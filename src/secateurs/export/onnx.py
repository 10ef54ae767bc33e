"""Writes a network as an ONNX file and proves that the file computes the same."""

from __future__ import annotations

import contextlib
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

from secateurs.errors import ExportError, SecateursError
from secateurs.plan import write_atomic

OPSET = 20
TOLERANCE = 1e-3


@dataclass(frozen=True)
class ExportReport:
    """What was written: ``max_rel_error`` = max|Δ| / max|y| against PyTorch on random input, and the file's size."""

    max_rel_error: float
    size_bytes: int


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences the exporter: its progress lines, warnings and log records."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
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
    """``(args, kwargs)`` of an example: a tensor, a tuple of positional inputs, or ``(args, kwargs)``."""
    if isinstance(example, torch.Tensor):
        return (example,), {}
    if isinstance(example, (tuple, list)):
        if len(example) == 2 and isinstance(example[0], (tuple, list)) and isinstance(example[1], dict):
            return tuple(example[0]), dict(example[1])
        return tuple(example), {}
    raise ExportError(
        f"The example input is a {type(example).__name__}. "
        f"Give a tensor, a tuple of positional inputs, or a pair (args, kwargs)."
    )


def with_batch(value: Any, batch: int) -> Any:
    """``value`` with every tensor's first dimension repeated or cut to ``batch``."""
    if isinstance(value, torch.Tensor) and value.dim() > 0:
        repeats = -(-batch // value.shape[0])
        return value.repeat(repeats, *([1] * (value.dim() - 1)))[:batch].contiguous()
    if isinstance(value, (tuple, list)):
        return type(value)(with_batch(item, batch) for item in value)
    if isinstance(value, dict):
        return {key: with_batch(item, batch) for key, item in value.items()}
    return value


def to_model(module: nn.Module, example: Any, *, batch: int | None = 1) -> onnx.ModelProto:
    """The module as an ONNX model, in evaluation mode.

    Args:
        module: network; its training mode is restored.
        example: a tensor, a tuple of positional inputs, or ``(args, kwargs)``.
        batch: fixed batch size; None leaves the batch open.

    Raises:
        ExportError: torch cannot export it.
    """
    args, kwargs = as_arguments(example)
    args, kwargs = with_batch(args, batch or 2), with_batch(kwargs, batch or 2)
    shapes = None
    if batch is None:
        free = {0: torch.export.Dim("batch")}
        shapes = tuple(free if isinstance(value, torch.Tensor) else None for value in args)
        if kwargs:
            raise ExportError("An open batch size needs positional inputs only. Export with a fixed batch size.")
    modes = {name: child.training for name, child in module.named_modules()}
    module.eval()
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                module,
                args,
                kwargs=kwargs or None,
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                dynamic_shapes=shapes,
            )
    except SecateursError:
        raise
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ExportError(
            f"{type(module).__name__} cannot be exported to ONNX: {type(error).__name__}: {first[:500]}. "
            f"Replace what the message names by operators that ONNX has, or choose a target that runs PyTorch itself."
        ) from error
    finally:
        for name, child in module.named_modules():
            child.training = modes[name]
    assert program is not None
    return program.model_proto


def run_onnx(path: str | os.PathLike[str], inputs: list[np.ndarray]) -> list[np.ndarray]:
    """Outputs of the file at ``path`` for ``inputs`` in the order of its inputs, by ONNX Runtime on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    feeds = {entry.name: value for entry, value in zip(session.get_inputs(), inputs, strict=True)}
    return [np.asarray(output) for output in session.run(None, feeds)]


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        return [tensor for item in value for tensor in _tensors(item)]
    return []


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
    args, kwargs = as_arguments(example)
    generator = torch.Generator().manual_seed(0)

    def redraw(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_floating_point():
            return tensor
        return torch.randn(tensor.shape, generator=generator).to(tensor.dtype)

    args = torch.utils._pytree.tree_map_only(torch.Tensor, redraw, with_batch(args, batch))
    kwargs = torch.utils._pytree.tree_map_only(torch.Tensor, redraw, with_batch(kwargs, batch))
    modes = {name: child.training for name, child in module.named_modules()}
    module.eval()
    given = [tensor.numpy().copy() for tensor in _tensors(args) + _tensors(kwargs)]  # which the network may change
    with torch.no_grad():
        expected = _tensors(module(*args, **kwargs))
    for name, child in module.named_modules():
        child.training = modes[name]
    found = run(path, given)
    worst = 0.0
    for wanted, got in zip(expected, found, strict=True):
        reference = wanted.detach().cpu().double().numpy()
        if reference.shape != got.shape:
            raise ExportError(
                f"The exported file {path} returns shape {got.shape} where PyTorch returns {reference.shape}. "
                f"This is a mistake of the exporter; choose another target or a fixed batch size."
            )
        difference = np.abs(reference - got.astype(np.float64))
        scale = float(np.abs(reference).max()) or 1.0
        worst = max(worst, float(np.nan_to_num(difference, nan=np.inf).max()) / scale)
    return worst


def export_onnx(
    module: nn.Module, example: Any, path: str | os.PathLike[str], *, batch: int | None = 1
) -> ExportReport:
    """Write ``module`` to ``path`` as ONNX and compare it with PyTorch; the file appears whole or not at all.

    Batch normalisation is folded into the convolutions by the exporter's own optimisation.

    Args:
        module: network, left in the mode it was in.
        example: a tensor, a tuple of positional inputs, or ``(args, kwargs)``.
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
                f"ONNX Runtime cannot run the exported {path.name}: {str(failure)[:500]}. "
                f"Try another target, or report the network's operator that the message names."
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
