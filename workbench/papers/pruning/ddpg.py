"""Deep deterministic policy gradient with one action in [0, 1] a step, as AMC trains it (arXiv 1802.03494, section 3.2).

    state s ──► actor μ(s) ──► + truncated normal noise ──► action a ──► environment ──► reward R, the same for every step of the episode
                                       critic Q(s, a) ◄── replay memory ◄── (s, a, R, s', done)

The critic learns the target $y = (R - b) + (1 - \\text{done})\\,Q'(s', \\mu'(s'))$, the actor climbs $Q(s, \\mu(s))$; primed nets follow slowly. The
baseline $b$ is a moving average of the rewards in the batches: only how much better than usual a policy is can steer.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save as pack
from scipy.special import ndtr, ndtri
from torch import Tensor, nn
from torch.nn import functional as F

from ...core.measurements import write_whole

MEMORY = ("states", "actions", "rewards", "following", "done")


class Actor(nn.Module):
    """State (n, features) → action (n, 1) in (0, 1)."""

    def __init__(self, features: int, hidden: int = 300):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1), nn.Sigmoid())

    def forward(self, state: Tensor) -> Tensor:
        return self.layers(state)


class Critic(nn.Module):
    """State (n, features) and action (n, 1) → value (n, 1); the two meet as the sum of their first layers."""

    def __init__(self, features: int, hidden: int = 300):
        super().__init__()
        self.of_state, self.of_action = nn.Linear(features, hidden), nn.Linear(1, hidden)
        self.rest = nn.Sequential(nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        return self.rest(self.of_state(state) + self.of_action(action))


def q_target(reward: Tensor, done: Tensor, following: Tensor, baseline: float) -> Tensor:
    """What the critic learns, shape of ``reward``: nothing follows the last layer, so there the next state's value is left out."""
    return reward - baseline + (1 - done) * following


def truncated_normal(mean: float, spread: float, rng: np.random.Generator) -> float:
    """A draw from the normal distribution around ``mean`` in (0, 1), given that it lies in [0, 1] (by inversion of its distribution function)."""
    low, high = ndtr(-mean / spread), ndtr((1 - mean) / spread)
    return float(np.clip(mean + spread * ndtri(rng.uniform(low, high)), 0, 1))


@dataclass
class DDPG:
    """The agent. ``capacity``: transitions remembered (100 a layer); the first ``warmup`` episodes act uniformly at random and do not learn;
    then the noise is ``sigma · decay^(episodes since)``. The discount is 1."""

    features: int
    capacity: int
    seed: int = 0
    warmup: int = 100
    sigma: float = 0.5
    decay: float = 0.95
    batch: int = 64
    tau: float = 0.01
    actor_rate: float = 1e-4
    critic_rate: float = 1e-3
    baseline: float | None = field(default=None, init=False)
    count: int = field(default=0, init=False)

    target = staticmethod(q_target)

    def __post_init__(self):
        self.rng = np.random.default_rng(self.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.actor, self.critic = Actor(self.features), Critic(self.features)
        self.slow_actor, self.slow_critic = (copy.deepcopy(net).requires_grad_(False) for net in (self.actor, self.critic))
        self.optimizers = {"actor": torch.optim.Adam(self.actor.parameters(), self.actor_rate, fused=True),
                           "critic": torch.optim.Adam(self.critic.parameters(), self.critic_rate, fused=True)}
        shapes = (self.features,), (1,), (1,), (self.features,), (1,)
        self.memory = {name: torch.zeros(self.capacity, *shape) for name, shape in zip(MEMORY, shapes, strict=True)}

    def act(self, state: np.ndarray, episode: int) -> float:
        """The action to try in a state, with exploration."""
        if episode < self.warmup:
            return float(self.rng.uniform())
        with torch.no_grad():
            mean = self.actor(torch.as_tensor(state, dtype=torch.float32)[None]).item()
        return truncated_normal(mean, self.spread(episode), self.rng)

    def spread(self, episode: int) -> float:
        """Standard deviation of the noise in an episode after the warm-up."""
        return max(self.sigma * self.decay ** (episode - self.warmup), 1e-6)

    def learn(self, states: np.ndarray, actions: np.ndarray, reward: float, episode: int) -> None:
        """Remembers an episode, states (T, features) and actions (T,), and after the warm-up takes one update a step."""
        steps = len(states)
        following = np.concatenate([states[1:], states[-1:]])
        for t in range(steps):
            slot = self.count % self.capacity
            for name, value in zip(MEMORY, (states[t], actions[t], reward, following[t], t == steps - 1), strict=True):
                self.memory[name][slot] = torch.as_tensor(value, dtype=torch.float32)
            self.count += 1
            if episode >= self.warmup:
                self.update()

    def update(self) -> None:
        """One step of critic, actor and both slow nets on a batch drawn without replacement."""
        filled = min(self.count, self.capacity)
        drawn = torch.from_numpy(self.rng.choice(filled, min(self.batch, filled), replace=False))
        state, action, reward, following, done = (self.memory[name][drawn] for name in MEMORY)
        mean = reward.mean().item()
        self.baseline = mean if self.baseline is None else self.baseline + 0.5 * (mean - self.baseline)
        with torch.no_grad():
            goal = self.target(reward, done, self.slow_critic(following, self.slow_actor(following)), self.baseline)
        self._step("critic", F.mse_loss(self.critic(state, action), goal))
        self.critic.requires_grad_(False)
        self._step("actor", -self.critic(state, self.actor(state)).mean())
        self.critic.requires_grad_(True)
        for slow, fast in ((self.slow_actor, self.actor), (self.slow_critic, self.critic)):
            torch._foreach_lerp_(list(slow.parameters()), [p.detach() for p in fast.parameters()], self.tau)

    def _step(self, which: str, loss: Tensor) -> None:
        self.optimizers[which].zero_grad()
        loss.backward()
        self.optimizers[which].step()

    def _nets(self) -> dict[str, nn.Module]:
        return {"actor": self.actor, "critic": self.critic, "slow_actor": self.slow_actor, "slow_critic": self.slow_critic}

    def save(self, path: str | Path, history: dict) -> None:
        """Everything that a search needs to go on, in one safetensors file: nets, Adam's moments, memory, random state, ``history`` (JSON)."""
        tensors = {f"{net}.{name}": value.clone() for net, module in self._nets().items() for name, value in module.state_dict().items()}
        tensors |= {f"memory.{name}": value for name, value in self.memory.items()}
        for which, optimizer in self.optimizers.items():
            tensors |= {f"adam.{which}.{i}.{name}": value.clone() for i, slot in optimizer.state_dict()["state"].items() for name, value in slot.items()}
        head = {"count": self.count, "baseline": self.baseline, "random": self.rng.bit_generator.state, "history": history}
        write_whole(Path(path), pack(tensors, {"search": json.dumps(head)}))

    def restore(self, path: str | Path) -> dict:
        """Continues where `save` left off; returns the history. ValueError: not such a file, or one of another agent."""
        try:
            with safe_open(str(path), "pt") as file:
                head = json.loads(file.metadata()["search"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (the file itself is no mapping)
            for net, module in self._nets().items():
                module.load_state_dict({name: tensors[f"{net}.{name}"] for name in module.state_dict()})
            memory = {name: tensors[f"memory.{name}"] for name in MEMORY}
            if {name: value.shape for name, value in memory.items()} != {name: value.shape for name, value in self.memory.items()}:
                raise ValueError(f"its memory holds {memory['states'].shape}, this agent's {self.memory['states'].shape}")
            self.memory = memory
            for which, optimizer in self.optimizers.items():
                slots: dict[int, dict] = {}
                for name, value in tensors.items():
                    if name.startswith(f"adam.{which}."):
                        i, part = name.split(".")[2:]
                        slots.setdefault(int(i), {})[part] = value
                optimizer.load_state_dict({**optimizer.state_dict(), "state": slots})
            self.count, self.baseline, self.rng.bit_generator.state = head["count"], head["baseline"], head["random"]
            return head["history"]
        except Exception as error:
            raise ValueError(f"path: {path} holds no search that can go on here: {error}") from error
