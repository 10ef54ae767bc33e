"""Each law of the criteria's contract can fail: for each there is a criterion that breaks it, and an honest one keeps
them all."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from secateurs.errors import PlanError
from secateurs.importance.context import Context, Criterion, needs, within_groups
from secateurs.structure import Graph, trace
from secateurs.testing.criteria import CriterionContract, batches, network, permuted


def norms(graph: Graph, group: str, context: Context) -> np.ndarray:
    """Norms of a unit's weights wherever it is made; zero where it has none."""
    weights = graph.model.state_dict()
    views = [view for view in graph.views(group) if view.role == "out"]
    return np.sum([view.matrix(weights[view.parameter]).double().norm(dim=1).numpy() for view in views], axis=0)


@needs("inputs")
def loud_inputs(graph: Graph, group: str, context: Context) -> np.ndarray:
    """The norm of what a unit's readers read."""
    inputs = context.gathered("loud_inputs", "inputs").inputs
    views = [view for view in graph.views(group) if view.role == "in" and view.layer in inputs]
    return np.sum([inputs[view.layer][view.indices].sum(axis=1) for view in views], axis=0)


def one_short(graph: Graph, group: str, context: Context) -> np.ndarray:
    return norms(graph, group, context)[1:]


def endless(graph: Graph, group: str, context: Context) -> np.ndarray:
    return np.full_like(norms(graph, group, context), np.inf)


def negative(graph: Graph, group: str, context: Context) -> np.ndarray:
    return -norms(graph, group, context)


def alike(graph: Graph, group: str, context: Context) -> np.ndarray:
    return np.ones_like(norms(graph, group, context))


def silent_refusal(graph: Graph, group: str, context: Context) -> np.ndarray:
    raise PlanError("no")


@needs("inputs")
def unknown_marks(graph: Graph, group: str, context: Context) -> np.ndarray:
    return norms(graph, group, context)


unknown_marks.needs = frozenset({"weather"})  # type: ignore[attr-defined]


@within_groups
def odd_marks(graph: Graph, group: str, context: Context) -> np.ndarray:
    return norms(graph, group, context)


odd_marks.compares_groups = "no"  # type: ignore[attr-defined]


def drawn_globally(graph: Graph, group: str, context: Context) -> np.ndarray:
    return norms(graph, group, context) + float(torch.rand(()))


def drawn_anew(graph: Graph, group: str, context: Context) -> np.ndarray:
    return norms(graph, group, context) * np.random.default_rng().uniform(1, 2)


def evaluating(graph: Graph, group: str, context: Context) -> np.ndarray:
    graph.model.eval()
    return norms(graph, group, context)


def scaling(graph: Graph, group: str, context: Context) -> np.ndarray:
    with torch.no_grad():
        next(graph.model.parameters()).mul_(1.5)
    return norms(graph, group, context)


def remembering(graph: Graph, group: str, context: Context) -> np.ndarray:
    graph.model.seen = True  # type: ignore[assignment]
    return norms(graph, group, context)


def with_gradients(graph: Graph, group: str, context: Context) -> np.ndarray:
    found = norms(graph, group, context)
    sum(parameter.sum() for parameter in graph.model.parameters()).backward()  # type: ignore[union-attr]
    return found


class Louder(CriterionContract):
    """Changes the samples on its way to the statistics."""

    def criterion(self) -> Criterion:
        return loud_inputs

    def _scores(self, graph: Graph, data: Any, seed: int = 0) -> dict[str, np.ndarray]:
        if data is not None and data[0][0].is_floating_point():
            data[0][0].mul_(2.0)
        return super()._scores(graph, data, seed)


def by_place(graph: Graph, group: str, context: Context) -> np.ndarray:
    found = norms(graph, group, context)
    return found + np.arange(len(found))


@needs("outputs")
def by_batch(graph: Graph, group: str, context: Context) -> np.ndarray:
    statistics = context.gathered("by_batch", "outputs")
    return statistics.outputs[group].batch


counted = itertools.count(1)


def in_turn(graph: Graph, group: str, context: Context) -> np.ndarray:
    return norms(graph, group, context) * next(counted)


def relative(graph: Graph, group: str, context: Context) -> np.ndarray:
    found = norms(graph, group, context)
    with np.errstate(invalid="ignore"):
        return found / found.sum()


def asks_for_nothing(graph: Graph, group: str, context: Context) -> np.ndarray:
    raise PlanError(f"Group {group} cannot be scored. Choose another criterion.")


@needs("inputs")
def speechless(graph: Graph, group: str, context: Context) -> np.ndarray:
    if context.statistics is None:
        raise PlanError("Something that this criterion needs is not there. Choose another criterion.")
    return norms(graph, group, context)


@needs("inputs")
def content_without(graph: Graph, group: str, context: Context) -> np.ndarray:
    return norms(graph, group, context)


BROKEN: dict[str, list[Criterion]] = {
    "test_it_says_what_it_is": [unknown_marks, odd_marks],
    "test_every_unit_has_one_finite_score": [one_short, endless, negative, alike, silent_refusal],
    "test_the_same_seed_gives_the_same_scores": [drawn_globally, drawn_anew],
    "test_the_network_and_the_data_are_left_as_they_were": [evaluating, scaling, remembering, with_gradients],
    "test_scores_follow_their_units": [by_place],
    "test_samples_count_and_not_batches": [by_batch],
    "test_groups_are_scored_one_by_one": [in_turn],
    "test_weights_of_zero_have_scores": [relative],
    "test_missing_data_is_asked_for": [asks_for_nothing, speechless, content_without],
}


class Trial(CriterionContract):
    """``given``: the criterion on trial, on convolutions and linear layers."""

    networks = ("convolutions", "linear")

    def __init__(self, given: Criterion) -> None:
        self.given = given

    def criterion(self) -> Criterion:
        return self.given


Trial.__test__ = Louder.__test__ = False  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("law", "criterion"),
    [pytest.param(law, one, id=f"{law}-{one.__name__}") for law, broken in BROKEN.items() for one in broken],  # type: ignore[attr-defined]
)
def test_a_law_can_fail(law: str, criterion: Criterion) -> None:
    # Scores that are no numbers are refused where they are read.
    fault = PlanError if law == "test_weights_of_zero_have_scores" else AssertionError
    with pytest.raises(fault):
        getattr(Trial(criterion), law)()


@pytest.mark.parametrize("law", BROKEN)
@pytest.mark.parametrize("criterion", [norms, loud_inputs])
def test_an_honest_criterion_keeps_every_law(law: str, criterion: Criterion) -> None:
    getattr(Trial(criterion), law)()


def test_changed_samples_are_seen() -> None:
    with pytest.raises(AssertionError, match="changed the samples"):
        Louder().test_the_network_and_the_data_are_left_as_they_were()


def test_a_refusal_must_be_announced() -> None:
    class Choosy(Trial):
        refuses = ("linear",)

    def no_linear(graph: Graph, group: str, context: Context) -> np.ndarray:
        if isinstance(graph.model, torch.nn.Sequential):
            raise PlanError(f"Group {group} belongs to a linear layer. Choose another criterion.")
        return norms(graph, group, context)

    def wordless(graph: Graph, group: str, context: Context) -> np.ndarray:
        if isinstance(graph.model, torch.nn.Sequential):
            raise PlanError("no")
        return norms(graph, group, context)

    Choosy(no_linear).test_every_unit_has_one_finite_score()
    with pytest.raises(AssertionError, match="linear: it says 'no'"):
        Choosy(wordless).test_every_unit_has_one_finite_score()
    with pytest.raises(AssertionError, match="linear: refused"):
        Trial(no_linear).test_every_unit_has_one_finite_score()


def test_every_law_is_shown_to_fail() -> None:
    assert set(BROKEN) == {name for name in dir(CriterionContract) if name.startswith("test_")}


@pytest.mark.parametrize("kind", CriterionContract.networks)
def test_networks_with_permuted_units_compute_the_same(kind: str) -> None:
    graph = trace(network(kind), batches(kind)[0][0])
    assert graph.groups
    rng = np.random.default_rng(0)
    moved = permuted(graph, {group.name: rng.permutation(group.units) for group in graph.groups})
    with torch.no_grad():
        ours, theirs = moved(batches(kind)[0][0]), graph.model(batches(kind)[0][0])
    assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    changed = [not torch.equal(a, b) for a, b in zip(moved.parameters(), graph.model.parameters(), strict=True)]
    assert sum(changed) > len(changed) / 2


def test_a_contract_without_a_criterion_says_what_to_do() -> None:
    with pytest.raises(AssertionError, match="override criterion"):
        CriterionContract().test_it_says_what_it_is()
