"""The search itself: episodes, what was found in them, and checkpoints to go on from."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from secateurs.errors import PlanError
from secateurs.plan import write_atomic
from secateurs.progress import Task
from secateurs.search.lap.exploration import truncated_normal
from secateurs.search.lap.settings import LapSettings

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
"""Groups that an episode changes on average where a search starts from a plan, and by how much at least."""

Action = Callable[[int, np.ndarray], float]
"""(group, state) to the pruning ratio to try."""


Balance = Callable[[np.ndarray, "np.ndarray | None", np.random.Generator], np.ndarray]
"""(ratios, those of the network they were made from, generator) to ratios that fit the limits."""


@dataclass(frozen=True)
class Episode:
    """One network that was looked at.

    ``limit``: cost limit it was found under (None: resource-free); ``phase``: ``start``, ``warm-up`` or ``agent``;
    ``evaluations``: different networks judged so far, this one included.
    """

    limit: float | None
    phase: str
    reward: float
    accuracy: float
    latency_ms: float
    widths: tuple[int, ...]
    removed: tuple[int, ...]
    ratios: tuple[float, ...]
    evaluations: int

    @property
    def network(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Equal for equal networks."""
        return self.widths, self.removed


@dataclass
class Session:
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
            held = json.loads((self.folder / HISTORY_FILE).read_text(encoding="utf-8"))
            content = (self.folder / AGENT_FILE.replace(".", f"-{held['number']}.")).read_bytes()
            found = [_episode(raw) for raw in held["episodes"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PlanError(
                f"The search's checkpoint in {self.folder} is damaged ({error}). Delete that folder to start the "
                "search again; evaluations that are already stored are not lost."
            ) from error
        if held["identity"] == self.identity:
            self.learner.restore(content)
            self.episodes = found

    def save(self) -> None:
        """Write a checkpoint: the agent under a new name first, then the episodes that point to it."""
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        number = len(self.episodes)
        current = self.folder / AGENT_FILE.replace(".", f"-{number}.")
        write_atomic(current, self.learner.to_bytes())
        content = {"identity": self.identity, "number": number, "episodes": [asdict(e) for e in self.episodes]}
        write_atomic(self.folder / HISTORY_FILE, json.dumps(content).encode())
        for old in self.folder.glob(AGENT_FILE.replace(".", "-*.")):
            if old != current:
                old.unlink(missing_ok=True)
        self.saved = time.monotonic()

    def under(self, limit: float | None) -> list[Episode]:
        """Episodes up to the last one that searched under ``limit``."""
        last = max((i for i, episode in enumerate(self.episodes) if episode.limit == limit), default=-1)
        return self.episodes[: last + 1]

    def run(self, table: Table, limit: float | None, start: Start, task: Task) -> list[Episode]:
        """Episodes until this limit has had its share; what was known before included."""
        first = not self.episodes or self.episodes[0].limit == limit
        wanted = self.settings.episodes if first else self.settings.again
        done = sum(episode.limit == limit for episode in self.episodes)
        task.advance(done)
        for index in range(done, wanted):
            number = len(self.episodes)
            rng = np.random.default_rng([self.seed, number])
            phase, action = self._phase(index, first, start, limit, rng)
            if start.balance is not None and phase != "start":
                base = np.array(self.best(limit).ratios) if start.sparse else None
                action = _fixed(start.balance(_rehearse(table.rehearsal, action), base, rng))
            episode, steps = self._play(table.env, limit, phase, action)
            self.learner.remember(steps, episode.reward)
            if phase == "start" and start.sparse:
                self.learner.imitate(steps)
            self.episodes.append(episode)
            if phase == "agent" or number + 1 >= self.settings.warm_episodes:
                self.learner.learn(len(steps), number)
            if time.monotonic() - self.saved > SAVE_SECONDS:
                self.save()
            best = self.best(limit).accuracy
            note = f"accuracy {episode.accuracy:.2%}  best {best:.2%}  {episode.latency_ms:.3g} ms"
            task.advance(1, f"reward {episode.reward:.3f}  {note}" + (f" of {limit:.3g}" if limit else ""))
        if done < wanted:
            self.save()
        return self.under(limit)

    def best(self, limit: float | None) -> Episode:
        """The episode of highest reward that is within ``limit``, the first one of equals."""
        inside = [e for e in self.under(limit) if limit is None or e.latency_ms <= limit * (1 + 1e-9)]
        return max(inside, key=lambda episode: episode.reward)

    def _phase(
        self, index: int, first: bool, start: Start, limit: float | None, rng: np.random.Generator
    ) -> tuple[str, Action]:
        """What an episode is for, and how it acts; ``index``: its number under the present limit."""
        agent = self.settings.agent
        if index == 0 and start.forced is not None:
            return "start", _fixed(start.forced)
        warm = first and index < self.settings.warm_episodes
        late = index - self.settings.warm_episodes if first else index
        sigma = start.sigma if warm else start.sigma * agent.decay ** max(0, late) * (1.0 if first else AGAIN_SIGMA)
        if start.sparse:
            return self._sparse(warm, self.best(limit).ratios, sigma, rng)
        if not warm:
            return "agent", lambda group, seen: truncated_normal(rng, self.learner.ratio(seen), sigma)
        if start.centre is None:
            return "warm-up", lambda group, seen: float(rng.uniform())
        centre = start.centre
        blocks = np.zeros_like(centre) if start.blocks is None else start.blocks
        gone = rng.random(len(blocks)) < blocks * rng.uniform(0.0, MOST_GONE)
        return "warm-up", lambda group, seen: 1.0 if gone[group] else truncated_normal(rng, centre[group], sigma)

    def _sparse(
        self, warm: bool, held: tuple[float, ...], sigma: float, rng: np.random.Generator
    ) -> tuple[str, Action]:
        """Some groups around the best network so far, later around the actor; the others as they were."""
        changed = rng.random(len(held)) < CHANGED / len(held)
        changed[rng.integers(len(held))] = True
        sigma = max(sigma, LEAST_SIGMA)

        def act(group: int, seen: np.ndarray) -> float:
            if not changed[group]:
                return held[group]
            return truncated_normal(rng, held[group] if warm else self.learner.ratio(seen), sigma)

        return "warm-up" if warm else "agent", act

    def _play(
        self, env: PruningEnv, limit: float | None, phase: str, action: Action
    ) -> tuple[Episode, list[Transition]]:
        from secateurs.search.lap.agent import Transition

        seen, _ = env.reset()
        steps, ratios, last = [], np.ones(len(env.game.choices.options)), False
        while not last:
            wanted = action(env.group, seen)
            after, reward, last, _, info = env.step(np.array([wanted]))
            steps.append(Transition(seen, float(info["action"]), after, last))
            ratios[info["group"]] = info["action"]
            seen = after
        widths, removed = tuple(info["widths"].tolist()), tuple(sorted(info["removed"]))
        known = {episode.network for episode in self.episodes} | {(widths, removed)}
        figures = (float(reward), float(info["accuracy"]), float(info["latency_ms"]))
        return Episode(limit, phase, *figures, widths, removed, tuple(ratios.tolist()), len(known)), steps


def _fixed(ratios: np.ndarray) -> Action:
    return lambda group, seen: float(ratios[group])


def _rehearse(env: PruningEnv, action: Action) -> np.ndarray:
    """The ratios that actions ask for, played where nothing is judged; 1 for groups that are not asked about."""
    seen, _ = env.reset()
    ratios, last = np.ones(len(env.game.choices.options)), False
    while not last:
        group = env.group
        ratios[group] = action(group, seen)
        seen, _, last, _, _ = env.step(ratios[[group]])
    return ratios


@dataclass(frozen=True)
class Table:
    """Where the game is played: ``env``, and ``rehearsal`` without wall and judge."""

    env: PruningEnv
    rehearsal: PruningEnv


@dataclass(frozen=True)
class Start:
    """How a search begins and explores.

    ``centre``: ratios around which the warm-up acts [groups], None for uniform actions; ``blocks``: sensitivity of the
    block that each group heads [groups], in proportion to which the warm-up removes blocks; ``sigma``: of the truncated
    normals; ``forced``: ratios of the first episode; ``sparse``: change some groups of the best network at a time,
    after the actor has learnt the forced ones; ``balance``: moves ratios so that they fit the limits, None leaves that
    to the wall.
    """

    centre: np.ndarray | None
    sigma: float
    forced: np.ndarray | None = None
    sparse: bool = False
    balance: Balance | None = None
    blocks: np.ndarray | None = None


def _episode(raw: dict[str, Any]) -> Episode:
    lists = {name: tuple(raw[name]) for name in ("widths", "removed", "ratios")}
    return Episode(**{**raw, **lists})
