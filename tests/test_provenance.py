"""Names under which figures are found again: they stay what they were, whatever classes are called."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from secateurs.importance.output_change import SETTINGS
from secateurs.measure.kernel_times import ConvShape, KernelPoint
from secateurs.provenance import digest, spelled, store_key
from secateurs.search.lap.settings import LapSettings


def test_stored_names_are_those_of_earlier_versions() -> None:
    assert store_key("candidate", "b1", "3x32x32", "f/[8]/[]") == "candidate/2/b1/3x32x32/f/[8]/[]"
    point = KernelPoint(ConvShape((3, 3), (1, 1), (1, 1), (1, 1, 1, 1), (8, 8)), 16, 32, 4.0)
    assert point.signature == "sparse-conv/1/k3x3-s1x1-d1x1-p1.1.1.1-8x8/c16-f32/n4/b32"
    with pytest.raises(KeyError):
        store_key("unlisted", "b1")


def test_identities_do_not_hang_on_what_a_class_is_called() -> None:
    assert spelled(SETTINGS) == (
        "Settings(damping=None, samples=8.0, positions=64, sweeps=0, weights=True, residual=True, after=False, "
        "memory_bytes=4294967296, seed=0)"
    )
    assert spelled((2, LapSettings(), 0)).startswith("(2, LapSettings(episodes=300, warmup=None, again=20, most=0.8")
    assert "prior=Prior(state=True, exploration=True, reward=True), agent=Agent(kind='ddpg'" in spelled(LapSettings())
    assert spelled((1,)) == repr((1,))
    assert spelled(((1, "a"), None)) == repr(((1, "a"), None))
    assert digest("", 8) == "e3b0c442"


def test_a_value_without_a_name_of_its_own_is_no_part_of_an_identity() -> None:
    @dataclass(frozen=True)
    class Nameless:
        size: int = 1

    with pytest.raises(TypeError, match="Nameless is part of an identity, so it must state spelled_as"):
        spelled((1, Nameless()))
