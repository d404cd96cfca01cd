"""The runtime sparse feature format (part 8): hot masks, packed non-zeros, mini-banks of decreasing depth, and a spill bank.

    feature (C, T, V) int16, after ReLU ─► vectors of C channels, one per (t, joint) ─► banks of 16 words
    bank ─► 16-bit mask of its non-zeros, packed to the front ─► words 0–3 │ 4–7 │ 8–11 │ 12–15 ─► mini-banks 0 … 3

Only vectors with more than 4 j non-zeros have a row in mini-bank j; its row number is the count of earlier vectors that have one, which the masks tell. The depth of
each mini-bank is fixed beforehand, from calibration features; what does not fit goes to the spill bank, with its address.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field

import numpy as np

from ...contracts.data import StreamError

BANK, ROW = 16, 4
HEAD, CRC = struct.Struct("<4sHHHI"), struct.Struct("<I")
MAGIC = b"RFC1"


@dataclass(frozen=True)
class RFC:
    """The sizes of one layer's memory: ``depths`` (banks, 4) rows of each mini-bank. ``spill=False``: an overflow is an error. ``address`` is the part that an
    ablation replaces."""

    depths: np.ndarray = field(repr=False)
    spill: bool = True

    @classmethod
    def fit(cls, features: np.ndarray, quantile: float = 0.999, spill: bool = True) -> RFC:
        """Depths from calibration features (N, C, T, V): what the given share of clips needs."""
        need = np.stack([[(count > ROW * j).sum(-1) for j in range(BANK // ROW)] for count in (cls.counts(f) for f in features)])     # (N, 4, banks)
        return cls(np.ceil(np.quantile(need, quantile, axis=0)).astype(int).T, spill)

    @staticmethod
    def vectors(feature: np.ndarray) -> np.ndarray:
        """(C, T, V) → (banks, T·V, 16), the last bank filled up with zeros."""
        c = feature.shape[0]
        flat = np.zeros((-(-c // BANK) * BANK, feature[0].size), np.int16)
        flat[:c] = feature.reshape(c, -1)
        return flat.reshape(-1, BANK, flat.shape[1]).transpose(0, 2, 1)

    @classmethod
    def counts(cls, feature: np.ndarray) -> np.ndarray:
        """(banks, T·V) non-zeros of each vector."""
        return (cls.vectors(feature) != 0).sum(2)

    def encode(self, feature: np.ndarray) -> bytes:
        """The memory's contents as bytes: masks, the used rows of each mini-bank, the spill bank, a checksum. ValueError: not int16 of 3 dimensions, another
        number of banks, an overflow without spill."""
        if feature.dtype != np.int16 or feature.ndim != 3:
            raise ValueError(f"feature: int16 (C, T, V) is needed, found {feature.dtype} {feature.shape}")
        vectors = self.vectors(feature)
        if len(vectors) != len(self.depths):
            raise ValueError(f"feature: {len(vectors)} banks of 16 channels, this memory has {len(self.depths)}")
        parts, spilled = [], []
        for bank, words in enumerate(vectors):
            hot = words != 0
            parts.append(np.packbits(hot, axis=1).tobytes())
            packed = np.take_along_axis(words, np.argsort(~hot, axis=1, kind="stable"), 1).reshape(len(words), -1, ROW)
            for j, depth in enumerate(self.depths[bank]):
                rows = packed[hot.sum(1) > ROW * j, j]          # row number = earlier vectors that have one
                parts.append(rows[:depth].astype("<i2").tobytes())
                spilled += [struct.pack("<HHI4h", bank, j, depth + k, *row) for k, row in enumerate(rows[depth:])]
        if spilled and not self.spill:
            raise ValueError(f"feature: {len(spilled)} rows do not fit the mini-banks, and there is no spill bank")
        body = b"".join(parts + spilled)
        said = HEAD.pack(MAGIC, *feature.shape, len(spilled)) + body
        return CRC.pack(self.checksum(said)) + said

    def checksum(self, said: bytes) -> int:
        """Of the contents and of this memory's depths, without which nobody finds the rows."""
        return zlib.crc32(said, zlib.crc32(self.depths.astype("<i8").tobytes()))

    def decode(self, blob: bytes) -> np.ndarray:
        """The feature again, bit for bit. StreamError: damaged, truncated, or of another memory."""
        if len(blob) < CRC.size + HEAD.size:
            raise StreamError(f"{len(blob)} bytes are no feature memory")
        said = blob[CRC.size:]
        (crc,), (magic, c, t, v, spilled), body = CRC.unpack(blob[:CRC.size]), HEAD.unpack(said[:HEAD.size]), said[HEAD.size:]
        if magic != MAGIC or self.checksum(said) != crc or -(-c // BANK) != len(self.depths) or 2 * t * v * len(self.depths) + 16 * spilled > len(body):
            raise StreamError("damaged, or written by a memory of another size")
        words, at = np.zeros((len(self.depths), t * v, BANK), np.int16), 0
        late = {(b, j, k): row for b, j, k, *row in struct.iter_unpack("<HHI4h", body[len(body) - 16 * spilled:])} if spilled else {}
        for bank, depths in enumerate(self.depths):
            hot = np.unpackbits(np.frombuffer(body, np.uint8, 2 * t * v, at).reshape(-1, 2), axis=1).astype(bool)
            at += 2 * t * v
            packed = np.zeros((t * v, BANK // ROW, ROW), np.int16)
            for j, depth in enumerate(depths):
                owners = self.owners(hot.sum(1), j)
                count = min(len(owners), depth)
                packed[owners[:count], j] = np.frombuffer(body, "<i2", ROW * count, at).reshape(-1, ROW)
                at += 2 * ROW * count
                for k in range(depth, len(owners)):
                    packed[owners[k], j] = late[bank, j, k]
            np.put_along_axis(words[bank], np.argsort(~hot, axis=1, kind="stable"), packed.reshape(t * v, BANK), 1)
        return words.transpose(0, 2, 1).reshape(-1, t, v)[:c]

    def owners(self, counts: np.ndarray, j: int) -> np.ndarray:
        """The vectors that have a row in mini-bank j, in the order of their rows (the prefix count, read backwards)."""
        return np.flatnonzero(counts > ROW * j)

    def bits(self, feature: np.ndarray) -> dict[str, int]:
        """What the memory takes: ``masks``, ``minibanks`` (their fixed depths), ``spill`` (row and address), and ``dense``: all words; ``full``: mini-banks as deep as there are
        vectors."""
        counts, vectors = self.counts(feature), feature[0].size
        over = sum(max(0, int((counts[b] > ROW * j).sum()) - int(d)) for b, row in enumerate(self.depths) for j, d in enumerate(row))
        return {"masks": BANK * vectors * len(self.depths), "minibanks": 16 * ROW * int(self.depths.sum()), "spill": over * 16 * 8,
                "dense": 16 * BANK * vectors * len(self.depths), "full": 16 * BANK * vectors * len(self.depths) + BANK * vectors * len(self.depths)}


class NoPrefix(RFC):
    """Wrong on purpose: rows are looked up by the vector's own number."""

    def owners(self, counts: np.ndarray, j: int) -> np.ndarray:
        return np.arange(int((counts > ROW * j).sum()))


def csr_bits(feature: np.ndarray) -> int:
    """The rival: a 16-bit word and a 4-bit index per non-zero, a 5-bit count per vector of a bank (no mini-banks, but vectors of any length)."""
    return int((feature != 0).sum()) * 20 + RFC.counts(feature).size * 5


def bitmap_bits(feature: np.ndarray) -> int:
    """The rival: the same masks, but one full-depth bank: what a memory with random access reserves."""
    return RFC.counts(feature).size * (BANK + 16 * BANK)
