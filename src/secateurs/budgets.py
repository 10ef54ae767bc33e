"""What can be limited, and limits on it: parsed once, in any of the forms that people write. No torch here.

A budget limits what a network takes; a bound limits what may become of its accuracy, or of whatever else a task
measures its networks by.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from secateurs.errors import PlanError


@dataclass(frozen=True)
class Resource:
    """What a budget limits. ``unit``: of its figures; ``units``: what a limit may be written in, and how many of
    ``unit`` that is; ``example``: for messages."""

    name: str
    unit: str
    units: Mapping[str, float]
    example: str

    @property
    def words(self) -> str:
        """``file size``."""
        return self.name.replace("_", " ")

    @property
    def option(self) -> str:
        """``--file-size``."""
        return f"--{self.name.replace('_', '-')}"


_BYTES = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}

RESOURCES: dict[str, Resource] = {
    resource.name: resource
    for resource in (
        Resource("latency", "ms", {"ms": 1.0}, "3.2ms"),
        Resource("memory", "bytes", _BYTES, "20MB"),
        Resource("file_size", "bytes", _BYTES, "10MB"),
        Resource("macs", "macs", {"k": 1e3, "M": 1e6, "G": 1e9}, "300M"),
    )
}
"""What can be limited: ``latency`` of one run; ``memory``, the peak that the network adds to the runtime's process;
``file_size`` of the deployed file; ``macs``, multiply-adds at batch 1."""


@dataclass(frozen=True)
class Limited:
    """What one limit is about. ``resource``: a key of :data:`RESOURCES`; ``target``: of which the figures are, "" where
    a run has one target only. As text it names the limit: ``latency``, ``latency@openvino-cpu``."""

    resource: str
    target: str = ""

    @classmethod
    def of(cls, name: str) -> Limited:
        """Read what ``str`` gave."""
        resource, _, target = name.partition("@")
        return cls(resource, target)

    @property
    def timed(self) -> bool:
        """Whether it is the latency."""
        return self.resource == "latency"

    @property
    def words(self) -> str:
        """``file size``, ``latency on openvino-cpu``."""
        return self.resource.replace("_", " ") + (f" on {self.target}" if self.target else "")

    @property
    def title(self) -> str:
        """The same at the beginning of a sentence."""
        return self.words[:1].upper() + self.words[1:]

    @property
    def option(self) -> str:
        """``--file-size``, ``--latency of openvino-cpu``."""
        return RESOURCES[self.resource].option + (f" of {self.target}" if self.target else "")

    def __str__(self) -> str:
        return f"{self.resource}@{self.target}" if self.target else self.resource


OF_FLOAT = "-of-float"
"""Behind a share or a factor: of what the dense network takes in float numbers."""


@dataclass(frozen=True)
class Budget:
    """A limit: so much of a resource, a fraction of what the dense network takes, or a reduction by a factor.

    ``kind``: the resource's unit (``"ms"``, ``"bytes"``, ``"macs"``), ``"ratio"`` (0 < value < 1, fraction of dense
    *kept*) or ``"speedup"`` (value > 1); ``resource``: a key of :data:`RESOURCES`; ``of_float``: a share or a factor is
    of the dense network in float numbers, whatever precision the target runs; ``target``: where it holds, "" where a
    run has one target only.
    """

    kind: str
    value: float
    resource: str = "latency"
    of_float: bool = False
    target: str = ""

    @property
    def limited(self) -> Limited:
        """What it limits."""
        return Limited(self.resource, self.target)

    @property
    def name(self) -> str:
        """The limit's name: ``latency``, ``latency@openvino-cpu``."""
        return str(self.limited)

    @classmethod
    def parse(cls, text: str | float | Budget, resource: str = "latency") -> Budget:
        """Read ``"60%"``, ``"2x"``, a bare fraction ``0.6``, or an amount: ``"3.2ms"``, ``"20MB"``, ``"300M"``.

        A latency may also be a share of what the dense network takes in float: ``"20%-of-float"``, ``"5x-of-float"``.

        Raises:
            PlanError: not one of these forms, or out of range (0, negative, ≥ 100 %, ≤ 1x).
        """
        if isinstance(text, Budget):
            return text
        what = RESOURCES[resource]
        hint = f"Give an amount such as {what.example}, a share of dense such as 60%, or a factor such as 2x."
        if isinstance(text, (int, float)) and not isinstance(text, bool):
            text = f"{float(text) * 100!r}%"
        units = "|".join([*what.units, "%", "x"])
        number = r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)"
        match = re.fullmatch(rf"\s*{number}\s*({units})?({OF_FLOAT})?\s*", str(text), re.ASCII)
        name = f"{what.words.capitalize()} budget {text!r}"
        if match is None:
            raise PlanError(f"{name} is not understood. {hint}")
        value, unit = float(match[1]), match[2]
        if not math.isfinite(value) or value <= 0:
            raise PlanError(f"{name} must be above zero. {hint}")
        if unit is None:
            raise PlanError(f"{name} has no unit. {hint}")
        of_float = match[3] is not None
        if of_float and (resource != "latency" or unit not in ("%", "x")):
            raise PlanError(
                f"{name} is not understood: {OF_FLOAT} stands behind a share or a factor of latency, as in "
                f"20%{OF_FLOAT} or 5x{OF_FLOAT}. {hint}"
            )
        if unit == "%":
            if value >= 100:
                raise PlanError(f"{name} is not below what the dense network takes (100%). {hint}")
            return cls("ratio", value / 100, resource, of_float)
        if unit == "x":
            if value <= 1:
                raise PlanError(f"{name} must be above 1x. {hint}")
            return cls("speedup", value, resource, of_float)
        return cls(what.unit, value * what.units[unit], resource)

    @property
    def absolute(self) -> bool:
        """Whether it names an amount, not a share of dense."""
        return self.kind not in ("ratio", "speedup")

    def limit(self, dense: float, float_ratio: float = 1.0) -> float:
        """The limit in the resource's unit, given what the dense network takes, and how many times that in float."""
        if self.absolute:
            return self.value
        whole = dense * float_ratio if self.of_float else dense
        return whole * self.value if self.kind == "ratio" else whole / self.value

    def ratio(self, dense: float, float_ratio: float = 1.0) -> float:
        """The limit as a ratio to what the dense network takes; ``float_ratio``: as of :meth:`limit`."""
        return self.limit(dense, float_ratio) / dense

    def __str__(self) -> str:
        if self.absolute:
            units = {name: size for name, size in RESOURCES[self.resource].units.items() if not name.endswith("iB")}
            name = max((n for n in units if self.value >= units[n]), key=lambda n: units[n], default=next(iter(units)))
            return f"{self.value / units[name]:.10g}{name}"
        share = f"{self.value * 100:g}%" if self.kind == "ratio" else f"{self.value:g}x"
        return share + OF_FLOAT if self.of_float else share


def parse_budgets(
    latency: str | float | Budget | Sequence[str | float | Budget] | None = None,
    memory: str | float | Budget | None = None,
    file_size: str | float | Budget | None = None,
    macs: str | float | Budget | None = None,
    targets: Sequence[str] = (),
) -> tuple[Budget, ...]:
    """The budgets that are given, latency first: the order in which they count as the main one.

    ``targets``: of a run with several, on which ``latency`` then has one budget each, in the same order.

    Raises:
        PlanError: one of them is not understood, or latencies and targets do not pair.
    """
    latencies = several(latency)
    check_pairs(targets, latencies)
    found = [Budget.parse(one) for one in latencies]
    if len(targets) > 1:
        found = [replace(one, target=target) for one, target in zip(found, targets, strict=True)]
    given = {"memory": memory, "file_size": file_size, "macs": macs}
    return (*found, *(Budget.parse(text, name) for name, text in given.items() if text is not None))


def several(value: Any) -> tuple[Any, ...]:
    """What may be given not at all, once, or as a list, as a tuple."""
    if value is None:
        return ()
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def check_pairs(targets: Sequence[str], latencies: Sequence[object]) -> None:
    """Nothing, if every one of several targets has one latency, and no target is named twice.

    Raises:
        PlanError: they do not pair.
    """
    twice = next((one for one in targets if targets.count(one) > 1), None)
    if twice is not None:
        raise PlanError(f"Target {twice} is given twice. Give every target once, with the latency that holds on it.")
    if max(len(targets), len(latencies)) > 1 and len(targets) != len(latencies):
        raise PlanError(
            f"Targets and latencies pair in the order given, one --latency for every --target, but there "
            f"{'is' if len(targets) == 1 else 'are'} {_listed(targets, 'target', 'targets')} and "
            f"{_listed(latencies, 'latency', 'latencies')}. Give one --latency behind every --target."
        )


def _listed(values: Sequence[object], one: str, more: str) -> str:
    """``1 target (onnxruntime-cpu)``, ``no latency``."""
    if not values:
        return f"no {one}"
    return f"{len(values)} {one if len(values) == 1 else more} ({', '.join(map(str, values))})"


def describe_budgets(budgets: Sequence[Budget]) -> str:
    """``60%`` for latency alone, else ``latency 60%, file size 10MB``."""
    if len(budgets) == 1 and budgets[0].resource == "latency":
        return str(budgets[0])
    return ", ".join(f"{budget.limited.words} {budget}" for budget in budgets)


@dataclass(frozen=True)
class Metric:
    """What networks are judged by. ``name``: in words; ``unit``: ``%`` of a fraction 0-1 that is shown in percent, else
    that of its values (``dB``, "" for none); ``better``: ``higher`` or ``lower``."""

    name: str = "accuracy"
    unit: str = "%"
    better: str = "higher"

    def __post_init__(self) -> None:
        if self.better not in ("higher", "lower"):
            raise PlanError(f"better={self.better!r} of metric {self.name} is not understood. Give higher or lower.")

    @property
    def words(self) -> str:
        """The name at the beginning of a sentence."""
        return self.name[:1].upper() + self.name[1:]

    def gain(self, first: float, second: float) -> float:
        """By how much ``second`` is better than ``first``, in the metric's numbers."""
        return second - first if self.better == "higher" else first - second

    def worth(self, value: float) -> float:
        """A number from 0 to 1 that rises as the network gets better, for searches: a share of 1 is itself."""
        if self.unit == "%":
            return value if self.better == "higher" else 1.0 - value
        share = 1.0 / (1.0 + math.exp(-math.asinh(value)))
        return share if self.better == "higher" else 1.0 - share

    def value_of(self, worth: float) -> float:
        """What :meth:`worth` was given."""
        if self.unit == "%":
            return worth if self.better == "higher" else 1.0 - worth
        share = min(max(worth if self.better == "higher" else 1.0 - worth, 1e-15), 1 - 1e-15)
        return math.sinh(math.log(share / (1.0 - share)))

    def said(self, value: float) -> str:
        """``88.12%``, ``31.52 dB``, ``0.4127``: for a line in the terminal."""
        if self.unit == "%":
            return f"{value:.2%}"
        return f"{value:.4g} {self.unit}".strip()

    def distance(self, amount: float) -> str:
        """``0.41 points``, ``0.3 dB``: the size of a difference."""
        if self.unit == "%":
            return f"{100 * abs(amount):.2f} points"
        return f"{abs(amount):.3g} {self.unit}".strip()

    def change(self, difference: float) -> str:
        """``−0.41 points``, ``+0.3 dB``."""
        return f"{'−' if difference < 0 else '+'}{self.distance(difference)}"


ACCURACY = Metric()
"""Of classification."""


@dataclass(frozen=True)
class AccuracyBound:
    """How much accuracy must stay: ``max_loss`` points below the dense network's at most, or ``min_accuracy`` (0-1) at
    least. One of the two is given."""

    max_loss: float | None = None
    min_accuracy: float | None = None

    @classmethod
    def parse(cls, max_loss: float | None, min_accuracy: str | float | None) -> AccuracyBound | None:
        """Read ``1.0`` (points) or ``"88%"``, ``0.88``; None where neither is given.

        Raises:
            PlanError: both are given, one is not understood, or it is out of range.
        """
        if max_loss is None and min_accuracy is None:
            return None
        if max_loss is not None and min_accuracy is not None:
            raise PlanError("--max-loss and --min-accuracy both say how much accuracy must stay. Give one of them.")
        if min_accuracy is not None:
            return cls(min_accuracy=_share(min_accuracy))
        if isinstance(max_loss, bool) or not isinstance(max_loss, (int, float)) or not 0 < max_loss < 100:
            raise PlanError(
                f"--max-loss is {max_loss!r}; it is in points of accuracy, above 0 and below 100. Give 1.0 for a "
                f"network that is at most one point below the dense one."
            )
        return cls(max_loss=float(max_loss))

    def least(self, dense: float, metric: Metric = ACCURACY) -> float:
        """The value of the metric that must stay, given the dense network's.

        ``max_loss`` is in points where the metric is a share, else in its unit.

        Raises:
            PlanError: the dense network itself is below it, or no accuracy at all would do; or ``min_accuracy`` is
                given for a metric that is no share of which more is better.
        """
        if self.min_accuracy is not None:
            if metric.unit != "%" or metric.better != "higher":
                raise PlanError(
                    f"--min-accuracy is a share that must stay, and this task measures {metric.name}, {metric.better} "
                    f"is better. Give --max-loss, in {metric.unit or 'its own numbers'}."
                )
            if self.min_accuracy > dense + ROUNDING:
                raise PlanError(
                    f"--min-accuracy {_percent(self.min_accuracy)} is above what the dense network has on the "
                    f"validation images, {_percent(dense)}. Give less, or train the dense network further."
                )
            return self.min_accuracy
        assert self.max_loss is not None
        if metric.better == "lower":
            return dense + self.max_loss / (100 if metric.unit == "%" else 1)
        if metric.unit != "%":
            return dense - self.max_loss
        least = dense - self.max_loss / 100
        if least <= 0:
            raise PlanError(
                f"--max-loss {self.max_loss:g} is no less than all that the dense network has on the validation "
                f"images, {_percent(dense)}. Give fewer points."
            )
        return least

    def __str__(self) -> str:
        if self.max_loss is not None:
            return f"accuracy loss ≤ {self.max_loss:g} point{'s' if self.max_loss != 1 else ''}"
        assert self.min_accuracy is not None
        return f"accuracy ≥ {_percent(self.min_accuracy)}"


ROUNDING = 1e-9
"""Accuracies that differ by less are equal."""


def _share(text: str | float) -> float:
    """An accuracy as a fraction."""
    hint = "Give a share of the images such as 88% or 0.88."
    if isinstance(text, (int, float)) and not isinstance(text, bool):
        text = f"{float(text)!r}"
    match = re.fullmatch(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(%)?\s*", str(text), re.ASCII)
    if match is None:
        raise PlanError(f"--min-accuracy {text!r} is not understood. {hint}")
    value = float(match[1]) / (100 if match[2] else 1)
    if not 0 < value <= 1:
        raise PlanError(f"--min-accuracy {text!r} must be above 0 and at most 100%. {hint}")
    return value


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.4g}%"
