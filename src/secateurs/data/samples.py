"""Samples of any kind: splits whose batches are any nest of tensors, as a task's loss and metric take them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, default_collate

from secateurs.data.datasets import guarded, item_of
from secateurs.data.nests import count, described, form, parts, rebuilt, tensored
from secateurs.data.order import positions_of_batches
from secateurs.errors import DataError, why
from secateurs.progress import Progress, silent


class SampleSource(Protocol):
    """Rows of samples."""

    def __len__(self) -> int: ...

    def fetch(self, rows: np.ndarray) -> Any:
        """The batch of these rows, as the user's own loader would give it."""


@dataclass(frozen=True, eq=False)
class Samples:
    """Some rows of a source; batches are whatever the source gives."""

    source: SampleSource
    rows: np.ndarray
    name: str = "samples"

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def identity(self) -> int:
        """A number that other rows hardly have."""
        return int((self.rows + 1) @ np.arange(1, len(self.rows) + 1) % 2**31)

    def take(self, count: int) -> Samples:
        """The first ``count`` samples."""
        return self.select(np.arange(min(count, len(self))))

    def select(self, positions: np.ndarray | Sequence[int]) -> Samples:
        """The samples at these positions."""
        return Samples(self.source, self.rows[np.asarray(positions, dtype=np.int64)], self.name)

    def prepare(self, progress: Progress = silent) -> None:
        """Read every sample now, so that a broken one shows early."""
        with progress.task(f"read {self.name}", len(self)) as task:
            for start in range(0, len(self), 64):
                self.source.fetch(self.rows[start : start + 64])
                task.advance(len(self.rows[start : start + 64]))

    def batches(
        self,
        size: int,
        *,
        shuffle: bool = False,
        augment: bool = False,
        generator: torch.Generator | None = None,
        drop_last: bool = False,
    ) -> Iterator[Any]:
        """Batches of ``size`` samples; order from ``generator`` alone."""
        for chosen in positions_of_batches(len(self), size, shuffle=shuffle, generator=generator, drop_last=drop_last):
            yield self.batch(chosen, augment=augment, generator=generator)

    def batch(self, positions: np.ndarray, *, augment: bool = False, generator: torch.Generator | None = None) -> Any:
        """The samples at these positions as one batch; augmentation is the source's own."""
        return self.source.fetch(self.rows[positions])


class ItemSource:
    """Items of a map-style data set, put together by a loader's ``collate_fn``."""

    def __init__(self, dataset: Any, collate: Callable[[list[Any]], Any], name: str) -> None:
        self.dataset, self.collate, self.name = dataset, collate, name

    def __len__(self) -> int:
        return len(self.dataset)

    def fetch(self, rows: np.ndarray) -> Any:
        """The batch of these items.

        Raises:
            DataError: the data set raised, or its items cannot be put together.
        """
        items = [item_of(self.dataset, int(row), self.name) for row in rows]
        try:
            return tensored(self.collate(items))
        except (Exception, SystemExit) as error:
            raise DataError(
                f"Items {int(rows[0])} to {int(rows[-1])} of the {self.name} data cannot be put together "
                f"({why(error)}). Give a DataLoader with the collate_fn that suits them."
            ) from error


class HeldSource:
    """Samples of batches that are held in memory.

    In a batch, tensors and lists with as many entries as there are samples belong to one sample each; everything else
    to all of them. The outermost container is always a structure.
    """

    def __init__(self, batches: Sequence[Any], name: str) -> None:
        self.batches, self.name = [tensored(batch) for batch in batches], name
        self.counts = [count(batch) for batch in self.batches]
        for number, (batch, samples) in enumerate(zip(self.batches, self.counts, strict=True)):
            place = f"Batch {number} of the {name} data"
            if samples == 0:
                raise DataError(f"{place} has no samples in it ({described(batch)}). Give tensors [samples, ...].")
        self.index = [(b, place) for b, samples in enumerate(self.counts) for place in range(samples)]

    def __len__(self) -> int:
        return len(self.index)

    def fetch(self, rows: np.ndarray) -> Any:
        """These samples as one batch.

        Raises:
            DataError: they differ in shape or in how they are built.
        """
        chosen = [self.index[int(row)] for row in rows]
        found = [(self.batches[batch], place, self.counts[batch]) for batch, place in chosen]
        try:
            return _together(found, top=True)
        except (RuntimeError, ValueError, KeyError, IndexError, AttributeError) as error:
            raise DataError(
                f"Samples of the {self.name} data cannot be put together in one batch ({why(error)}): "
                f"{_difference([one for one, _, _ in found])}. Give samples of one size, or a DataLoader over a "
                f"data set with the collate_fn that suits them."
            ) from error


def _difference(batches: Sequence[Any]) -> str:
    first = batches[0]
    other = next((one for one in batches if form(one) != form(first)), batches[-1])
    return f"one batch has {described(first)}, another {described(other)}"


def _together(values: Sequence[tuple[Any, int, int]], *, top: bool = False) -> Any:
    """One nest from (nest, place of the sample in it, samples in it) of every sample."""
    first, _, samples = values[0]
    if isinstance(first, Tensor):
        if first.ndim and len(first) == samples:
            return torch.stack([value[place] for value, place, _ in values])
        return first
    if not top and type(first) is list and len(first) == samples and not _rows(first, samples):
        return [value[place] for value, place, _ in values]
    columns = zip(*([part for _, part in parts(value)] for value, _, _ in values), strict=True)
    made = [_together([(one, v[1], v[2]) for one, v in zip(column, values, strict=True)]) for column in columns]
    return rebuilt(first, made)


def _rows(value: list[Any], samples: int) -> bool:
    """Whether a list holds tensors that have a row per sample each: several inputs, and not one entry per sample."""
    return all(isinstance(one, Tensor) and one.ndim and len(one) == samples for one in value)


def wrap_samples(given: Any, name: str) -> SampleSource:
    """A source of rows from a loader, a map-style data set, or an iterable of batches.

    Raises:
        DataError: it is none of these, or is empty.
    """
    source: SampleSource
    if isinstance(given, DataLoader) and not isinstance(given.dataset, IterableDataset):
        collate = given.collate_fn if given.batch_sampler is not None else default_collate
        source = ItemSource(given.dataset, collate, name)
    elif hasattr(given, "__getitem__") and hasattr(given, "__len__") and not isinstance(given, (list, tuple)):
        source = ItemSource(given, default_collate, name)
    elif isinstance(given, Iterable) and not isinstance(given, (str, bytes, dict, Tensor)):
        source = HeldSource(list(guarded(given, name)), name)
    else:
        raise DataError(
            f"The {name} data is {type(given).__name__}. Give a DataLoader, a map-style data set or a list of batches."
        )
    if len(source) == 0:
        raise DataError(f"The {name} data is empty. Give data with samples.")
    return source
