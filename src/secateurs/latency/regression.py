"""Time of one operator from its channel counts: a non-negative staircase, corrected by small boosted trees."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.optimize import nnls

GRAINS = (4, 8, 16, 32)
_TREES, _DEPTH, _RATE, _LEAF = 60, 3, 0.12, 4
_ENOUGH_FOR_TREES = 24
_MOST_ROWS, _SHOWN = 2500, 80
_FLOOR_MS = 1e-4
_ROWS = 256
"""Predicted at a time, so that the tables of all trees stay small."""


def _up(length: np.ndarray, grain: int) -> np.ndarray:
    return -(-length // grain) * grain


def _axis_basis(length: np.ndarray) -> np.ndarray:
    """Staircase functions of one channel count [n, k]: constant, linear, steps, and extra where not aligned."""
    columns = [np.ones(len(length)), length.astype(float)]
    columns += [_up(length, grain).astype(float) for grain in (8, 16)]
    columns += [length * (length % grain != 0) for grain in (4, 16)]
    return np.stack(columns, axis=1)


def basis(inputs: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """Products of both axes' staircases [n, k*k]."""
    return (_axis_basis(inputs)[:, :, None] * _axis_basis(outputs)[:, None, :]).reshape(len(inputs), -1)


def _features(inputs: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """What the trees see [n, f]."""
    columns: list[np.ndarray] = []
    for length in (inputs, outputs):
        columns.append(length)
        columns += [_up(length, grain) for grain in (16, 32)]
        columns += [length % grain == 0 for grain in GRAINS]
    both = [(inputs % grain == 0) & (outputs % grain == 0) for grain in (4, 16)]
    return np.stack([*columns, inputs * outputs, *both], axis=1).astype(np.float32)


@dataclass(frozen=True)
class Forest:
    """Boosted regression trees as arrays [trees, nodes]; plain numbers, so that they can be written as JSON."""

    base: float
    feature: np.ndarray
    threshold: np.ndarray
    left: np.ndarray
    right: np.ndarray
    value: np.ndarray

    @classmethod
    def fit(cls, features: np.ndarray, wanted: np.ndarray, weights: np.ndarray, seed: int) -> Forest:
        """Trees that predict ``wanted`` [n] from ``features`` [n, f]."""
        from sklearn.ensemble import GradientBoostingRegressor

        model = GradientBoostingRegressor(
            n_estimators=_TREES,
            max_depth=_DEPTH,
            learning_rate=_RATE,
            min_samples_leaf=_LEAF,
            subsample=0.8,
            random_state=seed,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit(features, wanted, sample_weight=weights)
        size = 2 ** (_DEPTH + 1)
        arrays = {name: np.zeros((_TREES, size)) for name in ("feature", "threshold", "left", "right", "value")}
        for index, estimator in enumerate(model.estimators_[:, 0]):
            tree = estimator.tree_
            count = tree.node_count
            leaf = tree.children_left < 0
            own = np.arange(count)
            # A leaf points to itself, so that every row can take the same number of steps.
            arrays["feature"][index, :count] = np.where(leaf, 0, tree.feature)
            arrays["threshold"][index, :count] = tree.threshold
            arrays["left"][index, :count] = np.where(leaf, own, tree.children_left)
            arrays["right"][index, :count] = np.where(leaf, own, tree.children_right)
            arrays["value"][index, :count] = _RATE * tree.value[:, 0, 0]
        return cls(
            base=float(model.init_.constant_[0][0]),
            feature=arrays["feature"].astype(np.int64),
            threshold=arrays["threshold"],
            left=arrays["left"].astype(np.int64),
            right=arrays["right"].astype(np.int64),
            value=arrays["value"],
        )

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Prediction [n] for features [n, f]."""
        blocks = [self._block(features[start : start + _ROWS]) for start in range(0, len(features), _ROWS)]
        return np.concatenate(blocks) if blocks else np.zeros(0)

    def _block(self, features: np.ndarray) -> np.ndarray:
        """All trees take a step at a time; their values are added one after the other, as they were fitted."""
        trees, size = self.feature.shape
        rows, roots = np.arange(len(features)), size * np.arange(trees)[:, None]
        node = np.broadcast_to(roots, (trees, len(features)))
        for _ in range(_DEPTH):
            lower = features[rows, self.feature.take(node)] <= self.threshold.take(node)
            node = roots + np.where(lower, self.left.take(node), self.right.take(node))
        values = np.concatenate([np.full((1, len(features)), self.base), self.value.take(node)])
        return np.asarray(np.add.accumulate(values)[-1])

    def to_raw(self) -> dict[str, Any]:
        """Plain lists for JSON."""
        used = int(max(self.left.max(), self.right.max())) + 1
        arrays = {key: getattr(self, key)[:, :used] for key in ("feature", "threshold", "left", "right", "value")}
        return {"base": self.base, **{key: array.tolist() for key, array in arrays.items()}}

    @classmethod
    def from_raw(cls, raw: dict[str, Any]) -> Forest:
        """Read :meth:`to_raw`'s result."""
        whole = {key: np.array(raw[key], dtype=np.int64) for key in ("feature", "left", "right")}
        real = {key: np.array(raw[key], dtype=np.float64) for key in ("threshold", "value")}
        return cls(base=float(raw["base"]), **whole, **real)


@dataclass(frozen=True)
class Curve:
    """Time in ms of one kind of operator as a function of its input and output channel counts."""

    weights: np.ndarray
    """Non-negative coefficients of the staircase basis."""
    forest: Forest | None = field(default=None)
    """Correction of the logarithm."""
    points: np.ndarray = field(default_factory=lambda: np.zeros((0, 3)))
    """Some of the measured (input channels, output channels, ms) [k, 3], to be drawn."""

    @classmethod
    def fit(
        cls, inputs: np.ndarray, outputs: np.ndarray, ms: np.ndarray, seed: int = 0, *, trees: bool = True
    ) -> Curve:
        """The curve through measured points [n]; without ``trees`` the staircase alone, which is much quicker."""
        if len(ms) > _MOST_ROWS:
            chosen = np.random.default_rng(seed).choice(len(ms), _MOST_ROWS, replace=False)
            inputs, outputs, ms = inputs[chosen], outputs[chosen], ms[chosen]
        ms = np.maximum(ms, _FLOOR_MS)
        shown = np.random.default_rng(seed).permutation(len(ms))[:_SHOWN]
        points = np.round(np.stack([inputs, outputs, ms], axis=1)[shown], 6)
        columns = basis(inputs, outputs)
        # Between relative and absolute error: small networks matter, but so do the large operators.
        importance = 1.0 / np.sqrt(ms * (ms + np.median(ms)))
        scale = np.maximum(columns.max(axis=0), 1e-12)
        solution, _ = nnls(columns / scale * importance[:, None], ms * importance, maxiter=50 * columns.shape[1])
        weights = solution / scale
        rough = np.maximum(columns @ weights, _FLOOR_MS)
        if not trees or len(ms) < _ENOUGH_FOR_TREES:
            return cls(weights, points=points)
        wanted = np.clip(np.log(ms / rough), -1.5, 1.5)
        return cls(weights, Forest.fit(_features(inputs, outputs), wanted, ms * importance, seed), points)

    def predict(self, inputs: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        """Times [...] for channel counts that broadcast together; equal pairs are computed once."""
        inputs, outputs = np.broadcast_arrays(np.asarray(inputs, dtype=np.int64), np.asarray(outputs, dtype=np.int64))
        shape = inputs.shape
        span = int(outputs.max(initial=0)) + 1
        codes, back = np.unique(inputs.ravel() * span + outputs.ravel(), return_inverse=True)
        first, second = codes // span, codes % span
        times = np.maximum(basis(first, second) @ self.weights, _FLOOR_MS)
        if self.forest is not None:
            times = times * np.exp(self.forest.predict(_features(first, second)))
        return np.asarray(times[back.ravel()].reshape(shape))

    def to_raw(self) -> dict[str, Any]:
        """Plain lists for JSON."""
        return {
            "weights": self.weights.tolist(),
            "forest": self.forest.to_raw() if self.forest else None,
            "points": self.points.tolist(),
        }

    @classmethod
    def from_raw(cls, raw: dict[str, Any]) -> Curve:
        """Read :meth:`to_raw`'s result."""
        forest = Forest.from_raw(raw["forest"]) if raw["forest"] else None
        points = np.array(raw.get("points", []), dtype=np.float64).reshape(-1, 3)
        return cls(np.array(raw["weights"], dtype=np.float64), forest, points)
