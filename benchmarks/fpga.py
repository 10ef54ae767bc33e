"""The sparse convolution engine in simulation: whole networks on real images, sparse against dense, and its builds.

    python benchmarks/fpga.py networks --data FOLDER [--images 4]     cifar-resnet20 in int8, layer by layer
    python benchmarks/fpga.py ratios --data FOLDER [--keep 9 4 3 2]   cifar-resnet56 at so many of 9 elements
    python benchmarks/fpga.py agreement                               random layers, Verilator against Icarus
    python benchmarks/fpga.py builds [--engines 4x2 16x8]             yosys and nextpnr on an ECP5-85F

Every figure is counted in a simulation of the SystemVerilog with Verilator; a row is written only where every byte
equals the integer reference and every cycle the formula. FOLDER holds ``resnet20_cifar10_jpeg.safetensors`` and its
like, and ``cifar10_jpeg_{train,test}.parquet``. ``networks``: weights of seven bits on processors whose 8-bit sums
overflow, so that ONNX Runtime's result is one to compare with; the class is compared with the runtime's. ``ratios``:
blocks of 32 filters share patterns by magnitude that keep so many of 9 positions on average, int8, one image; no
accuracy is claimed for these cuts. ``useful``: products of multipliers and cycles that are a weight times a pixel;
``walked``: share of the cycles between a layer's first and last element in which one is walked. Rows go to
``benchmarks/results/fpga_networks.csv``, ``fpga_ratios.csv``, ``fpga_agreement.csv`` and ``fpga_builds.csv``.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import tempfile
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from result_rows import append
from torch import nn

from secateurs.elements.selection import eligible, patterns
from secateurs.export.quantised import Quantising, export_onnx_int8
from secateurs.fpga.build import schedule, summary
from secateurs.fpga.choosing import Placement
from secateurs.fpga.cycles import job_cycles, layer_cycles
from secateurs.fpga.devices import open_device
from secateurs.fpga.engine import Engine
from secateurs.fpga.integers import outputs, quantised_input, run_layer, run_network
from secateurs.fpga.layers import IntegerNetwork, LayerStep
from secateurs.fpga.packing import jobs
from secateurs.fpga.reading import read
from secateurs.fpga.simulation import SOURCES, assembled, simulate
from secateurs.fpga.synthesis import synthesised
from secateurs.models import load
from secateurs.structure import apply, trace

RESULTS = Path(__file__).parent / "results"
ENGINE = Engine(16, 8, 2048, 1024)
MEAN, STD = (np.float32(values).reshape(3, 1, 1) for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
CALIBRATION = 256


def images(folder: Path, part: str, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """So many images [n, 3, 32, 32] as the networks take them, drawn by seed, and their labels."""
    import PIL.Image
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(folder / f"cifar10_jpeg_{part}.parquet")
    chosen = np.random.default_rng(seed).permutation(len(table))[:count]
    encoded, labels = table["jpeg"].take(chosen).to_pylist(), table["label"].to_numpy()[chosen]
    pixels = np.stack([np.asarray(PIL.Image.open(io.BytesIO(one)).convert("RGB")) for one in encoded])
    return (pixels.transpose(0, 3, 1, 2).astype(np.float32) / 255 - MEAN) / STD, labels


def network(name: str, folder: Path) -> nn.Module:
    """The trained network."""
    weights = folder / f"{name.removeprefix('cifar-')}_cifar10_jpeg.safetensors"
    return load(name, weights=str(weights)).module.eval()


def quantised(module: nn.Module, calibration: np.ndarray, *, seven_bits: bool) -> onnx.ModelProto:
    """Its int8 file."""
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "network.onnx"
        given = Quantising([torch.from_numpy(calibration)], seven_bits=seven_bits)
        export_onnx_int8(module, torch.from_numpy(calibration[:1]), file, quantising=given)
        return onnx.load(file)


def simulated(found: IntegerNetwork, image: np.ndarray) -> dict[str, int]:
    """Cycles of every layer, counted in a simulation of one image.

    Raises:
        AssertionError: a byte or a cycle is not what it should be.
    """
    values = run_network(found, quantised_input(found, image))
    steps = [step for step in found.steps if isinstance(step, LayerStep)]
    work, owners = [], []
    for step in steps:
        layer = step.layer
        x = values[step.source].reshape(layer.weight.shape[1], *layer.input_hw)
        for job in jobs(layer, ENGINE):
            work.append((job, x, None if step.added is None else values[step.added]))
            owners.append(step)
    cycles: dict[str, int] = {}
    for step in steps:
        cycles[step.layer.name] = 0
    seen = simulate(work)
    for step in steps:
        own = [(job, one) for (job, _, _), one, owner in zip(work, seen, owners, strict=True) if owner is step]
        result = assembled([job for job, _ in own], [one for _, one in own])
        assert np.array_equal(result, values[step.output].reshape(result.shape)), f"{step.layer.name} differs"
        for job, one in own:
            assert one.cycles == job_cycles(job), f"{step.layer.name}: {one.cycles} cycles, {job_cycles(job)} expected"
            cycles[step.layer.name] += one.cycles
    return cycles


def facts() -> dict[str, Any]:
    """What every row says of the engine and of the tools."""
    return {"engine": ENGINE.name, "verilator": version("verilator"), "date": date.today().isoformat()}


def networks(args: argparse.Namespace) -> None:
    """cifar-resnet20 on real images."""
    calibration, _ = images(args.data, "train", CALIBRATION)
    samples, labels = images(args.data, "test", args.images)
    model = quantised(network("cifar-resnet20", args.data), calibration, seven_bits=True)
    found, session = read(model), onnxruntime.InferenceSession(model.SerializeToString())
    for number, (image, label) in enumerate(zip(samples, labels, strict=True)):
        cycles = simulated(found, image)
        mine = outputs(found, image[None])[0]
        theirs = session.run(None, {session.get_inputs()[0].name: image[None]})[0][0]
        row = {
            "network": "cifar-resnet20", "image": number, "layers": len(cycles), "cycles": sum(cycles.values()),
            "bytes_off": 0, "cycles_off": 0, "outputs_equal_runtime": bool(np.array_equal(mine, theirs)),
            "class": int(mine.argmax()), "runtime_class": int(theirs.argmax()), "label": int(label), **facts(),
        }  # fmt: skip
        append(row, RESULTS / "fpga_networks.csv")
        print(row, flush=True)


def ratios(args: argparse.Namespace) -> None:
    """cifar-resnet56, dense and with kernel elements pruned."""
    calibration, _ = images(args.data, "train", 32)
    module = network("cifar-resnet56", args.data)
    graph = trace(module, torch.from_numpy(calibration[:1]))
    dense: dict[str, int] = {}
    for keep in args.keep:
        kept = {} if keep == 9 else patterns(module, dict.fromkeys(eligible(module), keep), scope="block")
        plan = graph.plan({}, ()).model_copy(update={"elements": kept})
        small = apply(module, plan, torch.from_numpy(calibration[:1]), check=False).eval()
        found = read(quantised(small, calibration, seven_bits=False))
        cycles = simulated(found, calibration[0])
        dense = dense or cycles
        inner = [layer.name for layer in found.layers if layer.weight.shape[2] == 3 and layer.weight.shape[1] >= 16]
        made = Placement(ENGINE, open_device("ecp5-85f"), {one.name: jobs(one, ENGINE) for one in found.layers})
        assert schedule(found, made)["steps"]
        said = {one["name"]: one for one in summary(found, made)["layers"]}
        ours = sum(cycles[name] for name in inner)
        bits = [sum(said[name][kind] for name in inner) for kind in ("index_bits", "weight_bits")]
        walked = sum(said[name]["slots_filled"] * cycles[name] for name in inner) / ours
        busy = sum(said[name]["multipliers_busy"] * cycles[name] for name in inner) / ours
        row = {
            "network": "cifar-resnet56", "keep": keep, "layers_3x3": len(inner), "cycles_3x3": ours,
            "speedup_3x3": round(sum(dense[name] for name in inner) / ours, 4),
            "bound": round(9 / keep, 4), "of_bound": round(sum(dense[name] for name in inner) / ours / (9 / keep), 4),
            "walked": round(walked, 4), "useful": round(busy, 4), "index_overhead": round(bits[0] / bits[1], 5),
            "cycles_network": sum(cycles.values()),
            "speedup_network": round(sum(dense.values()) / sum(cycles.values()), 4),
            "bytes_off": 0, "cycles_off": 0, **facts(),
        }  # fmt: skip
        append(row, RESULTS / "fpga_ratios.csv")
        print(row, flush=True)


def agreement(args: argparse.Namespace) -> None:
    """Random layers through both simulators, with and without streams that wait."""
    from importlib import util

    place = Path(__file__).parents[1] / "tests" / "fpga" / "conftest.py"
    specification = util.spec_from_file_location("fpga_layers", place)
    assert specification is not None
    assert specification.loader is not None
    drawing = util.module_from_spec(specification)
    specification.loader.exec_module(drawing)
    for stall in (0, 90):
        rng, work, wanted = np.random.default_rng(stall), [], []
        for _ in range(args.layers):
            layer = drawing.draw_layer(rng)
            x, added = drawing.draw_bytes(rng, layer)
            parts = jobs(layer, drawing.SMALL)
            work += [(job, x, added) for job in parts]
            wanted.append((parts, run_layer(layer, x, added), layer_cycles(layer, drawing.SMALL)))
        for simulator in ("verilator", "icarus"):
            seen = iter(simulate(work, simulator=simulator, stall=stall))
            off = cycles = 0
            for parts, y, count in wanted:
                own = [next(seen) for _ in parts]
                off += int((assembled(parts, own) != y).sum())
                cycles += abs(sum(one.cycles for one in own) - count)
            row = {
                "simulator": simulator, "layers": args.layers, "jobs": len(work), "stall_of_256": stall,
                "bytes_off": off, "cycles_off": cycles if stall == 0 else "", **facts(), "engine": drawing.SMALL.name,
            }  # fmt: skip
            append(row, RESULTS / "fpga_agreement.csv")
            print(row, flush=True)


def builds(args: argparse.Namespace) -> None:
    """What engines take of an ECP5-85F, and the clock that they reach."""
    device = open_device("ecp5-85f")
    for name in args.engines:
        p, _, q = name.partition("x")
        engine = Engine(int(p), int(q), *((2048, 1024) if int(p) >= 16 else (512, 128)))
        with tempfile.TemporaryDirectory() as place:
            found = synthesised(engine, device, Path(place))
        row = build_row(engine, found)
        append(row, RESULTS / "fpga_builds.csv")
        print(row, flush=True)


def build_row(engine: Engine, found: dict[str, Any]) -> dict[str, Any]:
    """A row of a report."""
    yosys, placed, wanted = found["yosys"], found.get("nextpnr", {}), found["predicted"]
    return {
        "engine": engine.name, "lines": engine.lines, "elements": engine.elements, "device": found["device"],
        "multipliers": yosys["multipliers"], "multipliers_predicted": wanted["multipliers"],
        "block_ram": yosys["block_ram"], "block_ram_predicted": wanted["block_ram"], "tables": yosys["tables"],
        "carries": yosys["carries"], "flip_flops": yosys["flip_flops"], "clock_mhz": placed.get("clock_mhz", ""),
        "yosys": yosys["version"], "nextpnr": placed.get("version", ""), "source": source(),
        "date": date.today().isoformat(),
    }  # fmt: skip


def source() -> str:
    """The engine's sources by a digest: figures are of these."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in SOURCES)).hexdigest()[:12]


def main() -> None:
    """The part that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["networks", "ratios", "agreement", "builds"])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--layers", type=int, default=20)
    parser.add_argument("--keep", type=int, nargs="+", default=[9, 4, 3, 2])
    parser.add_argument("--engines", nargs="+", default=["4x2", "16x8"])
    args = parser.parse_args()
    {"networks": networks, "ratios": ratios, "agreement": agreement, "builds": builds}[args.part](args)


if __name__ == "__main__":
    main()
