"""``front``: a Pareto front as one call from Python, to pick from."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from secateurs.data import Data
from secateurs.data.tasks import Task, asked_task
from secateurs.errors import PlanError, checked
from secateurs.jobs.entry import inputs_of
from secateurs.jobs.front import FrontJob
from secateurs.jobs.front_settings import FrontSettings
from secateurs.jobs.run_folder import RunFolder
from secateurs.jobs.settings import defaults
from secateurs.jobs.stages import Result
from secateurs.judging.crew import Crew
from secateurs.latency.store import Store
from secateurs.latency.targets import check_threads, open_target
from secateurs.models import Loaded, Preprocessing
from secateurs.progress import Progress, silent
from secateurs.registry import load
from secateurs.report.front_record import Front
from secateurs.structure.forms import plain
from secateurs.structure.untouched import as_found, evaluating, untouched


@dataclass(frozen=True, eq=False)
class Searched:
    """A front in its folder.

    ``record``: what ``front.json`` holds: ``points`` with errors and costs, the measured ones with what they reached;
    ``folder``: a temporary one lives as long as this object.
    """

    record: Front
    folder: Path
    _job: _Inputs = field(repr=False)

    def pick(self, wanted: str, *, epochs: int | None = None) -> Result:
        """One network of the front, carried through repair, fine-tuning, export and measurement.

        Args:
            wanted: ``"knee"``, ``"point=3"``, or a budget such as ``"latency=3ms"``: then the best network that was
                measured to be within it.
            epochs: of fine-tuning; None: as many as the front's own points had.

        Raises:
            PlanError: it is none of these, or the dense network.
            DataError: the front has no such point.
            InfeasibleBudgetError: no network of the front is within the budget.
        """
        settings = self._job.settings if epochs is None else replace(self._job.settings, epochs=epochs)
        with self._job.at_work(self.folder, settings, resume=True) as job:
            return job.pick(self.record, wanted)


@dataclass(frozen=True, eq=False)
class _Inputs:
    """What a front is made from, for as many sittings as there are."""

    loaded: Loaded
    data: Data
    settings: FrontSettings
    example: Any
    crew: Crew
    progress: Progress
    temporary: tempfile.TemporaryDirectory[str] | None

    @contextmanager
    def at_work(self, path: Path, settings: FrontSettings, *, resume: bool) -> Iterator[FrontJob]:
        """The job in its folder; the network is as it was found afterwards."""
        pixels = {"preprocessing": self.loaded.preprocessing.to_dict()}
        identity = {**self.settings.to_dict(), "source": dict(self.loaded.source) or pixels, **self.data.identity}
        begun = {**identity, "options": {}, "known": [], "command": "secateurs.front"}
        folder = RunFolder.resume(path, identity, defaults(FrontSettings)) if resume else RunFolder.create(path, begun)
        again = f"secateurs.front(..., output={str(path)!r}, resume=True)"
        with folder, as_found(self.loaded.module), evaluating(self.loaded.module):
            yield FrontJob(
                self.loaded,
                self.data,
                settings,
                folder,
                self.example,
                self.crew,
                str(folder.job.get("command", "")),
                again,
                progress=self.progress,
            )


def front(
    model: nn.Module,
    example: Any,
    *,
    data: str | Data | tuple[Any, Any],
    task: Task | str | None = None,
    loss: Callable[[Any, Any], Tensor] | None = None,
    metric: Any = None,
    objectives: Sequence[str] = FrontSettings.objectives,
    target: str = FrontSettings.target,
    evaluations: int | None = FrontSettings.evaluations,
    minutes: float | None = FrontSettings.minutes,
    points: int = FrontSettings.points,
    epochs: int | None = FrontSettings.epochs,
    criterion: str | None = FrontSettings.criterion,
    threads: int = FrontSettings.threads,
    seed: int = FrontSettings.seed,
    normalize: str | Preprocessing | None = None,
    workers: int | None = None,
    settings: FrontSettings | None = None,
    output: Path | str | None = None,
    resume: bool = False,
    progress: Progress = silent,
) -> Searched:
    """A Pareto front of the metric's error against latency, memory, file size or multiply-adds, to pick from.

    Args:
        model: the trained network; untouched.
        example: as in :func:`secateurs.prune`, and so are ``data``, ``task``, ``loss``, ``metric``, ``threads``,
            ``seed`` and ``normalize``.
        data: a source's text, a :class:`~secateurs.data.Data`, or (train, test) loaders.
        task: what the network is for; None: classification.
        loss: instead of a task: mean loss of a batch.
        metric: beside ``loss``: what networks are judged by.
        objectives: beside the error: one to three of ``latency``, ``memory``, ``file_size``, ``macs``.
        target: runtime on a device.
        evaluations: networks that are judged at most; None for no bound.
        minutes: of the search at most.
        points: how many of the front are fine-tuned and measured; 0 for none.
        epochs: of their fine-tuning; None: by the number of samples.
        criterion: scores of units.
        threads: of the measured runtime.
        seed: of everything random.
        normalize: how pixels reach the network.
        workers: processes that judge networks.
        settings: everything at once, instead of those from ``objectives`` to ``seed``.
        output: folder of the front; None: a temporary one.
        resume: continue the front in ``output``.
        progress: where to report.

    Raises:
        SecateursError: something is wrong with the input, the data, the folder or the runtime.
    """
    chosen = FrontSettings(
        objectives=tuple(objectives),
        target=target,
        evaluations=evaluations,
        minutes=minutes,
        points=points,
        epochs=epochs,
        criterion=criterion,
        threads=threads,
        seed=seed,
    )
    if settings is not None:
        if not isinstance(settings, FrontSettings):
            raise PlanError(
                f"settings= is a {type(settings).__name__}. Give a secateurs.jobs.front_settings.FrontSettings."
            )
        if chosen != FrontSettings():
            raise PlanError("settings= holds everything, so another setting beside it would do nothing. Give one.")
        chosen = settings
    checked(str | Path | None, output, "front(output=)", "Give the name of a folder")
    load("strategies", "hamp")
    open_target(chosen.target)
    check_threads(chosen.target, chosen.threads)
    Store(None, progress=progress).require_writable()
    model, asked = plain(model), asked_task(task, loss, metric)
    with as_found(None, data):
        with untouched(model):
            loaded, opened = inputs_of(model, example, data, asked, normalize, seed=chosen.seed, progress=progress)
        temporary = tempfile.TemporaryDirectory(prefix="secateurs-front-") if output is None else None
        path = Path(output or ".") if temporary is None else Path(temporary.name) / "front"
        inputs = _Inputs(loaded, opened, chosen, example, Crew(workers), progress, temporary)
        with inputs.at_work(path, chosen, resume=resume) as job:
            return Searched(job.run(), path, inputs)
