"""Whether latency budgets are met when measured: three networks, three runtimes, 80, 60 and 40 % of dense.

    python benchmarks/latency_budgets.py                    # 27 cells, about 20 minutes with the tables in the store
    python benchmarks/latency_budgets.py --networks resnet18 --targets onnxruntime-cpu

Each cell plans with the closed loop, without training, exports the plan for real, and measures the exported file
beside the dense one once more when the loop is done. ``met``: the upper 95 % bound of the median ratio is within the
budget; ``used``: measured ratio / budget. A budget that no plan meets counts as unreachable only with the measured
ratio of the fastest legal network, blocks removed (``fastest_ratio``). One row per cell goes to
``benchmarks/results/latency_budgets.csv`` as soon as it is known; rows that are there are skipped (``--again``
measures them anew). Latency tables come from the store, the same that ``latency_prediction.py`` fills.
"""

from __future__ import annotations

import argparse
import csv
import platform
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from result_rows import append

import secateurs
from secateurs.errors import InfeasibleBudgetError
from secateurs.importance.scoring import Scorer
from secateurs.latency.store import Store
from secateurs.latency.targets import open_target
from secateurs.latency.timing import compare
from secateurs.measure.bench import FINAL, Bench
from secateurs.measure.profile import profile
from secateurs.models import load
from secateurs.plan import Measurement
from secateurs.planning.channels import Channels
from secateurs.planning.closed_loop import Attempt, Limits, close, goal_for
from secateurs.planning.planner import Choice, Planner
from secateurs.progress import silent
from secateurs.provenance import target_label
from secateurs.structure import apply, trace

RESULTS = Path(__file__).parent / "results" / "latency_budgets.csv"
NETWORKS, TARGETS = ("cifar-resnet56", "resnet18", "mobilenet-v1"), ("onnxruntime-cpu", "openvino-cpu", "torch-cpu")
BUDGETS = (0.8, 0.6, 0.4)
FIELDS = (
    "network", "target", "device", "runtime", "precision", "threads", "criterion", "budget_ratio", "reachable", "met",
    "ratio", "ratio_upper", "used", "predicted_ratio", "blocks_removed", "plans_measured", "dense_ms", "fastest_ratio",
    "seconds", "secateurs", "python", "date",
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One network on one target, ready to plan."""

    planner: Planner
    bench: Bench
    module: torch.nn.Module
    store: Store

    def small(self, choice: Choice) -> torch.nn.Module:
        """The pruned network."""
        return apply(self.module, self.planner.plan(choice), self.bench.example, check=False)

    def quickly(self, choice: Choice) -> Attempt[Choice]:
        """Measured as in the closed loop; known candidates are not measured again."""
        name = f"{self.planner.graph.spec.fingerprint}/{choice.key}"
        return Attempt(choice, self.bench.measure(self.small(choice), self.store, name))

    def thoroughly(self, choice: Choice) -> dict[str, Measurement]:
        """Measured for the row, from a fresh export."""
        deployed = self.bench.dense.with_name(f"pruned.{self.bench.target.artifact}")
        self.bench.export(self.small(choice), deployed)
        files = {"dense": self.bench.dense, "pruned": deployed}
        return compare(self.bench.target, files, threads=self.bench.threads, protocol=FINAL)


def run(cell: Cell, limit: float) -> dict[str, object]:
    """The figures of one budget."""
    start, reachable, fastest = time.monotonic(), True, None
    attempts: list[Attempt[Choice]] = []

    def solve(limits: Limits) -> Choice:
        return cell.planner.solve(limits)

    try:
        accepted, attempts = close([goal_for("latency", limit, 1.0)], solve, cell.quickly)
        choice = accepted.choice
    except InfeasibleBudgetError as error:
        print(f"  {error}", flush=True)
        choice = cell.planner.least("latency")
    measured = cell.thoroughly(choice)
    dense, pruned = measured["dense"], measured["pruned"]
    assert pruned.ratio is not None
    assert pruned.ratio_upper is not None
    if not attempts:
        fastest, reachable = pruned.ratio, pruned.ratio <= limit
    return {
        "budget_ratio": limit,
        "reachable": reachable,
        "met": pruned.ratio_upper <= limit,
        "ratio": f"{pruned.ratio:.4f}",
        "ratio_upper": f"{pruned.ratio_upper:.4f}",
        "used": f"{pruned.ratio / limit:.4f}",
        "predicted_ratio": f"{choice.predicted['latency']:.4f}",
        "blocks_removed": len(choice.solution.removed),
        "plans_measured": len(attempts),
        "dense_ms": f"{dense.latency_ms:.4f}",
        "fastest_ratio": "" if fastest is None else f"{fastest:.4f}",
        "seconds": f"{time.monotonic() - start:.0f}",
    }


def done(path: Path) -> set[tuple[str, str, float]]:
    """Network, target and budget of the rows that are there."""
    if not path.exists():
        return set()
    with open(path, newline="", encoding="utf-8") as file:
        return {(entry["network"], entry["target"], float(entry["budget_ratio"])) for entry in csv.DictReader(file)}


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--targets", nargs="+", default=TARGETS)
    parser.add_argument("--budgets", nargs="+", type=float, default=BUDGETS, help="shares of the dense latency")
    parser.add_argument("--criterion", default="splamp")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--store", type=Path, default=None)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--again", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    known = set() if options.again else done(options.output)
    for name in options.networks:
        loaded = load(name)
        graph = trace(loaded.module, loaded.example())
        for text in options.targets:
            missing = [limit for limit in options.budgets if (name, text, limit) not in known]
            if not missing:
                continue
            target = open_target(text)
            with Store(options.store) as store, tempfile.TemporaryDirectory() as folder:
                costs = profile(graph, target, threads=options.threads, store=store, seed=options.seed)
                planner = Planner(
                    Channels(graph, costs),
                    Scorer(graph, options.criterion, seed=options.seed),
                    target=target_label(costs.target),
                )
                bench = Bench.inside(Path(folder), target, loaded.example(), options.threads, 1, options.seed, silent)
                bench.export(loaded.module, bench.dense)
                for limit in missing:
                    entry = run(Cell(planner, bench, loaded.module, store), limit)
                    fingerprint = target.fingerprint(options.threads)
                    facts = {key: fingerprint[key] for key in ("target", "device", "runtime", "precision", "threads")}
                    entry |= {**facts, "network": name, "criterion": options.criterion}
                    entry |= {"secateurs": secateurs.__version__, "python": platform.python_version()}
                    append({**entry, "date": time.strftime("%Y-%m-%d")}, options.output, FIELDS)
                    print(f"{name} {text} {limit:.0%}: {entry['ratio']} of dense, met {entry['met']}", flush=True)


if __name__ == "__main__":
    main()
