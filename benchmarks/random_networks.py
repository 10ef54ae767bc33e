"""Thousands of random networks cut at random and put before the judge, with the failures by seed."""

from __future__ import annotations

import argparse
import collections
import csv
import time
import warnings
from pathlib import Path

import torch

from secateurs.errors import SecateursError
from secateurs.testing.structure import verdict
from secateurs.testing.structure_networks import SIZE, random_network, seeded

ROWS = Path(__file__).resolve().parent / "results" / "random_networks.csv"


def main() -> None:
    """Run a range of seeds; rows are appended, seeds that have a row are skipped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--rows", type=Path, default=ROWS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    options.rows.parent.mkdir(parents=True, exist_ok=True)
    done = _done(options.rows)
    counts: collections.Counter[str] = collections.Counter()
    started = time.time()
    with open(options.rows, "a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if not done:
            writer.writerow(("seed", "outcome", "removed", "rebuilt", "groups", "error", "reason", "torch"))
        for seed in range(options.first, options.first + options.count):
            if seed in done:
                continue
            row = judged(seed)
            counts[str(row[1])] += 1
            writer.writerow((*row, torch.__version__))
            file.flush()
            if row[1] != "right":
                print(*row, flush=True)
    print(f"{dict(counts)} in {time.time() - started:.0f} s; {len(done)} seeds had rows already")


def judged(seed: int) -> tuple[object, ...]:
    """One network's row."""
    torch.manual_seed(seed)
    model, example = random_network(seeded(seed)).eval(), torch.randn(2, 3, SIZE, SIZE)
    try:
        found = verdict(model, example, seed=seed)
    except SecateursError as error:
        return seed, "refused", 0, "", 0, "", str(error)[:200]
    except Exception as error:
        return seed, "crash", 0, "", 0, "", f"{type(error).__name__}: {str(error)[:200]}"
    reason = "" if found.outcome == "right" else found.reason[:200]
    return seed, found.outcome, round(found.removed, 3), found.rebuilt, found.groups, f"{found.error:.1e}", reason


def _done(path: Path) -> set[int]:
    if not path.exists():
        return set()
    with open(path, newline="", encoding="utf-8") as file:
        return {int(row["seed"]) for row in csv.DictReader(file)}


if __name__ == "__main__":
    main()
