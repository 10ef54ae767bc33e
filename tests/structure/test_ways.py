"""Ways that a forward goes at random: each step that is seen is taken under a seed, and few draws are run."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from secateurs.structure import ways
from secateurs.structure.draws import Call
from secateurs.structure.modes import DRAWS, Run, recorded, training_of
from secateurs.structure.ways import MOST, PATIENCE, TRIED, steps_of, ways_of

CALL = ((torch.randn(2, 4),), {})


class Dropped(nn.Module):
    """Each layer runs with the chance ``often``; where the first random number is below ``fails`` nothing runs."""

    def __init__(self, layers: int, often: float, fails: float = 0.0) -> None:
        super().__init__()
        self.layers, self.often, self.fails = nn.ModuleList(nn.Linear(4, 4) for _ in range(layers)), often, fails

    def forward(self, x: Tensor) -> Tensor:
        if self.training and random.random() < self.fails:
            raise RuntimeError("not this time")
        for layer in self.layers:
            if not self.training or random.random() < self.often:
                x = layer(x)
        return x


def seen(model: nn.Module, seeds: list[int]) -> set[object]:
    found: set[object] = set()
    for seed in seeds:
        found |= steps_of(recorded(model, CALL, training=True, seed=seed).calls)
    return found


def test_every_step_that_draws_show_is_taken_under_a_seed() -> None:
    model = Dropped(3, 0.6)
    seeds = list(ways_of(model, CALL))
    assert len(seeds) <= MOST
    # From the start or a layer to each later one or the end: 4 + 3 + 2 + 1.
    assert len(seen(model, seeds)) == 10


def test_draws_under_which_it_fails_show_nothing_and_end_nothing() -> None:
    model = Dropped(3, 0.6, fails=0.3)
    seeds = list(ways_of(model, CALL))
    assert len(seen(model, seeds)) == 10


def test_no_more_draws_are_run_where_nothing_new_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []

    def counted(model: nn.Module, call: Call, *, training: bool, seed: int) -> Run:
        ran.append(seed)
        return recorded(model, call, training=training, seed=seed)

    monkeypatch.setattr(ways, "recorded", counted)
    assert len(list(ways_of(Dropped(2, 1.0), CALL))) == 1
    assert len(ran) == PATIENCE + 1 < TRIED


def test_the_callers_random_numbers_go_on() -> None:
    random.seed(3)
    before = random.getstate()
    list(ways_of(Dropped(2, 0.5), CALL))
    assert random.getstate() == before


class Own(nn.Module):
    """Layers are dropped by random numbers of the network's own."""

    def __init__(self, draw: Callable[[], float], *held: object) -> None:
        super().__init__()
        self.layers, self.draw, self.held = nn.ModuleList(nn.Linear(4, 4) for _ in range(3)), draw, held

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            if not self.training or self.draw() < 0.6:
                x = layer(x)
        return x


class Wrapped:
    """An object of the network's own with a way to draw."""

    def __init__(self) -> None:
        self.source = np.random.RandomState(0)

    def __call__(self) -> float:
        return self.source.uniform()


SOURCES: dict[str, Callable[[], nn.Module]] = {
    "random.Random": lambda: Own(random.Random(0).random),
    "Generator": lambda: Own(np.random.default_rng(0).random),
    "RandomState": lambda: Own(Wrapped()),
    "in a closure": lambda: Own((lambda source: lambda: source.random())(random.Random(0))),
    "of the system": lambda: Own((lambda source: lambda: source.random())(random.SystemRandom())),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_random_numbers_of_the_networks_own_are_seen(kind: str) -> None:
    model = SOURCES[kind]()
    assert training_of(model, *CALL).reason == DRAWS
    assert len(seen(model, list(ways_of(model, CALL)))) == 10


def test_they_go_on_where_they_were() -> None:
    source = np.random.default_rng(0)
    model = Own(source.random)
    before = repr(source.bit_generator.state)
    list(ways_of(model, CALL))
    assert repr(source.bit_generator.state) == before
