"""From a network's answers to the value of a metric, and how much that value is to be trusted.

Samples come in blocks; the value with each block left out gives standard errors of any metric, and of the difference of
two networks on the same samples (delete-a-group jackknife: Shao & Tu, The Jackknife and Bootstrap, 1995).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from secateurs.errors import DataError, PlanError, SecateursError, why

BLOCKS = 10
"""Into which samples are parted for standard errors, at most."""


class Meter(Protocol):
    """Takes answers batch by batch."""

    def add(self, outputs: Any, batch: Any, samples: int) -> None:
        """The answers to one batch of so many samples."""

    def value(self) -> float:
        """The metric over everything so far."""

    def parts(self) -> tuple[float, ...]:
        """The metric with each block of samples left out; () where that is not known."""


class Measure(Protocol):
    """A metric that makes its own meters. ``total``: samples that will come."""

    def meter(self, total: int) -> Meter: ...


def measure(metric: Any, compared: Callable[[Any, Any], tuple[Any, ...]], name: str) -> Measure:
    """What takes a metric's values: of an own measure, an object with ``update`` and ``compute``, or a function.

    Args:
        metric: the user's.
        compared: the arguments of ``update`` from outputs and batch.
        name: of the value, where there are several.

    Raises:
        PlanError: it is none of these.
    """
    if hasattr(metric, "meter"):
        found: Measure = metric
        return found
    if hasattr(metric, "update") and hasattr(metric, "compute") and not isinstance(metric, dict):
        return _Gathering(metric, compared, name)
    if callable(metric):
        return _Averaging(metric, name)
    raise PlanError(
        f"metric= is a {type(metric).__name__}. Give a function (outputs, batch) -> value, or an object with update() "
        f"and compute() such as a torchmetrics metric."
    )


class _Averaging:
    """A function of outputs and batch: the mean over samples of what it returns."""

    def __init__(self, function: Callable[[Any, Any], Any], name: str) -> None:
        self.function, self.name = function, name

    def meter(self, total: int) -> Meter:
        return Averaged(self.function, self.name, total)


class Averaged:
    """The mean of a function's values, one per sample or one per batch."""

    def __init__(self, function: Callable[[Any, Any], Any], name: str, total: int) -> None:
        self._function, self._name, self._total = function, name, total
        self._sums, self._counts = [0.0] * BLOCKS, [0] * BLOCKS
        self._batches = 0

    def add(self, outputs: Any, batch: Any, samples: int) -> None:
        """See :class:`Meter`.

        Raises:
            DataError: the function raised, or returned no number.
        """
        self._batches += 1
        with told(self._name, self._batches):
            found = torch.as_tensor(self._function(outputs, batch)).detach().double().cpu()
        if found.numel() != 1 and found.shape != (samples,):
            raise DataError(
                f"The metric {self._name} returned shape {list(found.shape)} for a batch of {samples} samples. Return "
                f"one number for the batch, or one per sample."
            )
        mean = float(found.mean())
        _require_finite(self._name, mean, f"on batch {self._batches}")
        block = block_of(sum(self._counts), self._total)
        self._sums[block] += mean * samples
        self._counts[block] += samples

    def value(self) -> float:
        """See :class:`Meter`."""
        return sum(self._sums) / max(1, sum(self._counts))

    def parts(self) -> tuple[float, ...]:
        """See :class:`Meter`."""
        whole, count = sum(self._sums), sum(self._counts)
        held = [(s, n) for s, n in zip(self._sums, self._counts, strict=True) if n]
        return tuple((whole - s) / (count - n) for s, n in held) if len(held) > 1 else ()


class _Gathering:
    """An object with ``update`` and ``compute``."""

    def __init__(self, metric: Any, compared: Callable[[Any, Any], tuple[Any, ...]], name: str) -> None:
        self.metric, self.compared, self.name = metric, compared, name

    def meter(self, total: int) -> Meter:
        return Gathered(self.metric, self.compared, self.name, total)


class Gathered:
    """A metric that wants all predictions before it says anything; the given one is copied, never used itself."""

    def __init__(self, metric: Any, compared: Callable[[Any, Any], tuple[Any, ...]], name: str, total: int) -> None:
        self._empty = copy.deepcopy(metric)
        if hasattr(self._empty, "reset"):
            self._empty.reset()
        self._compared, self._name, self._total = compared, name, total
        self._mergeable = _merges(metric)
        self._blocks: dict[int, Any] = {}
        self._seen = self._batches = 0

    def add(self, outputs: Any, batch: Any, samples: int) -> None:
        """See :class:`Meter`.

        Raises:
            DataError: the metric raised.
        """
        self._batches += 1
        block = block_of(self._seen, self._total) if self._mergeable else 0
        if block not in self._blocks:
            self._blocks[block] = copy.deepcopy(self._empty)
        held = self._blocks[block]
        with told(self._name, self._batches):
            given = self._compared(outputs, batch)
            device = next((one.device for one in given if isinstance(one, Tensor)), None)
            if device is not None and device.type != "cpu" and hasattr(held, "to"):
                held.to(device)
            held.update(*given)
        self._seen += samples

    def value(self) -> float:
        """See :class:`Meter`."""
        return self._computed(list(self._blocks.values()))

    def parts(self) -> tuple[float, ...]:
        """See :class:`Meter`."""
        if len(self._blocks) < 2:
            return ()
        held = self._blocks
        found = []
        for left in held:
            try:
                found.append(self._computed([one for block, one in held.items() if block != left]))
            except SecateursError:  # such as no box of any class in the rest: nothing is known then
                return ()
        return tuple(found)

    def _computed(self, metrics: list[Any]) -> float:
        with told(self._name, None):
            first = copy.deepcopy(metrics[0] if metrics else self._empty)
            for other in metrics[1:]:
                _merge(first, other)
            found = first.compute()
        value = _chosen(found, self._name)
        _require_finite(self._name, value, f"after {self._batches} batches")
        return value


def _merges(metric: Any) -> bool:
    """Whether what several copies have seen can be put together; of a torchmetrics collection all members count."""
    if isinstance(metric, Mapping) or (hasattr(metric, "values") and hasattr(metric, "items")):
        return all(_merges(one) for one in metric.values())
    return hasattr(metric, "merge_state") and not getattr(metric, "dist_sync_on_step", False)


def _merge(first: Any, other: Any) -> None:
    if hasattr(first, "values") and hasattr(first, "items"):
        for mine, theirs in zip(first.values(), other.values(), strict=True):
            mine.merge_state(theirs)
    else:
        first.merge_state(other)


def _chosen(found: Any, name: str) -> float:
    """The one number among what a metric computed."""
    if isinstance(found, Mapping):
        if not found:
            raise DataError(f"The metric {name} computed nothing. Give one that computes a number.")
        found = found[name] if name in found else next(iter(found.values()))
    value = torch.as_tensor(found)
    if value.numel() != 1:
        raise DataError(
            f"The metric {name} computed {value.numel()} numbers of shape {list(value.shape)}, and networks are "
            f"compared by one. Average them (average='macro' in torchmetrics), or give a function."
        )
    return float(value)


class told:
    """What the user's metric raises inside is told with the batch.

    Raises:
        DataError: instead of what was raised.
    """

    def __init__(self, name: str, number: int | None) -> None:
        self.name, self.number = name, number

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None or isinstance(error, (SecateursError, MemoryError)) or not isinstance(error, Exception):
            return
        where = "when it was computed" if self.number is None else f"on batch {self.number}"
        raise DataError(
            f"The metric {self.name} raised {why(error)} {where}. It is given what the network answers and the batch: "
            f"make it take both, or name what it compares (Task(compared=...)). Nothing of the run is lost."
        ) from error


def _require_finite(name: str, value: float, where: str) -> None:
    if not math.isfinite(value):
        raise DataError(
            f"The metric {name} is {value} {where}. Networks cannot be compared by it: check its inputs, or give one "
            f"that is finite."
        )


def block_of(seen: int, total: int) -> int:
    """The block of the next sample when so many of ``total`` were seen."""
    return min(BLOCKS - 1, seen * BLOCKS // max(1, total))


def standard_error(parts: tuple[float, ...]) -> float | None:
    """Of a value, from it with each block left out; None where that is not known."""
    if len(parts) < 2:
        return None
    count, mean = len(parts), sum(parts) / len(parts)
    return math.sqrt((count - 1) / count * sum((one - mean) ** 2 for one in parts))
