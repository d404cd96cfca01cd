"""AMC: the agent learns, the wall holds, a search goes on where it stopped, wrong input is refused, and the recorded searches are what they say."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from workbench.benches.vision import data
from workbench.benches.vision.nets import VGGSmall
from workbench.contracts.model import compress
from workbench.contracts.structure.surgery import macs, parameters
from workbench.papers.pruning import _amc_checks as checks
from workbench.papers.pruning import _amc_record as record
from workbench.papers.pruning._amc_operators import ChannelOperator, channel_space, latency_table
from workbench.papers.pruning._amc_search import AMC, amc_search, evolution, greedy, hand_rule, in_stages
from workbench.papers.pruning.amc import STUDY
from workbench.papers.pruning.ddpg import DDPG, truncated_normal

QUICK = AMC(episodes=6, warmup=3, round_to=1)


class Depthwise(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8),
                                  nn.ReLU(), nn.Conv2d(8, 12, 1), nn.ReLU(), nn.Conv2d(12, 8, 3, stride=2, padding="valid", bias=False))
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


class Joined(nn.Module):
    """Reads two layers' channels side by side."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Linear(8, 4)

    def forward(self, x):
        return self.head(torch.cat([self.a(x), self.b(x)], 1).relu().mean((2, 3)))


def plain() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Flatten(), nn.Linear(192, 10), nn.ReLU(), nn.Linear(10, 4))


def images(n=48):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 3, 8, 8, generator=generator), torch.randint(4, (n,), generator=generator)


def built(kind) -> nn.Module:
    torch.manual_seed(3)
    return kind().eval()


def search(model, budget=("macs", 0.5), method=QUICK, **settings):
    x, y = images()
    return amc_search(model, x, [(x[:20], y[:20]), (x[20:], y[20:])], budget, method=method, **settings)


# --- the agent --------------------------------------------------------------------------------------------------------------------------------------

def planted(told, episodes=130, seed=0) -> np.ndarray:
    """Rewards on a landscape with one best action in each of three states."""
    states, best, rewards, rng = np.eye(11)[:3], np.array([0.15, 0.9, 0.4]), [], np.random.default_rng(9)
    agent = DDPG(11, 300, seed, warmup=40)
    for episode in range(episodes):
        actions = np.array([agent.act(state, episode) for state in states])
        rewards.append(-float(np.square(actions - best).mean()))
        agent.learn(states, actions, told(rewards, rng), episode)
    return np.array(rewards)


def test_agent_learns_and_not_from_shuffled_rewards():
    rewards, control = planted(lambda rewards, rng: rewards[-1]), planted(record.shuffled)
    noise = 2 * rewards[:40].std() / np.sqrt(40)
    assert rewards[-20:].mean() > rewards[:40].mean() + noise + 0.05
    assert control[-20:].mean() < rewards[-20:].mean() - 0.05


@pytest.mark.parametrize("mean, spread", [(0.0, 0.5), (0.5, 0.5), (1.0, 1e-6), (0.99, 0.01)])
def test_truncated_normal_stays_inside(mean, spread):
    rng = np.random.default_rng(1)
    draws = np.array([truncated_normal(mean, spread, rng) for _ in range(200)])
    assert draws.min() >= 0 and draws.max() <= 1 and abs(np.median(draws) - np.clip(mean, 0.25, 0.99)) < 0.3


def test_search_goes_on_where_it_stopped(tmp_path):
    model = built(plain)
    whole = search(model, episodes=8)
    half = search(model, episodes=5)
    half.save(tmp_path / "half.search")
    rest = search(model, episodes=8, resume=tmp_path / "half.search")
    assert rest.rewards == whole.rewards and rest.settings == whole.settings
    for a, b in zip(whole.agent.critic.parameters(), rest.agent.critic.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("damage", [b"", b"not a search", None])
def test_foreign_resume_is_refused(tmp_path, damage):
    path = tmp_path / "x.search"
    result = search(built(plain))
    result.save(path)
    path.write_bytes(path.read_bytes()[:-100] if damage is None else damage)
    with pytest.raises(ValueError, match="holds no search"):
        search(built(plain), resume=path)


def test_resume_with_another_budget_is_refused(tmp_path):
    search(built(plain)).save(tmp_path / "x.search")
    with pytest.raises(ValueError, match="resume"):
        search(built(plain), ("macs", 0.6), resume=tmp_path / "x.search")


# --- searches on nets that are not ours -------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", [plain, Depthwise, checks._Residual])
def test_search_keeps_the_budget_and_leaves_the_model(kind):
    model = built(kind)
    before, x = copy.deepcopy(model.state_dict()), images()[0]
    result = search(model)
    small = result.export()
    assert macs(small, x[:1]) <= 0.5 * macs(model, x[:1]) and parameters(small) < parameters(model)
    assert all(entry["cost"] <= 0.5 + 1e-9 for entry in result.history) and len(result.history) == 6
    assert set(result.policy.values()) - {1.0} and small(x).shape == model(x).shape
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.add_(1)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())


def test_latency_budget_on_a_measured_table():
    torch.manual_seed(0)
    model, x = VGGSmall().eval(), torch.randn(8, 3, 32, 32)
    result = amc_search(model, x, [(x, torch.zeros(8, dtype=torch.long))], ("ms", 0.85), method=QUICK)
    environment = result.environment
    assert all(environment.cost(np.array(counts) / environment.space.sizes) <= environment.budget * (1 + 1e-9) for counts in result.settings)
    operator = ChannelOperator(built(Depthwise), images()[0])
    lookup, sizes = latency_table(operator), channel_space(operator).sizes
    assert 0 < lookup(np.full(len(sizes), 0.4)) <= lookup(np.ones(len(sizes)))


def test_parameter_budget_guaranteed_reward_and_single_weights():
    model, x = built(plain), images()[0]
    assert parameters(search(model, ("parameters", 0.5)).export()) <= 0.5 * parameters(model)
    free = search(model, None, replace(QUICK, reward="guaranteed"))
    assert max(free.rewards) <= 0 and len(free.rewards) == 6
    sparse = search(model, ("weights", 0.3), replace(QUICK, fine_grained=True, lower=0.05)).export()
    weights = [p for name, p in sparse.named_parameters() if name.endswith("weight")]
    assert sum(int((w != 0).sum()) for w in weights) <= 0.3 * sum(w.numel() for w in weights)
    assert sparse(x).shape == (48, 4)


def test_fine_grained_in_stages_keeps_its_zeros():
    x, y = images()

    def finetune(model):
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()

    model = built(plain)
    sparse = in_stages(model, x, [(x, y)], (0.6, 0.3), finetune, replace(QUICK, lower=0.05))
    left = [int((p != 0).sum()) / p.numel() for name, p in sparse.named_parameters() if name.endswith("weight")]
    total = sum(p.numel() for name, p in sparse.named_parameters() if name.endswith("weight"))
    assert sum(int((p != 0).sum()) for name, p in sparse.named_parameters() if name.endswith("weight")) <= 0.3 * total and min(left) < 1
    assert not torch.equal(sparse[0].bias, model[0].bias)


def test_compress_contract():
    x, y = images()
    result = compress(built(plain), QUICK, ratio=0.5, data=[(x[:24], y[:24]), (x[24:], y[24:])])
    assert result.report.macs[1] <= 0.5 * result.report.macs[0]
    named = compress(built(plain), QUICK, ratio=0.5, data=[{"input": x, "labels": y}])
    assert named.report.macs[1] <= 0.5 * named.report.macs[0]


def test_rivals_share_the_wall():
    environment = search(built(plain)).environment
    for settings in ([hand_rule(environment, slope) for slope in (-1, 0, 1)], evolution(environment, 40, 0)[1], greedy(environment, 20)[1][-1:]):
        for counts in settings:
            assert environment.cost(np.array(counts) / environment.space.sizes) <= environment.budget * (1 + 1e-9)


# --- wrong input ------------------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("message, call", [
    ("floor is 0", lambda: search(built(plain), ("macs", 0.01))),
    ("budget", lambda: search(built(plain), ("macs", 1.5))),
    ("budget", lambda: search(built(plain), None)),
    ("macs, parameters, ms", lambda: search(built(plain), ("joules", 0.5))),
    ("reward", lambda: search(built(plain), method=replace(QUICK, reward="accuracy"))),
    ("episodes", lambda: search(built(plain), episodes=0)),
    ("val", lambda: amc_search(built(plain), images()[0], [], method=QUICK)),
    ("calib", lambda: amc_search(built(plain), images()[0][:0], [images()], method=QUICK)),
    ("nothing to prune", lambda: search(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)))),
    ("unsupported coupling.*only a part", lambda: search(built(Joined))),
    ("unsupported coupling.*grouped", lambda: search(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1, groups=2), nn.Flatten(), nn.Linear(512, 4)))),
    ("data", lambda: QUICK.compress(built(plain), 0.5, None)),
    ("val", lambda: amc_search(built(plain), images()[0], [images()[0]], method=QUICK)),
    ("one input tensor", lambda: amc_search(built(plain), [{"a": images()[0], "b": images()[0]}], [images()], method=QUICK)),
])
def test_wrong_input_is_named(message, call):
    with pytest.raises(ValueError, match=message):
        call()


# --- the study --------------------------------------------------------------------------------------------------------------------------------------

def test_recorded_searches_are_whole_and_within_budget():
    assert record.digest() == record.DIGEST
    space = record.problem(0, 0.5).space
    cost, total = space.costs["macs"], space.costs["macs"](np.ones(len(space.sizes)))
    for name, macs_removed, replica in record.plan():
        rewards, settings = record.recorded(name, macs_removed, replica)
        assert len(rewards) == len(settings) >= 1 and max(rewards) <= 0
        checked = settings[-1:] if name == "greedy" else settings
        assert max(cost(np.array(counts) / space.sizes) for counts in checked) <= (1 - macs_removed) * total * (1 + 1e-9)


def test_search_never_sees_test_images(monkeypatch):
    split = data.split
    monkeypatch.setattr(data, "split", lambda name: split(name) if name != "test" else pytest.fail("the search read test images"))
    record._problem.cache_clear()
    record.problem.cache_clear()
    rewards, _ = record.searched(replace(record.BENCH, episodes=2, warmup=1), record.problem(0, 0.5), 0)
    assert len(rewards) == 2
    assert not set(range(*data.DIGITS["validation"].indices(2000))) & set(range(*data.DIGITS["test"].indices(2000)))


def test_recorded_search_is_the_one_that_the_code_makes():
    rewards, settings = record.searched(replace(record.BENCH, episodes=3), record.problem(0, 0.5), 0)
    known, shipped = record.recorded("amc", 0.5, 0)
    assert [list(counts) for counts in settings] == shipped[:3]
    assert np.allclose(rewards, known[:3], atol=0.02)


def test_picture_needs_only_exhibits():
    exhibits = {"kept": np.array([8, 4]), "of": np.array([16, 8]), "reward": np.array([-500, -200])}
    figure = STUDY.picture({}, exhibits)
    assert len(figure.data) == 3 and list(figure.data[0].text) == ["8/16", "4/8"]
    assert len(STUDY.picture({}, {**exhibits, "reward": np.array([], int)}).data) == 1
