"""From measured networks to a latency model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.optimize import nnls

from secateurs.errors import TargetError
from secateurs.latency.collect import Observation
from secateurs.latency.predictor import LatencyModel, ModelError, SiteCost
from secateurs.latency.regression import Curve, basis
from secateurs.latency.sites import Site
from secateurs.network import NetworkSpec

_FOLDS = 3
_RIDGE = 0.02
_TOTALS_RIDGE = 1e-4
_FEWEST_IN_BLOCK, _BLOCK_TOLERANCE = 5, 0.035


@dataclass(frozen=True)
class Table:
    """Observations as arrays: widths [n, groups], totals [n] (drift removed), times and operators [n, sites].

    ``block`` [n] tells which networks were measured together.
    """

    widths: np.ndarray
    removed: tuple[frozenset[int], ...]
    total_ms: np.ndarray
    site_ms: np.ndarray
    site_ops: np.ndarray
    block: np.ndarray
    dense_ms: float
    noise: float

    @classmethod
    def of(cls, observations: Sequence[Observation]) -> Table:
        """Every time scaled to the dense network's typical latency, so that clock drift between blocks cancels."""
        anchors = np.array([entry.anchor_ms for entry in observations])
        dense_ms = float(np.median(anchors))
        drift = dense_ms / anchors
        return cls(
            widths=np.array([entry.widths for entry in observations], dtype=np.int64),
            removed=tuple(frozenset(entry.removed) for entry in observations),
            total_ms=np.array([entry.total_ms for entry in observations]) * drift,
            site_ms=np.array([entry.site_ms for entry in observations], dtype=np.float64) * drift[:, None],
            site_ops=np.array([entry.site_ops for entry in observations], dtype=np.float64),
            block=np.unique(anchors, return_inverse=True)[1].ravel(),
            dense_ms=dense_ms,
            noise=float(np.median(np.abs(drift - 1))),
        )

    def subset(self, rows: np.ndarray) -> Table:
        """Only these rows."""
        return Table(
            widths=self.widths[rows],
            removed=tuple(self.removed[row] for row in rows),
            total_ms=self.total_ms[rows],
            site_ms=self.site_ms[rows],
            site_ops=self.site_ops[rows],
            block=self.block[rows],
            dense_ms=self.dense_ms,
            noise=self.noise,
        )

    def scaled(self, factors: np.ndarray) -> Table:
        """Every time multiplied by its block's factor [blocks]."""
        own = factors[self.block]
        return replace(self, total_ms=self.total_ms * own, site_ms=self.site_ms * own[:, None])


@dataclass(frozen=True)
class Fit:
    """Fitted parts of a latency model."""

    base_ms: float
    sites: tuple[SiteCost, ...]
    curves: tuple[Curve, ...]

    def model(
        self, spec: NetworkSpec, table: Table, error: ModelError, target: Mapping[str, Any], batch: int
    ) -> LatencyModel:
        """The latency model."""
        return LatencyModel(
            network=spec.fingerprint,
            groups=tuple(group.name for group in spec.groups),
            dense_widths=tuple(spec.dense_widths.tolist()),
            dense_ms=table.dense_ms,
            error=error,
            target=dict(target),
            batch=batch,
            base_ms=self.base_ms,
            sites=self.sites,
            curves=self.curves,
            noise=table.noise,
        )


def fit(
    spec: NetworkSpec,
    sites: Sequence[Site],
    observations: Sequence[Observation],
    *,
    target: Mapping[str, Any],
    batch: int,
    seed: int = 0,
) -> LatencyModel:
    """The latency model through the observations, with its error from cross-validation.

    Raises:
        TargetError: too few observations.
    """
    if len(observations) < 2 * _FOLDS:
        raise TargetError(
            f"{len(observations)} measured networks are too few for a latency model. Measure at least {2 * _FOLDS}."
        )
    table = Table.of(observations)
    order = np.random.default_rng(seed).permutation(len(table.total_ms))
    predicted, measured = np.zeros(len(order)), np.zeros(len(order))
    for fold in range(_FOLDS):
        held = order[fold::_FOLDS]
        seen = table.subset(np.setdiff1d(order, held))
        factors = _block_factors(sites, seen, int(table.block.max()) + 1, seed)
        predicted[held] = _predict(_fit(sites, seen.scaled(factors), seed), table.subset(held))
        measured[held] = table.scaled(factors).total_ms[held]
    error = ModelError.of(predicted, measured)
    table = table.scaled(_block_factors(sites, table, int(table.block.max()) + 1, seed))
    return _fit(sites, table, seed).model(spec, table, error, target, batch)


def _block_factors(sites: Sequence[Site], table: Table, blocks: int, seed: int) -> np.ndarray:
    """Factor [blocks] that brings the times of a block to the level of the others.

    The dense network's own time tells a block's drift, but one disturbed measurement of it would spoil the block; a
    dozen networks tell it better. Small deviations are left alone: they are the rough model's own.
    """
    rough = _predict(_fit(sites, table, seed, trees=False), table)
    factors = np.ones(blocks)
    for block in range(blocks):
        rows = table.block == block
        if rows.sum() >= _FEWEST_IN_BLOCK:
            factor = float(np.median(rough[rows] / table.total_ms[rows]))
            if abs(factor - 1) > _BLOCK_TOLERANCE:
                factors[block] = factor
    return factors


def _fit(sites: Sequence[Site], table: Table, seed: int, *, trees: bool = True) -> Fit:
    """Clean the profile's overhead away, learn one curve per signature, calibrate their sum on whole runs."""
    if table.site_ms.shape[1] == 0:
        return _fit_totals(sites, table)
    base_ms, per_ms, per_op = _overhead(table)
    ms = per_ms * table.site_ms + per_op * table.site_ops
    kinds = {signature: index for index, signature in enumerate(dict.fromkeys(site.signature for site in sites))}
    gone = _gone(sites, table.removed)
    curves = tuple(_curve(sites, kind, ms, gone, table.widths, seed, trees) for kind in kinds)
    costs = []
    for index, site in enumerate(sites):
        left = np.maximum(ms[gone[:, index], index], 0)
        costs.append(SiteCost(site, kinds[site.signature], 1.0, float(left.mean()) if len(left) else 0.0))
    return _calibrated(Fit(base_ms, tuple(costs), curves), table)


def _fit_totals(sites: Sequence[Site], table: Table) -> Fit:
    """Curves from whole-network latencies alone, for runtimes without a profiler.

    One non-negative regression on the staircase functions of all sites at once, summed over sites that do the same
    work; a little ridge keeps functions that go up together from trading places.
    """
    kinds = {signature: index for index, signature in enumerate(dict.fromkeys(site.signature for site in sites))}
    gone = _gone(sites, table.removed)
    blocks: list[np.ndarray] = [np.zeros((0, 0))] * len(kinds)
    for index, site in enumerate(sites):
        columns = np.where(gone[:, index, None], 0.0, basis(*_lengths(site, table.widths)))
        held = blocks[kinds[site.signature]]
        blocks[kinds[site.signature]] = columns if held.size == 0 else held + columns
    width = blocks[0].shape[1]
    matrix = np.concatenate([*blocks, np.ones((len(table.total_ms), 1))], axis=1) / table.total_ms[:, None]
    scale = np.maximum(matrix.max(axis=0), 1e-12)
    ridge = np.sqrt(_TOTALS_RIDGE) * np.eye(matrix.shape[1])
    wanted = np.concatenate([np.ones(len(matrix)), np.zeros(matrix.shape[1])])
    solution, _ = nnls(np.concatenate([matrix / scale, ridge]), wanted, maxiter=20 * matrix.shape[1])
    weights = solution / scale
    curves = tuple(Curve(weights[start * width : (start + 1) * width]) for start in range(len(kinds)))
    costs = tuple(SiteCost(site, kinds[site.signature]) for site in sites)
    return Fit(float(weights[-1]), costs, curves)


def _overhead(table: Table) -> tuple[float, float, float]:
    """``(a, b, c)`` with total ≈ a + b · profiled time + c · operators.

    A profiler adds a little to every operator, and whole runs cost a little more than their operators.
    """
    columns = np.stack([np.ones(len(table.total_ms)), table.site_ms.sum(1), table.site_ops.sum(1)], axis=1)
    weights = 1 / table.total_ms
    solution: np.ndarray = np.zeros(3)
    for _ in range(4):
        solution, *_ = np.linalg.lstsq(columns * weights[:, None], table.total_ms * weights, rcond=None)
        error = np.abs(columns @ solution / table.total_ms - 1)
        # Disturbed profiles must not bend the line.
        weights = 1 / table.total_ms / np.maximum(1, error / (2 * np.median(error) + 1e-9))
    return float(solution[0]), float(solution[1]), float(solution[2])


def _gone(sites: Sequence[Site], removed: Sequence[frozenset[int]]) -> np.ndarray:
    """Whether a site's block is removed, bool [n, sites]."""
    return np.array([[not blocks.isdisjoint(site.blocks) for site in sites] for blocks in removed])


def _lengths(site: Site, widths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    none = np.zeros(len(widths), dtype=np.int64)
    inputs = none if site.inputs is None else site.inputs.length(widths)
    return inputs, none if site.outputs is None else site.outputs.length(widths)


def _curve(
    sites: Sequence[Site],
    kind: tuple[str | int, ...],
    ms: np.ndarray,
    gone: np.ndarray,
    widths: np.ndarray,
    seed: int,
    trees: bool,
) -> Curve:
    inputs, outputs, times = [], [], []
    for index, site in enumerate(sites):
        if site.signature == kind:
            there = ~gone[:, index]
            first, second = _lengths(site, widths[there])
            inputs.append(first)
            outputs.append(second)
            times.append(ms[there, index])
    return Curve.fit(np.concatenate(inputs), np.concatenate(outputs), np.concatenate(times), seed, trees=trees)


def _parts(fitted: Fit, table: Table) -> tuple[np.ndarray, np.ndarray]:
    """Predicted ms per curve [n, curves], and the fixed part [n] (base, and what removed blocks leave)."""
    by_curve = np.zeros((len(table.total_ms), len(fitted.curves)))
    fixed = np.full(len(table.total_ms), fitted.base_ms)
    gone = _gone([cost.site for cost in fitted.sites], table.removed)
    for index, cost in enumerate(fitted.sites):
        first, second = _lengths(cost.site, table.widths)
        ms = cost.scale * fitted.curves[cost.curve].predict(first, second)
        by_curve[:, cost.curve] += np.where(gone[:, index], 0, ms)
        fixed += np.where(gone[:, index], cost.left_ms, 0)
    return by_curve, fixed


def _predict(fitted: Fit, table: Table) -> np.ndarray:
    by_curve, fixed = _parts(fitted, table)
    return np.asarray(by_curve.sum(axis=1) + fixed)


def _calibrated(fitted: Fit, table: Table) -> Fit:
    """Factors per curve, near 1, and a base that bring the sums to the unprofiled whole-network times."""
    by_curve, fixed = _parts(fitted, table)
    rest = fixed - fitted.base_ms
    count = len(fitted.curves)
    weights = 1 / table.total_ms
    # Ridge towards 1, weaker for the curves that make up much of the time.
    prior = np.sqrt(_RIDGE * len(weights)) * np.eye(count + 1)
    prior[count, count] = np.sqrt(_RIDGE) / max(float(np.median(table.total_ms)), 1e-9)
    for _ in range(3):
        columns = np.concatenate([by_curve, np.ones((len(weights), 1))], axis=1) * weights[:, None]
        wanted = (table.total_ms - rest) * weights
        stacked = np.concatenate([columns, prior])
        right = np.concatenate([wanted, prior @ np.append(np.ones(count), fitted.base_ms)])
        solution, *_ = np.linalg.lstsq(stacked, right, rcond=None)
        error = np.abs((by_curve @ solution[:count] + solution[count] + rest) / table.total_ms - 1)
        weights = 1 / table.total_ms / np.maximum(1, error / (2 * np.median(error) + 1e-9))
    scales = np.clip(solution[:count], 0.3, 3.0)
    costs = tuple(SiteCost(cost.site, cost.curve, float(scales[cost.curve]), cost.left_ms) for cost in fitted.sites)
    return Fit(float(solution[count]), costs, fitted.curves)
