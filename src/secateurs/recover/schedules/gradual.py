"""Pruning in several steps while a network trains, and what several cuts amount to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from torch import nn

from secateurs.errors import InfeasibleBudgetError, PlanError
from secateurs.plan import Plan
from secateurs.recover.schedules._base import Plain, Planning, Prepared, Training
from secateurs.structure.apply import apply
from secateurs.structure.copies import deep_copy
from secateurs.structure.training import agree_on_plan, scatter

CUTS = 3
"""Cuts of the gradual schedule, at most."""

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
        small, plan = self.cut(module, share, optimizer=optimizer, example=example)
        self.plan = plan if self.plan is None else compose(self.plan, plan)
        return small

    def cut(
        self,
        module: nn.Module,
        share: float,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        example: object = None,
        check: bool = True,
    ) -> tuple[nn.Module, Plan]:
        """``module`` cut to a share of the dense latency, and the plan; every process cuts alike."""
        training = module.training  # plans are often made in evaluation mode
        plan = agree_on_plan(lambda: self.replan(module, share))
        small = apply(module, plan, example, check=check, optimizer=optimizer)
        module.train(training)
        return small.train(training), plan


def equal_steps(cuts: int, epochs: int) -> list[tuple[int, float]]:
    """(epoch, exponent of the final ratio) of ``cuts`` cuts in equal steps of the ratio; the last one comes after
    ``epochs``."""
    return [(epochs * step // max(1, cuts - 1), (step + 1) / cuts) for step in range(cuts)]


class GradualSchedule(Plain):
    """Card. Up to three cuts in equal steps of the ratio, each repaired and trained; units are scored anew before each.

    Formula: cut i of n plans for limit^(i/n). Every plan is made for the dense network, whose tensors hold what was
    trained so far, and may only lose more than the one before. Whole blocks go only with the final cut; a step that is
    out of reach without them is left out. Source: iterative pruning, e.g. Molchanov et al. 2017 (arXiv 1611.06440).
    """

    plans_anew = True

    def epochs_before(self, epochs: int) -> int:
        """Half of them."""
        return epochs // 2

    def prepare(self, trainer: Training, planner: Planning, limits: Mapping[str, float]) -> Prepared:
        """The cuts before the final one."""
        epochs = self.epochs_before(trainer.epochs)
        steps = equal_steps(min(CUTS - 1, epochs) + 1, epochs)
        carrier, notes, done = deep_copy(trainer.dense, {}), [], 0
        for number, ((_, exponent), (until, _)) in enumerate(pairwise(steps), 1):
            share = {name: limit**exponent for name, limit in limits.items()}
            now = planner.allowing(replace(planner.legal, blocks=False))
            try:
                small, plan = _cut(now, share).cut(carrier, exponent, example=trainer.example, check=False)
            except InfeasibleBudgetError:
                notes.append(f"Cut {number} of {len(steps)} was left out: it is out of reach without removing blocks.")
                continue
            _, said = trainer.mend(small.eval(), plan)
            notes.extend(f"Cut {number} of {len(steps)}: {line}" for line in said)
            trainer.train(small, f"cut{number}", until - done, plan)
            done = until
            scatter(carrier, small, plan)
            planner = _rescored(trainer, planner, small, plan)
        return Prepared(carrier if done else None, planner, tuple(notes))


def _cut(planner: Planning, limits: Mapping[str, float]) -> Gradual:
    """Cuts by the planner within ``limits``."""

    def replan(module: nn.Module, share: float) -> Plan:
        plan = planner.plan(planner.solve(limits))
        if plan.rebuild:
            raise PlanError(
                "This network has to be rebuilt for a cut, so it cannot be cut several times. Give --schedule once."
            )
        return plan

    return Gradual(replan, [(0, 0.5)])


def _steps(plan: Plan) -> list[Mapping[str, object]]:
    held = plan.provenance.get("steps")
    if held:
        return list(held)
    return [{"widths": plan.widths(), "blocks_removed": list(plan.blocks_removed)}]


def _rescored(trainer: Training, planner: Planning, small: nn.Module, plan: Plan) -> Planning:
    """The planner that knows the scores of what is left, by the network as it is now, and offers nothing else."""
    graph = trainer.traced(small)
    found = planner.scorer.of(graph)
    known = {}
    for group in planner.graph.groups:
        kept = list(plan.groups.get(group.name, range(group.units)))
        values = found.get(group.name, np.zeros(len(kept)))
        known[group.name] = np.full(group.units, values.min() - 1.0)
        known[group.name][kept] = values
    widest = {name: len(kept) for name, kept in plan.groups.items()}
    return planner.knowing(known).allowing(replace(planner.legal, widest=widest))
