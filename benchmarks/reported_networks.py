"""Networks after public reports of other tools: what became of each before they were tried here, and what becomes now.

The networks are in ``tests/zoo/reported_*.py``, what is asked of them in ``tests/zoo/outcomes.py``. Rows of an older
commit come from its sources, and from today's networks and judge::

    git worktree add old COMMIT
    PYTHONPATH=old/src scripts/bench reported_networks --code before --commit COMMIT
"""

from __future__ import annotations

import argparse
import collections
import csv
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
ROWS = ROOT / "benchmarks" / "results" / "reported_networks.csv"
COLUMNS = (
    "code", "commit", "network", "family", "report", "trait", "barriers", "outcome", "stage", "removed", "error",
    "other_batch", "nest", "trains", "reason", "seconds", "torch",
)  # fmt: skip
sys.path.insert(0, str(ROOT / "tests" / "zoo"))


def main() -> None:
    """Rows of what is asked, in place of older ones of the same code; then the counts and the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", help="names (default: all)")
    parser.add_argument("--code", default="after", choices=("before", "after"))
    parser.add_argument("--commit", default=revision(), help="what is measured")
    parser.add_argument("--rows", type=Path, default=ROWS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    from reports import load_all

    for name, report in load_all().items():
        if options.networks and name not in options.networks:
            continue
        row = measured(report, options.code, options.commit)
        rows = [r for r in read(options.rows) if (r["code"], r["network"]) != (options.code, name)]
        write(options.rows, [*rows, row])
        print(
            f"{name:24s} {row['outcome']:24s} {row['seconds']:>6} s  {row['stage']} {row['reason'][:120]}", flush=True
        )
    for line in figures(read(options.rows)):
        print(line)
    if options.rows == ROWS:
        from support_matrix import write_page

        write_page(ROOT)


def measured(report: Any, code: str, commit: str) -> dict[str, Any]:
    """The row of one network."""
    from outcomes import outcome_of

    started = time.process_time()
    found = outcome_of(report)
    return {
        "code": code, "commit": commit, "network": report.name, "family": report.family,
        "report": f"{report.repository}#{report.number}", "trait": report.trait, "barriers": " ".join(report.barriers),
        "outcome": found.outcome, "stage": found.stage, "removed": round(found.removed, 3),
        "error": f"{found.error:.1e}", "other_batch": found.other_batch, "nest": found.nest, "trains": found.trains,
        "reason": " ".join(found.reason.split())[:600], "seconds": round(time.process_time() - started, 1),
        "torch": torch.__version__,
    }  # fmt: skip


def revision() -> str:
    """The commit that is measured."""
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    return done.stdout.strip() or "unknown"


def read(path: Path) -> list[dict[str, Any]]:
    """Every row."""
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """All rows, whole file or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(temporary, path)


def figures(rows: list[dict[str, Any]]) -> list[str]:
    """Counts of outcomes before and after."""
    lines = []
    for code in ("before", "after"):
        mine = [row for row in rows if row["code"] == code]
        if mine:
            lines.append(f"{code} {len(mine)}: {dict(collections.Counter(row['outcome'] for row in mine))}")
    return lines


if __name__ == "__main__":
    main()
