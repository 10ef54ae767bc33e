"""The integer reference: what the engine computes, in numpy, bit for bit; beside the hardware as its judge."""

from __future__ import annotations

import numpy as np

from secateurs.fpga.layers import ADD_SHIFT, IntegerLayer, IntegerNetwork, Move


def sums(layer: IntegerLayer, x: np.ndarray) -> np.ndarray:
    """Sums of products int64 [filters, H, W] of bytes [channels, H, W], zero points taken off, without the bias."""
    (height, width), (top, left) = layer.output_hw, layer.padding
    filters, _, rows, columns = layer.weight.shape
    stride = layer.stride
    wanted = ((height - 1) * stride + rows, (width - 1) * stride + columns)
    found = x.astype(np.float64) - layer.zero_in
    below, right = (max(0, want - lead - have) for want, lead, have in zip(wanted, (top, left), x.shape[1:], strict=True))
    found = np.pad(found, ((0, 0), (top, below), (left, right)))
    total = np.zeros((filters, height * width))
    for y in range(rows):
        for z in range(columns):
            part = found[:, y : y + (height - 1) * stride + 1 : stride, z : z + (width - 1) * stride + 1 : stride]
            # Sums stay far below 2^53, so that floating point adds them exactly, and fast.
            total += layer.weight[:, :, y, z].astype(np.float64) @ part.reshape(len(part), -1)
    return total.astype(np.int64).reshape(filters, height, width)


def halves_to_even(values: np.ndarray, shift: np.ndarray | int) -> np.ndarray:
    """``values / 2**shift`` to the nearest whole number, ties to the even one, as ONNX rounds."""
    below = (np.int64(1) << shift) - 1
    half = np.int64(1) << (shift - np.int64(1))
    down, rest = values >> shift, values & below
    return down + ((rest > half) | ((rest == half) & (down & 1 == 1)))


def requantised(layer: IntegerLayer, total: np.ndarray) -> np.ndarray:
    """Bytes [filters, H, W] of sums, before anything is added."""
    biased = total + layer.bias[:, None, None]
    # 32 by 24 bits fit 64.
    scaled = halves_to_even(biased * layer.multiplier[:, None, None], layer.shift[:, None, None])
    return np.clip(scaled + layer.zero, layer.low, layer.high).astype(np.uint8)


def run_layer(layer: IntegerLayer, x: np.ndarray, added: np.ndarray | None = None) -> np.ndarray:
    """The layer's result, bytes [filters, H, W], of bytes [channels, H, W] and of those that are added."""
    own = requantised(layer, sums(layer, x))
    if layer.add is None:
        return own
    assert added is not None
    add = layer.add
    both = (own.astype(np.int64) - layer.zero) * add.own + (added.astype(np.int64) - add.zero_other) * add.other
    return np.clip(halves_to_even(both, ADD_SHIFT) + add.zero, add.low, add.high).astype(np.uint8)


def quantised_input(network: IntegerNetwork, sample: np.ndarray) -> np.ndarray:
    """Bytes of a float sample [channels, H, W]."""
    scaled = np.rint(sample.astype(np.float32) / np.float32(network.scale))
    return np.clip(scaled + network.zero, 0, 255).astype(np.uint8)


def run_network(network: IntegerNetwork, image: np.ndarray) -> dict[str, np.ndarray]:
    """Every tensor of the network by its name, of an image's bytes [channels, H, W]."""
    values = {network.input: image}
    for step in network.steps:
        if isinstance(step, Move):
            values[step.output] = step.apply(values[step.source])
        else:
            values[step.output] = run_layer(
                step.layer, values[step.source].reshape(_shape(step.layer)), values.get(step.added or "")
            )
    return values


def _shape(layer: IntegerLayer) -> tuple[int, int, int]:
    return (layer.weight.shape[1], *layer.input_hw)


def outputs(network: IntegerNetwork, sample: np.ndarray) -> np.ndarray:
    """What the network returns for one float sample, as float32."""
    found = run_network(network, quantised_input(network, sample))[network.output]
    numbers = np.float32(network.output_scale) * (found.astype(np.float32) - network.output_zero)
    return numbers.reshape(network.output_shape)
