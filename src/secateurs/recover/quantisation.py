"""Training with quantisation in the loop: the last steps compute with numbers rounded as int8 files round them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from secateurs.data.calls import Inputs
from secateurs.recover import parallel
from secateurs.recover.companion import Companion

_LEVELS, _PACE, _LEAST = 255, 0.1, 1e-8
"""Steps of an activation; share of a batch's range in the running one; least width of a range."""
_STEP, _RANGES = "quantise.step", "quantise.ranges."


class QuantiseAware(Companion):
    """A companion of fine-tuning that rounds what layers read, and their weights, from a step on.

    Card. Formula: w -> s round(w / s), s = max |w| / q per output channel; x -> s (round(x / s + z) - z) with 256
    levels over the running range of the layer's input, 0 among them. Gradients pass as if nothing were rounded, and
    none where x is beyond its range. Batch norms need no folding first: a factor per channel rounds alike. Source:
    Jacob and others, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference"
    (arXiv 1712.05877); PyTorch's own operators round. When to use: where quantising the trained network costs accuracy.
    When not: where it costs none, for a step takes longer.

    Convolutions and linear layers are rounded. Weights that a layer makes of others (parametrisations, packed
    projections of attention) stay as they are, and so do sums between layers.

    Args:
        first: step, counted from 0, from which on numbers are rounded.
        most: greatest whole number of a weight, 127 or 63.
        in_float: layers, by module path, that are not quantised.
        also: another companion that takes part.
    """

    def __init__(
        self, first: int, most: int = 127, in_float: Collection[str] = (), also: Companion | None = None
    ) -> None:
        self.first, self.most, self.in_float = first, most, frozenset(in_float)
        self.also = also or Companion()
        self.identity = f"quantise-aware {first} {most} {sorted(self.in_float)} {self.also.identity}"
        self._step = 0
        self._ranges: dict[str, Tensor] = {}
        self._seen: dict[str, Tensor] = {}
        self._layers: dict[str, nn.Module] = {}

    @contextmanager
    def attached(self, student: nn.Module, teacher: nn.Module | None) -> Iterator[None]:
        """Listens to the layers' inputs."""
        self._layers = {name: layer for name, layer in student.named_modules() if self._quantised(name, layer)}
        listening = [layer.register_forward_pre_hook(self._rounding(name)) for name, layer in self._layers.items()]
        try:
            with self.also.attached(student, teacher):
                yield
        finally:
            for handle in listening:
                handle.remove()

    def forward(self, student: nn.Module, inputs: Inputs) -> Any:
        """The outputs with rounded weights."""
        if self._step < self.first:
            return self.also.forward(student, inputs)
        rounded = {f"student.{name}.weight": self._rounded(layer) for name, layer in self._layers.items()}
        return torch.func.functional_call(_Through(student, self.also), rounded, (inputs,))

    def loss(self) -> Tensor | None:
        """The other companion's term."""
        return self.also.loss()

    def after_backward(self, student: nn.Module, step: int) -> None:
        """The running ranges follow the batch."""
        self._step = step + 1
        for name, ends in _everywhere(self._seen).items():
            held = self._ranges.get(name, ends).to(ends.device)
            self._ranges[name] = held + _PACE * (ends - held)
        self._seen.clear()
        self.also.after_backward(student, step)

    def tensors(self) -> dict[str, Tensor]:
        """The running ranges, and the step that comes next."""
        ranges = {f"{_RANGES}{name}": held for name, held in self._ranges.items()}
        return {**self.also.tensors(), _STEP: torch.tensor(self._step), **ranges}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take them up."""
        self._step = int(tensors.get(_STEP, torch.tensor(0)))
        self._ranges = {n.removeprefix(_RANGES): held for n, held in tensors.items() if n.startswith(_RANGES)}
        self.also.restore({n: held for n, held in tensors.items() if n != _STEP and not n.startswith(_RANGES)})

    def _quantised(self, name: str, layer: nn.Module) -> bool:
        own = isinstance(layer, (_ConvNd, nn.Linear)) and isinstance(layer._parameters.get("weight"), nn.Parameter)
        return own and name not in self.in_float

    def _rounding(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...] | None]:
        def round_input(layer: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...] | None:
            if not layer.training or not given or not isinstance(given[0], Tensor):
                return None
            low, high = torch.aminmax(given[0].detach().float())
            ends = torch.stack([low.clamp(max=0.0), high.clamp(min=0.0)])
            known = self._seen.get(name, ends)
            self._seen[name] = torch.stack([torch.minimum(known[0], ends[0]), torch.maximum(known[1], ends[1])])
            if self._step < self.first:
                return None
            return (_rounded_between(given[0], self._ranges.get(name, ends).to(ends.device)), *given[1:])

        return round_input

    def _rounded(self, layer: nn.Module) -> Tensor:
        weight, axis = layer.get_parameter("weight"), int(isinstance(layer, _ConvTransposeNd))
        others = [dim for dim in range(weight.ndim) if dim != axis]
        scale = (weight.detach().abs().amax(others).float() / self.most).clamp_min(_LEAST)
        zero = torch.zeros_like(scale, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(weight.float(), scale, zero, axis, -self.most, self.most)


class _Through(nn.Module):
    """A student as a companion calls it, so that its weights can be exchanged for a call."""

    def __init__(self, student: nn.Module, also: Companion) -> None:
        super().__init__()
        self.student, self.also = student, also
        self.training = student.training

    def forward(self, inputs: Inputs) -> Any:
        return self.also.forward(self.student, inputs)


def _rounded_between(numbers: Tensor, ends: Tensor) -> Tensor:
    scale = ((ends[1] - ends[0]) / _LEVELS).clamp_min(_LEAST)
    zero = (-ends[0] / scale).round().clamp(0, _LEVELS).to(torch.int32)
    return torch.fake_quantize_per_tensor_affine(numbers.float(), scale, zero, 0, _LEVELS).to(numbers.dtype)


def _everywhere(seen: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Ranges of this process's part of a batch, as means over all processes."""
    if parallel.size() == 1 or not seen:
        return dict(seen)
    names = sorted(seen)
    ends = torch.stack([seen[name] for name in names])
    means = torch.tensor(parallel.total(ends.flatten().tolist(), ends.device), device=ends.device) / parallel.size()
    return dict(zip(names, means.view_as(ends).float(), strict=True))
