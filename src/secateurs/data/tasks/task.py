"""What a network is for: how a batch becomes its inputs, its loss, its metric, and how two of its answers differ."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.budgets import ACCURACY, Metric
from secateurs.data.calls import CallInputs, Inputs, as_inputs
from secateurs.data.nests import described, form, leaves
from secateurs.data.tasks.classification import CrossEntropy, TopOne
from secateurs.data.tasks.distance import Distance, divergence, has_classes, relative_square
from secateurs.data.tasks.meters import Meter, measure
from secateurs.data.tasks.targets import target_of
from secateurs.errors import DataError, PlanError, SecateursError, why
from secateurs.provenance import name_of

DISTANCES = ("auto", "classes", "last-classes", "squared")


@dataclass(frozen=True)
class Task:
    """What a network is trained for and judged by.

    A batch is whatever the loaders give: any nest of tensors in tuples, lists, dicts and dataclasses. Loss and metric
    see the outputs as the network gives them, and the batch.

    Args:
        loss: mean loss of a batch, a scalar with a gradient, from (outputs, batch).
        metric: a function (outputs, batch) that returns a number per batch or per sample; or an object that wants all
            predictions at once, with ``update(*compared(outputs, batch))`` and ``compute()``, such as a torchmetrics
            metric or collection.
        name: of the metric; the key that counts where a collection computes several values.
        unit: ``%`` of a share 0-1, which is shown in percent; else that of its values, "" for none.
        better: ``higher`` or ``lower``; None takes what a torchmetrics metric says of itself, else ``higher``.
        inputs: what the network is called with, from a batch: a tensor, a tuple of positional inputs, a dict of keyword
            inputs, or (args, kwargs). By default the first entries of a tuple, or the entries of a dict that the
            example or the network's forward names.
        outputs: which of the outputs carry meaning when two networks are compared; by default all that are floats.
        distance: how two answers differ: ``classes`` (Kullback-Leibler over axis 1, also per pixel), ``last-classes``
            (over the last axis), ``squared`` (relative squared distance), ``auto`` (classes of [samples, classes],
            squared of everything else), or a function of two tensors that returns a scalar with a gradient.
        compared: what ``update`` is given, from (outputs, batch); by default the first output, and the last entry of a
            tuple or the ``labels``, ``targets`` … of a dict.
        kind: the task's own name.
        clip_norm: longest gradient in fine-tuning; None: by the network's kind, as for classification.

    Raises:
        PlanError: one of them is none of these.
    """

    loss: Callable[[Any, Any], Tensor]
    metric: Any
    name: str = ""
    unit: str = ""
    better: str | None = None
    inputs: Callable[[Any], Any] | None = None
    outputs: Callable[[Any], Any] | None = None
    distance: str | Distance = "squared"
    compared: Callable[[Any, Any], tuple[Any, ...]] | None = None
    kind: str = "own"
    clip_norm: float | None = 1.0
    _example: _Form = field(default_factory=lambda: _Form(), repr=False, compare=False)

    def __post_init__(self) -> None:
        if not callable(self.loss):
            raise PlanError(f"loss= is a {type(self.loss).__name__}. Give a function (outputs, batch) -> scalar.")
        measure(self.metric, self.arguments, self.title)
        if isinstance(self.distance, str) and self.distance not in DISTANCES:
            raise PlanError(
                f"distance={self.distance!r} is unknown. Give one of {', '.join(DISTANCES)}, or a function of two "
                f"tensors."
            )
        assert self.measured

    @property
    def labels_images(self) -> bool:
        """Whether samples may be labelled images that are opened and normalised here."""
        return self.answers_classes and self.inputs is None and self._example.image

    @property
    def answers_classes(self) -> bool:
        """Whether every sample has one class index."""
        return isinstance(self.metric, TopOne)

    @property
    def title(self) -> str:
        """The metric's name."""
        return self.name or getattr(self.metric, "__name__", type(self.metric).__name__)

    @cached_property
    def measured(self) -> Metric:
        """Name, unit and direction of the metric."""
        better = self.better
        if better is None:
            told = getattr(self.metric, "higher_is_better", None)
            better = "lower" if told is False else "higher"
        return Metric(self.title, self.unit, better)

    def meter(self, samples: int) -> Meter:
        """What takes the answers to so many samples."""
        return measure(self.metric, self.arguments, self.title).meter(samples)

    def arguments(self, outputs: Any, batch: Any) -> tuple[Any, ...]:
        """What a metric's ``update`` is given."""
        if self.compared is not None:
            found = self.compared(outputs, batch)
            return found if isinstance(found, tuple) else (found,)
        return next((tensor for _, tensor in leaves(outputs)), outputs), target_of(batch)

    def quick(self, outputs: Any, batch: Any) -> float | None:
        """The metric's sum over a training batch, None where it is not to be had at once."""
        found = getattr(self.metric, "quick", None)
        return None if found is None else float(found(outputs, batch))

    def fed(self, example: Any, module: nn.Module | None = None) -> Task:
        """The same for a network that is called like ``example``."""
        return self if self.inputs is not None else replace(self, _example=_form_of(example, module))

    def called_with(self, batch: Any) -> Inputs:
        """What the network is called with.

        Raises:
            DataError: a batch does not say, or ``inputs`` raised.
        """
        if self.inputs is None:
            return by_example(batch, self._example)
        try:
            return as_inputs(self.inputs(batch))
        except (Exception, SystemExit) as error:
            raise DataError(
                f"inputs= raised {why(error)} for a batch of {described(batch)}. It must give what the network is "
                f"called with."
            ) from error

    def loss_of(self, outputs: Any, batch: Any) -> Tensor:
        """The loss of a batch.

        Raises:
            DataError: it raised, is no scalar, or has no gradient where there should be one.
        """
        return self._checked(self.loss, outputs, batch)

    def total_loss(self, outputs: Any, batch: Any, samples: int) -> float:
        """The loss summed over a batch's samples."""
        total = getattr(self.loss, "total", None)
        if total is not None:
            return float(total(outputs, batch))
        return float(self._checked(self.loss, outputs, batch)) * samples

    def _checked(self, loss: Callable[[Any, Any], Tensor], outputs: Any, batch: Any) -> Tensor:
        try:
            found = loss(outputs, batch)
        except (SecateursError, MemoryError):
            raise
        except (Exception, SystemExit) as error:
            if isinstance(loss, CrossEntropy):
                raise
            raise DataError(
                f"The loss raised {why(error)}. It was called with outputs {described(outputs)} and a batch of "
                f"{described(batch)}: loss(outputs, batch) sees both as they are. Make it take them."
            ) from error
        if not isinstance(found, Tensor) or found.numel() != 1:
            form = f"shape {list(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
            raise DataError(f"The loss returned {form}, not one number as a tensor. Return its mean over the batch.")
        if torch.is_grad_enabled() and not found.requires_grad and _differentiable(outputs):
            raise DataError(
                "The loss has no gradient: it does not depend on the network's outputs by differentiable operations "
                "(.item(), .detach(), argmax and numpy end the graph). Compute it with tensors throughout."
            )
        return found.reshape(())

    def training_loss(
        self,
        outputs: Any,
        batch: Any,
        teacher: Any = None,
        *,
        alpha: float = 0.9,
        temperature: float = 4.0,
        label_smoothing: float = 0.0,
    ) -> Tensor:
        """``(1 - alpha) * loss + alpha * distance`` to the teacher's answers; the loss alone without a teacher.

        Distances over classes are taken at ``temperature``: Hinton et al. (arXiv 1503.02531).

        Raises:
            PlanError: labels are to be smoothed, and this loss has none.
        """
        loss: Callable[[Any, Any], Tensor] = self.loss
        if label_smoothing:
            smoothed = getattr(self.loss, "smoothed", None)
            if smoothed is None:
                raise PlanError("label_smoothing goes with classification only. Leave it 0, or smooth in the loss.")
            loss = smoothed(label_smoothing)
        if teacher is None or alpha == 0:
            return self._checked(loss, outputs, batch)
        soft = self.apart(outputs, teacher, temperature=temperature)
        return soft if alpha == 1 else alpha * soft + (1 - alpha) * self._checked(loss, outputs, batch)

    @property
    def compared_as(self) -> str:
        """Names how answers are compared, for what is kept from one run to the next; "" for classification."""
        if isinstance(self.metric, TopOne):
            return "" if self.metric.classes is None else f" {list(self.metric.classes)}"
        return f" {self.kind} {self.distance if isinstance(self.distance, str) else name_of(self.distance)}"

    @property
    def classes(self) -> tuple[int, ...] | None:
        """The outputs that count, where there are classes and not all do."""
        found: tuple[int, ...] | None = getattr(self.metric, "classes", None)
        return found

    @property
    def identity(self) -> tuple[str, ...]:
        """Names the task in identities; () of classification."""
        return () if isinstance(self.metric, TopOne) else (self.kind, self.title, self.compared_as)

    def telling(self, outputs: Any) -> list[Tensor]:
        """The outputs that carry meaning, as floats.

        Raises:
            DataError: ``outputs`` raised, or there are none.
        """
        try:
            chosen = outputs if self.outputs is None else self.outputs(outputs)
        except (Exception, SystemExit) as error:
            raise DataError(
                f"outputs= raised {why(error)} for outputs of {described(outputs)}. It must give those that count."
            ) from error
        found = [tensor for _, tensor in leaves(chosen) if tensor.is_floating_point()]
        if not found:
            raise DataError(
                f"The network gives {described(outputs)}: no floating-point tensor by which two networks could be "
                f"compared. Name them with Task(outputs=...)."
            )
        return [tensor if tensor.dtype == torch.float64 else tensor.float() for tensor in found]

    def apart(self, new: Any, old: Any, *, temperature: float = 1.0) -> Tensor:
        """How far two answers to the same batch are apart: 0 where they are the same, one differentiable number.

        Raises:
            DataError: the two are not built alike.
        """
        return self.distance_between(self.telling(new), self.telling(old), temperature=temperature)

    def distance_between(self, new: Sequence[Tensor], old: Sequence[Tensor], *, temperature: float = 1.0) -> Tensor:
        """The same for outputs that :meth:`telling` chose."""
        if [tuple(one.shape) for one in new] != [tuple(one.shape) for one in old]:
            raise DataError(
                f"Two networks answer the same batch in different forms: {described(list(new))} and "
                f"{described(list(old))}. Give a network whose outputs are always built alike, or choose those that "
                f"are with Task(outputs=...)."
            )
        terms = [self._distance(reached, wanted, temperature) for reached, wanted in zip(new, old, strict=True)]
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total

    def _distance(self, new: Tensor, old: Tensor, temperature: float) -> Tensor:
        if not isinstance(self.distance, str):
            return self.distance(new, old)
        if self.distance == "last-classes" and has_classes(old, -1):
            return divergence(new, old, axis=old.ndim - 1, temperature=temperature)
        if (self.distance == "classes" or (self.distance == "auto" and old.ndim == 2)) and has_classes(old):
            return divergence(new, old, temperature=temperature)
        return relative_square(new, old)


@dataclass(frozen=True)
class _Form:
    """How an example is given. ``positional``: what the forward calls those inputs; ``names``: of keyword inputs;
    ``image``: it is one image, as far as is known."""

    positional: tuple[str, ...] = ("",)
    names: tuple[str, ...] = ()
    image: bool = True


def _form_of(example: Any, module: nn.Module | None) -> _Form:
    inputs = as_inputs(example)
    count = len(inputs.args) if isinstance(inputs, CallInputs) else 1
    known = () if module is None else _named_inputs(module)
    names = tuple(inputs.kwargs) if isinstance(inputs, CallInputs) else ()
    return _Form((*known, *[""] * count)[:count], names, _is_image(inputs))


def _is_image(inputs: Inputs) -> bool:
    lone = _lone(inputs.args, dict(inputs.kwargs)) if isinstance(inputs, CallInputs) else inputs
    return isinstance(lone, Tensor) and lone.ndim == 4


def _named_inputs(module: nn.Module) -> tuple[str, ...]:
    """The names of a forward's inputs."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(module.forward).parameters
    return tuple(name for name, one in parameters.items() if one.kind in kinds)


def by_example(batch: Any, form: _Form) -> Inputs:
    """What a network is called with that is called like an example of this form.

    Raises:
        DataError: the batch does not have what the example has.
    """
    if isinstance(batch, Tensor):
        return batch
    if isinstance(batch, Mapping):
        lacking = [name for name in (*form.positional, *form.names) if name not in batch]
        if not lacking:
            return _lone(tuple(batch[name] for name in form.positional), {name: batch[name] for name in form.names})
        raise DataError(
            f"The network is called with {', '.join(filter(None, (*form.positional, *form.names))) or 'one input'}, "
            f"and a batch has {', '.join(map(repr, batch))}: {lacking[0]!r} is not among them. Give Task(inputs=...)."
        )
    if isinstance(batch, (tuple, list)) and batch:
        first, count = batch[0], len(form.positional)
        if count > 1 and isinstance(first, Tensor) and len(batch) > count:
            return as_inputs(tuple(batch[:count]))
        return by_example(first, form) if isinstance(first, Mapping) else as_inputs(first)
    raise DataError(
        f"A batch is {described(batch)}: it does not say what the network is called with. Give Task(inputs=...)."
    )


def _lone(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inputs:
    return args[0] if len(args) == 1 and not kwargs and isinstance(args[0], Tensor) else CallInputs(args, kwargs)


def _differentiable(outputs: Any) -> bool:
    return any(tensor.requires_grad for _, tensor in leaves(outputs))


def classification(classes: Sequence[int] | None = None) -> Task:
    """The default: one label per sample, cross-entropy, top-1 accuracy.

    ``classes``: outputs that count, None for all.
    """
    counted = None if classes is None else tuple(classes)
    return Task(
        CrossEntropy(counted),
        TopOne(counted),
        ACCURACY.name,
        ACCURACY.unit,
        ACCURACY.better,
        outputs=None if counted is None else _Chosen(counted),
        distance="auto",
        kind="classification",
        clip_norm=None,
    )


@dataclass(frozen=True)
class _Chosen:
    """Outputs restricted to some classes, where they are classes."""

    classes: tuple[int, ...]

    def __call__(self, outputs: Any) -> list[Tensor]:
        found = [tensor for _, tensor in leaves(outputs)]
        most = max(self.classes)
        return [x[:, list(self.classes)] if x.ndim == 2 and x.shape[1] > most else x for x in found]


def same_form(first: Any, other: Any, number: int) -> None:
    """Nothing, if two answers are built alike.

    Raises:
        DataError: they are not.
    """
    if form(first) != form(other):
        raise DataError(
            f"The network answers batch {number} with {described(other)}, the first one with {described(first)}: its "
            f"outputs change their form between batches, so they cannot be compared. Give a network that always "
            f"answers alike."
        )
