"""Strategy ``front``: the best network of a stored front that fits; nothing is searched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from secateurs.cost import quantity
from secateurs.errors import InfeasibleBudgetError, PlanError, why
from secateurs.files import read_json, read_text
from secateurs.progress import Progress, silent
from secateurs.search.problem import Candidate, Problem, Solution, Strategy

FILE = "front.json"


@dataclass(frozen=True)
class FrontNetwork:
    """One point of a front: units kept by group name, names of removed blocks, error before fine-tuning, its number."""

    widths: Mapping[str, int]
    removed: tuple[str, ...]
    error: float
    number: int = 0


@dataclass(frozen=True)
class FromFront(Strategy):
    """Card. Method: of the networks that a search left behind, the one of least error within the limits. Cost: none.
    When to use: ``secateurs front --pick`` does, to carry a chosen point through repair, fine-tuning and measurement.
    ``point``: a person chose this number; it is the only network then, whatever the limits.
    """

    networks: tuple[FrontNetwork, ...]
    name: str = "front"
    criterion: str | None = None
    searches: bool = False
    point: int | None = None
    picked: str | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.point is not None:
            object.__setattr__(self, "picked", f"point {self.point} of the front")

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
            raw = read_json(read_text(path, own=True))
            networks = tuple(
                FrontNetwork(p["widths"], tuple(p["removed"]), float(p["error"]), int(p["number"]))
                for p in raw["points"]
            )
            point = raw.get("picked")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise PlanError(
                f"{path} holds no front ({why(error)}). Make one with 'secateurs front MODEL --data DATA -o RUN', then "
                f"pick from it with 'secateurs front --resume -o RUN --pick knee'."
            ) from error
        return cls(tuple(n for n in networks if point in (None, n.number)), point=point)

    def solve(self, problem: Problem, *, seed: int = 0, progress: Progress = silent) -> Solution:
        """The network of least error within the limits, or the picked one.

        Raises:
            InfeasibleBudgetError: none of the front's networks is.
            PlanError: the front belongs to another network.
        """
        blocks = {block.name: index for index, block in enumerate(problem.spec.blocks)}
        names = [group.name for group in problem.spec.groups]
        found: list[tuple[float, float, int, Candidate]] = []
        nearest = (np.inf, "")
        for network in self.networks:
            if set(network.widths) != set(names) or not set(network.removed) <= set(blocks):
                raise PlanError("The front belongs to another network: its groups differ. Make the front again.")
            widths = np.array([network.widths[name] for name in names], dtype=np.int64)
            candidate = problem.candidate(widths, {blocks[name] for name in network.removed}, 1.0 - network.error)
            over = max((_times(candidate.predicted[c.name], c.limit) for c in problem.constraints), default=0.0)
            nearest = min(nearest, (over, f"point {network.number} takes {_costs(problem, candidate)}"))
            if self.picked or over <= 1 + 1e-9:
                found.append((network.error, sum(candidate.predicted.values()), len(found), candidate))
        if not found:
            # "conflict" tells the job that no smaller network is to be tried: one outside the front was never judged.
            raise InfeasibleBudgetError(
                f"No network of the front is within the budget: by the models {nearest[1]}, {nearest[0]:.1%} of "
                f"what it may take when measured. Pick a point by its number, or raise the budget.",
                {"conflict": True},
            )
        best = min(found, key=lambda entry: entry[:3])[-1]
        return Solution(best.widths, best.removed, best.value, best.predicted, None, 0.0, (best,))


def _times(cost: float, limit: float) -> float:
    """How many limits a cost is."""
    return cost / limit if limit > 0 else float("inf") if cost > limit else 1.0


def _costs(problem: Problem, candidate: Candidate) -> str:
    return ", ".join(quantity(candidate.predicted[c.name], c.model.unit) for c in problem.constraints)
