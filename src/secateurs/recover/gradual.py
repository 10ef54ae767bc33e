"""Pruning in several steps while a network trains, and what several cuts amount to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import torch
from torch import nn

from secateurs.errors import PlanError
from secateurs.plan import Plan
from secateurs.structure.apply import apply
from secateurs.structure.training import agree_on_plan

Replan = Callable[[nn.Module, float], Plan]
"""(the network as it is now, share of the dense latency to reach) to a plan for that network."""


def compose(first: Plan, second: Plan) -> Plan:
    """The one plan that does to the original network what ``first`` and then ``second`` do.

    ``second`` was made for the network that ``first`` leaves. Its provenance is kept, with the steps before it.

    Raises:
        PlanError: ``second`` was made for another network.
    """
    slices = {name: dict(axes) for name, axes in first.slices.items()}
    for name, axes in second.slices.items():
        shape = first.fingerprint.shapes.get(name)
        if shape is None:
            raise PlanError(f"The second plan cuts {name}, which the first one's network lacks. Compose in order.")
        for dim, kept in axes.items():
            before = slices.setdefault(name, {}).get(dim, tuple(range(shape[dim])))
            if second.fingerprint.shapes[name][dim] != len(before):
                raise PlanError(
                    f"The second plan was made for another network: {name} has {len(before)} entries along dimension "
                    f"{dim} after the first, the second expects {second.fingerprint.shapes[name][dim]}."
                )
            slices[name][dim] = tuple(before[index] for index in kept)
    groups = dict(first.groups)
    for name, kept in second.groups.items():
        if name not in groups or second.group_sizes[name] != len(groups[name]):
            raise PlanError(f"The second plan's group {name} is not what the first one left. Compose in order.")
        groups[name] = tuple(groups[name][index] for index in kept)
    patches = {(patch.module, patch.attribute): patch for patch in (*first.patches, *second.patches)}
    return first.model_copy(
        update={
            "groups": groups,
            "blocks_removed": (*first.blocks_removed, *second.blocks_removed),
            "elements": {**first.elements, **second.elements},
            "slices": slices,
            "patches": tuple(patches.values()),
            "bypasses": (*first.bypasses, *second.bypasses),
            "rebuild": first.rebuild or second.rebuild,
            "provenance": {**second.provenance, "steps": [*_steps(first), *_steps(second)]},
        }
    )


class Gradual:
    """Cuts a network step by step at given epochs of the user's own training loop.

    Args:
        replan: makes each step's plan from the network as it is (see :data:`Replan`); on the first process only.
        schedule: (epoch, share of the dense latency) pairs, epochs rising and shares falling.

    Attributes:
        plan: all steps so far as one plan for the original network, None before the first.
    """

    def __init__(self, replan: Replan, schedule: Sequence[tuple[int, float]]) -> None:
        pairs = list(schedule)
        rising = all(a[0] < b[0] and a[1] > b[1] for a, b in pairwise(pairs))
        if not pairs or not rising or not all(epoch >= 0 and 0 < share < 1 for epoch, share in pairs):
            raise PlanError(
                f"The schedule {pairs} must be pairs (epoch, share of the dense latency between 0 and 1) with rising "
                f"epochs and falling shares, such as [(0, 0.8), (3, 0.6)]."
            )
        self.replan = replan
        self.schedule: Mapping[int, float] = dict(pairs)
        self.plan: Plan | None = None

    def step(
        self, module: nn.Module, epoch: int, optimizer: torch.optim.Optimizer | None = None, example: object = None
    ) -> nn.Module:
        """The network to train in ``epoch``: ``module`` itself, or a smaller one where a step is due.

        ``optimizer`` is re-pointed to the new parameters, its momenta cut along.
        """
        share = self.schedule.get(epoch)
        if share is None:
            return module
        wanted, training = share, module.training  # plans are often made in evaluation mode
        plan = agree_on_plan(lambda: self.replan(module, wanted))
        small = apply(module, plan, example, optimizer=optimizer)
        module.train(training)
        small.train(training)
        self.plan = plan if self.plan is None else compose(self.plan, plan)
        return small


def _steps(plan: Plan) -> list[Mapping[str, object]]:
    held = plan.provenance.get("steps")
    if held:
        return list(held)
    return [{"widths": plan.widths(), "blocks_removed": list(plan.blocks_removed)}]
