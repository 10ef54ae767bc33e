"""``secateurs prune``: the main job, from a trained network to a measured smaller one and a report."""

from __future__ import annotations

import shlex
import sys
from contextlib import nullcontext
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
from secateurs.jobs.settings import PRECISIONS, REPAIRS, SCHEDULES, Settings, defaults
from secateurs.progress import silent
from secateurs.recover.amount import LARGEST_BATCH

if TYPE_CHECKING:
    from secateurs.report import Record


@guarded
def verb(
    context: typer.Context,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="RUN", help="Folder for the run's files.")],
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help=o.MODEL_HELP, show_default=False)] = None,
    data: o.Data = None,
    latency: o.Latencies = None,
    memory: o.Memory = Settings.memory,
    file_size: o.FileSize = Settings.file_size,
    macs: o.Macs = Settings.macs,
    multipliers: o.Multipliers = None,
    block_ram: o.BlockRam = None,
    max_loss: o.MaxLoss = Settings.max_loss,
    min_accuracy: o.MinAccuracy = Settings.min_accuracy,
    target: o.Targets = None,
    weights: o.Weights = None,
    strategy: o.Strategy = Settings.strategy,
    criterion: o.Criterion = Settings.criterion,
    epochs: Annotated[
        int | None,
        typer.Option("--epochs", min=0, help="Epochs of fine-tuning; 0 for none [1, or more where images are few]."),
    ] = Settings.epochs,
    dense_epochs: Annotated[
        int | None,
        typer.Option(
            "--dense-epochs",
            min=0,
            help="Epochs of fine-tuning of the dense network, to compare with [as many, where that takes minutes].",
        ),
    ] = Settings.dense_epochs,
    lr: Annotated[float | None, typer.Option("--lr", help="Peak learning rate [by the network's kind].")] = Settings.lr,
    train_batch: Annotated[
        int | None,
        typer.Option(
            "--train-batch", min=1, help=f"Batch size of fine-tuning [{LARGEST_BATCH}, or less for few images]."
        ),
    ] = Settings.train_batch,
    precision: Annotated[
        str,
        typer.Option("--precision", metavar="|".join(PRECISIONS), help="Of fine-tuning; auto takes the faster one."),
    ] = Settings.precision,
    repair: Annotated[
        str, typer.Option("--repair", metavar="|".join(REPAIRS), help="Repair before fine-tuning.")
    ] = Settings.repair,
    schedule: Annotated[
        str,
        typer.Option(
            "--schedule", metavar="|".join(SCHEDULES), help="Cut once, in steps, softly with return, or regrow."
        ),
    ] = Settings.schedule,
    features: Annotated[
        float, typer.Option("--features", min=0, help="Weight of distilling inner activations too; 0 for none.")
    ] = Settings.features,
    calibrate_values: Annotated[
        int,
        typer.Option("--calibrate-values", min=0, metavar="N", help="Try N networks to weigh groups better; minutes."),
    ] = Settings.calibrate_values,
    classes: o.Classes = "all",
    task: o.Task = None,
    shape: o.Input = None,
    normalize: o.Normalize = None,
    allow_chance: o.AllowChance = Settings.allow_chance,
    barrier: o.Barrier = None,
    keep: o.Keep = None,
    only: o.Only = None,
    min_width: o.MinWidth = Settings.min_width,
    blocks: o.RemoveBlocks = Settings.blocks,
    channels: o.Channels = Settings.channels,
    elements: o.Elements = Settings.elements,
    penalty: Annotated[
        float,
        typer.Option("--penalty", min=0, max=0.99, help="Share of the training in which --elements decay; 0: cut."),
    ] = Settings.penalty,
    precision_mix: o.PrecisionMix = Settings.precision_mix,
    quantise_aware: Annotated[
        bool,
        typer.Option("--quantise-aware", help="On int8 targets: end the training with rounded numbers."),
    ] = Settings.quantise_aware,
    threads: o.Threads = Settings.threads,
    batch: o.Batch = Settings.batch,
    seed: o.Seed = Settings.seed,
    store: o.Store = None,
    episodes: o.Episodes = Settings.episodes,
    warm_start: o.WarmStart = Settings.warm_start,
    agent: o.AgentKind = Settings.agent,
    finalists: Annotated[
        int,
        typer.Option(
            "--finalists",
            min=1,
            metavar="N",
            help="Train the N best networks of --strategy lap an epoch each and choose.",
        ),
    ] = Settings.finalists,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in RUN; everything else is taken from there.")
    ] = False,
    as_json: o.Json = False,
) -> None:
    """The main job: to measured budgets, with a report.

    Trace, latency model, plan, cut, repair, fine-tune, export, measure. The plan is tightened until the exported file
    was measured to be within every budget. --max-loss asks the other way round: how fast can the network be that keeps
    its accuracy? With --target given more than once, each with a --latency behind it, one network holds all of them,
    each measured on its own device.
    """
    given: dict[str, Any] = {
        "model": model,
        "weights": None if weights is None else str(weights),
        "data": data,
        "classes": classes,
        "input": shape,
        "normalize": normalize,
        **({} if task is None else {"task": task}),
    }
    chosen = chosen_for(Settings, context.params)
    chosen["target"] = o.limited(chosen["target"], multipliers, block_ram)
    if resume:
        given, chosen = _from_folder(context, output, given, chosen)
    else:
        if max_loss is None and min_accuracy is None:
            o.paired(target, latency)
        budgets = [one for one in (latency or None, memory, file_size, macs, max_loss, min_accuracy) if one is not None]
        wanted = {"MODEL": model, "--data": data, "a budget such as --latency 60%": budgets or None}
        missing = [name for name, value in wanted.items() if value is None]
        if missing:
            raise typer.BadParameter(f"{' and '.join(missing)} missing. Only --resume takes them from the folder.")
    _run(Settings.from_dict(chosen), given, output, resume=resume, store=store, as_json=as_json)


def _from_folder(
    context: typer.Context, output: Path, given: dict[str, Any], chosen: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of the run in the folder; those on the command line must be the same.

    Raises:
        DataError: the folder holds no run, or one with other settings.
    """
    from secateurs.jobs.run_folder import RunFolder

    folder = RunFolder.resume(output)
    held = folder.job
    options: dict[str, Any] = held.get("options", {})
    if "objectives" in held:
        raise DataError(f"The run in {output} is a front. Continue it with 'secateurs front --resume -o {output}'.")
    again = f"secateurs prune --resume -o {output}"
    corrected = {name: chosen[name] for name in folder.correctable & set(chosen) if typed(context, name)}
    fixed = {name: value for name, value in chosen.items() if name not in corrected}
    check_same(context, {**given, **fixed}, {**held, **options}, output, again)
    names = {*given, *options.keys() & {"task"}}
    return {name: options.get(name) for name in names}, {**defaults(Settings), **held, **corrected}


def _run(
    settings: Settings, given: dict[str, Any], output: Path, *, resume: bool, store: Path | None, as_json: bool
) -> None:
    """The job with progress; Ctrl-C says how to go on."""
    from secateurs.data import Named
    from secateurs.jobs.entry import Place, check_names, helps, run
    from secateurs.jobs.run_folder import check_free

    check_names(settings)
    place = Place(output, resume, store, shlex.join(["secateurs", *sys.argv[1:]]), given)
    if not resume and not helps():
        check_free(output)
    try:
        with interruptible(), nullcontext(silent) if helps() else shown(talk()) as progress:
            source = Named(given["data"])
            loaded = open_model(
                given["model"],
                None if given["weights"] is None else Path(given["weights"]),
                given["input"],
                given["normalize"],
                sized=source,
                batch=settings.batch,
                seed=settings.seed,
                progress=progress,
            )
            data = open_images(
                source,
                loaded,
                classes=given["classes"],
                normalize=given["normalize"],
                seed=settings.seed,
                progress=progress,
                task=given.get("task"),
            )
            result = run(loaded, data, settings, place, progress=progress)
    except KeyboardInterrupt:
        complain(f"Interrupted. Continue with: secateurs prune --resume -o {shlex.quote(str(output))}")
        raise typer.Exit(INTERRUPTED) from None
    if helps():
        return
    record = result.record
    emit(record.to_dict(), lambda console: _show(record, output, console), as_json=as_json)
    if not record.pruned_within_budget:
        raise typer.Exit(BUDGET_MISSED)


def _show(record: Record, output: Path, console: Console) -> None:
    from secateurs.jobs.run_folder import RunFiles
    from secateurs.report.console import show

    show(record, console)
    files = RunFiles(output)
    names = ", ".join(path.name for path in (*files.models(), files.plan, files.report))
    console.print(f"Files: {output}/  ({names})")
