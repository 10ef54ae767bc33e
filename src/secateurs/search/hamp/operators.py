"""Variation: pymoo's crossovers in depth order, steps on the ladder of widths, transfers at equal cost."""

from __future__ import annotations

import numpy as np
from pymoo.operators.crossover.pntx import TwoPointCrossover
from pymoo.operators.crossover.ux import UniformCrossover

from secateurs.search.hamp.encoding import Encoding

CROSSOVER = 0.9
"""Share of matings that recombine; the others copy a parent."""
TRANSFERS = 0.1
"""Share of offspring that also widen one group and narrow another."""


def random_genomes(encoding: Encoding, count: int, generator: np.random.Generator) -> np.ndarray:
    """Random genomes [count, genes]: every one around a keep ratio of its own, few of their blocks removed."""
    level = generator.uniform(0.2, 1.0, (count, 1))
    ratio = np.clip(level + generator.normal(0, 0.15, (count, len(encoding.sizes))), 0, 1)
    genes = np.floor(ratio * encoding.sizes).astype(np.int64)
    removed = generator.random(genes.shape) < 0.5 * (1 - level) * generator.random((count, 1))
    return encoding.canonical(np.where(encoding.is_block, ~removed, genes))


def crossover(parents: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """One child per pair: parents [2, n, genes] to children [n, genes]. Half of them uniform, half two-point."""
    count, genes = parents.shape[1:]
    if genes < 3:
        children = UniformCrossover()._do(None, parents, random_state=generator)[0]
    else:
        uniform = UniformCrossover()._do(None, parents, random_state=generator)[0]
        points = TwoPointCrossover()._do(None, parents, random_state=generator)[0]
        children = np.where(generator.random((count, 1)) < 0.5, uniform, points)
    recombined = generator.random((count, 1)) < CROSSOVER
    return np.where(recombined, children, parents[0]).astype(np.int64)


def step_mutation(encoding: Encoding, genes: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Every gene moves with probability 1 / (genes that can): ± a geometric number of steps, blocks flip."""
    chosen = (generator.random(genes.shape) < 1 / max(1, len(encoding.free))) & (encoding.sizes > 1)
    steps = generator.geometric(0.5, genes.shape) * generator.choice(np.array([-1, 1]), genes.shape)
    moved = np.where(encoding.is_block, 1 - genes, genes + steps)
    return encoding.canonical(np.where(chosen, moved, genes))


def transfer(encoding: Encoding, genes: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Genomes [n, genes] with one group wider and another narrower each, so that the first cost stays as it was as
    nearly as the ladder of the second allows; a genome without such a pair of groups stays as it is."""
    wide = _drawn(encoding, genes < encoding.sizes - 1, generator)
    wider = genes.copy()
    rows = np.flatnonzero(wide >= 0)
    steps = generator.geometric(0.5, len(genes))
    wider[rows, wide[rows]] = np.minimum(genes[rows, wide[rows]] + steps[rows], encoding.sizes[wide[rows]] - 1)
    other = np.arange(genes.shape[1]) != wide[:, None]
    narrow = _drawn(encoding, (wider > 0) & other & (wide >= 0)[:, None], generator)
    rows = np.flatnonzero(narrow >= 0)
    if not len(rows):
        return genes
    counts = wider[rows, narrow[rows]]
    owner = np.repeat(rows, counts)
    tried = wider[owner]
    tried[np.arange(len(tried)), narrow[owner]] = np.concatenate([np.arange(count) for count in counts])
    tried = encoding.canonical(tried)
    missed = np.abs(encoding.costs(tried)[:, 0] - encoding.costs(genes)[owner, 0])
    best = np.lexsort((missed, owner))
    first = best[np.concatenate([[0], np.cumsum(counts)[:-1]])]
    changed = genes.copy()
    changed[rows] = tried[first]
    return changed


def _drawn(encoding: Encoding, legal: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """One of the legal group genes per row [n, genes] at random, -1 where there is none."""
    lots = np.where(legal & ~encoding.is_block, generator.random(legal.shape), -1.0)
    chosen = np.argmax(lots, axis=1)
    return np.where(lots[np.arange(len(lots)), chosen] < 0, -1, chosen)


def offspring(encoding: Encoding, parents: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """One child per pair of parents [2, n, genes]: crossover, steps, and for some a transfer."""
    children = step_mutation(encoding, crossover(parents, generator), generator)
    chosen = generator.random(len(children)) < TRANSFERS
    return np.where(chosen[:, None], transfer(encoding, children, generator), children)


def neighbours(encoding: Encoding, genome: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """Distinct genomes near ``genome``, at most ``count``: 1-3 genes by ±1-2 steps, a quarter of them transfers."""
    rows = np.repeat(genome[None], count, axis=0)
    lots = np.where(encoding.sizes > 1, generator.random(rows.shape), 2.0)
    touched = generator.integers(1, 4, count)
    near = np.argsort(np.argsort(lots, axis=1), axis=1) < np.minimum(touched, len(encoding.free))[:, None]
    steps = generator.integers(1, 3, rows.shape) * generator.choice(np.array([-1, 1]), rows.shape)
    stepped = np.where(near, np.where(encoding.is_block, 1 - rows, rows + steps), rows)
    moved = generator.random((count, 1)) < 0.25
    rows = np.where(moved, transfer(encoding, rows, generator), encoding.canonical(stepped))
    _, first = np.unique(rows, axis=0, return_index=True)
    rows = rows[np.sort(first)]
    return rows[np.any(rows != genome, axis=1)]
