"""EnSyth beyond the common matrix: one's own networks, selections on plain arrays, files, budgets, and wrong input."""

import numpy as np
import pytest
import torch
from torch import nn

import workbench
from workbench.benches import vision
from workbench.contracts.files.artifact import ArtifactError
from workbench.contracts.model import load, save_model
from workbench.papers.pruning._ensyth_ensemble import Ensemble
from workbench.papers.pruning._ensyth_method import Pool
from workbench.papers.pruning._ensyth_pool import GRIDS, Setting, pool_tensors, pruned_member, read_pool
from workbench.papers.pruning._ensyth_select import SEARCHES, select, stack
from workbench.papers.pruning._gradual import GradualPruner, Schedule, endless
from workbench.papers.pruning.ensyth import EnSyth, ensyth_pool, ensyth_select


def blobs(n=120, classes=3, seed=0):
    """Points around three corners, in batches of 20."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    points = torch.eye(classes, 6)[labels] * 2 + torch.randn(n, 6, generator=generator)
    return list(zip(points.split(20), labels.split(20), strict=True))


def network(classes=3, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 20), nn.ReLU(), nn.Linear(20, classes))


def outputs(members=5, n=80, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    logits = rng.normal(size=(members, n, classes))
    logits[:, np.arange(n), labels] += 1
    return torch.from_numpy(logits).softmax(2), torch.from_numpy(labels)


SETTINGS = (Setting(0.5, every=2), Setting(0.8, every=2), Setting(0.9, every=4, rate=3e-3))


@pytest.fixture(scope="module")
def pool():
    return ensyth_pool(network(), blobs(), SETTINGS, steps=12)


def test_own_network_from_pool_to_file(pool, tmp_path):
    ensemble = ensyth_select(pool, blobs(seed=1))
    assert 1 <= len(ensemble) <= 3 and list(ensemble.path.columns) == ["size", "members", "accuracy", "bytes"]
    inputs = blobs(seed=2)[0][0]
    assert ensemble.save(tmp_path / "e.wb") == (tmp_path / "e.wb").stat().st_size
    again = Ensemble.load(tmp_path / "e.wb")
    assert torch.equal(again(inputs), ensemble(inputs)) and torch.equal(load(tmp_path / "e.wb")(inputs), ensemble(inputs))
    assert torch.allclose(ensemble.together(inputs), ensemble(inputs), atol=1e-5) and torch.equal(ensemble.threaded(inputs), ensemble(inputs))


@pytest.mark.parametrize("combine", ["soft", "hard", "weighted", "stacked"])
def test_combiners_answer_and_return_from_a_file(pool, combine, tmp_path):
    labels = torch.cat([y for _, y in blobs(seed=1)])
    logits = torch.stack([torch.cat([member(x) for x, _ in blobs(seed=1)]) for member in pool]).detach()
    candidates, method = Pool.of(pool, logits, labels, blobs()[0][0]), EnSyth(combine)
    ensemble = method.build(candidates, method.chosen(candidates), (0, 1, 2))
    inputs = blobs(seed=2)[0][0]
    ensemble.save(tmp_path / "e.wb")
    assert ensemble(inputs).shape == (20, 3) and torch.equal(Ensemble.load(tmp_path / "e.wb")(inputs), ensemble(inputs))


def test_sparsity_is_exact_and_only_hyperparameters_differ(pool):
    shares = [float((member[2].weight == 0).float().mean()) for member in pool]
    assert shares == pytest.approx([0.5, 0.8, 0.9])
    same = pruned_member(network(), endless(blobs()), SETTINGS[1], 12)
    assert all(torch.equal(a, b) for a, b in zip(same.state_dict().values(), pool[1].state_dict().values(), strict=True))


def test_compress_by_name_stays_within_the_budget():
    result = workbench.compress(network(), EnSyth(settings=SETTINGS, steps=12), ratio=0.3, data=blobs())
    assert result.report.bytes[1] <= 0.7 * result.report.bytes[0] and isinstance(result.model, Ensemble)
    assert result.model.train()(blobs()[0][0]).shape == (20, 3)


def test_pool_file_is_exact():
    member = read_pool(0)[7]
    tensors, facts = pool_tensors([member])
    assert tensors["0"].dtype == torch.int8 and facts[0]["config"] == member.config()
    assert len(read_pool(1)) == len(GRIDS["lenet5"]) == 24


@pytest.mark.parametrize("search", SEARCHES)
def test_searches_agree_on_an_easy_case(search):
    shares, labels = outputs()
    shares[1:] = shares[1:].roll(1, 2)  # all but the first answer wrong
    assert select(shares, labels, [1] * 5, search=search).kept == (0,)


def test_budget_takes_the_best_that_fits():
    shares, labels = outputs(6, 300)
    free, tight = select(shares, labels, [10] * 6), select(shares, labels, [10] * 6, max_bytes=20)
    assert len(tight.kept) <= 2 <= len(free.kept)
    with pytest.raises(ValueError, match="max_bytes: 5; the smallest set .* 10 bytes"):
        select(shares, labels, [10] * 6, max_bytes=5)


@pytest.mark.parametrize(("change", "says"), [
    ({"combine": "mean"}, "combine: one of soft, hard"), ({"search": "all"}, "search: one of backward"), ({"sizes": [1]}, "sizes: one for each of the 5"),
    ({"labels": torch.zeros(0, dtype=torch.long)}, "labels: validation needs"), ({"shares": torch.zeros(1, 80, 3)}, "at least two members")])
def test_wrong_selections(change, says):
    shares, labels = outputs()
    with pytest.raises(ValueError, match=says):
        select(**({"shares": shares, "labels": labels, "sizes": [1] * 5} | change))


def test_exhaustive_says_how_many_it_takes():
    shares, labels = outputs(16)
    with pytest.raises(ValueError, match="at most 15 members, found 16"):
        select(shares, labels, [1] * 16, search="exhaustive")


def test_stacking_two_classes_and_missing_ones():
    shares, labels = outputs(2, 100, 2)
    matrix, offset, score = stack(shares.log(), labels)
    answers = (shares.log().transpose(0, 1).flatten(1) @ torch.from_numpy(matrix) + torch.from_numpy(offset)).argmax(1)
    assert matrix.shape == (4, 2) and score > 0.7 and float((answers == labels).double().mean()) > 0.7
    with pytest.raises(ValueError, match="each of the 2 classes"):
        stack(shares.log(), torch.zeros(100, dtype=torch.long))


def test_wrong_pools(pool):
    with pytest.raises(ValueError, match="pool: at least two members"):
        ensyth_select(pool[:1], blobs())
    with pytest.raises(ValueError, match="equally many classes"):
        ensyth_select([pool[0], network(4)], blobs())
    with pytest.raises(ValueError, match="val_loader: .* it is empty"):
        ensyth_select(pool, [])
    with pytest.raises(ValueError, match="one has no labels"):
        ensyth_select(pool, [blobs()[0][0]])
    with pytest.raises(ValueError, match="settings: .* two members"):
        ensyth_pool(network(), blobs(), SETTINGS[:1])
    with pytest.raises(ValueError, match="data: at least two batches"):
        EnSyth().compress(network(), 0.5, None, None)


def test_wrong_members_and_files(pool, tmp_path):
    with pytest.raises(ValueError, match="members: Sequential could not"):
        Ensemble.of([network()])  # a class of torch's, and no example to capture its graph with
    with pytest.raises(ValueError, match="combine: one of"):
        Ensemble.of(pool, "median")
    save_model(tmp_path / "single.wb", vision.dense("lenet5"))
    with pytest.raises(ArtifactError, match="LeNet5, not an ensemble"):
        Ensemble.load(tmp_path / "single.wb")
    raw = (tmp_path / "single.wb").read_bytes()
    (tmp_path / "cut.wb").write_bytes(raw[:len(raw) // 2])
    with pytest.raises(ArtifactError, match="truncated"):
        Ensemble.load(tmp_path / "cut.wb")


def test_wrong_schedules():
    with pytest.raises(ValueError, match="0 ≤ initial ≤ final < 1"):
        Schedule(0.5, initial=0.6)
    with pytest.raises(ValueError, match="begin, every, end"):
        Schedule(0.5, every=0)
    with pytest.raises(ValueError, match="layers: 9 are no"):
        GradualPruner(network(), Schedule(0.5), ["9"])
    with pytest.raises(ValueError, match="kind: one of weights, filters"):
        Setting(0.5, "rows")
    with pytest.raises(ValueError, match="no batch"):
        next(endless([]))
