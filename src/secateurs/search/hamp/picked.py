"""Strategy ``front``: the best network of a stored front that fits; nothing is searched."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from secateurs.errors import PlanError
from secateurs.progress import Progress, silent
from secateurs.search.problem import Candidate, Problem, Solution
from secateurs.search.reach import infeasible

FILE = "front.json"


@dataclass(frozen=True)
class Network:
    """One point of a front: units kept by group name, names of removed blocks, error before fine-tuning."""

    widths: Mapping[str, int]
    removed: tuple[str, ...]
    error: float


@dataclass(frozen=True)
class FromFront:
    """Card. Method: of the networks that a search left behind, the one of least error within the limits. Cost: none.
    When to use: ``secateurs front --pick`` does, to carry a chosen point through repair, fine-tuning and measurement.
    """

    networks: tuple[Network, ...]
    name: str = "front"
    criterion: str | None = None

    @classmethod
    def tuned(cls, options: Mapping[str, Any], folder: Path | None) -> FromFront:
        """The front in ``folder``'s front.json.

        Raises:
            PlanError: there is none, or options were given.
        """
        if options:
            raise PlanError(f"Strategy 'front' searches nothing, so it takes no {', '.join(sorted(options))}.")
        path = Path(FILE) if folder is None else folder / FILE
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            networks = tuple(Network(p["widths"], tuple(p["removed"]), float(p["error"])) for p in raw["points"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PlanError(
                f"{path} holds no front ({error}). Make one with 'secateurs front MODEL --data DATA -o RUN', then pick "
                f"from it with 'secateurs front --resume -o RUN --pick knee'."
            ) from error
        return cls(networks)

    def solve(self, problem: Problem, *, seed: int = 0, progress: Progress = silent) -> Solution:
        """The network of least error within the limits.

        Raises:
            InfeasibleBudgetError: none of the front's networks is.
            PlanError: the front belongs to another network.
        """
        blocks = {block.name: index for index, block in enumerate(problem.spec.blocks)}
        names = [group.name for group in problem.spec.groups]
        found: list[tuple[float, float, int, Candidate]] = []
        for network in self.networks:
            if set(network.widths) != set(names) or not set(network.removed) <= set(blocks):
                raise PlanError("The front belongs to another network: its groups differ. Make the front again.")
            widths = np.array([network.widths[name] for name in names], dtype=np.int64)
            candidate = problem.candidate(widths, {blocks[name] for name in network.removed}, 1.0 - network.error)
            if all(candidate.predicted[c.name] <= c.limit * (1 + 1e-9) for c in problem.constraints):
                found.append((network.error, sum(candidate.predicted.values()), len(found), candidate))
        if not found:
            raise infeasible(problem)
        best = min(found, key=lambda entry: entry[:3])[-1]
        return Solution(best.widths, best.removed, best.value, best.predicted, None, 0.0, (best,))
