"""Importance of single kernel elements: what the choice of patterns maximises."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from secateurs.errors import PlanError


def magnitude(weight: Tensor, *, power: float = 2.0, gains: Tensor | None = None) -> Tensor:
    """|g·w|^p per weight. p = 2 is the one for which choosing is projecting; ``gains`` [filters]: of a following
    batch normalisation, so that filters which it scales up count more (docs/methods.md, "KEP metric and
    projection")."""
    scaled = weight.detach().double()
    if gains is not None:
        scaled = scaled * gains.double().view(-1, *[1] * (weight.dim() - 1))
    return scaled.abs() ** power


def energy_weighted(weight: Tensor, energy: Tensor, *, groups: int = 1, gains: Tensor | None = None) -> Tensor:
    """w²·h per weight, with h [in_channels] the mean square of the input: optimal brain damage with a diagonal Hessian
    of the layer's own reconstruction error."""
    filters, channels = weight.shape[0], weight.shape[1]
    if energy.shape != (channels * groups,):
        raise PlanError(
            f"Input energies of shape {tuple(energy.shape)} do not fit a weight of shape {tuple(weight.shape)} with "
            f"{groups} groups. Give one per input channel ({channels * groups})."
        )
    per_filter = energy.double().reshape(groups, 1, channels).expand(groups, filters // groups, channels)
    spread = per_filter.reshape(filters, channels, *[1] * (weight.dim() - 2))
    return magnitude(weight, gains=gains) * spread.to(weight.device)


def input_energies(
    model: nn.Module, layers: Iterable[str], batches: Iterable[tuple[Tensor, Tensor]]
) -> dict[str, Tensor]:
    """Mean square of every input channel, float64 [in_channels], per convolution named in ``layers``."""
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def record(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].detach()
            axes = [0, *range(2, x.dim())]
            sums[name] = (
                sums.get(name, torch.zeros(x.shape[1], dtype=torch.float64)) + x.double().square().sum(axes).cpu()
            )
            counts[name] = counts.get(name, 0) + x.numel() // x.shape[1]

        return hook

    handles = [model.get_submodule(name).register_forward_pre_hook(record(name)) for name in layers]
    training = model.training
    try:
        model.eval()
        with torch.no_grad():
            for inputs, _ in batches:
                model(inputs)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return {name: total / max(1, counts[name]) for name, total in sums.items()}


def gradient_products(
    model: nn.Module,
    names: Iterable[str],
    batches: Iterable[tuple[Tensor, Tensor]],
    loss: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy,
) -> dict[str, Tensor]:
    """Mean over batches of (w·∂L/∂w)² per weight, float64, for the parameters ``names``: first-order Taylor importance.

    Squared before summing, so that sums over what shares a pattern cannot cancel.
    """
    parameters: Mapping[str, nn.Parameter] = dict(model.named_parameters())
    chosen = {name: parameters[name] for name in names}
    totals = {name: torch.zeros(p.shape, dtype=torch.float64) for name, p in chosen.items()}
    count, training = 0, model.training
    try:
        model.eval()
        for inputs, targets in batches:
            gradients = torch.autograd.grad(loss(model(inputs), targets), list(chosen.values()))
            for (name, parameter), gradient in zip(chosen.items(), gradients, strict=True):
                totals[name] += (parameter.detach() * gradient).double().square().cpu()
            count += 1
    finally:
        model.train(training)
    return {name: total / max(1, count) for name, total in totals.items()}
