"""What the choices around the cut are worth: the main job with one option changed at a time, one row each.

    python benchmarks/schedules.py resnet20 [--latency 50% --epochs 2 --seed 0 --only once soft]

Every run is ``secateurs prune`` on ONNX Runtime (1 thread) in build/schedules, which goes on where it was stopped; its
row comes from the run's result.json. Latencies are measured by the job itself, so nothing else should measure
meanwhile.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from accuracy_at_latency import NETWORKS
from result_rows import append

ROWS = Path(__file__).parent / "results" / "schedules.csv"
WORK = Path(__file__).parent.parent / "build" / "schedules"
CHOICES = {
    "once": (),
    "gradual": ("--schedule", "gradual"),
    "soft": ("--schedule", "soft"),
    "regrow": ("--schedule", "regrow"),
    "features": ("--features", "1"),
    "calibrated values": ("--calibrate-values", "100"),
    "no least squares": ("--repair", "statistics"),
    "no blocks": ("--no-blocks",),
}
"""Name to the options that differ from the defaults."""


def run(network: str, choice: str, given: argparse.Namespace) -> Path:
    """The finished run folder of a choice."""
    built, weights, files = NETWORKS[network]
    out = WORK / f"{network}-{given.latency.rstrip('%')}-{given.epochs}-{given.seed}-{choice.replace(' ', '_')}"
    data = f"parquet:{given.data}/{files.format(given.data)}"
    command = [sys.executable, "-m", "secateurs", "prune", built, "--weights", f"{given.data}/{weights}.safetensors"]
    command += ["--data", data, "--latency", given.latency, "--epochs", str(given.epochs), "--seed", str(given.seed)]
    command += ["-o", str(out), *CHOICES[choice]]
    if not (out / "result.json").exists():
        subprocess.run([*command, *(["--resume"] if out.exists() else [])], check=True)
    return out


def row(network: str, choice: str, given: argparse.Namespace, folder: Path) -> dict[str, object]:
    """What a run's result.json says."""
    result = json.loads((folder / "result.json").read_text())
    pruned = result["pruned"]
    return {
        "network": network,
        "choice": choice,
        "latency": given.latency,
        "epochs": given.epochs,
        "seed": given.seed,
        "ratio": round(1 / result["speedup"], 4),
        "macs": round(pruned["macs"] / result["dense"]["macs"], 4),
        "accuracy_cut": pruned["accuracy_cut"],
        "accuracy_repaired": pruned["accuracy_recalibrated"],
        "accuracy": pruned["accuracy"],
        "accuracy_dense": result["dense"]["accuracy"],
        "seconds": round(result["seconds"]["total"] - result["seconds"]["profile"]),  # the table is made once
        "versions": json.dumps(result["versions"]),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Appends one row per choice that has none."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=sorted(NETWORKS))
    parser.add_argument("--latency", default="50%")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=list(CHOICES), default=list(CHOICES))
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    given = parser.parse_args(arguments)
    for choice in given.only:
        key = (given.network, choice, given.latency, str(given.epochs), str(given.seed))
        held = list(csv.DictReader(ROWS.open())) if ROWS.exists() else []
        if any(
            tuple(entry[name] for name in ("network", "choice", "latency", "epochs", "seed")) == key for entry in held
        ):
            continue
        found = row(given.network, choice, given, run(given.network, choice, given))
        append(found, ROWS)
        print(found, flush=True)


if __name__ == "__main__":
    main()
