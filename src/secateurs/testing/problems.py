"""Synthetic search problems for tests and benchmarks: random ones, and one shaped like a real network."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from secateurs.cost import CostFunction, CostModel, CostTerm
from secateurs.network import AxisSpec, BlockSpec, GroupSpec, LayerSpec, NetworkSpec
from secateurs.search.options import legal_widths
from secateurs.search.problem import Constraint, Problem


@dataclass(frozen=True)
class GridCost:
    """A cost function read from ``grid`` [in length, out length]."""

    grid: np.ndarray

    def __call__(self, inputs: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        rows, columns = np.broadcast_arrays(np.asarray(inputs), np.asarray(outputs))
        return self.grid[np.minimum(rows, self.grid.shape[0] - 1), np.minimum(columns, self.grid.shape[1] - 1)]


@dataclass(frozen=True)
class TiledCost:
    """``scale * (overhead + ceil(in / step_in) * ceil(out / step_out))``: a convolution that works in tiles."""

    scale: float
    step_in: int
    step_out: int
    overhead: float = 0.0

    def __call__(self, inputs: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        tiles = -(-np.maximum(inputs, 1) // self.step_in) * -(-np.maximum(outputs, 1) // self.step_out)
        return self.scale * (self.overhead + tiles)


def random_cost(generator: np.random.Generator, shape: tuple[int, int], kind: str) -> CostFunction:
    """A random table for lengths below ``shape``: ``linear``, ``staircase`` or ``rough`` (not monotone)."""
    here, there = np.arange(shape[0])[:, None], np.arange(shape[1])[None, :]
    a, b, c = generator.uniform(0.1, 1.0, 3)
    if kind == "linear":
        return GridCost(a * here * there / max(1, shape[0]) + b * there + c * here * (shape[0] > 1))
    if kind == "staircase":
        step, stride = (int(s) for s in generator.integers(2, 5, 2))
        tiles = -(-np.maximum(here, 1) // step) * -(-np.maximum(there, 1) // stride)
        return GridCost(a * tiles + b)
    return GridCost(generator.uniform(0.1, 4.0, shape))


def random_problem(
    seed: int,
    *,
    groups: int = 4,
    units: int = 4,
    blocks: bool = True,
    sums: bool = True,
    constraints: int = 1,
    kind: str = "staircase",
    tightness: float = 0.6,
) -> Problem:
    """A random chain of layers with shortcuts, small enough to enumerate.

    Args:
        seed: of everything.
        groups: number of groups.
        units: largest number of units of a group.
        blocks: whether some groups lie in removable blocks.
        sums: whether some layers read several groups at once.
        constraints: number of cost models.
        kind: see :func:`random_cost`.
        tightness: where the limits lie between the cheapest and the widest network.
    """
    generator = np.random.default_rng(seed)
    sizes = generator.integers(2, units + 1, groups)
    specs = tuple(GroupSpec(f"g{i}", int(n)) for i, n in enumerate(sizes))
    inside = [int(b) for b in generator.choice(groups, size=min(2, groups - 1), replace=False)] if blocks else []
    block_specs = tuple(BlockSpec(f"b{i}", (g,), (), f"add{i}") for i, g in enumerate(inside))
    where = {g: (b,) for b, g in enumerate(inside)}
    axes = [AxisSpec(int(generator.integers(0, 2)), ((g, int(generator.integers(1, 3))),)) for g in range(groups)]
    spec = NetworkSpec(specs, (), block_specs, (), f"random-{seed}")
    models = tuple(
        CostModel("ms", float(generator.uniform(0, 1)), _terms(generator, axes, sizes, where, sums, kind))
        for _ in range(constraints)
    )
    options = tuple(
        np.sort(generator.choice(np.arange(1, n + 1), size=int(generator.integers(2, n + 1)), replace=False))
        for n in sizes
    )
    values = tuple(
        np.cumsum([generator.uniform(-1, 0.1), *np.sort(generator.uniform(0.01, 1, n))[::-1]]) for n in sizes
    )
    worth = generator.uniform(0, 1, len(block_specs))
    removable = frozenset(range(len(block_specs)))
    free = Problem(spec, options, values, _limited(models, np.full(constraints, 1e9)), worth, removable)
    widths, gone = enumerate_all(free)
    costs = free.costs(widths, gone)
    limits = costs.min(axis=0) + tightness * (np.median(costs, axis=0) * 1.3 - costs.min(axis=0))
    return Problem(spec, options, values, _limited(models, limits), worth, removable)


def _limited(models: tuple[CostModel, ...], limits: np.ndarray) -> tuple[Constraint, ...]:
    return tuple(Constraint(f"cost{i}", model, float(limits[i])) for i, model in enumerate(models))


def _terms(
    generator: np.random.Generator,
    axes: list[AxisSpec],
    sizes: np.ndarray,
    where: Mapping[int, tuple[int, ...]],
    sums: bool,
    kind: str,
) -> tuple[CostTerm, ...]:
    terms = []
    longest = 3 + 4 * int(sizes.sum())
    for g, axis in enumerate(axes):
        before = axes[g - 1] if g else None
        shape = (longest if before else 1, longest)
        blocks = where.get(g, ()) + (where.get(g - 1, ()) if g else ())
        terms.append(CostTerm(f"t{g}", before, axis, random_cost(generator, shape, kind), blocks))
    for _ in range(len(axes) // 2):
        a, b = (int(i) for i in generator.choice(len(axes), 2, replace=False))
        blocks = where.get(a, ()) + where.get(b, ())
        terms.append(CostTerm("skip", axes[a], axes[b], random_cost(generator, (longest, longest), kind), blocks))
    free = [g for g in range(len(axes)) if g not in where]
    if sums and len(free) >= 2:
        count = int(generator.integers(2, len(free) + 1))
        parts = sum((axes[g].parts for g in free[:count]), ())
        mixed, other = AxisSpec(1, parts), axes[int(generator.integers(len(axes)))]
        blocks = where.get(other.parts[0][0], ())
        terms.append(CostTerm("cat", mixed, other, random_cost(generator, (longest, longest), kind), blocks))
        terms.append(CostTerm("cat2", AxisSpec(0, parts[:2]), mixed, random_cost(generator, (longest, longest), kind)))
    return tuple(terms)


def enumerate_all(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Every legal network: widths int64 [n, groups] and removed blocks bool [n, blocks]. Small problems only."""
    widths = np.array(list(itertools.product(*problem.options)), dtype=np.int64)
    count = len(problem.spec.blocks)
    rows, gones = [], []
    for choice in itertools.product([False, True], repeat=count):
        gone = np.array(choice, dtype=bool)
        if not set(np.flatnonzero(gone).tolist()) <= problem.removable:
            continue
        inner = [g for g, blocks in enumerate(problem.inner_blocks) if any(gone[b] for b in blocks)]
        keep = np.all(widths[:, inner] == problem.narrowest[inner], axis=1)
        rows.append(widths[keep])
        gones.append(np.broadcast_to(gone, (int(keep.sum()), count)))
    return np.concatenate(rows), np.concatenate(gones)


def brute_force(problem: Problem) -> float | None:
    """The largest value within the limits by trying everything; None where nothing fits."""
    widths, gone = enumerate_all(problem)
    fits = problem.fits(widths, gone)
    return float(problem.value(widths, gone)[fits].max()) if fits.any() else None


def staircase_problem(seed: int, *, groups: int = 8, units: int = 48, most: int = 12) -> Problem:
    """A random chain with shortcuts, staircase costs of random steps on both sides, and a random budget."""
    generator = np.random.default_rng(seed)
    specs = tuple(GroupSpec(f"g{i}", int(n)) for i, n in enumerate(generator.integers(units // 3, units + 1, groups)))
    axes = [AxisSpec(0, ((g, 1),)) for g in range(groups)]
    links = [(g - 1, g) for g in range(groups)]
    links += [
        (int(a), int(b)) for a, b in (sorted(generator.choice(groups, 2, replace=False)) for _ in range(groups // 3))
    ]
    terms = []
    for number, (source, sink) in enumerate(links):
        steps = generator.choice([1, 2, 4, 8, 16], 2)
        cost = TiledCost(float(generator.lognormal(0, 0.7)) * float(steps.prod()), int(steps[0]), int(steps[1]))
        terms.append(CostTerm(f"t{number}", axes[source] if source >= 0 else None, axes[sink], cost))
    model = CostModel("ms", 0.0, tuple(terms))
    spec = NetworkSpec(specs, (), (), (), f"staircase-{seed}")
    options = tuple(
        np.unique(
            np.append(generator.choice(np.arange(1, g.units), min(most, g.units - 1) - 1, replace=False), g.units)
        )
        for g in specs
    )
    values = tuple(np.concatenate([[0.0], np.cumsum(np.sort(generator.lognormal(0, 1, g.units))[::-1])]) for g in specs)
    low = float(model.evaluate(np.array([o[0] for o in options])))
    dense = float(model.evaluate(spec.dense_widths))
    limit = low + float(generator.uniform(0.1, 0.8)) * (dense - low)
    return Problem(spec, options, values, (Constraint("latency", model, limit),))


def resnet50_like(
    *, most: int = 32, latency_ratio: float = 0.6, removable: bool = False, seed: int = 0, wobble: float = 0.03
) -> Problem:
    """A ResNet-50's 37 groups and its 52 convolutions between groups, with staircase costs like a CPU runtime's.

    Args:
        most: options per group at most.
        latency_ratio: budget as a fraction of the dense cost.
        removable: whether the 12 blocks without a projection may go.
        seed: of the value curves and of the costs' wobble.
        wobble: relative size of a random, not monotone disturbance of every table entry.
    """
    generator = np.random.default_rng(seed)
    groups: list[GroupSpec] = [GroupSpec("conv1:out", 64)]
    links: list[tuple[int, int, int, int, tuple[int, ...]]] = [(-1, 0, 112 * 112, 49, ())]
    blocks: list[BlockSpec] = []
    before, size = 0, 56
    for stage, (count, inner) in enumerate(zip((3, 4, 6, 3), (64, 128, 256, 512), strict=True)):
        groups.append(GroupSpec(f"layer{stage + 1}:out", inner * 4))
        stream = len(groups) - 1
        for index in range(count):
            first, second = len(groups), len(groups) + 1
            groups += [GroupSpec(f"layer{stage + 1}.{index}.conv{i}:out", inner) for i in (1, 2)]
            gate: tuple[int, ...] = ()
            if index:
                gate = (len(blocks),)
                blocks.append(BlockSpec(f"layer{stage + 1}.{index}", (first, second), (), "add"))
            area = size * size // (4 if stage else 1)
            links += [(before if index == 0 else stream, first, size * size if index == 0 else area, 1, gate)]
            links += [(first, second, area, 9, gate), (second, stream, area, 1, gate)]
            if index == 0:
                links.append((before, stream, area, 1, ()))
        before, size = stream, size // (2 if stage else 1)
    return _linked("resnet50", groups, blocks, links, generator, (most, latency_ratio, removable, wobble))


def chain_like(
    count: int = 60, *, units: int = 512, most: int = 32, latency_ratio: float = 0.6, seed: int = 0
) -> Problem:
    """A chain of ``count`` groups with a shortcut every fourth, staircase costs."""
    generator = np.random.default_rng(seed)
    groups = [GroupSpec(f"c{i}:out", units) for i in range(count)]
    links = [(i - 1, i, 400, 9 if i % 2 else 1, ()) for i in range(count)]
    links += [(i - 4, i, 400, 1, ()) for i in range(4, count, 4)]
    return _linked("chain", groups, [], links, generator, (most, latency_ratio, False, 0.03))


def _linked(
    name: str,
    groups: list[GroupSpec],
    blocks: list[BlockSpec],
    links: Sequence[tuple[int, int, int, int, tuple[int, ...]]],
    generator: np.random.Generator,
    setting: tuple[int, float, bool, float],
) -> Problem:
    most, latency_ratio, removable, wobble = setting
    layers, terms = [], []
    for index, (source, sink, positions, elements, gate) in enumerate(links):
        inputs = AxisSpec(3) if source < 0 else AxisSpec(0, ((source, 1),))
        outputs = AxisSpec(0, ((sink, 1),))
        kind, hw = "conv", (int(positions**0.5),) * 2
        label = f"{groups[sink].name.removesuffix(':out')}#{index}"
        layers.append(
            LayerSpec(
                label, label, f"{label}.weight", kind, inputs, outputs, positions, elements, 1, 1, hw, hw, False, gate
            )
        )
        cost = _convolution(generator, positions * elements, groups[sink].units, wobble)
        terms.append(CostTerm(label, None if source < 0 else inputs, outputs, cost, gate))
    spec = NetworkSpec(tuple(groups), tuple(layers), tuple(blocks), (), f"{name}-{most}")
    model = CostModel("ms", 0.5, tuple(terms))
    dense = float(model.evaluate(spec.dense_widths))
    values = []
    for group in groups:
        worth = np.sort(generator.lognormal(0.0, 0.7, group.units))[::-1]
        curve = worth / np.cumsum(worth)
        values.append(np.concatenate([[0.0], np.cumsum(curve)]))
    options = legal_widths(spec, grain={g.name: max(1, g.units // most) for g in groups})
    options = tuple(np.array([w for w in o if w % max(1, int(o[-1]) // most) == 0]) for o in options)
    goes = frozenset(range(len(blocks))) if removable else frozenset()
    return Problem(spec, options, tuple(values), (Constraint("latency", model, dense * latency_ratio),), None, goes)


@dataclass(frozen=True)
class _Wobbling:
    base: TiledCost
    factors: np.ndarray

    def __call__(self, inputs: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        rows, columns = self.factors.shape
        return self.base(inputs, outputs) * self.factors[np.asarray(inputs) % rows, np.asarray(outputs) % columns]


def _convolution(generator: np.random.Generator, work: int, units: int, wobble: float) -> CostFunction:
    step = int(generator.choice([8, 16, 16, 32])) if units >= 64 else 8
    tile_ms = work * 4 * step / 40e6
    base = TiledCost(tile_ms, 4, step, overhead=0.03 / tile_ms)
    return _Wobbling(base, 1 + wobble * generator.uniform(-1, 1, (61, 67))) if wobble else base
