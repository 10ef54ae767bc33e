"""Turns a choice into a plan: finds once per network which integers of which modules must follow a cut."""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from secateurs.errors import StructureError
from secateurs.plan import Bypass, Patch, Plan
from secateurs.structure.call import bind
from secateurs.structure.cut import Cut, gone_for
from secateurs.structure.examples import example_shapes
from secateurs.structure.groups import module_path, module_paths, source_line, within
from secateurs.structure.parting import parting
from secateurs.structure.scales import QueryRows, query_rows, scales_for
from secateurs.structure.verify import CutError, verify

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
class CutRecipe:
    """How plans of one network are carried out: attributes that follow, or why the graph must be rebuilt.

    ``fragile``: the user's forward follows some choices only (halves of equal width, say), so every plan is tried;
    ``module``, ``source``: where it does not follow the others.
    """

    links: tuple[Link, ...]
    rebuild: str | None
    queries: tuple[QueryRows, ...] = ()
    fragile: bool = False
    module: str = ""
    source: str = ""


def recipe_of(graph: Graph) -> CutRecipe:
    """The network's recipe, found on the first call by trying a cut of every group."""
    cached = graph.__dict__.get("_recipe")
    if cached is None:
        cached = learn(graph)
        graph.__dict__["_recipe"] = cached
    return cached  # type: ignore[no-any-return]


MOST_TRIALS = 16
"""Combinations of attributes that are tried before the graph is rebuilt."""
FEW_TRIALS = 4
"""The same for a cut of equal shares, which only tells that some plans may keep the user's class."""


def learn(graph: Graph, most: int = MOST_TRIALS, few: int = FEW_TRIALS) -> CutRecipe:
    """The first set of attributes with which the user's module follows an uneven cut, else one that follows an even
    cut, else none.

    Args:
        graph: the traced network.
        most: sets that are tried on an uneven cut.
        few: and on an even one.
    """
    queries = tuple(query_rows(graph))
    failures: dict[bool, list[tuple[CutError, Plan]]] = {True: [], False: []}
    for uneven in (True, False):
        probe = telling(graph, uneven)
        for links in _trials(graph, _candidates(graph, probe))[: most if uneven else few]:
            recipe = CutRecipe(links, None, queries, fragile=not uneven)
            plan = plan_with(graph, probe, (), {}, recipe)
            failure = refusal(graph, plan)
            if failure is None:
                if uneven:
                    return recipe
                return dataclasses.replace(placed(graph, recipe, failures[True]), rebuild=None)
            failures[uneven].append((failure, plan))
    return placed(graph, CutRecipe((), ""), failures[True])


def placed(graph: Graph, recipe: CutRecipe, failures: Sequence[tuple[CutError, Plan]]) -> CutRecipe:
    """The recipe with reason, module and line of the failed plan that came farthest: there the forward, and no
    attribute, is in the way."""
    failure, plan = max(failures, key=lambda failed: _reached(graph, failed[0]))
    place, reason = failure.place, failure.in_short
    if not place.source:
        found = parting(graph, plan)
        if found.source:
            place, reason = found, f"{reason.removesuffix('.')}, as of {found}."
    if _unread(graph, place.layer):
        reason = (
            f"{reason.removesuffix('.')}. Nothing reads what {place.layer} gives, so the exported graph does not hold "
            "it; leave that call out, and the class may follow."
        )
    return dataclasses.replace(recipe, rebuild=reason, module=place.module, source=place.source)


def _unread(graph: Graph, layer: str) -> bool:
    """Whether a layer has parameters, none of which the graph reads."""
    programs = [graph.program] if graph.training is None else [graph.program, graph.training.program]
    read = {
        id(graph.model.get_parameter(name))
        for program in programs
        for node in program.graph.nodes
        if node.users and (name := program.graph_signature.inputs_to_parameters.get(node.name))
    }
    own = {id(parameter) for parameter in graph.model.get_submodule(layer).parameters()}
    return bool(layer and own) and read.isdisjoint(own)


def _reached(graph: Graph, failure: CutError) -> int:
    """Number of the operator at which a plan failed; behind the last where the outputs alone are other ones."""
    nodes, place = list(graph.program.graph.nodes), failure.place
    if failure.ran and not place.layer:
        return len(nodes)
    paths = [module_path(node) for node in nodes]
    inside = [number for number, path in enumerate(paths) if path == place.layer or within(path, place.module)]
    on_line = [number for number in inside if source_line(nodes[number]) == place.source]
    in_layer = [number for number in on_line if paths[number] == place.layer]
    return next(iter(in_layer or on_line or inside), -1)


_SLOPES = (0.7, 0.35, -0.7, 0.0)
"""By how much low positions of a group are likelier to stay in a trial than high ones."""


def telling(graph: Graph, uneven: bool) -> Cut:
    """Of a few cuts the one that changes the most integers: one that stays by chance would need no attribute."""

    def changed(cut: Cut) -> int:
        entries = 0
        for name, arguments in cut.constants.items():
            dense = bind(graph.nodes[name])
            for argument, new in arguments.items():
                old = dense.get(argument)
                pair = (new, old) if isinstance(new, list) and isinstance(old, (list, tuple)) else ([new], [old])
                entries += sum(a != b for a, b in itertools.zip_longest(*pair))
        return entries

    return max((graph.cut(_probe(graph, uneven, seed)) for seed in range(len(_SLOPES))), key=changed)


def _probe(graph: Graph, uneven: bool, seed: int = 0) -> dict[str, list[int]]:
    """Units that stay in a trial: everywhere six of ten at random, or other shares in every group and fewer high
    positions than low ones, so that nothing fits by chance."""
    rng = np.random.default_rng(seed)
    kept = {}
    for number, group in enumerate(graph.groups):
        share = (0.75, 0.55, 0.66, 0.5, 0.6)[number % 5] if uneven else 0.6
        count = max(group.min_units, min(round(share * group.units), group.units - 1))
        slope = _SLOPES[seed] * np.arange(group.units) / group.units if uneven else 0
        kept[group.name] = sorted(np.argsort(rng.random(group.units) + slope)[:count].tolist())
    return kept


def refusal(graph: Graph, plan: Plan) -> CutError | None:
    """Why the user's own module cannot carry a plan out, or None where it can."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what could not be tried is said where the plan is applied
            verify(graph.model, plan, (graph.args, graph.kwargs), graph=graph, traced=lambda: graph)
    except CutError as error:
        return error
    except StructureError as error:
        return CutError(str(error))
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


def _patches(graph: Graph, resolved: Cut, recipe: CutRecipe) -> tuple[Patch, ...]:
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


def plan_with(
    graph: Graph, resolved: Cut, blocks_removed: tuple[str, ...], provenance: dict[str, Any], recipe: CutRecipe
) -> Plan:
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
    if graph.judge_in_training is not None:
        provenance = {**provenance, "training": graph.judge_in_training}
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
