"""The README of an exported folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from secateurs.fpga.synthesis import SYNTHESIS

_FILES = """| file | what it is |
| --- | --- |
| `hdl/*.sv` | the engine, SystemVerilog; the top module is `kep_engine` |
| `streams/configuration.bin` | s_cfg of every job, words of {p} bytes, lane 0 first |
| `streams/network.json` | tensors, moves and jobs in their order: what a driver runs |
| `testbench/` | `kep_testbench.sv`, the streams of one sample, the words and cycles that are expected |
| `report.json` | cycles by layer, use of the multipliers, bits of the streams{resources} |
"""


def readme(report: Mapping[str, Any], jobs: int) -> str:
    """What is in the folder, what was found, and the commands that find it again."""
    engine, device = report["engine"], report["device"]
    p, q = engine["p"], engine["q"]
    given = {"P": p, "Q": q, "XD": engine["lines"], "WD": engine["elements"], "ACC": engine["bits"]}
    simulation, resources = report["simulation"], report.get("resources")
    lines = [
        "# A network on the sparse convolution engine",
        "",
        f"{p} lanes of filters, {q} of pixels: {report['multipliers']} multipliers and {report['block_ram_blocks']} "
        f"blocks of RAM of 18 kbit. One sample takes {report['cycles']} cycles, {report['ms']:.4g} ms at "
        f"{device['clock_mhz']:g} MHz. Indexes take {report['index_overhead']:.2%} of the weights' bits.",
        "",
        _simulated(simulation),
        *_placed(resources, device),
        "",
        _FILES.format(p=p, resources=", cells and clock" if resources else ""),
        "Streams are AXI-Stream (valid, ready, data); their words, the settings of a job and the formula of the cycles "
        "are in secateurs' docs/fpga.md. A driver sends, job by job, the words of configuration.bin to s_cfg, the "
        "input's rows to s_pix (rows, groups of columns, channels), what is added to s_res, and takes m_out.",
        "",
        "## Simulate the sample",
        "",
        "```",
        "cd testbench",
        f"verilator --binary -Wno-fatal --top-module kep_testbench {_set('-G', given)} ../hdl/*.sv kep_testbench.sv",
        f"obj_dir/Vkep_testbench +jobs={jobs} +cfg=cfg +pix=pix +res=res +out=found +cycles=found_cycles",
        "cmp found expected && cmp found_cycles expected_cycles",
        "```",
        "",
        "With Icarus:",
        "",
        "```",
        f"iverilog -g2012 -s kep_testbench {_set('-Pkep_testbench.', given)} -o sample ../hdl/*.sv kep_testbench.sv",
        f"vvp -n sample +jobs={jobs} +cfg=cfg +pix=pix +res=res +out=found +cycles=found_cycles",
        "```",
        "",
        "## Synthesise",
        "",
        "```",
        f'yosys -p "read_verilog -sv hdl/*.sv; chparam {_set("-set ", given, " ")} kep_engine; '
        f'{SYNTHESIS[device["family"]]} -top kep_engine -json engine.json"',
    ]
    if device["nextpnr"]:
        lines.append(
            f"nextpnr-ecp5 {' '.join(device['nextpnr'])} --json engine.json --textcfg engine.config "
            f"--lpf-allow-unconstrained --freq {device['clock_mhz']:g}"
        )
    return "\n".join([*lines, "```", ""])


def _set(option: str, given: Mapping[str, int], sign: str = "=") -> str:
    return " ".join(f"{option}{name}{sign}{value}" for name, value in given.items())


def _simulated(simulation: Mapping[str, Any]) -> str:
    if not simulation["run"]:
        return f"The sample was not simulated: {simulation['reason']}."
    return (
        f"The sample was simulated with Verilator: {simulation['jobs']} jobs, every byte equal to the integer "
        f"reference, {simulation['cycles']} cycles, as the formula says."
    )


def _placed(resources: Mapping[str, Any] | None, device: Mapping[str, Any]) -> list[str]:
    if resources is None:
        return ["It was not synthesised."]
    yosys = resources["yosys"]
    said = [
        f"yosys {yosys['version']} on {device['title']}: {yosys['multipliers']} multipliers, {yosys['block_ram']} "
        f"blocks of RAM, {yosys['tables']} look-up tables, {yosys['carries']} carries, "
        f"{yosys['flip_flops']} flip-flops."
    ]
    if "nextpnr" in resources:
        found = resources["nextpnr"]
        said.append(f"nextpnr {found['version']}: placed and routed, {found['clock_mhz']:g} MHz.")
    return said
