from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from secateurs.errors import ExportError
from secateurs.export.artifacts import export_artifact, variants
from secateurs.export.program import export_program
from secateurs.export.torch_variants import TorchVariants
from secateurs.latency.process import WORKER_FILE
from secateurs.models import load
from secateurs.structure import trace

torch.set_num_threads(1)


def network() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))
    model[1].running_mean.normal_()
    model[1].running_var.uniform_(0.5, 2)
    return model


def engine():  # type: ignore[no-untyped-def]
    specification = importlib.util.spec_from_file_location("engine", WORKER_FILE.parent / "engines" / "py_torch.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_the_program_computes_the_same_without_batch_norm(tmp_path: Path) -> None:
    model = network().train()
    report = export_program(model, torch.randn(2, 3, 8, 8), tmp_path / "m.pt2")
    assert report.max_rel_error < 1e-5
    assert model.training
    graph = torch.export.load(tmp_path / "m.pt2").graph
    assert not any(node.op == "call_function" and "batch_norm" in str(node.target) for node in graph.nodes)
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt2"]


def test_formats_are_chosen_by_the_target(tmp_path: Path) -> None:
    assert export_artifact("pt2", network(), torch.randn(1, 3, 8, 8), tmp_path / "m.pt2").max_rel_error < 1e-5
    with pytest.raises(ExportError, match="'tflite'"):
        export_artifact("tflite", network(), torch.randn(1, 3, 8, 8), tmp_path / "m")
    graph = trace(network().eval(), torch.randn(1, 3, 8, 8))
    assert isinstance(variants("pt2", graph), TorchVariants)


def test_a_patched_program_is_the_pruned_network(tmp_path: Path) -> None:
    loaded = load("cifar-resnet20")
    graph = trace(loaded.module, torch.randn(1, 3, 32, 32))
    built = TorchVariants(graph)
    assert {layer.node for layer in graph.spec.layers} <= {operator.node for operator in built.operators}
    rng = np.random.default_rng(2)
    widths = np.array([rng.integers(1, group.units + 1) for group in graph.spec.groups])
    removed = frozenset({1, 4})
    (tmp_path / "patch").write_bytes(built.build(widths, removed))
    session = engine().load(str(tmp_path / "patch"), {"threads": 1, "profile": True})
    session.run()
    session.run()
    times = session.profile()["nodes_us"]
    assert {len(seen) for seen in times.values()} == {2}
    gone = {layer.node for layer in graph.spec.layers if not removed.isdisjoint(layer.blocks)}
    assert gone
    assert not gone & set(times)
    shapes = {}
    for node in session._module.graph.nodes:
        if node.op == "get_attr":
            shapes[node.target] = tuple(engine()._attribute(session._module, node.target).shape)
    slices = json.loads(built.build(widths, removed))["slices"]
    for layer in graph.spec.layers:
        if layer.parameter in shapes:
            assert shapes[layer.parameter][0] == int(layer.outputs.length(widths))
    assert slices


def test_a_whole_program_runs_too(tmp_path: Path) -> None:
    export_program(network(), torch.randn(1, 3, 8, 8), tmp_path / "m.pt2")
    session = engine().load(str(tmp_path / "m.pt2"), {"threads": 1})
    session.run()
    assert session.profile() == {"nodes_us": {}}
