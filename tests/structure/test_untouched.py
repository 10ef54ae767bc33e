"""No public call that runs the user's forward leaves a mark in the network, its code or the process."""

from __future__ import annotations

import copy
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nasty
import numpy as np
import pytest
import torch
from fingerprint import differences, fingerprint
from torch import nn

import secateurs as sc
from secateurs.export.onnx import export_onnx
from secateurs.export.program import to_program
from secateurs.importance.scoring import Scorer
from secateurs.structure.untouched import untouched

EXAMPLE = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    with untouched(nn.Identity()):
        yield
    torch.set_grad_enabled(True)


def unmarked(model: nn.Module, call: Callable[[], Any], fails: bool = False) -> Any:
    """The call's result; the network, its code and the process are as before."""
    before = fingerprint(model, nasty)
    if fails:
        with pytest.raises(sc.SecateursError) as found:
            call()
        result: Any = found.value
    else:
        result = call()
    assert differences(before, fingerprint(model, nasty)) == []
    return result


@pytest.mark.parametrize("name", nasty.NASTY)
def test_from_trace_to_a_training_step(name: str) -> None:
    model = nasty.NASTY[name]()
    graph = unmarked(model, lambda: sc.trace(model, EXAMPLE))
    assert graph.groups
    plan = unmarked(model, lambda: sc.plan(graph, keep=0.6, strategy="uniform", criterion="random", seed=1))
    assert plan.removed()
    small = unmarked(model, lambda: sc.apply(model, plan, EXAMPLE))
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    copied = copy.deepcopy(small).train()
    copied(torch.randn(4, 3, 8, 8)).pow(2).mean().backward()
    assert all(copied.get_parameter(f"{name}.weight").grad is not None for name in ("a", "fc"))


@pytest.mark.parametrize("name", nasty.NASTY)
def test_trained_networks_with_marks_are_cut(name: str) -> None:
    model = nasty.NASTY[name]().train()
    for size in (8, 6):
        outputs = model(torch.randn(2, 3, size, size))
    outputs.sum().backward()
    torch.set_grad_enabled(True)
    graph = unmarked(model, lambda: sc.trace(model, EXAMPLE))
    plan = unmarked(model, lambda: graph.plan({group.name: range(group.units // 2) for group in graph.groups}))
    unmarked(model, lambda: sc.apply(model, plan, EXAMPLE))


@pytest.mark.parametrize("name", nasty.NASTY)
def test_scoring(name: str) -> None:
    model = nasty.NASTY[name]()
    graph = sc.trace(model, EXAMPLE)
    batches = [(torch.randn(2, 3, 8, 8), torch.tensor([0, 1])) for _ in range(2)]
    unmarked(model, lambda: Scorer(graph, "taylor", batches).scores)


EXPORTED = (
    "CachedOnTheInstance",
    "CachedInABuffer",
    "DictOfTheClass",
    "CachedMethod",
    "MergesInEvaluation",
    "LazyParts",
)


@pytest.mark.parametrize("name", EXPORTED)
def test_export(name: str, tmp_path: Path) -> None:
    model = nasty.NASTY[name]()
    unmarked(model, lambda: export_onnx(model, EXAMPLE, tmp_path / "dense.onnx"))
    unmarked(model, lambda: to_program(model, EXAMPLE))


def test_profile_and_search(fake_target: str) -> None:
    model = nasty.CachedOnTheClass()
    graph = sc.trace(model, EXAMPLE)
    costs = unmarked(model, lambda: sc.profile(graph, target=fake_target))
    batches = two_batches()
    unmarked(model, lambda: sc.plan(graph, costs, latency="80%", criterion="measured", data=batches))


@pytest.mark.parametrize("name", ["TableInAGlobal", "MergesInEvaluation", "HooksThatCollect"])
def test_search(name: str) -> None:
    model = nasty.NASTY[name]()
    graph = sc.trace(model, EXAMPLE)
    batches = two_batches()
    unmarked(model, lambda: sc.plan(graph, macs="80%", criterion="measured", data=batches))


def two_batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.randn(2, 3, 8, 8), torch.tensor([0, 1])) for _ in range(2)]


@pytest.mark.parametrize("name", ["CachedOnTheClass", "AppendsAndCounts"])
def test_the_main_job(name: str, fake_target: str) -> None:
    model = nasty.NASTY[name]()
    images = torch.randn(12, 3, 8, 8)
    batches = [(images[i : i + 4], torch.tensor([0, 1, 2, 3])) for i in range(0, 12, 4)]
    data = (batches, batches)
    settings = {"target": fake_target, "latency": 0.85, "criterion": "l1", "epochs": 1, "allow_chance": True}
    result = unmarked(model, lambda: sc.prune(model, images[:1], data=data, **settings))
    assert result.plan.removed()


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_call_that_fails_midway_leaves_no_mark(at: int, tmp_path: Path) -> None:
    model = nasty.Fails(at)
    with untouched(model):
        nasty.SEEN.clear()
        unmarked(model, lambda: sc.trace(model, EXAMPLE), fails=at == 1)
        unmarked(model, lambda: export_onnx(model, EXAMPLE, tmp_path / "dense.onnx"), fails=at == 1)


def test_a_check_that_fails_leaves_no_mark() -> None:
    model = nasty.TableInAGlobal()
    plan = sc.trace(model, EXAMPLE).plan({"a:out": range(5)})
    damaged = plan.model_copy(update={"slices": {**plan.slices, "a.bias": {0: (0, 1, 2, 3, 4, 5)}}})
    unmarked(model, lambda: sc.apply(model, damaged, EXAMPLE), fails=True)


def test_tensors_of_an_earlier_export_are_named() -> None:
    for kind, name in ((nasty.CachedOnTheClass, "anchors"), (nasty.DictOfTheClass, "(tables|features)")):
        model = kind()
        with untouched(model):
            torch.export.export(model.eval(), (EXAMPLE,), strict=False)
            with pytest.raises(sc.StructureError, match=rf"{kind.__name__}\.{name} holds a tensor without values"):
                sc.trace(model, EXAMPLE)


def test_gradients_of_a_running_step_stay_valid() -> None:
    model = nasty.AppendsAndCounts().train()
    loss = model(torch.randn(2, 3, 8, 8)).sum()
    sc.trace(model, EXAMPLE)
    loss.backward()
    assert model.a.weight.grad is not None


def test_what_cannot_be_wound_back_is_spared() -> None:
    model = nasty.CachedFunction()
    nasty.cached_ramp(5)
    before = nasty.cached_ramp.cache_info()
    sc.trace(model, EXAMPLE)
    assert nasty.cached_ramp.cache_info() == before
    counting = nasty.AppendsAndCounts()
    sc.trace(counting, EXAMPLE)
    assert next(counting.ids) == 0


ARITHMETIC = """
import torch
from torch import nn
import secateurs as sc

def state():
    backends, found = torch.backends, []
    for read in (
        torch.get_float32_matmul_precision,
        lambda: backends.cuda.matmul.allow_tf32,
        lambda: backends.cudnn.allow_tf32,
        lambda: backends.fp32_precision,
        lambda: backends.cuda.matmul.fp32_precision,
        lambda: backends.cudnn.conv.fp32_precision,
        lambda: backends.cudnn.rnn.fp32_precision,
        lambda: backends.mkldnn.matmul.fp32_precision,
    ):
        try:
            found.append(read())
        except RuntimeError:
            found.append("unreadable")
    return found

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        {inside}
        return self.b(self.a(x).relu())

{before}
held = state()
model, example = Net(), torch.randn(2, 3, 8, 8)
graph = sc.trace(model, example)
sc.apply(model, graph.plan({{"a:out": range(5)}}), example)
for now, then in zip(state(), held):  # what could not be read before cannot be put back; what computes can
    assert now == then or then == "unreadable", (held, state())
print("unreadable" in held)
"""


@pytest.mark.parametrize(
    ("before", "unreadable"),
    [
        ("pass", False),
        ("torch.set_float32_matmul_precision('high')", False),
        ("torch.backends.cuda.matmul.allow_tf32 = True", False),
        ("torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False", False),
        ("torch.backends.cuda.matmul.fp32_precision = 'tf32'", True),
        ("torch.backends.fp32_precision = 'tf32'", True),
        ("torch.set_float32_matmul_precision('high'); torch.backends.cuda.matmul.fp32_precision = 'ieee'", True),
    ],
)
@pytest.mark.parametrize("inside", ["pass", "torch.set_float32_matmul_precision('medium')"])
def test_both_doors_to_the_arithmetic_of_float32_stay_as_they_are(before: str, unreadable: bool, inside: str) -> None:
    # In a process of its own: what one test sets, no other can unset.
    code = ARITHMETIC.format(before=before, inside=inside)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == str(unreadable)
