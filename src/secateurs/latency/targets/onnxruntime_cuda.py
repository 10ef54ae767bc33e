"""ONNX Runtime on an NVIDIA device, with its CUDA or its TensorRT provider."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from secateurs.latency.process import QUIET, Worker, local_command
from secateurs.latency.targets._base import Operation, Target, with_precision
from secateurs.latency.targets._cuda import device_facts, find_device


@dataclass(frozen=True)
class OnnxRuntimeCuda(Target):
    """ONNX Runtime's CUDA provider; inputs and outputs stay on the device. ``:tf32`` allows tensor cores.

    ``onnxruntime-cuda:fp16`` runs files in half precision.

    Its profiler does not wait for the device, so the latency model is learnt from whole-network times.
    """

    precision: str = "f32"
    timeout_s: float = field(default=600.0, kw_only=True)
    base_name: str = field(default="onnxruntime-cuda", init=False)
    provider: str = field(default="CUDAExecutionProvider", init=False)
    precisions: tuple[str, ...] = field(default=("f32", "tf32", "fp16"), init=False)
    name: str = field(init=False)
    artifact: str = field(default="onnx", init=False)
    profiles: bool = field(default=False, init=False)
    engine: str = field(default="onnx_runtime", init=False)
    package: str = field(default="onnxruntime-gpu", init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", with_precision(self.base_name, self.precision, self.precisions))

    @property
    def exporter(self) -> str:
        """What writes its files; in half precision they are of their own."""
        return "onnx:fp16" if self.precision == "fp16" else "onnx"

    def available(self) -> str | None:
        """None, or why not: no ONNX Runtime, one without this provider, or no device."""
        if importlib.util.find_spec("onnxruntime") is None:
            return "the package onnxruntime is not installed (pip install onnxruntime-gpu)"
        import onnxruntime

        present = onnxruntime.get_available_providers()
        if self.provider not in present:
            return (
                f"this build of onnxruntime ({onnxruntime.__version__}) has no {self.provider}, only "
                f"{', '.join(present)} (pip install onnxruntime-gpu in place of onnxruntime)"
            )
        found = find_device()
        return found if isinstance(found, str) else None

    def fingerprint(self, threads: int) -> dict[str, str | int]:
        """Device, host, driver and runtime version, precision, threads of the host."""
        return device_facts(self.name, f"onnxruntime {_version()}", self.precision, threads)

    def start(self) -> Worker:
        """A new worker process."""
        return Worker(self.name, local_command(self.engine), environment=QUIET, timeout_s=self.timeout_s)

    def settings(self, *, threads: int, batch: int, profile: bool) -> dict[str, Any]:
        """Settings of the worker's engine."""
        chosen = {"threads": threads, "batch": batch, "profile": False, "device": "cuda"}
        return {**chosen, "providers": [[self.provider, self._options()], *self._others()]}

    def _options(self) -> dict[str, str]:
        tensor_cores = "1" if self.precision == "tf32" else "0"
        return {"device_id": "0", "cudnn_conv_algo_search": "EXHAUSTIVE", "use_tf32": tensor_cores}

    def _others(self) -> list[list[Any]]:
        """Providers for what this one cannot run."""
        return [["CPUExecutionProvider", {}]]

    def operations(self, profile: Mapping[str, Any]) -> tuple[Operation, ...]:
        """None: there is no profile."""
        return ()


@dataclass(frozen=True)
class TensorRt(OnnxRuntimeCuda):
    """TensorRT through ONNX Runtime; every network is compiled to an engine first, which takes long.

    ``tensorrt:fp16`` and ``:bf16`` let it choose half precision wherever that is faster; ``:int8`` runs quantised
    files, whose other operators stay in float.
    """

    timeout_s: float = field(default=3600.0, kw_only=True)
    base_name: str = field(default="tensorrt", init=False)
    provider: str = field(default="TensorrtExecutionProvider", init=False)
    precisions: tuple[str, ...] = field(default=("f32", "fp16", "bf16", "int8"), init=False)

    @property
    def exporter(self) -> str:
        """What writes its files."""
        return "onnx:int8-signed" if self.precision == "int8" else "onnx"

    def _options(self) -> dict[str, str]:
        allowed = {} if self.precision == "f32" else {f"trt_{self.precision}_enable": "1"}
        return {"device_id": "0", **allowed}

    def _others(self) -> list[list[Any]]:
        return [["CUDAExecutionProvider", {"device_id": "0"}], ["CPUExecutionProvider", {}]]


def _version() -> str:
    for package in ("onnxruntime-gpu", "onnxruntime"):
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"
