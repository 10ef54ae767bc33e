"""``secateurs apply``: carry out a plan and save the smaller network's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from secateurs.cli.opening import open_model, open_plan, writable
from secateurs.cli.options import Input, Json, Model, Normalize, PlanFile, Seed, Weights
from secateurs.cli.progress import shown
from secateurs.cli.running import emit, guarded, talk
from secateurs.report import wording


@guarded
def verb(
    model: Model,
    plan: PlanFile,
    output: Annotated[Path, typer.Option("-o", "--output", help="Safetensors file to write.")],
    weights: Weights = None,
    shape: Input = None,
    normalize: Normalize = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Cut a network by a plan and save its weights.

    The cut is checked; the plan and the safetensors file together are the pruned checkpoint.
    """
    from safetensors.torch import save

    from secateurs.job import parameter_count, tensors
    from secateurs.plan import write_atomic
    from secateurs.structure import apply

    writable(output)
    held = open_plan(plan)
    with shown(talk()) as progress:
        loaded = open_model(model, weights, shape, normalize, seed=seed, progress=progress)
        with progress.task("cut and check"):
            small = apply(loaded.module, held, loaded.example())
    content = save(tensors(small), metadata={"format": "pt"})
    write_atomic(output, content)
    before, after = parameter_count(loaded.module), parameter_count(small)
    found = {"output": str(output), "params": after, "dense_params": before, "file_bytes": len(content)}
    emit(
        found,
        lambda console: console.print(
            f"{wording.count(before)} parameters → {wording.count(after)} ({wording.percent(after / before, 1)} kept); "
            f"{wording.size(len(content))} written to {output}. Statistics are not re-estimated and nothing is "
            f"fine-tuned: 'secateurs prune' does that."
        ),
        as_json=as_json,
    )
