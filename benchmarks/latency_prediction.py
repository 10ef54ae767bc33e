"""How well latency models predict networks they have not seen, on three kinds of width vectors.

    python benchmarks/latency_prediction.py --networks cifar-resnet56 resnet18 mobilenet-v1 --targets onnxruntime-cpu

For each network and target: builds the table, measures fresh networks of each kind, and writes one row per kind to
``benchmarks/results/latency_prediction.csv``, with three baselines: a constant, multiply-adds in proportion to the
dense latency, and the sum of layers timed alone. Everything measured is kept in the store, so that an interrupted run
goes on where it was; rows that are already there are skipped (``--again`` measures them anew).
"""

from __future__ import annotations

import argparse
import csv
import itertools
import platform
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

import secateurs
from secateurs import planning
from secateurs.errors import SecateursError
from secateurs.export.variants import OnnxVariants
from secateurs.latency.collect import Collector, Observation
from secateurs.latency.design import Sample, rounded
from secateurs.latency.lock import measuring
from secateurs.latency.model import LatencyModel, ModelError, Profiler
from secateurs.latency.store import Store
from secateurs.latency.targets import Target, lower_half, open_target
from secateurs.models import load
from secateurs.network import LayerSpec, NetworkSpec
from secateurs.progress import silent
from secateurs.structure import Graph, trace

RESULTS = Path(__file__).parent / "results" / "latency_prediction.csv"
KINDS = ("independent", "shared", "solver")
FIELDS = (
    "network", "input", "target", "device", "runtime", "precision", "threads", "kind", "networks", "mean_abs", "p95",
    "signed", "spearman", "constant_mean_abs", "macs_mean_abs", "isolated_mean_abs", "dense_ms", "table_networks",
    "table_seconds", "noise", "secateurs", "python", "date",
)  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """One network on one target."""

    name: str
    graph: Graph
    variants: OnnxVariants
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
    criteria = [("l1", 0), ("l2", 0), ("splamp", 0), *(("random", seed) for seed in range(count))]
    found: dict[Sample, None] = {}
    for (criterion, seed), ratio in itertools.product(criteria, (0.8, 0.6, 0.4)):
        planner = planning.Planner(setting.graph, model, "knapsack", criterion, seed)
        try:
            choice = planner.solve(ratio)
        except SecateursError as error:
            print(f"  {criterion} at {ratio:.0%}: {error}")
            continue
        found[Sample(tuple(choice.solution.widths.tolist()), frozenset(choice.solution.removed))] = None
        if len(found) >= count:
            break
    return list(found)


def measure(setting: Setting, samples: Sequence[Sample], dense_ms: float) -> tuple[list[Observation], np.ndarray]:
    """Observations, and latencies in ms [n] with the clock's drift against the table removed."""
    collector = Collector(setting.spec, setting.variants, setting.target, threads=setting.threads, store=setting.store)
    with silent.task("measure", len(samples)) as task:
        seen = collector.measure(samples, task)
    return seen, np.array([entry.total_ms * dense_ms / entry.anchor_ms for entry in seen])


def isolated(setting: Setting, samples: Sequence[Sample]) -> np.ndarray:
    """Sum of the layers' latencies, each convolution or linear map timed alone, in ms [n]."""
    pairs: dict[tuple[LayerSpec, int, int], float] = {}
    keys = []
    for sample in samples:
        widths, mine = sample.array(), []
        for layer in setting.spec.layers:
            if sample.removed.isdisjoint(layer.blocks):
                mine.append((layer, int(layer.inputs.length(widths)), int(layer.outputs.length(widths))))
        keys.append(mine)
        pairs.update(dict.fromkeys(mine, 0.0))
    with setting.target.start() as worker, tempfile.TemporaryDirectory() as folder, measuring():
        settings = setting.target.settings(threads=setting.threads, batch=1, profile=False)
        for layer, inputs, outputs in pairs:
            path = Path(folder) / "layer.onnx"
            path.write_bytes(one_layer(layer, inputs, outputs))
            worker.load("layer", path, settings)
            times = worker.run(["layer"], runs=15, skip=2)["times_ms"]["layer"]
            pairs[layer, inputs, outputs] = lower_half(times)
            worker.drop(["layer"])
    return np.array([sum(pairs[key] for key in mine) for mine in keys])


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


def row(
    setting: Setting, kind: str, samples: Sequence[Sample], model: LatencyModel, facts: dict[str, object]
) -> dict[str, object]:
    """One line of the results."""
    seen, measured = measure(setting, samples, model.dense_ms)
    predicted = np.array([model.predict(sample.array(), sample.removed) for sample in samples])
    error, spec = ModelError.of(predicted, measured), setting.spec
    macs = np.array([spec.macs(sample.array(), sample.removed) for sample in samples]) / spec.macs(spec.dense_widths)
    alone = isolated(setting, samples[:12]) if setting.target.artifact == "onnx" else None
    print(f"{setting.name} {setting.target.name} {kind}: {error}", flush=True)
    fingerprint = setting.target.fingerprint(setting.threads)
    return {
        **{key: fingerprint[key] for key in ("target", "device", "runtime", "precision", "threads")},
        **facts,
        "network": setting.name,
        "kind": kind,
        "networks": len(seen),
        "mean_abs": f"{error.mean_abs:.4f}",
        "p95": f"{error.p95:.4f}",
        "signed": f"{error.signed:.4f}",
        "spearman": f"{error.spearman:.4f}",
        "constant_mean_abs": f"{scaled_error(np.full(len(measured), np.median(measured)), measured):.4f}",
        "macs_mean_abs": f"{scaled_error(macs * model.dense_ms, measured):.4f}",
        "isolated_mean_abs": "" if alone is None else f"{scaled_error(alone, measured[: len(alone)]):.4f}",
        "secateurs": secateurs.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }


def run(setting: Setting, kinds: Sequence[str], count: int, seed: int) -> list[dict[str, object]]:
    """Rows for one network on one target."""
    start = time.monotonic()
    profiler = Profiler(
        setting.spec, setting.variants, setting.target, threads=setting.threads, store=setting.store, seed=seed
    )
    model = profiler.run()
    seconds = time.monotonic() - start
    print(f"{setting.name} {setting.target.name}: table in {seconds:.0f} s, held out {model.error}", flush=True)
    facts = {
        "input": "x".join(str(size) for size in setting.graph.args[0].shape[1:]),
        "dense_ms": f"{model.dense_ms:.3f}",
        "table_networks": model.error.count,
        "table_seconds": f"{seconds:.0f}",
        "noise": f"{model.noise:.4f}",
    }
    rng = np.random.default_rng([seed, 7])
    rows = []
    for kind in kinds:
        samples = {
            "independent": lambda: independent(setting.spec, count, rng),
            "shared": lambda: shared(setting.spec, count, rng),
            "solver": lambda: solver(setting, model, count),
        }[kind]()
        rows.append(row(setting, kind, samples, model, facts))
    return rows


def write(rows: Sequence[dict[str, object]], path: Path) -> None:
    """Add rows to the results."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = not path.exists()
    with open(path, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS)
        if fresh:
            writer.writeheader()
        writer.writerows(rows)


def done(path: Path) -> set[tuple[str, str, str]]:
    """Network, target and kind of the rows that are there."""
    if not path.exists():
        return set()
    with open(path, newline="", encoding="utf-8") as file:
        return {(entry["network"], entry["target"], entry["kind"]) for entry in csv.DictReader(file)}


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["cifar-resnet56", "resnet18", "mobilenet-v1"])
    parser.add_argument("--targets", nargs="+", default=["onnxruntime-cpu"])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
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
            variants = OnnxVariants(graph)
            for text in options.targets:
                kinds = [
                    kind for kind in options.kinds if options.again or (name, text, kind) not in done(options.output)
                ]
                if kinds:
                    setting = Setting(name, graph, variants, open_target(text), options.threads, store)
                    write(run(setting, kinds, options.count, options.seed), options.output)


if __name__ == "__main__":
    main()
