"""Accuracy at equal *measured* latency, against everything else that is known, row by row.

    python benchmarks/accuracy_at_latency.py candidates resnet20     plans of every method around every budget
    python benchmarks/accuracy_at_latency.py time resnet20           latencies, interleaved with dense: a quiet machine
    python benchmarks/accuracy_at_latency.py accuracy resnet20 [--epochs 2 --budget 50 --seed 0]    may run under load
    python benchmarks/accuracy_at_latency.py table                   what the rows say

Every step goes on where it was stopped. ``candidates`` profiles the network first where the store holds no latency
model. Ours is the slowest of our candidates within the budget; of a rival the slowest candidate within [1.00, 1.04] x
ours is taken, so that doubt favours it; one that has none there is given its nearest slower one. All use the same
groups, legal widths, latency model, calibration images, repair, recipe and seeds; only criterion and allocation
differ. Data: ``--data`` (default ../shared/data).
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import rivals
import torch
from torch import nn

from secateurs.data import Data, accuracy, open_data
from secateurs.errors import InfeasibleBudgetError, UnstableTimingError
from secateurs.export.artifacts import variants
from secateurs.importance.context import Context
from secateurs.importance.statistics import gather
from secateurs.importance.values import scores
from secateurs.latency.model import LatencyModel
from secateurs.latency.timing import Protocol, compare
from secateurs.models import Loaded, load
from secateurs.plan import Plan
from secateurs.planning import Choice, Planner
from secateurs.profiling import open_target, profile
from secateurs.provenance import versions
from secateurs.recover.batch_norm import reestimate
from secateurs.recover.finetune import finetune
from secateurs.recover.recipe import Recipe
from secateurs.recover.repair import repair
from secateurs.search_options import Legal
from secateurs.structure import Graph, apply, trace

ROWS = Path(__file__).parent / "results" / "accuracy_at_latency.csv"
WORK = Path(__file__).parent.parent / "build" / "accuracy_at_latency"
TARGET = "onnxruntime-cpu"
BUDGETS = (75, 60, 50)
STEPS = tuple(float(step) for step in np.round(np.arange(0.92, 1.121, 0.01), 3))
"""Model limits that are tried, as factors of the budget."""
MACS_STEPS = tuple(float(step) for step in np.round(np.arange(0.20, 1.001, 0.02), 3))
"""Of the method that knows multiply-adds only, which fall faster than latency."""
PRECISE = Protocol(turns=16, precision=0.008, extensions=1)
AT_ONCE = 8
WINDOW = 1.04
"""Rivals may be this much slower than ours."""
NETWORKS = {
    "resnet20": ("cifar-resnet20", "resnet20_cifar10_jpeg", "cifar10_jpeg_train.parquet,{}/cifar10_jpeg_test.parquet"),
    "resnet56": ("cifar-resnet56", "resnet56_cifar10_jpeg", "cifar10_jpeg_train.parquet,{}/cifar10_jpeg_test.parquet"),
    "mobilenet-v1": (
        "mobilenet-v1",
        "mobilenet_v1_1.0_224",
        "imagenette224_train.parquet,{}/imagenette224_val.parquet",
    ),
    "mobilenet-v2": (
        "mobilenet-v2",
        "mobilenet_v2_1.0_224",
        "imagenette224_train.parquet,{}/imagenette224_val.parquet",
    ),
}
OURS = "secateurs"
METHODS = {
    OURS: ("fisher", "knapsack"),
    "uniform L1": ("l1", "uniform"),
    "torch-pruning group L2": ("group L2", "global-rank"),
    "torch-pruning group Taylor": ("group Taylor", "global-rank"),
    "torch-pruning group Hessian": ("group Hessian", "global-rank"),
    "isomorphic group Taylor": ("group Taylor", "isomorphic"),
    "HALP-style": ("taylor_bn", "halp"),
    "NetAdapt-style": ("l2", "greedy"),
    "MACs knapsack": ("fisher", "knapsack"),
    "torch-pruning alone (inner convolutions only)": ("group Taylor", "global-rank"),
}
"""Method to (criterion, allocation)."""


@dataclass(frozen=True)
class Bench:
    """One network with its data and everything that plans are made from."""

    name: str
    folder: Path
    seed: int = 0

    @cached_property
    def loaded(self) -> Loaded:
        """The dense network."""
        built, weights, _ = NETWORKS[self.name]
        return load(built, weights=str(self.folder / f"{weights}.safetensors"))

    @cached_property
    def data(self) -> Data:
        """Its images."""
        rest = NETWORKS[self.name][2].format(self.folder)
        classes = "all" if "cifar" in rest else "present"
        return open_data(f"parquet:{self.folder}/{rest}", self.loaded, seed=0, classes=classes)

    @cached_property
    def graph(self) -> Graph:
        """Its structure."""
        return trace(self.loaded.module, self.loaded.example())

    @cached_property
    def files(self) -> Any:
        """Builds ONNX files at any widths."""
        return variants("onnx", self.graph)

    @cached_property
    def costs(self) -> LatencyModel:
        """Its latency model."""
        return profile(self.graph, TARGET)

    @cached_property
    def scores(self) -> dict[str, dict[str, np.ndarray]]:
        """Scores of every criterion in use."""
        batches = list(self.data.calibration.take(512).batches(64))
        statistics = gather(self.graph, batches, ("outputs", "norms", "gradients"))
        found = rivals.gradients(self.graph, batches)
        context = Context(0, statistics)
        own = {name: scores(self.graph, name, context) for name in ("fisher", "l1", "l2", "taylor_bn")}
        return {
            **own,
            "group L2": rivals.group_l2(self.graph),
            "group Taylor": rivals.group_taylor(self.graph, found),
            "group Hessian": rivals.group_hessian(self.graph, found),
        }

    def planner(self, method: str) -> Planner:
        """What makes the method's plans for any limit."""
        criterion, allocation = METHODS[method]
        costs = self.costs
        strategy = (
            rivals.Isomorphic(rivals.isomorphic_classes(self.graph)) if allocation == "isomorphic" else allocation
        )
        legal = Legal(blocks=allocation == "knapsack")
        if "inner" in method:
            inside = {group for block in self.graph.spec.blocks for group in block.groups}
            names = [group.name for number, group in enumerate(self.graph.spec.groups) if number not in inside]
            legal = replace(legal, pinned=tuple(names))
        resources = ("macs",) if method == "MACs knapsack" else ("latency",)
        planner = Planner(self.graph, costs, strategy, criterion, legal=legal, resources=resources)
        planner.__dict__["scores"] = self.scores[criterion]
        return planner

    def predicted(self, choice: Choice) -> float:
        """Model latency as a ratio to dense."""
        solution, dense = choice.solution, self.graph.spec.dense_widths
        return float(self.costs.predict(solution.widths, solution.removed) / self.costs.predict(dense))


@dataclass
class Candidates:
    """Plans that were made and their measured ratios, in one file: a list of entries.

    ``method``, ``budget`` (per cent), ``step`` (model limit / budget), ``key`` (of the widths), ``predicted``,
    ``ratio`` and ``upper`` (measured, None before); plans lie beside it.
    """

    path: Path

    def read(self) -> list[dict[str, Any]]:
        """Every entry."""
        return json.loads(self.path.read_text()) if self.path.exists() else []

    def write(self, entries: list[dict[str, Any]]) -> None:
        """Replace the file in one go."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        scratch = self.path.with_suffix(".new")
        scratch.write_text(json.dumps(entries, indent=1))
        scratch.replace(self.path)

    def plan(self, entry: dict[str, Any]) -> Path:
        """Where an entry's plan lies."""
        name = f"{entry['method']}-{entry['budget']}-{entry['step']}".replace(" ", "_")
        return self.path.parent / f"{name}.plan.json"


def make_candidates(bench: Bench, held: Candidates, budgets: list[int], methods: list[str], every: int) -> None:
    """Plans of the methods for every budget and ``every``-th step; a network that occurred is not listed twice."""
    entries = held.read()
    for method in methods:
        planner = bench.planner(method)
        for budget in budgets:
            seen = {entry["key"] for entry in entries if (entry["method"], entry["budget"]) == (method, budget)}
            done = {entry["step"] for entry in entries if (entry["method"], entry["budget"]) == (method, budget)}
            for step in (MACS_STEPS if planner.resources == ("macs",) else STEPS)[::every]:
                if step in done:
                    continue
                try:
                    choice = planner.solve({planner.resources[0]: step * budget / 100})
                except InfeasibleBudgetError:
                    continue
                if choice.key in seen:
                    continue
                seen.add(choice.key)
                entry = {
                    "method": method,
                    "budget": budget,
                    "step": step,
                    "key": choice.key,
                    "widths": choice.solution.widths.tolist(),
                    "removed": sorted(choice.solution.removed),
                    "predicted": bench.predicted(choice),
                    "ratio": None,
                }
                held.path.parent.mkdir(parents=True, exist_ok=True)
                held.plan(entry).write_text(planner.plan(choice, f"{budget}%").to_json())
                entries.append(entry)
            held.write(entries)
            print(f"{method}, {budget} %: {len(seen)} networks", flush=True)


def measure(bench: Bench, held: Candidates, seconds: float, methods: list[str]) -> None:
    """Measured ratios of candidates that have none, likeliest first, until the time is over."""
    end, target = time.monotonic() + seconds, open_target(TARGET)
    for chunk in iter(lambda: _open(held.read(), methods)[:AT_ONCE], []):
        if time.monotonic() > end:
            return
        names = {f"c{index}": entry for index, entry in enumerate(chunk)}
        files: dict[str, Path | str | bytes] = {"dense": bench.files.dense_bytes}
        for name, entry in names.items():
            files[name] = bench.files.build(np.array(entry["widths"]), frozenset(entry["removed"]))
        try:
            found = compare(target, files, protocol=PRECISE)
        except UnstableTimingError as error:
            print(error)
            continue
        results = {entry["key"]: found[name] for name, entry in names.items()}
        entries = held.read()
        for entry in entries:
            if entry["key"] in results:
                measured = results[entry["key"]]
                dense_ms = found["dense"].latency_ms
                entry |= {"ratio": measured.ratio, "upper": measured.ratio_upper, "dense_ms": dense_ms}
        held.write(entries)
        for entry in names.values():
            print(f"{entry['method']:45s} {entry['budget']} % x {entry['step']}: {results[entry['key']].ratio:.4f}")


def _open(entries: list[dict[str, Any]], methods: list[str]) -> list[dict[str, Any]]:
    """Candidates worth measuring, one per network: those that may fill a gap, nearest to what is wanted first."""
    found: dict[str, tuple[float, dict[str, Any]]] = {}
    for method in methods:
        for budget in BUDGETS:
            mine = [e for e in entries if (e["method"], e["budget"]) == (method, budget)]
            measured = [e for e in entries if e["method"] == method and e["ratio"] is not None]
            tried = sum(e["ratio"] is not None for e in mine)
            goal = budget / 100 * (0.985 if method == OURS else 1.01)
            if measured:
                nearest = min(measured, key=lambda e: abs(e["ratio"] - goal))
                if abs(nearest["ratio"] / goal - 1) < (0.01 if method == OURS else 0.015) or tried >= 12:
                    continue
                goal *= nearest["predicted"] / nearest["ratio"]
            fresh = (e for e in entries if e["method"] == method and e["ratio"] is None)
            for entry in sorted(fresh, key=lambda e: abs(e["predicted"] - goal))[:2]:
                found.setdefault(entry["key"], (abs(entry["predicted"] / goal - 1) + tried, entry))
    return [entry for _, entry in sorted(found.values(), key=lambda pair: pair[0])]


def chosen(entries: list[dict[str, Any]], budget: int) -> dict[str, dict[str, Any]]:
    """Per method the candidate that is compared at a budget."""
    there = [entry for entry in entries if entry["ratio"] is not None]
    ours = [e for e in there if (e["method"], e["budget"]) == (OURS, budget) and e["upper"] <= budget / 100]
    if not ours:
        return {}
    best = max(ours, key=lambda entry: entry["ratio"])
    result = {OURS: best}
    for method in METHODS:
        slower = [e for e in there if e["method"] == method and e["ratio"] >= best["ratio"]]
        near = [e for e in slower if e["ratio"] <= WINDOW * best["ratio"]]
        if near and method != OURS:
            result[method] = max(near, key=lambda entry: entry["ratio"])
        elif slower and method != OURS:
            result[method] = min(slower, key=lambda entry: entry["ratio"])
    return result


def judge(bench: Bench, held: Candidates, arguments: argparse.Namespace) -> None:
    """One row per method and budget that has none yet."""
    entries = held.read()
    for budget in arguments.budget:
        picked = chosen(entries, budget)
        if arguments.epochs:
            picked = {"dense": {"ratio": 1.0}, **picked}
        for method, entry in picked.items():
            if arguments.methods is None or method in arguments.methods:
                key = {"network": bench.name, "budget": budget, "method": method, "epochs": arguments.epochs}
                key["seed"] = arguments.seed
                if not _there(key):
                    row = {**key, **_row(bench, held, entry, arguments.epochs, arguments.seed)}
                    row["ratio_to_ours"] = round(entry["ratio"] / picked[OURS]["ratio"], 4)
                    _append({**row, **_environment()})


def _row(bench: Bench, held: Candidates, entry: dict[str, Any], epochs: int, seed: int) -> dict[str, object]:
    """Accuracies of one candidate (of the dense network where the entry holds no method)."""
    dense, data = bench.loaded.module, bench.data
    found: dict[str, object] = {"ratio": round(entry["ratio"], 4)}
    if "method" not in entry:
        student = bench_copy(bench)
    else:
        plan = Plan.load(held.plan(entry))
        spec, widths = bench.graph.spec, np.array(entry["widths"])
        found |= {
            "criterion": METHODS[entry["method"]][0],
            "allocation": METHODS[entry["method"]][1],
            "dense_ms": round(entry["dense_ms"], 4),
            "predicted": round(entry["predicted"], 4),
            "macs": round(spec.macs(widths, entry["removed"]) / spec.macs(spec.dense_widths), 4),
            "blocks_removed": len(entry["removed"]),
        }
        student = apply(dense, plan, bench.loaded.example(), check=False).eval()
        if epochs == 0:
            other = apply(dense, plan, bench.loaded.example(), check=False).eval()
            reestimate(other, data.calibration.take(1024).batches(128))
            found["accuracy_statistics"] = accuracy(other, data.test, classes=data.classes)
        found["repair"] = repair(dense, student, plan, data).chosen
        found["accuracy_repaired"] = accuracy(student, data.test, classes=data.classes) if epochs == 0 else ""
    if epochs:
        tuned = finetune(student, data, Recipe(epochs=epochs, seed=seed, precision="auto"), teacher=dense)
        found |= {"mode": str(tuned.mode), "accuracy": accuracy(student, data.test, classes=data.classes)}
    return found


def bench_copy(bench: Bench) -> nn.Module:
    """The dense network anew."""
    built, weights, _ = NETWORKS[bench.name]
    return load(built, weights=str(bench.folder / f"{weights}.safetensors")).module


def _environment() -> dict[str, str]:
    return {
        "target": TARGET,
        "processor": platform.processor() or platform.machine(),
        "versions": json.dumps(versions()),
    }


def _rows() -> list[dict[str, str]]:
    return list(csv.DictReader(ROWS.open())) if ROWS.exists() else []


def _there(key: dict[str, Any]) -> bool:
    return any(all(row.get(name) == str(value) for name, value in key.items()) for row in _rows())


def _append(row: dict[str, object]) -> None:
    """Add a row; the file is whole at any time."""
    held = _rows()
    fields = list(dict.fromkeys(name for entry in (*held, row) for name in entry))
    ROWS.parent.mkdir(exist_ok=True)
    scratch = ROWS.with_suffix(".new")
    with scratch.open("w", newline="") as file:
        writer = csv.DictWriter(file, fields)
        writer.writeheader()
        writer.writerows([*held, row])
    scratch.replace(ROWS)
    shown = (
        "network",
        "budget",
        "method",
        "epochs",
        "seed",
        "ratio",
        "accuracy_statistics",
        "accuracy_repaired",
        "accuracy",
    )
    print("  ".join(str(row[name]) for name in shown if row.get(name) not in (None, "")), flush=True)


def table() -> Iterator[str]:
    """The rows in short, best first, seeds averaged."""
    rows = _rows()
    for key in sorted({(row["network"], -int(row["budget"]), row["epochs"]) for row in rows}):
        mine = [r for r in rows if (r["network"], -int(r["budget"]), r["epochs"]) == key]
        yield f"\n{key[0]}, {-key[1]} % latency, {key[2]} epochs: accuracy % (statistics / repaired), ratio to ours"
        figure = "accuracy_repaired" if key[2] == "0" else "accuracy"
        lines = []
        for method in dict.fromkeys(row["method"] for row in mine):
            own = [row for row in mine if row["method"] == method]
            values = np.array([float(row[figure]) for row in own]) * 100
            first = "" if figure == "accuracy" else f"{float(own[0]['accuracy_statistics']) * 100:5.2f} / "
            spread = f" ± {values.std(ddof=1):.2f} ({len(values)} seeds)" if len(values) > 1 else ""
            lines.append((values.mean(), f"  {first}{values.mean():5.2f}{spread}  {own[0]['ratio_to_ours']}  {method}"))
        yield from (line for _, line in sorted(lines, reverse=True))


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("candidates", "time", "accuracy", "table"))
    parser.add_argument("network", nargs="?", choices=sorted(NETWORKS))
    parser.add_argument("--budget", type=int, nargs="+", default=list(BUDGETS), help="per cent of dense")
    parser.add_argument("--methods", nargs="+", help="only these")
    parser.add_argument("--every", type=int, default=1, help="of the model limits, in `candidates`")
    parser.add_argument("--epochs", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=150.0, help="of `time`")
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    arguments = parser.parse_args()
    if arguments.what == "table":
        print("\n".join(table()))
        return
    if arguments.network is None:
        parser.error("name a network")
    torch.set_num_threads(1)
    bench = Bench(arguments.network, arguments.data)
    held = Candidates(WORK / bench.name / "candidates.json")
    methods = arguments.methods or list(METHODS)
    if arguments.what == "candidates":
        make_candidates(bench, held, arguments.budget, methods, arguments.every)
    elif arguments.what == "time":
        measure(bench, held, arguments.seconds, methods)
    else:
        judge(bench, held, arguments)


if __name__ == "__main__":
    main()
