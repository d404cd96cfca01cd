"""The speech bench: the same sound everywhere, disjoint speakers, a causal net whose norms fold exactly, SI-SDR as defined, WAV files in and out."""

import wave

import numpy as np
import pytest
import torch

from workbench.benches import speech
from workbench.benches.speech import data, recipe, wav
from workbench.benches.speech.nets import Separator, fold, load


def test_the_data_are_the_pinned_integers():
    assert data.fingerprint() == data.EXPECTED


def test_a_clip_does_not_depend_on_how_many_are_made():
    again = data.utterance(data.speakers("test")[0][0], np.random.Generator(np.random.PCG64([5, 2, 0])))
    assert again.dtype == np.int32 and again.shape == (data.SAMPLES,)
    assert data.split("test").voices.dtype == np.int16


def test_speakers_are_disjoint_and_mixtures_fit_int16():
    pitches = [speaker.pitch for name in data.SPEAKERS for group in data.speakers(name) for speaker in group]
    assert len(set(pitches)) == len(pitches) == sum(data.SPEAKERS.values())
    assert np.abs(data.split("validation").voices.astype(np.int32).sum(1)).max() <= 32_767


def test_low_and_high_voices_have_their_pitch():
    """The strongest period of each voice, by autocorrelation, lies in its speaker's range."""
    voices = data.split("validation").voices.astype(float)
    for voice, (low, high) in enumerate(((75, 175), (140, 290))):
        found = []
        for clip in voices[:8, voice]:
            part = clip[4_000:8_000]
            spectrum = np.abs(np.fft.rfft(part, 8_192)) ** 2
            correlation = np.fft.irfft(spectrum)[20:120]
            found.append(data.RATE / (20 + correlation.argmax()))
        assert low < np.median(found) < high


def test_unknown_split_is_named():
    with pytest.raises(ValueError, match="train, validation, test, not 'dev'"):
        data.split("dev")


def test_si_sdr_by_hand_and_without_loudness():
    reference = torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    noise = torch.tensor([[0.1, 0.1, -0.1, -0.1]])                     # orthogonal to the reference, both without mean
    assert recipe.si_sdr(reference + noise, reference).item() == pytest.approx(20, abs=1e-3)
    assert recipe.si_sdr(7 * (reference + noise), reference).item() == pytest.approx(20, abs=1e-3)


def test_the_better_assignment_counts():
    voices = torch.randn(3, 2, 400, generator=torch.Generator().manual_seed(0))
    estimates = voices + 0.1 * torch.randn(3, 2, 400, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(recipe.pit_si_sdr(estimates, voices), recipe.pit_si_sdr(estimates.flip(1), voices))


def test_the_net_is_causal():
    """What comes later than one window changes nothing before."""
    net, x = fold(Separator(16, 8, (12, 12), 2)), torch.randn(1, 400, generator=torch.Generator().manual_seed(0))
    later = x.clone()
    later[:, 300:] = 5.0
    with torch.no_grad():
        same = (net(x) == net(later)).all(1)[0]
    assert same[:300 - net.window].all() and not same[300:].all()


@pytest.mark.parametrize("samples", [20, 399, 400, 401, 407])
def test_as_many_samples_come_out_as_go_in(samples):
    assert Separator(8, 6, (5,), 1).eval()(torch.zeros(2, samples)).shape == (2, 2, samples)


def test_folding_changes_nothing_and_the_shipped_nets_separate():
    net, (mixture, voices) = load(0), data.split("test").tensors(4, data.RATE, 2_000)
    with torch.no_grad():
        a, b = net(mixture), fold(net)(mixture)
    assert float((a - b).abs().max() / a.abs().max()) < 1e-5
    assert recipe.improvement(net, mixture, voices).mean() > 8


def test_a_training_step_lowers_the_loss():
    torch.manual_seed(0)
    losses = []
    mixture, voices = data.split("validation").tensors(2, 2_000, 2_000)
    recipe.train(Separator(16, 8, (12,), 1), 20, 0, on_step=lambda step, loss: losses.append(loss), source=((mixture, voices) for _ in range(20)))
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 1


def test_wav_round_trip(tmp_path):
    samples = np.array([0, 1, -1, 32_767, -32_768], np.int16)
    wav.write(tmp_path / "a.wav", samples)
    rate, again = wav.read(tmp_path / "a.wav")
    assert rate == data.RATE and np.array_equal(again, samples)


def _written(path, channels=1, width=2, rate=8_000, frames=10):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(bytes(frames * width * channels))
    return path


@pytest.mark.parametrize(("make", "message"), [
    (lambda p: p.write_bytes(b"not a sound"), "not a readable WAV"),
    (lambda p: p.write_bytes(b""), "not a readable WAV"),
    (lambda p: _written(p, width=3), "24 bits"),
    (lambda p: _written(p, frames=0), "more than none"),
    (lambda p: p.write_bytes(_written(p, frames=100).read_bytes()[:-50]), "truncated"),
])
def test_bad_wav_files_are_named(tmp_path, make, message):
    make(tmp_path / "bad.wav")
    with pytest.raises(wav.WavError, match=message):
        wav.read(tmp_path / "bad.wav")


def test_too_long_a_sound_is_not_read(tmp_path):
    with pytest.raises(wav.WavError, match=r"at most 0\.001 s"):
        wav.read(_written(tmp_path / "long.wav"), longest=0.001)


def test_stereo_is_averaged_and_8_bits_are_centred(tmp_path):
    rate, samples = wav.read(_written(tmp_path / "a.wav", channels=2, width=1))
    assert rate == 8_000 and samples.shape == (10,) and (samples == -32_768).all()


def test_the_dense_reference_is_measured():
    result = speech.measure(speech.dense(0))
    assert result.metrics["bytes_share"] == pytest.approx(1, abs=0.01) and result.metrics["si_sdri"] > 8
    assert result.samples["si_sdri"].shape == (speech.CLIPS,)
