"""The latency of a network as a function of its widths: a sum of operator costs, calibrated on whole runs."""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from secateurs.cost import CostModel, CostTerm
from secateurs.errors import TargetError, why
from secateurs.files import read_json
from secateurs.latency.asked import Known, Network
from secateurs.latency.cycle_curve import CycleCurve
from secateurs.latency.regression import Curve
from secateurs.latency.sites import Site
from secateurs.network import AxisSpec

SCHEMA = "secateurs.latency-model/1"


@dataclass(frozen=True)
class ModelError:
    """Error on networks that the model had not seen, as fractions: mean absolute, 95th percentile, mean signed.

    ``pairs``: (predicted, measured) ms of those networks; ``plans``: the same of plans that a solver returned, each
    predicted before it was measured, where the model errs most in the solver's favour; ``sigmas``: the uncertainty of
    ``pairs`` in ms.
    """

    mean_abs: float
    p95: float
    signed: float
    spearman: float
    count: int
    pairs: tuple[tuple[float, float], ...] = ()
    plans: tuple[tuple[float, float], ...] = ()
    sigmas: tuple[float, ...] = ()

    @classmethod
    def of(cls, predicted: np.ndarray, measured: np.ndarray) -> ModelError:
        """Errors of predictions [n] of measured latencies [n]."""
        from scipy.stats import spearmanr

        relative = predicted / measured - 1
        rank = float(spearmanr(predicted, measured).statistic) if len(measured) > 2 else 1.0
        return cls(
            mean_abs=float(np.abs(relative).mean()),
            p95=float(np.percentile(np.abs(relative), 95)),
            signed=float(relative.mean()),
            spearman=rank,
            count=len(measured),
            pairs=tuple(zip(predicted.tolist(), measured.tolist(), strict=True)),
        )

    def __str__(self) -> str:
        return (
            f"mean {self.mean_abs:.1%}, 95th percentile {self.p95:.1%}, signed {self.signed:+.1%}, "
            f"rank correlation {self.spearman:.3f} on {self.count} unseen networks"
        )


@dataclass(frozen=True)
class SiteCost:
    """Cost of one site: ``scale`` × curve number ``curve`` of its channel counts.

    ``left_ms``: what remains of it when its block is removed (an activation that can no longer be fused; less than
    nothing where the others run faster without it); ``alone``: part of its cost that remains when all blocks that
    follow it are removed.
    """

    site: Site
    curve: int
    scale: float = 1.0
    left_ms: float = 0.0
    alone: float = 1.0


@dataclass(frozen=True)
class LatencyModel:
    """Predicts the latency of a network at any widths on one target.

    ``groups``: names of the groups in the order of the widths; ``dense_ms``: measured; ``error``: on unseen
    networks; ``target``: fingerprint; ``gain``: correction by measured plans; ``noise``: how far two measurements of
    the same network differ, as a fraction; ``spreads``: of measured around predicted time per curve, as a fraction;
    ``doubt``: factor that makes them agree with the held-out errors; ``drift``: share of the dense network's variation
    from one measurement to another that other networks show too; ``blocks``: names of the removable ones; ``digest``:
    of the network's names and shapes, as plans hold it (empty: not known).
    """

    network: str
    groups: tuple[str, ...]
    dense_widths: tuple[int, ...]
    dense_ms: float
    error: ModelError
    target: dict[str, Any]
    batch: int
    base_ms: float
    sites: tuple[SiteCost, ...]
    curves: tuple[Curve | CycleCurve, ...]
    gain: float = 1.0
    noise: float = 0.01
    spreads: tuple[float, ...] = ()
    doubt: float = 1.0
    drift: float = 1.0
    blocks: tuple[str, ...] = ()
    digest: str = ""

    @property
    def offset_ms(self) -> float:
        """Cost that no width changes."""
        return self.fixed_ms + self.gain * sum(entry.left_ms for entry in self.sites)

    @property
    def fixed_ms(self) -> float:
        """Cost that belongs to no site."""
        return self.gain * self.base_ms

    def terms(self) -> tuple[CostTerm, ...]:
        """The costs that widths change, in ms; ``offset_ms`` comes on top."""
        return tuple(term for entry in self.sites for term in self._terms_of(entry))

    def _terms_of(self, entry: SiteCost) -> list[CostTerm]:
        site, curve, scale = entry.site, self.curves[entry.curve], self.gain * entry.scale

        def term(factor: float, left_ms: float, blocks: tuple[int, ...]) -> CostTerm:
            cost = _cost(curve, factor * scale, left_ms)
            return CostTerm(site.name, site.inputs, site.outputs, cost, (*site.blocks, *blocks))

        terms = [term(entry.alone, self.gain * entry.left_ms, ())]
        if entry.alone < 1:
            # Terms vanish with any of their blocks, this part only with all of them: inclusion and exclusion.
            for size in range(1, len(site.followers) + 1):
                sign = 1 if size % 2 else -1
                chosen = itertools.combinations(site.followers, size)
                terms += [term(sign * (1 - entry.alone), 0.0, blocks) for blocks in chosen]
        return terms

    def _read(self, network: Network, removed: Collection[int]) -> tuple[np.ndarray, set[int]]:
        table, gone = Known(self.groups, self.dense_widths, self.blocks, self.digest).read(network, removed)
        return table, set(gone)

    def by_site(self, widths: Network, removed: Collection[int] = ()) -> np.ndarray:
        """Predicted ms per site [..., sites] at widths [..., groups]; with ``fixed_ms`` they add up to :meth:`predict`.

        A removed site has what it leaves.
        """
        table, gone = self._read(widths, removed)
        models = [CostModel("ms", self.gain * entry.left_ms, tuple(self._terms_of(entry))) for entry in self.sites]
        return np.stack([model.evaluate(table, gone) for model in models], axis=-1)

    def cost_model(self) -> CostModel:
        """The same as a :class:`CostModel` in ms."""
        return CostModel("ms", self.offset_ms, self.terms())

    def predict(self, widths: Network, removed: Collection[int] = ()) -> Any:
        """Latency in ms: a float for one network, an array [n] for widths [n, groups].

        Args:
            widths: [groups] or [n, groups] in the order of ``groups``, or by group name (groups that are not named keep
                all units), or a :class:`~secateurs.Plan`.
            removed: numbers of the blocks that go; a plan says it itself.

        Raises:
            TargetError: the widths do not fit the network of this model, or the plan prunes kernel elements.
            PlanMismatchError: the plan belongs to another network.
        """
        table, gone = self._read(widths, removed)
        total = np.asarray(self.cost_model().evaluate(table, gone))
        return float(total) if table.ndim == 1 else total

    def uncertainty(self, widths: Network, removed: Collection[int] = ()) -> Any:
        """One standard deviation of the prediction in ms; shapes as in :meth:`predict`.

        About two in three networks that the model has not seen lie within one of it, 95 % within about two.
        """
        table, gone = self._read(widths, removed)
        parts = np.zeros((*table.shape[:-1], max(len(self.curves), 1)))
        for entry, ms in zip(self.sites, np.moveaxis(self.by_site(table, gone), -1, 0), strict=True):
            parts[..., entry.curve] += ms
        total = np.asarray(self.predict(table, gone))
        spreads = np.array(self.spreads) if self.spreads else np.full(parts.shape[-1], self.error.mean_abs)
        sigma = self.doubt * raw_uncertainty(parts, total, spreads, self.noise)
        return float(sigma) if table.ndim == 1 else sigma

    def measured_ms(self, total_ms: Sequence[float], anchor_ms: Sequence[float]) -> np.ndarray:
        """Latencies [n] measured together, each beside the dense network, at the machine's pace of the profile."""
        pace = float(np.median(anchor_ms))
        return np.asarray(total_ms) * (self.dense_ms / pace) * (pace / np.asarray(anchor_ms)) ** self.drift

    def site_ms(self, widths: np.ndarray) -> dict[str, float]:
        """Predicted ms per site at one vector of widths [groups], costliest first."""
        parts: dict[str, float] = {}
        for entry, ms in zip(self.sites, self.by_site(widths).tolist(), strict=True):
            parts[entry.site.name] = parts.get(entry.site.name, 0.0) + ms
        return dict(sorted(parts.items(), key=lambda item: -item[1]))

    def calibrate(self, measured: Sequence[tuple[np.ndarray, Collection[int], float]]) -> LatencyModel:
        """This model corrected by measured plans ``(widths, removed blocks, ms)``.

        The plans that a solver returns sit where the model errs in the solver's favour; one common factor corrects
        that, closest plans counting most.
        """
        if not measured:
            return self
        logs = [np.log(ms / self.predict(widths, removed)) for widths, removed, ms in measured]
        # The last plans lie nearest to the one that is wanted.
        weights = 0.7 ** np.arange(len(logs))[::-1]
        return replace(self, gain=self.gain * float(np.exp(np.average(logs, weights=weights))))

    def to_json(self) -> str:
        """Text that :meth:`from_json` reads."""
        raw = {
            "schema": SCHEMA,
            "network": self.network,
            "groups": self.groups,
            "dense_widths": self.dense_widths,
            "dense_ms": self.dense_ms,
            "error": asdict(self.error),
            "target": self.target,
            "batch": self.batch,
            "base_ms": self.base_ms,
            "gain": self.gain,
            "noise": self.noise,
            "spreads": self.spreads,
            "doubt": self.doubt,
            "drift": self.drift,
            "blocks": self.blocks,
            "digest": self.digest,
            "sites": [asdict(entry) for entry in self.sites],
            "curves": [curve.to_raw() for curve in self.curves],
        }
        return json.dumps(raw)

    @classmethod
    def from_json(cls, text: str) -> LatencyModel:
        """Read what :meth:`to_json` wrote.

        Raises:
            TargetError: it is not such a text.
        """
        try:
            raw = read_json(text)
            if raw.pop("schema") != SCHEMA:
                raise ValueError("another schema")
            error = raw["error"]
            for name in ("pairs", "plans"):
                error[name] = tuple((float(predicted), float(measured)) for predicted, measured in error.get(name, ()))
            raw["error"] = ModelError(**{**error, "sigmas": tuple(error.get("sigmas", ()))})
            raw["spreads"] = tuple(raw.get("spreads", ()))
            raw["sites"] = tuple(_read_site(entry) for entry in raw["sites"])
            raw["curves"] = tuple(_read_curve(curve) for curve in raw["curves"])
            for name in ("groups", "dense_widths", "blocks"):
                raw[name] = tuple(raw.get(name, ()))
            return cls(**raw)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise TargetError(
                f"This is not a latency model of this version ({why(error)}). Make it again with 'secateurs profile'."
            ) from error


def raw_uncertainty(parts: np.ndarray, total: np.ndarray, spreads: np.ndarray, noise: float) -> np.ndarray:
    """Spread [...] in ms of predictions ``total`` [...] made of ``parts`` [..., curves]: operators that share a curve
    err together, curves on their own, and measurements by ``noise`` (a fraction)."""
    return np.asarray(np.sqrt(((parts * spreads) ** 2).sum(axis=-1) + (max(noise, 1e-3) * total) ** 2))


def _cost(curve: Curve | CycleCurve, scale: float, left_ms: float) -> Any:
    def cost(inputs: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        return scale * curve.predict(inputs, outputs) - left_ms

    return cost


def _read_curve(raw: dict[str, Any]) -> Curve | CycleCurve:
    return CycleCurve.from_raw(raw) if "cycles" in raw else Curve.from_raw(raw)


def _read_axis(raw: dict[str, Any] | None) -> AxisSpec | None:
    if raw is None:
        return None
    return AxisSpec(raw["fixed"], tuple((int(group), int(per_unit)) for group, per_unit in raw["parts"]))


def _read_site(raw: dict[str, Any]) -> SiteCost:
    site = raw["site"]
    return SiteCost(
        site=Site(
            name=site["name"],
            inputs=_read_axis(site["inputs"]),
            outputs=_read_axis(site["outputs"]),
            blocks=tuple(site["blocks"]),
            signature=tuple(site["signature"]),
            followers=tuple(site.get("followers", ())),
        ),
        curve=raw["curve"],
        scale=raw["scale"],
        left_ms=raw["left_ms"],
        alone=raw.get("alone", 1.0),
    )
