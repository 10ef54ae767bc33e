"""Structure over the zoo: what is analysed, cut, checked, trained and exported, one row per network."""

from __future__ import annotations

import argparse
import collections
import contextlib
import csv
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ROWS = ROOT / "benchmarks" / "results" / "structure_sweep.csv"
COLUMNS = (
    "network", "convolutional", "input", "parameters", "outcome", "oracle", "error", "groups", "blocks", "removable",
    "removed", "removed_least", "barriers", "largest_pin", "export_s", "analysis_s", "recipe_s", "apply_s",
    "own_class", "rebuild_reason", "other_batch", "trains", "onnx_error", "mutations", "caught", "missed",
    "run_mutations", "run_missed", "peak_mb", "detail", "torch", "timm", "device",
)  # fmt: skip
SEEDS = 3
SHARE = 0.4
MUTATIONS = 100
RUN_MUTATIONS = 4
"""Damaged plans that only the outputs can give away (each costs two runs of the network in float64)."""


def main() -> None:
    """Run what has no row yet, one process per network; then print the acceptance figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", help="names of the list (default: all)")
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--again", action="store_true", help="run networks that have a row already")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds per network")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--matrix", action="store_true", help="only write docs/support-matrix.md from the rows")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measured(options.networks[0])))
        return
    if not options.matrix:
        sweep(options.networks, options.rows, options.again, options.timeout)
    rows = read(options.rows)
    for line in figures(rows):
        print(line)
    if not options.networks:
        from support_matrix import write_page

        write_page(ROOT)


def sweep(names: list[str], path: Path, again: bool, timeout: float) -> None:
    """Add a row for every network that lacks one."""
    from secateurs.testing.structure_zoo import ZOO

    for name in names or ZOO:
        rows = read(path)
        if name in rows and not again:
            continue
        started = time.time()
        rows[name] = isolated(name, timeout)
        write(path, rows)
        row = rows[name]
        print(
            f"{name:36s} {row['outcome']:8s} removed {row.get('removed', '')} own {row.get('own_class', '')} "
            f"{time.time() - started:.0f} s {row.get('detail', '')}",
            flush=True,
        )


def isolated(name: str, timeout: float) -> dict[str, Any]:
    """The row of one network, measured in a process of its own."""
    command = [sys.executable, __file__, "--one", name]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src"), "PYTHONWARNINGS": "ignore"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment, check=False)
    except subprocess.TimeoutExpired:
        return {"network": name, "outcome": "timeout", "detail": f"more than {timeout:.0f} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        tail = done.stderr.strip().splitlines()[-1:] or ["no output"]
        return {"network": name, "outcome": "crash", "detail": tail[0][:300]}
    row: dict[str, Any] = json.loads(lines[-1])
    return row


def measured(name: str) -> dict[str, Any]:
    """Everything about one network."""
    import torch

    from secateurs.errors import SecateursError
    from secateurs.testing.structure_zoo import build

    torch.set_num_threads(1)
    entry = build(name)
    import timm  # only after build, which lets it import a torchvision without compiled operators

    row: dict[str, Any] = {
        "network": name,
        "convolutional": entry.convolutional,
        "input": "x".join(map(str, entry.example.shape[1:])),
        "parameters": sum(p.numel() for p in entry.model.parameters()),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "device": platform.processor() or platform.machine(),
    }
    try:
        _analyse_and_cut(entry, row)
    except SecateursError as refusal:
        row.update(outcome="refused", detail=str(refusal)[:400])
    row["peak_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return row


@contextlib.contextmanager
def export_time() -> Iterator[list[float]]:
    """Seconds spent inside ``torch.export.export``, one entry per call."""
    import torch

    spent: list[float] = []
    real = torch.export.export

    def timed(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            return real(*args, **kwargs)
        finally:
            spent.append(time.perf_counter() - started)

    torch.export.export = timed
    try:
        yield spent
    finally:
        torch.export.export = real


def _analyse_and_cut(entry: Any, row: dict[str, Any]) -> None:
    import torch

    from secateurs.structure import apply, trace
    from secateurs.structure.recipe import recipe_of
    from secateurs.structure.trace import removable_share
    from secateurs.testing.structure import judge, pins, random_cut, uncaught

    model, example = entry.model, entry.example
    torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),))  # the first export imports a compiler
    with export_time() as spent:
        started = time.perf_counter()
        graph = trace(model, example)
        total = time.perf_counter() - started
    row.update(export_s=round(sum(spent), 2), analysis_s=round(total - sum(spent), 2))
    row.update(
        groups=len(graph.groups),
        blocks=len(graph.blocks),
        removable=round(removable_share(graph), 3),
        barriers=" | ".join(str(barrier)[:160] for barrier in graph.barriers[:3]),
        largest_pin=pins(graph, 1)[:160],
        oracle="interpreter" if graph.analysis.statistics else "masked",
    )
    started = time.perf_counter()
    recipe_of(graph)
    row["recipe_s"] = round(time.perf_counter() - started, 2)
    plans = [graph.plan(random_cut(graph, SHARE, seed)) for seed in range(SEEDS)]
    shares, errors = [], []
    for seed, plan in enumerate(plans):
        if seed == 0:
            started = time.perf_counter()
            small = apply(model, plan, example)
            row["apply_s"] = round(time.perf_counter() - started, 2)
        else:
            small = apply(model, plan, example, check=False)
        shares.append(1 - sum(p.numel() for p in small.parameters()) / row["parameters"])
        errors.append(judge(model, plan, example, seed=seed, check=seed == 0))
        if seed == 0:
            first = small
            row["own_class"] = type(small) is type(model)
            row["rebuild_reason"] = str(getattr(small, "secateurs_rebuilt", ""))[:200]
    wrong = [error for error in errors if not error <= 1e-6]
    row.update(
        outcome="wrong" if wrong else "right",
        error=f"{max(errors):.1e}",
        removed=round(sum(shares) / SEEDS, 3),
        removed_least=round(min(shares), 3),
    )
    _use(first, example, row)
    tried, missed = uncaught(model, plans[0], example, MUTATIONS, graph=graph)
    row.update(mutations=tried, caught=tried - len(missed), missed=" ".join(missed))
    tried, missed = uncaught(model, plans[0], example, RUN_MUTATIONS, graph=graph, by_running=True)
    row.update(run_mutations=tried, run_missed=" ".join(missed))


def _use(small: Any, example: Any, row: dict[str, Any]) -> None:
    """Another batch size, training, ONNX."""
    import torch

    from secateurs.errors import SecateursError
    from secateurs.export.onnx import export_onnx
    from secateurs.testing.structure import gap, tensors

    three = torch.cat([example] * 3)
    three[1:] = torch.randn(2, *example.shape[1:], generator=torch.Generator().manual_seed(5))
    try:
        with torch.no_grad():
            alone, together = tensors(small.eval()(example)), tensors(small(three))
        row["other_batch"] = gap([y[:1] for y in together], alone) < 1e-3
    except Exception as error:
        row["other_batch"] = f"{type(error).__name__}: {str(error)[:150]}"
    try:
        with tempfile.TemporaryDirectory() as folder:
            row["onnx_error"] = f"{export_onnx(small, example, Path(folder) / 'small.onnx').max_rel_error:.1e}"
    except SecateursError as error:
        row["onnx_error"] = f"{type(error).__name__}: {str(error)[:150]}"
    try:
        results = tensors(small.train()(three))
        sum(y.float().pow(2).mean() for y in results if y.is_floating_point()).backward()
        gradients = [p.grad for p in small.parameters() if p.grad is not None]
        finite = all(bool(torch.isfinite(g).all()) for g in gradients)
        row["trains"] = finite and len(gradients) >= 0.9 * len(list(small.parameters()))
    except Exception as error:
        row["trains"] = f"{type(error).__name__}: {str(error)[:150]}"
    finally:
        small.eval()


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Rows by network."""
    if not path.exists():
        return {}
    with open(path, newline="", encoding="utf-8") as file:
        return {row["network"]: row for row in csv.DictReader(file)}


def write(path: Path, rows: dict[str, dict[str, Any]]) -> None:
    """All rows, whole file or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows.values())
    os.replace(temporary, path)


def figures(rows: dict[str, dict[str, Any]]) -> list[str]:
    """The acceptance figures of the rows."""
    everything = list(rows.values())
    right = [row for row in everything if row["outcome"] == "right"]
    pure = [row for row in right if str(row["convolutional"]) == "True"]
    rest = [row for row in right if str(row["convolutional"]) != "True"]

    def yes(selection: list[dict[str, Any]], column: str) -> str:
        count = sum(str(row[column]) == "True" for row in selection)
        return f"{count}/{len(selection)}"

    def mean(selection: list[dict[str, Any]], column: str) -> float:
        values = [float(row[column]) for row in selection if row[column]]
        return sum(values) / max(len(values), 1)

    def median(column: str) -> float:
        values = sorted(float(row[column]) for row in right if row[column])
        return values[len(values) // 2] if values else 0.0

    exported = sum(not str(row["onnx_error"]).startswith(("Export", "Secateurs")) for row in right)
    lowest = sorted(right, key=lambda row: float(row["removed"]))[:5]
    outcomes = dict(collections.Counter(row["outcome"] for row in everything))
    judged = sum(row["oracle"] == "interpreter" for row in right)
    return [
        f"networks {len(everything)}: {outcomes}; by interpreter {judged}",
        f"removed at 40 %: convolutional {mean(pure, 'removed'):.3f}, other {mean(rest, 'removed'):.3f}; lowest "
        + ", ".join(f"{row['network']} {row['removed']}" for row in lowest),
        f"own class: convolutional {yes(pure, 'own_class')}, other {yes(rest, 'own_class')}",
        f"other batch {yes(right, 'other_batch')}, trains {yes(right, 'trains')}, ONNX {exported}/{len(right)}",
        f"mutations caught {sum(int(r['caught']) for r in right)}/{sum(int(r['mutations']) for r in right)}; networks "
        f"with a miss: {', '.join(r['network'] + ' ' + r['missed'] for r in right if r['missed']) or 'none'}",
        f"by the outputs alone {sum(int(r['run_mutations']) - len(r['run_missed'].split()) for r in right)}/"
        f"{sum(int(r['run_mutations']) for r in right)}: "
        f"{', '.join(r['network'] + ' ' + r['run_missed'] for r in right if r['run_missed']) or 'none missed'}",
        f"median seconds: export {median('export_s')}, analysis {median('analysis_s')}, recipe {median('recipe_s')}, "
        f"apply {median('apply_s')}; slowest analysis {max((float(r['analysis_s']) for r in right), default=0)}",
    ]


if __name__ == "__main__":
    main()
