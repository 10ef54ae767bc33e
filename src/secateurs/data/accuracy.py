"""What a network is worth on samples by its task's metric; of labelled images top-1, top-5 and loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from secateurs.data.calls import called, numbers, on, tensors_of
from secateurs.data.images import Images
from secateurs.data.nests import moved, widened
from secateurs.data.tasks.classification import ClassAnswers, Hits, among
from secateurs.data.tasks.meters import BLOCKS, Meter
from secateurs.data.tasks.task import Task, classification, same_form
from secateurs.errors import DataError
from secateurs.progress import Progress, silent

if TYPE_CHECKING:
    from secateurs.data.samples import Samples

__all__ = ["Scored", "accuracy", "among", "evaluate"]


@dataclass(frozen=True)
class Scored:
    """A network on so many samples (``images``): ``value`` of the task's metric and mean ``loss``.

    Of classification also what it answers: ``top1`` and ``top5``, fractions 0-1, ``correct`` bool [images] for
    comparing two networks image by image, ``predicted`` and ``labels`` int64 [images], numbered among the ``classes``
    that were compared.
    """

    value: float
    loss: float
    images: int
    meter: Meter

    @cached_property
    def parts(self) -> tuple[float, ...]:
        """The metric with each block of samples left out, () where that is not known or answers say more."""
        return self.meter.parts()

    @cached_property
    def answers(self) -> ClassAnswers | None:
        """Of classification what was answered, else None."""
        return self.meter.answers if isinstance(self.meter, Hits) else None

    @property
    def _known(self) -> ClassAnswers:
        assert self.answers is not None, "only classifiers answer with classes"
        return self.answers

    @property
    def top1(self) -> float:
        """Share that is right."""
        return self.value

    @property
    def top5(self) -> float:
        """Share whose label is among the five highest."""
        return self._known.top5

    @property
    def correct(self) -> Tensor:
        """Which are right."""
        return self._known.correct

    @property
    def predicted(self) -> Tensor:
        """The answers."""
        return self._known.predicted

    @property
    def labels(self) -> Tensor:
        """What would have been right."""
        return self._known.labels

    @property
    def classes(self) -> int:
        """How many there are."""
        return self._known.classes


def accuracy(
    module: nn.Module,
    images: Images,
    *,
    classes: Sequence[int] | None = None,
    batch: int | None = None,
    progress: Progress = silent,
) -> float:
    """Fraction of ``images`` whose highest logit (among ``classes``) is the label's."""
    return evaluate(module, images, classification(classes), batch=batch, progress=progress).value


def evaluate(
    module: nn.Module,
    images: Images | Samples,
    task: Task | None = None,
    *,
    batch: int | None = None,
    progress: Progress = silent,
) -> Scored:
    """All figures of one pass in evaluation mode; the module's mode is restored.

    Args:
        module: any network; for classification with outputs [batch, classes].
        images: what to run it on.
        task: says what the network is called with, its loss and its metric; None: classification.
        batch: samples at once; None chooses by their size, because on a CPU large activations cost several times more.
        progress: shows samples and the metric so far.

    Raises:
        DataError: there are no samples, the outputs are none that the task takes, a label is outside the classes,
            or the network gives NaN.
    """
    if len(images) == 0:
        raise DataError(f"There are no {images.name} images to evaluate on. Give data with at least one.")
    task = task or classification()
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    meter, loss, seen, first = task.meter(len(images)), 0.0, 0, None
    size = batch or _batch_size(images, task)
    with _evaluating(module), torch.inference_mode(), progress.task(f"evaluate on {images.name}", len(images)) as shown:
        for number, given in enumerate(images.batches(size), 1):
            given = moved(given, device)
            outputs = widened(called(module, on(task.called_with(given), device)))
            first = outputs if first is None else first
            same_form(first, outputs, number)
            count = min(len(images) - seen, size)
            meter.add(outputs, given, count)
            loss += task.total_loss(outputs, given, count)
            seen += count
            shown.advance(count, _so_far(task, meter))
    return Scored(meter.value(), loss / seen, seen, meter)


def _so_far(task: Task, meter: Meter) -> str:
    """What is shown on the way: a metric that is cheap to ask for."""
    return f"top-1 {meter.value():.2%}" if isinstance(meter, Hits) else task.measured.name


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """The module in evaluation mode."""
    modes = {child: child.training for child in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for child, training in modes.items():
            child.training = training


def _batch_size(images: Images | Samples, task: Task) -> int:
    inputs = task.called_with(images.batch(np.array([0])))
    first = next((tensor for _, tensor in tensors_of(inputs) if tensor.ndim), None)
    if isinstance(inputs, Tensor) and inputs.ndim > 2 and task.labels_images:
        return int(max(8, min(128, 400_000 // max(1, inputs[0, 0].numel()))))
    most = int(max(8, min(128, 400_000 // numbers(inputs)))) if first is not None else 8
    return most if task.labels_images else max(1, min(most, -(-len(images) // BLOCKS)))
