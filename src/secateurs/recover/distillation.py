"""The loss of fine-tuning: labels and the dense network's own answers."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


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
    Without a teacher it is the cross-entropy alone.

    Args:
        logits: [batch, classes] of the small network.
        labels: int64 [batch].
        teacher_logits: [batch, classes] of the dense network on the same (augmented) inputs, or None.
        alpha: share of the distillation term.
        temperature: T.
        label_smoothing: of the label term.
    """
    if teacher_logits is None or alpha == 0:
        return F.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing)
    student = F.log_softmax(logits.float() / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, dim=1)
    soft = F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2
    if alpha == 1:
        return soft
    return alpha * soft + (1 - alpha) * F.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing)
