"""The memetic part: around the best spread points of the front, a surrogate says which neighbours to evaluate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from secateurs.search.hamp.archive import Archive, dominates
from secateurs.search.hamp.encoding import Encoding
from secateurs.search.hamp.operators import neighbours
from secateurs.search.hamp.surrogate import Model

Evaluate = Callable[[np.ndarray], np.ndarray]
"""Genomes [n, genes] to objectives [n, objectives]: for real, offered to the archive, counted. Fewer than asked come
back where the budget ends."""


@dataclass(frozen=True)
class Local:
    """``starts``: points of the front that are improved; ``neighbours``: looked at around each at a time; ``hops``:
    how often the surrogate moves on before a real evaluation, halved after a failure; ``tried``: evaluated for real at
    a time; ``failures``: in a row after which a start is left; ``optimism``: standard deviations taken off a
    predicted error; ``most``: real evaluations per start.
    """

    starts: int = 5
    neighbours: int = 200
    hops: int = 8
    tried: int = 2
    failures: int = 3
    optimism: float = 0.5
    most: int = 6


@dataclass(frozen=True)
class Climber:
    """Local search on one archive. ``model`` ranks neighbours; without one they are drawn at random. ``known`` says
    whether a genome was evaluated already; ``evaluate``: see :data:`Evaluate`."""

    encoding: Encoding
    archive: Archive
    model: Model | None
    evaluate: Evaluate
    known: Callable[[np.ndarray], bool]
    generator: np.random.Generator
    settings: Local

    def improve(self) -> int:
        """Improve the front where points contribute most; how often a point was replaced by one that dominates it."""
        starts = np.argsort(-self.archive.contributions(), kind="stable")[: self.settings.starts]
        places = [(self.archive.genes[i].copy(), self.archive.objectives[i].copy()) for i in starts]
        return sum(self._climb(genome, objectives) for genome, objectives in places)

    def _climb(self, genome: np.ndarray, objectives: np.ndarray) -> int:
        failures = spent = moved = 0
        while failures < self.settings.failures and spent < self.settings.most:
            weights = self._direction(objectives)
            chosen = self._promising(genome, weights, max(1, self.settings.hops >> failures))
            found = self.evaluate(chosen) if len(chosen) else np.empty((0, len(objectives)))
            if not len(found):
                break
            spent += len(found)
            better = [i for i in range(len(found)) if dominates(found[i], objectives)]
            entered = any(bool(np.any(np.all(self.archive.genes == row, axis=1))) for row in chosen[: len(found)])
            if better:
                best = min(better, key=lambda i: self._distance(found[i : i + 1], weights)[0])
                genome, objectives, moved = chosen[best], found[best], moved + 1
            failures = 0 if better or entered else failures + 1
        return moved

    def _direction(self, objectives: np.ndarray) -> np.ndarray:
        """Weights whose Tchebycheff distance falls towards the middle of a gap beside the point, or straight ahead of
        it: from the ideal through the wanted place."""
        scale = self.archive.scale()
        wanted = scale.scale(objectives)
        if len(self.archive) > 2 and self.generator.random() < 0.5:
            gaps = scale.scale(self.archive.objectives) - wanted
            distance = np.where(np.all(gaps == 0, axis=1), np.inf, np.abs(gaps).sum(axis=1))
            sides = [np.where(side, distance, np.inf) for side in (gaps[:, 0] < 0, gaps[:, 0] > 0)]
            nearest = [int(np.argmin(side)) for side in sides if np.isfinite(side).any()]
            if nearest:
                wanted = wanted + gaps[max(nearest, key=lambda index: distance[index])] / 2
        return 1.0 / np.maximum(wanted, 0.02)

    def _promising(self, genome: np.ndarray, weights: np.ndarray, hops: int) -> np.ndarray:
        """Unknown genomes near ``genome`` to evaluate, best first; where there are any within the limits, of those."""
        if self.model is None:
            around = self._unknown(neighbours(self.encoding, genome, self.settings.neighbours, self.generator))
            return around[self.generator.permutation(len(around))[: self.settings.tried]]
        seen, distances, here = [], [], np.inf
        for _ in range(hops):
            around = self._unknown(neighbours(self.encoding, genome, self.settings.neighbours, self.generator))
            if not len(around):
                break
            guessed = self._distance(self._guess(self.model, around), weights)
            seen.append(around)
            distances.append(guessed)
            best = int(np.argmin(guessed))
            if guessed[best] >= here:
                break
            genome, here = around[best], guessed[best]
        if not seen:
            return np.empty((0, len(genome)), dtype=np.int64)
        order = np.argsort(np.concatenate(distances), kind="stable")
        ranked = np.concatenate(seen)[order[: 4 * self.settings.tried]]
        _, first = np.unique(ranked, axis=0, return_index=True)
        return ranked[np.sort(first)[: self.settings.tried]]

    def _unknown(self, around: np.ndarray) -> np.ndarray:
        around = around[np.array([not self.known(row) for row in around], dtype=bool)]
        limits = self.encoding.problem.limits
        fits = np.all(self.encoding.costs(around) <= limits * (1 + 1e-9), axis=1)
        return around[fits] if fits.any() else around

    def _guess(self, model: Model, genes: np.ndarray) -> np.ndarray:
        mean, deviation = model.predict(self.encoding.features(genes))
        return np.column_stack([mean - self.settings.optimism * deviation, self.encoding.costs(genes)])

    def _distance(self, objectives: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Augmented Tchebycheff distance [n] to the archive's ideal."""
        weighted = self.archive.scale().scale(objectives) * weights
        return np.asarray(weighted.max(axis=1) + 0.05 * weighted.sum(axis=1))
