"""A network rebuilt from its export, where the user's own forward cannot run at the new shapes."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from secateurs.errors import SecateursError, StructureError
from secateurs.plan import Plan
from secateurs.structure.build import build, cut_of
from secateurs.structure.copies import deep_copy
from secateurs.structure.draws import Call, tensors_in
from secateurs.structure.examples import split_example, stored_example
from secateurs.structure.graph import Graph
from secateurs.structure.remarks import training_remark
from secateurs.structure.scratch import let_go
from secateurs.structure.trace import traced
from secateurs.structure.verify import verify


def rebuild(model: nn.Module, plan: Plan, example: Any = None, *, check: bool = True) -> nn.Module:
    """A ``GraphModule`` of the cut network, or two of them in one; see :func:`secateurs.structure.build.build`. Traces
    the network again, with the example or the plan's stored shapes.

    Raises:
        StructureError: the network cannot be traced, or the result computes something else.
    """
    inputs = split_example(example) if example is not None else stored_example(plan)
    graph = _right_graph(model, plan, inputs) if check else next(_graphs(model, plan, inputs))
    remark = training_remark(graph, rebuilt=True)
    if remark is not None:
        warnings.warn(remark, stacklevel=3)
    return build(graph, cut_of(graph, plan), in_evaluation(model), str(plan.rebuild)).train(model.training)


def _right_graph(model: nn.Module, plan: Plan, inputs: Call) -> Graph:
    """The first graph from which the plan is carried out rightly.

    Raises:
        StructureError: there is none; what is wrong with the last, which promises least.
    """
    failure = StructureError("no graph was tried")
    again = functools.partial(_traced, model, inputs, str(plan.provenance.get("grid", "auto")), False)
    for graph in _graphs(model, plan, inputs):
        try:
            verify(model, plan, inputs, graph=graph, traced=again)
            return graph
        except StructureError as error:
            failure = error
            let_go(error)
            if graph.training is not None:
                reason = str(error).partition(" The original is intact.")[0]
                graph.training_mode = dataclasses.replace(graph.training_mode, reason=reason)
    raise failure


def _graphs(model: nn.Module, plan: Plan, inputs: Call) -> Iterator[Graph]:
    """Graphs to build from: with free sizes first, then those of the example; last without a forward of training."""
    one_set, without = _has_one_set(model), []
    for free in (True, False):
        try:
            graph = _traced(model, inputs, str(plan.provenance.get("grid", "auto")), free)
            if free and not _carries(graph, plan):
                continue
        except (SecateursError, RuntimeError):
            if not free:
                raise
            continue
        if not one_set or graph.training_mode.reason:
            graph.training = None  # one module cannot hold the weights of both modes, nor draw anew
        yield graph
        if graph.training is not None:
            graph.training = None
            without.append(graph)
    yield from without


def _carries(graph: Graph, plan: Plan) -> bool:
    """Whether a plan means the same in a graph, and all of it can be carried out there."""
    cut = graph.cut(plan.groups, plan.blocks_removed)
    return cut.slices == plan.slices and not cut.uncounted


def _traced(model: nn.Module, inputs: Call, grid: str, free: bool) -> Graph:
    graph = traced(model, inputs, grid=grid, free=free, chance=True)
    if not graph.input_sizes.fit([tuple(leaf.shape) for leaf in tensors_in(inputs)]):  # a forward that counts its batch
        graph = traced(model, inputs, grid=grid, free=free, chance=True, repeat=False)
    return graph


def in_evaluation(model: nn.Module) -> nn.Module:
    """The network with the weights that evaluation mode gives it, which the graph was traced with.

    Some modules change them on the way there (adapters merge themselves into a weight, branches into one); only then
    is it a copy.
    """
    return model if _changes_by_itself(model) is None else deep_copy(model, {}).eval()


def _has_one_set(model: nn.Module) -> bool:
    """Whether the weights are the same in both modes."""
    if _changes_by_itself(model) is None:
        return True
    copy = deep_copy(model, {})
    evaluated = {name: tensor.clone() for name, tensor in copy.eval().state_dict().items()}
    trained = copy.train().state_dict()
    return evaluated.keys() == trained.keys() and all(torch.equal(trained[name], evaluated[name]) for name in trained)


def _changes_by_itself(model: nn.Module) -> nn.Module | None:
    """A module that does something of its own where the mode is changed."""
    return next(
        (m for m in model.modules() if any(getattr(type(m), n) is not getattr(nn.Module, n) for n in _MODES)), None
    )


_MODES = ("train", "eval")
