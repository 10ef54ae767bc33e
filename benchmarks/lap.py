"""LAP against its rivals at the same evaluations: best validation accuracy within one latency budget, row by row.

    python benchmarks/lap.py model resnet56                    latency model of the network: a quiet machine
    python benchmarks/lap.py criteria resnet56                 accuracy of one plan under every criterion
    python benchmarks/lap.py search resnet56 [--arms lap amc --seeds 0 1 2 --episodes 300]   may run under load
    python benchmarks/lap.py sensitivity resnet56 [--groups 8] measured end to end: a quiet machine
    python benchmarks/lap.py finalists mobilenet-v1 [--count 4]  repairs the best of a search and its start as for use
    python benchmarks/lap.py tune mobilenet-v1 [--epochs 5]    fine-tunes LAP's plan and the dense network alike
    python benchmarks/lap.py measure mobilenet-v1              latency of the tuned network: a quiet machine
    python benchmarks/lap.py table                             what the rows say

Every step goes on where it was stopped; evaluations, agents and latency models are kept in build/lap. All arms search
the same legal widths under the same limit of the same latency model, and judge candidates with the same repair on the
same images of the training file; ``lap`` keeps units by adjusted cosine similarity, ``amc`` by L1 norm and without any
use of the prior, ``random`` draws uniform actions behind the same action wall. ``*-fisher`` are the same searches with
the criterion of ``knapsack``; ``*-obs`` keep the units that ``obs`` keeps (criterion ``fisher_obs``), ``*-measured``
are by the default criterion. Data: ``--data`` (default ../shared/data).
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from secateurs.cost import CostModel
from secateurs.data import Data, Images, accuracy, open_data
from secateurs.importance.dynamic import Dynamics, watch_training
from secateurs.importance.scoring import Scorer, scores
from secateurs.judging.evaluator import CALIBRATED, make_evaluator
from secateurs.latency.model import LatencyModel
from secateurs.latency.store import Store
from secateurs.latency.targets import open_target
from secateurs.measure.bench import Bench as Files
from secateurs.measure.profile import profile
from secateurs.measure.sensitivity import measured_sensitivity
from secateurs.models import Loaded, load
from secateurs.plan import Plan
from secateurs.planning.planner import make_plan
from secateurs.progress import Progress, silent
from secateurs.provenance import versions
from secateurs.recover.finetune import finetune
from secateurs.recover.recipe import Recipe
from secateurs.recover.repair import repair
from secateurs.search.knapsack import Knapsack
from secateurs.search.lap.sensitivity import agreement, modelled, spread_sample
from secateurs.search.lap.settings import LapSettings, Prior
from secateurs.search.lap.strategy import Lap
from secateurs.search.options import legal_widths, right_ends
from secateurs.search.problem import Constraint, Problem
from secateurs.search.rows import FileRows
from secateurs.search.values import curve
from secateurs.structure import Graph, apply, trace

ROWS = Path(__file__).parent / "results" / "lap.csv"
CURVES = Path(__file__).parent / "results" / "lap_curves.csv"
WORK = Path(__file__).parent.parent / "build" / "lap"
TARGET = "onnxruntime-cpu"
VALIDATED = 500
WATCHED, WATCHED_BATCH = 12_800, 64
"""Training images that filters are watched on."""
SHALLOW = 0.75
"""Share of the dense latency at which criteria are compared."""
REPAIRED_ON = 1024
"""Calibration images of the repair before training."""
JUDGED = {"mobilenet-v1": ("least-squares", 24)}
"""How candidates are repaired before they are judged, and on how many images: without batch norm, corrected means alone
leave all at chance. The others: ``statistics`` on as many as the evaluator takes."""
FROM_IMAGES = ("fisher", "taylor", "fisher_obs", "measured")
"""Criteria that read calibration images."""
NO_PRIOR = Prior(state=False, exploration=False, reward=False)
CIFAR, IMAGENETTE = "cifar10_jpeg_{}.parquet", "imagenette224_{}.parquet"
NETWORKS = {
    "resnet56": ("cifar-resnet56", "resnet56_cifar10_jpeg", (CIFAR.format("train"), CIFAR.format("test")), 0.5),
    "resnet20": ("cifar-resnet20", "resnet20_cifar10_jpeg", (CIFAR.format("train"), CIFAR.format("test")), 0.5),
    "mobilenet-v1": (
        "mobilenet-v1",
        "mobilenet_v1_1.0_224",
        (IMAGENETTE.format("train"), IMAGENETTE.format("val")),
        0.994 / 1.64,  # measured, a network of 0.6096 by the model had 0.6125; rows of earlier arms are at 1 / 1.64
    ),
}
"""Name to (built-in, weights, data files, share of the dense latency)."""


@dataclass(frozen=True)
class Arm:
    """One way to search: its criterion and its settings; None: the exact knapsack, one evaluation."""

    criterion: str
    settings: LapSettings | None


ARMS: dict[str, Arm] = {
    "knapsack": Arm("fisher", None),
    "lap": Arm("acs", LapSettings()),
    "lap-fisher": Arm("fisher", LapSettings()),
    "lap-warm": Arm("fisher", LapSettings(warm_start="knapsack")),
    "knapsack-obs": Arm("fisher_obs", None),
    "lap-warm-obs": Arm("fisher_obs", LapSettings(warm_start="knapsack")),
    "knapsack-measured": Arm("measured", None),
    "lap-warm-measured": Arm("measured", LapSettings(warm_start="knapsack")),
    "amc": Arm("l1", LapSettings(prior=NO_PRIOR)),
    "amc-fisher": Arm("fisher", LapSettings(prior=NO_PRIOR)),
    "random": Arm("l1", LapSettings(prior=NO_PRIOR, warmup=10**6)),
    "random-fisher": Arm("fisher", LapSettings(prior=NO_PRIOR, warmup=10**6)),
}


class Talk:
    """Progress as single lines on stderr, one in so many steps."""

    class _Task:
        def __init__(self, name: str, total: int | None) -> None:
            self.name, self.total, self.done, self.last = name, total, 0, time.monotonic()

        def advance(self, steps: int = 1, note: str = "") -> None:
            self.done += steps
            if time.monotonic() - self.last > 20:
                self.last = time.monotonic()
                print(f"{self.name} {self.done}/{self.total} {note}", file=sys.stderr, flush=True)

        def __enter__(self) -> Talk._Task:
            return self

        def __exit__(self, *details: object) -> None:
            pass

    def task(self, name: str, total: int | None = None) -> Talk._Task:
        return Talk._Task(name, total)

    def say(self, message: str) -> None:
        print(message, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Bench:
    """One network with its data, its latency model and its evaluations."""

    name: str
    folder: Path
    progress: Progress = silent

    @cached_property
    def work(self) -> Path:
        """Where everything is kept that a later call goes on from."""
        path = WORK / self.name
        path.mkdir(parents=True, exist_ok=True)
        return path

    @property
    def ratio(self) -> float:
        """The budget as a share of the dense latency."""
        return NETWORKS[self.name][3]

    @cached_property
    def loaded(self) -> Loaded:
        """The dense network."""
        built, weights, _, _ = NETWORKS[self.name]
        return load(built, weights=str(self.folder / f"{weights}.safetensors"))

    @cached_property
    def data(self) -> Data:
        """Its images; validation and calibration are parts of the training file."""
        train, test = NETWORKS[self.name][2]
        classes = "all" if "cifar" in train else "present"
        return open_data(f"parquet:{self.folder / train},{self.folder / test}", self.loaded, seed=0, classes=classes)

    @cached_property
    def graph(self) -> Graph:
        """Its structure."""
        return trace(self.loaded.module, self.loaded.example())

    @cached_property
    def costs(self) -> LatencyModel:
        """Its latency model, measured once."""
        path = self.work / "latency.json"
        if not path.exists():
            path.write_text(profile(self.graph, TARGET, progress=self.progress).to_json())
        return LatencyModel.from_json(path.read_text())

    @property
    def dense_ms(self) -> float:
        """What the latency model says of the dense network."""
        return float(self.costs.predict(self.graph.spec.dense_widths))

    def scores(self, criterion: str) -> dict[str, np.ndarray]:
        """Scores of every group, computed once."""
        path = self.work / f"scores-{criterion}.json"
        if not path.exists():
            found = self._score(criterion)
            path.write_text(json.dumps({name: values.tolist() for name, values in found.items()}))
        return {name: np.array(values) for name, values in json.loads(path.read_text()).items()}

    def _score(self, criterion: str) -> dict[str, np.ndarray]:
        if criterion in ("acs", "acs_self"):
            dynamics = self._dynamics
            return scores(self.graph, dynamics.criterion(acs_mode="self" if criterion == "acs_self" else "pairs"))
        batches = list(self.data.calibration.take(512).batches(64)) if criterion in FROM_IMAGES else None
        return Scorer(self.graph, criterion, batches, task=self.data.task, progress=self.progress).scores

    @cached_property
    def _dynamics(self) -> Dynamics:
        generator = torch.Generator().manual_seed(0)
        images = self.data.train.take(WATCHED)
        batches = images.batches(WATCHED_BATCH, shuffle=True, augment=True, generator=generator, drop_last=True)
        return watch_training(self.graph, batches, self.data.task, progress=self.progress)

    def _loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Cross-entropy over the classes of this data."""
        return self.data.task.loss_of(outputs, (None, targets))

    def problem(self, criterion: str, rows: FileRows) -> Problem:
        """The search problem under the budget, with real evaluations."""
        spec = self.graph.spec
        model = CostModel("ms", self.costs.offset_ms, tuple(self.costs.terms()))
        found = self.scores(criterion)
        how, images = JUDGED.get(self.name, ("statistics", CALIBRATED))
        evaluator = make_evaluator(
            self.graph,
            found,
            self.data.calibration.take(images),
            self.data.validation.take(VALIDATED),
            classes=self.data.classes,
            repair=how,
            rows=rows,
        )
        return Problem(
            spec,
            right_ends(spec, legal_widths(spec), [model]),
            tuple(curve(found[group.name]) for group in spec.groups),
            (Constraint("latency", model, self.ratio * self.dense_ms, TARGET),),
            removable=frozenset(range(len(spec.blocks))),
            evaluator=evaluator,
        )

    def plan(self, chosen: Mapping[str, Any]) -> Plan:
        """The plan of stored widths: the best-scored units of every group stay."""
        spec, removed = self.graph.spec, list(chosen["removed"])
        inside = {spec.groups[g].name for block in spec.blocks if block.name in removed for g in block.groups}
        widths = {g.name: w for g, w in zip(spec.groups, chosen["widths"], strict=True) if g.name not in inside}
        return make_plan(
            self.graph, self.scores(chosen["criterion"]), widths, removed, {"made_by": "benchmarks/lap.py"}
        )

    def heldout(self) -> Images | None:
        """The test file's rows that no training saw, where it says which."""
        import pyarrow.parquet as parquet

        table = parquet.read_table(self.folder / NETWORKS[self.name][2][1])
        if "heldout" not in table.column_names:
            return None
        return self.data.test.select(np.flatnonzero(table["heldout"].to_numpy(zero_copy_only=False)))

    def validation_loss(self, model: torch.nn.Module) -> float:
        """Mean cross-entropy over the validation images and the classes of this data."""
        model.eval()
        images, total = self.data.validation, 0.0
        with torch.inference_mode():
            for inputs, labels in images.batches(100):
                total += float(self._loss(model(inputs).float(), labels)) * len(labels)
        return total / len(images)

    def rows(self) -> FileRows:
        """Evaluations of all arms; the evaluator's identity keeps them apart."""
        return FileRows(self.work / "evaluations.sqlite3")


def search(bench: Bench, arms: Iterable[str], seeds: Iterable[int], episodes: int) -> None:
    """Rows and curves of the arms; finished ones are not searched again."""
    for seed in seeds:
        for name in arms:
            exact = ARMS[name].settings is None
            key = {"part": "search", "network": bench.name, "arm": name, "seed": seed}
            key |= {"episodes": 1 if exact else episodes}
            if not known(ROWS, key) and not (exact and seed):
                write(ROWS, [{**key, **searched(bench, name, seed, int(key["episodes"]))}])


def searched(bench: Bench, name: str, seed: int, episodes: int) -> dict[str, Any]:
    """One search."""
    arm = ARMS[name]
    problem = bench.problem(arm.criterion, bench.rows())
    began, folder = time.monotonic(), bench.work / f"{name}-{seed}-{episodes}"
    if arm.settings is None:
        solution = Knapsack().solve(problem)
        reached = problem.evaluate(solution.widths, solution.removed).accuracy
        points = [(1, reached)]
    else:
        settings = replace(arm.settings, episodes=episodes)
        solution = Lap(settings, folder).solve(problem, seed=seed, progress=bench.progress)
        points = [(row["evaluations"], row["accuracy"]) for row in solution.details["episodes"]]
        reached = solution.details["summary"]["accuracy"]
    best = np.maximum.accumulate([value for _, value in points])
    curve_rows = [
        {
            "network": bench.name,
            "arm": name,
            "seed": seed,
            "episode": number + 1,
            "evaluations": count,
            "accuracy": round(value, 5),
            "best": round(float(best[number]), 5),
        }
        for number, (count, value) in enumerate(points)
    ]
    write(CURVES, curve_rows)
    small = {
        "widths": solution.widths.tolist(),
        "removed": [bench.graph.spec.blocks[block].name for block in sorted(solution.removed)],
        "criterion": arm.criterion,
    }
    (bench.work / f"{name}-{seed}-{episodes}.plan.json").write_text(json.dumps(small))
    evaluator: Any = problem.evaluator
    return {
        "criterion": arm.criterion,
        "evaluations": points[-1][0],
        "best": round(reached, 5),
        "predicted_ratio": round(solution.predicted["latency"] / bench.dense_ms, 4),
        "blocks_removed": len(solution.removed),
        "seconds": round(time.monotonic() - began, 1),
        "evaluations_per_second": round(evaluator.evaluations_per_second, 3),
    }


def criteria(bench: Bench, names: Iterable[str]) -> None:
    """Accuracy of the same widths under every criterion: which filters to keep, without any retraining.

    The widths are those of knapsack on l2_folded at 75 % of the latency, no block removed: deeper cuts leave nothing to
    compare before retraining.
    """
    rows = bench.rows()
    free = bench.problem("l2_folded", rows)
    limit = replace(free.constraints[0], limit=SHALLOW * bench.dense_ms)
    base = Knapsack().solve(replace(free, removable=frozenset(), constraints=(limit,)))
    for name in names:
        key = {"part": "criteria", "network": bench.name, "arm": name, "seed": 0, "episodes": 0}
        if not known(ROWS, key):
            problem = bench.problem(name, rows)
            write(ROWS, [{**key, "criterion": name, "best": round(problem.evaluate(base.widths).accuracy, 5)}])


def sensitivity(bench: Bench, count: int) -> None:
    """Rank correlation of the latency model's sensitivities with end-to-end measured ones, for a sample of groups."""
    key = {"part": "sensitivity", "network": bench.name, "arm": f"{count} groups", "seed": 0, "episodes": 0}
    if known(ROWS, key):
        return
    model = CostModel("ms", bench.costs.offset_ms, tuple(bench.costs.terms()))
    expected = modelled(bench.graph.spec, model)
    groups = spread_sample(expected, count)
    measured = measured_sensitivity(bench.graph, TARGET, groups, store=Store(), progress=bench.progress)
    for index, group in enumerate(groups):
        print(bench.graph.spec.groups[group].name, measured.saved[index].round(4).tolist())
        print(" " * 8, expected.saved[group].round(4).tolist())
    write(ROWS, [{**key, "spearman": round(agreement(expected, measured), 4)}])


def finalists(bench: Bench, arm: str, seed: int, episodes: int, count: int) -> None:
    """The search's best networks and the knapsack's, repaired as for use; the least validation loss becomes the plan.

    A search judges hundreds of candidates by quick repairs on few images; these few are judged by what they will be.
    """
    file = bench.work / f"{arm}-{seed}-{episodes}.plan.json"
    first = bench.work / f"{arm}-{seed}-{episodes}.searched.json"
    if not first.exists():
        first.write_text(file.read_text())
    chosen = json.loads(first.read_text())
    problem, spec = bench.problem(chosen["criterion"], bench.rows()), bench.graph.spec
    settings = replace(ARMS[arm].settings or LapSettings(), episodes=episodes)
    found = Lap(settings, bench.work / f"{arm}-{seed}-{episodes}").solve(problem, seed=seed, progress=bench.progress)
    start = Knapsack().solve(problem)
    points = [(start.widths, start.removed)] + [(point.widths, point.removed) for point in found.candidates[:count]]
    tried = []
    for widths, removed in points:
        names = [spec.blocks[block].name for block in sorted(removed)]
        one = {"widths": widths.tolist(), "removed": names, "criterion": chosen["criterion"]}
        plan = bench.plan(one)
        small = apply(bench.loaded.module, plan, bench.loaded.example(), check=False)
        repair(bench.loaded.module, small, plan, bench.data, images=REPAIRED_ON, progress=bench.progress)
        loss = bench.validation_loss(small)
        reached = accuracy(small, bench.data.validation, classes=bench.data.classes)
        name = "knapsack" if not tried else f"number {len(tried)}"
        print(name, one["widths"], f"validation accuracy {reached:.2%}, loss {loss:.4f}", flush=True)
        tried.append((loss, name, reached, one))
    loss, name, reached, one = min(tried, key=lambda entry: entry[0])
    file.write_text(json.dumps(one))
    key = {"part": "finalists", "network": bench.name, "arm": arm, "seed": seed, "episodes": episodes}
    if not known(ROWS, key):
        ratio = round(float(bench.costs.predict(np.array(one["widths"]))) / bench.dense_ms, 4)
        row = {"criterion": chosen["criterion"], "evaluations": len(tried), "best": round(reached, 5)}
        write(ROWS, [{**key, **row, "predicted_ratio": ratio}])


def tune(bench: Bench, arm: str, seed: int, episodes: int, epochs: int) -> None:
    """The arm's plan and the dense network, both fine-tuned for the same epochs, on the whole test file.

    Rows: accuracy on all its rows and, where the file has them, on its ``heldout`` rows; the untouched network too.
    """
    chosen = json.loads((bench.work / f"{arm}-{seed}-{episodes}.plan.json").read_text())
    key = {"part": "tune", "network": bench.name, "seed": seed, "episodes": episodes}
    plan = bench.plan(chosen)
    plan.save(bench.work / f"{arm}-{seed}-{episodes}.full.json")
    recipe = Recipe(epochs=epochs, seed=seed, batch=32)  # few images: steps are worth more than large batches
    dense = bench.loaded.module
    for name, rounds in (("untouched", 0), ("dense", epochs), (arm, epochs)):
        if known(ROWS, {**key, "arm": name, "epochs": rounds}):
            continue
        student = copy.deepcopy(dense) if name != arm else apply(dense, plan, bench.loaded.example(), check=False)
        if name == arm:
            repair(dense, student, plan, bench.data, images=REPAIRED_ON, progress=bench.progress)
        if rounds:
            folder = bench.work / f"tune-{name}-{seed}-{episodes}-{epochs}"
            finetune(
                student,
                bench.data,
                recipe,
                teacher=dense,
                checkpoint_dir=folder,
                resume=True,
                progress=bench.progress,
            )
            save_file(student.state_dict(), folder / "final.safetensors")
        everything = accuracy(student, bench.data.test, classes=bench.data.classes, progress=bench.progress)
        row = {**key, "arm": name, "epochs": rounds, "accuracy": round(everything, 5)}
        held = bench.heldout()
        if held is not None:
            row["accuracy_heldout"] = round(accuracy(student, held, classes=bench.data.classes), 5)
        write(ROWS, [row])


def measure(bench: Bench, arm: str, seed: int, episodes: int) -> None:
    """Latency of the arm's plan beside dense, exported for real."""
    key = {"part": "measure", "network": bench.name, "arm": arm, "seed": seed, "episodes": episodes}
    if known(ROWS, key):
        return
    chosen = json.loads((bench.work / f"{arm}-{seed}-{episodes}.plan.json").read_text())
    example = bench.loaded.example()
    small = apply(bench.loaded.module, bench.plan(chosen), example, check=False)
    files = Files(open_target(TARGET), bench.work, example, progress=bench.progress)
    files.export(bench.loaded.module, files.dense)
    found = files.export_and_compare(small)
    write(ROWS, [{**key, "ratio": round(found.ratio or 0.0, 4), "ratio_upper": round(found.ratio_upper or 0.0, 4)}])


def table() -> None:
    """Mean best accuracy of every arm at several numbers of evaluations, and the share that LAP needs."""
    with CURVES.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    runs: dict[tuple[str, str, str], list[tuple[int, float]]] = {}
    for row in rows:
        runs.setdefault((row["network"], row["arm"], row["seed"]), []).append(
            (int(row["evaluations"]), float(row["best"]))
        )
    points = (1, 10, 25, 50, 75, 100, 150, 200, 250, 300)
    for network in dict.fromkeys(network for network, _, _ in runs):
        print(network, "best validation accuracy (mean over seeds) after so many evaluations")
        print(f"{'arm':16} {'seeds':>5} " + " ".join(f"{point:>6}" for point in points))
        for arm in dict.fromkeys(name for of, name, _ in runs if of == network):
            found = [points_of for (of, name, _), points_of in runs.items() if (of, name) == (network, arm)]
            print(f"{arm:16} {len(found):>5} " + " ".join(_mean_at(found, point) for point in points))
        for ours, theirs in (("lap", "amc"), ("lap-fisher", "amc-fisher")):
            _needed(runs, network, ours, theirs)


def _mean_at(found: list[list[tuple[int, float]]], point: int) -> str:
    """Mean best accuracy after ``point`` evaluations; blank where a run was shorter and has more than one point."""
    if any(points[-1][0] < point and len(points) > 1 for points in found):
        return " " * 6
    return f"{np.mean([max(best for count, best in points if count <= point) for points in found]):6.3f}"


def _needed(runs: Mapping[tuple[str, str, str], list[tuple[int, float]]], network: str, ours: str, theirs: str) -> None:
    """The share of the rival's evaluations after which LAP is as good as the rival in the end, per seed."""
    for (of, name, seed), points in runs.items():
        rival = runs.get((network, theirs, seed))
        if of == network and name == ours and rival is not None:
            goal = rival[-1][1]
            reached = next((count for count, best in points if best >= goal), None)
            share = "never" if reached is None else f"{reached / rival[-1][0]:.0%}"
            print(
                f"{ours} reaches the final best of {theirs} ({goal:.3f}, seed {seed}) after {share} of its evaluations"
            )


def known(path: Path, key: Mapping[str, Any]) -> bool:
    """Whether the file has a row with these entries."""
    if not path.exists():
        return False
    with path.open(newline="", encoding="utf-8") as file:
        return any(all(row.get(name) == str(value) for name, value in key.items()) for row in csv.DictReader(file))


FIELDS = {
    ROWS: [
        "part",
        "network",
        "arm",
        "seed",
        "episodes",
        "criterion",
        "evaluations",
        "best",
        "predicted_ratio",
        "blocks_removed",
        "seconds",
        "evaluations_per_second",
        "accuracy",
        "accuracy_heldout",
        "epochs",
        "ratio",
        "ratio_upper",
        "spearman",
        "versions",
    ],
    CURVES: ["network", "arm", "seed", "episode", "evaluations", "accuracy", "best"],
}


def write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append rows, with the versions that they depend on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = not path.exists()
    more = {"versions": json.dumps(versions())} if path == ROWS else {}
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS[path], restval="")
        if fresh:
            writer.writeheader()
        for row in rows:
            writer.writerow({**row, **more})
            print(row if path == ROWS else "", end="\n" if path == ROWS else "", flush=True)


STEPS = ("model", "criteria", "search", "sensitivity", "finalists", "tune", "measure", "table")


def main() -> None:
    """Run one step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("network", choices=list(NETWORKS), nargs="?", default="resnet56")
    parser.add_argument("--data", type=Path, default=Path(__file__).parent.parent.parent / "shared" / "data")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--episodes", type=int, default=300)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--count", type=int, default=4, help="finalists beside the start")
    parser.add_argument("--groups", type=int, default=8, help="groups that are measured end to end")
    parser.add_argument("--criteria", nargs="+", default=["l1", "l2_folded", "splamp", "fisher", "acs", "acs_self"])
    given = parser.parse_args()
    bench = Bench(given.network, given.data, Talk())
    steps: dict[str, Callable[[], None]] = {
        "model": lambda: print(bench.costs.error),
        "criteria": lambda: criteria(bench, given.criteria),
        "search": lambda: search(bench, given.arms, given.seeds, given.episodes),
        "sensitivity": lambda: sensitivity(bench, given.groups),
        "finalists": lambda: finalists(bench, given.arms[0], given.seeds[0], given.episodes, given.count),
        "tune": lambda: tune(bench, given.arms[0], given.seeds[0], given.episodes, given.epochs),
        "measure": lambda: measure(bench, given.arms[0], given.seeds[0], given.episodes),
        "table": table,
    }
    steps[given.step]()


if __name__ == "__main__":
    main()
