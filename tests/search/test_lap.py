"""Rewards, sensitivity, action wall and environment of LAP."""

from __future__ import annotations

import itertools
import warnings
from dataclasses import replace

import numpy as np
import pytest

from secateurs.cost import CostModel
from secateurs.errors import InfeasibleBudgetError, PlanError
from secateurs.network import AxisSpec
from secateurs.search.lap.choices import Choices
from secateurs.search.lap.exploration import balanced, prior_ratios, refitted, truncated_normal, uniform_ratio
from secateurs.search.lap.rewards import REWARDS
from secateurs.search.lap.sensitivity import RATIOS, agreement, modelled, sensitivity, single_cuts, spread_sample
from secateurs.search.lap.wall import Wall
from secateurs.search.problem import Evaluation, Problem
from secateurs.testing.problems import enumerate_all, random_problem, resnet50_like, staircase_problem

ERRORS = np.linspace(0.05, 0.95, 10)
LATENCIES = (0.002, 0.02, 0.3, 0.5, 1.0, 1.5, 20.0, 800.0)


@pytest.mark.parametrize("name", ["r1", "r2", "r3"])
def test_reward_falls_with_the_error_also_below_one_millisecond(name: str) -> None:
    for latency in LATENCIES:
        saved = 1 - latency / 1000
        rewards = [REWARDS[name](float(error), latency, saved) for error in ERRORS]
        assert np.all(np.diff(rewards) < 0), (name, latency)


@pytest.mark.parametrize("name", ["r1", "r2"])
def test_resource_free_rewards_fall_with_the_latency(name: str) -> None:
    for error in ERRORS:
        rewards = [REWARDS[name](float(error), latency, 0.97 - latency / 1000) for latency in LATENCIES]
        assert np.all(np.diff(rewards) < 0), (name, error)


def test_the_logarithm_of_milliseconds_would_turn_the_sign() -> None:
    """The trap: at 0.5 ms it rewards errors, ours does not."""
    trap = [-error * np.log(0.5) for error in (0.1, 0.2)]
    assert trap[1] > trap[0]
    assert REWARDS["r1"](0.2, 0.5, 0.0) < REWARDS["r1"](0.1, 0.5, 0.0) < 0
    with pytest.raises(PlanError, match=r"0\.001 ms"):
        REWARDS["r1"](0.1, 0.0005, 0.0)


def test_sensitivity_is_the_share_that_one_cut_saves() -> None:
    problem = resnet50_like(wobble=0.0)
    spec, model = problem.spec, problem.constraints[0].model
    curves = modelled(spec, model)
    dense = float(model.evaluate(spec.dense_widths))
    group, place = 7, RATIOS.index(0.5)
    widths = spec.dense_widths.copy()
    widths[group] = round(0.5 * widths[group])
    expected = 1 - float(model.evaluate(widths)) / dense
    assert curves.saved[group, place] == pytest.approx(expected)
    assert curves.at(group, float(widths[group])) == pytest.approx(expected)
    assert curves.at(group, float(spec.dense_widths[group])) == 0.0
    slopes = [
        saved / (1 - width / spec.dense_widths[group])
        for saved, width in zip(curves.saved[group], curves.widths[group], strict=True)
    ]
    assert curves.per_unit[group] == pytest.approx(np.mean(slopes))
    assert curves.relative.max() == 1.0


def test_a_cut_that_costs_time_keeps_its_sign() -> None:
    spec = resnet50_like().spec

    def slower(widths: np.ndarray) -> np.ndarray:
        return 10.0 + (widths[:, 0] < spec.dense_widths[0]) - 0.001 * (spec.dense_widths[1] - widths[:, 1])

    curves = sensitivity(spec, slower, groups=[0, 1, 2])
    assert curves.relative[0] < 0 < curves.relative[1]
    assert curves.relative[2] == 0
    with pytest.raises(PlanError, match="dense latency above zero"):
        sensitivity(spec, lambda widths: np.zeros(len(widths)))


def test_rank_correlation_of_two_measurements() -> None:
    problem = resnet50_like()
    one = modelled(problem.spec, problem.constraints[0].model)
    chosen = spread_sample(one, 5)
    assert len(chosen) == 5
    assert int(np.argmax(one.per_unit)) in chosen
    assert int(np.argmin(one.per_unit)) in chosen
    assert agreement(one, one.select(chosen)) == pytest.approx(1.0)
    turned = sensitivity(problem.spec, lambda w: 20.0 - problem.constraints[0].model.evaluate(w) / 10, chosen)
    assert agreement(one, turned) == pytest.approx(-1.0)
    with pytest.raises(PlanError, match="at least three"):
        agreement(one, one.select(chosen[:2]))
    kept, networks = single_cuts(problem.spec, [3])
    assert np.all(networks[0, :, 3] == kept[0])
    assert np.all(np.delete(networks[0], 3, axis=1) == np.delete(problem.spec.dense_widths, 3))


def test_prior_centres_on_the_uniform_ratio() -> None:
    problem = resnet50_like(latency_ratio=0.6)
    curves = modelled(problem.spec, problem.constraints[0].model)
    mean = uniform_ratio(problem, 0.8)
    assert 0.1 < mean < 0.6
    prior = prior_ratios(curves, mean, 0.8)
    assert prior.min() >= 0
    assert prior.max() <= 0.8
    free = mean * curves.relative / curves.relative.mean()
    inside = (free > 0) & (free < 0.8)
    assert np.allclose(prior[inside], free[inside])
    assert prior[np.argmax(curves.relative)] == prior.max()


def test_truncated_normal_stays_inside_and_around_its_mean() -> None:
    rng = np.random.default_rng(0)
    drawn = np.array([truncated_normal(rng, 0.3, 0.1) for _ in range(2000)])
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    assert abs(drawn.mean() - 0.3) < 0.01
    edge = [truncated_normal(rng, 0.0, 0.5) for _ in range(2000)]
    assert 0.3 < np.mean(edge) < 0.42
    assert truncated_normal(rng, 0.7, 0.0) == 0.7
    assert truncated_normal(rng, 40.0, 0.5) == 1.0


def play(wall: Wall, ratios: np.ndarray) -> tuple[np.ndarray, frozenset[int]]:
    """The network that a policy of fixed ratios ends with."""
    wall.begin()
    problem = wall.problem
    network = wall.choices.dense
    for group in range(len(problem.options)):
        if problem.inner_blocks[group].isdisjoint(network.removed):
            network = wall.choices.placed(network, group, wall.decide(group, float(ratios[group])))
    return network.widths, network.removed


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("kind", ["rough", "staircase"])
def test_random_policies_end_within_the_budget(seed: int, kind: str) -> None:
    """On costs that are not monotone, with blocks and with sums of groups."""
    problem = random_problem(seed, groups=5, kind=kind, constraints=1 + seed % 2, tightness=0.4)
    try:
        wall = Wall(Choices(problem, 1.0))
    except InfeasibleBudgetError:
        assert not problem.fits(*enumerate_all(problem)).any() or problem.removable != frozenset(wall_blocks(problem))
        return
    rng = np.random.default_rng(seed)
    for _ in range(20):
        widths, removed = play(wall, rng.uniform(0, 1, len(problem.options)))
        assert bool(problem.fits(widths, removed))


def wall_blocks(problem: Problem) -> list[int]:
    return list(Choices(problem, 1.0).heads.values())


@pytest.mark.parametrize("seed", range(10))
def test_wall_is_exact(seed: int) -> None:
    """An option is refused only where no choice of the later groups could be within the budget."""
    problem = random_problem(seed, groups=4, kind="rough", blocks=False, tightness=0.3)
    wall = Wall(Choices(problem, 1.0))
    rng = np.random.default_rng(seed)
    everything = np.array(list(itertools.product(*problem.options)))
    fitting = everything[problem.fits(everything)]
    for _ in range(10):
        wall.begin()
        before: list[int] = []
        for group, widths in enumerate(problem.options):
            ratio = float(rng.uniform())
            agreeing = fitting[np.all(fitting[:, :group] == before, axis=1)] if group else fitting
            possible = np.isin(widths, agreeing[:, group])[::-1]
            wanted = wall.choices.nearest(group, ratio)
            more = np.flatnonzero(possible & (np.arange(len(widths)) >= wanted))
            expected = int(more[0]) if len(more) else int(np.flatnonzero(possible)[-1])
            assert wall.decide(group, ratio) == expected
            before.append(wall.choices.width(group, expected))


def test_wall_on_a_long_network_with_blocks() -> None:
    problem = resnet50_like(most=8, latency_ratio=0.45, removable=True)
    wall = Wall(Choices(problem, 0.8))
    rng = np.random.default_rng(1)
    removed_once = False
    for _ in range(8):
        widths, removed = play(wall, rng.uniform(0, 1, len(problem.options)) * rng.uniform())
        assert bool(problem.fits(widths, removed))
        kept = [g for g, blocks in enumerate(problem.inner_blocks) if blocks.isdisjoint(removed)]
        assert np.all(widths[kept] >= 0.2 * problem.spec.dense_widths[kept] - 1e-9)
        removed_once = removed_once or bool(removed)
    assert removed_once
    with pytest.raises(InfeasibleBudgetError):
        Wall(Choices(resnet50_like(most=8, latency_ratio=0.08), 0.8))


def test_choices_take_whole_blocks_at_ratio_one() -> None:
    problem = resnet50_like(most=8, removable=True)
    choices = Choices(problem, 0.8)
    head, block = next(iter(choices.heads.items()))
    last = len(choices.ratios[head]) - 1
    assert choices.ratios[head][last] == 1.0
    assert choices.width(head, last) == 0
    assert choices.nearest(head, 0.95) == last
    assert choices.nearest(head, 0.85) == last - 1
    network = choices.placed(choices.dense, head, last)
    assert network.removed == {block}
    ratios = choices.ratios_of(network.widths, network.removed)
    assert np.all(ratios[list(problem.spec.blocks[block].groups)] == 1.0)
    assert choices.placed(network, head, 0).removed == frozenset()
    plain = Choices(replace(problem, removable=frozenset()), 0.8)
    assert plain.ratios[head][-1] <= 0.8
    must = tuple(int(widths[0]) for widths in problem.options)
    assert Choices(problem, 0.3, must).options[head][0] == must[head]


def env_of(problem: Problem, **changes: bool):
    from secateurs.search.lap.environment import Game, PruningEnv

    choices = Choices(problem, 0.8)
    curves = modelled(problem.spec, problem.constraints[0].model)
    weights = np.linspace(1, 2, len(problem.options))

    def judge(widths: np.ndarray, removed: frozenset[int]) -> float:
        return float(weights @ (widths / problem.spec.dense_widths) / weights.sum())

    wall = Wall(choices) if changes.get("budget", True) else None
    return PruningEnv(Game(choices, wall, curves, REWARDS["r3"], judge, changes.get("sensitive", True)))


def test_environment_passes_gymnasiums_checks() -> None:
    pytest.importorskip("gymnasium")
    from gymnasium.utils.env_checker import check_env

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*(env specification|not explicitly|render).*")
        check_env(env_of(staircase_problem(3, groups=5)), skip_render_check=True)


def test_environment_stores_what_was_really_done() -> None:
    pytest.importorskip("gymnasium")
    problem = staircase_problem(4, groups=6)
    env = env_of(problem)
    seen, _ = env.reset(seed=0)
    assert seen.shape == (13,)
    taken, last, info = [], False, {}
    while not last:
        group = env.group
        seen, reward, last, cut, info = env.step(np.array([0.05], dtype=np.float32))
        assert not cut
        assert info["action"] in env.game.choices.ratios[group]
        assert reward == (-(1 - info["accuracy"]) if last else 0.0)
        taken.append(info["action"])
    assert taken[0] == pytest.approx(0.05, abs=0.1)
    assert max(taken) > 0.3, "the wall had to act later on"
    assert bool(problem.fits(info["widths"], info["removed"]))
    assert info["latency_ms"] <= problem.constraints[0].limit * (1 + 1e-9)
    assert np.allclose(1 - info["widths"] / problem.spec.dense_widths, taken)


def test_environment_without_budget_and_without_sensitivity() -> None:
    pytest.importorskip("gymnasium")
    from secateurs.search.lap.environment import FEATURES

    problem = staircase_problem(4, groups=6)
    free = env_of(problem, budget=False, sensitive=False)
    seen, _ = free.reset()
    assert seen[FEATURES.index("sensitivity")] == 0
    for _ in range(6):
        *_, info = free.step(np.array([0.0], dtype=np.float32))
    assert np.array_equal(info["widths"], [options[-1] for options in problem.options])
    seen, _ = env_of(problem).reset()
    assert seen[FEATURES.index("sensitivity")] != 0


def test_state_follows_the_decisions() -> None:
    pytest.importorskip("gymnasium")
    from secateurs.search.lap.environment import FEATURES

    problem = resnet50_like(most=8, removable=True, latency_ratio=0.7)
    env = env_of(problem)
    first, _ = env.reset()
    after, *_ = env.step(np.array([0.5], dtype=np.float32))
    column = {name: index for index, name in enumerate(FEATURES)}
    assert first[column["latency saved"]] == 0
    assert after[column["latency saved"]] > 0
    assert after[column["previous action"]] == pytest.approx(0.5)
    assert after[column["parameters later"]] <= first[column["parameters later"]]
    assert 0 < after[column["latency attainable"]] < 1


def test_groups_of_a_removed_block_are_not_asked_about() -> None:
    pytest.importorskip("gymnasium")
    problem = resnet50_like(most=8, removable=True, latency_ratio=0.7)
    env = env_of(problem)
    head, block = next(iter(env.game.choices.heads.items()))
    env.reset()
    while env.group != head:
        env.step(np.array([0.1], dtype=np.float32))
    env.step(np.array([1.0], dtype=np.float32))
    assert env.group == max(problem.spec.blocks[block].groups) + 1


def test_evaluation_keys_do_not_depend_on_the_largest_ratio() -> None:
    """What a search with other choices judged is found again."""
    calls: list[Evaluation] = []

    class Counting:
        identity = "counting"

        def __call__(self, widths: np.ndarray, removed: frozenset[int]) -> Evaluation:
            calls.append(Evaluation(0.5))
            return calls[-1]

    problem = replace(resnet50_like(most=8, removable=True), evaluator=Counting())
    keys = {problem.key(Choices(problem, most).dense.widths, frozenset([0])) for most in (0.5, 0.8, 1.0)}
    assert len(keys) == 1


def test_sums_of_groups_with_one_cost_model_of_constants() -> None:
    """A network whose latency does not depend on a group leaves that group free."""
    problem = staircase_problem(2, groups=3)
    model = problem.constraints[0].model
    flat = CostModel(model.unit, model.offset, model.terms[:1])
    free = replace(
        problem,
        constraints=(
            replace(problem.constraints[0], model=flat, limit=float(flat.evaluate(problem.narrowest)) * 1.01),
        ),
    )
    assert isinstance(model.terms[0].outputs, AxisSpec)
    wall = Wall(Choices(free, 1.0))
    widths, _ = play(wall, np.zeros(3))
    assert np.array_equal(widths[1:], free.widest[1:])


def test_balanced_ratios_just_fit_and_keep_their_order() -> None:
    problem = resnet50_like(most=8, latency_ratio=0.5, removable=True)
    choices = Choices(problem, 0.8)
    rng = np.random.default_rng(0)
    for scale in (0.2, 0.9):
        ratios = rng.uniform(0, scale, len(problem.options))
        moved = balanced(choices, ratios)
        network = choices.network(moved)
        assert bool(problem.fits(network.widths, network.removed))
        cost = float(problem.costs(network.widths, network.removed)[0])
        assert cost > 0.9 * problem.constraints[0].limit, "not more is pruned than needed"
        gone = {block for head, block in choices.heads.items() if ratios[head] > 0.95}
        assert gone <= network.removed
        kept = moved < 1
        assert np.all(np.diff(moved[kept][np.argsort(ratios[kept])]) >= -1e-12)


def test_refitted_ratios_fit_and_touch_little() -> None:
    problem = resnet50_like(most=8, latency_ratio=0.5, removable=True)
    choices = Choices(problem, 0.8)
    base = balanced(choices, np.full(len(problem.options), 0.2))
    for group, ratio in ((5, 0.0), (5, 0.75), (next(iter(choices.heads)), 1.0)):
        changed = base.copy()
        changed[group] = ratio
        found = refitted(choices, changed, base, np.random.default_rng(1))
        network = choices.network(found)
        assert found[group] == ratio
        assert bool(problem.fits(network.widths, network.removed))
        assert float(problem.costs(network.widths, network.removed)[0]) > 0.93 * problem.constraints[0].limit
    again = refitted(choices, changed, base, np.random.default_rng(1))
    assert np.array_equal(again, found)


def test_a_block_that_goes_counts_with_all_its_groups_in_the_sensitivity_reward() -> None:
    pytest.importorskip("gymnasium")
    problem = resnet50_like(most=8, removable=True)
    env = env_of(problem, budget=False)
    totals: list[float] = []
    game = replace(env.game, reward=lambda error, latency, saved: totals.append(saved) or -error)
    env = type(env)(game)
    head, block = next(iter(game.choices.heads.items()))
    env.reset()
    last = False
    while not last:
        *_, last, _, _ = env.step(np.array([1.0 if env.group == head else 0.0], dtype=np.float32))
    inside = problem.spec.blocks[block].groups
    assert len(inside) == 2
    assert totals == [pytest.approx(sum(game.curves.at(group, 0) for group in inside))]
