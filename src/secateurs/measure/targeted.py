"""One target among those of a run: what budgets hold there, what is measured there, and how well that is predicted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from secateurs.budgets import Budget, Limited
from secateurs.measure.bench import Bench
from secateurs.measure.profile import profile
from secateurs.provenance import target_label
from secateurs.report.record import ModelError, Point

if TYPE_CHECKING:
    from secateurs.latency.model import LatencyModel
    from secateurs.latency.store import Store
    from secateurs.structure import Graph


@dataclass(frozen=True)
class Targeted:
    """A target of a run.

    ``name``: how limits on it are called, "" where there is no other; ``budgets``: that hold there; ``bench``: measures
    there; ``dense_bytes``: of the dense network's file; ``float_ratio``: the dense network's latency in float / in the
    target's precision.
    """

    name: str
    budgets: tuple[Budget, ...]
    bench: Bench
    dense_bytes: float
    float_ratio: float = 1.0

    @cached_property
    def label(self) -> str:
        """``onnxruntime-cpu, 1 thread``."""
        return target_label(self.bench.target.fingerprint(self.bench.threads))

    @property
    def latency(self) -> str:
        """Name of the limit on the latency there."""
        return str(Limited("latency", self.name))

    def ratios(self, dense: Mapping[str, float]) -> dict[str, float]:
        """The budgets as ratios to what the dense network takes; both by the limits' names."""
        return {one.name: one.ratio(dense[one.name], self.float_ratio) for one in self.budgets}

    def model(self, graph: Graph, store: Store) -> LatencyModel:
        """The latency model of a network there.

        Raises:
            TargetError: the runtime failed, or the machine is too disturbed to measure.
        """
        bench = self.bench
        return profile(
            graph,
            bench.target,
            threads=bench.threads,
            batch=bench.batch,
            store=store,
            seed=bench.seed,
            progress=bench.progress,
        )


@dataclass(frozen=True, kw_only=True)
class Modelled:
    """What a latency model says of a plan, of the networks that were measured on the way to it, and how well."""

    predicted_ms: float
    points: tuple[Point, ...]
    latency_model: ModelError

    @classmethod
    def of(cls, costs: LatencyModel, dense_ms: float, seen: Sequence[tuple[float, float]], final: int) -> Modelled:
        """From the latency model and the plans of the closed loop.

        Args:
            costs: the latency model; networks that it was not fitted on come first among the points.
            dense_ms: what it says of the dense network.
            seen: every plan's predicted and measured latency, as ratios to dense.
            final: which of them was accepted.
        """
        found = [Point(kind="held-out", predicted_ms=one, measured_ms=other) for one, other in costs.error.pairs]
        for number, (predicted, measured) in enumerate(seen):
            kind = "final" if number == final else "candidate"
            found.append(Point(kind=kind, predicted_ms=predicted * dense_ms, measured_ms=measured * dense_ms))
        return cls(predicted_ms=seen[final][0] * dense_ms, points=tuple(found), latency_model=model_error(costs))


def model_error(costs: LatencyModel) -> ModelError:
    """The latency model's error as the record names it."""
    error = costs.error
    return ModelError(mean_abs=error.mean_abs, p95=error.p95, spearman=error.spearman, networks=error.count)


def unsure(models: Mapping[str, LatencyModel]) -> list[str]:
    """What to say of latency models, by the targets' names, that err by more than 5 % on average."""
    return [
        f"The latency model{f' of {name}' if name else ''} is off by {costs.error.mean_abs:.1%} on average, so the "
        f"choice may not be the best; the budget is measured and holds. Profile again on a quieter machine."
        for name, costs in models.items()
        if costs.error.mean_abs > 0.05
    ]
