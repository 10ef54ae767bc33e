"""Strategy ``lap``: an agent sets the pruning ratio of one group after the other and learns from judged networks.

Card. Formula: see :mod:`secateurs.search.lap` and its modules (sensitivity, environment, wall, rewards, agent). Source:
LAP, Chen et al. 2022 for the idea, AMC's code for the agent's settings, the rest is our reading (docs/methods.md, "LAP
procedure" and what precedes it). Cost: one judged network per episode, hundreds of them. When to use: where the value
of a network is not a sum over its groups, and time for hundreds of evaluations is there. When not: ``knapsack`` finds
the best sum in seconds.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from secateurs.errors import InfeasibleBudgetError, PlanError, why
from secateurs.progress import Progress, silent
from secateurs.provenance import digest, spelled
from secateurs.search.lap.choices import Choices
from secateurs.search.lap.environment import Game, PruningEnv
from secateurs.search.lap.exploration import (
    FREE_RATIO,
    balanced,
    block_sensitivity,
    prior_ratios,
    refitted,
    uniform_ratio,
)
from secateurs.search.lap.learning import Balance, Episode, FirstEpisodes, Learning, StepLimits
from secateurs.search.lap.playing import GameTable
from secateurs.search.lap.rewards import REWARDS
from secateurs.search.lap.sensitivity import Sensitivity, modelled
from secateurs.search.lap.settings import Agent, LapSettings
from secateurs.search.lap.wall import Wall
from secateurs.search.legal import find_strategy, strategy_kind
from secateurs.search.problem import Candidate, Problem, Solution, Strategy

if TYPE_CHECKING:
    from secateurs.search.lap.agent import Learner

COURSE = 2
"""Changes with the course of searches, so that a checkpoint of an earlier one is not taken up."""


@dataclass(frozen=True)
class Lap(Strategy):
    """``settings``: of the search; ``folder``: where its checkpoint goes (None: nowhere).

    One object may be asked for several limits in turn, as a closed loop does: the agent and all judged networks are
    kept, and a further limit costs ``settings.again`` episodes.
    """

    settings: LapSettings = field(default_factory=LapSettings)
    folder: Path | None = None
    name: str = "lap"
    criterion: str | None = None
    evaluates: bool = True
    replans: bool = False
    finalists: bool = True
    sessions: dict[str, Learning] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def tuned(cls, options: Mapping[str, Any], folder: Path | None) -> Lap:
        """A search by the command line's options ``episodes``, ``warm_start`` and ``agent``.

        Raises:
            PlanError: an option's value is unknown or out of range.
        """
        settings = LapSettings(
            **{name: options[name] for name in ("episodes", "warm_start") if name in options},
            agent=Agent(kind=options.get("agent", Agent().kind)),
        )
        first = _warm(settings)
        return cls(settings, folder, criterion=None if first is None else first.criterion)

    def solve(self, problem: Problem, *, seed: int = 0, progress: Progress = silent) -> Solution:
        """The most accurate network found within the limits (resource-free: the one of highest reward).

        Raises:
            InfeasibleBudgetError: nothing legal meets the limits.
            PlanError: the problem has no latency model or no evaluator, or the extra ``lap`` is not installed.
        """
        began, settings = time.perf_counter(), self.settings
        if not problem.constraints:
            raise PlanError("Strategy lap needs a latency model. Give --latency.")
        if problem.evaluator is None:
            raise PlanError("Strategy lap judges candidates on data, but no data was given. Give --data.")
        if settings.reward_name == "r1" and problem.constraints[0].model.unit != "ms":
            raise PlanError("Reward r1 is a logarithm of latency, but latency is not limited. Give --latency.")
        if not settings.budget:
            problem = replace(problem, constraints=(replace(problem.constraints[0], limit=_no_limit(problem)),))
        warm = self._warm_start(problem, seed, progress)
        choices, wall = self._choices(problem, warm, progress)
        curves = modelled(problem.spec, problem.constraints[0].model)
        reward = REWARDS[settings.reward_name]
        game = Game(choices, wall, curves, reward, _judge(problem), settings.prior.state)
        blind = replace(game, judge=lambda widths, removed: 0.0)
        table = GameTable(PruningEnv(game), PruningEnv(replace(blind, wall=None)), PruningEnv(blind))
        session = self._session(problem, table.env, seed, progress)
        limits = tuple(problem.limits.tolist()) if settings.budget else None
        start = self._start(problem, choices, curves, warm, session, limits)
        with progress.task("lap", session.wanted(limits)) as task:
            episodes = session.run(table, limits, start, task)
        return self._solution(problem, curves, start, episodes, limits, time.perf_counter() - began)

    def _warm_start(self, problem: Problem, seed: int, progress: Progress) -> Solution | None:
        first = _warm(self.settings)
        return None if first is None else first.solve(problem, seed=seed, progress=progress)

    def _choices(self, problem: Problem, warm: Solution | None, progress: Progress) -> tuple[Choices, Wall | None]:
        """The decisions and their wall; where the budget needs more pruning than ``most``, all legal widths."""
        also = () if warm is None else tuple(warm.widths.tolist())
        choices = Choices(problem, self.settings.most, also)
        if not self.settings.budget:
            return choices, None
        try:
            return choices, Wall(choices)
        except InfeasibleBudgetError:
            if self.settings.most >= 1:
                raise
            free = Choices(problem, 1.0, also)
            wall = Wall(free)
            progress.say(f"The budget needs groups pruned by more than {self.settings.most:.0%}: all widths are open.")
            return free, wall

    def _session(self, problem: Problem, env: PruningEnv, seed: int, progress: Progress) -> Learning:
        """The search so far: from earlier limits, from the folder, or a new one, also where the folder's is damaged:
        it goes the same way again, by the evaluations that are stored."""
        assert problem.evaluator is not None
        ends = np.stack([problem.spec.dense_widths, problem.narrowest])
        costs = [constraint.model.evaluate(ends).tolist() for constraint in problem.constraints]
        legal = ([widths.tolist() for widths in problem.options], sorted(problem.removable))
        facts = (COURSE, self.settings, seed, problem.spec.fingerprint, problem.evaluator.identity, costs, legal)
        identity = digest(spelled(facts), 16)
        if identity not in self.sessions:

            def fresh(folder: Path | None) -> Learning:
                learner = _learner(env, self.settings, len(problem.spec.groups), seed)
                return Learning(learner, self.settings, seed, identity, folder)

            session = fresh(self.folder)
            try:
                session.resume()
            except PlanError as error:
                progress.say(f"{error} It is searched anew; what was evaluated is not evaluated again.")
                session = fresh(self.folder)
            self.sessions[identity] = session
        return self.sessions[identity]

    def _start(
        self,
        problem: Problem,
        choices: Choices,
        curves: Sensitivity,
        warm: Solution | None,
        session: Learning,
        limits: StepLimits | None,
    ) -> FirstEpisodes:
        settings = self.settings
        balance = _balance(choices) if settings.budget else None
        if warm is not None:
            ratios = choices.ratios_of(warm.widths, warm.removed)
            return FirstEpisodes(ratios, settings.warm_sigma, ratios, local=0, balance=balance)
        forced = None
        if session.episodes and not session.is_first(limits):
            forced = np.array(max(session.episodes, key=lambda episode: episode.reward).ratios)
        if not settings.prior.exploration:
            return FirstEpisodes(None, settings.agent.sigma, forced)
        mean = uniform_ratio(problem, choices.most) if settings.budget else min(FREE_RATIO, choices.most)
        centre, blocks = prior_ratios(curves, mean, choices.most), block_sensitivity(choices)
        local = 0 if forced is not None else settings.warm_episodes
        return FirstEpisodes(centre, settings.agent.sigma, forced, local, balance, blocks)

    def _solution(
        self,
        problem: Problem,
        curves: Sensitivity,
        start: FirstEpisodes,
        episodes: Sequence[Episode],
        limits: StepLimits | None,
        seconds: float,
    ) -> Solution:
        unique = list({episode.network: episode for episode in episodes}.values())
        inside = [episode for episode in unique if episode.within(limits)]
        ranked = sorted(inside, key=lambda e: (-e.reward, -e.accuracy, e.latency_ms))
        best = [_candidate(problem, episode) for episode in ranked[: self.settings.keep]]
        evaluator = problem.evaluator
        assert evaluator is not None
        details = {
            "summary": {
                "evaluations": episodes[-1].evaluations,
                "evaluations_per_second": float(getattr(evaluator, "evaluations_per_second", 0.0)),
                "accuracy": ranked[0].accuracy,
                "agent": self.settings.agent.kind,
                "reward": self.settings.reward_name,
                "warm_start": self.settings.warm_start,
            },
            "episodes": [_row(episode) for episode in episodes],
            "groups": [group.name for group in problem.spec.groups],
            "sensitivity": {"widths": curves.widths.tolist(), "saved": curves.saved.tolist()},
            "relative_sensitivity": curves.relative.tolist(),
            "prior": None if start.centre is None else [float(ratio) for ratio in start.centre],
            "policy": list(ranked[0].ratios),
            "unit": problem.constraints[0].model.unit,
            "limit_ms": None if limits is None else limits[0],
        }
        first = best[0]
        return Solution(first.widths, first.removed, first.value, first.predicted, None, seconds, tuple(best), details)


def _warm(settings: LapSettings) -> Strategy | None:
    """The strategy whose plan comes first.

    Raises:
        PlanError: it is unknown, or does not plan by scores.
    """
    if not settings.warm_start:
        return None
    kind = strategy_kind(settings.warm_start)
    if kind.evaluates or not kind.searches:
        raise PlanError(
            f"Strategy {settings.warm_start!r} cannot give lap its first plan: it judges networks itself, or reads a "
            "stored front. Give one that plans by scores, such as --warm-start knapsack."
        )
    return find_strategy(settings.warm_start)


def _no_limit(problem: Problem) -> float:
    """A limit that no legal network reaches."""
    return 1e6 * float(problem.constraints[0].model.evaluate(problem.spec.dense_widths))


def _judge(problem: Problem) -> Any:
    return lambda widths, removed: problem.evaluate(widths, removed).accuracy


def _balance(choices: Choices) -> Balance:
    def balance(ratios: np.ndarray, base: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
        return balanced(choices, ratios) if base is None else refitted(choices, ratios, base, rng)

    return balance


def _learner(env: PruningEnv, settings: LapSettings, groups: int, seed: int) -> Learner:
    try:
        from secateurs.search.lap.agent import Learner
    except ImportError as error:
        raise PlanError(
            f"Strategy lap needs {error.name}, which cannot be imported ({why(error)}). Install it: "
            "pip install 'secateurs[lap]'."
        ) from error
    return Learner(env, settings.agent, groups, seed)


def _candidate(problem: Problem, episode: Episode) -> Candidate:
    return problem.candidate(np.array(episode.widths), frozenset(episode.removed), episode.accuracy)


def _row(episode: Episode) -> dict[str, Any]:
    """What the learning curve is drawn from."""
    return {
        "phase": episode.phase,
        "reward": episode.reward,
        "accuracy": episode.accuracy,
        "latency_ms": episode.latency_ms,
        "evaluations": episode.evaluations,
    }
