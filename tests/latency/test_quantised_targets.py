"""Targets that run quantised files: their names, what their processors can do, and whose time an int8 operator is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from secateurs.errors import PlanError, TargetError
from secateurs.export.artifacts import export_artifact, variants
from secateurs.latency.sites import SiteMap
from secateurs.latency.targets import make_target, open_target, openvino, ssh
from secateurs.latency.targets._base import overflows
from secateurs.models import load
from secateurs.structure import trace


def test_the_precision_is_part_of_the_name_and_of_what_a_measurement_depends_on() -> None:
    in_float, int8 = make_target("onnxruntime-cpu"), make_target("onnxruntime-cpu:int8")
    assert (in_float.name, in_float.exporter) == ("onnxruntime-cpu", "onnx")
    assert (int8.name, int8.exporter, int8.artifact) == ("onnxruntime-cpu:int8", "onnx:int8", "onnx")
    different = {key for key, value in int8.fingerprint(1).items() if in_float.fingerprint(1)[key] != value}
    assert different == {"target", "precision"}


def test_precisions_that_a_runtime_computes_in_are_not_in_its_files() -> None:
    assert make_target("openvino-cpu:bf16").exporter == "onnx"


@pytest.mark.parametrize(("precision", "able", "usable"), [("bf16", "FP32 BF16", True), ("f16", "FP32 INT8", False)])
def test_a_precision_without_instructions_is_refused(
    monkeypatch: pytest.MonkeyPatch, precision: str, able: str, *, usable: bool
) -> None:
    monkeypatch.setattr(openvino, "_able", lambda: frozenset(able.split()))
    reason = make_target(f"openvino-cpu:{precision}").available()
    assert (reason is None) is usable
    if not usable:
        assert reason == "this processor has no instructions for f16, OpenVINO names f32, int8"


def test_what_openvino_can_here_is_what_it_says_to_a_worker(tmp_path: Path) -> None:
    """A worker on another machine refuses by itself what that one's processor has not."""
    file = tmp_path / "a.onnx"
    export_artifact("onnx", torch.nn.Linear(4, 2), torch.randn(1, 4), file)
    for name in ("openvino-cpu:bf16", "openvino-cpu:f16"):
        target = make_target(name)
        with target.start() as worker:
            if target.available() is None:
                worker.load("a", file, target.settings(threads=1, batch=1, profile=False))
                continue
            with pytest.raises(TargetError, match="no instructions for"):
                worker.load("a", file, target.settings(threads=1, batch=1, profile=False))


def test_an_unknown_precision_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(PlanError, match=r"no precision 'int4'\. It knows f32, int8"):
        make_target("onnxruntime-cpu:int4")


@pytest.mark.parametrize(
    ("machine", "flags", "expected"),
    [
        ("x86_64", "fma avx2", True),
        ("AMD64", "", True),
        ("x86_64", "avx2 avx512f avx512_vnni", False),
        ("x86_64", "avx2 avx_vnni", False),
        ("aarch64", "asimd asimddp", False),
        ("arm64", "", False),
    ],
)
def test_processors_whose_sums_overflow(machine: str, flags: str, *, expected: bool) -> None:
    assert overflows(machine, flags.split()) is expected


def test_the_processor_of_the_other_machine_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    target = make_target("ssh://pi@board/onnxruntime-cpu:int8")
    assert target.exporter == "onnx:int8"
    facts: dict[str, Any] = {"machine": "x86_64", "flags": "sse avx2"}
    monkeypatch.setattr(ssh, "_probe", lambda asked: facts)
    assert target.saturates
    facts["flags"] = "avx2 avx512_vnni"
    assert not target.saturates


@pytest.mark.parametrize(("name", "kind"), [("onnxruntime-cpu", "QLinearConv"), ("openvino-cpu", "Convolution")])
def test_the_time_of_int8_operators_belongs_to_their_layers(tmp_path: Path, name: str, kind: str) -> None:
    """Quantised operators have other names and types: nearly all of their time must find its site all the same."""
    graph = trace(load("cifar-resnet20").module, torch.randn(1, 3, 32, 32))
    built = variants("onnx:int8", graph)
    target, file = open_target(f"{name}:int8"), tmp_path / "a.onnx"
    file.write_bytes(built.build(graph.spec.dense_widths * 3 // 4))
    with target.start() as worker:
        worker.load("a", file, target.settings(threads=1, batch=1, profile=True))
        worker.run(["a"], runs=20)
        operations = target.operations(worker.profile("a"))
    kinds = {operation.kind for operation in operations}
    assert kind in kinds
    assert not kinds & {"Conv", "FusedConv"}
    sites = SiteMap(built.operators, graph.spec)
    ms, counts, loose = sites.attribute(operations)
    convolutions = [index for index, site in enumerate(sites.sites) if site.signature[0] == "Conv"]
    assert len(convolutions) == 19
    assert all(ms[index] > 0 and counts[index] >= 1 for index in convolutions)
    assert loose < 0.15 * (sum(ms) + loose)
    # The head counts too: OpenVINO spends more on it than on any convolution.
    layers = sum(ms[index] for index, site in enumerate(sites.sites) if site.signature[0] in ("Conv", "Gemm"))
    assert layers > 0.6 * sum(ms)
