"""A model of the error, trusted only while it ranks unseen networks well."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from scipy.stats import rankdata
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
from sklearn.linear_model import BayesianRidge

GATE = 0.7
"""Least rank correlation in cross-validation at which a surrogate is used."""
FOLDS = 5
GAUSSIAN_BELOW = 1000
"""Gaussian processes are tried on fewer points than this: their cost grows with the cube."""


class Model(Protocol):
    """A regression with an uncertainty."""

    @property
    def name(self) -> str:
        """Shown in the history."""

    def fit(self, features: np.ndarray, errors: np.ndarray) -> None:
        """Learn from features [n, features] and errors [n]."""

    def predict(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation, both [n]."""


class Quadratic:
    """Bayesian ridge on the features, their squares and nothing else: the baseline."""

    name = "quadratic"

    def fit(self, features: np.ndarray, errors: np.ndarray) -> None:
        """Learn."""
        self._model = BayesianRidge().fit(self._expand(features), errors)

    def predict(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation."""
        mean, deviation = self._model.predict(self._expand(features), return_std=True)
        return mean, deviation

    @staticmethod
    def _expand(features: np.ndarray) -> np.ndarray:
        return np.concatenate([features, features**2], axis=1)


class Boosted:
    """Gradient-boosted trees on the ranks of the errors, mapped back to errors by their order."""

    name = "boosted trees"

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def fit(self, features: np.ndarray, errors: np.ndarray) -> None:
        """Learn."""
        self._sorted = np.sort(errors)
        self._grid = np.linspace(0, 1, len(errors))
        ranks = (rankdata(errors) - 1) / max(1, len(errors) - 1)
        self._model = GradientBoostingRegressor(
            n_estimators=150, max_depth=3, learning_rate=0.08, subsample=0.8, max_features=0.5, random_state=self._seed
        ).fit(features, ranks)
        self._deviation = float(np.std(errors - self._map(self._model.predict(features))))

    def predict(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and (constant) standard deviation."""
        mean = self._map(self._model.predict(features))
        return mean, np.full(len(mean), self._deviation)

    def _map(self, ranks: np.ndarray) -> np.ndarray:
        return np.interp(ranks, self._grid, self._sorted)


class Gaussian:
    """A Gaussian process with a Matérn-5/2 kernel.

    One length scale is fitted; features are first scaled by how much a ridge regression makes of them, which stands in
    for one fitted scale per feature at a fraction of the cost (docs/methods.md, "HAMP surrogate").
    """

    name = "Gaussian process"

    def fit(self, features: np.ndarray, errors: np.ndarray) -> None:
        """Learn."""
        self._mean, spread = features.mean(axis=0), features.std(axis=0)
        self._spread = np.where(spread > 1e-9, spread, 1.0)
        standard = (features - self._mean) / self._spread
        weight = np.abs(BayesianRidge().fit(standard, errors).coef_)
        self._relevance = np.sqrt(0.1 + weight / max(1e-12, float(weight.max())))
        size = float(np.sqrt(standard.shape[1]))
        kernel = ConstantKernel(1.0, (1e-2, 1e2)) * Matern(size, (0.1 * size, 100 * size), nu=2.5)
        kernel += WhiteKernel(1e-2, (1e-6, 1.0))
        self._model = GaussianProcessRegressor(kernel, normalize_y=True, random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a length scale at its bound is no reason for a message
            self._model.fit(standard * self._relevance, errors)

    def predict(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation."""
        standard = (features - self._mean) / self._spread * self._relevance
        mean, deviation = self._model.predict(standard, return_std=True)
        return mean, deviation


@dataclass(frozen=True)
class Surrogate:
    """``model``: the fitted one that ranked best, None where the gate is shut; ``correlations``: Spearman per kind."""

    model: Model | None
    correlations: dict[str, float]

    @property
    def correlation(self) -> float:
        """The best rank correlation."""
        return max(self.correlations.values(), default=0.0)


def candidates(points: int, seed: int) -> list[Model]:
    """The models worth trying on so many points."""
    models: list[Model] = [Quadratic(), Boosted(seed)]
    return [*models, Gaussian()] if points < GAUSSIAN_BELOW else models


def train(
    features: np.ndarray, errors: np.ndarray, models: Sequence[Model], generator: np.random.Generator
) -> Surrogate:
    """The model that ranks unseen points best, if it does so well enough to be used.

    Rank quality decides, not error: the search only asks which of its neighbours to evaluate.

    Args:
        features: float64 [n, features].
        errors: float64 [n].
        models: what to try.
        generator: draws the folds.
    """
    folds = generator.permutation(len(errors)) % FOLDS
    found: dict[str, float] = {}
    for model in models:
        guesses = np.empty(len(errors))
        for fold in range(FOLDS):
            held = folds == fold
            model.fit(features[~held], errors[~held])
            guesses[held] = model.predict(features[held])[0]
        found[model.name] = _spearman(guesses, errors)
    best = max(models, key=lambda model: found[model.name], default=None)
    if best is None or found[best.name] < GATE:
        return Surrogate(None, found)
    best.fit(features, errors)
    return Surrogate(best, found)


def _spearman(one: np.ndarray, other: np.ndarray) -> float:
    if np.ptp(one) == 0 or np.ptp(other) == 0 or not np.all(np.isfinite(one)):
        return 0.0
    ranks: Any = np.corrcoef(rankdata(one), rankdata(other))
    return float(ranks[0, 1])
