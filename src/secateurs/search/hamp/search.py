"""The memetic multi-objective search: generations of offspring, a portfolio that selects, local search in between."""

from __future__ import annotations

import math
import time
from collections.abc import Sized
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from secateurs.errors import PlanError
from secateurs.progress import Progress, silent
from secateurs.provenance import digest
from secateurs.search.hamp.archive import Archive
from secateurs.search.hamp.encoding import Encoding
from secateurs.search.hamp.evaluating import Fidelities, Judging, KnownNetworks, as_row, stored_networks
from secateurs.search.hamp.local_search import Climber, Local
from secateurs.search.hamp.operators import offspring, random_genomes
from secateurs.search.hamp.selection import PORTFOLIO, by_crowding, select, updated_quotas
from secateurs.search.hamp.start import Start, make_start
from secateurs.search.hamp.surrogate import Model, Surrogate, candidates, train
from secateurs.search.problem import Problem

ATTEMPTS = 20
"""Rounds of mating in which new networks are looked for before a generation stays smaller."""


@dataclass(frozen=True)
class HampSettings:
    """How a search goes.

    ``population``; ``evaluations``: most different networks that are judged (None: no bound); ``minutes``: most time
    (None: no bound); ``stagnation``: generations without 0.1 % more hypervolume after which it stops (0: never);
    ``local``: settings of the local search (None: none), every ``local_every`` generations; ``surrogate_after``: the
    surrogate is used from so many evaluations per group on; ``bred``: while it is trusted, so many offspring are made
    for one that is evaluated; ``portfolio``: names of selections; ``inject``: start
    from dense, uniform and knapsack networks; ``start_from_known``: start from stored evaluations of the same problem;
    ``screen``: offspring are first judged on so many images (None: not) and the better third is judged in full.
    """

    population: int = 40
    evaluations: int | None = 2000
    minutes: float | None = None
    stagnation: int = 8
    local: Local | None = field(default_factory=Local)
    local_every: int = 5
    surrogate_after: int = 3
    bred: int = 8
    portfolio: tuple[str, ...] = tuple(PORTFOLIO)
    inject: bool = True
    start_from_known: bool = True
    screen: int | None = None

    def __post_init__(self) -> None:
        if self.evaluations is None and self.minutes is None and not self.stagnation:
            raise PlanError("The search would never end. Give a number of evaluations, minutes, or a stagnation.")
        if self.minutes is not None and not self.minutes > 0:
            raise PlanError(
                f"A search of {self.minutes:g} minutes finds nothing. Give --minutes above 0, or leave it out."
            )
        if self.population < 4 or (self.evaluations is not None and self.evaluations < 4):
            raise PlanError(
                f"Population {self.population} and {self.evaluations} evaluations: give at least 4 of each."
            )
        unknown = sorted(set(self.portfolio) - set(PORTFOLIO))
        if unknown or not self.portfolio:
            raise PlanError(f"Selection {(unknown or ['(none)'])[0]!r} is unknown. Known: {', '.join(PORTFOLIO)}.")


@dataclass(frozen=True)
class Generation:
    """One line of a search's history. ``evaluations``: different networks judged so far; ``quotas``: per selection;
    ``correlations``: of the surrogates tried in this generation; ``model``: the one used; ``moved``: starts of the
    local search that improved; ``seconds``: since the search began, sittings added up."""

    number: int
    evaluations: int
    hypervolume: float
    front: int
    quotas: dict[str, float]
    correlations: dict[str, float] = field(default_factory=dict)
    model: str | None = None
    moved: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """The archive (genes, objectives), the history, and how many evaluations were computed and not read."""

    archive: Archive
    history: tuple[Generation, ...]
    evaluations: int
    computed: int
    stopped: str


@dataclass
class Population:
    """``genes`` [n, genes], ``objectives`` [n, objectives], ``violations`` [n]; ``nominators``: per member the
    selections that named it; it breeds with its rank."""

    genes: np.ndarray
    objectives: np.ndarray
    violations: np.ndarray
    nominators: tuple[frozenset[int], ...]

    def joined(self, genes: np.ndarray, objectives: np.ndarray, violations: np.ndarray) -> Population:
        """With more members, named by nobody yet; each genome once."""
        nominators = (*self.nominators, *(frozenset[int]() for _ in genes))
        genes = np.concatenate([self.genes, genes])
        _, first = np.unique(genes, axis=0, return_index=True)
        first = np.sort(first)
        return Population(
            genes[first],
            np.concatenate([self.objectives, objectives])[first],
            np.concatenate([self.violations, violations])[first],
            tuple(nominators[i] for i in first),
        )


class Search:
    """One search. The same problem, settings, seed and stored rows give the same archive, also after a kill.

    All that is random comes from one generator, and every evaluation is a stored row: a killed search that is started
    again walks the same way, reading instead of computing. What a clock decides is stored too.
    """

    def __init__(self, problem: Problem, settings: HampSettings, seed: int = 0, progress: Progress = silent) -> None:
        if problem.evaluator is None:
            raise PlanError("This search evaluates candidates on data, but no data was given. Give --data.")
        if not 1 <= len(problem.constraints) <= 3:
            raise PlanError(
                f"The search takes 2 to 4 objectives; error and {len(problem.constraints)} costs were given."
            )
        self.problem, self.settings, self.progress = problem, settings, progress
        self.encoding = Encoding(problem)
        self.generator = np.random.default_rng(seed)
        self.seed = seed
        self.run = self._run_id()
        self.start = self._start()
        self.archive = Archive(self.start.box, len(self.encoding.sizes))
        self.rankings = [PORTFOLIO[name] for name in settings.portfolio]
        self.quotas = np.full(len(self.rankings), 1 / len(self.rankings))
        self.history: list[Generation] = []
        self.screened = 0.0
        self.model: Model | None = None
        self._began, self._elapsed = time.monotonic(), 0.0

    def _run_id(self) -> str:
        """Names this search: everything that its course depends on."""
        problem = self.problem
        assert problem.evaluator is not None
        costs = problem.costs(np.stack([problem.widest, problem.narrowest])).tolist()
        options = [np.asarray(o).tolist() for o in problem.options]
        facts = (asdict(self.settings), self.seed, problem.evaluator.identity, problem.limits.tolist(), costs, options)
        text = f"{problem.spec.fingerprint}|{facts}|{[float(np.sum(v)) for v in problem.values]}"
        return f"hamp/{digest(text, 24)}"

    def _stored(self, name: str, make: Any) -> Any:
        """A fact of this search, from its row where an earlier sitting stored it."""
        rows, key = self.problem.rows, f"{self.run}/{name}"
        row = None if rows is None else rows.get(key)
        if row is None:
            row = as_row(make())
            if rows is not None:
                rows.put(key, row)
        return row

    def _start(self) -> Start:
        rows = self.problem.rows
        count = len(rows) if isinstance(rows, Sized) and self.settings.start_from_known else 0
        row = self._stored(
            "start", lambda: make_start(self.encoding, inject=self.settings.inject, known_rows=count).to_row()
        )
        return Start.from_row(row, len(self.encoding.sizes))

    def go(self) -> Outcome:
        """The whole search."""
        with self.progress.task("search (hamp)", self.settings.evaluations) as task:
            self.judging = Judging(self.encoding, task)
            population = self._first()
            stopped = self._note(Surrogate(None, {}), 0)
            while stopped is None:
                population, surrogate, moved = self._generation(population)
                stopped = self._note(surrogate, moved)
        history = tuple(self.history)
        return Outcome(self.archive, history, self.judging.count, self.judging.computed, stopped)

    @property
    def left(self) -> int:
        """Evaluations left."""
        most = self.settings.evaluations
        return 1 << 30 if most is None else max(0, most - self.judging.count - math.ceil(self.screened))

    def _evaluate(self, genes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Objectives [n, objectives], violations [n] and hypervolume gains [n] of as many genomes as the budget has."""
        costs = self.encoding.costs(genes)
        errors = self.judging.errors(genes)
        objectives = np.column_stack([errors, costs])
        violations = self._violations(costs)
        gains = np.zeros(len(genes))
        for index in np.flatnonzero(violations <= 0):
            gains[index] = self.archive.add(genes[index], objectives[index]) or 0.0
        return objectives, violations, gains

    def _affordable(self, genes: np.ndarray) -> np.ndarray:
        """The first of these genomes, as many as the budget allows."""
        return genes[: self.left]

    def _first(self) -> Population:
        """Injected networks, what is known already, and random ones up to the population's size."""
        known = stored_networks(self.encoding, self.start.known_rows)
        self.judging.remember(known)
        genes = np.concatenate([self.start.seeds, self._best_known(known)])
        wanted = max(0, self.settings.population - len(genes))
        genes = np.concatenate([genes, random_genomes(self.encoding, 3 * wanted, self.generator)])
        _, first = np.unique(genes, axis=0, return_index=True)
        genes = genes[np.sort(first)][: max(self.settings.population, len(self.start.seeds))]
        genes = self._affordable(genes)
        objectives, violations, _ = self._evaluate(genes)
        return self._select(Population(genes, objectives, violations, (frozenset(),) * len(genes)))

    def _best_known(self, known: KnownNetworks) -> np.ndarray:
        """Genomes of the known front, all offered to the archive."""
        if not len(known.genes):
            return known.genes
        self._evaluate(known.genes)
        return self.archive.genes

    def _select(self, pool: Population) -> Population:
        chosen = select(
            pool.objectives,
            pool.violations,
            self.settings.population,
            self.archive.scale(),
            self.quotas,
            self.rankings,
        )
        kept = chosen.indices
        return Population(pool.genes[kept], pool.objectives[kept], pool.violations[kept], chosen.nominators)

    def _generation(self, population: Population) -> tuple[Population, Surrogate, int]:
        pairs, children = self._children(population)
        objectives, violations, gains = self._evaluate(children)
        self._reward(population, pairs, gains)
        pool = population.joined(children, objectives, violations)
        surrogate, moved = Surrogate(None, {}), 0
        settings = self.settings
        if settings.local is not None and (len(self.history) % settings.local_every == 0) and self.left:
            surrogate = self._surrogate()
            self.model = surrogate.model
            found: list[np.ndarray] = []
            moved = self._improve(surrogate.model, settings.local, found)
            if found:
                genes = np.concatenate(found)
                objectives, violations, _ = self._evaluate(genes)
                pool = pool.joined(genes, objectives, violations)
        return self._select(pool), surrogate, moved

    def _children(self, population: Population) -> tuple[np.ndarray, np.ndarray]:
        """New genomes [n, genes] and their parents' places [n, 2]."""
        factor = 3 if self.settings.screen is not None else 1
        bred = 1 if self.model is None else self.settings.bred
        wanted = bred * factor * self.settings.population
        order = np.empty(len(population.genes), dtype=np.int64)
        feasible = population.violations <= 0
        scaled = self.archive.scale().scale(population.objectives)
        ranked = by_crowding(np.where(feasible[:, None], scaled, 1e6 + population.violations[:, None]), len(order))
        order[ranked] = np.arange(len(order))
        children: dict[bytes, tuple[int, int]] = {}
        for _ in range(ATTEMPTS):
            drawn = self.generator.integers(0, len(order), (bred * self.settings.population, 2, 2))
            pairs = np.where(order[drawn[..., 0]] <= order[drawn[..., 1]], drawn[..., 0], drawn[..., 1])
            made = offspring(self.encoding, population.genes[pairs.T], self.generator)
            for child, pair in zip(made, pairs, strict=True):
                if len(children) < wanted and not self.judging.known(child):
                    children.setdefault(child.tobytes(), (int(pair[0]), int(pair[1])))
            if len(children) == wanted:
                break
        genes = np.array([np.frombuffer(key, dtype=np.int64) for key in children], dtype=np.int64)
        genes, pairs = genes.reshape(-1, len(self.encoding.sizes)), np.array(list(children.values())).reshape(-1, 2)
        if self.model is not None and len(genes):
            chosen = self._promising(genes, self.model, factor * self.settings.population)
            genes, pairs = genes[chosen], pairs[chosen]
        if self.settings.screen is not None and len(genes):
            chosen = self._screen(genes, self.settings.screen)
            genes, pairs = genes[chosen], pairs[chosen]
        genes = self._affordable(genes)
        return pairs[: len(genes)], genes

    def _promising(self, genes: np.ndarray, model: Model, wanted: int) -> np.ndarray:
        """Places of the ``wanted`` offspring that the portfolio chooses by the error that the surrogate predicts."""
        costs = self.encoding.costs(genes)
        objectives = np.column_stack([model.predict(self.encoding.features(genes))[0], costs])
        violations = self._violations(costs)
        scale = self.archive.scale()
        return np.sort(select(objectives, violations, wanted, scale, self.quotas, self.rankings).indices)

    def _violations(self, costs: np.ndarray) -> np.ndarray:
        """By how much costs [n, constraints] exceed the limits, as shares of them, summed [n]."""
        limits = self.problem.limits
        return np.maximum(0, costs / np.where(limits == 0, 1.0, limits) - 1 - 1e-9).sum(axis=1)

    def _screen(self, genes: np.ndarray, images: int) -> np.ndarray:
        """Places of the offspring that look best on few images; what that costs is charged by images."""
        evaluator = self.problem.evaluator
        if not isinstance(evaluator, Fidelities):
            raise PlanError("Screening on fewer images needs an evaluator that can do so. Leave the screen out.")
        quick = evaluator.on_fewer(images)
        with self.progress.task("screen", len(genes)) as task:
            judging = Judging(Encoding(replace(self.problem, evaluator=quick)), task)
            errors = judging.errors(genes)
        self.screened += len(genes) * quick.images / evaluator.images
        objectives = self.archive.scale().scale(np.column_stack([errors, self.encoding.costs(genes)]))
        wanted = min(len(genes), self.settings.population)
        return np.sort(by_crowding(objectives, wanted)[:wanted])

    def _reward(self, population: Population, pairs: np.ndarray, gains: np.ndarray) -> None:
        """Credit every selection with the hypervolume that children of the survivors it named have brought."""
        credit = np.zeros(len(self.quotas))
        for pair, gain in zip(pairs, gains, strict=True):
            for selection in population.nominators[pair[0]] | population.nominators[pair[1]]:
                credit[selection] += gain
        self.quotas = updated_quotas(self.quotas, credit)

    def _surrogate(self) -> Surrogate:
        genes, errors = self.judging.everything()
        if len(genes) < self.settings.surrogate_after * len(self.problem.options):
            return Surrogate(None, {})
        models = candidates(len(genes), self.seed)
        return train(self.encoding.features(genes), errors, models, self.generator)

    def _improve(self, model: Model | None, local: Local, found: list[np.ndarray]) -> int:
        def evaluate(genes: np.ndarray) -> np.ndarray:
            genes = self._affordable(genes)
            if len(genes):
                found.append(genes)
            return self._evaluate(genes)[0]

        climber = Climber(self.encoding, self.archive, model, evaluate, self.judging.known, self.generator, local)
        return climber.improve()

    def _note(self, surrogate: Surrogate, moved: int) -> str | None:
        """Add a line to the history; why the search ends here, or None."""
        number = len(self.history)
        now = self._elapsed + time.monotonic() - self._began
        seconds = float(self._stored(f"generation/{number}", lambda: {"seconds": now})["seconds"])
        # A resumed search counts on from the time that the earlier sittings had used up.
        self._elapsed, self._began = seconds, time.monotonic()
        self.history.append(
            Generation(
                number,
                self.judging.count,
                self.archive.hypervolume,
                len(self.archive),
                dict(zip(self.settings.portfolio, self.quotas.tolist(), strict=True)),
                surrogate.correlations,
                None if surrogate.model is None else surrogate.model.name,
                moved,
                seconds,
            )
        )
        return self._reason()

    def _reason(self) -> str | None:
        settings, last = self.settings, self.history[-1]
        if self.left == 0:
            return "evaluations"
        if settings.minutes is not None and last.seconds >= 60 * settings.minutes:
            return "minutes"
        if settings.stagnation and len(self.history) > settings.stagnation:
            before = self.history[-1 - settings.stagnation].hypervolume
            if last.hypervolume < before * 1.001:
                return "stagnation"
        if len(self.history) > 1 and last.evaluations == self.history[-2].evaluations:
            return "no new networks"
        return None
