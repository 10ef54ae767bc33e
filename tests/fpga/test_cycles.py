"""The closed form of the cycles against a walk through them, and the form for widths against the one for weights."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateurs.fpga.cycles import (
    TO_RESULT,
    TO_SUM,
    Load,
    Shape,
    expected_bytes,
    expected_cycles,
    layer_cycles,
    most_entries,
    streaming,
    useful,
)
from secateurs.fpga.engine import Engine
from secateurs.fpga.layers import IntegerLayer, LayerShape
from secateurs.fpga.packing import jobs, passes

from .conftest import draw_layer


def walked(shape: Shape) -> int:
    """The same count, row by row and pass by pass."""
    at = shape.settings
    loaded: list[int] = []
    ended: list[int] = []
    for number, one in enumerate(shape.passes):
        free = ended[number - 2] + TO_SUM + shape.passes[number - 2].filters if number > 1 else 0
        at = max(at, free) + one.steps
        loaded.append(at)
        slot = max(loaded[number], ended[-1] + 1 if ended else 0)
        for row in range(shape.rows):
            needed = min(shape.needed + row * shape.stride, shape.in_rows)
            slot = max(slot, shape.settings + needed * shape.row_words)
            slot += shape.groups * one.slots
        ended.append(slot - 1)
    return ended[-1] + TO_RESULT + shape.passes[-1].filters


LOADS = st.builds(Load, st.integers(1, 40), st.integers(1, 8), st.integers(1, 90))


@given(
    st.builds(
        Shape,
        st.integers(13, 40),
        st.integers(1, 60),
        st.integers(1, 12),
        st.integers(1, 12),
        st.integers(1, 4),
        st.integers(1, 5),
        st.integers(1, 2),
        st.lists(LOADS, min_size=1, max_size=5).map(tuple),
    )
)
def test_the_closed_form_is_the_walk(shape: Shape) -> None:
    assert shape.cycles() == walked(shape)


@given(st.integers(0, 2**32 - 1))
def test_widths_alone_tell_the_cycles_of_a_dense_layer(seed: int) -> None:
    rng = np.random.default_rng(seed)
    layer = draw_layer(rng)
    dense = draw_layer(np.random.default_rng(seed), weight=np.ones_like(layer.weight))
    engine = Engine(4, 4, 192, 256)
    assert layer_cycles(dense, engine) == expected_cycles(dense.geometry, engine)
    assert max(one.entries for one in passes(dense, engine)) == most_entries(dense.geometry, engine)


@pytest.mark.parametrize(("filters", "groups"), [(12, 12), (12, 3), (10, 10), (9, 3)])
def test_widths_alone_tell_the_cycles_of_a_grouped_layer(filters: int, groups: int) -> None:
    each = filters // groups
    weight = np.zeros((filters, filters, 3, 3), np.int8)
    for group in range(groups):
        part = slice(group * each, (group + 1) * each)
        weight[part, part] = 1
    numbers = {"bias": np.zeros(filters, np.int64), "multiplier": np.ones(filters), "shift": np.ones(filters)}
    layer = draw_layer(np.random.default_rng(0), weight=weight, groups=groups, **numbers)
    engine = Engine(4, 4, 2048, 256)
    assert layer_cycles(layer, engine) == expected_cycles(layer.geometry, engine)
    assert max(one.entries for one in passes(layer, engine)) == most_entries(layer.geometry, engine)


def test_half_the_elements_take_half_the_cycles() -> None:
    geometry = LayerShape(64, 64, (3, 3), 1, (1, 1), (16, 16), (16, 16))
    engine = Engine(16, 8, 4096, 1024)
    dense, half = (expected_cycles(geometry, engine, entries) for entries in (None, 288))
    assert 1.95 < dense / half < 2.05
    assert expected_bytes(geometry, engine, 288) < expected_bytes(geometry, engine)


def test_multipliers_are_busy() -> None:
    weight = np.ones((32, 32, 3, 3), np.int8)
    numbers = {"bias": np.zeros(32, np.int64), "multiplier": np.ones(32), "shift": np.ones(32), "add": None}
    given = {"input_hw": (16, 16), "output_hw": (16, 16), "padding": (1, 1), "stride": 1}
    layer: IntegerLayer = draw_layer(np.random.default_rng(0), weight=weight, **numbers, **given)
    parts = jobs(layer, Engine(16, 8, 4096, 1024))
    assert useful(parts) > 0.95
    assert streaming(parts[0]) == pytest.approx(1.0)
    assert useful(jobs(layer, Engine(4, 4, 4096, 512))) > 0.9
