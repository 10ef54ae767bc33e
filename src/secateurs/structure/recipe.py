"""Turns a choice into a plan: finds once per network which integers of which modules must follow a cut."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from secateurs.errors import StructureError
from secateurs.plan import Bypass, Patch, Plan
from secateurs.structure.call import bind
from secateurs.structure.cut import Cut, gone_for
from secateurs.structure.groups import module_paths
from secateurs.structure.scales import QueryRows, query_rows, scales_for

if TYPE_CHECKING:
    from secateurs.structure.graph import Graph


@dataclass(frozen=True)
class Link:
    """An attribute of a module that holds an integer argument of an exported operator.

    ``start``/``length``: the slice of a list argument that a tuple attribute holds (length 0: a plain integer that
    equals entry ``start``, or the argument itself where ``start`` is -1).
    """

    module: str
    attribute: str
    node: str
    argument: str
    start: int
    length: int


@dataclass(frozen=True)
class Recipe:
    """How plans of one network are carried out: attributes that follow, or why the graph must be rebuilt.

    ``fragile``: the user's forward follows some choices only (halves of equal width, say), so every plan is tried.
    """

    links: tuple[Link, ...]
    rebuild: str | None
    queries: tuple[QueryRows, ...] = ()
    fragile: bool = False


def make_plan(
    graph: Graph, kept: Mapping[str, Sequence[int]], blocks_removed: tuple[str, ...], provenance: dict[str, Any]
) -> Plan:
    """A self-contained plan of a choice."""
    recipe = recipe_of(graph)
    plan = _plan(graph, graph.cut(kept, blocks_removed), blocks_removed, provenance, recipe)
    if recipe.fragile and plan.rebuild is None:
        reason = _refusal(graph, plan)
        if reason is not None:
            recipe = dataclasses.replace(recipe, rebuild=reason)
            plan = _plan(graph, graph.cut(kept, blocks_removed), blocks_removed, provenance, recipe)
    return plan


def recipe_of(graph: Graph) -> Recipe:
    """The network's recipe, found on the first call by trying a cut of every group."""
    cached = graph.__dict__.get("_recipe")
    if cached is None:
        cached = _learn(graph)
        graph.__dict__["_recipe"] = cached
    return cached  # type: ignore[no-any-return]


MOST_TRIALS = 16
"""Combinations of attributes that are tried before the graph is rebuilt."""
FEW_TRIALS = 4
"""The same for a cut of equal shares, which only tells that some plans may keep the user's class."""


def _learn(graph: Graph) -> Recipe:
    """The first set of attributes with which the user's module follows an uneven cut, else one that follows an even
    cut, else none."""
    queries = tuple(query_rows(graph))
    reason: str | None = "no cut was tried"
    for uneven in (True, False):
        probe = graph.cut(_probe(graph, uneven))
        for links in _trials(graph, _candidates(graph, probe))[: MOST_TRIALS if uneven else FEW_TRIALS]:
            recipe = Recipe(links, None, queries, fragile=not uneven)
            plan = _plan(graph, probe, (), {}, recipe)
            reason = _refusal(graph, plan)
            if reason is None:
                reason = _refusal_to_train(graph, plan)
                return recipe if reason is None else Recipe((), reason)
    return Recipe((), reason)


def _probe(graph: Graph, uneven: bool) -> dict[str, list[int]]:
    """Units that stay in a trial: everywhere six of ten at random, or other shares in every group and fewer high
    positions than low ones, so that nothing fits by chance."""
    rng = np.random.default_rng(0)
    kept = {}
    for number, group in enumerate(graph.groups):
        share = (0.75, 0.55, 0.66, 0.5, 0.6)[number % 5] if uneven else 0.6
        count = max(group.min_units, min(round(share * group.units), group.units - 1))
        slope = 0.7 * np.arange(group.units) / group.units if uneven else 0
        kept[group.name] = sorted(np.argsort(rng.random(group.units) + slope)[:count].tolist())
    return kept


def _refusal(graph: Graph, plan: Plan) -> str | None:
    """Why the user's own module cannot carry a plan out, or None where it can."""
    from secateurs.structure.verify import check_plan

    try:
        check_plan(graph.model, plan, (graph.args, graph.kwargs), graph=graph)
    except StructureError as error:
        return str(error).partition(" The original is intact.")[0]
    return None


def _refusal_to_train(graph: Graph, plan: Plan) -> str | None:
    """Why the cut module does not run in training mode where the dense one does, or None.

    Layers that only training reads (an auxiliary head) are not in the exported graph, so their inputs were not cut.
    """
    from secateurs.structure.apply import cut_copy, deep_copy
    from secateurs.structure.inspection import unread
    from secateurs.structure.trace import quiet

    if not unread(graph):
        return None
    with torch.no_grad(), quiet():
        try:
            deep_copy(graph.model, {}).train()(*graph.args, **graph.kwargs)
        except Exception:
            return None
        try:
            cut_copy(graph.model, plan).train()(*graph.args, **graph.kwargs)
        except Exception as error:
            first = (str(error).strip().splitlines() or [""])[0][:200]
            return f"The cut network does not run in training mode ({type(error).__name__}: {first})."
    return None


def _trials(graph: Graph, candidates: tuple[Link, ...]) -> list[tuple[Link, ...]]:
    """Sets of links worth trying, most plausible first: modules of one class are treated alike."""
    named = tuple(link for link in candidates if link.attribute == link.argument)
    innermost = _innermost(graph, candidates)
    slots: dict[tuple[str, int, tuple[str, ...]], list[list[Link]]] = {}
    for rivals in innermost:
        kind = type(graph.model.get_submodule(rivals[0].module)).__name__
        slots.setdefault((kind, rivals[0].start, tuple(link.attribute for link in rivals)), []).append(rivals)
    choices = [range(len(attributes)) for *_, attributes in slots]
    trials: list[tuple[Link, ...]] = [(), named]
    for picked in itertools.islice(itertools.product(*choices), MOST_TRIALS // 2):
        chosen = [rivals[i] for i, found in zip(picked, slots.values(), strict=True) for rivals in found]
        trials.append(tuple(dict.fromkeys(chosen)))
    trials.append(candidates)
    for found in slots.values():
        mine = [rivals[0] for rivals in found]
        trials.append(tuple(dict.fromkeys((*named, *mine))))
        trials.append(tuple(rivals[0] for rivals in innermost if rivals not in found))
    return list(dict.fromkeys(trials))[:MOST_TRIALS]


def _innermost(graph: Graph, links: tuple[Link, ...]) -> list[list[Link]]:
    """For every operator argument the attributes of the innermost module that could hold it, likeliest first."""

    def rank(link: Link) -> tuple[bool, int, int, bool]:
        speaks_of_grids = any(word in link.attribute for word in ("head", "group"))
        return (link.attribute != link.argument, -link.length, -len(link.module), speaks_of_grids != splits[link.node])

    splits = {name: _splits_axis(graph.nodes[name]) for name in {link.node for link in links}}
    slots: dict[tuple[str, str, int], list[Link]] = {}
    for link in sorted(links, key=rank):
        rivals = slots.setdefault((link.node, link.argument, link.start), [])
        if not rivals or (rivals[0].module == link.module and rivals[0].attribute != rivals[0].argument):
            rivals.append(link)
    return list(slots.values())


def _splits_axis(node: torch.fx.Node) -> bool:
    """True for a view that makes more axes than there were: it lays out heads or groups."""
    before = [n.meta["val"].dim() for n in node.all_input_nodes if isinstance(n.meta.get("val"), torch.Tensor)]
    after = node.meta.get("val")
    return isinstance(after, torch.Tensor) and bool(before) and after.dim() > before[0]


def _candidates(graph: Graph, probe: Cut) -> tuple[Link, ...]:
    links: list[Link] = []
    for name, changed in probe.constants.items():
        node = graph.nodes[name]
        old = bind(node)
        paths = [path for path, _ in module_paths(node)] or [""]
        # Helpers of the innermost module (a table of position biases, say) may hold the size without being called.
        inner = [f"{paths[-1]}.{path}".lstrip(".") for path, _ in graph.model.get_submodule(paths[-1]).named_modules()]
        helpers = [path.rstrip(".") for path in inner[1:]] if paths[-1] else []
        for argument, new in changed.items():
            for path in (*helpers, *reversed(paths)):
                module = graph.model.get_submodule(path)
                links.extend(_holders(module, path, name, argument, old[argument], new))
    return tuple(dict.fromkeys(links))


def _holders(module: torch.nn.Module, path: str, node: str, argument: str, old: Any, new: Any) -> list[Link]:
    found: list[Link] = []
    entries = list(old) if isinstance(old, (list, tuple)) else None
    follows = type(module).__module__.startswith("torch.nn")  # their sizes follow their tensors already
    for attribute, value in vars(module).items():
        if attribute.startswith("_") or attribute == "training" or isinstance(value, bool):
            continue
        if follows and attribute != argument:
            continue
        if entries is None:
            if isinstance(value, int) and value == old:
                found.append(Link(path, attribute, node, argument, -1, 0))
        elif isinstance(value, int):
            for i, entry in enumerate(entries):
                if isinstance(entry, int) and entry == value and new[i] != entry:
                    found.append(Link(path, attribute, node, argument, i, 0))
        elif isinstance(value, (tuple, list)) and value and all(isinstance(item, int) for item in value):
            width = len(value)
            for i in range(len(entries) - width + 1):
                if entries[i : i + width] == list(value) and list(new[i : i + width]) != list(value):
                    found.append(Link(path, attribute, node, argument, i, width))
    return found


def _patches(graph: Graph, resolved: Cut, recipe: Recipe) -> tuple[Patch, ...]:
    patches: dict[tuple[str, str], Patch] = {}
    for link in recipe.links:
        new = resolved.constants.get(link.node, {}).get(link.argument)
        if new is None:
            continue
        if link.length:
            value: Any = list(new[link.start : link.start + link.length])
        else:
            value = new if link.start < 0 else new[link.start]
        patches[link.module, link.attribute] = Patch(module=link.module, attribute=link.attribute, value=value)
    return tuple(patches.values())


def _plan(
    graph: Graph, resolved: Cut, blocks_removed: tuple[str, ...], provenance: dict[str, Any], recipe: Recipe
) -> Plan:
    from secateurs.structure.graph import example_shapes

    bypasses: list[Bypass] = []
    rebuild = recipe.rebuild
    for block in graph.removable_blocks:
        if block.name in blocks_removed:
            if block.bypass is None:
                rebuild = rebuild or f"the branch of block {block.name} is not a module of its own"
            else:
                bypasses.append(block.bypass)
    if graph.analysis.statistics:
        provenance = {**provenance, "statistics": sorted(graph.analysis.statistics)}
    return Plan(
        groups=resolved.kept,
        group_sizes={group.name: group.units for group in graph.groups},
        blocks_removed=tuple(blocks_removed),
        slices=resolved.slices,
        patches=_patches(graph, resolved, recipe),
        bypasses=tuple(bypasses),
        scales=() if rebuild else scales_for(graph, list(recipe.queries), gone_for(graph, resolved.kept)),
        rebuild=rebuild,
        example_shapes=example_shapes(graph.args, graph.kwargs),
        fingerprint=graph.fingerprint,
        provenance={**provenance, "grid": graph.analysis.grid},
    )
