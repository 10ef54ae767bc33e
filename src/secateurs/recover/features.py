"""Distillation of inner activations: the small network's units follow the same units of the dense one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from secateurs.errors import PlanError
from secateurs.plan import Plan
from secateurs.recover.companion import Companion

_PLACES = 4


class Features(Companion):
    """A companion of fine-tuning whose loss is the relative squared distance of inner activations.

    Card. Formula: weight x mean over places of 2 ‖s - t_K‖² / (‖s‖² + ‖t_K‖²), s the small network's activation, t_K
    the dense network's at the units that were kept, the denominator without gradient. No adapter layers are needed,
    because a plan says which unit is which. Source: FitNets (arXiv 1412.6550) without its regressor; the denominator,
    which bounds the term, is ours. When to use: hard cuts and few images. When not: long training, where logits do.

    Args:
        plan: what was kept.
        weight: of the term.
        places: module paths whose outputs are compared; by default some batch norms (or convolutions, or linear
            layers but the last) evenly spaced.
    """

    def __init__(self, plan: Plan, *, weight: float = 1.0, places: Sequence[str] | None = None) -> None:
        if weight <= 0:
            raise PlanError(f"The weight of the feature distillation is {weight}. Give a number above zero.")
        self.plan, self.weight, self.places = plan, weight, None if places is None else tuple(places)
        self.identity = f"features {weight} {self.places}"
        self._small: dict[str, Tensor] = {}
        self._dense: dict[str, Tensor] = {}
        self._kept: dict[str, Tensor] = {}
        self._axes: dict[str, int] = {}

    @contextmanager
    def attached(self, student: nn.Module, teacher: nn.Module | None) -> Iterator[None]:
        """Listens to both networks.

        Raises:
            PlanError: there is no teacher, a place is not a module of both networks, or nothing can be compared.
        """
        if teacher is None:
            raise PlanError("Features are compared with a teacher's, but none was given. Give teacher=, alpha above 0.")
        places = self.places or spread(student, teacher)
        self._kept = {place: _kept(place, student, teacher, self.plan) for place in places}
        self._axes = {place: -1 if isinstance(student.get_submodule(place), nn.Linear) else 1 for place in places}
        listening = [
            module.get_submodule(place).register_forward_hook(_keeper(held, place))
            for module, held in ((student, self._small), (teacher, self._dense))
            for place in places
        ]
        try:
            yield
        finally:
            for handle in listening:
                handle.remove()
            self._small.clear()
            self._dense.clear()

    def loss(self) -> Tensor | None:
        """The term for the forward passes just done."""
        terms = []
        for place, kept in self._kept.items():
            reached, dense = self._small.pop(place).float(), self._dense.pop(place).detach().float()
            wanted = dense.index_select(self._axes[place], kept.to(dense.device))
            scale = (reached.detach().square().mean() + wanted.square().mean()) / 2
            terms.append((reached - wanted).square().mean() / scale.clamp_min(1e-12))
        return self.weight * torch.stack(terms).mean()


def _keeper(held: dict[str, Tensor], place: str) -> Callable[[nn.Module, object, Tensor], None]:
    def keep(module: nn.Module, inputs: object, output: Tensor) -> None:
        held[place] = output

    return keep


def spread(small: nn.Module, dense: nn.Module) -> tuple[str, ...]:
    """Some places evenly spaced where both networks have a module with units.

    Raises:
        PlanError: there is none.
    """
    there = {name for name, _ in dense.named_modules()}
    for kind in (_BatchNorm, _ConvNd, nn.Linear):
        found = [name for name, child in small.named_modules() if isinstance(child, kind) and name in there]
        if kind is nn.Linear:
            found = found[:-1]
        if found:
            count = min(_PLACES, len(found))
            return tuple(found[(index + 1) * len(found) // count - 1] for index in range(count))
    raise PlanError(
        "The network has no batch norms, convolutions or inner linear layers whose outputs could be compared. Leave "
        "out --features, or name places for Features."
    )


def _kept(place: str, small: nn.Module, dense: nn.Module, plan: Plan) -> Tensor:
    name = f"{place}.weight"
    shape = plan.fingerprint.shapes.get(name)
    if shape is None or any(place not in dict(module.named_modules()) for module in (small, dense)):
        raise PlanError(f"Features cannot compare {place!r}: both networks need a module of that path with a weight.")
    return torch.tensor(plan.slices.get(name, {}).get(0, tuple(range(shape[0]))))
