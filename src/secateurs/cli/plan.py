"""``secateurs plan``: the best plan by the latency model, written as a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from secateurs.cli import options as o
from secateurs.cli.opening import open_images, open_model, open_source, writable
from secateurs.cli.progress import shown
from secateurs.cli.running import emit, guarded, talk
from secateurs.errors import PlanError
from secateurs.jobs.settings import Settings
from secateurs.progress import Progress
from secateurs.report import wording
from secateurs.report.terminal import styled

if TYPE_CHECKING:
    from secateurs.budgets import Budget
    from secateurs.data import Data, Named
    from secateurs.latency.targets import Target
    from secateurs.models import Loaded
    from secateurs.plan import Plan
    from secateurs.planning.channels import Channels
    from secateurs.planning.elements.space import ElementSpace
    from secateurs.planning.mixed import MixedSpace
    from secateurs.structure import Graph

_ELEMENTS = "--elements needs one --target and --latency: which layers are sparse is decided by measured time."


@guarded
def verb(
    model: o.Model,
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write the plan to.")],
    target: o.Targets = None,
    latency: o.Latencies = None,
    memory: o.Memory = Settings.memory,
    file_size: o.FileSize = Settings.file_size,
    macs: o.Macs = Settings.macs,
    multipliers: o.Multipliers = None,
    block_ram: o.BlockRam = None,
    ratio: Annotated[
        float | None, typer.Option("--ratio", help="Instead of budgets: the share of units every group keeps.")
    ] = None,
    strategy: Annotated[str | None, typer.Option("--strategy", help=o.STRATEGY_HELP)] = None,
    criterion: o.Criterion = Settings.criterion,
    weights: o.Weights = None,
    data: o.Data = None,
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
    precision_mix: o.PrecisionMix = Settings.precision_mix,
    threads: o.Threads = Settings.threads,
    batch: o.Batch = Settings.batch,
    seed: o.Seed = Settings.seed,
    store: o.Store = None,
    episodes: o.Episodes = Settings.episodes,
    warm_start: o.WarmStart = Settings.warm_start,
    agent: o.AgentKind = Settings.agent,
    as_json: o.Json = False,
) -> None:
    """Choose what to keep, by the latency model.

    Costs are predicted, not measured: 'prune' closes the loop. Only --latency needs a latency model. With --target
    given more than once, each with a --latency behind it, the plan is within all of them.
    """
    from secateurs.budgets import parse_budgets
    from secateurs.importance.scoring import calibration_batches
    from secateurs.latency.model import LatencyModel
    from secateurs.latency.store import Store
    from secateurs.latency.targets import open_targets
    from secateurs.measure.profile import profile
    from secateurs.planning.channels import Channels
    from secateurs.planning.elements.costs import measured_space
    from secateurs.planning.entry import plan
    from secateurs.search.legal import Legal, SearchOptions
    from secateurs.structure import trace

    writable(output)
    targets, latencies = o.paired(target, latency)
    targets = o.limited(targets, multipliers, block_ram)
    _check_mix(precision_mix, targets, strategy, latencies, data, elements)
    _require_one(parse_budgets(latencies, memory, file_size, macs, targets), ratio)
    opened = open_targets(targets, threads) if latencies else []
    _require_usable(opened, threads, store)
    _require_known(strategy, criterion, opened, elements, batch)
    with shown(talk()) as progress:
        source = open_source(data)
        loaded = open_model(model, weights, shape, normalize, sized=source, batch=batch, seed=seed, progress=progress)
        images = _images(source, loaded, classes, normalize, seed, task, allow_chance, progress)
        with progress.task("trace"):
            graph = trace(loaded.module, loaded.example(), barriers=barrier or (), keep=o.kept(keep, only))
        costs, space, legal = list[LatencyModel](), None, Legal(min_width=min_width, blocks=blocks, channels=channels)
        shared: dict[str, Any] = {"threads": threads, "seed": seed, "progress": progress}
        if elements is not None:
            shared["store"] = Store(store, progress=progress)
            space = measured_space(graph, opened[0], elements, legal, batch=batch, **shared)
        else:
            costs = [profile(graph, one, batch=batch, store=store, **shared) for one in opened]
        widths = Channels(graph, next(iter(costs), None), legal, batch=batch)
        mixed = _mixed(precision_mix, widths, targets, images, store, shared)
        made = plan(
            graph,
            costs,
            latency=latencies,
            memory=memory,
            file_size=file_size,
            macs=macs,
            keep=ratio,
            strategy=strategy,
            criterion=criterion,
            data=None if images is None else calibration_batches(images),
            seed=seed,
            legal=legal,
            images=images,
            options=SearchOptions(episodes, warm_start, agent),
            elements=space,
            precisions=mixed,
            progress=progress,
        )
    made = made.model_copy(update={"provenance": {**made.provenance, "source": dict(loaded.source)}})
    made.save(output)
    dense_ms = [one.dense_ms for one in (costs if space is None else [space])]
    found = summary(graph, made, dense_ms) | ({} if space is None else _elements(space, made)) | _floats(mixed, made)
    emit({**found, "plan": str(output)}, lambda console: _show(found, output, console), as_json=as_json)


def _require_usable(targets: list[Target], threads: int, store: Path | None) -> None:
    """Raises an error where nothing could be measured or kept."""
    from secateurs.latency.store import Store
    from secateurs.latency.targets import check_threads

    for target in targets:
        check_threads(target, threads)
    if targets:
        Store(store).require_writable()


def _require_one(budgets: tuple[Budget, ...], ratio: float | None) -> None:
    """Raises PlanError unless there are either budgets or a ratio, before anything takes time."""
    if bool(budgets) == (ratio is not None):
        raise PlanError("Give either budgets (--latency 60%, --memory, --file-size, --macs) or --ratio.")
    if ratio is not None and not 0 < ratio <= 1:
        raise PlanError(f"--ratio {ratio:g} must lie in (0, 1]: it is the share of units that stays.")


def _require_known(
    strategy: str | None, criterion: str | None, targets: list[Target], elements: str | None, batch: int
) -> None:
    """Raises an error where a name is not registered, or kernel elements cannot go: before anything takes time."""
    from secateurs.planning.elements.costs import check_elements
    from secateurs.registry import load

    if elements is not None:
        if len(targets) != 1:
            raise typer.BadParameter(_ELEMENTS)
        check_elements(targets[0], elements, batch)

    for kind, name in (("strategies", strategy), ("criteria", criterion)):
        if name is not None:
            load(kind, name)


def _check_mix(
    mix: str,
    targets: list[str],
    strategy: str | None,
    latencies: list[str],
    data: str | None,
    elements: str | None,
) -> None:
    """Nothing, if the other options go with a mix of precisions.

    Raises:
        PlanError: they do not.
    """
    if mix == Settings.precision_mix:
        return
    Settings(
        latency=tuple(latencies) if len(latencies) > 1 else next(iter(latencies), "1ms"),
        target=tuple(targets) if len(targets) > 1 else targets[0],
        strategy=strategy or Settings.strategy,
        precision_mix=mix,
        elements=elements,
    )
    if not latencies or data is None:
        raise PlanError(
            f"--precision-mix {mix} decides by measured time and by what int8 costs on images. Give --latency and "
            f"--data."
        )


def _mixed(
    mix: str, channels: Channels, targets: list[str], images: Data | None, store: Path | None, given: dict[str, Any]
) -> MixedSpace | None:
    """The choice of precisions too, where it is asked for."""
    from secateurs.latency.store import Store
    from secateurs.planning.mixed import mixed_space

    if mix == Settings.precision_mix or images is None:
        return None
    return mixed_space(channels, targets[0], images, store=Store(store, progress=given["progress"]), **given)


def _elements(space: ElementSpace, made: Plan) -> dict[str, Any]:
    """Kernel elements that stay, in numbers and in words."""
    return {"elements": made.provenance["elements"]["counts"], "elements_note": space.note(made)}


def _floats(space: MixedSpace | None, made: Plan) -> dict[str, Any]:
    """Layers that stay in float, by name and in words."""
    return {} if space is None else {"in_float": list(made.precision), "precision_note": space.note(made)}


def _images(
    source: Named | None,
    loaded: Loaded,
    classes: str,
    normalize: str | None,
    seed: int,
    task: str | None,
    allow_chance: bool,
    progress: Progress,
) -> Data | None:
    """The images of a source, with what the user should know before a plan is made from them."""
    from secateurs.data import look

    if source is None:
        return None
    images = open_images(source, loaded, classes=classes, normalize=normalize, seed=seed, progress=progress, task=task)
    for note in (*images.notes, *look(loaded, images, allow=allow_chance, progress=progress)):
        progress.say(note)
    return images


def summary(graph: Graph, plan: Plan, dense_ms: Sequence[float]) -> dict[str, Any]:
    """Widths, blocks and what is left, as JSON values; ``dense_ms``: of the dense network on every target."""
    import numpy as np

    from secateurs.structure import apply
    from secateurs.structure.kernel_elements import elements_pruned, macs_left

    spec = graph.spec
    removed = frozenset(index for index, block in enumerate(spec.blocks) if block.name in plan.blocks_removed)
    widths = np.array([max(len(plan.groups[group.name]), 1) for group in spec.groups], dtype=np.int64)
    macs, params = spec.macs(widths, removed), spec.parameter_count(widths, removed)
    if plan.elements:
        small = apply(graph.model, plan, (graph.args, graph.kwargs), check=False)
        macs, params = macs_left(graph, small, plan), params - elements_pruned(small, plan)
    return {
        "strategy": plan.provenance.get("strategy"),
        "criterion": plan.provenance.get("criterion"),
        "predicted_ms": plan.provenance.get("predicted_ms"),
        "predicted": plan.provenance.get("predicted", {}),
        "budget": plan.provenance.get("budget"),
        "warnings": list(plan.provenance.get("warnings", ())),
        "dense_ms": next(iter(dense_ms), None),
        "targets": _targets(plan, dense_ms),
        "widths": plan.widths(),
        "units": dict(plan.group_sizes),
        "blocks_removed": list(plan.blocks_removed),
        "macs": macs,
        "dense_macs": spec.macs(spec.dense_widths),
        "params": params,
        "dense_params": spec.parameter_count(spec.dense_widths),
    }


def _targets(plan: Plan, dense_ms: Sequence[float]) -> list[dict[str, Any]]:
    """What is predicted on every target."""
    from secateurs.budgets import Limited

    predicted = plan.provenance.get("predicted", {})
    limits = [(Limited.of(name), ms) for name, ms in predicted.items() if Limited.of(name).timed]
    first = str(plan.provenance.get("target", "")).partition(",")[0]
    return [
        {"name": limit.target or first, "predicted_ms": ms, "dense_ms": dense}
        for (limit, ms), dense in zip(limits, dense_ms, strict=False)
    ]


def _show(found: dict[str, Any], output: Path, console: Console) -> None:
    for name, width in found["widths"].items():
        units = found["units"][name]
        bar = "█" * round(24 * width / units)
        shown_width = "removed with its block" if width == 0 else f"{width} / {units}"
        console.print(styled(f"{name:40} ", (f"{bar:24}", "green"), f" {shown_width}"), no_wrap=True)
    if found["blocks_removed"]:
        console.print(f"Blocks removed: {', '.join(found['blocks_removed'])}")
    if "elements_note" in found:
        console.print(found["elements_note"])
    if "precision_note" in found:
        console.print(found["precision_note"])
    kept = (
        f"{wording.percent(found['macs'] / found['dense_macs'], 1)} of the multiply-adds and "
        f"{wording.percent(found['params'] / found['dense_params'], 1)} of the parameters are kept"
    )
    for one in found["targets"]:
        where = f" on {one['name']}" if len(found["targets"]) > 1 else ""
        kept += (
            f"; predicted {wording.milliseconds(one['predicted_ms'])}{where}, "
            f"{wording.percent(one['predicted_ms'] / one['dense_ms'], 1)} of dense (not measured)"
        )
    for name, text in (("memory", "of memory at the peak"), ("file_size", "on disk")):
        if name in found["predicted"]:
            kept += f"; predicted {wording.size(round(found['predicted'][name]))} {text} (not measured)"
    console.print(f"{kept}. Written to {output}.")
