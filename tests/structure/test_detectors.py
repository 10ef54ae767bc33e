"""Detectors go from trace to a training step without a run before, and stay as they were."""

from __future__ import annotations

import detectors
import nasty
import pytest
import torch
from detectors import DETECTORS
from fingerprint import differences, fingerprint
from torch.utils._pytree import tree_leaves as leaves_of

import secateurs as sc
from secateurs.testing.structure import verdict


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "name",  # the one of free sizes takes minutes; of its parts the other has all but the free table
    [pytest.param(name, marks=[pytest.mark.long] if name == "detr" else []) for name in DETECTORS],
)
def test_from_trace_to_a_training_step(name: str) -> None:
    torch.manual_seed(0)
    build, size = DETECTORS[name]
    model = build()
    example = torch.randn(1, 3, size, size)
    before = fingerprint(model, detectors, nasty)
    graph = sc.trace(model, example)
    plan = sc.plan(graph, keep=0.6, criterion="random", seed=1)
    small = sc.apply(model, plan, example)
    assert differences(before, fingerprint(model, detectors, nasty)) == []
    count = sum(p.numel() for p in small.parameters()) / sum(p.numel() for p in model.parameters())
    assert count < 0.7
    outputs = small.train()(torch.randn(4, 3, size, size))
    sum(leaf.float().pow(2).mean() for leaf in leaves_of(outputs) if isinstance(leaf, torch.Tensor)).backward()
    assert verdict(model, example, graph=graph).outcome == "right"
