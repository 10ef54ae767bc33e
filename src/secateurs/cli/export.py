"""``secateurs export``: the smaller network as a file for a runtime."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from secateurs.cli.opening import open_plan, open_planned, writable
from secateurs.cli.options import Batch, Input, Json, Model, Normalize, PlanFile, Seed, SizedBy, Weights
from secateurs.cli.progress import shown
from secateurs.cli.running import emit, guarded, talk
from secateurs.errors import DataError
from secateurs.jobs.settings import Settings
from secateurs.report import wording

if TYPE_CHECKING:
    from torch import nn

SUFFIXES = {"openvino": "xml", "executorch": "pte", "torch": "pt2"}
"""Names of runtimes for their formats; every format can also be named itself."""


@guarded
def verb(
    model: Model,
    plan: PlanFile,
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write.")],
    to: Annotated[
        str | None,
        typer.Option(
            "--to", "--format", metavar="onnx|openvino|executorch|torch", help="Format [by the file's suffix]."
        ),
    ] = None,
    weights: Weights = None,
    data: SizedBy = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint", help="The pruned network's weights (a run's model.safetensors), after fine-tuning."
        ),
    ] = None,
    dynamic_batch: Annotated[bool, typer.Option("--dynamic-batch", help="Leave the batch size open.")] = False,
    shape: Input = None,
    normalize: Normalize = None,
    batch: Batch = Settings.batch,
    seed: Seed = Settings.seed,
    as_json: Json = False,
) -> None:
    """Write a pruned network for a runtime.

    The file is compared with PyTorch before it appears under its name.
    """
    from secateurs.elements.rectangles import deployable
    from secateurs.export.artifacts import export_artifact
    from secateurs.structure import apply

    artifact = chosen_format(to, output)
    writable(output)
    held = open_plan(plan)
    with shown(talk()) as progress:
        module, example = open_planned(
            model, held, weights, shape, normalize, data=data, batch=batch, seed=seed, progress=progress
        )
        with progress.task("cut and check"):
            small = apply(module, held, example).eval()
            if checkpoint is not None:
                _load_checkpoint(small, checkpoint)
        with progress.task(f"export to {artifact}"):
            open_batch = None if dynamic_batch else batch
            written = deployable(small, held, example)
            report = export_artifact(artifact, written, example, output, batch=open_batch)
    found = {
        "output": str(output),
        "format": artifact,
        "file_bytes": report.size_bytes,
        "max_rel_error": report.max_rel_error,
    }
    emit(
        found,
        lambda console: console.print(
            f"{wording.size(report.size_bytes)} written to {output}; differs from PyTorch by at most "
            f"{report.max_rel_error:.1e} of the largest output."
        ),
        as_json=as_json,
    )


def chosen_format(to: str | None, output: Path) -> str:
    """The format that ``--to`` names, or the file's suffix.

    Raises:
        DataError: neither is a format that can be written.
    """
    from secateurs.export.artifacts import formats

    named = output.suffix.removeprefix(".") if to is None else to
    artifact = SUFFIXES.get(named, named)
    if artifact not in formats():
        source = f"-o {output}" if to is None else f"--to {to!r}"
        raise DataError(
            f"{source} is not a format that can be written. There are {', '.join(formats())} "
            f"({', '.join(f'{name} is {suffix}' for name, suffix in SUFFIXES.items())}); name one with --to."
        )
    return artifact


def _load_checkpoint(small: nn.Module, path: Path) -> None:
    """Put the pruned network's own weights into ``small``.

    Raises:
        DataError: the file is missing or belongs to another plan.
    """
    from secateurs.models import load_into, read_weights

    load_into(small, read_weights(path), f"the network cut by this plan ({path})")
