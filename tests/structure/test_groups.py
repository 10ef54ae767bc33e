"""Groups, views and the network as numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import ResNet, image, plan_of
from torch import nn
from traits import load_all

from secateurs.errors import PlanError
from secateurs.structure import apply, inspect, trace

TRAITS = load_all()


def traced(name: str):
    torch.manual_seed(0)
    model, example = TRAITS[name].build().eval(), TRAITS[name].example()
    return trace(model, example)


def names(**how: object) -> list[str]:
    return [group.name for group in trace(ResNet(), image(), **how).groups]  # type: ignore[arg-type]


def test_only_what_is_named_is_pruned() -> None:
    """A group that reaches outside stays whole, as it would with everything outside in ``keep``."""
    assert names(only=["blocks.1"]) == ["blocks.1.conv1:out"]
    assert names(only=["blocks.*", "fc"]) == names()[1:]
    assert names(only=["blocks.1.conv2:out"]) == ["blocks.1.conv2:out"]
    assert names(only="blocks", keep=["blocks.2"]) == ["blocks.0.conv1:out", "blocks.1.conv1:out"]
    assert names(keep=["!blocks.1"]) == names(only=["blocks.1"])


def test_blocks_outside_stay() -> None:
    graph = trace(ResNet(), image(), only=["blocks.2"])
    every = [block.name for block in trace(ResNet(), image()).removable_blocks]
    assert [block.name for block in graph.removable_blocks] == [name for name in every if name.startswith("blocks.2")]
    assert [group.name for group in graph.with_barriers(["blocks.2"]).groups] == []


def test_an_only_that_names_nothing_is_an_error() -> None:
    with pytest.raises(PlanError, match="Only 'layer9' matches no operator and no module"):
        trace(ResNet(), image(), only=["layer9"])


def test_groups_of_a_resnet() -> None:
    graph = trace(ResNet(), image())
    assert [(group.name, group.units) for group in graph.groups] == [
        ("stem.0:out", 16),
        ("blocks.0.conv1:out", 16),
        ("blocks.1.conv1:out", 24),
        ("blocks.1.conv2:out", 24),
        ("blocks.2.conv1:out", 24),
    ]
    stream = graph.groups[3]
    assert set(stream.layers) >= {"blocks.1.conv2", "blocks.1.short.0", "blocks.1.bn2", "blocks.2.conv2", "fc"}
    assert stream.max_removable == 23
    assert "5 groups" in repr(graph)
    assert "units=24" in repr(stream)


def test_views_say_where_units_lie() -> None:
    graph = trace(ResNet(), image())
    views = {(view.parameter, view.dim): view for view in graph.views("blocks.0.conv1:out")}
    assert {key: (view.role, view.kind) for key, view in views.items()} == {
        ("blocks.0.conv1.weight", 0): ("out", "conv"),
        ("blocks.0.bn1.weight", 0): ("norm", "batch_norm"),
        ("blocks.0.bn1.bias", 0): ("norm", "batch_norm"),
        ("blocks.0.bn1.running_mean", 0): ("norm", "batch_norm"),
        ("blocks.0.bn1.running_var", 0): ("norm", "batch_norm"),
        ("blocks.0.conv2.weight", 1): ("in", "conv"),
    }
    weight = graph.model.blocks[0].conv2.weight
    matrix = views["blocks.0.conv2.weight", 1].matrix(weight)
    assert torch.equal(matrix[3], weight[:, 3].reshape(-1))


def test_flattened_maps_give_several_columns_per_unit() -> None:
    first = next(v for v in traced("flatten_channels_first").views("b.0:out") if v.parameter == "fc.weight")
    last = next(v for v in traced("flatten_channels_last").views("b.0:out") if v.parameter == "fc.weight")
    assert first.indices[1].tolist() == list(range(16, 32))
    assert last.indices[1].tolist() == list(range(1, 256, 16))


def test_concatenation_shifts_columns_and_leaves_the_input_alone() -> None:
    view = next(v for v in traced("concat_input").views("a.0:out") if v.parameter == "b.0.weight")
    assert view.indices.ravel().tolist() == list(range(3, 19))


def test_heads_go_as_a_whole() -> None:
    graph = traced("transformer_fused")
    heads = next(group for group in graph.groups if group.units == 4)
    view = next(v for v in graph.views(heads.name) if v.parameter == "attn.qkv.weight")
    assert sorted(view.indices[1].tolist()) == [4, 5, 6, 7, 20, 21, 22, 23, 36, 37, 38, 39]


def test_padded_shortcuts_split_the_stage_into_exchangeable_groups() -> None:
    graph = traced("padded_shortcut")
    assert {group.name: group.units for group in graph.groups} == {"stem.0:out": 8, "b.0:out": 8, "a.0:out": 16}
    consumer = next(p for p in graph.spec.parameters if p.name == "head.fc.weight")
    assert {graph.groups[number].name for number, _ in consumer.axes[1].parts} == {"stem.0:out", "b.0:out"}


def test_unknown_groups_are_named() -> None:
    with pytest.raises(PlanError, match=r"no group 'x'.*stem"):
        trace(ResNet(), image()).views("x")


@pytest.mark.parametrize(
    "name", ["plain_chain", "padded_shortcut", "grouped_wide", "transformer_fused", "dense_concat", "concat_input"]
)
def test_counts_follow_random_widths(name: str) -> None:
    graph = traced(name)
    plan = plan_of(graph, 0.5, 3)
    small = apply(graph.model, plan, (graph.args, graph.kwargs), check=False)
    widths = np.array([len(plan.groups[group.name]) for group in graph.groups])
    assert graph.spec.parameter_count(widths) == sum(p.numel() for p in small.parameters())
    again = trace(small, (graph.args, graph.kwargs)).spec
    assert graph.spec.macs(widths) == again.macs(again.dense_widths)
    for name_, axis in graph.spec.activation_axes.items():
        assert int(axis.length(graph.spec.dense_widths)) in graph.analysis.values[name_].shape


def test_spec_of_a_layer() -> None:
    graph = trace(ResNet(), image())
    layer = next(layer for layer in graph.spec.layers if layer.name == "blocks.1.conv1")
    assert (layer.kind, layer.stride, layer.kernel_elements, layer.positions) == ("conv", 2, 9, 36)
    assert (layer.input_hw, layer.output_hw, layer.has_bias) == ((12, 12), (6, 6), False)
    dense = graph.spec.dense_widths
    assert int(layer.macs(dense)) == 36 * 9 * 16 * 24
    total = sum(m.weight.numel() for m in graph.model.modules() if isinstance(m, (nn.Conv2d, nn.Linear)))
    assert graph.spec.macs(dense) > total


def test_inspection_names_shares_and_pins() -> None:
    report = inspect(trace(ResNet(), image()))
    assert report.parameters == sum(p.numel() for p in ResNet().parameters())
    assert 0.95 < report.removable_parameter_share < 1
    assert sum(group.parameter_share for group in report.groups) > 0.9
    assert not report.barriers
    (pin,) = report.pins
    assert (pin.layer, pin.stays, pin.size, pin.reason) == ("fc", 5, 5, "it is an output of the network")


def test_inspection_names_barriers_with_their_source_line() -> None:
    report = inspect(traced("sorted_channels"))
    assert "aten.sort" in report.barriers[0]
    assert "traits_forms.py" in report.barriers[0]
    held = {pin.layer: pin for pin in report.pins}
    assert "barrier" in held["b.0"].reason
    assert held["b.0"].stays == 16


def test_multiply_adds_of_sequences_along_any_axis() -> None:
    attention = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    graph = trace(nn.Sequential(nn.Linear(8, 16), attention, nn.Linear(16, 4)).eval(), torch.randn(1, 10, 8))
    assert {layer.positions for layer in graph.spec.layers} == {10}
    per_token = 8 * 16 + 3 * 16 * 16 + 16 * 16 + 2 * 16 * 32 + 16 * 4
    assert graph.spec.macs(graph.spec.dense_widths) == 10 * per_token


class FusedLayer(nn.Module):
    """Queries, keys and values of three heads in one layer; pairs of neighbours are turned."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.o = nn.Linear(8, 36), nn.Linear(12, 5)

    def turned(self, x: torch.Tensor) -> torch.Tensor:
        first, second = x[..., ::2], x[..., 1::2]
        return torch.stack((first * 2 - second, first + second * 2), -1).flatten(-2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 3, 4).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(self.turned(q), self.turned(k), v)
        return self.o(y.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("grid", ["rows", "auto"])
def test_heads_of_a_fused_layer_are_rows(grid: str) -> None:
    graph = trace(FusedLayer().eval(), torch.randn(2, 5, 8), grid=grid)
    assert [(group.name, group.units) for group in graph.groups] == [("qkv:out", 3)]
