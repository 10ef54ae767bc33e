"""The loss of fine-tuning: labels and the dense network's own answers."""

from __future__ import annotations

from torch import Tensor

from secateurs.data.tasks.task import classification


def distillation_loss(
    logits: Tensor,
    labels: Tensor,
    teacher_logits: Tensor | None,
    *,
    alpha: float = 0.9,
    temperature: float = 4.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Mean loss of a batch: ``(1 - alpha) * CE(labels) + alpha * T² * KL(teacher || student)``, both at ``T``.

    Hinton et al. (arXiv 1503.02531); the factor T² keeps the gradient's size independent of the temperature.
    Without a teacher it is the cross-entropy alone. For other tasks see
    :meth:`secateurs.Task.training_loss`, which this is for classification.

    Args:
        logits: [batch, classes] of the small network.
        labels: int64 [batch].
        teacher_logits: [batch, classes] of the dense network on the same (augmented) inputs, or None.
        alpha: share of the distillation term.
        temperature: T.
        label_smoothing: of the label term.
    """
    return classification().training_loss(
        logits,
        (None, labels),
        teacher_logits,
        alpha=alpha,
        temperature=temperature,
        label_smoothing=label_smoothing,
    )
