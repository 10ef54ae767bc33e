"""From measured networks to a latency model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.optimize import nnls

from secateurs.errors import TargetError
from secateurs.latency.collect import Observation
from secateurs.latency.observed import Table
from secateurs.latency.predictor import LatencyModel, ModelError, SiteCost, raw_uncertainty
from secateurs.latency.regression import Curve, basis
from secateurs.latency.sites import Site
from secateurs.network import NetworkSpec

_FOLDS = 3
_RIDGE = 0.02
_LEFT_RIDGE, _MOST_LEFT = 0.01, 0.25
_USUAL_OVERHEAD, _STIFF = 0.02, 0.02
_TOTALS_RIDGE = 1e-4
_FEWEST_ALONE, _MUCH_FASTER = 2, 0.8
_FEWEST_IN_BLOCK, _BLOCK_TOLERANCE, _USUAL_DRIFT = 5, 0.035, 0.06


@dataclass(frozen=True)
class Fit:
    """Fitted parts of a latency model."""

    base_ms: float
    sites: tuple[SiteCost, ...]
    curves: tuple[Curve, ...]
    overhead: tuple[float, float, float] = (0.0, 1.0, 0.0)

    def model(
        self, spec: NetworkSpec, table: Table, judged: Judged, target: Mapping[str, Any], batch: int, drift: float
    ) -> LatencyModel:
        """The latency model."""
        return LatencyModel(
            network=spec.fingerprint,
            groups=tuple(group.name for group in spec.groups),
            dense_widths=tuple(spec.dense_widths.tolist()),
            dense_ms=table.dense_ms,
            error=judged.error,
            target=dict(target),
            batch=batch,
            base_ms=self.base_ms,
            sites=self.sites,
            curves=self.curves,
            noise=table.noise,
            spreads=tuple(judged.spreads.tolist()),
            doubt=judged.doubt,
            drift=drift,
            blocks=tuple(block.name for block in spec.blocks),
            digest=spec.digest,
        )


@dataclass(frozen=True)
class Judged:
    """What cross-validation found: the error, the relative spread of every curve [curves], and the factor ``doubt``
    that makes 68 % of the held-out errors smaller than the uncertainty made of the spreads."""

    error: ModelError
    spreads: np.ndarray
    doubt: float


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
    drift = _drift_share(sites, Table.of(observations, 0.0), observations, seed)
    table = Table.of(observations, drift)
    judged = _judged(sites, table, seed)
    table = table.scaled(_block_factors(sites, table, int(table.block.max()) + 1, seed))
    return _fit(sites, table, seed).model(spec, table, judged, target, batch, drift)


def _judged(sites: Sequence[Site], table: Table, seed: int) -> Judged:
    """Error and spreads on networks that the fit had not seen."""
    count, blocks = len(table.total_ms), int(table.block.max()) + 1
    order = np.random.default_rng(seed).permutation(count)
    curves = len({site.signature for site in sites})
    predicted, measured = np.zeros(count), np.zeros(count)
    parts, seen_parts = np.zeros((count, curves)), np.full((count, curves), np.nan)
    for fold in range(_FOLDS):
        held = order[fold::_FOLDS]
        seen = table.subset(np.setdiff1d(order, held))
        factors = _block_factors(sites, seen, blocks, seed)
        fitted = _fit(sites, seen.scaled(factors), seed)
        by_curve, fixed = _parts(fitted, table.subset(held))
        predicted[held], parts[held] = by_curve.sum(axis=1) + fixed, by_curve
        measured[held] = table.scaled(factors).total_ms[held]
        if table.site_ms.shape[1]:
            seen_parts[held] = _measured_parts(fitted, table.scaled(factors).subset(held))
    error = ModelError.of(predicted, measured)
    spreads = _spreads(parts, seen_parts, error)
    raw = raw_uncertainty(parts, predicted, spreads, table.noise)
    doubt = float(np.percentile(np.abs(predicted - measured) / raw, 68.3))
    return Judged(replace(error, sigmas=tuple((doubt * raw).tolist())), spreads, doubt)


def _spreads(parts: np.ndarray, seen: np.ndarray, error: ModelError) -> np.ndarray:
    """Relative spread [curves] of measured around predicted ms per curve; the whole run's where there is no profile."""
    known = ~np.isnan(seen)
    off = np.where(known, seen - parts, 0.0)
    size = np.sqrt(np.mean(np.where(known, parts, 0.0) ** 2, axis=0))
    found = np.sqrt(np.mean(off**2, axis=0)) / np.maximum(size, 1e-9)
    return np.where(known.any(axis=0) & (size > 0), np.clip(found, 1e-3, 1.0), max(error.mean_abs, 1e-3))


def _measured_parts(fitted: Fit, table: Table) -> np.ndarray:
    """Profiled ms per curve [n, curves], overhead taken off."""
    base_ms, per_ms, per_op = fitted.overhead
    ms = _attributed(table, base_ms, per_ms, per_op)
    gone = _gone([cost.site for cost in fitted.sites], table.removed)
    found = np.zeros((len(ms), len(fitted.curves)))
    for index, cost in enumerate(fitted.sites):
        found[:, cost.curve] += np.where(gone[:, index], 0.0, ms[:, index])
    return found


def _drift_share(sites: Sequence[Site], table: Table, observations: Sequence[Observation], seed: int) -> float:
    """How much of the variation of the dense network's latency the networks measured beside it share, 0 to 1.

    Some of it is the machine's clock, which they share; some is that one loading of a file places it better in memory
    than another, which they do not.
    """
    rough = _predict(_fit(sites, table, seed, trees=False), table)
    own = np.log(np.array([entry.anchor_ms for entry in observations]) / table.dense_ms)
    others = np.log(table.total_ms / rough)
    usual = (np.abs(own) < _USUAL_DRIFT) & (np.abs(others) < 4 * np.median(np.abs(others)) + 1e-9)
    power = float((own[usual] ** 2).sum())
    return float(np.clip((own[usual] * others[usual]).sum() / power, 0.0, 1.0)) if power > 0 else 1.0


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
    ms = _attributed(table, base_ms, per_ms, per_op)
    kinds = {signature: index for index, signature in enumerate(dict.fromkeys(site.signature for site in sites))}
    gone, alone = _gone(sites, table.removed), _alone(sites, table.removed)
    curves = tuple(_curve(sites, kind, ms, gone | alone, table.widths, seed, trees) for kind in kinds)
    costs = []
    for index, site in enumerate(sites):
        left = np.maximum(ms[gone[:, index], index], 0)
        curve = kinds[site.signature]
        share = _share_alone(site, curves[curve], ms[alone[:, index], index], table.widths[alone[:, index]])
        costs.append(SiteCost(site, curve, 1.0, float(left.mean()) if len(left) else 0.0, share))
    return _calibrated(Fit(base_ms, tuple(costs), curves, (base_ms, per_ms, per_op)), table)


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
    profiled = table.site_ms.sum(axis=1)
    ratios = table.total_ms / np.maximum(profiled, 1e-9)
    for block in np.unique(table.block):
        # All profiles of a block may have been disturbed alike.
        rows = table.block == block
        profiled = np.where(rows, profiled * np.median(ratios[rows]) / np.median(ratios), profiled)
    columns = np.stack([np.ones(len(profiled)), profiled, table.site_ops.sum(axis=1)], axis=1)
    # A run as a whole costs some hundredths more than its operators; a profiler may take a fifth of small ones.
    size = _USUAL_OVERHEAD * float(np.median(table.total_ms))
    stiffness = np.array([1 / size, 0.0, 0.1 * float(np.median(columns[:, 2])) / size])
    solution = _robust(columns, table.total_ms, table.total_ms, np.diag(_STIFF * stiffness), np.array([0.0, 1.0, 0.0]))
    return float(solution[0]), float(solution[1]), float(solution[2])


def _attributed(table: Table, base_ms: float, per_ms: float, per_op: float) -> np.ndarray:
    """Times [n, sites] that add up to the whole run.

    A profile is taken apart from the unprofiled runs, and whatever slowed it slowed all its operators alike, often by
    a third for seconds. So only the operators' shares are taken from it.
    """
    ms = per_ms * table.site_ms + per_op * table.site_ops
    factor = (table.total_ms - base_ms) / np.maximum(ms.sum(axis=1), 1e-9)
    return np.asarray(ms * np.clip(factor, 0.3, 3.0)[:, None])


def _gone(sites: Sequence[Site], removed: Sequence[frozenset[int]]) -> np.ndarray:
    """Whether a site's block is removed, bool [n, sites]."""
    return np.array([[not blocks.isdisjoint(site.blocks) for site in sites] for blocks in removed])


def _alone(sites: Sequence[Site], removed: Sequence[frozenset[int]]) -> np.ndarray:
    """Whether a site is there and all blocks that follow it are removed, bool [n, sites]."""
    rows = []
    for blocks in removed:
        rows.append([_there_alone(site, blocks) for site in sites])
    return np.array(rows)


def _there_alone(site: Site, removed: frozenset[int]) -> bool:
    return bool(site.followers) and removed.issuperset(site.followers) and removed.isdisjoint(site.blocks)


def _share_alone(site: Site, curve: Curve, ms: np.ndarray, widths: np.ndarray) -> float:
    """What part of its usual time a site takes when all blocks that follow it are removed."""
    if len(ms) < _FEWEST_ALONE:
        return 1.0
    share = float(np.median(ms / np.maximum(curve.predict(*_lengths(site, widths)), 1e-9)))
    return share if share < _MUCH_FASTER else 1.0


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
    own = [cost.site for cost in fitted.sites]
    gone, alone = _gone(own, table.removed), _alone(own, table.removed)
    for index, cost in enumerate(fitted.sites):
        first, second = _lengths(cost.site, table.widths)
        ms = cost.scale * fitted.curves[cost.curve].predict(first, second) * np.where(alone[:, index], cost.alone, 1.0)
        by_curve[:, cost.curve] += np.where(gone[:, index], 0, ms)
        fixed += np.where(gone[:, index], cost.left_ms, 0)
    return by_curve, fixed


def _predict(fitted: Fit, table: Table) -> np.ndarray:
    by_curve, fixed = _parts(fitted, table)
    return np.asarray(by_curve.sum(axis=1) + fixed)


def _calibrated(fitted: Fit, table: Table) -> Fit:
    """Corrections that bring the sums to the unprofiled whole-network times.

    Per curve a factor near 1, and what a removed site leaves: less than nothing where the others run faster without
    it, in caches that hold more of what they need.
    """
    by_curve, fixed = _parts(fitted, table)
    count = len(fitted.curves)
    absent = np.zeros_like(by_curve)
    gone = _gone([cost.site for cost in fitted.sites], table.removed)
    for index, cost in enumerate(fitted.sites):
        absent[:, cost.curve] += gone[:, index]
    varying = np.flatnonzero(absent.any(axis=0))
    columns = np.concatenate([by_curve, np.ones((len(fixed), 1)), absent[:, varying]], axis=1)
    rest = fixed - fitted.base_ms
    typical = max(float(np.median(table.total_ms)), 1e-9)
    # Ridge towards no correction; what a site leaves may move by a share of what such a site takes.
    size = by_curve.sum(axis=0)[varying] / np.maximum((len(gone) * _sites_of(fitted) - absent.sum(axis=0))[varying], 1)
    stiffness = np.concatenate(
        [
            np.full(count, np.sqrt(_RIDGE * len(fixed))),
            [np.sqrt(_RIDGE) / typical],
            np.sqrt(_LEFT_RIDGE) / np.maximum(size, 1e-6),
        ]
    )
    start = np.concatenate([np.ones(count), [fitted.base_ms], np.zeros(len(varying))])
    solution = _robust(columns, table.total_ms - rest, table.total_ms, np.diag(stiffness), start)
    scales = np.clip(solution[:count], 0.3, 3.0)
    left = np.zeros(count)
    left[varying] = np.clip(solution[count + 1 :], -_MOST_LEFT * size, _MOST_LEFT * size)
    costs = tuple(
        replace(cost, scale=float(scales[cost.curve]), left_ms=cost.left_ms + float(left[cost.curve]))
        for cost in fitted.sites
    )
    return replace(fitted, base_ms=float(solution[count]), sites=costs)


def _sites_of(fitted: Fit) -> np.ndarray:
    return np.bincount([cost.curve for cost in fitted.sites], minlength=len(fitted.curves))


def _robust(
    columns: np.ndarray, wanted: np.ndarray, total_ms: np.ndarray, prior: np.ndarray, start: np.ndarray
) -> np.ndarray:
    """Coefficients near ``start`` with ``columns @ coefficients`` ≈ ``wanted``, errors relative to ``total_ms``."""
    weights = 1 / total_ms
    solution = start
    for _ in range(4):
        stacked = np.concatenate([columns * weights[:, None], prior])
        solution, *_ = np.linalg.lstsq(stacked, np.concatenate([wanted * weights, prior @ start]), rcond=None)
        error = np.abs((columns @ solution - wanted) / total_ms)
        # Disturbed measurements must not bend the fit.
        weights = 1 / total_ms / np.maximum(1, error / (2 * np.median(error) + 1e-9))
    return np.asarray(solution)
