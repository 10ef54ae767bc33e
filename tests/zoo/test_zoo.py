"""Real architectures with random weights. The whole list is in ``benchmarks/structure_sweep.py``."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from secateurs.structure import trace
from secateurs.testing.structure import judge, random_cut
from secateurs.testing.structure_zoo import ZOO, build

needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed (extra zoo)")

FEW = (
    ("resnet18", 0.45), ("mobilenetv3_large_100", 0.45), ("regnety_002", 0.45), ("torchvision:resnet18_fpn", 0.35),
    ("skresnet18", 0.45), ("vit_tiny_patch16_224", 0.35), ("convnext_atto", 0.45), ("poolformer_s12", 0.35),
)  # fmt: skip


@needs_timm
@pytest.mark.slow
@pytest.mark.parametrize(("name", "least"), FEW)
def test_real_networks_lose_what_they_should_and_stay_right(name: str, least: float) -> None:
    entry = build(name)
    graph = trace(entry.model, entry.example)
    assert not graph.barriers
    plan = graph.plan(random_cut(graph, 0.4, 0))
    assert judge(entry.model, plan, entry.example, check=False) <= 1e-6
    widths = [len(plan.groups[group.name]) for group in graph.groups]
    assert graph.spec.parameter_count(widths) <= (1 - least) * graph.spec.parameter_count(graph.spec.dense_widths)


@needs_timm
def test_the_list_is_the_list() -> None:
    assert len(ZOO) == len(set(ZOO)) == 69
    assert isinstance(build("lcnet_050").example, torch.Tensor)
