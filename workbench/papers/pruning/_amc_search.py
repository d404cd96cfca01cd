"""The search of AMC, `amc_search`, and the rivals that spend evaluations in other ways under the same wall, operator and reward."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ...contracts.model import inputs_and_labels
from ._amc_environment import Environment, budgeted, error_rate, guaranteed
from ._amc_operators import ChannelOperator, channel_space, latency_table, least_squares, weight_space
from .ddpg import DDPG

FEATURES = 11


def told(rewards: Sequence[float], rng: np.random.Generator) -> float:
    """The reward that the agent learns from: the episode's own. (An ablation tells it another episode's.)"""
    return rewards[-1]


@dataclass(frozen=True)
class AMC:
    """AutoML for model compression: a DDPG agent chooses each layer's share of input channels within a budget.

    ``lower``: least share of a layer; ``round_to``: channels kept are multiples of it; ``points``: positions sampled per image for operator 7. ``reward``:
    ``budgeted`` or ``guaranteed`` (no wall: as small as accuracy allows). ``fine_grained`` prunes single weights instead of channels. The last four
    fields are the parts that ablations replace.
    """

    episodes: int = 200
    warmup: int = 100
    seed: int = 0
    lower: float = 0.2
    round_to: int = 8
    points: int = 10
    reward: str = "budgeted"
    fine_grained: bool = False
    environment: type[Environment] = Environment
    operator: type[ChannelOperator] = ChannelOperator
    solve: Callable = least_squares
    agent: type[DDPG] = DDPG
    told: Callable[[Sequence[float], np.random.Generator], float] = told

    def problem(self, model: nn.Module, calibration: Tensor, validation: tuple[Tensor, Tensor], budget: tuple[str, float] | None) -> Environment:
        """The environment of a search. ``calibration``: images (N, …); ``validation``: images and labels for the reward; ``budget``: a cost (``macs``,
        ``parameters``, ``ms``; fine-grained: ``weights``, ``macs``) and the share of it that may stay, or None with ``reward="guaranteed"``."""
        rewards = {"budgeted": budgeted, "guaranteed": guaranteed}
        if self.reward not in rewards:
            raise ValueError(f"reward: one of {', '.join(rewards)}, found {self.reward!r}")
        kind, share = budget or ("macs", np.inf)
        if not 0 < share <= 1 and (budget or self.reward == "budgeted"):
            raise ValueError(f"budget: a cost and the share of it to keep, in (0, 1], found {budget!r}; only reward='guaranteed' goes without")
        if self.fine_grained:
            space = weight_space(model, calibration, self.lower)
        else:
            operator = self.operator(model, calibration, self.points, self.solve, self.seed)
            space = channel_space(operator, self.lower, self.round_to)
        if kind == "ms" and not self.fine_grained:
            cost = latency_table(operator)
        elif kind in space.costs:
            cost = space.costs[kind]
        else:
            raise ValueError(f"budget: its cost must be one of {', '.join(space.costs)}{'' if self.fine_grained else ', ms'}, found {kind!r}")

        def judge(counts: Sequence[int]) -> float:
            return rewards[self.reward](error_rate(space.trial(counts), *validation), cost(np.asarray(counts) / space.sizes))

        return self.environment(space, cost, share * cost(np.ones(len(space.sizes))), judge)

    def new_agent(self, environment: Environment) -> DDPG:
        """An agent that has learnt nothing; it remembers 100 transitions for each step of an episode."""
        return self.agent(FEATURES, 100 * len(environment.walk), self.seed, self.warmup)

    def run(self, environment: Environment, agent: DDPG, rewards: list[float], settings: list[tuple[int, ...]],
            on_episode: Callable[[int, float], None] | None = None) -> None:
        """Episodes until there are ``self.episodes``; both lists grow by one entry an episode."""
        while len(rewards) < self.episodes:
            episode = len(rewards)
            counts, states, actions = environment.rollout(partial(agent.act, episode=episode))
            rewards.append(environment.reward(counts))
            settings.append(tuple(counts.tolist()))
            agent.learn(states, actions, self.told(rewards, agent.rng), episode)
            if on_episode:
                on_episode(episode, rewards[-1])

    def compress(self, model: nn.Module, ratio: float, data: Iterable | None, example=None) -> nn.Module:
        """The model contract: searches with a share ``ratio`` of the MACs removed. The first half of ``data`` (batches of images and labels) calibrates, the
        second half is the reward's."""
        if ratio == 0:
            return model
        images, labels = labelled(data if data is not None else (), "data")
        half = len(labels) // 2
        return amc_search(model, images[:half], [(images[half:], labels[half:])], ("macs", 1 - ratio), method=self).export()


@dataclass
class SearchResult:
    """A finished (or interrupted) search: ``settings`` and ``rewards`` of every episode, the agent, and the environment that judged them."""

    method: AMC
    environment: Environment
    agent: DDPG
    budget: tuple[str, float] | None
    rewards: list[float] = field(default_factory=list)
    settings: list[tuple[int, ...]] = field(default_factory=list)

    @property
    def best(self) -> int:
        """The episode with the highest reward, the first of equals."""
        return int(np.argmax(self.rewards))

    @property
    def policy(self) -> dict[str, float]:
        """Layer → share of its input channels (fine-grained: of its weights) that the best episode keeps."""
        share = np.array(self.settings[self.best]) / self.environment.space.sizes
        return {layer.name: 1.0 if layer.choice is None else float(share[layer.choice]) for layer in self.environment.space.layers}

    @property
    def history(self) -> list[dict]:
        """One entry an episode: its reward, its share of the cost, its share per layer."""
        sizes, cost, total = self.environment.space.sizes, self.environment.cost, self.environment.total
        return [{"episode": i, "reward": reward, "cost": cost(np.array(counts) / sizes) / total, "shares": [c / s for c, s in zip(counts, sizes, strict=True)]}
                for i, (reward, counts) in enumerate(zip(self.rewards, self.settings, strict=True))]

    def export(self) -> nn.Module:
        """The network of the best episode, really smaller; operator 7 now sees what the earlier pruned layers send."""
        return self.environment.space.export(self.settings[self.best])

    def save(self, path: str | Path) -> None:
        """One safetensors file from which ``amc_search(…, resume=path)`` goes on as if it had never stopped."""
        self.agent.save(path, {"budget": self.budget, "rewards": self.rewards, "settings": self.settings})


def amc_search(model: nn.Module, calib, val, budget: tuple[str, float] | None = ("macs", 0.5), episodes: int | None = None, seed: int | None = None,
               method: AMC = AMC(), resume: str | Path | None = None, on_episode: Callable[[int, float], None] | None = None) -> SearchResult:
    """Searches a policy for ``model`` (left as it is). ``calib``: images, a tensor or batches (labels are ignored); ``val``: batches of images and labels that
    are *not* the test data; ``budget``: see `AMC.problem`.

    ValueError: a budget below the floor, nothing to prune, no validation images, couplings that one share a layer cannot express, a foreign ``resume``.
    """
    changes = {name: value for name, value in (("episodes", episodes), ("seed", seed)) if value is not None}
    method = replace(method, **changes)
    if method.episodes < 1:
        raise ValueError(f"episodes: at least 1, found {method.episodes}")
    model = copy.deepcopy(model).eval()
    environment = method.problem(model, images_of(calib, "calib"), labelled(val, "val"), budget)
    result = SearchResult(method, environment, method.new_agent(environment), budget)
    if resume is not None:
        past = result.agent.restore(resume)
        if past["budget"] != (list(budget) if budget else None):
            raise ValueError(f"resume: {resume} searched with budget {past['budget']}, now it is {budget}")
        result.rewards, result.settings = past["rewards"], [tuple(counts) for counts in past["settings"]]
        environment.known |= dict(zip(result.settings, result.rewards, strict=True))
    method.run(environment, result.agent, result.rewards, result.settings, on_episode)
    return result


def in_stages(model: nn.Module, calib, val, shares: Sequence[float], finetune: Callable[[nn.Module], object], method: AMC) -> nn.Module:
    """Fine-grained pruning as for ResNet-50 (section 4.2: four stages): search at each share of the weights, then ``finetune(model)`` in place, in which the
    weights that went stay zero."""
    for share in shares:
        model = amc_search(model, calib, val, ("weights", share), method=replace(method, fine_grained=True)).export()
        hooks = [parameter.register_hook(partial(torch.mul, (parameter != 0).to(parameter.dtype))) for parameter in model.parameters() if parameter.dim() > 1]
        finetune(model)
        for hook in hooks:
            hook.remove()
    return model


def images_of(data, name: str) -> Tensor:
    """All images of a tensor, or of batches (tensors, tuples that begin with one, dicts that hold one)."""
    parts = [data] if isinstance(data, Tensor) else [_pair(batch, name)[0] for batch in data]
    if not sum(len(part) for part in parts):
        raise ValueError(f"{name}: holds no image")
    return torch.cat(parts)


def labelled(data, name: str) -> tuple[Tensor, Tensor]:
    """All images and labels of batches."""
    pairs = [_pair(batch, name) for batch in data]
    if any(labels is None for _, labels in pairs) or not sum(len(images) for images, _ in pairs):
        raise ValueError(f"{name}: holds no labelled image; the reward cannot be measured")
    return torch.cat([images for images, _ in pairs]), torch.cat([labels for _, labels in pairs])


def _pair(batch, name: str) -> tuple[Tensor, Tensor | None]:
    inputs, labels = inputs_and_labels(batch)
    if isinstance(inputs, Mapping):
        if len(inputs) != 1:
            raise ValueError(f"{name}: AMC samples the features of one input tensor, found {', '.join(inputs)}")
        inputs = next(iter(inputs.values()))
    return inputs, labels


# ------------------------------------------------------------------------------------------------------------------ rivals

def hand_rule(environment: Environment, slope: float = 0.0) -> tuple[int, ...]:
    """Shares by a rule, scaled up as far as the budget allows: uniform, or rising with depth (``slope`` > 0: shallow layers lose most) or falling."""
    space = environment.space
    tilt = 1 + slope * np.linspace(-0.5, 0.5, len(space.sizes))

    def counts(scale: float) -> np.ndarray:
        return np.array([space.rounded(choice, min(1.0, share)) for choice, share in enumerate(scale * tilt)])

    low, high = 0.0, 2.0 / tilt.min()
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if environment.cost(counts(middle) / space.sizes) <= environment.budget else (low, middle)
    return tuple(counts(low).tolist())


def greedy(environment: Environment, evaluations: int) -> tuple[list[float], list[tuple[int, ...]]]:
    """NetAdapt's rule (Yang et al. 2018): again and again the layer whose shrinking hurts least gives way, until the budget is met. The step is the share of
    the cost with which about ``evaluations`` settings are tried. The last setting is the result."""
    space, choices = environment.space, range(len(environment.space.sizes))
    counts, rewards, settings = space.sizes.copy(), [], []
    cost = environment.cost(counts / space.sizes)
    step = (cost - environment.budget) / max(1, evaluations // len(choices))
    while cost > environment.budget:
        goal, trials = max(environment.budget, cost - step), []
        for choice in choices:
            trial = counts.copy()
            while trial[choice] > environment.floors[choice] and environment.cost(trial / space.sizes) > goal:
                trial[choice] = max(environment.floors[choice], (trial[choice] - 1) // space.round_to * space.round_to)
            if trial[choice] < counts[choice]:
                trials.append((environment.reward(trial), environment.cost(trial / space.sizes) <= goal, trial))
        reached = [trial for trial in trials if trial[1]] or trials
        reward, _, counts = max(reached, key=lambda trial: trial[0])
        cost = environment.cost(counts / space.sizes)
        rewards.append(reward)
        settings.append(tuple(counts.tolist()))
    return rewards, settings


def evolution(environment: Environment, evaluations: int, seed: int) -> tuple[list[float], list[tuple[int, ...]]]:
    """A genetic algorithm (pymoo, populations of 20) over actions in [0, 1] a layer, each passed through the same wall."""
    from pymoo.algorithms.soo.nonconvex.ga import GA
    from pymoo.core.problem import ElementwiseProblem
    from pymoo.optimize import minimize

    rewards, settings = [], []

    class Policies(ElementwiseProblem):
        def _evaluate(self, x, out, *args, **kwargs):
            actions = iter(x)
            counts = environment.rollout(lambda state: next(actions))[0]
            rewards.append(environment.reward(counts))
            settings.append(tuple(counts.tolist()))
            out["F"] = -rewards[-1]

    minimize(Policies(n_var=len(environment.walk), n_obj=1, xl=0.0, xu=1.0), GA(pop_size=20), ("n_eval", evaluations), seed=seed)
    return rewards, settings
