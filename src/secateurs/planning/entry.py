"""``plan``: from scores and costs to a plan, as one call."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from secateurs.budgets import Budget, describe_budgets, parse_budgets, several
from secateurs.errors import PlanError, checked
from secateurs.importance.scoring import Batches, Scorer, calibration_batches, default_criterion
from secateurs.latency.targets._base import QUANTISED
from secateurs.plan import Plan
from secateurs.planning.channels import Channels
from secateurs.planning.planner import Planner, make_plan
from secateurs.progress import Progress, silent
from secateurs.provenance import provenance, target_label
from secateurs.search.legal import DEFAULT_STRATEGY, Legal, SearchOptions, find_strategy
from secateurs.search.rows import kept_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from torch import Tensor

    from secateurs.data import Data
    from secateurs.data.tasks import Task
    from secateurs.importance.context import Criterion
    from secateurs.latency.model import LatencyModel
    from secateurs.models import Preprocessing
    from secateurs.planning.elements.space import ElementSpace
    from secateurs.planning.mixed import MixedSpace
    from secateurs.planning.space import Space
    from secateurs.resources import Seen
    from secateurs.search.problem import Strategy
    from secateurs.structure import Graph


def plan(
    graph: Graph,
    costs: LatencyModel | Sequence[LatencyModel] | None = None,
    *,
    latency: str | float | Budget | Sequence[str | float | Budget] | None = None,
    memory: str | float | Budget | None = None,
    file_size: str | float | Budget | None = None,
    macs: str | float | Budget | None = None,
    keep: float | None = None,
    strategy: str | Strategy | None = None,
    criterion: str | Criterion | None = None,
    data: Batches | str | None = None,
    normalize: str | Preprocessing | None = None,
    allow_chance: bool = False,
    task: Task | str | None = None,
    loss: Callable[[Any, Any], Tensor] | None = None,
    seed: int = 0,
    legal: Legal | None = None,
    images: Data | None = None,
    options: SearchOptions | None = None,
    elements: ElementSpace | None = None,
    precisions: MixedSpace | None = None,
    progress: Progress = silent,
) -> Plan:
    """The best plan within one or several budgets by the models, or a uniform cut to a ratio without any.

    Everything is predicted, not measured: see :func:`secateurs.prune` for the closed loop.

    Args:
        graph: the traced network.
        costs: its latency model (:func:`secateurs.profile`); needed for ``latency``. Several, one for every target that
            the network is to run on, take as many latencies in the same order, and the plan is within all of them.
        latency: a budget: ``"60%"`` of dense, ``"3.2ms"`` or ``"2x"``.
        memory: a budget of the peak memory that the network adds to the runtime's process: ``"20MB"``, ``"60%"``.
        file_size: a budget of the deployed file: ``"10MB"``, ``"60%"``.
        macs: a budget of multiply-adds at batch 1: ``"300M"``, ``"50%"``.
        keep: instead of budgets: every group keeps max(1, floor(keep * units + 0.5)) units.
        strategy: a registered name or an own object; ``knapsack`` by default (``uniform`` with ``keep``).
        criterion: a registered name or an own function ``(graph, group, context) -> scores``; by default a loss-aware
            one where there is ``data``.
        data: calibration batches (inputs, targets) for criteria that need them, or a source's text such as
            ``"imagefolder:photos"``.
        normalize: how pixels of such a source reach the network, see :func:`secateurs.prune`.
        allow_chance: go on where the network is at chance on the source's test images.
        task: what the network is for, see :class:`secateurs.Task`; a name of :func:`secateurs.task`; None:
            classification, whose batches are pairs (inputs, labels).
        loss: instead of a task: mean loss of a batch from (outputs, batch).
        seed: of everything random.
        legal: which networks may be returned.
        images: for strategies that judge candidates on images, such as ``lap``; scores mind its task.
        options: of such strategies.
        elements: where kernel elements may go too, instead of ``costs``
            (:func:`secateurs.planning.elements.costs.measured_space`).
        precisions: where layers of a quantised file may stay in float, beside ``costs``
            (:func:`secateurs.planning.mixed.mixed_space`).
        progress: where to report.

    Warns where less than half of what is asked can go, and where few units of a group stay; the plan's
    ``provenance["warnings"]`` has the same words.

    Raises:
        PlanError: neither budgets nor ``keep``, or both, or they do not go with the other arguments, or the dense
            network is within all of them, or nothing in the network can go (the message names what holds it).
        InfeasibleBudgetError: no legal network is within the budgets by the models.
    """
    from secateurs.structure.holding import nothing_can_go, shortfall

    for one in several(costs) or (None,):
        _check_kinds(graph, one, strategy, criterion, seed, keep, legal)
    models: dict[str, LatencyModel] = _by_name(several(costs))
    budgets = parse_budgets(latency, memory, file_size, macs, tuple(models))
    if bool(budgets) == (keep is not None):
        raise PlanError(
            "Give either budgets (latency='60%', memory=, file_size=, macs=) or keep= (the share of units that stays)."
        )
    if isinstance(data, str):
        opened = _opened(graph, data, _asked(task, loss), normalize, allow_chance, seed, progress)
        data, images = calibration_batches(opened), images or opened
    elif normalize is not None:
        raise PlanError("normalize= is for a source's text as data=, but there are ready batches. Leave it out.")
    if any(budget.of_float for budget in budgets) and any(_precision(model) in QUANTISED for model in models.values()):
        raise PlanError(
            "A latency model of int8 files does not tell what the dense network takes in float. Give latency= as a "
            "share of dense int8 or in ms; sc.prune measures both."
        )
    asked = _asked(task, loss) or (None if images is None else images.task)
    if keep is not None:
        if strategy not in (None, "uniform"):
            raise PlanError("keep= sets one ratio for all groups: only strategy='uniform' does. Give latency= instead.")
        if not graph.groups:
            raise PlanError(nothing_can_go(graph))
        wanted = criterion or default_criterion(data, graph, progress, order_only=True)
        found = Scorer(graph, wanted, data, asked, seed, progress=progress).scores
        made = _uniform_plan(graph, keep, found, provenance("uniform", wanted, seed, {"keep": keep}), legal or Legal())
        return _remarked(made, shortfall(graph, 1 - keep, made.widths()), progress)
    options, allowed = options or SearchOptions(), legal or Legal()
    first = next(iter(models.values()), None)
    target = "; ".join(target_label(model.target) for model in models.values())
    batch = 1 if first is None else first.batch
    files = _files(graph, first, allowed, progress) if any(one.resource == "file_size" for one in budgets) else ()
    space: Space = precisions or elements or Channels(graph, first, batch=batch, files=files, on=models)
    search = find_strategy(strategy or DEFAULT_STRATEGY, options)
    planner = Planner(
        space.allowing(allowed),
        Scorer(graph, criterion, data, asked, seed, kept_rows(options.values), progress=progress),
        search if precisions is None else precisions.search(search),
        resources=tuple(budget.name for budget in budgets),
        target=target if elements is None else elements.target,
        images=images,
        rows=kept_rows(options.evaluations),
        progress=progress,
    )
    limits = _binding(budgets, planner.dense_costs)
    from secateurs.planning.elements.refinement import aligned
    from secateurs.structure.untouched import as_found

    with as_found(graph.model):
        made = planner.plan(planner.solve(limits), describe_budgets(budgets))
        for remark in made.provenance.get("warnings", ()):
            _tell(remark, progress)
        if elements is None:
            return made
        return aligned(graph.model, made, (graph.args, graph.kwargs), progress=progress)


def _files(graph: Graph, costs: LatencyModel | None, legal: Legal, progress: Progress) -> Sequence[Seen]:
    """Sizes of some networks' files where they hold other numbers than the network does."""
    from secateurs.measure.sizes import files_seen

    if costs is None or _precision(costs) not in QUANTISED:
        return ()
    return files_seen(graph, legal, str(costs.target["target"]), costs.batch, progress)


def _precision(costs: LatencyModel) -> str:
    """What the files hold that a latency model is of; one of an older version, or of one's own, may not say it."""
    return str(costs.target.get("precision", "f32"))


def _binding(budgets: Sequence[Budget], dense: Mapping[str, float]) -> dict[str, float]:
    """The budgets as ratios to what the dense network takes, by their names.

    Raises:
        PlanError: it is within all of them.
    """
    limits = {budget.name: budget.ratio(dense[budget.name]) for budget in budgets}
    if min(limits.values()) >= 1:
        raise PlanError(
            f"The budget ({describe_budgets(budgets)}) is not below what the dense network takes by the models: there "
            f"is nothing to prune. Give a lower {budgets[0].limited.option}."
        )
    return limits


def _check_kinds(
    graph: object, costs: object, strategy: object, criterion: object, seed: object, keep: object, legal: object
) -> None:
    """Raises PlanError where an argument is of another kind."""
    from secateurs.structure import Graph

    checked(Graph, graph, "plan(graph=)", "Give what sc.trace returned")
    checked(Annotated[int, Field(ge=0, lt=2**63)], seed, "plan(seed=)", "Give a whole number from 0 on")
    checked(float | None, keep, "plan(keep=)", "Give the share of units that stays, such as 0.5")
    checked(Legal | None, legal, "plan(legal=)", "Give a secateurs.Legal")
    if isinstance(costs, str):
        raise PlanError(f"plan(costs=) is {costs!r}. Give what sc.profile returned.")
    for name, value in (("costs", costs), ("strategy", strategy), ("criterion", criterion)):
        if isinstance(value, (int, float, dict, list)):
            raise PlanError(f"plan({name}=) is a {type(value).__name__}. Give a name or an object of that kind.")


def _by_name(models: Sequence[LatencyModel]) -> dict[str, LatencyModel]:
    """Latency models by the shortest names of their targets that tell them apart.

    Raises:
        PlanError: two are of the same target, or they are of other batch sizes.
    """
    if len({model.batch for model in models}) > 1:
        sizes = ", ".join(str(model.batch) for model in models)
        raise PlanError(f"The latency models are of batch sizes {sizes}. Profile all of them with the same batch=.")
    hosts = [f" at {model.target['host']}" if "host" in model.target else "" for model in models]
    short = [str(model.target.get("target", "target")) for model in models]
    longer = [name + host for name, host in zip(short, hosts, strict=True)]
    longest = [target_label(model.target) + host for model, host in zip(models, hosts, strict=True)]
    names = next((names for names in (short, longer, longest) if len(set(names)) == len(names)), None)
    if names is None:
        raise PlanError(f"Two latency models are of the same target ({', '.join(longest)}). Give one for each target.")
    return dict(zip(names, models, strict=True))


def _asked(task: Task | str | None, loss: Callable[[Any, Any], Tensor] | None) -> Task | None:
    """The task that a caller asks for; None: the default."""
    if task is None and loss is None:
        return None
    from secateurs.data.tasks import asked_task

    return asked_task(task, loss, None)


def _opened(
    graph: Graph,
    text: str,
    task: Task | None,
    normalize: str | Preprocessing | None,
    allow_chance: bool,
    seed: int,
    progress: Progress,
) -> Data:
    """The images of a source, on which the network is better than chance."""
    from secateurs.data import given, look
    from secateurs.models import own
    from secateurs.structure.untouched import as_found

    with as_found(graph.model):
        example, images = (graph.args, graph.kwargs), task is None or task.labels_images
        loaded = own(graph.model, graph.args if images else example, normalize, images=images)
        fed = None if task is None else task.fed(example, graph.model)
        opened = given(text, loaded, seed=seed, normalize=normalize, task=fed, progress=progress)
        for note in (*opened.notes, *look(loaded, opened, allow=allow_chance, progress=progress)):
            progress.say(note)
    return opened


def _uniform_plan(
    graph: Graph, keep: float, scores: Mapping[str, np.ndarray], described: Mapping[str, Any], legal: Legal
) -> Plan:
    from secateurs.search.uniform import keep_widths

    if not 0 < keep <= 1:
        raise PlanError(f"keep={keep} must lie in (0, 1]: it is the share of units that stays.")
    widths = dict(zip((group.name for group in graph.groups), keep_widths(graph.spec, keep).tolist(), strict=True))
    whole = set(legal.pins(widths))
    for group in graph.groups:
        least, most = legal.fewest(group.units), legal.widest.get(group.name, group.units)
        widths[group.name] = group.units if group.name in whole else min(max(widths[group.name], least), most)
    return make_plan(graph, scores, widths, (), described)


def _remarked(made: Plan, remark: str | None, progress: Progress) -> Plan:
    """The plan with the warnings that it carries on, told to whoever asked for it."""
    remarks = [*([remark] if remark is not None else []), *made.provenance.get("warnings", ())]
    for one in remarks:
        _tell(one, progress)
    return made.model_copy(update={"provenance": {**made.provenance, "warnings": remarks}}) if remarks else made


def _tell(remark: str, progress: Progress) -> None:
    if progress is silent:
        warnings.warn(remark, stacklevel=3)
    else:
        progress.say(f"Warning: {remark}")
