from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from secateurs.errors import ExportError
from secateurs.export.artifacts import export_artifact, variants
from secateurs.structure import apply, trace

pytest.importorskip("executorch", reason="the package executorch is not installed (the extra 'executorch')")

from secateurs.export.executorch import lower, run_executorch
from secateurs.export.executorch_variants import ExecutorchVariants, _Parts
from secateurs.export.program import to_program

torch.set_num_threads(1)


class Residual(nn.Module):
    """Two removable blocks, the second with a padded shortcut outside XNNPACK, a depthwise layer and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU())
        self.one = nn.Conv2d(12, 10, 3, padding=1)
        self.two = nn.Conv2d(10, 12, 3, padding=1)
        self.three = nn.Conv2d(12, 11, 3, stride=2, padding=1)
        self.four = nn.Conv2d(11, 18, 3, padding=1)
        self.depthwise = nn.Conv2d(18, 18, 3, padding=1, groups=18)
        self.last = nn.Conv2d(18, 9, 1)
        self.head = nn.Linear(9 * 4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.two(torch.relu(self.one(x))))
        shortcut = torch.nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 3, 3))
        x = torch.relu(shortcut + self.four(torch.relu(self.three(x))))
        x = self.last(torch.relu(self.depthwise(x)))
        return self.head(torch.flatten(x[:, :, ::2, ::2], 1))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return Residual().eval()


@pytest.fixture(scope="module")
def built(network: nn.Module) -> ExecutorchVariants:
    made = variants("pte", trace(network, torch.randn(1, 3, 8, 8)))
    assert isinstance(made, ExecutorchVariants)
    return made


def program_of(file: bytes) -> bytes:
    return file.partition(b"\n")[2]


def shapes(content: bytes) -> Counter[Any]:
    """Operators with the sizes (in any layout) of what they read and write, weights, and tensors outside XNNPACK."""
    parts = _Parts.of(content)
    found: Counter[Any] = Counter()
    for graph in parts.graphs:
        tensors = {value["xvalue_union"]["id_out"]: value["xvalue_union"] for value in graph["xvalues"]}
        for node in graph["xnodes"]:
            reads = [
                sorted(tensors[v]["dims"]) for k, v in node["xnode_union"].items() if k.endswith("_id") and v in tensors
            ]
            found[node["xnode_union_type"], str(reads)] += 1
        for value in tensors.values():
            if value["constant_buffer_idx"]:
                found["bytes", graph["constant_data"][value["constant_buffer_idx"]]["size"]] += 1
    for entry in parts.file.program.execution_plan[0].values:
        if hasattr(entry.val, "sizes"):
            found["outside", tuple(entry.val.sizes)] += 1
    return found


def test_the_file_computes_the_same(network: nn.Module, tmp_path: Path) -> None:
    report = export_artifact("pte", network, torch.randn(1, 3, 8, 8), tmp_path / "m.pte", batch=2)
    assert report.max_rel_error < 1e-4
    assert report.size_bytes == (tmp_path / "m.pte").stat().st_size
    example = torch.randn(2, 3, 8, 8)
    (found,) = run_executorch((tmp_path / "m.pte").read_bytes(), [example])
    assert torch.allclose(found, network(example), atol=1e-4)


@pytest.mark.parametrize("removed", [frozenset(), frozenset({0}), frozenset({0, 1})])
def test_a_variant_is_what_lowering_the_pruned_network_gives(
    network: nn.Module, built: ExecutorchVariants, removed: frozenset[int]
) -> None:
    graph = built._graph
    rng = np.random.default_rng(5)
    widths = np.array([rng.integers(2, group.units + 1) for group in graph.spec.groups])
    kept = {group.name: range(width) for group, width in zip(graph.groups, widths.tolist(), strict=True)}
    plan = graph.plan(kept, [graph.spec.blocks[index].name for index in removed])
    small = apply(network, plan, torch.randn(1, 3, 8, 8))
    real = lower(to_program(small, torch.randn(1, 3, 8, 8))).content
    content = program_of(built.build(widths, removed))
    assert shapes(content) == shapes(real)
    (found,) = run_executorch(content, [torch.randn(1, 3, 8, 8)])
    assert found.shape == (1, 5)
    assert found.isfinite().all()


def test_the_dense_variant_is_the_dense_file(network: nn.Module, built: ExecutorchVariants) -> None:
    assert len(built.spec.blocks) == 2
    example = torch.randn(1, 3, 8, 8)
    (found,) = run_executorch(program_of(built.dense_bytes), [example])
    assert torch.allclose(found, network(example), atol=1e-4)


def test_every_layer_is_an_operator(built: ExecutorchVariants) -> None:
    assert {layer.node for layer in built.spec.layers} <= {operator.node for operator in built.operators}


def test_an_open_batch_is_refused(network: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="fixed batch size"):
        export_artifact("pte", network, torch.randn(1, 3, 8, 8), tmp_path / "m.pte", batch=None)
