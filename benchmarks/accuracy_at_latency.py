"""Accuracy at equal *measured* latency, against everything else that is known, row by row.

    python benchmarks/accuracy_at_latency.py match resnet20 [--budget 50]   networks of every method, measured
    python benchmarks/accuracy_at_latency.py accuracy resnet20 [--epochs 2 --budget 50 --seed 0]    may run under load
    python benchmarks/accuracy_at_latency.py table                          what the rows say

Every step goes on where it was stopped. ``match`` profiles the network first. Ours is the slowest of our networks
within the budget; of a rival the slowest one within [1.00, 1.04] x ours is taken, so that doubt favours it; one that
has none there is given its nearest slower one. All use the same groups, legal widths, latency model, calibration
images, repair, recipe and seeds; only criterion and allocation differ. Accuracies are of the same 2500 (CIFAR-10) or
1000 (Imagenette) test images, drawn once; rows without ``test_images`` are of all. Data: ``--data`` (default
../shared/data).
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import platform
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import rivals
import torch
from matching import Candidates, Entry, Match, chosen, tabulated
from safetensors.torch import load_file, save_file
from torch import nn

from secateurs.cost import CostModel
from secateurs.data import Data, accuracy, open_data
from secateurs.data.images import Images
from secateurs.export.artifacts import variants
from secateurs.importance.context import Context
from secateurs.importance.scoring import Scorer, scores
from secateurs.importance.statistics import gather
from secateurs.latency.model import LatencyModel
from secateurs.latency.targets import open_target
from secateurs.measure.profile import profile
from secateurs.models import Loaded, load
from secateurs.plan import Plan
from secateurs.planning.channels import Channels
from secateurs.planning.planner import Planner
from secateurs.provenance import versions
from secateurs.recover.batch_norm import reestimate
from secateurs.recover.finetune import finetune
from secateurs.recover.recipe import Recipe
from secateurs.recover.refit.least_squares import correct_bias
from secateurs.recover.repair import repair
from secateurs.search.legal import Legal, find_strategy
from secateurs.structure import Graph, apply, trace

ROWS = Path(__file__).parent / "results" / "accuracy_at_latency.csv"
WORK = Path(__file__).parent.parent / "build" / "accuracy_at_latency"
TARGET = "onnxruntime-cpu"
BUDGETS = (75, 60, 50)
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
OURS, DENSE = "secateurs", "dense"
METHODS = {
    OURS: ("measured", "knapsack"),
    "fisher_obs knapsack": ("fisher_obs", "knapsack"),
    "uniform L1": ("l1", "uniform"),
    "torch-pruning group L2": ("group L2", "global-rank"),
    "torch-pruning group Taylor": ("group Taylor", "global-rank"),
    "torch-pruning group Hessian": ("group Hessian", "global-rank"),
    "isomorphic group Taylor": ("group Taylor", "isomorphic"),
    "HALP-style": ("taylor_bn", "halp"),
    "NetAdapt-style": ("l2", "greedy"),
    "MACs knapsack": ("measured", "knapsack"),
    "torch-pruning alone (inner convolutions only)": ("group Taylor", "global-rank"),
}
"""Method to (criterion, allocation)."""


@dataclass(frozen=True)
class Bench:
    """One network with its data and everything that plans are made from."""

    name: str
    folder: Path
    seed: int = 0

    @property
    def kept(self) -> Path:
        """Where everything about it lies."""
        return WORK / self.name

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

    @property
    def images(self) -> int:
        """Calibration images of the repair: fewer large ones."""
        return 1024 if "cifar" in NETWORKS[self.name][2] else 256

    @cached_property
    def test(self) -> Images:
        """Test images that are judged on: the same ones, drawn once, for every method."""
        whole = self.data.test
        count = 2500 if "cifar" in NETWORKS[self.name][2] else 3000
        return whole.select(np.random.default_rng(0).permutation(len(whole))[:count])

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
        """Its latency model, kept in a file: all methods and all runs use the same one."""
        kept = self.kept / "costs.json"
        if not kept.exists():
            found = profile(self.graph, TARGET)
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(found.to_json())
        return LatencyModel.from_json(kept.read_text())

    @cached_property
    def scores(self) -> dict[str, dict[str, np.ndarray]]:
        """Scores of every criterion in use, kept in a file."""
        kept = self.kept / "scores.npz"
        result: dict[str, dict[str, np.ndarray]] = {}
        if kept.exists():
            for key, values in np.load(kept).items():
                name, group = key.split("|")
                result.setdefault(name, {})[group] = values
        fresh = {criterion for criterion, _ in METHODS.values()} - set(result)
        if fresh:
            result |= self._score(fresh)
            flat = {f"{name}|{group}": values for name, own in result.items() for group, values in own.items()}
            kept.parent.mkdir(parents=True, exist_ok=True)
            np.savez(kept, **flat)  # type: ignore[arg-type]
        return result

    def _score(self, fresh: set[str]) -> dict[str, dict[str, np.ndarray]]:
        count, size = (512, 64) if "cifar" in NETWORKS[self.name][2] else (192, 16)
        batches = list(self.data.calibration.take(count).batches(size))
        statistics = gather(self.graph, batches, ("outputs", "norms", "moments", "images"))
        context = Context(0, statistics)
        own = {
            name: scores(self.graph, name, context)
            for name in sorted(fresh & {"measured", "fisher_obs", "l1", "l2", "taylor_bn"})
        }
        if not any(name.startswith("group") for name in fresh):
            return own
        found = rivals.gradients(self.graph, batches)
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
        search = find_strategy(strategy)
        scorer = Scorer(self.graph, criterion, known=self.scores[criterion])
        planner = Planner(Channels(self.graph, costs, legal), scorer, search, resources)
        if resources == ("latency",):
            planner.__dict__["models"] = {"latency": self.table}
        return planner

    @cached_property
    def table(self) -> CostModel:
        """The latency model as tables."""
        return tabulated(self.costs.cost_model(), self.graph.spec.dense_widths)


def match(bench: Bench, held: Candidates, budgets: list[int], methods: list[str]) -> None:
    """Networks of the methods at equal measured latency, see :mod:`matching`."""
    planners = {method: bench.planner(method) for method in methods}
    Match(OURS, planners, bench.files, open_target(TARGET), held).run(budgets)


def judge(bench: Bench, held: Candidates, arguments: argparse.Namespace) -> None:
    """One row per method and budget that has none yet."""
    entries, methods = held.read(), arguments.methods or list(METHODS)
    for budget in arguments.budget:
        picked = chosen(entries, OURS, list(METHODS), budget)
        key: dict[str, Any] = {
            "network": bench.name,
            "budget": budget,
            "epochs": arguments.epochs,
            "seed": arguments.seed,
        }
        if arguments.epochs:
            key["train_images"] = min(arguments.images or len(bench.data.train), len(bench.data.train))
        for method, entry in picked.items():
            if method in methods and not _there({**key, "method": method}):
                start = time.monotonic()
                if arguments.epochs:
                    found = _tuned(bench, held, entry, key)
                else:
                    found = _untrained(bench, held, entry)
                found["ratio_to_ours"] = round(entry["ratio"] / picked[OURS]["ratio"], 4)
                found["seconds"] = round(time.monotonic() - start)
                _append({**key, "method": method, **found, **_environment()})
        if arguments.epochs and (DENSE in methods) and not _there({**key, "method": DENSE}):
            _append({**key, "method": DENSE, "ratio": 1.0, **_tuned(bench, held, None, key), **_environment()})


def _facts(bench: Bench, entry: Entry) -> dict[str, object]:
    spec, widths = bench.graph.spec, np.array(entry["widths"])
    return {
        "ratio": round(entry["ratio"], 4),
        "criterion": METHODS[entry["method"]][0],
        "allocation": METHODS[entry["method"]][1],
        "dense_ms": round(entry["dense_ms"], 4),
        "predicted": round(entry["predicted"], 4),
        "macs": round(spec.macs(widths, entry["removed"]) / spec.macs(spec.dense_widths), 4),
        "blocks_removed": len(entry["removed"]),
        "test_images": len(bench.test),
    }


def _cut(bench: Bench, held: Candidates, entry: Entry) -> nn.Module:
    plan = Plan.load(held.plan(entry))
    return apply(bench.loaded.module, plan, bench.loaded.example(), check=False).eval()


def _repaired(bench: Bench, held: Candidates, entry: Entry, small: nn.Module) -> str:
    """Bring the cut candidate ``small`` to its state after our repair, and by what; kept beside its plan."""
    plan = held.plan(entry)
    weights, how = plan.with_suffix(".repaired.safetensors"), plan.with_suffix(".repair.txt")
    if not how.exists():
        done = repair(bench.loaded.module, small, Plan.load(plan), bench.data, images=bench.images)
        save_file({name: tensor.contiguous() for name, tensor in small.state_dict().items()}, weights)
        how.write_text(done.chosen)
    small.load_state_dict(load_file(weights))
    return how.read_text()


def _untrained(bench: Bench, held: Candidates, entry: Entry) -> dict[str, object]:
    """Accuracies of one candidate with its statistics alone (without batch norm: its biases), and with our repair."""
    data, small = bench.data, _cut(bench, held, entry)
    other = copy.deepcopy(small)
    calibration = data.calibration.take(bench.images)
    if not reestimate(other, calibration.batches(64)).layers:
        plan, batches = Plan.load(held.plan(entry)), [inputs for inputs, _ in calibration.batches(16)]
        correct_bias(bench.loaded.module, other, plan, batches[:4])
    statistics = accuracy(other, bench.test, classes=data.classes)
    how = _repaired(bench, held, entry, small)
    return {
        **_facts(bench, entry),
        "accuracy_statistics": round(statistics, 4),
        "repair": how,
        "accuracy_repaired": round(accuracy(small, bench.test, classes=data.classes), 4),
    }


def _tuned(bench: Bench, held: Candidates, entry: Entry | None, key: Mapping[str, Any]) -> dict[str, object]:
    """Accuracy after training, of one candidate or (None) of the dense network; goes on after a kill."""
    found: dict[str, object] = {"test_images": len(bench.test)}
    name = "-".join([DENSE if entry is None else held.plan(entry).name, *(str(part) for part in key.values())])
    if entry is None:
        student = copy.deepcopy(bench.loaded.module)
    else:
        student = _cut(bench, held, entry)
        found["repair"] = _repaired(bench, held, entry, student)
        found |= _facts(bench, entry)
    data = replace(bench.data, train=bench.data.train.take(key["train_images"]), classes=None)  # learns all outputs
    recipe = Recipe(epochs=key["epochs"], seed=key["seed"], precision="auto")
    folder = bench.kept / "training" / name
    tuned = finetune(student, data, recipe, teacher=bench.loaded.module, checkpoint_dir=folder, resume=True)
    accurate = accuracy(student, bench.test, classes=bench.data.classes)
    return {**found, "mode": str(tuned.mode), "accuracy": round(accurate, 4)}


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


def _append(row: Mapping[str, object]) -> None:
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


def _table_of(row: Mapping[str, str]) -> tuple[str, int, str, int]:
    """Network, budget (largest first), epochs and training images: what rows must share to be compared."""
    return row["network"], -int(row["budget"]), row["epochs"], int(row.get("train_images") or 0)


def table() -> Iterator[str]:
    """The rows in short, best first, seeds averaged."""
    rows = _rows()
    for key in sorted({_table_of(row) for row in rows}):
        mine = [row for row in rows if _table_of(row) == key]
        trained = f" of {key[3]} images" if key[3] else ""
        yield f"\n{key[0]}, {-key[1]} % latency, {key[2]} epochs{trained}:"
        yield "accuracy % (statistics / repaired), ratio to ours"
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
    parser.add_argument("what", choices=("match", "accuracy", "table"))
    parser.add_argument("network", nargs="?", choices=sorted(NETWORKS))
    parser.add_argument("--budget", type=int, nargs="+", default=list(BUDGETS), help="per cent of dense")
    parser.add_argument("--methods", nargs="+", help="only these")
    parser.add_argument("--epochs", type=int, default=0)
    parser.add_argument("--images", type=int, help="training images of every epoch (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    arguments = parser.parse_intermixed_args()
    if arguments.what == "table":
        print("\n".join(table()))
        return
    if arguments.network is None:
        parser.error("name a network")
    torch.set_num_threads(1)
    bench = Bench(arguments.network, arguments.data)
    held = Candidates(WORK / bench.name / "candidates.json")
    methods = arguments.methods or list(METHODS)
    if arguments.what == "match":
        match(bench, held, arguments.budget, methods)
    else:
        judge(bench, held, arguments)


if __name__ == "__main__":
    main()
