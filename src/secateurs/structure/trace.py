"""From a module and an example to a :class:`Graph`."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch.utils import _pytree as pytree

from secateurs.errors import StructureError
from secateurs.structure.graph import Graph
from secateurs.structure.inline import inline_contexts


def trace(
    model: torch.nn.Module,
    example: Any,
    *,
    barriers: Iterable[str] = (),
    keep: Iterable[str] = (),
    grid: str = "auto",
    repeat: bool = True,
) -> Graph:
    """A :class:`Graph` of the network in evaluation mode; the network itself is left untouched.

    Args:
        model: the trained network, in any mode, on any device.
        example: one tensor, a tuple of positional inputs, or ``(args, kwargs)``. A batch of one is repeated to two,
            so that the batch size is not mistaken for a constant.
        barriers: globs of module paths or operators (``blocks.3.attn``, ``aten.roll*``) to leave alone.
        keep: globs of layers or groups (``layer1.*``) that must stay whole.
        grid: what heads and convolution groups expose: ``rows`` (whole heads or groups), ``columns`` (tied positions
            inside them), or ``auto``: rows where there are at least four, and whichever lets more of the network go
            where that leaves much of it pinned.
        repeat: False takes a batch of one as it is (for a forward that only works at one batch size).

    Raises:
        StructureError: the network cannot be run on the example or cannot be exported.
    """
    if grid not in ("auto", "rows", "columns"):
        raise StructureError(f"grid is {grid!r}; it must be auto, rows or columns.")
    _require_module(model)
    args, kwargs = split_example(example)
    with evaluating(model), quiet():
        program = _export(model, args, kwargs, repeat)
        inline_contexts(program)
    blocked, kept = tuple(barriers), tuple(keep)
    graph = Graph(model, args, kwargs, program, barriers=blocked, keep=kept, grid=grid)
    if grid == "auto" and graph.analysis.grids:
        share = removable_share(graph)
        for other in ("columns", "rows") if share < ENOUGH else ():
            rival = Graph(model, args, kwargs, program, barriers=blocked, keep=kept, grid=other)
            if removable_share(rival) > share + 0.01:
                graph, share = rival, removable_share(rival)
    return graph


def _require_module(model: Any) -> None:
    if isinstance(model, torch.jit.ScriptModule):
        raise StructureError(
            f"{type(model).__name__} is a TorchScript module, which cannot be exported or cut. "
            "Give the nn.Module that it was made from."
        )
    for name, tensor in model.named_parameters():
        if isinstance(tensor, torch.nn.parameter.UninitializedParameter):
            raise StructureError(
                f"{name} has no shape yet (a lazy module). Run the network once on an example, then trace it."
            )


ENOUGH = 0.95
"""Removable share of the parameters above which no other kind of unit is tried."""


def removable_share(graph: Graph) -> float:
    """Share of the parameters that goes when every group keeps its fewest units."""
    spec = graph.spec
    return 1 - spec.parameter_count(spec.min_widths) / max(spec.parameter_count(spec.dense_widths), 1)


def split_example(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword inputs of an example in any of its forms."""
    if isinstance(example, torch.Tensor):
        return (example,), {}
    if isinstance(example, Mapping):
        return (), dict(example)
    if isinstance(example, (tuple, list)):
        if len(example) == 2 and isinstance(example[0], (tuple, list)) and isinstance(example[1], Mapping):
            return tuple(example[0]), dict(example[1])
        return tuple(example), {}
    raise StructureError(
        f"The example is a {type(example).__name__}. Give a tensor, a tuple of positional inputs, or (args, kwargs)."
    )


@contextlib.contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; every submodule gets its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporter's warnings and log lines."""
    loggers = [logging.getLogger(name) for name in ("torch.export", "torch.fx", "torch._dynamo", "torch.onnx", "torch")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _batch(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | None:
    """The common first size of all tensor inputs, or None."""
    sizes = {
        leaf.shape[0] for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor) and leaf.dim()
    }
    return sizes.pop() if len(sizes) == 1 else None


def _doubled(tree: Any) -> Any:
    def repeat(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor) and leaf.dim() and leaf.shape[0] == 1:
            return leaf.repeat(2, *[1] * (leaf.dim() - 1))
        return leaf

    return pytree.tree_map(repeat, tree)


def _dynamic(tree: Any) -> Any:
    def mark(leaf: Any) -> Any:
        return {0: torch.export.Dim.AUTO} if isinstance(leaf, torch.Tensor) and leaf.dim() else None

    return pytree.tree_map(mark, tree)


def _export(
    model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], repeat: bool
) -> torch.export.ExportedProgram:
    attempts: list[tuple[Any, Any, bool]] = []
    if repeat and _batch(args, kwargs) is not None:
        attempts.append((_doubled(args), _doubled(kwargs), True))
        attempts.append((_doubled(args), _doubled(kwargs), False))
    attempts.append((args, kwargs, False))
    failure: Exception | None = None
    for positional, keyword, dynamic in attempts:
        shapes = (_dynamic(positional), _dynamic(keyword)) if dynamic else None
        try:
            return _export_once(model, positional, keyword, shapes)
        except Exception as error:
            failure = failure or error
    assert failure is not None
    with torch.no_grad():
        try:
            model(*args, **kwargs)
        except Exception as error:
            raise StructureError(
                f"The network does not run on the example ({type(error).__name__}: {_first_line(error)}). "
                f"Inputs: {_shapes(args, kwargs)}. Give an example that the network accepts (--input)."
            ) from error
    raise StructureError(
        f"torch.export cannot capture {type(model).__name__} ({type(failure).__name__}: {_first_line(failure)}). "
        "The network runs, so something in its forward depends on the values of the input; "
        "see https://pytorch.org/docs/stable/export.html, or prune the part of it that does not."
    ) from failure


def _export_once(model: torch.nn.Module, args: Any, kwargs: Any, shapes: Any) -> torch.export.ExportedProgram:
    if shapes is None:
        return torch.export.export(model, args, kwargs, strict=False)
    positional, keyword = shapes
    return torch.export.export(model, args, kwargs, dynamic_shapes=_named(model, positional, keyword), strict=False)


def _named(model: torch.nn.Module, positional: tuple[Any, ...], keyword: dict[str, Any]) -> Any:
    """Dynamic shapes by position, or by name where there are keyword inputs."""
    if not keyword:
        return tuple(positional)
    import inspect

    bound = inspect.signature(model.forward).bind(*positional, **keyword)
    return dict(bound.arguments)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else ""


def _shapes(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    leaves = pytree.tree_leaves((args, kwargs))
    return ", ".join(str(tuple(leaf.shape)) for leaf in leaves if isinstance(leaf, torch.Tensor)) or "none"
