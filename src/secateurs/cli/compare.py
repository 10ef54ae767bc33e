"""``secateurs compare``: plans side by side, measured on the target, or only what two of them decide differently."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from secateurs.cli.opening import open_plan, open_planned
from secateurs.cli.options import (
    MODEL_HELP,
    Batch,
    BlockRam,
    Input,
    Json,
    Multipliers,
    Normalize,
    Seed,
    SizedBy,
    Target,
    Threads,
    Weights,
    limited,
)
from secateurs.cli.progress import shown
from secateurs.cli.running import emit, guarded, talk
from secateurs.errors import DataError
from secateurs.jobs.settings import Settings
from secateurs.latency.targets import DEFAULT_TARGET
from secateurs.report import wording
from secateurs.report.terminal import styled

MODEL_OR_PLAN_HELP = f"{MODEL_HELP} Or a plan file, to see how two plans differ."

if TYPE_CHECKING:
    from secateurs.plan import Measurement


@guarded
def verb(
    model: Annotated[str, typer.Argument(metavar="MODEL|PLAN", help=MODEL_OR_PLAN_HELP, show_default=False)],
    plans: Annotated[list[Path], typer.Argument(metavar="PLAN...", help="Plan files.")],
    target: Target = DEFAULT_TARGET,
    multipliers: Multipliers = None,
    block_ram: BlockRam = None,
    weights: Weights = None,
    data: SizedBy = None,
    shape: Input = None,
    normalize: Normalize = None,
    threads: Threads = Settings.threads,
    batch: Batch = Settings.batch,
    seed: Seed = Settings.seed,
    as_json: Json = False,
) -> None:
    """Measure plans side by side on a target, or show how two plans differ.

    The dense network runs in the same interleaved measurement; a difference inside the noise is called a tie. With a
    plan in place of the model nothing is measured: 'secateurs compare a/plan.json b/plan.json'.
    """
    if model.endswith(".json") and Path(model).is_file():
        difference = _difference(Path(model), plans)
        emit(difference, lambda console: _show_difference(difference, console), as_json=as_json)
        return
    from secateurs.files import Scratch
    from secateurs.latency.targets import open_target
    from secateurs.latency.timing import compare
    from secateurs.measure.bench import FINAL, Bench
    from secateurs.structure import apply

    opened = open_target(limited(target, multipliers, block_ram))
    held = dict(zip(_labels(plans), map(open_plan, plans), strict=True))
    with shown(talk()) as progress, Scratch("compare") as name:
        module, example = open_planned(
            model,
            next(iter(held.values())),
            weights,
            shape,
            normalize,
            data=data,
            batch=batch,
            seed=seed,
            progress=progress,
        )
        bench = Bench.inside(Path(name), opened, example, threads, batch, seed, progress)
        files = {"dense": bench.dense}
        with progress.task("export", 1 + len(held)) as task:
            bench.export(module, bench.dense)
            task.advance(1)
            for number, (label, plan) in enumerate(held.items()):
                files[label] = Path(name) / f"{number}.{opened.artifact}"
                small = apply(module, plan, example).eval()
                bench.export(small, files[label], plan)
                task.advance(1, label)
        measured = compare(opened, files, threads=threads, batch=batch, protocol=FINAL, progress=progress, seed=seed)
    rows = [_row(label, found) for label, found in measured.items()]
    emit(rows, lambda console: _show(rows, console), as_json=as_json)


def _labels(plans: list[Path]) -> list[str]:
    """A name for every plan, other than that of the dense network; the same file twice has two."""
    labels = ["dense"]
    for path in plans:
        earlier = sum(label.partition(" #")[0] == str(path) for label in labels)
        labels.append(f"{path} #{earlier + 1}" if earlier else str(path))
    return labels[1:]


def _difference(first: Path, others: list[Path]) -> dict[str, Any]:
    """What two plans decide differently, as JSON values.

    Raises:
        DataError: more than two plans.
    """
    if len(others) != 1:
        raise DataError(f"{len(others) + 1} plans are given without a model. Give two, or a MODEL to measure them all.")
    here, there = open_plan(first), open_plan(others[0])
    found = here.diff(there)
    groups = {
        name: {
            "units": (here.group_sizes | there.group_sizes).get(name),
            "kept": [len(plan.groups.get(name, ())) for plan in (here, there)],
            "only": [list(units) for units in only],
        }
        for name, only in found["groups"].items()
    }
    return {
        "plans": [str(first), str(others[0])],
        "same_network": here.fingerprint.digest == there.fingerprint.digest,
        "groups": groups,
        "groups_alike": len(here.groups.keys() | there.groups.keys()) - len(groups),
        "blocks_removed": [list(only) for only in found["blocks_removed"]],
        **({"precision": [list(only) for only in found["precision"]]} if "precision" in found else {}),
    }


def _show_difference(found: dict[str, Any], console: Console) -> None:
    first, second = found["plans"]
    if not found["same_network"]:
        console.print(styled(("The plans belong to different networks.", "yellow")))
    table = Table(header_style="dim", box=None, pad_edge=False)
    table.add_column("group", no_wrap=True)
    for name in ("units", "kept by the first", "by the second", "only by the first", "only by the second"):
        table.add_column(name, justify="right")
    for name, group in found["groups"].items():
        counts = (*group["kept"], *(len(only) for only in group["only"]))
        table.add_row(name, str(group["units"]), *map(str, counts))
    if found["groups"]:
        console.print(f"The first: {first}")
        console.print(f"The second: {second}")
        console.print(table)
    for plan, blocks in zip((first, second), found["blocks_removed"], strict=True):
        if blocks:
            console.print(f"Blocks removed by {plan} only: {', '.join(blocks)}")
    for plan, layers in zip((first, second), found.get("precision", ((), ())), strict=True):
        if layers:
            console.print(f"Left in float by {plan} only: {', '.join(layers)}")
    console.print(f"{len(found['groups'])} groups differ, {found['groups_alike']} are alike.")


def _row(label: str, measured: Measurement) -> dict[str, Any]:
    ratio, upper = measured.ratio or 1.0, measured.ratio_upper or 1.0
    return {
        "name": label,
        "latency_ms": measured.latency_ms,
        "latency_spread": measured.spread,
        "runs": measured.runs,
        "ratio": ratio,
        "ratio_upper": upper,
        "tie_with_dense": label != "dense" and measured.tie,
    }


def _show(rows: list[dict[str, Any]], console: Console) -> None:
    table = Table(header_style="dim")
    table.add_column("network", overflow="fold")
    for name in ("latency", "share of dense", "at most (95 %)", "speed-up"):
        table.add_column(name, justify="right")
    for row in rows:
        latency = f"{wording.milliseconds(row['latency_ms'])} ± {wording.percent(row['latency_spread'] / 2, 1)}"
        dense = row["name"] == "dense"
        speed = "tie" if row["tie_with_dense"] else f"{1 / row['ratio']:.2f}×"
        table.add_row(
            row["name"],
            latency,
            "" if dense else wording.percent(row["ratio"], 1),
            "" if dense else wording.percent(row["ratio_upper"], 1),
            "" if dense else speed,
        )
    console.print(table)
