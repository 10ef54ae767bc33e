"""Candidates as integer genomes: one gene per group (index of its legal width) and one per removable block."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from secateurs.search.problem import Problem


@dataclass(frozen=True)
class Encoding:
    """Genomes int64 [n, genes] of a problem, in depth order: a block's gene stands before its first group's.

    A group's gene is 0 … options - 1; a block's gene is 1 where the block stays, 0 where it is removed.
    """

    problem: Problem

    @cached_property
    def _slots(self) -> list[tuple[bool, int]]:
        """(is a block, index) per gene."""
        problem = self.problem
        first: dict[int, list[int]] = {}
        behind = []
        for block in sorted(problem.removable):
            groups = problem.spec.blocks[block].groups
            if groups:
                first.setdefault(min(groups), []).append(block)
            else:
                behind.append(block)
        slots = []
        for group in range(len(problem.options)):
            slots += [(True, block) for block in first.get(group, [])]
            slots.append((False, group))
        return slots + [(True, block) for block in behind]

    @cached_property
    def group_genes(self) -> np.ndarray:
        """Position of every group's gene, int64 [groups]."""
        place = {index: gene for gene, (is_block, index) in enumerate(self._slots) if not is_block}
        return np.array([place[group] for group in range(len(self.problem.options))], dtype=np.int64)

    @cached_property
    def block_genes(self) -> dict[int, int]:
        """Position of every removable block's gene."""
        return {index: gene for gene, (is_block, index) in enumerate(self._slots) if is_block}

    @cached_property
    def is_block(self) -> np.ndarray:
        """Which genes are blocks', bool [genes]."""
        return np.array([is_block for is_block, _ in self._slots], dtype=bool)

    @cached_property
    def sizes(self) -> np.ndarray:
        """Number of values of every gene, int64 [genes]."""
        return np.array(
            [2 if is_block else len(self.problem.options[index]) for is_block, index in self._slots], dtype=np.int64
        )

    @cached_property
    def free(self) -> np.ndarray:
        """Positions of genes with more than one value, int64 [free genes]."""
        return np.flatnonzero(self.sizes > 1)

    @cached_property
    def _ladders(self) -> np.ndarray:
        """Legal widths per group, padded with the widest, int64 [groups, most options]."""
        most = max(len(options) for options in self.problem.options)
        return np.stack(
            [np.pad(options, (0, most - len(options)), mode="edge") for options in self.problem.options]
        ).astype(np.int64)

    def canonical(self, genes: np.ndarray) -> np.ndarray:
        """The genomes within bounds, groups inside removed blocks at their narrowest, so that equals look equal."""
        genes = np.clip(np.asarray(genes, dtype=np.int64), 0, self.sizes - 1)
        for group, blocks in enumerate(self.problem.inner_blocks):
            for block in blocks:
                gone = genes[..., self.block_genes[block]] == 0
                genes[..., self.group_genes[group]] = np.where(gone, 0, genes[..., self.group_genes[group]])
        return genes

    def widths(self, genes: np.ndarray) -> np.ndarray:
        """Widths int64 [n, groups] of genomes [n, genes]."""
        chosen = np.asarray(genes)[:, self.group_genes]
        return self._ladders[np.arange(len(self.group_genes))[None, :], chosen]

    def gone(self, genes: np.ndarray) -> np.ndarray:
        """Removed blocks, bool [n, blocks], of genomes [n, genes]."""
        result = np.zeros((len(genes), len(self.problem.spec.blocks)), dtype=bool)
        for block, gene in self.block_genes.items():
            result[:, block] = np.asarray(genes)[:, gene] == 0
        return result

    def network(self, genome: np.ndarray) -> tuple[np.ndarray, frozenset[int]]:
        """Widths and removed blocks of one genome [genes]."""
        removed = frozenset(int(b) for b in np.flatnonzero(self.gone(genome[None])[0]))
        return self.widths(genome[None])[0], removed

    def genome(self, widths: np.ndarray, removed: Collection[int] = ()) -> np.ndarray:
        """The genome [genes] of a network; widths that are not legal become the next wider legal ones."""
        genes = self.sizes - 1
        for group, options in enumerate(self.problem.options):
            place = int(np.searchsorted(options, int(widths[group])))
            genes[self.group_genes[group]] = min(place, len(options) - 1)
        for block in removed:
            genes[self.block_genes[block]] = 0
        return self.canonical(genes)

    def costs(self, genes: np.ndarray) -> np.ndarray:
        """Costs [n, constraints] of genomes [n, genes], by the models."""
        return self.problem.costs(self.widths(genes), self.gone(genes))

    def features(self, genes: np.ndarray) -> np.ndarray:
        """What a surrogate sees, float64 [n, features]: kept share of every group (0 inside a removed block), kept
        blocks, costs relative to dense, and the value of what is kept."""
        problem = self.problem
        widths, gone = self.widths(genes), self.gone(genes)
        shares = widths / problem.spec.dense_widths
        for group, blocks in enumerate(problem.inner_blocks):
            for block in blocks:
                shares[:, group] = np.where(gone[:, block], 0.0, shares[:, group])
        dense = problem.costs(problem.widest[None])[0]
        value = problem.value(widths, gone)[:, None] / max(1e-12, abs(float(problem.value(problem.widest))))
        blocks_kept = ~gone[:, sorted(self.block_genes)]
        relative = problem.costs(widths, gone) / np.where(dense == 0, 1.0, dense)
        return np.concatenate([shares, blocks_kept, relative, value], axis=1)
