"""How LAP searches: one frozen value."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from secateurs.errors import PlanError
from secateurs.search.lap.rewards import REWARDS

AGENTS = ("ddpg", "td3", "sac")


@dataclass(frozen=True)
class Prior:
    """The three uses of latency sensitivity, each of which can be switched off.

    ``state``: ŝ is part of the state; ``exploration``: warm-up actions are centred on the ratios that it suggests
    (uniform random otherwise); ``reward``: without a budget the reward is R2 (R1 otherwise); under a budget it is R3
    either way.
    """

    state: bool = True
    exploration: bool = True
    reward: bool = True
    spelled_as: ClassVar[str] = "Prior"


@dataclass(frozen=True)
class Agent:
    """The learner, after AMC (arXiv 1802.03494; docs/methods.md, "LAP agent").

    ``kind``: ``ddpg``, ``td3`` or ``sac``; ``hidden``: units of the two hidden layers; rates of Adam; ``tau``: of the
    target networks; ``discount``; ``batch``: transitions per update; ``replay``: transitions kept, in episodes;
    ``sigma``: of the truncated normal around the actor's action, times ``decay`` per episode after the warm-up;
    ``reward_rate``: of the running mean of batch rewards that is subtracted.
    """

    kind: str = "ddpg"
    hidden: tuple[int, int] = (300, 300)
    actor_rate: float = 1e-4
    critic_rate: float = 1e-3
    tau: float = 0.01
    discount: float = 1.0
    batch: int = 64
    replay: int = 100
    sigma: float = 0.5
    decay: float = 0.95
    reward_rate: float = 0.5
    spelled_as: ClassVar[str] = "Agent"

    def __post_init__(self) -> None:
        if self.kind not in AGENTS:
            raise PlanError(f"Agent {self.kind!r} is unknown. Known: {', '.join(AGENTS)}.")


@dataclass(frozen=True)
class LapSettings:
    """Settings of one search.

    ``episodes``: networks looked at; ``warmup``: how many of them before the agent is asked (None: a quarter, at most
    AMC's 100); ``again``: further episodes when a closed loop asks for another limit; ``most``: largest pruning ratio
    (a block that goes is beyond it); ``reward``: ``auto``, ``r1``, ``r2`` or ``r3``; ``budget``: False searches
    resource-free, by R1 or R2, and holds no limit; ``warm_start``: another strategy whose plan is the first episode;
    the others change some groups of the best network so far, ``""`` for none; ``warm_sigma``: by how much; ``keep``:
    candidates that the solution lists.
    """

    episodes: int = 300
    warmup: int | None = None
    again: int = 20
    most: float = 0.8
    reward: str = "auto"
    budget: bool = True
    warm_start: str = ""
    warm_sigma: float = 0.3
    keep: int = 10
    prior: Prior = field(default_factory=Prior)
    agent: Agent = field(default_factory=Agent)
    spelled_as: ClassVar[str] = "LapSettings"

    def __post_init__(self) -> None:
        if self.episodes < 1 or self.again < 1:
            raise PlanError(f"LAP needs at least one episode; given {self.episodes} and {self.again} for more limits.")
        if self.warmup is not None and self.warmup < 0:
            raise PlanError(f"A warm-up of {self.warmup} episodes is impossible. Give 0 or more.")
        if not 0 < self.most <= 1:
            raise PlanError(f"The largest pruning ratio is {self.most}; it must lie in (0, 1].")
        if self.reward != "auto" and self.reward not in REWARDS:
            raise PlanError(f"Reward {self.reward!r} is unknown. Known: auto, {', '.join(REWARDS)}.")

    @property
    def warm_episodes(self) -> int:
        """Episodes before the agent is asked."""
        return min(100, self.episodes // 4) if self.warmup is None else self.warmup

    @property
    def reward_name(self) -> str:
        """The reward in use."""
        if self.reward != "auto":
            return self.reward
        if self.budget:
            return "r3"
        return "r2" if self.prior.reward else "r1"
