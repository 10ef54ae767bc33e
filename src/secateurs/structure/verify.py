"""The check: a cut network must compute what the dense network computes when it ignores the removed units."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from secateurs.errors import StructureError, why
from secateurs.plan import Plan
from secateurs.structure.build import build, cut_of
from secateurs.structure.comparison import (
    TOLERANCE,
    agree_where_stable,
    differences,
    leaves_of,
    nest_of,
    relative_difference,
    tensors_of,
)
from secateurs.structure.draws import Call
from secateurs.structure.modes import INTERPRETER, RUN_ONLY, calls_to_try, in_words
from secateurs.structure.oracle import Case, Oracle, run
from secateurs.structure.places import CodePlace, place_of
from secateurs.structure.precision import Settled, widened
from secateurs.structure.scratch import give_back
from secateurs.structure.slicing import cut_copy, require_sound
from secateurs.structure.untouched import quiet, untouched

if TYPE_CHECKING:
    from secateurs.structure.graph import Graph

SHAKES = 4
"""Runs with other rounding that tell which elements of an output rounding decides."""


def verify(
    model: nn.Module,
    plan: Plan,
    call: Call,
    *,
    seed: int = 0,
    graph: Graph | None = None,
    traced: Callable[[], Graph],
) -> float:
    """What :func:`secateurs.structure.check_plan` says, given the inputs and a way to trace the network (``traced``),
    which is asked where the check needs the graph and has none.

    Raises:
        StructureError: as there.
    """
    require_sound(model, plan.slices)
    with untouched(model, parameters=False), quiet():  # the copies share classes, globals, caches and hooks with it
        training = _judge_in_training(plan, graph)
        needed = plan.rebuild is not None or plan.provenance.get("statistics") or training == INTERPRETER
        if needed and graph is None:
            graph = traced()
        found, untried = _checked(_oracle(model, plan, call, seed, graph, traced)), ""
        if training is not None:
            oracle = _oracle_in_training(model, plan, call, seed, graph, traced, training)
            found, untried = (max(found, _checked(oracle)), "") if oracle.runs() else (found, oracle.failure)
    give_back(model)
    if untried:
        warnings.warn(
            f"The cut network was not tried in training mode: the dense one does not run so on redrawn weights "
            f"({untried}). Run a training step of the result, and of the dense network, before you rely on it.",
            stacklevel=3,
        )
    return found


def _judge_in_training(plan: Plan, graph: Graph | None) -> str | None:
    if plan.rebuild is None:
        return plan.provenance.get("training")
    return None if graph is None or graph.training is None else graph.judge_in_training


def _oracle(
    model: nn.Module, plan: Plan, call: Call, seed: int, graph: Graph | None, traced: Callable[[], Graph]
) -> Oracle:
    """The oracle of a plan; one that was asked last of this graph for the same cut is asked again."""
    needed = plan.rebuild is not None or bool(plan.provenance.get("statistics"))
    if needed and graph is not None:
        call = graph.program.example_inputs  # the batch that the graph was traced with
    last = None if graph is None else graph.__dict__.get("_oracle")
    if isinstance(last, Oracle) and last.answers(model, plan, seed):
        last.plan = plan
        return last
    oracle = Oracle(model, plan, call, graph, seed, traced=traced)
    if graph is not None:
        graph.__dict__["_oracle"] = oracle
    return oracle


def _oracle_in_training(
    model: nn.Module,
    plan: Plan,
    call: Call,
    seed: int,
    graph: Graph | None,
    traced: Callable[[], Graph],
    training: str,
) -> Oracle:
    """The same in training mode, on two samples where the example has one and the network takes two."""
    last = None if graph is None else graph.__dict__.get("_oracle_in_training")
    if isinstance(last, Oracle) and last.answers(model, plan, seed) and last.training == training:
        last.plan = plan
        return last
    for samples in calls_to_try(*call):
        oracle = Oracle(model, plan, samples, graph, seed, training, traced=traced)
        if oracle.runs():
            break
    if graph is not None:
        graph.__dict__["_oracle_in_training"] = oracle
    return oracle


def _checked(oracle: Oracle) -> float:
    drawn_as = oracle.drawn_as
    small = _cut(oracle)
    worst = 0.0
    for case in oracle.cases():
        if oracle.drawn_as != drawn_as:  # the network runs on its own buffers only
            del small
            drawn_as, small = oracle.drawn_as, _cut(oracle)
        found = _compared(oracle, small, case)
        worst = max(worst, found)
        if oracle.interpreted and oracle.plan.rebuild is not None and not case.optional:
            _require_nest(oracle, small, case)
    return worst


def _require_nest(oracle: Oracle, small: nn.Module, case: Case) -> None:
    """Nothing, if a rebuilt network returns what the network does but for the values of tensors, which alone the
    interpreter knows."""
    ours, theirs = run(small, case.inputs()), run(oracle.whole(), case.inputs())
    numbers = [[leaf for leaf in leaves_of(nest) if not isinstance(leaf, torch.Tensor)] for nest in (ours, theirs)]
    if nest_of(ours) != nest_of(theirs) or max(differences(*numbers), default=0.0) > TOLERANCE:
        raise CutError(
            f"The rebuilt network returns other outputs than the network: {in_words(ours)} in place of "
            f"{in_words(theirs)}. The original is intact. Return tensors in lists, tuples, dictionaries or dataclasses."
        )


def _cut(oracle: Oracle) -> nn.Module:
    try:
        return oracle.in_mode(_carried_out(oracle.source(), oracle.plan, oracle.graph))
    except Exception as error:
        raise _does_not_run(error, "") from error


def _compared(oracle: Oracle, small: nn.Module, case: Case) -> float:
    try:
        ours = _answer(oracle, small, case)
    except Exception as error:
        if case.optional and oracle.plan.rebuild is not None and isinstance(error, StructureError):
            return 0.0  # it says itself that it takes the traced sizes only
        where = " in training mode" if oracle.training else f" on {case}" if case.optional else ""
        raise _does_not_run(error, where, small) from error
    theirs = case.expected
    if oracle.training == RUN_ONLY and nest_of(ours) == nest_of(theirs):
        return 0.0
    found = relative_difference(ours, theirs)
    if found <= TOLERANCE:
        return found
    if not any(isinstance(leaf, (torch.Tensor, bool, int, float, complex)) for leaf in leaves_of(theirs)):
        raise StructureError(
            f"The network returns {type(theirs).__name__}, in which the check finds no tensor and no number to "
            "compare, so no cut can be proved right. The original is intact. Return tensors, in containers or "
            "dataclasses if you like."
        )
    settled = relative_difference(_answer(oracle, small, case, Settled()), oracle.settled(case))
    if settled <= TOLERANCE:  # values tied, and rounding alone had decided
        return settled
    if _differs_by_rounding(oracle, case, ours):
        return 0.0
    mode = " in training mode" if oracle.training else ""
    path = first_difference(oracle.dense(), small, oracle.plan, case)
    raise CutError(
        f"The cut network computes something else{mode}: relative difference {found:.2g} (allowed {TOLERANCE:g}) on "
        f"{case}, first at {path or 'the output'}. The original is intact. Please report the architecture; --keep "
        "PATTERN leaves the layer alone.",
        CodePlace(module=path, layer=path),
        ran=True,
    )


def _differs_by_rounding(oracle: Oracle, case: Case, ours: Any) -> bool:
    shaken = [oracle.shaken(case, 0)]
    if relative_difference(shaken[0], case.expected) <= TOLERANCE:
        return False
    shaken += [oracle.shaken(case, seed) for seed in range(1, SHAKES)]
    return agree_where_stable(ours, case.expected, shaken)


def _answer(oracle: Oracle, small: nn.Module, case: Case, *modes: Any) -> Any:
    found = run(small, case.inputs(), *modes)
    return tensors_of(found) if oracle.interpreted else found


class CutError(StructureError):
    """A cut network fails or computes something else. ``place``: where in the user's code, as far as that is known;
    ``ran``: it runs, but computes something else."""

    def __init__(self, message: str, place: CodePlace | None = None, *, ran: bool = False) -> None:
        super().__init__(message)
        self.place, self.ran = place or CodePlace(), ran

    @property
    def in_short(self) -> str:
        """What is wrong, without what to do."""
        return str(self).partition(" The original is intact.")[0]


def _does_not_run(error: Exception, where: str, network: nn.Module | None = None) -> CutError:
    place = CodePlace() if network is None else place_of(error, network)
    where += f" ({why(error)})" + (f", in {place}" if place.source else "")
    return CutError(
        f"The cut network does not run{where}. The original is intact. Please report the architecture; --keep PATTERN "
        "leaves the layer alone.",
        place,
    )


def _carried_out(dense: nn.Module, plan: Plan, graph: Graph | None) -> nn.Module:
    if plan.rebuild is None:
        return cut_copy(dense, plan)
    assert graph is not None
    built = build(graph, cut_of(graph, plan), dense.eval(), plan.rebuild)
    return built._apply(lambda one: one if isinstance(one, nn.Parameter) else widened(one))


def first_difference(dense: nn.Module, small: nn.Module, plan: Plan, case: Case) -> str:
    """Module path whose output differs first between the masked dense and the cut network; empty: the network's own."""
    ours, theirs = _outputs(small, case.inputs()), _outputs(dense, case.inputs())
    for name, output in ours.items():
        other = theirs.get(name)
        if other is None or output.dim() != other.dim():
            continue
        if output.shape != other.shape:
            other = _kept_channels(name, other, plan)
        if output.shape == other.shape and relative_difference(output, other) > TOLERANCE:
            return name
    return ""


def _kept_channels(name: str, output: torch.Tensor, plan: Plan) -> torch.Tensor:
    for leaf in ("weight", "bias"):
        axes = plan.slices.get(f"{name}.{leaf}", {})
        if 0 in axes:
            total = plan.fingerprint.shapes[f"{name}.{leaf}"][0]
            for dim in (1, output.dim() - 1):
                if output.shape[dim] == total:
                    return output.index_select(dim, torch.tensor(axes[0]))
    return output


def _outputs(model: nn.Module, call: Call) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}

    def remember(name: str) -> Any:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor) and name not in found:
                found[name] = output.detach().clone()  # the next layer may change it in place

        return hook

    handles = [module.register_forward_hook(remember(name)) for name, module in model.named_modules()]
    try:
        run(model, call)
    except Exception:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return found
