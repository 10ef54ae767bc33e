"""Why a network must be rebuilt, which sizes it takes then, and which barriers would keep its class at what cost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from secateurs.errors import SecateursError
from secateurs.plan import Plan
from secateurs.structure.groups import module_path, source_line, within
from secateurs.structure.input_sizes import InputSizes
from secateurs.structure.operators import operator_name
from secateurs.structure.recipe import CutRecipe, learn, recipe_of, telling

if TYPE_CHECKING:
    from secateurs.structure.graph import Graph

TRIALS = 4
"""Sets of attributes that are tried with each choice of barriers."""
ROUNDS = 3
"""Modules that a choice of barriers may come to hold, one after another, until the class follows."""


@dataclass(frozen=True)
class Shares:
    """Shares of the dense network that go where half of every group's units go."""

    parameters: float
    macs: float

    def __str__(self) -> str:
        return f"{self.parameters:.0%} of the parameters and {self.macs:.0%} of the multiply-adds"


@dataclass(frozen=True)
class Advice:
    """What a rebuilt network costs, and what its own class would cost.

    ``module``, ``source``: which module does not follow a cut, and the line of its code; ``reason``: how it fails;
    ``some``: the class follows some plans; ``sizes``: inputs that a rebuilt network takes; ``barriers``: with which the
    class follows every plan (empty: none were found); ``kept``, ``rebuilt``: what goes with them and without.
    """

    module: str
    source: str
    reason: str
    some: bool
    sizes: InputSizes
    barriers: tuple[str, ...]
    kept: Shares
    rebuilt: Shares

    def __str__(self) -> str:
        where = self.module or "the network's own forward"
        line = f" ({self.source})" if self.source else ""
        keep = f"No barriers= were found with which {'every plan keeps' if self.some else 'it keeps'} the class."
        if self.barriers:
            keep = (
                f"With barriers={list(self.barriers)} it keeps the class: where half of every group's units go, that "
                f"removes {self.kept}, without them {self.rebuilt}."
            )
        return f"{where} does not follow{line}. A rebuilt network takes {self.sizes}. {keep}"


def advice(graph: Graph) -> Advice | None:
    """What a user should know of a network whose class does not follow every cut, None where it does.

    Found once per graph, by trying cuts with other barriers.
    """
    if "_advice" not in graph.__dict__:
        recipe = recipe_of(graph)
        needed = recipe.rebuild is not None or recipe.fragile
        graph.__dict__["_advice"] = _found(graph, recipe) if needed else None
    found: Advice | None = graph.__dict__["_advice"]
    return found


def rebuilt_remark(graph: Graph, plan: Plan, recipe: CutRecipe) -> str | None:
    """What the user of a plan must know whose result is a rebuilt network; None where it is none.

    Args:
        graph: the traced network.
        plan: a plan of it.
        recipe: how that plan is carried out.
    """
    if plan.rebuild is None:
        return None
    name = type(graph.model).__name__
    if recipe.rebuild is None:  # a removed branch that is no module of its own
        sizes = sizes_when_rebuilt(graph)
        return (
            f"The result is rebuilt from the export and no {name}: {plan.rebuild}. It takes {sizes}. Leave the block "
            "to keep the class."
        )
    return f"The result is rebuilt from the export and no {name}: {advice(graph)}"


def sizes_when_rebuilt(graph: Graph) -> InputSizes:
    """Which input sizes a network takes that is rebuilt from the trace of this one; found once per graph."""
    found = graph.__dict__.get("_sizes_when_rebuilt")
    if found is None:
        found = graph.input_sizes
        try:
            if graph.free_sizes is not None:
                found = graph.free_sizes()
        except (SecateursError, RuntimeError):
            pass  # as apply does it, too
        graph.__dict__["_sizes_when_rebuilt"] = found
    sizes: InputSizes = found
    return sizes


def _found(graph: Graph, recipe: CutRecipe) -> Advice:
    best: tuple[tuple[str, ...], Shares] | None = None
    for first in _choices(graph, recipe):
        found = _with_class(graph, first)
        if found is not None and (best is None or found[1].parameters > best[1].parameters):
            best = found
    rebuilt = _shares(graph)
    barriers, kept = ((), rebuilt) if best is None else _fewer(graph, *best)
    source = recipe.source or _line_of(graph, recipe.module)
    reason = recipe.rebuild or ""
    return Advice(recipe.module, source, reason, recipe.fragile, sizes_when_rebuilt(graph), barriers, kept, rebuilt)


def _choices(graph: Graph, recipe: CutRecipe) -> Iterator[tuple[str, ...]]:
    """Barriers to begin with: the operators of the module that does not follow whose numbers a cut changes, the module
    itself, all modules of its class."""
    changed = [graph.nodes[name] for name in telling(graph, True).constants]
    inside = [node for node in changed if within(module_path(node), recipe.module)] or changed
    yield from _unique([tuple(dict.fromkeys(operator_name(node.target) for node in inside)), *_modules(graph, recipe)])


def _modules(graph: Graph, recipe: CutRecipe) -> Iterator[tuple[str, ...]]:
    if recipe.module:
        kind = type(graph.model.get_submodule(recipe.module))
        yield (recipe.module,)
        yield tuple(path for path, module in graph.model.named_modules() if path and type(module) is kind)


def _unique(choices: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    return list(dict.fromkeys(choice for choice in choices if choice))


def _with_class(graph: Graph, barriers: tuple[str, ...]) -> tuple[tuple[str, ...], Shares] | None:
    """The barriers, and others that turn out to be needed, with which the class follows every cut; what goes then."""
    for _ in range(ROUNDS):
        try:
            held = graph.with_barriers(barriers)
        except SecateursError:  # what it names is nowhere in the graph
            return None
        if not held.groups:
            return None
        recipe = learn(held, TRIALS, 0)
        if recipe.rebuild is None:
            return barriers, _shares(held)
        if not recipe.module or recipe.module in barriers:
            return None
        barriers = (*barriers, recipe.module)
    return None


def _fewer(graph: Graph, barriers: tuple[str, ...], kept: Shares) -> tuple[tuple[str, ...], Shares]:
    """The barriers without those that the class does not need."""
    for one in barriers if len(barriers) > 1 else ():
        others = tuple(other for other in barriers if other != one)
        held = graph.with_barriers(others) if others else graph
        if others and learn(held, TRIALS, 0).rebuild is None:
            barriers, kept = others, _shares(held)
    return barriers, kept


def _shares(graph: Graph) -> Shares:
    spec = graph.spec
    widths = np.maximum(spec.min_widths, (spec.dense_widths + 1) // 2)
    parameters = 1 - spec.parameter_count(widths) / max(spec.parameter_count(spec.dense_widths), 1)
    return Shares(parameters, 1 - spec.macs(widths) / max(spec.macs(spec.dense_widths), 1))


def _line_of(graph: Graph, module: str) -> str:
    nodes: Sequence[str] = [source_line(n) for n in graph.program.graph.nodes if module and module_path(n) == module]
    return next((line for line in nodes if line), "")
