"""How well latency models predict networks they have not seen, on three kinds of width vectors.

    python benchmarks/latency_prediction.py                 # three networks, three runtimes: about half an hour
    python benchmarks/latency_prediction.py --networks resnet18 --targets onnxruntime-cpu

For each network and target: builds the table, measures fresh networks of each kind, and writes one row per kind, and
one for all of them, to ``benchmarks/results/latency_prediction.csv``, with three baselines: a constant, multiply-adds
in proportion to the dense latency, and the sum of layers timed alone. A row is written as soon as it is known and
everything measured is kept in the store, so that an interrupted run goes on where it was; rows that are already there
are skipped (``--again`` measures them anew).
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import platform
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from result_rows import append

import secateurs
from secateurs.errors import SecateursError
from secateurs.export.artifacts import variants
from secateurs.importance.scoring import Scorer
from secateurs.latency.collect import Collector, Variants
from secateurs.latency.design import Sample, rounded
from secateurs.latency.lock import measuring
from secateurs.latency.model import LatencyModel, ModelError, Profiler
from secateurs.latency.store import Store
from secateurs.latency.targets import Target, lower_half, open_target
from secateurs.measure.profile import typical_plans
from secateurs.models import load
from secateurs.network import LayerSpec, NetworkSpec
from secateurs.planning.channels import Channels
from secateurs.planning.planner import Planner
from secateurs.progress import silent
from secateurs.search.exact import Effort
from secateurs.search.knapsack import Knapsack
from secateurs.structure import Graph, trace

RESULTS = Path(__file__).parent / "results" / "latency_prediction.csv"
KINDS = ("independent", "shared", "solver")
NETWORKS, TARGETS = ("cifar-resnet56", "resnet18", "mobilenet-v1"), ("onnxruntime-cpu", "openvino-cpu", "torch-cpu")
ISOLATED = 6
"""Networks per kind whose layers are timed alone: every new pair of widths of a layer is a file of its own."""
FIELDS = (
    "network", "input", "target", "device", "runtime", "precision", "threads", "kind", "networks", "mean_abs", "p95",
    "signed", "spearman", "within_one_sigma", "constant_mean_abs", "macs_mean_abs", "isolated_mean_abs", "dense_ms",
    "table_networks", "table_seconds", "noise", "secateurs", "python", "date",
)  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """One network on one target."""

    name: str
    graph: Graph
    variants: Variants
    target: Target
    threads: int
    store: Store

    @property
    def spec(self) -> NetworkSpec:
        """The network as numbers."""
        return self.graph.spec


def independent(spec: NetworkSpec, count: int, rng: np.random.Generator) -> list[Sample]:
    """Every group at its own share of 30 to 100 %."""
    shares = rng.uniform(0.3, 1.0, (count, len(spec.groups)))
    return [Sample(tuple(rounded(spec, share, 1).tolist())) for share in shares]


def shared(spec: NetworkSpec, count: int, rng: np.random.Generator) -> list[Sample]:
    """One share for all groups, with a jitter."""
    samples = []
    for share in rng.uniform(0.3, 1.0, count):
        jittered = np.clip(share + rng.normal(0, 0.05, len(spec.groups)), 0.1, 1.0)
        samples.append(Sample(tuple(rounded(spec, jittered, 1).tolist())))
    return samples


def solver(setting: Setting, model: LatencyModel, count: int) -> list[Sample]:
    """Plans that the exact solver returns at 80, 60 and 40 %, for several criteria and seeds."""
    criteria = [("l1", 0), ("l2", 0), ("splamp", 0), ("lamp", 0), *(("random", seed) for seed in range(count))]
    found: dict[Sample, None] = {}
    for (criterion, seed), ratio in itertools.product(criteria, (0.8, 0.6, 0.4)):
        planner = Planner(
            Channels(setting.graph, model),
            Scorer(setting.graph, criterion, seed=seed),
            Knapsack(Effort(gap=1e-3, seconds=5.0)),
        )
        try:
            solution = planner.solve({"latency": ratio}).solution
        except SecateursError as error:
            print(f"  {criterion} at {ratio:.0%}: {error}")
            continue
        found[Sample(tuple(solution.widths.tolist()), frozenset(solution.removed))] = None
        if len(found) >= count:
            break
    return list(found)


def measure(setting: Setting, samples: Sequence[Sample], model: LatencyModel) -> np.ndarray:
    """Latencies in ms [n] of whole networks, at the pace of the machine when the table was made."""
    collector = Collector(
        setting.spec, setting.variants, setting.target, threads=setting.threads, store=setting.store, profiled=False
    )
    with silent.task("measure", len(samples)) as task:
        seen = collector.measure(samples, task)
    return model.measured_ms([entry.total_ms for entry in seen], [entry.anchor_ms for entry in seen])


def isolated(setting: Setting, samples: Sequence[Sample]) -> np.ndarray:
    """Sum of the layers' latencies, each convolution or linear map timed alone, in ms [n]."""
    pairs: dict[tuple[object, ...], tuple[LayerSpec, int, int]] = {}
    keys = []
    for sample in samples:
        widths, mine = sample.array(), []
        for layer in setting.spec.layers:
            if sample.removed.isdisjoint(layer.blocks):
                inputs, outputs = int(layer.inputs.length(widths)), int(layer.outputs.length(widths))
                same: tuple[object, ...] = (
                    layer.kind,
                    layer.kernel_elements,
                    layer.stride,
                    layer.input_hw,
                    inputs,
                    outputs,
                )
                pairs[same] = (layer, inputs, outputs)
                mine.append(same)
        keys.append(mine)
    times: dict[tuple[object, ...], float] = {}
    with setting.target.start() as worker, tempfile.TemporaryDirectory() as folder, measuring():
        settings = setting.target.settings(threads=setting.threads, batch=1, profile=False)
        for same, pair in pairs.items():
            path = Path(folder) / f"layer.{setting.target.artifact}"
            path.write_bytes((one_layer if setting.target.artifact == "onnx" else one_program)(*pair))
            worker.load("layer", path, settings)
            times[same] = lower_half(worker.run(["layer"], runs=15, skip=2)["times_ms"]["layer"])
            worker.drop(["layer"])
    return np.array([sum(times[key] for key in mine) for mine in keys])


def one_program(layer: LayerSpec, inputs: int, outputs: int) -> bytes:
    """A PyTorch program with this layer alone."""
    module: torch.nn.Module
    shape: tuple[int, ...]
    if not layer.input_hw:
        module, shape = torch.nn.Linear(inputs, outputs), (1, inputs)
    else:
        side = round(layer.kernel_elements**0.5)
        groups = outputs if layer.kind == "depthwise" else layer.groups
        module = torch.nn.Conv2d(inputs, outputs, side, layer.stride, side // 2, groups=groups)
        shape = (1, inputs, *layer.input_hw)
    memory = io.BytesIO()
    torch.export.save(torch.export.export(module.eval(), (torch.zeros(shape),)), memory)
    return memory.getvalue()


def one_layer(layer: LayerSpec, inputs: int, outputs: int) -> bytes:
    """An ONNX file with this layer alone."""
    if not layer.input_hw:
        shape, weight, result = [1, inputs], [inputs, outputs], [1, outputs]
        node = helper.make_node("MatMul", ["x", "w"], ["y"])
    else:
        side = round(layer.kernel_elements**0.5)
        groups = outputs if layer.kind == "depthwise" else layer.groups
        shape, result = [1, inputs, *layer.input_hw], [1, outputs, *layer.output_hw]
        weight = [outputs, inputs // groups, side, side]
        total = max(0, (layer.output_hw[0] - 1) * layer.stride + side - layer.input_hw[0])
        pads = [total // 2, total // 2, total - total // 2, total - total // 2]
        node = helper.make_node("Conv", ["x", "w"], ["y"], strides=[layer.stride] * 2, pads=pads, group=groups)
    values = np.random.default_rng(0).standard_normal(weight).astype(np.float32)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, result)
    graph = helper.make_graph([node], "layer", [x], [y], [numpy_helper.from_array(values, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def scaled_error(prediction: np.ndarray, measured: np.ndarray) -> float:
    """Mean absolute relative error."""
    return float(np.abs(prediction / measured - 1).mean())


@dataclass(frozen=True)
class Seen:
    """Fresh networks of one kind: what was predicted, what was measured [n], and the multiply-adds [n] of dense."""

    samples: list[Sample]
    predicted: np.ndarray
    measured: np.ndarray
    macs: np.ndarray

    def __add__(self, other: Seen) -> Seen:
        arrays = zip(self.arrays(), other.arrays(), strict=True)
        return Seen(self.samples + other.samples, *(np.concatenate(pair) for pair in arrays))

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The arrays."""
        return self.predicted, self.measured, self.macs


def look(setting: Setting, kind: str, model: LatencyModel, count: int, seed: int) -> Seen:
    """Measure ``count`` fresh networks of one kind (those in the store are not measured again)."""
    rng, spec = np.random.default_rng([seed, 7, KINDS.index(kind)]), setting.spec
    if kind == "solver":
        samples = solver(setting, model, count)
    else:
        samples = (independent if kind == "independent" else shared)(spec, count, rng)
    predicted = np.array([model.predict(sample.array(), sample.removed) for sample in samples])
    macs = np.array([spec.macs(sample.array(), sample.removed) for sample in samples]) / spec.macs(spec.dense_widths)
    return Seen(samples, predicted, measure(setting, samples, model), macs)


def row(setting: Setting, kind: str, seen: Seen, model: LatencyModel, facts: dict[str, object]) -> dict[str, object]:
    """One line of the results."""
    error, measured = ModelError.of(seen.predicted, seen.measured), seen.measured
    sigma = np.array([model.uncertainty(sample.array(), sample.removed) for sample in seen.samples])
    print(f"{setting.name} {setting.target.name} {kind}: {error}", flush=True)
    in_float = setting.target.exporter == setting.target.artifact  # layers alone are made in float
    alone = isolated(setting, seen.samples[:ISOLATED]) if in_float and kind != "all" else None
    fingerprint = setting.target.fingerprint(setting.threads)
    return {
        **{key: fingerprint[key] for key in ("target", "device", "runtime", "precision", "threads")},
        **facts,
        "network": setting.name,
        "kind": kind,
        "networks": len(measured),
        "mean_abs": f"{error.mean_abs:.4f}",
        "p95": f"{error.p95:.4f}",
        "signed": f"{error.signed:.4f}",
        "spearman": f"{error.spearman:.4f}",
        "within_one_sigma": f"{float((np.abs(seen.predicted - measured) <= sigma).mean()):.3f}",
        "constant_mean_abs": f"{scaled_error(np.full(len(measured), np.median(measured)), measured):.4f}",
        "macs_mean_abs": f"{scaled_error(seen.macs * model.dense_ms, measured):.4f}",
        "isolated_mean_abs": "" if alone is None else f"{scaled_error(alone, measured[: len(alone)]):.4f}",
        "secateurs": secateurs.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }


def run(setting: Setting, kinds: Sequence[str], count: int, seed: int) -> Iterator[dict[str, object]]:
    """Rows for one network on one target, each as soon as it is known."""
    profiler = Profiler(
        setting.spec,
        setting.variants,
        setting.target,
        threads=setting.threads,
        store=setting.store,
        seed=seed,
        propose=lambda costs, number: typical_plans(setting.graph, costs, seed, number),
    )
    model = profiler.run()
    print(f"{setting.name} {setting.target.name}: table in {profiler.seconds:.0f} s, {model.error}", flush=True)
    facts = {
        "input": "x".join(str(size) for size in setting.graph.args[0].shape[1:]),
        "dense_ms": f"{model.dense_ms:.3f}",
        "table_networks": model.error.count,
        "table_seconds": f"{profiler.seconds:.0f}",
        "noise": f"{model.noise:.4f}",
    }
    everything = None
    for kind in KINDS if "all" in kinds else kinds:
        seen = look(setting, kind, model, count, seed)
        everything = seen if everything is None else everything + seen
        if kind in kinds:
            yield row(setting, kind, seen, model, facts)
    if "all" in kinds and everything is not None:
        yield row(setting, "all", everything, model, facts)


def done(path: Path) -> set[tuple[str, str, str]]:
    """Network, target and kind of the rows that are there."""
    if not path.exists():
        return set()
    with open(path, newline="", encoding="utf-8") as file:
        return {(entry["network"], entry["target"], entry["kind"]) for entry in csv.DictReader(file)}


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--targets", nargs="+", default=TARGETS)
    parser.add_argument("--kinds", nargs="+", default=(*KINDS, "all"), choices=(*KINDS, "all"))
    parser.add_argument("--count", type=int, default=40, help="networks per kind")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--store", type=Path, default=None)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--again", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with Store(options.store) as store:
        for name in options.networks:
            loaded = load(name)
            graph = trace(loaded.module, loaded.example())
            for text in options.targets:
                kinds = [
                    kind for kind in options.kinds if options.again or (name, text, kind) not in done(options.output)
                ]
                if kinds:
                    target = open_target(text)
                    built = variants(target.exporter, graph, 1)
                    setting = Setting(name, graph, built, target, options.threads, store)
                    for entry in run(setting, kinds, options.count, options.seed):
                        append(entry, options.output, FIELDS)


if __name__ == "__main__":
    main()
