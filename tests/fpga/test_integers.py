"""The integer reference against ONNX Runtime on the quantised file, and its rounding against the definition."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secateurs.fpga import integers
from secateurs.fpga.integers import exact_float, halves_to_even, outputs, quantised_input, run_layer, run_network, sums
from secateurs.fpga.layers import fixed_point
from secateurs.fpga.reading import read

from .conftest import draw_bytes, draw_layer


def test_every_tensor_equals_onnx_runtimes(quantised_file: Path, samples: torch.Tensor) -> None:
    model = onnx.load(quantised_file)
    network = read(model)
    for step in network.steps:
        model.graph.output.append(onnx.helper.make_tensor_value_info(step.output, onnx.TensorProto.UINT8, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    images = samples.numpy()
    values = run_network(network, quantised_input(network, images))
    for index, image in enumerate(images):
        _, *found = session.run(None, {session.get_inputs()[0].name: image[None]})
        for step, bytes_ in zip(network.steps, found, strict=True):
            mine = values[step.output][index]
            np.testing.assert_array_equal(mine.ravel(), bytes_.ravel(), err_msg=step.output)


def test_outputs_are_the_files(quantised_file: Path, samples: torch.Tensor) -> None:
    session = onnxruntime.InferenceSession(str(quantised_file), providers=["CPUExecutionProvider"])
    found = outputs(read(onnx.load(quantised_file)), samples.numpy())
    for image, one in zip(samples.numpy(), found, strict=True):
        np.testing.assert_array_equal(session.run(None, {session.get_inputs()[0].name: image[None]})[0][0], one)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_sums_are_the_convolutions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    layer = draw_layer(rng)
    x, _ = draw_bytes(rng, layer)
    (top, left), (height, width), stride = layer.padding, layer.output_hw, layer.stride
    wide = np.pad(x.astype(np.int64) - layer.zero_in, ((0, 0), (top, 9), (left, 9)))
    rows, columns = layer.weight.shape[2:]
    for y in range(height):
        for z in range(width):
            window = wide[:, y * stride : y * stride + rows, z * stride : z * stride + columns]
            wanted = (layer.weight.astype(np.int64) * window).sum((1, 2, 3))
            np.testing.assert_array_equal(sums(layer, x)[:, y, z], wanted)


@given(st.integers(-(2**31), 2**31), st.integers(0, 2**24 - 1), st.integers(1, 57))
def test_rounding_is_to_the_nearest_with_ties_to_even(total: int, multiplier: int, shift: int) -> None:
    product = total * multiplier
    down, rest = divmod(product, 1 << shift)
    half = 1 << (shift - 1)
    wanted = down + (rest > half or (rest == half and down % 2))
    assert int(halves_to_even(np.int64(product), np.int64(shift))) == wanted


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_floats_round_as_integers_do(seed: int) -> None:
    rng = np.random.default_rng(seed)
    layer = draw_layer(rng)
    x, added = draw_bytes(rng, layer)
    fast = run_layer(layer, x, added)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(integers, "_EXACT", 0)
        np.testing.assert_array_equal(run_layer(layer, x, added), fast)


def test_many_samples_are_each_alone() -> None:
    rng = np.random.default_rng(3)
    layer = draw_layer(rng, add=None)
    batch = np.stack([draw_bytes(rng, layer)[0] for _ in range(3)])
    for one, whole in zip(batch, run_layer(layer, batch), strict=True):
        np.testing.assert_array_equal(run_layer(layer, one), whole)


def test_sums_that_a_float_does_not_hold_are_added_in_a_double() -> None:
    rng = np.random.default_rng(0)
    small = draw_layer(rng, weight=np.ones((1, 4, 1, 1), np.int8))
    large = draw_layer(rng, weight=np.full((1, 600, 1, 1), 127, np.int8))
    assert exact_float(small) is np.float32
    assert exact_float(large) is np.float64


def test_a_float_factor_is_a_multiplier_and_a_shift_without_an_error() -> None:
    scales = np.float32([0.0031, 1.0, 0.5, 3e-9, 17.25])
    multiplier, shift = fixed_point(scales, "x")
    assert (np.ldexp(multiplier.astype(np.float64), -shift) == scales.astype(np.float64)).all()
    assert ((multiplier >= 1 << 23) & (multiplier < 1 << 24)).all()
