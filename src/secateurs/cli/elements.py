"""``secateurs elements``: what pruned kernel elements save per layer, and from which density on they save anything."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from secateurs.cli import options as o
from secateurs.cli.opening import open_model, open_source, writable
from secateurs.cli.progress import shown
from secateurs.cli.running import emit, guarded, talk
from secateurs.jobs.settings import Settings
from secateurs.report import wording

if TYPE_CHECKING:
    from secateurs.measure.break_even import BreakEven


@guarded
def verb(
    model: o.Model,
    weights: o.Weights = None,
    data: o.SizedBy = None,
    shape: o.Input = None,
    normalize: o.Normalize = None,
    threads: o.Threads = Settings.threads,
    seed: o.Seed = Settings.seed,
    store: o.Store = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw it: .png, .svg, .pdf (extra plots).")
    ] = None,
    as_json: o.Json = False,
) -> None:
    """Time the sparse convolution per layer shape, and say from which density on it pays.

    Dense is oneDNN through PyTorch. Measurements are kept: a second run takes seconds.
    """
    from secateurs.latency.store import Store
    from secateurs.measure.break_even import break_evens
    from secateurs.measure.kernel_times import KernelTimes
    from secateurs.report.break_even_figure import LayerCurve, drawable, save
    from secateurs.structure import trace

    if plot is not None:
        drawable(writable(plot))
    with shown(talk()) as progress:
        loaded = open_model(model, weights, shape, normalize, sized=open_source(data), seed=seed, progress=progress)
        with progress.task("trace"):
            graph = trace(loaded.module, loaded.example())
        times = KernelTimes(Store(store, progress=progress), threads=threads, progress=progress)
        found = break_evens(graph, times)
    if plot is not None:
        curves = [
            LayerCurve(
                f"{one.layer} ({one.channels}→{one.filters})", one.dense_ms, one.sparse_ms, one.positions, one.density
            )
            for one in found
        ]
        save(curves, f"{loaded.name}, {threads} thread{'s' if threads != 1 else ''}", plot)
    emit([asdict(one) for one in found], lambda console: _show(found, console), as_json=as_json)


def _show(found: list[BreakEven], console: Console) -> None:
    table = Table(header_style="dim", box=None, pad_edge=False)
    table.add_column("first layer of its shape", no_wrap=True)
    for name in ("layers", "channels", "filters", "dense", "all kept", "≈ 4/9 kept", "pays up to"):
        table.add_column(name, justify="right")
    for one in found:
        near = min(one.sparse_ms, key=lambda count: abs(count / one.positions - 4 / 9))
        ms = (one.dense_ms, one.sparse_ms[one.positions], one.sparse_ms[near])
        sizes = (str(one.count), str(one.channels), str(one.filters))
        times = (wording.milliseconds(each) for each in ms)
        table.add_row(one.layer, *sizes, *times, wording.percent(one.density, 0))
    console.print(table)
