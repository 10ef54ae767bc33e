"""``secateurs profile``: the latency model of a network on a target, with its error."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from secateurs.cli.opening import open_model, open_source, writable
from secateurs.cli.options import (
    Barrier,
    Batch,
    Input,
    Json,
    Keep,
    Model,
    Normalize,
    Only,
    Seed,
    SizedBy,
    Store,
    Target,
    Threads,
    Weights,
    kept,
)
from secateurs.cli.progress import shown
from secateurs.cli.running import emit, guarded, talk
from secateurs.jobs.settings import Settings
from secateurs.latency.targets import DEFAULT_TARGET
from secateurs.report import wording
from secateurs.report.profile_figure import check, save
from secateurs.report.terminal import styled

if TYPE_CHECKING:
    from secateurs.latency.model import LatencyModel
    from secateurs.structure import Graph

SHOWN = 12


@guarded
def verb(
    model: Model,
    target: Target = DEFAULT_TARGET,
    weights: Weights = None,
    data: SizedBy = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write the latency model as JSON.")] = None,
    draw: Annotated[
        Path | None, typer.Option("--draw", help="Draw layers, staircases and errors: .png, .svg, .pdf or .html.")
    ] = None,
    shape: Input = None,
    normalize: Normalize = None,
    barrier: Barrier = None,
    keep: Keep = None,
    only: Only = None,
    threads: Threads = Settings.threads,
    batch: Batch = Settings.batch,
    seed: Seed = Settings.seed,
    store: Store = None,
    again: Annotated[
        bool, typer.Option("--again", help="Forget what was measured of this network here, and measure anew.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Latency model of a network on a target.

    Measures the network at many widths and fits what every operator costs, with the error on held-out networks.
    """
    from secateurs.files import write_atomic
    from secateurs.latency.store import Store as Measured
    from secateurs.latency.targets import check_threads, open_target
    from secateurs.measure.profile import profile
    from secateurs.structure import trace

    opened = open_target(target)
    check_threads(target, threads)
    Measured(store).require_writable()
    for path in (output, draw):
        if path is not None:
            writable(path)
    if draw is not None:
        check(draw)
    with shown(talk()) as progress:
        loaded = open_model(
            model, weights, shape, normalize, sized=open_source(data), batch=batch, seed=seed, progress=progress
        )
        with progress.task("trace"):
            graph = trace(loaded.module, loaded.example(), barriers=barrier or (), keep=kept(keep, only))
        costs = profile(
            graph, opened, threads=threads, batch=batch, store=store, seed=seed, progress=progress, again=again
        )
    if output is not None:
        write_atomic(output, costs.to_json().encode())
    if draw is not None:
        from secateurs.measure.drawing import drawing

        save(drawing(model, costs, graph.spec.dense_widths), draw)
    found = summary(graph, costs)
    emit(found, lambda console: _show(found, console), as_json=as_json)


def summary(graph: Graph, costs: LatencyModel) -> dict[str, Any]:
    """Dense latency, error and the cost of every operator at dense widths, highest first."""
    from secateurs.measure.drawing import drawing

    dense = graph.spec.dense_widths
    bars = drawing("", costs, dense, shown=len(costs.sites)).bars
    terms = [{"name": bar.name, "ms": bar.ms, "sigma_ms": bar.sigma_ms} for bar in bars]
    return {
        "target": dict(costs.target),
        "dense_ms": costs.dense_ms,
        "fixed_ms": costs.fixed_ms,
        "error": {
            "mean_abs": costs.error.mean_abs,
            "p95": costs.error.p95,
            "spearman": costs.error.spearman,
            "plans_mean_abs": _plans_error(costs),
        },
        "operators": sorted(terms, key=lambda term: -term["ms"]),  # type: ignore[operator]
    }


def _plans_error(costs: LatencyModel) -> float | None:
    """Mean absolute error on plans of the solver, each predicted before it was measured."""
    pairs = costs.error.plans
    return sum(abs(predicted / measured - 1) for predicted, measured in pairs) / len(pairs) if pairs else None


def _show(found: dict[str, Any], console: Console) -> None:
    error = found["error"]
    planned = error["plans_mean_abs"]
    table = Table(title=f"Dense: {wording.milliseconds(found['dense_ms'])}", title_justify="left", header_style="dim")
    table.add_column("operator", no_wrap=True)
    table.add_column("ms", justify="right")
    table.add_column("±", justify="right", style="dim")
    table.add_column("share", justify="right")
    table.add_column("")
    operators = found["operators"]
    rows = [(term["name"], term["ms"], f"{term['sigma_ms']:.4f}") for term in operators[:SHOWN]]
    rest = sum(term["ms"] for term in operators[SHOWN:])
    if rest:
        rows.append((f"{len(operators) - SHOWN} more", rest, ""))
    rows.append(("fixed", found["fixed_ms"], ""))
    longest = max(ms for _, ms, _ in rows) or 1.0
    for name, ms, sigma in rows:
        bar = "█" * round(24 * max(0.0, ms) / longest)
        share = wording.percent(ms / found["dense_ms"], 1)
        table.add_row(name, f"{ms:.4f}", sigma, share, styled((bar, "green")))
    console.print(table)
    console.print(
        f"Error on held-out networks: {wording.percent(error['mean_abs'], 1)} on average, "
        f"{wording.percent(error['p95'], 1)} at the 95th percentile, rank correlation {error['spearman']:.3f}"
        + (f"; {wording.percent(planned, 1)} on plans of the solver." if planned is not None else ".")
    )
