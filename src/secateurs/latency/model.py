"""Profiles a network on a target: the way to a :class:`LatencyModel`."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence

import numpy as np

from secateurs.errors import TargetError
from secateurs.latency.collect import Collector, Observation, Variants
from secateurs.latency.design import Sample, dense, space_filling
from secateurs.latency.fitting import fit
from secateurs.latency.predictor import LatencyModel, ModelError
from secateurs.latency.store import Store
from secateurs.latency.targets._base import Target
from secateurs.network import NetworkSpec
from secateurs.progress import Progress, Task, silent

__all__ = ["LatencyModel", "ModelError", "Profiler", "profile"]

_CHUNK = 24
_FIRST, _STEP, _MOST = 4, 2, 10
"""Portions before the first look at the error, between two looks, and at most."""
_GOOD_MEAN, _GOOD_P95 = 0.018, 0.045
_DOUBTFUL, _REFUSED = 0.05, 0.12


class Profiler:
    """Measures variants of one network and fits the latency model; keeps what it measured, so that plans can be added.

    Args:
        spec: the network.
        variants: builds its files (``secateurs.export.OnnxVariants``).
        target: runtime on a device.
        threads: of the runtime.
        store: where rows are kept (None: nowhere).
        seed: of the widths to measure.
        progress: where to report.
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
    ) -> None:
        self._spec, self._seed, self._store, self._progress = spec, seed, store, progress
        self._collector = Collector(spec, variants, target, threads=threads, store=store, progress=progress)
        self._batch = variants.batch
        self._observations: dict[Sample, Observation] = {}

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
        self.measure([Sample(tuple(np.asarray(widths).tolist()), frozenset(gone)) for widths, gone in plans], "plans")
        return self.fit()

    def fit(self) -> LatencyModel:
        """The latency model through everything measured so far."""
        rows = list(self._observations.values())
        fingerprint = self._collector.fingerprint
        return fit(
            self._spec, self._collector.sites.sites, rows, target=fingerprint, batch=self._batch, seed=self._seed
        )

    def run(self, samples: int | None = None, seconds: float = 75.0) -> LatencyModel:
        """The latency model, from as many samples as it needs.

        Args:
            samples: measure this many networks (None: until the error is good, the time is over, or 240).
            seconds: no further portion is begun after this time.

        Raises:
            TargetError: its error on unseen networks is too large to be of use.
        """
        if samples is not None:
            portions = [self.chunk(number) for number in range(-(-samples // _CHUNK))]
            self.measure([sample for portion in portions for sample in portion][: samples + 1])
            return self._judged(self.fit())
        signature = f"profile/{self._spec.fingerprint}/b{self._batch}/seed{self._seed}/v{_CHUNK}"
        earlier = self._store.get(self._collector.fingerprint, signature) if self._store else None
        number = 0
        if earlier is not None:
            number = int(earlier["portions"])
            self.measure([sample for portion in range(number) for sample in self.chunk(portion)])
        model = self.fit() if earlier is not None else None
        start, wanted = time.monotonic(), _FIRST
        while model is None:
            with self._progress.task(
                "profile" if number == 0 else "profile further", (wanted - number) * _CHUNK
            ) as task:
                late = False
                while number < wanted and not late:
                    self._observe(self.chunk(number), task)
                    number += 1
                    late = time.monotonic() - start > seconds * number / (number + 1)
            candidate = self.fit()
            good = candidate.error.mean_abs <= _GOOD_MEAN and candidate.error.p95 <= _GOOD_P95
            if good or late or number >= _MOST:
                model = candidate
            wanted = number + _STEP
        if self._store is not None:
            self._store.put(self._collector.fingerprint, {signature: {"portions": number}})
        return self._judged(model)

    def _judged(self, model: LatencyModel) -> LatencyModel:
        error = model.error
        if error.mean_abs > _REFUSED:
            raise TargetError(
                f"The latency model of this network on {model.target.get('target')} is off by {error.mean_abs:.0%} on "
                f"unseen networks (limit {_REFUSED:.0%}; {error}). Most often other programs disturb the "
                f"measurement: close them and profile again with another --store."
            )
        if error.mean_abs > _DOUBTFUL:
            self._progress.say(f"The latency model is doubtful: {error}. Budgets are still held by measurement.")
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
) -> LatencyModel:
    """The latency model of a network on a target, measured in whole-network runs at many widths.

    Args:
        spec: the network.
        variants: builds its files (``secateurs.export.OnnxVariants``), which also fixes the batch size.
        target: runtime on a device.
        threads: of the runtime.
        store: where rows are kept and found again (None: nowhere).
        seed: of the widths to measure.
        progress: where to report.
        samples: how many networks to measure (None: until the error is good).

    Raises:
        TargetError: the runtime failed, or the model's error is too large to be of use.
    """
    profiler = Profiler(spec, variants, target, threads=threads, store=store, seed=seed, progress=progress)
    return profiler.run(samples)
