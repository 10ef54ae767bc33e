"""Measures many variants of one network in one worker process, going round-robin over blocks of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from secateurs.files import Scratch
from secateurs.latency.design import Sample, dense
from secateurs.latency.lock import measuring
from secateurs.latency.process import Worker, WorkerLostError
from secateurs.latency.sites import SiteMap
from secateurs.latency.store import Store
from secateurs.latency.targets._base import Target, lower_half
from secateurs.latency.turns import WARM_RUNS, TurnCounts, clean_profile, round_robin
from secateurs.network import NetworkSpec, OperatorSpec
from secateurs.progress import Progress, Task, silent

_BLOCK_BYTES = 400 << 20
_BLOCK_SIZE = 12
_PROFILED = TurnCounts(rounds=3, needed=2, most=6)
"""Of a profile only the operators' shares count."""
VERSION = 6
"""Part of every stored signature: rises when what is measured changes."""


class Variants(Protocol):
    """Builds the network's file at any widths (``secateurs.export.variants.OnnxVariants``)."""

    batch: int
    dense_bytes: bytes
    operators: tuple[OperatorSpec, ...]

    def build(
        self, widths: np.ndarray, removed: frozenset[int] = frozenset(), rng: np.random.Generator | None = None
    ) -> bytes: ...


@dataclass(frozen=True)
class Observation:
    """One measured network.

    ``total_ms``: unprofiled latency; ``site_ms``: profiled time per site (empty: no profiler); ``site_ops``:
    operators per site; ``loose_ms``: profiled time that belongs to no site; ``anchor_ms``: the dense network's
    latency in the same block of variants, which tells the drift of the machine's clock.
    """

    widths: tuple[int, ...]
    removed: tuple[int, ...]
    total_ms: float
    anchor_ms: float
    site_ms: tuple[float, ...] = ()
    site_ops: tuple[int, ...] = ()
    loose_ms: float = 0.0

    @classmethod
    def from_payload(cls, raw: dict[str, Any]) -> Observation:
        """Read what the store kept.

        Raises:
            ValueError, KeyError, TypeError: it is no such row; rows can come from other people.
        """
        if not (0 < float(raw["total_ms"]) < math.inf and 0 < float(raw["anchor_ms"]) < math.inf):
            raise ValueError(f"{raw['total_ms']!r} ms and {raw['anchor_ms']!r} ms are no latencies")
        return cls(
            widths=tuple(raw["widths"]),
            removed=tuple(raw["removed"]),
            total_ms=raw["total_ms"],
            anchor_ms=raw["anchor_ms"],
            site_ms=tuple(raw["site_ms"]),
            site_ops=tuple(raw["site_ops"]),
            loose_ms=raw["loose_ms"],
        )


class Collector:
    """Measures samples of one network on one target, through the store.

    Args:
        spec: the network.
        variants: builds its files.
        target: runtime on a device.
        threads: of the runtime.
        store: where rows are kept (None: nowhere).
        progress: where to report.
        effort: turns per variant, unprofiled.
        profiled: whether the runtime's profiler is read; without it only whole runs are timed, in half the time.
    """

    def __init__(
        self,
        spec: NetworkSpec,
        variants: Variants,
        target: Target,
        *,
        threads: int = 1,
        store: Store | None = None,
        progress: Progress = silent,
        effort: TurnCounts = TurnCounts(),
        profiled: bool = True,
    ) -> None:
        self._spec, self._variants, self._target = spec, variants, target
        self._threads, self._store, self._progress, self._effort = threads, store, progress, effort
        self.sites = SiteMap(variants.operators, spec)
        self._profiled = profiled and target.profiles
        self.fingerprint = target.fingerprint(threads)
        self._anchor_ms = math.inf

    def _signature(self, sample: Sample) -> str:
        kind = "variant" if self._profiled or not self._target.profiles else "whole"
        return f"{kind}/{VERSION}/{self._spec.fingerprint}/b{self._variants.batch}/{sample.key}"

    def measure(self, samples: Sequence[Sample], task: Task) -> list[Observation]:
        """Observations of ``samples`` in their order; only those not in the store are run. ``task`` is advanced."""
        known: dict[Sample, Observation] = {}
        if self._store is not None:
            rows = self._store.find(self.fingerprint, self._signature(Sample(())))
            for sample in samples:
                found = self._read(sample, rows.get(self._signature(sample)))
                if found is not None:
                    known[sample] = found
        missing = [sample for sample in dict.fromkeys(samples) if sample not in known]
        task.advance(len(samples) - len(missing))
        if missing:
            with ExitStack() as stack:
                worker = stack.enter_context(self._target.start())
                folder = Path(stack.enter_context(Scratch("variants")))
                for block in self._blocks(missing):
                    try:
                        known.update(self._run_block(worker, folder, block))
                    except WorkerLostError as lost:
                        self._progress.say(f"{lost} It is started once more.")
                        worker = stack.enter_context(self._target.start())
                        known.update(self._run_block(worker, folder, block))
                    task.advance(len(block), f"{np.median([known[sample].total_ms for sample in block]):.3g} ms")
        return [known[sample] for sample in samples]

    def _read(self, sample: Sample, row: dict[str, Any] | None) -> Observation | None:
        """What a stored row says of a sample; None where there is none or it is not usable, and is measured again."""
        if row is None:
            return None
        try:
            found = Observation.from_payload(row)
        except (ValueError, KeyError, TypeError):
            return None
        fits = found.widths == sample.widths and len(found.site_ms) in (0, len(self.sites.sites))
        return found if fits else None

    def _blocks(self, samples: Sequence[Sample]) -> list[list[Sample]]:
        """Samples in blocks that fit in memory."""
        size = max(2, min(_BLOCK_SIZE, _BLOCK_BYTES // max(1, len(self._variants.dense_bytes))))
        return [list(samples[start : start + size]) for start in range(0, len(samples), size)]

    def _run_block(self, worker: Worker, folder: Path, block: Sequence[Sample]) -> dict[Sample, Observation]:
        anchor = dense(self._spec)
        files = {"anchor": self._variants.dense_bytes}
        for index, sample in enumerate(block):
            if sample != anchor:
                files[str(index)] = self._variants.build(sample.array(), sample.removed)
        profiles: dict[str, Any] = {}
        with measuring(self._progress, worker=worker):
            keys = list(files)
            if self._profiled:
                self._load(worker, folder, files, profile=True)
                turns = round_robin(worker, keys, _PROFILED)
                # The worker runs a file once when it loads it.
                profiles = {key: clean_profile(worker.profile(key), turns[key].marks(1 + WARM_RUNS)) for key in keys}
                worker.drop(keys)
            # A session that can be profiled is a little slower even while it is not, and not alike for all networks.
            self._load(worker, folder, files, profile=False)
            turns = round_robin(worker, keys, self._effort, anchor="anchor", anchor_ms=self._anchor_ms)
            self._anchor_ms = min(self._anchor_ms, turns["anchor"].fastest())
            times = {key: turns[key].clean() for key in keys}
            worker.drop(keys)
        return self._observe(block, anchor, times, profiles)

    def _load(self, worker: Worker, folder: Path, files: Mapping[str, bytes], *, profile: bool) -> None:
        settings = self._target.settings(threads=self._threads, batch=self._variants.batch, profile=profile)
        for key, content in files.items():
            path = folder / f"{key}.{self._target.artifact}"
            path.write_bytes(content)
            worker.load(key, path, settings)
            path.unlink()

    def _observe(
        self, block: Sequence[Sample], anchor: Sample, times: dict[str, list[float]], profiles: dict[str, Any]
    ) -> dict[Sample, Observation]:
        anchor_ms = lower_half(times["anchor"])
        found = {}
        for index, sample in enumerate(block):
            key = "anchor" if sample == anchor else str(index)
            site_ms: Sequence[float] = ()
            site_ops: Sequence[int] = ()
            loose = 0.0
            if key in profiles:
                site_ms, site_ops, loose = self.sites.attribute(self._target.operations(profiles[key]))
            found[sample] = Observation(
                widths=sample.widths,
                removed=tuple(sorted(sample.removed)),
                total_ms=lower_half(times[key]),
                anchor_ms=anchor_ms,
                site_ms=tuple(round(ms, 6) for ms in site_ms),
                site_ops=tuple(site_ops),
                loose_ms=loose,
            )
        if self._store is not None:
            rows = {self._signature(sample): asdict(observation) for sample, observation in found.items()}
            self._store.put(self.fingerprint, rows)
        return found
