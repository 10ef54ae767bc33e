"""The learner: stable-baselines3's actor-critics behind a small face. Loaded on demand, this file needs torch."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from stable_baselines3 import DDPG, SAC, TD3
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import ReplayBufferSamples

from secateurs.errors import PlanError, why
from secateurs.search.lap.settings import Agent

_KINDS: dict[str, Any] = {"ddpg": DDPG, "td3": TD3, "sac": SAC}
_IMITATION_STEPS, _IMITATED = 2000, 1e-4
"""Most steps of a warm start's imitation, and the mean square error that ends it."""


@dataclass(frozen=True)
class Transition:
    """One step: what was seen, the ratio that was really taken, what was seen next, and whether the episode ended."""

    seen: np.ndarray
    ratio: float
    next_seen: np.ndarray
    last: bool


class CentredReplay(ReplayBuffer):
    """A replay whose samples come from a generator of its own, with a running mean taken off their rewards (AMC)."""

    rate: float = 0.5
    mean: float | None = None
    rng: np.random.Generator = np.random.default_rng(0)

    def sample(self, batch_size: int, env: Any = None) -> ReplayBufferSamples:
        """A batch; moves the running mean."""
        drawn = self._get_samples(self.rng.integers(0, self.size(), batch_size), env=env)
        batch_mean = float(drawn.rewards.mean())
        self.mean = batch_mean if self.mean is None else self.mean + self.rate * (batch_mean - self.mean)
        return drawn._replace(rewards=drawn.rewards - self.mean)


class Learner:
    """Actor, critic and replay.

    Args:
        env: fixes the shapes of states and actions.
        settings: of the agent.
        steps: most steps of an episode.
        seed: of everything random, together with the number given to :meth:`learn`.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], settings: Agent, steps: int, seed: int) -> None:
        self.settings, self.seed = settings, seed
        with _random(seed):
            self.algorithm = _KINDS[settings.kind](
                "MlpPolicy",
                env,
                learning_rate=settings.critic_rate,
                buffer_size=max(settings.batch, settings.replay * steps),
                batch_size=settings.batch,
                tau=settings.tau,
                gamma=settings.discount,
                replay_buffer_class=CentredReplay,
                policy_kwargs={"net_arch": list(settings.hidden)},
                device="cpu",
                verbose=0,
            )
        self.algorithm.set_logger(Logger(folder=None, output_formats=[]))
        self.algorithm._update_learning_rate = lambda optimizers: None  # two constant rates instead of one schedule
        for group in self.algorithm.actor.optimizer.param_groups:
            group["lr"] = settings.actor_rate
        self.replay: CentredReplay = self.algorithm.replay_buffer
        self.replay.rate = settings.reward_rate

    def ratio(self, seen: np.ndarray) -> float:
        """The actor's pruning ratio for a state, without exploration."""
        action, _ = self.algorithm.predict(seen, deterministic=True)
        return float(np.asarray(action).reshape(-1)[0])

    def remember(self, episode: Sequence[Transition], reward: float) -> None:
        """Put an episode into the replay, with its final reward on every transition (AMC)."""
        for step in episode:
            scaled = self.algorithm.policy.scale_action(np.array([[step.ratio]], dtype=np.float32))
            self.replay.add(
                step.seen[None], step.next_seen[None], scaled, np.array([reward]), np.array([step.last]), [{}]
            )

    def learn(self, updates: int, number: int) -> None:
        """Update actor and critic from the replay; ``number`` says which episode this follows."""
        with _random(self.seed, number):
            self.replay.rng = np.random.default_rng([self.seed, number, 1])
            self.algorithm.train(gradient_steps=updates, batch_size=self.settings.batch)

    def imitate(self, episode: Sequence[Transition]) -> None:
        """Move the actor to the actions of an episode (warm start), by least squares."""
        seen = torch.as_tensor(np.stack([step.seen for step in episode]))
        wanted = torch.as_tensor([[2.0 * step.ratio - 1.0] for step in episode])
        policy = self.algorithm.policy
        policy.set_training_mode(True)
        optimizer = torch.optim.Adam(policy.actor.parameters(), lr=1e-3)
        with _random(self.seed):
            for _ in range(_IMITATION_STEPS):
                if self.settings.kind == "sac":
                    mean, _, _ = policy.actor.get_action_dist_params(seen)
                    acted = torch.tanh(mean)
                else:
                    acted = policy.actor(seen)
                loss = torch.nn.functional.mse_loss(acted, wanted)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if float(loss.detach()) < _IMITATED:
                    break
        if hasattr(policy, "actor_target"):
            policy.actor_target.load_state_dict(policy.actor.state_dict())

    def _entropy(self) -> torch.Tensor:
        """SAC's logarithmic entropy coefficient, which is no part of its parameters; empty for the others."""
        held = getattr(self.algorithm, "log_ent_coef", None)
        return torch.zeros(0) if held is None else held.data

    def to_bytes(self) -> bytes:
        """Everything that :meth:`restore` needs, as a file of tensors."""
        held = self.replay.size()
        parts = ("observations", "next_observations", "actions", "rewards", "dones")
        state = {"pos": self.replay.pos, "full": self.replay.full, "mean": self.replay.mean}
        content = {
            "agent": self.algorithm.get_parameters(),
            "entropy": self._entropy(),
            "replay": {name: torch.from_numpy(getattr(self.replay, name)[:held].copy()) for name in parts},
            "state": json.dumps({**state, "settings": asdict(self.settings), "updates": self.algorithm._n_updates}),
        }
        buffer = io.BytesIO()
        torch.save(content, buffer)
        return buffer.getvalue()

    def restore(self, content: bytes) -> None:
        """Take up what :meth:`to_bytes` gave.

        Raises:
            PlanError: it is damaged, or belongs to another agent.
        """
        try:
            held = torch.load(io.BytesIO(content), weights_only=True)
            state = json.loads(held["state"])
            if state["settings"] != json.loads(json.dumps(asdict(self.settings))):
                raise ValueError("it was written with other settings")
            self.algorithm.set_parameters(held["agent"], exact_match=True, device="cpu")
            self._entropy().copy_(held["entropy"])
            for name, tensor in held["replay"].items():
                getattr(self.replay, name)[: len(tensor)] = tensor.numpy()
        except Exception as error:
            raise PlanError(f"The agent's checkpoint cannot be used ({why(error)}).") from error
        self.replay.pos, self.replay.full, self.replay.mean = int(state["pos"]), bool(state["full"]), state["mean"]
        self.algorithm._n_updates = int(state["updates"])


@contextmanager
def _random(*seed: int) -> Iterator[None]:
    """Torch's global generator set for what happens inside, and as it was afterwards; one thread."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
