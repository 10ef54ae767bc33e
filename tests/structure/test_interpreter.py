"""The interpreter agrees with the judge, which shares no code with it, and with the dense network."""

from __future__ import annotations

import pytest
import torch
from networks import plan_of
from traits import load_all

from secateurs.structure import trace
from secateurs.structure.interpreter import interpret
from secateurs.testing.structure import as_call, gap, random_example, redrawn, tensors
from secateurs.testing.structure_judge import dense_ignoring, whole_operators

TRAITS = load_all()
SPANNING = (
    "layer_norm_mlp", "rms_norm_mlp", "group_norm_one", "group_norm_after_concat", "layer_norm_whole_map",
    "softmax_channels", "channel_convolution", "weight_standardised_by_batch_norm", "weight_norm", "transformer_fused",
)  # fmt: skip


@pytest.mark.parametrize("name", [*SPANNING, "residual_projection", "padded_shortcut"])
def test_interpreter_and_judge_agree(name: str) -> None:
    torch.manual_seed(0)
    model, example = TRAITS[name].build().eval(), TRAITS[name].example()
    graph = trace(model, example)
    assert bool(graph.analysis.statistics) == (name in SPANNING)
    plan = plan_of(graph)
    dense, inputs = redrawn(model, 1), random_example(example, 1)
    args, kwargs = as_call(inputs)
    with torch.no_grad(), whole_operators():
        ours = interpret(graph, plan, dense, args, kwargs)
    assert gap(ours, dense_ignoring(dense, plan, args, kwargs)) <= 1e-12


@pytest.mark.parametrize("name", ["transformer_fused", "dict_output", "recurrent_lstm", "keyword_input"])
def test_an_empty_plan_is_the_dense_network(name: str) -> None:
    torch.manual_seed(0)
    model, example = TRAITS[name].build().eval(), TRAITS[name].example()
    graph = trace(model, example)
    dense, inputs = redrawn(model, 1), random_example(example, 1)
    args, kwargs = as_call(inputs)
    with torch.no_grad():
        assert gap(interpret(graph, graph.plan({}), dense, args, kwargs), tensors(dense(*args, **kwargs))) <= 1e-12
