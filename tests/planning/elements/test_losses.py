"""What layers are worth: measured once, in one currency."""

from __future__ import annotations

import numpy as np
import pytest
from chains import (
    planner,
)

import secateurs as sc
from secateurs.data import Data
from secateurs.measure.kernel_times import KernelTimes
from secateurs.models import Loaded
from secateurs.planning.elements.costs import element_space
from secateurs.planning.elements.losses import measured_losses
from secateurs.search.legal import Legal
from secateurs.search.rows import MemoryRows


def test_losses_are_measured_once_and_blocks_count_as_measured(network: Loaded, data: Data) -> None:
    graph = sc.trace(network.module, network.example())
    space = element_space(graph, KernelTimes(), 5.0, legal=Legal())
    scores, rows = planner(space).scores, MemoryRows()
    losses = measured_losses(space, scores, data, rows=rows)
    names = {group.name for group in space.spec.groups} | {block.name for block in graph.spec.blocks}
    assert set(losses) == names
    assert min(min(found) for found in losses.values()) > 0
    assert all(len(losses[group.name]) == 2 for group in space.spec.groups)
    assert measured_losses(space, scores, data, rows=rows) == losses
    values = space.worth(scores, losses)
    for number, block in enumerate(space.spec.blocks):
        inner = space.spec.blocks[number].groups
        gone = sum(float(values[g][-1] - values[g][0]) for g in inner)
        assert gone >= losses[block.name][0] * (1 - 1e-9)
    for curve, options in zip(values, space.offered, strict=True):
        legal = curve[[0, *options]]
        assert legal[-1] == 0
        assert np.all(np.diff(legal) >= -1e-12)


def test_values_go_through_the_measured_losses_and_grow_at_least_with_the_square(network: Loaded) -> None:
    space = element_space(sc.trace(network.module, network.example()), KernelTimes(), 5.0, legal=Legal())
    scores = planner(space).scores
    name = next(group.name for group in space.spec.groups if group.name.endswith(":elements"))
    number = [group.name for group in space.spec.groups].index(name)
    near, far = space.anchors()[number]
    assert near > far
    lost = -space.worth(scores)[number]

    def found(less: float, more: float) -> np.ndarray:
        losses = {group.name: (1.0, 1.0) for group in space.spec.groups} | {name: (less, more)}
        losses |= {block.name: (1e-6,) for block in space.spec.blocks}
        return -space.worth(scores, losses)[number]

    ratio = float(lost[far] / lost[near])
    steep = found(0.1, 0.1 * ratio**3)
    assert steep[near] == pytest.approx(0.1)
    assert steep[far] == pytest.approx(0.1 * ratio**3)
    flat = found(0.1, 0.1)
    assert flat[near] == pytest.approx(0.1)
    assert flat[far] == pytest.approx(0.1 * ratio**2)
