"""Which networks to measure: widths that fill the space of all groups at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from secateurs.network import NetworkSpec

_GRAINS = (1, 4, 8, 16)
_GRAIN_SHARE = (0.3, 0.2, 0.25, 0.25)
_NARROWEST = 0.1


@dataclass(frozen=True)
class Sample:
    """One network to measure: widths per group and removed blocks."""

    widths: tuple[int, ...]
    removed: frozenset[int] = frozenset()

    @property
    def key(self) -> str:
        """Short text that identifies the sample."""
        gone = ",".join(str(index) for index in sorted(self.removed))
        return ",".join(str(width) for width in self.widths) + ("/" + gone if gone else "")

    def array(self) -> np.ndarray:
        """Widths as int64 [groups]."""
        return np.array(self.widths, dtype=np.int64)


def dense(spec: NetworkSpec) -> Sample:
    """The untouched network."""
    return Sample(tuple(spec.dense_widths.tolist()))


def space_filling(spec: NetworkSpec, count: int, rng: np.random.Generator) -> list[Sample]:
    """``count`` samples in which every operator sees many pairs of input and output widths.

    One sample in three draws every group's share on its own (stratified: a Latin hypercube), one draws near the ends,
    most groups narrow or nearly whole as exact solvers like them, and one draws a common share with a jitter, as
    users do. Widths are rounded to a grain that changes from sample to sample, because runtimes take other paths at
    aligned widths; one sample in four lacks some blocks.
    """
    groups = len(spec.groups)
    strata = np.stack([rng.permutation(count) for _ in range(groups)], axis=1) if groups else np.zeros((count, 0))
    drawn = (strata + rng.random((count, groups))) / count
    common = _NARROWEST + (1 - _NARROWEST) * (rng.permutation(count) + rng.random(count)) / count
    samples = []
    for index in range(count):
        if index % 3 == 0:
            share = _NARROWEST + (1 - _NARROWEST) * drawn[index]
        elif index % 3 == 1:
            # The arcsine distribution: dense at both ends.
            share = np.sin(0.5 * np.pi * drawn[index]) ** 2
        else:
            share = np.clip(common[index] + rng.normal(0, 0.08, groups), 0.03, 1.0)
        grain = int(rng.choice(_GRAINS, p=_GRAIN_SHARE))
        removed: frozenset[int] = frozenset()
        if spec.blocks and index % 3 == 2 - (index // 3) % 3:
            portion = rng.uniform(0, 0.7)
            removed = frozenset(np.flatnonzero(rng.random(len(spec.blocks)) < portion).tolist())
        samples.append(Sample(tuple(rounded(spec, share, grain).tolist()), removed))
    return samples


def rounded(spec: NetworkSpec, share: np.ndarray, grain: int) -> np.ndarray:
    """Widths [groups] nearest to ``share`` of dense in multiples of ``grain`` (a finer one in small groups)."""
    widths = []
    for group, part in zip(spec.groups, share.tolist(), strict=True):
        step = grain
        while step > 1 and step > group.units // 4:
            step //= 2
        width = max(1, round(part * group.units / step)) * step
        widths.append(min(max(width, group.min_units), group.units))
    return np.array(widths, dtype=np.int64)
