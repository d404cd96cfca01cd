"""iFlow beyond what the common matrix tests: kept streams, another process, fuzzing, the user's own flow, wrong input, public images."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from workbench.benches import CHECKPOINTS, photo_flow, photos
from workbench.contracts.data import StreamError, unframe
from workbench.papers.codecs.flow_codec import IFlow, from_tiles, tile_grid, to_tiles
from workbench.papers.codecs.iflow import reseal
from workbench.papers.codecs.integer_flow import IntegerNet, Precision, ratio, to_invertible
from workbench.papers.codecs.rivals import RANS, race
from workbench.papers.codecs.ubcs import UBCS, UniformCoderError

HERE, ROOT = Path(__file__).parent, Path(__file__).resolve().parents[3]
GOLDEN = HERE / "golden_iflow.json"
MIRROR = Path(os.environ.get("WORKBENCH_MIRROR", ROOT.parent / "shared" / "data")) / "images"


def drawn(n=2, height=24, width=40):
    """Smooth shapes with an edge and some noise, from integers alone."""
    i, y, x, c = np.indices((n, height, width, 3))
    noise = (i * 7919 + y * 104729 + x * 1299709 + c * 15485863) * 2654435761 % 2**32 >> 29
    return ((40 * c + 3 * x + 2 * y * (c + 1) + 90 * (x + 2 * y > 50 + 9 * i) + noise) % 256).astype(np.uint8)


# --- streams ----------------------------------------------------------------------------------------------------------------------------------


KEPT = ({}, {"replica": 1, "h": 16, "C": 16}, {"h": 5, "C": 9, "ramp": False, "lanes": 4, "levels": 1, "chain": 1})


@pytest.mark.parametrize("settings", KEPT)
def test_kept_streams_decode(settings):
    """Payloads kept as text: a change of any integer table, sum or rounding, on this or another CPU, would show."""
    payload = base64.b64decode(json.loads(GOLDEN.read_text())[json.dumps(settings)])
    assert np.array_equal(IFlow().decompress(payload, drawn().shape), drawn())
    assert IFlow(**settings).compress(drawn()) == payload


def test_kept_frame_decodes():
    assert np.array_equal(IFlow().decode(base64.b64decode(json.loads(GOLDEN.read_text())["frame"])), drawn())


def test_another_process_decodes(tmp_path):
    images = photos.patches("test")[:3]
    (tmp_path / "stream").write_bytes(IFlow.load("patch32").encode(images))
    code = ("import hashlib, sys; from workbench.papers.codecs.iflow import IFlow;"
            "print(hashlib.sha256(IFlow.load('patch32').decode(open(sys.argv[1], 'rb').read()).tobytes()).hexdigest())")
    shown = subprocess.run([sys.executable, "-c", code, tmp_path / "stream"], capture_output=True, text=True, cwd=ROOT, timeout=120, check=True)
    assert shown.stdout.strip() == hashlib.sha256(images.tobytes()).hexdigest()


def test_one_image_is_seen_as_one():
    image, codec = np.ascontiguousarray(photos.patches("test")[0]), IFlow()
    assert len(codec.encode(image)) < len(codec.encode(image.tobytes())) + 40 and np.array_equal(codec.decode(codec.encode(image)), image)
    assert tile_grid((64, 40, 3)) == (4, 32, 24) and tile_grid((0,)) == (0, 32, 32)


def test_settings_come_from_the_stream():
    images = drawn()
    stream = IFlow.load("patch32-1", h=9, C=5, levels=2, chain=3, ramp=False, lanes=7).encode(images)
    assert np.array_equal(IFlow().decode(stream), images)


def test_size_is_that_of_the_bytes_and_gross_is_more_than_net():
    images = photos.patches("test")[:10]
    for fields in ({}, {"chain": 1}, {"ramp": False}):
        codec = IFlow(**fields)
        stream = codec.encode(images)
        assert 0 < codec.auxiliary(stream) < len(stream) and codec.auxiliary(stream) % 4 == 0
        assert len(unframe(stream)[4]) < len(stream)
    assert IFlow().auxiliary(IFlow().encode(images)) * 5 < codec.auxiliary(stream)


@given(st.tuples(st.integers(0, 2), st.integers(0, 35), st.integers(0, 35), st.integers(1, 5)), st.integers(0, 2**32 - 1), st.sampled_from([2, 16, 256]))
@settings(max_examples=15, deadline=None)
def test_any_images_come_back(shape, seed, levels):
    images = (np.random.default_rng(seed).integers(0, levels, shape) * (255 // (levels - 1))).astype(np.uint8)
    codec = IFlow()
    assert np.array_equal(codec.decode(codec.encode(images)), images)
    if images.size:
        assert np.array_equal(from_tiles(to_tiles(images), shape), images)
        assert len(to_tiles(images)) == tile_grid(shape)[0]
        assert np.array_equal(codec.decompress(codec.compress(images), shape), images)      # also where the frame stores


# --- damage -----------------------------------------------------------------------------------------------------------------------------------


def test_fuzz_frames():
    """5,000 damaged frames, refused by header or checksum."""
    rng, codec = np.random.default_rng(0), IFlow()
    stream = codec.encode(drawn(1, 16, 16))
    for i in range(5000):
        bad = bytearray(stream)
        if i % 4 == 0:
            bad = bytearray(rng.bytes(rng.integers(0, 300)))
        elif i % 4 == 1:
            del bad[rng.integers(len(bad)):]
        else:
            bad[rng.integers(len(bad))] ^= 1 << int(rng.integers(8))
        with pytest.raises(StreamError):
            codec.decode(bytes(bad))


def test_fuzz_inner_decoder():
    """400 payloads damaged under repaired checksums: refused, or decoded to the same pixels where the bit does not matter; never slow."""
    rng, codec, images = np.random.default_rng(1), IFlow(), drawn(2, 16, 16)
    stream = codec.encode(images)
    assert unframe(stream)[1] == "iflow"

    def damage(payload):
        kind = rng.integers(4)
        if kind == 0:
            return payload[:rng.integers(len(payload))]
        if kind == 1:
            return payload + bytes(rng.bytes(4 * rng.integers(1, 9)))
        if kind == 2:
            start = rng.integers(len(payload))
            return payload[:start] + bytes(rng.bytes(len(payload) - start))
        payload[rng.integers(len(payload))] ^= 1 << int(rng.integers(8))
        return payload

    refused = 0
    for _ in range(400):
        begun = time.process_time()
        try:
            assert np.array_equal(codec.decode(reseal(stream, damage)), images)
        except StreamError:
            refused += 1
        assert time.process_time() - begun < 5
    assert refused > 350


def test_an_announced_giant_fails_at_once():
    """A tiny payload under a header that announces 100 MB ends as soon as its bits do."""
    array = np.zeros((1, 8, 8, 3), np.uint8)
    payload = IFlow().compress(array)
    begun = time.process_time()
    with pytest.raises(StreamError):
        IFlow().decompress(payload, (40_000, 32, 32, 3))
    assert time.process_time() - begun < 5


# --- coder ------------------------------------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 65536), st.integers(0, 65535)), max_size=200), st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_pops_undo_pushes_in_any_order(steps, lanes):
    for coder in (UBCS, RANS):
        stack, done = coder(lanes, endless=True), []
        start = stack.copy()
        for push, radix, symbol in steps:
            done.append((push, radix, symbol % radix))
            if push:
                stack.push(symbol % radix, radix)
            else:
                done[-1] = (push, radix, stack.pop(radix))
        for push, radix, symbol in reversed(done):
            if push:
                assert stack.pop(radix) == symbol
            else:
                stack.push(symbol, radix)
        assert (stack.state == start.state).all() and stack.net_bits == start.net_bits


def test_stack_through_bytes():
    rng = np.random.default_rng(0)
    radices = rng.integers(1, 65537, 10_001)
    symbols = rng.integers(0, radices)
    for coder, lanes in ((UBCS, 1), (UBCS, 8), (RANS, 3)):
        stack = coder(lanes)
        stack.push_many(symbols, radices)
        back = coder.from_bytes(stack.to_bytes(), lanes)
        assert (back.pop_many(radices) == symbols).all() and back.spent(0)


def test_coder_refuses():
    stack = UBCS()
    for symbols, radices in (([5], [5]), ([-1], [5]), ([0], [0]), ([0], [65537]), ([1, 2, 3], [4, 4])):
        with pytest.raises(UniformCoderError):
            stack.push_many(symbols, radices)
    with pytest.raises(StreamError, match="too early"):
        stack.pop_many([65536] * 3)
    for payload in (b"", b"123", b"1234567", b"\0" * 6):
        with pytest.raises(StreamError):
            UBCS.from_bytes(payload)
    with pytest.raises(UniformCoderError, match="lanes"):
        UBCS(0)


def test_what_the_probe_times_runs():
    for run in race(n=5000).values():
        run()


# --- layers -----------------------------------------------------------------------------------------------------------------------------------


def test_ratio_is_the_scale():
    q = np.arange(-512, 513)
    numerator, divisor = ratio(q, 12)
    assert divisor.min() >= 1 and max(divisor.max(), numerator.max()) <= 65536
    used = np.abs(q) <= 256
    assert np.abs(np.log2(numerator / divisor) - q / 64)[used].max() < 2**-8


def test_integer_network_is_close_to_the_float_one():
    net = photo_flow.load(CHECKPOINTS / "iflow-0.safetensors").fine.couplings[0].net
    pixels = np.random.default_rng(0).integers(-100, 100, (2, 8, 8, 3))
    shift, octave = IntegerNet(net)(pixels)
    with torch.no_grad():
        want = [part.permute(0, 2, 3, 1).numpy() for part in net(torch.from_numpy(pixels).permute(0, 3, 1, 2).float())]
    assert np.abs(shift / 2**16 - want[0]).max() < 1.5 and np.abs(octave / 64 - want[1]).max() < 0.1
    assert np.abs(shift / 2**16 - want[0]).mean() < 0.1


@pytest.mark.parametrize("replica", range(3))
@torch.no_grad()
def test_no_picture_can_leave_the_knots(replica):
    """|x − t| ≤ 255 + 1024 pixels, scaled by 2^4 at most, times the ∞-norm of the convolution, is less than the outermost knot."""
    flow = photo_flow.load(CHECKPOINTS / f"iflow-{replica}.safetensors")
    for level in (flow.fine, flow.coarse):
        eye = torch.eye(9)
        lower, upper = (eye + m.abs() for m in (level.mix.lower.tril(-1), level.mix.upper.triu(1)))
        norm = (lower @ torch.diag(level.mix.log2_scale.exp2()) @ upper).sum(1).max()
        assert float(norm) * (255 + 1024) * 2**4 < photo_flow.KNOTS[-1] / 2 and int(level.prior.table.sum()) == 9 * 2**16
    assert 2**float(flow.norm.log2_scale.max()) * 300 < photo_flow.KNOTS[-1] / 2


def test_values_too_large_for_exact_division_are_refused():
    with pytest.raises(UniformCoderError, match="exceed 2\\^53"):
        UBCS(endless=True).mst(np.array([2**40]), np.array([65536]), np.array([3]), False)


def own_flow():
    torch.manual_seed(3)
    layers = [photo_flow.ActNorm([1.0, -3, 250], [0.1, 1, 7.3]), photo_flow.Conv1x1(3), photo_flow.Squeeze(), photo_flow.Coupling((6, 7, 8), 8),
              photo_flow.Conv1x1(12), photo_flow.Coupling((3, 4), 8)]
    for layer in layers:
        for parameter in layer.parameters():
            if parameter.std() < 1e-3 and parameter.numel() > 2:
                nn.init.normal_(parameter, std=0.3)
    return layers


def test_own_flow_becomes_invertible():
    flow = nn.Sequential(*own_flow())
    layers = to_invertible(flow, Precision(10, 11))
    rng = np.random.default_rng(0)
    x = rng.integers(-2**19, 2**19, (2, 6, 4, 3))
    stack = UBCS(3, endless=True)
    z = x
    for layer in layers:
        z = layer.forward(stack, z)
    assert z.shape == (2, 3, 2, 12) and not np.array_equal(z.ravel(), x.ravel())
    for layer in reversed(layers):
        z = layer.inverse(stack, z)
    assert np.array_equal(z, x) and stack.net_bits == UBCS(3).net_bits


def test_unsupported_and_impossible_layers():
    with pytest.raises(TypeError, match="BatchNorm2d has no exactly invertible form"):
        to_invertible(nn.Sequential(photo_flow.Squeeze(), nn.BatchNorm2d(3)))
    with pytest.raises(TypeError, match="MixtureCDF"):
        to_invertible([photo_flow.Split(0, photo_flow.ActNorm([0.0], [1.0]))])
    for scale in (0.0, -1.0, float("nan"), float("inf"), 1e4):
        with pytest.raises(ValueError, match="scale"):
            to_invertible([photo_flow.ActNorm([0.0], [scale])])
    for wrong in ({"h": 0}, {"h": 17}, {"C": 17}, {"C": 12.5}):
        with pytest.raises(ValueError, match="must be an integer from 1 to 16"):
            Precision(**wrong)


def test_wrong_settings():
    for wrong in ({"h": 30}, {"C": 0}, {"chain": 0}, {"levels": 4}, {"lanes": 65}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            IFlow(**wrong)
    with pytest.raises(ValueError, match="'patch64'; there are patch32"):
        IFlow.load("patch64")
    with pytest.raises(TypeError, match="str"):
        IFlow().encode("text")


# --- data -------------------------------------------------------------------------------------------------------------------------------------


def test_photo_regions_are_disjoint_and_pinned():
    assert photos.fingerprint() == photos.EXPECTED
    edges = sorted(photos.STRIPS.values())
    assert edges[0][0] == 0 and all(a[1] == b[0] for a, b in pairwise(edges)) and edges[-1][1] == 1
    train = {patch.tobytes() for patch in photos.patches("train")}
    assert sum(patch.tobytes() in train for patch in photos.patches("test") if patch.std() > 1) == 0


public = pytest.mark.skipif(not MIRROR.exists(), reason=f"no public images in {MIRROR} (set WORKBENCH_MIRROR)")


@public
def test_cifar10_comes_back_and_beats_png():
    images = np.load(MIRROR / "cifar10_lossless.npz", allow_pickle=False)["x_test"][:40]
    codec = IFlow()
    stream = codec.encode(images)
    assert np.array_equal(codec.decode(stream), images)
    assert len(stream) < len(photos.Pillow("PNG").compress(images))


@public
def test_a_kodak_photograph_comes_back_and_beats_png():
    from PIL import Image

    image = np.asarray(Image.open(MIRROR / "kodak" / "kodim23.png"))[None, 100:260, 200:411]
    codec = IFlow()
    stream = codec.encode(image)
    assert np.array_equal(codec.decode(stream), image)
    assert len(stream) < len(photos.Pillow("PNG").compress(image))
