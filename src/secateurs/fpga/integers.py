"""The integer reference: what the engine computes, in numpy, bit for bit; beside the hardware as its judge."""

from __future__ import annotations

import numpy as np

from secateurs.fpga.layers import ADD_SHIFT, IntegerLayer, IntegerNetwork, Move


def sums(layer: IntegerLayer, x: np.ndarray) -> np.ndarray:
    """Sums of products [..., filters, H, W] of bytes [..., channels, H, W], zero points off, without the bias.

    Whole numbers in :func:`exact_float`.
    """
    (height, width), (top, left) = layer.output_hw, layer.padding
    filters, _, rows, columns = layer.weight.shape
    stride, lead = layer.stride, x.shape[:-3]
    wanted = ((height - 1) * stride + rows, (width - 1) * stride + columns)
    below, right = (
        max(0, want - front - have) for want, front, have in zip(wanted, (top, left), x.shape[-2:], strict=True)
    )
    kind = exact_float(layer)
    found = np.pad(x.astype(kind) - layer.zero_in, [(0, 0)] * (len(lead) + 1) + [(top, below), (left, right)])
    total = np.zeros((*lead, filters, height * width), dtype=kind)
    weight = layer.weight.astype(kind)
    for y in range(rows):
        for z in range(columns):
            if not weight[:, :, y, z].any():
                continue
            part = found[..., y : y + (height - 1) * stride + 1 : stride, z : z + (width - 1) * stride + 1 : stride]
            total += weight[:, :, y, z] @ part.reshape(*part.shape[:-2], -1)
    return total.reshape(*lead, filters, height, width)


def exact_float(layer: IntegerLayer) -> type[np.floating]:
    """The smallest float in which the layer's sums are exact: floating point adds faster than integers do."""
    most = 255 * int(np.abs(layer.weight.astype(np.int64)).reshape(len(layer.weight), -1).sum(1).max())
    return np.float32 if most < 1 << 24 else np.float64


def halves_to_even(values: np.ndarray, shift: np.ndarray | int) -> np.ndarray:
    """``values / 2**shift`` to the nearest whole number, ties to the even one, as ONNX rounds."""
    below = (np.int64(1) << shift) - 1
    half = np.int64(1) << (shift - np.int64(1))
    down, rest = values >> shift, values & below
    return np.asarray(down + ((rest > half) | ((rest == half) & (down & 1 == 1))))


def requantised(layer: IntegerLayer, total: np.ndarray) -> np.ndarray:
    """Bytes [..., filters, H, W] of sums, before anything is added."""
    biased = total.astype(np.float64) + layer.bias[:, None, None]
    if np.abs(biased).max(initial=0) < _EXACT:
        scale = np.ldexp(layer.multiplier.astype(np.float64), -layer.shift)
        scaled = np.rint(biased * scale[:, None, None])
    else:
        whole = biased.astype(np.int64) * layer.multiplier[:, None, None]  # 32 by 24 bits fit 64
        scaled = halves_to_even(whole, layer.shift[:, None, None])
    return np.clip(scaled + layer.zero, layer.low, layer.high).astype(np.uint8)


_EXACT = 1 << 29
"""Below it, a number times a multiplier of 24 bits is exact in a float of 53, and rint rounds as ONNX does."""


def run_layer(layer: IntegerLayer, x: np.ndarray, added: np.ndarray | None = None) -> np.ndarray:
    """The layer's result, bytes [..., filters, H, W], of bytes [..., channels, H, W] and of those that are added."""
    own = requantised(layer, sums(layer, x))
    if layer.add is None:
        return own
    assert added is not None
    add = layer.add
    # 9 by 27 bits are exact in floats, too.
    both = (own.astype(np.float64) - layer.zero) * add.own + (added.astype(np.float64) - add.zero_other) * add.other
    return np.clip(np.rint(both * 2.0**-ADD_SHIFT) + add.zero, add.low, add.high).astype(np.uint8)


def quantised_input(network: IntegerNetwork, samples: np.ndarray) -> np.ndarray:
    """Bytes of float samples [..., channels, H, W]."""
    scaled = np.rint(samples.astype(np.float32) / np.float32(network.scale))
    return np.clip(scaled + network.zero, 0, 255).astype(np.uint8)


def run_network(network: IntegerNetwork, images: np.ndarray) -> dict[str, np.ndarray]:
    """Every tensor of the network by its name, of images' bytes [..., channels, H, W]."""
    values = {network.input: images}
    for step in network.steps:
        if isinstance(step, Move):
            values[step.output] = step.apply(values[step.source])
        else:
            source = values[step.source]
            shape = (*source.shape[:-3], step.layer.weight.shape[1], *step.layer.input_hw)
            values[step.output] = run_layer(step.layer, source.reshape(shape), values.get(step.added or ""))
    return values


def outputs(network: IntegerNetwork, samples: np.ndarray) -> np.ndarray:
    """What the network returns for float samples [n, channels, H, W], as float32 [n, ...]."""
    found = run_network(network, quantised_input(network, samples))[network.output]
    numbers = np.float32(network.output_scale) * (found.astype(np.float32) - network.output_zero)
    return np.asarray(numbers.reshape(len(samples), *network.output_shape))
