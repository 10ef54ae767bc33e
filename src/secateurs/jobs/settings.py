"""Everything that decides the outcome of the main job, as one frozen value."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_type_hints

from secateurs.budgets import AccuracyBound, Budget, describe_budgets, parse_budgets, several
from secateurs.errors import PlanError, checked
from secateurs.latency.targets import DEFAULT_TARGET
from secateurs.latency.targets._base import QUANTISED
from secateurs.latency.targets.opening import in_float, make_target
from secateurs.recover.amount import LARGEST_BATCH, default_batch, default_epochs
from secateurs.recover.schedules import SCHEDULES
from secateurs.recover.schedules import schedule as find_schedule
from secateurs.search.legal import DEFAULT_STRATEGY, PRECISION_MIXES, Legal, SearchOptions, check_mixing, strategy_kind

REPAIRS = {
    "least-squares": "every layer is refitted on calibration images, then batch-norm statistics are re-estimated",
    "statistics": "batch-norm statistics are re-estimated on calibration images",
    "none": "nothing",
}
PRECISIONS = ("auto", "fp32", "bf16")
"""Number formats of fine-tuning; ``auto`` takes the faster one."""
DEFAULT_REPAIR = "least-squares"
DEFAULT_PENALTY = 0.0


def as_json(settings: Any) -> dict[str, Any]:
    """The fields of a frozen value of settings as JSON values."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(settings).items()}


def defaults(kind: Any) -> dict[str, Any]:
    """The default of every field of such a value that has one, as JSON values: what a run of an older version, which
    did not know the setting, was made with."""
    known = {item.name: item.default for item in fields(kind) if item.default is not MISSING}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in known.items()}


def read_settings(kind: Any, raw: Mapping[str, Any]) -> dict[str, Any]:
    """Values for such a kind from what :func:`as_json` gave; other keys are ignored."""
    held = {**defaults(kind), **{item.name: raw[item.name] for item in fields(kind) if item.name in raw}}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in held.items()}


_LARGEST = 2**63 - 1


def check_kinds(settings: Any) -> None:
    """Nothing, if every field of such a value is of the kind that it is declared with, and numbers are finite.

    Raises:
        PlanError: naming the first that is not.
    """
    for name, kind in get_type_hints(type(settings)).items():
        value = getattr(settings, name)
        given = tuple(value) if isinstance(value, list) else value
        option = f"--{name.replace('_', '-')}"
        checked(kind, given, f"Setting {name}", f"Give another value for {option} ({name}=).")
        if isinstance(value, float) and not math.isfinite(value):
            raise PlanError(f"Setting {name} is {value}. Give a finite number for {option} ({name}=).")
        if isinstance(value, int) and abs(value) > _LARGEST:
            raise PlanError(f"Setting {name} has {len(str(abs(value)))} digits. Give a smaller number for {option}.")
    if not settings.seed >= 0:
        raise PlanError(f"seed is {settings.seed}; it must be at least 0 and below 2^63. Give --seed 0.")


@dataclass(frozen=True)
class Aim:
    """What a run asks of one of its targets.

    ``target``: as it was asked for; ``name``: how limits on it are called, "" where there is no other target;
    ``place``: what sets its files apart, "" of the first target, whose file is the one to deploy.
    """

    target: str
    budgets: tuple[Budget, ...]
    name: str = ""
    place: str = ""

    def stage(self, name: str) -> str:
        """What a stage of this target is called in the run's folder."""
        return f"{name} on {self.target}" if self.place else name


@dataclass(frozen=True)
class Settings:
    """Settings of one run.

    ``latency``, ``memory``, ``file_size``, ``macs``: the budgets, one at least (``60%``, ``2x``, ``3.2ms``, ``20MB``,
    ``300M``); ``max_loss`` (points) or ``min_accuracy`` (``88%``): instead of ``latency``, how much validation accuracy
    must stay after the repair: the fastest network that does is looked for;
    ``criterion``: None takes the strategy's own or the default;
    ``target``: one, or several, each with a ``latency`` of its own in the same order: the first one's file is deployed,
    the other budgets hold on it, and threads and batch are the same on all;
    ``threads``/``batch``: of the measured runtime; ``repair``: of the cut weights, one of :data:`REPAIRS`; ``epochs``:
    of fine-tuning (0: none), ``lr``: its peak rate (None: the recipe's choice), ``train_batch`` and ``precision``
    (``auto``, ``fp32``, ``bf16``): also of fine-tuning, epochs and batch by the number of images where they are None;
    ``schedule``: when is cut, one of :data:`SCHEDULES`;
    ``features``: weight of the distillation of inner activations (0: none); ``calibrate_values``: networks tried to
    make values of groups comparable (0: none); ``min_width`` (None: by the criterion), ``blocks``,
    ``channels``: which networks are legal;
    ``elements``: scope in which kernel elements may go too (None: they stay), ``penalty``: share of the steps of
    fine-tuning in which they decay before they are zero (0: they are cut at once); ``precision_mix``: on targets of
    quantised files, ``off``: every layer that can be is quantised, or ``auto``: as the search decides;
    ``quantise_aware``: the last part of the training computes with numbers rounded as in the deployed int8 file;
    ``finalists``: of strategy ``lap``, networks that are trained for an epoch each to choose among them (1: the best
    untrained one);
    ``keep``/``barrier``: patterns of what stays whole and of what is not pruned through; ``allow_chance``: go on where
    the dense network is no better than chance; ``dense_epochs``: for which the dense network is fine-tuned to compare
    with (None: as long as the pruned one where that is cheap, 0: not at all).
    """

    latency: str | tuple[str, ...] | None = None
    memory: str | None = None
    file_size: str | None = None
    macs: str | None = None
    max_loss: float | None = None
    min_accuracy: str | None = None
    target: str | tuple[str, ...] = DEFAULT_TARGET
    strategy: str = DEFAULT_STRATEGY
    criterion: str | None = None
    threads: int = 1
    batch: int = 1
    seed: int = 0
    epochs: int | None = None
    lr: float | None = None
    train_batch: int | None = None
    precision: str = "auto"
    repair: str = DEFAULT_REPAIR
    schedule: str = "once"
    features: float = 0.0
    calibrate_values: int = 0
    min_width: int | None = None
    blocks: bool = True
    keep: tuple[str, ...] = ()
    barrier: tuple[str, ...] = ()
    episodes: int | None = None
    warm_start: str | None = None
    agent: str | None = None
    finalists: int = 1
    channels: bool = True
    elements: str | None = None
    penalty: float = DEFAULT_PENALTY
    precision_mix: str = "off"
    quantise_aware: bool = False
    allow_chance: bool = False
    dense_epochs: int | None = None

    def __post_init__(self) -> None:
        check_kinds(self)
        if self.lr is not None and not 0 < self.lr < math.inf:
            raise PlanError(f"lr is {self.lr}; it must be a number above 0. Give --lr 0.01, or leave it out.")
        if self.bound is not None:
            self._check_bound(self.bound)
        elif not self.budgets:
            raise PlanError(
                "No budget is given. Give --latency, --memory, --file-size or --macs, or several of them; or "
                "--max-loss or --min-accuracy for the fastest network that keeps so much accuracy."
            )
        if self.repair not in REPAIRS:
            raise PlanError(f"Repair {self.repair!r} is unknown. Known: {', '.join(REPAIRS)}.")
        if self.precision not in PRECISIONS:
            raise PlanError(f"Precision {self.precision!r} is unknown. Known: {', '.join(PRECISIONS)}.")
        self._check_mix()
        self._check_rounding()
        if self.schedule not in SCHEDULES:
            raise PlanError(f"Schedule {self.schedule!r} is unknown. Known: {', '.join(SCHEDULES)}.")
        anew = self.schedule != Settings.schedule and find_schedule(self.schedule).plans_anew
        if anew and not strategy_kind(self.strategy).replans:
            raise PlanError(
                f"Schedule {self.schedule!r} plans more than once, but strategy {self.strategy} judges hundreds of "
                "networks for every plan. Give --schedule once or regrow, or another --strategy."
            )
        if self.finalists > 1 and (self.epochs == 0 or not strategy_kind(self.strategy).finalists):
            raise PlanError(
                "finalists are the best networks of strategy lap, trained for an epoch each. Give --strategy lap and "
                "at least one epoch, or leave --finalists out."
            )
        if self.schedule != "once" and self.epochs == 0:
            raise PlanError(f"Schedule {self.schedule!r} trains before it cuts, but --epochs is 0. Give at least 1.")
        if self.elements is None and not self.channels and not self.blocks:
            raise PlanError("Neither channels nor blocks may go. Allow one of them, or give --elements.")
        self._check_elements()
        if not 0 <= self.penalty < 1:
            raise PlanError(f"penalty is {self.penalty}; it is a share of the steps, at least 0 and below 1.")
        for name in ("features", "calibrate_values"):
            if getattr(self, name) < 0:
                raise PlanError(f"{name} is {getattr(self, name)}; it must be at least 0.")
        for name, least in (
            ("threads", 1),
            ("batch", 1),
            ("epochs", 0),
            ("dense_epochs", 0),
            ("train_batch", 1),
            ("min_width", 1),
            ("finalists", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise PlanError(f"{name} is {getattr(self, name)}; it must be at least {least}.")

    def _check_elements(self) -> None:
        """Nothing, if the other settings go with kernel elements, where these are pruned."""
        if self.elements is not None and len(self.targets) > 1:
            raise PlanError(
                f"Which layers are sparse is decided by the time on one target, but there are {len(self.targets)}. "
                f"Give one --target, or no --elements."
            )
        if self.elements is not None and self.latency is None:
            raise PlanError("Which layers are sparse is decided by measured time. Give --latency, or no --elements.")
        if self.elements is not None and (self.schedule != "once" or self.calibrate_values):
            raise PlanError(
                "With kernel elements values are measured per layer and the cut comes once. Leave out --schedule and "
                "--calibrate-values; --penalty lets elements decay before they go."
            )
        if self.penalty and (self.elements is None or self.epochs == 0):
            raise PlanError(
                "A penalty lets kernel elements decay while the network is trained. Give --elements and at least one "
                "epoch, or leave --penalty out."
            )

    def _check_mix(self) -> None:
        """Nothing, if the other settings go with the mix of precisions."""
        if self.precision_mix not in PRECISION_MIXES:
            raise PlanError(f"precision_mix {self.precision_mix!r} is unknown. Known: {', '.join(PRECISION_MIXES)}.")
        if self.precision_mix == "off":
            return
        if len(self.targets) > 1:
            raise PlanError(
                f"Which layers stay in float is decided by the time on one target, but there are {len(self.targets)}. "
                f"Give one --target, or leave --precision-mix out."
            )
        if in_float(self.targets[0]) == self.targets[0]:
            raise PlanError(
                f"Target {self.targets[0]} runs files of one precision, so there are none to mix. Give a target such "
                f"as {DEFAULT_TARGET}:{QUANTISED[0]}, or leave --precision-mix out."
            )
        check_mixing(self.strategy)
        if not self.needs_latency:
            raise PlanError("Which layers stay in float is decided by measured time. Give --latency, or no mix.")
        clashes = {
            "--elements": self.elements is not None,
            f"--schedule {self.schedule}": self.schedule != "once",
            "--calibrate-values": self.calibrate_values > 0,
            "--memory": self.memory is not None,
            "--file-size": self.file_size is not None,
        }
        for other, given in clashes.items():
            if given:
                raise PlanError(
                    f"--precision-mix {self.precision_mix} does not go with {other}. Leave one of them out."
                )

    def _check_rounding(self) -> None:
        """Nothing, if there is an int8 file to train for, and a training."""
        if self.quantise_aware and make_target(self.targets[0]).precision not in QUANTISED:
            raise PlanError(
                f"Target {self.targets[0]} runs float files, so there is no quantisation to train with. Give a target "
                f"such as {DEFAULT_TARGET}:{QUANTISED[0]}, or leave --quantise-aware out."
            )
        if self.quantise_aware and self.epochs == 0:
            raise PlanError("--quantise-aware is a way to train, but --epochs is 0. Give at least 1, or leave it out.")

    def _check_bound(self, bound: AccuracyBound) -> None:
        """Nothing, if the other settings go with a bound on accuracy."""
        option = "--min-accuracy" if bound.max_loss is None else "--max-loss"
        if len(self.targets) > 1:
            raise PlanError(
                f"{option} asks how fast a network can be on one target, but there are {len(self.targets)}. Give one "
                f"--target, or a --latency for each."
            )
        if self.latency is not None:
            raise PlanError(
                f"{option} asks how fast a network can be, and --latency {self.latency} says it. Give one of them."
            )
        clashes = {
            "--elements": self.elements is not None,
            f"--schedule {self.schedule}": self.schedule != "once",
            "--calibrate-values": self.calibrate_values > 0,
            f"--strategy {self.strategy}": not strategy_kind(self.strategy).replans,
        }
        for other, given in clashes.items():
            if given:
                raise PlanError(
                    f"{option} plans, cuts and repairs a network for every latency that it tries, which does not go "
                    f"with {other}. Leave that out, or give --latency."
                )

    def settled(self, images: int) -> Settings:
        """The same with epochs and batch of fine-tuning for so many training images, where they are not given."""
        batch = default_batch(images) if self.train_batch is None else self.train_batch
        epochs = default_epochs(images, batch) if self.epochs is None else self.epochs
        return replace(self, epochs=epochs, train_batch=batch)

    def resumed(self, held: Mapping[str, Any]) -> Settings:
        """The same for a run that was begun with ``held``: what is left out here (None) is as it was there. Another
        version may have had another default, or have deduced another value."""
        known = read_settings(Settings, held)
        return replace(self, **{name: value for name, value in known.items() if getattr(self, name) is None})

    @property
    def training(self) -> tuple[int, int]:
        """Epochs and batch of fine-tuning; those for many images where they are not settled."""
        batch = LARGEST_BATCH if self.train_batch is None else self.train_batch
        return 1 if self.epochs is None else self.epochs, batch

    @cached_property
    def budgets(self) -> tuple[Budget, ...]:
        """The budgets, the main one first."""
        return parse_budgets(self.latency, self.memory, self.file_size, self.macs, self.targets)

    @property
    def targets(self) -> tuple[str, ...]:
        """Every target, the one to deploy on first."""
        return several(self.target)

    @cached_property
    def aims(self) -> tuple[Aim, ...]:
        """What is asked of every target; budgets that name none hold on the first."""
        first, *others = self.targets
        if not others:
            return (Aim(first, self.budgets),)
        found = [Aim(first, tuple(one for one in self.budgets if one.target in ("", first)), first)]
        for number, target in enumerate(others, 2):
            place = re.sub(r"[^\w.-]+", ".", target).strip(".")
            taken = {one.place for one in found}
            budgets = tuple(one for one in self.budgets if one.target == target)
            found.append(Aim(target, budgets, target, f"{place}.{number}" if place in taken else place))
        return tuple(found)

    @cached_property
    def bound(self) -> AccuracyBound | None:
        """How much accuracy must stay, where that is asked for instead of a latency."""
        return AccuracyBound.parse(self.max_loss, self.min_accuracy)

    @property
    def needs_latency(self) -> bool:
        """Whether latency is modelled."""
        return self.latency is not None or self.bound is not None

    @property
    def asked(self) -> str:
        """What is asked for, in words: ``60%``, ``macs 50%``, ``accuracy loss ≤ 1 point, file size 10MB``."""
        return ", ".join(filter(None, [str(self.bound or ""), describe_budgets(self.budgets)]))

    @property
    def legal(self) -> Legal:
        """Which networks the search may return."""
        return Legal(min_width=self.min_width, blocks=self.blocks, channels=self.channels)

    def search_options(self, folder: Path | None = None) -> SearchOptions:
        """Of searches that judge candidates; ``folder``: where they keep what they go on from."""
        return SearchOptions(self.episodes, self.warm_start, self.agent, folder)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return as_json(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Settings:
        """Read what :meth:`to_dict` gave; other keys are ignored, and what an older version lacked has its default."""
        return cls(**read_settings(cls, raw))


def unused(held: Mapping[str, Any], done: Collection[str], *, trained: bool) -> frozenset[str]:
    """Settings of a run begun with ``held`` that nothing was made with yet.

    ``done``: finished stages; ``trained``: whether there is a checkpoint of a training.
    """
    found: set[str] = set()
    early = held.get("schedule", "once") != "once" or held.get("finalists", 1) != 1 or "objectives" in held
    if not early and not trained and "finetune" not in done:
        found |= {"lr", "precision", "train_batch", "dense_epochs"}
        found |= set() if held.get("penalty") else {"epochs"}
    if "repair" not in done and held.get("max_loss") is None and held.get("min_accuracy") is None and not early:
        found |= {"repair"} if "plan" in done or not held.get("calibrate_values") else set()
    return frozenset(found)


def as_then(source: Mapping[str, Any], had: Any) -> Mapping[str, Any]:
    """Where a network is from, as the version that wrote ``had`` would have said it: nothing of one that is an object,
    and ``pixel / 255`` where nobody told how pixels reach it."""
    from secateurs.models.preprocessing import Preprocessing

    if not had and set(source) == {"preprocessing"}:
        return {}
    if source.get("preprocessing") is None and had:
        plain = json.loads(json.dumps(Preprocessing().to_dict()))
        return {**source, "preprocessing": plain if had.get("preprocessing") == plain else None}
    return source
