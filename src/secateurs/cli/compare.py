"""``secateurs compare``: plans side by side, measured on the target, or only what two of them decide differently."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from secateurs.cli.opening import open_model, open_plan
from secateurs.cli.options import MODEL_HELP, Batch, Input, Json, Normalize, Seed, Target, Threads, Weights
from secateurs.cli.progress import shown
from secateurs.cli.running import emit, guarded, talk
from secateurs.errors import DataError
from secateurs.report import wording

MODEL_OR_PLAN_HELP = f"{MODEL_HELP} Or a plan file, to see how two plans differ."

if TYPE_CHECKING:
    from secateurs.plan import Measurement


@guarded
def verb(
    model: Annotated[str, typer.Argument(metavar="MODEL|PLAN", help=MODEL_OR_PLAN_HELP, show_default=False)],
    plans: Annotated[list[Path], typer.Argument(metavar="PLAN...", help="Plan files.")],
    target: Target = "onnxruntime-cpu",
    weights: Weights = None,
    shape: Input = None,
    normalize: Normalize = None,
    threads: Threads = 1,
    batch: Batch = 1,
    seed: Seed = 0,
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
    from secateurs.bench import FINAL, Bench
    from secateurs.latency.timing import compare
    from secateurs.profiling import open_target
    from secateurs.scratch import Scratch
    from secateurs.structure import apply

    opened = open_target(target)
    held = dict(zip(_labels(plans), map(open_plan, plans), strict=True))
    with shown(talk()) as progress, Scratch("compare") as name:
        loaded = open_model(model, weights, shape, normalize, batch=batch, seed=seed, progress=progress)
        bench = Bench(opened, Path(name), loaded.example(), threads, batch, seed, progress)
        files = {"dense": bench.dense}
        with progress.task("export", 1 + len(held)) as task:
            bench.export(loaded.module, bench.dense)
            task.advance(1)
            for number, (label, plan) in enumerate(held.items()):
                files[label] = Path(name) / f"{number}.{opened.artifact}"
                small = apply(loaded.module, plan, loaded.example()).eval()
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
    }


def _show_difference(found: dict[str, Any], console: Console) -> None:
    first, second = (escape(name) for name in found["plans"])
    if not found["same_network"]:
        console.print("[yellow]The plans belong to different networks.[/]")
    table = Table(header_style="dim", box=None, pad_edge=False)
    table.add_column("group", no_wrap=True)
    for name in ("units", f"kept by {first}", f"by {second}", "only by the first", "only by the second"):
        table.add_column(name, justify="right")
    for name, group in found["groups"].items():
        counts = (*group["kept"], *(len(only) for only in group["only"]))
        table.add_row(escape(name), str(group["units"]), *map(str, counts))
    if found["groups"]:
        console.print(table)
    for plan, blocks in zip((first, second), found["blocks_removed"], strict=True):
        if blocks:
            console.print(f"Blocks removed by {plan} only: {escape(', '.join(blocks))}")
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
    table.add_column("network", no_wrap=True)
    for name in ("latency", "share of dense", "at most (95 %)", "speed-up"):
        table.add_column(name, justify="right")
    for row in rows:
        latency = f"{wording.milliseconds(row['latency_ms'])} ± {wording.percent(row['latency_spread'] / 2, 1)}"
        dense = row["name"] == "dense"
        speed = "tie" if row["tie_with_dense"] else f"{1 / row['ratio']:.2f}×"
        table.add_row(
            escape(row["name"]),
            latency,
            "" if dense else wording.percent(row["ratio"], 1),
            "" if dense else wording.percent(row["ratio_upper"], 1),
            "" if dense else speed,
        )
    console.print(table)
