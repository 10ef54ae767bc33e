"""Everything that decides the outcome of the main job, as one frozen value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from secateurs.errors import DataError, PlanError
from secateurs.plan import Budget, parse_budgets
from secateurs.profiling import DEFAULT_TARGET
from secateurs.search_options import DEFAULT_STRATEGY, Legal, SearchOptions

REPAIRS = {
    "least-squares": "every layer is refitted on calibration images, then batch-norm statistics are re-estimated",
    "statistics": "batch-norm statistics are re-estimated on calibration images",
    "none": "nothing",
}
DEFAULT_REPAIR = "least-squares"
DEFAULT_PENALTY = 0.0
SCHEDULES = {
    "once": "one cut, then all epochs",
    "gradual": "up to three cuts, each planned anew, half of the epochs between them",
    "soft": "half of the epochs before the cut, while it is decided again and again what stays",
    "regrow": "half of the epochs before the cut, down to the planned widths; a surplus that shrinks may return",
}


@dataclass(frozen=True)
class Settings:
    """Settings of one run.

    ``latency``, ``memory``, ``file_size``, ``macs``: the budgets, one at least (``60%``, ``2x``, ``3.2ms``, ``20MB``,
    ``300M``); ``criterion``: None takes the strategy's own or the default;
    ``threads``/``batch``: of the measured runtime; ``repair``: of the cut weights, one of :data:`REPAIRS`; ``epochs``:
    of fine-tuning (0: none), ``lr``: its peak rate (None: the recipe's choice), ``train_batch`` and ``precision``
    (``auto``, ``fp32``, ``bf16``): also of fine-tuning; ``schedule``: when is cut, one of :data:`SCHEDULES`;
    ``features``: weight of the distillation of inner activations (0: none); ``calibrate_values``: networks tried to
    make values of groups comparable (0: none); ``min_width``, ``blocks``, ``channels``: which networks are legal;
    ``elements``: scope in which kernel elements may go too (None: they stay), ``penalty``: share of the steps of
    fine-tuning in which they decay before they are zero (0: they are cut at once); ``finalists``: of strategy ``lap``,
    networks that are trained for an epoch each to choose among them (1: the best untrained one is taken);
    ``keep``/``barrier``: patterns of what stays whole and of what is not pruned through.
    """

    latency: str | None = None
    memory: str | None = None
    file_size: str | None = None
    macs: str | None = None
    target: str = DEFAULT_TARGET
    strategy: str = DEFAULT_STRATEGY
    criterion: str | None = None
    threads: int = 1
    batch: int = 1
    seed: int = 0
    epochs: int = 1
    lr: float | None = None
    train_batch: int = 128
    precision: str = "auto"
    repair: str = DEFAULT_REPAIR
    schedule: str = "once"
    features: float = 0.0
    calibrate_values: int = 0
    min_width: int = 1
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

    def __post_init__(self) -> None:
        if not self.budgets:
            raise PlanError("No budget is given. Give --latency, --memory, --file-size or --macs, or several of them.")
        if self.repair not in REPAIRS:
            raise PlanError(f"Repair {self.repair!r} is unknown. Known: {', '.join(REPAIRS)}.")
        if self.schedule not in SCHEDULES:
            raise PlanError(f"Schedule {self.schedule!r} is unknown. Known: {', '.join(SCHEDULES)}.")
        if self.schedule in ("gradual", "soft") and self.strategy == "lap":
            raise PlanError(
                f"Schedule {self.schedule!r} plans more than once, but strategy lap judges hundreds of networks for "
                "every plan. Give --schedule once or regrow, or another --strategy."
            )
        if self.finalists > 1 and (self.strategy != "lap" or self.epochs == 0):
            raise PlanError(
                "finalists are the best networks of strategy lap, trained for an epoch each. Give --strategy lap and "
                "at least one epoch, or leave --finalists out."
            )
        if self.schedule != "once" and self.epochs == 0:
            raise PlanError(f"Schedule {self.schedule!r} trains before it cuts, but --epochs is 0. Give at least 1.")
        if self.elements is None and not self.channels and not self.blocks:
            raise PlanError("Neither channels nor blocks may go. Allow one of them, or give --elements.")
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
        if not 0 <= self.penalty < 1:
            raise PlanError(f"penalty is {self.penalty}; it is a share of the steps, at least 0 and below 1.")
        for name in ("features", "calibrate_values"):
            if getattr(self, name) < 0:
                raise PlanError(f"{name} is {getattr(self, name)}; it must be at least 0.")
        for name, least in (
            ("threads", 1),
            ("batch", 1),
            ("epochs", 0),
            ("train_batch", 1),
            ("min_width", 1),
            ("finalists", 1),
        ):
            if getattr(self, name) < least:
                raise PlanError(f"{name} is {getattr(self, name)}; it must be at least {least}.")

    @property
    def budgets(self) -> tuple[Budget, ...]:
        """The budgets, the main one first."""
        return parse_budgets(self.latency, self.memory, self.file_size, self.macs)

    @property
    def legal(self) -> Legal:
        """Which networks the search may return."""
        return Legal(min_width=self.min_width, blocks=self.blocks, channels=self.channels)

    def search_options(self, folder: Path | None = None) -> SearchOptions:
        """Of searches that judge candidates, with the folder where they keep what they found."""
        return SearchOptions(self.episodes, self.warm_start, self.agent, folder)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "keep": list(self.keep), "barrier": list(self.barrier)}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Settings:
        """Read what :meth:`to_dict` gave; other keys are ignored.

        Raises:
            DataError: a setting is missing.
        """
        try:
            values = {item.name: raw[item.name] for item in fields(cls)}
        except KeyError as error:
            raise DataError(f"The run's job.json lacks {error}: another version wrote it. Start a new run.") from error
        return cls(**{**values, "keep": tuple(values["keep"]), "barrier": tuple(values["barrier"])})
