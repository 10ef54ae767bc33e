"""PyTorch on a CUDA device inside a worker process. Needs torch, and ``py_torch.py`` beside it.

Networks run channels-last in the wanted precision. A network is captured as a CUDA graph at its first run and then
replayed, so that the time is the device's and not that of Python starting kernels.
"""

from __future__ import annotations

import copy
import importlib.util
import os
import time
from typing import Any

import torch

_specification = importlib.util.spec_from_file_location(
    "secateurs_py_torch", os.path.join(os.path.dirname(os.path.abspath(__file__)), "py_torch.py")
)
assert _specification is not None
assert _specification.loader is not None
py_torch = importlib.util.module_from_spec(_specification)
_specification.loader.exec_module(py_torch)

_TYPES = {"f32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_WARM_UP = 3
_CYCLES_PER_S = 2e9
"""More than any device's clock: waiting a little longer than needed does no harm."""


def describe() -> dict[str, Any]:
    """Runtime name and version."""
    return {"runtime": f"torch {torch.__version__} CUDA {torch.version.cuda}"}


def peak_bytes(cuda: Any = torch.cuda) -> int:
    """Most device memory that this process's tensors have taken so far."""
    return int(cuda.max_memory_allocated())


def place(module: torch.fx.GraphModule, dtype: torch.dtype, device: str) -> torch.fx.GraphModule:
    """A copy on the device, channels-last, floating-point parameters in ``dtype``."""
    moved = copy.deepcopy(module).to(device=device, dtype=dtype)
    moved = moved.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for node in list(moved.graph.nodes):
        if "_assert_tensor_metadata" in str(node.target):
            # It pins the types that the program was exported with.
            moved.graph.erase_node(node)
        elif node.op == "call_function":
            node.kwargs = {key: _placed(key, value, dtype, device) for key, value in node.kwargs.items()}
    moved.recompile()
    return moved


def _placed(key: str, value: Any, dtype: torch.dtype, device: str) -> Any:
    if key == "device" and value is not None:
        return torch.device(device)
    if key == "dtype" and value == torch.float32:
        return dtype
    return value


class _Timed(torch.fx.Interpreter):
    """Runs a graph node by node with an event between any two."""

    def __init__(self, module: torch.fx.GraphModule, cuda: Any) -> None:
        super().__init__(module)
        self._cuda, self._marks, self._node = cuda, list[tuple[str, Any, Any]](), ""
        self.times: dict[str, list[float]] = {}

    def run_node(self, n: torch.fx.Node) -> Any:
        self._node = n.name
        return super().run_node(n)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        start, end = (self._cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        result = target(*args, **kwargs)
        end.record()
        self._marks.append((self._node, start, end))
        return result

    def collect(self) -> None:
        """Read the events of the run that has ended."""
        for name, start, end in self._marks:
            self.times.setdefault(name, []).append(start.elapsed_time(end) * 1e3)
        self._marks = []


class Session:
    """One program on the device with its input. ``cuda`` and ``device``: what stands for them in a test."""

    def __init__(self, path: str, settings: dict[str, Any], cuda: Any = torch.cuda, device: str = "cuda") -> None:
        torch.set_num_threads(int(settings["threads"]))
        precision = str(settings["precision"])
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
        torch.backends.cudnn.benchmark = True
        self._cuda, dtype = cuda, _TYPES[precision]
        program = py_torch.load_module(path)
        module = place(program, dtype, device)
        self._inputs = [_on(value, dtype, device) for value in py_torch.draw_inputs(program)]
        self._run: Any = torch.compile(module) if settings.get("compile") else module
        self._timed = _Timed(module, cuda) if settings.get("profile") else None
        self._launch_s = 0.0
        self._graph: Any = None
        self._outputs: Any = None

    def run(self) -> None:
        """One inference, to its end; the first one compiles and captures."""
        with torch.inference_mode():
            if self._timed is not None:
                self._profiled(self._timed)
            else:
                self._replay()
        self._cuda.synchronize()

    def timed(self) -> float:
        """One inference, and its time on the device in ms."""
        if self._timed is not None:
            before = time.perf_counter()
            self.run()
            return (time.perf_counter() - before) * 1e3
        start, end = (self._cuda.Event(enable_timing=True) for _ in range(2))
        with torch.inference_mode():
            if self._graph is None:
                self._capture()
            start.record()
            self._replay()
            end.record()
        end.synchronize()
        return float(start.elapsed_time(end))

    def _replay(self) -> None:
        if self._graph is None:
            self._capture()
        self._graph.replay()

    def _capture(self) -> None:
        """Record one inference; warm-up runs before it, elsewhere, choose kernels and take memory."""
        side = self._cuda.Stream()
        side.wait_stream(self._cuda.current_stream())
        with self._cuda.stream(side):
            for _ in range(_WARM_UP):
                self._run(*self._inputs)
        self._cuda.current_stream().wait_stream(side)
        graph = self._cuda.CUDAGraph()
        try:
            with self._cuda.graph(graph):
                # Kept: the graph writes to this memory at every replay.
                self._outputs = self._run(*self._inputs)
        except RuntimeError as error:
            raise RuntimeError(
                f"the network cannot be captured as a CUDA graph ({str(error)[:300]}): something in it waits for the "
                f"device or copies from the host; try the target onnxruntime-cuda"
            ) from error
        self._graph = graph

    def _profiled(self, timed: _Timed) -> None:
        """A run with events; the device first waits as long as the host needs to hand it all kernels."""
        self._cuda._sleep(int(2 * self._launch_s * _CYCLES_PER_S))
        before = time.perf_counter()
        timed.run(*self._inputs)
        self._launch_s = time.perf_counter() - before
        self._cuda.synchronize()
        timed.collect()

    def profile(self) -> dict[str, Any]:
        """Times in µs per node and run. Later runs are not profiled."""
        times = {} if self._timed is None else self._timed.times
        self._timed = None
        return {"nodes_us": times}


def _on(value: torch.Tensor, dtype: torch.dtype, device: str) -> torch.Tensor:
    moved = value.to(device=device, dtype=dtype) if value.is_floating_point() else value.to(device)
    return moved.contiguous(memory_format=torch.channels_last) if moved.dim() == 4 else moved


def load(path: str, settings: dict[str, Any]) -> Session:
    """The program at ``path``; settings: ``threads``, ``precision``, ``compile``, ``profile``."""
    return Session(path, settings)
