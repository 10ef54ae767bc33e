"""The learner and the search around it: seeds, resume, replay, warm start, limits in turn."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("stable_baselines3")

from secateurs.cost import CostFunction
from secateurs.errors import PlanError
from secateurs.registry import load
from secateurs.search.knapsack import Knapsack
from secateurs.search.lap.agent import Learner, Transition
from secateurs.search.lap.choices import Choices
from secateurs.search.lap.environment import FEATURES, Game, PruningEnv
from secateurs.search.lap.exploration import block_sensitivity
from secateurs.search.lap.learning import AGENT_FILE, HISTORY_FILE
from secateurs.search.lap.rewards import within_budget
from secateurs.search.lap.sensitivity import modelled
from secateurs.search.lap.settings import Agent, LapSettings, Prior
from secateurs.search.lap.strategy import Lap
from secateurs.search.problem import Constraint, Evaluation, Problem
from secateurs.search.rows import FileRows
from secateurs.testing.problems import resnet50_like, staircase_problem

SHORT = LapSettings(episodes=14, warmup=6, again=3, agent=Agent(hidden=(16, 16), batch=16))


@dataclass
class Formula:
    """Accuracy rises with the kept share of each group, by a weight of its own; counts its calls."""

    problem: Problem
    stop_after: int | None = None
    calls: int = 0
    identity: str = "formula"
    weights: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        drawn = np.random.default_rng(5).uniform(0.05, 1.0, len(self.problem.spec.groups))
        self.weights = drawn / drawn.sum()

    def __call__(self, widths: np.ndarray, removed: frozenset[int]) -> Evaluation:
        if self.stop_after is not None and self.calls >= self.stop_after:
            raise KeyboardInterrupt
        self.calls += 1
        share = widths / self.problem.spec.dense_widths
        for block in removed:
            share[list(self.problem.spec.blocks[block].groups)] = 0.01
        return Evaluation(float(self.weights @ np.sqrt(share)), 0.01)


def judged(problem: Problem, stop_after: int | None = None) -> Problem:
    return replace(problem, evaluator=Formula(problem, stop_after))


def chain(ratio: float = 1.0) -> Problem:
    problem = staircase_problem(4, groups=6)
    limit = problem.constraints[0].limit * ratio
    return judged(replace(problem, constraints=(replace(problem.constraints[0], limit=limit),)))


def test_registered() -> None:
    assert isinstance(load("strategies", "lap")(), Lap)


@pytest.mark.parametrize("kind", ["ddpg", "td3", "sac"])
def test_every_agent_finds_a_network_within_the_budget_and_repeats_itself(kind: str) -> None:
    settings = replace(SHORT, agent=replace(SHORT.agent, kind=kind))
    problem = chain()
    one, other = (Lap(settings).solve(problem, seed=3) for _ in range(2))
    assert bool(problem.fits(one.widths, one.removed))
    assert one.details["episodes"] == other.details["episodes"]
    assert np.array_equal(one.widths, other.widths)
    assert one.details["summary"]["accuracy"] == max(row["accuracy"] for row in one.details["episodes"])
    assert one.details["summary"]["accuracy"] == pytest.approx(problem.evaluate(one.widths, one.removed).accuracy)
    assert [row["phase"] for row in one.details["episodes"]] == ["warm-up"] * 6 + ["agent"] * 8
    different = Lap(settings).solve(problem, seed=4)
    assert different.details["episodes"] != one.details["episodes"]


def test_global_randomness_is_left_alone_and_does_not_matter() -> None:
    import torch

    problem = chain()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = Lap(SHORT).solve(problem)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(99)
    np.random.seed(99)
    assert Lap(SHORT).solve(problem).details["episodes"] == one.details["episodes"]


def test_an_interrupted_search_ends_where_an_uninterrupted_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secateurs.search.lap.learning.SAVE_SECONDS", -1.0)
    whole = Lap(SHORT, tmp_path / "whole").solve(chain())
    rows = FileRows(tmp_path / "rows.sqlite3")
    cut = replace(judged(chain(), stop_after=9), rows=rows)
    with pytest.raises(KeyboardInterrupt):
        Lap(SHORT, tmp_path / "cut").solve(cut)
    assert len(list((tmp_path / "cut").glob("agent-*.pt"))) == 1
    again = replace(judged(chain()), rows=rows)
    resumed = Lap(SHORT, tmp_path / "cut").solve(again)
    assert resumed.details["episodes"] == whole.details["episodes"]
    assert np.array_equal(resumed.widths, whole.widths)
    assert again.evaluator.calls == whole.details["summary"]["evaluations"] - 9
    finished = judged(chain(), stop_after=0)
    assert Lap(SHORT, tmp_path / "cut").solve(finished).details["episodes"] == whole.details["episodes"]


def test_checkpoints_of_another_search_are_not_taken_up_and_damaged_ones_are_told(tmp_path: Path) -> None:
    Lap(SHORT, tmp_path).solve(chain(), seed=0)
    other = Lap(SHORT, tmp_path).solve(chain(), seed=1)
    assert other.details["episodes"] == Lap(SHORT).solve(chain(), seed=1).details["episodes"]
    agent = next(tmp_path.glob(AGENT_FILE.replace(".", "-*.")))
    for place, content in ((agent, agent.read_bytes()[:100]), (tmp_path / HISTORY_FILE, b"{")):
        place.write_bytes(content)
        said = Counting()
        again = Lap(SHORT, tmp_path).solve(chain(), seed=1, progress=said)
        assert any("checkpoint" in note and "searched anew" in note for note in said.notes)
        assert again.details["episodes"] == other.details["episodes"]


def test_further_limits_go_on_with_what_was_learnt(tmp_path: Path) -> None:
    strategy = Lap(SHORT, tmp_path)
    loose, tight = chain(1.0), chain(0.9)
    first = strategy.solve(loose)
    second = strategy.solve(tight)
    assert bool(tight.fits(second.widths, second.removed))
    assert len(second.details["episodes"]) == 14 + 3
    assert second.details["episodes"][14]["phase"] == "start"
    known = [row for row in first.details["episodes"] if row["latency_ms"] <= tight.constraints[0].limit]
    assert second.details["summary"]["accuracy"] >= max(row["accuracy"] for row in known)
    resumed = Lap(SHORT, tmp_path)
    assert resumed.solve(loose).details["episodes"] == first.details["episodes"]
    assert np.array_equal(resumed.solve(tight).widths, second.widths)


@pytest.mark.parametrize("removable", [False, True])
def test_a_warm_start_is_never_worse_than_the_plan_it_starts_from(removable: bool) -> None:
    problem = judged(resnet50_like(most=8, latency_ratio=0.4, removable=removable))
    exact = Knapsack().solve(problem)
    settings = replace(SHORT, episodes=4, warmup=3, warm_start="knapsack", most=0.5)
    found = Lap(settings).solve(problem)
    start = found.details["episodes"][0]
    assert start["phase"] == "start"
    assert start["accuracy"] == pytest.approx(problem.evaluate(exact.widths, exact.removed).accuracy)
    assert found.details["summary"]["accuracy"] >= start["accuracy"]


def test_warm_started_actors_act_like_the_plan() -> None:
    problem = chain()
    learner, env = learner_on(problem)
    seen, _ = env.reset()
    steps, last = [], False
    while not last:
        after, _, last, _, info = env.step(np.array([0.9 if env.group % 2 else 0.1], dtype=np.float32))
        steps.append(Transition(seen, info["action"], after, last))
        seen = after
    learner.imitate(steps)
    assert max(abs(learner.ratio(step.seen) - step.ratio) for step in steps) < 0.25


def learner_on(problem: Problem) -> tuple[Learner, PruningEnv]:
    curves = modelled(problem.spec, problem.constraints[0].model)
    game = Game(Choices(problem), None, curves, within_budget, lambda widths, removed: 0.5)
    env = PruningEnv(game)
    return Learner(env, SHORT.agent, len(problem.options), seed=0), env


def test_every_transition_carries_the_final_reward_and_the_snapped_action() -> None:
    learner, _ = learner_on(chain())
    seen = np.linspace(0, 1, 13, dtype=np.float32)
    episode = [Transition(seen, ratio, seen, index == 2) for index, ratio in enumerate((0.0, 0.25, 1.0))]
    learner.remember(episode, -0.3)
    assert np.allclose(learner.replay.rewards[:3, 0], -0.3)
    assert np.allclose(learner.replay.actions[:3, 0, 0], [-1.0, -0.5, 1.0])
    assert learner.replay.dones[:3, 0].tolist() == [0, 0, 1]
    drawn = learner.replay.sample(8)
    assert np.allclose(drawn.rewards.numpy(), 0.0, atol=1e-6), "the running mean of equal rewards takes all of them off"
    learner.remember([Transition(seen, 0.5, seen, True)] * 3, 0.3)
    learner.replay.sample(4000)
    assert learner.replay.mean == pytest.approx(-0.3 + 0.5 * 0.3, abs=0.02)


def test_learning_moves_the_actor_towards_what_pays() -> None:
    """A game of one kind of state where pruning 70 % pays best."""
    learner, _ = learner_on(chain())
    rng = np.random.default_rng(0)
    seen = np.full(len(FEATURES), 0.5, dtype=np.float32)
    for _ in range(60):
        ratio = float(rng.uniform())
        learner.remember([Transition(seen, ratio, seen, True)], -((ratio - 0.7) ** 2))
    for group in learner.algorithm.actor.optimizer.param_groups:
        group["lr"] = 1e-3
    before = abs(learner.ratio(seen) - 0.7)
    learner.learn(500, 0)
    assert abs(learner.ratio(seen) - 0.7) < min(0.12, before)


def test_switches_of_the_prior() -> None:
    problem = chain()
    uniform = Lap(replace(SHORT, prior=Prior(exploration=False))).solve(problem)
    assert uniform.details["prior"] is None
    centred = Lap(SHORT).solve(problem)
    assert len(centred.details["prior"]) == 6
    blind = Lap(replace(SHORT, prior=Prior(state=False))).solve(problem)
    warm = [row["accuracy"] for row in centred.details["episodes"][:6]]
    assert [row["accuracy"] for row in blind.details["episodes"][:6]] == warm, "the warm-up does not look at the state"
    free = replace(SHORT, budget=False)
    assert free.reward_name == "r2"
    assert replace(free, prior=Prior(reward=False)).reward_name == "r1"
    assert replace(SHORT, prior=Prior(reward=False)).reward_name == "r3"


@pytest.mark.parametrize("reward", ["r1", "r2"])
def test_without_a_budget_the_reward_trades(reward: str) -> None:
    problem = chain()
    found = Lap(replace(SHORT, budget=False, reward=reward)).solve(problem)
    episodes = found.details["episodes"]
    assert found.details["summary"]["reward"] == reward
    best = max(episodes, key=lambda row: row["reward"])
    assert found.details["summary"]["accuracy"] == best["accuracy"]
    assert max(row["latency_ms"] for row in episodes) > problem.constraints[0].limit


def test_what_cannot_be_searched_is_said() -> None:
    bare = staircase_problem(4, groups=6)
    with pytest.raises(PlanError, match="--data"):
        Lap(SHORT).solve(bare)
    with pytest.raises(PlanError, match="--latency"):
        Lap(SHORT).solve(replace(chain(), constraints=()))
    for wrong in ({"episodes": 0}, {"most": 0.0}, {"reward": "r9"}, {"warmup": -1}):
        with pytest.raises(PlanError):
            LapSettings(**wrong)
    with pytest.raises(PlanError, match="ddpg, td3, sac"):
        Agent(kind="ppo")


def test_tight_budgets_open_all_widths() -> None:
    """Where the largest ratio forbids the budget, it gives way and says so."""
    said: list[str] = []

    class Listening:
        def task(self, name: str, total: int | None = None):
            from secateurs.progress import silent

            return silent.task(name, total)

        def say(self, message: str) -> None:
            said.append(message)

    problem = chain(0.8)
    settings = replace(SHORT, episodes=2, warmup=1, most=0.05)
    found = Lap(settings).solve(problem, progress=Listening())
    assert bool(problem.fits(found.widths))
    assert any("all widths are open" in line for line in said)


def test_more_episodes_find_better_networks_than_the_first_ones() -> None:
    problem = judged(staircase_problem(7, groups=8))
    found = Lap(LapSettings(episodes=60, warmup=20, agent=Agent(hidden=(64, 64)))).solve(problem, seed=1)
    rows = [row["accuracy"] for row in found.details["episodes"]]
    assert np.mean(rows[-15:]) > np.mean(rows[:20])
    assert [row["evaluations"] for row in found.details["episodes"]] == sorted(
        row["evaluations"] for row in found.details["episodes"]
    )


def test_the_prior_takes_blocks_away_in_proportion_to_their_latency() -> None:
    problem = judged(resnet50_like(most=8, latency_ratio=0.6, removable=True))
    choices = Choices(problem, 0.8)
    weights = block_sensitivity(choices)
    assert np.all(weights[[g for g in range(len(weights)) if g not in choices.heads]] == 0.0)
    heads = sorted(choices.heads)
    assert weights[heads].mean() == pytest.approx(1.0)
    dense = problem.spec.dense_widths
    saved = [float(problem.costs(dense)[0] - problem.costs(dense, {choices.heads[head]})[0]) for head in heads]
    assert weights[heads] == pytest.approx(np.array(saved) / np.mean(saved))

    settings = replace(SHORT, episodes=16, warmup=16)
    counts = []
    for prior in (Prior(), Prior(exploration=False)):
        lap = Lap(replace(settings, prior=prior))
        lap.solve(problem)
        (session,) = lap.sessions.values()
        counts.append(np.array([len(episode.removed) for episode in session.episodes]))
    assert counts[0].mean() > 1.5 * counts[1].mean()
    assert counts[0].std() > 1.5


def test_a_network_without_removable_blocks_has_no_block_sensitivity() -> None:
    problem = chain()
    assert not block_sensitivity(Choices(problem, 0.8)).any()


def test_a_first_plan_comes_from_strategies_that_plan_by_scores() -> None:
    for name in ("lap", "hamp", "front"):
        with pytest.raises(PlanError, match="first plan"):
            Lap.tuned({"warm_start": name}, None)
        with pytest.raises(PlanError, match="first plan"):
            Lap(replace(SHORT, warm_start=name)).solve(chain())
    with pytest.raises(PlanError, match="Unknown strategy"):
        Lap.tuned({"warm_start": "nothing"}, None)
    assert Lap.tuned({"warm_start": "splamp"}, None).criterion == "splamp", "its values are those of one criterion"
    assert Lap.tuned({"warm_start": "knapsack"}, None).criterion is None


def test_other_legal_networks_are_another_search(tmp_path: Path) -> None:
    problem = judged(resnet50_like(most=8, latency_ratio=0.6, removable=True))
    settings = replace(SHORT, episodes=6, warmup=6)
    assert Lap(settings, tmp_path).solve(problem).removed, "blocks go"
    without = replace(problem, removable=frozenset())
    assert Lap(settings, tmp_path).solve(without).removed == frozenset()


def test_checkpoints_in_an_earlier_form_are_not_taken_up(tmp_path: Path) -> None:
    (tmp_path / HISTORY_FILE).write_text('{"identity": "of then", "number": 1, "episodes": [{"limit": 3.0}]}')
    settings = replace(SHORT, episodes=2)
    assert len(Lap(settings, tmp_path).solve(chain()).details["episodes"]) == 2


def with_second_cost(problem: Problem, share: float) -> Problem:
    """A further limit on the cost of the first group's layers, between the least and the dense one."""
    latency = problem.constraints[0]
    model = replace(latency.model, terms=latency.model.terms[:1])
    low, high = (float(model.evaluate(widths)) for widths in (problem.narrowest, problem.widest))
    second = Constraint("second", model, low + share * (high - low))
    return replace(problem, constraints=(latency, second))


def test_a_further_limit_of_a_second_cost_is_searched_too() -> None:
    strategy = Lap(SHORT)
    loose, tight = with_second_cost(chain(), 1.0), with_second_cost(chain(), 0.0)
    first = strategy.solve(loose)
    assert first.widths[0] > tight.narrowest[0], "the second limit did not bind before"
    second = strategy.solve(tight)
    assert bool(tight.fits(second.widths, second.removed))
    assert len(second.details["episodes"]) == 14 + 3


class Counting:
    """A progress that remembers totals, steps and notes."""

    def __init__(self) -> None:
        self.totals: list[int | None] = []
        self.steps: list[int] = []
        self.notes: list[str] = []

    def task(self, name: str, total: int | None = None) -> Counting:
        self.totals.append(total)
        self.steps.append(0)
        return self

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.steps[-1] += steps
        self.notes.append(note)

    def say(self, message: str) -> None:
        self.notes.append(message)

    def __enter__(self) -> Counting:
        return self

    def __exit__(self, *details: object) -> None:
        pass


def test_progress_counts_the_episodes_of_the_limit_at_hand_in_its_unit() -> None:
    strategy, seen = Lap(SHORT), Counting()
    for ratio in (1.0, 0.9):
        problem = chain(ratio)
        (latency,) = problem.constraints
        bytes_of = replace(latency, model=replace(latency.model, unit="bytes"))
        strategy.solve(replace(problem, constraints=(bytes_of,)), progress=seen)
    assert seen.totals == seen.steps == [14, 3]
    assert all(" bytes of " in note and " ms" not in note for note in seen.notes if note)


@dataclass(frozen=True)
class Turned:
    """A cost that is saved where a layer stays."""

    cost: CostFunction

    def __call__(self, inputs: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        return -self.cost(inputs, outputs)


def test_blocks_that_make_the_network_faster_have_no_sensitivity() -> None:
    problem = judged(resnet50_like(most=8, latency_ratio=0.6, removable=True))
    (latency,) = problem.constraints
    terms = tuple(replace(t, cost=Turned(t.cost)) if set(t.blocks) - {11} else t for t in latency.model.terms)
    model = replace(latency.model, terms=terms, offset=1e3)
    choices = Choices(replace(problem, constraints=(replace(latency, model=model, limit=1e6),)), 0.8)
    weights = block_sensitivity(choices)
    heads = {block: head for head, block in choices.heads.items()}
    assert all(weights[heads[block]] == 0.0 for block in range(11))
    assert weights[heads[11]] == pytest.approx(12.0), "the only one, over the mean of all twelve"


@dataclass
class Depth:
    """Accuracy falls with the worst cuts, to chance where much is cut: most random networks are worth nothing."""

    problem: Problem
    identity: str = "depth"

    def __call__(self, widths: np.ndarray, removed: frozenset[int]) -> Evaluation:
        weights = np.random.default_rng(7).lognormal(0, 1, len(widths))
        loss = weights @ (self.problem.spec.dense_widths / widths - 1) / weights.sum()
        return Evaluation(0.1 + 0.85 * float(np.exp(-1.5 * loss**1.3)), 0.01)


def test_after_a_guided_warm_up_the_best_network_is_varied(monkeypatch: pytest.MonkeyPatch) -> None:
    taught: list[list[float]] = []
    imitate = Learner.imitate

    def noted(learner: Learner, steps: list[Transition]) -> None:
        taught.append([step.ratio for step in steps])
        imitate(learner, steps)

    monkeypatch.setattr(Learner, "imitate", noted)
    settings = replace(SHORT, episodes=32, warmup=10)
    means: dict[bool, list[float]] = {True: [], False: []}
    for seed, local in [(seed, local) for seed in (2, 3) for local in (True, False)]:
        problem = staircase_problem(seed, groups=8)
        lap, begin = Lap(settings), Lap._start
        with monkeypatch.context() as patch:
            if not local:
                patch.setattr(Lap, "_start", lambda *given, begin=begin: replace(begin(*given), local=None))
            lap.solve(replace(problem, evaluator=Depth(problem)), seed=seed)
        (session,) = lap.sessions.values()
        means[local].append(float(np.mean([episode.accuracy for episode in session.episodes[10:]])))
        if local:
            best = max(session.episodes[:10], key=lambda episode: episode.reward)
            assert taught.pop() == pytest.approx(best.ratios)
            assert len({episode.network for episode in session.episodes}) >= 31, "hardly any was drawn twice"
        assert not taught
    assert all(with_it > without + 0.03 for with_it, without in zip(means[True], means[False], strict=True)), means


def test_without_the_priors_exploration_the_agent_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a search without prior is AMC's: no imitation, no second draw, noise around the actor alone."""
    monkeypatch.setattr(Learner, "imitate", lambda *given: pytest.fail("nothing is imitated"))
    monkeypatch.setattr("secateurs.search.lap.learning.rehearse", lambda *given: pytest.fail("nothing is balanced"))
    settings = replace(SHORT, prior=Prior(state=False, exploration=False, reward=False))
    found = Lap(settings).solve(chain())
    assert [row["phase"] for row in found.details["episodes"]] == ["warm-up"] * 6 + ["agent"] * 8
