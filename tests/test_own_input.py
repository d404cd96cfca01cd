"""A file of one's own: known by its content, small limits, clear refusals; what is shown is what the method does. No browser: the handlers get bytes."""

import io
import re
import struct
import wave
import zlib
from datetime import UTC, datetime
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

import workbench.api
from workbench import own_input, own_views, try_own
from workbench.benches import photos, vision
from workbench.benches.speech import data as speech
from workbench.core.study import StudyError
from workbench.own_input import InputError, read, shown


def png(pixels, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def wav(samples, rate=8_000, width=2, channels=1):
    """int32 samples (frames × channels, flat) as a WAV file of ``width`` bytes a sample."""
    file = io.BytesIO()
    octets = np.asarray(samples, "<i4").view(np.uint8).reshape(-1, 4)[:, :width]
    with wave.open(file, "wb") as out:
        out.setnchannels(channels)
        out.setsampwidth(width)
        out.setframerate(rate)
        out.writeframes(octets.tobytes())
    return file.getvalue()


KNOB = workbench.api.study("fscl").knobs[0].name
PHOTO = photos.patches("test")[0]
TONE = (8_000 * np.sin(np.arange(4_000) / 5)).astype(np.int32)


def test_files_are_known_by_their_content():
    assert np.array_equal(read(png(PHOTO)).data, PHOTO) and read(png(PHOTO, "BMP")).kind == read(png(PHOTO, "JPEG")).kind == "image"
    assert read("Grüße, 日本 🙂".encode()).data.decode() == "Grüße, 日本 🙂"
    sound = read(wav(TONE, 16_000))
    assert (sound.kind, sound.rate) == ("sound", 16_000) and np.array_equal(sound.data, TONE)


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_wav_files_of_every_width_sound_alike(width):
    samples = TONE + (1 << 15) >> 8 if width == 1 else TONE << 8 * (width - 2)
    stereo = np.repeat(samples, 2)
    got = read(wav(stereo, width=width, channels=2)).data
    assert got.dtype == np.int16 and np.abs(got - TONE).max() <= (256 if width == 1 else 0)


def bomb():
    """A PNG of a few bytes that says it has 60,000 × 60,000 pixels."""
    whole = bytearray(png(PHOTO))
    whole[16:24] = struct.pack(">II", 60_000, 60_000)
    whole[29:33] = struct.pack(">I", zlib.crc32(whole[12:29]))
    return bytes(whole)


class TwoGigabytes(bytes):
    """Has the length only: refused before it is looked at."""

    def __len__(self):
        return 2 << 30

    def __getitem__(self, index):
        raise AssertionError("it was looked at")


@pytest.mark.parametrize("content, said", [
    (b"", "empty"), (TwoGigabytes(b"x"), r"2,147,483,648 bytes; at most 16,777,216"), (png(PHOTO)[:-40], "damaged"), (png(PHOTO)[:20], "damaged"),
    (bomb(), r"60000 × 60000 pixels|damaged"), (b"caf\xe9", "no UTF-8 text: byte 3 is 0xe9"), (b"a\0b", "zero bytes"), (wav([]), "no sound"),
    (wav(TONE)[:-100], "truncated"), (wav(TONE)[:30], "damaged"), (b"RIFF\0\0\0\0WAVE", "damaged"), (wav(TONE, 500), "500 Hz"),
    (wav(TONE).replace(b"\x01\0\x01\0", b"\x55\0\x01\0", 1), "damaged or compressed"), (bytes(range(128, 256)), "neither a picture")])
def test_what_is_no_good_is_refused_in_one_line(content, said):
    with pytest.raises(InputError, match=said) as error:
        read(content)
    assert "\n" not in str(error.value)


def test_random_and_damaged_files_raise_nothing_else():
    rng, seeds = np.random.default_rng(3), [png(PHOTO), wav(TONE), png(PHOTO, "JPEG"), png(PHOTO, "GIF")]
    for i in range(400):
        damaged = bytearray(seeds[i % len(seeds)])
        for at in rng.integers(0, min(len(damaged), 200), 4):
            damaged[at] = rng.integers(256)
        try:
            read(bytes(damaged))
        except InputError:
            pass


@pytest.mark.parametrize("content, kind", [(png(np.tile(PHOTO, (2, 2, 1))), "pixel"), (wav(TONE), "sample"), ("zwölf Boxkämpfer ".encode() * 20, "byte")])
def test_a_codec_gives_back_every_bit_and_counts_them(content, kind):
    page, own = shown("iflow", content), read(content)
    part = own.data if own.kind != "text" else content
    stream = workbench.encode(part, "iflow")
    assert "lossless: every bit is back" in page and f"bits per {kind}" in page and f"{len(stream):,} bytes" in page
    assert ("stored as it is" in page) == (kind != "pixel")


def test_a_codec_that_loses_bits_is_said_to_lose_them(monkeypatch):
    monkeypatch.setattr(own_views.data, "decode", lambda stream, find: np.zeros_like(PHOTO))
    assert "not what was given" in shown("iflow", png(PHOTO))


def left(page):
    """The share of the MACs that the page says is left."""
    before, after = re.search(r"([\d.]+) → ([\d.]+) million", page).groups()
    return float(after) / float(before)


def test_a_picture_through_the_nets_of_the_vision_bench():
    image = vision.data.split("test").images[3].transpose(1, 2, 0)
    page = shown("fscl", png(np.ascontiguousarray(image)), **{KNOB: 0.0})
    inputs, _ = vision.data.split("test").tensors(1, 3)
    with torch.no_grad():
        scores = torch.softmax(vision.dense("vgg-small")(inputs), 1)[0]
    top = int(scores.argmax())
    assert f"{top} → {top} (the same)" in page, "at ratio 0 nothing changes"
    assert page.count(f"{float(scores[top]):.1%}") >= 2
    assert 0.4 < left(shown("fscl", png(PHOTO), **{KNOB: 0.5})) <= 0.5


def test_a_sound_through_the_separator():
    mixture = (speech.split("test").tensors(1, 8_000)[0][0].numpy() * 32_767).astype(np.int32)
    page = shown("speech-separator", wav(np.repeat(mixture, 2), 16_000))
    assert "1.00 s at 8,000 Hz" in page and page.count("<audio") == 5 and page.count("aria-label='waveform") == 5
    with pytest.raises(InputError, match=r"at least 0.1 s"):
        shown("speech-separator", wav(TONE[:100]))


def test_a_method_without_use_for_a_kind_says_so():
    with pytest.raises(InputError, match="fscl has no use for a sound.*it takes a picture"):
        shown("fscl", wav(TONE))
    with pytest.raises(StudyError, match="triplenet.*no use for a picture, text or sound"):
        try_own("triplenet")
    with pytest.raises(StudyError, match="no knob 'ratio'"):
        try_own("fscl", ratio=0.5)


def upload(box, content, size=None, name="x.png"):
    chooser, out = box.children
    chooser.value = ({"name": name, "type": "", "size": len(content) if size is None else size, "content": memoryview(content), "last_modified": datetime.now(UTC)},)
    return out.value


def test_the_widget_shows_or_refuses_and_goes_on():
    box = try_own("iflow")
    assert "16 MB" in box.children[1].value and "stays on this machine" in box.children[1].value
    assert "role='alert'" in (said := upload(box, b"caf\xe9")) and "no UTF-8" in said
    assert "lossless" in upload(box, png(PHOTO), name="no-ending")
    assert "at most 16,777,216" in upload(box, b"x", size=2 << 30)
    assert "&lt;b&gt;" in upload(box, b"<b>bold</b> " * 20), "text is shown, not run"


def test_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("builtins.open", lambda *a, **k: pytest.fail(f"opened {a}"))
    own_input.read(png(PHOTO)), own_input.read(wav(TONE))
    assert not list(tmp_path.iterdir())


def test_the_explorer_has_a_corner_for_it_that_follows_the_slider():
    assert workbench.explore("fscl", stored_only=False).own is not None
    page = workbench.explore("fscl", predict=False, stored_only=True)
    assert page.own is None, "where nothing is computed there is nothing to choose"
    page.own = partial(own_input.corner, page.study)
    corner = page.widget.children[-1]
    assert corner.titles == ("Your own file",) and corner.selected_index is None
    page.sliders[KNOB].index = 4
    assert page.state[KNOB] == 0.3 and 0.65 < left(upload(corner.children[0], png(PHOTO))) < 0.75
    assert not own_input.corner(workbench.api.study("triplenet"), dict), "no use for files, no corner"
