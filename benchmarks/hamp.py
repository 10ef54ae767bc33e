"""Hypervolume against real evaluations: random search, NSGA-II, HAMP and its parts, and the knapsack curve.

    python benchmarks/hamp.py prepare --weights resnet56_cifar10_jpeg.safetensors --data parquet:TRAIN,TEST
    python benchmarks/hamp.py search  --weights … --data … [--seeds 0 1 2] [--methods hamp nsga2 …]
    python benchmarks/hamp.py measure --weights … --data …
    python benchmarks/hamp.py workers --weights … --data …
    python benchmarks/hamp.py summary

``prepare`` profiles the network on ONNX Runtime and scores its units, once: latencies (as tables over legal widths) and
scores are frozen in the working folder, so that every search of every day sees the same problem. ``search`` evaluates
networks for real (500 validation images after batch-norm re-estimation); accuracies are kept by network across methods
and seeds, and a finished (evaluations, seed, method) is a row of results/hamp.csv, so it can be stopped at any time;
``--evaluations 300 600`` takes everything to 300 first and goes on to 600 from there. Nothing is timed in it, so it may
run on a busy machine. ``measure`` measures all fronts on the target: a quiet machine is needed, as for ``workers``,
which compares crews on the random searches' networks. No search starts from what another one stored.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import platform
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from secateurs.cost import CostModel, CostTerm
from secateurs.data import open_data
from secateurs.errors import InfeasibleBudgetError
from secateurs.importance.scoring import Scorer
from secateurs.models import load
from secateurs.planning.channels import Channels
from secateurs.planning.planner import Planner
from secateurs.progress import silent
from secateurs.provenance import versions
from secateurs.search.exact import solve_exact
from secateurs.search.hamp.archive import Archive, Box
from secateurs.search.hamp.encoding import Encoding
from secateurs.search.hamp.evaluating import Judging, evaluate_all
from secateurs.search.hamp.operators import random_genomes
from secateurs.search.hamp.search import HampSettings, Search
from secateurs.search.hamp.start import make_start
from secateurs.search.options import reachable_lengths
from secateurs.search.problem import Constraint, Problem
from secateurs.search.rows import FileRows
from secateurs.structure import trace

RESULTS = Path(__file__).parent / "results" / "hamp.csv"
MEASURED = Path(__file__).parent / "results" / "hamp_measured.csv"
WORKERS = Path(__file__).parent / "results" / "hamp_workers.csv"
TURNS_OF_WORKERS, NETWORKS_PER_TURN = 6, 48
MODEL, CRITERION, TARGET = "cifar-resnet56", "fisher", "onnxruntime-cpu"
IMAGES, POPULATION, STEP = 500, 24, 50
CURVE = 40
"""Budgets of the knapsack curve."""


@dataclass(frozen=True)
class Grid:
    """A cost function read from a table over the legal lengths of both sides."""

    inputs: np.ndarray
    outputs: np.ndarray
    table: np.ndarray

    def __call__(self, inputs: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        rows, columns = np.broadcast_arrays(np.asarray(inputs), np.asarray(outputs))
        return self.table[np.searchsorted(self.inputs, rows), np.searchsorted(self.outputs, columns)]


def open_all(arguments: argparse.Namespace) -> tuple[Any, Any, Any]:
    """Network, data and graph."""
    loaded = load(MODEL, weights=arguments.weights)
    return loaded, open_data(arguments.data, loaded), trace(loaded.module, loaded.example())


def prepare(arguments: argparse.Namespace) -> None:
    """Freezes latency tables, legal widths and scores."""
    from secateurs.latency.store import Store
    from secateurs.measure.profile import profile

    _, data, graph = open_all(arguments)
    costs = profile(graph, TARGET, threads=1, store=Store(arguments.store))
    batches = data.calibration.take(512).batches(64)
    planner = Planner(Channels(graph, costs), Scorer(graph, CRITERION, batches))
    problem = planner.problem({"latency": 1.0})
    arrays = {f"options{g}": np.asarray(options) for g, options in enumerate(problem.options)}
    arrays |= {f"scores{g}": planner.scores[group.name] for g, group in enumerate(graph.groups)}
    model = problem.constraints[0].model
    for number, term in enumerate(model.terms):
        inputs, outputs = (reachable_lengths(axis, problem.options) for axis in (term.inputs, term.outputs))
        grid = np.broadcast_to(term.cost(inputs[:, None], outputs[None, :]), (len(inputs), len(outputs)))
        arrays |= {f"in{number}": inputs, f"out{number}": outputs, f"table{number}": np.asarray(grid, np.float64)}
    facts = {
        "offset": model.offset,
        "terms": [
            {"name": t.name, "inputs": t.inputs is not None, "outputs": t.outputs is not None, "blocks": t.blocks}
            for t in model.terms
        ],
        "axes": [[_axis(t.inputs), _axis(t.outputs)] for t in model.terms],
        "dense_ms": planner.dense_costs["latency"],
        "latency_error": costs.error.mean_abs,
        "latency_spearman": costs.error.spearman,
        "device": {key: str(value) for key, value in costs.target.items()},
        "fingerprint": graph.spec.fingerprint,
        "removable": sorted(problem.removable),
    }
    arguments.folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(arguments.folder / "problem.npz", facts=np.array(json.dumps(facts)), **arrays)
    print(f"{arguments.folder / 'problem.npz'}: dense {facts['dense_ms']:.3f} ms, error {facts['latency_error']:.1%}")


def _axis(axis: Any) -> Any:
    return None if axis is None else [axis.fixed, [list(part) for part in axis.parts]]


def open_problem(arguments: argparse.Namespace) -> tuple[Problem, dict[str, Any], Any]:
    """The frozen problem with its evaluator and stored rows, the facts, and what networks are made from."""
    from secateurs.judging.evaluator import make_evaluator
    from secateurs.network import AxisSpec
    from secateurs.search.values import curve

    loaded, data, graph = open_all(arguments)
    held = np.load(arguments.folder / "problem.npz")
    facts = json.loads(str(held["facts"]))
    if facts["fingerprint"] != graph.spec.fingerprint:
        raise SystemExit("The frozen problem belongs to another network. Run 'prepare' again.")
    terms = []
    for number, (term, axes) in enumerate(zip(facts["terms"], facts["axes"], strict=True)):
        sides = [None if a is None else AxisSpec(a[0], tuple((int(g), int(n)) for g, n in a[1])) for a in axes]
        grid = Grid(held[f"in{number}"], held[f"out{number}"], held[f"table{number}"])
        terms.append(CostTerm(term["name"], sides[0], sides[1], grid, tuple(term["blocks"])))
    scores = {group.name: held[f"scores{g}"] for g, group in enumerate(graph.groups)}
    evaluator = make_evaluator(graph, scores, data.calibration, data.validation.take(IMAGES), task=data.task)
    problem = Problem(
        graph.spec,
        tuple(held[f"options{g}"] for g in range(len(graph.groups))),
        tuple(curve(scores[group.name]) for group in graph.groups),
        (Constraint("latency", CostModel("ms", facts["offset"], tuple(terms)), facts["dense_ms"]),),
        removable=frozenset(facts["removable"]),
        evaluator=evaluator,
        rows=FileRows(arguments.folder / "evaluations.sqlite3"),
    )
    return problem, {**facts, "precision": evaluator.judge.precision, "identity": evaluator.identity}, loaded


Method = Callable[[Problem, Encoding, Judging, int, int], None]
"""Searches with a seed and a number of real evaluations."""


def random_search(problem: Problem, encoding: Encoding, judging: Judging, seed: int, most: int) -> None:
    """Random networks around random keep ratios."""
    generator = np.random.default_rng(seed)
    while judging.count < most:
        judging.errors(random_genomes(encoding, POPULATION, generator)[: most - judging.count])


def nsga2(inject: bool) -> Method:
    """pymoo's NSGA-II with its usual operators for integers (SBX and polynomial mutation, rounded)."""

    def go(problem: Problem, encoding: Encoding, judging: Judging, seed: int, most: int) -> None:
        from pymoo.algorithms.moo.nsga2 import NSGA2
        from pymoo.core.problem import Problem as Numbers
        from pymoo.operators.crossover.sbx import SBX
        from pymoo.operators.mutation.pm import PM
        from pymoo.operators.repair.rounding import RoundingRepair

        class Task(Numbers):
            def __init__(self) -> None:
                super().__init__(n_var=len(encoding.sizes), n_obj=2, xl=0, xu=encoding.sizes - 1, vtype=int)

            def _evaluate(self, x: np.ndarray, out: dict[str, Any], *args: Any, **kwargs: Any) -> None:
                genes = encoding.canonical(x)
                out["F"] = np.column_stack([judging.errors(genes), encoding.costs(genes)])

        first = random_genomes(encoding, POPULATION, np.random.default_rng(seed))
        if inject:
            seeds = _start(problem, encoding).seeds
            first = np.concatenate([seeds, first])[: max(POPULATION, len(seeds))]
        repair = RoundingRepair()
        algorithm = NSGA2(
            POPULATION,
            sampling=first.astype(float),
            crossover=SBX(prob=0.9, eta=15, vtype=float, repair=repair),
            mutation=PM(eta=20, vtype=float, repair=repair),
            eliminate_duplicates=True,
        )
        algorithm.setup(Task(), termination=("n_gen", 10_000), seed=seed)
        while judging.count < most and algorithm.has_next():
            algorithm.next()

    return go


def hamp(**changes: Any) -> Method:
    """This project's search."""

    def go(problem: Problem, encoding: Encoding, judging: Judging, seed: int, most: int) -> None:
        settings = HampSettings(
            population=POPULATION, evaluations=most, stagnation=0, local_every=3, start_from_known=False
        )
        search = Search(problem, replace(settings, **changes), seed)
        search.go()
        genes, errors = search.judging.everything()
        judging.take_over(genes, errors)

    return go


def knapsack_curve(problem: Problem, encoding: Encoding, judging: Judging, seed: int, most: int) -> None:
    """The exact optimum of the summed scores for evenly spread budgets; nothing is random."""
    start = _start(problem, encoding)
    first = problem.constraints[0]
    for share in np.linspace(0, 1, CURVE + 1)[1:]:
        limit = float(start.box.ideal[1] + share * (start.box.nadir[1] - start.box.ideal[1]))
        try:
            found = solve_exact(replace(problem, constraints=(replace(first, limit=limit),)))
        except InfeasibleBudgetError:
            continue
        judging.errors(encoding.genome(found.widths, found.removed)[None])


METHODS: dict[str, Method] = {
    "knapsack-curve": knapsack_curve,
    "hamp": hamp(),
    "nsga2-injected": nsga2(inject=True),
    "nsga2": nsga2(inject=False),
    "random": random_search,
    "hamp-no-local": hamp(local=None),
}

_starts: dict[str, Any] = {}


def _start(problem: Problem, encoding: Encoding) -> Any:
    if "start" not in _starts:
        _starts["start"] = make_start(encoding, inject=True, known_rows=0)
    return _starts["start"]


class Trace(Judging):
    """Judging whose course is looked at afterwards."""

    def take_over(self, genes: np.ndarray, errors: np.ndarray) -> None:
        """What another search has judged, in its order."""
        for genome, error in zip(genes, errors, strict=True):
            self._errors[genome.tobytes()] = float(error)
        self.count = len(self._errors)

    def hypervolumes(self, box: Box, most: int) -> list[float]:
        """After every :data:`STEP` of the first ``most`` evaluations."""
        genes, errors = self.everything()
        objectives = np.column_stack([errors, self.encoding.costs(genes)])[:most]
        ends = [*range(STEP, len(objectives), STEP), len(objectives)]
        return [box.hypervolume(objectives[:end]) for end in ends]

    def front(self, box: Box, most: int) -> Archive:
        """The non-dominated points of the first ``most`` evaluations."""
        archive = Archive(box, len(self.encoding.sizes))
        genes, errors = self.everything()
        costs = self.encoding.costs(genes)
        for genome, error, cost in itertools.islice(zip(genes, errors, costs, strict=True), most):
            if cost[0] <= self.encoding.problem.limits[0] * (1 + 1e-9):
                archive.add(genome, np.array([error, *cost]))
        return archive


def search(arguments: argparse.Namespace) -> None:
    """One row per (evaluations, seed, method) that has none yet."""
    problem, facts, _ = open_problem(arguments)
    encoding = Encoding(problem)
    box = _start(problem, encoding).box
    done = {(r["budget"], r["seed"], r["method"]) for r in read(RESULTS) if r["identity"] == facts["identity"]}
    for most, seed, name in itertools.product(arguments.evaluations, arguments.seeds, arguments.methods):
        first = (arguments.evaluations[0], arguments.seeds[0])
        if (str(most), str(seed), name) in done or (name == "knapsack-curve" and (most, seed) != first):
            continue
        with silent.task(name) as task:
            judging = Trace(encoding, task)
            METHODS[name](problem, encoding, judging, seed, most)
        volumes, front = judging.hypervolumes(box, most), judging.front(box, most)
        order = np.argsort(front.objectives[:, 1])
        networks = [encoding.network(front.genes[i]) for i in order]
        row = {
            "method": name,
            "budget": most,
            "seed": seed,
            "evaluations": min(judging.count, most),
            "hypervolume": round(volumes[-1], 6),
            "hypervolumes": json.dumps([round(v, 6) for v in volumes]),
            "front": json.dumps([[round(float(v), 5) for v in front.objectives[i]] for i in order]),
            "networks": json.dumps([[w.tolist(), sorted(gone)] for w, gone in networks]),
            "population": POPULATION,
            "images": IMAGES,
            "model": MODEL,
            "criterion": CRITERION,
            "target": TARGET,
            "dense_ms": round(facts["dense_ms"], 4),
            "latency_model_error": round(facts["latency_error"], 4),
            "precision": facts["precision"],
            "identity": facts["identity"],
            "device": platform.processor() or platform.machine(),
            "versions": json.dumps(versions()),
        }
        append(RESULTS, row)
        print(
            f"{most} evaluations, seed {seed}, {name}: hypervolume {volumes[-1]:.4f}, {len(front)} points", flush=True
        )


def measure(arguments: argparse.Namespace) -> None:
    """Every front that has no row yet, measured on the target beside dense: how far the latency model was off."""
    from secateurs.latency.predictor import ModelError
    from secateurs.latency.store import Store
    from secateurs.measure.networks import measured_latencies
    from secateurs.measure.profile import profile

    problem, facts, _ = open_problem(arguments)
    _, _, graph = open_all(arguments)
    store = Store(arguments.store)
    costs = profile(graph, TARGET, threads=1, store=store)
    box = _start(problem, Encoding(problem)).box
    keys = ("budget", "seed", "method", "identity")
    done = {tuple(row[key] for key in keys) for row in read(MEASURED)}
    for row in read(RESULTS):
        wanted = row["method"] in arguments.methods and int(row["budget"]) in arguments.evaluations
        if not wanted or tuple(row[key] for key in keys) in done or row["identity"] != facts["identity"]:
            continue
        networks = [(np.array(widths), frozenset(gone)) for widths, gone in json.loads(row["networks"])]
        front = np.array(json.loads(row["front"]))
        measured = measured_latencies(graph, costs, networks, TARGET, threads=1, store=store)
        error = ModelError.of(front[:, 1], measured)
        facts_row: dict[str, Any] = {key: row[key] for key in keys}
        facts_row |= {
            "points": len(front),
            "hypervolume": row["hypervolume"],
            "hypervolume_measured": round(box.hypervolume(np.column_stack([front[:, 0], measured])), 6),
            "mean_abs_error": round(error.mean_abs, 4),
            "p95_error": round(error.p95, 4),
            "spearman": round(error.spearman, 4),
            "measured_ms": json.dumps([round(float(ms), 5) for ms in measured]),
            "device": row["device"],
            "versions": json.dumps(versions()),
        }
        append(MEASURED, facts_row)
        print({key: facts_row[key] for key in list(facts_row)[:3] + list(facts_row)[4:10]}, flush=True)


def workers(arguments: argparse.Namespace) -> None:
    """Evaluations per second with one process, two processes and two Ray actors, one thread each, in turns.

    They share out the networks of the random searches, which therefore find them evaluated.
    """
    import time

    from secateurs.judging.cluster import ray_pool
    from secateurs.judging.processes import process_pool
    from secateurs.latency.lock import measuring

    problem, facts, loaded = open_problem(arguments)
    evaluator: Any = problem.evaluator
    judge = replace(evaluator.judge, source=dict(loaded.source))
    encoding = Encoding(problem)
    networks = [encoding.network(genome) for genome in _random_networks(encoding, arguments)]
    pools = {
        "one process": process_pool(judge, 1, 1),
        "two processes": process_pool(judge, 2, 1),
        "two Ray actors": ray_pool(judge, "local", 2, 1),
    }
    speeds: dict[str, list[float]] = {name: [] for name in pools}
    dense = (evaluator.plan(problem.widest),)
    for pool in pools.values():
        list(pool.map([dense] * 4))  # workers are started by their first network
    batches = iter([networks[i : i + NETWORKS_PER_TURN] for i in range(0, len(networks), NETWORKS_PER_TURN)])
    with measuring(), silent.task("crews") as task:
        for names in itertools.islice(itertools.permutations(pools), TURNS_OF_WORKERS):
            for name in names:
                batch, evaluator.pool = next(batches), pools[name]
                start = time.perf_counter()
                evaluate_all(problem, batch, task)
                speeds[name].append(len(batch) / (time.perf_counter() - start))
    one = float(np.mean(speeds["one process"]))
    for name, pool in pools.items():
        pool.close()
        values = np.array(speeds[name])
        row = {
            "crew": name,
            "evaluations_per_second": round(float(values.mean()), 3),
            "deviation": round(float(values.std(ddof=1)), 3),
            "ratio": round(float(values.mean()) / one, 3),
            "turns": len(values),
            "networks_per_turn": NETWORKS_PER_TURN,
            "images": IMAGES,
            "model": MODEL,
            "precision": facts["precision"],
            "device": platform.processor() or platform.machine(),
            "versions": json.dumps(versions()),
        }
        append(WORKERS, row)
        print(f"{name:15} {row['evaluations_per_second']} evaluations/s, {row['ratio']} x one process")


def _random_networks(encoding: Encoding, arguments: argparse.Namespace) -> np.ndarray:
    """Genomes of the random searches' networks that are not stored yet, every one once."""
    problem, genes = encoding.problem, []
    for seed in arguments.seeds:
        generator = np.random.default_rng(seed)
        rounds = -(-arguments.evaluations[0] // POPULATION)
        drawn = [random_genomes(encoding, POPULATION, generator) for _ in range(rounds)]
        genes.append(np.concatenate(drawn)[: arguments.evaluations[0]])
    new = np.unique(np.concatenate(genes), axis=0)
    new = new[[problem.rows.get(problem.key(*encoding.network(genome))) is None for genome in new]]
    return np.random.default_rng(0).permutation(new)


def summary(arguments: argparse.Namespace) -> None:
    """Means per budget and method, and Wilcoxon's signed-rank test of HAMP against each other."""
    from scipy.stats import wilcoxon

    rows = read(RESULTS)
    volumes = {(row["budget"], row["method"], row["seed"]): float(row["hypervolume"]) for row in rows}
    for most in sorted({row["budget"] for row in rows}, key=int):
        seeds = sorted({row["seed"] for row in rows if row["method"] == "hamp" and row["budget"] == most})
        for method in METHODS:
            fixed = method == "knapsack-curve"
            pairs = [
                (volumes[most, "hamp", seed], volumes[most, method, seeds[0] if fixed else seed])
                for seed in seeds
                if fixed or (most, method, seed) in volumes
            ]
            if not pairs:
                continue
            ours, others = np.array(pairs).T
            text = f"{most} evaluations, {method:16} {others.mean():.4f} ± {others.std():.4f} ({len(others)} seeds)"
            if method != "hamp":
                text += f"; HAMP ahead in {np.sum(ours > others)} of {len(ours)}, by {np.mean(ours - others):.4f}"
                if len(ours) > 1:
                    text += f", Wilcoxon p = {wilcoxon(ours, others, alternative='greater').pvalue:.3f}"
            print(text)


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a results file, none where there is no file."""
    csv.field_size_limit(1 << 24)
    return list(csv.DictReader(path.open())) if path.exists() else []


def append(path: Path, row: dict[str, Any]) -> None:
    """Add one row."""
    fresh = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        if fresh:
            writer.writeheader()
        writer.writerow(row)


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("phase", choices=["prepare", "search", "measure", "workers", "summary"])
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--data")
    parser.add_argument("--store", type=Path, default=None)
    parser.add_argument("--folder", type=Path, default=Path("runs/hamp"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--evaluations", type=int, nargs="+", default=[600])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    arguments = parser.parse_args()
    phases = {"prepare": prepare, "search": search, "measure": measure, "workers": workers, "summary": summary}
    phases[arguments.phase](arguments)


if __name__ == "__main__":
    main()
