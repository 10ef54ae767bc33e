"""The size model on files of every kind: networks that it has not seen."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from secateurs.measure.sizes import files_seen, smallest, written_sizes
from secateurs.models import load
from secateurs.progress import silent
from secateurs.resources import size_model
from secateurs.search.legal import Legal
from secateurs.structure import Graph, trace


@pytest.fixture(scope="module")
def graph() -> Graph:
    loaded = load("digits-resnet", seed=0)
    return trace(loaded.module, loaded.example())


@pytest.mark.parametrize("target", ["onnxruntime-cpu", "onnxruntime-cpu:int8"])
def test_networks_that_were_not_seen_have_the_predicted_size(graph: Graph, target: str) -> None:
    spec, legal, generator = graph.spec, Legal(), np.random.default_rng(7)
    seen = files_seen(graph, legal, target, 1, silent)
    model = size_model(spec, seen[0].bytes, seen)
    least, _ = smallest(spec, legal)
    networks = [(generator.integers(least, spec.dense_widths + 1), frozenset[int]()) for _ in range(4)]
    networks.append((spec.dense_widths, frozenset([1])))
    predicted = [float(model.evaluate(*one)) for one in networks]
    assert_allclose(predicted, written_sizes(graph, networks, target), rtol=0.02)
    assert_allclose([model.evaluate(one.widths, one.removed) for one in seen], [one.bytes for one in seen], rtol=0.02)


def test_int8_files_take_less_for_a_weight(graph: Graph) -> None:
    small, large = (
        size_model(graph.spec, None, files_seen(graph, Legal(), target, 1, silent))
        for target in ("onnxruntime-cpu:int8", "onnxruntime-cpu")
    )
    filters = [(a, b) for a, b in zip(small.terms, large.terms, strict=True) if a.inputs is not None]
    assert filters
    for less, more in filters:
        assert float(less.cost(8, 8)) < 0.4 * float(more.cost(8, 8))
