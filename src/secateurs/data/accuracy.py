"""Top-1, top-5 and loss of a module on labelled images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateurs.data.images import Images
from secateurs.errors import DataError
from secateurs.progress import Progress, silent

_IGNORED = -100
"""The label that cross-entropy leaves out."""


@dataclass(frozen=True)
class Scored:
    """Fractions 0-1 (``top1``, ``top5``), mean cross-entropy ``loss``, and the number of ``images``.

    ``correct``: bool [images], for comparing two networks image by image; ``predicted`` and ``labels``: int64 [images],
    numbered among the ``classes`` that were compared.
    """

    top1: float
    top5: float
    loss: float
    images: int
    correct: Tensor
    predicted: Tensor
    labels: Tensor
    classes: int


def accuracy(
    module: nn.Module,
    images: Images,
    *,
    classes: Sequence[int] | None = None,
    batch: int | None = None,
    progress: Progress = silent,
) -> float:
    """Fraction of ``images`` whose highest logit (among ``classes``) is the label's."""
    return evaluate(module, images, classes=classes, batch=batch, progress=progress).top1


def evaluate(
    module: nn.Module,
    images: Images,
    *,
    classes: Sequence[int] | None = None,
    batch: int | None = None,
    progress: Progress = silent,
) -> Scored:
    """All figures of one pass in evaluation mode; the module's mode is restored.

    Args:
        module: any network with outputs [batch, classes].
        images: what to run it on.
        classes: restrict the argmax to these outputs.
        batch: images at once; None chooses by their size, because on a CPU large activations cost several times more.
        progress: shows images and accuracy so far.

    Raises:
        DataError: there are no images, the output is no [batch, classes] tensor, a label is outside ``classes``,
            or the network gives NaN.
    """
    if len(images) == 0:
        raise DataError(f"There are no {images.name} images to evaluate on. Give data with at least one.")
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    modes = {child: child.training for child in module.modules()}
    module.eval()
    predicted: list[Tensor] = []
    known: list[Tensor] = []
    right, top5, loss, outputs = 0, 0, 0.0, 0
    try:
        with torch.inference_mode(), progress.task(f"evaluate on {images.name}", len(images)) as task:
            for inputs, labels in images.batches(batch or _batch_size(images)):
                logits, labels = _restrict(module(inputs.to(device)), labels.to(device), classes)
                best = logits.topk(min(5, logits.shape[1]), dim=1).indices
                hits = best == labels[:, None]
                predicted.append(best[:, 0].cpu())
                known.append(labels.cpu())
                right, top5, outputs = right + int(hits[:, 0].sum()), top5 + int(hits.any(dim=1).sum()), logits.shape[1]
                loss += float(F.cross_entropy(logits.float(), labels, reduction="sum"))
                task.advance(len(labels), f"top-1 {right / sum(map(len, known)):.2%}")
    finally:
        for child, training in modes.items():
            child.training = training
    answers, labels, count = torch.cat(predicted), torch.cat(known), len(images)
    return Scored(right / count, top5 / count, loss / count, count, answers == labels, answers, labels, outputs)


def _batch_size(images: Images) -> int:
    inputs, _ = images.batch(np.array([0]))
    return int(max(8, min(128, 400_000 // max(1, inputs[0, 0].numel()))))


def _restrict(logits: Tensor, labels: Tensor, classes: Sequence[int] | None) -> tuple[Tensor, Tensor]:
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        form = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise DataError(
            f"The network gives {form}, not one score per image and class [batch, classes], so there is no top-1 "
            f"accuracy. 'prune' and 'front' work on classifiers; other networks go through trace, profile, plan and "
            f"apply ('secateurs plan', 'apply', 'export'), with training of your own in between: examples/own_loop.py."
        )
    if not bool(torch.isfinite(logits).all()):
        raise DataError("The network gives NaN or infinite outputs on these images. Check --weights and --normalize.")
    return among(logits, labels, classes)


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
