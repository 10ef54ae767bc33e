"""Number format and memory layout in which training steps run fastest here, by trying."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateurs.data.calls import Inputs, called, changed, on, tensors_of
from secateurs.data.nests import leaves
from secateurs.recover.allocation import freed_memory_kept
from secateurs.recover.randomness import undisturbed
from secateurs.structure.copies import deep_copy
from secateurs.structure.untouched import evaluating

_MARGIN = 1.15
_STEPS = 3
_WORTH_A_LOOK, _SHORT_S, _HOPELESS = 40, 60.0, 2.0
"""Steps of a training and seconds in its first mode below which no other is tried, and how many times as long a first
step may take before a mode is given up."""


@dataclass(frozen=True)
class Mode:
    """``precision``: ``fp32`` or ``bf16`` (autocast); ``layout``: ``contiguous`` or ``channels_last``."""

    precision: str = "fp32"
    layout: str = "contiguous"

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        """The context for a forward pass."""
        if self.precision == "bf16":
            return torch.autocast(device.type, dtype=torch.bfloat16)
        return nullcontext()

    def arrange(self, inputs: Inputs) -> Inputs:
        """``inputs`` in this layout; only images [batch, channels, H, W] have one."""
        if self.layout == "channels_last":
            return changed(inputs, _channels_last)
        return inputs

    def __str__(self) -> str:
        return self.precision if self.layout == "contiguous" else f"{self.precision}, {self.layout}"


def fastest_mode(
    student: nn.Module,
    teacher: nn.Module | None,
    inputs: Inputs,
    *,
    precision: str = "auto",
    layout: str = "auto",
    steps: int | None = None,
) -> Mode:
    """The mode in which training steps on ``inputs`` are fastest; anything but fp32 must be 1.15 times faster.

    ``precision`` and ``layout`` fix one side. Steps run on a copy of ``student``, and ``teacher`` runs in evaluation
    mode: nothing changes, nor what is drawn at random later. A mode in which the network does not run is not chosen.
    Where all ``steps`` (None: many) take less than a minute in the first mode, no other is tried: that would take
    longer than it can save.
    """
    precisions = ("fp32", "bf16") if precision == "auto" else (precision,)
    images = any(tensor.ndim == 4 for _, tensor in tensors_of(inputs))
    layouts = ("contiguous", "channels_last") if layout == "auto" and images else (layout,)
    layouts = ("contiguous",) if layouts == ("auto",) else layouts
    modes = [Mode(number, order) for number in precisions for order in layouts]
    if len(modes) == 1:
        return modes[0]
    if steps is not None and steps < _WORTH_A_LOOK:
        return modes[0]
    with freed_memory_kept():
        seconds = [_seconds(student, teacher, inputs, modes[0])]
        if steps is not None and seconds[0] * steps < _SHORT_S:
            return modes[0]
        seconds += [_seconds(student, teacher, inputs, mode, _HOPELESS * seconds[0]) for mode in modes[1:]]
    best = 0
    for place in range(1, len(modes)):
        if seconds[place] * (_MARGIN if modes[place].precision != modes[best].precision else 1.0) < seconds[best]:
            best = place
    return modes[best]


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def arrange_weights(module: nn.Module, layout: torch.memory_format) -> nn.Module:
    """``module`` with its 4-D weights in this memory layout (in place)."""
    return module.to(memory_format=layout)  # type: ignore[call-overload,no-any-return]


def _seconds(
    student: nn.Module, teacher: nn.Module | None, inputs: Inputs, mode: Mode, hopeless: float = math.inf
) -> float:
    """Of one step; a mode whose first step takes longer than ``hopeless`` gets no other."""
    trial = deep_copy(student, {}).train()
    if mode.layout == "channels_last":
        trial = arrange_weights(trial, torch.channels_last)
    inputs = mode.arrange(inputs)
    device = next((tensor.device for _, tensor in tensors_of(inputs)), torch.device("cpu"))

    def step() -> None:
        with mode.autocast(device):
            if teacher is not None:
                with torch.no_grad():
                    called(teacher, on(inputs, device, copy=True))  # it may change them in place
            result = called(trial, inputs)
        answers = [tensor for _, tensor in leaves(result) if tensor.requires_grad]
        torch.stack([answer.float().square().mean() for answer in answers]).sum().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    try:
        with ExitStack() as stack:
            stack.enter_context(undisturbed())
            if teacher is not None:
                stack.enter_context(evaluating(teacher))
            return _best(step, hopeless)
    except (RuntimeError, NotImplementedError):
        if mode == Mode():
            raise
        return float("inf")


def _best(step: Callable[[], None], hopeless: float) -> float:
    """Quickest of some runs after one that warms up."""
    step()
    seconds: list[float] = []
    while len(seconds) < _STEPS and (not seconds or seconds[0] < hopeless):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
