"""The survey beyond what the common matrix tests: granularities, allocations, procedures, gating, the map, and the user's own model."""

import copy
import math

import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from workbench.benches import vision
from workbench.contracts.files.sparse import load_sparse
from workbench.contracts.structure.surgery import channel_groups, macs
from workbench.core import registry
from workbench.papers.pruning import procedures, survey
from workbench.papers.pruning.classics import weights
from workbench.papers.pruning.compare import compare_pruners, pareto, prune
from workbench.papers.pruning.gating import gate
from workbench.papers.pruning.granularity import ZEROS, Pruner, apply_masks, keep, macs_left, residual_blocks, searched, sensitivity, strided, without
from workbench.papers.pruning.survey_checks import toy
from workbench.papers.pruning.taxonomy import BRANCHES, MISSING, leaves, resolve, taxonomy_map


def few(n=2, size=32):
    return [(x[:size], y[:size]) for x, y in vision.labelled()[:n]]


# --- granularity --------------------------------------------------------------------------------------------------------------------------------


def test_masks_have_the_structure_that_they_name():
    values = {"a": torch.rand(6, 5, 3, 3, generator=torch.Generator().manual_seed(0)), "b": torch.rand(6, 5)}
    row, kernel, columns = (keep(values, 0.5, name) for name in ("row", "kernel", "strided"))
    assert set(row) == set(kernel) == set(columns) == {"a"} and set(keep(values, 0.5, "weight")) == {"a", "b"}
    assert (row["a"] == row["a"][..., :1]).all() and (kernel["a"] == kernel["a"][..., :1, :1]).all() and (columns["a"] == columns["a"][:1]).all()
    assert not (row["a"] == row["a"][..., :1, :]).all() and not (kernel["a"] == kernel["a"][:, :1]).all()


def test_strided_takes_the_best_offset_of_each_input_channel():
    value = torch.ones(2, 3, 3, 3)
    for channel, offset in enumerate((0, 1, 2)):
        value[:, channel].view(2, 9)[:, offset::3] += 1
    mask = strided(value, 2 / 3)
    for channel, offset in enumerate((0, 1, 2)):
        assert mask[0, channel].flatten().nonzero().flatten().tolist() == [offset, offset + 3, offset + 6]


def test_zeros_leave_macs_and_shrink_the_file(tmp_path):
    model = vision.dense("vgg-small")
    dense = vision.file_bytes(model)
    for granularity in ZEROS:
        pruned = Pruner("l1", granularity).apply(model, 0.8)
        assert macs(pruned.model, vision.EXAMPLE) == macs(model, vision.EXAMPLE)
        assert pruned.save(tmp_path / granularity) < 0.27 * dense
        assert all(torch.equal(a, b) for a, b in zip(pruned.model.state_dict().values(), load_sparse(tmp_path / granularity).state_dict().values()))
    structured = {name: vision.file_bytes(Pruner("l1", name).apply(model, 0.8)) for name in ("weight", "kernel")}
    assert structured["kernel"] < structured["weight"]  # one bit a kernel is less than one a weight


def test_blocks_of_resnet20():
    model, data = vision.dense("resnet20"), few(1)
    names = residual_blocks(model, data[0][0])
    assert names == [f"blocks.{i}" for i in (0, 1, 2, 4, 5, 7, 8)]
    pruned = prune(model, "l1", "block", 3 / 7, data).model
    assert sum(isinstance(block, nn.Identity) for block in pruned.blocks) == 3 and macs(pruned, vision.EXAMPLE) < macs(model, vision.EXAMPLE)
    again = type(pruned)(**pruned.config())
    again.load_state_dict(pruned.state_dict())
    with torch.no_grad():
        assert torch.equal(again.eval()(data[0][0]), pruned(data[0][0]))


def test_a_part_without_shortcut_is_no_block():
    net = nn.Sequential(nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()), nn.Flatten(), nn.Linear(3 * 64, 2))
    assert residual_blocks(net, torch.randn(2, 3, 8, 8)) == []
    with pytest.raises(ValueError, match="'block' needs residual parts"):
        prune(net, "l1", "block", 0.5, example=torch.randn(2, 3, 8, 8))


def test_dropping_takes_the_harmless_block():
    model, data = vision.dense("resnet20"), few(1)
    with torch.no_grad():  # block 4 does nothing
        model.blocks[4].bn2.weight.zero_(), model.blocks[4].bn2.bias.zero_()
    gone = prune(model, "l1", "block", 1 / 7, data).model
    assert isinstance(gone.blocks[4], nn.Identity) and sum(isinstance(b, nn.Identity) for b in gone.blocks) == 1
    with torch.no_grad():
        assert torch.allclose(gone(data[0][0]), without(model, [])(data[0][0]), atol=1e-5)


# --- allocation ---------------------------------------------------------------------------------------------------------------------------------


def test_predicted_macs_are_those_of_the_rebuilt_net():
    model = vision.dense("mobilenet")
    groups = [g for g in channel_groups(model, vision.EXAMPLE) if not g.coupled]
    from workbench.contracts.structure.surgery import macs_by_layer
    predicted = macs_left(groups, macs_by_layer(model, vision.EXAMPLE), {g.name: 0.5 for g in groups})
    assert predicted == pytest.approx(macs(prune(model, "l1", ratio=0.5, example=vision.EXAMPLE).model, vision.EXAMPLE), rel=1e-6)


def test_search_spends_no_more_macs_and_is_never_worse_on_its_own_data():
    model, data = vision.dense("vgg-small"), few()
    groups = channel_groups(model, vision.EXAMPLE)
    scores = Pruner("l1").scores(groups, model)
    from workbench.contracts.structure.surgery import macs_by_layer
    from workbench.papers.pruning.granularity import _pruned_loss
    layers, equal = macs_by_layer(model, vision.EXAMPLE), {g.name: 0.3 for g in groups}
    best = searched(groups, scores, 0.3, model, vision.EXAMPLE, data, policies=5)
    assert macs_left(groups, layers, best) <= macs_left(groups, layers, equal)
    assert _pruned_loss(groups, scores, best, model, vision.EXAMPLE, data) <= _pruned_loss(groups, scores, equal, model, vision.EXAMPLE, data)


def test_sensitivity_spares_the_layer_that_hurts():
    net, data, example = toy()
    net = copy.deepcopy(net)
    with torch.no_grad():
        net[3].weight[:, 4:] = 0  # half of the first layer's channels are not read
        data = [(x, net(x).argmax(1)) for x, _ in data]
    groups = channel_groups(net, example)
    scores = Pruner("consumer norm").scores(groups, net)
    shares = sensitivity(groups, scores, 0.3, net, example, data)
    assert shares[groups[0].name] > shares[groups[1].name]
    assert sum(shares[g.name] * g.size for g in groups) / sum(g.size for g in groups) == pytest.approx(0.3, abs=0.02)


# --- procedures ---------------------------------------------------------------------------------------------------------------------------------


def test_schedules_begin_and_end_where_they_should():
    for schedule in (procedures.cubic, procedures.rounds, procedures.at_once):
        shares = [schedule(step, 30, 0.9) for step in range(46)]
        assert shares[30:] == [0.9] * 16 or all(math.isclose(s, 0.9) for s in shares[30:])
        assert shares == sorted(shares)
    assert procedures.cubic(0, 30, 0.9) == 0 and procedures.cubic(15, 30, 0.8) == pytest.approx(0.7)
    assert [round(procedures.rounds(step, 30, 0.875), 3) for step in (0, 10, 20)] == [0.5, 0.75, 0.875]


def test_masks_stay_in_place_while_training():
    result = procedures.scheduled(vision.dense("vgg-small"), 0.9, 0, procedures.cubic, steps=8, every=2)
    total = sum(w.numel() for w in weights(result.model).values())
    zeros = sum(int((w == 0).sum()) for w in weights(result.model).values())
    assert zeros == round(0.9 * total) and all(bool(((w == 0) | result.masks[name]).all()) for name, w in weights(result.model).items())
    assert len(result.series["loss"]) == 8


def test_ticket_starts_from_the_first_weights():
    start = procedures.initial("vgg-small", 3)
    assert all(torch.equal(a, b) for a, b in zip(start.parameters(), procedures.initial("vgg-small", 3).parameters()))
    masks = procedures.magnitude_masks(vision.dense("vgg-small", 3), 0.9)
    before = {name: w.detach().clone() for name, w in weights(start).items()}
    apply_masks(start, masks)
    assert all(torch.equal(w, before[name] * masks[name]) for name, w in weights(start).items())


def test_admm_draws_the_weights_to_their_projection():
    def gap(rho):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 4))
        state = procedures.ADMM(net, 0.8, rho)
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        x, y = torch.randn(64, 20), torch.randint(4, (64,))
        for step in range(120):
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            state.pull()
            optimizer.step()
            if step % 10 == 9:
                state.project()
        assert abs(sum(int((z != 0).sum()) for z in state.z.values()) - round(0.2 * 480)) <= 1
        return state.gap()

    assert gap(0.1) < 0.7 * gap(0.0)


def test_penalties_shrink_what_they_name():
    model = vision.dense("vgg-small")
    before = {name: w.detach().flatten(1).norm(dim=1) for name, w in weights(model).items()}
    with torch.no_grad():
        procedures.shrink_filters(model, 0.5)
    for name, w in weights(model).items():
        assert torch.allclose(w.flatten(1).norm(dim=1), (before[name] - 0.5 * before[name].mean()).clamp_min(0), atol=1e-5)
    scale = model.features[1].weight.detach().clone()
    with torch.no_grad():
        procedures.shrink_scales(model, 0.1)
    assert torch.allclose(model.features[1].weight, scale.sign() * (scale.abs() - 0.1).clamp_min(0))


# --- gating -------------------------------------------------------------------------------------------------------------------------------------


def test_gated_channels_are_those_of_the_dense_net_and_the_rest_is_not_computed():
    model, images = vision.dense("vgg-small"), vision.calibration()[:3]
    gated = gate(model, 0.5, vision.EXAMPLE).model
    first = gated.features[0]
    with torch.no_grad():
        maps, dense = first(images), model.features[1](model.features[0](images))
        for row, chosen, full in zip(maps, first.active, dense):
            silent = sorted(set(range(16)) - set(chosen.tolist()))
            assert torch.allclose(row[chosen], full[chosen], atol=1e-4) and not row[silent].any() and len(chosen) == 8
        gated(images)
        assert len({tuple(rows.tolist()) for rows in gated.features[10].active}) > 1  # images choose for themselves
    assert macs(gated, vision.EXAMPLE) < 0.3 * macs(model, vision.EXAMPLE)


def test_all_channels_open_is_the_dense_net():
    model, images = vision.dense("vgg-small"), vision.calibration()[:4]
    open_ = gate(model, 0.005, vision.EXAMPLE).model  # rounds to no channel skipped, but runs through the gates
    with torch.no_grad():
        assert torch.allclose(open_(images), model(images), atol=1e-3)
        assert torch.equal(gate(model, 0.0, vision.EXAMPLE).model(images), model(images))


def test_gating_needs_batch_norm():
    with pytest.raises(ValueError, match="needs a convolution with a batch norm"):
        gate(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)), 0.5, torch.zeros(1, 3, 8, 8))


# --- the map ------------------------------------------------------------------------------------------------------------------------------------


def test_the_map_names_the_study():
    named = {leaf.contender for leaf in leaves() if leaf.contender}
    assert named <= set(survey.STUDY.contenders), named - set(survey.STUDY.contenders)
    live = {part.split()[0] for leaf in leaves() if leaf.contender for part in leaf.path}
    assert live >= {"2.1", "2.2", "2.3", "3.1", "3.2", "3.3", "3.4", "3.5", "3.6", "4", "5", "6"}
    assert {leaf.path[0][0] for leaf in leaves()} == {n for n in BRANCHES if "." not in n}


def test_the_map_is_drawn_with_gaps_in_grey():
    figure = taxonomy_map({"contender": "OBD", "accuracy": 50.0, "bytes": 95.0}, {"kept": [56, 55]})
    trace = figure.data[0]
    assert len(trace.ids) == len(set(trace.ids)) and set(trace.parents) - {""} <= set(trace.ids)
    colors = dict(zip(trace.labels, trace.marker.colors, strict=True))
    assert colors["OBS"] == MISSING and colors["OBD"] != colors["Taylor"] and colors["Taylor"] != colors["OBS"]
    missing = [leaf.title for leaf in leaves() if not leaf.contender and not (resolve(leaf) and resolve(leaf).implemented)]
    assert missing and all(MISSING in [c for name, c in zip(trace.labels, trace.marker.colors) if name == title] for title in missing)
    assert all(leaf.gloss in " ".join(trace.customdata) for leaf in leaves()) and "50.0 %" in figure.layout.title.text


def test_every_classic_of_the_map_has_an_entry():
    keys = {entry.arxiv for entry in registry.catalogue() if entry.kind == "classic"}
    assert {leaf.key for leaf in leaves() if not leaf.key[0].isdigit()} - {"obs"} <= keys


# --- one's own model ----------------------------------------------------------------------------------------------------------------------------


def test_compare_pruners_scores_once_and_draws_the_front():
    model, data = vision.dense("vgg-small"), few()
    frame = compare_pruners(model, data, ["l1", "thinet", "random"], [0.0, 0.3, 0.6])
    assert len(frame) == 9 and frame[frame.ratio == 0].quality.nunique() == 1 and (frame.groupby("ratio")["bytes"].nunique() == 1).all()
    at = frame.set_index(["criterion", "ratio"]).quality
    assert at["thinet", 0.3] > at["random", 0.3]
    again = prune(model, "thinet", ratio=0.3, data=data)
    assert frame[(frame.criterion == "thinet") & (frame.ratio == 0.3)]["bytes"].item() == vision.file_bytes(again)
    figure = pareto(frame)
    ringed = figure.data[-1]
    assert ringed.name == "not beaten" and all((frame[frame["bytes"] <= x].quality <= y).all() for x, y in zip(ringed.x, ringed.y))
    with pytest.raises(ValueError, match="no column 'watts'"):
        pareto(frame, "watts")


def test_own_criterion_and_own_judge():
    class Last:
        def scores(self, groups, model, data):
            return {g.name: -torch.arange(g.size).float() for g in groups}

    net, data, _ = toy()
    small = prune(net, Last(), ratio=0.5, data=data).model
    assert torch.equal(small[0].weight, net[0].weight[:4])
    frame = compare_pruners(net, data, [Last()], [0.5], evaluate=lambda model: 7.0)
    assert frame.criterion.item() == "Last" and frame.quality.item() == 7.0 and isinstance(frame, pd.DataFrame)


def test_the_model_is_left_as_it_was():
    net, data, _ = toy()
    before = copy.deepcopy(net.state_dict())
    for granularity in ("weight", "channel"):
        prune(net, "l1", granularity, 0.5, data)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("settings, message", [
    ({"criterion": "taylor"}, "example: hand in a batch"), ({"criterion": "taylor", "example": vision.EXAMPLE}, "hand in a loader"),
    ({"criterion": "best"}, "criterion: one of"), ({"granularity": "layer"}, "granularity: one of"), ({"allocation": "fair"}, "allocation: one of"),
    ({"ratio": 1.0}, r"ratio: .* \[0, 1\), found 1.0"), ({"ratio": -0.1}, "ratio: "), ({"criterion": "l1", "granularity": "block"}, "example"),
    ({"criterion": "fpgm", "granularity": "weight"}, "value per weight"), ({"criterion": "l1", "granularity": "row", "allocation": "searched"}, "allocation: 'uniform'"),
    ({"criterion": "l1", "allocation": "sensitivity", "example": vision.EXAMPLE}, "hand in a loader"), ({"data": []}, "yields no batch"),
])
def test_wrong_input_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        prune(vision.dense("vgg-small"), **settings)


def test_nan_weights_and_missing_kernels_are_named():
    model = vision.dense("vgg-small")
    with torch.no_grad():
        model.classifier.weight[0, 0] = math.nan
    with pytest.raises(ValueError, match="'classifier.weight' hold NaN"):
        prune(model, "l1", example=vision.EXAMPLE)
    with pytest.raises(ValueError, match="larger than 1×1"):
        prune(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), "l1", "kernel")
    with pytest.raises(ValueError, match="criteria: at least one"):
        compare_pruners(vision.dense("vgg-small"), few(1), [])
    with pytest.raises(ValueError, match="loader: it yields no batch"):
        compare_pruners(vision.dense("vgg-small"), [], ["l1"])
