"""The public tier: found in a mirror or the cache, by hash; missing and damaged files say what to do."""

import functools
import http.server
import threading

import numpy as np
import pytest
from PIL import Image

from workbench import cli
from workbench.core import datasets
from workbench.core.study import StudyError


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A manifest of three files, an empty mirror, an empty cache, and a server that has two of the files."""
    served, mirror = tmp_path / "served", tmp_path / "mirror"
    served.mkdir()
    mirror.mkdir()
    (served / "plain.bin").write_bytes(b"plain bytes")
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[::4] = 200
    Image.fromarray(pixels).save(served / "photo.png", compress_level=0)
    Image.fromarray(pixels).save(tmp_path / "smaller.png", compress_level=9)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=served))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    import hashlib

    def item(name, file, content, kind, hashed=""):
        return datasets.Item(name, file, len(content), hashlib.sha256(content).hexdigest(), f"{address}/{file.split('/')[-1]}", kind, hashed, "MIT", "a test")

    smaller = (tmp_path / "smaller.png").read_bytes()
    rows = (item("plain", "a/plain.bin", b"plain bytes", "file"), item("photo", "a/photo.png", smaller, "pixels", datasets.pixel_hash(tmp_path / "smaller.png")),
            item("packed", "a/packed.npz", b"packed", "source"))
    monkeypatch.setattr(datasets, "manifest", lambda: rows)
    monkeypatch.setenv("WORKBENCH_MIRROR", str(mirror))
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    yield mirror, served
    server.shutdown()


def test_fetches_once_by_hash_and_the_mirror_comes_first(world):
    mirror, served = world
    path, = datasets.get("plain")
    assert path.read_bytes() == b"plain bytes" and "cache" in path.parts and datasets.state(datasets.items("plain")[0]) == "cache"
    (served / "plain.bin").unlink()
    assert datasets.get("plain") == [path], "what is here is not fetched again"
    (mirror / "a").mkdir()
    (mirror / "a/plain.bin").write_bytes(b"plain bytes")
    assert datasets.get("plain") == [mirror / "a/plain.bin"] and datasets.state(datasets.items("plain")[0]) == "mirror"


def test_the_same_pixels_in_another_encoding_are_right(world):
    path, = datasets.get("photo")
    assert path.stat().st_size != datasets.items("photo")[0].bytes and datasets.verify(["photo"]) == []


def test_another_file_at_the_address_is_refused_and_not_kept(world, tmp_path):
    _, served = world
    (served / "plain.bin").write_bytes(b"other bytes")
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(served / "photo.png")
    for name in ("plain", "photo"):
        with pytest.raises(datasets.DataError, match=r"could not fetch|served something else"):
            datasets.get(name)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_missing_and_packed_files_say_what_to_do(world, capsys):
    _, served = world
    (served / "plain.bin").unlink()
    assert cli.main(["data", "get", "plain"]) == 1
    assert "workbench data get plain" in capsys.readouterr().err
    assert cli.main(["data", "get", "packed"]) == 1
    assert "WORKBENCH_MIRROR" in capsys.readouterr().err
    assert cli.main(["data", "get", "nothing"]) == 2 and "plain, photo, packed" in capsys.readouterr().err


def test_damage_is_found_wherever_it_is(world, capsys):
    path, = datasets.get("plain")
    assert cli.main(["data", "verify"]) == 0
    path.write_bytes(b"plain bytez")
    assert cli.main(["data", "verify"]) == 1 and "damaged" in capsys.readouterr().out
    with pytest.raises(datasets.DataError, match="delete it and run"):
        datasets.get("plain")
    assert cli.main(["data", "list"]) == 0 and "damaged" in capsys.readouterr().out


def test_a_mirror_that_is_no_folder_is_an_error(world, monkeypatch):
    monkeypatch.setenv("WORKBENCH_MIRROR", "/nowhere/at/all")
    with pytest.raises(StudyError, match="no folder"):
        datasets.get("plain")


def test_the_manifest_is_complete():
    for item in datasets.manifest():
        assert len(item.sha256) == 64 and item.bytes > 0 and item.licence and item.what and item.url.startswith("http") and item.address in ("file", "pixels", "source")
        assert bool(item.pixels) == (item.address == "pixels")


def test_the_mirror_has_the_right_bytes(monkeypatch):
    monkeypatch.delenv("WORKBENCH_MIRROR", raising=False)
    if datasets.mirror() is None:
        pytest.skip("NO MIRROR of public data beside the checkout (../shared/data): its hashes were NOT checked")
    assert datasets.verify(["all"]) == [] and {datasets.state(item) for item in datasets.manifest()} <= {"mirror", "cache"}
