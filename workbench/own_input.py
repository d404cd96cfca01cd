"""Your own picture, text or sound through a paper's method: what comes out, and what it costs. (`from workbench import try_own`)

    try_own("iflow")                        # a notebook: choose a file in the widget
    shown("fscl", open("cat.jpg", "rb").read())     # HTML, without a widget

A file is known by its content, not by its name, and looked at with small limits before it is decoded. It stays in this process: nothing is written or sent.
What happens to it depends on what the method compresses: a codec takes the bytes themselves, a net of a bench sees the picture or hears the sound as its
own inputs, before and after compression.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from .api import study
from .core.study import Study, StudyError

MOST_BYTES = 16 << 20
MOST_PIXELS = 40_000_000        # a phone's photograph; a "bomb" has more
KINDS = {"image": "a picture", "text": "a text", "sound": "a sound (WAV)"}
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


class InputError(ValueError):
    """The file cannot be used; the message says what was found and what is allowed."""


@dataclass(frozen=True)
class Own:
    """A decoded file. ``kind``: ``image`` (``data`` uint8 (height, width, 3)), ``sound`` (int16 (samples,) at ``rate`` Hz) or ``text`` (its UTF-8 bytes)."""

    kind: str
    data: Any
    size: int
    rate: int = 0


def read(content: bytes) -> Own:
    """What the file is, decoded. InputError: too large, damaged, or of no kind that is read here."""
    if not content:
        raise InputError("the file is empty")
    _fits(len(content))
    if content[:4] == b"RIFF" and content[8:12] == b"WAVE":
        return _sound(content)
    if _looks_like_image(content):
        return _image(content)
    try:
        text = content.decode("utf8")
    except UnicodeDecodeError as error:
        raise InputError(f"neither a picture ({', '.join(FORMATS)}) nor a WAV file, and no UTF-8 text: byte {error.start} is {content[error.start]:#04x}") from None
    if "\0" in text:
        raise InputError(f"neither a picture ({', '.join(FORMATS)}), a WAV file nor text: it holds zero bytes")
    return Own("text", content, len(content))


def _fits(size: int) -> None:
    if size > MOST_BYTES:
        raise InputError(f"the file has {size:,} bytes; at most {MOST_BYTES:,} are read")


def _looks_like_image(content: bytes) -> bool:
    return content.startswith((b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*")) or content[8:12] == b"WEBP" or \
        (content[:2] == b"BM" and int.from_bytes(content[2:6], "little") == len(content))


def _image(content: bytes) -> Own:
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MOST_PIXELS:
                raise InputError(f"the picture has {width} × {height} pixels; at most {MOST_PIXELS:,} are read")
            image.load()
            plain = ImageOps.exif_transpose(image).convert("RGB")
            return Own("image", np.array(plain), len(content))
    except InputError:
        raise
    except Exception as error:      # each format raises errors of its own for damage
        raise InputError(f"the picture is damaged or of a kind that is not read: {error}") from error


def _sound(content: bytes) -> Own:
    import wave

    try:
        with wave.open(io.BytesIO(content), "rb") as file:
            rate, width, channels, frames = file.getframerate(), file.getsampwidth(), file.getnchannels(), file.getnframes()
            raw = file.readframes(frames)
    except (wave.Error, EOFError, RuntimeError, ZeroDivisionError) as error:
        raise InputError(f"the WAV file is damaged or compressed: {error or 'it ends too early'}") from error
    if not 1 <= channels <= 8 or not 1 <= width <= 4 or not 1_000 <= rate <= 384_000:
        raise InputError(f"the WAV file has {8 * width} bits, {channels} channels, {rate} Hz; 8 to 32 bits, 1 to 8 channels, 1 to 384 kHz are read")
    count = len(raw) // (width * channels)
    if not count or count < frames:
        raise InputError("the WAV file holds no sound" if not frames else f"the WAV file is truncated: {count} of {frames} frames")
    octets = np.frombuffer(raw[:count * width * channels], np.uint8).reshape(-1, width)
    if width == 1:
        samples = (octets[:, 0].astype(np.int32) - 128) << 8
    else:                           # the two highest bytes of little-endian integers
        samples = (octets[:, -1].view(np.int8).astype(np.int32) << 8) | octets[:, -2]
    return Own("sound", (samples.reshape(-1, channels).sum(1) // channels).astype(np.int16), len(content), rate)


def shown(paper: str | Study, content: bytes, **knobs: float) -> str:
    """The file through the paper's method, as HTML; ``knobs``: the paper's (default: theirs). InputError: the file or its kind is of no use here."""
    from .own_views import view_of

    of, own = study(paper), read(content)
    for name in knobs:
        of.knob(name)
    view = view_of(of)
    if view is None or own.kind not in view[0]:
        takes = f"it takes {' or '.join(KINDS[kind] for kind in view[0])}" if view else f"it compresses what belongs to the track {of.track.name}, not files"
        raise InputError(f"{of.name} has no use for {KINDS[own.kind]}: {takes}")
    return view[1](of, own, {**{knob.name: knob.default for knob in of.knobs}, **knobs})


def try_own(paper: str | Study, **knobs: float):
    """A widget: a file chosen in it goes through the paper's method, at these knob values. StudyError: the method has no use for files."""
    of = study(paper)
    for name in knobs:
        of.knob(name)
    found = corner(of, lambda: knobs)
    if not found:
        raise StudyError(f"{of.name} compresses what belongs to the track {of.track.name}: it has no use for a picture, text or sound")
    return found[0].children[0]


def corner(of: Study, state: Callable[[], Mapping[str, float]]) -> list:
    """The same for a corner of an explorer, folded up: one widget that takes the knob values as they stand when a file comes. Empty: no use for files."""
    import ipywidgets as widgets

    from .own_views import view_of

    view = view_of(of)
    if view is None:
        return []
    accepts = {"image": "image/*", "sound": ".wav", "text": ".txt,text/*"}
    upload = widgets.FileUpload(accept=",".join(accepts[kind] for kind in view[0]), multiple=False, description="Choose a file")
    out = widgets.HTML(f"<p>{escape(' or '.join(KINDS[kind] for kind in view[0]))}, at most {MOST_BYTES >> 20} MB; it stays on this machine</p>")

    def handle(change: Any) -> None:
        for file in change["new"]:
            out.value = "<p role='status'>at work …</p>"
            try:
                _fits(file["size"])
                out.value = shown(of, bytes(file["content"]), **state())
            except ValueError as error:
                out.value = _refused(str(error))

    upload.observe(handle, "value")
    return [widgets.Accordion([widgets.VBox([upload, out])], titles=["Your own file"], selected_index=None)]


def _refused(text: str) -> str:
    return f"<p role='alert'>✘ {escape(text)}</p>"
