"""How right and how fast the exact solver is, against enumeration and against its rivals.

    python benchmarks/solver.py

Three parts, a row per line of ``benchmarks/results/solver.csv``: equality with brute force on random small problems
(summed axes, removable blocks, one and two budgets, linear, staircase and rough tables); value against the
NetAdapt-style greedy, the HALP-style dynamic program and one shared ratio on random staircase problems; seconds to the
wanted gap on problems of real size, by label lists (``auto``) and by HiGHS alone (``milp``). Nothing is timed before
the first two parts pass. Takes some minutes on one core; needs no GPU and no data.
"""

from __future__ import annotations

import argparse
import csv
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import scipy

import secateurs
from secateurs.cost import CostModel, CostTerm
from secateurs.errors import InfeasibleBudgetError
from secateurs.search.exact import Effort, solve_exact
from secateurs.search.greedy import Greedy
from secateurs.search.halp import Halp
from secateurs.search.problem import Constraint, Problem, Strategy
from secateurs.search.uniform import Uniform
from secateurs.testing.problems import brute_force, chain_like, random_problem, resnet50_like, staircase_problem

RESULTS = Path(__file__).parent / "results" / "solver.csv"
FIELDS = (
    "part", "problem", "method", "problems", "wanted_gap", "seconds", "seconds_worst", "proven_gap", "agree",
    "value_mean", "value_worst", "optimal_share", "device", "python", "scipy", "secateurs", "date",
)  # fmt: skip
KINDS = ("linear", "staircase", "rough")


def against_enumeration(count: int) -> dict[str, object]:
    """How many of ``count`` small problems the solver gets exactly right."""
    right = 0
    for seed in range(count):
        problem = random_problem(
            seed,
            kind=KINDS[seed % 3],
            groups=3 + seed % 3,
            constraints=1 + seed % 2,
            blocks=seed % 4 != 3,
            sums=seed % 5 != 4,
            tightness=(0.0, 0.2, 0.5, 0.8)[seed // 2 % 4],
        )
        best = brute_force(problem)
        try:
            found = solve_exact(problem, Effort(gap=1e-9))
            right += best is not None and abs(found.value - best) <= 1e-9 * max(1.0, abs(best))
        except InfeasibleBudgetError:
            right += best is None
    return {"part": "enumeration", "problem": "random small", "method": "auto", "problems": count, "agree": right}


def against_rivals(count: int) -> list[dict[str, object]]:
    """Value of every rival as a share of the exact one's, on ``count`` staircase problems."""
    rivals: list[Strategy] = [Greedy(), Halp(), Uniform()]
    shares: dict[str, list[float]] = {rival.name: [] for rival in rivals}
    for seed in range(count):
        problem = staircase_problem(seed)
        exact = solve_exact(problem, Effort(gap=1e-9)).value
        for rival in rivals:
            try:
                shares[rival.name].append(rival.solve(problem).value / exact)
            except InfeasibleBudgetError:
                shares[rival.name].append(0.0)
    return [
        {
            "part": "rivals",
            "problem": "random staircase",
            "method": name,
            "problems": count,
            "agree": sum(share <= 1 + 1e-9 for share in found),
            "value_mean": f"{np.mean(found):.4f}",
            "value_worst": f"{min(found):.4f}",
            "optimal_share": f"{np.mean(np.array(found) > 1 - 1e-9):.3f}",
        }
        for name, found in shares.items()
    ]


def with_memory(problem: Problem, ratio: float) -> Problem:
    """The problem with a second budget: bytes of weights."""
    layers = problem.spec.layers
    terms = tuple(
        CostTerm(layer.name, layer.inputs, layer.outputs, _bytes(layer.kernel_elements), layer.blocks)
        for layer in layers
    )
    model = CostModel("bytes", 0.0, terms)
    limit = ratio * float(model.evaluate(problem.spec.dense_widths))
    return replace(problem, constraints=(*problem.constraints, Constraint("memory", model, limit)))


def _bytes(elements: int) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    def cost(inputs: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        return 4.0 * elements * inputs * outputs

    return cost


def speed(repeats: int) -> list[dict[str, object]]:
    """Seconds on problems of real size; worst and median over budgets and repeats."""
    ratios = (0.35, 0.5, 0.75)
    cases: list[tuple[str, Callable[[float], Problem], tuple[str, ...]]] = [
        ("resnet50, 37 groups x 32 widths, 52 pairs", lambda r: resnet50_like(latency_ratio=r), ("auto", "milp")),
        ("the same, 12 blocks removable", lambda r: resnet50_like(latency_ratio=r, removable=True), ("auto", "milp")),
        ("the same, 64 widths", lambda r: resnet50_like(latency_ratio=r, most=64), ("auto",)),
        ("the same, latency and memory", lambda r: with_memory(resnet50_like(latency_ratio=r), r), ("auto",)),
        ("chain with shortcuts, 60 groups x 32 widths", lambda r: chain_like(60, latency_ratio=r), ("auto", "milp")),
    ]
    rows = []
    for name, make, methods in cases:
        for method in methods:
            for gap in (1e-3, 1e-5):
                rows.append(_timed(name, [make(r) for r in ratios], Effort(gap, 60.0, method=method), repeats))
                print(rows[-1], file=sys.stderr, flush=True)
    return rows


def _timed(name: str, problems: list[Problem], effort: Effort, repeats: int) -> dict[str, object]:
    seconds, gaps = [], []
    for problem in problems:
        for _ in range(repeats):
            fresh = replace(problem)
            start = time.perf_counter()
            found = solve_exact(fresh, effort)
            seconds.append(time.perf_counter() - start)
            gaps.append(float("inf") if found.gap is None else found.gap)
            if not bool(problem.fits(found.widths, found.removed)):
                raise SystemExit(f"{name}: the plan is over budget")
    return {
        "part": "speed",
        "problem": name,
        "method": effort.method,
        "problems": len(problems),
        "wanted_gap": f"{effort.gap:g}",
        "seconds": f"{statistics.median(seconds):.2f}",
        "seconds_worst": f"{max(seconds):.2f}",
        "proven_gap": f"{max(gaps):.1e}",
    }


def device() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    """Run all parts and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", type=int, default=400, help="random small problems (default 400)")
    parser.add_argument("--staircases", type=int, default=500, help="random staircase problems (default 500)")
    parser.add_argument("--repeats", type=int, default=3, help="timed repeats (default 3)")
    given = parser.parse_args()
    rows = [against_enumeration(given.small), *against_rivals(given.staircases)]
    for row in rows:
        print(row, file=sys.stderr, flush=True)
        if row["agree"] != row["problems"]:
            raise SystemExit("The solver is wrong, so nothing is timed.")
    rows += speed(given.repeats)
    common = {
        "device": device(),
        "python": platform.python_version(),
        "scipy": scipy.__version__,
        "secateurs": secateurs.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with RESULTS.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS, restval="")
        writer.writeheader()
        writer.writerows({**row, **common} for row in rows)


if __name__ == "__main__":
    main()
