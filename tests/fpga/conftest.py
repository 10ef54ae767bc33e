"""Random layers, and where simulations may run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from secateurs.export.quantised import Quantising, export_onnx_int8
from secateurs.fpga.engine import Engine
from secateurs.fpga.layers import Addition, IntegerLayer, fixed_point
from secateurs.fpga.simulation import available

SMALL = Engine(4, 4, 192, 256)
"""Lanes and buffers that sizes around a tile exceed."""


def draw_layer(rng: np.random.Generator, **given: object) -> IntegerLayer:
    """A layer of random sizes and numbers, some of its elements pruned; ``given``: fields that are not drawn."""
    kernel, stride = int(rng.choice([1, 2, 3, 3, 5])), int(rng.choice([1, 1, 2]))
    padding = (int(rng.integers(0, kernel)), int(rng.integers(0, kernel)))
    filters, channels = int(rng.choice([1, 3, 4, 5, 8, 9])), int(rng.choice([1, 2, 3, 5, 8]))
    height, width = int(rng.integers(kernel, 10)), int(rng.choice([kernel, kernel + 1, 7, 8, 9, 11]))
    weight = rng.integers(-128, 128, (filters, channels, kernel, kernel)).astype(np.int8)
    weight[rng.random(weight.shape) < 0.3] = 0
    if rng.random() < 0.6:
        weight *= rng.random((1, channels, kernel, kernel)) < rng.random()
    multiplier, shift = fixed_point(2.0 ** rng.uniform(-17, -3, filters), "drawn")
    made: dict[str, object] = {
        "name": "drawn",
        "weight": weight,
        "bias": rng.integers(-40000, 40000, filters),
        "multiplier": multiplier,
        "shift": shift,
        "input_hw": (height, width),
        "output_hw": tuple(
            (size + 2 * pad - kernel) // stride + 1 for size, pad in zip((height, width), padding, strict=True)
        ),
        "stride": stride,
        "padding": padding,
        "zero_in": int(rng.integers(0, 256)),
        "zero": int(rng.integers(0, 256)),
        "low": int(rng.integers(0, 60)),
        "high": int(rng.integers(190, 256)),
        "add": draw_addition(rng) if rng.random() < 0.4 else None,
    }
    return IntegerLayer(**{**made, **given})  # type: ignore[arg-type]


def draw_addition(rng: np.random.Generator) -> Addition:
    """Weights up to 4, of either side."""
    own, other = (int(2.0 ** rng.uniform(16, 26)) for _ in range(2))
    return Addition(own, other, int(rng.integers(0, 256)), int(rng.integers(0, 256)), 0, int(rng.integers(180, 256)))


def draw_bytes(rng: np.random.Generator, layer: IntegerLayer) -> tuple[np.ndarray, np.ndarray]:
    """An input of a layer, and what is added to its result."""
    x = rng.integers(0, 256, (layer.weight.shape[1], *layer.input_hw)).astype(np.uint8)
    return x, rng.integers(0, 256, (len(layer.weight), *layer.output_hw)).astype(np.uint8)


@pytest.fixture(scope="session")
def needs_simulator() -> Callable[[str], None]:
    """Skips where a simulator is missing, with the reason."""

    def need(simulator: str) -> None:
        reason = available(simulator)
        if reason is not None:
            pytest.skip(reason)

    return need


class Net(nn.Module):
    """Everything that the engine has: additions, strides, moved shortcuts, depthwise, ReLU6, a mean, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.down, self.deep = nn.Conv2d(8, 12, 3, 2, padding=1), nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.last, self.head = nn.Conv2d(12, 16, 1), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [n, 5] of images [n, 3, 10, 10]."""
        x = torch.relu(self.stem(x))
        x = torch.relu(self.one(x) + x)
        x = self.down(x) + nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        x = self.last(nn.functional.relu6(self.deep(x)))
        found: torch.Tensor = self.head(x.mean((2, 3)))
        return found


@pytest.fixture(scope="session")
def samples() -> torch.Tensor:
    return torch.randn(32, 3, 10, 10, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def quantised_file(samples: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network above in seven-bit weights, which no processor's sums overflow with."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("fpga") / "net.onnx"
    export_onnx_int8(Net().eval(), samples[:1], path, quantising=Quantising([samples], seven_bits=True))
    return path
