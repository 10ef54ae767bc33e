"""Accuracy of pruned kernel elements on cifar-resnet56, beside channel pruning and the joint plan at equal latency.

    python benchmarks/elements_accuracy.py plans     plans of channels and of both at the latency of 4 of 9: measures
    python benchmarks/elements_accuracy.py train     accuracy of every variant; may run under load, goes on where it was
    python benchmarks/elements_accuracy.py time      latency of every trained variant, interleaved with dense
    python benchmarks/elements_accuracy.py table     what the rows say

Every variant starts from ``resnet56_cifar10_jpeg``, is repaired by least squares on 128 calibration images and trained
for the same ``--epochs`` (0.25: one pass over a quarter of the images) with the dense network as teacher, the
dense network itself included. Accuracies after cut and repair are on every tenth test image, the last on all. ``scope
keep``: every 3×3 convolution but the first keeps so many of nine positions (``layer``: rectangles, run as smaller
convolutions). ``penalty``: a third of the steps under the growing penalty before the zeros. Data: ``--data``
(../shared/data).
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import os
import time
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from safetensors.torch import load_file, save_file
from torch import nn

from secateurs.data import Data, accuracy, open_data
from secateurs.element_training import ElementTraining
from secateurs.elements.selection import eligible, patterns
from secateurs.latency.targets._base import processor_name
from secateurs.models import Loaded, load
from secateurs.plan import Plan
from secateurs.provenance import versions
from secateurs.recover.finetune import finetune
from secateurs.recover.recipe import Recipe
from secateurs.recover.repair import repair
from secateurs.structure import Graph, apply, trace

RESULTS = Path(__file__).parent / "results" / "elements_accuracy.csv"
WORK = Path(__file__).parent.parent / "build" / "elements_accuracy"
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
    Variant("dense"),
    Variant("block 4 of 9", "block", 4),
    Variant("block 3 of 9", "block", 3),
    Variant("block 2 of 9", "block", 2),
    Variant("channels"),
    Variant("joint"),
    Variant("counts"),
    Variant("block 4 of 9, penalty", "block", 4, 1 / 3),
    Variant("layer 4 of 9", "layer", 4),
    Variant("kernel 4 of 9", "kernel", 4),
    Variant("filter 4 of 9", "filter", 4),
    Variant("in_channel 4 of 9", "in_channel", 4),
)


@dataclass(frozen=True)
class Bench:
    """The dense network, its data and what is written where."""

    folder: Path
    epochs: float = 0.25
    seed: int = 0

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
        model = self.loaded.module
        found = patterns(model, dict.fromkeys(eligible(model), variant.keep), scope=variant.scope)
        return empty.model_copy(update={"elements": found})

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
            repair(dense, student, plan, self.data, images=128)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["train"])
    parser.add_argument("--data", type=Path, default=Path(__file__).parent.parent.parent / "shared" / "data")
    parser.add_argument("--epochs", type=float, default=0.25)
    parser.add_argument("--only", nargs="*")
    arguments = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    train(Bench(arguments.data, arguments.epochs), arguments.only)


if __name__ == "__main__":
    main()
