"""``torch.ops.secateurs.sparse_conv2d``: the sparse convolution as a PyTorch operator.

It has shapes for tracing (``torch.export``, ``torch.compile``, AOTInductor) and gradients for training. On CPU tensors
of float32 it runs the compiled kernels; without them, or for other types, the dense convolution of the unpacked weight.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from secateurs.elements import native
from secateurs.elements.packing import gather, unpack
from secateurs.elements.reference import activate
from secateurs.errors import PlanError, SecateursError

_LIBRARY = torch.library.Library("secateurs", "FRAGMENT")
_LIBRARY.define(
    "sparse_conv2d(Tensor x, Tensor weights, Tensor masks, Tensor starts, Tensor? bias, Tensor? residual, int filters, "
    "int[] geometry, int activation) -> Tensor"
)
# geometry: kernel h, w, stride h, w, padding top, left, bottom, right, dilation h, w, groups
# activation: index into native.ACTIVATIONS; a number, because other runtimes' converters do not hand strings on

sparse_conv2d = torch.ops.secateurs.sparse_conv2d.default


def geometry(
    kernel: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> list[int]:
    """The eleven integers that the operator takes. ``padding``: top, left, bottom, right."""
    return [*kernel, *stride, *padding, *dilation, groups]


def _output_size(x: Any, geometry: list[int]) -> tuple[Any, Any]:
    kh, kw, sh, sw, top, left, bottom, right, dh, dw, _ = geometry
    height = (x.shape[2] + top + bottom - dh * (kh - 1) - 1) // sh + 1
    width = (x.shape[3] + left + right - dw * (kw - 1) - 1) // sw + 1
    return height, width


def _empty_output(x: Tensor, filters: int, geometry: list[int]) -> Tensor:
    height, width = _output_size(x, geometry)
    return torch.empty(
        (x.shape[0], filters, height, width), dtype=x.dtype, device=x.device, memory_format=torch.channels_last
    )


@functools.lru_cache(maxsize=4096)
def call_arguments(
    x_shape: tuple[int, ...],
    x_stride: tuple[int, ...],
    residual_stride: tuple[int, ...] | None,
    filters: int,
    block: int,
    geometry: tuple[int, ...],
    activation: str,
    threads: int,
) -> tuple[native.ConvArguments, tuple[int, int, int, int]]:
    """The C structure of a call, and the output's shape: made once per layer and input shape."""
    batch, channels, in_height, in_width = x_shape
    kh, kw, sh, sw, top, left, bottom, right, dh, dw, groups = geometry
    height = (in_height + top + bottom - dh * (kh - 1) - 1) // sh + 1
    width = (in_width + left + right - dw * (kw - 1) - 1) // sw + 1
    residual = residual_stride or (0, 1, 0, 0)
    arguments = native.ConvArguments(
        batch, channels, in_height, in_width, filters, height, width, kh, kw, sh, sw, top, left, dh, dw, groups, block,
        native.ACTIVATIONS.index(activation), threads, 0,
        *x_stride, height * width * filters, width * filters, filters, residual[0], residual[2], residual[3],
    )  # fmt: skip
    return arguments, (batch, filters, height, width)


def _run(
    x: Tensor,
    weights: Tensor,
    masks: Tensor,
    starts: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    filters: int,
    geometry: list[int],
    activation: int,
) -> Tensor:
    if x.dim() != 4:
        raise PlanError(f"A sparse convolution takes images [n, channels, h, w], not {tuple(x.shape)}. Unsqueeze it.")
    found = native.kernels()
    if found is None or x.dtype is not torch.float32 or weights.dtype is not torch.float32:
        return _run_dense(x, weights, masks, starts, bias, residual, filters, geometry, activation)
    if residual is not None and residual.stride(1) != 1:
        residual = channels_last(residual)
    arguments, shape = call_arguments(
        tuple(x.shape), x.stride(), None if residual is None else residual.stride(), filters, weights.shape[1],
        tuple(geometry), native.ACTIVATIONS[activation], torch.get_num_threads(),
    )  # fmt: skip
    _refuse_unfit(x, bias, residual, shape)
    out = torch.empty(shape, memory_format=torch.channels_last)
    if not x.shape[0]:
        return out
    status = found.conv(
        ctypes.addressof(arguments), x.data_ptr(), weights.data_ptr() or arguments_address(arguments), masks.data_ptr(),
        starts.data_ptr(), None if bias is None else bias.data_ptr(),
        None if residual is None else residual.data_ptr(), out.data_ptr(),
    )  # fmt: skip
    if status:
        raise SecateursError(
            f"Sparse convolution of input {tuple(x.shape)} with {filters} filters, geometry {list(geometry)}: "
            f"{native.STATUS.get(status, status)}. Pack the weight again, and check the input's shape."
        )
    return out


def _refuse_unfit(x: Tensor, bias: Tensor | None, residual: Tensor | None, shape: tuple[int, ...]) -> None:
    """The kernels read as many numbers as the output ``shape`` needs, whatever is there."""
    if residual is not None and (residual.shape != shape or residual.dtype is not x.dtype):
        raise PlanError(
            f"A residual of {residual.dtype} {tuple(residual.shape)} cannot be added to an output of {x.dtype} {shape} "
            f"in one pass. Expand and convert it first, or add it afterwards."
        )
    if bias is not None and (bias.shape != shape[1:2] or bias.dtype is not x.dtype):
        raise PlanError(
            f"A bias of {bias.dtype} {tuple(bias.shape)} does not fit {shape[1]} filters of {x.dtype}. "
            f"Give one number per filter, of the input's type."
        )


def channels_last(x: Tensor) -> Tensor:
    """``x`` [n, c, h, w] with channel stride 1, copied where it must be."""
    x = x.contiguous(memory_format=torch.channels_last)
    if x.stride(1) != 1:  # one channel or one pixel: for PyTorch any strides are right then
        channels, height, width = x.shape[1:]
        x = x.as_strided(x.shape, (height * width * channels, 1, width * channels, channels))
    return x


def arguments_address(arguments: native.ConvArguments) -> int:
    """A valid address for weights that have no rows: it is never read."""
    return ctypes.addressof(arguments)


def _run_dense(
    x: Tensor,
    weights: Tensor,
    masks: Tensor,
    starts: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    filters: int,
    geometry: list[int],
    activation: int,
) -> Tensor:
    """The same by ``F.conv2d`` on the unpacked weight: for other devices and types, and where nothing is compiled."""
    _refuse_unfit(x, bias, residual, (x.shape[0], filters, *_output_size(x, geometry)))
    value = _dense_preactivation(x, weights, masks, bias, residual, filters, geometry)
    return activate(value, native.ACTIVATIONS[activation]).contiguous(memory_format=torch.channels_last)


def _dense_preactivation(
    x: Tensor,
    weights: Tensor,
    masks: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    filters: int,
    geometry: list[int],
) -> Tensor:
    kh, kw, sh, sw, top, left, bottom, right, dh, dw, groups = geometry
    dense = unpack(weights, masks, (filters, x.shape[1] // groups, kh, kw), groups)
    padded = F.pad(x, (left, right, top, bottom))
    value = F.conv2d(padded, dense, bias, stride=(sh, sw), dilation=(dh, dw), groups=groups)
    return value if residual is None else value + residual


def _fake(
    x: Tensor,
    weights: Tensor,
    masks: Tensor,
    starts: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    filters: int,
    geometry: list[int],
    activation: int,
) -> Tensor:
    return _empty_output(x, filters, geometry)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weights, masks, _, bias, residual, filters, geometry, activation = inputs
    ctx.filters, ctx.geometry, ctx.activation = filters, geometry, native.ACTIVATIONS[activation]
    ctx.save_for_backward(x, weights, masks, bias, residual, output if ctx.activation.startswith("relu") else None)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weights, masks, bias, residual, output = ctx.saved_tensors
    kh, kw, sh, sw, top, left, bottom, right, dh, dw, groups = ctx.geometry
    if ctx.activation == "relu":
        grad = grad * (output > 0)
    elif ctx.activation == "relu6":
        grad = grad * ((output > 0) & (output < 6))
    elif ctx.activation == "silu":
        value = _dense_preactivation(x, weights, masks, bias, residual, ctx.filters, ctx.geometry)
        gate = torch.sigmoid(value)
        grad = grad * gate * (1 + value * (1 - gate))
    dense = unpack(weights, masks, (ctx.filters, x.shape[1] // groups, kh, kw), groups)
    padded = F.pad(x, (left, right, top, bottom))
    needs = ctx.needs_input_grad
    grad_x, grad_dense, grad_bias = torch.ops.aten.convolution_backward(
        grad, padded, dense, [ctx.filters], [sh, sw], [0, 0], [dh, dw], False, [0, 0], groups,
        [needs[0], needs[1], bias is not None and needs[4]],
    )  # fmt: skip
    if needs[0]:
        grad_x = grad_x[:, :, top : top + x.shape[2], left : left + x.shape[3]]
    return (
        grad_x if needs[0] else None,
        gather(grad_dense, weights, masks, groups) if needs[1] else None,
        None,
        None,
        grad_bias if bias is not None and needs[4] else None,
        grad if residual is not None and needs[5] else None,
        None,
        None,
        None,
    )


_LIBRARY.impl("sparse_conv2d", _run, "CPU")
_LIBRARY.impl("sparse_conv2d", _run_dense, "CUDA")
torch.library.register_fake("secateurs::sparse_conv2d", _fake, lib=_LIBRARY)
torch.library.register_autograd("secateurs::sparse_conv2d", _backward, setup_context=_setup, lib=_LIBRARY)
