"""Shared by every test: its own store of measurements, one thread, and a target that needs no clock."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import tempfile
import types
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from secateurs import registry
from secateurs.latency import model, regression
from secateurs.latency.targets._base import with_precision
from secateurs.testing.latency import FakeTarget

torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--long`` runs what is marked long, too."""
    parser.addoption("--long", action="store_true", help="run the tests that are marked long as well")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what is marked long, unless it is asked for."""
    if config.getoption("--long"):
        return
    left_out = [item for item in items if item.get_closest_marker("long")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if not item.get_closest_marker("long")]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    """Where several processes run tests, one marked ``alone`` waits for the others' and they for it.

    Locks of POSIX: a forked child does not hold them on. Who waits to be alone keeps the door, so that nobody enters.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return (yield)
    import fcntl

    folder, user = Path(tempfile.gettempdir()), os.getuid()
    with (
        open(folder / f"secateurs-tests-{user}.door", "wb+") as door,
        open(folder / f"secateurs-tests-{user}.room", "wb+") as room,
    ):
        alone = item.get_closest_marker("alone") is not None
        fcntl.lockf(door, fcntl.LOCK_EX)
        fcntl.lockf(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.lockf(door, fcntl.LOCK_UN)
        return (yield)


@pytest.fixture(scope="session", autouse=True)
def _own_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests never read or write the user's table of measurements."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SECATEURS_STORE", str(tmp_path_factory.getbasetemp() / "store.sqlite3"))
        yield


@pytest.fixture(scope="session", autouse=True)
def _operators_once() -> Iterator[None]:
    """The exporter of PyTorch reads the source of its 500 operators anew at every export, half of what a small one
    takes. The tests export hundreds of small networks: here each process reads it once."""
    with pytest.MonkeyPatch.context() as patch:
        with contextlib.suppress(ImportError, AttributeError):  # private: where it is gone, exports are slow again
            from torch.onnx._internal.exporter._registration import ONNXRegistry

            patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(functools.cache(ONNXRegistry.from_torchlib)))
        yield


@pytest.fixture(scope="module")
def few_samples() -> Iterator[None]:
    """The fake target is exact, so a small design and staircases without trees are enough for a latency model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "profile", functools.partial(model.profile, samples=30))
        patch.setattr(regression, "_ENOUGH_FOR_TREES", 10**9)
        yield


def weight_costs(content: bytes) -> dict[str, float]:
    """Per convolution and linear layer 5 µs and 20 ns per weight: needs nothing but the file."""
    graph = onnx.load_model_from_string(content).graph
    sizes = {tensor.name: int(torch.Size(tensor.dims).numel()) for tensor in graph.initializer}
    sizes |= {n.output[0]: sizes.get(n.input[0], 0) // 2 for n in graph.node if n.op_type == "DequantizeLinear"}
    kinds = ("Conv", "Gemm", "MatMul")
    return {n.output[0]: 0.005 + 2e-5 * sizes.get(n.input[1], 0) for n in graph.node if n.op_type in kinds}


def make_fake_target(precision: str = "f32") -> FakeTarget:
    """A target whose latency is exact and follows from the file's weights, which take half as long in int8.

    A file takes twice its size in memory.
    """
    name = with_precision("fake", precision, ("f32", "int8"))
    return FakeTarget(weight_costs, 0.02, memory=lambda content: 2 * len(content), name=name, precision=precision)


@pytest.fixture(scope="session")
def fake_target() -> Iterator[str]:
    """The name of a registered target that measures by formula."""
    module = types.ModuleType("secateurs_fake_target")
    module.make = make_fake_target  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "secateurs_fake_target", module)
        patch.setitem(registry._BUILT_IN["targets"], "fake", "secateurs_fake_target:make")
        yield "fake"


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A path for a run that does not exist yet."""
    return tmp_path / "run"
