"""One compressed model on disk: a single file, written whole or not at all, checked before it is believed. Nothing in it is ever unpickled.

    offset  bytes  field
    0       8      magic ``\\x89WBENCH\\n``   (first byte not ASCII, newline last: a transfer in text mode shows at once)
    8       2      format version            little-endian, as all numbers
    10      4      length of the header      at most HEADER_LIMIT
    14      4      CRC-32 of the header
    18      …      header, JSON              {"meta": {…}, "sections": [[name, bytes, sha256], …]}
    …       …      sections, one after another: "tensors" (a safetensors payload), then "graph" (UTF-8 JSON) where there is one

Sizes are compared with the size of the file before anything is read, so a damaged length cannot ask for memory that the file does not have.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from ...core.measurements import write_whole

MAGIC = b"\x89WBENCH\n"
VERSION = 1
HEADER_LIMIT = 4 << 20
PREFIX = struct.Struct("<8sHII")


class ArtifactError(ValueError):
    """The file is no artefact, or a damaged or a newer one."""


@dataclass(frozen=True)
class Artifact:
    """What a file holds: named tensors, plain JSON facts about them, and the compute graph where one was saved."""

    tensors: dict[str, Tensor]
    meta: dict[str, Any]
    graph: dict[str, Any] | None = None


def pack(tensors: Mapping[str, Tensor], meta: Mapping[str, Any], graph: Mapping[str, Any] | None = None) -> bytes:
    """The file's bytes. ValueError: ``meta`` or ``graph`` is not plain JSON, a tensor's type has no place in safetensors."""
    try:
        # Copies: safetensors refuses tensors that share memory or are not contiguous.
        payload = safetensors.torch.save({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()})
    except (KeyError, ValueError, safetensors.SafetensorError) as error:
        kinds = sorted({str(t.dtype) for t in tensors.values()})
        raise ValueError(f"tensors: of types {', '.join(kinds)} cannot be stored: {error}") from error
    sections = {"tensors": payload} | ({} if graph is None else {"graph": _json(graph, "graph")})
    table = [[name, len(data), hashlib.sha256(data).hexdigest()] for name, data in sections.items()]
    header = _json({"meta": dict(meta), "sections": table}, "meta")
    if len(header) > HEADER_LIMIT:
        raise ValueError(f"meta: {len(header)} bytes of JSON; at most {HEADER_LIMIT} are allowed")
    return PREFIX.pack(MAGIC, VERSION, len(header), zlib.crc32(header)) + header + b"".join(sections.values())


def _json(value: Any, argument: str) -> bytes:
    try:
        return json.dumps(value, separators=(",", ":"), sort_keys=True, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise ValueError(f"{argument}: only plain JSON values can be stored: {error}") from error


def save(path: str | os.PathLike, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], graph: Mapping[str, Any] | None = None) -> int:
    """Write the file and return its size in bytes. An interrupted or failed write leaves the old file as it was and no other."""
    data = pack(tensors, meta, graph)
    write_whole(Path(path), data)
    return len(data)


def read(path: str | os.PathLike) -> Artifact:
    """The checked contents of a file. ArtifactError: foreign, newer, truncated, altered or absurd; OSError: it cannot be opened."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        prefix = file.read(PREFIX.size)
        if prefix[:len(MAGIC)] != MAGIC[:len(prefix)] or not prefix:
            raise ArtifactError(f"{path}: not a workbench artefact (it begins with {prefix[:8]!r})")
        if len(prefix) < PREFIX.size:
            raise ArtifactError(f"{path}: truncated after {size} bytes")
        _, version, length, crc = PREFIX.unpack(prefix)
        if version != VERSION:
            raise ArtifactError(f"{path}: format version {version}; this workbench reads version {VERSION}" + (", a newer one is needed" * (version > VERSION)))
        if length > HEADER_LIMIT:
            raise ArtifactError(f"{path}: absurd header length {length}; at most {HEADER_LIMIT} bytes are allowed")
        if PREFIX.size + length > size:
            raise ArtifactError(f"{path}: truncated after {size} bytes, within the header")
        header = file.read(length)
        if zlib.crc32(header) != crc:
            raise ArtifactError(f"{path}: damaged header (checksum differs)")
        meta, table = _header(path, header)
        if (expected := PREFIX.size + length + sum(count for _, count, _ in table)) != size:
            what = "truncated" if expected > size else "followed by foreign bytes"
            raise ArtifactError(f"{path}: {what}: {size} bytes, expected {expected}")
        sections = {}
        for name, count, digest in table:
            sections[name] = file.read(count)
            if hashlib.sha256(sections[name]).hexdigest() != digest:
                raise ArtifactError(f"{path}: damaged section {name!r} (checksum differs)")
    return Artifact(_tensors(path, sections["tensors"]), meta, _graph(path, sections["graph"]) if "graph" in sections else None)


def _header(path, header: bytes) -> tuple[dict, list]:
    try:
        content = json.loads(header)
        meta, table = content["meta"], content["sections"]
        names = [name for name, _, _ in table]
        if not isinstance(meta, dict) or names not in (["tensors"], ["tensors", "graph"]):
            raise ValueError(f"sections {names}")
        if any(type(count) is not int or count < 0 or not isinstance(digest, str) for _, count, digest in table):
            raise ValueError("section sizes must be whole numbers")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ArtifactError(f"{path}: malformed header: {error}") from error
    return meta, table


def _tensors(path, payload: bytes) -> dict[str, Tensor]:
    try:
        return {name: t.clone() for name, t in safetensors.torch.load(payload).items()}  # clones: aligned memory of their own
    except Exception as error:  # whatever a forged payload makes safetensors raise, the file is at fault
        raise ArtifactError(f"{path}: malformed tensors: {error}") from error


def _graph(path, data: bytes) -> dict:
    try:
        graph = json.loads(data)
        if not isinstance(graph, dict):
            raise TypeError(f"an object was expected, found {type(graph).__name__}")
    except (ValueError, TypeError, RecursionError) as error:
        raise ArtifactError(f"{path}: malformed graph: {error}") from error
    return graph
