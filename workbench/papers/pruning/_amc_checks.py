"""The exact checks of the AMC study, and the parts that its ablations put in the method's place. A check examines an `AMC` instance."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import torch
from scipy.interpolate import RegularGridInterpolator
from torch import Tensor, nn

from ...benches import vision
from ...contracts.files.storage import fit
from ...contracts.structure.surgery import macs, mask, parameters
from ...core.study import Outcome
from ._amc_environment import Environment, LatencyTable, budgeted, guaranteed
from ._amc_operators import ChannelOperator, channel_space, patches, responses
from ._amc_search import AMC, FEATURES, amc_search
from .ddpg import DDPG

IMAGES = 128


# --- what ablations put in the place of a part ------------------------------------------------------------------------------------------------------

class Unwalled(Environment):
    """Without the wall: the action as it comes, rounded."""

    def step(self, choice: int, action: float, share: np.ndarray) -> int:
        return self.space.rounded(choice, action)


class Forgetful(Environment):
    """The state without what happened so far: the last three features are zero."""

    def state(self, t: int, share: np.ndarray, last: float) -> np.ndarray:
        return super().state(t, share, last) * (np.arange(FEATURES) < FEATURES - 3)


class Bootstrapping(DDPG):
    """The critic expects something to follow the last layer."""

    @staticmethod
    def target(reward: Tensor, done: Tensor, following: Tensor, baseline: float) -> Tensor:
        return reward - baseline + following


class Restless(DDPG):
    """Exploration that never calms down."""

    def spread(self, episode: int) -> float:
        return self.sigma


class Smallest(ChannelOperator):
    """Keeps the input channels with the *smallest* weights."""

    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        self.order = [order.flip(0) for order in self.order]


class MasksOnly(ChannelOperator):
    """Zeroes instead of removing: the tensors stay as large as they were."""

    def __call__(self, counts) -> nn.Module:
        masked = mask(self.model, self.dropped(counts), self.images[:1], self.groups)
        return fit(masked, padded(self, counts, masked))


def plain_removal(gram: Tensor, cross: Tensor, weight: Tensor) -> Tensor:
    """Without reconstruction: the weights of the channels that stay are left as they were."""
    return weight


def padded(operator: ChannelOperator, counts, masked: nn.Module) -> dict[str, Tensor]:
    """The state of a masked network (see `contracts.structure.surgery.mask`) with the refitted weights written between its zeros."""
    state = dict(masked.state_dict())
    for name, (i, _) in operator.feeds.items():
        if counts[i] < operator.groups[i].size:
            full = torch.zeros_like(state[f"{name}.weight"])
            rows = operator.rows(name, counts)
            flat = full.flatten(1)
            flat[rows[:, None], operator.columns(name, counts[i])] = operator.refit(name, counts[i])[rows].flatten(1)
            state[f"{name}.weight"] = flat.reshape(full.shape)
    return state


# --- checks -----------------------------------------------------------------------------------------------------------------------------------------

@cache
def _operator(kind: type[ChannelOperator], solve, net: str) -> ChannelOperator:
    """On 128 calibration images; where nothing depends on the refitted weights' quality (MobileNet), on 16."""
    return kind(vision.dense(net), vision.calibration()[:IMAGES if net == "vgg-small" else 16], solve=solve)


def _environment(method: AMC, budget: float, cost=None, net: str = "vgg-small") -> Environment:
    space = channel_space(_operator(method.operator, method.solve, net), 0.2, 2)
    cost = cost or space.costs["macs"]
    return method.environment(space, cost, budget * cost(np.ones(len(space.sizes))), lambda counts: 0.0)


def _staircase(space) -> LatencyTable:
    """A lookup table as hardware gives them: time goes up in steps of a quarter of the channels, differently in each layer."""
    unit, grid = np.eye(len(space.sizes) + 1), np.array([0, 0.24, 0.25, 0.49, 0.5, 0.74, 0.75, 1.0])
    height = np.array([1, 1, 2, 2, 3, 3, 4, 4.0])
    tables = [(unit[i], unit[i + 1], RegularGridInterpolator((grid, grid), (1 + i) * np.multiply.outer(height, height))) for i in range(len(space.sizes))]
    return LatencyTable(tuple(tables))


@cache
def _within(environment: type[Environment]) -> Outcome:
    method, rng, worst = AMC(environment=environment), np.random.default_rng(0), 0.0
    table = _staircase(_environment(method, 1.0).space)
    for cost, budget, policies in ((None, 0.5, 700), (None, 0.25, 300), (table, 0.5, 12)):
        problem = _environment(method, budget, cost)
        for _ in range(policies):
            counts = problem.rollout(lambda state: rng.uniform())[0]
            worst = max(worst, problem.cost(counts / problem.space.sizes) / problem.budget)
            if worst > 1 + 1e-9:
                return Outcome(False, f"{worst:.3f} of the budget", "at most the budget")
    return Outcome(True, f"{worst:.4f} of the budget at most", "at most the budget")


def _once(method: AMC) -> AMC:
    """What the costly checks depend on: the operator and the wall. Methods that agree in them are examined once."""
    environment = Environment if method.environment.step is Environment.step else method.environment
    return AMC(environment=environment, operator=method.operator, solve=method.solve)


def within_budget(method: AMC) -> Outcome:
    """1,000 random policies at two budgets of MACs, 12 more on a lookup table in steps: none ends above its budget."""
    return _within(_once(method).environment)


def cost_is_exact(method: AMC) -> Outcome:
    """MACs and parameters that the wall reckons with are those of the network really rebuilt, depthwise layers included."""
    return _exact(_once(method))


@cache
def _exact(method: AMC) -> Outcome:
    wrong, rng = [], np.random.default_rng(1)
    for net, share in (("vgg-small", 0.5), ("mobilenet", 0.6)):
        operator, problem = _operator(method.operator, method.solve, net), _environment(method, share, net=net)
        for _ in range(3):
            counts = problem.rollout(lambda state: rng.uniform())[0]
            small, shares = operator(counts), counts / problem.space.sizes
            found = macs(small, vision.EXAMPLE), parameters(small)
            wanted = tuple(round(problem.space.costs[name](shares)) for name in ("macs", "parameters"))
            wrong += [(net, found, wanted)] if found != wanted else []
    return Outcome(not wrong, f"{len(wrong)} of 6 differ {wrong[:1] or ''}", "equal as integers")


def wall_is_tight(method: AMC) -> Outcome:
    """Asked to keep everything, the wall grants the largest multiple that later layers at their lower bound leave room for: found by trying all."""
    problem, rng, wrong = _environment(method, 0.5), np.random.default_rng(2), 0
    for _ in range(40):
        share, choice = problem.floors / problem.space.sizes, int(rng.integers(len(problem.floors)))
        for earlier in range(choice):
            share[earlier] = problem.step(earlier, rng.uniform(), share) / problem.space.sizes[earlier]
        fitting = []
        for count in range(int(problem.floors[choice]), int(problem.space.sizes[choice]) + 1, problem.space.round_to):
            trial = share.copy()
            trial[choice] = count / problem.space.sizes[choice]
            fitting += [count] if problem.cost(trial) <= problem.budget * (1 + 1e-12) else []
        wrong += problem.step(choice, 1.0, share) != max(fitting, default=-1)
    return Outcome(wrong == 0, f"{wrong} of 40 differ", "0 of 40")


def state_by_hand(method: AMC) -> Outcome:
    """The 11 features that the agent sees at the third convolution of VGG-small, after half of the second one's inputs went, from the shapes alone."""
    problem, given = _environment(method, 0.5), iter((0.5, 0.75, 1, 1, 1, 1))
    counts, states, _ = problem.rollout(lambda state: next(given))
    area, n, c = np.array([32, 32, 16, 16, 8, 8, 1]) ** 2, np.array([16, 16, 32, 32, 64, 64, 10]), np.array([3, 16, 16, 32, 32, 64, 64])
    work = area * n * c * np.array([9] * 6 + [1])

    def scaled(column):
        return (column[2] - column.min()) / np.ptp(column)

    side = np.sqrt(area)
    removed = (0.5 * work[0] + 0.5 * work[1]) / work.sum()  # outputs of the first convolution, inputs of the second
    wanted = [2 / 6, scaled(n), scaled(c), scaled(side), scaled(side), 0, 1, scaled(work), removed, work[3:].sum() / work.sum(), 0.5]
    error = float(np.abs(states[1] - wanted).max())
    return Outcome(error < 1e-9 and tuple(counts[:2]) == (8, 12), error, 1e-9)


def update_by_hand(method: AMC) -> Outcome:
    """The critic's goal, the baseline and the slow nets of one update, worked out by hand."""
    goal = method.agent.target(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 1.0]), torch.tensor([5.0, 7.0]), 0.5)
    agent = method.agent(FEATURES, 10, warmup=0)
    slow = agent.slow_actor.layers[0].weight.clone()
    agent.learn(np.eye(FEATURES)[:2], np.array([0.3, 0.6]), -0.4, -1)  # an episode of the warm-up: remembered, not learnt from
    agent.update()
    first = agent.baseline
    agent.memory["rewards"][:2] = -0.2
    moved = (slow + agent.tau * (agent.actor.layers[0].weight.detach() - slow) - agent.slow_actor.layers[0].weight).abs().max().item()
    agent.update()
    found = [*goal.tolist(), first, agent.baseline]
    ok = np.allclose(found, [5.5, 1.5, -0.4, -0.3]) and moved < 1e-7 and not torch.equal(slow, agent.actor.layers[0].weight)
    return Outcome(ok, f"goals {found[0]:g}, {found[1]:g}; baselines {found[2]:.2f}, {found[3]:.2f}", "goals 5.5, 1.5; baselines -0.40, -0.30")


def exploration(method: AMC) -> Outcome:
    """Uniform at first (mean ½, spread 0.29); then noise that shrinks to nothing around the actor's own action."""
    agent, state = method.agent(FEATURES, 10, warmup=100), np.zeros(FEATURES)
    uniform = np.array([agent.act(state, 0) for _ in range(400)])
    early, late = (np.array([agent.act(state, episode) for _ in range(200)]) for episode in (100, 240))
    with torch.no_grad():
        own = agent.actor(torch.zeros(1, FEATURES)).item()
    inside = min(uniform.min(), early.min()) >= 0 and max(uniform.max(), early.max()) <= 1
    ok = inside and abs(uniform.mean() - 0.5) < 0.05 and early.std() > 0.2 and late.std() < 0.01 and abs(late.mean() - own) < 0.01
    return Outcome(bool(ok), f"spread {uniform.std():.2f}, {early.std():.2f}, {late.std():.3f}", "0.29, above 0.2, below 0.01")


def rewards_by_hand(method: AMC) -> Outcome:
    """Error 0.25 at a million MACs: −0.25 and −0.25·ln 10⁶; and the agent is told its own episode's reward."""
    rng, rewards = np.random.default_rng(0), list(np.arange(20.0))
    wrong = sum(method.told(rewards[:n], rng) != rewards[n - 1] for n in range(1, 21))
    found = budgeted(0.25, 1e6), guaranteed(0.25, 1e6)
    return Outcome(bool(np.allclose(found, (-0.25, -3.4538776)) and wrong == 0),
                   f"{found[0]:.4f}, {found[1]:.4f}; {wrong} of 20 episodes told another's", "-0.2500, -3.4539; 0 of 20")


@cache
def _reconstruction(kind: type[ChannelOperator], solve) -> Outcome:
    operator, fresh, worst = _operator(kind, solve, "vgg-small"), vision.calibration()[IMAGES:], 0.0
    seen = {}

    def watch(name):
        def hook(layer, inputs, output):
            where = tuple(axis[:len(output)] for axis in operator.where[name])
            seen[name] = patches(layer, inputs[0], where), responses(layer, output, where)
        return hook

    hooks = [operator.model.get_submodule(name).register_forward_hook(watch(name)) for name in operator.feeds]
    with torch.no_grad():
        operator.model(fresh)
    for hook in hooks:
        hook.remove()
    for name, (i, _) in operator.feeds.items():
        x, y = seen[name]
        for share in (0.25, 0.5):
            count = int(share * operator.groups[i].size)
            columns = operator.columns(name, count)
            weights = operator.refit(name, count).flatten(1), operator.model.get_submodule(name).weight.flatten(1)[:, columns]
            refitted, plain = ((x[:, columns] @ weight.detach().double().T - y).square().mean() for weight in weights)
            worst = max(worst, float(refitted / plain))
    return Outcome(worst <= 0.8, worst, 0.8)


def reconstruction_helps(method: AMC) -> Outcome:
    """Layer error after least squares, on images and positions not used for it, against plain removal: the worst layer at a quarter and half of its inputs."""
    return _reconstruction(method.operator, method.solve)


def largest_stay(method: AMC) -> Outcome:
    """Two input channels with planted large weights are the two that are kept; a setting that keeps all leaves every tensor as it is, bit for bit."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Flatten(), nn.Linear(96, 4)).eval()
    with torch.no_grad():
        net[2].weight[:, [1, 6]] += 5
    operator = method.operator(net, torch.randn(64, 3, 4, 4), solve=method.solve)
    kept = sorted(operator.columns("2", 2).tolist())
    same = all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), operator.sequential([8, 6]).state_dict().values(), strict=True))
    return Outcome(kept == [1, 6] and same, f"keeps {kept}; keeping all {'changes nothing' if same else 'changes tensors'}", "[1, 6]; changes nothing")


def masked_equals_exported(method: AMC) -> Outcome:
    """A network of the old shape with zeros and refitted weights answers as the small one does; and the small one is small."""
    return _rebuilt(_once(method))


@cache
def _rebuilt(method: AMC) -> Outcome:
    worst, images = 0.0, vision.calibration()[:8]
    for net in ("vgg-small", "mobilenet"):
        operator, problem = _operator(method.operator, method.solve, net), _environment(method, 0.6, net=net)
        counts = problem.rollout(lambda state: 0.7)[0]
        small, masked = operator(counts), mask(operator.model, operator.dropped(counts), images[:1], operator.groups)
        with torch.no_grad():
            worst = max(worst, float((small(images) - fit(masked, padded(operator, counts, masked))(images)).abs().max()))
        if parameters(small) >= 0.9 * parameters(operator.model):
            return Outcome(False, f"{net}: {parameters(small)} parameters, as many as before", "fewer parameters")
    return Outcome(worst < 1e-4, worst, 1e-4)


class _Residual(nn.Module):
    """Two blocks on one stream, a depthwise layer in the second: what an action on the stream must carry along."""

    def __init__(self):
        super().__init__()
        self.stem, self.inner, self.back = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(12, 8, 1)
        self.deep, self.point, self.head = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 8, 1), nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x).relu()
        x = x + self.back(self.inner(x).relu())
        return self.head((x + self.point(self.deep(x).relu())).mean((2, 3)))


def coupled_layers_follow(method: AMC) -> Outcome:
    """Layers on a residual stream, and depthwise layers, take the first action of their group, and the network still runs."""
    torch.manual_seed(1)
    operator = method.operator(_Residual().eval(), torch.randn(32, 3, 6, 6), solve=method.solve)
    space = channel_space(operator, 0.25, 2)
    counts = method.environment(space, space.costs["macs"], 1e9, lambda counts: 0.0).rollout(lambda state: 0.5)[0]
    small = operator(counts)
    found = [small.stem.out_channels, small.back.out_channels, small.deep.groups, small.point.out_channels, small.head.in_features, small.inner.out_channels]
    return Outcome(found == [4, 4, 4, 4, 4, 6] and small(torch.randn(2, 3, 6, 6)).shape == (2, 5), f"channels {found}", "[4, 4, 4, 4, 4, 6]")


def fine_grained(method: AMC) -> Outcome:
    """Fine-grained mode: exactly the wanted number of weights stays in each layer, the largest ones, within a budget of weights."""
    torch.manual_seed(2)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 4)).eval()
    settings = AMC(fine_grained=True, lower=0.05, environment=method.environment)
    problem = settings.problem(net, torch.randn(8, 3, 6, 6), (torch.randn(8, 3, 6, 6), torch.zeros(8, dtype=torch.long)), ("weights", 0.3))
    counts = problem.rollout(lambda state: 0.6)[0]
    sparse = problem.space.export(counts)
    right = all(int((layer.weight != 0).sum()) == count and whole.weight.abs()[layer.weight != 0].min() >= whole.weight.abs()[layer.weight == 0].max()
                for layer, whole, count in zip((sparse[0], sparse[3]), (net[0], net[3]), counts, strict=True) if count < whole.weight.numel())
    share = float(counts.sum() / problem.space.sizes.sum())
    return Outcome(right and share <= 0.3, f"{share:.3f} of the weights left{'' if right else ', not the largest'}", "at most 0.3, the largest")


def live_search(method: AMC) -> Outcome:
    """A short search made now: nothing is learnt in the warm-up, every layer of actor and critic moves after it, every exported network is within budget."""
    torch.manual_seed(3)
    net, images = _Residual().eval(), torch.randn(48, 3, 6, 6)
    labels = net(images).argmax(1)
    method = replace(method, episodes=10, warmup=5, round_to=1)
    result = amc_search(net, images, [(images, labels)], ("macs", 0.5), method=method)
    moved = [sum(bool((a - b).abs().max() > 0) for a, b in zip(_weights(method.new_agent(result.environment)), _weights(agent), strict=True))
             for agent in (amc_search(net, images, [(images, labels)], ("macs", 0.5), episodes=5, method=method).agent, result.agent)]
    total = macs(net, images[:1])
    worst = max(macs(result.environment.space.export(counts), images[:1]) for counts in result.settings) / total
    ok = moved == [0, len(_weights(result.agent))] and worst <= 0.5
    return Outcome(ok, f"{moved[0]}, then {moved[1]} of {len(_weights(result.agent))} tensors moved; MACs at most {worst:.3f}", "0, then all; at most 0.500")


def _weights(agent: DDPG) -> list[Tensor]:
    return [parameter.detach() for net in (agent.actor, agent.critic) for parameter in net.parameters()]
