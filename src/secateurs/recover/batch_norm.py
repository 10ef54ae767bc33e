"""Batch-norm statistics for a cut network, from calibration images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from secateurs.data.calls import CallInputs, Inputs, called, on
from secateurs.errors import DataError
from secateurs.progress import Progress, silent


@dataclass(frozen=True)
class Reestimated:
    """What was done: ``layers`` whose statistics are new, ``images`` they come from, and a line for the user."""

    layers: int
    images: int
    note: str


def reestimate(
    module: nn.Module, batches: Iterable[Inputs | Sequence[Tensor]], *, progress: Progress = silent
) -> Reestimated:
    """Replace the running mean and variance of every batch norm in ``module``; weights stay.

    Cumulative averaging over all batches (``momentum=None``), as EagleEye (arXiv 2007.02491) does before it judges
    a pruned network. Use at least some hundred images in batches of 64 or more. A network without batch norm is
    left as it is, and the result says so.

    Args:
        module: changed in place; modes and momenta are restored.
        batches: inputs, or (inputs, labels) pairs. A last batch smaller than the first is left out, because every
            batch counts the same.
        progress: shows the batches.

    Raises:
        DataError: there are no batches, or the statistics come out as NaN.
    """
    norms = [child for child in module.modules() if isinstance(child, _BatchNorm) and child.running_mean is not None]
    if not norms:
        return Reestimated(0, 0, "The network has no batch-norm statistics; nothing was re-estimated.")
    held = {child: child.training for child in module.modules()}
    momenta = [norm.momentum for norm in norms]
    module.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    try:
        images = _run(module, batches, progress)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for child, training in held.items():
            child.training = training
    if images == 0:
        raise DataError("There are no images to re-estimate batch-norm statistics from. Give calibration data.")
    if any(not bool(torch.isfinite(norm.running_var).all()) for norm in norms if norm.running_var is not None):
        raise DataError("Batch-norm statistics came out as NaN or infinite. Check --weights and --normalize.")
    return Reestimated(len(norms), images, f"Statistics of {len(norms)} batch norms re-estimated on {images} images.")


def _run(module: nn.Module, batches: Iterable[Inputs | Sequence[Tensor]], progress: Progress) -> int:
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    first, images = 0, 0
    with torch.no_grad(), progress.task("re-estimate batch norm") as task:
        for batch in batches:
            inputs = batch if isinstance(batch, (Tensor, CallInputs)) else batch[0]
            if len(inputs) < first:
                break
            first = first or len(inputs)
            called(module, on(inputs, device))
            images += len(inputs)
            task.advance(1, f"{images} images")
    return images
