"""Repair without training, the best of what is known: tried on the validation images, the best is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from secateurs.data.accuracy import Scored, evaluate
from secateurs.data.calls import numbers
from secateurs.data.images import Data
from secateurs.errors import DataError, StructureError
from secateurs.plan import Plan
from secateurs.progress import Progress, silent
from secateurs.recover.batch_norm import reestimate
from secateurs.recover.refit.least_squares import RefitSettings, correct_bias, least_squares

_PIXELS_AT_ONCE = 800_000
_CORRECTED = 4
"""Batches that biases are corrected on: means need few."""


@dataclass(frozen=True)
class Repaired:
    """What was done. ``chosen``: the kind that was kept; ``accuracies``: the metric on the validation samples per kind
    that was tried; ``notes``: lines for the user.
    """

    chosen: str
    accuracies: Mapping[str, float]
    notes: tuple[str, ...] = ()


def repair(
    dense: nn.Module,
    small: nn.Module,
    plan: Plan,
    data: Data,
    *,
    images: int = 1024,
    settings: RefitSettings | None = None,
    progress: Progress = silent,
) -> Repaired:
    """Bring ``small`` (in place) as close to ``dense`` as goes without training.

    Tried are: nothing, re-estimated batch norm (without any: corrected biases), least squares, and both after each
    other. What does best by the task's metric (then has the lowest loss) on up to 512 validation images is kept; the
    test images play no part.

    Args:
        dense: the network before the cut.
        small: ``apply(dense, plan)``; ends in evaluation mode.
        plan: what was cut.
        data: calibration images to repair on, validation images to choose by.
        images: most calibration images; memory may allow fewer.
        settings: of the least squares.
        progress: shows every step.
    """
    small.eval()
    calibration = data.calibration.take(images)
    size = batch_size(data)
    tried: dict[str, tuple[Scored, dict[str, Tensor]]] = {}
    notes: list[str] = []

    def judge(kind: str) -> None:
        found = evaluate(small, data.validation.take(512), data.task, progress=progress)
        tried[kind] = found, {name: tensor.detach().clone() for name, tensor in small.state_dict().items()}

    judge("nothing")
    done = reestimate(small, data.inputs(calibration, size), progress=progress)
    if done.layers:
        judge("batch norm")
    else:
        notes.append(done.note)
    batches = list(data.inputs(calibration, size))
    try:
        if not done.layers:
            correct_bias(dense, small, plan, batches[:_CORRECTED], progress=progress)
            judge("bias correction")
        small.load_state_dict(tried["nothing"][1])
        refitted = least_squares(dense, small, plan, batches, settings=settings, progress=progress)
        judge("least squares")
        notes.append(refitted.note)
    except (DataError, StructureError) as error:
        notes.append(f"Layers were not refitted: {error}")
    if "least squares" in tried and done.layers:
        reestimate(small, data.inputs(calibration, size), progress=progress)
        judge("least squares and batch norm")
    metric = data.task.measured
    chosen = max(tried, key=lambda kind: (metric.worth(tried[kind][0].value), -tried[kind][0].loss))
    small.load_state_dict(tried[chosen][1])
    best = tried[chosen][0]
    notes.append(f"Repair by {chosen}: {metric.said(best.value)} on {best.images} validation {data.samples}.")
    return Repaired(chosen, {kind: found.value for kind, (found, _) in tried.items()}, tuple(notes))


def batch_size(data: Data) -> int:
    """Samples per calibration batch: fewer of the large ones, whose activations would fall out of the caches."""
    images = data.calibration
    if len(images) == 0:
        raise DataError("There are no calibration images to repair on. Give data with more training images.")
    inputs = data.task.called_with(images.batch(np.array([0])))
    pixels = inputs[0, 0].numel() if isinstance(inputs, Tensor) and inputs.ndim > 1 else numbers(inputs)
    return int(max(8, min(128, _PIXELS_AT_ONCE // max(1, pixels), len(images))))
