"""A forward as an exported program: batch free where it may be, contexts inlined, unknown operators spelled out."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from secateurs.structure.containers import make_known, marked
from secateurs.structure.decompose import decompose_unknown
from secateurs.structure.examples import batch_of, doubled
from secateurs.structure.inline import inline_contexts
from secateurs.structure.input_sizes import INPUT_SIZES, input_sizes
from secateurs.structure.ones import with_ones
from secateurs.structure.untouched import fresh_runs

MORE = 5
"""Samples of the example where two fix the batch."""


@dataclass(frozen=True)
class Capture:
    """How a forward is exported.

    ``barriers``: globs of operators that are left as they are; ``repeat``: a batch of one is repeated to two, so that
    the batch size is not mistaken for a constant; ``free``: every axis of the inputs may be free (height, width,
    length) where the exporter finds that the network takes others, not the batch alone.
    """

    barriers: tuple[str, ...] = ()
    repeat: bool = True
    free: bool = False


def captured(
    model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], how: Capture
) -> torch.export.ExportedProgram:
    """The program of the forward in the mode that the network is in.

    Raises:
        Exception: what the exporter raised first.
    """
    program = _export(model, args, kwargs, how)
    inline_contexts(program)
    decompose_unknown(program, how.barriers)
    # Now: whoever compares two symbolic sizes later binds them for good.
    sizes = input_sizes(program)
    program.graph_module.meta[INPUT_SIZES] = with_ones(program, model, sizes) if how.free else sizes
    return program


def _export(
    model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], how: Capture
) -> torch.export.ExportedProgram:
    args, kwargs = _apart((args, kwargs))
    attempts: list[tuple[Any, Any, Callable[[int, torch.Tensor], bool] | None]] = []
    if how.repeat and batch_of(args, kwargs) is not None:
        positional, keyword = doubled(args), doubled(kwargs)
        attempts += [(positional, keyword, axes) for axes in (_FREE if how.free else ())]
        attempts += [(positional, keyword, _batch), (positional, keyword, None)]
    elif how.free:
        attempts += [(args, kwargs, axes) for axes in _FREE]
    attempts.append((args, kwargs, None))
    failure: Exception | None = None
    for positional, keyword, axes in attempts:
        try:
            program = _attempt(model, positional, keyword, axes)
        except Exception as error:
            failure = failure or error
            continue
        if how.free and how.repeat and axes is not None and _batch_is_fixed(program):
            return _of_more_samples(model, positional, keyword, axes) or program
        return program
    assert failure is not None
    if make_known(_output(model, args, kwargs)):
        return _export(model, args, kwargs, how)
    raise failure


def _attempt(
    model: torch.nn.Module, args: Any, kwargs: Any, axes: Callable[[int, torch.Tensor], bool] | None
) -> torch.export.ExportedProgram:
    args, kwargs = _anew((args, kwargs))
    shapes = None if axes is None else (_dynamic(args, axes), _dynamic(kwargs, axes))
    with fresh_runs(model), _free_lengths(model):
        return _export_once(model, args, kwargs, shapes)


def _batch_is_fixed(program: torch.export.ExportedProgram) -> bool:
    """Whether a first size of an input is a number."""
    kinds = {spec.arg.name: spec.kind for spec in program.graph_signature.input_specs}
    values = [n.meta.get("val") for n in program.graph.nodes if kinds.get(n.name) is InputKind.USER_INPUT]
    sizes = [value.shape[0] for value in values if isinstance(value, torch.Tensor) and value.dim()]
    return any(isinstance(size, int) or size.node.maybe_as_int() is not None for size in sizes)


def _of_more_samples(
    model: torch.nn.Module, args: Any, kwargs: Any, axes: Callable[[int, torch.Tensor], bool]
) -> torch.export.ExportedProgram | None:
    """The program from an example of :data:`MORE` samples, if it leaves the batch free.

    What a forward takes of two samples (``x[1:]``) is one, a length that the exporter binds.
    """

    def more(leaf: torch.Tensor) -> torch.Tensor:
        return torch.cat([leaf] * -(-MORE // leaf.shape[0]))[:MORE] if leaf.dim() and leaf.shape[0] else leaf

    args, kwargs = pytree.tree_map_only(torch.Tensor, more, (args, kwargs))
    with contextlib.suppress(Exception):
        program = _attempt(model, args, kwargs, axes)
        if not _batch_is_fixed(program):
            return program
    return None


def _output(model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What the forward returns; nothing where it fails, which is not what is asked here."""
    try:
        with fresh_runs(model), torch.no_grad():
            return model(*args, **kwargs)
    except Exception:
        return None


def _apart(tree: Any) -> Any:
    """Inputs of which no two are one tensor: the exporter would read the last of them in place of all."""
    seen: set[int] = set()

    def own(leaf: torch.Tensor) -> torch.Tensor:
        if id(leaf) in seen:
            return leaf.clone(memory_format=torch.preserve_format)
        seen.add(id(leaf))
        return leaf

    return pytree.tree_map_only(torch.Tensor, own, tree)


def _anew(tree: Any) -> Any:
    """Inputs of their own for one attempt: one that fails leaves on its tensors which axes it meant to be free."""

    def anew(leaf: torch.Tensor) -> torch.Tensor:
        return leaf.detach().requires_grad_(leaf.requires_grad)

    return pytree.tree_map_only(torch.Tensor, anew, tree)


@contextlib.contextmanager
def _free_lengths(model: torch.nn.Module) -> Iterator[None]:
    """In the code of the network's own modules ``len(x)`` is the free size that ``x.shape[0]`` is; Python's own makes a
    number of it, which binds the batch. Elsewhere ``len`` stays what it is, for PyTorch tells built-ins by identity."""

    def length(value: Any, /) -> Any:
        if isinstance(value, torch.Tensor) and value.dim() and isinstance(value.shape[0], torch.SymInt):
            return value.shape[0]
        return len(value)

    spaces = {}
    for module in model.modules():
        found = getattr(type(module).forward, "__globals__", None)
        if found is not None and "len" not in found and not str(found.get("__name__", "")).startswith("torch."):
            spaces[id(found)] = found
    for space in spaces.values():
        space["len"] = length
    try:
        yield
    finally:
        for space in spaces.values():
            del space["len"]


def _batch(dim: int, tensor: torch.Tensor) -> bool:
    return dim == 0


_FREE: tuple[Callable[[int, torch.Tensor], bool], ...] = (
    lambda dim, tensor: True,
    lambda dim, tensor: dim in (0, tensor.dim() - 2, tensor.dim() - 1),
    lambda dim, tensor: dim in (0, tensor.dim() - 1),
    lambda dim, tensor: dim in (0, tensor.dim() - 2),
)
"""Which axes may be free, most first: the exporter fails with an axis that it cannot tell to be a number."""


def _dynamic(tree: Any, axes: Callable[[int, torch.Tensor], bool]) -> Any:
    def mark(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or not leaf.dim():
            return None
        return {dim: torch.export.Dim.AUTO for dim in range(leaf.dim()) if axes(dim, leaf)}

    return marked(tree, mark)


def _export_once(model: torch.nn.Module, args: Any, kwargs: Any, shapes: Any) -> torch.export.ExportedProgram:
    if shapes is None:
        return torch.export.export(model, args, kwargs, strict=False)
    positional, keyword = shapes
    return torch.export.export(model, args, kwargs, dynamic_shapes=_named(model, positional, keyword), strict=False)


def _named(model: torch.nn.Module, positional: tuple[Any, ...], keyword: dict[str, Any]) -> Any:
    """Dynamic shapes by position, or by name where there are keyword inputs."""
    if not keyword:
        return tuple(positional)
    bound = inspect.signature(model.forward).bind(*positional, **keyword)
    return dict(bound.arguments)
