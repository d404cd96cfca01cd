"""The speech separator beyond what the common matrix tests: formats, phases, surgery, the packed file and its damage, the user's own sound."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from workbench.benches.speech import data, wav
from workbench.benches.speech.nets import Separator, fold
from workbench.contracts.files.artifact import ArtifactError
from workbench.papers.pruning import speech_separator as paper
from workbench.papers.pruning._phases import lower_by_phase, lower_with_zeros, zero_inserted
from workbench.papers.pruning._separator_pack import PackedSeparator, pack_positions, position_bytes, unpack_positions
from workbench.papers.pruning._separator_prune import (
    Quantised,
    compress,
    gradual,
    importance,
    narrow,
    parameters,
    sensitivity,
    shipped,
    tau_for,
    widths_for,
)
from workbench.papers.pruning._shifted_fp8 import Float8, Int8


@pytest.fixture(scope="module")
def net():
    """A small folded separator that has been trained on nothing."""
    torch.manual_seed(0)
    return Separator(16, 12, (20, 20), 2, norm=False).eval()


@pytest.fixture(scope="module")
def packed(net):
    state = Quantised(fold(net), Float8(), torch.randn(2, 400, generator=torch.Generator().manual_seed(1)) / 10)
    state.prune(500)
    return state.pack()


def noise(samples=400):
    return (np.random.Generator(np.random.PCG64(0)).standard_normal(samples) * 3_000).astype(np.int16)


# ── formats ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_standard_bias_is_torchs_e4m3_below_its_largest():
    x = torch.randn(20_000, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 2, 20_000)
    x = x.clamp(-440, 440)
    assert torch.equal(Float8().round(x, 7), x.to(torch.float8_e4m3fn).float())


@settings(max_examples=200, deadline=None)
@given(st.floats(-1e4, 1e4, width=32), st.integers(-10, 30), st.sampled_from([(4, 3), (5, 2), (3, 4)]))
def test_rounding_finds_the_nearest_of_all_values(x, bias, bits):
    fmt = Float8(*bits)
    values = fmt.decode(torch.arange(256, dtype=torch.uint8), bias).double()
    got = fmt.round(torch.tensor([x]), bias).double().item()
    assert abs(got - x) == (values - x).abs().min().item()


def test_ties_go_to_even_codes():
    values = Float8().decode(torch.arange(128, dtype=torch.uint8), 7).double()
    middle = (values[:-1] + values[1:]) / 2
    assert (Float8().encode(middle, 7) % 2 == 0).all()


def test_the_fitted_shift_uses_the_top_exponent():
    for scale in (2.0**-20, 1.0, 2.0**9):
        x = torch.linspace(-1, 1, 101) * scale
        assert abs(Float8().fit(x) - Float8().fit(x / scale) + np.log2(scale)) < 1e-9
        assert Float8().largest(Float8().fit(x)) >= scale / 2


@pytest.mark.parametrize("bad", [torch.zeros(3), torch.tensor([1.0, float("inf")]), torch.zeros(0)])
def test_no_shift_fits_nothing(bad):
    with pytest.raises(ValueError, match="not all zero"):
        Float8().fit(bad)


def test_nan_is_refused_and_wrong_bits_too():
    with pytest.raises(ValueError, match="1 NaN among 2"):
        Float8().encode(torch.tensor([1.0, float("nan")]), 7)
    with pytest.raises(ValueError, match="7 exponent and mantissa bits"):
        Float8(4, 4)


def test_int8_round_trip():
    x = torch.randn(100, generator=torch.Generator().manual_seed(0))
    scale = Int8().fit(x)
    assert torch.allclose(Int8().decode(Int8().encode(x, scale), scale), Int8().round(x, scale))


def test_gradients_pass_straight_through_in_range():
    x = torch.tensor([0.3, 1e9], requires_grad=True)
    Float8().quantise(x, 7).sum().backward()
    assert x.grad.tolist() == [1.0, 0.0]


# ── phases ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def whole_numbers(layer):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randint(-9, 10, parameter.shape, generator=generator))
    return layer


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([1, 2, 3, 4, 8, 16]), st.integers(1, 5), st.integers(0, 4), st.integers(1, 70), st.sampled_from([1, 2, 4]),
       st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
def test_dilated_by_phase_is_the_layer(dilation, kernel, padding, samples, groups, mode):
    if samples + 2 * padding <= dilation * (kernel - 1) or samples <= padding:
        return
    layer = whole_numbers(nn.Conv1d(4, 8, kernel, padding=padding, dilation=dilation, groups=groups, padding_mode=mode).double())
    x = torch.randint(-9, 10, (2, 4, samples), generator=torch.Generator().manual_seed(samples)).double()
    assert torch.equal(paper.dilated_by_phase(layer)(x), layer(x))
    single = layer.float()
    assert torch.allclose(paper.dilated_by_phase(single)(x.float() / 7), single(x.float() / 7), rtol=1e-6, atol=1e-4)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 7), st.integers(1, 20), st.integers(0, 3), st.integers(0, 3), st.integers(1, 33), st.sampled_from([1, 2, 4]))
def test_transpose_by_phase_is_the_layer(stride, kernel, padding, extra, samples, groups):
    if extra >= stride or (samples - 1) * stride - 2 * padding + kernel + extra < 1:
        return
    layer = whole_numbers(nn.ConvTranspose1d(4, 8, kernel, stride, padding, extra, groups=groups).double())
    x = torch.randint(-9, 10, (2, 4, samples), generator=torch.Generator().manual_seed(samples)).double()
    assert torch.equal(paper.transpose_by_phase(layer)(x), layer(x))


def test_phases_share_their_parameters_and_train():
    layer = nn.Conv1d(3, 3, 3, dilation=4)
    wrapped = paper.dilated_by_phase(layer)
    wrapped(torch.randn(1, 3, 30)).sum().backward()
    assert wrapped.conv is layer and layer.weight.grad is not None


@pytest.mark.parametrize(("wrap", "layer", "error", "message"), [
    (paper.dilated_by_phase, nn.Conv1d(1, 1, 3, 2, dilation=2), ValueError, "stride 2 and dilation 2"),
    (paper.dilated_by_phase, nn.Linear(2, 2), TypeError, "not Linear"),
    (paper.transpose_by_phase, nn.ConvTranspose1d(1, 1, 3, dilation=2), ValueError, "dilation 2"),
    (paper.transpose_by_phase, nn.Conv1d(1, 1, 3), TypeError, "not Conv1d"),
])
def test_what_cannot_be_decomposed_says_so(wrap, layer, error, message):
    with pytest.raises(error, match=message):
        wrap(layer)


def test_too_short_an_input_says_so():
    with pytest.raises(ValueError, match="too short"):
        paper.dilated_by_phase(nn.Conv1d(1, 1, 3, dilation=8))(torch.zeros(1, 1, 16))


def test_both_ways_to_lower_agree_with_torch():
    for layer in (nn.Conv1d(3, 3, 3, padding=4, dilation=4, groups=3), nn.ConvTranspose1d(3, 2, 6, 3, 1, 1)):
        layer = whole_numbers(layer.double()).requires_grad_(False)
        x = torch.randn(3, 21, generator=torch.Generator().manual_seed(0)).double()
        for lower in (lower_by_phase, lower_with_zeros):
            layers, assemble = lower(layer, x)
            y = assemble([torch.from_numpy(paper.run(paper.Machine(), part)[0]) for part in layers])
            assert torch.allclose(y, layer(x[None])[0])
    assert zero_inserted(torch.tensor([1.0, 2.0]), 3).tolist() == [1, 0, 0, 2]


# ── pruning ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_sensitivity_keeps_the_largest_ratio_within_tolerance(net):
    losses = {"filters": np.array([0, .1, .2, .5, .25, 1, 1, 1, 1, 1]), "trunk": np.array([0] + [1.0] * 9), "blocks.0": np.zeros(10), "blocks.1": np.arange(10.0)}
    assert widths_for(net, losses, 0.3) == {"filters": 10, "trunk": 12, "blocks.0": 2, "blocks.1": 20}


def test_a_larger_tolerance_never_leaves_more(net):
    voices = torch.randn(1, 2, 800, generator=torch.Generator().manual_seed(0)) / 10
    losses = sensitivity(net, voices.sum(1), voices)
    assert all(curve[0] == 0 and len(curve) == 10 for curve in losses.values()) and set(losses) == set(importance(net))
    sizes = [parameters(narrow(net, widths_for(net, losses, tau))) for tau in (0, 0.1, 0.5, 2, 50)]
    assert sizes == sorted(sizes, reverse=True)
    assert parameters(narrow(net, widths_for(net, losses, tau_for(net, losses, 0.5)))) <= 0.5 * parameters(net)


def test_cubic_schedule():
    assert gradual(100, 20, 0) == 100 and gradual(100, 20, 1) == 20 and gradual(100, 20, 0.5) == 30 and gradual(100, 20, 2) == 20


def test_masks_keep_the_largest_weights_and_a_weight_a_layer(net):
    state = Quantised(fold(net), Float8(), torch.randn(1, 400, generator=torch.Generator().manual_seed(1)))
    with torch.no_grad():
        state.net.mask.parametrizations.weight.original.mul_(1e-6)
    state.prune(300)
    codes = state.pack().codes
    assert np.count_nonzero(codes["mask"] & 127) >= 1
    assert 300 <= sum(np.count_nonzero(c & 127) for c in codes.values()) <= 300 + len(codes)


@pytest.mark.parametrize("kind", ["both", "unstructured", "structured"])
def test_every_kind_reaches_its_targets(net, kind):
    voices = torch.randn(2, 2, 800, generator=torch.Generator().manual_seed(0)) / 10
    batch = (voices.sum(1), voices)
    for target, packed in compress(net, batch, (0.4, 0.7), kind, steps=10, source=(batch for _ in range(99))):
        biases = sum(bias.size for bias in packed.biases.values())
        assert packed.weights + biases <= (1 - target) * parameters(net) + 1 + len(packed.codes)


# ── the file ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 3_000), st.sampled_from([0.0, 0.003, 0.05, 0.4, 0.95, 1.0]))
def test_positions_return(seed, size, density):
    present = np.random.Generator(np.random.PCG64(seed)).random(size) < density
    mode, where, raw = pack_positions(present)
    assert raw.size == position_bytes(mode, where.size, size)
    again = unpack_positions(mode, where.size, raw, size)
    assert np.array_equal(again, where) and np.isin(np.flatnonzero(present), again).all()
    assert raw.size + where.size <= (size + 7) // 8 + present.sum()            # never longer than a bitmap with its values


def test_saved_and_loaded_it_sounds_the_same(packed, tmp_path):
    size = packed.save(tmp_path / "a.sep")
    again = PackedSeparator.load(tmp_path / "a.sep")
    assert size == (tmp_path / "a.sep").stat().st_size == len(packed.to_bytes())
    assert np.array_equal(again.separate(noise()), packed.separate(noise())) and again.weights == packed.weights
    wav.write(tmp_path / "mix.wav", noise())
    assert np.array_equal(again.separate(tmp_path / "mix.wav"), packed.separate(noise()))


def test_an_empty_process_hears_the_same(tmp_path):
    import subprocess
    import sys

    shipped().save(tmp_path / "a.sep")
    wav.write(tmp_path / "mix.wav", noise(2_000))
    code = ("import sys, numpy as np; from workbench.papers.pruning._separator_pack import PackedSeparator as P;"
            "np.save(sys.argv[3], P.load(sys.argv[1]).separate(sys.argv[2]))")
    subprocess.run([sys.executable, "-c", code, tmp_path / "a.sep", tmp_path / "mix.wav", tmp_path / "v.npy"], check=True, timeout=120)
    assert np.array_equal(np.load(tmp_path / "v.npy"), shipped().separate(noise(2_000)))


def test_damaged_files_are_refused(packed, tmp_path):
    path = tmp_path / "a.sep"
    packed.save(path)
    good = path.read_bytes()
    rng = np.random.Generator(np.random.PCG64(0))
    for case in range(300):
        bad = bytearray(good)
        if case % 3 == 0:
            bad = bad[:rng.integers(len(good))]
        elif case % 3 == 1:
            bad[rng.integers(len(bad))] ^= 1 << rng.integers(8)
        else:
            bad += bytes(rng.integers(0, 256, 5, dtype=np.uint8))
        path.write_bytes(bad)
        with pytest.raises(ArtifactError):
            PackedSeparator.load(path)


@pytest.mark.parametrize("change", [
    lambda t, m: m["layers"].pop(), lambda t, m: m["layers"][0].__setitem__(1, 10**9), lambda t, m: m["layers"][0].__setitem__(0, 77),
    lambda t, m: m["config"].update(filters=10**6), lambda t, m: m["config"].update(trunk=-3), lambda t, m: m["config"].update(gain=float("nan")),
    lambda t, m: m["config"].update(inner=[4096] * 60), lambda t, m: m["config"].pop("window"), lambda t, m: m.pop("format"),
    lambda t, m: t.pop("values"), lambda t, m: t.update(values=t["values"][:-1]), lambda t, m: t.update(positions=t["positions"][:-1]),
    lambda t, m: t.update(biases=t["biases"] * float("inf")), lambda t, m: t.update(shifts=t["shifts"][1:]),
    lambda t, m: m["layers"][1].__setitem__(1, -1), lambda t, m: m["config"].update(filters="many"),
])
def test_files_that_contradict_themselves_are_refused(packed, change):
    """With valid checksums: what the container cannot see."""
    tensors, meta = packed.tensors()
    meta = {**meta, "config": dict(meta["config"]), "layers": [list(row) for row in meta["layers"]]}
    change(tensors, meta)
    with pytest.raises(ArtifactError):
        PackedSeparator.from_tensors(tensors, meta)


def test_another_kind_of_artefact_is_refused(tmp_path):
    from workbench.contracts.files import artifact

    artifact.save(tmp_path / "a", {"x": torch.zeros(1)}, {"kind": "something else"})
    with pytest.raises(ArtifactError, match="something else, not a packed separator"):
        PackedSeparator.load(tmp_path / "a")


def test_dense_int8_and_e5m2_are_packed_as_well(net):
    for fmt in (Int8(), Float8(5, 2), Float8(shifted=False)):
        packed = Quantised(fold(net), fmt, torch.randn(1, 400, generator=torch.Generator().manual_seed(1)) / 10).pack()
        again = PackedSeparator.from_tensors(*packed.tensors())
        assert again.format == fmt and np.array_equal(again.separate(noise()), packed.separate(noise()))


# ── the user's own ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_compress_simulate_separate(net, tmp_path):
    voices = np.stack([noise(1_000), noise(1_000)[::-1] // 2]).astype(np.int16)
    for name, sound in (("mix", voices.sum(0).astype(np.int16)), ("a", voices[0]), ("b", voices[1])):
        wav.write(tmp_path / f"{name}.wav", sound)
    before = [p.clone() for p in net.parameters()]
    loader = [tuple(tmp_path / f"{name}.wav" for name in ("mix", "a", "b"))]
    sep = paper.compress_separator(net, loader, 0.6, steps=10)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))   # the user's model is left alone
    assert sep.weights <= 0.4 * parameters(net)
    report = paper.simulate(sep, tmp_path / "mix.wav")
    assert np.array_equal(report["voices"], sep.separate(tmp_path / "mix.wav")) and report["voices"].dtype == np.int16
    assert 0 < report["real_time"] < 1 and report["milliwatts"] > 0 and 0 < report["total"]["utilisation"] <= 1
    assert sum(layer["cycles"] for layer in report["layers"].values()) == report["total"]["cycles"]
    assert paper.simulate(sep, noise(), mhz=300)["real_time"] == pytest.approx(paper.simulate(sep, noise())["real_time"] / 2)
    assert paper.simulate(sep, noise(), lanes=1)["total"]["utilisation"] == 1


class Foreign(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)


@pytest.mark.parametrize(("model", "error", "message"), [
    (Foreign(nn.Conv1d(4, 4, 1), nn.GroupNorm(1, 4)), ValueError, r"not causal.*layers\.1 \(GroupNorm\)"),
    (Foreign(nn.Conv1d(4, 4, 1, groups=2), nn.Conv1d(6, 6, 1, groups=3)), ValueError, r"layers\.0 \(groups=2.*layers\.1 \(groups=3"),
    (Foreign(nn.Conv1d(4, 4, 1)), TypeError, "not Foreign"),
])
def test_models_that_cannot_be_compressed_are_told_why(model, error, message):
    with pytest.raises(error, match=message):
        paper.compress_separator(model, [], 0.5)


def test_an_all_zero_layer_is_named(net):
    dead = fold(net)
    with torch.no_grad():
        dead.blocks[1].reduce.weight.zero_()
    with pytest.raises(ValueError, match=r"blocks\.1\.reduce"):
        paper.compress_separator(dead, [], 0.5)


@pytest.mark.parametrize(("loader", "target", "message"), [
    ([], 0.5, "empty"), ([(torch.zeros(1, 9), torch.zeros(2, 9))], 0.5, r"\(b, 2, samples\)"), ([], 1.5, "0 to 0.97, not 1.5"),
])
def test_wrong_loaders_and_targets(net, loader, target, message):
    with pytest.raises(ValueError, match=message):
        paper.compress_separator(net, loader, target)


def test_other_sample_rates_are_refused(packed, net, tmp_path):
    wav.write(tmp_path / "cd.wav", noise(), 44_100)
    for use in (packed.separate, lambda path: paper.simulate(packed, path), lambda path: paper.compress_separator(net, [(path,) * 3], 0.5)):
        with pytest.raises(ValueError, match="44100|8000"):
            use(tmp_path / "cd.wav")
    with pytest.raises(ValueError, match="int16"):
        packed.separate(np.zeros(100))


# ── the study ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_half_a_second_is_simulated_in_time_and_exactly():
    import time

    packed, mixture = shipped(), data.split("test").tensors(1, data.RATE // 2)[0]
    start = time.process_time()
    voices, counters = packed.simulate(mixture)
    assert time.process_time() - start < 5
    assert torch.equal(voices, packed(mixture)) and len(counters) == len(packed.codes) + 1


def test_the_energy_table_is_calibrated_to_the_papers_power():
    from workbench.benches import speech

    assert speech.measure(shipped(paper.PAPER)).metrics["busy_milliwatts"] == pytest.approx(1.6, rel=0.02)


def test_picture_with_and_without_a_machine():
    from workbench.benches import speech

    figure = paper.lanes_and_cycles({}, speech.measure(shipped()).exhibits)
    assert len(figure.data) == 3 and np.array(figure.data[2].z).shape == (35, 8) and len(figure.data[0].y) == 35
    assert "no machine" in paper.lanes_and_cycles({}, {}).layout.title.text
