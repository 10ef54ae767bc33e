"""Every registered strategy keeps the contract that plug-ins are held to; a new name is tested on arrival."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from secateurs.registry import names
from secateurs.search.hamp.picked import FromFront
from secateurs.search.legal import find_strategy
from secateurs.search.problem import Problem, Strategy
from secateurs.search.reach import fastest
from secateurs.testing.problems import enumerate_all
from secateurs.testing.strategies import StrategyContract


def short_lap(problem: Problem, folder: Path) -> Strategy:
    pytest.importorskip("stable_baselines3")
    from secateurs.search.lap.settings import Agent, LapSettings
    from secateurs.search.lap.strategy import Lap

    return Lap(LapSettings(episodes=14, warmup=6, again=3, agent=Agent(hidden=(16, 16), batch=16)), folder)


def short_hamp(problem: Problem, folder: Path) -> Strategy:
    pytest.importorskip("pymoo")
    from secateurs.search.hamp.local_search import Local
    from secateurs.search.hamp.search import HampSettings
    from secateurs.search.hamp.strategy import Hamp

    few = Local(starts=2, neighbours=20, hops=2, most=4)
    return Hamp(HampSettings(population=8, evaluations=24, stagnation=0, local=few, surrogate_after=99), again=8)


def small_front(problem: Problem, folder: Path) -> Strategy:
    """Eight networks that a search might have left behind, and the fastest one."""
    widths, gone = enumerate_all(problem)
    chosen = np.random.default_rng(0).choice(len(widths), min(8, len(widths)), replace=False)
    networks = [(widths[i].tolist(), np.flatnonzero(gone[i]).tolist()) for i in chosen]
    if problem.constraints:
        point = fastest(problem)
        networks.append((point.widths.tolist(), sorted(point.removed)))
    spec = problem.spec
    points: list[dict[str, Any]] = [
        {
            "number": number,
            "error": 1 / (2 + sum(kept)),
            "widths": {group.name: width for group, width in zip(spec.groups, kept, strict=True)},
            "removed": [spec.blocks[block].name for block in blocks],
        }
        for number, (kept, blocks) in enumerate(networks)
    ]
    (folder / "front.json").write_text(json.dumps({"points": points}))
    return FromFront.tuned({}, folder)


SMALL = {"lap": short_lap, "hamp": short_hamp, "front": small_front}


class TestRegisteredStrategies(StrategyContract):
    name: str

    @pytest.fixture(autouse=True, params=names("strategies"))
    def named(self, request: pytest.FixtureRequest) -> None:
        self.name = request.param

    @property
    def problems(self) -> int:  # type: ignore[override]
        return {"lap": 1, "hamp": 2}.get(self.name, 12)

    def strategy(self, problem: Problem, folder: Path) -> Strategy:
        return SMALL[self.name](problem, folder) if self.name in SMALL else find_strategy(self.name)
