"""Quantised ONNX files (QDQ, as the int8 targets run them) to networks of integers that the engine computes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from secateurs.errors import ExportError
from secateurs.fpga.layers import ADD_SHIFT, Addition, IntegerLayer, IntegerNetwork, LayerStep, Move, fixed_point

_PASSED = ("Flatten", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Dropout")
_BOUNDS = ("Relu", "Clip")
_OPERATORS = (
    "convolutions, linear layers, additions, ReLU, ReLU6, means over the image, strided slices and channel pads"
)


@dataclass(frozen=True)
class Quantised:
    """A tensor of bytes by its name, its scale and its zero point."""

    name: str
    scale: np.float32
    zero: int


def read(model: onnx.ModelProto, orders: Mapping[str, tuple[int, ...]] | None = None) -> IntegerNetwork:
    """The integers of a quantised file with one input and one output, for one sample.

    ``orders``: of filters by layer, in which they are cut into blocks (a plan's).

    Raises:
        ExportError: an operator has no hardware, stays in float, or is quantised in another way (the message names it).
    """
    return _Reader(onnx.shape_inference.infer_shapes(model), orders or {}).network()


class _Reader:
    """One file's graph, and what was read of it so far."""

    def __init__(self, model: onnx.ModelProto, orders: Mapping[str, tuple[int, ...]]) -> None:
        graph = model.graph
        self._graph, self._orders = graph, orders
        self._constants = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
        self._producer = {value: node for node in graph.node for value in node.output}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for value in node.input:
                self._readers.setdefault(value, []).append(node)
        self._shapes = {
            one.name: tuple(dim.dim_value for dim in one.type.tensor_type.shape.dim)
            for one in (*graph.value_info, *graph.input, *graph.output)
        }
        self._inputs = [one.name for one in graph.input if one.name not in self._constants]
        self._steps: list[LayerStep | Move] = []
        self._aliases: dict[str, str] = {}

    def network(self) -> IntegerNetwork:
        if len(self._inputs) != 1 or len(self._graph.output) != 1:
            raise ExportError(
                f"The engine runs networks of one input and one output; this one has {len(self._inputs)} and "
                f"{len(self._graph.output)}."
            )
        entry: Quantised | None = None
        for node in self._graph.node:
            if node.op_type != "QuantizeLinear":
                continue
            made = self._quantised(node)
            if node.input[0] == self._inputs[0]:
                entry = made
            else:
                self._read(node, made)
        self._check_read()
        shape = self._shapes[self._inputs[0]]
        if entry is None or len(shape) != 4 or shape[0] != 1:
            raise ExportError(
                f"The input has shape {shape}{'' if entry else ' and is not quantised'}; the engine takes quantised "
                f"images of batch 1. Export with --batch 1 for an int8 target."
            )
        last = self._dequantised(self._graph.output[0].name)
        return IntegerNetwork(
            steps=tuple(self._steps),
            input=entry.name,
            output=self._aliases.get(last.name, last.name),
            shape=(shape[1], shape[2], shape[3]),
            scale=float(entry.scale),
            zero=entry.zero,
            output_scale=float(last.scale),
            output_zero=last.zero,
            output_shape=self._shapes[self._graph.output[0].name][1:],
        )

    # ---- tensors

    def _quantised(self, node: onnx.NodeProto) -> Quantised:
        scale, zero = (self._constants.get(name) for name in node.input[1:3])
        if scale is None or zero is None or scale.size != 1 or zero.dtype != np.uint8:
            raise ExportError(
                f"Tensor {node.input[0]} is not quantised to unsigned bytes with one scale, which the engine reads. "
                f"Export for an int8 target such as onnxruntime-cpu:int8."
            )
        return Quantised(node.output[0], np.float32(scale.item()), int(zero.item()))

    def _dequantised(self, value: str) -> Quantised:
        """The bytes that a float value was made of.

        Raises:
            ExportError: it was not.
        """
        node = self._producer.get(value)
        while node is not None and node.op_type in _PASSED:
            value = node.input[0]
            node = self._producer.get(value)
        if node is None or node.op_type != "DequantizeLinear":
            what = f"operator {node.op_type}" if node is not None else "an input"
            raise ExportError(
                f"Tensor {value} stays in float ({what}), and the engine computes with bytes: it has {_OPERATORS}. "
                f"Leave layers in float out of the plan, or choose another target."
            )
        source = self._producer.get(node.input[0])
        if source is None or source.op_type != "QuantizeLinear":
            raise ExportError(f"Tensor {value} is dequantised from {node.input[0]}, which is no quantised activation.")
        made = self._quantised(source)
        return replace(made, name=self._aliases.get(made.name, made.name))

    def _weight(self, value: str) -> tuple[str, np.ndarray, np.ndarray]:
        """(name, bytes, scales) of a quantised weight."""
        node = self._producer.get(value)
        if node is None or node.op_type != "DequantizeLinear" or node.input[0] not in self._constants:
            raise ExportError(f"Weight {value} is not quantised. Leave it out of the layers in float.")
        content, scale = self._constants[node.input[0]], self._constants[node.input[1]]
        zero = self._constants[node.input[2]] if len(node.input) > 2 else np.zeros(1)
        if content.dtype != np.int8 or np.any(zero != 0):
            raise ExportError(f"Weight {value} is not of signed bytes around zero, which the engine multiplies by.")
        return node.input[0].removesuffix("_quantized").removesuffix(".weight"), content, scale.reshape(-1)

    def _bias(self, node: onnx.NodeProto, filters: int) -> np.ndarray:
        if len(node.input) < 3 or not node.input[2]:
            return np.zeros(filters, dtype=np.int64)
        made = self._producer.get(node.input[2])
        if made is None or made.op_type != "DequantizeLinear" or made.input[0] not in self._constants:
            raise ExportError(f"The bias {node.input[2]} is not quantised, which the engine adds as integers.")
        return self._constants[made.input[0]].astype(np.int64).reshape(-1)

    # ---- operators

    def _read(self, node: onnx.NodeProto, made: Quantised) -> None:
        """What a quantised tensor is computed by, as a step."""
        low, high, value = 0, 255, node.input[0]
        source = self._producer.get(value)
        while source is not None and source.op_type in _BOUNDS:
            low, high = self._bounds(source, made, low, high)
            source = self._producer.get(source.input[0])
        kinds: Mapping[str, Callable[..., None]] = {
            "Conv": self._conv,
            "Gemm": self._linear,
            "MatMul": self._linear,
            "Add": self._add,
            "ReduceMean": self._mean,
            "GlobalAveragePool": self._mean,
            "Slice": self._slice,
            "Pad": self._pad,
            **dict.fromkeys(_PASSED, self._same),
            "DequantizeLinear": self._same,
        }
        if source is None or source.op_type not in kinds:
            what = "nothing" if source is None else f"operator {source.op_type}"
            raise ExportError(
                f"Tensor {value} is made by {what}, for which the engine has no hardware: it has {_OPERATORS}. Run it "
                f"on the processor, or choose another target."
            )
        kinds[source.op_type](source, made, (low, high))

    def _bounds(self, node: onnx.NodeProto, made: Quantised, low: int, high: int) -> tuple[int, int]:
        limits = [0.0, math.inf]
        if node.op_type == "Clip":
            given = [self._constants.get(name) if name else None for name in [*node.input[1:3], "", ""][:2]]
            limits = [end if one is None else float(one) for one, end in zip(given, (-math.inf, math.inf), strict=True)]
        bytes_ = [
            low if math.isinf(one) and one < 0 else high if math.isinf(one) else self._byte(one, made) for one in limits
        ]
        return max(low, bytes_[0]), min(high, bytes_[1])

    @staticmethod
    def _byte(value: float, made: Quantised) -> int:
        return int(np.clip(np.rint(np.float32(value) / made.scale) + made.zero, 0, 255))

    def _layer(
        self,
        name: str,
        weight: np.ndarray,
        scales: np.ndarray,
        made: Quantised,
        source: Quantised,
        bounds: tuple[int, int],
        given: Mapping[str, Any],
    ) -> None:
        factor = source.scale * scales.astype(np.float32) / made.scale
        multiplier, shift = fixed_point(np.broadcast_to(factor, len(weight)), name)
        layer = IntegerLayer(
            name=name,
            weight=weight,
            multiplier=multiplier,
            shift=shift,
            zero_in=source.zero,
            zero=made.zero,
            low=bounds[0],
            high=bounds[1],
            order=tuple(self._orders.get(name, ())),
            **given,
        )
        self._steps.append(LayerStep(layer, source.name, made.name))

    def _conv(self, node: onnx.NodeProto, made: Quantised, bounds: tuple[int, int]) -> None:
        name, weight, scales = self._weight(node.input[1])
        source = self._dequantised(node.input[0])
        given = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
        strides, dilations = given.get("strides", [1, 1]), given.get("dilations", [1, 1])
        pads, kind = given.get("pads", [0, 0, 0, 0]), given.get("auto_pad", b"NOTSET")
        if weight.ndim != 4 or len(set(strides)) > 1 or set(dilations) != {1} or kind != b"NOTSET":
            raise ExportError(
                f"Convolution {name} of weight {list(weight.shape)} with strides {strides}, dilations {dilations} and "
                f"auto_pad {kind.decode()} has no hardware: the engine's are two-dimensional, of one stride, undilated."
            )
        before, after = self._shapes[node.input[0]], self._shapes[node.output[0]]
        wide = {
            "bias": self._bias(node, len(weight)),
            "input_hw": (before[2], before[3]),
            "output_hw": (after[2], after[3]),
            "stride": int(strides[0]),
            "padding": (int(pads[0]), int(pads[1])),
            "groups": int(given.get("group", 1)),
        }
        self._layer(name, _ungrouped(weight, given.get("group", 1)), scales, made, source, bounds, wide)

    def _linear(self, node: onnx.NodeProto, made: Quantised, bounds: tuple[int, int]) -> None:
        name, weight, scales = self._weight(node.input[1])
        source = self._dequantised(node.input[0])
        given = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
        if given.get("alpha", 1.0) != 1 or given.get("beta", 1.0) != 1 or given.get("transA", 0) or weight.ndim != 2:
            raise ExportError(f"Linear layer {name} is scaled or transposed, for which the engine has no hardware.")
        matrix = weight if given.get("transB", 0) else np.ascontiguousarray(weight.T)
        if math.prod(self._shapes[node.input[0]]) != matrix.shape[1]:
            raise ExportError(
                f"Linear layer {name} reads {self._shapes[node.input[0]]}; the engine's take one vector a sample."
            )
        one = {"bias": self._bias(node, len(matrix)), "input_hw": (1, 1), "output_hw": (1, 1)}
        self._layer(name, matrix[:, :, None, None], scales, made, source, bounds, one)

    def _mean(self, node: onnx.NodeProto, made: Quantised, bounds: tuple[int, int]) -> None:
        """A mean over the image: a depthwise convolution of ones as large as the image."""
        shape = self._shapes[node.input[0]]
        axes = self._constants.get(node.input[1]) if len(node.input) > 1 else None
        if len(shape) != 4 or (axes is not None and sorted(int(axis) % 4 for axis in axes) != [2, 3]):
            raise ExportError(
                f"Mean {node.output[0]} is not over an image's rows and columns, which the engine can do."
            )
        channels, height, width = shape[1:]
        ones = _ungrouped(np.ones((channels, 1, height, width), dtype=np.int8), channels)
        source = self._dequantised(node.input[0])
        scales = np.full(channels, 1 / np.float32(height * width), dtype=np.float32)
        given = {"bias": np.zeros(channels, np.int64), "input_hw": (height, width), "output_hw": (1, 1)}
        given |= {"groups": channels, "mean": True}
        self._layer(node.output[0], ones, scales, made, source, bounds, given)

    def _add(self, node: onnx.NodeProto, made: Quantised, bounds: tuple[int, int]) -> None:
        """Into the layer that computes one of the two: what is added streams in while its results leave."""
        terms = [self._dequantised(value) for value in node.input]
        own = next((index for index in (1, 0) if self._ends_in(terms[index], node, terms[1 - index])), None)
        if own is None or terms[0].name == terms[1].name:
            raise ExportError(
                f"Addition {node.output[0]} is not of a layer's result that nothing else reads, so it cannot run in "
                f"that layer's last stage, the only adder of the engine."
            )
        mine, other = terms[own], terms[1 - own]
        ratios = [float(np.float32(one.scale / made.scale)) for one in (mine, other)]
        weighed = [round(ratio * 2**ADD_SHIFT) for ratio in ratios]
        add = Addition(weighed[0], weighed[1], other.zero, made.zero, *bounds)
        at = next(i for i, step in enumerate(self._steps) if isinstance(step, LayerStep) and step.output == mine.name)
        step = self._steps.pop(at)
        assert isinstance(step, LayerStep)
        self._steps.append(LayerStep(replace(step.layer, add=add), step.source, made.name, other.name))

    def _ends_in(self, term: Quantised, add: onnx.NodeProto, other: Quantised) -> bool:
        """Whether a term is the result of a layer that is read by this addition only."""
        step = next((one for one in self._steps if isinstance(one, LayerStep) and one.output == term.name), None)
        if step is None or step.layer.add is not None or term.name == other.name:
            return False
        readers = self._readers.get(term.name, [])
        floats = [reader.output[0] for reader in readers if reader.op_type == "DequantizeLinear"]
        return all(
            [after.output[0] == add.output[0] for after in self._readers.get(name, [])] == [True] for name in floats
        )

    def _slice(self, node: onnx.NodeProto, made: Quantised, bounds: tuple[int, int]) -> None:
        given = [self._constants.get(name) for name in node.input[1:5]]
        shape = self._shapes[node.input[0]]
        axes = [2, 3] if len(given) < 3 or given[2] is None else [int(one) % len(shape) for one in given[2]]
        steps = [1] * len(axes) if len(given) < 4 or given[3] is None else [int(one) for one in given[3]]
        whole = all(
            int(start) == 0 and int(end) >= shape[axis]
            for start, end, axis in zip(_ends(given[0]), _ends(given[1]), axes, strict=True)
        )
        if not whole or set(axes) - {2, 3} or min(steps) < 1:
            raise ExportError(
                f"Slice {node.output[0]} takes more than every n-th row or column. Run it on the processor."
            )
        by = dict(zip(axes, steps, strict=True))
        self._move(node, made, {"steps": (by.get(2, 1), by.get(3, 1))})

    def _pad(self, node: onnx.NodeProto, made: Quantised, bounds: tuple[int, int]) -> None:
        amounts = self._constants.get(node.input[1])
        given = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
        value = self._constants.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        bad = amounts is None or len(amounts) != 8 or any(int(amounts[i]) for i in (0, 2, 3, 4, 6, 7))
        if bad or given.get("mode", b"constant") != b"constant" or (value is not None and float(value) != 0):
            raise ExportError(f"Pad {node.output[0]} is not of channels of zeros. Run it on the processor.")
        assert amounts is not None
        self._move(node, made, {"front": int(amounts[1]), "behind": int(amounts[5]), "zero": made.zero})

    def _same(self, node: onnx.NodeProto, made: Quantised, bounds: tuple[int, int]) -> None:
        value = node.output[0] if node.op_type == "DequantizeLinear" else node.input[0]
        source = self._dequantised(value)
        self._check_scale(node, made, source)
        self._aliases[made.name] = source.name

    def _move(self, node: onnx.NodeProto, made: Quantised, given: Mapping[str, Any]) -> None:
        source = self._dequantised(node.input[0])
        self._check_scale(node, made, source)
        self._steps.append(Move(source.name, made.name, **given))

    @staticmethod
    def _check_scale(node: onnx.NodeProto, made: Quantised, source: Quantised) -> None:
        if (made.scale, made.zero) != (source.scale, source.zero):
            raise ExportError(
                f"{node.op_type} {node.output[0]} changes the scale of what it moves, for which the engine has no "
                f"hardware. Run it on the processor."
            )

    def _check_read(self) -> None:
        """Nothing, if every layer of the file became a step: what is in float has no quantised result."""
        read = {step.layer.name for step in self._steps if isinstance(step, LayerStep)}
        for node in self._graph.node:
            if node.op_type in ("Conv", "Gemm", "MatMul", "ConvTranspose"):
                made = self._producer.get(node.input[1])
                name = made.input[0] if made is not None else node.input[1]
                name = name.removesuffix("_quantized").removesuffix(".weight")
                if name not in read:
                    raise ExportError(
                        f"Layer {name} ({node.op_type}) stays in float, and the engine computes with bytes."
                    )


def _ends(values: np.ndarray | None) -> list[int]:
    return [] if values is None else [int(one) for one in values]


def _ungrouped(weight: np.ndarray, groups: int) -> np.ndarray:
    """The weight of the same convolution without groups: zeros where they do not meet."""
    if groups == 1:
        return weight
    filters, per_group = weight.shape[:2]
    wide = np.zeros((filters, per_group * groups, *weight.shape[2:]), dtype=weight.dtype)
    each = filters // groups
    for group in range(groups):
        part = slice(group * each, (group + 1) * each)
        wide[part, group * per_group : (group + 1) * per_group] = weight[part]
    return wide
