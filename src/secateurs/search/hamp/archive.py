"""Points that were truly evaluated and that no other one dominates, and the hypervolume they cover."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pymoo.indicators.hv import HV

REFERENCE = 1.1
"""Corner of the hypervolume, in units of the box."""


@dataclass(frozen=True)
class Box:
    """Fixed scale of the objectives for a whole search: ``ideal`` maps to 0, ``nadir`` to 1, float64 [objectives]."""

    ideal: np.ndarray
    nadir: np.ndarray

    def scale(self, objectives: np.ndarray) -> np.ndarray:
        """Objectives [..., objectives] in units of the box."""
        span = self.nadir - self.ideal
        return (np.asarray(objectives) - self.ideal) / np.where(span > 0, span, 1.0)

    def hypervolume(self, objectives: np.ndarray) -> float:
        """What points [n, objectives] cover below :data:`REFERENCE`; fixed scale, so more points never cover less."""
        scaled = self.scale(objectives).reshape(-1, len(self.ideal))
        scaled = scaled[np.all(scaled < REFERENCE, axis=1)]
        if not len(scaled):
            return 0.0
        return float(HV(ref_point=np.full(len(self.ideal), REFERENCE))(scaled))


def dominates(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether objectives ``one`` are nowhere worse and somewhere better than ``other``."""
    return bool(np.all(one <= other) and np.any(one < other))


class Archive:
    """Mutually non-dominated feasible points. Of points with equal objectives the first one stays.

    ``genes`` int64 [n, genes] and ``objectives`` float64 [n, objectives] are in order of entry.
    """

    def __init__(self, box: Box, gene_count: int) -> None:
        self.box = box
        self.genes = np.empty((0, gene_count), dtype=np.int64)
        self.objectives = np.empty((0, len(box.ideal)))

    def __len__(self) -> int:
        return len(self.genes)

    @property
    def hypervolume(self) -> float:
        """Covered by the archive, in units of its box."""
        return self.box.hypervolume(self.objectives)

    def add(self, genome: np.ndarray, objectives: np.ndarray) -> float | None:
        """Offer an evaluated point: the hypervolume that it adds (0 or more), or None where it is not accepted."""
        held = self.objectives
        if len(held) and bool(np.any(np.all(held <= objectives, axis=1))):
            return None
        before = self.hypervolume
        stays = ~np.all(objectives <= held, axis=1)
        self.genes = np.concatenate([self.genes[stays], np.asarray(genome)[None]])
        self.objectives = np.concatenate([held[stays], np.asarray(objectives)[None]])
        return max(0.0, self.hypervolume - before)

    def scale(self) -> Box:
        """The archive's own ideal and nadir: what selections and directions are scaled by."""
        if not len(self):
            return self.box
        return Box(self.objectives.min(axis=0), self.objectives.max(axis=0))

    def contributions(self) -> np.ndarray:
        """Hypervolume that only this point covers, in units of the archive's own scale, float64 [n]."""
        scale = self.scale()
        whole = scale.hypervolume(self.objectives)
        return np.array(
            [whole - scale.hypervolume(np.delete(self.objectives, index, axis=0)) for index in range(len(self))]
        )
