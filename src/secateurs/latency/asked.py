"""Which network a prediction is asked for: widths as numbers or by name, or a plan."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from secateurs.errors import PlanMismatchError, TargetError
from secateurs.plan import Plan

Network = Plan | np.ndarray | Sequence[int] | Mapping[str, int]
"""A plan, widths [groups] or [n, groups], or widths by group name (groups that are not named keep all units)."""
_NEW = "Profile the network that the plan was made for ('secateurs profile')."


@dataclass(frozen=True)
class Known:
    """The network that a latency model knows. ``blocks``: names of the removable ones; ``digest``: of its names and
    shapes, as plans hold it (empty: not known)."""

    groups: tuple[str, ...]
    widths: tuple[int, ...]
    blocks: tuple[str, ...]
    digest: str

    def read(self, network: Network, removed: Collection[int] = ()) -> tuple[np.ndarray, Collection[int]]:
        """Widths [..., groups] and the numbers of removed blocks.

        Raises:
            TargetError: the widths do not fit this network, or a plan decides what the model does not know.
            PlanMismatchError: the plan belongs to another network.
        """
        if isinstance(network, Plan):
            if removed:
                raise TargetError("A plan says itself which blocks go: leave removed= out.")
            return self._of_plan(network)
        if isinstance(network, Mapping):
            network = self._by_name(network)
        table = np.asarray(network, dtype=np.int64)
        if table.shape[-1:] != (len(self.groups),):
            raise TargetError(
                f"The latency model knows {len(self.groups)} groups, the widths have shape {table.shape}. "
                f"Profile this network first ('secateurs profile')."
            )
        wrong = (table < 0) | (table > np.array(self.widths, dtype=np.int64))
        if wrong.any():
            place = tuple(int(index) for index in np.argwhere(wrong)[0])
            name, units = self.groups[place[-1]], self.widths[place[-1]]
            raise TargetError(
                f"Group {name} has {units} units, so its width cannot be {table[place]}. Give 0 to {units}."
            )
        return table, removed

    def _by_name(self, widths: Mapping[str, int]) -> list[int]:
        unknown = [name for name in widths if name not in self.groups]
        if unknown:
            raise TargetError(
                f"The latency model knows no group {unknown[0]!r}; its groups are {_listed(self.groups)}. "
                f"Profile the graph whose widths these are."
            )
        return [int(widths.get(name, full)) for name, full in zip(self.groups, self.widths, strict=True)]

    def _of_plan(self, plan: Plan) -> tuple[np.ndarray, frozenset[int]]:
        self._check(plan)
        if plan.elements:
            raise TargetError(
                f"The plan prunes kernel elements of {len(plan.elements)} layers too, and this model knows widths "
                f"only. Measure it: secateurs compare MODEL PLAN."
            )
        removed = frozenset(self.blocks.index(name) for name in plan.blocks_removed)
        kept = {name: max(1, len(units)) for name, units in plan.groups.items()}
        return np.array(self._by_name(kept), dtype=np.int64), removed

    def _check(self, plan: Plan) -> None:
        """Raises PlanMismatchError where the plan belongs to another network."""
        ours = dict(zip(self.groups, self.widths, strict=True))
        for name, units in plan.group_sizes.items():
            if ours.get(name) != units:
                there = f"has {ours[name]} units" if name in ours else f"is not among {_listed(self.groups)}"
                raise PlanMismatchError(
                    f"The plan was made for another network than the latency model: it has group {name} of {units} "
                    f"units, which here {there}. {_NEW}"
                )
        for name in plan.blocks_removed:
            if name not in self.blocks:
                raise PlanMismatchError(
                    f"The plan removes block {name}, which the latency model does not know; its removable blocks are "
                    f"{_listed(self.blocks)}. {_NEW}"
                )
        if self.digest and plan.fingerprint.digest != self.digest:
            raise PlanMismatchError(
                f"The plan was made for another network than the latency model: the groups have the same names, but "
                f"other layers or shapes differ. {_NEW}"
            )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return f"{', '.join(names[:4])}{more}" if names else "none"
