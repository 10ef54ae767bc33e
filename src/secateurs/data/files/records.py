"""Samples that are read from files by several threads; a broken one is named, or left out where that is asked for."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from secateurs.data.decoding import WORKERS
from secateurs.data.nests import leaves
from secateurs.errors import DataError
from secateurs.progress import Progress

_CACHE_BYTES = 2 << 30
_TEST_SEED = 20_231
"""What is held out of files without a test part is the same for every seed of a run."""
SKIP = "Repair or remove it, or add ?broken=skip to the data to leave such samples out."


class Records(Protocol):
    """Samples in files."""

    def __len__(self) -> int: ...

    def read(self, row: int) -> tuple[Any, Any]:
        """(input, target) of one sample: tensors or nests of them.

        Raises:
            DataError: it is broken; the message names it.
        """


class FileSource:
    """Batches of records: (inputs, targets), targets that are dicts as a list of them.

    What was read is kept while there is room.
    """

    def __init__(self, records: Records, cache_bytes: int = _CACHE_BYTES) -> None:
        self.records = records
        self._held: dict[int, tuple[Any, Any]] = {}
        self._room = cache_bytes
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.records)

    def fetch(self, rows: np.ndarray) -> Any:
        """The batch of these rows.

        Raises:
            DataError: one is broken, or they differ in size.
        """
        read = self._read_all([int(row) for row in rows])
        return together([one for one, _ in read]), together([one for _, one in read])

    def broken(self, rows: Sequence[int]) -> list[tuple[int, str]]:
        """Those of ``rows`` that cannot be read, and why."""
        with ThreadPoolExecutor(WORKERS) as pool:
            found = list(pool.map(self._reason, rows))
        return [(row, reason) for row, reason in zip(rows, found, strict=True) if reason is not None]

    def _reason(self, row: int) -> str | None:
        try:
            self._read(row)
        except DataError as error:
            return str(error)
        return None

    def _read_all(self, rows: list[int]) -> list[tuple[Any, Any]]:
        if len(rows) < 2 or all(row in self._held for row in rows):
            return [self._read(row) for row in rows]
        with ThreadPoolExecutor(WORKERS) as pool:
            return list(pool.map(self._read, rows))

    def _read(self, row: int) -> tuple[Any, Any]:
        if row not in self._held:
            made = self.records.read(row)
            size = sum(tensor.numel() * tensor.element_size() for _, tensor in leaves(made))
            with self._lock:
                if size > self._room:
                    return made
                self._room -= size
                self._held[row] = made
        return self._held[row]


def together(values: Sequence[Any]) -> Any:
    """Tensors of one shape stacked; anything else as a list."""
    first = values[0]
    if isinstance(first, Tensor):
        shapes = sorted({str(tuple(one.shape)) for one in values})
        if len(shapes) > 1:
            raise DataError(f"Samples have different sizes ({', '.join(shapes[:4])}). Bring them to one.")
        return torch.stack(list(values))
    return list(values)


@dataclass(frozen=True)
class FileParts:
    """Training and test samples of one opened source; ``notes``: for the user."""

    train: FileSource
    train_rows: np.ndarray
    test: FileSource
    test_rows: np.ndarray
    notes: tuple[str, ...] = ()


def parts_of(train: Records, test: Records | None, notes: tuple[str, ...] = ()) -> FileParts:
    """Both parts; without a test part a fifth of the samples is held out, always the same."""
    first = FileSource(train)
    if test is not None:
        second = FileSource(test)
        return FileParts(first, np.arange(len(train)), second, np.arange(len(test)), notes)
    order = np.random.default_rng(_TEST_SEED).permutation(len(train))
    held = max(1, len(order) // 5)
    note = f"There is no test part, so {held} of {len(order)} samples are held out for it, always the same."
    return FileParts(first, np.sort(order[held:]), first, np.sort(order[:held]), (*notes, note))


def without_broken(parts: FileParts, progress: Progress) -> FileParts:
    """The parts without samples that cannot be read; how many there were is a note.

    Raises:
        DataError: none is left.
    """
    notes, kept = parts.notes, []
    for source, rows, part in ((parts.train, parts.train_rows, "training"), (parts.test, parts.test_rows, "test")):
        bad: list[tuple[int, str]] = []
        with progress.task(f"look through the {part} samples", len(rows)) as task:
            for start in range(0, len(rows), 64):
                chosen = rows[start : start + 64].tolist()
                bad += source.broken(chosen)
                task.advance(len(chosen), f"{len(bad)} broken")
        if len(bad) == len(rows):
            raise DataError(
                f"None of the {len(rows)} {part} samples can be read. The first: {bad[0][1] if bad else '-'}"
            )
        if bad:
            notes = (
                *notes,
                f"{len(bad)} of {len(rows)} {part} samples are broken and left out. The first: {bad[0][1]}",
            )
        kept.append(np.setdiff1d(rows, [row for row, _ in bad]))
    return FileParts(parts.train, kept[0], parts.test, kept[1], notes)
