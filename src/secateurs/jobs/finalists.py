"""The best networks of a search that judges them untrained are trained for an epoch each, and the best one goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from secateurs.planning.closed_loop import Attempt
from secateurs.planning.planner import Choice, Planner
from secateurs.provenance import digest
from secateurs.structure import apply

if TYPE_CHECKING:
    from secateurs.jobs.run_folder import RunFolder
    from secateurs.jobs.training import Trainer
    from secateurs.search.problem import Candidate, Solution

EPOCHS = 1


@dataclass(frozen=True)
class Finalist:
    """One of them after its training: accuracy on the validation images."""

    accuracy: float


def chosen_by_training(
    planner: Planner,
    accepted: Attempt[Choice],
    measured: Callable[[Choice], Attempt[Choice]],
    fits: Callable[[Attempt[Choice]], bool],
    trainer: Trainer,
    folder: RunFolder,
) -> tuple[Attempt[Choice], str]:
    """The network of highest validation accuracy after one epoch, and a line for the user.

    Candidates are the search's ``settings.finalists`` best ones; those that do not fit when measured are left out. Each
    is cut, repaired and trained alike (docs/methods.md, "LAP procedure").

    Args:
        planner: names the units that stay.
        accepted: what the closed loop ended with; its solution knows the others.
        measured: measures a network.
        fits: whether a measured network is within every budget.
        trainer: trains; goes on where an earlier sitting stopped.
        folder: accuracies are recorded there.
    """
    solution = accepted.choice.solution
    points = solution.candidates[: trainer.settings.finalists]
    tried: list[tuple[float, int, Attempt[Choice]]] = []
    for number, point in enumerate(points, 1):
        attempt = measured(planner.choice(_as_solution(planner, solution, point)))
        if not fits(attempt):
            trainer.progress.say(f"Network {number} of {len(points)} is over a budget when measured: left out.")
            continue
        with folder.timed("finetune"):
            reached = _trained(planner, attempt.choice, trainer, folder)
        said = trainer.data.task.measured.said(reached)
        trainer.progress.say(f"Network {number} of {len(points)}: {said} on validation images after an epoch.")
        tried.append((reached, number, attempt))
    if len(tried) < 2:
        return accepted, "The search ended with one network within the budgets, so none was trained to choose."
    metric = trainer.data.task.measured
    best, number, attempt = max(tried, key=lambda entry: (metric.worth(entry[0]), -entry[1]))
    worst = min((entry[0] for entry in tried), key=metric.worth)
    line = (
        f"The {len(tried)} best networks of the search within the budgets were trained for an epoch each: validation "
        f"{metric.name} {metric.said(worst)} to {metric.said(best)}. The one that was number {number} before goes on."
    )
    return attempt, line


def _as_solution(planner: Planner, solution: Solution, point: Candidate) -> Solution:
    """The search's result if this network had been its best."""
    dense = planner.spec.dense_widths
    ratios = 1 - point.widths / dense
    for block in point.removed:
        ratios[list(planner.spec.blocks[block].groups)] = 1.0
    details = dict(solution.details)
    if "policy" in details:
        details["policy"] = [float(ratio) for ratio in ratios]
    if "summary" in details:
        details["summary"] = {**details["summary"], "accuracy": point.accuracy}
    return replace(
        solution,
        widths=point.widths,
        removed=point.removed,
        value=point.value,
        predicted=point.predicted,
        details=details,
    )


def _trained(planner: Planner, choice: Choice, trainer: Trainer, folder: RunFolder) -> float:
    """Validation accuracy of a network after an epoch, 0-1; from the folder where it was reached before."""
    name = f"finalist-{digest(choice.key, 12)}"
    held = folder.done(name, Finalist)
    if held is None:
        plan = planner.plan(choice)
        small = apply(trainer.dense, plan, trainer.example, check=False).eval()
        trainer.mend(small, plan)
        tuned = trainer.train(small, name, EPOCHS, plan)
        held = folder.record(name, Finalist(tuned.epochs[-1].validation_accuracy), Finalist)
    return held.accuracy
