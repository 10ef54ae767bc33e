"""Whether a run that is interrupted anywhere, in any way, ends as it would have ended, or says what to do.

    python benchmarks/faults.py                 # every case that results/faults.csv does not hold yet
    python benchmarks/faults.py --minutes 30    # as many of them as fit

Jobs: ``prune`` with the default criterion, the search of ``lap``, kernel ``elements`` and ``front``, each on the
built-in digits with a network of four convolutions; and ``digits``, which is ``prune`` on the built-in digits-resnet,
with a few of the cases. Faults: KILL, TERM and INT to the process itself (``parent``), to the process that it
started to measure or to judge (``worker``), and to the process while it trains (``trainer``), after several shares of
the undisturbed time; a disk that is full after several sizes (of the run folder's, of the store's) and at every write
of a size; folder and store that can only be read, or vanish. Times are by formula, so that nothing but the fault
differs, but for the cases of ``worker``: there ONNX Runtime measures, from a warm store, or processes judge.

After the fault the run goes on with ``--resume`` until it ends, or is started again where it had made nothing. It must
end with the same plan, the same weights and the same search as the undisturbed run; no measured row may be lost, the
file beside the run folder must be as it was, and what is said must be whole sentences: no traceback, no "bug". One row
per case in ``faults.csv`` among the results, written as soon as it is known; it is about being right, so a busy
machine does not matter. Linux, as a user who may mount (``tmpfs``), else the cases of full disks are left out.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import functools
import hashlib
import itertools
import json
import math
import os
import platform
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import onnx
from result_rows import append

import secateurs
from secateurs import registry
from secateurs.files import read_json
from secateurs.testing.latency import FakeTarget

RESULTS = Path(__file__).parent / "results" / "faults.csv"
NETWORK = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU())
        self.one = nn.Sequential(nn.Conv2d(12, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU())
        self.two = nn.Sequential(nn.Conv2d(12, 12, 3, padding=1), nn.BatchNorm2d(12))
        self.wide = nn.Sequential(nn.Conv2d(12, 24, 3, stride=2, padding=1), nn.BatchNorm2d(24), nn.ReLU())
        self.head = nn.Linear(24, 10)
    def forward(self, x):
        x = self.stem(x)
        x = torch.relu(x + self.two(self.one(x)))
        return self.head(self.wide(x).mean((2, 3)))
def make():
    torch.manual_seed(0)
    return Net()
"""
COMMON = ("--data", "digits", "--allow-chance", "--epochs", "2")
TUNED = ("--macs", "60%", "--dense-epochs", "0", "--precision", "fp32")
SEARCH = ("--evaluations", "48", "--population", "12", "--images", "64", "--points", "1")
JOBS: dict[str, tuple[str, ...]] = {
    "prune": ("prune", "NETWORK", *COMMON, "--latency", "70%", *TUNED[2:]),
    "lap": ("prune", "NETWORK", *COMMON, *TUNED, "--strategy", "lap", "--episodes", "12"),
    "elements": ("prune", "NETWORK", *COMMON, "--latency", "70%", *TUNED[2:], "--elements", "layer"),
    "front": ("front", "NETWORK", *COMMON, *SEARCH),
    "digits": ("prune", "digits-resnet?width=0.25", *COMMON, *TUNED),
}
SHARES = (0.1, 0.25, 0.4, 0.55, 0.7, 0.85)
SIGNALS = {"KILL": signal.SIGKILL, "TERM": signal.SIGTERM, "INT": signal.SIGINT}
SIZES_KB = (0, 4, 16, 48, 96, 160, 256, 384, 512, 768, 1024, 1536)
LIMIT_S = 900.0
RESUMES = 4
TOLD = ("This is a bug", "Traceback (most recent call last)")


@dataclass(frozen=True)
class Case:
    """One fault in one job; ``at``: share of the undisturbed time, or kilobytes of a disk."""

    job: str
    fault: str
    place: str
    at: float

    @property
    def key(self) -> tuple[str, ...]:
        """What its row is found by."""
        return self.job, self.fault, self.place, f"{self.at:g}"


def cases() -> list[Case]:
    """All of them, mixed, those of all jobs in turn, so that a run that is cut short has some of each."""
    found: list[list[Case]] = []
    for job in JOBS:
        mine = [Case(job, name, "parent", share) for share in SHARES for name in SIGNALS]
        mine += [Case(job, name, "trainer", share) for share in (0.1, 0.6) for name in SIGNALS]
        mine += [Case(job, "full disk", "folder", size) for size in SIZES_KB]
        mine += [Case(job, "full disk", "store", size) for size in SIZES_KB[:4]]
        gone = itertools.product(("read-only", "vanishes"), ("folder", "store"), (0.2, 0.6))
        mine += [Case(job, fault, place, at) for fault, place, at in gone]
        mine += [
            Case(job, name, "worker", share) for share in (0.3, 0.7) for name in SIGNALS if job in ("prune", "front")
        ]
        random.Random(job).shuffle(mine)
        found.append([case for case in mine if job != "digits" or (case.place == "parent" and case.at in (0.4, 0.7))])
    most = max(map(len, found))
    return [mine[number] for number in range(most) for mine in found if number < len(mine)]


# The target by formula.


def costs(content: bytes) -> dict[str, float]:
    """Per layer 5 µs and 20 ns per weight."""
    graph = onnx.load_model_from_string(content).graph
    sizes = {tensor.name: math.prod(tensor.dims) for tensor in graph.initializer}
    kinds = ("Conv", "Gemm", "MatMul")
    return {n.output[0]: 0.005 + 2e-5 * sizes.get(n.input[1], 0) for n in graph.node if n.op_type in kinds}


def by_formula(precision: str = "f32") -> FakeTarget:
    """What the registered name makes."""
    return FakeTarget(costs, 0.02, memory=lambda content: 2 * len(content), name="formula")


def prepare() -> None:
    """Everything that a job imports, once: each job is a fork of this process."""
    module = types.ModuleType("secateurs_formula")
    module.make = by_formula  # type: ignore[attr-defined]
    sys.modules["secateurs_formula"] = module
    registry._BUILT_IN["targets"]["formula"] = "secateurs_formula:make"
    import secateurs.cli.app
    import secateurs.jobs.front
    import secateurs.jobs.stages  # noqa: F401

    with contextlib.suppress(ImportError, AttributeError):  # private: where it is gone, every job reads it anew
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        ONNXRegistry.from_torchlib = staticmethod(functools.cache(ONNXRegistry.from_torchlib))
        ONNXRegistry.from_torchlib()


# A job in a process of its own.


@dataclass
class Started:
    """A job at work; ``said``: the file of what it writes to stderr."""

    pid: int
    said: Path
    began: float = field(default_factory=time.monotonic)
    code: int | None = None

    def over(self) -> bool:
        """Whether it has ended."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code is not None

    def wait(self, until: Callable[[], bool] = lambda: False) -> bool:
        """Wait for its end, or for something else; whether that came first. Whatever lasts too long is killed."""
        while not self.over():
            if until():
                return True
            if time.monotonic() - self.began > LIMIT_S:
                self.send(signal.SIGKILL)
                self.said.write_text(self.said.read_text() + "\nIt was killed after its time.")
            time.sleep(0.01)
        return False

    def send(self, number: int) -> None:
        """A signal to the process, if it is there."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def children(self) -> list[int]:
        """Processes that it started."""
        found = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        try:
            return [int(word) for word in found.read_text().split()]
        except OSError:
            return []


def start(words: tuple[str, ...], store: Path, said: Path) -> Started:
    """Fork, and be the command line in the child."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return Started(pid, said)
    code = 70
    try:
        out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.environ["SECATEURS_STORE"] = str(store)
        sys.argv = ["secateurs", *words]
        from secateurs.cli.app import main

        signal.signal(signal.SIGINT, signal.default_int_handler)
        main()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


# What a run has come to.


def digest(path: Path) -> str:
    """Of a file, "" where there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else ""


def outcome(folder: Path) -> dict[str, str]:
    """What must be the same after every fault."""
    found = {"model.safetensors": digest(folder / "model.safetensors")}
    if (folder / "plan.json").is_file():
        plan = read_json((folder / "plan.json").read_text())
        del plan["provenance"]  # holds where the network lies, and seconds
        found["plan.json"] = hashlib.sha256(json.dumps(plan).encode()).hexdigest()[:16]
    if (folder / "front.json").is_file():
        front = read_json((folder / "front.json").read_text())
        points = [[p["widths"], p["removed"], p["error"]] for p in front["points"]]
        found["front"] = hashlib.sha256(json.dumps(points).encode()).hexdigest()[:16]
    return found


def rows(store: Path) -> set[str]:
    """Names of the measurements in a store."""
    if not store.is_file():
        return set()
    where = f"file:{store}?mode=ro"
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(where, uri=True)) as base:
        return {str(row) for row in base.execute("SELECT target, signature FROM measurements")}
    return set()


def judged(folder: Path) -> set[str]:
    """Keys of candidates that were judged in a run."""
    found: set[str] = set()
    for name in ("evaluations.sqlite3", "values.sqlite3", "repairs.sqlite3"):
        with contextlib.suppress(sqlite3.Error, OSError):
            if (folder / name).is_file():
                with contextlib.closing(sqlite3.connect(folder / name)) as base:
                    found |= {f"{name} {key}" for (key,) in base.execute("SELECT key FROM evaluations")}
    return found


@dataclass
class Workplace:
    """Undisturbed runs and their stores, made once per job and target."""

    root: Path
    _known: dict[tuple[str, str], tuple[dict[str, str], float, Path]] = field(default_factory=dict)

    def undisturbed(self, job: str, target: str) -> tuple[dict[str, str], float, Path]:
        """What a job comes to, its seconds, and the store that it leaves."""
        if (job, target) not in self._known:
            place = self.root / f"{job} {target}"
            place.mkdir()
            store = place / "store.sqlite3"
            times = []
            for number in (0, 1, 2):  # the last two from a warm store, as the disturbed ones
                run = start(words(job, target, place / f"run{number}"), store, place / "said")
                run.wait()
                times.append(time.monotonic() - run.began)
                if run.code not in (0, 3):
                    raise SystemExit(f"The undisturbed {job} ended with {run.code}: {run.said.read_text()[-600:]}")
            first, second = outcome(place / "run1"), outcome(place / "run2")
            if first != second and target == "formula":
                raise SystemExit(f"Two undisturbed runs of {job} differ: {first} and {second}.")
            self._known[job, target] = second, times[2], store
        return self._known[job, target]


def words(job: str, target: str, folder: Path) -> tuple[str, ...]:
    """The command line of a job."""
    more = ("--workers", "2") if job == "front" and target != "formula" else ()
    measured = "formula" if job == "front" and target != "formula" else target
    network = folder.parent / "net.py"
    network.write_text(NETWORK)
    given = (f"{network}:make", "--input", "1,1,8,8")
    job = (word for named in JOBS[job] for word in (given if named == "NETWORK" else (named,)))
    return (*job, *more, "--target", measured, "-o", str(folder))


# Faults.


@contextlib.contextmanager
def small_disk(place: Path, kilobytes: float) -> Iterator[Callable[[], None]]:
    """A file system of this size at ``place``; yields what makes it large."""
    place.mkdir()
    pages = max(1, int(kilobytes) // 4) + 8  # some for names
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={pages * 4}k", "tmpfs", str(place)], check=True)

    def grow() -> None:
        subprocess.run(["mount", "-o", "remount,size=512m,rw", str(place)], check=True)

    try:
        yield grow
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)


def may_mount() -> bool:
    """Whether file systems can be mounted here."""
    with tempfile.TemporaryDirectory() as place:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], capture_output=True)
        if done.returncode == 0:
            subprocess.run(["umount", place], check=False)
    return done.returncode == 0


def disturb(case: Case, run: Started, seconds: float, folder: Path, store: Path, disk: Path) -> Callable[[], None]:
    """Let the fault happen; yields what mends it afterwards."""
    moment = run.began + seconds * case.at
    if case.fault in SIGNALS:
        if case.place == "trainer":
            checkpoints = folder / "checkpoints"
            if run.wait(lambda: any(checkpoints.glob("*.safetensors")) or (folder / "repaired.safetensors").exists()):
                begin, left = time.monotonic(), 0.3 * seconds * case.at
                run.wait(lambda: time.monotonic() - begin > left)
            run.send(SIGNALS[case.fault])
        elif case.place == "worker":
            if run.wait(lambda: time.monotonic() > moment and bool(run.children())):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(run.children()[-1], SIGNALS[case.fault])
        elif run.wait(lambda: time.monotonic() > moment):
            run.send(SIGNALS[case.fault])
        return lambda: None
    what = folder if case.place == "folder" else store
    if run.wait(lambda: time.monotonic() > moment and what.exists()):
        if case.fault == "read-only":
            subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=False)
            return lambda: None
        aside = what.with_name(f"{what.name} aside")
        with contextlib.suppress(OSError):
            what.rename(aside)

        def back() -> None:
            if aside.exists():
                shutil.rmtree(what, ignore_errors=True)
                what.unlink(missing_ok=True)
                aside.rename(what)

        return back
    return lambda: None


def tried(case: Case, place: Workplace) -> dict[str, object]:
    """One case: the fault, then ``--resume`` until the end; its row."""
    target = "onnxruntime-cpu" if case.place == "worker" else "formula"
    expected, seconds, warm = place.undisturbed(case.job, target)
    here = Path(tempfile.mkdtemp(prefix="case-", dir=place.root))
    (here / "mine.txt").write_text("mine")
    disk = here / "disk"
    size = case.at if case.fault == "full disk" else 1 << 19
    mounted = case.fault in ("full disk", "read-only")
    with small_disk(disk, size) if mounted else contextlib.nullcontext(lambda: None) as grow:
        on_disk = disk if mounted else here
        folder = (on_disk if case.place != "store" else here) / "run"
        store = (on_disk if case.place == "store" else here) / "store.sqlite3"
        if case.fault != "full disk" or case.place != "store":
            shutil.copy(warm, store)
        before, began = rows(store), time.monotonic()
        job = words(case.job, target, here / "run")[:-1]
        run = start((*job, str(folder)), store, here / "said")
        back = disturb(case, run, seconds, folder, store, disk)
        run.wait()
        first, said = run.code, run.said.read_text(errors="replace")
        grow()
        back()
        held = judged(folder)
        resumed = 0
        while run.code not in (0, 3) and resumed < RESUMES:
            going_on = (folder / "job.json").exists()
            verb = JOBS[case.job][0]
            again = (verb, "--resume", "-o", str(folder)) if going_on else (*job, str(folder))
            run = start(again, store, here / "said again")
            run.wait()
            said += run.said.read_text(errors="replace")
            resumed += 1
        found, lost = outcome(folder), before - rows(store)
        lost_judged = held - judged(folder) if case.job == "front" else set()
        mine = (here / "mine.txt").read_text() == "mine"
        faults = [
            *([f"ended with {run.code}"] if run.code not in (0, 3) else []),
            *(f"{name} differs" for name in expected if found.get(name) != expected[name]),
            *([f"{len(lost)} measurements lost"] if lost else []),
            *([f"{len(lost_judged)} judged rows lost"] if lost_judged else []),
            *([] if mine else ["a foreign file was changed"]),
            *(f"said {word!r}" for word in TOLD if word in said),
            *(["nothing was said"] if first not in (0, 3, -9, -15) and "secateurs: " not in said else []),
        ]
    told = [line for line in said.splitlines() if line.startswith("secateurs: ")]
    shutil.rmtree(here, ignore_errors=True)
    return {
        "job": case.job, "fault": case.fault, "place": case.place, "at": f"{case.at:g}", "target": target,
        "ended_with": first, "resumed": resumed, "outcome": "; ".join(faults) or "identical",
        "told": (told[0] if told else "").removeprefix("secateurs: ")[:160],
        "seconds": round(time.monotonic() - began, 1),
    }  # fmt: skip


def done() -> set[tuple[str, ...]]:
    """Cases that have a row."""
    if not RESULTS.exists():
        return set()
    with RESULTS.open(newline="", encoding="utf-8") as file:
        return {(row["job"], row["fault"], row["place"], row["at"]) for row in csv.DictReader(file)}


def main() -> None:
    """Try what was not tried yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=40.0, help="time at most (default 40)")
    parser.add_argument("--job", choices=list(JOBS), help="cases of this job only")
    parser.add_argument("--place", help="cases of this place only")
    given = parser.parse_args()
    until = time.monotonic() + 60 * given.minutes
    prepare()
    mounts, known, bad = may_mount(), done(), 0
    with tempfile.TemporaryDirectory(prefix="secateurs-faults-", ignore_cleanup_errors=True) as root:
        place = Workplace(Path(root))
        for case in cases():
            wanted = given.job in (None, case.job) and given.place in (None, case.place)
            if case.key in known or not wanted or (not mounts and case.fault in ("full disk", "read-only")):
                continue
            if time.monotonic() > until:
                print("The time is up; start again to go on.", flush=True)
                break
            row = tried(case, place)
            bad += row["outcome"] != "identical"
            print(row, flush=True)
            more = {"system": f"{platform.system()} {platform.machine()}", "secateurs": secateurs.__version__}
            append({**row, **more, "date": time.strftime("%Y-%m-%d")}, RESULTS)
    if bad:
        raise SystemExit(f"{bad} cases ended otherwise.")


if __name__ == "__main__":
    main()
