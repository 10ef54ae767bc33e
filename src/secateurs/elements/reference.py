"""The judges: the sparse convolution in plain PyTorch, four ways that share no code with the kernels.

:func:`conv2d` follows the packed format element by element; :func:`masked` is ``F.conv2d`` with zeros;
:func:`shift_gemm`, :func:`compact_im2col` and :func:`sub_kernel` run dense weights (docs/methods.md, "KEP executions").
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from secateurs.errors import PlanError

Pair = tuple[int, int]


def activate(value: Tensor, activation: str) -> Tensor:
    """``value`` after ``none``, ``relu``, ``relu6`` or ``silu``."""
    if activation == "none":
        return value
    return {"relu": F.relu, "relu6": F.relu6, "silu": F.silu}[activation](value)


def conv2d(
    x: Tensor,
    weights: Tensor,
    masks: Tensor,
    starts: Tensor,
    *,
    filters: int,
    kernel: Pair,
    stride: Pair = (1, 1),
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> Tensor:
    """Convolution [n, filters, ho, wo] of ``x`` [n, c, h, w] by walking the packed entries one after another.

    ``padding``: top, left, bottom, right. One strided slice of the padded input per entry: slow, and plain to see.
    """
    top, left, bottom, right = padding
    padded = F.pad(x, (left, right, top, bottom))
    height = (padded.shape[2] - dilation[0] * (kernel[0] - 1) - 1) // stride[0] + 1
    width = (padded.shape[3] - dilation[1] * (kernel[1] - 1) - 1) // stride[1] + 1
    channels, per_group, block = x.shape[1] // groups, filters // groups, weights.shape[1]
    blocks = -(-per_group // block)
    out = x.new_zeros(x.shape[0], filters, height, width)
    for index in range(groups * blocks):
        group, first = index // blocks, index % blocks * block
        last, row = min(first + block, per_group), int(starts[index])
        for plane, position, bit in _entries(masks[index]):
            channel = group * channels + plane * 16 + bit
            i, j = position // kernel[1] * dilation[0], position % kernel[1] * dilation[1]
            ys = slice(i, i + (height - 1) * stride[0] + 1, stride[0])
            xs = slice(j, j + (width - 1) * stride[1] + 1, stride[1])
            values = padded[:, channel, ys, xs].unsqueeze(1)
            out[:, group * per_group + first : group * per_group + last] += values * weights[row, : last - first].view(
                1, -1, 1, 1
            )
            row += 1
    return out


def _entries(masks: Tensor) -> list[tuple[int, int, int]]:
    """(plane, position, bit) of every bit set in one block's masks, in the kernels' order."""
    found: list[tuple[int, int, int]] = []
    for plane, row in enumerate(masks.tolist()):
        for position, mask in enumerate(row):
            found.extend((plane, position, bit) for bit in range(16) if mask >> bit & 1)
    return found


def masked(x: Tensor, weight: Tensor, kept: Tensor, *, stride: int = 1, padding: int = 0, dilation: int = 1) -> Tensor:
    """``F.conv2d`` with the elements off ``kept`` set to zero."""
    return F.conv2d(x, weight * kept, stride=stride, padding=padding, dilation=dilation)


def _slices(x: Tensor, weight: Tensor, stride: int, padding: int, dilation: int) -> dict[tuple[int, int], Tensor]:
    """For every kernel position the strided slice of the padded input that it meets."""
    padded = F.pad(x, (padding,) * 4)
    height = (padded.shape[2] - dilation * (weight.shape[2] - 1) - 1) // stride + 1
    width = (padded.shape[3] - dilation * (weight.shape[3] - 1) - 1) // stride + 1
    return {
        (i, j): padded[
            :,
            :,
            i * dilation : i * dilation + (height - 1) * stride + 1 : stride,
            j * dilation : j * dilation + (width - 1) * stride + 1 : stride,
        ]
        for i in range(weight.shape[2])
        for j in range(weight.shape[3])
    }


def shift_gemm(
    x: Tensor, weight: Tensor, kept: Tensor, *, stride: int = 1, padding: int = 0, dilation: int = 1
) -> Tensor:
    """One matrix product per kernel position, of the filters that keep it with the strided slice it meets."""
    out: Tensor | None = None
    for (i, j), part in _slices(x, weight, stride, padding, dilation).items():
        if out is None:
            out = x.new_zeros(x.shape[0], weight.shape[0], *part.shape[2:])
        filters = kept[:, :, i, j].any(1).nonzero().flatten()
        if filters.numel():
            matrix = (weight * kept)[filters][:, :, i, j]
            out[:, filters] += torch.einsum("oc,nchw->nohw", matrix, part)
    if out is None:
        raise PlanError(f"A kernel of shape {tuple(weight.shape)} has no positions. Give a weight with a kernel plane.")
    return out


def compact_im2col(
    x: Tensor, weight: Tensor, kept: Tensor, *, stride: int = 1, padding: int = 0, dilation: int = 1
) -> Tensor:
    """One matrix product over the (channel, position) rows that at least one filter keeps."""
    parts = _slices(x, weight, stride, padding, dilation)
    rows, columns = [], []
    for (i, j), part in parts.items():
        channels = kept[:, :, i, j].any(0).nonzero().flatten()
        rows.append(part[:, channels])
        columns.append((weight * kept)[:, channels, i, j])
    return torch.einsum("ok,nkhw->nohw", torch.cat(columns, 1), torch.cat(rows, 1))


def sub_kernel(
    x: Tensor, weight: Tensor, rows: slice, columns: slice, *, stride: int = 1, padding: int = 0, dilation: int = 1
) -> Tensor:
    """The rectangle ``rows`` × ``columns`` of the kernel as a smaller ordinary convolution with uneven padding.

    Equals :func:`masked` with everything outside the rectangle pruned. Uneven padding may be negative: a crop.
    """
    height, width = weight.shape[2], weight.shape[3]
    top, bottom = padding - rows.start * dilation, padding - (height - rows.stop) * dilation
    left, right = padding - columns.start * dilation, padding - (width - columns.stop) * dilation
    return F.conv2d(F.pad(x, (left, right, top, bottom)), weight[:, :, rows, columns], stride=stride, dilation=dilation)
