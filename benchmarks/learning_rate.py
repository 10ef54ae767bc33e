"""Peak learning rates of a short fine-tuning after a hard cut; one row per rate.

    python benchmarks/learning_rate.py resnet20 0.003 0.01 0.03 --plan build/schedules/resnet20-50-2-0-once/plan.json

The network is cut by a plan for half of its latency, here that of ``schedules.py resnet20 --only once``, and repaired,
then trained for one pass over ``--images`` training images.
"""

from __future__ import annotations

import argparse
import copy
import json
from dataclasses import replace
from pathlib import Path

import torch
from accuracy_at_latency import NETWORKS, Bench
from result_rows import append

from secateurs.data import accuracy
from secateurs.plan import Plan
from secateurs.provenance import versions
from secateurs.recover.finetune import finetune
from secateurs.recover.recipe import Recipe
from secateurs.recover.repair import repair
from secateurs.structure import apply

ROWS = Path(__file__).parent / "results" / "learning_rate.csv"


def main() -> None:
    """Appends one row per rate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=sorted(NETWORKS))
    parser.add_argument("rates", type=float, nargs="+")
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument("--images", type=int, default=16000)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bench, plan = Bench(arguments.network, arguments.data), Plan.load(arguments.plan)
    dense = bench.loaded.module
    repaired = apply(dense, plan, bench.loaded.example(), check=False).eval()
    repair(dense, repaired, plan, bench.data)
    before = accuracy(repaired, bench.data.test, classes=bench.data.classes)
    data = replace(bench.data, train=bench.data.train.take(arguments.images))
    for rate in arguments.rates:
        student = copy.deepcopy(repaired)
        tuned = finetune(student, data, Recipe(epochs=1, lr=rate, precision="fp32", layout="contiguous"), teacher=dense)
        row = {
            "network": arguments.network,
            "budget": 50,
            "images": arguments.images,
            "rate": rate,
            "accuracy_before": before,
            "train_accuracy": round(tuned.epochs[0].train_accuracy, 4),
            "accuracy": accuracy(student, data.test, classes=data.classes),
            "versions": json.dumps(versions()),
        }
        append(row, ROWS)
        print(f"{rate}: {before:.2%} before, {row['accuracy']:.2%} after", flush=True)


if __name__ == "__main__":
    main()
