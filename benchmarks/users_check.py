"""The check that every user gets beside the independent judge: what it lets through and what it refuses.

Three families of networks are cut at random: the real architectures of the support matrix, the networks of one trait
each, and random ones. Each cut goes unchecked before the judge, and as it is through the check that ``apply`` runs.
Then index lists are permuted, so that only the outputs can tell, and both are asked again. A row says how often the
cut was right or wrong by the judge and passed or refused by the check; *wrong and passed* must be 0.
"""

from __future__ import annotations

import argparse
import collections
import csv
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateurs.errors import SecateursError
from secateurs.structure import apply, check_plan, trace
from secateurs.testing.structure import (
    TOLERANCE,
    as_call,
    blind,
    call_with,
    gap,
    mutations,
    random_cut,
    random_example,
    redrawn,
    tensors,
)
from secateurs.testing.structure_judge import dense_ignoring
from secateurs.testing.structure_networks import SIZE, random_network, seeded

ROOT = Path(__file__).resolve().parent.parent
ROWS = ROOT / "benchmarks" / "results" / "users_check.csv"
COLUMNS = (
    "code", "family", "network", "seed", "kind", "rebuilt", "check_error", "judge_error", "damaged", "damaged_wrong",
    "damaged_passed", "seconds", "reason", "torch",
)  # fmt: skip
FAMILIES = ("traits", "zoo", "random")
DAMAGED = 2
"""Plans with a permuted index list per network."""


def main() -> None:
    """Run what has no row yet; rows are appended one by one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", choices=[*FAMILIES, []], help="default: all")
    parser.add_argument("--first", type=int, default=0, help="first seed of the random networks")
    parser.add_argument("--count", type=int, default=2000, help="how many random networks")
    parser.add_argument("--damaged", type=int, default=DAMAGED, help="plans with a permuted list per network")
    parser.add_argument("--code", default=revision(), help="what is measured (default: the commit)")
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--one", nargs=2, metavar=("FAMILY", "NETWORK"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if options.one:
        family, name = options.one
        append(
            options.rows,
            {"code": options.code, "family": family, "network": name, **judged(family, name, options.damaged)},
        )
        return
    for family in options.families or FAMILIES:
        for name in networks(family, options.first, options.count):
            if (options.code, family, name) in known(options.rows):
                continue
            row = isolated(family, name, options) if family == "zoo" else judged(family, name, options.damaged)
            if row is not None:
                append(options.rows, {"code": options.code, "family": family, "network": name, **row})
    for line in figures(options.rows):
        print(line)
    if options.rows == ROWS:
        from support_matrix import write_page

        write_page(ROOT)


def networks(family: str, first: int, count: int) -> Iterator[str]:
    """Names of a family."""
    if family == "random":
        yield from map(str, range(first, first + count))
    elif family == "zoo":
        from secateurs.testing.structure_zoo import ZOO

        yield from ZOO
    else:
        yield from traits()


def traits() -> dict[str, Any]:
    """The networks of one trait each that the tests have."""
    sys.path.insert(0, str(ROOT / "tests" / "structure"))
    from traits import load_all

    return load_all()  # type: ignore[no-any-return]


def built(family: str, name: str) -> tuple[nn.Module, Any]:
    """A network in evaluation mode and its example."""
    torch.manual_seed(int(name) if family == "random" else 0)
    if family == "random":
        return random_network(seeded(int(name))).eval(), torch.randn(2, 3, SIZE, SIZE)
    if family == "zoo":
        from secateurs.testing.structure_zoo import build

        entry = build(name)
        return entry.model, entry.example
    trait = traits()[name]
    return trait.build().eval(), trait.example()


def isolated(family: str, name: str, options: argparse.Namespace) -> dict[str, Any] | None:
    """A large network in a process of its own, which writes its row; a row only where that process failed."""
    command = [sys.executable, __file__, "--one", family, name, "--code", options.code]
    command += ["--rows", str(options.rows), "--damaged", str(options.damaged)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    except subprocess.TimeoutExpired:
        return {"kind": "timeout"}
    return {"kind": "crash", "reason": done.stderr.strip()[-200:]} if done.returncode else None


def judged(family: str, name: str, lists: int) -> dict[str, Any]:
    """The row of one network, with so many damaged plans of it."""
    started = time.process_time()
    seed = int(name) if family == "random" else 0
    row: dict[str, Any] = {"seed": seed, "torch": torch.__version__}
    try:
        model, example = built(family, name)
        graph = trace(model, example)
        if not graph.groups:
            return {**row, "kind": "pinned"}
        plan = graph.plan(random_cut(graph, 0.4, seed))
        row["rebuilt"] = plan.rebuild is not None
        row["check_error"], row["reason"] = checked(model, plan, example, graph)
        row["judge_error"] = unchecked(model, plan, example, seed)
        row["kind"] = kind(row["judge_error"], row["reason"])
        row.update(damage(model, plan, example, graph, lists))
    except SecateursError as error:
        row.update(kind="refused", reason=str(error)[:200])
    except Exception as error:  # what a user of that code would have got
        row.update(kind="traceback", reason=f"{type(error).__name__}: {error}"[:200])
    row["seconds"] = round(time.process_time() - started, 2)
    return row


def kind(judge_error: float, refusal: str) -> str:
    """``right and passed`` and so on."""
    return f"{'right' if judge_error <= TOLERANCE else 'wrong'} and {'refused' if refusal else 'passed'}"


def checked(model: nn.Module, plan: Any, example: Any, graph: Any) -> tuple[float, str]:
    """The check's figure, and its reason where it refuses."""
    try:
        return check_plan(model, plan, example, graph=graph), ""
    except SecateursError as error:
        return float("inf"), str(error)[:200]


def unchecked(model: nn.Module, plan: Any, example: Any, seed: int) -> float:
    """The judge's figure of the cut that nobody checked."""
    dense, inputs = redrawn(model, seed), random_example(example, seed)
    small = apply(dense, plan, inputs, check=False).eval()
    args, kwargs = as_call(inputs)
    theirs = dense_ignoring(dense, plan, args, kwargs)
    try:
        with torch.no_grad():
            return gap(tensors(call_with(small, inputs)), theirs)
    except Exception:
        return float("inf")


def damage(model: nn.Module, plan: Any, example: Any, graph: Any, lists: int) -> dict[str, int]:
    """Damaged plans, how many of them the judge calls wrong, and how many of these the check lets through."""
    tried = wrong = passed = 0
    with blind():
        for _, _, damaged in mutations(plan, lists):
            tried += 1
            try:
                right = unchecked(model, damaged, example, 0) <= TOLERANCE
            except SecateursError:  # it cannot even be built
                right = False
            if not right:
                wrong += 1
                passed += not checked(model, damaged, example, graph)[1]
    return {"damaged": tried, "damaged_wrong": wrong, "damaged_passed": passed}


def revision() -> str:
    """The commit that is measured."""
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    return done.stdout.strip() or "unknown"


def read(path: Path) -> list[dict[str, str]]:
    """Every row."""
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def known(path: Path) -> set[tuple[str, str, str]]:
    """What has a row."""
    return {(row["code"], row["family"], row["network"]) for row in read(path)}


def append(path: Path, row: dict[str, Any]) -> None:
    """One row more."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = not path.exists()
    for name in ("check_error", "judge_error"):
        if isinstance(row.get(name), float):
            row[name] = f"{row[name]:.1e}"
    with open(path, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if fresh:
            writer.writeheader()
        writer.writerow(row)
    if row["kind"] != "right and passed":
        print(*(row.get(name, "") for name in ("code", "family", "network", "kind", "reason")), flush=True)


def figures(path: Path) -> list[str]:
    """Counts by code and family."""
    lines = []
    rows = read(path)
    for code in dict.fromkeys(row["code"] for row in rows):
        for family in FAMILIES:
            mine = [row for row in rows if (row["code"], row["family"]) == (code, family)]
            if mine:
                counts = dict(collections.Counter(row["kind"] for row in mine))
                wrong = sum(int(row["damaged_wrong"] or 0) for row in mine)
                passed = sum(int(row["damaged_passed"] or 0) for row in mine)
                lines.append(
                    f"{code} {family} {len(mine)}: {counts}; wrong by damage {wrong}, of these passed {passed}"
                )
    return lines


if __name__ == "__main__":
    main()
