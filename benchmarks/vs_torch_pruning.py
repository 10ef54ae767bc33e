"""The same cuts by this package and by torch-pruning over the zoo and the trait networks, with the same judge."""

from __future__ import annotations

import argparse
import copy
import csv
import importlib.util
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
ROWS = ROOT / "benchmarks" / "results" / "vs_torch_pruning.csv"
COLUMNS = (
    "network", "tool", "outcome", "error", "removed", "seconds", "detail", "share", "torch", "tool_version",
)  # fmt: skip
TOOLS = ("secateurs", "torch-pruning")
SHARE = 0.4


@dataclass(frozen=True)
class Removed:
    """What another tool removed, in the form of a plan: indices per parameter or buffer and dimension."""

    lost: Mapping[str, Mapping[int, tuple[int, ...]]]

    def removed(self) -> Mapping[str, Mapping[int, tuple[int, ...]]]:
        """As :meth:`secateurs.Plan.removed`."""
        return self.lost


def main() -> None:
    """One process per network and tool; rows that exist are kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", help="zoo names or trait:NAME (default: all)")
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds per network and tool")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if importlib.util.find_spec("torch_pruning") is None:
        sys.exit("vs_torch_pruning: torch-pruning is not installed (pip install secateurs[rivals])")
    if options.one:
        print(json.dumps(measured(options.networks[0], options.one)))
        return
    for name in options.networks or every_name():
        for tool in TOOLS:
            rows = read(options.rows)
            if (name, tool) not in rows:
                rows[name, tool] = isolated(name, tool, options.timeout)
                write(options.rows, rows)
                row = rows[name, tool]
                print(
                    f"{name:36s} {tool:14s} {row['outcome']:8s} {row.get('removed', '')} {row.get('detail', '')[:90]}"
                )
    print(*summary(read(options.rows)), sep="\n")


def every_name() -> list[str]:
    """The zoo, then the traits."""
    from secateurs.testing.structure_zoo import ZOO

    return [*ZOO, *(f"trait:{name}" for name in traits())]


def traits() -> dict[str, Any]:
    """The trait networks of the tests."""
    sys.path.insert(0, str(ROOT / "tests" / "structure"))
    from traits import load_all

    return load_all()


def isolated(name: str, tool: str, timeout: float) -> dict[str, Any]:
    """The row of one network and tool from a process of its own."""
    command = [sys.executable, __file__, "--one", tool, name]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    row: dict[str, Any] = {"network": name, "tool": tool}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment, check=False)
    except subprocess.TimeoutExpired:
        return {**row, "outcome": "timeout"}
    if done.returncode or not done.stdout.strip():
        return {**row, "outcome": "crash", "detail": (done.stderr.strip().splitlines() or ["no output"])[-1][:200]}
    return {**row, **json.loads(done.stdout.strip().splitlines()[-1])}


def measured(name: str, tool: str) -> dict[str, Any]:
    """Outcome, share of the parameters that went, seconds."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    if name.startswith("trait:"):
        trait = traits()[name.removeprefix("trait:")]
        model, example = trait.build().eval(), trait.example()
    else:
        from secateurs.testing.structure_zoo import build

        entry = build(name)
        model, example = entry.model, entry.example
    started = time.perf_counter()
    try:
        row = by_secateurs(model, example) if tool == "secateurs" else by_torch_pruning(model, example)
    except Exception as error:
        row = {
            "outcome": "refused" if tool == "secateurs" else "crash",
            "detail": f"{type(error).__name__}: {error}"[:200],
        }
    row["seconds"] = round(time.perf_counter() - started, 1)
    return {**row, "share": SHARE, "torch": torch.__version__}


def by_secateurs(model: nn.Module, example: Any) -> dict[str, Any]:
    """Trace, cut at random, judge."""
    from secateurs import __version__
    from secateurs.testing.structure import verdict

    found = verdict(model, example, share=SHARE)
    row = {"outcome": found.outcome, "error": f"{found.error:.1e}", "removed": round(found.removed, 3)}
    return {**row, "detail": "" if found.outcome == "right" else found.reason[:200], "tool_version": __version__}


def by_torch_pruning(model: nn.Module, example: Any) -> dict[str, Any]:
    """Prune a copy whose every weight is its own number, read off what stayed, and judge that on redrawn weights."""
    import torch_pruning as tp

    from secateurs.testing.structure import as_call, call_with, gap, random_example, redrawn, tensors
    from secateurs.testing.structure_judge import dense_ignoring

    numbered = copy.deepcopy(model)
    for tensor in _owned(numbered).values():
        if tensor.is_floating_point():
            tensor.data = torch.arange(tensor.numel(), dtype=torch.float64).reshape(tensor.shape)
    numbered.double()
    args, kwargs = as_call(random_example(example, 0))
    pruner = tp.pruner.BasePruner(
        numbered,
        (*args, *kwargs.values()) if not kwargs else {**kwargs},
        importance=tp.importance.RandomImportance(),
        pruning_ratio=SHARE,
        ignored_layers=_outputs(numbered, random_example(example, 0)),
    )
    pruner.step()
    lost = {name: _lost(tensor, _owned(model)[name].shape) for name, tensor in _owned(numbered).items()}
    total = sum(p.numel() for p in model.parameters())
    row: dict[str, Any] = {
        "removed": round(1 - sum(p.numel() for p in numbered.parameters()) / total, 3),
        "tool_version": tp.__version__,
    }
    dense = redrawn(model, 0)
    with torch.no_grad():
        for name, tensor in _owned(numbered).items():
            if tensor.is_floating_point():
                tensor.data = _owned(dense)[name].reshape(-1)[tensor.round().long().reshape(-1)].reshape(tensor.shape)
        inputs = random_example(example, 0)
        ours = tensors(call_with(numbered.eval(), inputs))
        removed: Any = Removed({name: axes for name, axes in lost.items() if axes})
        error = gap(ours, dense_ignoring(dense, removed, *as_call(inputs)))
    outcome = "right" if error <= 1e-6 else "wrong"
    return {
        **row,
        "outcome": "pinned" if outcome == "right" and not row["removed"] else outcome,
        "error": f"{error:.1e}",
    }


def _owned(model: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _outputs(model: nn.Module, example: Any) -> list[nn.Module]:
    """Layers whose result is an output of the network."""
    from secateurs.testing.structure import call_with, tensors

    made: dict[int, nn.Module] = {}
    handles = [
        module.register_forward_hook(lambda m, _, y: made.update({id(t): m for t in tensors(y)}))
        for module in model.modules()
        if not list(module.children())
    ]
    with torch.no_grad():
        outputs = tensors(call_with(model, example))
    for handle in handles:
        handle.remove()
    found = [made[id(y)] for y in outputs if id(y) in made]
    if any(list(m.parameters()) for m in found):
        return found
    classes = {y.shape[-1] for y in outputs}  # a head may flatten or average behind its layers
    heads = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features in classes]
    return [*found, *(heads or [m for m in model.modules() if isinstance(m, nn.Conv2d)][-1:])]


def _lost(numbers: torch.Tensor, shape: torch.Size) -> dict[int, tuple[int, ...]]:
    """Indices per dimension that occur no more among the numbers of the elements that stayed."""
    if tuple(numbers.shape) == tuple(shape) or not numbers.is_floating_point():
        return {}
    positions = torch.unravel_index(numbers.detach().round().long(), shape)
    found = {}
    for dim, size in enumerate(shape):
        gone = sorted(set(range(size)) - set(positions[dim].unique().tolist()))
        if gone:
            found[dim] = tuple(gone)
    return found


def read(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Rows by network and tool."""
    if not path.exists():
        return {}
    with open(path, newline="", encoding="utf-8") as file:
        return {(row["network"], row["tool"]): row for row in csv.DictReader(file)}


def write(path: Path, rows: Mapping[tuple[str, str], dict[str, Any]]) -> None:
    """All rows, whole file or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows.values())
    os.replace(temporary, path)


def summary(rows: Mapping[tuple[str, str], dict[str, Any]]) -> list[str]:
    """Outcomes per tool and list."""
    lines = []
    for kind, mine in (("zoo", False), ("traits", True)):
        for tool in TOOLS:
            chosen = [row for (name, who), row in rows.items() if who == tool and name.startswith("trait:") is mine]
            counts = {
                outcome: sum(row["outcome"] == outcome for row in chosen)
                for outcome in sorted({r["outcome"] for r in chosen})
            }
            lines.append(f"{kind} {tool}: {counts} of {len(chosen)}")
    return lines


if __name__ == "__main__":
    main()
