"""What decides a front, and who works on it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from secateurs.errors import DataError, PlanError, SecateursError
from secateurs.evaluation import VALIDATED, Evaluator
from secateurs.plan import Budget
from secateurs.profiling import DEFAULT_TARGET
from secateurs.search.hamp.search import Settings as SearchSettings


@dataclass(frozen=True)
class FrontSettings:
    """What decides a front.

    ``objectives``: resources beside the error (``latency``, ``memory``, ``file_size``, ``macs``), one to three;
    ``evaluations``/``minutes``: of the search, whichever ends first (None: no bound); ``images``: that candidates are
    validated on; ``screen``: first look on so many images (None: none); ``points``: how many of the front are
    fine-tuned for ``epochs`` and measured (0: none); the others as in :class:`secateurs.settings.Settings`.
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
    epochs: int = 1
    min_width: int = 1
    blocks: bool = True
    keep: tuple[str, ...] = ()
    barrier: tuple[str, ...] = ()

    def __post_init__(self) -> None:
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

    def search(self) -> SearchSettings:
        """Settings of the search."""
        return SearchSettings(
            population=self.population,
            evaluations=self.evaluations,
            minutes=self.minutes,
            screen=self.screen,
            local_every=3,
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> FrontSettings:
        """Read what :meth:`to_dict` gave; other keys are ignored.

        Raises:
            DataError: a setting is missing.
        """
        try:
            values: dict[str, Any] = {item.name: raw[item.name] for item in fields(cls)}
        except KeyError as error:
            raise DataError(f"The front's job.json lacks {error}: another version wrote it. Start anew.") from error
        values = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**values)


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
        if name == "point" and value.isdecimal():
            return cls(text, number=int(value))
        if resource in resources and value:
            return cls(text, budget=Budget.parse(value, resource))
        raise PlanError(
            f"--pick {text!r} is not understood. Give knee, point=N, or a budget of one of the front's costs "
            f"({', '.join(resources)}), such as {resources[0]}=60%."
        )


@dataclass(frozen=True)
class Crew:
    """Who judges candidates. ``workers``: processes of this machine, or Ray actors (None: one process, or as many
    actors as the cluster has room for); ``ray``: address of a cluster, ``auto`` or ``local``; ``threads``: of each."""

    workers: int | None = None
    ray: str | None = None
    threads: int | None = None

    def check(self, target: str) -> None:
        """Nothing, if latencies may be measured on this machine: on a cluster, if its node carries the target's label.

        Raises:
            TargetUnavailableError: it does not, or the cluster cannot be reached.
            SecateursError: Ray is not installed.
        """
        if self.ray is not None:
            try:
                from secateurs.search.hamp.cluster import connect, require_label
            except ImportError as error:
                raise SecateursError(
                    f"--ray needs {error.name or 'ray'}, which cannot be imported ({error}). Install the extra that "
                    f"provides it (pip install 'secateurs[ray]'), or judge on this machine with --workers."
                ) from error

            connect(self.ray, target)
            require_label(target)

    @contextlib.contextmanager
    def at_work(self, evaluator: Evaluator) -> Iterator[None]:
        """The evaluator judges with this crew inside."""
        if self.ray is not None:
            from secateurs.search.hamp.cluster import ray_pool

            evaluator.pool = ray_pool(evaluator.judge, self.ray, self.workers, self.threads or 1)
        elif self.workers is not None and self.workers > 1:
            from secateurs.search.hamp.processes import process_pool

            evaluator.pool = process_pool(evaluator.judge, self.workers, self.threads)
        try:
            yield
        finally:
            if evaluator.pool is not None:
                evaluator.pool.close()
                evaluator.pool = None
