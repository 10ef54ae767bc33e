"""Whole jobs through the command line, on the fake target: what they leave in their folders."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from replaying import doors, stores
from replaying.doors import call
from replaying.normal import Writer

TINY, MICRO, WIDE = (f"replaying.networks:{name}?size=16" for name in ("tiny", "micro", "wide"))
COMMON = "--data replaying.networks:data --target fake --train-batch 16 --precision fp32"
LEARNED = f"{COMMON} --strategy lap --criterion l1"
SPARSE = COMMON.replace("fake", "fake-sparse")
FRONT = "--data replaying.networks:data --target fake --images 9"

PRUNED = {
    "default": f"{TINY} {COMMON} --latency 60%",
    "untrained": f"{TINY} {COMMON} --latency 70% --memory 95% --file-size 80% --macs 80% --epochs 0",
    "factor": f"{TINY} {COMMON} --latency 1.5x --criterion taylor --repair statistics --epochs 0 --seed 2",
    "macs": f"{TINY} {COMMON} --macs 50% --criterion fisher --repair none --epochs 0 --min-width 4 --no-blocks",
    "kept": f"{TINY} {COMMON} --macs 60% --criterion l1 --epochs 0 --keep stem* --barrier blocks.1.0* --batch 2",
    "gradual": f"{TINY} {COMMON} --macs 50% --criterion l2 --epochs 3 --schedule gradual",
    "soft": f"{TINY} {COMMON} --macs 50% --criterion l2 --epochs 2 --schedule soft",
    "regrow": f"{TINY} {COMMON} --macs 50% --epochs 2 --schedule regrow --features 1",
    "calibrated": f"{TINY} {COMMON} --macs 50% --criterion fisher_obs --epochs 1 --calibrate-values 4 --lr 0.01",
    "present": f"{TINY} {COMMON.replace(':data', ':few')} --macs 50% --classes present --epochs 1",
    "uniform": f"{MICRO} {COMMON} --latency 80% --strategy uniform --criterion random --epochs 0",
    "greedy": f"{TINY} {COMMON} --latency 60% --strategy greedy --epochs 0",
    "halp": f"{TINY} {COMMON} --latency 60% --strategy halp --criterion taylor_bn --epochs 0",
    "splamp": f"{TINY} {COMMON} --latency 60% --strategy splamp --epochs 0",
    "lap": f"{MICRO} {LEARNED} --macs 70% --episodes 8 --finalists 2",
    "lap-warm": f"{MICRO} {LEARNED} --macs 60% --episodes 6 --warm-start knapsack --agent td3 --epochs 0",
    "hamp": f"{MICRO} {COMMON} --macs 60% --strategy hamp --criterion l1 --min-width 3 --epochs 0",
    "layer": f"{WIDE} {COMMON} --latency 60% --criterion l2 --elements layer --epochs 0",
    "layer-penalty": f"{WIDE} {COMMON} --latency 70% --criterion l2 --elements layer --no-channels --penalty 0.5",
    "block": f"{WIDE} {SPARSE} --latency 60% --criterion l2 --elements block --epochs 0",
    "max-loss": f"{TINY} {COMMON} --max-loss 10 --file-size 90% --criterion l1 --epochs 0",
    "digits": "digits-resnet?width=0.5&size=16 --data digits --target fake --latency 60% --criterion l2 --epochs 0",
    "nothing-to-prune": f"{TINY} {COMMON} --latency 500ms",
    "out-of-reach": f"{TINY} {COMMON} --latency 0.03ms --criterion l1",
    "macs-out-of-reach": f"{TINY} {COMMON} --macs 1k --criterion l1",
    "wrong-scope": f"{TINY} {COMMON} --latency 60% --elements block",
}
"""Arguments of ``secateurs prune`` by the job's name."""
REDUCED = {
    "macs": f"{TINY} {COMMON} --macs 50% --criterion l1 --repair none --epochs 0 --min-width 4",
}
"""Those of the test."""
MEASURED = f"{MICRO} {COMMON} --macs 50% --epochs 0 --repair none"
"""Of which the test reads only under which names evaluations are kept: its decisions hang on measured fractions."""
STOPPED = {
    "stopped-searching": PRUNED["lap-warm"],
    "stopped-deploying": PRUNED["default"],
}
"""Jobs that Ctrl-C ends, while the first candidate is measured or before the deployed file is, and that go on later.
The second must come after the job of the same settings, which leaves all measurements but the last in the store."""
FRONTS = {
    "front": f"{MICRO} {FRONT} --objectives latency,macs --evaluations 24 --population 6 --points 1 --criterion l1",
    "front-screened": f"{MICRO} {FRONT} --objectives memory --evaluations 20 --population 6 --points 0 --screen 4",
}
PICKS = ("knee", "latency=80%", "point=1", "macs=1%", "bread")


@dataclass(frozen=True)
class Place:
    """Where jobs run: ``store`` of measurements, ``kept`` for what another replay starts from, ``earlier``: what this
    one starts from (None: nothing)."""

    store: Path
    kept: Path
    earlier: Path | None


def write(writer: Writer, place: Place, tell: Callable[[str], None]) -> None:
    """``jobs/NAME/``: the JSON files of every run folder, its events, what it kept and the names of its files."""
    if writer.reduced:
        for name, words in REDUCED.items():
            tell(f"job {name}")
            _job(writer, name, "prune", words)
        tell("job measured")
        call("prune", *_allowed("prune"), *MEASURED.split(), "-o", "measured")
        writer.value("jobs/measured.json", stores.families(stores.evaluations(Path("measured", "values.sqlite3"))))
        return
    for name, words in PRUNED.items():
        tell(f"job {name}")
        if "fake-sparse" in words:
            _seed_kernel_times(place.store)
        _job(writer, name, "prune", words)
    for name, words in STOPPED.items():
        tell(f"job {name}")
        _stopped(writer, place, name, words)
    for name, words in FRONTS.items():
        tell(f"job {name}")
        _job(writer, name, "front", words)
    for pick in PICKS:
        said = call("front", "--resume", "-o", "front", "--pick", pick)
        writer.value(f"jobs/front/pick-{pick}.json", {"code": said.code, "error": said.error})
    record(writer, "front", Path("front"))
    _verbs(writer)


@functools.cache
def _allowed(verb: str) -> tuple[str, ...]:
    """Our networks are not trained; where that stops a job, the option that lets it go on."""
    return tuple(option for option in ("--allow-chance",) if option in call(verb, "--help").output)


def _job(writer: Writer, name: str, verb: str, words: str) -> None:
    said = call(verb, *_allowed(verb), *words.split(), "-o", name)
    writer.value(f"jobs/{name}/said.json", {"code": said.code, "error": said.error})
    record(writer, name, Path(name))


def _stopped(writer: Writer, place: Place, name: str, words: str) -> None:
    """A job that is stopped, or was by the replay that this one starts from, and then goes on."""
    if place.earlier is None:
        doors.stops_after[0] = 0
        try:
            said = call("prune", *_allowed("prune"), *words.split(), "-o", name)
        finally:
            doors.stops_after[0] = None
        if said.code != 130:
            raise SystemExit(f"replay: job {name} should have been interrupted, but ended with {said}.")
        shutil.copytree(name, place.kept / name)
    else:
        shutil.copytree(place.earlier / name, name)
        shutil.copytree(place.earlier / name, place.kept / name)
    record(writer, f"{name}/before", Path(name))
    said = call("prune", "--resume", "-o", name)
    writer.value(f"jobs/{name}/said.json", {"code": said.code, "error": said.error})
    record(writer, name, Path(name))


def record(writer: Writer, name: str, folder: Path) -> None:
    """What a run folder holds; of files that are no text only the names."""
    held = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    endings = ("-wal", "-shm")
    writer.value(f"jobs/{name}/files.json", [str(p.relative_to(folder)) for p in held if not p.name.endswith(endings)])
    for path in held:
        where = f"jobs/{name}/{path.relative_to(folder)}"
        if path.suffix == ".json":
            writer.document(where, path.read_text(encoding="utf-8"))
        elif path.suffix == ".jsonl":
            lines = path.read_text(encoding="utf-8").splitlines()
            writer.value(where.replace(".jsonl", ".json"), [json.loads(line) for line in lines])
        elif path.suffix == ".sqlite3":
            writer.value(f"{where}.json", stores.evaluations(path))


def _seed_kernel_times(store: Path) -> None:
    """Times of the sparse kernels by a formula, for the real ones are of a clock inside the compiled library.

    Which rows are needed is found by measuring once into another store; they then pass through the package's own
    export and import.
    """
    words = f"{WIDE} --target fake-sparse --latency 60% --criterion l2 --elements block -o scratch-plan.json"
    call("plan", *words.split(), "--store", "scratch.sqlite3")  # by the machine's clock it may be out of reach
    call("store", "export", "kernels.jsonl", "--store", "scratch.sqlite3")
    rows = [json.loads(line) for line in Path("kernels.jsonl").read_text(encoding="utf-8").splitlines()]
    times = [(row, _kernel_ms(row["signature"])) for row in rows]
    lines = [json.dumps({**row, "payload": {"ms": ms}, "created": 0.0}) for row, ms in times if ms is not None]
    Path("formula.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    said = call("store", "import", "formula.jsonl", "--store", str(store))
    if said.code != 0 or not lines:
        raise SystemExit(f"replay: times of sparse kernels cannot be seeded ({len(lines)} rows, {said}).")


def _kernel_ms(signature: str) -> float | None:
    """Milliseconds by channels, filters and kept positions, None for another kind of row."""
    parts = signature.split("/")
    if parts[0] != "sparse-conv":
        return None
    channels, filters = (float(part[1:]) for part in parts[3].split("-"))
    return 0.001 + 3e-5 * channels * filters * float(parts[4][1:])


def _verbs(writer: Writer) -> None:
    """Answers of the other verbs about a finished job."""
    plan, other = "default/plan.json", "macs/plan.json"
    for name, words in _questions(plan, other):
        said = call(*words.split())
        value = {"code": said.code, "error": said.error}
        try:
            value["answer"] = json.loads(said.output)
        except json.JSONDecodeError:
            value["answer"] = said.output.splitlines()
        writer.value(f"verbs/{name}.json", value)


def _questions(plan: str, other: str) -> Iterator[tuple[str, str]]:
    yield "doctor", f"doctor {TINY} --json"
    yield "profile", f"profile {TINY} --target fake --json"
    yield "plan", f"plan {TINY} --target fake --latency 55% --criterion l1 -o asked.json --json"
    yield "plan-ratio", f"plan {TINY} --ratio 0.5 --criterion l2 -o ratio.json --json"
    yield "apply", f"apply {TINY} {plan} -o small.safetensors --json"
    yield "compare-plans", f"compare {plan} {other} --json"
    yield "compare", f"compare {TINY} {plan} {other} --target fake --json"
    yield "export", f"export {TINY} {plan} --to onnx -o small.onnx --json"
    yield "report", "report default --json"
    yield "again", "prune --resume -o default --json"
    yield "other-settings", f"prune {TINY} {COMMON} --latency 50% -o default --resume"
    yield "occupied", f"prune {TINY} {COMMON} --latency 50% -o default"
