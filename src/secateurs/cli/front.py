"""``secateurs front``: a Pareto front to pick from, and a picked network carried to the end."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from secateurs.cli import options as o
from secateurs.cli.opening import check_same, open_images, open_model, typed
from secateurs.cli.options import chosen_for
from secateurs.cli.progress import shown
from secateurs.cli.running import BUDGET_MISSED, INTERRUPTED, complain, emit, guarded, interruptible, talk
from secateurs.errors import DataError
from secateurs.jobs.front_settings import FrontSettings
from secateurs.jobs.settings import defaults

if TYPE_CHECKING:
    from secateurs.jobs.stages import Result
    from secateurs.judging.crew import Crew
    from secateurs.report.front_record import Front

LISTED = 12
"""Points of the front that the console shows."""


@guarded
def verb(
    context: typer.Context,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="RUN", help="Folder for the front's files.")],
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help=o.MODEL_HELP, show_default=False)] = None,
    data: o.Data = None,
    target: o.Target = FrontSettings.target,
    multipliers: o.Multipliers = None,
    block_ram: o.BlockRam = None,
    objectives: Annotated[
        str, typer.Option("--objectives", metavar="NAMES", help="Beside the error: latency, memory, file_size, macs.")
    ] = ",".join(FrontSettings.objectives),
    evaluations: Annotated[
        int | None, typer.Option("--evaluations", min=0, help="Networks judged at most; 0 for no bound.")
    ] = FrontSettings.evaluations,
    minutes: Annotated[
        float | None, typer.Option("--minutes", help="Time of the search at most.")
    ] = FrontSettings.minutes,
    population: Annotated[
        int, typer.Option("--population", min=4, help="Networks per generation.")
    ] = FrontSettings.population,
    images: Annotated[
        int, typer.Option("--images", min=1, help="Validation images that judge a network.")
    ] = FrontSettings.images,
    screen: Annotated[
        int | None,
        typer.Option("--screen", min=1, help="First look on so many images; a third is then judged in full."),
    ] = FrontSettings.screen,
    known: Annotated[
        list[Path] | None,
        typer.Option("--known", metavar="RUN", help="Start from the evaluations of another front too; repeatable."),
    ] = None,
    points: Annotated[
        int, typer.Option("--points", min=0, help="Points to fine-tune and measure; 0 for none.")
    ] = FrontSettings.points,
    epochs: Annotated[
        int | None,
        typer.Option("--epochs", min=0, help="Epochs of fine-tuning of these and of a pick [by the number of images]."),
    ] = FrontSettings.epochs,
    pick: Annotated[
        str | None,
        typer.Option("--pick", metavar="latency=3ms|knee|point=N", help="Carry one network on, instead of --points."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Processes (with --ray: actors) that judge networks.")
    ] = None,
    ray: Annotated[
        str | None, typer.Option("--ray", metavar="auto|local|HOST:PORT", help="Judge on a Ray cluster.")
    ] = None,
    threads_per_worker: Annotated[
        int | None, typer.Option("--threads-per-worker", min=1, help="CPU threads of each worker [cores shared out].")
    ] = None,
    weights: o.Weights = None,
    criterion: o.Criterion = FrontSettings.criterion,
    classes: o.Classes = "all",
    task: o.Task = None,
    shape: o.Input = None,
    normalize: o.Normalize = None,
    allow_chance: o.AllowChance = FrontSettings.allow_chance,
    barrier: o.Barrier = None,
    keep: o.Keep = None,
    only: o.Only = None,
    min_width: o.MinWidth = FrontSettings.min_width,
    blocks: o.RemoveBlocks = FrontSettings.blocks,
    threads: o.Threads = FrontSettings.threads,
    batch: o.Batch = FrontSettings.batch,
    seed: o.Seed = FrontSettings.seed,
    store: o.Store = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue in RUN, or pick from it; the rest is taken from there.")
    ] = False,
    as_json: o.Json = False,
) -> None:
    """A Pareto front of error against latency (memory, file size, multiply-adds), to choose from.

    Every judged network is kept in RUN: a search that was interrupted continues where it was with --resume.
    """
    from secateurs.registry import load

    load("strategies", "hamp")  # tells which extra is missing before anything that needs it is imported
    from secateurs.jobs.front_settings import Pick
    from secateurs.jobs.run_folder import RunFiles
    from secateurs.judging.crew import Crew

    given: dict[str, Any] = {
        "model": model,
        "weights": None if weights is None else str(weights),
        "data": data,
        "classes": classes,
        "input": shape,
        "normalize": normalize,
        **({} if task is None else {"task": task}),
    }
    chosen = chosen_for(FrontSettings, context.params)
    chosen["target"] = o.limited(chosen["target"], multipliers, block_ram)
    names = [name.strip().replace("-", "_") for name in objectives.split(",")]
    settings = FrontSettings.from_dict({**chosen, "objectives": names, "evaluations": evaluations or None})
    longer = epochs if pick is not None and typed(context, "epochs") else None
    if resume:
        chosen = settings.to_dict()
        if longer is not None:
            del chosen["epochs"]  # a pick may be trained longer than the front's points were
        given, settings = _from_folder(context, output, {**given, **chosen})
    elif model is None or data is None:
        missing = [name for name, value in (("MODEL", model), ("--data", data)) if value is None]
        raise typer.BadParameter(f"{' and '.join(missing)} missing. Only --resume takes them from the folder.")
    if pick is not None:
        Pick.parse(pick, settings.objectives)  # before hours are spent on the front
    for folder in known or ():
        if not RunFiles(folder).evaluations.is_file():
            raise DataError(f"There are no evaluations to start from in {folder}. Give --known the folder of a front.")
    if not resume:
        given["split"] = _split(known or [], seed)
    wish = Wish(pick, longer)
    crew = Crew(workers, ray, threads_per_worker)
    _run(settings, given, output, crew, tuple(known or ()), resume=resume, wish=wish, store=store, as_json=as_json)


def _split(known: list[Path], seed: int) -> int:
    """Seed by which calibration and validation images are drawn: that of the first known front, since evaluations on
    other images are of no use; without one the front's own."""
    from secateurs.jobs.run_folder import RunFolder

    if not known:
        return seed
    held = RunFolder.resume(known[0]).job
    return int(held.get("options", {}).get("split", held.get("seed", seed)))


@dataclass(frozen=True)
class Wish:
    """What is carried further (None: the front's own points), and for how many epochs (None: as long as those)."""

    pick: str | None
    epochs: int | None


def _from_folder(context: typer.Context, output: Path, chosen: dict[str, Any]) -> tuple[dict[str, Any], FrontSettings]:
    """Model, data and settings of the front in the folder; ``chosen``: those on the command line, typed or not.

    Raises:
        DataError: the folder holds no run, or one of another verb, or other settings were typed.
    """
    from secateurs.jobs.run_folder import RunFolder

    held = RunFolder.resume(output).job
    if "objectives" not in held:
        raise DataError(f"The run in {output} is no front. Continue it with 'secateurs prune --resume -o {output}'.")
    options = dict(held["options"])
    check_same(context, chosen, {**held, **options}, output, f"secateurs front --resume -o {output}")
    return options, FrontSettings.from_dict(held)


def _run(
    settings: FrontSettings,
    given: dict[str, Any],
    output: Path,
    crew: Crew,
    known: tuple[Path, ...],
    *,
    resume: bool,
    wish: Wish,
    store: Path | None,
    as_json: bool,
) -> None:
    """The job with progress; Ctrl-C says how to go on."""
    from dataclasses import replace

    from secateurs.data import Named
    from secateurs.jobs.front import FrontJob
    from secateurs.jobs.run_folder import RunFolder, check_free
    from secateurs.latency.store import Store
    from secateurs.latency.targets import check_threads, open_target
    from secateurs.structure.untouched import as_found

    open_target(settings.target)
    check_threads(settings.target, settings.threads)
    Store(store).require_writable()
    if not resume:
        check_free(output)
    again = f"secateurs front --resume -o {shlex.quote(str(output))}"
    result: Result | None = None
    try:
        with interruptible(), shown(talk()) as progress:
            weights = None if given["weights"] is None else Path(given["weights"])
            source = Named(given["data"])
            loaded = open_model(
                given["model"],
                weights,
                given["input"],
                given["normalize"],
                sized=source,
                batch=settings.batch,
                seed=settings.seed,
                progress=progress,
            )
            split = given.get("split", settings.seed)
            how: dict[str, Any] = {name: given.get(name) for name in ("classes", "normalize", "task")}
            data = open_images(source, loaded, seed=split, progress=progress, **how)
            identity = {**settings.to_dict(), "source": dict(loaded.source), **data.identity}
            sources = [str(folder.absolute()) for folder in known]
            job = {**identity, "options": given, "known": sources, "command": shlex.join(["secateurs", *sys.argv[1:]])}
            folder = (
                RunFolder.resume(output, identity, defaults(FrontSettings)) if resume else RunFolder.create(output, job)
            )
            with folder, as_found(loaded.module):
                chosen = settings if wish.pick is None else replace(settings, points=0)
                chosen = chosen if wish.epochs is None else replace(chosen, epochs=wish.epochs)
                command = str(folder.job["command"])
                front_job = FrontJob(
                    loaded, data, chosen, folder, loaded.example(), crew, command, again, store, progress, known
                )
                front = front_job.run()
                if wish.pick is not None:
                    result = front_job.pick(front, wish.pick)
    except KeyboardInterrupt:
        picking = "" if wish.pick is None else f" --pick {shlex.quote(wish.pick)}"
        complain(f"Interrupted. Continue with: {again}{picking}")
        raise typer.Exit(INTERRUPTED) from None
    if result is None:
        emit(front.model_dump(by_alias=True, mode="json"), lambda c: _show(front, output, c), as_json=as_json)
    else:
        _show_pick(result, as_json=as_json)
        if not result.record.pruned_within_budget:
            raise typer.Exit(BUDGET_MISSED)


def _show(front: Front, output: Path, console: Console) -> None:
    from secateurs.cost import quantity
    from secateurs.jobs.run_folder import RunFiles
    from secateurs.report import wording

    knee = front.knee().number
    step = max(1, len(front.points) // LISTED)
    for point in front.points:
        if point.number % step and point.number != knee and point.tuned is None:
            continue
        costs = "  ".join(f"{quantity(value, front.units[name]):>12}" for name, value in point.costs.items())
        tuned = ""
        if point.tuned is not None:
            reached = wording.value(front.metric, point.tuned.accuracy)
            tuned = f"  {point.tuned.how}: {reached}, measured {wording.milliseconds(point.tuned.latency_ms)}"
        mark = "  knee" if point.number == knee else ""
        judged = f"{wording.proxy_name(front.metric)} {wording.proxy(front.metric, point.error):>7}"
        console.print(f"point {point.number:3}  {judged}  {costs}{tuned}{mark}")
    console.print(
        f"{len(front.points)} points from {front.evaluations} evaluations (ended by {front.stopped}). "
        f"Open {RunFiles(output).front_page}, or pick: {front.resume} --pick knee",
        soft_wrap=True,  # the command is to be copied
    )


def _show_pick(result: Result, *, as_json: bool) -> None:
    from secateurs.report.console import show

    def told(console: Console) -> None:
        show(result.record, console)
        console.print(f"Files: {result.folder}/")

    emit(result.record.to_dict(), told, as_json=as_json)
