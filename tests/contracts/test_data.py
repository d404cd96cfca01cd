"""The `data` contract: frames of anything, and what a decoder does with bytes that are no frame."""

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from workbench.contracts.data import CHUNK, DTYPES, OVERHEAD, StreamError, decode, encode, unframe


class Zlib:
    method = "zlib"

    def compress(self, array):
        return zlib.compress(array.tobytes())

    def decompress(self, payload, shape):
        try:
            raw = zlib.decompressobj().decompress(payload, int(np.prod(shape)) + 1)
        except zlib.error as error:
            raise StreamError(str(error)) from None
        if len(raw) != np.prod(shape):
            raise StreamError("wrong length")
        return np.frombuffer(raw, np.uint8).reshape(shape)


CODEC = Zlib()
FIND = {"zlib": CODEC}.get


@given(st.one_of(st.binary(max_size=3000),
                 st.sampled_from(DTYPES).flatmap(lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6)))))
@settings(max_examples=150, deadline=None)
def test_everything_comes_back(given):
    stream = encode(given, CODEC)
    back = decode(stream, FIND)
    size = len(given) if isinstance(given, bytes) else given.nbytes
    assert len(stream) <= size + OVERHEAD
    if isinstance(given, bytes):
        assert back == given and type(back) is bytes
    else:
        assert back.dtype == given.dtype and back.shape == given.shape and back.tobytes() == given.tobytes()
        assert back.flags.writeable


def test_layout_and_byte_order_do_not_matter():
    array = np.arange(60, dtype=">i4").reshape(3, 4, 5)
    for view in (array, array.T, array[::-1, ::2], np.asfortranarray(array)):
        assert np.array_equal(decode(encode(view, CODEC), FIND), view)


def test_many_chunks():
    noise = np.random.default_rng(0).integers(0, 256, 2 * CHUNK + 17, dtype=np.uint8)
    stream = encode(noise, CODEC)
    assert unframe(stream)[1] == "stored" and np.array_equal(decode(stream, FIND), noise)
    broken = bytearray(stream)
    broken[-5] ^= 1
    with pytest.raises(StreamError, match="chunk 2"):
        decode(bytes(broken), FIND)


def test_messages_name_what_is_wrong():
    stream = encode(b"a" * 1000, CODEC)
    for bad, words in ((b"", "truncated"), (b"GIF89a" + stream, "not a stream of this workbench"), (stream[:4] + b"\x02" + stream[5:], "version 2"),
                       (stream[:-1], "truncated"), (stream + b"x", "follow the end"), (stream[:20] + b"\xff" + stream[21:], "damaged|checksum|limit")):
        with pytest.raises(StreamError, match=words):
            decode(bad, FIND)
    with pytest.raises(StreamError, match="'zlib', which is not available"):
        decode(stream, {}.get)
    with pytest.raises(StreamError, match="limit is 10"):
        decode(stream, FIND, limit=10)


def test_wrong_input_of_encode():
    for wrong, error, words in (("text", TypeError, "not str"), ([1, 2], TypeError, "not list"), (np.array(["a"]), TypeError, "dtype"),
                                (np.array([None]), TypeError, "dtype"), (np.zeros((1,) * 9, np.uint8), ValueError, "9 dimensions")):
        with pytest.raises(error, match=words):
            encode(wrong, CODEC)


def test_huge_announcements_allocate_nothing():
    head = b"WBDS" + struct.pack("<BB", 1, 1) + b"\x04zlib\x03|u1" + struct.pack("<BQQQ", 2, 2**40, 2**40, 3)
    with pytest.raises(StreamError, match="limit"):
        decode(head + struct.pack("<I", zlib.crc32(head)) + b"\0" * 7, FIND)


def test_random_bytes_and_damage_raise_only_stream_error():
    rng = np.random.default_rng(1)
    stream = encode(rng.integers(0, 4, (20, 30), dtype=np.uint8), CODEC)
    for i in range(5000):
        bad = bytearray(stream)
        if i % 3 == 0:
            bad = bytearray(rng.bytes(rng.integers(0, 200)))
        elif i % 3 == 1:
            bad[rng.integers(len(bad))] ^= 1 << int(rng.integers(8))
        else:
            del bad[rng.integers(len(bad)):]
        with pytest.raises(StreamError):
            decode(bytes(bad), FIND)
