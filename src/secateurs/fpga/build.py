"""A network on the engine as a folder to take along: hardware, streams, a testbench with a sample, and a report."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from secateurs.errors import DataError, TargetError, why
from secateurs.files import Scratch
from secateurs.fpga.choosing import Placement
from secateurs.fpga.cycles import job_cycles, streaming, useful
from secateurs.fpga.devices import blocks
from secateurs.fpga.handbook import readme
from secateurs.fpga.integers import quantised_input, run_network
from secateurs.fpga.layers import IntegerNetwork, LayerStep, Move
from secateurs.fpga.packing import Bits, EngineJob, configuration, results
from secateurs.fpga.simulation import SOURCES, TESTBENCH, as_hex, assembled, available, simulate, write_streams
from secateurs.fpga.synthesis import synthesised
from secateurs.progress import Progress, silent


def write_folder(
    folder: Path,
    network: IntegerNetwork,
    made: Placement,
    sample: np.ndarray,
    *,
    synthesis: bool = True,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Write everything; the folder appears whole or not at all. Returns its report.

    Args:
        folder: must not be there yet.
        network: integers.
        made: the network on its engine.
        sample: one float input [channels, H, W] for the testbench; simulated where a simulator is there.
        synthesis: ask yosys, and nextpnr where the device can be placed.
        progress: where to report.

    Raises:
        DataError: the folder is there, or cannot be written.
        TargetError: the simulation differs, or a tool fails.
    """
    check_free(folder)
    try:
        with Scratch("fpga") as name:
            draft = Path(name) / "folder"
            report = _written(draft, network, made, sample, synthesis, progress)
            _move(draft, folder)
    except OSError as error:
        raise DataError(
            f"Folder {folder} cannot be written ({why(error)}). Free some disk, or choose another."
        ) from error
    return report


def check_free(folder: Path) -> None:
    """Nothing, if there is nothing yet where a folder is to be written.

    Raises:
        DataError: there is.
    """
    if folder.exists():
        raise DataError(f"{folder} is there already. Name a folder that is not, or remove it.")
    if not folder.absolute().parent.is_dir():
        raise DataError(f"The folder {folder.absolute().parent} for {folder.name} does not exist. Make it first.")


def _move(draft: Path, folder: Path) -> None:
    """The draft under its name: beside it first, since a folder is only renamed within one file system."""
    beside = folder.absolute().with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        shutil.copytree(draft, beside)
        os.rename(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _written(
    draft: Path, network: IntegerNetwork, made: Placement, sample: np.ndarray, synthesis: bool, progress: Progress
) -> dict[str, Any]:
    for part in ("hdl", "streams", "testbench"):
        (draft / part).mkdir(parents=True)
    for source in SOURCES:
        shutil.copy(source, draft / "hdl")
    shutil.copy(TESTBENCH, draft / "testbench")
    (draft / "streams" / "network.json").write_text(json.dumps(schedule(network, made), indent=1) + "\n")
    words = [
        configuration(job)
        for step in network.steps
        if isinstance(step, LayerStep)
        for job in made.jobs[step.layer.name]
    ]
    (draft / "streams" / "configuration.bin").write_bytes(np.concatenate(words).tobytes())
    values = run_network(network, quantised_input(network, sample))
    work = _work(network, made, values)
    write_streams(draft / "testbench", [(job, x, added) for job, x, added, _ in work])
    expected = "".join(as_hex(results(job, y)) for job, _, _, y in work)
    (draft / "testbench" / "expected").write_text(expected)
    (draft / "testbench" / "expected_cycles").write_text("".join(f"{job_cycles(job)}\n" for job, *_ in work))
    report: dict[str, Any] = {**summary(network, made), "simulation": _simulated(work, progress)}
    if synthesis:
        report["resources"] = synthesised(made.engine, made.device, draft / "synthesis", progress)
        (draft / "synthesis" / "engine.json").unlink(missing_ok=True)  # tens of megabytes that engine.ys makes anew
    (draft / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    (draft / "README.md").write_text(readme(report, len(work)))
    return report


_Work = tuple[EngineJob, np.ndarray, np.ndarray | None, np.ndarray]


def _work(network: IntegerNetwork, made: Placement, values: Mapping[str, np.ndarray]) -> list[_Work]:
    """Every job with its input, what it adds, and the result that is expected."""
    work: list[_Work] = []
    for step in network.steps:
        if isinstance(step, Move):
            continue
        layer = step.layer
        x = values[step.source].reshape(layer.weight.shape[1], *layer.input_hw)
        added = None if step.added is None else values[step.added]
        work += [(job, x, added, values[step.output]) for job in made.jobs[layer.name]]
    return work


def _simulated(work: list[_Work], progress: Progress) -> dict[str, Any]:
    """What a simulation of the sample says, or why there was none.

    Raises:
        TargetError: it gives other bytes or other cycles than it should.
    """
    reason = available()
    if reason is not None:
        return {"run": False, "reason": reason}
    with progress.task("simulate the sample", len(work)) as task:
        found = simulate([(job, x, added) for job, x, added, _ in work])
        task.advance(len(work))
    for (job, _, _, y), one in zip(work, found, strict=True):
        rows = slice(job.first, job.first + job.rows)
        if not np.array_equal(assembled([job], [one])[:, rows], y[:, rows]) or one.cycles != job_cycles(job):
            raise TargetError(
                f"The simulated hardware differs from the integer reference in layer {job.layer.name} ({one.cycles} "
                f"cycles, {job_cycles(job)} expected). This is a fault of secateurs: report it with the network."
            )
    return {"run": True, "jobs": len(work), "cycles": sum(one.cycles for one in found), "bit_true": True}


def summary(network: IntegerNetwork, made: Placement) -> dict[str, Any]:
    """Cycles, use of the multipliers and bits of the streams, by layer and in all."""
    layers, bits = [], []
    for layer in network.layers:
        parts = made.jobs[layer.name]
        own = Bits.of(parts[0])
        bits.append(own)
        layers.append({
            "name": layer.name,
            "cycles": made.cycles[layer.name],
            "ms": round(made.ms[layer.name], 6),
            "jobs": len(parts),
            "entries": [one.entries for one in parts[0].passes],
            "multipliers_busy": round(useful(parts), 4),
            "slots_filled": round(streaming(parts[0]), 4),
            "weight_bits": own.weights,
            "index_bits": own.indexes,
        })  # fmt: skip
    weights, indexes = sum(one.weights for one in bits), sum(one.indexes for one in bits)
    return {
        "engine": asdict(made.engine),
        "device": asdict(made.device),
        "multipliers": made.engine.multipliers,
        "block_ram_blocks": blocks(made.engine),
        "cycles": sum(made.cycles.values()),
        "ms": round(sum(made.ms.values()), 6),
        "weight_bits": weights,
        "index_bits": indexes,
        "index_overhead": round(indexes / max(1, weights), 5),
        "layers": layers,
    }


def schedule(network: IntegerNetwork, made: Placement) -> dict[str, Any]:
    """What a driver needs: tensors, moves and jobs in their order, with their words of configuration.bin."""
    steps: list[dict[str, Any]] = []
    at = 0
    for step in network.steps:
        if isinstance(step, Move):
            steps.append({"move": asdict(step)})
            continue
        jobs = []
        for job in made.jobs[step.layer.name]:
            words = job.settings + sum(one.words(made.engine) for one in job.passes)
            jobs.append({
                "first_word": at,
                "words": words,
                "input_rows": list(job.taken),
                "output_rows": [job.first, job.rows],
                "filters": [list(one.filters) for one in job.passes],
                "cycles": job_cycles(job),
            })  # fmt: skip
            at += words
        shape = [step.layer.weight.shape[1], *step.layer.input_hw]
        result = [len(step.layer.weight), *step.layer.output_hw]
        entry = {"layer": step.layer.name, "input": step.source, "output": step.output, "added": step.added}
        steps.append({**entry, "input_shape": shape, "output_shape": result, "jobs": jobs})
    return {
        "engine": made.engine.parameters,
        "word_bytes": made.engine.p,
        "input": {"tensor": network.input, "shape": network.shape, "scale": network.scale, "zero": network.zero},
        "output": {
            "tensor": network.output,
            "shape": network.output_shape,
            "scale": network.output_scale,
            "zero": network.output_zero,
        },
        "steps": steps,
    }
