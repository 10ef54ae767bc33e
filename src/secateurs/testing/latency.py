"""A target whose times come from a formula, so that nothing in a test depends on a clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from secateurs.errors import TargetError, why
from secateurs.latency.process import Worker
from secateurs.latency.targets import Operation, Target
from secateurs.network import AxisSpec, BlockSpec, GroupSpec, LayerSpec, NetworkSpec, OperatorSpec


class FakeWorker(Worker):
    """Answers like a worker process."""

    def __init__(self, target: FakeTarget) -> None:
        self._target = target
        self._models: dict[str, dict[str, float]] | None = {}
        self._contents: dict[str, bytes] = {}
        self._bytes = 0
        self.name, self.about = target.name, {}

    def load(self, key: str, file: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Read the file's costs."""
        self._target.loads += 1
        if self._target.fail_after is not None and self._target.loads > self._target.fail_after:
            raise KeyboardInterrupt
        try:
            content = file.read_bytes()
            self._held[key] = self._target.costs(content)
        except Exception as error:  # as a process answers whatever its runtime raises
            raise TargetError(f"{self.name}: the model was refused: {why(error)}. Give another file.") from error
        self._bytes += self._target.memory(content)
        self._contents[key] = content
        return {"load_ms": 1.0, "first_ms": 1.0}

    def run(self, keys: Sequence[str], *, runs: int, rounds: int = 1, skip: int = 0) -> dict[str, Any]:
        """Times from the costs."""
        times = {}
        for key in keys:
            if key not in self._held:
                raise TargetError(f"{self.name}: no model is loaded under {key!r}. Load it first.")
            total = sum(self._held[key].values()) + self._target.base_ms
            times[key] = [total * self._target.disturb() for _ in range(runs * rounds)]
        wall = sum(sum(values) for values in times.values())
        return {"times_ms": times, "wall_ms": wall, "cpu_ms": wall * self._target.quiet}

    def infer(self, key: str, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """What ONNX Runtime answers, as many samples at a time as the file takes."""
        import onnxruntime

        session = onnxruntime.InferenceSession(self._contents[key], providers=["CPUExecutionProvider"])
        names = [entry.name for entry in session.get_inputs()]
        step = session.get_inputs()[0].shape[0]
        parts = [
            session.run(None, {name: array[start : start + step] for name, array in zip(names, arrays, strict=True)})
            for start in range(0, len(arrays[0]), step)
        ]
        return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]

    def profile(self, key: str) -> dict[str, Any]:
        """The costs, eight times."""
        return {"nodes_us": {name: [ms * 1e3] * 8 for name, ms in self._held[key].items()}}

    def drop(self, keys: Sequence[str]) -> None:
        """Forget models."""
        for key in keys:
            self._held.pop(key)

    def peak_bytes(self) -> int:
        """1 MiB and what the loaded files take."""
        return (1 << 20) + self._bytes

    def lock(self) -> bool:
        """There is no device that another could measure on."""
        return True

    def unlock(self) -> None:
        """Nothing was held."""

    def close(self) -> None:
        """Whoever asks afterwards is refused."""
        self._models = None

    @property
    def _held(self) -> dict[str, dict[str, float]]:
        if self._models is None:
            raise TargetError(f"{self.name}: this worker was closed. Start another one.")
        return self._models

    def __enter__(self) -> FakeWorker:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()


def _undisturbed() -> float:
    return 1.0


def _weightless(content: bytes) -> int:
    return 0


@dataclass
class FakeTarget(Target):
    """A target that runs nothing: ``costs`` maps a model file's content to ms per ONNX value name.

    ``base_ms`` comes on top; ``disturb`` gives the factor of every run; ``quiet``: share of processor time that a
    turn gets; ``fail_after``: loading more files than this raises KeyboardInterrupt; ``memory``: bytes that a file's
    content takes once loaded; ``loads`` counts.
    """

    costs: Callable[[bytes], dict[str, float]]
    base_ms: float = 0.1
    quiet: float = 1.0
    disturb: Callable[[], float] = _undisturbed
    fail_after: int | None = None
    memory: Callable[[bytes], int] = _weightless
    name: str = "fake"
    artifact: str = "onnx"
    precision: str = "f32"
    profiles: bool = True
    loads: int = field(default=0)

    def available(self) -> str | None:
        """Always."""
        return None

    def fingerprint(self, threads: int) -> dict[str, str | int]:
        """Name and threads."""
        return {"target": self.name, "threads": threads}

    def start(self) -> FakeWorker:
        """A worker that answers from the formula."""
        return FakeWorker(self)

    def settings(self, *, threads: int, batch: int, profile: bool) -> dict[str, Any]:
        """Threads."""
        return {"threads": threads}

    def operations(self, profile: Mapping[str, Any]) -> tuple[Operation, ...]:
        """One operator per value."""
        seen = profile["nodes_us"] if self.profiles else {}
        return tuple(Operation((name,), "", times[0] / 1e3) for name, times in seen.items())


def network(depth: int = 4, units: int = 64) -> NetworkSpec:
    """A chain of convolutions ``c0 .. c<depth>`` whose inner widths are free; block 0 holds c2."""
    groups = tuple(GroupSpec(f"c{i}:out", units, 1) for i in range(depth))
    layers: list[LayerSpec] = []
    axes: dict[str, AxisSpec] = {}
    blocks: dict[str, tuple[int, ...]] = {}
    for i in range(depth + 1):
        inputs = AxisSpec(3) if i == 0 else AxisSpec(0, ((i - 1, 1),))
        outputs = AxisSpec(10) if i == depth else AxisSpec(0, ((i, 1),))
        inside: tuple[int, ...] = (0,) if i == 2 else ()
        name, node, hw = f"c{i}", f"conv_{i}", (8, 8)
        layers.append(
            LayerSpec(name, node, f"{name}.weight", "conv", inputs, outputs, 64, 9, 1, 1, hw, hw, False, inside)
        )
        axes[f"conv_{i}"] = outputs
        if inside:
            blocks[f"conv_{i}"] = inside
    block = BlockSpec("c2", (), ("conv_2",), "conv_2")
    return NetworkSpec(groups, tuple(layers), (block,), (), f"chain{depth}x{units}", axes, blocks)


class FakeVariants:
    """ONNX files of :func:`network` at any widths."""

    def __init__(self, spec: NetworkSpec) -> None:
        self._spec, self.batch = spec, 1
        self.operators = tuple(
            OperatorSpec(f"n{i}", "Conv", f"conv_{i}", (f"v{i - 1}" if i else "x",), (f"v{i}",), ((1, 3), (1, 3)))
            for i in range(len(spec.layers))
        )
        self.built = 0
        self.dense_bytes = self.build(spec.dense_widths)

    def build(
        self, widths: np.ndarray, removed: frozenset[int] = frozenset(), rng: np.random.Generator | None = None
    ) -> bytes:
        """The file."""
        self.built += 1
        nodes, weights, value, length = [], [], "x", 3
        for i, layer in enumerate(self._spec.layers):
            if not removed.isdisjoint(layer.blocks):
                continue
            channels, length = (int(axis.length(np.asarray(widths))) for axis in (layer.inputs, layer.outputs))
            weights.append(numpy_helper.from_array(np.zeros((length, channels, 1, 1), np.float32), f"w{i}"))
            nodes.append(helper.make_node("Conv", [value, f"w{i}"], [f"v{i}"], name=f"n{i}"))
            value = f"v{i}"
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])
        y = helper.make_tensor_value_info(value, TensorProto.FLOAT, [1, length, 8, 8])
        return helper.make_model(helper.make_graph(nodes, "g", [x], [y], weights)).SerializeToString()


def staircase_costs(content: bytes) -> dict[str, float]:
    """0.2 µs · input channels · output channels rounded up to 16, plus 5 µs, per convolution."""
    graph = onnx.load_model_from_string(content).graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    costs = {}
    for node in graph.node:
        outputs, inputs = shapes[node.input[1]][:2]
        costs[node.output[0]] = 2e-4 * inputs * (-(-outputs // 16) * 16) + 0.005
    return costs
