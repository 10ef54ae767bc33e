"""``prune``: the whole main job as one call, for Python and for the command line."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from secateurs.budgets import several
from secateurs.data import FILES, Data, Named, given
from secateurs.data.tasks import Task, asked_task
from secateurs.data.tasks.check import check_task
from secateurs.errors import PlanError, checked
from secateurs.jobs.run_folder import RunFolder
from secateurs.jobs.settings import Settings, defaults
from secateurs.jobs.stages import Job, Result
from secateurs.jobs.training import Trainer
from secateurs.latency.store import Store
from secateurs.latency.targets import check_threads, open_targets
from secateurs.models import Loaded, Preprocessing, own
from secateurs.plan import Plan
from secateurs.planning.elements.costs import check_elements
from secateurs.planning.mixed import check_mixes
from secateurs.progress import Progress, silent
from secateurs.recover import parallel
from secateurs.registry import load
from secateurs.report import Record
from secateurs.search.legal import SearchOptions, find_strategy
from secateurs.structure import apply
from secateurs.structure.forms import plain
from secateurs.structure.untouched import as_found, evaluating, untouched


@dataclass(frozen=True)
class Place:
    """Where a run goes.

    ``folder``: the run folder (None: a temporary one that is deleted at the end); ``resume``: continue the run that
    it holds; ``store``: file of latency measurements (None: the user's own); ``command``: shown in the report;
    ``options``: what model and data were opened from, kept in the folder so that a resumed run needs no retyping.
    """

    folder: Path | None = None
    resume: bool = False
    store: Path | None = None
    command: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


def prune(
    model: nn.Module,
    example: Any,
    *,
    data: str | Data | tuple[Any, Any],
    task: Task | str | None = None,
    loss: Callable[[Any, Any], Tensor] | None = None,
    metric: Any = None,
    latency: str | float | Sequence[str | float] | None = None,
    memory: str | float | None = None,
    file_size: str | float | None = None,
    macs: str | float | None = None,
    max_loss: float | None = None,
    min_accuracy: str | float | None = None,
    target: str | Sequence[str] = Settings.target,
    strategy: str = Settings.strategy,
    criterion: str | None = Settings.criterion,
    epochs: int | None = Settings.epochs,
    threads: int = Settings.threads,
    seed: int = Settings.seed,
    normalize: str | Preprocessing | None = None,
    allow_chance: bool = Settings.allow_chance,
    precision_mix: str = Settings.precision_mix,
    quantise_aware: bool = Settings.quantise_aware,
    settings: Settings | None = None,
    output: Path | str | None = None,
    resume: bool = False,
    progress: Progress = silent,
) -> Result:
    """The smaller network that was measured to be within the budgets, with its plan and its record.

    Args:
        model: the trained network; untouched.
        example: a tensor [batch, channels, height, width], or the inputs in another form that ``trace`` takes.
        data: a source's text such as ``"digits"``, a :class:`~secateurs.data.Data`, or (train, test) loaders.
        task: what the network is for: a :class:`secateurs.Task`, or a name of :func:`secateurs.task`; None:
            classification.
        loss: instead of a task: mean loss of a batch from (outputs, batch).
        metric: beside ``loss``: a function (outputs, batch) -> value of which more is better, or an object with
            ``update`` and ``compute`` such as a torchmetrics metric; None: the loss.
        latency: a budget: ``"60%"`` of dense, ``"3.2ms"``, ``"2x"``, or a fraction of dense.
        memory: a budget of the peak memory that the network adds to the runtime's process: ``"20MB"``, ``"60%"``.
        file_size: a budget of the deployed file: ``"10MB"``, ``"60%"``.
        macs: a budget of multiply-adds at batch 1: ``"300M"``, ``"50%"``.
        max_loss: instead of ``latency``: the fastest network that is looked for may lose so many points of accuracy on
            the validation images when it is cut and repaired; so much of a metric that is no share, in its unit.
        min_accuracy: the same as what must stay: ``"88%"`` or ``0.88``.
        target: runtime on a device. Several, such as ``["onnxruntime-cpu", "ssh://pi/onnxruntime-cpu"]``, take as many
            latencies, ``["60%", "80ms"]``, in the same order: one network holds every one of them, each measured on its
            own device. The first one's file is deployed, and the other budgets hold on it.
        strategy: search.
        criterion: scores of units; None takes the strategy's own or the default.
        epochs: of fine-tuning; 0 for none, None for one, or more where the images are few.
        threads: of the measured runtime.
        seed: of everything random.
        normalize: how pixels reach the network: ``"imagenet"``, ``"none"`` (pixel / 255), ``"MEAN/STD"``
            (see :func:`~secateurs.models.parse_normalize`). Needed where the data gives images and the network does
            not say it itself, as built-in networks and timm's do.
        allow_chance: go on where the dense network is at chance on the test data.
        precision_mix: on targets of quantised files ``"auto"`` lets the search leave layers in float where that pays.
        quantise_aware: on targets of quantised files the last part of the training computes with rounded numbers.
        settings: everything at once, instead of the other settings from ``latency`` on.
        output: run folder, with all files; None keeps none.
        resume: continue the run in ``output``.
        progress: where to report.

    Raises:
        InfeasibleBudgetError: no legal network is that fast, or none that was tried keeps that accuracy.
        SecateursError: anything else that is wrong with the input, the data, the folder or the runtime.
    """
    given: dict[str, Any] = {
        "latency": _one_or_several(tuple(_spelled(one) for one in several(latency))),
        "memory": _text(memory),
        "file_size": _text(file_size),
        "macs": _text(macs),
        "max_loss": max_loss,
        "min_accuracy": None if min_accuracy is None else str(min_accuracy),
        "target": _one_or_several(several(target)) or "",
        "strategy": strategy,
        "criterion": criterion,
        "epochs": epochs,
        "threads": threads,
        "seed": seed,
        "allow_chance": allow_chance,
        "precision_mix": precision_mix,
        "quantise_aware": quantise_aware,
    }
    chosen = Settings(**given) if settings is None else _whole(settings, given)
    checked(str | Path | None, output, "prune(output=)", "Give the name of a folder")
    place = Place(None if output is None else Path(output), resume)
    model, asked = plain(model), asked_task(task, loss, metric)
    with as_found(None, data):
        with untouched(model):
            loaded, opened = inputs_of(model, example, data, asked, normalize, seed=chosen.seed, progress=progress)
        return run(loaded, opened, chosen, place, example=example, progress=progress)


def _whole(settings: Any, given: Mapping[str, Any]) -> Settings:
    """The settings that hold everything, where nothing else is ``given`` beside them."""
    if not isinstance(settings, Settings):
        raise PlanError(f"settings= is a {type(settings).__name__}. Give a secateurs.jobs.settings.Settings.")
    beside = [f"{name}=" for name, value in given.items() if value != getattr(Settings, name)]
    if beside:
        raise PlanError(f"settings= holds everything, so {', '.join(beside)} beside it would do nothing. Give one.")
    return settings


def inputs_of(
    model: nn.Module,
    example: Any,
    data: str | Data | tuple[Any, Any],
    asked: Task | None,
    normalize: str | Preprocessing | None,
    *,
    seed: int,
    progress: Progress,
) -> tuple[Loaded, Data]:
    """A module with what is known of it, and its four splits; see :func:`prune`."""
    source: str | Named | Data | tuple[Any, Any] = data
    if isinstance(data, Data):
        asked = asked or data.asked
    elif isinstance(data, str):
        source = Named(data)
        asked = source.task if asked is None and source.kind == "factory" else asked
    files = isinstance(source, Named) and source.kind in FILES  # which say by themselves what samples are
    images = _is_image(example) or (asked is None and not files)
    plainly = asked is None or (asked.labels_images and images)
    loaded = own(model, example, normalize, images=images)
    fed = None if asked is None or plainly else asked.fed(example, model)
    return loaded, given(source, loaded, seed=seed, normalize=normalize, task=fed, progress=progress)


def run(
    loaded: Loaded,
    data: Data,
    settings: Settings,
    place: Place,
    *,
    example: Any = None,
    progress: Progress = silent,
) -> Result:
    """The main job in its folder; see :func:`prune`.

    Under ``torchrun`` the first process does everything, the others take part in its trainings and return its result.
    """
    check_names(settings)
    with ExitStack() as stack:
        stack.enter_context(as_found(loaded.module))
        stack.enter_context(evaluating(loaded.module))
        path = place.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="secateurs-run-")))
        if place.resume:
            settings = settings.resumed(RunFolder.resume(path).job)
        Store(place.store, progress=progress).require_writable()
        settings = settings.settled(len(data.train))
        pixels = {"preprocessing": loaded.preprocessing.to_dict()}
        identity = {**settings.to_dict(), "source": dict(loaded.source) or pixels, **data.identity}
        inputs = loaded.example() if example is None else example
        with untouched(loaded.module):
            check_task(data, loaded.module)
        if helps():
            return _assisted(Trainer(loaded.module, inputs, data, settings, Path(), progress=progress))
        if settings.training[1] < parallel.size():
            raise PlanError(
                f"{parallel.size()} processes cannot share a training batch of {settings.training[1]} images. Give a "
                f"larger --train-batch, or start fewer processes."
            )
        job = {**identity, "options": dict(place.options), "command": place.command}
        folder = RunFolder.resume(path, identity, defaults(Settings)) if place.resume else RunFolder.create(path, job)
        stack.enter_context(folder)
        command = str(folder.job.get("command", ""))
        return _shared(Job(loaded, data, settings, folder, inputs, command, place.store, progress))


def _is_image(example: Any) -> bool:
    first = example[0] if isinstance(example, (tuple, list)) and len(example) == 1 else example
    return isinstance(first, Tensor) and first.ndim == 4


def _shared(job: Job) -> Result:
    """The job's result; where ``torchrun`` started several processes, the others are told what it is.

    After an error nobody is told: ``torchrun`` ends the others when this process has ended.
    """
    result = job.run()
    job.trainer.dismiss(json.dumps({"plan": result.plan.to_json(), "record": result.record.to_json()}))
    parallel.same_everywhere(result.module)
    return result


def _assisted(trainer: Trainer) -> Result:
    """The result of process 0, in whose trainings this process takes part."""
    told = json.loads(trainer.assist())
    plan = Plan.from_json(told["plan"])
    small = apply(trainer.dense, plan, trainer.example, check=False).eval()
    parallel.same_everywhere(small)
    return Result(small, plan, Record.model_validate_json(told["record"]), trainer.folder)


def _text(budget: str | float | None) -> str | None:
    return None if budget is None else _spelled(budget)


def _spelled(budget: str | float) -> str:
    return f"{float(budget) * 100!r}%" if isinstance(budget, (int, float)) else budget


def _one_or_several(values: tuple[str, ...]) -> str | tuple[str, ...] | None:
    """As settings have it: the value itself where it is the only one, None where there is none."""
    return values if len(values) > 1 else next(iter(values), None)


def helps() -> bool:
    """Whether ``torchrun`` started this process beside a first one, in whose trainings it takes part."""
    return parallel.start() and parallel.rank() > 0


def check_names(settings: Settings) -> None:
    """Nothing, if targets, strategy and criterion exist and can be used here.

    Raises:
        PlanError: unknown name, or two targets are the same device.
        TargetUnavailableError: a target cannot be used here.
    """
    targets = open_targets(settings.targets, settings.threads)
    for target in targets:
        check_threads(target, settings.threads)
    if settings.elements is not None:
        check_elements(targets[0], settings.elements, settings.batch)
    if settings.precision_mix != Settings.precision_mix:
        check_mixes(targets[0])
    load("strategies", settings.strategy)
    options = SearchOptions(settings.episodes, settings.warm_start, settings.agent)
    if options.given:
        find_strategy(settings.strategy, options)
    if settings.criterion is not None:
        load("criteria", settings.criterion)
