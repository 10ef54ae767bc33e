"""Training the pruned elements away: a mask of prior knowledge, a growing penalty on the doomed, then a hard mask.

In a user's own loop it is three calls::

    penalty = Penalty(model, {"layer1.0.conv1.weight": Choice(keep=4)}, Schedule(steps=4000))
    ...                                     # forward, backward, optimizer.step() as ever, then
    penalty.step(optimizer)
    ...                                     # and when the steps are over
    hold = penalty.harden(optimizer)        # zeros stay zeros through any further training, until hold.release()

Where the loop is not yours, ``with penalty.attached(): finetune(...)`` makes the second call after every step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle

from secateurs.elements.metrics import magnitude
from secateurs.elements.patterns import PatternChoice, choose
from secateurs.errors import PlanError
from secateurs.structure.kernel_elements import groups_of

_FASTEST_DECAY = 0.5
"""At most this share of a doomed weight goes in one step, however small the rate has become."""

_INCREMENTS = 10
"""At least this many increments of λ, however short the schedule."""

ScoreFunction = Callable[[str, Tensor], Tensor]
"""(parameter name, weight) to the importance of every weight."""


def strength_for(epsilon: float, lr: float, steps: int) -> float:
    """The constant λ that shrinks a weight by the factor ``epsilon`` in ``steps`` steps at rate ``lr``: −ln ε / (η N).

    The sizing rule of docs/methods.md, "KEP penalty", for (λ/2)·Σw² applied as decay beside the optimiser.
    """
    return -math.log(epsilon) / (lr * steps)


@dataclass(frozen=True)
class Schedule:
    """How the penalty grows.

    ``steps``: optimiser steps until the doomed elements have shrunk by ``epsilon``; ``update_every``: steps between two
    increments of λ; ``refresh_every``: steps between two looks at the mask, during the first ``refresh_share`` of all;
    ``hysteresis``: by how much a challenger must exceed an incumbent to take its place.
    """

    steps: int
    epsilon: float = 1e-3
    update_every: int = 10
    refresh_every: int = 100
    refresh_share: float = 1 / 3
    hysteresis: float = 0.1

    def __post_init__(self) -> None:
        good = self.steps >= 1 and 0 < self.epsilon < 1 and self.update_every >= 1 and self.refresh_every >= 1
        if not good or not 0 <= self.refresh_share <= 1 or self.hysteresis < 0:
            raise PlanError(
                f"{self} is out of range. Steps and intervals are at least 1, epsilon lies between 0 and 1, "
                f"refresh_share from 0 to 1, hysteresis is at least 0."
            )


class Penalty:
    """Decay of the elements that are to go, and of nothing else.

    λ grows in small equal increments (GReg's way) sized so that the doomed elements have shrunk by ``epsilon`` after
    ``schedule.steps`` steps at the rates the optimiser really uses. The decay is decoupled: w ← w·(1 − η λ) on doomed
    elements after the optimiser's step, never through its gradient, momentum or weight decay, so one rule serves SGD
    and Adam, and kept elements get no extra decay.
    """

    def __init__(
        self,
        model: nn.Module,
        choices: Mapping[str, PatternChoice],
        schedule: Schedule,
        *,
        score: ScoreFunction | None = None,
        groups: Mapping[str, int] | None = None,
        masks: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Masks from the weights as they are now: the prior knowledge.

        Args:
            model: trained in place.
            choices: what stays, per convolution weight name.
            schedule: how the penalty grows.
            score: importance of every weight; default w².
            groups: of grouped convolutions, per weight name; default: read from the modules.
            masks: what stays where that is decided already, such as by a plan, per weight name; never looked at again.

        Raises:
            PlanError: a name is no parameter of the model.
        """
        parameters = dict(model.named_parameters())
        decided = dict(masks or {})
        unknown = sorted({*choices, *decided} - set(parameters))
        if unknown:
            raise PlanError(f"{unknown[0]!r} is not a parameter of this network. Name convolution weights.")
        self.schedule, self._choices = schedule, dict(choices)
        self._score: ScoreFunction = score or (lambda name, weight: magnitude(weight))
        self._groups = {name: (groups or {}).get(name) or groups_of(model, name) for name in choices}
        self._weights = {name: parameters[name] for name in (*choices, *decided)}
        self._optimizer: torch.optim.Optimizer | None = None
        self.masks: dict[str, Tensor] = decided
        self.strength = 0.0
        """λ now; may be set by hand at any time."""
        self.steps_done = 0
        self._paid = 0.0
        self.refresh()

    def refresh(self) -> int:
        """Choose the elements again, incumbents favoured; how many changed sides."""
        changed = 0
        for name, choice in self._choices.items():
            old = self.masks.get(name)
            new = choose(
                self._score(name, self._weights[name].detach()),
                choice,
                groups=self._groups[name],
                incumbent=old,
                hysteresis=self.schedule.hysteresis,
            )
            changed += 0 if old is None else int((new != old).sum())
            self.masks[name] = new
        return changed

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Call after ``optimizer.step()``: shrinks the doomed elements, lets λ grow, looks at the mask in time."""
        self._optimizer = optimizer
        rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        rates = {id(w): rates[id(w)] for w in self._weights.values() if id(w) in rates}
        # Towards the end rates often fall to nothing: then every step counts.
        few = max(1, min(self.schedule.update_every, self.schedule.steps // _INCREMENTS))
        every = few if self.steps_done < 0.9 * self.schedule.steps else 1
        if self.steps_done % every == 0:
            self._grow(max(rates.values(), default=0.0), every)
        with torch.no_grad():
            for name, weight in self._weights.items():
                decay = min(rates.get(id(weight), 0.0) * self.strength, _FASTEST_DECAY)
                weight.mul_(torch.where(self.masks[name].to(weight.device), 1.0, 1.0 - decay))
        self._paid -= math.log1p(-min(max(rates.values(), default=0.0) * self.strength, _FASTEST_DECAY))
        self.steps_done += 1
        still_choosing = self.steps_done <= self.schedule.refresh_share * self.schedule.steps
        if still_choosing and self.steps_done % self.schedule.refresh_every == 0:
            self.refresh()

    def _grow(self, rate: float, every: int) -> None:
        """One increment of λ: what pays all that is owed if this rate and equal increments went on to the end.

        With a constant rate all increments are equal and λ ends at twice the sizing rule's constant; where the rate
        falls later, the increments grow.
        """
        increments = math.ceil((self.schedule.steps - self.steps_done) / every)
        owed = -math.log(self.schedule.epsilon) - self._paid
        if rate <= 0 or owed <= 0 or increments <= 0:
            return
        per_increment = owed / (rate * every)
        growth = 2.0 * (per_increment - increments * self.strength) / (increments * (increments + 1))
        self.strength = min(self.strength + max(0.0, growth), _FASTEST_DECAY / rate)

    @property
    def shrunk(self) -> float:
        """Root mean square of the doomed elements over that of the kept ones: goes towards 0."""
        doomed, kept, counts = 0.0, 0.0, [0, 0]
        for name, weight in self._weights.items():
            square, mask = weight.detach().double().square(), self.masks[name].to(weight.device)
            doomed += float(square[~mask].sum())
            kept += float(square[mask].sum())
            counts[0] += int((~mask).sum())
            counts[1] += int(mask.sum())
        return math.sqrt((doomed / max(1, counts[0])) / max(kept / max(1, counts[1]), 1e-300))

    @contextmanager
    def attached(self) -> Iterator[Penalty]:
        """Makes the call to :meth:`step` after every step of any optimiser that holds these weights."""
        mine = {id(weight) for weight in self._weights.values()}

        def after(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            if any(id(p) in mine for group in optimizer.param_groups for p in group["params"]):
                self.step(optimizer)

        handle = register_optimizer_step_post_hook(after)
        try:
            yield self
        finally:
            handle.remove()

    def harden(self, optimizer: torch.optim.Optimizer | None = None) -> HardMask:
        """Set the doomed elements to zero and hold them there, in gradient and momentum (of ``optimizer``, or of the
        one that :meth:`step` saw)."""
        held = {name: (self._weights[name], mask) for name, mask in self.masks.items()}
        return HardMask(held, optimizer or self._optimizer)

    @property
    def state(self) -> Tensor:
        """What a resumed training needs beside weights and masks, float64 [3]; may be assigned."""
        return torch.tensor([self.strength, self._paid, float(self.steps_done)], dtype=torch.float64)

    @state.setter
    def state(self, held: Tensor) -> None:
        self.strength, self._paid, self.steps_done = float(held[0]), float(held[1]), int(held[2])


class HardMask:
    """Zeros that stay zeros: weights are cut, and their gradients are masked as they arrive.

    With gradient and momentum zero no optimiser moves a zero weight, weight decay included. ``optimizer``: one that has
    state already; its momenta are masked too.
    """

    def __init__(
        self, weights: Mapping[str, tuple[nn.Parameter, Tensor]], optimizer: torch.optim.Optimizer | None = None
    ) -> None:
        self.masks = {name: mask for name, (_, mask) in weights.items()}
        self._handles: list[RemovableHandle] = []
        with torch.no_grad():
            for weight, mask in weights.values():
                stays = mask.to(weight.device)
                weight.masked_fill_(~stays, 0.0)
                if weight.grad is not None:
                    weight.grad.masked_fill_(~stays, 0.0)
                for state in [] if optimizer is None else optimizer.state.get(weight, {}).values():
                    if isinstance(state, Tensor) and state.shape == weight.shape:
                        state.masked_fill_(~stays, 0.0)
                self._handles.append(weight.register_post_accumulate_grad_hook(_masker(stays)))

    @classmethod
    def on(
        cls, model: nn.Module, masks: Mapping[str, Tensor], optimizer: torch.optim.Optimizer | None = None
    ) -> HardMask:
        """Hold masks that were chosen without a penalty, by parameter name."""
        parameters = dict(model.named_parameters())
        unknown = sorted(set(masks) - set(parameters))
        if unknown:
            raise PlanError(f"{unknown[0]!r} is not a parameter of this network. Name convolution weights.")
        return cls({name: (parameters[name], mask) for name, mask in masks.items()}, optimizer)

    def release(self) -> None:
        """Let go: further training may move the zeros again."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def _masker(stays: Tensor) -> Callable[[Tensor], None]:
    def hook(parameter: Tensor) -> None:
        if parameter.grad is not None:
            parameter.grad.masked_fill_(~stays.to(parameter.grad.device), 0.0)

    return hook
