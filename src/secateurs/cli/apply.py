"""``secateurs apply``: carry out a plan and save the smaller network's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from secateurs.cli.opening import open_plan, open_planned, writable
from secateurs.cli.options import Input, Json, Model, Normalize, PlanFile, Seed, SizedBy, Weights
from secateurs.cli.progress import shown
from secateurs.cli.running import emit, guarded, talk
from secateurs.jobs.settings import Settings
from secateurs.report import wording


@guarded
def verb(
    model: Model,
    plan: PlanFile,
    output: Annotated[Path, typer.Option("-o", "--output", help="Safetensors file to write.")],
    weights: Weights = None,
    data: SizedBy = None,
    shape: Input = None,
    normalize: Normalize = None,
    seed: Seed = Settings.seed,
    as_json: Json = False,
) -> None:
    """Cut a network by a plan and save its weights.

    The cut is checked; the plan and the safetensors file together are the pruned checkpoint.
    """
    from secateurs.jobs.deployment import parameter_count
    from secateurs.models.weights import save_weights
    from secateurs.structure import apply

    writable(output)
    held = open_plan(plan)
    with shown(talk()) as progress:
        module, example = open_planned(model, held, weights, shape, normalize, data=data, seed=seed, progress=progress)
        with progress.task("cut and check"):
            small = apply(module, held, example)
    save_weights(small, output, {"format": "pt"})
    size = output.stat().st_size
    before, after = parameter_count(module), parameter_count(small)
    found = {"output": str(output), "params": after, "dense_params": before, "file_bytes": size}
    emit(
        found,
        lambda console: console.print(
            f"{wording.count(before)} parameters → {wording.count(after)} ({wording.percent(after / before, 1)} kept); "
            f"{wording.size(size)} written to {output}. Statistics are not re-estimated and nothing is "
            f"fine-tuned: 'secateurs prune' does that."
        ),
        as_json=as_json,
    )
