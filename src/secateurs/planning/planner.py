"""From scores and a latency model to a plan: builds the search problem, solves it, and names the units that stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from secateurs.budgets import Limited
from secateurs.errors import InfeasibleBudgetError, PlanError
from secateurs.importance.context import find_criterion
from secateurs.importance.scoring import LEAST_SHARE, Scorer
from secateurs.plan import Plan
from secateurs.progress import Progress, silent
from secateurs.provenance import MadeFrom, name_of, provenance
from secateurs.search.legal import DEFAULT_STRATEGY, VALIDATED, Legal, find_strategy

if TYPE_CHECKING:
    import numpy as np

    from secateurs.cost import CostModel
    from secateurs.data import Data
    from secateurs.importance.context import Criterion
    from secateurs.judging.evaluator import NetworkEvaluator
    from secateurs.network import NetworkSpec
    from secateurs.planning.space import Space
    from secateurs.search.problem import Problem, Rows, Solution, Strategy
    from secateurs.structure import Graph

HELD = 0.5
"""Share of the parameters that can go below which an error for a budget out of reach names what holds the rest."""


@dataclass(frozen=True)
class Choice:
    """A network that a search returned. ``predicted``: by the name of a limit, the model's figure / the dense one's."""

    solution: Solution
    predicted: Mapping[str, float]

    @property
    def key(self) -> str:
        """Equal for equal networks."""
        return f"{self.solution.widths.tolist()}/{sorted(self.solution.removed)}"


@dataclass(frozen=True)
class Planner:
    """Everything but the budgets' limits: solves for any limits without scoring again.

    ``space``: what can be chosen and what it costs; ``scorer``: what units are worth; ``search``: the strategy;
    ``resources``: names of what is limited (:class:`secateurs.budgets.Limited`), the main one first; ``target``: shown
    in messages, such as ``"onnxruntime-cpu, 1 thread"``; ``images``: on which values are measured and candidates
    judged, where that is done, and ``rows``: where such figures are kept; ``made_from``: what the plan says of model
    and data.

    Raises:
        PlanError: the strategy takes another criterion only.
    """

    space: Space
    scorer: Scorer
    search: Strategy = field(default_factory=lambda: find_strategy(DEFAULT_STRATEGY))
    resources: tuple[str, ...] = ("latency",)
    target: str = ""
    images: Data | None = None
    rows: Rows | None = None
    made_from: MadeFrom | None = None
    progress: Progress = silent

    def __post_init__(self) -> None:
        own, given = self.search.criterion, self.scorer.criterion
        if own is not None and given is not None and given != own:
            raise PlanError(
                f"Strategy {self.search.name!r} works with criterion {own!r} only, not {name_of(given)!r}. "
                f"Leave --criterion out, or choose --strategy knapsack, which takes any."
            )
        if given is None and own is not None:
            object.__setattr__(self, "scorer", replace(self.scorer, criterion=own))
        used = self.scorer.criterion
        blind = used is not None and not find_criterion(used).compares_groups
        if blind and not self._judges and self.legal.min_width is None:
            object.__setattr__(self, "space", self.space.allowing(replace(self.legal, share=LEAST_SHARE)))

    @property
    def graph(self) -> Graph:
        """The traced network."""
        return self.space.graph

    @property
    def spec(self) -> NetworkSpec:
        """What is chosen from, as numbers."""
        return self.space.spec

    @property
    def legal(self) -> Legal:
        """Which networks may be returned."""
        return self.space.legal

    @property
    def criterion(self) -> str | Criterion:
        """What scores units."""
        return self.scorer.used

    @property
    def scores(self) -> dict[str, np.ndarray]:
        """Scores of every group of units."""
        return self.scorer.scores

    def knowing(self, scores: Mapping[str, np.ndarray], progress: Progress | None = None) -> Planner:
        """The same with these scores, which are not computed again; ``progress``: where to report then."""
        told = progress or self.progress
        return replace(self, scorer=self.scorer.knowing(scores, told), progress=told)

    def allowing(self, legal: Legal) -> Planner:
        """The same with other legal networks."""
        return replace(self, space=self.space.allowing(legal))

    @cached_property
    def models(self) -> dict[str, CostModel]:
        """The cost model of every limited resource.

        Raises:
            PlanError: a resource cannot be limited, or latency is and there is no latency model.
        """
        return {name: self.space.model(name) for name in self.resources}

    @cached_property
    def dense_costs(self) -> dict[str, float]:
        """What the cost models say of the untouched network, by resource."""
        widths = self.spec.dense_widths
        return {name: float(model.evaluate(widths)) for name, model in self.models.items()}

    @cached_property
    def _unlimited(self) -> Problem:
        from secateurs.search.problem import Constraint, Problem

        spec, space = self.spec, self.space
        if not spec.groups:
            from secateurs.structure.holding import nothing_can_go

            raise PlanError(nothing_can_go(self.graph))
        if self._judges and not space.widths_only:
            raise PlanError(
                f"Strategy {self.search.name!r} judges widths only, not kernel elements. "
                f"Choose --strategy knapsack, or leave --elements out."
            )
        return Problem(
            spec,
            space.options(list(self.models.values())),
            space.values(self.scores, self.images, self.rows, self.progress),
            tuple(
                Constraint(name, model, self.dense_costs[name], self._where(name))
                for name, model in self.models.items()
            ),
            removable=frozenset(range(len(spec.blocks))) if self.legal.blocks else frozenset(),
            evaluator=self._evaluator() if self._judges else None,
        )

    def _where(self, name: str) -> str:
        """The target that a limit's figures are of, unless its name says it already."""
        return "" if name == "macs" or Limited.of(name).target else self.target

    @property
    def _judges(self) -> bool:
        return self.search.evaluates

    def _evaluator(self) -> NetworkEvaluator | None:
        """What judges candidates for real, None without images."""
        from secateurs.judging.evaluator import make_evaluator

        images = self.images
        if images is None:
            return None
        return make_evaluator(
            self.graph,
            self.scores,
            images.calibration,
            images.validation.take(VALIDATED),
            task=images.task,
            rows=self.rows,
        )

    def problem(self, limits: Mapping[str, float]) -> Problem:
        """The search problem with a model cost of at most ``limits[resource]`` x dense of every resource."""
        free = self._unlimited
        limited = tuple(replace(c, limit=limits[c.name] * self.dense_costs[c.name]) for c in free.constraints)
        return replace(free, constraints=limited)

    @cached_property
    def reach(self) -> tuple[dict[str, Any], ...]:
        """Per resource the least that any legal network takes by the model (``ratio`` to dense), and what limits it.

        See :func:`secateurs.search.reach.reach`.
        """
        from secateurs.search.reach import reach

        found = reach(self._unlimited)
        return tuple({**one, "ratio": one["fastest"] / self.dense_costs[one["constraint"]]} for one in found)

    def reachable(self) -> str:
        """:attr:`reach` in one sentence."""
        parts = [
            f"{Limited.of(one['constraint']).words} {one['ratio']:.1%} of dense "
            f"(most of it for {', '.join(name for name, _ in one['costliest'])})"
            for one in self.reach
        ]
        return f"Within reach by the model: {'; '.join(parts)}."

    def solve(self, limits: Mapping[str, float]) -> Choice:
        """The strategy's best network within ``limits`` (by resource a ratio to dense, by the models).

        Raises:
            InfeasibleBudgetError: no legal network is within them by the models; known before the search begins.
        """
        from secateurs.search.reach import infeasible

        problem = self.problem(limits)
        if any(one["ratio"] > limits[one["constraint"]] * (1 + 1e-9) for one in self.reach):
            raise self._held(infeasible(problem, self.reach))
        return self.choice(self.search.solve(problem, seed=self.scorer.seed, progress=self.progress))

    def _held(self, error: InfeasibleBudgetError) -> InfeasibleBudgetError:
        """The error, which names what holds most of the network where something does."""
        from secateurs.structure.holding import held
        from secateurs.structure.trace import removable_share

        if not self.space.widths_only or removable_share(self.graph) >= HELD:
            return error
        return InfeasibleBudgetError(f"{error} {held(self.graph)}", error.details)

    def _remarks(self, choice: Choice, kept: Mapping[str, int]) -> dict[str, list[str]]:
        """Provenance of a plan for which less than half of what was asked can go, or that leaves groups narrow."""
        from secateurs.planning.narrow import remarks
        from secateurs.structure.holding import shortfall

        found = [*self._floor(kept), *remarks(self.graph, kept)]
        if self.space.widths_only and choice.predicted:
            remark = shortfall(self.graph, 1 - min(choice.predicted.values()))
            found = found if remark is None else [remark, *found]
        return {"warnings": found} if found else {}

    def _floor(self, kept: Mapping[str, int]) -> list[str]:
        """That groups are held at a least width by their criterion, where one is."""
        legal = self.legal
        at = [g.name for g in self.graph.groups if kept.get(g.name) == legal.fewest(g.units) < g.units]
        if legal.min_width is not None or not legal.share or not at:
            return []
        return [
            f"Scores of criterion {name_of(self.criterion)} do not tell what groups are worth beside each other, so "
            f"each keeps at least a tenth of its units; {len(at)} of {len(self.graph.groups)} are at that width. "
            f"--min-width sets another, and a loss-aware criterion (the default with --data) needs none."
        ]

    @property
    def picked(self) -> str | None:
        """What a person picked, in words, where the strategy holds that network only; None where limits decide."""
        return self.search.picked

    def pick(self) -> Choice:
        """That network, whatever it takes."""
        return self.choice(self.search.solve(self._unlimited, seed=self.scorer.seed, progress=self.progress))

    def choice(self, solution: Solution) -> Choice:
        """The solution with its predicted ratios, by the full models."""
        found = {
            name: float(model.evaluate(solution.widths, solution.removed)) / self.dense_costs[name]
            for name, model in self.models.items()
        }
        return Choice(solution, found)

    def least(self, resource: str) -> Choice:
        """The legal network that takes least of a resource, by the model."""
        import numpy as np

        from secateurs.search.problem import Solution

        problem, spec = self._unlimited, self.spec
        one = next(found for found in self.reach if found["constraint"] == resource)
        widths = np.array([one["widths"][group.name] for group in spec.groups], dtype=np.int64)
        removed = frozenset(index for index, block in enumerate(spec.blocks) if block.name in one["removed"])
        point = problem.candidate(widths, removed)
        return self.choice(Solution(point.widths, point.removed, point.value, point.predicted, None, 0.0))

    def plan(self, choice: Choice, budget: str = "") -> Plan:
        """The choice as a plan: the best-scored units of every group stay."""
        spec, solution = self.graph.spec, choice.solution
        widths = {group.name: int(width) for group, width in zip(spec.groups, solution.widths, strict=False)}
        predicted = {name: ratio * self.dense_costs[name] for name, ratio in choice.predicted.items()}
        facts = {
            "target": self.target,
            "budget": budget,
            "predicted_ms": next((ms for limit, ms in predicted.items() if Limited.of(limit).timed), None),
            "predicted": predicted,
            "gap": solution.gap,
            **({"search": dict(solution.details["summary"])} if "summary" in solution.details else {}),
            **({} if self.made_from is None else {"source": dict(self.made_from.source), "data": self.made_from.data}),
        }
        removed = [spec.blocks[index].name for index in sorted(solution.removed)]
        inside = {spec.groups[g].name for index in solution.removed for g in spec.blocks[index].groups}
        kept = {name: width for name, width in widths.items() if name not in inside}
        facts |= self._remarks(choice, kept)
        described = provenance(self.search.name, self.criterion, self.scorer.seed, facts)
        plan = make_plan(self.graph, self.scores, kept, removed, described)
        return self.space.finished(plan, solution.widths)


def make_plan(
    graph: Graph,
    scores: Mapping[str, np.ndarray],
    widths: Mapping[str, int],
    blocks_removed: Sequence[str],
    described: Mapping[str, Any],
) -> Plan:
    """The plan that keeps the ``widths[group]`` best-scored units of every group."""
    from secateurs.search.values import keep

    kept = {name: keep(scores[name], width) for name, width in widths.items()}
    return graph.plan(kept, blocks_removed, dict(described))
