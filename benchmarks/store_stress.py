"""Whether the store keeps every row while many processes write and one is killed again and again.

    python benchmarks/store_stress.py

Eight processes make 1,000 writes each to one new store while a ninth writes, is killed with SIGKILL after a random
time and is started again, until the eight have finished; ten such stores one after the other. Every write is one
transaction of two rows. Afterwards every row that any process was told is stored must be there once, rows of a killed
transaction must be there in pairs or not at all, and the file must pass SQLite's integrity check. One row in
``benchmarks/results/store_stress.csv``; it is about being right, so a busy machine does not matter. Needs no GPU and
no data.
"""

from __future__ import annotations

import argparse
import csv
import platform
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import secateurs
from secateurs.latency.store import Store

RESULTS = Path(__file__).parent / "results" / "store_stress.csv"
TARGET = {"target": "stress"}
WRITER = """
import sys
from secateurs.latency.store import Store
path, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
with Store(path) as store:
    for i in range(count):
        store.put({"target": "stress"}, {f"{name}/{i}": {"i": i}, f"{name}/{i}/pair": {"i": i}})
        print(i, flush=True)
"""


def writer(path: Path, name: str, count: int) -> subprocess.Popen[bytes]:
    """A process that makes ``count`` writes and tells each when it is stored."""
    return subprocess.Popen([sys.executable, "-c", WRITER, str(path), name, str(count)], stdout=subprocess.PIPE)


def told(process: subprocess.Popen[bytes]) -> int:
    """Number of writes that a process has reported as stored when it ended."""
    assert process.stdout is not None
    count = sum(line.endswith(b"\n") for line in process.stdout)
    process.wait()
    return count


def stress(path: Path, processes: int, writes: int, seed: int) -> dict[str, int]:
    """Run the writers and the killed ones; counts of what was reported stored, of rows, and of faults."""
    generator = random.Random(seed)
    output = path.with_suffix(".told")
    with open(output, "wb") as lines:
        steady = [
            subprocess.Popen([sys.executable, "-c", WRITER, str(path), f"w{i}", str(writes)], stdout=lines)
            for i in range(processes)
        ]
        reported: dict[str, int] = {}
        while any(process.poll() is None for process in steady):
            name = f"doomed{len(reported)}"
            doomed = writer(path, name, 1 << 30)
            # By turns while it starts and opens the store, and while it writes.
            first = len(reported) % 2 and bool(doomed.stdout and doomed.stdout.readline())
            time.sleep(generator.uniform(0.0, 0.4 if first else 1.5))
            doomed.send_signal(signal.SIGKILL)
            reported[name] = told(doomed) + int(first)
    failed = sum(process.returncode != 0 for process in steady)
    reported |= {f"w{i}": writes for i in range(processes)}
    with Store(path) as store:
        rows = [row.signature for row in store.rows()]
    held = set(rows)
    wanted = {f"{name}/{i}{end}" for name, count in reported.items() for i in range(count) for end in ("", "/pair")}
    halves = sum((f"{row}/pair" in held) != (row in held) for row in {row.removesuffix("/pair") for row in held})
    extra = {row for row in held - wanted if not row.startswith("doomed")}
    connection = sqlite3.connect(path)
    sound = connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    connection.close()
    return {
        "kills": len(reported) - processes,
        "failed_processes": failed,
        "rows": len(rows),
        "lost": len(wanted - held),
        "doubled": len(rows) - len(held),
        "torn": halves,
        "unknown": len(extra),
        "unsound": int(not sound),
    }


def main() -> None:
    """Run the stress and write its row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=8, help="writers that are never killed (default 8)")
    parser.add_argument("--writes", type=int, default=1000, help="writes of each (default 1000)")
    parser.add_argument("--rounds", type=int, default=10, help="stores, one after the other (default 10)")
    parser.add_argument("--seed", type=int, default=0, help="of the times at which the ninth is killed (default 0)")
    given = parser.parse_args()
    found: Counter[str] = Counter()
    for seed in range(given.seed, given.seed + given.rounds):
        with tempfile.TemporaryDirectory(prefix="secateurs-stress-") as folder:
            counts = stress(Path(folder) / "store.sqlite3", given.processes, given.writes, seed)
        print(f"store {seed}: {counts}", file=sys.stderr, flush=True)
        found.update(counts)
    row = {
        "stores": given.rounds,
        "processes": given.processes,
        "writes": given.writes,
        "rows_per_write": 2,
        **found,
        "seed": given.seed,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "secateurs": secateurs.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }
    print(row)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with RESULTS.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(row))
        table.writeheader()
        table.writerow(row)
    if found["failed_processes"] or found["lost"] or found["doubled"] or found["torn"] or found["unsound"]:
        raise SystemExit("The store lost, doubled or tore rows.")


if __name__ == "__main__":
    main()
