"""How fast the sparse convolution is against ONNX Runtime, OpenVINO and oneDNN, per layer and for whole networks.

    python benchmarks/sparse_conv.py layers   [--keep 4 3 2] [--threads 1 2] [--only vgg*] [--copied] [--again]
    python benchmarks/sparse_conv.py networks [--keep 4] [--threads 1]
    python benchmarks/sparse_conv.py overhead
    python benchmarks/sparse_conv.py summary

Layers: the 3×3 convolutions of VGG-16 and ResNet-18 at 224 and of cifar-resnet56, with bias and ReLU, batch 1; blocks
of 32 filters share random patterns that keep ``--keep`` of 9 positions on average. Candidates take turns in one
process, a few runs each; a turn counts its fastest run, and the row holds the median over turns and the median of the
turns' ratios. A dense runtime is given the faster of its whole run and its own profile's time of the convolution alone,
so no change of layout is held against it; layers that read the image get it as planar memory, as the network does.
GFLOP/s count useful work, 2 × kept multiply-adds; the peak is measured between turns. A row is written only when the
result equals the dense convolution to 1e-5. Rows go to ``benchmarks/results/sparse_conv.csv``; what is there is not
measured again (``--again`` does). Layers whose input the runner surrounds with zeros get such an input; ``--copied``
measures them without, as rows ``layer copied``. One layer takes about 3 s. Overhead: a call of the PyTorch module whose
convolution is one pixel, less the same call of the library.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import fnmatch
import json
import os
import platform
import statistics
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import helper, numpy_helper
from torch import Tensor

from secateurs.elements import native
from secateurs.elements.convert import convert
from secateurs.elements.module import SparseConv2d
from secateurs.elements.openvino import to_openvino
from secateurs.elements.operator import call_arguments, channels_last, geometry
from secateurs.elements.packing import Packed, pack
from secateurs.elements.patterns import PatternChoice, choose
from secateurs.elements.runner import PIXELS_APART, Runner
from secateurs.latency.lock import measuring

RESULTS = Path(__file__).parent / "results" / "sparse_conv.csv"
FIELDS = (
    "part", "network", "layer", "count", "keep", "threads", "sparse_ms", "spread", "onnxruntime_ms", "openvino_ms",
    "torch_ms", "best", "speedup", "useful_gflops", "peak_gflops", "peak_share", "rel_error", "isa", "block", "device",
    "versions", "date",
)  # fmt: skip
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Layer:
    """A 3×3 convolution; ``count``: how often the network has it."""

    network: str
    filters: int
    channels: int
    size: int
    stride: int
    count: int

    @property
    def name(self) -> str:
        return f"{self.network}:{self.channels}-{self.filters}@{self.size}" + ("/2" if self.stride == 2 else "")

    @property
    def bordered(self) -> bool:
        """Whether the runner surrounds this layer's input with zeros."""
        return self.channels * self.stride in PIXELS_APART

    @property
    def output(self) -> int:
        return (self.size - 1) // self.stride + 1


LAYERS = (
    Layer("vgg16", 64, 3, 224, 1, 1), Layer("vgg16", 64, 64, 224, 1, 1),
    Layer("vgg16", 128, 64, 112, 1, 1), Layer("vgg16", 128, 128, 112, 1, 1),
    Layer("vgg16", 256, 128, 56, 1, 1), Layer("vgg16", 256, 256, 56, 1, 2),
    Layer("vgg16", 512, 256, 28, 1, 1), Layer("vgg16", 512, 512, 28, 1, 2), Layer("vgg16", 512, 512, 14, 1, 3),
    Layer("resnet18", 64, 64, 56, 1, 4), Layer("resnet18", 128, 64, 56, 2, 1), Layer("resnet18", 128, 128, 28, 1, 3),
    Layer("resnet18", 256, 128, 28, 2, 1), Layer("resnet18", 256, 256, 14, 1, 3),
    Layer("resnet18", 512, 256, 14, 2, 1), Layer("resnet18", 512, 512, 7, 1, 3),
    Layer("cifar-resnet56", 16, 3, 32, 1, 1), Layer("cifar-resnet56", 16, 16, 32, 1, 18),
    Layer("cifar-resnet56", 32, 16, 32, 2, 1), Layer("cifar-resnet56", 32, 32, 16, 1, 17),
    Layer("cifar-resnet56", 64, 32, 16, 2, 1), Layer("cifar-resnet56", 64, 64, 8, 1, 17),
)  # fmt: skip


class Candidate(ABC):
    """One implementation; every turn runs it a few times."""

    @abstractmethod
    def run(self) -> None:
        """Once."""

    def turn(self, runs: int) -> float:
        """Milliseconds of the fastest of ``runs`` runs, after one that warms the caches."""
        self.run()
        best = float("inf")
        for _ in range(runs):
            start = time.perf_counter()
            self.run()
            best = min(best, 1e3 * (time.perf_counter() - start))
        return best

    def result(self) -> Tensor | None:
        """The output as [n, c, h, w], where it is easily had."""
        return None


class Sparse(Candidate):
    """The kernel through its C interface, into memory that is there already, as in a network: the runner surrounds what
    a convolution is to read with a pixel of zeros where the kernel then needs no copy of it."""

    def __init__(
        self, layer: Layer, packed: Packed, x: Tensor, bias: Tensor, threads: int, *, copied: bool = False
    ) -> None:
        self.library = native.require()
        call = geometry((3, 3), (layer.stride, layer.stride), (1, 1, 1, 1))
        border = int(layer.bordered and not copied)
        if border:
            x = channels_last(F.pad(x, (1, 1, 1, 1)))[:, :, 1:-1, 1:-1]
        shared, shape = call_arguments(
            tuple(x.shape), x.stride(), None, layer.filters, packed.block, tuple(call), "relu", threads
        )
        arguments = native.ConvArguments.from_buffer_copy(shared)
        arguments.in_border = border
        self.out = torch.empty(shape, memory_format=torch.channels_last)
        self.kept = (arguments, packed, x, bias)
        self.pointers = (
            ctypes.addressof(arguments), x.data_ptr(), packed.weights.data_ptr(), packed.masks.data_ptr(),
            packed.starts.data_ptr(), bias.data_ptr(), None, self.out.data_ptr(),
        )  # fmt: skip

    def run(self) -> None:
        assert self.library.conv(*self.pointers) == 0

    def turn(self, runs: int) -> float:
        took = ctypes.c_double()
        self.run()
        assert self.library.handle.secateurs_time_conv_f32(*self.pointers, runs, ctypes.byref(took)) == 0
        return took.value

    def result(self) -> Tensor:
        return self.out


class OnnxRuntime(Candidate):
    def __init__(self, model: bytes, x: Tensor, threads: int, *, profile: bool = False) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        # Its pool spins while it works and not while others have their turn.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if profile:
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(tempfile.mkdtemp()) / "ort")
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.binding = self.session.io_binding()
        self.array = np.ascontiguousarray(x.numpy())
        self.binding.bind_cpu_input(self.session.get_inputs()[0].name, self.array)
        self.binding.bind_output(self.session.get_outputs()[0].name)

    def run(self) -> None:
        self.session.run_with_iobinding(self.binding)

    def node_times(self) -> list[float]:
        """Milliseconds of the convolution in every run since the session began."""
        path = Path(self.session.end_profiling())
        events = json.loads(path.read_text())
        path.unlink()
        return [e["dur"] / 1e3 for e in events if e.get("cat") == "Node" and e.get("args", {}).get("op_name") == "Conv"]


class OpenVino(Candidate):
    def __init__(self, model: Any, x: Tensor, threads: int, *, profile: bool = False) -> None:
        import openvino

        core = openvino.Core()
        model = core.read_model(model) if isinstance(model, bytes) else model
        options = {
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32",
            "NUM_STREAMS": 1,
            "PERF_COUNT": profile,
        }
        self.request = core.compile_model(model, "CPU", options).create_infer_request()
        self.array = np.ascontiguousarray(x.numpy())
        self.request.set_input_tensor(openvino.Tensor(self.array))
        self.profile = profile

    def run(self) -> None:
        self.request.infer()

    def turn(self, runs: int) -> float:
        if not self.profile:
            return super().turn(runs)
        best = float("inf")
        for _ in range(runs + 1):
            self.run()
            nodes = [p.real_time.total_seconds() for p in self.request.profiling_info if p.node_type == "Convolution"]
            best = min(best, 1e3 * sum(nodes)) if nodes else best
        return best


class Torch(Candidate):
    """oneDNN through PyTorch, the weight packed ahead and the activation fused, channels last."""

    def __init__(self, layer: Layer, weight: Tensor, x: Tensor, bias: Tensor) -> None:
        s = [layer.stride] * 2
        packed = torch._C._nn.mkldnn_reorder_conv2d_weight(weight.to_mkldnn(), [1, 1], s, [1, 1], 1, list(x.shape))
        self.arguments = (channels_last(x), packed, bias, [1, 1], s, [1, 1], 1, "relu", [], "")

    def run(self) -> None:
        with torch.inference_mode():
            torch.ops.mkldnn._convolution_pointwise(*self.arguments)


class Call(Candidate):
    def __init__(self, function, x: Tensor) -> None:
        self.function, self.x = function, x

    def run(self) -> None:
        with torch.inference_mode():
            self.function(self.x)


def onnx_layer(layer: Layer, weight: Tensor, bias: Tensor) -> bytes:
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["t"], pads=[1] * 4, strides=[layer.stride] * 2),
        helper.make_node("Relu", ["t"], ["y"]),
    ]
    shapes = ([1, layer.channels, layer.size, layer.size], [1, layer.filters, layer.output, layer.output])
    x, y = (helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s) for n, s in zip("xy", shapes, strict=True))
    weights = [numpy_helper.from_array(weight.numpy(), "w"), numpy_helper.from_array(bias.numpy(), "b")]
    graph = helper.make_graph(nodes, "layer", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


def measure_layer(layer: Layer, keep: int, threads: int, seconds: float, *, copied: bool) -> dict[str, object]:
    """The row of a layer; the measurement lock is held while turns are taken, not while they are prepared."""
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    choice = PatternChoice(keep=keep, block=32 if layer.filters >= 32 else 16)
    weight = torch.randn(layer.filters, layer.channels, 3, 3) * 0.1
    weight = weight * choose(torch.rand_like(weight), choice)
    bias, x = torch.randn(layer.filters), torch.randn(1, layer.channels, layer.size, layer.size)
    if layer.channels > 3:
        x = x.contiguous(memory_format=torch.channels_last)
    packed = pack(weight, block=choice.block)
    model = onnx_layer(layer, weight, bias)
    sparse = Sparse(layer, packed, x, bias, threads, copied=copied)
    profiled = OnnxRuntime(model, x, threads, profile=True)
    candidates: dict[str, Candidate] = {
        "sparse": sparse,
        "onnxruntime": OnnxRuntime(model, x, threads),
        "onnxruntime node": profiled,
        "openvino": OpenVino(model, x, threads),
        "openvino node": OpenVino(model, x, threads, profile=True),
        "torch": Torch(layer, weight, x, bias),
    }
    sparse.run()
    expected = F.relu(F.conv2d(x.double(), weight.double(), bias.double(), stride=layer.stride, padding=1))
    error = float((sparse.out - expected).abs().max() / expected.abs().max())
    if error > TOLERANCE:
        raise SystemExit(f"{layer.name}: relative error {error:.1e} is above {TOLERANCE:g}; nothing is timed.")
    turns, peaks = take_turns(candidates, seconds, sparse.library)
    nodes = profiled.node_times()[1:]  # the first run came before the turns
    runs = len(nodes) // len(turns["sparse"])
    turns["onnxruntime node"] = [min(nodes[i * runs + 1 : (i + 1) * runs]) for i in range(len(turns["sparse"]))]
    for name in ("onnxruntime", "openvino"):
        turns[name] = [min(pair) for pair in zip(turns[name], turns.pop(f"{name} node"), strict=True)]
    flops = 2.0 * packed.macs_per_output * layer.output**2
    rates = [flops / ms / 1e6 for ms in turns["sparse"]]
    return {
        "part": "layer copied" if copied else "layer", "network": layer.network, "layer": layer.name,
        "count": layer.count, "keep": keep,
        "threads": threads, **figures(turns), "useful_gflops": round(statistics.median(rates), 1),
        "peak_gflops": round(statistics.median(peaks) * threads / 1e9, 1),
        "peak_share": round(statistics.median(r / p / threads * 1e9 for r, p in zip(rates, peaks, strict=True)), 3),
        "rel_error": f"{error:.1e}", "isa": sparse.library.isa, "block": choice.block,
    }  # fmt: skip


def take_turns(
    candidates: dict[str, Candidate], seconds: float, library: native.Kernels
) -> tuple[dict[str, list[float]], list[float]]:
    """Milliseconds per turn and candidate, and the FMA peak (one core, FLOP/s) at every round."""
    turns: dict[str, list[float]] = {name: [] for name in candidates}
    peaks: list[float] = []
    for candidate in candidates.values():
        candidate.run()
    with measuring():
        rough = max(0.005, candidates["sparse"].turn(2))
        runs = max(3, min(50, round(4.0 / rough)))
        end = time.monotonic() + seconds
        while len(peaks) < 5 or (time.monotonic() < end and len(peaks) < 60):
            for name, candidate in candidates.items():
                turns[name].append(candidate.turn(runs))
                if name == "sparse":
                    peaks.append(max(library.fma_peak(0.3) for _ in range(2)))
    return turns, peaks


def figures(turns: dict[str, list[float]]) -> dict[str, object]:
    sparse = turns["sparse"]
    dense = {name: times for name, times in turns.items() if name != "sparse"}
    best = min(dense, key=lambda name: statistics.median(dense[name]))
    ratio = statistics.median(d / s for d, s in zip(dense[best], sparse, strict=True))
    low, high = np.quantile(sparse, [0.25, 0.75])
    row: dict[str, object] = {f"{name}_ms": f"{statistics.median(times):.4f}" for name, times in turns.items()}
    return {
        **row,
        "spread": round(float(high - low) / statistics.median(sparse), 3),
        "best": best,
        "speedup": round(ratio, 3),
    }


def networks() -> dict[str, tuple[torch.nn.Module, int]]:
    from secateurs.models.cifar_resnet import CifarResNet
    from secateurs.models.resnet import ResNet
    from secateurs.models.vgg import Vgg16BatchNorm

    return {"vgg16": (Vgg16BatchNorm(), 224), "resnet18": (ResNet(18), 224), "cifar-resnet56": (CifarResNet(56), 32)}


def measure_network(
    name: str, model: torch.nn.Module, size: int, keep: int, threads: int, seconds: float
) -> Iterator[dict[str, object]]:
    """The network by the runner, and in OpenVINO with the extension, each against the best dense runtime."""
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    model.eval()
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d) and module.kernel_size == (3, 3):
            module.weight.data *= choose(torch.rand_like(module.weight), PatternChoice(keep=keep))
    x = torch.randn(1, 3, size, size)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        torch.onnx.export(model, (x,), path, dynamo=True, verbose=False, external_data=False)
        content = path.read_bytes()
    converted = convert(model, x)
    runner = Runner(converted, x, threads=threads)
    frozen = torch.jit.optimize_for_inference(torch.jit.freeze(torch.jit.trace(model, x)))
    extended = OpenVino(to_openvino(converted, x), x, threads)
    extended.run()
    with torch.inference_mode():
        expected = model(x)
        results = (runner(x), torch.from_numpy(extended.request.get_output_tensor().data))
        errors = [float((result - expected).abs().max() / expected.abs().max()) for result in results]
    if max(errors) > 1e-4:
        raise SystemExit(f"{name}: relative errors {errors}; nothing is timed.")
    candidates: dict[str, Candidate] = {
        "sparse": Call(runner, x),
        "extended": extended,
        "onnxruntime": OnnxRuntime(content, x, threads),
        "openvino": OpenVino(content, x, threads),
        "torch": Call(frozen, x),
    }
    turns, peaks = take_turns(candidates, seconds, native.require())
    times = {"network": turns.pop("sparse"), "network in openvino": turns.pop("extended")}
    for (part, sparse), error in zip(times.items(), errors, strict=True):
        yield {
            "part": part, "network": name, "layer": "whole", "count": 1, "keep": keep, "threads": threads,
            **figures({"sparse": sparse, **turns}), "peak_gflops": round(statistics.median(peaks) * threads / 1e9, 1),
            "rel_error": f"{error:.1e}", "isa": native.require().isa, "block": 32,
        }  # fmt: skip


def measure_overhead(seconds: float) -> dict[str, object]:
    """What PyTorch adds to a call: dispatcher, checks, the output's memory."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    layer = Layer("overhead", 16, 16, 1, 1, 1)
    module = SparseConv2d.from_dense(torch.nn.Conv2d(16, 16, 3, padding=1), block=16, activation="relu")
    packed = Packed(module.weights.detach(), module.masks, module.starts, module.shape)
    x = channels_last(torch.randn(1, 16, 1, 1))
    raw = Sparse(layer, packed, x, torch.zeros(16), 1)
    turns, peaks = take_turns({"sparse": Call(module, x), "raw": raw}, seconds, raw.library)
    overhead = [whole - kernel for whole, kernel in zip(turns["sparse"], turns["raw"], strict=True)]
    low, high = np.quantile(overhead, [0.25, 0.75])
    return {
        "part": "overhead", "network": "", "layer": layer.name, "count": 1, "keep": 9, "threads": 1,
        "sparse_ms": f"{statistics.median(overhead):.4f}",
        "spread": round(float(high - low) / statistics.median(overhead), 3),
        "peak_gflops": round(statistics.median(peaks) / 1e9, 1), "isa": raw.library.isa, "block": 16,
    }  # fmt: skip


def device() -> str:
    """Processor name, with what tells two of one name apart."""
    name = platform.processor() or platform.machine()
    try:
        text = Path("/proc/cpuinfo").read_text()
        name = next(line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{name} ({os.cpu_count()} cores)"


def versions() -> str:
    return " ".join(f"{name}={version(name)}" for name in ("onnxruntime", "openvino", "torch"))


def load() -> list[dict[str, str]]:
    if not RESULTS.exists():
        return []
    with RESULTS.open(newline="") as file:
        return list(csv.DictReader(file))


def key(row: dict) -> tuple[str, ...]:
    return tuple(str(row[field]) for field in ("part", "network", "layer", "keep", "threads", "isa", "device"))


def store(row: dict[str, object]) -> None:
    """Add the row, in place of an older one of the same thing; a killed run leaves a whole file."""
    row = {"device": device(), "versions": versions(), "date": time.strftime("%Y-%m-%d"), **row}
    rows = [old for old in load() if key(old) != key(row)] + [{name: str(row.get(name, "")) for name in FIELDS}]
    RESULTS.parent.mkdir(exist_ok=True)
    temporary = RESULTS.with_suffix(".tmp")
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(temporary, RESULTS)
    shown = {
        k: row.get(k)
        for k in (
            "part",
            "network",
            "layer",
            "keep",
            "threads",
            "sparse_ms",
            "best",
            "speedup",
            "useful_gflops",
            "peak_share",
        )
    }
    print("  ".join(f"{k}={v}" for k, v in shown.items()), flush=True)


def geometric_mean(pairs: list[tuple[float, int]]) -> float:
    return float(np.exp(sum(w * np.log(v) for v, w in pairs) / sum(w for _, w in pairs)))


def summary() -> None:
    rows = [row for row in load() if row["device"] == device()]
    for row in rows:
        if row["part"] == "overhead":
            print(f"PyTorch adds {1e3 * float(row['sparse_ms']):.1f} µs to a call")
    rows = [row for row in rows if row["part"] != "overhead"]
    for keep in sorted({row["keep"] for row in rows}, reverse=True):
        for threads in sorted({row["threads"] for row in rows}):
            here = [r for r in rows if (r["keep"], r["threads"]) == (keep, threads)]
            head = f"{keep} of 9, {threads} thread(s)"
            for r in here:
                if r["part"].startswith("network"):
                    print(
                        f"{head}: {r['part']}: {r['network']} {r['speedup']}x against {r['best']}, {r['sparse_ms']} ms"
                    )
            found = [r for r in here if r["part"] == "layer"]
            if not found:
                continue
            copied = {r["layer"]: r for r in here if r["part"] == "layer copied"}
            if copied:
                without = geometric_mean([(float(copied.get(r["layer"], r)["speedup"]), 1) for r in found])
                print(f"{head}: {len(found)} shapes {without:.2f}x where every input is copied")
            once = geometric_mean([(float(r["speedup"]), 1) for r in found])
            counted = geometric_mean([(float(r["speedup"]), int(r["count"])) for r in found])
            share = geometric_mean([(float(r["peak_share"]), 1) for r in found])
            layers = sum(int(r["count"]) for r in found)
            print(
                f"{head}: {len(found)} shapes {once:.2f}x, {layers} layers {counted:.2f}x, {share:.0%} of the FMA peak"
            )
            large = [r for r in found if "cifar" not in r["network"]]
            if large:
                worst = min(large, key=lambda r: float(r["speedup"]))
                print(f"{head}: slowest of VGG-16 and ResNet-18 is {worst['layer']} with {worst['speedup']}x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("layers", "networks", "overhead", "summary"))
    parser.add_argument("--keep", type=int, nargs="+", default=[4, 3, 2])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--only", default="*", help="glob of layer or network names")
    parser.add_argument("--seconds", type=float, default=2.0, help="per row")
    parser.add_argument("--copied", action="store_true", help="layers without zeros around their input")
    parser.add_argument("--again", action="store_true", help="measure rows anew")
    options = parser.parse_args()
    isa = native.require().isa
    known = set() if options.again else {key(row) for row in load()}
    if options.part == "overhead":
        store(measure_overhead(options.seconds))
    for threads in options.threads if options.part in ("layers", "networks") else []:
        for keep in options.keep:
            if options.part == "layers":
                part = "layer copied" if options.copied else "layer"
                for layer in (layer for layer in LAYERS if layer.bordered or not options.copied):
                    asked = (part, layer.network, layer.name, str(keep), str(threads), isa, device())
                    if fnmatch.fnmatch(layer.name, options.only) and asked not in known:
                        store(measure_layer(layer, keep, threads, options.seconds, copied=options.copied))
                continue
            for name, (model, size) in networks().items():
                asked = ("network in openvino", name, "whole", str(keep), str(threads), isa, device())
                if fnmatch.fnmatch(name, options.only) and asked not in known:
                    for row in measure_network(name, model, size, keep, threads, 3 * options.seconds):
                        store(row)
    summary()


if __name__ == "__main__":
    main()
