"""Targets on an NVIDIA device, with something that stands for the device."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from secateurs.errors import PlanError, TargetUnavailableError
from secateurs.export.program import export_program
from secateurs.export.torch_variants import TorchVariants
from secateurs.latency.process import WORKER_FILE
from secateurs.latency.targets import make_target, open_target
from secateurs.latency.targets._cuda import CudaDevice, find_device
from secateurs.structure import trace

NAMES = ["torch-cuda", "torch-compile-cuda", "onnxruntime-cuda", "tensorrt"]


def engine(name: str) -> Any:
    """An engine file as the worker loads it."""
    specification = importlib.util.spec_from_file_location(name, WORKER_FILE.parent / "engines" / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


class Driver:
    """NVIDIA's driver library."""

    def __init__(self, devices: int = 1, error: int = 0) -> None:
        self.devices, self.error = devices, error

    def cuInit(self, flags: int) -> int:
        return self.error

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = self.devices
        return 0

    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = 12040
        return 0

    def cuDeviceGet(self, device: Any, index: int) -> int:
        device._obj.value = index
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device: ctypes.c_int) -> int:
        name.value = b"NVIDIA Fake 100"
        return 0


def test_the_device_is_found() -> None:
    assert find_device(Driver) == CudaDevice("NVIDIA Fake 100", "12.4")
    assert "no NVIDIA driver" in str(find_device(lambda: None))
    assert "error 100" in str(find_device(lambda: Driver(error=100)))
    assert "finds none" in str(find_device(lambda: Driver(devices=0)))


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateurs.latency.targets._cuda.load_driver", Driver)


def installed(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """An onnxruntime built with every provider."""
    providers = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    runtime = types.SimpleNamespace(
        __version__="1.31.1", get_available_providers=lambda: providers, __spec__=importlib.util.find_spec("json")
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)  # type: ignore[arg-type]
    return runtime


@pytest.mark.parametrize("name", NAMES)
def test_without_a_device_the_reason_is_told(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateurs.latency.targets._cuda.load_driver", lambda: None)
    monkeypatch.setattr(torch.version, "cuda", "12.4")
    runtime = installed(monkeypatch)
    with pytest.raises(TargetUnavailableError, match="no CUDA device: this machine has no NVIDIA driver"):
        open_target(name)
    monkeypatch.setattr(torch.version, "cuda", None)
    runtime.get_available_providers = lambda: ["CPUExecutionProvider"]
    expected = "has no CUDA" if name.startswith("torch") else "ExecutionProvider, only CPUExecutionProvider"
    with pytest.raises(TargetUnavailableError, match=expected):
        open_target(name)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("name", NAMES)
def test_a_device_makes_it_available(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "12.4")
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda wanted: found("json") if wanted == "triton" else found(wanted)
    )
    installed(monkeypatch)
    target = open_target(name)
    facts = target.fingerprint(2)
    assert (facts["device"], facts["driver"]) == ("NVIDIA Fake 100", "CUDA 12.4")


def test_precisions() -> None:
    assert make_target("torch-cuda:fp16").name == "torch-cuda:fp16"
    assert make_target("torch-compile-cuda:bf16").settings(threads=1, batch=8, profile=False)["precision"] == "bf16"
    assert make_target("torch-cuda").fingerprint(1)["precision"] == "f32"
    options = make_target("tensorrt:fp16").settings(threads=1, batch=1, profile=False)["providers"]
    assert options[0] == ["TensorrtExecutionProvider", {"device_id": "0", "trt_fp16_enable": "1"}]
    assert [name for name, _ in options[1:]] == ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert "trt_bf16_enable" in str(make_target("tensorrt:bf16").settings(threads=1, batch=1, profile=False))
    cuda = [make_target(name).settings(threads=1, batch=1, profile=False) for name in NAMES[2:3] * 2]
    assert cuda[0]["providers"][0][1]["use_tf32"] == "0"
    assert (
        make_target("onnxruntime-cuda:tf32").settings(threads=1, batch=1, profile=False)["providers"][0][1]["use_tf32"]
        == "1"
    )
    int8, half = make_target("tensorrt:int8"), make_target("onnxruntime-cuda:fp16")
    assert int8.settings(threads=1, batch=1, profile=False)["providers"][0][1]["trt_int8_enable"] == "1"
    assert (int8.exporter, half.exporter) == ("onnx:int8-signed", "onnx:fp16")
    assert make_target("ssh://gpu@host/tensorrt:int8").exporter == "onnx:int8-signed"
    assert {make_target(name).exporter for name in (*NAMES[2:], "onnxruntime-cuda:tf32", "tensorrt:fp16")} == {"onnx"}
    for text in ("torch-cuda:f64", "onnxruntime-cuda:bf16", "tensorrt:int3"):
        with pytest.raises(PlanError, match="no precision"):
            make_target(text)


class Cuda:
    """What the engine uses of ``torch.cuda``; it notes the order of things, and a clock that a replay moves by 2 ms."""

    def __init__(self, capture_error: str = "") -> None:
        self.log: list[str] = []
        self.clock_ms = 0.0
        self._error = capture_error
        outer = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing
                self.at: float | None = None

            def record(self) -> None:
                outer.clock_ms += 0.25
                self.at = outer.clock_ms

            def synchronize(self) -> None:
                outer.log.append("wait for event")

            def elapsed_time(self, end: Any) -> float:
                assert outer.log[-1] in ("wait for event", "synchronize"), "read before the device was done"
                return end.at - self.at

        class CUDAGraph:
            def replay(self) -> None:
                outer.log.append("replay")
                outer.clock_ms += 2.0

        class Stream:
            def wait_stream(self, other: Any) -> None:
                outer.log.append("wait for stream")

        self.Event, self.CUDAGraph, self.Stream = Event, CUDAGraph, Stream

    def current_stream(self) -> Any:
        return self.Stream()

    @contextlib.contextmanager
    def stream(self, side: Any) -> Iterator[None]:
        self.log.append("side stream")
        yield

    @contextlib.contextmanager
    def graph(self, graph: Any) -> Iterator[None]:
        self.log.append("capture")
        if self._error:
            raise RuntimeError(self._error)
        yield

    def synchronize(self) -> None:
        self.log.append("synchronize")

    def _sleep(self, cycles: int) -> None:
        self.log.append(f"sleep {cycles > 0}")

    def max_memory_allocated(self) -> int:
        return 123


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.one(x)) + torch.ones(8, 1, 1, dtype=torch.float32)
        return torch.flatten(self.two(y), 1)


@pytest.fixture
def program(tmp_path: Path) -> str:
    export_program(Net(), torch.randn(2, 3, 8, 8), tmp_path / "m.pt2", batch=2)
    return str(tmp_path / "m.pt2")


def settings(precision: str = "f32", *, profile: bool = False) -> dict[str, Any]:
    return make_target(f"torch-cuda:{precision}").settings(threads=1, batch=2, profile=profile)


def test_a_network_is_captured_once_and_replayed(program: str) -> None:
    cuda = Cuda()
    session = engine("torch_cuda").Session(program, settings(), cuda, "cpu")
    assert cuda.log == []
    session.run()
    assert cuda.log == ["wait for stream", "side stream", "wait for stream", "capture", "replay", "synchronize"]
    cuda.log.clear()
    # From the start's mark to the end's: the replay, and what a mark takes.
    assert session.timed() == 2.25
    assert cuda.log == ["replay", "wait for event"]


@pytest.mark.parametrize("precision", ["f32", "tf32", "fp16", "bf16"])
def test_weights_and_inputs_are_channels_last_in_the_precision(program: str, precision: str) -> None:
    wanted = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision, torch.float32)
    session = engine("torch_cuda").Session(program, settings(precision), Cuda(), "cpu")
    session.run()
    assert session._outputs.dtype == wanted
    assert session._outputs.shape == (2, 4 * 36)
    for tensor in (*session._run.parameters(), *session._inputs):
        assert tensor.dtype == wanted
        assert tensor.dim() != 4 or tensor.is_contiguous(memory_format=torch.channels_last)
    assert torch.backends.cudnn.allow_tf32 == (precision == "tf32")


def test_operators_are_timed_by_events_behind_a_wait(program: str) -> None:
    cuda = Cuda()
    session = engine("torch_cuda").Session(program, settings(profile=True), cuda, "cpu")
    session.run()
    session.run()
    times = session.profile()["nodes_us"]
    assert {len(seen) for seen in times.values()} == {2}
    assert set(times) >= {"conv2d", "relu", "conv2d_1"}
    assert all(value == 250.0 for seen in times.values() for value in seen)
    assert [entry for entry in cuda.log if entry.startswith("sleep")] == ["sleep False", "sleep True"]
    cuda.log.clear()
    session.run()
    assert "replay" in cuda.log


def test_variants_run_on_the_device(tmp_path: Path) -> None:
    graph = trace(Net(), torch.randn(1, 3, 8, 8))
    built = TorchVariants(graph)
    (tmp_path / "patch").write_bytes(built.build(np.array([group.units // 2 for group in graph.spec.groups])))
    session = engine("torch_cuda").Session(str(tmp_path / "patch"), settings("bf16"), Cuda(), "cpu")
    session.run()
    assert {tuple(tensor.shape) for tensor in session._run.parameters()} >= {(4, 3, 3, 3), (4, 4, 3, 3)}


def test_what_cannot_be_captured_is_told(program: str) -> None:
    session = engine("torch_cuda").Session(program, settings(), Cuda("operation not permitted"), "cpu")
    with pytest.raises(RuntimeError, match=r"cannot be captured.*operation not permitted.*onnxruntime-cuda"):
        session.run()


def test_peak_memory_is_the_devices() -> None:
    assert engine("torch_cuda").peak_bytes(Cuda()) == 123


class Runtime:
    """What the engine uses of ``onnxruntime``, with a device."""

    __version__ = "1.31.1"

    def __init__(self, used: list[str]) -> None:
        self.log: list[str] = []
        self.providers: Any = None
        outer = self

        class SessionOptions:
            def add_session_config_entry(self, key: str, value: str) -> None:
                pass

        class Binding:
            def bind_ortvalue_input(self, name: str, value: Any) -> None:
                outer.log.append(f"input {name} {value}")

            def bind_output(self, name: str, device: str, index: int) -> None:
                outer.log.append(f"output {name} {device}")

            def synchronize_inputs(self) -> None:
                outer.log.append("inputs there")

            def synchronize_outputs(self) -> None:
                outer.log.append("done")

        class InferenceSession:
            def __init__(self, path: str, options: Any, providers: Any) -> None:
                outer.providers = providers

            def get_providers(self) -> list[str]:
                return used

            def get_inputs(self) -> list[Any]:
                return [types.SimpleNamespace(name="x", shape=["n", 3], type="tensor(float)")]

            def get_outputs(self) -> list[Any]:
                return [types.SimpleNamespace(name="y")]

            def io_binding(self) -> Any:
                return Binding()

            def run_with_iobinding(self, binding: Any) -> None:
                outer.log.append("run")

        class OrtValue:
            @staticmethod
            def ortvalue_from_numpy(value: np.ndarray, device: str, index: int) -> str:
                return f"{value.shape} on {device}"

        self.SessionOptions, self.InferenceSession, self.OrtValue = SessionOptions, InferenceSession, OrtValue


@pytest.mark.parametrize("name", NAMES[2:])
def test_onnx_runtime_keeps_tensors_on_the_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target, loaded = make_target(name), engine("onnx_runtime")
    chosen = target.settings(threads=1, batch=5, profile=True)
    runtime = Runtime([chosen["providers"][0][0], "CPUExecutionProvider"])
    monkeypatch.setattr(loaded, "onnxruntime", runtime)
    session = loaded.load("m.onnx", chosen)
    assert runtime.log == ["input x (5, 3) on cuda", "output y cuda", "inputs there"]
    assert runtime.providers[0][0] == chosen["providers"][0][0]
    runtime.log.clear()
    assert session.timed() > 0
    assert runtime.log == ["run", "done"]


def test_a_silent_fall_back_to_the_processor_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = engine("onnx_runtime")
    monkeypatch.setattr(loaded, "onnxruntime", Runtime(["CPUExecutionProvider"]))
    chosen = make_target("onnxruntime-cuda").settings(threads=1, batch=1, profile=False)
    with pytest.raises(RuntimeError, match="gave up CUDAExecutionProvider and would run on CPUExecutionProvider"):
        loaded.load("m.onnx", chosen)
