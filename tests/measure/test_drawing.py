"""What the figure of a latency model shows is what the model says."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from secateurs.latency.model import LatencyModel, profile
from secateurs.measure.drawing import drawing
from secateurs.report.wording import milliseconds
from secateurs.testing.latency import FakeTarget, FakeVariants, network, staircase_costs

SPEC = network()


@pytest.fixture(scope="module")
def costs() -> LatencyModel:
    return profile(SPEC, FakeVariants(SPEC), FakeTarget(staircase_costs), samples=48)


def test_what_is_drawn_is_what_the_model_says(costs: LatencyModel) -> None:
    shown = drawing("chain", costs, SPEC.dense_widths)
    assert [bar.name for bar in shown.bars] == [layer.name for layer in SPEC.layers]
    assert sum(bar.ms for bar in shown.bars) + shown.fixed_ms == pytest.approx(costs.predict(SPEC.dense_widths))
    assert len(shown.pairs) == costs.error.count
    assert all(sigma > 0 for _, _, sigma in shown.pairs)
    steepest = shown.staircases[0]
    assert steepest.widths[-1] == 64
    assert steepest.ms[-1] == pytest.approx(max(bar.ms for bar in shown.bars))
    # Measured points, brought to the dense input width, lie on the staircase of the formula.
    widths, ms = steepest.points.T
    wanted = 2e-4 * 64 * np.ceil(widths / 16) * 16 + 0.005
    assert np.median(np.abs(ms / wanted - 1)) < 0.05


def test_many_layers_are_summed_up(costs: LatencyModel) -> None:
    shown = drawing("chain", costs, SPEC.dense_widths, shown=2)
    assert [bar.name for bar in shown.bars][-1] == "3 more"
    whole = drawing("chain", costs, SPEC.dense_widths)
    assert sum(bar.ms for bar in shown.bars) == pytest.approx(sum(bar.ms for bar in whole.bars))


def test_its_words_name_network_target_and_error(costs: LatencyModel) -> None:
    shown = drawing("chain", costs, SPEC.dense_widths)
    assert shown.title == f"chain on fake, 1 thread: {milliseconds(costs.dense_ms)}"
    assert shown.error == f"On networks it had not seen: {costs.error}."
    assert (shown.fixed_ms, shown.plans) == (costs.fixed_ms, costs.error.plans)


def test_layers_that_do_the_same_work_share_a_staircase(costs: LatencyModel) -> None:
    shown = drawing("chain", costs, SPEC.dense_widths)
    curves = {entry.curve for entry in costs.sites if entry.site.inputs or entry.site.outputs}
    assert len(shown.staircases) == min(5, len(curves))
    more = [
        int(re.search(r"and (\d+) more alike", stair.name)[1]) for stair in shown.staircases if "alike" in stair.name
    ]
    assert sum(more) + len(shown.staircases) == len(SPEC.layers)
    assert more  # three layers are from 64 to 64 channels
    assert len(drawing("chain", costs, SPEC.dense_widths, steepest=1).staircases) == 1


def test_the_last_layer_is_drawn_over_what_it_reads(costs: LatencyModel) -> None:
    stairs = {stair.name.split(" ")[0]: stair for stair in drawing("chain", costs, SPEC.dense_widths).staircases}
    last = stairs[SPEC.layers[-1].name]
    assert last.widths[0] == 1
    assert np.all(np.diff(last.widths) == 1)
    assert last.ms[-1] >= last.ms[0]


def test_a_model_without_spreads_is_as_wrong_everywhere(costs: LatencyModel) -> None:
    plain = replace(costs, spreads=())
    for bar in drawing("chain", plain, SPEC.dense_widths).bars:
        assert bar.sigma_ms == pytest.approx(costs.error.mean_abs * bar.ms)
