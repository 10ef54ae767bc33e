"""From a module and an example to a :class:`Graph`."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from secateurs.errors import StructureError, checked, why
from secateurs.structure.capture import Capture, captured
from secateurs.structure.examples import require_plain, shapes_of, split_example
from secateurs.structure.followed import followed
from secateurs.structure.forms import not_captured, plain
from secateurs.structure.graph import Graph
from secateurs.structure.groups import ONLY
from secateurs.structure.input_sizes import INPUT_SIZES, InputSizes
from secateurs.structure.modes import DRAWS, TrainingMode, calls_to_try, into_training, seed_python, training_of
from secateurs.structure.scratch import give_back
from secateurs.structure.untouched import evaluating, quiet, untouched
from secateurs.structure.ways import ways_of


def trace(
    model: torch.nn.Module,
    example: Any,
    *,
    barriers: Iterable[str] = (),
    keep: Iterable[str] = (),
    only: Iterable[str] = (),
    grid: str = "auto",
    repeat: bool = True,
) -> Graph:
    """A :class:`Graph` of the network; the network itself is left untouched.

    Evaluation mode is what counts. Where the forward in training mode does something else (an auxiliary head, other
    outputs), that is looked at as well, so that what only training reads is cut along.

    Args:
        model: the trained network, in any mode, on any device. What ``torch.compile``, ``DataParallel`` and averaged
            models wrap is taken out of them.
        example: one tensor, a tuple of positional inputs, or ``(args, kwargs)``. A batch of one is repeated to two,
            so that the batch size is not mistaken for a constant.
        barriers: globs of module paths or operators (``blocks.3.attn``, ``aten.roll*``) to leave alone.
        keep: globs of layers or groups (``layer1.*``) that must stay whole.
        only: globs of the only layers or groups that need not; in settings with one ``keep`` the same as ``!layer1.*``.
        grid: what heads and convolution groups expose: ``rows`` (whole heads or groups), ``columns`` (tied positions
            inside them), or ``auto``: rows where there are at least four, and whichever lets more of the network go
            where that leaves much of it pinned.
        repeat: False takes a batch of one as it is (for a forward that only works at one batch size).

    Raises:
        StructureError: the network cannot be run on the example or cannot be exported.
    """
    kept = (*_globs(keep, "keep"), *(f"{ONLY}{pattern}" for pattern in _globs(only, "only")))
    patterns = _globs(barriers, "barriers"), kept
    return traced(model, example, *patterns, grid=grid, repeat=repeat)


def _globs(given: Iterable[str], name: str) -> tuple[str, ...]:
    found = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, Iterable) else given
    return tuple(checked(tuple[str, ...], found, f"trace({name}=)", 'Give patterns such as ["layer1.*"]'))


def traced(
    model: torch.nn.Module,
    example: Any,
    barriers: tuple[str, ...] = (),
    keep: tuple[str, ...] = (),
    *,
    grid: str = "auto",
    repeat: bool = True,
    free: bool = False,
    chance: bool = False,
) -> Graph:
    """See :func:`trace`. ``free``: height, width and length of the inputs are free where they may be; ``chance``:
    training mode counts also where it differs by what is drawn at random alone."""
    if grid not in ("auto", "rows", "columns"):
        raise StructureError(f"grid is {grid!r}; it must be auto, rows or columns.")
    model = plain(model)
    args, kwargs = split_example(example)
    with quiet():
        how = Capture(barriers, repeat, free)
        program = _evaluation(model, args, kwargs, how)
        pairs = followed(model, program)
        training, trained = _training(model, args, kwargs, how, chance)
    give_back(model)

    def graph_of(kind: str) -> Graph:
        found = Graph(
            model, args, kwargs, program, barriers=barriers, keep=keep, grid=kind, training=trained, followed=pairs
        )
        found.training_mode = training
        found.free_sizes = functools.partial(_free_sizes, model, args, kwargs)
        return found

    graph = graph_of(grid)
    if grid == "auto" and graph.analysis.grids:
        share = removable_share(graph)
        for other in ("columns", "rows") if share < ENOUGH else ():
            rival = graph_of(other)
            if removable_share(rival) > share + 0.01:
                graph, share = rival, removable_share(rival)
    return graph


def _free_sizes(model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> InputSizes:
    """Input sizes that an export with free sizes takes; the forward of evaluation tells them."""
    with quiet():
        program = _evaluation(model, args, kwargs, Capture(free=True))
    give_back(model)
    found: InputSizes = program.graph_module.meta[INPUT_SIZES]
    return found


ENOUGH = 0.95
"""Removable share of the parameters above which no other kind of unit is tried."""


def removable_share(graph: Graph) -> float:
    """Share of the parameters that goes when every group keeps its fewest units."""
    spec = graph.spec
    return 1 - spec.parameter_count(spec.min_widths) / max(spec.parameter_count(spec.dense_widths), 1)


def _evaluation(
    model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], how: Capture
) -> torch.export.ExportedProgram:
    with untouched(model), evaluating(model):
        try:
            return _with_tensors(captured(model, args, kwargs, how))
        except NoOutputError:
            raise
        except Exception as error:
            failure = error
        with torch.no_grad():
            try:
                model(*args, **kwargs)
            except Exception as error:
                raise StructureError(
                    f"The network does not run on the example ({why(error)}). "
                    f"Inputs: {shapes_of(args, kwargs)}. Give an example that the network accepts (--input)."
                ) from error
        if "Unsupported input type" in str(failure):
            require_plain(args, kwargs)
        raise not_captured(model, failure) from failure


class NoOutputError(StructureError):
    """The network gives no tensor."""


def _with_tensors(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The program, where there is a tensor among its outputs."""
    outputs = [spec.arg for spec in program.graph_signature.output_specs if spec.kind.name == "USER_OUTPUT"]
    if not any(isinstance(one, torch.export.graph_signature.TensorArgument) for one in outputs):
        raise NoOutputError(
            "The network gives no tensor, so nothing tells whether a smaller one is right. Return the outputs from its "
            "forward."
        )
    return program


def _training(
    model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], how: Capture, chance: bool
) -> tuple[TrainingMode, tuple[torch.export.ExportedProgram, ...]]:
    """What training mode does otherwise, and its program where that is needed and can be had.

    Where Python's or NumPy's random numbers decide which way it goes, there is a program for each way.
    """
    found = training_of(model, args, kwargs)
    if found.kind != "other" and not (chance and found.kind == "chance"):
        return found, ()
    with untouched(model):
        into_training(model)
        try:
            programs = [captured(model, args, kwargs, how)]
        except Exception as error:
            return dataclasses.replace(found, reason=why(error)), ()
    if found.reason == DRAWS:
        programs += _other_ways(model, args, kwargs, how)
    return found, tuple(programs)


def _other_ways(
    model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], how: Capture
) -> Iterator[torch.export.ExportedProgram]:
    """Programs of the ways that training mode goes where it draws; one that cannot be exported is left out."""
    for seed in ways_of(model, calls_to_try(args, kwargs)[0]):
        program = None
        with untouched(model) as sources, contextlib.suppress(Exception):
            into_training(model)
            seed_python(seed, sources)
            program = captured(model, args, kwargs, how)
        if program is not None:
            yield program
