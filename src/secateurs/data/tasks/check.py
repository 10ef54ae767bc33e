"""Whether a task and its data go with a network: tried on a few batches, before any work starts."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from secateurs.data.calls import called, on
from secateurs.data.nests import described, moved
from secateurs.data.tasks.task import Task, same_form
from secateurs.errors import DataError, SecateursError, why

if TYPE_CHECKING:
    from secateurs.data.images import Data

_SAMPLES = 4


def check_task(data: Data, module: nn.Module) -> None:
    """Nothing, if the network takes what the batches hold, and loss and metric take what it answers.

    Tried on a copy, in training and in evaluation mode; of the default task nothing is tried.

    Raises:
        DataError: one does not; or the loss is NaN, no scalar or without a gradient; the message says what it was
            given.
    """
    if data.asked is None:
        return
    task, trial = data.task, copy.deepcopy(module)
    device = next((parameter.device for parameter in trial.parameters()), torch.device("cpu"))
    batch = moved(data.train.batch(np.arange(min(_SAMPLES, len(data.train)))), device)
    with torch.random.fork_rng(devices=[]):
        _trained(task, trial, batch)
        first = None
        for number, part in enumerate((data.train, data.calibration, data.validation, data.test), 1):
            batch = moved(part.batch(np.arange(min(_SAMPLES, len(part)))), device)
            with torch.no_grad():
                outputs = _answered(task, trial.eval(), batch, part.name)
            first = outputs if first is None else first
            same_form(first, outputs, number)
            task.telling(outputs)
            meter = task.meter(_SAMPLES)
            meter.add(outputs, batch, min(_SAMPLES, len(part)))


def _trained(task: Task, trial: nn.Module, batch: Any) -> None:
    """One loss and its gradients."""
    trial.train().requires_grad_(True)
    loss = task.loss_of(_answered(task, trial, batch, "train"), batch)
    if not bool(torch.isfinite(loss)):
        raise DataError(
            f"The loss of the first training batch is {float(loss.detach())}, with {described(batch)}. The network "
            f"cannot be trained by it: check inputs, targets and the loss."
        )
    loss.backward()
    if all(parameter.grad is None for parameter in trial.parameters()):
        raise DataError(
            "The loss has no gradient to any weight of the network: it does not depend on what the network answers. "
            "Compute it from the outputs that loss(outputs, batch) is given."
        )


def _answered(task: Task, module: nn.Module, batch: Any, name: str) -> Any:
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    inputs = on(task.called_with(batch), device, copy=True)
    try:
        return called(module, inputs)
    except SecateursError:
        raise
    except (Exception, SystemExit) as error:
        raise DataError(
            f"The network does not take a batch of the {name} data: {why(error)}. The batch is {described(batch)}. "
            f"Give Task(inputs=...), which says what the network is called with, or batches that it was trained with."
        ) from error
