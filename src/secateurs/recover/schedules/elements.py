"""Training of networks whose plan prunes kernel elements: a growing penalty first, then zeros that are held."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from secateurs.data.calls import Inputs
from secateurs.elements.penalty import HardMask, Penalty, Schedule
from secateurs.plan import ElementPattern
from secateurs.recover.companion import Companion
from secateurs.structure.kernel_elements import masks_of


class ElementTraining(Companion):
    """A companion of fine-tuning that ends with the plan's elements at zero.

    For the first ``penalty_steps`` steps what is to go decays (docs/methods.md, "KEP penalty", see
    :class:`~secateurs.elements.penalty.Penalty`); then it is set to zero and held there in gradient and momentum. With
    0 steps it is held from the start. The masks are the plan's: they are not chosen again.

    Args:
        elements: patterns per weight name, for the network as it is trained.
        penalty_steps: optimiser steps under the penalty.
        also: another companion that takes part.
    """

    def __init__(
        self, elements: Mapping[str, ElementPattern], penalty_steps: int = 0, also: Companion | None = None
    ) -> None:
        self.elements, self.penalty_steps, self.also = dict(elements), penalty_steps, also or Companion()
        self.identity = f"elements {penalty_steps} {self.also.identity}"
        self._penalty: Penalty | None = None
        self._state: Tensor | None = None
        self._stack = ExitStack()

    @contextmanager
    def attached(self, student: nn.Module, teacher: nn.Module | None) -> Iterator[None]:
        """Listens to the optimiser's steps and the weights' gradients."""
        masks = masks_of(student, self.elements)
        done = 0 if self._state is None else int(self._state[2])
        with ExitStack() as self._stack, self.also.attached(student, teacher):
            if done >= self.penalty_steps:
                self._stack.callback(HardMask.on(student, masks).release)
            else:
                self._penalty = Penalty(student, {}, Schedule(self.penalty_steps, refresh_share=0.0), masks=masks)
                if self._state is not None:
                    self._penalty.state = self._state
                self._stack.enter_context(self._penalty.attached())
            yield
            if self._penalty is not None:  # the training was no longer than the penalty
                self._penalty.harden().release()

    def forward(self, student: nn.Module, inputs: Inputs) -> Any:
        """The other companion's outputs; hardens first where the penalty's steps are over."""
        if self._penalty is not None and self._penalty.steps_done >= self.penalty_steps:
            hold = self._penalty.harden()
            self._state = self._penalty.state
            self._stack.close()
            self._stack.callback(hold.release)
            self._penalty = None
        return self.also.forward(student, inputs)

    def loss(self) -> Tensor | None:
        """The other companion's term."""
        return self.also.loss()

    def after_backward(self, student: nn.Module, step: int) -> None:
        """For the other companion."""
        self.also.after_backward(student, step)

    def tensors(self) -> dict[str, Tensor]:
        """How far the penalty is."""
        state = self._state if self._penalty is None else self._penalty.state
        return {**self.also.tensors(), **({} if state is None else {"elements": state})}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up the penalty where it was."""
        self._state = tensors.get("elements")
        self.also.restore({name: tensor for name, tensor in tensors.items() if name != "elements"})
