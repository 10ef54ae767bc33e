"""How an episode is played: actions, walks through the game, and the tables that it stands on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from secateurs.search.lap.agent import Transition
    from secateurs.search.lap.environment import PruningEnv

Action = Callable[[int, np.ndarray], float]
"""(group, state) to the pruning ratio to try."""


@dataclass(frozen=True)
class GameTable:
    """Where the game is played: ``env``; ``rehearsal`` without wall and judge; ``replay`` without judge."""

    env: PruningEnv
    rehearsal: PruningEnv
    replay: PruningEnv

    @property
    def unit(self) -> str:
        """Of the main cost."""
        return self.env.game.choices.problem.constraints[0].model.unit

    def network(self, ratios: np.ndarray) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The network that ratios lead to, as :attr:`Episode.network`; the wall may make another one of them."""
        choices = self.env.game.choices
        found = choices.network(ratios)
        widths = choices.problem.canonical(found.widths, found.removed)
        return tuple(widths.tolist()), tuple(sorted(found.removed))


def walk(env: PruningEnv, action: Action) -> tuple[list[Transition], np.ndarray, dict[str, Any]]:
    """One episode: its steps, the ratios that were taken (1 for groups not asked about), and what it ended with."""
    from secateurs.search.lap.agent import Transition

    seen, _ = env.reset()
    steps, ratios, last, reward = [], np.ones(len(env.game.choices.options)), False, 0.0
    while not last:
        wanted = action(env.group, seen)
        after, reward, last, _, info = env.step(np.array([wanted]))
        steps.append(Transition(seen, float(info["action"]), after, last))
        ratios[info["group"]] = info["action"]
        seen = after
    return steps, ratios, {**info, "reward": reward}


def fixed(ratios: np.ndarray) -> Action:
    """Acts by given ratios, whatever the state."""
    return lambda group, seen: float(ratios[group])


def rehearse(env: PruningEnv, action: Action) -> np.ndarray:
    """The ratios that actions ask for, played where nothing is judged; 1 for groups that are not asked about."""
    seen, _ = env.reset()
    ratios, last = np.ones(len(env.game.choices.options)), False
    while not last:
        group = env.group
        ratios[group] = action(group, seen)
        seen, _, last, _, _ = env.step(ratios[[group]])
    return ratios
