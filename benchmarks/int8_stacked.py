"""Pruned and quantised to a budget of dense int8: whether it is met, how fast the four files are, and what is kept.

    scripts/bench int8_stacked                    # ResNets at 55 %, MobileNets at 65 % of dense int8
    scripts/bench int8_stacked resnet20 --budgets 75,50 --epochs 0
    scripts/bench int8_stacked resnet20 --options "--quantise-aware"

Each cell is the main job through the command line, in a folder that is kept (--runs), so that a killed one goes on.
Its ``model.onnx`` is then judged in a fresh ONNX Runtime session with nothing of the package in between: accuracy on
the test images, and latency in turns with dense int8 and dense float. Rows go to int8_stacked.csv among the results;
cells that are there are skipped. Nothing else may run meanwhile.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime
from int8_dense import IMAGENETTE, NETWORKS, code
from main_job import RUNS, TURNS
from result_rows import append

from secateurs.data import open_data
from secateurs.latency.targets._base import processor_name
from secateurs.models import load

ROWS = Path(__file__).parent / "results" / "int8_stacked.csv"
BUDGETS = {"resnet20": "55", "resnet56": "55", "mobilenet-v1": "65", "mobilenet-v2": "65"}
FILES = ("dense_f32", "dense_int8", "pruned_f32", "pruned_int8")
KEY = ("network", "target", "budget", "epochs", "options", "seed")


FIELDS = (
    *KEY, "met", "ratio", "ratio_upper", "used", *(f"{name}_ms" for name in FILES),
    *(f"{name}_accuracy" for name in FILES),
    "dense_tuned_accuracy", "dense_tuned_epochs", "cut_accuracy", "repaired_accuracy", "repaired_by", "trained_epochs",
    "test_images", "fresh_accuracy", "fresh_ratio", "seconds_total", "minutes", "processor", "code", "onnxruntime",
)  # fmt: skip


def main() -> None:
    """One row for every cell that has none."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=list(BUDGETS))
    parser.add_argument("--budgets", help="per cent of dense int8, with commas")
    parser.add_argument("--targets", default="onnxruntime-cpu:int8")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--options", default="", help="further options of secateurs prune")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--runs", type=Path, default=Path("runs") / "int8_stacked")
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    given = parser.parse_args()
    for name in given.networks:
        for target in given.targets.split(","):
            for budget in (given.budgets or BUDGETS[name]).split(","):
                for seed in given.seeds.split(","):
                    cell = dict(zip(KEY, (name, target, budget, str(given.epochs), given.options, seed), strict=True))
                    if not there(cell):
                        row = {**cell, **ran(cell, given)}
                        append({name: row.get(name, "") for name in FIELDS}, ROWS, FIELDS)
                        print(row, flush=True)


def there(cell: dict[str, str]) -> bool:
    """Whether the cell has its row."""
    if not ROWS.exists():
        return False
    with ROWS.open() as file:
        return any(all(row[name] == cell[name] for name in KEY) for row in csv.DictReader(file))


def ran(cell: dict[str, str], given: argparse.Namespace) -> dict[str, object]:
    """The figures of one job, which is begun or gone on with."""
    folder = given.runs / "-".join(value.replace(":", ".").replace(" ", "") or "default" for value in cell.values())
    text, weights, (train, test) = NETWORKS[cell["network"]]
    where = f"parquet:{given.data / train}.parquet,{given.data / test}.parquet"
    present = ["--classes", "present"] if train == IMAGENETTE[0] else []
    command = [sys.executable, "-m", "secateurs", "prune"]
    if (folder / "job.json").exists():
        command += ["--resume", "-o", str(folder)]
    else:
        command += [text, "--weights", str(given.data / f"{weights}.safetensors"), "--data", where, *present]
        command += ["--target", cell["target"], "--latency", f"{cell['budget']}%", "--epochs", cell["epochs"]]
        command += ["--seed", cell["seed"], *cell["options"].split(), "-o", str(folder)]
    started = time.monotonic()
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "2"})
    minutes = round((time.monotonic() - started) / 60, 1)
    return {**told(folder), **fresh(folder, text, where, present), "minutes": minutes, "code": code()}


def told(folder: Path) -> dict[str, object]:
    """What result.json says."""
    result = json.loads((folder / "result.json").read_text())
    files = {f"{one['network']}_{one['precision']}": one for one in result["files"] or ()}
    tuned, budget, pruned = result["dense_finetuned"] or {}, result["budgets"][0], result["pruned"]
    return {
        "met": budget["upper"] <= budget["limit"],
        "used": round(budget["pruned"] / budget["limit"], 4),
        **{name: round(result["latency_" + name], 4) for name in ("ratio", "ratio_upper")},
        **{f"{name}_ms": round(one["latency_ms"], 4) for name, one in files.items()},
        **{f"{name}_accuracy": round(one["accuracy"], 4) for name, one in files.items()},
        "dense_tuned_accuracy": tuned.get("accuracy", ""),
        "dense_tuned_epochs": tuned.get("epochs", ""),
        "cut_accuracy": pruned["accuracy_cut"],
        "repaired_accuracy": pruned["accuracy_recalibrated"],
        "repaired_by": pruned["repaired_by"],
        "trained_epochs": result["tuned_epochs"],
        "test_images": result["test"]["samples"],
        "seconds_total": round(result["seconds"]["total"], 1),
        "onnxruntime": result["versions"]["onnxruntime"],
    }


def fresh(folder: Path, text: str, where: str, present: list[str]) -> dict[str, object]:
    """Accuracy and latencies of the files in sessions that nothing of the package opened."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    files = {name: folder / f"{name}.onnx" for name in ("dense", "model")}
    if not files["model"].exists():
        return {"processor": processor_name()}
    sessions = {
        name: onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        for name, file in files.items()
    }
    data = open_data(where, load(text), seed=0, classes="present" if present else "all")
    kept = None if data.classes is None else np.array(sorted(data.classes))
    right = seen = 0
    for images, labels in data.test.batches(1):
        scores = sessions["model"].run(None, {sessions["model"].get_inputs()[0].name: images.numpy()})[0]
        chosen = scores.argmax(1) if kept is None else kept[scores[:, kept].argmax(1)]
        right, seen = right + int((chosen == np.asarray(labels)).sum()), seen + len(labels)
    image = next(iter(data.test.batches(1)))[0].numpy()

    def milliseconds(session: onnxruntime.InferenceSession) -> float:
        name, times = session.get_inputs()[0].name, []
        for _ in range(RUNS):
            start = time.perf_counter()
            session.run(None, {name: image})
            times.append(1e3 * (time.perf_counter() - start))
        return float(np.median(times))

    for session in list(sessions.values()) * 3:
        milliseconds(session)
    turns = [[milliseconds(session) for session in sessions.values()] for _ in range(TURNS)]
    ratio = float(np.median([model / dense for dense, model in turns]))
    return {"fresh_accuracy": round(right / seen, 4), "fresh_ratio": round(ratio, 4), "processor": processor_name()}


if __name__ == "__main__":
    main()
