"""The front job: search a Pareto front, measure and fine-tune some of its points, carry a picked one to the end.

A run folder holds evaluations.sqlite3 (every evaluation a row), front.json, front.html, and a run folder of the main
job for every point that was carried further (``points/3``, ``picked/latency=3ms``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from scipy.stats import spearmanr

from secateurs.data import Data
from secateurs.errors import DataError, PlanError
from secateurs.evaluation import VALIDATED, Evaluator, make_evaluator
from secateurs.job import Job, Result, calibration_batches
from secateurs.latency.store import Store
from secateurs.models import Loaded
from secateurs.plan import Budget
from secateurs.planning import EVALUATIONS, Legal, Planner, name_of, target_label, versions
from secateurs.profiling import DEFAULT_TARGET, open_target, profile
from secateurs.progress import Progress, silent
from secateurs.report.front_page import render_front
from secateurs.report.front_record import Front, FrontPoint, Tuned
from secateurs.run_folder import RunFolder
from secateurs.search.hamp.picked import FILE
from secateurs.search.hamp.search import Settings as SearchSettings
from secateurs.search.hamp.strategy import Hamp
from secateurs.search.problem import Problem, Solution
from secateurs.search.rows import FileRows
from secateurs.settings import Settings
from secateurs.structure import trace

ROOM = 1.15
"""Budget of a point that is carried further, as a multiple of its predicted cost: the point itself is the choice, and
the latency model may be off by some percent."""


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
            values = {item.name: raw[item.name] for item in fields(cls)}
        except KeyError as error:
            raise DataError(f"The front's job.json lacks {error}: another version wrote it. Start anew.") from error
        return cls(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})


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
        """
        if self.ray is not None:
            from secateurs.search.hamp.cluster import connect, require_label

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


@dataclass
class FrontJob:
    """One front: its inputs, its folder, and who works. ``resume_with``: the command that continues in the folder."""

    loaded: Loaded
    data: Data
    settings: FrontSettings
    folder: RunFolder
    example: Any
    crew: Crew = field(default_factory=Crew)
    command: str = ""
    resume_with: str = ""
    store: Path | None = None
    progress: Progress = silent

    def run(self) -> Front:
        """The front, searched and with its chosen points carried further; what is done already is read.

        Raises:
            SecateursError: the input is wrong, a file cannot be written, or a runtime failed.
        """
        path = self.folder.path / FILE
        self.crew.check(self.settings.target)
        front = Front.load(path) if path.exists() else self._search()
        self._write(front)
        if self.settings.points:
            for point in front.spread(self.settings.points):
                if front.point(point.number).tuned is None:
                    where = f"points/{point.number}"
                    front = self._with_tuned(front, point, self.carry(front, str(point.number), where), where)
                    self._write(front)
        return front

    def pick(self, front: Front, wanted: str) -> Result:
        """A picked point carried through repair, fine-tuning, export and measurement, in ``picked/…``.

        Args:
            front: the front.
            wanted: ``knee``, ``point=N``, or a budget such as ``latency=3ms``: then the most accurate network of the
                front that was *measured* to be within it.

        Raises:
            PlanError: it is none of these.
            InfeasibleBudgetError: no network of the front is within the budget.
        """
        name, _, value = wanted.partition("=")
        folder = f"picked/{wanted.replace('/', '_')}"
        if wanted == "knee":
            return self.carry(front, str(front.knee().number), folder)
        if name == "point" and value.isdigit():
            return self.carry(front, str(front.point(int(value)).number), folder)
        if name.replace("-", "_") not in front.dense_costs or not value:
            raise PlanError(
                f"--pick {wanted!r} is not understood. Give knee, point=N, or a budget of one of the front's costs "
                f"({', '.join(front.dense_costs)}), such as {front.main}=60%."
            )
        return self.carry(front, wanted, folder)

    def carry(self, front: Front, wanted: str, folder: str) -> Result:
        """The main job on one point (its number) or within one budget (``latency=3ms``), in a folder of its own."""
        if wanted.isdigit():
            point = front.point(int(wanted))
            ratio = min(0.99, ROOM * point.costs[front.main] / front.dense_costs[front.main])
            budgets, points = {front.main: f"{100 * ratio:.2f}%"}, (point,)
        else:
            name, _, value = wanted.partition("=")
            resource = name.replace("-", "_")
            Budget.parse(value, resource)
            budgets, points = {resource: value}, front.points
        settings = self._main_settings(front, budgets)
        path = self.folder.path / folder
        identity = {**settings.to_dict(), "source": dict(self.loaded.source), "data": self.data.name}
        path.parent.mkdir(exist_ok=True)
        resuming = (path / "job.json").exists()
        opened = RunFolder.resume(path, identity) if resuming else RunFolder.create(path, identity)
        with opened as run_folder:
            run_folder.write(FILE, front.model_copy(update={"points": points}).to_json())
            command = f"{self.resume_with} --pick {f'point={wanted}' if wanted.isdigit() else wanted}"
            job = Job(self.loaded, self.data, settings, run_folder, self.example, command, self.store, self.progress)
            return job.run()

    def _main_settings(self, front: Front, budgets: Mapping[str, str]) -> Settings:
        shared = ("target", "threads", "batch", "seed", "epochs", "min_width", "blocks", "keep", "barrier")
        values: dict[str, Any] = {name: getattr(self.settings, name) for name in shared}
        return Settings(**values, **budgets, strategy="front", criterion=front.criterion)

    def _with_tuned(self, front: Front, point: FrontPoint, result: Result, where: str) -> Front:
        pruned = result.record.pruned
        tuned = Tuned(
            folder=where,
            accuracy=pruned.accuracy,
            accuracy_recalibrated=pruned.accuracy_recalibrated,
            latency_ms=pruned.latency_ms,
            latency_ratio=pruned.latency_ms / result.record.dense.latency_ms,
            file_bytes=pruned.file_bytes,
        )
        points = tuple(p.model_copy(update={"tuned": tuned}) if p.number == point.number else p for p in front.points)
        both = [(p.error, 1 - p.tuned.accuracy) for p in points if p.tuned is not None]
        ranks = float(spearmanr(*zip(*both, strict=True)).statistic) if len(both) > 2 else float("nan")
        return front.model_copy(
            update={
                "points": points,
                "rank_correlation": ranks if ranks == ranks else None,
                "dense_accuracy": result.record.dense.accuracy,
            }
        )

    def _search(self) -> Front:
        """The front by the search; every evaluation is a row in the folder, so a killed search goes on where it was."""
        settings = self.settings
        with self.progress.task("trace"):
            graph = trace(self.loaded.module, self.example, barriers=settings.barrier, keep=settings.keep)
        target = open_target(settings.target)
        costs = None
        if "latency" in settings.objectives:
            costs = profile(
                graph,
                target,
                threads=settings.threads,
                batch=settings.batch,
                store=Store(self.store, progress=self.progress),
                seed=settings.seed,
                progress=self.progress,
            )
        search = Hamp(settings.search())
        planner = Planner(
            graph,
            costs,
            search,
            settings.criterion,
            seed=settings.seed,
            legal=Legal(min_width=settings.min_width, blocks=settings.blocks),
            target=target_label(target.fingerprint(settings.threads)),
            data=calibration_batches(self.data),
            resources=settings.objectives,
            batch=settings.batch,
            progress=self.progress,
        )
        evaluator = make_evaluator(
            graph,
            planner.scores,
            self.data.calibration,
            self.data.validation.take(settings.images),
            classes=self.data.classes,
            source=self.loaded.source,
        )
        rows = FileRows(self.folder.path / EVALUATIONS)
        free = planner.problem(dict.fromkeys(settings.objectives, 1.0))
        problem = replace(free, evaluator=evaluator, rows=rows)
        with self.crew.at_work(evaluator):
            solution = search.solve(problem, seed=settings.seed, progress=self.progress)
            dense = problem.evaluate(problem.widest)
        return self._record(planner, problem, solution, 1.0 - dense.accuracy)

    def _record(self, planner: Planner, problem: Problem, solution: Solution, dense_error: float) -> Front:
        details, spec, main = solution.details, problem.spec, self.settings.objectives[0]
        ordered = sorted(solution.candidates, key=lambda c: (-c.predicted[main], -(c.accuracy or 0.0)))
        points = []
        for number, candidate in enumerate(ordered):
            inside = {g for block in candidate.removed for g in spec.blocks[block].groups}
            points.append(
                FrontPoint(
                    number=number,
                    error=1.0 - (candidate.accuracy or 0.0),
                    costs=dict(candidate.predicted),
                    widths={
                        group.name: 0 if g in inside else int(candidate.widths[g])
                        for g, group in enumerate(spec.groups)
                    },
                    removed=tuple(spec.blocks[block].name for block in sorted(candidate.removed)),
                )
            )
        return Front(
            model=self.loaded.name,
            data=self.data.name,
            target=planner.target,
            criterion=name_of(planner.criterion_used),
            seed=self.settings.seed,
            created=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
            objectives=tuple(details["objectives"]),
            units={constraint.name: constraint.model.unit for constraint in problem.constraints},
            dense_error=dense_error,
            dense_costs=dict(planner.dense_costs),
            group_sizes={group.name: group.units for group in spec.groups},
            points=tuple(points),
            seeds=tuple((float(cost), float(error)) for cost, error in details["seeds"]),
            history=tuple(details["history"]),
            evaluations=details["evaluations"],
            stopped=details["stopped"],
            images=self.settings.images,
            command=self.command,
            resume=self.resume_with,
            versions=versions(),
        )

    def _write(self, front: Front) -> None:
        self.folder.write(FILE, front.to_json())
        self.folder.write("front.html", render_front(front))
