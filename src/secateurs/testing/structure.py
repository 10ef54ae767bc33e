"""What every network and every rule must satisfy: public checks that tests and plug-ins share."""

from __future__ import annotations

import contextlib
import importlib
import unittest.mock
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from secateurs.errors import StructureError
from secateurs.plan import Plan
from secateurs.structure import Graph, apply, check_plan, trace
from secateurs.structure.copies import deep_copy
from secateurs.structure.inspection import inspect
from secateurs.testing import structure_judge_products  # noqa: F401  registers further operators
from secateurs.testing.structure_judge import dense_ignoring

TOLERANCE = 1e-6
"""Largest max|difference| / max|output| in float64."""


@dataclass(frozen=True)
class Verdict:
    """What became of one random cut of one network.

    ``outcome``: ``right`` (the judge agrees), ``refused`` (a named error before anything was returned), ``pinned``
    (no unit can go; ``reason`` names the pins) or ``wrong`` (returned, and computes something else);
    ``error``: max|difference| / max|output|; ``removed``: share of the parameters that went; ``rebuilt``: the result
    is not the user's own class.
    """

    outcome: str
    reason: str = ""
    error: float = 0.0
    removed: float = 0.0
    rebuilt: bool = False
    groups: int = 0


def random_cut(graph: Graph, share: float, seed: int) -> dict[str, list[int]]:
    """Units kept per group when ``share`` of every group goes at random (at least one stays, at most all but one)."""
    generator = np.random.default_rng(seed)
    kept = {}
    for group in graph.groups:
        count = max(group.min_units, min(group.units - 1, int(np.floor((1 - share) * group.units + 0.5))))
        kept[group.name] = sorted(generator.permutation(group.units)[:count].tolist())
    return kept


def redrawn(model: nn.Module, seed: int) -> nn.Module:
    """A float64 copy in evaluation mode with every parameter and statistic redrawn, none of them near zero."""
    generator = torch.Generator().manual_seed(seed)
    fresh = deep_copy(model, {}).double().eval()
    with torch.no_grad():
        for name, tensor in [*fresh.named_parameters(), *fresh.named_buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(_draw(name, tensor, generator))
    return fresh


def _draw(name: str, tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    size = torch.rand(tensor.shape, generator=generator, dtype=torch.float64) + 0.5
    if name.endswith("running_var") or tensor.dim() == 0:
        return size
    sign = torch.randint(0, 2, tensor.shape, generator=generator).double() * 2 - 1
    if tensor.dim() < 2 or tensor.numel() == max(tensor.shape):
        return sign * size
    return sign * size * (tensor.dim() * 0.5 / max(tensor[0].numel(), 1)) ** 0.5


def random_example(example: Any, seed: int) -> Any:
    """The example with its floating tensors redrawn in float64."""
    generator = torch.Generator().manual_seed(seed + 1)

    def draw(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor) and leaf.is_floating_point():
            return torch.randn(leaf.shape, generator=generator, dtype=torch.float64)
        return leaf

    return pytree.tree_map(draw, example)


def call_with(model: nn.Module, example: Any) -> Any:
    """The module's result on an example in any of the forms that ``trace`` takes."""
    args, kwargs = as_call(example)
    return model(*args, **kwargs)


def as_call(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword inputs of an example."""
    if isinstance(example, torch.Tensor):
        return (example,), {}
    if isinstance(example, Mapping):
        return (), dict(example)
    if len(example) == 2 and isinstance(example[0], (tuple, list)) and isinstance(example[1], Mapping):
        return tuple(example[0]), dict(example[1])
    return tuple(example), {}


def tensors(output: Any) -> list[torch.Tensor]:
    """Every tensor of an output in order."""
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)]


def gap(ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> float:
    """Largest max|a − b| / max|b|; infinity where counts or shapes differ or a value is not finite."""
    if len(ours) != len(theirs) or any(a.shape != b.shape for a, b in zip(ours, theirs, strict=True)):
        return float("inf")
    worst = 0.0
    for a, b in zip(ours, theirs, strict=True):
        if not b.is_floating_point():
            continue
        if not bool(torch.isfinite(a).all() and torch.isfinite(b).all()):
            return float("inf")
        if b.numel():
            worst = max(worst, float((a - b).abs().max()) / max(float(b.abs().max()), 1e-30))
    return worst


def judge(model: nn.Module, plan: Plan, example: Any, *, seed: int = 0, check: bool = True) -> float:
    """Relative difference between the cut network and the dense one that ignores the removed units, on redrawn weights.

    Raises:
        StructureError: ``apply`` refuses the plan.
    """
    dense = redrawn(model, seed)
    inputs = random_example(example, seed)
    small = apply(dense, plan, inputs, check=check).eval()
    args, kwargs = as_call(inputs)
    theirs = dense_ignoring(dense, plan, args, kwargs)
    with torch.no_grad():
        ours = tensors(call_with(small, inputs))
    return gap(ours, theirs)


def pins(graph: Graph, limit: int = 3) -> str:
    """The reasons that hold the most units, barriers first."""
    counted: dict[str, int] = {}
    for pin in inspect(graph).pins:
        label = f"{pin.reason} ({pin.operator} in {pin.module or 'the forward'})"
        counted[label] = counted.get(label, 0) + pin.stays
    named = sorted(counted, key=lambda label: (not label.startswith("barrier"), -counted[label]))
    return "; ".join(named[:limit])


def verdict(
    model: nn.Module, example: Any, *, share: float = 0.4, seed: int = 0, graph: Graph | None = None
) -> Verdict:
    """Trace, remove ``share`` of every group at random, apply, and ask the judge."""
    try:
        graph = graph or trace(model, example)
        if not graph.groups:
            return Verdict("pinned", pins(graph))
        plan = graph.plan(random_cut(graph, share, seed))
        error = judge(model, plan, example, seed=seed)
    except StructureError as refusal:
        return Verdict("refused", str(refusal), groups=len(graph.groups) if graph else 0)
    removed = _share(model, plan)
    outcome = "right" if error <= TOLERANCE else "wrong"
    return Verdict(outcome, pins(graph), error, removed, plan.rebuild is not None, len(graph.groups))


def _share(model: nn.Module, plan: Plan) -> float:
    total = sum(parameter.numel() for parameter in model.parameters())
    left = 0
    for name, parameter in model.named_parameters():
        shape = list(parameter.shape)
        for dim, kept in plan.slices.get(name, {}).items():
            shape[int(dim)] = len(kept)
        left += int(np.prod(shape))
    return 1 - left / max(total, 1)


def mutations(plan: Plan, count: int, seed: int = 0) -> Iterator[tuple[str, int, Plan]]:
    """Up to ``count`` copies of a plan in each of which one index list is permuted: (tensor, dim, damaged plan)."""
    generator = np.random.default_rng(seed)
    lists = [(name, dim) for name, axes in plan.slices.items() for dim, kept in axes.items() if len(kept) > 1]
    for number in generator.permutation(len(lists))[:count]:
        name, dim = lists[number]
        kept = np.array(plan.slices[name][dim])
        while True:
            order = generator.permutation(len(kept))
            if not np.array_equal(order, np.arange(len(kept))):
                break
        damaged = {**plan.slices, name: {**plan.slices[name], dim: tuple(kept[order].tolist())}}
        yield name, dim, plan.model_copy(update={"slices": damaged})


def uncaught(
    model: nn.Module, plan: Plan, example: Any, count: int, *, graph: Graph | None = None, by_running: bool = False
) -> tuple[int, list[str]]:
    """How many damaged plans were tried, and the index lists whose permutation the check did not notice.

    ``by_running``: do without the check of the lists themselves, so that only the outputs can tell.
    """
    tried, missed = 0, []
    for name, dim, damaged in mutations(plan, count):
        tried += 1
        with blind() if by_running else contextlib.nullcontext():
            try:
                check_plan(model, damaged, example, graph=graph)
            except StructureError:
                continue
        missed.append(f"{name}[{dim}]")
    return tried, missed


@contextlib.contextmanager
def blind() -> Iterator[None]:
    """While active, damaged index lists are not recognised as such: only what the network computes can tell."""
    with (
        unittest.mock.patch("secateurs.structure.slicing.require_sound", return_value=None),
        unittest.mock.patch("secateurs.structure.verify.require_sound", return_value=None),
        unittest.mock.patch.object(importlib.import_module("secateurs.structure.apply"), "require_whole"),
    ):
        yield


class RuleContract:
    """Contract of a rule for an operator: inherit, override :meth:`network` and :meth:`example`, run with pytest.

    ::

        class TestMyRule(RuleContract):
            def network(self) -> nn.Module:
                return nn.Sequential(nn.Conv2d(3, 8, 3), MyOperator(), nn.Conv2d(8, 4, 3))

            def example(self) -> torch.Tensor:
                return torch.randn(1, 3, 12, 12)
    """

    smallest_removed = 0.1
    """At 40 % of the units at least this share of the parameters must go."""

    def network(self) -> nn.Module:
        """A small network in which the operator stands between prunable layers."""
        raise AssertionError("override network() with a small network around the operator")

    def example(self) -> Any:
        """Inputs for the network."""
        raise AssertionError("override example() with inputs for the network")

    def test_operator_is_no_barrier(self) -> None:
        """The analysis knows the operator."""
        assert not trace(self.network(), self.example()).barriers

    def test_cut_networks_are_right(self) -> None:
        """Three random cuts compute what the dense network computes without the removed units."""
        torch.manual_seed(0)
        model, example = self.network(), self.example()
        graph = trace(model, example)
        for seed in range(3):
            found = verdict(model, example, seed=seed, graph=graph)
            assert found.outcome == "right", found
            assert found.removed >= self.smallest_removed, found

    def test_empty_plan_is_the_identity(self) -> None:
        """A plan that removes nothing changes no bit."""
        torch.manual_seed(0)
        model, example = self.network().eval(), self.example()
        small = apply(model, trace(model, example).plan({}), example)
        with torch.no_grad():
            ours, theirs = tensors(call_with(small, example)), tensors(call_with(model, example))
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
