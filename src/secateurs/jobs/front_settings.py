"""What decides a front, and who works on it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from secateurs.budgets import Budget
from secateurs.errors import PlanError
from secateurs.jobs.settings import as_json, check_kinds, read_settings
from secateurs.latency.targets import DEFAULT_TARGET
from secateurs.search.legal import VALIDATED

if TYPE_CHECKING:
    from secateurs.search.hamp.search import HampSettings


@dataclass(frozen=True)
class FrontSettings:
    """What decides a front.

    ``objectives``: resources beside the error (``latency``, ``memory``, ``file_size``, ``macs``), one to three;
    ``evaluations``/``minutes``: of the search, whichever ends first (None: no bound); ``images``: that candidates are
    validated on; ``screen``: first look on so many images (None: none); ``points``: how many of the front are
    fine-tuned for ``epochs`` (None: by the number of images) and measured (0: none); the others as in
    :class:`secateurs.jobs.settings.Settings`.
    """

    objectives: tuple[str, ...] = ("latency",)
    target: str = DEFAULT_TARGET
    criterion: str | None = None
    threads: int = 1
    batch: int = 1
    seed: int = 0
    evaluations: int | None = 600
    minutes: float | None = None
    population: int = 40
    images: int = VALIDATED
    screen: int | None = None
    points: int = 6
    epochs: int | None = None
    min_width: int | None = None
    blocks: bool = True
    keep: tuple[str, ...] = ()
    barrier: tuple[str, ...] = ()
    allow_chance: bool = False

    def __post_init__(self) -> None:
        check_kinds(self)
        known = ("latency", "memory", "file_size", "macs")
        unknown = [name for name in self.objectives if name not in known]
        if unknown or not 1 <= len(set(self.objectives)) == len(self.objectives) <= 3:
            raise PlanError(
                f"Objectives {', '.join(self.objectives) or '(none)'}: give one to three different ones of "
                f"{', '.join(known)}; the error is always one."
            )
        if self.screen is not None and self.screen >= self.images:
            raise PlanError(
                f"Screening on {self.screen} images saves nothing where networks are judged on {self.images}. "
                f"Give --screen fewer, or leave it out."
            )
        self.search()

    def search(self) -> HampSettings:
        """Settings of the search."""
        from secateurs.search.hamp.search import HampSettings

        return HampSettings(
            population=self.population,
            evaluations=self.evaluations,
            minutes=self.minutes,
            screen=self.screen,
            local_every=3,
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return as_json(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> FrontSettings:
        """Read what :meth:`to_dict` gave; other keys are ignored, and what an older version lacked has its default."""
        return cls(**read_settings(cls, raw))


@dataclass(frozen=True)
class Pick:
    """One network of a front. ``text``: as the user gave it; ``number``: of a point; ``budget``: the best within it;
    neither: the knee."""

    text: str
    number: int | None = None
    budget: Budget | None = None

    @classmethod
    def of(cls, number: int) -> Pick:
        """The point of this number."""
        return cls(f"point={number}", number=number)

    @classmethod
    def parse(cls, text: str, resources: Sequence[str]) -> Pick:
        """Read ``knee``, ``point=N`` or ``latency=3ms``; ``resources``: the front's costs, the main one first.

        Raises:
            PlanError: it is none of these.
        """
        name, _, value = text.partition("=")
        resource = name.strip().replace("-", "_")
        if text == "knee":
            return cls(text)
        if name == "point" and re.fullmatch("[0-9]{1,9}", value):
            return cls(text, number=int(value))
        if resource in resources and value:
            return cls(text, budget=Budget.parse(value, resource))
        raise PlanError(
            f"--pick {text!r} is not understood. Give knee, point=N, or a budget of one of the front's costs "
            f"({', '.join(resources)}), such as {resources[0]}=60%."
        )
