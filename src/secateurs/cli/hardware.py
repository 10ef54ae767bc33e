"""``secateurs export --to fpga`` and ``--to qonnx``: a quantised network as hardware, or for tools that make it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from secateurs.cli.options import limited
from secateurs.cli.running import emit
from secateurs.errors import DataError
from secateurs.progress import Progress

NAMES = ("fpga", "qonnx")


def named(to: str | None) -> bool:
    """Whether ``--to`` names one of these."""
    return to is not None and to.partition(":")[0] in NAMES


def check(to: str, output: Path, multipliers: str | None, block_ram: str | None) -> str:
    """What is to be written, with its limits, before any work.

    Raises:
        DataError: the output cannot be written.
        PlanError: the device is unknown.
        typer.BadParameter: the limits are for something else.
    """
    if to.startswith("qonnx"):
        if to != "qonnx" or multipliers is not None or block_ram is not None:
            raise typer.BadParameter("--to qonnx takes nothing behind it, and no limits: it is a file, not a device.")
        from secateurs.cli.opening import writable

        writable(output)
        return to
    from secateurs.fpga.build import check_free
    from secateurs.latency.targets.opening import make_target

    check_free(output)
    text: str = limited(to, multipliers, block_ram)
    make_target(text)
    return text


def finish(
    to: str, file: Path, sample: Any, output: Path, *, synthesis: bool, progress: Progress, as_json: bool
) -> None:
    """Write it of the quantised file, and say what was written.

    Raises:
        ExportError: an operator has no hardware.
        PlanError: the network does not fit the device.
        DataError: the output cannot be written.
        TargetError: a simulator or a synthesiser fails.
    """
    import onnx

    model = onnx.load(file)
    if to == "qonnx":
        from secateurs.files import write_atomic
        from secateurs.fpga.qonnx import to_qonnx

        content = to_qonnx(model).SerializeToString()
        write_atomic(output, content)
        found = {"output": str(output), "format": "qonnx", "file_bytes": len(content)}
        emit(found, lambda console: console.print(f"{len(content)} bytes written to {output}."), as_json=as_json)
        return
    from secateurs.fpga.build import write_folder
    from secateurs.fpga.choosing import deployed
    from secateurs.fpga.reading import read
    from secateurs.latency.targets.fpga import Fpga

    network = read(model)
    device = Fpga(*filter(None, [to.partition(":")[2]])).given_device()
    with progress.task("choose the engine"):
        made = deployed(network, device)
    if tuple(sample.shape) != network.shape:
        raise DataError(f"The sample has shape {tuple(sample.shape)}, and the network takes {network.shape}.")
    report = write_folder(output, network, made, sample, synthesis=synthesis, progress=progress)
    emit({"output": str(output), **report}, lambda console: _show(report, output, console), as_json=as_json)


def _show(report: dict[str, Any], output: Path, console: Console) -> None:
    engine, simulation = report["engine"], report["simulation"]
    console.print(
        f"Hardware, streams and testbench written to {output}: {engine['p']} lanes of filters × {engine['q']} of "
        f"pixels ({report['multipliers']} multipliers, {report['block_ram_blocks']} blocks of RAM), "
        f"{report['cycles']} cycles or {report['ms']:.4g} ms a sample; "
        f"indexes take {report['index_overhead']:.2%} of the weights' bits."
    )
    if simulation["run"]:
        console.print(f"A sample was simulated: every byte right, {simulation['cycles']} cycles as predicted.")
    else:
        console.print(f"It was not simulated: {simulation['reason']}.")
    placed = report.get("resources", {}).get("nextpnr")
    if placed is not None:
        console.print(f"Placed and routed: {placed['clock_mhz']} MHz.")
