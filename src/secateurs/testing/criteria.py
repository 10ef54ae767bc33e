"""Contract of a criterion: laws for a plug-in's tests to inherit, on convolutions, linear layers and embeddings."""

from __future__ import annotations

import copy
import functools
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateurs.errors import PlanError, SecateursError
from secateurs.importance.context import KINDS, Criterion, find_criterion
from secateurs.importance.scoring import scores
from secateurs.importance.statistics import context_for
from secateurs.structure import Graph, trace

Batch = tuple[Tensor, Tensor]
SAMPLES, CLASSES = 24, 4


class Convolutions(nn.Module):
    """A stem, a residual block, a depthwise convolution, one more, and a head; batch norms behind all convolutions."""

    def __init__(self) -> None:
        super().__init__()
        shapes = {"stem": (3, 6, 1), "inner": (6, 5, 1), "outer": (5, 6, 1), "depthwise": (6, 6, 6), "wide": (6, 8, 1)}
        self.convs = nn.ModuleDict(
            {name: nn.Conv2d(i, o, 3, padding=1, groups=g, bias=False) for name, (i, o, g) in shapes.items()}
        )
        self.norms = nn.ModuleDict({name: nn.BatchNorm2d(outputs) for name, (_, outputs, _) in shapes.items()})
        self.head = nn.Linear(8, CLASSES)

    def _layer(self, name: str, x: Tensor) -> Tensor:
        found: Tensor = self.norms[name](self.convs[name](x))
        return found

    def forward(self, x: Tensor) -> Tensor:
        """Logits [n, 4] of images [n, 3, 8, 8]."""
        x = self._layer("stem", x).relu()
        x = (x + self._layer("outer", self._layer("inner", x).relu())).relu()
        x = self._layer("wide", self._layer("depthwise", x).relu()).relu()
        found: Tensor = self.head(x.mean((2, 3)))
        return found


class Embedding(nn.Module):
    """Tokens, a linear layer on each, their mean, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.mix, self.head = nn.Embedding(20, 8), nn.Linear(8, 6), nn.Linear(6, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [n, 4] of tokens [n, 7], integers below 20."""
        found: Tensor = self.head(self.mix(self.words(tokens)).relu().mean(1))
        return found


def network(kind: str) -> nn.Module:
    """``convolutions``, ``linear`` or ``embedding``, in evaluation mode, every weight and statistic drawn at random."""
    if kind == "linear":
        made: nn.Module = nn.Sequential(
            nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, CLASSES)
        )
    else:
        made = Convolutions() if kind == "convolutions" else Embedding()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in [*made.named_parameters(), *made.named_buffers()]:
            if tensor.is_floating_point():
                drawn = torch.rand(tensor.shape, generator=generator)
                tensor.copy_(drawn + 0.5 if "running_var" in name else 1.2 * drawn - 0.5)
    return made.eval()


@functools.cache
def _traced_once(kind: str) -> tuple[Graph, dict[str, Tensor]]:
    made = network(kind)
    return trace(made, batches(kind)[0][0]), {name: tensor.clone() for name, tensor in made.state_dict().items()}


def as_made(kind: str) -> Graph:
    """The traced network of a kind, traced once, with the weights, gradients and modes of :func:`network`."""
    graph, weights = _traced_once(kind)
    graph.model.eval().load_state_dict(weights)
    for parameter in graph.model.parameters():
        parameter.grad = None
        parameter.requires_grad_(True)
    return graph


def batches(kind: str, sizes: tuple[int, ...] = (8, 8, 8)) -> list[Batch]:
    """The same 24 samples with their classes, cut into batches of these sizes."""
    generator = torch.Generator().manual_seed(7)
    shape = {"convolutions": (3, 8, 8), "linear": (12,), "embedding": (7,)}[kind]
    if kind == "embedding":
        inputs = torch.randint(0, 20, (SAMPLES, *shape), generator=generator)
    else:
        inputs = torch.randn(SAMPLES, *shape, generator=generator)
    targets = torch.randint(0, CLASSES, (SAMPLES,), generator=generator)
    return list(zip(inputs.split(list(sizes)), targets.split(list(sizes)), strict=True))


def permuted(graph: Graph, orders: dict[str, np.ndarray]) -> nn.Module:
    """A copy of the graph's network whose units stand in other orders, and which computes the same."""
    made = copy.deepcopy(graph.model)
    state = made.state_dict()
    with torch.no_grad():
        for group, order in orders.items():
            for view in graph.views(group):
                tensor = state[view.parameter]
                places = torch.arange(tensor.shape[view.dim])
                places[torch.from_numpy(view.indices.ravel())] = torch.from_numpy(view.indices[order].ravel())
                tensor.copy_(tensor.index_select(view.dim, places))
    return made


class CriterionContract:
    """Contract of a criterion: inherit, override :meth:`criterion`, run with pytest.

    ::

        class TestMyScore(CriterionContract):
            def criterion(self) -> Criterion:
                return score

    A criterion that promises less says so: ``refuses``, ``follows_units``, ``sees_samples``.
    """

    networks = ("convolutions", "linear", "embedding")
    """Kinds of networks on which every law is tried."""
    refuses: tuple[str, ...] = ()
    """Kinds of networks that it may refuse, with the reason."""
    follows_units = True
    """Units in another order have the same scores in that order. Not so of random ones."""
    sees_samples = True
    """Scores depend on the samples and not on how they are cut into batches. Not so where a training is part of it."""
    rounding = 1e-3
    """Relative difference that another order of the same sums may make."""

    def criterion(self) -> str | Criterion:
        """The criterion on trial: the function, or its registered name."""
        raise AssertionError("override criterion() with the criterion on trial")

    def test_it_says_what_it_is(self) -> None:
        """A name; statistics that there are; whether it compares groups."""
        found = find_criterion(self.criterion())
        assert isinstance(found.name, str), f"its name is {found.name!r}"
        assert found.name, "its name is empty"
        assert found.needs <= set(KINDS), f"it needs {sorted(found.needs)}; there are {KINDS}"
        assert type(found.compares_groups) is bool, f"compares_groups is {found.compares_groups!r}"

    def test_every_unit_has_one_finite_score(self) -> None:
        """Of every kind of network: one number of at least 0 a unit, and not the same for all. A kind that it may
        refuse is refused with a reason."""
        for kind in self.networks:
            graph = self._traced(kind)
            found = self._attempt(graph, batches(kind))
            if isinstance(found, SecateursError):
                assert kind in self.refuses, f"{kind}: refused with {found}"
                assert len(str(found)) > 20, f"{kind}: it says {str(found)!r}"
                continue
            for group in graph.groups:
                assert found[group.name].shape == (group.units,), f"{kind}, {group.name}: {found[group.name].shape}"
                assert len(np.unique(found[group.name])) > 1, f"{kind}, {group.name}: all units alike"

    def test_the_same_seed_gives_the_same_scores(self) -> None:
        """Whatever random numbers others drew before; and theirs afterwards are what they would have been."""
        for kind, graph in self._scored():
            _seed()
            first = self._scores(graph, batches(kind), seed=5)
            drawn = _draw()
            _seed()
            assert _draw() == drawn, f"{kind}: it draws from the global generators"
            again = self._scores(graph, batches(kind), seed=5)
            for name, values in first.items():
                assert np.array_equal(values, again[name]), f"{kind}, {name}: other scores with the same seed"

    def test_the_network_and_the_data_are_left_as_they_were(self) -> None:
        """Weights, statistics, modes, gradients, hooks and attributes; samples and classes."""
        for kind, graph in self._scored():
            data = batches(kind)
            graph.model.train()
            before, samples = _marks(graph.model), [tensor.clone() for batch in data for tensor in batch]
            self._scores(graph, data)
            changed = sorted(name for name, mark in _marks(graph.model).items() if before.get(name) != mark)
            assert not changed, f"{kind}: it changed {', '.join(changed)}"
            for old, new in zip(samples, (tensor for batch in data for tensor in batch), strict=True):
                assert torch.equal(old, new), f"{kind}: it changed the samples"

    def test_scores_follow_their_units(self) -> None:
        """Where the units of every group stand in another order, so do the scores: places mean nothing."""
        for kind, graph in self._scored() if self.follows_units else ():
            found = self._scores(graph, batches(kind))
            rng = np.random.default_rng(3)
            orders = {group.name: rng.permutation(group.units) for group in graph.groups}
            moved = self._scores(trace(permuted(graph, orders), batches(kind)[0][0]), batches(kind))
            for name, order in orders.items():
                theirs = found[name][order]
                assert np.allclose(moved[name], theirs, rtol=self.rounding, atol=1e-6 * theirs.max()), (
                    f"{kind}, {name}: {theirs}, and with the units in that order {moved[name]}"
                )

    def test_samples_count_and_not_batches(self) -> None:
        """The same samples in batches of other sizes, also of unequal ones, give the same scores."""
        for kind, graph in self._scored() if self.sees_samples else ():
            found = self._scores(graph, batches(kind))
            for sizes in ((24,), (14, 10), (20, 3, 1)):
                other = self._scores(graph, batches(kind, sizes))
                for name, values in found.items():
                    assert np.allclose(other[name], values, rtol=self.rounding, atol=1e-6 * values.max()), (
                        f"{kind}, {name}: {values} in batches of 8, {other[name]} in batches of {sizes}"
                    )

    def test_groups_are_scored_one_by_one(self) -> None:
        """A group's scores do not depend on which were scored before it."""
        marked = find_criterion(self.criterion())
        for kind, graph in self._scored():
            found = self._scores(graph, batches(kind))
            for group in reversed(graph.groups):
                alone = self._traced(kind)
                context = context_for(alone, self.criterion(), batches(kind))
                values = np.asarray(marked.score(alone, group.name, context), dtype=np.float64)
                told = f"{kind}, {group.name}: {found[group.name]} in order, {values} alone"
                assert np.allclose(values, found[group.name], rtol=1e-5), told

    def test_weights_of_zero_have_scores(self) -> None:
        """A layer that is zero throughout is no reason for anything that is not a number."""
        for kind, graph in self._scored():
            for group in graph.groups:
                made = copy.deepcopy(graph.model)
                with torch.no_grad():
                    for view in graph.views(group.name):
                        if view.role == "out":
                            made.state_dict()[view.parameter].zero_()
                self._scores(trace(made, batches(kind)[0][0]), batches(kind))

    def test_missing_data_is_asked_for(self) -> None:
        """A criterion that reads calibration data says so where there is none; another one needs none."""
        for kind, graph in self._scored():
            needs, found = find_criterion(self.criterion()).needs, self._attempt(graph, None)
            if isinstance(found, SecateursError):
                assert needs, f"{kind}: it needs nothing, but says {found}"
                assert isinstance(found, PlanError), f"{kind}: a {type(found).__name__} says {found}"
                assert "data" in str(found), f"{kind}: it says {str(found)!r}"
                continue
            assert not needs, f"{kind}: it scored without what it needs"
            with_data = self._scores(graph, batches(kind))
            for name, values in found.items():
                assert np.array_equal(values, with_data[name]), f"{kind}, {name}: other scores where there is data"

    def _traced(self, kind: str) -> Graph:
        return as_made(kind)

    def _scored(self) -> Iterator[tuple[str, Graph]]:
        """The networks that it does not refuse."""
        for kind in self.networks:
            if kind not in self.refuses:
                yield kind, self._traced(kind)

    def _scores(self, graph: Graph, data: list[Batch] | None, seed: int = 0) -> dict[str, np.ndarray]:
        criterion = self.criterion()
        return scores(graph, criterion, context_for(graph, criterion, data, seed=seed))

    def _attempt(self, graph: Graph, data: list[Batch] | None) -> dict[str, np.ndarray] | SecateursError:
        try:
            return self._scores(graph, data)
        except SecateursError as error:
            return error


def _seed() -> None:
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)


def _draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.random()), float(torch.rand(()))


def _marks(model: nn.Module) -> dict[str, Any]:
    """What can be seen of a network, by name."""
    seen: dict[str, Any] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        seen[name] = tensor.detach().clone().view(torch.uint8).numpy().tobytes() if tensor.dim() else tensor.item()
        seen[f"gradient of {name}"] = tensor.grad is None
        seen[f"requires_grad of {name}"] = tensor.requires_grad
    for name, module in model.named_modules():
        seen[f"mode of {name}"] = module.training
        seen[f"hooks of {name}"] = (len(module._forward_hooks), len(module._forward_pre_hooks))
        seen[f"attributes of {name}"] = sorted(vars(module))
    return seen
