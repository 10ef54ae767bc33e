"""Widths and kernel elements in one problem: every layer is dense or sparse at a density, by measured time.

METHODS §7.10. A layer that can lose elements gets a group of its own in the problem, whose "width" is the number of
kernel positions that stay; all positions is the dense layer. Its cost depends on that number and on both widths of the
layer: the number is folded into the length of the output axis, so that every exact search solves the joint problem as
it is. What is lost is valued in one currency, the measured increase of the loss on calibration images.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from secateurs.bench import Bench
from secateurs.cost import CostModel, CostTerm
from secateurs.elements.patterns import Choice, value_curve
from secateurs.elements.selection import DEFAULT_BLOCK, eligible, patterns, square
from secateurs.errors import PlanError
from secateurs.evaluation import make_evaluator
from secateurs.importance.values import curve, keep
from secateurs.kernel_times import ConvShape, KernelTimes, LayerTimes
from secateurs.network import AxisSpec, BlockSpec, GroupSpec, LayerSpec, NetworkSpec
from secateurs.plan import Plan
from secateurs.progress import Progress, silent
from secateurs.provenance import target_label
from secateurs.search.options import legal_widths, reachable_lengths
from secateurs.structure import apply
from secateurs.structure.kernel_elements import groups_of, masks_of

if TYPE_CHECKING:
    from secateurs.data import Data
    from secateurs.latency.store import Store
    from secateurs.latency.targets import Target
    from secateurs.search.problem import Rows
    from secateurs.search_options import Legal
    from secateurs.structure import Graph

SCOPES = ("block", "in_channel", "layer")
"""Sharing scopes that run faster somewhere."""
SUFFIX = ":elements"
"""Behind a weight's name: the name of its group of kernel positions."""
_FOLD = 1 << 20
"""A folded output axis is its length + _FOLD x kernel positions."""
_WIDTHS_AT_MOST, _MEASURED_AT_MOST, _COUNTS_AT_MOST = 8, 6, 9
"""Widths offered per group, widths measured per side of a layer, counts offered per layer."""
_NOISE = 0.005
_ANCHOR = 4 / 9
"""Share of positions (and half of the units) at which the loss is measured."""
_JUDGED = 256


@dataclass(frozen=True)
class ElementSpace:
    """What a joint search chooses from.

    ``layers``: weight names, in the order of their groups behind the network's own; ``options``: legal widths and
    counts of all groups; ``model``: latency in ms over both; ``dense_ms``: of the dense network, measured;
    ``target``: shown in messages.
    """

    graph: Graph
    scope: str
    spec: NetworkSpec
    layers: tuple[str, ...]
    options: tuple[np.ndarray, ...]
    model: CostModel
    dense_ms: float
    target: str

    def counts(self, widths: np.ndarray) -> dict[str, int]:
        """Kernel positions that stay per weight name, of a solution's widths."""
        own = len(self.graph.spec.groups)
        return {name: int(count) for name, count in zip(self.layers, widths[own:], strict=True)}

    def patterned(self, plan: Plan, widths: np.ndarray) -> Plan:
        """The plan of channels with patterns for the weights as it leaves them."""
        narrow = apply(self.graph.model, plan, (self.graph.args, self.graph.kwargs), check=False)
        left = {name for name, _ in narrow.named_parameters(remove_duplicate=False)}
        counts = {name: count for name, count in self.counts(widths).items() if name in left}
        found = patterns(narrow, counts, scope=self.scope)
        facts = {"scope": self.scope, "counts": counts}
        return plan.model_copy(update={"elements": found, "provenance": {**plan.provenance, "elements": facts}})

    def values(
        self, scores: Mapping[str, np.ndarray], losses: Mapping[str, float] | None = None
    ) -> tuple[np.ndarray, ...]:
        """Per group minus the expected increase of the loss when 0, 1 … units stay.

        Of elements, what goes counts by its share of the layer's energy; of units by its share of the scores.
        ``losses``: measured increases by group name at :meth:`anchors`, and by block name; without them every group's
        and every layer's loss as a whole counts the same.
        """
        parameters = dict(self.graph.model.named_parameters(remove_duplicate=False))
        found: list[np.ndarray] = []
        for group, anchor in zip(self.spec.groups, self.anchors(), strict=True):
            weight = parameters.get(group.name.removesuffix(SUFFIX)) if group.name.endswith(SUFFIX) else None
            if weight is None:
                total = curve(scores[group.name])
                share = total / total[-1] if total[-1] > 0 else np.linspace(0.0, 1.0, len(total))
            else:
                name = group.name.removesuffix(SUFFIX)
                choice = Choice(self.scope, 1, DEFAULT_BLOCK, pool="block" if self.scope == "block" else "unit")
                share = value_curve(square(name, weight), choice, groups=groups_of(self.graph.model, name))
            lost = 1.0 - share
            whole = 1.0 if losses is None else losses[group.name] / max(float(lost[anchor]), 1e-9)
            found.append(-whole * lost)
        return tuple(found) if losses is None else self._with_blocks(found, losses)

    def _with_blocks(self, found: list[np.ndarray], losses: Mapping[str, float]) -> tuple[np.ndarray, ...]:
        """The same, with values of keeping nothing that add up to what the loss of a whole block was measured to be."""
        for block in self.spec.blocks:
            whole = sum(-float(found[group][0]) for group in block.groups)
            for group in block.groups:
                part = losses[block.name] * -float(found[group][0]) / max(whole, 1e-12)
                least = float(found[group][self.options[group][0]])
                found[group] = np.concatenate([[min(-part, least)], found[group][1:]])
        return tuple(found)

    def anchors(self) -> tuple[int, ...]:
        """Units or positions per group at which :func:`measured_losses` measures."""
        own = len(self.graph.spec.groups)
        share = [0.5] * own + [_ANCHOR] * len(self.layers)
        return tuple(max(g.min_units, round(part * g.units)) for g, part in zip(self.spec.groups, share, strict=True))


def check_elements(target: Target, scope: str, batch: int = 1) -> None:
    """Nothing, if networks with elements pruned in this scope run faster on the target.

    Raises:
        PlanError: unknown scope, or a target that runs pruned elements as multiplications by zero.
    """
    if scope not in SCOPES:
        raise PlanError(f"Element scope {scope!r} runs fast nowhere. Choose one of {', '.join(SCOPES)}.")
    if not getattr(target, "skips_pruned_elements", False):
        raise PlanError(
            f"Target {target.name} multiplies by pruned kernel elements as by any other number: pruning them saves "
            f"nothing there. Give --target torch-sparse-cpu, or leave --elements out."
        )
    if batch != 1:
        raise PlanError(f"Kernel elements are planned for batch 1, not {batch}. Leave --batch out.")


def element_space(
    graph: Graph,
    times: KernelTimes,
    dense_ms: float,
    *,
    scope: str = "block",
    legal: Legal,
) -> ElementSpace:
    """The joint choice of a network on the sparse kernels.

    Layers that the kernels do not run (depthwise, linear) and everything else that is not a convolution count with the
    fixed part of the latency, what the dense network takes beyond the sum of its convolutions.

    Args:
        graph: the traced network.
        times: of the kernels; measures what the tables need.
        dense_ms: latency of the dense network on the target.
        scope: one of :data:`SCOPES`.
        legal: which networks may be returned.

    Raises:
        PlanError: no layer can lose elements.
    """
    own = graph.spec
    can = {name for name in eligible(graph.model) if not _kept_whole(graph, name)}
    layers = tuple(dict.fromkeys(layer.parameter for layer in own.layers if layer.parameter in can))
    if not layers:
        raise PlanError(
            "No convolution of this network has kernel elements to lose: all are 1×1, depthwise, or read the image. "
            "Leave --elements out."
        )
    pinned = legal.pins(group.name for group in own.groups)
    grain = {group.name: _grain(group.units) for group in own.groups}
    narrowest = {g.name: max(legal.min_width, min(g.units, 8)) for g in own.groups}
    widths = legal_widths(own, minimum=narrowest, maximum=legal.widest, pinned=pinned, grain=grain)
    tables = {layer.node: _table(graph, layer, layer.parameter in can, widths, times) for layer in own.layers}
    spec = _extended(graph, layers)
    place = {name: len(own.groups) + index for index, name in enumerate(layers)}
    terms, counts = [], dict[str, np.ndarray]()
    for layer in own.layers:
        table = tables[layer.node]
        if table is None:
            continue
        if layer.parameter in place:
            outputs = replace(layer.outputs, parts=(*layer.outputs.parts, (place[layer.parameter], _FOLD)))
            terms.append(CostTerm(layer.name, layer.inputs, outputs, _folded(table), layer.blocks))
            paying = _paying(table, own, layer)
            counts[layer.parameter] = np.union1d(counts.get(layer.parameter, paying), paying)
        else:
            terms.append(CostTerm(layer.name, layer.inputs, layer.outputs, _dense(table), layer.blocks))
    model = CostModel("ms", 0.0, tuple(terms))
    fixed = max(0.0, dense_ms - float(model.evaluate(spec.dense_widths)))
    options = (*widths, *(counts[name] for name in layers))
    return ElementSpace(
        graph, scope, spec, layers, options, replace(model, offset=fixed), dense_ms, target_label(times.fingerprint)
    )


def measured_space(
    graph: Graph,
    target: Target,
    scope: str,
    legal: Legal,
    *,
    threads: int = 1,
    store: Store | None = None,
    progress: Progress = silent,
) -> ElementSpace:
    """The joint choice, with the dense network measured on the target and the kernels where the store lacks them.

    Raises:
        PlanError: as :func:`check_elements` and :func:`element_space`.
        TargetError: the runtime failed, or the machine is too disturbed to measure.
    """
    check_elements(target, scope)
    example = (graph.args, graph.kwargs)
    with tempfile.TemporaryDirectory(prefix="secateurs-dense-") as folder:
        bench = Bench(target, Path(folder), example, threads, progress=progress)
        bench.export(graph.model, bench.dense)
        dense_ms = bench.measure_dense().latency_ms
    times = KernelTimes(store, threads=threads, progress=progress)
    return element_space(graph, times, dense_ms, scope=scope, legal=legal)


def _kept_whole(graph: Graph, parameter: str) -> bool:
    layer = parameter.rpartition(".")[0]
    return any(fnmatchcase(layer, glob) for pattern in graph.keep for glob in (pattern, f"{pattern}.*"))


def _grain(units: int) -> int:
    """Widths step by the kernels' vectors of 16 filters, or more coarsely where that gives too many."""
    return max(16, -(-units // _WIDTHS_AT_MOST) // 16 * 16)


def _extended(graph: Graph, layers: tuple[str, ...]) -> NetworkSpec:
    """The network's numbers with a group of kernel positions per layer; they vanish with the layer's blocks."""
    own, first = graph.spec, len(graph.spec.groups)
    parameters = dict(graph.model.named_parameters(remove_duplicate=False))
    more = tuple(GroupSpec(f"{name}{SUFFIX}", parameters[name][0, 0].numel()) for name in layers)

    def inside(number: int) -> tuple[int, ...]:
        calls = {name: [layer for layer in own.layers if layer.parameter == name] for name in layers}
        return tuple(first + i for i, name in enumerate(layers) if all(number in call.blocks for call in calls[name]))

    blocks = tuple(
        BlockSpec(block.name, (*block.groups, *inside(number)), block.nodes, block.add)
        for number, block in enumerate(own.blocks)
    )
    return replace(own, groups=(*own.groups, *more), blocks=blocks)


def _table(
    graph: Graph, layer: LayerSpec, sparse: bool, widths: tuple[np.ndarray, ...], times: KernelTimes
) -> LayerTimes | None:
    """Times of a layer at its legal widths and counts; None where the sparse kernels do not run it."""
    module = graph.model.get_submodule(layer.parameter.rpartition(".")[0])
    if not isinstance(module, (torch.nn.Conv1d, torch.nn.Conv2d)) or module.groups != 1:
        return None
    shape = ConvShape.of(layer, module)
    counts = np.array([shape.positions])
    if sparse:
        counts = np.unique(np.linspace(1, shape.positions, min(shape.positions, _COUNTS_AT_MOST)).round().astype(int))
    sides = [_measured(axis, widths) for axis in (layer.inputs, layer.outputs)]
    return LayerTimes.measured(times, shape, sides[0], sides[1], counts)


def _measured(axis: AxisSpec, widths: tuple[np.ndarray, ...]) -> np.ndarray:
    lengths = reachable_lengths(axis, widths)
    if len(lengths) <= _WIDTHS_AT_MOST:
        return lengths
    return lengths[np.unique(np.linspace(0, len(lengths) - 1, _MEASURED_AT_MOST).round().astype(int))]


def _paying(table: LayerTimes, spec: NetworkSpec, layer: LayerSpec) -> np.ndarray:
    """Counts that save time over every larger one, at the dense widths; all positions (dense) is always one."""
    dense = spec.dense_widths
    ms = np.array([float(table(layer.inputs.length(dense), layer.outputs.length(dense), n)) for n in table.counts])
    later = np.append(np.minimum.accumulate(ms[::-1])[::-1][1:], np.inf)
    return table.counts[ms * (1 + _NOISE) < later]


def _folded(table: LayerTimes) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    def cost(inputs: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        return table(inputs, outputs % _FOLD, outputs // _FOLD)

    return cost


def _dense(table: LayerTimes) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    def cost(inputs: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        return table(inputs, outputs, table.counts[-1])

    return cost


def measured_losses(
    space: ElementSpace,
    scores: Mapping[str, np.ndarray],
    images: Data,
    *,
    channels: bool = True,
    rows: Rows | None = None,
    progress: Progress = silent,
) -> dict[str, float]:
    """Increase of the loss on calibration images when one group, one layer's elements or one block goes, by name.

    Groups lose half of their units, layers 5 of 9 kernel elements; statistics are refreshed each time. The half of the
    calibration images that statistics come from is not judged on. Source: the common currency is SPDY's idea (arXiv
    2201.13096), measured here instead of fitted. Cost: an evaluation per group, layer and block.

    Args:
        space: what can be chosen.
        scores: of the units, by which they stay.
        images: their calibration images are used.
        channels: False measures layers and blocks only.
        rows: where losses are kept.
        progress: shows candidates.
    """
    calibration, graph = images.calibration, space.graph
    half = len(calibration) // 2
    judged = calibration.select(np.arange(half, len(calibration))[:_JUDGED])
    evaluator = make_evaluator(graph, scores, calibration.take(half), judged, classes=images.classes)
    empty = graph.plan({}, ())

    def loss(name: str, make: Callable[[], Plan]) -> float:
        key = f"element-losses/{evaluator.identity}/{space.scope}/{name}"
        held = None if rows is None else rows.get(key)
        if held is None:
            found = evaluator.judge(make())
            held = {"accuracy": found.accuracy, "seconds": found.seconds, "details": dict(found.details)}
            if rows is not None:
                rows.put(key, {**held, "widths": [], "removed": []})
        return float(held["details"]["loss"])

    base = loss("dense", lambda: empty)
    plans = _anchor_plans(space, scores, empty, channels)
    losses = {}
    with progress.task("what layers are worth", len(plans)) as task:
        for name, make in plans.items():
            losses[name] = max(loss(name, make) - base, 1e-4 * max(base, 1e-3))
            task.advance(1, name)
    return {**dict.fromkeys((group.name for group in graph.spec.groups), 1.0), **losses}


def _anchor_plans(
    space: ElementSpace, scores: Mapping[str, np.ndarray], empty: Plan, channels: bool
) -> dict[str, Callable[[], Plan]]:
    """What makes the plan of every candidate, by name."""
    graph = space.graph

    def elements(name: str, anchor: int) -> Plan:
        return empty.model_copy(update={"elements": patterns(graph.model, {name: anchor}, scope=space.scope)})

    def units(name: str, anchor: int) -> Plan:
        return graph.plan({name: keep(scores[name], anchor)}, ())

    def block(name: str) -> Plan:
        return graph.plan({}, (name,))

    plans: dict[str, Callable[[], Plan]] = {}
    for group, anchor in zip(space.spec.groups, space.anchors(), strict=True):
        if group.name.endswith(SUFFIX):
            plans[group.name] = partial(elements, group.name.removesuffix(SUFFIX), anchor)
        elif channels:
            plans[group.name] = partial(units, group.name, anchor)
    return plans | {each.name: partial(block, each.name) for each in graph.spec.blocks}


def left_after(graph: Graph, small: torch.nn.Module, plan: Plan) -> int:
    """Multiply-adds at batch 1 of the network ``small`` that a plan leaves, without those of pruned elements."""
    spec = graph.spec
    removed = frozenset(index for index, block in enumerate(spec.blocks) if block.name in plan.blocks_removed)
    widths = np.array([max(len(plan.groups[group.name]), 1) for group in spec.groups], dtype=np.int64)
    masks = masks_of(small, plan.elements)
    macs = spec.macs(widths, removed)
    for layer in spec.layers:
        if layer.parameter in masks and removed.isdisjoint(layer.blocks):
            macs -= layer.positions * int((~masks[layer.parameter]).sum())
    return int(macs)


def pruned_elements(small: torch.nn.Module, plan: Plan) -> int:
    """How many weights of ``small`` a plan holds at zero."""
    return sum(int((~mask).sum()) for mask in masks_of(small, plan.elements).values())
