"""RFC-HyPGCN beyond what the common matrix tests: surgery against masks, files, the feature memory's edges, the chip, and wrong input."""

import numpy as np
import pytest
import torch
from torch import nn

import workbench
from workbench.benches import skeleton
from workbench.benches.clips import fingerprint
from workbench.benches.skeleton import data
from workbench.benches.skeleton.nets import AGCN, TAPS, TwoStream, adjacency
from workbench.contracts.data import StreamError
from workbench.contracts.files.artifact import ArtifactError
from workbench.contracts.structure.surgery import macs
from workbench.papers.pruning._hypgcn_checks import clip, features, toy
from workbench.papers.pruning._hypgcn_cycles import allot, dynamic, lockstep, static
from workbench.papers.pruning._hypgcn_fixed import narrowed, words
from workbench.papers.pruning._hypgcn_prune import PRESETS, HybridPruning, Preset, TapConv, balanced, plan_of
from workbench.papers.pruning._hypgcn_rfc import csr_bits
from workbench.papers.pruning.rfc_hypgcn import RFC, STUDY, FixedNet, HyPGCN, hybrid_prune, simulate

EXAMPLE = torch.zeros(1, 3, 24, 25)


def fresh(seed=0):
    torch.manual_seed(seed)
    return TwoStream().eval()


def batches():
    clips, labels = data.split("validation").tensors(16)
    return [(clips[:8], labels[:8]), (clips[8:], labels[8:])]


def test_pruned_equals_masked():
    """Zeroed columns and taps in the dense layers against layers that hold only the rest."""
    plan, dense, small = Preset((0, 0.5, 0.25, 0.5), 0.5, False), toy(), toy()
    HybridPruning().prune_stream(small, plan)
    with torch.no_grad():
        for whole, part in zip(dense.blocks, small.blocks, strict=True):
            gone = torch.ones(whole.gcn.in_channels, dtype=torch.bool).index_fill(0, part.gcn.kept, False)
            whole.gcn.weight[:, :, gone] = 0
            kept = torch.from_numpy(part.tcn.kept)
            whole.tcn.mask &= kept[:, None, :, None]
            whole.bn2.weight[~kept.any(1)] = 0
            whole.bn2.bias[~kept.any(1)] = 0
        assert torch.allclose(dense(clip()), small(clip()), atol=1e-5)


def test_multiplications_really_go():
    net = fresh()
    counts = [macs(HybridPruning().prune(net, plan), EXAMPLE) for plan in PRESETS.values()]
    assert counts[0] == macs(net, EXAMPLE) and all(abs(a / b * reduction - 1) < 0.06 for a, b, reduction in zip(counts, counts[:1] * 5, PRESETS, strict=True) if reduction > 2)


def test_the_loop_nest_counts_what_torch_executes():
    for plan in (PRESETS[1.0], PRESETS[3.0]):
        small = HybridPruning().prune(fresh(), plan)
        counted = sum(sum(work.values()) for work in FixedNet.of(small).run(clip(1, 24)[0])[1])
        assert counted == macs(small.joints, EXAMPLE) - small.joints.head.weight.numel()


def test_every_second_frame_halves_the_work_and_reads_the_right_ones():
    net, plan = fresh(), Preset((0, 0, 0, 0), 0.0, False)
    whole, half = (HybridPruning().prune(net, Preset(plan.channels, 0.0, skip)) for skip in (False, True))
    work = [sum(sum(w.values()) for w in FixedNet.of(m).run(clip(1, 24)[0])[1]) for m in (whole, half)]
    with torch.no_grad():
        assert work[0] == 2 * work[1] and torch.equal(half(clip(2, 24)), whole(clip(2, 24)[:, :, ::2]))


def test_files_bring_the_same_integers_back(tmp_path):
    for plan in (PRESETS[1.0], PRESETS[8.4]):
        net = FixedNet.of(HybridPruning().prune(fresh(), plan))
        assert net.save(tmp_path / "net") == (tmp_path / "net").stat().st_size
        assert torch.equal(FixedNet.load(tmp_path / "net")(clip(2, 24)), net(clip(2, 24)))
    raw = (tmp_path / "net").read_bytes()
    (tmp_path / "net").write_bytes(raw[:-7])
    with pytest.raises(ArtifactError, match="truncated"):
        FixedNet.load(tmp_path / "net")


def test_a_file_with_too_few_words_is_refused():
    tensors, meta = FixedNet.of(fresh()).parts()
    with pytest.raises(ValueError, match="missing"):
        FixedNet.from_parts({**tensors, "words": tensors["words"][:-5]}, meta)
    with pytest.raises(ValueError, match="too many"):
        FixedNet.from_parts({**tensors, "words": torch.cat([tensors["words"], tensors["words"][:1]])}, meta)


def test_pattern_ids_are_stored_for_a_loop_not_for_each_filter():
    even, odd = (FixedNet.of(HybridPruning(patterns).prune(fresh(), PRESETS[3.0])).parts()[0]["small"] for patterns in
                 (balanced, lambda rate, n, seed: np.random.default_rng(seed).permuted(balanced(rate, n), axis=1)))
    assert len(even) < len(odd)


def test_rounding_and_saturation_by_hand():
    assert narrowed(np.array([127.0, 128, -128, -129, 1e9, -1e9])).tolist() == [0, 1, 0, -1, 32767, -32768]
    assert words(np.array([1.0, -0.5, 200, -200, 1 / 512])).tolist() == [256, -128, 32767, -32768, 0]


# --- the feature memory


def test_overflow_without_spill_is_an_error():
    calm, busy = features(16, 6, 0.9), features(16, 6, 0.1)
    assert np.array_equal(RFC.fit(calm[None]).decode(RFC.fit(calm[None]).encode(busy)), busy)
    with pytest.raises(ValueError, match="no spill bank"):
        RFC.fit(calm[None], spill=False).encode(busy)


def test_depths_fall_and_hold_the_calibration():
    maps = np.stack([features(48, 6, 0.6, seed) for seed in range(5)])
    memory = RFC.fit(maps, 1.0)
    assert (np.diff(memory.depths, axis=1) <= 0).all() and all(memory.bits(f)["spill"] == 0 for f in maps)


def test_damaged_features_raise_their_own_error():
    feature = features(24, 6, 0.5)
    memory = RFC.fit(feature[None])
    blob, rng = memory.encode(feature), np.random.default_rng(0)
    for _ in range(40):
        wrong = bytearray(blob)
        wrong[rng.integers(len(blob))] ^= 1 + int(rng.integers(255))
        with pytest.raises(StreamError):
            memory.decode(bytes(wrong))
    for bad in (b"", blob[:10], blob[:-3], rng.bytes(300)):
        with pytest.raises(StreamError):
            memory.decode(bad)


def test_a_memory_of_other_depths_refuses():
    feature = features(32, 6, 0.5)
    one, other = RFC.fit(feature[None]), RFC.fit(features(32, 6, 0.9)[None])
    for writer, reader in ((one, other), (other, one)):
        with pytest.raises(StreamError, match="another size"):
            reader.decode(writer.encode(feature))


def test_wrong_features_are_named():
    memory = RFC.fit(features(16, 6, 0.5)[None])
    with pytest.raises(ValueError, match="int16"):
        memory.encode(np.zeros((16, 6, 25)))
    with pytest.raises(ValueError, match="2 banks"):
        memory.encode(features(32, 6, 0.5))


def test_empty_and_full_features():
    empty, full = np.zeros((16, 6, 25), np.int16), features(16, 6, -1)
    for feature in (empty, full):
        memory = RFC.fit(feature[None])
        assert np.array_equal(memory.decode(memory.encode(feature)), feature)
    assert RFC.fit(empty[None]).bits(empty)["minibanks"] == 0 and csr_bits(empty) == 6 * 25 * 5


# --- the chip


def test_a_lane_without_zeros_and_one_without_anything():
    full, empty = np.ones((1, 30, 3), bool), np.zeros((1, 30, 3), bool)
    assert dynamic(full, 3)[0] == static(full, 3)[0] == 30 and dynamic(empty, 2)[0] == 30
    assert 45 <= dynamic(full, 2)[0] <= 46 and dynamic(full, 1)[0] == 90


def test_multipliers_are_dealt_out_as_well_as_by_trying_all():
    work, best = [70.0, 20.0, 55.0], 1e9
    for a in range(1, 9):
        for b in range(1, 10 - a):
            best = min(best, max(70 / a, 20 / b, 55 / (10 - a - b)))
    given = allot(work, 10)
    assert given.sum() == 10 and max(w / g for w, g in zip(work, given, strict=True)) == pytest.approx(best)


def test_lockstep_waits_for_the_fullest_filter():
    kept = np.zeros((8, TAPS), bool)
    kept[:, 0] = True
    kept[3, :5] = True
    assert lockstep(kept, 10) == 50


def test_simulate_says_what_a_clip_costs():
    chip = hybrid_prune(fresh(), preset="8.4x")
    few, many = (simulate(chip, clip(1, 24)[0], dsps) for dsps in (32, 256))
    assert few["interval"] > 3 * many["interval"] and few["macs"] == many["macs"] and 0 < many["graph_skipped"] < 1


def test_the_loader_sizes_the_feature_memory():
    clips = torch.randn(4, 3, 16, 25, generator=torch.Generator().manual_seed(0)) * 0.3
    chip = hybrid_prune(fresh(), [(clips, torch.arange(4))], steps=1)
    assert 0.3 < simulate(chip, clips[0])["features_share"] < 1.1
    with pytest.raises(ValueError, match="clip: 16 frames, .* found 24"):
        simulate(chip, clip(1, 24)[0])


def test_front_door(tmp_path):
    result = workbench.compress(fresh(), HyPGCN(steps=2), ratio=0.6, data=batches(), probe=None)
    assert result.report.macs[1] < 0.4 * result.report.macs[0] and isinstance(result.model.joints.blocks[0].tcn, TapConv)


def test_tuning_trains_what_is_left():
    net = HyPGCN(steps=2).pruned(fresh(), PRESETS[3.0], batches())
    other = HyPGCN().pruned(fresh(), PRESETS[3.0])
    assert not torch.equal(net.joints.blocks[1].tcn.weight, other.joints.blocks[1].tcn.weight) and net.joints.blocks[1].tcn.weight.shape == other.joints.blocks[1].tcn.weight.shape


@pytest.mark.parametrize(("build", "says"), [
    (lambda: hybrid_prune(nn.Linear(2, 2)), "two-stream"),
    (lambda: hybrid_prune(fresh(), preset="9x"), "1x, 2x, 3x, 5x, 8.4x"),
    (lambda: hybrid_prune(fresh(), preset=Preset((0, 0.5), 0.5, False)), "one share a block"),
    (lambda: hybrid_prune(fresh(), preset=Preset((0, 0.5, 1.0, 0), 0.5, False)), r"shares in \[0, 1\)"),
    (lambda: hybrid_prune(fresh(), [batches()[0][0]], steps=1), "labels"),
    (lambda: hybrid_prune(fresh(), [], steps=1), "yields no batch"),
    (lambda: hybrid_prune(fresh(), iter(batches()), steps=3), "yields no batch"),
    (lambda: HyPGCN().compress(fresh(), 0.95, None, EXAMPLE), "ratio: at most 0.88"),
    (lambda: balanced(0.95, 8), "at least one of 9 taps"),
    (lambda: TapConv(nn.Conv2d(4, 4, (5, 1), padding=(2, 0)), np.ones((4, 9), bool)), "9×1 is needed"),
    (lambda: simulate(hybrid_prune(fresh()), torch.zeros(3, 24, 17)), "25"),
    (lambda: simulate(hybrid_prune(fresh()), clip(1, 24)[0], 3), "dsp: 3 multipliers"),
    (lambda: data.split("dev"), "train, validation, test"),
])
def test_wrong_input_says_what_is_allowed(build, says):
    with pytest.raises(ValueError, match=says):
        build()


def test_the_graph_is_a_tree_normalised_by_columns():
    a = adjacency()
    assert (a[1] > 0).sum() == (a[2] > 0).sum() == 24 and set(a.sum(1).flatten().round(decimals=6).tolist()) == {0.0, 1.0}


def test_clips_are_pinned():
    part = data.split("test")
    assert fingerprint(part) == data.EXPECTED["test"] and part.clips.shape == (600, 3, 24, 25) and min(np.bincount(part.labels)) > 35


def test_the_picture_of_the_dense_net_says_so_and_names_are_plans():
    assert "dense" in STUDY.picture({}, {}).layout.title.text and plan_of("3x") == PRESETS[3.0] == plan_of(3)
    assert isinstance(fresh().joints, AGCN) and skeleton.whole()[2] == macs(fresh().joints, EXAMPLE) - 480
