from __future__ import annotations

import os
import platform
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from secateurs import registry
from secateurs.errors import PlanError, TargetError, TargetUnavailableError
from secateurs.export.artifacts import export_artifact, variants
from secateurs.latency.process import local_command
from secateurs.latency.sites import SiteMap
from secateurs.latency.targets import make_target, open_target
from secateurs.latency.targets.ssh import SshTarget
from secateurs.latency.timing import Protocol, compare
from secateurs.network import OperatorSpec
from secateurs.structure import trace
from secateurs.testing.latency import network


def test_precision_is_part_of_the_name() -> None:
    assert make_target("openvino-cpu:bf16").precision == "bf16"
    assert make_target("openvino-cpu:bf16").name == "openvino-cpu:bf16"
    with pytest.raises(PlanError, match="f64"):
        make_target("openvino-cpu:f64")
    with pytest.raises(PlanError, match="no precision"):
        make_target("torch-cpu:f16")
    with pytest.raises(PlanError, match="no precision behind the colon"):
        make_target("openvino-cpu:")
    with pytest.raises(PlanError, match="Unknown target"):
        make_target("abacus")


def chain() -> tuple[bytes, tuple[OperatorSpec, ...]]:
    """Conv, Relu, Conv, Add, Relu with 32 channels, and its operators."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.standard_normal((32, c, 3, 3)).astype(np.float32), f"w{i}")
        for i, c in enumerate((3, 32))
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], name="n_a", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"], name="n_b"),
        helper.make_node("Conv", ["b", "w1"], ["c"], name="n_c", pads=[1] * 4),
        helper.make_node("Add", ["c", "b"], ["d"], name="n_d"),
        helper.make_node("Relu", ["d"], ["y"], name="n_y"),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 16, 16])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 32, 16, 16])
    model = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y], weights), opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )
    onnx.checker.check_model(model)
    operators = tuple(
        OperatorSpec(
            node.name, node.op_type, "", tuple(v for v in node.input if v[0] != "w"), tuple(node.output), ((), ())
        )
        for node in nodes
    )
    return model.SerializeToString(), operators


@pytest.mark.parametrize("name", ["onnxruntime-cpu", "openvino-cpu"])
def test_fused_operators_are_matched_back(name: str, tmp_path: Path) -> None:
    target = make_target(name)
    if target.available() is not None:
        pytest.skip(str(target.available()))
    content, operators = chain()
    file = tmp_path / "m.onnx"
    file.write_bytes(content)
    sites = SiteMap(operators, network())
    assert [site.signature[:2] for site in sites.sites] == [("Conv", "Relu"), ("Conv", "Add")]
    with target.start() as worker:
        worker.load("m", file, target.settings(threads=1, batch=1, profile=True))
        worker.run(["m"], runs=5)
        ms, counts, loose = sites.attribute(target.operations(worker.profile("m")))
        assert len(worker.run(["m"], runs=3)["times_ms"]["m"]) == 3
    assert loose == 0
    assert all(value > 0 for value in ms)
    assert all(count >= 1 for count in counts)


@pytest.fixture
def loopback(tmp_path: Path) -> SshTarget:
    """An 'ssh' that drops the options and runs the command here, as the remote shell would."""
    client = tmp_path / "ssh"
    client.write_text('#!/bin/sh\nwhile [ "$1" != "--" ]; do shift; done\nshift\nshift\nexec sh -c "$*"\n')
    client.chmod(client.stat().st_mode | stat.S_IXUSR)
    return SshTarget("there", make_target("onnxruntime-cpu"), python=sys.executable, client=str(client))


def test_another_machine(loopback: SshTarget) -> None:
    assert loopback.available() is None
    assert loopback.fingerprint(1)["target"] == "onnxruntime-cpu"
    assert loopback.fingerprint(1)["host"]
    content, _ = chain()
    found = compare(loopback, {"dense": content}, protocol=Protocol(turns=6, runs_per_turn=2, refuse=5.0))
    assert found["dense"].latency_ms > 0


@pytest.mark.parametrize(
    "text",
    ["ssh://host", "ssh:///onnxruntime-cpu", "ssh://-oProxyCommand=x/onnxruntime-cpu", "ssh://a b/onnxruntime-cpu"],
)
def test_a_wrong_address_is_told(text: str) -> None:
    with pytest.raises(PlanError, match="not understood"):
        make_target(text)


def test_addresses_are_read() -> None:
    target = make_target("ssh://pi@board.local:2222/openvino-cpu:f16")
    assert isinstance(target, SshTarget)
    assert (target.user, target.host, target.port, target.precision) == ("pi", "board.local", 2222, "f16")
    assert target.name == "ssh://pi@board.local:2222/openvino-cpu:f16"
    assert make_target("ssh://a/onnxruntime-cpu?python=/opt/venv/bin/python").python == "/opt/venv/bin/python"
    command = target._command("x")
    assert "StrictHostKeyChecking=yes" in command
    assert command[command.index("--") + 1] == "board.local"
    with pytest.raises(PlanError, match="cannot run on another machine"):
        make_target("ssh://host/torch-cpu")


def test_an_unreachable_machine_is_told(tmp_path: Path) -> None:
    client = tmp_path / "ssh"
    client.write_text("#!/bin/sh\necho 'Host key verification failed.' >&2\nexit 255\n")
    client.chmod(0o755)
    target = SshTarget("nowhere", make_target("onnxruntime-cpu"), client=str(client))
    with pytest.raises(TargetUnavailableError, match="Host key verification failed"):
        open_target(target)
    with pytest.raises(TargetError, match="exit code 255"):
        target.start()


def test_a_missing_client_is_told() -> None:
    target = SshTarget("host", make_target("onnxruntime-cpu"), client=f"no-such-client-{os.getpid()}")
    assert "not installed here" in str(target.available())


IN_FLOAT = [name for name in registry.names("targets") if make_target(name).runs_float]


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.two(torch.relu(self.one(x)))).mean((2, 3)))


@pytest.mark.parametrize("name", IN_FLOAT)
def test_a_target_runs_what_is_exported_for_it(name: str, tmp_path: Path) -> None:
    """Batch 3, two threads: the deployed file and a variant of it, whose layers the profile knows."""
    target = make_target(name)
    if target.available() is not None:
        pytest.skip(str(target.available()))
    example, model = torch.randn(1, 3, 8, 8), Small().eval()
    assert export_artifact(target.artifact, model, example, tmp_path / "m", batch=3).max_rel_error < 1e-4
    graph = trace(model, example)
    built = variants(target.artifact, graph, 3)
    (tmp_path / "v").write_bytes(built.build(graph.spec.dense_widths // 2))
    sites = SiteMap(built.operators, graph.spec)
    with target.start() as worker:
        for key in ("m", "v"):
            profile = target.profiles and key == "v"
            answer = worker.load(key, tmp_path / key, target.settings(threads=2, batch=3, profile=profile))
            assert answer["load_ms"] > 0
            assert len(worker.run([key], runs=4)["times_ms"][key]) == 4
        assert worker.peak_bytes() > 10 << 20
        if target.profiles:
            ms, counts, loose = sites.attribute(target.operations(worker.profile("v")))
            layers = {site.name: count for site, count in zip(sites.sites, counts, strict=True)}
            assert all(layers[layer] for layer in ("one", "two", "head"))
            assert sum(ms) > loose
            assert len(worker.run(["v"], runs=2)["times_ms"]["v"]) == 2


def test_xnnpacks_operators_get_their_names_by_order() -> None:
    target = make_target("executorch-xnnpack")
    events = [
        ("0", "Transpose (ND, X32) #1"), ("0", "Convolution (NHWC, F32) IGEMM #1"),
        ("0", "Convolution (NHWC, F32) DWConv #1"), ("0", "Fully Connected (NC, F32) GEMM #1"), ("0", "Clamp (NC) #1"),
        ("1", ""), ("2", "Fully Connected (NC, F32) GEMM #1"),
    ]  # fmt: skip
    instructions = {
        "0": [
            ("XNNStaticTranspose", ""), ("XNNConv2d", "a"), ("XNNDepthwiseConv2d", "b"), ("XNNConv2d", "c"),
        ],
        "1": [("", "mean")], "2": [("XNNFullyConnected", "d")],
    }  # fmt: skip
    nodes = {f"{index}|{where}|{kind}": [8.0] for index, (where, kind) in enumerate(events)}
    found = target.operations({"nodes_us": nodes, "instructions": instructions})
    assert [operation.names for operation in found] == [("a",), ("a",), ("b",), ("c",), ("c",), ("mean",), ("d",)]
    assert found[0].ms == pytest.approx(0.008)
    unknown = target.operations({"nodes_us": nodes, "instructions": {}})
    assert all(operation.names == () for operation in unknown)


_COUNT_FAULTS = """
import importlib.util, resource, statistics, sys
specification = importlib.util.spec_from_file_location("engine", sys.argv[1])
engine = importlib.util.module_from_spec(specification)
specification.loader.exec_module(engine)
session = engine.load(sys.argv[2], {"threads": 1})
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    session.run()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
for _ in range(10):
    faults()
print(statistics.median(faults() for _ in range(11)))
"""


@pytest.mark.alone
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is told to keep memory")
def test_pytorch_keeps_its_memory_between_runs(tmp_path: Path) -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branches = nn.ModuleList(nn.Conv2d(3, 64, 1) for _ in range(8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first, *others = [branch(x) for branch in self.branches]
            for other in others:
                first = first + other
            return first

    file = tmp_path / "m.pt2"
    torch.export.save(torch.export.export(Wide().eval(), (torch.zeros(1, 3, 112, 112),)), file)
    command = [sys.executable, "-c", _COUNT_FAULTS, local_command("py_torch")[-1], str(file)]
    seen = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    # Eight outputs of 3.2 MB are 6,272 pages in every run when they come from the system anew. In a single run one more
    # may be needed than ever before: 784 pages, once.
    assert float(seen.stdout) < 50


class Tokens(nn.Module):
    """Two kinds of token: an integer beyond them would be no input."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(2, 8), nn.Linear(8, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.table(ids)).mean(1))


@pytest.mark.parametrize("name", IN_FLOAT)
def test_a_target_draws_integers_that_tables_have(name: str, tmp_path: Path) -> None:
    target = make_target(name)
    if target.available() is not None:
        pytest.skip(str(target.available()))
    export_artifact(target.artifact, Tokens().eval(), torch.randint(0, 2, (1, 5)), tmp_path / "m", batch=1)
    with target.start() as worker:
        worker.load("m", tmp_path / "m", target.settings(threads=1, batch=1, profile=False))
        assert len(worker.run(["m"], runs=2)["times_ms"]["m"]) == 2
