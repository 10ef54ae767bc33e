"""Two networks on the same images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from secateurs.jobs.comparison import difference, packed, standard_error, unpacked


def test_right_answers_round_trip() -> None:
    for count in (1, 7, 8, 9, 1000):
        right = torch.rand(count, generator=torch.Generator().manual_seed(count)) < 0.7
        assert unpacked(packed(right), count).tolist() == right.tolist()


def test_the_paired_error_is_that_of_the_differences() -> None:
    rng = np.random.default_rng(0)
    first = rng.random(500) < 0.8
    second = np.where(rng.random(500) < 0.1, ~first, first)
    found = difference(first, second)
    single = second.astype(float) - first
    assert found.value == pytest.approx(single.mean())
    assert found.error == pytest.approx(single.std() / np.sqrt(500))
    assert standard_error(0.5, 100) == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("lost", "won", "tie"), [(0, 0, True), (5, 5, True), (10, 3, True), (30, 3, False), (0, 9, False)]
)
def test_a_difference_within_two_errors_is_a_tie(lost: int, won: int, tie: bool) -> None:
    first = np.ones(400, dtype=bool)
    first[200 : 200 + won] = False
    second = np.ones(400, dtype=bool)
    second[:lost] = False
    assert difference(first, second).tie is tie
    assert difference(first, second).value == pytest.approx((won - lost) / 400)


def test_pairs_tell_more_than_two_errors() -> None:
    """Networks that answer alike are told apart by few images."""
    first = np.arange(400) < 200
    second = np.arange(400) < 212
    found = difference(first, second)
    assert not found.tie
    assert 2 * np.hypot(standard_error(0.5, 400), standard_error(0.53, 400)) > found.value
