"""Accuracy of pruned kernel elements on cifar-resnet56, beside channel pruning and the joint plan at equal latency.

    python benchmarks/elements_accuracy.py plans     plans of channels and of both at the latency of 4 of 9: measures
    python benchmarks/elements_accuracy.py train     accuracy of every variant; may run under load, goes on where it was
    python benchmarks/elements_accuracy.py time      latency of every trained variant, interleaved with dense
    python benchmarks/elements_accuracy.py table     what the rows say

Every variant starts from ``resnet56_cifar10_jpeg``, is repaired by least squares on 512 calibration images and trained
for the same ``--epochs`` (0.5: one pass over half of the images) with the dense network as teacher, the
dense network itself included. Accuracies after cut and repair are on every tenth test image, the last on all. ``scope
keep``: every 3×3 convolution but the first keeps so many of nine positions (``layer``: one rectangle, which the sparse
kernels run like every other pattern). ``penalty``: a third of the steps under the growing penalty before the zeros.
Data: ``--data`` (../shared/data).
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import os
import tempfile
import time
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from safetensors.torch import load_file, save_file
from torch import nn

from secateurs.data import Data, accuracy, open_data
from secateurs.elements.rectangles import deployable
from secateurs.elements.selection import eligible, patterns
from secateurs.export.program import export_program
from secateurs.importance.scoring import Scorer
from secateurs.jobs.plan_stage import calibration_batches
from secateurs.latency.store import Store
from secateurs.latency.targets import open_target
from secateurs.latency.targets._base import processor_name
from secateurs.latency.timing import Protocol, compare
from secateurs.models import Loaded, load
from secateurs.plan import Measurement, Plan
from secateurs.planning.elements.costs import measured_space
from secateurs.planning.elements.refinement import refined
from secateurs.planning.planner import Planner
from secateurs.provenance import versions
from secateurs.recover.finetune import finetune
from secateurs.recover.recipe import Recipe
from secateurs.recover.repair import repair
from secateurs.recover.schedules.elements import ElementTraining
from secateurs.search.legal import Legal
from secateurs.search.rows import kept_rows
from secateurs.structure import Graph, apply, trace
from secateurs.structure.kernel_elements import elements_pruned, macs_left

RESULTS = Path(__file__).parent / "results" / "elements_accuracy.csv"
WORK = Path(__file__).parent.parent / "build" / "elements_accuracy"
TARGET, AT_ONCE, PRECISE = "torch-sparse-cpu", 6, Protocol(turns=20, precision=0.008)
FIELDS = (
    "variant", "scope", "keep", "penalty", "epochs", "images", "seed", "accuracy_cut", "accuracy_repaired", "accuracy",
    "params", "macs", "latency_ms", "latency_ratio", "latency_spread", "runtime", "seconds", "device", "versions",
)  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """A way to make the network smaller. ``scope``: of elements, or "" where a stored plan says everything."""

    name: str
    scope: str = ""
    keep: int = 9
    penalty: float = 0.0


VARIANTS = (
    Variant("block 4 of 9", "block", 4),
    Variant("dense"),
    Variant("block 3 of 9", "block", 3),
    Variant("block 2 of 9", "block", 2),
    Variant("joint"),
    Variant("channels"),
    Variant("counts"),
    Variant("block 4 of 9, penalty", "block", 4, 1 / 3),
    Variant("layer 4 of 9", "layer", 4),
    Variant("kernel 4 of 9", "kernel", 4),
    Variant("filter 4 of 9", "filter", 4),
    Variant("in_channel 4 of 9", "in_channel", 4),
)


@dataclass(frozen=True)
class Bench:
    """The dense network, its data and what is written where.

    ``quick``: patterns by magnitude where none are stored, which run as fast.
    """

    folder: Path
    epochs: float = 0.5
    seed: int = 0
    quick: bool = False

    @cached_property
    def loaded(self) -> Loaded:
        return load("cifar-resnet56", weights=str(self.folder / "resnet56_cifar10_jpeg.safetensors"))

    @cached_property
    def graph(self) -> Graph:
        return trace(self.loaded.module, self.loaded.example())

    @cached_property
    def data(self) -> Data:
        files = ",".join(str(self.folder / f"cifar10_jpeg_{part}.parquet") for part in ("train", "test"))
        return open_data(f"parquet:{files}", self.loaded, seed=0)

    def plan(self, variant: Variant) -> Plan | None:
        """The variant's plan; None where ``plans`` has not made it yet."""
        empty = self.graph.plan({}, ())
        if variant.name == "dense":
            return empty
        if not variant.scope:
            path = WORK / f"{variant.name}.plan.json"
            return Plan.load(path) if path.exists() else None
        model, path = self.loaded.module, WORK / f"{variant.scope}-{variant.keep}.plan.json"
        if path.exists():
            return Plan.load(path)
        found = patterns(model, dict.fromkeys(eligible(model), variant.keep), scope=variant.scope)
        plan = empty.model_copy(update={"elements": found})
        if not self.quick:
            plan = refined(model, plan, self.data)
            plan.save(path)
        return plan

    def weights(self, variant: Variant) -> Path:
        """Where the trained network lies."""
        return WORK / f"{variant.name}-{self.epochs}-{self.seed}.safetensors".replace(" ", "_")

    def trained(self, variant: Variant) -> nn.Module:
        """The trained network."""
        plan = self.plan(variant)
        assert plan is not None
        small = apply(self.loaded.module, plan, self.loaded.example(), check=False).eval()
        small.load_state_dict(load_file(self.weights(variant)))
        return small

    def train(self, variant: Variant, plan: Plan) -> dict[str, object]:
        """Cut, repair and train one variant; writes its weights and gives its row."""
        start, dense = time.monotonic(), self.loaded.module
        zeroed = apply(dense, plan, self.loaded.example(), check=False).eval()
        row: dict[str, object] = {"accuracy_cut": self._accuracy(zeroed, every=10)}
        student, companion, changed = zeroed, None, bool(plan.removed() or plan.elements)
        if changed and not variant.penalty:
            repair(dense, student, plan, self.data, images=512)
            row["accuracy_repaired"] = self._accuracy(student, every=10)
        if variant.penalty:
            student = copy.deepcopy(dense)
        passes, data = self._budget()
        if plan.elements:
            steps = passes * (len(data.train) // Recipe().batch)
            companion = ElementTraining(plan.elements, int(variant.penalty * steps))
        recipe = Recipe(epochs=passes, seed=self.seed, precision="bf16", layout="channels_last")
        place = WORK / f"checkpoints-{variant.name}-{self.epochs}-{self.seed}".replace(" ", "_")
        finetune(student, data, recipe, teacher=dense, companion=companion, checkpoint_dir=place, resume=True)
        row["accuracy"] = self._accuracy(student)
        save_file({k: v.contiguous() for k, v in student.state_dict().items()}, self.weights(variant))
        return {**row, "seconds": round(time.monotonic() - start)}

    def _budget(self) -> tuple[int, Data]:
        """Passes over the training images, and the images."""
        passes = max(1, round(self.epochs))
        return passes, replace(
            self.data, train=self.data.train.take(round(len(self.data.train) * self.epochs / passes))
        )

    def _accuracy(self, module: nn.Module, every: int = 1) -> float:
        return round(accuracy(module, self.data.test.select(np.arange(0, len(self.data.test), every))), 4)


def rows() -> list[dict[str, str]]:
    """Every row."""
    if not RESULTS.exists():
        return []
    with RESULTS.open(newline="") as file:
        return list(csv.DictReader(file))


def store(row: dict[str, object]) -> None:
    """Add figures to the row of the same variant, epochs and seed, or add the row."""
    held, key = rows(), ("variant", "epochs", "seed")
    mine = next((old for old in held if all(old[k] == str(row[k]) for k in key)), None)
    if mine is None:
        held.append({})
        mine = held[-1]
    mine.update({name: str(value) for name, value in row.items()})
    temporary = RESULTS.with_suffix(".tmp")
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows(held)
    os.replace(temporary, RESULTS)
    print(json.dumps(row), flush=True)


def train(bench: Bench, only: list[str] | None) -> None:
    """Every variant that has no accuracy yet, as soon as its plan is there."""
    while True:
        done = {row["variant"] for row in rows() if row["epochs"] == str(bench.epochs) and row["accuracy"]}
        due = [v for v in VARIANTS if v.name not in done and (only is None or v.name in only)]
        ready = ((variant, plan) for variant in due if (plan := bench.plan(variant)) is not None)
        variant, plan = next(ready, (None, None))
        if variant is None or plan is None:
            return
        found = bench.train(variant, plan)
        facts = {"scope": variant.scope, "keep": variant.keep, "penalty": round(variant.penalty, 3)}
        names = {"variant": variant.name, "epochs": bench.epochs, "seed": bench.seed, "images": len(bench.data.train)}
        where = {"device": processor_name(), "versions": " ".join(f"{k}={v}" for k, v in versions().items())}
        store({**names, **facts, **found, **where})


def measure(bench: Bench, plans: dict[str, Plan]) -> dict[str, Measurement]:
    """Latency of networks cut by these plans and its ratio to dense, interleaved, on the sparse kernels."""
    found: dict[str, Measurement] = {}
    names, target = [name for name in plans if name != "dense"], open_target(TARGET)
    with tempfile.TemporaryDirectory() as folder:
        for start in range(0, len(names), AT_ONCE):
            files: dict[str, Path | str | bytes] = {}
            for number, name in enumerate(["dense", *names[start : start + AT_ONCE]]):
                small = apply(bench.loaded.module, plans[name], bench.loaded.example(), check=False).eval()
                files[name] = Path(folder) / f"{start + number}.pt2"
                written = deployable(small, plans[name], bench.loaded.example(), skips=target.skips_pruned_elements)
                export_program(written, bench.loaded.example(), files[name])
            found |= compare(target, files, protocol=PRECISE)
    return found


def make_plans(bench: Bench) -> None:
    """Plans of channels, of counts per layer and of both, as slow as 4 of 9 elements everywhere, measured."""
    images = bench.data
    four = next(variant for variant in VARIANTS if variant.name == "block 4 of 9")
    plans = {"dense": bench.graph.plan({}, ()), "four": bench.plan(four)}
    goal = measure(bench, plans)["four"].ratio
    space = measured_space(bench.graph, open_target(TARGET), "block", Legal(), store=Store())
    own = len(bench.graph.spec.groups)
    dense_widths = tuple(np.array([group.units]) for group in space.spec.groups)
    known = Scorer(bench.graph, "fisher", calibration_batches(images)).scores
    for name, options in {
        "channels": (*space.offered[:own], *dense_widths[own:]),
        "joint": space.offered,
        "counts": (*dense_widths[:own], *space.offered[own:]),
    }.items():
        if (WORK / f"{name}.plan.json").exists():
            continue
        planner = Planner(
            replace(space, offered=options, legal=Legal(blocks=name != "counts")),
            Scorer(bench.graph, "fisher", known=known),
            target=TARGET,
            images=images,
            rows=kept_rows(WORK / "evaluations.sqlite3"),
        )
        limit = goal
        for _ in range(6):
            plan = planner.plan(planner.solve({"latency": limit}), f"{limit:.4f}")
            plan = refined(bench.loaded.module, plan, bench.data)
            ratio = measure(bench, {"dense": plans["dense"], name: plan})[name].ratio
            print(f"{name}: limit {limit:.4f} measured {ratio:.4f}, goal {goal:.4f}", flush=True)
            if 0.96 * goal <= ratio <= 1.005 * goal:
                plan.save(WORK / f"{name}.plan.json")
                break
            limit *= 0.99 * goal / ratio


def time_variants(bench: Bench) -> None:
    """Latency, parameters and multiply-adds of every variant that has a plan, trained or not."""
    plans = {variant.name: plan for variant in VARIANTS if (plan := bench.plan(variant)) is not None}
    measured = measure(bench, plans)
    for variant in VARIANTS:
        if variant.name not in plans:
            continue
        plan, one = plans[variant.name], measured[variant.name]
        small = apply(bench.loaded.module, plan, bench.loaded.example(), check=False)
        params = sum(parameter.numel() for parameter in small.parameters()) - elements_pruned(small, plan)
        row: dict[str, object] = {"variant": variant.name, "epochs": bench.epochs, "seed": bench.seed}
        row |= {"scope": variant.scope, "keep": variant.keep, "penalty": round(variant.penalty, 3)}
        row |= {"params": params, "macs": macs_left(bench.graph, small, plan), "runtime": TARGET}
        row |= {"latency_ms": round(one.latency_ms, 4), "latency_spread": round(one.spread, 4)}
        store({**row, "latency_ratio": round(one.ratio or 1.0, 4), "device": processor_name()})


def table() -> None:
    """The rows as one table."""
    print("| variant | parameters | multiply-adds | latency | of dense | accuracy cut, repaired, trained |")
    print("| --- | --- | --- | --- | --- | --- |")
    for row in rows():
        accuracies = ", ".join(row[name] or "–" for name in ("accuracy_cut", "accuracy_repaired", "accuracy"))
        sizes = [f"{float(row[name]) / 1e6:.2f} M" if row[name] else "–" for name in ("params", "macs")]
        latency = f"{row['latency_ms']} ms | {row['latency_ratio']}"
        print(f"| {row['variant']} | {' | '.join(sizes)} | {latency} | {accuracies} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["plans", "train", "time", "table"])
    parser.add_argument("--data", type=Path, default=Path(__file__).parent.parent.parent / "shared" / "data")
    parser.add_argument("--epochs", type=float, default=0.5)
    parser.add_argument("--only", nargs="*")
    arguments = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    bench = Bench(arguments.data, arguments.epochs, quick=arguments.verb != "train")
    if arguments.verb == "train":
        train(bench, arguments.only)
    else:
        {"plans": lambda: make_plans(bench), "time": lambda: time_variants(bench), "table": table}[arguments.verb]()


if __name__ == "__main__":
    main()
