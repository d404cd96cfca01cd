"""iFlow as a codec of the `data` contract: tiles, links of a chain, and the settings that a decoder needs."""

from __future__ import annotations

import copy
import hashlib
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from ...benches import CHECKPOINTS, photo_flow
from ...contracts import data
from ...contracts.data import StreamError
from .integer_flow import Dequantise, IntegerNet, Modular, Precision, to_invertible
from .ubcs import UBCS

NAMES = {"patch32": 0, "patch32-0": 0, "patch32-1": 1, "patch32-2": 2}
HEAD = struct.Struct("<BBBBBBHI4s")
RAMP = (1, 3)       # the first link borrows one fractional bit a value, each later one three more, until h


@lru_cache(maxsize=4)
def _trained(replica: int) -> tuple[photo_flow.PhotoFlow, bytes]:
    path = CHECKPOINTS / f"iflow-{replica}.safetensors"
    flow = photo_flow.load(path)
    return flow, hashlib.sha256(path.read_bytes()).digest()[:4]


def _installed(replica: int, weights: bytes) -> bool:
    try:
        return _trained(replica)[1] == weights
    except FileNotFoundError:
        return False


@lru_cache(maxsize=64)
def _layers(replica: int, levels: int, precision: Precision, noise: bool, alter: Callable | None) -> list:
    flow = copy.deepcopy(_trained(replica)[0])
    flow.levels = levels
    if alter:
        alter(flow)
    return [Dequantise(precision, noise), *to_invertible(flow, precision)]


@dataclass(frozen=True)
class IFlow:
    """Lossless codec of uint8 arrays by a trained flow, exactly inverted on integers. ``IFlow.load("patch32").encode(images)``.

    h: fractional bits of a value (section 3.1); C: bits of the MST's numerator R = 2^C; chain: links, each coded on top of the stream of the
    previous ones (part 8); levels: 2×2 squeezes, 0 to 3; ramp: the first links borrow fewer bits. The other fields exist to be replaced in comparisons.
    """

    replica: int = 0
    h: int = 12
    C: int = 12
    chain: int = 64
    levels: int = 3
    ramp: bool = True
    lanes: int = 2
    noise: bool = True
    scaling: type = Modular
    network: type = IntegerNet
    coder: type = UBCS
    alter: Callable | None = None
    method = "iflow"

    def __post_init__(self):
        Precision(self.h, self.C)
        for name, value, low, high in (("chain", self.chain, 1, 65535), ("levels", self.levels, 0, 3), ("lanes", self.lanes, 1, 64)):
            if not low <= value <= high:
                raise ValueError(f"{name} must be {low} to {high}, not {value}")

    @classmethod
    def load(cls, name: str = "patch32", **settings) -> IFlow:
        if name not in NAMES:
            raise ValueError(f"no flow is called {name!r}; there are {', '.join(NAMES)}")
        return cls(replica=NAMES[name], **settings)

    def encode(self, pixels: np.ndarray | bytes) -> bytes:
        """Framed stream of a uint8 array (best NHWC or HWC with 3 channels; any other shape, dtype or plain bytes work too, without much gain)."""
        return data.encode(pixels, self)

    def decode(self, stream: bytes, limit: int = 1 << 30) -> np.ndarray | bytes:
        """What was encoded, of whatever settings. Raises `StreamError`."""
        return data.decode(stream, {self.method: self}.get, limit)

    def layers(self, link: int = 64) -> list:
        """The integer layers of one link, in encoding order."""
        h = min(self.h, RAMP[0] + RAMP[1] * link) if self.ramp else self.h
        return _layers(self.replica, self.levels, Precision(h, self.C, self.scaling, self.network), self.noise, self.alter)

    def push(self, stream, tiles: np.ndarray, link: int = 64) -> None:
        x = tiles.astype(np.int64)
        for layer in self.layers(link):
            x = layer.forward(stream, x)

    def pop(self, stream, n: int, height: int, width: int, link: int = 64) -> np.ndarray:
        x = np.empty((n, height >> self.levels, width >> self.levels, 0), np.int64)
        for layer in reversed(self.layers(link)):
            x = layer.inverse(stream, x)
        return x.astype(np.uint8)

    def trace(self, tiles: np.ndarray) -> np.ndarray:
        """Bits per dimension on the stack, less those borrowed, after each layer of each link (one tile each): (links, layers), before the first: 0."""
        stream, levels = self.coder(self.lanes, endless=True), []
        start = stream.net_bits
        for link, tile in enumerate(tiles):
            x = tile[None].astype(np.int64)
            for layer in self.layers(link):
                x = layer.forward(stream, x)
                levels.append((stream.net_bits - start) / tile.size)
        return np.array(levels).reshape(len(tiles), -1)

    def compress(self, array: np.ndarray) -> bytes:
        tiles = to_tiles(array)
        links = -(-len(tiles) // max(self.chain, -(-len(tiles) // 65535)))         # tiles a link
        stream = self.coder(self.lanes, endless=True)
        for link, start in enumerate(range(0, len(tiles), links)):
            self.push(stream, tiles[start:start + links], link)
        head = HEAD.pack(self.replica, self.h, self.C, self.levels, self.ramp + 2 * self.noise, self.lanes, links, stream.borrowed,
                         _trained(self.replica)[1])
        return head + stream.to_bytes()

    def decompress(self, payload: bytes, shape: tuple[int, ...]) -> np.ndarray:
        if len(payload) < HEAD.size:
            raise StreamError(f"{len(payload)} bytes are too few for an iFlow stream: truncated")
        replica, h, C, levels, flags, lanes, links, borrowed, weights = HEAD.unpack_from(payload)
        try:
            codec = replace(self, replica=replica, h=h, C=C, levels=levels, lanes=lanes, ramp=bool(flags & 1), noise=bool(flags & 2))
        except ValueError as error:
            raise StreamError(f"the settings in the stream are not valid ({error}): damaged") from None
        if flags > 3 or not _installed(replica, weights):
            raise StreamError(f"the stream was written with other weights ({weights.hex()}) than those installed, or is damaged")
        n, height, width = tile_grid(shape)
        if not 1 <= links <= n:
            raise StreamError(f"the stream announces links of {links} tiles for {n}: damaged")
        stream = self.coder.from_bytes(payload[HEAD.size:], lanes)
        parts = []
        for start in reversed(range(0, n, links)):
            parts.append(codec.pop(stream, min(links, n - start), height, width, start // links))
        if not stream.spent(borrowed):
            raise StreamError("the bits below the data are not the agreed ones: damaged")
        return from_tiles(np.concatenate(parts[::-1]), shape)

    def auxiliary(self, stream: bytes) -> int:
        """Bytes of an encoded stream that are auxiliary: agreed in advance, borrowed by the first links and given back at the end of decoding."""
        _, method, _, _, payload = data.unframe(stream)
        return 4 * HEAD.unpack_from(payload)[7] if method == self.method else 0


SIDE = 32


def _as_images(shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """How an array is seen: images (n, H, W, C ≤ 16), one image (H, W, 1, 3 or 4), else its bytes as 32×32 RGB."""
    if len(shape) == 4 and 0 < shape[3] <= 16:
        return shape
    if len(shape) == 3 and shape[2] in (1, 3, 4):
        return 1, *shape
    return -(-math.prod(shape) // (3 * SIDE * SIDE)), SIDE, SIDE, 3


def tile_grid(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Number, height and width of the RGB tiles of an array: multiples of 8, at most 32."""
    n, height, width, channels = _as_images(shape)
    rows, columns = -(-height // SIDE), -(-width // SIDE)
    return n * rows * columns * -(-channels // 3), 8 * -(-height // (8 * rows)), 8 * -(-width // (8 * columns))


def to_tiles(array: np.ndarray) -> np.ndarray:
    """uint8 array → (tiles, h, w, 3); edges and a missing second and third channel are repeated."""
    n, height, width, channels = _as_images(array.shape)
    if (n, height, width, channels) != array.shape:
        array = np.pad(array.ravel(), (0, n * height * width * channels - array.size)).reshape(n, height, width, channels)
    _, h, w = tile_grid(array.shape)
    array = np.pad(array, ((0, 0), (0, -height % h), (0, -width % w), (0, -channels % 3)), "edge")
    n, height, width, channels = array.shape
    return array.reshape(n, height // h, h, width // w, w, channels // 3, 3).transpose(0, 1, 3, 5, 2, 4, 6).reshape(-1, h, w, 3)


def from_tiles(tiles: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of `to_tiles`."""
    n, height, width, channels = _as_images(shape)
    h, w = tiles.shape[1:3]
    rows, columns, groups = -(-height // h), -(-width // w), -(-channels // 3)
    array = tiles.reshape(n, rows, columns, groups, h, w, 3).transpose(0, 1, 4, 2, 5, 3, 6).reshape(n, rows * h, columns * w, groups * 3)
    return array[:, :height, :width, :channels].ravel()[:math.prod(shape)].reshape(shape)
