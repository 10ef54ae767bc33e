"""ExecuTorch programs in int8: what they compute, what is refused, and files of other widths."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from secateurs.errors import ExportError
from secateurs.export.artifacts import export_artifact, variants
from secateurs.export.quantised import LEAST, Quantising
from secateurs.structure import apply, trace

pytest.importorskip("executorch", reason="the package executorch is not installed (the extra 'executorch')")

from secateurs.export.executorch import run_executorch
from secateurs.export.executorch_int8 import ExecutorchInt8Variants, calibrate, prepare
from secateurs.export.executorch_variants import _Parts
from secateurs.export.program import to_program
from secateurs.export.xnnpack_graph import tensor_of
from secateurs.latency.sites import SiteMap
from secateurs.latency.targets import open_target

torch.set_num_threads(1)


class Residual(nn.Module):
    """A removable block between a stem and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 10, 3, padding=1), nn.Conv2d(10, 12, 1)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.two(torch.relu(self.one(x))))
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return Residual().eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def built(network: nn.Module) -> ExecutorchInt8Variants:
    made = variants("pte:int8", trace(network, torch.randn(1, 3, 8, 8)))
    assert isinstance(made, ExecutorchInt8Variants)
    return made


def shapes(content: bytes) -> Counter[Any]:
    """Operators with types and sizes of what they read and write; bytes of constants and of their scales."""
    found: Counter[Any] = Counter()
    for graph in _Parts.of(content).graphs:
        tensors = {tensor_of(value)["id_out"]: tensor_of(value) for value in graph["xvalues"]}
        for node in graph["xnodes"]:
            named = [value for key, value in node["xnode_union"].items() if key.endswith("_id") and value in tensors]
            reads = sorted((tensors[value]["datatype"], sorted(tensors[value]["dims"])) for value in named)
            found[node["xnode_union_type"], str(reads)] += 1
        for value in graph["xvalues"]:
            scales = value["xvalue_union"].get("quant_params", {})
            for index in (tensor_of(value)["constant_buffer_idx"], scales.get("scale_buffer_idx", 0)):
                if index:
                    found["bytes", graph["constant_data"][index]["size"]] += 1
    return found


def test_the_file_answers_as_the_network_does_on_the_target(network: nn.Module, images: Tensor, tmp_path: Path) -> None:
    path = tmp_path / "m.pte"
    report = export_artifact("pte:int8", network, images[:1], path, batch=4, quantising=Quantising([(images, None)]))
    assert report.size_bytes == path.stat().st_size
    assert report.max_rel_error < 1e-4, "of the float program"
    kinds = Counter(name for name, _ in shapes(path.read_bytes()))
    assert kinds["XNNConv2d"] == 3
    target = open_target("executorch-xnnpack:int8")
    expected = network(images).detach().numpy()
    with target.start() as worker:
        worker.load("m", path, target.settings(threads=1, batch=4, profile=False))
        (found,) = worker.infer("m", [images.numpy()])
    assert found.shape == expected.shape
    assert 0 < np.abs(found - expected).max() < 0.08 * np.abs(expected).max()
    direct = [run_executorch(path.read_bytes(), [batch])[0].numpy() for batch in images.split(4)]
    assert np.array_equal(np.concatenate(direct), found), "another process, the same answers"


def test_what_tells_no_range_is_named_before_anything_is_lowered(images: Tensor) -> None:
    network = Residual().eval()
    program = to_program(network, images[:1])
    prepared = prepare(program)

    def asked(given: Tensor) -> None:
        calibrate(prepared, program, ([one[None].numpy()] for one in given))

    broken = images.clone()
    broken[3, 0, 0, 0] = float("nan")
    with pytest.raises(ExportError, match="Tensor x is not finite in calibration samples 3 to 3"):
        asked(broken)
    with pytest.raises(ExportError, match=f"{LEAST - 1} calibration samples tell too little"):
        asked(images[: LEAST - 1])
    with pytest.raises(ExportError, match="Tensor x is 0 on all calibration samples"):
        asked(images[:LEAST] * 0)
    with pytest.raises(ExportError, match="calibration samples cannot be run"):
        asked(images[:, :2])
    nn.init.zeros_(network.one.weight)
    nn.init.zeros_(network.one.bias)
    program = to_program(network, images[:1])
    prepared = prepare(program)
    with pytest.raises(ExportError, match="Tensor conv2d_1 is 0 on all calibration samples"):
        asked(images)


def test_calibration_is_asked_for(network: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="needs calibration samples"):
        export_artifact("pte:int8", network, torch.randn(1, 3, 8, 8), tmp_path / "m.pte")
    with pytest.raises(ExportError, match="fixed batch size"):
        export_artifact(
            "pte:int8", network, torch.randn(1, 3, 8, 8), tmp_path / "m.pte", batch=None, quantising=Quantising([])
        )


@pytest.mark.parametrize("removed", [frozenset(), frozenset({0})])
def test_a_variant_is_what_quantising_the_pruned_network_gives(
    network: nn.Module, built: ExecutorchInt8Variants, removed: frozenset[int]
) -> None:
    graph = built._graph
    widths = graph.spec.dense_widths * 2 // 3
    kept = {group.name: range(width) for group, width in zip(graph.groups, widths.tolist(), strict=True)}
    plan = graph.plan(kept, [graph.spec.blocks[index].name for index in removed])
    example = torch.randn(1, 3, 8, 8)
    small = apply(network, plan, example)
    real = ExecutorchInt8Variants.__new__(ExecutorchInt8Variants)
    real._spans = {}
    header, _, content = built.build(widths, removed).partition(b"\n")
    assert shapes(content) == shapes(real._lower(to_program(small, example)).content)
    (found,) = run_executorch(content, [example])
    assert found.shape == (1, 5)
    assert found.isfinite().all()
    names = {name for nodes in json.loads(header)["instructions"].values() for _, name in nodes}
    assert names >= {"conv2d", "linear"} | (set() if removed else {"conv2d_1", "conv2d_2"})


def test_every_layer_is_an_operator(built: ExecutorchInt8Variants) -> None:
    assert {layer.node for layer in built.spec.layers} <= {operator.node for operator in built.operators}


def test_the_time_of_every_layer_finds_its_site(built: ExecutorchInt8Variants, tmp_path: Path) -> None:
    target, file = open_target("executorch-xnnpack:int8"), tmp_path / "m.pte"
    file.write_bytes(built.build(built.spec.dense_widths // 2))
    with target.start() as worker:
        worker.load("m", file, target.settings(threads=1, batch=1, profile=True))
        worker.run(["m"], runs=4)
        operations = target.operations(worker.profile("m"))
    kinds = {one.kind for one in operations if one.kind.startswith("Convolution")}
    assert kinds
    assert all("QC8" in kind for kind in kinds), kinds
    sites = SiteMap(built.operators, built.spec)
    _, counts, _ = sites.attribute(operations)
    seen = {site.name for site, count in zip(sites.sites, counts, strict=True) if count}
    assert seen >= {layer.name for layer in built.spec.layers}


def test_slices_that_take_everything_and_repeated_activations_are_left_out() -> None:
    class Sliced(Residual):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(torch.relu(torch.relu(x[:, :, 0:8, 0:9])))

    program = to_program(Sliced().eval(), torch.randn(1, 3, 8, 8))
    targets = [str(node.target) for node in prepare(program, plain=True).graph.graph.nodes]
    assert not any(target.startswith("aten.slice") for target in targets)
    assert sum(target.startswith("aten.relu") for target in targets) == 4
