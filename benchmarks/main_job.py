"""Checks finished runs of the main job with an ONNX Runtime session of its own, and writes one row each.

    secateurs prune cifar-resnet56 --weights … --data … --latency 60% --epochs 1 -o run56
    python benchmarks/main_job.py run56 …

Rows go to benchmarks/results/main_job.csv. Nothing of secateurs measures here: both files of a run are loaded in fresh
sessions with one thread and timed in turns.
"""

from __future__ import annotations

import csv
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime

RESULTS = Path(__file__).parent / "results" / "main_job.csv"
TURNS, RUNS = 60, 10


def ratio(folder: Path) -> float:
    """Median over turns of (time of model.onnx) / (time of dense.onnx)."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    files = [folder / "dense.onnx", folder / "model.onnx"]
    sessions = [onnxruntime.InferenceSession(f, options, providers=["CPUExecutionProvider"]) for f in files]
    first = sessions[0].get_inputs()[0]
    shape = [size if isinstance(size, int) else 1 for size in first.shape]
    image = np.random.default_rng(0).standard_normal(shape).astype(np.float32)

    def seconds(session: onnxruntime.InferenceSession) -> float:
        name, times = session.get_inputs()[0].name, []
        for _ in range(RUNS):
            start = time.perf_counter()
            session.run(None, {name: image})
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    for session in sessions * 3:
        seconds(session)
    turns = [[seconds(session) for session in sessions] for _ in range(TURNS)]
    return statistics.median(pruned / dense for dense, pruned in turns)


def row(folder: Path) -> dict[str, object]:
    """What a run's result.json says, and the ratio measured here."""
    result = json.loads((folder / "result.json").read_text())
    dense, pruned, target = result["dense"], result["pruned"], result["target"]
    return {
        "model": result["model"],
        "strategy": result["strategy"],
        "criterion": result["criterion"],
        "epochs": result["epochs"],
        "budget_ratio": round(result["budget_ms"] / dense["latency_ms"], 4),
        "ratio_own_session": round(ratio(folder), 4),
        "ratio": round(1 / result["speedup"], 4),
        "dense_ms": round(dense["latency_ms"], 4),
        "pruned_ms": round(pruned["latency_ms"], 4),
        "dense_accuracy": dense["accuracy"],
        "accuracy_cut": pruned["accuracy_cut"],
        "accuracy_recalibrated": pruned["accuracy_recalibrated"],
        "accuracy": pruned["accuracy"],
        "dense_macs": dense["macs"],
        "macs": pruned["macs"],
        "dense_params": dense["params"],
        "params": pruned["params"],
        "export_max_rel_error": result["export_max_rel_error"],
        "structure_check_rel_error": result["structure_check_rel_error"],
        **{f"seconds_{name}": round(value, 2) for name, value in result["seconds"].items()},
        "target": target["name"],
        "threads": target["threads"],
        "device": str(target["fingerprint"]),
        "versions": json.dumps(result["versions"]),
    }


def main(folders: list[str]) -> None:
    """Appends one row per run folder."""
    rows = [row(Path(folder)) for folder in folders]
    kept = list(csv.DictReader(RESULTS.open())) if RESULTS.exists() else []
    fields = list(dict.fromkeys(name for entry in (*kept, *rows) for name in entry))
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, fields)
        writer.writeheader()
        writer.writerows([*kept, *rows])
    for entry in rows:
        print(f"{entry['model']}: {entry['ratio_own_session']} of dense (run said {entry['ratio']})")


if __name__ == "__main__":
    main(sys.argv[1:])
