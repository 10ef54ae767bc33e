"""Which convolutions can lose kernel elements, and the patterns of a whole network for given counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from secateurs.elements.metrics import magnitude
from secateurs.elements.patterns import PatternChoice, choose, to_pattern
from secateurs.elements.rectangles import best_rectangle
from secateurs.errors import PlanError
from secateurs.plan import ElementPattern
from secateurs.structure.kernel_elements import groups_of

DEFAULT_BLOCK = 32
LEAST_CHANNELS = 8
"""Input channels (of a convolution group) below which a convolution is left whole: it is small, and reads the image."""
SHARES = 8
"""In how many steps the input channels of a 1×1 convolution may go, which has no other positions to lose."""

Score = Callable[[str, Tensor], Tensor]
"""(parameter name, weight) to the importance of every weight."""


def square(name: str, weight: Tensor) -> Tensor:
    """w²: choosing by it is projecting (docs/methods.md, "KEP metric and projection")."""
    return magnitude(weight)


def steps(weight: Tensor) -> int:
    """In how many steps a convolution can lose its elements: its kernel's positions, :data:`SHARES` of a 1×1."""
    positions = weight[0, 0].numel()
    return positions if positions > 1 else SHARES


def eligible(model: nn.Module, *, pointwise: bool = False) -> list[str]:
    """Names of the convolution weights that have kernel elements to lose: not depthwise, not the convolution of the
    image, and of several positions; ``pointwise``: those of one position, too."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = []
    for module in model.modules():
        if not isinstance(module, (nn.Conv1d, nn.Conv2d)) or id(module.weight) not in names:
            continue
        weight = module.weight
        several = pointwise or weight[0, 0].numel() > 1
        if several and weight.shape[1] >= LEAST_CHANNELS and names[id(weight)] not in found:
            found.append(names[id(weight)])
    return found


def patterns(
    model: nn.Module,
    counts: Mapping[str, float],
    *,
    scope: str = "block",
    block: int = DEFAULT_BLOCK,
    score: Score = square,
    orders: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, ElementPattern]:
    """Patterns per weight name that keep ``counts[name]`` positions of the kernel, on average over what is pooled.

    Scope ``layer`` gives rectangles of at most so many positions, which every runtime takes as smaller convolutions.
    Layers that keep all positions are left out. ``orders``: of filters, where blocks are not cut as they stand.

    Raises:
        PlanError: a name is no convolution's weight, or a count does not fit its kernel.
    """
    parameters, found = dict(model.named_parameters(remove_duplicate=False)), {}
    for name, count in counts.items():
        weight = parameters.get(name)
        if weight is None or weight.dim() < 3:
            raise PlanError(f"{name!r} is no convolution's weight of this network. Name one such as layer1.0.weight.")
        if count >= weight[0, 0].numel():
            continue
        choice = PatternChoice(scope, count, block, pool="block" if scope == "block" else "unit")
        groups = groups_of(model, name)
        scores, order = score(name, weight.detach()), list((orders or {}).get(name, ()))
        if scope == "layer":
            kept = _rectangle(scores, int(count))
        elif order:
            kept = choose(scores[order], choice)[np.argsort(order)]
        else:
            kept = choose(scores, choice, groups=groups)
        found[name] = to_pattern(kept, choice, groups=groups, order=order)
    return found


def _rectangle(scores: Tensor, count: int) -> Tensor:
    rows, columns = best_rectangle(scores, count)
    kept = torch.zeros_like(scores, dtype=torch.bool)
    plane = kept.reshape(*kept.shape[:2], -1, kept.shape[-1])
    plane[:, :, rows, columns] = True
    return kept


SUFFIX = ":elements"
"""Behind a weight's name: the name of its group of kernel positions."""
