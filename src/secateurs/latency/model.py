"""Profiles a network on a target: the way to a :class:`LatencyModel`."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import numpy as np

from secateurs.errors import TargetError
from secateurs.latency.collect import VERSION, Collector, Observation, Variants
from secateurs.latency.design import Sample, dense, space_filling
from secateurs.latency.fitting import fit
from secateurs.latency.predictor import LatencyModel, ModelError
from secateurs.latency.store import Store
from secateurs.latency.targets._base import Target
from secateurs.network import NetworkSpec
from secateurs.progress import Progress, Task, silent

__all__ = ["LatencyModel", "ModelError", "Profiler", "Propose", "profile"]

Propose = Callable[[LatencyModel, int], Sequence[tuple[np.ndarray, Collection[int]]]]
"""Plans (widths, removed blocks) that a solver returns by this model, others for every number; for speed never many."""

_CHUNK = 24
_FIRST, _ROUNDS, _MORE = 3, 8, 12
"""Portions before the first look at the error, looks at most, and networks added where the model is unsure."""
_GOOD_MEAN, _GOOD_P95 = 0.018, 0.045
_DOUBTFUL, _REFUSED = 0.05, 0.12
_PROFILE = "profile/2/"


class Profiler:
    """Measures variants of one network and fits the latency model; keeps what it measured, so that plans can be added.

    ``seconds``: how long :meth:`run` took when it measured.

    Args:
        spec: the network.
        variants: builds its files (``secateurs.export.variants.OnnxVariants``).
        target: runtime on a device.
        threads: of the runtime.
        store: where rows are kept (None: nowhere).
        seed: of the widths to measure.
        progress: where to report.
        propose: plans of the kind that will be asked for; measured too, because a solver goes where the model errs.
    """

    def __init__(
        self,
        spec: NetworkSpec,
        variants: Variants,
        target: Target,
        *,
        threads: int = 1,
        store: Store | None = None,
        seed: int = 0,
        progress: Progress = silent,
        propose: Propose | None = None,
    ) -> None:
        self._propose, self._plans = propose, list[tuple[float, float]]()
        self.seconds = 0.0
        self._spec, self._seed, self._store, self._progress = spec, seed, store, progress
        self._collector = Collector(spec, variants, target, threads=threads, store=store, progress=progress)
        self._batch = variants.batch
        self._observations: dict[Sample, Observation] = {}

    def forget(self) -> int:
        """Remove what earlier profiles of this network on this target left in the store; returns how many rows."""
        if self._store is None:
            return 0
        network, print_ = f"{self._spec.fingerprint}/b{self._batch}/", self._collector.fingerprint
        kinds = (f"variant/{VERSION}/", f"whole/{VERSION}/", _PROFILE)
        return sum(self._store.forget(print_, kind + network) for kind in kinds)

    def chunk(self, number: int) -> list[Sample]:
        """The ``number``-th portion of the design; always the same for one seed."""
        rng = np.random.default_rng([self._seed, number])
        samples = space_filling(self._spec, _CHUNK, rng)
        return [dense(self._spec), *samples] if number == 0 else samples

    def measure(self, samples: Sequence[Sample], name: str = "profile") -> list[Observation]:
        """Observations of these samples, from now on part of :meth:`fit`."""
        with self._progress.task(name, len(samples)) as task:
            return self._observe(samples, task)

    def _observe(self, samples: Sequence[Sample], task: Task) -> list[Observation]:
        measured = self._collector.measure(samples, task)
        self._observations.update(zip(samples, measured, strict=True))
        return measured

    def add_plans(self, plans: Sequence[tuple[np.ndarray, Collection[int]]]) -> LatencyModel:
        """The model re-fitted with the plans ``(widths, removed blocks)`` that a solver returned."""
        self.measure(_samples(plans), "plans")
        return self.fit()

    def fit(self) -> LatencyModel:
        """The latency model through everything measured so far."""
        rows = list(self._observations.values())
        fingerprint = self._collector.fingerprint
        model = fit(
            self._spec, self._collector.sites.sites, rows, target=fingerprint, batch=self._batch, seed=self._seed
        )
        return replace(model, error=replace(model.error, plans=tuple(self._plans)))

    def run(self, samples: int | None = None, seconds: float = 75.0) -> LatencyModel:
        """The latency model, from as many samples as it needs.

        Args:
            samples: measure this many networks (None: until the error is good or the time is over).
            seconds: nothing further is begun when it would end after this time.

        Raises:
            TargetError: its error on unseen networks is too large to be of use.
        """
        if samples is not None:
            portions = [self.chunk(number) for number in range(-(-samples // _CHUNK))]
            self.measure([sample for portion in portions for sample in portion][: samples + 1])
            return self._judged(self.fit())
        signature = f"{_PROFILE}{self._spec.fingerprint}/b{self._batch}/seed{self._seed}/v{_CHUNK}"
        signature += "/plans" if self._propose else ""
        earlier = self._store.get(self._collector.fingerprint, signature) if self._store else None
        # Rows of older versions held less.
        if earlier is not None and {"seconds", "plans", "samples"} <= earlier.keys():
            self.seconds = float(earlier["seconds"])
            self._plans = [(float(predicted), float(measured)) for predicted, measured in earlier["plans"]]
            self.measure([Sample(tuple(widths), frozenset(gone)) for widths, gone in earlier["samples"]])
            return self._judged(self.fit())
        start = time.monotonic()
        model = self._adapted(seconds)
        self.seconds = time.monotonic() - start
        if self._store is not None:
            kept = [(sample.widths, sorted(sample.removed)) for sample in self._observations]
            self._store.put(
                self._collector.fingerprint,
                {signature: {"samples": kept, "plans": self._plans, "seconds": self.seconds}},
            )
        return self._judged(model)

    def _adapted(self, seconds: float) -> LatencyModel:
        """The model through portions of the design, then through what it turned out to need."""
        start, steps = time.monotonic(), 0

        def late() -> bool:
            return steps > 0 and (time.monotonic() - start) * (steps + 1) / steps > seconds

        with self._progress.task("profile", _FIRST * _CHUNK + 1) as task:
            while steps < _FIRST and not late():
                self._observe(self.chunk(steps), task)
                steps += 1
        model = self.fit()
        for number in range(_ROUNDS):
            steps = _FIRST + number
            unsure = model.error.mean_abs > _GOOD_MEAN or model.error.p95 > _GOOD_P95
            if late() or (self._propose is None and not unsure):
                break
            wrong = self._try_plans(model, number)
            if unsure:
                self.measure(self.unsure_of(model, number), "profile further")
            # also where the plans were as predicted: from the store a model is fitted through all that was measured
            model = self.fit()
            if not wrong and not unsure:
                break
        return model

    def _try_plans(self, model: LatencyModel, number: int) -> bool:
        """Measure plans that a solver returns by ``model``; whether it erred on them."""
        plans = [] if self._propose is None else list(self._propose(model, number))
        if not plans:
            return False
        predicted = np.array([model.predict(widths, gone) for widths, gone in plans])
        seen = self.measure(_samples(plans), "profile plans")
        measured = model.measured_ms([entry.total_ms for entry in seen], [entry.anchor_ms for entry in seen])
        self._plans += zip(predicted.tolist(), measured.tolist(), strict=True)
        error = ModelError.of(predicted, measured)
        return error.mean_abs > _GOOD_MEAN or error.p95 > _GOOD_P95

    def unsure_of(self, model: LatencyModel, number: int) -> list[Sample]:
        """Of samples of the design not measured yet those whose predictions are the least sure, relative to latency."""
        rng = np.random.default_rng([self._seed, 1000 + number])
        drawn = dict.fromkeys(space_filling(self._spec, 4 * _MORE, rng))
        fresh = [sample for sample in drawn if sample not in self._observations]
        doubts = [
            model.uncertainty(sample.array(), sample.removed) / model.predict(sample.array(), sample.removed)
            for sample in fresh
        ]
        return [fresh[index] for index in np.argsort(doubts)[::-1][:_MORE]]

    def _judged(self, model: LatencyModel) -> LatencyModel:
        error = model.error
        if error.mean_abs > _REFUSED:
            raise TargetError(
                f"The latency model of this network on {model.target.get('target')} is off by {error.mean_abs:.0%} on "
                f"unseen networks (limit {_REFUSED:.0%}; {error}). Most often other programs disturb the "
                f"measurement: close them, then measure anew with 'secateurs profile … --again'."
            )
        if error.mean_abs > _DOUBTFUL:
            self._progress.say(
                f"The latency model is doubtful: {error}. Budgets are still held by measurement. If other programs ran "
                f"beside it, 'secateurs profile … --again' measures anew."
            )
        return model


def profile(
    spec: NetworkSpec,
    variants: Variants,
    target: Target,
    *,
    threads: int = 1,
    store: Store | None = None,
    seed: int = 0,
    progress: Progress = silent,
    samples: int | None = None,
    propose: Propose | None = None,
    again: bool = False,
) -> LatencyModel:
    """The latency model of a network on a target, measured in whole-network runs at many widths.

    Args:
        spec: the network.
        variants: builds its files (``secateurs.export.variants.OnnxVariants``), which also fixes the batch size.
        target: runtime on a device.
        threads: of the runtime.
        store: where rows are kept and found again (None: nowhere).
        seed: of the widths to measure.
        progress: where to report.
        samples: how many networks to measure (None: until the error is good).
        propose: plans of the kind that will be asked for, to be measured too.
        again: forget what earlier profiles of this network on this target measured.

    Raises:
        TargetError: the runtime failed, or the model's error is too large to be of use.
    """
    profiler = Profiler(
        spec, variants, target, threads=threads, store=store, seed=seed, progress=progress, propose=propose
    )
    if again:
        profiler.forget()
    return profiler.run(samples)


def _samples(plans: Sequence[tuple[np.ndarray, Collection[int]]]) -> list[Sample]:
    return [Sample(tuple(np.asarray(widths).tolist()), frozenset(gone)) for widths, gone in plans]
