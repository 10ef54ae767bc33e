"""Calibration batches as the user gives them, and messages that say which one is none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from secateurs.data.nests import described, tensored
from secateurs.data.tasks.task import Task
from secateurs.errors import DataError, SecateursError, why

_FORM = "Give batches (inputs, targets), such as a DataLoader of labelled images."


def checked(batches: Iterable[Any], task: Task) -> Iterator[Any]:
    """Every batch, arrays as tensors.

    Raises:
        DataError: there are no batches to go through, one is no pair where the task has labels, or the user's loader
            fails.
    """
    if isinstance(batches, Tensor) or not isinstance(batches, Iterable):
        raise DataError(f"The calibration data is a {type(batches).__name__}, nothing to go through. {_FORM}")
    for number, batch in enumerate(_guarded(batches), 1):
        if task.labels_images and (not isinstance(batch, (tuple, list)) or len(batch) != 2):
            raise DataError(f"Calibration batch {number} is {_described(batch)}, no pair (inputs, targets). {_FORM}")
        yield tensored(batch)


def _guarded(batches: Iterable[Any]) -> Iterator[Any]:
    try:
        yield from batches
    except (SecateursError, MemoryError):
        raise
    except Exception as error:
        raise DataError(f"The calibration data raised {why(error)}. Make the loader run alone.") from error


@contextmanager
def told(number: int, batch: Any) -> Iterator[None]:
    """What the network or the loss raises inside is told with the batch that it was given.

    Raises:
        DataError: instead of what was raised.
    """
    try:
        yield
    except (SecateursError, MemoryError):
        raise
    except Exception as error:
        raise DataError(
            f"The network and its loss do not take calibration batch {number}: {why(error)}. {_whole(batch)} Give "
            f"batches as the network was trained with, or the loss= that fits them."
        ) from error


def _whole(batch: Any) -> str:
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return f"Inputs: {_described(batch[0])}; targets: {_described(batch[1])}."
    return f"The batch: {described(batch)}."


def _described(value: Any) -> str:
    """``float32 of shape (8, 3, 24, 24)``."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
    if isinstance(value, (tuple, list)):
        shown = ", ".join(_described(part) for part in value[:3])
        return f"{type(value).__name__} of {len(value)} ({shown}{', …' if len(value) > 3 else ''})"
    return f"a {type(value).__name__}"
