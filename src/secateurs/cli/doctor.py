"""``secateurs doctor``: what can be pruned together, what cannot and why, what the file will need."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.tree import Tree

from secateurs.cli.opening import open_model, open_source
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
    Threads,
    Weights,
    kept,
)
from secateurs.cli.progress import shown
from secateurs.cli.running import emit, guarded, talk
from secateurs.jobs.settings import Settings
from secateurs.report import wording
from secateurs.report.terminal import styled

if TYPE_CHECKING:
    from secateurs.models import Loaded
    from secateurs.structure import Graph

LAYERS_SHOWN = 4


@guarded
def verb(
    model: Model,
    weights: Weights = None,
    data: SizedBy = None,
    shape: Input = None,
    normalize: Normalize = None,
    barrier: Barrier = None,
    keep: Keep = None,
    only: Only = None,
    threads: Threads = Settings.threads,
    batch: Batch = Settings.batch,
    seed: Seed = Settings.seed,
    as_json: Json = False,
) -> None:
    """What can be pruned together, what cannot and why."""
    from secateurs.structure import trace

    with shown(talk()) as progress:
        loaded = open_model(
            model, weights, shape, normalize, sized=open_source(data), batch=batch, seed=seed, progress=progress
        )
        start = time.monotonic()
        with progress.task("trace"):
            graph = trace(loaded.module, loaded.example(batch), barriers=barrier or (), keep=kept(keep, only))
            found = examine(graph, loaded)
        found["seconds"] = round(time.monotonic() - start, 3)
    emit(found, lambda console: _show(found, console), as_json=as_json)


def examine(graph: Graph, loaded: Loaded) -> dict[str, Any]:
    """Everything the verb tells, as JSON values. Shares are of the dense network's parameters and multiply-adds."""
    from secateurs.structure.advice import advice
    from secateurs.structure.inspection import inspect
    from secateurs.structure.remarks import about_training

    advised = advice(graph)
    found = {
        **asdict(inspect(graph)),
        "training": about_training(graph),
        "rebuilt": None if advised is None else {**asdict(advised), "sizes": str(advised.sizes), "words": str(advised)},
    }
    return {
        "model": loaded.name,
        "input_shape": [1, *loaded.input_shape],
        "file_bytes": sum(tensor.numel() * tensor.element_size() for tensor in loaded.module.state_dict().values()),
        **found,
    }


def _show(found: dict[str, Any], console: Console) -> None:
    title = styled(
        (found["model"], "bold"),
        f" at {'x'.join(map(str, found['input_shape']))}: "
        f"{wording.count(found['parameters'])} parameters, {wording.count(found['macs'])} multiply-adds, "
        f"about {wording.size(found['file_bytes'])} as a file",
    )
    tree = Tree(title, guide_style="dim")
    branch = tree.add(f"{len(found['groups'])} groups of units that go together")
    for group in found["groups"]:
        layers = ", ".join(group["layers"][:LAYERS_SHOWN])
        more = f" and {len(group['layers']) - LAYERS_SHOWN} more" if len(group["layers"]) > LAYERS_SHOWN else ""
        about = (
            f"{group['units']} units, up to {wording.percent(group['parameter_share'], 1)} of the parameters and "
            f"{wording.percent(group['macs_share'], 1)} of the multiply-adds; couples {layers}{more}"
        )
        branch.add(styled(f"{group['name']}  ", (about, "dim")))
    if found["blocks"]:
        names = ", ".join(found["blocks"])
        tree.add(styled(f"{len(found['blocks'])} residual blocks that can go whole: ", (names, "dim")))
    if found["unread"]:
        first = ", ".join(found["unread"][:LAYERS_SHOWN])
        unread = f"{len(found['unread'])} parameters that no forward reads, left as they are: "
        tree.add(styled(unread, (first, "dim")))
    if found["rebuilt"] is not None:
        what = "some cuts need" if found["rebuilt"]["some"] else "every cut needs"
        tree.add(styled(f"{what} a network rebuilt from the export: ", (found["rebuilt"]["words"], "dim")))
    for line in found["training"]:
        tree.add(styled("training mode: ", (line, "dim")))
    pinned = tree.add(f"{len(found['pins'])} {'place' if len(found['pins']) == 1 else 'places'} where units must stay")
    for pin in found["pins"]:
        stays = f"{pin['layer']}: {pin['stays']} of {pin['size']} stay, {pin['reason']} "
        pinned.add(styled(stays, (f"{pin['operator']} {pin['source']}", "dim")))
    console.print(tree)
    most = (
        f"At most {wording.percent(found['removable_parameter_share'], 1)} of the parameters and "
        f"{wording.percent(found['removable_macs_share'], 1)} of the multiply-adds can go with every group at its "
        f"narrowest. "
    )
    console.print(styled(most, (f"Analysed in {wording.duration(found['seconds'])}.", "dim")))
