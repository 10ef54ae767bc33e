"""Networks that are cut, run and weighed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("onnxruntime")

from secateurs.measure.networks import AT_ONCE, measured_memory
from secateurs.structure import trace

pytestmark = pytest.mark.alone


def test_memory_of_more_networks_than_run_at_once_comes_in_their_order() -> None:
    layers = [torch.nn.Conv2d(3, 512, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(512, 512, 3, padding=1)]
    graph = trace(torch.nn.Sequential(*layers).eval(), torch.zeros(1, 3, 64, 64))
    dense = graph.spec.dense_widths
    small = np.maximum(1, dense // 16)
    networks = [(dense if number == AT_ONCE else small, ()) for number in range(AT_ONCE + 1)]
    found = measured_memory(graph, networks, "onnxruntime-cpu")
    assert len(found) == len(networks)
    assert all(value is not None and value > 0 for value in found)
    assert int(np.argmax([value or 0 for value in found])) == AT_ONCE
    assert (found[AT_ONCE] or 0) > 9_000_000  # the second layer's weights alone
