from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from secateurs.errors import ExportError
from secateurs.export.onnx import to_model
from secateurs.export.torch_variants import TorchVariants
from secateurs.export.variants import OnnxVariants
from secateurs.latency.engines import py_torch
from secateurs.models import load
from secateurs.structure import apply, trace

torch.set_num_threads(1)


def shapes(content: bytes) -> Counter[tuple[str, tuple[int, ...]]]:
    """Operator types with their output shapes."""
    graph = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(content), strict_mode=True).graph
    known = {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for group in (graph.value_info, graph.output)
        for value in group
    }
    return Counter((node.op_type, known[node.output[0]]) for node in graph.node)


def runs(content: bytes) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0]
    return np.asarray(session.run(None, {entry.name: np.ones(entry.shape, np.float32)})[0])


def draw(graph, rng: np.random.Generator, blocks: bool = True) -> tuple[np.ndarray, frozenset[int]]:  # type: ignore[no-untyped-def]
    widths = np.array([rng.integers(max(1, g.min_units), g.units + 1) for g in graph.spec.groups])
    gone = np.flatnonzero(rng.random(len(graph.spec.blocks)) < 0.3).tolist() if blocks else []
    return widths, frozenset(gone)


@pytest.mark.parametrize(
    ("name", "size"), [("cifar-resnet20", 32), pytest.param("mobilenet-v2", 32, marks=pytest.mark.long)]
)
def test_a_variant_is_the_network_that_apply_and_a_real_export_give(name: str, size: int) -> None:
    loaded = load(name)
    example = torch.randn(1, 3, size, size)
    graph = trace(loaded.module, example)
    variants = OnnxVariants(graph)
    rng = np.random.default_rng(3)
    widths, gone = draw(graph, rng)
    kept = {group.name: range(width) for group, width in zip(graph.groups, widths.tolist(), strict=True)}
    plan = graph.plan(kept, [graph.spec.blocks[index].name for index in sorted(gone)])
    small = apply(loaded.module, plan, example)
    for module in small.modules():
        if isinstance(module, nn.BatchNorm2d):
            # A fresh network's zero shifts would let the exporter drop the biases.
            nn.init.normal_(module.bias)
    built = variants.build(widths, gone)
    real = to_model(small, example).SerializeToString()
    # An activation of an activation, as a removed block leaves it, may be written once or twice.
    ours, theirs = shapes(built), shapes(real)
    assert {key: n for key, n in ours.items() if key[0] not in ("Relu", "Identity")} == {
        key: n for key, n in theirs.items() if key[0] not in ("Relu", "Identity")
    }
    assert np.isfinite(runs(built)).all()


class OneHead(nn.Module):
    """Attention whose heads are laid out by ``unflatten`` with a size that is inferred."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(8, 16) for _ in range(3))
        self.out = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("heads", [1, 2, 8])
def test_heads_and_their_size(heads: int) -> None:
    graph = trace(OneHead(heads).eval(), torch.randn(1, 5, 8))
    variants = OnnxVariants(graph)
    dense = graph.spec.dense_widths
    for number, group in enumerate(graph.groups):
        widths = dense.copy()
        widths[number] = max(1, dense[number] // 2)
        assert runs(variants.build(widths)).shape == (1, 5, 3), group.name


def test_the_dense_variant_is_the_dense_file() -> None:
    graph = trace(load("cifar-resnet20").module, torch.randn(1, 3, 32, 32))
    variants = OnnxVariants(graph)
    assert shapes(variants.build(graph.spec.dense_widths)) == shapes(variants.dense_bytes)


class Odd(nn.Module):
    """Transposed weights, a concatenation, a channel pad, a shuffle, a split and a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.left = nn.Conv2d(8, 6, 1)
        self.right = nn.Conv2d(8, 10, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.up = nn.ConvTranspose2d(16, 12, 2, stride=2)
        self.depth = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.head = nn.Linear(12 * 16 * 16, 20)
        self.last = nn.Linear(20, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        x = torch.cat([self.left(x), self.right(x)], 1)
        x = self.up(F.relu(self.norm(x)))
        first, second = torch.split(F.relu(self.depth(x)), [5, 7], 1)
        x = torch.cat([second, first], 1)
        return self.last(F.gelu(self.head(torch.flatten(x, 1))))


def test_unusual_layers() -> None:
    graph = trace(Odd().eval(), torch.randn(1, 3, 8, 8))
    variants = OnnxVariants(graph)
    rng = np.random.default_rng(0)
    for _ in range(6):
        widths, _ = draw(graph, rng)
        assert runs(variants.build(widths)).shape == (1, 5)
        assert runs(variants.build(widths, rng=rng)).shape == (1, 5)


class Matrices(nn.Module):
    """Linear layers that are written as products with a matrix [in, out], as GPT-2 has them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.w1, self.w2 = nn.Parameter(torch.randn(12, 24) / 5), nn.Parameter(torch.randn(24, 12) / 5)
        self.b1, self.head = nn.Parameter(torch.randn(24)), nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.addmm(self.b1, x.flatten(0, 1), self.w1).unflatten(0, (-1, 6))
        return self.head((x + F.gelu(y) @ self.w2).mean(1))


def test_layers_that_are_products_with_a_matrix() -> None:
    module, example = Matrices().eval(), torch.randn(1, 6, 12)
    graph = trace(module, example)
    variants = OnnxVariants(graph)
    assert {layer.node for layer in graph.spec.layers} <= {operator.node for operator in variants.operators}
    widths = graph.spec.dense_widths // 2
    plan = graph.plan({group.name: range(width) for group, width in zip(graph.groups, widths.tolist(), strict=True)})
    real = to_model(apply(module, plan, example), example).SerializeToString()
    assert shapes(variants.build(widths)) == shapes(real)
    assert np.isfinite(runs(variants.build(widths))).all()


def test_batch() -> None:
    graph = trace(Odd().eval(), torch.randn(1, 3, 8, 8))
    variants = OnnxVariants(graph, batch=4)
    assert runs(variants.build(graph.spec.min_widths)).shape == (4, 5)


class Computed(nn.Module):
    """The convolution's weight is computed, and the exporter folds the computation away."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.conv2d(x, self.conv.weight * 2.0, self.conv.bias)
        return self.head(x.mean((2, 3)))


def test_every_prunable_parameter_is_found_or_named() -> None:
    graph = trace(Computed().eval(), torch.randn(1, 3, 8, 8))
    with pytest.raises(ExportError, match=r"conv\.weight"):
        OnnxVariants(graph)


def test_names_lead_back_to_the_traced_nodes(tmp_path: Path) -> None:
    graph = trace(load("resnet18").module, torch.randn(1, 3, 64, 64))
    variants = OnnxVariants(graph)
    traced = {node.name for node in graph.program.graph.nodes}
    assert set(variants.node_names.values()) <= traced
    layers = {layer.node for layer in graph.spec.layers}
    assert layers <= set(variants.node_names.values())


PARTINGS: dict[str, Callable[[torch.Tensor], Sequence[torch.Tensor]]] = {
    "tensor_split by place": lambda y: y.tensor_split([5, 9], 1),
    "tensor_split by number": lambda y: y.tensor_split(3, 1),
    "hsplit": lambda y: y.hsplit([5, 9]),
    "dsplit": lambda y: [part.movedim(2, 1) for part in y.movedim(1, 2).dsplit([6])],
    "chunk": lambda y: y.chunk(3, 1),
    "split by size": lambda y: y.split(6, 1),
    "split by sizes": lambda y: y.split([4, 5, 7], 1),
    "split all in one": lambda y: [torch.cat(y.split(6, 1)[::-1], 1)],
    "narrow": lambda y: (y.narrow(1, 2, 6), y.narrow(1, 8, 8)),
    "select": lambda y: (y.select(1, 3)[:, None], y[:, 7:]),
    "roll": lambda y: (torch.roll(y, 3, 1), y),
    "slices from the end": lambda y: (y[:, :-3], y[:, -3:]),
    "slices that take everything": lambda y: (y[:][:, 2:9], y[:, :, :, :][:, 9:]),
    "unbind": lambda y: y.unflatten(1, (2, 8)).unbind(1),
    "crop": lambda y: (F.pad(y, (0, 0, 0, 0, -3, 0)),),
    "normalised in groups": lambda y: (F.group_norm(y, 4),),
    "normalised": lambda y: (F.layer_norm(y.movedim(1, -1), (16,)).movedim(-1, 1),),
    "zeros beside": lambda y: (torch.cat([y, y.new_zeros(y.shape[0], 16, 8, 8)], 1),),
    "written into": lambda y: (torch.slice_scatter(y, y[:, :4] * 2, 1, 4, 8),),
    "written in place": lambda y: (_shifted(y),),
    "laid out by the batch": lambda y: (y.flatten(2).mT.reshape(y.shape[0], 64, 16).mT.reshape(y.shape[0], 16, 8, 8),),
    "space for channels": lambda y: (F.pixel_unshuffle(F.pixel_shuffle(y, 2), 2), y),
    "repeated": lambda y: (y.repeat(1, 2, 1, 1), y.repeat_interleave(2, 1)),
}


def _shifted(y: torch.Tensor) -> torch.Tensor:
    z = y.clone()
    z[:, 4:8] = y[:, :4]
    return z


class Shifted(nn.Module):
    """Some channels move up by a row, others down, into zeros that the exporter computes at once."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.stem(x))
        z = torch.zeros_like(y)
        z[:, :4, 1:] = y[:, :4, :-1]
        z[:, 4:8, :-1] = y[:, 4:8, 1:]
        z[:, 8:] = y[:, 8:]
        return self.last(z).mean((2, 3))


def test_files_that_cannot_follow_are_refused_at_once() -> None:
    graph = trace(Shifted().eval(), torch.randn(1, 3, 8, 8))
    with pytest.raises(ExportError, match=r"do not run in ONNX Runtime .* such as torch-cpu"):
        OnnxVariants(graph)
    patches, rng = TorchVariants(graph), np.random.default_rng(0)
    for _ in range(3):
        patch = json.loads(patches.build(draw(graph, rng)[0], rng=rng))
        with torch.no_grad():
            assert py_torch._patched(patch)(torch.randn(1, 3, 8, 8)).shape == (1, 5)


class Parting(nn.Module):
    """Every part of the first layer's channels has a convolution of its own."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.stem, self.norm, self.parts = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), PARTINGS[name]
        shapes = [part.shape[1] for part in self.parts(torch.zeros(1, 16, 8, 8))]
        self.each = nn.ModuleList(nn.Conv2d(channels, 8, 3) for channels in shapes)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = self.parts(F.relu(self.norm(self.stem(x))))
        return self.head(sum(each(part) for each, part in zip(self.each, parts, strict=True)).mean((2, 3)))


@pytest.mark.parametrize("name", PARTINGS)
def test_ways_to_part_channels(name: str) -> None:
    """The file runs at any widths and so does the program, whichever units stay."""
    module, example = Parting(name).eval(), torch.randn(1, 3, 8, 8)
    graph = trace(module, example)
    variants, patches, rng = OnnxVariants(graph), TorchVariants(graph), np.random.default_rng(0)
    for _ in range(3):
        widths, _ = draw(graph, rng)
        assert runs(variants.build(widths)).shape == (1, 5)
        assert runs(variants.build(widths, rng=rng)).shape == (1, 5)
        patch = json.loads(patches.build(widths, rng=rng))
        with torch.no_grad():
            assert py_torch._patched(patch)(example).shape == (1, 5)
