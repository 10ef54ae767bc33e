"""Ids: union-find, neutral and pinned ids, reasons."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from secateurs.structure.ids import NEUTRAL, PINNED, IdSpace


def test_fresh_ids_are_distinct_units() -> None:
    space = IdSpace()
    first, second = space.fresh(3), space.fresh(2)
    assert len(set(space.find(np.concatenate([first, second])).tolist())) == 5
    assert not space.pinned(first).any()


def test_unify_is_transitive_and_neutral_joins_nothing() -> None:
    space = IdSpace()
    a, b, c = space.fresh(2), space.fresh(2), space.fresh(2)
    space.unify(a, b)
    space.unify(b, c[::-1])
    assert space.find(a).tolist() == space.find(c[::-1]).tolist()
    assert space.find(a[:1]) != space.find(a[1:])
    space.unify(np.array([NEUTRAL, NEUTRAL]), a)
    assert space.find(a[:1]) != space.find(a[1:])
    assert space.find(np.array([NEUTRAL])) == NEUTRAL


def test_tie_makes_rows_one_unit() -> None:
    space = IdSpace()
    ids = space.fresh(6)
    space.tie(ids.reshape(2, 3))
    assert len(set(space.find(ids[:3]).tolist())) == 1
    assert space.find(ids[:1]) != space.find(ids[3:4])
    other = space.fresh(2)
    space.tie(np.array([[NEUTRAL, other[0], other[1]]]))
    assert space.find(other[:1]) == space.find(other[1:])


def test_pins_spread_and_keep_their_reason() -> None:
    space = IdSpace()
    a, b, c = space.fresh(2), space.fresh(2), space.fresh(2)
    space.unify(a, b)
    space.pin(b[:1], "because", "node_1")
    space.pin(c, "for another reason", "node_2")
    assert space.pinned(a).tolist() == [True, False]
    assert [(pin.reason, pin.node, count) for pin, count in space.reasons(np.concatenate([a, c]))] == [
        ("for another reason", "node_2", 2),
        ("because", "node_1", 1),
    ]
    assert space.reasons(a[1:]) == []


def test_pinning_merges_no_reasons() -> None:
    space = IdSpace()
    a, b = space.fresh(1), space.fresh(1)
    space.pin(a, "first", "x")
    space.pin(b, "second", "y")
    assert [pin.reason for pin, _ in space.reasons(b)] == ["second"]
    assert space.find(a) == space.find(b) == PINNED


@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=40))
def test_union_find_agrees_with_sets(pairs: list[tuple[int, int]]) -> None:
    space = IdSpace()
    ids = space.fresh(20)
    sets = [{i} for i in range(20)]
    for a, b in pairs:
        space.unify(ids[[a]], ids[[b]])
        merged = sets[a] | sets[b]
        for member in merged:
            sets[member] = merged
    roots = space.find(ids)
    for i in range(20):
        assert {j for j in range(20) if roots[j] == roots[i]} == sets[i]


@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), min_size=1, max_size=40))
def test_one_call_unifies_like_many(pairs: list[tuple[int, int]]) -> None:
    together, apart = IdSpace(), IdSpace()
    ids = together.fresh(20)
    apart.fresh(20)
    first, second = (np.array(side) for side in zip(*pairs, strict=True))
    together.unify(ids[first], ids[second])
    for a, b in pairs:
        apart.unify(ids[[a]], ids[[b]])
    assert together.find(ids).tolist() == apart.find(ids).tolist()
