"""From scores and a latency model to a plan: builds the search problem, solves it, and names the units that stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from secateurs.errors import PlanError
from secateurs.plan import RESOURCES, Budget, Plan, describe_budgets, parse_budgets
from secateurs.progress import Progress, silent
from secateurs.provenance import provenance, target_label
from secateurs.scoring import Batches, default_criterion, name_of, score
from secateurs.search_options import DEFAULT_STRATEGY, EVALUATIONS, VALUES, Legal, SearchOptions, find_strategy

if TYPE_CHECKING:
    import numpy as np

    from secateurs.cost import CostModel
    from secateurs.data import Data
    from secateurs.element_choices import ElementSpace
    from secateurs.evaluation import Evaluator
    from secateurs.importance.context import Criterion
    from secateurs.latency.model import LatencyModel
    from secateurs.network import NetworkSpec
    from secateurs.resources import Seen
    from secateurs.scoring import Loss
    from secateurs.search.problem import Problem, Rows, Solution, Strategy
    from secateurs.structure import Graph


@dataclass(frozen=True)
class Choice:
    """A network that a search returned. ``predicted``: by resource, the model's figure / the dense model's figure."""

    solution: Solution
    predicted: Mapping[str, float]

    @property
    def key(self) -> str:
        """Equal for equal networks."""
        return f"{self.solution.widths.tolist()}/{sorted(self.solution.removed)}"


@dataclass(frozen=True)
class Planner:
    """Everything but the budgets' limits: solves for any limits without scoring again.

    ``costs``: the latency model (None where latency is not limited); ``strategy`` and ``criterion``: registered names,
    or the user's own objects; ``target``: shown in messages, such as ``"onnxruntime-cpu, 1 thread"``; ``data``:
    batches (inputs, targets) for criteria that need them, judged by ``loss`` (None: cross-entropy); ``resources``:
    what is limited, the main one first; ``dense``: what the dense network was measured to take of them, where known;
    ``batch``: that memory is counted for, ``seen``: what it was for some networks, dense first; ``known``: scores
    float64 [units] per group, where they are known already; ``images``: on which searches that need it judge
    candidates; ``classes``: the outputs that count (None: those of ``images``); ``options``: of such searches;
    ``elements``: where kernel elements may go too, what can be chosen then; ``facts``: further provenance.
    """

    graph: Graph
    costs: LatencyModel | None
    strategy: str | Strategy = DEFAULT_STRATEGY
    criterion: str | Criterion | None = None
    seed: int = 0
    legal: Legal = field(default_factory=Legal)
    target: str = ""
    data: Batches | None = None
    loss: Loss | None = None
    resources: tuple[str, ...] = ("latency",)
    dense: Mapping[str, float] = field(default_factory=dict)
    batch: int = 1
    seen: Sequence[Seen] = ()
    images: Data | None = None
    classes: tuple[int, ...] | None = None
    options: SearchOptions = field(default_factory=SearchOptions)
    known: Mapping[str, np.ndarray] | None = None
    elements: ElementSpace | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    progress: Progress = silent

    @cached_property
    def search(self) -> Strategy:
        """The strategy object."""
        return find_strategy(self.strategy, options=self.options)

    @cached_property
    def criterion_used(self) -> str | Criterion:
        """The given criterion, the strategy's only one, or the default.

        Raises:
            PlanError: the strategy takes another criterion only.
        """
        own = self.search.criterion
        if own is not None and self.criterion is not None and self.criterion != own:
            raise PlanError(
                f"Strategy {self.search.name!r} works with criterion {own!r} only, not {name_of(self.criterion)!r}. "
                f"Leave --criterion out, or choose --strategy knapsack, which takes any."
            )
        return self.criterion or own or default_criterion(self.data, self.graph, self.progress)

    @cached_property
    def scores(self) -> dict[str, np.ndarray]:
        """Scores of every group."""
        if self.known is not None:
            return dict(self.known)
        from secateurs.search.rows import FileRows

        rows = None if self.options.folder is None else FileRows(self.options.folder / VALUES)
        return self.score(self.graph, rows)

    def score(self, graph: Graph, rows: Rows | None = None) -> dict[str, np.ndarray]:
        """Scores of every group of ``graph`` by the criterion in use; ``rows``: where measured values are kept."""
        criterion, classes = self.criterion_used, self.classes
        if classes is None and self.images is not None:
            classes = self.images.classes
        return score(graph, criterion, self.data, self.loss, self.seed, self.progress, rows, classes)

    @cached_property
    def models(self) -> dict[str, CostModel]:
        """The cost model of every limited resource.

        Raises:
            PlanError: latency is limited, but there is no latency model.
        """
        return {name: self._model(name) for name in self.resources}

    def _model(self, resource: str) -> CostModel:
        from secateurs.resources import macs_model, memory_model, size_model

        spec = self.graph.spec
        if self.elements is not None:
            if resource != "latency":
                raise PlanError(
                    f"With kernel elements only latency can be limited, not {RESOURCES[resource].words}: the runtime's "
                    f"file holds pruned elements as zeros. Leave out {RESOURCES[resource].option}, or --elements."
                )
            return self.elements.model
        if resource == "macs":
            return macs_model(spec)
        if resource == "file_size":
            return size_model(spec, self.dense.get("file_size"))
        if resource == "memory":
            return memory_model(spec, self.batch, self.seen)
        if self.costs is None:
            raise PlanError("A latency budget needs a latency model: costs = secateurs.profile(graph, target=...).")
        return self.costs.cost_model()

    @property
    def spec(self) -> NetworkSpec:
        """What is chosen from, as numbers: the groups of units, and of kernel elements where they may go."""
        return self.graph.spec if self.elements is None else self.elements.spec

    @cached_property
    def dense_costs(self) -> dict[str, float]:
        """What the cost models say of the untouched network, by resource."""
        widths = self.spec.dense_widths
        return {name: float(model.evaluate(widths)) for name, model in self.models.items()}

    @cached_property
    def _unlimited(self) -> Problem:
        from secateurs.search.problem import Constraint, Problem

        spec, evaluates = self.spec, getattr(self.search, "evaluates", False)
        if not spec.groups:
            raise PlanError(
                "Nothing in this network can be pruned: it has no group of removable units. "
                "'secateurs doctor' says what pins it."
            )
        if evaluates and self.elements is not None:
            raise PlanError(
                f"Strategy {self.search.name!r} judges widths only, not kernel elements. "
                f"Choose --strategy knapsack, or leave --elements out."
            )
        return Problem(
            spec,
            self._options(),
            self._values(),
            tuple(
                Constraint(name, model, self.dense_costs[name], "" if name == "macs" else self.target)
                for name, model in self.models.items()
            ),
            removable=frozenset(range(len(spec.blocks))) if self.legal.blocks else frozenset(),
            evaluator=self._evaluator() if evaluates else None,
        )

    def _options(self) -> tuple[np.ndarray, ...]:
        """The legal widths of every group."""
        from secateurs.search.options import legal_widths, right_ends

        if self.elements is not None:
            return self.elements.options
        spec, legal = self.graph.spec, self.legal
        pinned = legal.pins(group.name for group in spec.groups)
        options = legal_widths(spec, minimum=legal.min_width, maximum=legal.widest, pinned=pinned)
        return right_ends(spec, options, list(self.models.values()))

    def _values(self) -> tuple[np.ndarray, ...]:
        """The value of keeping 0, 1 … units of every group."""
        from secateurs.importance.values import curve

        if self.elements is None:
            return tuple(curve(self.scores[group.name]) for group in self.graph.spec.groups)
        if self.images is None:
            self.progress.say("Without data, every layer's elements and every group count the same: give data.")
            return self.elements.values(self.scores)
        from secateurs.element_losses import measured_losses
        from secateurs.search.rows import FileRows

        folder, channels = self.options.folder, self.legal.channels
        rows = None if folder is None else FileRows(folder / EVALUATIONS)
        losses = measured_losses(
            self.elements, self.scores, self.images, channels=channels, rows=rows, progress=self.progress
        )
        return self.elements.values(self.scores, losses)

    def _evaluator(self) -> Evaluator | None:
        """What judges candidates for real, None without images."""
        from secateurs.evaluation import VALIDATED, make_evaluator
        from secateurs.search.rows import FileRows

        images = self.images
        if images is None:
            return None
        folder = self.options.folder
        return make_evaluator(
            self.graph,
            self.scores,
            images.calibration,
            images.validation.take(VALIDATED),
            classes=images.classes,
            rows=None if folder is None else FileRows(folder / EVALUATIONS),
        )

    def problem(self, limits: Mapping[str, float]) -> Problem:
        """The search problem with a model cost of at most ``limits[resource]`` x dense of every resource."""
        from dataclasses import replace

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
            f"{RESOURCES[one['constraint']].words} {one['ratio']:.1%} of dense "
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
            raise infeasible(problem, self.reach)
        return self.choice(self.search.solve(problem, seed=self.seed, progress=self.progress))

    @property
    def picked(self) -> str | None:
        """What a person picked, in words, where the strategy holds that network only; None where limits decide."""
        found: str | None = getattr(self.search, "picked", None)
        return found

    def pick(self) -> Choice:
        """That network, whatever it takes."""
        return self.choice(self.search.solve(self._unlimited, seed=self.seed, progress=self.progress))

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
            "predicted_ms": predicted.get("latency"),
            "predicted": predicted,
            "gap": solution.gap,
            **({"search": dict(solution.details["summary"])} if "summary" in solution.details else {}),
            **self.facts,
        }
        removed = [spec.blocks[index].name for index in sorted(solution.removed)]
        inside = {spec.groups[g].name for index in solution.removed for g in spec.blocks[index].groups}
        kept = {name: width for name, width in widths.items() if name not in inside}
        described = provenance(self.search.name, self.criterion_used, self.seed, facts)
        plan = make_plan(self.graph, self.scores, kept, removed, described)
        return plan if self.elements is None else self.elements.patterned(plan, solution.widths)


def make_plan(
    graph: Graph,
    scores: Mapping[str, np.ndarray],
    widths: Mapping[str, int],
    blocks_removed: Sequence[str],
    described: Mapping[str, Any],
) -> Plan:
    """The plan that keeps the ``widths[group]`` best-scored units of every group."""
    from secateurs.importance.values import keep

    kept = {name: keep(scores[name], width) for name, width in widths.items()}
    return graph.plan(kept, blocks_removed, dict(described))


def plan(
    graph: Graph,
    costs: LatencyModel | None = None,
    *,
    latency: str | float | Budget | None = None,
    memory: str | float | Budget | None = None,
    file_size: str | float | Budget | None = None,
    macs: str | float | Budget | None = None,
    keep: float | None = None,
    strategy: str | Strategy | None = None,
    criterion: str | Criterion | None = None,
    data: Batches | None = None,
    loss: Loss | None = None,
    seed: int = 0,
    legal: Legal | None = None,
    images: Data | None = None,
    options: SearchOptions | None = None,
    elements: ElementSpace | None = None,
    progress: Progress = silent,
) -> Plan:
    """The best plan within one or several budgets by the models, or a uniform cut to a ratio without any.

    Everything is predicted, not measured: see :func:`secateurs.prune` for the closed loop.

    Args:
        graph: the traced network.
        costs: its latency model (:func:`secateurs.profile`); needed for ``latency``.
        latency: a budget: ``"60%"`` of dense, ``"3.2ms"`` or ``"2x"``.
        memory: a budget of the peak memory that the network adds to the runtime's process: ``"20MB"``, ``"60%"``.
        file_size: a budget of the deployed file: ``"10MB"``, ``"60%"``.
        macs: a budget of multiply-adds at batch 1: ``"300M"``, ``"50%"``.
        keep: instead of budgets: every group keeps max(1, floor(keep * units + 0.5)) units.
        strategy: a registered name or an own object; ``knapsack`` by default (``uniform`` with ``keep``).
        criterion: a registered name or an own function ``(graph, group, context) -> scores``; by default a loss-aware
            one where there is ``data``.
        data: calibration batches (inputs, targets) for criteria that need them.
        loss: mean loss of a batch from (outputs, targets); cross-entropy by default.
        seed: of everything random.
        legal: which networks may be returned.
        images: for strategies that judge candidates on images, such as ``lap``; scores mind its ``classes`` only.
        options: of such strategies.
        elements: where kernel elements may go too, instead of ``costs``
            (:func:`secateurs.element_planning.measured_space`).
        progress: where to report.

    Raises:
        PlanError: neither budgets nor ``keep``, or both, or they do not go with the other arguments, or the dense
            network is within all of them.
        InfeasibleBudgetError: no legal network is within the budgets by the models.
    """
    budgets = parse_budgets(latency, memory, file_size, macs)
    if bool(budgets) == (keep is not None):
        raise PlanError(
            "Give either budgets (latency='60%', memory=, file_size=, macs=) or keep= (the share of units that stays)."
        )
    if keep is not None:
        if strategy not in (None, "uniform"):
            raise PlanError("keep= sets one ratio for all groups: only strategy='uniform' does. Give latency= instead.")
        wanted = criterion or default_criterion(data, graph, progress, order_only=True)
        found = score(graph, wanted, data, loss, seed, progress, classes=None if images is None else images.classes)
        return _uniform_plan(graph, keep, found, provenance("uniform", wanted, seed, {"keep": keep}))
    planner = Planner(
        graph,
        costs,
        strategy or DEFAULT_STRATEGY,
        criterion,
        seed=seed,
        legal=legal or Legal(),
        target=elements.target if elements is not None else "" if costs is None else target_label(costs.target),
        data=data,
        loss=loss,
        resources=tuple(budget.resource for budget in budgets),
        batch=1 if costs is None else costs.batch,
        images=images,
        options=options or SearchOptions(),
        elements=elements,
        progress=progress,
    )
    limits = {b.resource: b.limit(dense := planner.dense_costs[b.resource]) / dense for b in budgets}
    if min(limits.values()) >= 1:
        raise PlanError(
            f"The budget ({describe_budgets(budgets)}) is not below what the dense network takes by the models: there "
            f"is nothing to prune. Give a lower {RESOURCES[budgets[0].resource].option}."
        )
    made = planner.plan(planner.solve(limits), describe_budgets(budgets))
    if elements is None:
        return made
    from secateurs.element_refinement import aligned

    return aligned(graph.model, made, (graph.args, graph.kwargs), progress=progress)


def _uniform_plan(graph: Graph, keep: float, scores: Mapping[str, np.ndarray], described: Mapping[str, Any]) -> Plan:
    from secateurs.search.uniform import keep_widths

    if not 0 < keep <= 1:
        raise PlanError(f"keep={keep} must lie in (0, 1]: it is the share of units that stays.")
    widths = dict(zip((group.name for group in graph.groups), keep_widths(graph.spec, keep).tolist(), strict=True))
    return make_plan(graph, scores, widths, (), described)
