"""The public tier: data sets and pretrained nets from elsewhere, listed with hashes in ``workbench/datasets.csv``; nothing of them is in the repository.

A file is taken from the mirror folder (``$WORKBENCH_MIRROR``, or ``../shared/data`` beside the checkout), else from the cache, else fetched by pooch from
its official address; wherever it comes from, its hash must be right. ``address`` says what that address serves: the ``file`` itself; the same ``pixels``
in another encoding (then the hash of the decoded pixels decides); or a ``source`` from which the file was packed, which only a mirror can give.
"""

from __future__ import annotations

import csv
import hashlib
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from .measurements import cache_folder
from .registry import ROOT
from .study import StudyError

MANIFEST = ROOT / "datasets.csv"


class DataError(StudyError):
    """A file of the public tier is missing, damaged or cannot be fetched; the message says what to do."""

    exit_code = 1


@dataclass(frozen=True)
class Item:
    """One file: its data set, its path within a mirror, bytes and hash, official address, licence, and what is in it."""

    name: str
    file: str
    bytes: int
    sha256: str
    url: str
    address: str
    pixels: str
    licence: str
    what: str


@lru_cache(maxsize=1)
def manifest() -> tuple[Item, ...]:
    with open(MANIFEST, encoding="utf8", newline="") as handle:
        return tuple(Item(**{**row, "bytes": int(row["bytes"])}) for row in csv.DictReader(handle))


def items(name: str) -> list[Item]:
    """The files of a data set (``all``: of every one)."""
    found = [item for item in manifest() if name in ("all", item.name, item.file)]
    if not found:
        raise StudyError(f"no data set {name!r}; there are {', '.join(dict.fromkeys(item.name for item in manifest()))}")
    return found


def mirror() -> Path | None:
    """The mirror folder, None where there is none. ``$WORKBENCH_MIRROR`` that is no folder is an error."""
    named = os.environ.get("WORKBENCH_MIRROR")
    if named and not Path(named).is_dir():
        raise DataError(f"WORKBENCH_MIRROR names {named!r}, which is no folder")
    folder = Path(named) if named else ROOT.parents[1] / "shared" / "data"
    return folder if folder.is_dir() else None


def _places(item: Item) -> list[Path]:
    folder = mirror()
    return [*([folder / item.file] if folder else []), cache_folder() / "public" / item.file]


def right(item: Item, path: Path) -> bool:
    """Whether the file holds what the manifest says: the same bytes, or for ``pixels`` the same picture."""
    if path.stat().st_size == item.bytes and hashlib.sha256(path.read_bytes()).hexdigest() == item.sha256:
        return True
    return bool(item.pixels) and pixel_hash(path) == item.pixels


def pixel_hash(path: Path) -> str:
    """sha256 of an image's RGB pixels and size, whatever its encoding; empty where it is no image."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            rgb = image.convert("RGB")
            return hashlib.sha256(f"{rgb.width}x{rgb.height}".encode() + rgb.tobytes()).hexdigest()
    except (UnidentifiedImageError, OSError):
        return ""


def path_of(item: Item) -> Path | None:
    """Where the file is, None where it is nowhere. A damaged one is an error that says how to get it again."""
    for path in _places(item):
        if path.exists():
            if right(item, path):
                return path
            raise DataError(f"{path} is damaged: its hash is not that of {item.name} in datasets.csv; delete it and run `workbench data get {item.name}`")
    return None


def get(name: str) -> list[Path]:
    """The files of a data set, fetched where they are not here yet."""
    return [path_of(item) or _fetch(item) for item in items(name)]


def _fetch(item: Item) -> Path:
    if item.address == "source":
        raise DataError(f"{item.file} was packed from {item.url} and cannot be fetched from there as it is; "
                        f"put a folder that has it into WORKBENCH_MIRROR and run `workbench data get {item.name}`")
    import pooch

    target = cache_folder() / "public" / item.file
    target.parent.mkdir(parents=True, exist_ok=True)
    new = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        pooch.retrieve(item.url, item.sha256 if item.address == "file" else None, fname=new.name, path=new.parent, progressbar=True)
        if not right(item, new):
            raise DataError(f"{item.url} served something else than {item.name}: neither the bytes nor the pixels are those of datasets.csv")
        os.replace(new, target)
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"could not fetch {item.url} ({error}); try again with `workbench data get {item.name}`, "
                        "or name a folder that has it in WORKBENCH_MIRROR") from None
    finally:
        new.unlink(missing_ok=True)
    return target


def state(item: Item) -> str:
    """Where a file is: ``mirror``, ``cache``, ``damaged`` or empty."""
    places = _places(item)
    try:
        path = path_of(item)
    except DataError:
        return "damaged"
    return "" if path is None else "cache" if path == places[-1] else "mirror"


def verify(names: list[str]) -> list[str]:
    """What is wrong with the files that are here: one line each; empty where all are right. A file that is nowhere is not wrong."""
    problems = []
    for item in dict.fromkeys(item for name in names for item in items(name)):
        try:
            path_of(item)
        except DataError as error:
            problems.append(str(error))
    return problems
