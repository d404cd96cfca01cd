"""The file format: round trip, atomic writing, and every kind of damage."""

import builtins
import errno
import hashlib
import json
import os
import random
import re
import struct
import time
import zlib
from pathlib import Path

import pytest
import torch

from workbench.contracts.files import artifact
from workbench.contracts.files.artifact import ArtifactError, pack, read, save

TENSORS = {"conv.weight": torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0)), "steps": torch.tensor(7),
           "flags": torch.tensor([True, False]), "half": torch.arange(5, dtype=torch.bfloat16), "none": torch.zeros(0, 3)}
META = {"kind": "class", "config": {"widths": [3, 5]}, "name": "Größe"}
GRAPH = {"steps": [["a", "aten.relu.default", [{"$": "x"}], {}]]}


@pytest.fixture
def path(tmp_path):
    save(tmp_path / "net.wb", TENSORS, META, GRAPH)
    return tmp_path / "net.wb"


def forged(header=None, payload=b"", graph=None, version=artifact.VERSION, table=None):
    """A file whose checksums are right, whatever stands in it."""
    sections = [("tensors", payload)] + ([("graph", graph)] if graph is not None else [])
    table = table or [[name, len(data), hashlib.sha256(data).hexdigest()] for name, data in sections]
    header = json.dumps({"meta": {}, "sections": table}).encode() if header is None else header
    return artifact.PREFIX.pack(artifact.MAGIC, version, len(header), zlib.crc32(header)) + header + b"".join(data for _, data in sections)


def test_round_trip(path):
    found = read(path)
    assert (found.meta, found.graph) == (META, GRAPH)
    assert found.tensors.keys() == TENSORS.keys()
    assert all(torch.equal(found.tensors[k], v) and found.tensors[k].dtype == v.dtype for k, v in TENSORS.items())


def test_size_returned_is_that_of_the_file_and_bytes_are_reproducible(tmp_path):
    assert save(tmp_path / "a", TENSORS, META) == os.path.getsize(tmp_path / "a")
    assert pack(TENSORS, META) == pack(dict(reversed(TENSORS.items())), META)
    assert read(tmp_path / "a").graph is None


def test_shared_and_strided_tensors_are_stored(tmp_path):
    base = torch.arange(12.).view(3, 4)
    save(tmp_path / "a", {"base": base, "same": base, "transposed": base.t()}, {})
    assert torch.equal(read(tmp_path / "a").tensors["transposed"], base.t())


@pytest.mark.parametrize(("arguments", "words"), [
    (({}, {"when": object()}), "meta: only plain JSON"), (({}, {"x": float("nan")}), "meta: only plain JSON"),
    (({}, {}, {"g": {1, 2}}), "graph: only plain JSON"), (({}, {"x": "y" * (5 << 20)}), "meta: .* at most"),
    (({"z": torch.zeros(2, dtype=torch.complex128)}, {}), "tensors: of types torch.complex128"),
])
def test_what_cannot_be_stored_is_named(tmp_path, arguments, words):
    with pytest.raises(ValueError, match=words):
        save(tmp_path / "a", *arguments)
    assert not list(tmp_path.iterdir())


def test_full_disk_leaves_the_old_file_and_no_other(path, monkeypatch):
    before = path.read_bytes()
    real = builtins.open

    def full(file, mode="r", *args, **kwargs):
        handle = real(file, mode, *args, **kwargs)
        if "w" in mode or "x" in mode:
            write = handle.write

            class Full:
                def __getattr__(self, name):
                    return getattr(handle, name)

                def __enter__(self):
                    return self

                def __exit__(self, *error):
                    handle.close()

                def write(self, data):
                    write(data[: len(data) // 2])
                    raise OSError(errno.ENOSPC, "No space left on device")
            return Full()
        return handle

    monkeypatch.setattr(builtins, "open", full)
    with pytest.raises(OSError, match="No space left"):
        save(path, {"other": torch.ones(1000)}, {})
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["net.wb"]


def test_failed_rename_leaves_no_temporary_file(path, monkeypatch):
    def refuse(*_):
        raise PermissionError("no")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(PermissionError):
        save(path, {}, {})
    assert [p.name for p in path.parent.iterdir()] == ["net.wb"]


DAMAGE = {
    "foreign": (lambda b: b"PK\x03\x04" + b[4:], "not a workbench artefact"),
    "empty": (lambda b: b"", "not a workbench artefact"),
    "cut in the prefix": (lambda b: b[:12], "truncated after 12 bytes"),
    "cut in the header": (lambda b: b[:40], "truncated after 40 bytes, within the header"),
    "cut in a section": (lambda b: b[:-20], "truncated: .* bytes, expected"),
    "appended": (lambda b: b + b"x", "followed by foreign bytes"),
    "newer": (lambda b: b[:8] + struct.pack("<H", artifact.VERSION + 1) + b[10:], "a newer one is needed"),
    "absurd header": (lambda b: b[:10] + struct.pack("<I", 2**32 - 1) + b[14:], "absurd header length 4294967295"),
    "bit in the header": (lambda b: b[:30] + bytes([b[30] ^ 1]) + b[31:], "damaged header"),
    "bit in the tensors": (lambda b: b[:-300] + bytes([b[-300] ^ 16]) + b[-299:], "damaged section 'tensors'"),
    "bit in the graph": (lambda b: b[:-3] + bytes([b[-3] ^ 4]) + b[-2:], "damaged section 'graph'"),
    "huge section": (lambda b: forged(table=[["tensors", 2**62, ""]]), "truncated: .* expected"),
    "negative section": (lambda b: forged(table=[["tensors", -5, ""]]), "malformed header"),
    "unknown section": (lambda b: forged(table=[["code", 0, ""]]), "malformed header"),
    "header is no object": (lambda b: forged(header=b"[1]"), "malformed header"),
    "header too deep": (lambda b: forged(header=b"[" * 100_000), "malformed header"),
    "header is no JSON": (lambda b: forged(header=b"\xff\xfe"), "malformed header"),
    "tensors are nonsense": (lambda b: forged(payload=b"\x00" * 7), "malformed tensors"),
    "tensors claim terabytes": (lambda b: forged(payload=_claim(2**42)), "malformed tensors"),
    "graph is a list": (lambda b: forged(payload=_claim(0), graph=b"[]"), "malformed graph"),
    "graph too deep": (lambda b: forged(payload=_claim(0), graph=b'{"a":' + b"[" * 100_000), "malformed graph"),
}


def _claim(count: int) -> bytes:
    header = json.dumps({"a": {"dtype": "F32", "shape": [count], "data_offsets": [0, 4 * count]}}).encode()
    return struct.pack("<Q", len(header)) + header


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_has_its_own_message(path, kind):
    change, words = DAMAGE[kind]
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ArtifactError, match=words):
        read(path)


def test_a_missing_file_is_no_damage(tmp_path):
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none")


def test_fuzz_mutated_files_raise_nothing_else(path):
    """6000 files: random bytes changed, cut, repeated or inserted, half of them with checksums made right again; in seconds."""
    whole, chance, start, refused = path.read_bytes(), random.Random(0), time.process_time(), 0
    payload = artifact.pack(TENSORS, META)[-(len(whole) // 2):]
    for i in range(6000):
        data = bytearray(whole if i % 2 else payload)
        for _ in range(chance.randint(1, 6)):
            where = chance.randrange(len(data) or 1)
            kind = chance.randrange(4)
            if kind == 0 and data:
                data[where] = chance.randrange(256)
            elif kind == 1:
                del data[where:where + chance.randint(1, 50)]
            elif kind == 2:
                data[where:where] = data[:chance.randint(0, 30)]
            else:
                data[where:where] = chance.randbytes(chance.randint(1, 9))
        path.write_bytes(bytes(data) if i % 2 else forged(payload=bytes(data), graph=bytes(data[-40:]) if i % 4 else None))
        try:
            read(path)
        except ArtifactError:
            refused += 1
    assert refused >= 5990  # a mutation may undo itself; nothing but ArtifactError was raised
    assert time.process_time() - start < 30


def test_fuzz_of_the_safetensors_header_raises_nothing_else(path):
    good = artifact.pack({"a": torch.ones(3), "b": torch.ones(2, 2, dtype=torch.int8)}, {})
    length = struct.unpack("<I", good[10:14])[0]
    payload, chance = good[artifact.PREFIX.size + length:], random.Random(1)
    for _ in range(1000):
        data = bytearray(payload)
        for _ in range(chance.randint(1, 3)):
            data[chance.randrange(len(data))] = chance.choice(b'0123456789-[]{}",:FIUB8 e.') if chance.random() < .8 else chance.randrange(256)
        path.write_bytes(forged(payload=bytes(data)))
        try:
            found = read(path)
            assert all(isinstance(t, torch.Tensor) for t in found.tensors.values())
        except ArtifactError:
            pass


def test_nothing_in_the_reading_path_unpickles_or_evaluates():
    here = Path(artifact.__file__).parent
    for path in (*here.glob("*.py"), here.parent / "model.py"):
        source = path.read_text()
        assert not re.search(r"(?<!safetensors\.)torch\.load\(|pickle\.loads?\(|np\.load\(|marshal\.|(?<![\w.])(eval|exec)\(", source)
