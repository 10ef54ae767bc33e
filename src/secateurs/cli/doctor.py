"""``secateurs doctor``: what can be pruned together, what cannot and why, what the file will need."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.tree import Tree

from secateurs.cli.opening import open_model
from secateurs.cli.options import Barrier, Batch, Input, Json, Keep, Model, Normalize, Seed, Threads, Weights
from secateurs.cli.progress import shown
from secateurs.cli.running import emit, guarded, talk
from secateurs.report import wording

if TYPE_CHECKING:
    from secateurs.models import Loaded
    from secateurs.structure import Graph

LAYERS_SHOWN = 4


@guarded
def verb(
    model: Model,
    weights: Weights = None,
    shape: Input = None,
    normalize: Normalize = None,
    barrier: Barrier = None,
    keep: Keep = None,
    threads: Threads = 1,
    batch: Batch = 1,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """What can be pruned together, what cannot and why."""
    from secateurs.structure import trace

    with shown(talk()) as progress:
        loaded = open_model(model, weights, shape, normalize, batch=batch, seed=seed, progress=progress)
        start = time.monotonic()
        with progress.task("trace"):
            graph = trace(loaded.module, loaded.example(batch), barriers=barrier or (), keep=keep or ())
            found = examine(graph, loaded)
        found["seconds"] = round(time.monotonic() - start, 3)
    emit(found, lambda console: _show(found, console), as_json=as_json)


def examine(graph: Graph, loaded: Loaded) -> dict[str, Any]:
    """Everything the verb tells, as JSON values. Shares are of the dense network's parameters and multiply-adds."""
    from secateurs.structure.inspection import inspect

    found = asdict(inspect(graph))
    return {
        "model": loaded.name,
        "input_shape": [1, *loaded.input_shape],
        "file_bytes": sum(tensor.numel() * tensor.element_size() for tensor in loaded.module.state_dict().values()),
        **found,
    }


def _show(found: dict[str, Any], console: Console) -> None:
    title = (
        f"[bold]{escape(found['model'])}[/] at {'x'.join(map(str, found['input_shape']))}: "
        f"{wording.count(found['parameters'])} parameters, {wording.count(found['macs'])} multiply-adds, "
        f"about {wording.size(found['file_bytes'])} as a file"
    )
    tree = Tree(title, guide_style="dim")
    branch = tree.add(f"{len(found['groups'])} groups of units that go together")
    for group in found["groups"]:
        layers = ", ".join(group["layers"][:LAYERS_SHOWN])
        more = f" and {len(group['layers']) - LAYERS_SHOWN} more" if len(group["layers"]) > LAYERS_SHOWN else ""
        branch.add(
            f"{escape(group['name'])}  [dim]{group['units']} units, up to "
            f"{wording.percent(group['parameter_share'], 1)} of the parameters and "
            f"{wording.percent(group['macs_share'], 1)} of the multiply-adds; couples {escape(layers)}{more}[/]"
        )
    if found["blocks"]:
        names = escape(", ".join(found["blocks"]))
        tree.add(f"{len(found['blocks'])} residual blocks that can go whole: [dim]{names}[/]")
    if found["unread"]:
        first = escape(", ".join(found["unread"][:LAYERS_SHOWN]))
        tree.add(f"{len(found['unread'])} parameters that the forward never reads, left as they are: [dim]{first}[/]")
    pinned = tree.add(f"{len(found['pins'])} {'place' if len(found['pins']) == 1 else 'places'} where units must stay")
    for pin in found["pins"]:
        pinned.add(
            f"{escape(pin['layer'])}: {pin['stays']} of {pin['size']} stay, {escape(pin['reason'])} "
            f"[dim]{escape(pin['operator'])} {escape(pin['source'])}[/]"
        )
    console.print(tree)
    console.print(
        f"At most {wording.percent(found['removable_parameter_share'], 1)} of the parameters and "
        f"{wording.percent(found['removable_macs_share'], 1)} of the multiply-adds can go with every group at its "
        f"narrowest. [dim]Analysed in {wording.duration(found['seconds'])}.[/]"
    )
