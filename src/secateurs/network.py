"""The network as numbers: what searches and latency models need to know, without torch.

``structure`` derives a :class:`NetworkSpec` from a traced module. A candidate network is a pair
``(widths, removed)``: ``widths[g]`` units are kept in group ``g`` (an int64 vector, one entry per
group) and ``removed`` is a frozenset of indices into ``blocks``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class GroupSpec:
    """Units decided together. ``units``: how many there are; ``min_units``: the fewest that may stay."""

    name: str
    units: int
    min_units: int = 1


@dataclass(frozen=True)
class AxisSpec:
    """Length of one tensor axis as a function of the widths: ``fixed + sum(per_unit * widths[group])``.

    ``parts``: pairs (group index, indices that one unit of the group takes on this axis).
    """

    fixed: int = 0
    parts: tuple[tuple[int, int], ...] = ()

    def length(self, widths: np.ndarray) -> np.ndarray:
        """Length [...] for widths [..., groups]."""
        widths = np.asarray(widths)
        total = np.full(widths.shape[:-1], self.fixed, dtype=np.int64)
        for group, per_unit in self.parts:
            total = total + per_unit * widths[..., group]
        return total


@dataclass(frozen=True)
class LayerSpec:
    """One convolution, linear map or other weighted operator call.

    ``name``: module path; ``node``: name of the exported graph's node; ``parameter``: the weight's name;
    ``kind``: ``conv``, ``depthwise``, ``grouped``, ``linear``, ``transposed`` or ``other``;
    ``inputs``/``outputs``: the activation's channel (or feature) axes; ``positions``: output positions at
    batch 1 (Ho*Wo, tokens, 1); ``kernel_elements``: K*K; ``groups``: convolution groups in the dense network;
    ``group_inputs``: inputs of each group where whole groups go (they never change), else None;
    ``input_hw``/``output_hw``: spatial sizes, () for a linear layer; ``blocks``: indices of the removable
    blocks it lies in; ``has_bias``.
    """

    name: str
    node: str
    parameter: str
    kind: str
    inputs: AxisSpec
    outputs: AxisSpec
    positions: int
    kernel_elements: int
    groups: int
    stride: int
    input_hw: tuple[int, ...]
    output_hw: tuple[int, ...]
    has_bias: bool
    blocks: tuple[int, ...] = ()
    group_inputs: int | None = None

    def macs(self, widths: np.ndarray) -> np.ndarray:
        """Multiply-adds at batch 1 for widths [..., groups]."""
        c_in, c_out = self.inputs.length(widths), self.outputs.length(widths)
        if self.kind == "depthwise":
            return self.positions * self.kernel_elements * c_out
        if self.group_inputs is not None:
            return self.positions * self.kernel_elements * self.group_inputs * c_out
        return self.positions * self.kernel_elements * c_in * c_out // self.groups


@dataclass(frozen=True)
class BlockSpec:
    """A residual branch that can go as a whole.

    ``groups``: indices of the groups that live inside only (they vanish with the block); ``nodes``: names of
    the exported graph's nodes that vanish, the final add included; ``add``: that add's node.
    """

    name: str
    groups: tuple[int, ...]
    nodes: tuple[str, ...]
    add: str


@dataclass(frozen=True)
class ParameterSpec:
    """Shape of a parameter as axes, for counting; ``blocks``: it vanishes when any of these blocks goes."""

    name: str
    axes: tuple[AxisSpec, ...]
    blocks: tuple[int, ...] = ()
    trainable: bool = True


@dataclass(frozen=True)
class OperatorSpec:
    """One operator of a deployed file, for matching a runtime's own operators to the network.

    ``name``: its name in the file; ``kind``: its type in ONNX's words (``Conv``, ``Relu`` …); ``node``: the exported
    graph's node it came from ("" where unknown); ``reads``/``writes``: names of activations; ``shapes``: of the first
    activation read and the first written, at the dense widths.
    """

    name: str
    kind: str
    node: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    shapes: tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class Passed:
    """A value between two layers of a deployed file: names of the layer that makes it and of the one that reads it
    (None: an operator that joins values), and how many ``elements`` it has at the dense widths."""

    source: str | None
    reader: str | None
    elements: int


@dataclass(frozen=True)
class NetworkSpec:
    """Groups, weighted layers, removable blocks and parameters of one traced network.

    ``fingerprint``: equal for networks with equal latency at equal widths; ``digest``: of names and shapes, as the
    network's plans hold it (empty: not known).
    """

    groups: tuple[GroupSpec, ...]
    layers: tuple[LayerSpec, ...]
    blocks: tuple[BlockSpec, ...]
    parameters: tuple[ParameterSpec, ...]
    fingerprint: str
    activation_axes: dict[str, AxisSpec] = field(default_factory=dict)
    """Channel axis of every exported node's output, by node name (for element-wise and pooling costs)."""
    node_blocks: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Blocks with which an exported node vanishes, by node name (only nodes inside a block)."""
    digest: str = ""

    @property
    def dense_widths(self) -> np.ndarray:
        """Widths of the untouched network, int64 [groups]."""
        return np.array([group.units for group in self.groups], dtype=np.int64)

    @property
    def min_widths(self) -> np.ndarray:
        """The narrowest legal widths, int64 [groups]."""
        return np.array([group.min_units for group in self.groups], dtype=np.int64)

    def macs(self, widths: np.ndarray | Sequence[int], removed: Collection[int] = ()) -> int:
        """Multiply-adds of the weighted layers at batch 1."""
        widths, gone = np.asarray(widths), set(removed)
        return int(sum(int(layer.macs(widths)) for layer in self.layers if gone.isdisjoint(layer.blocks)))

    def parameter_count(self, widths: np.ndarray | Sequence[int], removed: Collection[int] = ()) -> int:
        """Trainable scalars left."""
        widths, gone, total = np.asarray(widths), set(removed), 0
        for parameter in self.parameters:
            if parameter.trainable and gone.isdisjoint(parameter.blocks):
                total += int(np.prod([int(axis.length(widths)) for axis in parameter.axes], dtype=np.int64))
        return total
