"""Widths and kernel elements in one problem: every layer is dense or sparse at a density, by measured time.

docs/methods.md, "Widths, blocks and elements in one problem". A layer that can lose elements gets a group of its own in
the problem, whose "width" is the number of kernel positions that stay (of a 1×1 convolution: eighths of its input
channels); all of them is the dense layer. Its cost depends on that number and on both widths of the layer: the number
is folded into the length of the output axis, so that every exact search solves the joint problem as it is. What is lost
is valued in one currency, the measured increase of the loss on calibration images.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from secateurs.cost import CostModel, CostTerm
from secateurs.elements.patterns import SCOPES as PATTERN_SCOPES
from secateurs.elements.selection import SUFFIX, eligible, patterns, steps
from secateurs.errors import PlanError
from secateurs.latency.store import Store
from secateurs.latency.timing import compare
from secateurs.measure.bench import QUICK, Bench
from secateurs.measure.kernel_times import ConvShape, KernelTimes, LayerTimes
from secateurs.measure.profile import profile
from secateurs.network import AxisSpec, BlockSpec, GroupSpec, LayerSpec, NetworkSpec
from secateurs.planning.elements import SCOPES
from secateurs.planning.elements.space import ElementSpace
from secateurs.progress import Progress, silent
from secateurs.provenance import store_key, target_label
from secateurs.search.options import legal_widths, reachable_lengths
from secateurs.structure import apply
from secateurs.structure.groups import stays_whole

if TYPE_CHECKING:
    from secateurs.latency.model import LatencyModel
    from secateurs.latency.targets import Target
    from secateurs.latency.targets._base import KnownLatency
    from secateurs.search.legal import Legal
    from secateurs.structure import Graph

_FOLD = 1 << 20
"""A folded output axis is its length + _FOLD x kernel positions."""
_RECTANGLES = (1 / 9, 2 / 9, 3 / 9, 4 / 9, 6 / 9)
"""Shares of positions at which networks of smaller kernels are measured: the rectangles of a 3×3 kernel."""
_WIDTHS_AT_MOST, _MEASURED_AT_MOST, _COUNTS_AT_MOST = 8, 6, 9
"""Widths offered per group, widths measured per side of a layer, counts offered per layer."""
_TABLED = 64
"""Widths per side of a layer that a latency model is asked for."""
_NOISE = 0.005


def check_elements(target: Target, scope: str, batch: int = 1) -> None:
    """Nothing, if networks with elements pruned in this scope run faster on the target.

    Raises:
        PlanError: unknown scope, or a target that runs pruned elements as multiplications by zero.
    """
    if scope not in SCOPES:
        known = "runs fast nowhere" if scope in PATTERN_SCOPES else "is unknown"
        raise PlanError(f"Element scope {scope!r} {known}. Choose one of {', '.join(SCOPES)}.")
    skips = target.skips_pruned_elements
    if not skips and scope != "layer":
        raise PlanError(
            f"Target {target.name} multiplies by pruned kernel elements as by any other number: pruning them in scope "
            f"{scope} saves nothing there. Give --target torch-sparse-cpu, or --elements layer: rectangles are smaller "
            f"convolutions, which every target runs."
        )
    if skips and batch != 1:
        raise PlanError(f"Kernel elements are planned for batch 1 on {target.name}, not {batch}. Leave --batch out.")


def measured_space(
    graph: Graph,
    target: Target,
    scope: str,
    legal: Legal,
    *,
    threads: int = 1,
    batch: int = 1,
    store: Store | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> ElementSpace:
    """The joint choice on a target, from measurements; what the store knows is not measured again.

    On the sparse kernels these are the dense network and every layer shape; elsewhere the network's latency model and
    networks whose kernels were cut to rectangles.

    Raises:
        PlanError: as :func:`check_elements` and :func:`element_space`.
        TargetError: the runtime failed, or the machine is too disturbed to measure.
    """
    check_elements(target, scope, batch)
    _layers(graph, scope, target.skips_pruned_elements)  # refuses before anything is measured
    with tempfile.TemporaryDirectory(prefix="secateurs-dense-") as folder:
        bench = Bench.inside(Path(folder), target, (graph.args, graph.kwargs), threads, batch, seed, progress)
        bench.export(graph.model, bench.dense)
        told = target.formula(graph.spec, bench.dense.read_bytes(), threads=threads, batch=batch)
        if told is not None:
            return element_space(graph, told, told.latency_model().dense_ms, scope=scope, legal=legal)
        if target.skips_pruned_elements:
            times = KernelTimes(store, threads=threads, progress=progress)
            return element_space(graph, times, _dense_ms(graph, bench, store), scope=scope, legal=legal)
        costs = profile(graph, target, threads=threads, batch=batch, store=store, seed=seed, progress=progress)
        return rectangle_space(graph, costs, _rectangle_ratios(graph, bench, store or Store(), progress), legal=legal)


def element_space(
    graph: Graph, times: KernelTimes | KnownLatency, dense_ms: float, *, scope: str = "block", legal: Legal
) -> ElementSpace:
    """The joint choice of a network on the sparse kernels.

    Layers that the kernels do not run (depthwise, linear) and everything else that is not a convolution count with the
    fixed part of the latency, what the dense network takes beyond the sum of its convolutions.

    Args:
        graph: the traced network.
        times: of the kernels, which measure what the tables need; or of hardware, known by a formula.
        dense_ms: latency of the dense network on the target.
        scope: one of :data:`SCOPES`.
        legal: which networks may be returned.

    Raises:
        PlanError: no layer can lose elements.
    """
    own, layers = graph.spec, _layers(graph, scope, True)
    widths, spec = _widths(own, legal), _extended(graph, layers)
    terms, counts = [], dict[str, np.ndarray]()
    for layer in own.layers:
        table = _table(graph, layer, layer.parameter in layers, widths, times)
        if table is None:
            continue
        term = CostTerm(layer.name, layer.inputs, layer.outputs, _dense(table), layer.blocks)
        if layer.parameter in layers:
            term = _folded_term(term, spec, layer.parameter, table)
            paying = _paying(table, own, layer)
            counts[layer.parameter] = np.union1d(counts.get(layer.parameter, paying), paying)
        terms.append(term)
    model = CostModel("ms", 0.0, tuple(terms))
    model = replace(model, offset=max(0.0, dense_ms - float(model.evaluate(spec.dense_widths))))
    options = (*widths, *(counts[name] for name in layers))
    return ElementSpace(graph, scope, spec, layers, options, model, dense_ms, target_label(times.fingerprint), legal)


def rectangle_space(graph: Graph, costs: LatencyModel, ratios: Mapping[float, float], *, legal: Legal) -> ElementSpace:
    """The joint choice of a network on any runtime, which runs kernels cut to rectangles as smaller convolutions.

    A layer's time at its widths is the latency model's; what part of it stays at a share of positions is taken to be
    the same for all layers, from whole networks that were cut to that share.

    Args:
        graph: the traced network.
        costs: its latency model on the target.
        ratios: latency of such a network / dense, by share of kernel positions that stay.
        legal: which networks may be returned.

    Raises:
        PlanError: no layer can lose elements.
    """
    own, layers = graph.spec, _layers(graph, "layer", False)
    widths, spec = _widths(own, legal), _extended(graph, layers)
    by_name = {layer.name: layer for layer in own.layers if layer.parameter in layers}
    model = costs.cost_model()
    can = sum(float(term.evaluate(own.dense_widths)) for term in model.terms if term.name in by_name)
    whole = float(model.evaluate(own.dense_widths))
    shares = np.array(sorted({*ratios, 1.0}))
    kept = [1.0 if share == 1 else 1 - (1 - ratios[share]) * whole / max(can, 1e-9) for share in shares.tolist()]
    stays = np.maximum.accumulate(np.clip(kept, 0.02, 1.0))
    terms = []
    for term in model.terms:
        layer = by_name.get(term.name)
        if layer is None:
            terms.append(term)
            continue
        channels, filters = (_spaced(reachable_lengths(axis, widths), _TABLED) for axis in (term.inputs, term.outputs))
        dense_ms = np.asarray(term.cost(channels[:, None], filters[None, :]), dtype=np.float64)
        counts = np.arange(1, layer.kernel_elements + 1)
        part = np.interp(counts / layer.kernel_elements, shares, stays)
        table = LayerTimes(channels, filters, counts, dense_ms[:, :, None] * part)
        terms.append(_folded_term(term, spec, layer.parameter, table))
    parameters = dict(graph.model.named_parameters(remove_duplicate=False))
    offered = tuple(_rectangle_counts(parameters[name], shares, stays) for name in layers)
    label = target_label(costs.target)
    joint = CostModel("ms", model.offset, tuple(terms))
    return ElementSpace(graph, "layer", spec, layers, (*widths, *offered), joint, costs.dense_ms, label, legal)


def _rectangle_counts(weight: torch.Tensor, shares: np.ndarray, stays: np.ndarray) -> np.ndarray:
    """Areas of the rectangles in a kernel that are faster than every larger one."""
    height, width = (1, *weight.shape[2:])[-2:]
    areas = np.unique([rows * columns for rows in range(1, height + 1) for columns in range(1, width + 1)])
    ms = np.interp(areas / areas[-1], shares, stays)
    return areas[ms * (1 + _NOISE) < np.append(ms[1:], np.inf)]


def _rectangle_ratios(graph: Graph, bench: Bench, store: Store, progress: Progress) -> dict[float, float]:
    """Latency / dense of the network whose kernels are all cut to rectangles of at most a share of their positions."""
    fingerprint = bench.target.fingerprint(bench.threads)
    signature = store_key("rectangles", graph.spec.fingerprint, f"b{bench.batch}")
    held = store.get(fingerprint, signature)
    if held is None:
        empty, files = graph.plan({}, ()), {"dense": bench.dense}
        parameters = dict(graph.model.named_parameters(remove_duplicate=False))
        sizes = {name: parameters[name][0, 0].numel() for name in _layers(graph, "layer", False)}
        for share in _RECTANGLES:
            counts = {name: max(1, int(share * size + 1e-9)) for name, size in sizes.items()}
            plan = empty.model_copy(update={"elements": patterns(graph.model, counts, scope="layer")})
            files[str(share)] = bench.dense.with_name(f"{share:.2f}.{bench.target.artifact}")
            bench.export(apply(graph.model, plan, check=False), files[str(share)], plan)
        measured = compare(
            bench.target, files, threads=bench.threads, batch=bench.batch, protocol=QUICK, progress=progress
        )
        held = {name: one.ratio for name, one in measured.items() if name != "dense"}
        store.put(fingerprint, {signature: held})
    return {float(share): float(ratio) for share, ratio in held.items()}


def _dense_ms(graph: Graph, bench: Bench, store: Store | None) -> float:
    """Latency of the dense network; the one that is stored, so that a resumed run makes the same plan."""
    fingerprint = bench.target.fingerprint(bench.threads)
    signature = store_key("elements-dense", graph.spec.fingerprint)
    held = None if store is None else store.get(fingerprint, signature)
    if held is None:
        held = {"ms": bench.measure_dense().latency_ms}
        if store is not None:
            store.put(fingerprint, {signature: held})
    return float(held["ms"])


def _layers(graph: Graph, scope: str, skips: bool) -> tuple[str, ...]:
    """Weights that can lose elements; ``skips``: on the sparse kernels.

    Raises:
        PlanError: there are none.
    """
    can = {
        name
        for name in eligible(graph.model, pointwise=scope == "block")
        if not _kept_whole(graph, name) and (not skips or _runs(_module(graph, name)))
    }
    layers = tuple(dict.fromkeys(layer.parameter for layer in graph.spec.layers if layer.parameter in can))
    if not layers:
        small, remedy = "1×1, grouped", "Leave --elements out"
        if scope == "block":
            small = "grouped"
        elif skips:
            remedy += ", or give --elements block, which 1×1 convolutions can take part in"
        raise PlanError(
            f"No convolution of this network has kernel elements to lose in scope {scope}: all are {small}, depthwise, "
            f"read the image, or are kept whole. {remedy}."
        )
    return layers


def _module(graph: Graph, parameter: str) -> torch.nn.Module:
    return graph.model.get_submodule(parameter.rpartition(".")[0])


def _runs(module: torch.nn.Module) -> bool:
    """Whether the sparse kernels run a layer, and its times are known."""
    return isinstance(module, (torch.nn.Conv1d, torch.nn.Conv2d)) and module.groups == 1


def _widths(spec: NetworkSpec, legal: Legal) -> tuple[np.ndarray, ...]:
    pinned = legal.pins(group.name for group in spec.groups)
    grain = {group.name: _grain(group.units) for group in spec.groups}
    narrowest = {g.name: max(legal.fewest(g.units), min(g.units, 8)) for g in spec.groups}
    return legal_widths(spec, minimum=narrowest, maximum=legal.widest, pinned=pinned, grain=grain)


def _kept_whole(graph: Graph, parameter: str) -> bool:
    return stays_whole([parameter.rpartition(".")[0]], graph.keep)


def _grain(units: int) -> int:
    """Widths step by the kernels' vectors of 16 filters, or more coarsely where that gives too many."""
    return max(16, -(-units // _WIDTHS_AT_MOST) // 16 * 16)


def _extended(graph: Graph, layers: tuple[str, ...]) -> NetworkSpec:
    """The network's numbers with a group of kernel positions per layer; they vanish with the layer's blocks."""
    own, first = graph.spec, len(graph.spec.groups)
    parameters = dict(graph.model.named_parameters(remove_duplicate=False))
    more = tuple(GroupSpec(f"{name}{SUFFIX}", steps(parameters[name])) for name in layers)

    def inside(number: int) -> tuple[int, ...]:
        calls = {name: [layer for layer in own.layers if layer.parameter == name] for name in layers}
        return tuple(first + i for i, name in enumerate(layers) if all(number in call.blocks for call in calls[name]))

    blocks = tuple(
        BlockSpec(block.name, (*block.groups, *inside(number)), block.nodes, block.add)
        for number, block in enumerate(own.blocks)
    )
    return replace(own, groups=(*own.groups, *more), blocks=blocks)


def _table(
    graph: Graph, layer: LayerSpec, sparse: bool, widths: tuple[np.ndarray, ...], times: KernelTimes | KnownLatency
) -> LayerTimes | None:
    """Times of a layer at its legal widths and counts; None where the sparse kernels do not run it."""
    module = _module(graph, layer.parameter)
    if not _runs(module):
        return None
    shape = ConvShape.of(layer, module)
    most = steps(module.get_parameter("weight")) if sparse else shape.positions
    counts = np.array([most])
    if sparse:
        counts = np.unique(np.linspace(1, most, min(most, _COUNTS_AT_MOST)).round().astype(int))
    sides = [_measured(axis, widths) for axis in (layer.inputs, layer.outputs)]
    return LayerTimes.measured(times, shape, sides[0], sides[1], counts, shape.positions / most)


def _measured(axis: AxisSpec, widths: tuple[np.ndarray, ...]) -> np.ndarray:
    lengths = reachable_lengths(axis, widths)
    return lengths if len(lengths) <= _WIDTHS_AT_MOST else _spaced(lengths, _MEASURED_AT_MOST)


def _spaced(values: np.ndarray, most: int) -> np.ndarray:
    """At most so many of the values, evenly spaced, both ends included."""
    return values[np.unique(np.linspace(0, len(values) - 1, min(len(values), most)).round().astype(int))]


def _paying(table: LayerTimes, spec: NetworkSpec, layer: LayerSpec) -> np.ndarray:
    """Counts that save time over every larger one, at the dense widths; all positions (dense) is always one."""
    dense = spec.dense_widths
    ms = np.array([float(table(layer.inputs.length(dense), layer.outputs.length(dense), n)) for n in table.counts])
    later = np.append(np.minimum.accumulate(ms[::-1])[::-1][1:], np.inf)
    return table.counts[ms * (1 + _NOISE) < later]


def _folded_term(term: CostTerm, spec: NetworkSpec, parameter: str, table: LayerTimes) -> CostTerm:
    """``term`` with the kernel positions of ``parameter`` folded into its output axis, by the table's times."""
    assert term.outputs is not None
    group = next(index for index, one in enumerate(spec.groups) if one.name == f"{parameter}{SUFFIX}")
    outputs = replace(term.outputs, parts=(*term.outputs.parts, (group, _FOLD)))
    return replace(term, outputs=outputs, cost=lambda i, o: table(i, o % _FOLD, o // _FOLD))


def _dense(table: LayerTimes) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    def cost(inputs: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        return table(inputs, outputs, table.counts[-1])

    return cost
