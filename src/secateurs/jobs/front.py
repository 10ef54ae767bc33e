"""The front job: search a Pareto front and measure it, fine-tune some of its points, carry a picked one to the end.

A run folder holds evaluations.sqlite3 (every evaluation a row), values.sqlite3 (what units were measured to be worth),
front.json, front.html, and a run folder of the main job for every point that was carried further (``points/3``,
``picked/latency=3ms``).
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from secateurs.data import Data, look
from secateurs.data.tasks.check import check_task
from secateurs.errors import PlanError
from secateurs.importance.scoring import Scorer, calibration_batches
from secateurs.jobs.front_settings import FrontSettings, Pick
from secateurs.jobs.run_folder import RunFiles, RunFolder
from secateurs.jobs.settings import Settings
from secateurs.jobs.stages import Job, Result
from secateurs.judging.crew import Crew
from secateurs.judging.evaluator import NetworkEvaluator, make_evaluator
from secateurs.latency.store import Store
from secateurs.latency.targets import open_target
from secateurs.measure.networks import measured_latencies, measured_memory
from secateurs.measure.profile import profile
from secateurs.measure.sizes import files_seen, smallest
from secateurs.models import Loaded
from secateurs.planning.channels import Channels
from secateurs.planning.planner import Planner
from secateurs.progress import Progress, silent
from secateurs.provenance import name_of, target_label, versions
from secateurs.report.front_page import render_front
from secateurs.report.front_record import Front, FrontPoint, Tuned
from secateurs.resources import Seen
from secateurs.search.hamp.encoding import Encoding
from secateurs.search.hamp.evaluating import stored_networks
from secateurs.search.hamp.picked import FILE
from secateurs.search.hamp.strategy import Hamp
from secateurs.search.legal import Legal
from secateurs.search.problem import Candidate, Problem, Solution
from secateurs.search.rows import FileRows
from secateurs.structure import Graph, trace
from secateurs.structure.untouched import untouched


@dataclass
class FrontJob:
    """One front: its inputs, its folder, and who works.

    ``resume_with``: the command that continues in the folder; ``known``: folders of other fronts of the same problem,
    whose evaluations the search starts from.
    """

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
    known: tuple[Path, ...] = ()

    def run(self) -> Front:
        """The front, searched and with its chosen points carried further; what is done already is read.

        Raises:
            SecateursError: the input is wrong, a file cannot be written, or a runtime failed.
        """
        path = self.folder.files.front
        self.crew.check(self.settings.target)
        if path.exists() and not self.folder.sound(path):
            self.progress.say(f"{path} is not what the run wrote; it is made again from the evaluations that are kept.")
            self.folder.remove(path)
        front = Front.load(path) if path.exists() else self._search()
        front = front.model_copy(update={"resume": self.resume_with or front.resume})  # the folder may have moved
        self._write(front)
        if self.settings.points:
            for point in front.spread(self.settings.points):
                if front.point(point.number).tuned is None:
                    where = self.folder.files.point(point.number)
                    front = self._with_tuned(front, point, self.carry(front, Pick.of(point.number), where), where)
                    self._write(front)
        return front

    def pick(self, front: Front, wanted: str) -> Result:
        """A picked point carried through repair, fine-tuning, export and measurement, in ``picked/…``; a point that was
        carried so far already is only told again, from its folder in ``points/…``.

        Args:
            front: the front.
            wanted: ``knee``, ``point=N``, or a budget such as ``latency=3ms``: then the most accurate network of the
                front that was *measured* to be within it.

        Raises:
            PlanError: it is none of these, or the dense network.
            DataError: the front has no such point.
            InfeasibleBudgetError: no network of the front is within the budget.
        """
        pick = Pick.parse(wanted, tuple(front.dense_costs))
        folder = self.folder.files.picked(wanted, None if self._epochs_as_before else self.settings.epochs)
        if pick.budget is None:
            point = front.knee() if pick.number is None else front.point(pick.number)
            pick = Pick.of(point.number)
            if point.tuned is not None and self._epochs_as_before:
                folder = self.folder.path / point.tuned.folder
        return self.carry(front, pick, folder)

    @property
    def _epochs_as_before(self) -> bool:
        """Whether fine-tuning is as long as the front was made with."""
        return bool(self.settings.epochs == self.folder.job.get("epochs", self.settings.epochs))

    def carry(self, front: Front, pick: Pick, path: Path) -> Result:
        """The main job on one point, exactly as the front has it, or within one budget, in a folder of its own."""
        if pick.budget is None:
            point = front.point(int(pick.number or 0))
            if front.is_dense(point):
                raise PlanError(
                    f"Point {point.number} of the front is the dense network: there is nothing to cut. Pick another."
                )
            # Settings name what counts; no budget is held where a point was picked.
            share = min(0.9999, point.costs[front.main] / front.dense_costs[front.main])
            budgets = {front.main: f"{100 * share:.6g}%"}
        else:
            budgets = {pick.budget.resource: str(pick.budget)}
        files, same = RunFiles(path), {"source": dict(self.loaded.source), "data": self.data.name}
        if files.job.exists():  # begun for this pick, by an older version with other defaults maybe
            opened = RunFolder.resume(path, same)
            settings = Settings.from_dict(opened.job)
        else:
            settings = self._main_settings(front, budgets).settled(len(self.data.train))
            path.parent.mkdir(exist_ok=True)
            opened = RunFolder.create(path, {**settings.to_dict(), **same})
        with opened as run_folder:
            if not files.result.exists():
                files.search.mkdir(exist_ok=True)
                run_folder.write(files.search / FILE, front.model_copy(update={"picked": pick.number}).to_json())
                if self.folder.files.values.is_file():
                    FileRows(files.values).adopt(self.folder.files.values, holding="loss")
            command = f"{self.resume_with} --pick {shlex.quote(pick.text)}"
            command += "" if self._epochs_as_before else f" --epochs {settings.epochs}"
            job = Job(self.loaded, self.data, settings, run_folder, self.example, command, self.store, self.progress)
            return job.run()

    def _main_settings(self, front: Front, budgets: Mapping[str, str]) -> Settings:
        shared = {one.name for one in fields(Settings)} & {one.name for one in fields(FrontSettings)}
        values: dict[str, Any] = {name: getattr(self.settings, name) for name in shared} | dict(budgets)
        return Settings(**{**values, "strategy": "front", "criterion": front.criterion, "dense_epochs": 0})

    def _with_tuned(self, front: Front, point: FrontPoint, result: Result, where: Path) -> Front:
        pruned = result.record.pruned
        tuned = Tuned(
            folder=where.relative_to(self.folder.path).as_posix(),
            accuracy=pruned.accuracy,
            accuracy_recalibrated=pruned.accuracy_recalibrated,
            latency_ms=pruned.latency_ms,
            latency_ratio=pruned.latency_ms / result.record.dense.latency_ms,
            file_bytes=pruned.file_bytes,
            memory_bytes=pruned.memory_bytes,
            kept=result.record.kept,
        )
        points = tuple(p.model_copy(update={"tuned": tuned}) if p.number == point.number else p for p in front.points)
        both = [(p.error, 1 - front.metric.worth(p.tuned.accuracy)) for p in points if p.tuned is not None]
        columns = list(zip(*both, strict=True))
        ordered = len(both) > 2 and all(len(set(column)) > 1 for column in columns)
        ranks = float(spearmanr(*columns).statistic) if ordered else None
        return front.model_copy(
            update={
                "points": points,
                "rank_correlation": ranks,
                "dense_accuracy": result.record.dense.accuracy,
            }
        )

    def _search(self) -> Front:
        """The front by the search; every evaluation is a row in the folder, so a killed search goes on where it was."""
        settings = self.settings
        with untouched(self.loaded.module):
            check_task(self.data, self.loaded.module)
        for note in look(self.loaded, self.data, allow=settings.allow_chance, progress=self.progress):
            self.progress.say(note)
        with self.progress.task("trace"):
            graph = trace(self.loaded.module, self.example, barriers=settings.barrier, keep=settings.keep)
        planner = self._planner(graph)
        evaluator = self._evaluator(planner)
        free = planner.problem(dict.fromkeys(settings.objectives, 1.0))
        rows = FileRows(self.folder.files.evaluations)
        for folder in self._sources():
            self.progress.say(f"{rows.adopt(RunFiles(folder).evaluations)} evaluations taken over from {folder}.")
        problem = replace(free, evaluator=evaluator, rows=rows)
        if self._sources():
            usable = len(stored_networks(Encoding(problem), len(rows)).genes)
            self.progress.say(f"{usable} of them are of this network, data and settings, and need not be judged again.")
        with self.crew.at_work(evaluator):
            solution = planner.search.solve(problem, seed=settings.seed, progress=self.progress)
            dense = problem.evaluate(problem.widest)
        points = self._points(planner, problem, solution)
        return self._record(planner, problem, solution, points, 1.0 - dense.accuracy)

    def _sources(self) -> list[Path]:
        """Folders of other fronts that evaluations are taken over from. Those that the job began with still count in a
        sitting after a kill, unless they are gone since."""
        before = [Path(source) for source in self.folder.job.get("known", ())]
        there = [folder for folder in before if RunFiles(folder).evaluations.is_file()]
        return list(dict.fromkeys([*there, *(folder.absolute() for folder in self.known)]))

    def _points(self, planner: Planner, problem: Problem, solution: Solution) -> tuple[FrontPoint, ...]:
        """The networks found, slowest first; latency and memory, where objectives, measured on the target."""
        spec, main = problem.spec, self.settings.objectives[0]
        candidates = sorted(solution.candidates, key=lambda c: (-c.predicted[main], -(c.accuracy or 0.0)))
        measured = self._measured(planner, candidates)
        memory = self._memory(planner.graph, [(candidate.widths, candidate.removed) for candidate in candidates])
        points = []
        for number, candidate in enumerate(candidates):
            inside = {g for block in candidate.removed for g in spec.blocks[block].groups}
            points.append(
                FrontPoint(
                    number=number,
                    error=1.0 - (candidate.accuracy or 0.0),
                    costs=dict(candidate.predicted),
                    measured_ms=measured[number],
                    measured_memory_bytes=memory[number],
                    widths={
                        group.name: 0 if g in inside else int(candidate.widths[g])
                        for g, group in enumerate(spec.groups)
                    },
                    removed=tuple(spec.blocks[block].name for block in sorted(candidate.removed)),
                )
            )
        return tuple(points)

    def _measured(self, planner: Planner, candidates: Sequence[Candidate]) -> list[float | None]:
        """Latencies of the front's networks; None where latency is no objective."""
        space = planner.space
        if not isinstance(space, Channels) or space.costs is None:
            return [None] * len(candidates)
        found = measured_latencies(
            planner.graph,
            space.costs,
            [(candidate.widths, candidate.removed) for candidate in candidates],
            self.settings.target,
            threads=self.settings.threads,
            batch=self.settings.batch,
            store=Store(self.store, progress=self.progress),
            progress=self.progress,
        )
        return list(found.tolist())

    def _memory(self, graph: Graph, networks: Sequence[tuple[np.ndarray, Collection[int]]]) -> list[int | None]:
        """Measured peak memory of networks (widths, removed blocks); None where memory is no objective."""
        settings = self.settings
        if "memory" not in settings.objectives:
            return [None] * len(networks)
        return measured_memory(
            graph,
            networks,
            settings.target,
            threads=settings.threads,
            batch=settings.batch,
            store=Store(self.store, progress=self.progress),
            progress=self.progress,
        )

    def _files(self, graph: Graph, legal: Legal) -> list[Seen]:
        """Sizes of some networks' files, dense first, where they are an objective."""
        settings = self.settings
        if "file_size" not in settings.objectives:
            return []
        return files_seen(graph, legal, open_target(settings.target), settings.batch, self.progress)

    def _weighed(self, graph: Graph, legal: Legal) -> tuple[Seen, ...]:
        """The dense and the smallest network with their measured memory, which the memory model is fitted to."""
        networks = [(graph.spec.dense_widths, frozenset[int]()), smallest(graph.spec, legal)]
        found = self._memory(graph, networks)
        if "memory" in self.settings.objectives and None in found:
            self.progress.say(
                f"{self.settings.target} does not tell memory; the model's figures are the tensors' alone."
            )
        return tuple(Seen(*one, float(size)) for one, size in zip(networks, found, strict=True) if size and all(found))

    def _planner(self, graph: Graph) -> Planner:
        settings, target, costs = self.settings, open_target(self.settings.target), None
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
        legal = Legal(min_width=settings.min_width, blocks=settings.blocks)
        batches, seen, files = calibration_batches(self.data), self._weighed(graph, legal), self._files(graph, legal)
        dense = {"file_size": files[0].bytes} if files else {}
        return Planner(
            Channels(graph, costs, legal, dense, settings.batch, seen, files),
            Scorer(
                graph,
                settings.criterion,
                batches,
                seed=settings.seed,
                task=self.data.task,
                rows=FileRows(self.folder.files.values),
                progress=self.progress,
            ),
            Hamp(settings.search()),
            resources=settings.objectives,
            target=target_label(target.fingerprint(settings.threads)),
            progress=self.progress,
        )

    def _evaluator(self, planner: Planner) -> NetworkEvaluator:
        return make_evaluator(
            planner.graph,
            planner.scores,
            self.data.calibration,
            self.data.validation.take(self.settings.images),
            task=self.data.task,
            source=self.loaded.source,
        )

    def _record(
        self,
        planner: Planner,
        problem: Problem,
        solution: Solution,
        points: tuple[FrontPoint, ...],
        dense_error: float,
    ) -> Front:
        details = solution.details
        return Front(
            metric=self.data.task.measured,
            model=self.loaded.name,
            data=self.data.name,
            target=planner.target,
            criterion=name_of(planner.criterion),
            seed=self.settings.seed,
            created=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
            objectives=tuple(details["objectives"]),
            units={constraint.name: constraint.model.unit for constraint in problem.constraints},
            dense_error=dense_error,
            dense_costs=dict(planner.dense_costs),
            group_sizes={group.name: group.units for group in problem.spec.groups},
            points=points,
            seeds=tuple((float(cost), float(error)) for cost, error in details["seeds"]),
            history=tuple(details["history"]),
            evaluations=details["evaluations"],
            stopped=details["stopped"],
            images=min(self.settings.images, len(self.data.validation)),
            command=self.command,
            resume=self.resume_with,
            versions=versions(),
        )

    def _write(self, front: Front) -> None:
        self.folder.write(self.folder.files.front, front.to_json())
        self.folder.write(self.folder.files.front_page, render_front(front))
