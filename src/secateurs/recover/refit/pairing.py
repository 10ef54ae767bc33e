"""What surrounds a layer in both networks: its constant, its gain, its other summand and its activation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from secateurs.recover.refit.lockstep import Lane, Weighted
from secateurs.recover.refit.unfolding import Geometry, outputs_at

_ADDS = ("aten.add.Tensor", "aten.add_.Tensor")
_RANGES = {
    "aten.relu.default": (0.0, float("inf")),
    "aten.relu_.default": (0.0, float("inf")),
    "aten.relu6.default": (0.0, 6.0),
    "aten.relu6_.default": (0.0, 6.0),
}


@dataclass(frozen=True)
class Constant:
    """Where a layer's additive constant lives: a bias (``sign`` 1) or the mean of the batch norm behind it (-1)."""

    tensor: Tensor
    sign: float

    def add_(self, shift: Tensor) -> None:
        """Raise the layer's output by ``shift`` [outputs]."""
        self.tensor.add_(self.sign * shift.to(self.tensor.dtype))


def constant_of(call: Weighted, lane: Lane) -> Constant | None:
    """The layer's constant, None where it has none."""
    if call.bias is not None:
        return Constant(lane.tensors[call.bias], 1.0)
    norm = norm_behind(call.node)
    if norm is None:
        return None
    mean = norm.args[3]
    assert isinstance(mean, fx.Node)
    return Constant(lane.tensors[lane.names[mean.name]], -1.0)


def norm_behind(node: fx.Node) -> fx.Node | None:
    """The batch norm (with statistics) that alone reads this layer's output."""
    users = list(node.users)
    if len(users) == 1 and str(users[0].target) == "aten.batch_norm.default" and users[0].args[0] is node:
        return users[0] if isinstance(users[0].args[3], fx.Node) else None
    return None


@dataclass(frozen=True)
class Surroundings:
    """How the layer's output y becomes what its readers see: ``activation(gain · y + offset)``.

    ``gain`` [outputs, 1]; ``offset`` [outputs, 1] without the other summand; ``lacking``/``whole``: the other summand
    in the small and in the dense network, per batch; ``low``/``high``: the range that the activation clips to.
    """

    gain: Tensor
    offset: Tensor
    lacking: list[Tensor] | None = None
    whole: list[Tensor] | None = None
    low: float = -float("inf")
    high: float = float("inf")

    def summands(self, batch: int, geometry: Geometry, positions: Tensor, kept: Tensor) -> tuple[Tensor, Tensor] | None:
        """The other summand [outputs, samples] in the small and in the dense network; None where there is none."""
        if self.lacking is None or self.whole is None:
            return None
        whole = outputs_at(self.whole[batch], geometry, positions)
        lacking = outputs_at(self.lacking[batch], geometry, positions)
        if len(whole) <= int(kept.max()) or len(lacking) != len(kept):
            return None
        return lacking, whole[kept]

    @property
    def clips(self) -> bool:
        """Whether anything is clipped behind the layer."""
        return self.low > -float("inf")


def surroundings_of(call: Weighted, partner: Weighted, small: Lane, dense: Lane) -> Surroundings:
    """What is behind the layer; the other summand only where both networks have computed it already."""
    outputs = len(small.tensors[call.weight])
    gain, offset = torch.ones(outputs, 1), torch.zeros(outputs, 1)
    end = norm_behind(call.node)
    if end is not None:
        gain, offset = _affine(end, small)
    end = end or call.node
    here, there = _other_summand(call.node), _other_summand(partner.node)
    lacking, whole = (small.value(here), dense.value(there)) if here is not None and there is not None else (None, None)
    add = _only_user(end, _ADDS)
    if add is not None:
        if lacking is None or whole is None:
            return Surroundings(gain, offset)
        end = add
    activation = _only_user(end, tuple(_RANGES))
    low, high = (-float("inf"), float("inf")) if activation is None else _RANGES[str(activation.target)]
    return Surroundings(gain, offset, lacking, whole, low, high)


def _only_user(node: fx.Node, targets: tuple[str, ...]) -> fx.Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 and str(users[0].target) in targets else None


def _other_summand(node: fx.Node) -> fx.Node | None:
    """What the layer's output (behind its batch norm) is added to, place by place."""
    end = norm_behind(node) or node
    add = _only_user(end, _ADDS)
    if add is None or add.kwargs.get("alpha", 1) != 1:
        return None
    others = [other for other in add.args[:2] if other is not end]
    other = others[0] if len(others) == 1 else None
    return other if isinstance(other, fx.Node) and _shape(other) == _shape(end) else None


def _shape(node: fx.Node) -> list[str] | None:
    """The shape of a node's value as text; what is broadcast has another one than its sum."""
    held = node.meta.get("val")
    return [str(size) for size in held.shape] if isinstance(held, Tensor) else None


def _affine(norm: fx.Node, lane: Lane) -> tuple[Tensor, Tensor]:
    """Gain and offset [outputs, 1] of a batch norm in evaluation mode."""

    def tensor(place: int) -> Tensor | None:
        node = norm.args[place]
        return lane.tensors[lane.names[node.name]] if isinstance(node, fx.Node) else None

    mean, variance, scale, shift = tensor(3), tensor(4), tensor(1), tensor(2)
    assert mean is not None
    assert variance is not None
    assert isinstance(norm.args[7], float)
    gain = torch.rsqrt(variance + norm.args[7])
    gain = gain if scale is None else gain * scale
    offset = -mean * gain if shift is None else shift - mean * gain
    return gain[:, None].clone(), offset[:, None].clone()
