"""Data as the other parts see it: four splits, and labelled images whose batches are normalised."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from secateurs.data.augmentation import UNCHANGED, Augmentation
from secateurs.data.order import positions_of_batches
from secateurs.data.tasks.task import Task, classification
from secateurs.models.preprocessing import Preprocessing
from secateurs.progress import Progress, silent

if TYPE_CHECKING:
    from secateurs.data.calls import Inputs
    from secateurs.data.samples import Samples

Batch = tuple[Tensor, Tensor]


class Source(Protocol):
    """Rows of labelled images. ``labels``: int64 [rows]."""

    labels: np.ndarray

    def fetch(self, rows: np.ndarray) -> Tensor:
        """uint8 pixels [rows, H, W, channels], or ready float inputs [rows, ...]."""


def gives_pixels(source: Source) -> bool:
    """Whether a source gives uint8 pixels, which are normalised here, and no ready inputs."""
    return source.fetch(np.array([0])).dtype == torch.uint8


@dataclass(frozen=True, eq=False)
class Images:
    """Some rows of a source.

    ``rows``: int64 indices into the source; ``preprocessing`` and ``augmentation`` apply to uint8 sources only
    (a source of floats is taken to be ready).
    """

    source: Source
    rows: np.ndarray
    preprocessing: Preprocessing
    augmentation: Augmentation = UNCHANGED
    name: str = "images"

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def labels(self) -> np.ndarray:
        """int64 [images]."""
        return self.source.labels[self.rows]

    @property
    def identity(self) -> int:
        """A number that other labels hardly have."""
        return int(self.labels @ np.arange(1, len(self) + 1) % 2**31)

    def take(self, count: int) -> Images:
        """The first ``count`` images (splits are shuffled already, but for the test set)."""
        return self.select(np.arange(min(count, len(self))))

    def select(self, positions: np.ndarray | Sequence[int]) -> Images:
        """The images at these positions."""
        chosen = self.rows[np.asarray(positions, dtype=np.int64)]
        return Images(self.source, chosen, self.preprocessing, self.augmentation, self.name)

    def prepare(self, progress: Progress = silent) -> None:
        """Decode every image now, so that a broken one shows early and later passes are quick."""
        with progress.task(f"decode {self.name}", len(self)) as task:
            for start in range(0, len(self), 256):
                rows = self.rows[start : start + 256]
                self.source.fetch(rows)
                task.advance(len(rows))

    def batches(
        self,
        size: int,
        *,
        shuffle: bool = False,
        augment: bool = False,
        generator: torch.Generator | None = None,
        drop_last: bool = False,
    ) -> Iterator[Batch]:
        """Pairs (float32 inputs [batch, channels, H, W], int64 labels [batch]).

        Order and augmentation come from ``generator`` alone: equal generators give equal batches.
        """
        for chosen in positions_of_batches(len(self), size, shuffle=shuffle, generator=generator, drop_last=drop_last):
            yield self.batch(chosen, augment=augment, generator=generator)

    def batch(self, positions: np.ndarray, *, augment: bool = False, generator: torch.Generator | None = None) -> Batch:
        """The images at these positions as one batch, augmented with ``generator`` on demand."""
        rows = self.rows[positions]
        held = self.source.fetch(rows)
        labels = torch.from_numpy(self.source.labels[rows])
        if held.dtype == torch.uint8:
            if augment:
                held = self.augmentation.apply(held, generator)
            held = self.preprocessing.normalize(held)
        return held, labels


@dataclass(frozen=True, eq=False)
class BatchesOf:
    """Batches of ``size`` images or samples that can be gone through any number of times."""

    images: Images | Samples
    size: int

    def __iter__(self) -> Iterator[Any]:
        return self.images.batches(self.size)

    def __len__(self) -> int:
        return -(-len(self.images) // self.size)


@dataclass(frozen=True, eq=False)
class InputsOf:
    """What the network is called with, of batches that can be gone through any number of times: [inputs] each."""

    batches: Iterable[Any]
    task: Task

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            inputs = self.task.called_with(batch)
            yield [inputs if isinstance(inputs, Tensor) else (inputs.args, dict(inputs.kwargs))]


@dataclass(frozen=True, eq=False)
class Data:
    """The four splits of one data set.

    ``validation`` shares no image with ``train``; ``calibration`` is drawn from ``train`` (it serves statistics, so
    fine-tuning may use it again); ``test`` is only for the final report. ``classes``: indices of the outputs
    that count, in accuracy, scores and training, None for all; ``notes``: what the user should know; ``asked``: the
    task that the samples are for, None for classification of labelled images.
    """

    train: Images | Samples
    calibration: Images | Samples
    validation: Images | Samples
    test: Images | Samples
    classes: tuple[int, ...] | None = None
    name: str = ""
    notes: tuple[str, ...] = ()
    asked: Task | None = None

    @cached_property
    def task(self) -> Task:
        """What networks are trained for and judged by on these samples."""
        return classification(self.classes) if self.asked is None else self.asked

    @property
    def identity(self) -> dict[str, Any]:
        """What a run's folder keeps of the data, and holds a resumed run to."""
        return {"data": self.name, **({} if self.asked is None else {"task": list(self.task.identity)})}

    @property
    def samples(self) -> str:
        """What a sample is called: ``images``, where that is known."""
        return "images" if isinstance(self.train, Images) else "samples"

    def inputs(self, part: Images | Samples, size: int) -> Iterator[Inputs]:
        """What the network is called with, of every batch of ``size`` samples."""
        return (self.task.called_with(batch) for batch in part.batches(size))
