"""Factors of groups' values, on a judge that knows which group matters."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from secateurs.importance.scoring import Scorer
from secateurs.models.cifar_resnet import CifarResNet
from secateurs.planning.channels import Channels
from secateurs.planning.multipliers import fit_multipliers
from secateurs.planning.planner import Planner
from secateurs.search.legal import Legal
from secateurs.search.problem import Evaluation
from secateurs.structure import trace

LIMITS = {"macs": 0.5}


@pytest.fixture(scope="module")
def planner() -> Planner:
    torch.manual_seed(0)
    graph = trace(CifarResNet(8, classes=4).eval(), torch.randn(1, 3, 16, 16))
    return Planner(Channels(graph, legal=Legal(blocks=False)), Scorer(graph, "l1"), resources=("macs",))


class Judge:
    """Every group but one may go for nothing; counts what it is asked."""

    def __init__(self, planner: Planner, wanted: int) -> None:
        self.units, self.wanted, self.asked = planner.graph.spec.dense_widths, wanted, 0

    def __call__(self, widths: np.ndarray, removed: frozenset[int]) -> Evaluation:
        self.asked += 1
        share = widths[self.wanted] / self.units[self.wanted]
        return Evaluation(0.0, details={"loss": 1.0 - float(share)})


def test_the_group_that_matters_is_kept(planner: Planner) -> None:
    plain = planner.solve(LIMITS).solution.widths
    wanted = int(np.argmin(plain / planner.graph.spec.dense_widths))
    judge = Judge(planner, wanted)
    fitted = fit_multipliers(planner, LIMITS, judge, trials=24, seed=1)
    assert judge.asked == 24
    assert fitted.before == judge(plain, frozenset()).details["loss"]
    assert fitted.after < fitted.before
    name = planner.graph.groups[wanted].name
    assert fitted.multipliers[name] > np.median(list(fitted.multipliers.values()))
    solution = fitted.planner.solve(LIMITS).solution
    assert judge(solution.widths, frozenset()).details["loss"] == fitted.after
    assert solution.predicted["macs"] <= 0.5 * planner.dense_costs["macs"] * (1 + 1e-9)
    for group, scores in planner.scores.items():
        assert np.array_equal(np.argsort(fitted.planner.scores[group]), np.argsort(scores))


def test_one_trial_changes_nothing_and_seeds_decide(planner: Planner) -> None:
    wanted = int(np.argmin(planner.solve(LIMITS).solution.widths / planner.graph.spec.dense_widths))
    one = fit_multipliers(planner, LIMITS, Judge(planner, wanted), trials=1)
    assert set(one.multipliers.values()) == {1.0}
    assert one.before == one.after
    runs = [fit_multipliers(planner, LIMITS, Judge(planner, wanted), trials=8, seed=s).multipliers for s in (4, 4, 5)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]
