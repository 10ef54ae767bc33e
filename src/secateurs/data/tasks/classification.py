"""The default task: images with one label each, cross-entropy, and the share of them that is right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from secateurs.data.nests import leaves
from secateurs.data.tasks.targets import target_of
from secateurs.errors import DataError

_IGNORED = -100
"""The label that cross-entropy leaves out."""


def logits_of(outputs: Any) -> Tensor:
    """The first tensor that a network gives; of named outputs that called ``logits``, where there is one."""
    if isinstance(outputs, Tensor):
        return outputs
    named = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
    return named if isinstance(named, Tensor) else next(tensor for _, tensor in leaves(outputs))


def among(logits: Tensor, labels: Tensor, classes: Sequence[int] | None) -> tuple[Tensor, Tensor]:
    """Logits [batch, classes, ...] and labels as if the network had these outputs only; None leaves both alone.

    Labels of -100, which cross-entropy ignores, stay.

    Raises:
        DataError: labels are no class indices, or one is outside ``classes``.
    """
    if classes is None:
        return logits, labels
    if labels.is_floating_point() or labels.is_complex():
        raise DataError("Only some classes count, so labels must be class indices. Give --classes all, or indices.")
    if max(classes) >= logits.shape[1]:
        raise DataError(
            f"Class {max(classes)} counts, but the network has {logits.shape[1]} outputs. Give --classes all."
        )
    labels = labels.long()
    index = torch.full((logits.shape[1],), -1, dtype=torch.int64, device=logits.device)
    chosen = torch.tensor(list(classes), dtype=torch.int64, device=logits.device)
    index[chosen] = torch.arange(len(chosen), device=logits.device)
    known = (labels >= 0) & (labels < logits.shape[1])
    mapped = torch.where(known, index[labels.clamp(0, logits.shape[1] - 1)], -1)
    outside = (mapped < 0) & (labels != _IGNORED)
    if bool(outside.any()):
        label = int(labels[outside][0])
        raise DataError(f"Label {label} is not among the {len(chosen)} classes compared. Give --classes all.")
    mapped = torch.where(mapped < 0, labels, mapped)
    return logits[:, chosen], mapped


@dataclass(frozen=True)
class CrossEntropy:
    """Mean cross-entropy of the first output's logits, of a pair (inputs, labels); ``classes``: outputs that count."""

    classes: tuple[int, ...] | None = None
    smoothing: float = 0.0

    def __call__(self, outputs: Any, batch: Any) -> Tensor:
        """The loss."""
        logits, labels = self._compared(outputs, batch)
        return F.cross_entropy(logits, labels, label_smoothing=self.smoothing)

    def total(self, outputs: Any, batch: Any) -> Tensor:
        """Sum over the samples, for means over many batches."""
        return F.cross_entropy(*self._compared(outputs, batch), reduction="sum")

    def _compared(self, outputs: Any, batch: Any) -> tuple[Tensor, Tensor]:
        logits, labels = among(logits_of(outputs), target_of(batch), self.classes)
        return logits if logits.dtype == torch.float64 else logits.float(), labels

    def smoothed(self, smoothing: float) -> CrossEntropy:
        """The same with smoothed labels."""
        return CrossEntropy(self.classes, smoothing)


@dataclass(frozen=True)
class ClassAnswers:
    """Answers of a classifier. ``predicted``, ``labels``: int64 [samples], numbered among the ``classes`` that were
    compared; ``top5``: share of samples whose label is among the five highest."""

    predicted: Tensor
    labels: Tensor
    classes: int
    top5: float

    @property
    def correct(self) -> Tensor:
        """Which are right, bool [samples]."""
        return self.predicted == self.labels


@dataclass(frozen=True)
class TopOne:
    """Share of the samples whose highest logit (among ``classes``) is the label's."""

    classes: tuple[int, ...] | None = None

    def meter(self, total: int) -> Hits:
        """Counts them."""
        return Hits(self.classes)

    def quick(self, outputs: Any, batch: Any) -> float:
        """How many of a batch are right."""
        logits, labels = among(logits_of(outputs), target_of(batch), self.classes)
        return float((logits.detach().argmax(dim=1) == labels).sum())


class Hits:
    """Counts right answers, and keeps which they are."""

    def __init__(self, classes: tuple[int, ...] | None) -> None:
        self._classes = classes
        self._predicted: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._right = self._top5 = self._outputs = 0

    def add(self, outputs: Any, batch: Any, samples: int) -> None:
        """See :class:`~secateurs.data.tasks.meters.Meter`.

        Raises:
            DataError: the output is no [batch, classes] tensor of finite numbers, or a label is outside the classes.
        """
        logits, labels = among(_scores(outputs), target_of(batch), self._classes)
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices
        hits = best == labels[:, None]
        self._predicted.append(best[:, 0].cpu())
        self._labels.append(labels.cpu())
        self._right, self._top5 = self._right + int(hits[:, 0].sum()), self._top5 + int(hits.any(dim=1).sum())
        self._outputs = logits.shape[1]

    def value(self) -> float:
        """Top-1."""
        return self._right / sum(map(len, self._labels))

    def parts(self) -> tuple[float, ...]:
        """None: which answers are right says more."""
        return ()

    @property
    def answers(self) -> ClassAnswers:
        """Every answer."""
        predicted, labels = torch.cat(self._predicted), torch.cat(self._labels)
        return ClassAnswers(predicted, labels, self._outputs, self._top5 / len(labels))


def _scores(outputs: Any) -> Tensor:
    named = isinstance(outputs, Mapping) or hasattr(outputs, "logits")
    outputs = logits_of(outputs) if named and any(True for _ in leaves(outputs)) else outputs
    if not isinstance(outputs, Tensor) or outputs.ndim != 2:
        form = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise DataError(
            f"The network gives {form}, not one score per image and class [batch, classes], so there is no top-1 "
            f"accuracy. Say what it is trained for: --task NAME, or task=, loss= and metric= in Python (docs/tasks.md)."
        )
    if not bool(torch.isfinite(outputs).all()):
        raise DataError("The network gives NaN or infinite outputs on these images. Check --weights and --normalize.")
    return outputs
