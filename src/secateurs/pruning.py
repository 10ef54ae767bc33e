"""``prune``: the whole main job as one call, for Python and for the command line."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateurs.data import Data, from_loaders, open_data
from secateurs.element_planning import check_elements
from secateurs.errors import DataError, PlanError
from secateurs.job import Job, Result
from secateurs.models import Loaded, Preprocessing
from secateurs.plan import Plan
from secateurs.profiling import DEFAULT_TARGET, open_target
from secateurs.progress import Progress, silent
from secateurs.recover import parallel
from secateurs.registry import load
from secateurs.report import Record
from secateurs.run_folder import RunFolder
from secateurs.search_options import DEFAULT_STRATEGY
from secateurs.settings import Settings
from secateurs.structure import apply
from secateurs.tuning import Trainer


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
    latency: str | float | None = None,
    memory: str | float | None = None,
    file_size: str | float | None = None,
    macs: str | float | None = None,
    target: str = DEFAULT_TARGET,
    strategy: str = DEFAULT_STRATEGY,
    criterion: str | None = None,
    epochs: int = 1,
    threads: int = 1,
    seed: int = 0,
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
        latency: a budget: ``"60%"`` of dense, ``"3.2ms"``, ``"2x"``, or a fraction of dense.
        memory: a budget of the peak memory that the network adds to the runtime's process: ``"20MB"``, ``"60%"``.
        file_size: a budget of the deployed file: ``"10MB"``, ``"60%"``.
        macs: a budget of multiply-adds at batch 1: ``"300M"``, ``"50%"``.
        target: runtime on a device.
        strategy: search.
        criterion: scores of units; None takes the strategy's own or the default.
        epochs: of fine-tuning; 0 for none.
        threads: of the measured runtime.
        seed: of everything random.
        settings: everything at once, instead of the arguments from ``latency`` to ``seed``.
        output: run folder, with all files; None keeps none.
        resume: continue the run in ``output``.
        progress: where to report.

    Raises:
        InfeasibleBudgetError: no legal network is that fast.
        SecateursError: anything else that is wrong with the input, the data, the folder or the runtime.
    """
    if settings is None:
        settings = Settings(
            latency=_text(latency),
            memory=_text(memory),
            file_size=_text(file_size),
            macs=_text(macs),
            target=target,
            strategy=strategy,
            criterion=criterion,
            epochs=epochs,
            threads=threads,
            seed=seed,
        )
    loaded = as_loaded(model, example)
    place = Place(None if output is None else Path(output), resume)
    return run(loaded, as_data(data, loaded, settings.seed), settings, place, example=example, progress=progress)


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
        path = place.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="secateurs-run-")))
        identity = {**settings.to_dict(), "source": dict(loaded.source), "data": data.name}
        inputs = loaded.example() if example is None else example
        if helps():
            return _assisted(Trainer(loaded.module, inputs, data, settings, Path(), progress=progress))
        if settings.train_batch < parallel.size():
            raise PlanError(
                f"{parallel.size()} processes cannot share a training batch of {settings.train_batch} images. Give a "
                f"larger --train-batch, or start fewer processes."
            )
        job = {**identity, "options": dict(place.options), "command": place.command}
        folder = RunFolder.resume(path, identity) if place.resume else RunFolder.create(path, job)
        stack.enter_context(folder)
        command = str(folder.job.get("command", ""))
        return _shared(Job(loaded, data, settings, folder, inputs, command, place.store, progress))


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
    return f"{float(budget) * 100!r}%" if isinstance(budget, (int, float)) else budget


def helps() -> bool:
    """Whether ``torchrun`` started this process beside a first one, in whose trainings it takes part."""
    return parallel.start() and parallel.rank() > 0


def check_names(settings: Settings) -> None:
    """Nothing, if target, strategy and criterion exist and can be used here.

    Raises:
        PlanError: unknown name.
        TargetUnavailableError: the target cannot be used here.
    """
    target = open_target(settings.target)
    if settings.elements is not None:
        check_elements(target, settings.elements, settings.batch)
    load("strategies", settings.strategy)
    if settings.criterion is not None:
        load("criteria", settings.criterion)


def as_loaded(model: nn.Module, example: Any) -> Loaded:
    """The user's own module with what is known of it."""
    first = example
    while isinstance(first, Sequence) and first:
        first = first[0]
    shape = tuple(first.shape[1:]) if isinstance(first, torch.Tensor) else ()
    if len(shape) != 3:
        raise DataError(
            f"The example's first input has shape {(1, *shape)}; the main job works on images, so it must be [batch, "
            f"channels, height, width]. Use trace, profile, plan and apply for other networks."
        )
    training = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            output = model(first)
    finally:
        for module, mode in training:
            module.training = mode
    outputs = tuple(output.shape[1:]) if isinstance(output, torch.Tensor) else None
    return Loaded(model, type(model).__name__, shape, Preprocessing(), outputs)


def as_data(data: str | Data | tuple[Any, Any], loaded: Loaded, seed: int) -> Data:
    """The four splits, from any form that :func:`prune` takes."""
    if isinstance(data, Data):
        return data
    if isinstance(data, str):
        return open_data(data, loaded, seed=seed)
    if isinstance(data, (tuple, list)) and len(data) == 2:
        return from_loaders(data[0], data[1], loaded, seed=seed)
    raise DataError(
        f"data= is a {type(data).__name__}. Give a source's text, a Data, or a pair (train, test) of loaders."
    )
