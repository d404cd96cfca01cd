"""The `data` contract: an array or bytes → one stream of bytes → exactly the same array or bytes.

A codec has a ``method`` name and two functions that know nothing of files:

    compress(array uint8) → payload bytes          decompress(payload, shape) → array uint8 of that shape

`encode` wraps the payload into a frame that any later version can recognise and check before it allocates or decodes anything:

    "WBDS" · version · kind · method · dtype · shape · payload length · CRC-32 of all this · chunks of ≤ 1 MiB, each after its CRC-32

Its length is the honest size. If a payload is longer than the data, the data are stored instead, so a frame exceeds its data by
`OVERHEAD` bytes and the chunks' CRCs at most. `decode` raises `StreamError` for everything that is not such a frame, unharmed.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable
from typing import Protocol

import numpy as np

MAGIC, VERSION, CHUNK = b"WBDS", 1, 1 << 20
STORED = "stored"
DTYPES = ("|u1", "|i1", "|b1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8", "<f2", "<f4", "<f8", "<c8", "<c16")
KINDS = (bytes, np.ndarray)
OVERHEAD = 128


class StreamError(ValueError):
    """The bytes are no stream of this kind: damaged, truncated, foreign, or of a newer version."""


class Codec(Protocol):
    method: str

    def compress(self, array: np.ndarray) -> bytes: ...

    def decompress(self, payload: bytes, shape: tuple[int, ...]) -> np.ndarray: ...


def encode(data: bytes | np.ndarray, codec: Codec) -> bytes:
    """Frame of ``data``. Arrays that are not uint8 are handed to the codec as their little-endian bytes, a flat uint8 array."""
    if isinstance(data, (bytes, bytearray, memoryview)):
        kind, array = bytes, np.frombuffer(data, np.uint8)
    elif isinstance(data, np.ndarray):
        kind, array = np.ndarray, np.asarray(data, data.dtype.newbyteorder("<"), order="C")
    else:
        raise TypeError(f"data must be bytes or a numpy array, not {type(data).__name__}")
    if array.dtype.str not in DTYPES:
        raise TypeError(f"data has dtype {array.dtype}; allowed are {', '.join(np.dtype(d).name for d in DTYPES)}")
    if array.ndim > 8:
        raise ValueError(f"data has {array.ndim} dimensions; at most 8 are allowed")
    pixels = array if array.dtype == np.uint8 else np.frombuffer(array.tobytes(), np.uint8)
    method, payload = codec.method, codec.compress(pixels) if pixels.size else b""
    if len(payload) >= pixels.size:
        method, payload = STORED, pixels.tobytes()
    head = MAGIC + struct.pack("<BB", VERSION, KINDS.index(kind))
    for text in (method, array.dtype.str):
        head += struct.pack("<B", len(text)) + text.encode("ascii")
    head += struct.pack(f"<B{array.ndim}QQ", array.ndim, *array.shape, len(payload))
    parts = [head, struct.pack("<I", zlib.crc32(head))]
    for start in range(0, len(payload), CHUNK):
        chunk = payload[start:start + CHUNK]
        parts += struct.pack("<I", zlib.crc32(chunk)), chunk
    return b"".join(parts)


class _Reader:
    def __init__(self, stream: bytes):
        self.stream, self.at = stream, 0

    def take(self, n: int) -> bytes:
        if self.at + n > len(self.stream):
            raise StreamError(f"the stream ends after {len(self.stream)} bytes, {n} more were expected at byte {self.at}: truncated")
        self.at += n
        return self.stream[self.at - n:self.at]

    def numbers(self, form: str) -> tuple[int, ...]:
        return struct.unpack("<" + form, self.take(struct.calcsize("<" + form)))

    def text(self) -> str:
        try:
            return self.take(self.numbers("B")[0]).decode("ascii")
        except UnicodeDecodeError:
            raise StreamError("a name in the header is not ASCII: damaged") from None


def unframe(stream: bytes, limit: int = 1 << 30) -> tuple[type, str, np.dtype, tuple[int, ...], bytes]:
    """Kind, method, dtype, shape and payload of a frame, all checked; ``limit``: the most bytes that the data may take."""
    read = _Reader(bytes(stream))
    if read.take(4) != MAGIC:
        raise StreamError(f"the stream begins with {read.stream[:4]!r}, not {MAGIC!r}: not a stream of this workbench")
    version, kind = read.numbers("BB")
    if version > VERSION:
        raise StreamError(f"the stream has version {version}; this workbench reads up to {VERSION}: update it")
    method, dtype, (ndim,) = read.text(), read.text(), read.numbers("B")
    *shape, length = read.numbers(f"{ndim}QQ")
    head = read.stream[:read.at]
    if zlib.crc32(head) != read.numbers("I")[0]:
        raise StreamError("the header's checksum does not match: damaged")
    if version < 1 or kind >= len(KINDS) or dtype not in DTYPES or ndim > 8:
        raise StreamError(f"the header is not valid (version {version}, kind {kind}, dtype {dtype!r}, {ndim} dimensions): damaged")
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if max(size, length) > limit:
        raise StreamError(f"the header announces {size} bytes in {length}; the limit is {limit} (raise it with limit=)")
    parts = []
    while length:
        crc, = read.numbers("I")
        parts.append(read.take(min(CHUNK, length)))
        length -= len(parts[-1])
        if zlib.crc32(parts[-1]) != crc:
            raise StreamError(f"the checksum of chunk {len(parts) - 1} does not match: damaged")
    if read.at != len(read.stream):
        raise StreamError(f"{len(read.stream) - read.at} bytes follow the end of the stream: damaged")
    return KINDS[kind], method, np.dtype(dtype), tuple(shape), b"".join(parts)


def decode(stream: bytes, find: Callable[[str], Codec | None], limit: int = 1 << 30) -> bytes | np.ndarray:
    """What `encode` was given. ``find(method)`` returns the codec of that name or None. Raises `StreamError` only."""
    kind, method, dtype, shape, payload = unframe(stream, limit)
    size = math.prod(shape) * dtype.itemsize
    if method == STORED:
        if len(payload) != size:
            raise StreamError(f"{len(payload)} stored bytes cannot fill shape {shape} of {dtype}: damaged")
        pixels = np.frombuffer(payload, np.uint8)
    else:
        codec = find(method)
        if codec is None:
            raise StreamError(f"the stream was written by the method {method!r}, which is not available here")
        pixels = codec.decompress(payload, shape if dtype == np.uint8 else (size,))
    array = np.frombuffer(np.ascontiguousarray(pixels).tobytes(), dtype).reshape(shape)
    return array.tobytes() if kind is bytes else array.copy()
