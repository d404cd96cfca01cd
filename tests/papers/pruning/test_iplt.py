"""Pruning while training beyond its checks: residual nets, other optimisers, stopping and going on, the contract, provenance, wrong input."""

import pytest
import torch
from torch import nn

import workbench
from workbench.benches import training
from workbench.benches.vision.nets import ResNet20, VGGSmall
from workbench.contracts.files.artifact import ArtifactError
from workbench.contracts.structure.macs import macs, parameters
from workbench.core.study import StudyError
from workbench.papers.pruning._iplt_surgery import FilterNorm, convolutional, final_shares, kept, progress
from workbench.papers.pruning.iplt import IPLT, Trainer, overlap, rank_correlation, sensitivity, shrink, training_macs

IMAGE = torch.zeros(1, 3, 8, 8)


def batches(number=0, count=3, n=8):
    draw = torch.Generator().manual_seed(number)
    return [(torch.randn(n, 3, 8, 8, generator=draw), torch.randint(0, 10, (n,), generator=draw)) for _ in range(count)]


def net():
    torch.manual_seed(0)
    return VGGSmall((6, 6, 8, 8, 10, 10))


def trainer(cls=torch.optim.SGD, model=None, **plan):
    model = model or net()
    optimizer = cls(model.parameters(), lr=0.01, **({"momentum": 0.9} if cls is torch.optim.SGD else {}))
    return Trainer(model, optimizer, batches, IPLT(**{"pretrain": 1, "rounds": 2, "keep": 0.4} | plan), IMAGE)


@pytest.mark.parametrize("cls", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_every_optimiser_goes_on_warm(cls):
    tr = trainer(cls)
    small, log = tr.fit(4)
    assert parameters(small) <= 0.4 * parameters(net()) and len(log) == 4
    for p in small.parameters():
        state = tr.optimizer.state[p]
        entries = [state[name] for name in ("momentum_buffer", "exp_avg", "exp_avg_sq") if name in state]
        assert entries and all(entry.shape == p.shape for entry in entries)
        assert "step" not in state or float(state["step"]) == 12, "Adam's clock must not start again"


def test_every_part_of_the_state_is_cut(tmp_path):
    def made():
        model = net()
        return Trainer(model, torch.optim.Adam(model.parameters(), 0.01, amsgrad=True), batches, IPLT(pretrain=1, rounds=2, keep=0.4), IMAGE)

    whole, _ = made().fit(4)
    first = made()
    first.fit(4, until=2)
    first.save(tmp_path / "stopped.wb")
    tr = made().resume(tmp_path / "stopped.wb")
    again, _ = tr.fit(4)
    assert torch.equal(whole.classifier.weight, again.classifier.weight)
    assert all(tr.optimizer.state[p]["max_exp_avg_sq"].shape == p.shape for p in again.parameters())


def test_parameter_groups_keep_their_settings():
    model = net()
    optimizer = torch.optim.SGD([{"params": model.features.parameters(), "lr": 0.01, "weight_decay": 0.1}, {"params": model.classifier.parameters(), "lr": 0.5}], momentum=0.9)
    small, fresh = shrink(model, optimizer, {"features.0": torch.tensor([1])}, IMAGE, convolutional(model, IMAGE))
    assert [g["lr"] for g in fresh.param_groups] == [0.01, 0.5] and fresh.param_groups[0]["weight_decay"] == 0.1
    assert fresh.param_groups[1]["params"][0] is small.classifier.weight


def test_residual_streams_stay_and_blocks_shrink_inside():
    torch.manual_seed(0)
    model = ResNet20(stages=(4, 6, 8), inner=(4,) * 3 + (6,) * 3 + (8,) * 3)
    small, log = trainer(model=model, keep=0.7).fit(3)
    assert small.config()["stages"] == [4, 6, 8] and max(small.config()["inner"]) < 8
    assert log[-1].macs == macs(small, IMAGE) < log[0].macs


def test_stop_and_go_on_bit_for_bit(tmp_path):
    whole, log = trainer().fit(4, lambda epoch: 0.1 / (1 + epoch))
    first = trainer()
    first.fit(4, lambda epoch: 0.1 / (1 + epoch), until=2)
    assert first.save(tmp_path / "stopped.wb") == (tmp_path / "stopped.wb").stat().st_size
    second = trainer().resume(tmp_path / "stopped.wb")
    again, log_again = second.fit(4, lambda epoch: 0.1 / (1 + epoch))
    assert log == log_again and training_macs(log) == training_macs(log_again)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True))


def test_adam_goes_on_too(tmp_path):
    whole, _ = trainer(torch.optim.AdamW).fit(3)
    first = trainer(torch.optim.AdamW)
    first.fit(3, until=2)
    first.save(tmp_path / "stopped.wb")
    again, _ = trainer(torch.optim.AdamW).resume(tmp_path / "stopped.wb").fit(3)
    assert torch.equal(whole.classifier.weight, again.classifier.weight)
    with pytest.raises(ArtifactError, match="SGD"):
        trainer().resume(tmp_path / "stopped.wb")
    whole_file = (tmp_path / "stopped.wb").read_bytes()
    for damaged in (b"", whole_file[:-100], whole_file[:-1] + bytes([whole_file[-1] ^ 1])):
        (tmp_path / "stopped.wb").write_bytes(damaged)
        with pytest.raises(ArtifactError):
            trainer(torch.optim.AdamW).resume(tmp_path / "stopped.wb")


def test_compress_by_name_saves_a_file_that_loads(tmp_path):
    model = net().eval()
    result = workbench.compress(model, "iplt", ratio=0.6, data=batches())
    assert result.report.parameters[1] <= 0.4 * result.report.parameters[0]
    result.save(tmp_path / "small.wb")
    loaded, image = workbench.load(tmp_path / "small.wb"), batches()[0][0]
    with torch.no_grad():
        assert torch.equal(loaded(image), result.model(image))
    assert model.config()["widths"] == [6, 6, 8, 8, 10, 10]


def test_keeping_everything_changes_no_width():
    small, log = trainer(keep=1.0).fit(3)
    assert small.config() == net().config() and len({e.macs for e in log}) == 1


def test_schedules_start_at_nothing_and_end_at_all():
    for shape in ("linear", "cubic"):
        assert progress(4, 4, shape) == 1 and 0 < progress(1, 4, shape) < 1
    assert progress(1, 4, "cubic") > progress(1, 4)
    assert kept({"a": 3}, {"a": 0.98}) == {"a": 1}, "a layer keeps one filter"


def test_a_sensitive_layer_is_cut_less():
    model = net().eval()
    groups = convolutional(model, IMAGE)

    def accuracy(candidate):  # only the second layer matters here
        return 100.0 * float((candidate.features[3].weight.flatten(1).abs().sum(1) > 0).float().mean())

    shares = sensitivity(model, groups, IMAGE, accuracy, delta=20)
    assert shares["features.3"] < 0.3 and all(shares[g.name] == 0.95 for g in groups if g.name != "features.3")
    cut = final_shares(model, groups, IMAGE, 0.4, shares)
    assert cut["features.3"] < cut["features.0"]


def test_shares_are_found_on_the_partly_trained_net(tmp_path):
    asked = []

    def scan(model, groups):
        asked.append((len(tr.log), [g.size for g in groups]))
        return {g.name: 0.1 if g.name == "features.3" else 0.9 for g in groups}

    model = net()
    tr = Trainer(model, torch.optim.SGD(model.parameters(), 0.01), batches, IPLT(pretrain=1, rounds=2, keep=0.4), IMAGE, scan)
    small, log = tr.fit(4)
    assert asked == [(1, [6, 6, 8, 8, 10, 10])] and log[-1].widths["features.3"] > log[-1].widths["features.0"]
    assert parameters(small) <= 0.4 * parameters(net())


def test_a_smaller_net_keeps_less_for_its_backward_pass():
    _, log = trainer().fit(4)
    assert log[0].memory > log[1].memory > log[-1].memory > 0 and all(e.seconds > 0 for e in log)


def test_overlap_and_rank_correlation():
    up, down = {"a": torch.arange(10.0)}, {"a": -torch.arange(10.0)}
    assert overlap(up, up, 0.3) == 1 and overlap(down, up, 0.3) == 0
    assert rank_correlation(up, up) == pytest.approx(1) and rank_correlation(down, up) == pytest.approx(-1)


def test_provenance_is_asserted(monkeypatch, tmp_path):
    from safetensors.torch import load_file, save_file

    state = load_file(training.CHECKPOINTS / "training-0-10.safetensors")
    save_file(state, tmp_path / "training-0-05.safetensors", metadata={"epochs": "10"})
    monkeypatch.setattr(training, "CHECKPOINTS", tmp_path)
    training._net.cache_clear()
    try:
        with pytest.raises(StudyError, match="after 10 epochs, not 5"):
            training.net(0, 5)
        with pytest.raises(StudyError, match="Epochs: 1, 2, 3, 5, 10"):
            training.net(0, 4)
    finally:
        training._net.cache_clear()


def test_later_nets_are_better_and_ranks_agree_more():
    trained = FilterNorm().scores(convolutional(training.net(1), training.EXAMPLE), None)
    found = [overlap(FilterNorm().scores(convolutional(training.net(1, e), training.EXAMPLE), None), trained) for e in (0, 1, 3, 5)]
    assert found == sorted(found) and training.right(training.net(1)).mean() > training.right(training.net(1, 1)).mean() + 0.1


@pytest.mark.parametrize(("plan", "says"), [({"pretrain": -1}, "pretrain"), ({"rounds": 0}, "rounds"), ({"per_round": 1.5}, "per_round"), ({"keep": 0.0}, "keep"),
                                            ({"shape": "square"}, "'linear' or 'cubic'")])
def test_wrong_plan(plan, says):
    with pytest.raises(ValueError, match=says):
        IPLT(**plan)


def test_keep_below_one_filter_a_layer():
    with pytest.raises(ValueError, match="keep: share of the parameters .* between"):
        trainer(keep=0.001)


def test_wrong_optimisers():
    model = net()
    with pytest.raises(ValueError, match="SGD, Adam, AdamW can be cut"):
        Trainer(model, torch.optim.RMSprop(model.parameters()), batches, IPLT(), IMAGE)
    with pytest.raises(ValueError, match="not the model's"):
        Trainer(model, torch.optim.SGD(net().parameters(), 0.1), batches, IPLT(), IMAGE)


def test_wrong_training():
    with pytest.raises(ValueError, match="take 3, found 2"):
        trainer().fit(2)
    with pytest.raises(ValueError, match="function of the epoch"):
        trainer().fit(3, rate=torch.optim.lr_scheduler.StepLR(trainer().optimizer, 1))
    used = trainer()
    used.loader = []
    with pytest.raises(ValueError, match="no batch"):
        used.fit(3)
    used = trainer()
    used.loader = [(torch.full((4, 3, 8, 8), torch.nan), torch.zeros(4, dtype=torch.long))]
    with pytest.raises(ValueError, match="loss is nan"):
        used.fit(3)
    with pytest.raises(ValueError, match="data"):
        IPLT().compress(net(), 0.5, None, IMAGE)


def test_only_streams_leave_nothing_to_prune():
    class Stream(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Linear(4, 2)

        def forward(self, x):
            return self.head((self.a(x) + self.b(x)).relu().mean((2, 3)))

    with pytest.raises(ValueError, match="residual streams stay"):
        convolutional(Stream().eval(), IMAGE)
