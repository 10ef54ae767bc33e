"""What the agent decides: the legal widths of a group as pruning ratios, and which decisions take blocks away."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from secateurs.search.problem import Problem


@dataclass(frozen=True)
class Network:
    """A whole network: ``widths`` int64 [groups] and ``removed`` blocks."""

    widths: np.ndarray
    removed: frozenset[int]


@dataclass(frozen=True)
class Choices:
    """The decisions of one episode, one per group in the order of execution.

    A ratio is the share of units that goes. Legal are the problem's widths down to ``most`` (one option always
    stays), the widths of ``also`` (one per group, of a network that must be possible), and ratio 1 for the first
    group of a removable block: the block goes, and with it its other groups.
    """

    problem: Problem
    most: float = 0.8
    also: tuple[int, ...] = ()

    @cached_property
    def options(self) -> tuple[np.ndarray, ...]:
        """Legal widths per group under ``most``, ascending."""
        found = []
        for index, (group, widths) in enumerate(zip(self.problem.spec.groups, self.problem.options, strict=True)):
            fine = widths >= (1 - self.most) * group.units - 1e-9
            wide = widths[fine | (widths == self.also[index])] if self.also else widths[fine]
            found.append(wide if len(wide) else widths[-1:])
        return tuple(found)

    @cached_property
    def dense(self) -> Network:
        """The untouched network."""
        return Network(self.problem.spec.dense_widths, frozenset())

    @cached_property
    def heads(self) -> dict[int, int]:
        """The block that goes at ratio 1, by group: the largest one of which the group is the first."""
        found: dict[int, int] = {}
        blocks = self.problem.spec.blocks
        for block in sorted(self.problem.removable, key=lambda b: len(blocks[b].groups)):
            if blocks[block].groups:
                found[min(blocks[block].groups)] = block
        return found

    @cached_property
    def ratios(self) -> tuple[np.ndarray, ...]:
        """Ratio of every option, widest first, with 1 at the end where a block can go."""
        found = []
        for index, (group, widths) in enumerate(zip(self.problem.spec.groups, self.options, strict=True)):
            cut = 1.0 - widths[::-1] / group.units
            found.append(np.append(cut, 1.0) if index in self.heads else cut)
        return tuple(found)

    def width(self, group: int, option: int) -> int:
        """Units kept at an option of :attr:`ratios`; 0 where the block goes."""
        widths = self.options[group]
        return int(widths[len(widths) - 1 - option]) if option < len(widths) else 0

    def nearest(self, group: int, ratio: float) -> int:
        """The option nearest to ``ratio``; of two equally near the wider one."""
        return int(np.argmin(np.abs(self.ratios[group] - ratio)))

    def network(self, ratios: np.ndarray) -> Network:
        """The network that such ratios lead to, each moved to its nearest option."""
        found = self.dense
        for group, ratio in enumerate(ratios):
            if self.problem.inner_blocks[group].isdisjoint(found.removed):
                found = self.placed(found, group, self.nearest(group, float(ratio)))
        return found

    def ratios_of(self, widths: np.ndarray, removed: frozenset[int]) -> np.ndarray:
        """The ratios that lead to a network, 1 for the groups of removed blocks, float64 [groups]."""
        found = 1.0 - np.asarray(widths) / self.problem.spec.dense_widths
        for block in removed:
            found[list(self.problem.spec.blocks[block].groups)] = 1.0
        return found

    def placed(self, base: Network, group: int, option: int) -> Network:
        """``base`` with one decision changed; the block headed by the group stays or goes accordingly."""
        width, removed = self.width(group, option), base.removed
        block = self.heads.get(group)
        if block is not None:
            removed = removed | {block} if width == 0 else removed - {block}
        widths = base.widths.copy()
        widths[group] = width or self.options[group][0]
        return Network(widths, removed)
