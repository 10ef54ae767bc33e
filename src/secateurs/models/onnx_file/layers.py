"""ONNX operators with constant weights as layers of ``torch.nn``, which can be cut, refitted and trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateurs.errors import DataError
from secateurs.models.onnx_file.graph import OnnxNode
from secateurs.models.onnx_file.operators.pooling import flat_pads, pads_of
from secateurs.models.onnx_file.values import at


@dataclass(frozen=True)
class Layer:
    """A layer for a node. ``weight``: name of the constant that names it; ``inputs``: the node's other inputs."""

    module: nn.Module
    weight: str
    inputs: tuple[str, ...]


class Padded(nn.Module):
    """A convolution whose input is padded more on one side than on the other, as TensorFlow does; last axis first."""

    def __init__(self, pads: Sequence[int], layer: nn.Module) -> None:
        super().__init__()
        self.pads = tuple(pads)
        self.layer = layer

    def forward(self, values: Tensor) -> Tensor:
        """The layer's output."""
        return self.layer(F.pad(values, self.pads))  # type: ignore[no-any-return]


class Cropped(nn.Module):
    """A transposed convolution of which the border is left out; ``pads``: [begin …, end …]."""

    def __init__(self, pads: Sequence[int], layer: nn.Module) -> None:
        super().__init__()
        self.pads = tuple(-pad for pad in flat_pads(pads))
        self.layer = layer

    def forward(self, values: Tensor) -> Tensor:
        """The layer's output."""
        return F.pad(self.layer(values), self.pads)


def layer_of(node: OnnxNode, given: Sequence[Any], constant: Sequence[bool]) -> Layer | None:
    """The layer for a node whose weights are constants, None where it is none.

    Args:
        node: the node.
        given: its inputs' values in the example.
        constant: which of them are constants.

    Raises:
        DataError: it can only be a layer, and its weights are no constants or of a form that no layer has.
    """
    make = _MAKERS.get(node.op)
    found = None if make is None or not all(constant[1:]) else make(node, given, constant)
    if found is None and node.op in ("Conv", "ConvTranspose", "BatchNormalization"):
        raise DataError(
            f"{node.op} {node.name!r} of the ONNX file computes its weights from inputs, and such a network cannot be "
            f"rebuilt as layers. Give a file whose weights are constants."
        )
    return found


def _convolution(node: OnnxNode, given: Sequence[Any], constant: Sequence[bool]) -> Layer:
    weight, bias = _tensor(given[1]), at(given, 2)
    about, free = node.attributes, weight.ndim - 2
    kernel, strides = list(weight.shape[2:]), list(about.get("strides") or [1] * free)
    groups, dilation = about.get("group", 1), list(about.get("dilations") or [1] * free)
    pads = pads_of(about, kernel, strides, list(given[0].shape[2:]))
    even = pads[:free] == pads[free:]
    kind: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[free - 1]
    layer = kind(
        weight.shape[1] * groups,
        weight.shape[0],
        kernel,
        strides,
        pads[:free] if even else 0,
        dilation,
        groups,
        bias is not None,
    )
    _fill(layer, weight=weight, bias=bias)
    return Layer(layer if even else Padded(flat_pads(pads), layer), node.inputs[1], node.inputs[:1])


def _transposed(node: OnnxNode, given: Sequence[Any], constant: Sequence[bool]) -> Layer:
    weight, bias = _tensor(given[1]), at(given, 2)
    about, free = node.attributes, weight.ndim - 2
    strides, groups = list(about.get("strides") or [1] * free), about.get("group", 1)
    if "output_shape" in about or about.get("auto_pad", "NOTSET") != "NOTSET":
        raise DataError(f"ConvTranspose {node.name!r} of the ONNX file gives its output's size. Export it with pads.")
    pads, more = list(about.get("pads") or [0] * (2 * free)), list(about.get("output_padding") or [0] * free)
    even = pads[:free] == pads[free:]
    kind: Any = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[free - 1]
    layer = kind(
        weight.shape[0],
        weight.shape[1] * groups,
        list(weight.shape[2:]),
        strides,
        pads[:free] if even else 0,
        more,
        groups,
        bias is not None,
        list(about.get("dilations") or [1] * free),
    )
    _fill(layer, weight=weight, bias=bias)
    return Layer(layer if even else Cropped(pads, layer), node.inputs[1], node.inputs[:1])


def _batch_norm(node: OnnxNode, given: Sequence[Any], constant: Sequence[bool]) -> Layer:
    weight, free = _tensor(given[1]), given[0].ndim - 2
    kind: Any = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[free]
    momentum = 1 - node.attributes.get("momentum", 0.9)
    layer = kind(len(weight), node.attributes.get("epsilon", 1e-5), momentum)
    names = ("weight", "bias", "running_mean", "running_var")
    _fill(layer, **dict(zip(names, given[1:5], strict=True)))
    return Layer(layer, node.inputs[1], node.inputs[:1])


def _gemm(node: OnnxNode, given: Sequence[Any], constant: Sequence[bool]) -> Layer | None:
    about, bias = node.attributes, at(given, 2)
    plain = about.get("alpha", 1.0) == about.get("beta", 1.0) == 1.0 and not about.get("transA")
    weight = _tensor(given[1])
    weight = weight if about.get("transB") else weight.t()
    if not plain or not isinstance(given[0], Tensor) or (bias is not None and _tensor(bias).numel() != len(weight)):
        return None
    return _linear(weight, None if bias is None else _tensor(bias).reshape(-1), node)


def _matmul(node: OnnxNode, given: Sequence[Any], constant: Sequence[bool]) -> Layer | None:
    """A bias that is added afterwards is joined by the builder."""
    if not isinstance(given[0], Tensor) or np.ndim(given[1]) != 2:
        return None
    return _linear(_tensor(given[1]).t(), None, node)


def _linear(weight: Tensor, bias: Tensor | None, node: OnnxNode) -> Layer:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    _fill(layer, weight=weight, bias=bias)
    return Layer(layer, node.inputs[1], node.inputs[:1])


def with_bias(layer: nn.Linear, bias: Tensor) -> nn.Linear:
    """The same layer with a bias."""
    layer.bias = nn.Parameter(bias.detach().clone().reshape(-1))
    return layer


def _layer_norm(node: OnnxNode, given: Sequence[Any], constant: Sequence[bool]) -> Layer | None:
    axis, values = node.attributes.get("axis", -1), given[0]
    shape = tuple(int(size) for size in values.shape[axis % values.ndim :])
    if len(node.outputs) > 1 or tuple(np.shape(given[1])) != shape:
        return None
    layer = nn.LayerNorm(shape, node.attributes.get("epsilon", 1e-5), bias=at(given, 2) is not None)
    _fill(layer, weight=given[1], bias=at(given, 2))
    return Layer(layer, node.inputs[1], node.inputs[:1])


def embedding_of(node: OnnxNode, given: Sequence[Any], constant: Sequence[bool]) -> Layer | None:
    """The layer of a gather of rows from a constant table by indices that are no constants."""
    if node.op != "Gather" or not constant[0] or constant[1] or node.attributes.get("axis", 0) != 0:
        return None
    if np.ndim(given[0]) != 2 or not isinstance(given[0], Tensor) or not isinstance(given[1], Tensor):
        return None
    if not given[0].is_floating_point():
        return None
    layer = nn.Embedding(*given[0].shape)
    _fill(layer, weight=given[0])
    return Layer(layer, node.inputs[0], node.inputs[1:2])


def _prelu(node: OnnxNode, given: Sequence[Any], constant: Sequence[bool]) -> Layer | None:
    slope, values = _tensor(given[1]), given[0]
    channels = slope.ndim == values.ndim - 1 and slope.numel() == len(slope) == values.shape[1] and values.ndim > 2
    if slope.numel() != 1 and not channels:
        return None
    layer = nn.PReLU(slope.numel())
    _fill(layer, weight=slope.reshape(-1))
    return Layer(layer, node.inputs[1], node.inputs[:1])


def _group_norm(node: OnnxNode, given: Sequence[Any], constant: Sequence[bool]) -> Layer | None:
    channels = int(given[0].shape[1])
    if len(_tensor(given[1])) != channels:
        return None
    layer = nn.GroupNorm(node.attributes["num_groups"], channels, node.attributes.get("epsilon", 1e-5))
    _fill(layer, weight=given[1], bias=given[2])
    return Layer(layer, node.inputs[1], node.inputs[:1])


def _instance_norm(node: OnnxNode, given: Sequence[Any], constant: Sequence[bool]) -> Layer:
    free = given[0].ndim - 2
    kind: Any = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)[free - 1]
    layer = kind(int(given[0].shape[1]), node.attributes.get("epsilon", 1e-5), affine=True)
    _fill(layer, weight=given[1], bias=given[2])
    return Layer(layer, node.inputs[1], node.inputs[:1])


_MAKERS = {
    "Conv": _convolution,
    "ConvTranspose": _transposed,
    "BatchNormalization": _batch_norm,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "LayerNormalization": _layer_norm,
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _instance_norm,
    "PRelu": _prelu,
}


def _tensor(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else torch.as_tensor(np.array(value))


def _fill(layer: nn.Module, **tensors: Any) -> None:
    """Copy constants into a layer's own tensors."""
    with torch.no_grad():
        for name, value in tensors.items():
            if value is not None:
                getattr(layer, name).copy_(_tensor(value))
