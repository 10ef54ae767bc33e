"""A converted network on fixed memory: for one input shape, without allocations or Python between convolutions."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from secateurs.elements import native
from secateurs.elements.module import SparseConv2d
from secateurs.elements.operator import call_arguments, channels_last
from secateurs.errors import PlanError, SecateursError

PIXELS_APART = (16, 32, 64)
"""Distances between the pixels that a tile reads, in floats, for which the kernels need no copy of their input."""


@dataclass(eq=False)
class _Memory:
    """``images``: shape and border of the images that it holds, where they have a border."""

    values: Tensor
    images: tuple[torch.Size, int] | None


@dataclass
class _Convolutions:
    """A stretch of ``count`` calls from ``first`` on; ``fill``: (call, field, node) pointers known only at run time."""

    first: int
    count: int
    fill: list[tuple[int, str, fx.Node]]


@dataclass
class _Other:
    node: fx.Node
    target: Callable[..., Any]
    drop: tuple[fx.Node, ...]


class Runner:
    """What :func:`secateurs.elements.convert.convert` returns, made ready for inputs shaped like ``example``.

    Neighbouring sparse convolutions run in one call of the library, into memory that is planned once and shared
    between tensors that do not live at the same time. Everything else runs as it is. Weights are read in place. Not
    for use by two threads at once.

    Raises:
        PlanError: the network has several inputs or outputs.
        TargetUnavailableError: the compiled kernels are missing.
    """

    def __init__(self, module: fx.GraphModule, example: Tensor, *, threads: int | None = None) -> None:
        self._kernels = native.require()
        self._module = module
        self._threads = threads or torch.get_num_threads()
        inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
        output = next(node for node in module.graph.nodes if node.op == "output")
        results = [output.args[0]] if isinstance(output.args[0], fx.Node) else list(output.args[0])
        if len(inputs) != 1 or len(results) != 1 or not isinstance(results[0], fx.Node):
            raise PlanError(
                f"This network has {len(inputs)} inputs and {len(results)} outputs. The runner serves one of each: "
                f"call the converted module itself."
            )
        self._input, self._output = inputs[0], results[0]
        self.shape = tuple(example.shape)
        with torch.inference_mode():
            self._values = _Record(module).record(channels_last(example) if example.dim() == 4 else example)
        self._plan_memory()
        self._plan_steps()

    def _plan_memory(self) -> None:
        """One buffer per convolution output, given on as soon as its last reader has run."""
        order = {node: index for index, node in enumerate(self._module.graph.nodes)}
        free: list[_Memory] = []
        busy: list[tuple[int, _Memory]] = []
        self._buffers: dict[fx.Node, Tensor] = {}
        self._borders: dict[fx.Node, int] = {}
        for node, index in order.items():
            free += [memory for last, memory in busy if last < index]
            busy = [(last, memory) for last, memory in busy if last >= index]
            if self._layer(node) is None:
                continue
            batch, channels, height, width = shape = self._values[node].shape
            border = self._borders[node] = self._border(node)
            rows, columns = height + 2 * border, width + 2 * border
            size = batch * channels * rows * columns
            # What surrounds an image stays zero only while the memory holds images of that shape.
            images = (shape, border) if border else None
            fitting = [m for m in free if m.images == images and size <= m.values.numel() <= 2 * size]
            memory = min(fitting, key=lambda m: m.values.numel(), default=_Memory(torch.zeros(size), images))
            free = [m for m in free if m is not memory]
            # Other operators may return views, so what they read stays to the end.
            stays = any(self._layer(user) is None for user in node.users)
            busy.append((len(order) if stays else max(order[user] for user in node.users), memory))
            strides = (rows * columns * channels, 1, columns * channels, channels)
            self._buffers[node] = memory.values.as_strided(shape, strides, border * (columns + 1) * channels)

    def _border(self, node: fx.Node) -> int:
        """Zero pixels around a convolution's output, so that those who read it need not copy it: see ``in_border``."""
        border = 0
        for user in node.users:
            layer = self._layer(user)
            if layer is not None and user.args[0] is node:
                _, _, _, stride, *padding, _, _, groups = layer.call
                if groups == 1 and layer.shape[1] * stride in PIXELS_APART:
                    border = max(border, *padding)
        return border

    def _layer(self, node: fx.Node) -> SparseConv2d | None:
        if node.op != "call_module":
            return None
        layer = self._module.get_submodule(str(node.target))
        return layer if isinstance(layer, SparseConv2d) else None

    def _plan_steps(self) -> None:
        layers = [(node, layer) for node in self._module.graph.nodes if (layer := self._layer(node)) is not None]
        self._calls = (native.KernelCall * len(layers))()
        self._arguments: list[native.ConvArguments] = []
        self._steps: list[_Convolutions | _Other] = []
        self._constants: dict[fx.Node, Any] = {}
        for node in self._module.graph.nodes:
            layer = self._layer(node)
            if layer is not None:
                self._add_convolution(node, layer)
            elif node.op == "get_attr":
                self._constants[node] = self._values[node]
            elif node.op == "call_function":
                self._steps.append(_Other(node, node.target, ()))
            elif node.op == "call_module":
                self._steps.append(_Other(node, self._module.get_submodule(str(node.target)), ()))
        self._drop_early()
        self._values.clear()

    def _add_convolution(self, node: fx.Node, layer: SparseConv2d) -> None:
        index = len(self._arguments)
        if not self._steps or not isinstance(self._steps[-1], _Convolutions):
            self._steps.append(_Convolutions(index, 0, []))
        stretch = self._steps[-1]
        assert isinstance(stretch, _Convolutions)
        stretch.count += 1
        call = self._calls[index]
        operands = [operand for operand in node.args if isinstance(operand, fx.Node)]
        strides = []
        for name, operand in zip(("input", "residual"), operands, strict=False):
            known = self._buffers.get(operand)
            if known is None:
                stretch.fill.append((index, name, operand))
                known = channels_last(self._values[operand])
            else:
                setattr(call, name, known.data_ptr())
            strides.append(known.stride())
        shared, _ = call_arguments(
            tuple(self._values[operands[0]].shape), strides[0], strides[1] if len(strides) > 1 else None,
            layer.shape[0], layer.weights.shape[1], tuple(layer.call), layer.activation, self._threads,
        )  # fmt: skip
        arguments = native.ConvArguments.from_buffer_copy(shared)
        out = self._buffers[node].stride()
        arguments.out_stride_batch, arguments.out_stride_row, arguments.out_stride_column = out[0], out[2], out[3]
        arguments.in_border = self._borders.get(operands[0], 0)
        self._arguments.append(arguments)
        call.conv = ctypes.pointer(arguments)
        call.weights = layer.weights.data_ptr() or ctypes.addressof(arguments)
        call.masks, call.starts = layer.masks.data_ptr(), layer.starts.data_ptr()
        call.bias = None if layer.bias is None else layer.bias.data_ptr()
        call.output = self._buffers[node].data_ptr()

    def _drop_early(self) -> None:
        """Tensors of other operators are let go after their last reader."""
        last: dict[fx.Node, int] = {}
        for index, step in enumerate(self._steps):
            read = (
                [node for _, _, node in step.fill]
                if isinstance(step, _Convolutions)
                else list(step.node.all_input_nodes)
            )
            last.update(dict.fromkeys(read, index))
        for index, step in enumerate(self._steps):
            if isinstance(step, _Other):
                step.drop = tuple(
                    n for n, at in last.items() if at == index and n not in self._buffers and n not in self._constants
                )

    def __call__(self, x: Tensor) -> Tensor:
        """The network's output for ``x``, in memory of its own.

        Raises:
            PlanError: ``x`` has another shape than the example.
        """
        if tuple(x.shape) != self.shape:
            raise PlanError(f"This runner was made for inputs {self.shape}, not {tuple(x.shape)}. Make another one.")
        with torch.inference_mode():
            return self._run(x)

    def _run(self, x: Tensor) -> Tensor:
        values: dict[fx.Node, Any] = {self._input: x, **self._buffers, **self._constants}
        done = ctypes.c_int()
        for step in self._steps:
            if isinstance(step, _Other):
                arguments = fx.node.map_arg(step.node.args, values.__getitem__)
                values[step.node] = step.target(*arguments, **fx.node.map_arg(step.node.kwargs, values.__getitem__))
                for node in step.drop:
                    values.pop(node, None)
                continue
            kept = []  # copies in the right layout must outlive the call
            for index, name, node in step.fill:
                kept.append(channels_last(values[node]))
                setattr(self._calls[index], name, kept[-1].data_ptr())
            first = ctypes.addressof(self._calls) + step.first * ctypes.sizeof(native.KernelCall)
            status = self._kernels.convs(first, step.count, ctypes.byref(done))
            if status:
                raise SecateursError(
                    f"Convolution {step.first + done.value} of {len(self._calls)} failed: "
                    f"{native.STATUS.get(status, status)}. Convert the network again."
                )
        return values[self._output].clone()


class _Record(fx.Interpreter):
    """Runs the network once and keeps every node's value."""

    def record(self, example: Tensor) -> dict[fx.Node, Any]:
        self.kept: dict[fx.Node, Any] = {}
        self.run(example)
        return self.kept

    def run_node(self, n: fx.Node) -> Any:
        self.kept[n] = super().run_node(n)
        return self.kept[n]
