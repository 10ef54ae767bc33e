"""Every trait network is cut right, or refused by name; never silently wrong."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterator

import pytest
import torch
from traits import Trait, load_all

from secateurs.structure import trace
from secateurs.testing.structure import call_with, pins, random_cut, tensors, uncaught, verdict

TRAITS = load_all()


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("trait", TRAITS.values(), ids=list(TRAITS))
def test_trait(trait: Trait) -> None:
    model, example = trait.build().eval(), trait.example()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    graph = trace(model, example)
    if trait.pinned:
        assert not graph.groups
        assert trait.pinned in pins(graph)
        return
    found = verdict(model, example, seed=zlib.crc32(trait.name.encode()), graph=graph)
    assert found.outcome == "right", found
    assert found.removed >= trait.least, found
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


SILENT_ELSEWHERE = (
    "padded_shortcut", "padded_shortcut_uneven", "shuffle_by_view", "shuffle_operator", "flatten_channels_last",
    "concat_input", "flip_channels", "flip_one_use", "roll_channels", "group_norm_after_concat", "softmax_branches",
    "selective_kernel", "axial_mix",
)  # fmt: skip
"""Traits on which the reference tool returns a network that computes something else."""


@pytest.mark.parametrize("name", [*SILENT_ELSEWHERE, "encoder_decoder", "transformer_fused", "recurrent_gru"])
def test_permuted_lists_are_caught_by_what_the_network_computes(name: str) -> None:
    model, example = TRAITS[name].build().eval(), TRAITS[name].example()
    graph = trace(model, example)
    plan = graph.plan(random_cut(graph, 0.4, 0))
    tried, missed = uncaught(model, plan, example, 8, graph=graph, by_running=True)
    assert tried >= 5
    assert missed == []


@pytest.mark.parametrize("name", ["instance_norm", "attention_one_head", "tied_embedding", "pool_mixer"])
def test_permutations_that_change_no_output_are_caught_by_looking(name: str) -> None:
    model, example = TRAITS[name].build().eval(), TRAITS[name].example()
    graph = trace(model, example)
    plan = graph.plan(random_cut(graph, 0.4, 0))
    tried, missed = uncaught(model, plan, example, 100, graph=graph)
    assert tried >= 5
    assert missed == []


def test_examples_run() -> None:
    for trait in TRAITS.values():
        assert tensors(call_with(trait.build().eval(), trait.example())), trait.name
