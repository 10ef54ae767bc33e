"""Streams: which elements are in them, what they take, and words of pixels there and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateurs.errors import PlanError
from secateurs.fpga.engine import Engine
from secateurs.fpga.packing import Bits, configuration, from_words, jobs, passes, results, to_words

from .conftest import SMALL, draw_bytes, draw_layer


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_a_stream_has_the_words_that_are_counted(seed: int) -> None:
    layer = draw_layer(np.random.default_rng(seed))
    for job in jobs(layer, SMALL):
        assert len(configuration(job)) == job.settings + sum(one.words(SMALL) for one in job.passes)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_every_weight_that_is_not_zero_is_walked(seed: int) -> None:
    layer = draw_layer(np.random.default_rng(seed))
    seen = np.zeros(layer.weight.shape, dtype=bool)
    for one in passes(layer, SMALL):
        seen[list(one.filters)] = one.kept
    assert not ((layer.weight != 0) & ~seen).any()


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_results_there_and_back(seed: int) -> None:
    rng = np.random.default_rng(seed)
    layer = draw_layer(rng)
    _, y = draw_bytes(rng, layer)
    back = np.zeros_like(y)
    for job in jobs(layer, SMALL):
        from_words(job, results(job, y), back)
    np.testing.assert_array_equal(back, y)


def test_words_are_rows_then_groups_then_channels() -> None:
    x = np.arange(2 * 2 * 5, dtype=np.uint8).reshape(2, 2, 5)
    words = to_words(x, 4)
    assert words.shape == (2 * 2 * 2, 4)
    np.testing.assert_array_equal(words[0], x[0, 0, :4])
    np.testing.assert_array_equal(words[1], x[1, 0, :4])
    np.testing.assert_array_equal(words[2], [x[0, 0, 4], 0, 0, 0])


def block_pattern(filters: int, channels: int, keep: int, block: int = 32) -> np.ndarray:
    """int8 weights of which every block keeps the same ``keep`` of 9 elements of a channel."""
    rng = np.random.default_rng(0)
    kept = np.zeros((filters, channels, 9), dtype=np.int8)
    for start in range(0, filters, block):
        for channel in range(channels):
            kept[start : start + block, channel, rng.permutation(9)[:keep]] = 1
    return kept.reshape(filters, channels, 3, 3)


@pytest.mark.parametrize("keep", [2, 3, 4])
def test_blocks_of_32_filters_share_their_indexes(keep: int) -> None:
    weight = block_pattern(64, 64, keep)
    layer = draw_layer(
        np.random.default_rng(0), weight=weight, bias=np.zeros(64, np.int64), multiplier=np.ones(64), shift=np.ones(64)
    )
    engine = Engine(16, 8, 4096, 1024)
    blocks = passes(layer, engine)
    assert [one.fresh for one in blocks] == [True, False, True, False]
    assert {one.entries for one in blocks} == {64 * keep}
    assert Bits.of(jobs(layer, engine)[0]).overhead <= 0.031


def test_an_order_gathers_filters_of_one_pattern() -> None:
    weight = np.zeros((8, 2, 1, 1), np.int8)
    weight[::2, 0], weight[1::2, 1] = 1, 1
    numbers = {"bias": np.zeros(8, np.int64), "multiplier": np.ones(8), "shift": np.ones(8), "weight": weight}
    plain = draw_layer(np.random.default_rng(0), **numbers)
    ordered = draw_layer(np.random.default_rng(0), **numbers, order=(0, 2, 4, 6, 1, 3, 5, 7))
    assert [one.entries for one in passes(plain, SMALL)] == [2, 2]
    assert [one.entries for one in passes(ordered, SMALL)] == [1, 1]


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        (Engine(4, 4, 4096, 8), r"has \d+ kernel elements in a block of 4 filters"),
        (Engine(4, 4, 8, 512), r"needs 3 rows of \d+ words"),
        (Engine(4, 4, 4096, 512, bits=20), "which 20 bits do not hold"),
    ],
)
def test_what_does_not_fit_is_named(engine: Engine, said: str) -> None:
    weight = np.full((4, 40, 3, 3), 100, np.int8)
    numbers = {"bias": np.zeros(4, np.int64), "multiplier": np.ones(4), "shift": np.ones(4)}
    layer = draw_layer(np.random.default_rng(0), weight=weight, input_hw=(8, 8), output_hw=(6, 6), **numbers)
    with pytest.raises(PlanError, match=said):
        jobs(layer, engine)


@pytest.mark.parametrize(
    "given", [{"p": 3}, {"p": 128}, {"q": 3}, {"q": 64}, {"lines": 4}, {"elements": 100}, {"bits": 40}]
)
def test_engines_that_there_are_not(given: dict[str, int]) -> None:
    with pytest.raises(PlanError, match="Choose"):
        Engine(**given)
