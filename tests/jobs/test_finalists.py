"""The best networks of a search are trained for an epoch each: who takes part, who wins, what a kill leaves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import training_job
from torch import nn

import secateurs as sc
from secateurs.data.tasks import classification
from secateurs.importance.scoring import Scorer
from secateurs.jobs import finalists
from secateurs.jobs.finalists import Finalist, chosen_by_training
from secateurs.jobs.run_folder import RunFolder
from secateurs.plan import Measurement
from secateurs.planning.channels import Channels
from secateurs.planning.closed_loop import Attempt
from secateurs.planning.planner import Choice, Planner
from secateurs.progress import silent
from secateurs.search.problem import Solution

LOADED = training_job.network()
GRAPH = sc.trace(LOADED.module, LOADED.example())
PLANNER = Planner(Channels(GRAPH), Scorer(GRAPH, "l2"), resources=("macs",))
DENSE = GRAPH.spec.dense_widths


class Training:
    """Every network reaches what it is told, in the order in which they come; notes what it trained."""

    def __init__(self, reached: list[float], wanted: int = 3) -> None:
        self.reached, self.settings = list(reached), SimpleNamespace(finalists=wanted)
        self.dense, self.example, self.progress = LOADED.module, LOADED.example(), silent
        self.data = SimpleNamespace(task=classification())
        self.trained: list[tuple[str, int]] = []
        self.mended = 0

    def mend(self, small: nn.Module, plan: sc.Plan) -> None:
        self.mended += 1

    def train(self, small: nn.Module, name: str, epochs: int, plan: sc.Plan) -> Any:
        widths = tuple(len(kept) for kept in plan.groups.values())
        assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in self.dense.parameters()), widths
        self.trained.append((name, epochs))
        return SimpleNamespace(epochs=[SimpleNamespace(validation_accuracy=self.reached.pop(0))])


def solution(count: int, **details: Any) -> Solution:
    """With so many candidates, each narrower than the one before; the last ones without a block."""
    problem = PLANNER.problem({"macs": 1.0})
    points = []
    for number in range(count):
        widths, removed = DENSE - 1 - number, frozenset({0} if number > 1 else ())
        points.append(problem.candidate(widths, removed, accuracy=0.9 - 0.1 * number))
    best = points[0]
    return Solution(best.widths, best.removed, best.value, best.predicted, None, 1.0, tuple(points), details)


def attempt(choice: Choice) -> Attempt[Choice]:
    return Attempt(choice, Measurement(1.0, 0.0, 9, 0.5, 0.51))


def ended(
    folder: Path,
    training: Training,
    found: Solution,
    fits: Callable[[Attempt[Choice]], bool] = lambda attempt: True,
) -> tuple[Attempt[Choice], str]:
    with RunFolder.create(folder, {}) if not folder.exists() else RunFolder.resume(folder) as opened:
        accepted = attempt(PLANNER.choice(found))
        return chosen_by_training(PLANNER, accepted, attempt, fits, training, opened)  # type: ignore[arg-type]


def widths_of(chosen: Attempt[Choice]) -> list[int]:
    return chosen.choice.solution.widths.tolist()


def test_the_most_accurate_one_after_an_epoch_goes_on(tmp_path: Path) -> None:
    training, found = Training([0.5, 0.7, 0.6]), solution(5)
    chosen, line = ended(tmp_path / "run", training, found)
    assert widths_of(chosen) == found.candidates[1].widths.tolist()
    assert "The 3 best networks" in line
    assert "50.00% to 70.00%" in line
    assert "number 2 before" in line
    assert [epochs for _, epochs in training.trained] == [1, 1, 1]
    assert len({name for name, _ in training.trained}) == training.mended == 3


def test_of_equal_ones_the_first(tmp_path: Path) -> None:
    chosen, line = ended(tmp_path / "run", Training([0.5, 0.6, 0.6]), solution(3))
    assert "number 2 before" in line
    assert widths_of(chosen) == solution(3).candidates[1].widths.tolist()


def test_those_over_a_budget_when_measured_are_left_out(tmp_path: Path) -> None:
    found = solution(3)
    over = found.candidates[0].widths.tolist()
    training = Training([0.6, 0.5])
    chosen, line = ended(tmp_path / "run", training, found, lambda one: widths_of(one) != over)
    assert len(training.trained) == 2
    assert "The 2 best networks" in line
    assert widths_of(chosen) == found.candidates[1].widths.tolist()


@pytest.mark.parametrize("within", [0, 1])
def test_one_alone_is_not_trained_to_choose(tmp_path: Path, within: int) -> None:
    found = solution(3)
    fitting = [point.widths.tolist() for point in found.candidates[:within]]
    chosen, line = ended(tmp_path / "run", Training([0.6]), found, lambda one: widths_of(one) in fitting)
    assert widths_of(chosen) == found.widths.tolist()
    assert "none was trained to choose" in line


def test_what_was_trained_before_a_kill_is_not_trained_again(tmp_path: Path) -> None:
    class Killed(Training):
        def train(self, small: nn.Module, name: str, epochs: int, plan: sc.Plan) -> Any:
            if len(self.trained) == 2:
                raise KeyboardInterrupt
            return super().train(small, name, epochs, plan)

    with pytest.raises(KeyboardInterrupt):
        ended(tmp_path / "run", Killed([0.5, 0.8]), solution(3))
    after = Training([0.6])
    chosen, line = ended(tmp_path / "run", after, solution(3))
    assert len(after.trained) == 1
    assert "50.00% to 80.00%" in line
    assert widths_of(chosen) == solution(3).candidates[1].widths.tolist()
    with RunFolder.resume(tmp_path / "run") as folder:
        assert folder.done(after.trained[0][0], Finalist) == Finalist(0.6)


def test_a_candidate_as_the_result_tells_its_own_figures() -> None:
    found = solution(3, policy=[0.1] * len(DENSE), summary={"accuracy": 0.9, "evaluations": 7}, history=[1, 2])
    point = found.candidates[2]
    made = finalists._as_solution(PLANNER, found, point)
    assert np.array_equal(made.widths, point.widths)
    assert (made.removed, made.value, made.predicted) == (point.removed, point.value, point.predicted)
    assert made.details["summary"] == {"accuracy": point.accuracy, "evaluations": 7}
    assert made.details["history"] == [1, 2]
    inside = set(GRAPH.spec.blocks[0].groups)
    for group, ratio in enumerate(made.details["policy"]):
        expected = 1.0 if group in inside else 1 - point.widths[group] / DENSE[group]
        assert ratio == pytest.approx(expected)
    plain = finalists._as_solution(PLANNER, replace(found, details={}), point)
    assert plain.details == {}
