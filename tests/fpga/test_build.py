"""Folders to take along: whole or not at all, with what their README says."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from secateurs.errors import DataError, TargetError
from secateurs.fpga import build, synthesis
from secateurs.fpga.build import write_folder
from secateurs.fpga.choosing import Placement
from secateurs.fpga.cycles import job_cycles
from secateurs.fpga.devices import open_device
from secateurs.fpga.engine import Engine
from secateurs.fpga.layers import IntegerNetwork
from secateurs.fpga.packing import jobs
from secateurs.fpga.reading import read

from .conftest import SMALL


@pytest.fixture
def network(quantised_file: Path) -> IntegerNetwork:
    return read(onnx.load(quantised_file))


@pytest.fixture
def made(network: IntegerNetwork) -> Placement:
    engine = Engine(SMALL.p, SMALL.q, 512, SMALL.elements)
    return Placement(engine, open_device("ecp5-85f"), {one.name: jobs(one, engine) for one in network.layers})


@pytest.fixture
def unsimulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "available", lambda: "none is wanted here")


def test_a_folder_has_what_a_driver_needs(
    unsimulated: None, network: IntegerNetwork, made: Placement, samples: torch.Tensor, tmp_path: Path
) -> None:
    report = write_folder(tmp_path / "out", network, made, samples[0].numpy(), synthesis=False)
    folder = tmp_path / "out"
    plan = json.loads((folder / "streams" / "network.json").read_text())
    words = sum(job["words"] for step in plan["steps"] for job in step.get("jobs", ()))
    assert (folder / "streams" / "configuration.bin").stat().st_size == words * made.engine.p
    counted = [int(line) for line in (folder / "testbench" / "expected_cycles").read_text().split()]
    assert counted == [job_cycles(job) for one in network.layers for job in made.jobs[one.name]]
    assert report["cycles"] == sum(counted)
    readme = (folder / "README.md").read_text()
    assert "verilator --binary" in readme
    assert "not simulated: none is wanted here" in readme
    assert {path.name for path in (folder / "hdl").iterdir()} >= {"kep_engine.sv", "kep_lane.sv"}
    assert json.loads((folder / "report.json").read_text())["simulation"] == report["simulation"]


def test_the_sample_is_simulated(
    needs_simulator: Callable[[str], None],
    network: IntegerNetwork,
    made: Placement,
    samples: torch.Tensor,
    tmp_path: Path,
) -> None:
    """With the engine that other tests have built."""
    needs_simulator("verilator")
    engine = SMALL
    small = Placement(engine, made.device, {one.name: jobs(one, engine) for one in network.layers})
    report = write_folder(tmp_path / "out", network, small, samples[0].numpy(), synthesis=False)
    assert report["simulation"] == {
        "run": True,
        "jobs": report["simulation"]["jobs"],
        "cycles": report["cycles"],
        "bit_true": True,
    }


def test_a_simulation_that_differs_writes_nothing(
    network: IntegerNetwork, made: Placement, samples: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(work: list[Any]) -> list[build.Any]:
        from secateurs.fpga.simulation import Simulated

        sizes = [sum(len(one.filters) for one in job.passes) * job.rows * job.groups for job, *_ in work]
        return [
            Simulated(np.full((size, made.engine.q), 7, np.uint8), job_cycles(job))
            for size, (job, *_) in zip(sizes, work, strict=True)
        ]

    monkeypatch.setattr(build, "available", lambda: None)
    monkeypatch.setattr(build, "simulate", wrong)
    with pytest.raises(TargetError, match="differs from the integer reference in layer stem"):
        write_folder(tmp_path / "out", network, made, samples[0].numpy(), synthesis=False)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(
    unsimulated: None,
    network: IntegerNetwork,
    made: Placement,
    samples: torch.Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(source: Path, place: Path) -> None:
        place.mkdir()
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(shutil, "copytree", full)
    with pytest.raises(DataError, match=r"cannot be written .*No space left"):
        write_folder(tmp_path / "out", network, made, samples[0].numpy(), synthesis=False)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_is_left_alone(
    network: IntegerNetwork, made: Placement, samples: torch.Tensor, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="is there already"):
        write_folder(tmp_path / "out", network, made, samples[0].numpy(), synthesis=False)
    with pytest.raises(DataError, match="does not exist"):
        write_folder(tmp_path / "no" / "out", network, made, samples[0].numpy(), synthesis=False)


def test_a_synthesiser_that_is_missing_or_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = open_device("ecp5-85f")
    monkeypatch.setattr(synthesis, "available", lambda device: "yosys is not installed")
    with pytest.raises(TargetError, match="cannot be synthesised here: yosys is not installed"):
        synthesis.synthesised(SMALL, device, tmp_path / "a")
    monkeypatch.setattr(synthesis, "available", lambda device: None)
    monkeypatch.setattr(synthesis, "_MAIN", "import sys; sys.exit('out of memory, {0}')")
    monkeypatch.setattr(synthesis.importlib.util, "find_spec", lambda name: True)
    with pytest.raises(TargetError, match="yosys ended with exit code 1: out of memory"):
        synthesis.synthesised(SMALL, device, tmp_path / "b")


def test_reports_of_the_tools_are_read(tmp_path: Path) -> None:
    """As yosys and nextpnr wrote them."""
    cells = {"LUT4": 8706, "CCU2C": 1646, "DP16KD": 4, "MULT18X18D": 12, "TRELLIS_FF": 3462, "PFUMX": 895}
    (tmp_path / "cells.json").write_text(json.dumps({"design": {"num_cells_by_type": cells}}))
    assert synthesis.cells(tmp_path / "cells.json", "ecp5") == {
        "multipliers": 12, "block_ram": 4, "flip_flops": 3462, "tables": 8706, "carries": 1646,
    }  # fmt: skip
    placed = {
        "fmax": {"clk": {"achieved": 61.234, "constraint": 50}},
        "utilization": {"MULT18X18D": {"used": 12, "available": 156}},
    }
    (tmp_path / "placed.json").write_text(json.dumps(placed))
    assert synthesis.placed(tmp_path / "placed.json") == {"clock_mhz": 61.23, "used": {"MULT18X18D": [12, 156]}}


def test_yosys_is_told_the_engine() -> None:
    said = synthesis.script(Engine(8, 4, 512, 64), open_device("artix7-100t"), "/d/")
    assert "read_verilog -sv /d/kep_engine.sv" in said
    assert "-set P 8 -set Q 4 -set XD 512 -set WD 64 -set ACC 32 kep_engine" in said
    assert "synth_xilinx -family xc7 -top kep_engine" in said
