"""Writes what the package does for fixed seeds, or compares two such folders.

scripts/replay write DIR                               with an empty store of measurements
scripts/replay write DIR --store warm --filled OTHER   with the store, and the stopped runs, that OTHER left
scripts/replay compare A B                             exit code 1 where they differ
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sqlite3
import sys
import tempfile
import time
from pathlib import Path

from replaying import doors
from replaying.difference import KEPT, compare

PARTS = ("surface", "plans", "jobs")
STORE = "store.sqlite3"


def main() -> int:
    """The exit code."""
    given = _arguments()
    if given.task == "compare":
        return compare(given.first, given.second)
    if given.folder.exists() and any(given.folder.iterdir()):
        print(f"replay: {given.folder} is not empty. Name another folder, or delete it.", file=sys.stderr)
        return 2
    if (given.store == "warm") != (given.filled is not None):
        print(
            "replay: --store warm needs --filled, a folder that an earlier replay wrote, and cold none.",
            file=sys.stderr,
        )
        return 2
    doors.use_checkout()
    write(given.folder.resolve(), given.filled, given.part or PARTS, reduced=given.reduced)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "replay", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    tasks = parser.add_subparsers(dest="task", required=True)
    writing = tasks.add_parser("write", help="write a replay")
    writing.add_argument("folder", type=Path)
    writing.add_argument("--store", choices=("cold", "warm"), default="cold", help="empty, or filled [cold]")
    writing.add_argument("--filled", type=Path, help="replay whose store and stopped runs are taken")
    writing.add_argument("--part", action="append", choices=PARTS, help="only this part; repeatable [all]")
    writing.add_argument("--reduced", action="store_true", help="what the test compares: the same on every machine")
    comparing = tasks.add_parser("compare", help="compare two replays")
    comparing.add_argument("first", type=Path)
    comparing.add_argument("second", type=Path)
    return parser.parse_args()


def write(folder: Path, filled: Path | None, parts: list[str] | tuple[str, ...], *, reduced: bool) -> None:
    """The parts of a replay in ``folder``; ``filled``: the replay whose store and stopped runs it starts from."""
    from replaying import jobs, plans, stores, surface
    from replaying.normal import Writer

    kept, earlier = folder / KEPT, None if filled is None else filled.resolve() / KEPT
    folder.mkdir(parents=True, exist_ok=True)
    if not reduced:
        kept.mkdir()
    start = time.time()
    with tempfile.TemporaryDirectory(prefix="replay-") as name:
        work = Path(name).resolve()
        store = work / STORE
        if earlier is not None:
            shutil.copy(earlier / STORE, store)
        before = stores.names(store)
        writer = Writer(folder, {str(work): "WORK", str(doors.ROOT): "CHECKOUT"}, reduced=reduced)

        def tell(text: str) -> None:
            print(f"{time.time() - start:6.1f} s  {text}", file=sys.stderr, flush=True)

        with doors.prepared(work, store):
            if "surface" in parts:
                tell("help, names, signatures")
                surface.write(writer)
            if "plans" in parts:
                plans.write(writer, store, tell)
            if "jobs" in parts:
                jobs.write(writer, jobs.Place(store, kept, earlier), tell)
        if store.exists():
            rows = stores.measurements(store)
            writer.value("store.json", stores.families(rows) if reduced else rows)
            again = [] if earlier is None else sorted(stores.names(store) - before)
            writer.value("measured_again.json", again)
            if not reduced:
                _copy(store, kept / STORE)
        tell("done")


def _copy(store: Path, to: Path) -> None:
    """A whole copy of a database that may have a log beside it."""
    with contextlib.closing(sqlite3.connect(store)) as base, contextlib.closing(sqlite3.connect(to)) as copy:
        base.backup(copy)


if __name__ == "__main__":
    sys.exit(main())
