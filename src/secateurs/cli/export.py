"""``secateurs export``: the smaller network as a file for a runtime."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secateurs.cli import hardware
from secateurs.cli.opening import open_images, open_model, open_plan, open_planned, open_source, writable
from secateurs.cli.options import (
    Batch,
    BlockRam,
    Calibrating,
    Input,
    Json,
    Model,
    Multipliers,
    Normalize,
    PlanFile,
    Seed,
    Weights,
)
from secateurs.cli.progress import shown
from secateurs.cli.running import emit, guarded, talk
from secateurs.errors import DataError
from secateurs.jobs.settings import Settings
from secateurs.report import wording

if TYPE_CHECKING:
    from torch import nn

    from secateurs.export.quantised import Quantising
    from secateurs.plan import Plan
    from secateurs.progress import Progress

SUFFIXES = {"openvino": "xml", "executorch": "pte", "torch": "pt2"}
"""Names of runtimes for their formats; every format can also be named itself."""


@guarded
def verb(
    model: Model,
    plan: PlanFile,
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write; of an FPGA a folder.")],
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            "--format",
            metavar="onnx|openvino|executorch|torch|fpga|qonnx",
            help="Format [by the file's suffix]; with :int8 behind it, all but torch are quantised by --data. fpga: or "
            "fpga:DEVICE, a folder of hardware and streams; qonnx: for FINN and hls4ml; both are quantised.",
        ),
    ] = None,
    weights: Weights = None,
    data: Calibrating = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint", help="The pruned network's weights (a run's model.safetensors), after fine-tuning."
        ),
    ] = None,
    multipliers: Multipliers = None,
    block_ram: BlockRam = None,
    synthesis: Annotated[
        bool,
        typer.Option("--synthesis/--no-synthesis", help="Of an FPGA: ask yosys and nextpnr what it takes; minutes."),
    ] = True,
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
    from secateurs.export.artifacts import calibrated, export_artifact
    from secateurs.structure import apply

    hard = hardware.named(to)
    if hard:
        artifact, precision, to = "onnx", "int8", hardware.check(str(to), output, multipliers, block_ram)
    else:
        artifact, precision = chosen_format(to, output)
        writable(output)
        _check_limits(multipliers, block_ram)
    _check_quantising(precision, data, dynamic_batch=dynamic_batch)
    held = open_plan(plan)
    with shown(talk()) as progress:
        given: dict[str, Any] = {"batch": batch, "seed": seed, "progress": progress}
        quantising = None
        if calibrated(precision):
            module, example, quantising = _calibrated(model, held, weights, shape, normalize, str(data), given)
            if hard:
                quantising = replace(quantising, seven_bits=False)  # its sums do not overflow
        else:
            module, example = open_planned(model, held, weights, shape, normalize, data=data, **given)
        with progress.task("cut and check"):
            small = apply(module, held, example).eval()
            if checkpoint is not None:
                _load_checkpoint(small, checkpoint)
        exporter = f"{artifact}:{precision}" if precision else artifact
        with progress.task(f"export to {exporter}"):
            open_batch = None if dynamic_batch else batch
            written = deployable(small, held, example, skips=hard)
            if hard:
                _written_hard(str(to), written, example, output, quantising, synthesis, progress, as_json=as_json)
                return
            report = export_artifact(exporter, written, example, output, batch=open_batch, quantising=quantising)
    before = "before it was quantised it " if quantising is not None else ""
    found = {
        "output": str(output),
        "format": artifact,
        "precision": precision or "f32",
        "file_bytes": report.size_bytes,
        "max_rel_error": report.max_rel_error,
    }
    left = f" In float: {', '.join(report.float_layers)}." if report.float_layers else ""
    if precision:
        found |= {"int8_layers": len(report.int8_layers), "float_layers": list(report.float_layers)}
    emit(
        found,
        lambda console: console.print(
            f"{wording.size(report.size_bytes)} written to {output}; {before}"
            f"differs from PyTorch by at most {report.max_rel_error:.1e} of the largest output.{left}"
        ),
        as_json=as_json,
    )


def _written_hard(
    to: str,
    written: nn.Module,
    example: Any,
    output: Path,
    quantising: Quantising | None,
    synthesis: bool,
    progress: Progress,
    *,
    as_json: bool,
) -> None:
    """The quantised network as hardware, or for tools that make it."""
    from secateurs.export.artifacts import export_artifact
    from secateurs.export.quantised import samples
    from secateurs.files import Scratch

    assert quantising is not None
    calibration = list(quantising.calibration)
    with Scratch("hardware") as folder:
        file = Path(folder) / "network.onnx"
        export_artifact("onnx:int8", written, example, file, quantising=replace(quantising, calibration=calibration))
        sample = next(samples(calibration, 1))[0][0]
        hardware.finish(to, file, sample, output, synthesis=synthesis, progress=progress, as_json=as_json)


def _check_limits(multipliers: str | None, block_ram: str | None) -> None:
    """Nothing, if no limit is given that only an FPGA has.

    Raises:
        DataError: one is.
    """
    if multipliers is not None or block_ram is not None:
        raise DataError("--multipliers and --block-ram limit what an FPGA holds. Give --to fpga:ecp5-85f.")


def chosen_format(to: str | None, output: Path) -> tuple[str, str]:
    """The format that ``--to`` names, or the file's suffix, and the precision behind it, "" for float.

    Raises:
        DataError: neither is a format that can be written.
    """
    from secateurs.export.artifacts import formats, precisions

    named, colon, precision = (output.suffix.removeprefix("."), "", "") if to is None else to.partition(":")
    artifact = SUFFIXES.get(named, named)
    if artifact not in formats():
        source = f"-o {output}" if to is None else f"--to {to!r}"
        raise DataError(
            f"{source} is not a format that can be written. There are {', '.join(formats())} "
            f"({', '.join(f'{name} is {suffix}' for name, suffix in SUFFIXES.items())}); name one with --to."
        )
    if colon and precision not in precisions(artifact):
        can = [f"{name}:{one}" for name in formats() for one in precisions(name)]
        raise DataError(f"--to {to!r}: {named} files cannot be written in {precision!r}. There are {', '.join(can)}.")
    return artifact, precision


def _check_quantising(precision: str, data: str | None, *, dynamic_batch: bool) -> None:
    """Nothing, if what a quantised file needs is given.

    Raises:
        DataError: it is not.
    """
    from secateurs.export.artifacts import calibrated

    if not calibrated(precision):
        return
    if data is None:
        raise DataError(f"An {precision} file is calibrated with images. Give --data, as the network was pruned with.")
    if dynamic_batch:
        raise DataError(f"An {precision} file has a fixed batch size. Leave --dynamic-batch out, or give --batch.")


def _calibrated(
    text: str,
    plan: Plan,
    weights: Path | None,
    shape: str | None,
    normalize: str | None,
    data: str,
    given: Mapping[str, Any],
) -> tuple[nn.Module, Any, Quantising]:
    """The network that a plan is for, an example, and what files are quantised by on processors like this one."""
    from secateurs.export.quantised import Quantising
    from secateurs.importance.scoring import calibration_inputs
    from secateurs.latency.targets._base import instructions, overflows

    source = open_source(data)
    assert source is not None
    loaded = open_model(text, weights, shape, normalize, sized=source, **given)
    images = open_images(
        source, loaded, classes="all", normalize=normalize, seed=given["seed"], progress=given["progress"]
    )
    saturates = overflows(platform.machine(), instructions())
    return loaded.module, loaded.example(), Quantising(calibration_inputs(images), saturates, in_float=plan.in_float)


def _load_checkpoint(small: nn.Module, path: Path) -> None:
    """Put the pruned network's own weights into ``small``.

    Raises:
        DataError: the file is missing or belongs to another plan.
    """
    from secateurs.models import load_into, read_weights

    load_into(small, read_weights(path), f"the network cut by this plan ({path})")
