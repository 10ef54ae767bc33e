"""Seconds and peak memory of the repair of a large network, one row per run.

    OMP_NUM_THREADS=2 python benchmarks/repair_time.py [resnet50 --images 256 --macs 0.5]

The network has random weights (batch-norm statistics are made to fit them first): the work does not depend on them,
the accuracy says nothing and is not recorded. It is cut to ``--macs`` of its multiply-adds, then repaired with
everything that :func:`secateurs.recover.repair.repair` tries: re-estimated batch norms, least squares, both, and the
judging of each on 512 validation images. Other measurements wait meanwhile, as this one waits for them.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import time
from dataclasses import replace
from pathlib import Path

import torch
from result_rows import append

from secateurs.data import open_data
from secateurs.importance.scoring import Scorer
from secateurs.latency.lock import measuring
from secateurs.models import load
from secateurs.planning.channels import Channels
from secateurs.planning.planner import Planner
from secateurs.provenance import versions
from secateurs.recover.batch_norm import reestimate
from secateurs.recover.repair import repair
from secateurs.structure import apply, trace

ROWS = Path(__file__).parent / "results" / "repair_time.csv"
TRAIN, TEST = "imagenette224_train.parquet", "imagenette224_val.parquet"


def main() -> None:
    """Appends one row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", nargs="?", default="resnet50")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--macs", type=float, default=0.5)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    given = parser.parse_args()
    torch.manual_seed(0)
    loaded = load(given.network)
    data = open_data(f"parquet:{given.data / TRAIN},{given.data / TEST}", loaded, seed=0, classes="present")
    data = replace(data, calibration=data.calibration.take(given.images), validation=data.validation.take(512))
    for images in (data.calibration, data.validation):
        images.prepare()
    dense = loaded.module.eval()
    reestimate(dense, data.calibration.take(64).batches(32))
    graph = trace(dense, loaded.example())
    planner = Planner(Channels(graph), Scorer(graph, "l2"), resources=("macs",))
    choice = planner.solve({"macs": given.macs})
    plan = planner.plan(choice)
    small = apply(dense, plan, loaded.example(), check=False).eval()
    before = peak_bytes()
    with measuring():
        start = time.monotonic()
        done = repair(dense, small, plan, data, images=given.images)
        seconds = time.monotonic() - start
    row = {
        "network": given.network,
        "input": "x".join(map(str, loaded.example()[0].shape[1:])),
        "images": given.images,
        "macs_kept": round(choice.predicted["macs"], 4),
        "threads": torch.get_num_threads(),
        "tried": "; ".join(done.accuracies),
        "seconds": round(seconds, 1),
        "peak_bytes": peak_bytes(),
        "peak_bytes_before": before,
        "processor": platform.processor() or platform.machine(),
        "versions": json.dumps(versions()),
    }
    append(row, ROWS)
    print(row)


def peak_bytes() -> int:
    """Most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
