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
from secateurs.cli.opening import check_same, open_model
from secateurs.cli.progress import shown
from secateurs.cli.running import BUDGET_MISSED, INTERRUPTED, complain, emit, guarded, talk
from secateurs.errors import DataError
from secateurs.progress import silent

if TYPE_CHECKING:
    from secateurs.report import Record
    from secateurs.settings import Settings


@guarded
def verb(
    context: typer.Context,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="RUN", help="Folder for the run's files.")],
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help=o.MODEL_HELP, show_default=False)] = None,
    data: o.Data = None,
    latency: o.Latency = None,
    memory: o.Memory = None,
    file_size: o.FileSize = None,
    macs: o.Macs = None,
    target: o.Target = "onnxruntime-cpu",
    weights: o.Weights = None,
    strategy: o.Strategy = "knapsack",
    criterion: o.Criterion = None,
    epochs: Annotated[int, typer.Option("--epochs", min=0, help="Epochs of fine-tuning; 0 for none.")] = 1,
    lr: Annotated[float | None, typer.Option("--lr", help="Peak learning rate [by the network's kind].")] = None,
    train_batch: Annotated[int, typer.Option("--train-batch", min=1, help="Batch size of fine-tuning.")] = 128,
    precision: Annotated[
        str, typer.Option("--precision", metavar="auto|fp32|bf16", help="Of fine-tuning; auto takes the faster one.")
    ] = "auto",
    repair: Annotated[
        str, typer.Option("--repair", metavar="least-squares|statistics|none", help="Repair before fine-tuning.")
    ] = "least-squares",
    schedule: Annotated[
        str,
        typer.Option(
            "--schedule", metavar="once|gradual|soft|regrow", help="Cut once, in steps, softly with return, or regrow."
        ),
    ] = "once",
    features: Annotated[
        float, typer.Option("--features", min=0, help="Weight of distilling inner activations too; 0 for none.")
    ] = 0.0,
    calibrate_values: Annotated[
        int,
        typer.Option("--calibrate-values", min=0, metavar="N", help="Try N networks to weigh groups better; minutes."),
    ] = 0,
    classes: o.Classes = "all",
    shape: o.Input = None,
    normalize: o.Normalize = None,
    barrier: o.Barrier = None,
    keep: o.Keep = None,
    min_width: o.MinWidth = 1,
    blocks: o.RemoveBlocks = True,
    channels: o.Channels = True,
    elements: o.Elements = None,
    penalty: Annotated[
        float,
        typer.Option("--penalty", min=0, max=0.99, help="Share of the training in which --elements decay; 0: cut."),
    ] = 0.0,
    threads: o.Threads = 1,
    batch: o.Batch = 1,
    seed: o.Seed = 0,
    store: o.Store = None,
    episodes: o.Episodes = None,
    warm_start: o.WarmStart = None,
    agent: o.AgentKind = None,
    finalists: Annotated[
        int,
        typer.Option(
            "--finalists",
            min=1,
            metavar="N",
            help="Train the N best networks of --strategy lap an epoch each and choose.",
        ),
    ] = 1,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in RUN; everything else is taken from there.")
    ] = False,
    as_json: o.Json = False,
) -> None:
    """The main job: to measured budgets, with a report.

    Trace, latency model, plan, cut, repair, fine-tune, export, measure. The plan is tightened until the exported file
    was measured to be within every budget.
    """
    from secateurs.settings import Settings

    given: dict[str, Any] = {
        "model": model,
        "weights": None if weights is None else str(weights),
        "data": data,
        "classes": classes,
        "input": shape,
        "normalize": normalize,
    }
    chosen = {
        "latency": latency,
        "memory": memory,
        "file_size": file_size,
        "macs": macs,
        "target": target,
        "strategy": strategy,
        "criterion": criterion,
        "threads": threads,
        "batch": batch,
        "seed": seed,
        "epochs": epochs,
        "lr": lr,
        "train_batch": train_batch,
        "precision": precision,
        "repair": repair,
        "schedule": schedule,
        "features": features,
        "calibrate_values": calibrate_values,
        "min_width": min_width,
        "blocks": blocks,
        "channels": channels,
        "elements": elements,
        "penalty": penalty,
        "keep": keep or [],
        "barrier": barrier or [],
        "episodes": episodes,
        "warm_start": warm_start,
        "agent": agent,
        "finalists": finalists,
    }
    if resume:
        given, chosen = _from_folder(context, output, given, chosen)
    else:
        budgets = [text for text in (latency, memory, file_size, macs) if text is not None]
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
    from secateurs.run_folder import RunFolder

    held = RunFolder.resume(output).job
    options: dict[str, Any] = held.get("options", {})
    if "objectives" in held:
        raise DataError(f"The run in {output} is a front. Continue it with 'secateurs front --resume -o {output}'.")
    again = f"secateurs prune --resume -o {output}"
    check_same(context, {**given, **chosen}, {**held, **options}, output, again)
    return {name: options.get(name) for name in given}, {name: held.get(name) for name in chosen}


def _run(
    settings: Settings, given: dict[str, Any], output: Path, *, resume: bool, store: Path | None, as_json: bool
) -> None:
    """The job with progress; Ctrl-C says how to go on."""
    from secateurs.data import open_data
    from secateurs.pruning import Place, check_names, helps, run
    from secateurs.run_folder import check_free

    check_names(settings)
    place = Place(output, resume, store, shlex.join(["secateurs", *sys.argv[1:]]), given)
    if not resume and not helps():
        check_free(output)
    try:
        with nullcontext(silent) if helps() else shown(talk()) as progress:
            loaded = open_model(
                given["model"],
                None if given["weights"] is None else Path(given["weights"]),
                given["input"],
                given["normalize"],
                batch=settings.batch,
                seed=settings.seed,
                progress=progress,
            )
            data = open_data(given["data"], loaded, seed=settings.seed, classes=given["classes"], progress=progress)
            result = run(loaded, data, settings, place, progress=progress)
    except KeyboardInterrupt:
        complain(f"Interrupted. Continue with: secateurs prune --resume -o {shlex.quote(str(output))}")
        raise typer.Exit(INTERRUPTED) from None
    if helps():
        return
    record = result.record
    emit(record.model_dump(by_alias=True, mode="json"), lambda console: _show(record, output, console), as_json=as_json)
    if not record.pruned_within_budget:
        raise typer.Exit(BUDGET_MISSED)


def _show(record: Record, output: Path, console: Console) -> None:
    from secateurs.report.console import show

    show(record, console)
    deployed = ", ".join(sorted(path.name for path in output.glob("model.*")))
    console.print(f"Files: {output}/  ({deployed}, plan.json, report.html)")
