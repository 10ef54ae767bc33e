"""Pruning as a game for one player: a gymnasium environment with one step per group."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from secateurs.network import AxisSpec, LayerSpec, NetworkSpec
from secateurs.search.lap.choices import Choices, Network
from secateurs.search.lap.rewards import Reward
from secateurs.search.lap.sensitivity import Sensitivity
from secateurs.search.lap.wall import Wall

AccuracyOf = Callable[[np.ndarray, frozenset[int]], float]
"""(widths, removed blocks) to accuracy, a fraction."""

FEATURES = (
    "index",
    "kind",
    "inputs",
    "outputs",
    "stride",
    "kernel",
    "positions",
    "parameters",
    "parameters later",
    "sensitivity",
    "latency saved",
    "latency attainable",
    "previous action",
)
_KINDS = {"depthwise": 0.5, "linear": 1.0}


@dataclass(frozen=True)
class Game:
    """What an environment plays on.

    ``wall``: None without a budget; ``curves``: latency sensitivity of all groups; ``sensitive_state``: whether ŝ is
    in the state (its place is 0 otherwise).
    """

    choices: Choices
    wall: Wall | None
    curves: Sensitivity
    reward: Reward
    judge: AccuracyOf
    sensitive_state: bool = True

    def latencies(self, *networks: Network) -> list[float]:
        """What the latency model says of networks, the problem's first constraint: milliseconds, from its tables."""
        problem = self.choices.problem
        gone = np.stack([problem.gone(network.removed, ()) for network in networks])
        return problem.costs(np.stack([network.widths for network in networks]), gone)[:, 0].tolist()


class PruningEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """One step per group in the order of execution; one episode is one network.

    The action is the share of units to prune, [1] in [0, 1]. It is moved to a legal width, under a budget to one that
    leaves a way to stay within it (:class:`~secateurs.search.lap.wall.Wall`); ``info["action"]`` is the share that was
    really taken and is what belongs into a replay. The observation, float32 [13], holds :data:`FEATURES`, each scaled
    over the groups or to the dense network (docs/methods.md, "LAP state, action and wall"). The reward is 0 until the
    last step, where the network is judged; ``info`` then holds ``widths``, ``removed``, ``accuracy`` and
    ``latency_ms``.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - gymnasium declares it as an instance attribute

    def __init__(self, game: Game) -> None:
        self.game = game
        self.action_space = spaces.Box(0.0, 1.0, (1,), np.float32)
        self.observation_space = spaces.Box(-1.0, 1.0, (len(FEATURES),), np.float32)
        problem = game.choices.problem
        self._spec, self._groups = problem.spec, len(problem.spec.groups)
        self._fixed = fixed_features(problem.spec)
        if game.sensitive_state:
            self._fixed[:, FEATURES.index("sensitivity")] = np.clip(game.curves.relative, -1.0, 1.0)
        producers = [producer(problem.spec, group) for group in range(self._groups)]
        self._inputs = [AxisSpec() if layer is None else layer.inputs for layer in producers]
        self._most_inputs = max(1.0, *(float(axis.length(problem.spec.dense_widths)) for axis in self._inputs))
        (self._dense_ms,) = game.latencies(game.choices.dense)
        self._start()

    def _start(self) -> None:
        game = self.game
        if game.wall is not None:
            game.wall.begin()
        least = np.array([options[0] for options in game.choices.options], dtype=np.int64)
        self._least = Network(least, frozenset()) if game.wall is None else game.wall.first
        self._network = game.choices.dense
        self._group, self._previous, self._saved = 0, 0.0, 0.0

    @property
    def group(self) -> int:
        """The group that the next action is about."""
        return self._group

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """The first group's observation."""
        super().reset(seed=seed)
        self._start()
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Decide about one group; see the class for what comes back."""
        game, group = self.game, self._group
        ratio = float(np.clip(np.asarray(action, dtype=np.float64).reshape(-1)[0], 0.0, 1.0))
        option = game.choices.nearest(group, ratio) if game.wall is None else game.wall.decide(group, ratio)
        self._previous = float(game.choices.ratios[group][option])
        self._network = game.choices.placed(self._network, group, option)
        self._saved += game.curves.at(group, self._network.widths[group] * (self._previous < 1))
        self._group += 1
        while self._group < self._groups and self._vanished(self._group):
            self._saved += game.curves.at(self._group, 0)
            self._group += 1
        info: dict[str, Any] = {"group": group, "action": self._previous}
        if self._group < self._groups:
            return self._observe(), 0.0, False, False, info
        return self._finish(info)

    def _vanished(self, group: int) -> bool:
        """Whether the group lies in a block that is gone, so that there is nothing to decide."""
        return not self.game.choices.problem.inner_blocks[group].isdisjoint(self._network.removed)

    def _finish(self, info: dict[str, Any]) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        game, network = self.game, self._network
        widths = game.choices.problem.canonical(network.widths, network.removed)
        (latency,) = game.latencies(Network(widths, network.removed))
        accuracy = float(game.judge(widths, network.removed))
        info |= {"widths": widths, "removed": network.removed, "accuracy": accuracy, "latency_ms": latency}
        reward = game.reward(1.0 - accuracy, latency, self._saved)
        self._group = self._groups - 1
        return self._observe(), float(reward), True, False, info

    def _observe(self) -> np.ndarray:
        group = self._group
        features = self._fixed[group].copy()
        later = Network(np.concatenate([self._network.widths[:group], self._least.widths[group:]]), self._gone(group))
        costs = self.game.latencies(self._network, later)
        dynamic = {
            "inputs": float(self._inputs[group].length(self._network.widths)) / self._most_inputs,
            "latency saved": 1.0 - costs[0] / self._dense_ms,
            "latency attainable": (costs[0] - costs[1]) / self._dense_ms,
            "previous action": self._previous,
        }
        for name, value in dynamic.items():
            features[FEATURES.index(name)] = value
        return np.clip(features, -1.0, 1.0).astype(np.float32)

    def _gone(self, group: int) -> frozenset[int]:
        """Blocks removed so far, and those that the least completion removes later."""
        later = {block for head, block in self.game.choices.heads.items() if head >= group}
        return self._network.removed | (self._least.removed & later)


def producer(spec: NetworkSpec, group: int) -> LayerSpec | None:
    """The first layer whose output units belong to the group, None where something without weights makes them."""
    return next((layer for layer in spec.layers if any(part == group for part, _ in layer.outputs.parts)), None)


def fixed_features(spec: NetworkSpec) -> np.ndarray:
    """What the state says of each group whatever was decided, scaled to 0 … 1 over the groups: float64 [groups, 13]."""
    dense, columns = spec.dense_widths, np.zeros((len(spec.groups), len(FEATURES)))
    parameters = np.zeros(len(spec.groups))
    for parameter in spec.parameters:
        owners = {group for axis in parameter.axes for group, _ in axis.parts}
        size = float(np.prod([int(axis.length(dense)) for axis in parameter.axes]))
        parameters[list(owners)] += size
    for group in range(len(spec.groups)):
        layer = producer(spec, group)
        columns[group, FEATURES.index("index")] = group
        columns[group, FEATURES.index("outputs")] = dense[group]
        if layer is not None:
            columns[group, FEATURES.index("kind")] = _KINDS.get(layer.kind, 0.0)
            columns[group, FEATURES.index("stride")] = layer.stride
            columns[group, FEATURES.index("kernel")] = layer.kernel_elements
            columns[group, FEATURES.index("positions")] = float(np.prod(layer.input_hw)) if layer.input_hw else 1.0
    columns[:, FEATURES.index("parameters")] = parameters
    columns[:, FEATURES.index("parameters later")] = parameters[::-1].cumsum()[::-1] - parameters
    low, high = columns.min(axis=0, initial=np.inf), columns.max(axis=0, initial=-np.inf)
    return (columns - low) / np.where(high > low, high - low, 1.0)
