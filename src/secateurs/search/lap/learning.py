"""The search itself: episodes, what was found in them, and checkpoints to go on from."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from secateurs.errors import PlanError, why
from secateurs.files import read_bytes, read_json, read_text, write_atomic
from secateurs.progress import Task
from secateurs.search.lap.exploration import truncated_normal
from secateurs.search.lap.playing import Action, GameTable, fixed, rehearse, walk
from secateurs.search.lap.settings import LapSettings
from secateurs.search.problem import SLACK

if TYPE_CHECKING:
    from secateurs.search.lap.agent import Learner, Transition
    from secateurs.search.lap.environment import PruningEnv

AGENT_FILE, HISTORY_FILE = "agent.pt", "episodes.json"
SAVE_SECONDS = 10.0
AGAIN_SIGMA = 0.2
"""Share of the first exploration with which a search for a further limit starts."""

MOST_GONE = 0.6
"""Share of the blocks that a warm-up episode removes, drawn anew from 0 up to this, where the prior guides it."""

CHANGED, LEAST_SIGMA = 2.0, 0.1
"""Groups that an episode changes on average where a search varies its best network, and by how much at least."""

DRAWS, WIDER = 5, 1.5
"""Draws of an episode at most until it is a network that was not looked at yet, and growth of their deviation."""

ASKED = 0.5
"""Share of these changes that the actor proposes after the warm-up; the others lie around the best network."""

StepLimits = tuple[float, ...]
"""Of the costs of a problem, the main one first."""

Balance = Callable[[np.ndarray, "np.ndarray | None", np.random.Generator], np.ndarray]
"""(ratios, those of the network they were made from, generator) to ratios that fit the limits."""


@dataclass(frozen=True)
class Episode:
    """One network that was looked at.

    ``limits``: it was found under (None: resource-free); ``phase``: ``start``, ``warm-up`` or ``agent``; ``costs``: all
    that are limited, by the models, the first of which is ``latency_ms``; ``evaluations``: different networks judged so
    far, this one included.
    """

    limits: StepLimits | None
    phase: str
    reward: float
    accuracy: float
    latency_ms: float
    widths: tuple[int, ...]
    removed: tuple[int, ...]
    ratios: tuple[float, ...]
    costs: tuple[float, ...]
    evaluations: int

    @property
    def network(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Equal for equal networks."""
        return self.widths, self.removed

    def within(self, limits: StepLimits | None) -> bool:
        """Whether all costs are within such limits."""
        return limits is None or all(c <= most * (1 + SLACK) for c, most in zip(self.costs, limits, strict=True))


@dataclass
class Learning:
    """Learner and episodes of one search; with a ``folder`` they outlive a kill.

    ``identity``: everything that the course of the search depends on but the limits; a checkpoint of another one is
    not taken up.
    """

    learner: Learner
    settings: LapSettings
    seed: int
    identity: str
    folder: Path | None = None
    episodes: list[Episode] = field(default_factory=list)
    saved: float = 0.0

    def resume(self) -> None:
        """Take up the checkpoint in the folder, if there is one of this search.

        Raises:
            PlanError: it is damaged.
        """
        if self.folder is None or not (self.folder / HISTORY_FILE).exists():
            return
        try:
            held = read_json(read_text(self.folder / HISTORY_FILE, own=True))
            if held["identity"] != self.identity:
                return
            content = read_bytes(self.folder / AGENT_FILE.replace(".", f"-{held['number']}."), own=True, most=1 << 30)
            found = [_episode(raw) for raw in held["episodes"]]
            if hashlib.sha256(content).hexdigest() != held.get("agent", hashlib.sha256(content).hexdigest()):
                raise ValueError("the agent is another one")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PlanError(f"The search's checkpoint in {self.folder} is damaged ({why(error)}).") from error
        self.learner.restore(content)
        self.episodes = found

    def save(self) -> None:
        """Write a checkpoint: the agent under a new name first, then the episodes that point to it."""
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        number = len(self.episodes)
        current = self.folder / AGENT_FILE.replace(".", f"-{number}.")
        agent = self.learner.to_bytes()
        write_atomic(current, agent)
        content = {
            "identity": self.identity,
            "number": number,
            "agent": hashlib.sha256(agent).hexdigest(),
            "episodes": [asdict(e) for e in self.episodes],
        }
        write_atomic(self.folder / HISTORY_FILE, json.dumps(content).encode())
        for old in self.folder.glob(AGENT_FILE.replace(".", "-*.")):
            if old != current:
                old.unlink(missing_ok=True)
        self.saved = time.monotonic()

    def under(self, limits: StepLimits | None) -> list[Episode]:
        """Episodes up to the last one that searched under ``limits``."""
        last = max((i for i, episode in enumerate(self.episodes) if episode.limits == limits), default=-1)
        return self.episodes[: last + 1]

    def is_first(self, limits: StepLimits | None) -> bool:
        """Whether these are the limits that the search began with, so that all episodes are theirs."""
        return not self.episodes or self.episodes[0].limits == limits

    def wanted(self, limits: StepLimits | None) -> int:
        """Episodes that such limits get."""
        return self.settings.episodes if self.is_first(limits) else self.settings.again

    def run(self, table: GameTable, limits: StepLimits | None, start: FirstEpisodes, task: Task) -> list[Episode]:
        """Episodes until these limits have had their share; what was known before included."""
        first, wanted = self.is_first(limits), self.wanted(limits)
        done = sum(episode.limits == limits for episode in self.episodes)
        task.advance(done)
        for index in range(done, wanted):
            number = len(self.episodes)
            rng = np.random.default_rng([self.seed, number])
            if start.local is not None and index == max(1, start.local):
                self.learner.imitate(walk(table.replay, fixed(np.array(self.best(limits).ratios)))[0])
            phase, action = self._draw(table, index, first, start, limits, rng)
            episode, steps = self._play(table.env, limits, phase, action)
            self.learner.remember(steps, episode.reward)
            self.episodes.append(episode)
            if phase == "agent" or number + 1 >= self.settings.warm_episodes:
                self.learner.learn(len(steps), number)
            if time.monotonic() - self.saved > SAVE_SECONDS:
                self.save()
            task.advance(1, self._note(episode, limits, table.unit))
        if done < wanted:
            self.save()
        return self.under(limits)

    def _note(self, episode: Episode, limits: StepLimits | None, unit: str) -> str:
        """An episode in a line."""
        share = f" of {limits[0]:.3g}" if limits else ""
        found = f"reward {episode.reward:.3f}  accuracy {episode.accuracy:.2%}  best {self.best(limits).accuracy:.2%}"
        return f"{found}  {episode.latency_ms:.3g} {unit}{share}"

    def best(self, limits: StepLimits | None) -> Episode:
        """The episode of highest reward that is within ``limits``, the first one of equals."""
        inside = [episode for episode in self.under(limits) if episode.within(limits)]
        return max(inside, key=lambda episode: episode.reward)

    def _draw(
        self,
        table: GameTable,
        index: int,
        first: bool,
        start: FirstEpisodes,
        limits: StepLimits | None,
        rng: np.random.Generator,
    ) -> tuple[str, Action]:
        """What the next episode is for, and how it acts; balanced ones are drawn again until the network is new."""
        known = {episode.network for episode in self.under(limits)}
        for draw in range(DRAWS):
            phase, action = self._phase(index, first, start, limits, WIDER**draw, rng)
            if start.balance is None or phase == "start":
                break
            base = np.array(self.best(limits).ratios) if start.is_local(index) else None
            ratios = start.balance(rehearse(table.rehearsal, action), base, rng)
            action = fixed(ratios)
            if table.network(ratios) not in known:
                break
        return phase, action

    def _phase(
        self,
        index: int,
        first: bool,
        start: FirstEpisodes,
        limits: StepLimits | None,
        wider: float,
        rng: np.random.Generator,
    ) -> tuple[str, Action]:
        """The same before balancing; ``index``: its number under the present limits, ``wider``: times the deviation."""
        agent = self.settings.agent
        if index == 0 and start.forced is not None:
            return "start", fixed(start.forced)
        warm = first and index < self.settings.warm_episodes
        late = index - self.settings.warm_episodes if first else index
        sigma = start.sigma if warm else start.sigma * agent.decay ** max(0, late) * (1.0 if first else AGAIN_SIGMA)
        if start.is_local(index):
            return self._local(warm, self.best(limits).ratios, max(sigma, LEAST_SIGMA) * wider, rng)
        if not warm:
            return "agent", lambda group, seen: truncated_normal(rng, self.learner.ratio(seen), sigma)
        if start.centre is None:
            return "warm-up", lambda group, seen: float(rng.uniform())
        centre = start.centre
        blocks = np.zeros_like(centre) if start.blocks is None else start.blocks
        gone = rng.random(len(blocks)) < blocks * rng.uniform(0.0, MOST_GONE)
        return "warm-up", lambda group, seen: 1.0 if gone[group] else truncated_normal(rng, centre[group], sigma)

    def _local(self, warm: bool, held: tuple[float, ...], sigma: float, rng: np.random.Generator) -> tuple[str, Action]:
        """Some groups around the best network so far, later around the actor; the others as they were."""
        changed = rng.random(len(held)) < CHANGED / len(held)
        changed[rng.integers(len(held))] = True

        def act(group: int, seen: np.ndarray) -> float:
            if not changed[group]:
                return held[group]
            asked = not warm and rng.random() < ASKED
            return truncated_normal(rng, self.learner.ratio(seen) if asked else held[group], sigma)

        return "warm-up" if warm else "agent", act

    def _play(
        self, env: PruningEnv, limits: StepLimits | None, phase: str, action: Action
    ) -> tuple[Episode, list[Transition]]:
        steps, ratios, info = walk(env, action)
        widths, removed = tuple(info["widths"].tolist()), tuple(sorted(info["removed"]))
        known = {episode.network for episode in self.episodes} | {(widths, removed)}
        figures = (float(info["reward"]), float(info["accuracy"]), float(info["latency_ms"]))
        costs = tuple(env.game.choices.problem.costs(info["widths"], info["removed"]).tolist())
        return Episode(limits, phase, *figures, widths, removed, tuple(ratios.tolist()), costs, len(known)), steps


@dataclass(frozen=True)
class FirstEpisodes:
    """How a search begins and explores.

    ``centre``: ratios around which the warm-up acts [groups], None for uniform actions; ``blocks``: sensitivity of the
    block that each group heads [groups], in proportion to which the warm-up removes blocks; ``sigma``: of the truncated
    normals; ``forced``: ratios of the first episode; ``local``: number of the episode from which some groups of the
    best network so far are changed at a time, after the actor has learnt that network, None for never; ``balance``:
    moves ratios so that they fit the limits, None leaves that to the wall.
    """

    centre: np.ndarray | None
    sigma: float
    forced: np.ndarray | None = None
    local: int | None = None
    balance: Balance | None = None
    blocks: np.ndarray | None = None

    def is_local(self, index: int) -> bool:
        """Whether the ``index``-th episode changes the best network."""
        return self.local is not None and index >= max(1, self.local)


def _episode(raw: dict[str, Any]) -> Episode:
    lists = {name: tuple(raw[name]) for name in ("widths", "removed", "ratios", "costs")}
    return Episode(**{**raw, **lists, "limits": None if raw["limits"] is None else tuple(raw["limits"])})
