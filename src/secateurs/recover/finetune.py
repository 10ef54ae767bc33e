"""Fine-tuning a cut network, with the dense one as its teacher."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from secateurs.data.accuracy import evaluate
from secateurs.data.calls import Inputs, called, changed, on
from secateurs.data.images import Data
from secateurs.data.nests import moved, widened
from secateurs.errors import PlanError
from secateurs.progress import Progress, Task, silent
from secateurs.recover import parallel
from secateurs.recover.allocation import freed_memory_kept
from secateurs.recover.averaging import MovingAverage
from secateurs.recover.checkpoint import Checkpoint, DamagedCheckpointError, digest
from secateurs.recover.companion import Companion
from secateurs.recover.precision import Mode, arrange_weights, fastest_mode
from secateurs.recover.randomness import generator_for, seed_all, undisturbed
from secateurs.recover.recipe import Recipe, learning_rate
from secateurs.structure.copies import deep_copy
from secateurs.structure.layout import arrange, layout_of

_SAVE_SECONDS = 30.0
_SAVE_FACTOR = 50.0
_RATE_WITH_NORM, _RATE_WITHOUT = 0.05, 0.005
_LONG, _SHORT = 3500, 140
"""Steps from which on the full rate is right, since a shorter run has no time to recover from it, and below which a run
has hardly time at all."""
_CLIP_WITHOUT = 1.0


@dataclass(frozen=True)
class Epoch:
    """Means over one epoch: ``loss``, ``train_accuracy`` on augmented images, ``validation_accuracy``; of other tasks
    than classification values of their metric, None where it is not to be had while training."""

    loss: float
    train_accuracy: float | None
    validation_accuracy: float


@dataclass(frozen=True)
class Finetuned:
    """The trained module (the very one that was given), how each epoch went, and what was decided."""

    module: nn.Module
    epochs: tuple[Epoch, ...]
    mode: Mode
    resumed_at: int
    """Steps that were already done when this call began."""


def finetune(
    student: nn.Module,
    data: Data,
    recipe: Recipe,
    *,
    teacher: nn.Module | None = None,
    companion: Companion | None = None,
    checkpoint_dir: Path | str | None = None,
    resume: bool = False,
    progress: Progress = silent,
) -> Finetuned:
    """Train ``student`` in place on ``data.train`` by the task's loss, and towards ``teacher``'s outputs.

    A checkpoint is written after every epoch and every half minute. With ``resume`` the run goes on from the last one
    and ends bit for bit where an uninterrupted run on the same machine ends (CPU, same number of threads): order,
    augmentation and dropout of every step follow from (seed, epoch, step) alone. Ctrl-C loses at most half a minute.

    Under ``torchrun`` (see :mod:`secateurs.recover.parallel`) every process takes its share of each batch; all call
    this with the same arguments, and the first writes the checkpoints, which all read.

    Args:
        student: the cut network; ends in evaluation mode.
        data: ``train`` is learnt from, ``validation`` only watched; its task says how.
        recipe: all settings.
        teacher: the dense network, unchanged; None trains on the labels alone.
        companion: takes part in every step, such as :class:`~secateurs.recover.features.Features`.
        checkpoint_dir: where checkpoints go; None keeps none.
        resume: go on from a checkpoint there, if there is one.
        progress: shows steps, loss and accuracy.

    Raises:
        PlanError: the loss is not finite, the checkpoint belongs to another run, or it cannot be written.
    """
    folder = None if checkpoint_dir is None else Path(checkpoint_dir)
    run = _Run(student, data, recipe, teacher, folder, companion or Companion())
    if resume:
        run.restore(progress)
    resumed_at = run.step
    shown = progress if parallel.rank() == 0 else silent
    steps = recipe.epochs * run.steps_per_epoch
    with undisturbed(), freed_memory_kept(), _evaluating(run.teacher), shown.task("fine-tune", steps) as task:
        task.advance(run.step)
        run.settle_mode()
        with run.companion.attached(student, run.teacher):
            while run.step < steps:
                run.train_epoch(task)
    run.finish()
    return Finetuned(student, tuple(run.history), run.settled, resumed_at)


class _Run:
    """Everything that changes from step to step."""

    def __init__(
        self,
        student: nn.Module,
        data: Data,
        recipe: Recipe,
        teacher: nn.Module | None,
        folder: Path | None,
        companion: Companion,
    ) -> None:
        self.companion, self.layout = companion, layout_of(student)
        parallel.same_everywhere(student)
        self.student, self.data, self.recipe, self.folder = student, data, recipe, folder
        self.teacher = None if recipe.alpha == 0 else teacher
        self.device = next(student.parameters()).device
        self.steps_per_epoch = max(1, len(data.train) // recipe.batch)
        normed = any(isinstance(child, _BatchNorm) for child in student.modules())
        self.peak = recipe.lr if recipe.lr is not None else default_rate(normed, recipe.epochs * self.steps_per_epoch)
        self.task, clip = data.task, recipe.clip_norm if recipe.clip_norm is not None else data.task.clip_norm
        self.clip = clip if clip is not None or normed else _CLIP_WITHOUT
        self.optimizer = _optimizer(student, recipe)
        self.average = None if recipe.ema is None else MovingAverage(student, recipe.ema)
        self.mode: Mode | None = None
        self.step = 0
        self.history: list[Epoch] = []
        self.sums = [0.0, 0.0, 0.0]
        self.quick = False
        self.next_save = time.monotonic() + _SAVE_SECONDS
        self.identity = {
            "recipe": recipe.to_json(),
            "network": digest(student),
            "teacher": None if self.teacher is None else digest(self.teacher),
            "companion": companion.identity,
            "images": [data.name, len(data.train), data.train.identity],
            **({} if data.classes is None else {"classes": list(data.classes)}),
            **({} if data.asked is None else {"task": f"{data.asked.kind} {data.asked.title}"}),
        }

    def settle_mode(self) -> None:
        """Decide on precision and layout once; a resumed run keeps the first decision."""
        if self.mode is None and self.recipe.epochs == 0:
            self.mode = Mode()
        elif self.mode is None:
            few = self.data.train.batch(np.arange(min(self.recipe.batch, len(self.data.train))))
            found = fastest_mode(
                self.student,
                self.teacher,
                on(self.task.called_with(few), self.device),
                precision=self.recipe.precision,
                layout=self.recipe.layout,
                steps=self.recipe.epochs * self.steps_per_epoch,
            )
            precision, layout = parallel.same_text(f"{found.precision} {found.layout}").split()
            self.mode = Mode(precision, layout)
        if self.mode.layout == "channels_last":
            arrange_weights(self.student, torch.channels_last)
        if self.step == 0:
            self.save()

    @property
    def settled(self) -> Mode:
        """The mode, once it is decided."""
        return self.mode or Mode()

    def train_epoch(self, task: Task) -> None:
        """Steps up to the next epoch's start."""
        metric = self.task.measured
        self.student.train()
        epoch, first = divmod(self.step, self.steps_per_epoch)
        order = torch.randperm(len(self.data.train), generator=generator_for(self.recipe.seed, epoch)).numpy()
        for index in range(first, self.steps_per_epoch):
            chosen = order[index * self.recipe.batch : (index + 1) * self.recipe.batch]
            self._train_step(chosen, epoch, index)
            seen = max(1.0, self.sums[2])
            note = f"epoch {epoch + 1}/{self.recipe.epochs}  loss {self.sums[0] / seen:.3f}"
            reached = self._train_metric(seen)
            task.advance(1, note if reached is None else f"{note}  train {metric.name} {metric.said(reached)}")
            if index + 1 < self.steps_per_epoch and time.monotonic() > self.next_save:
                self.save()
        found = evaluate(self._result(), self.data.validation, self.task).value
        self.history.append(Epoch(self.sums[0] / self.sums[2], self._train_metric(self.sums[2]), found))
        self.sums = [0.0, 0.0, 0.0]
        task.advance(0, f"epoch {epoch + 1}/{self.recipe.epochs}  validation {metric.name} {metric.said(found)}")
        self.save()

    def _train_metric(self, seen: float) -> float | None:
        """The metric over the epoch so far, on so many augmented samples."""
        return self.sums[1] / seen if self.quick else None

    def _result(self) -> nn.Module:
        """The network that would be returned now."""
        if self.average is None:
            return self.student
        averaged = deep_copy(self.student, {})
        averaged.load_state_dict(self.average.tensors)
        return averaged

    def _train_step(self, chosen: np.ndarray, epoch: int, index: int) -> None:
        rank, size = parallel.rank(), parallel.size()
        generator = generator_for(self.recipe.seed, epoch, index, rank)
        seed_all(generator)
        mine = chosen[rank::size]
        batch = moved(self.data.train.batch(mine, augment=self.recipe.augment, generator=generator), self.device)
        inputs = self.settled.arrange(on(self.task.called_with(batch), self.device))
        rate = learning_rate(self.step, self.recipe.epochs * self.steps_per_epoch, self.peak, self.recipe.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss, outputs = self._loss(inputs, batch)
        right = self.task.quick(outputs, batch)
        self.quick = right is not None
        sums = parallel.total((float(loss.detach()) * len(mine), right or 0.0, float(len(mine))), self.device)
        if not np.isfinite(sums[0]):
            raise PlanError(
                f"Fine-tuning diverged: the loss is {sums[0]} in epoch {epoch + 1}, step {index + 1}, at rate "
                f"{rate:.2g}. Give a smaller --lr than {self.peak:g}."
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parallel.average_gradients(self.student.parameters(), len(mine) / len(chosen))
        self.companion.after_backward(self.student, self.step)
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.student.parameters(), self.clip)
        self.optimizer.step()
        parallel.average_buffers(self.student)
        if self.average is not None:
            self.average.update(self.student, self.step)
        self.step += 1
        self.sums = [held + new for held, new in zip(self.sums, sums, strict=True)]

    def _loss(self, inputs: Inputs, batch: Any) -> tuple[Tensor, Any]:
        """The batch's loss, and what the student answers."""
        recipe, soft = self.recipe, None
        with self.settled.autocast(self.device):
            if self.teacher is not None:
                with torch.no_grad():
                    soft = called(self.teacher, changed(inputs, Tensor.clone))  # it may change them in place
            outputs = self.companion.forward(self.student, inputs)
        outputs = widened(outputs)
        loss = self.task.training_loss(
            outputs,
            batch,
            soft,
            alpha=recipe.alpha,
            temperature=recipe.temperature,
            label_smoothing=recipe.label_smoothing,
        )
        further = self.companion.loss()
        return loss if further is None else loss + further, outputs

    def save(self) -> None:
        """Write a checkpoint of this very step."""
        if self.folder is None or parallel.rank() != 0:
            return
        tensors = {f"student.{name}": tensor for name, tensor in self.student.state_dict().items()}
        for name, parameter in self.student.named_parameters():
            momentum = self.optimizer.state.get(parameter, {}).get("momentum_buffer")
            if momentum is not None:
                tensors[f"momentum.{name}"] = momentum
        if self.average is not None:
            tensors.update({f"average.{name}": tensor for name, tensor in self.average.tensors.items()})
        tensors.update({f"companion.{name}": tensor for name, tensor in self.companion.tensors().items()})
        state: dict[str, Any] = {
            "step": self.step,
            "precision": self.settled.precision,
            "layout": self.settled.layout,
            "sums": self.sums,
            "history": [[epoch.loss, epoch.train_accuracy, epoch.validation_accuracy] for epoch in self.history],
        }
        start = time.monotonic()
        Checkpoint(tensors, self.identity, state).save(self.folder)
        # a slow disk must not eat the training time: wait at least fifty times as long as the writing took
        took = time.monotonic() - start
        self.next_save = start + took + max(_SAVE_SECONDS, _SAVE_FACTOR * took)

    def restore(self, progress: Progress) -> None:
        """Go back to the checkpoint's step, if there is a checkpoint; from a damaged one training begins anew, and
        goes the same way."""
        held = None
        try:
            held = None if self.folder is None else Checkpoint.load(self.folder, self.identity)
        except DamagedCheckpointError as error:
            progress.say(f"{error} The training begins anew.")
        if held is None:
            return
        self.student.load_state_dict(held.part("student"))
        momenta = held.part("momentum")
        for name, parameter in self.student.named_parameters():
            if name in momenta:
                self.optimizer.state[parameter]["momentum_buffer"] = momenta[name].to(self.device)
        if self.average is not None:
            self.average.load(held.part("average"))
        self.companion.restore(held.part("companion"))
        self.step, self.mode = int(held.state["step"]), Mode(held.state["precision"], held.state["layout"])
        self.sums = [float(value) for value in held.state["sums"]]
        self.history = [Epoch(*values) for values in held.state["history"]]

    def finish(self) -> None:
        """Put the averaged weights in place, where there are some."""
        if self.average is not None and self.step:
            self.student.load_state_dict(self.average.tensors)
        arrange(self.student.eval(), self.layout)


def default_rate(normed: bool, steps: int) -> float:
    """Peak learning rate of a run of so many steps, for networks with batch norm and without.

    The rate grows with the square root of the steps. Measured on resnet20 cut to half of its latency, 125 steps:
    84.5 % training accuracy at 0.015, 80.6 % at 0.05 (benchmarks/learning_rate.py). Below :data:`_SHORT` steps it grows
    with the steps: a few steps at a rate that moves the weights far end below where they began.
    """
    full = _RATE_WITH_NORM if normed else _RATE_WITHOUT
    share = math.sqrt(steps / _LONG) if steps >= _SHORT else math.sqrt(_SHORT / _LONG) * steps / _SHORT
    return full * min(1.0, share)


def _optimizer(student: nn.Module, recipe: Recipe) -> torch.optim.SGD:
    trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.SGD(groups, lr=0.0, momentum=recipe.momentum, nesterov=recipe.momentum > 0)


@contextmanager
def _evaluating(teacher: nn.Module | None) -> Iterator[None]:
    """The teacher in evaluation mode; its modes are restored."""
    modes = {} if teacher is None else {child: child.training for child in teacher.modules()}
    if teacher is not None:
        teacher.eval()
    try:
        yield
    finally:
        for child, training in modes.items():
            child.training = training
