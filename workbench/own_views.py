"""A file of one's own, before and after: through a codec, through the nets of the vision bench, through the separator of the speech bench.

Each view takes (study, `own_input.Own`, knob values) and gives HTML. ``BENCHES`` says which kinds of file the nets of a bench can be shown.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from html import escape
from typing import Any

import numpy as np

from .api import study
from .contracts import data
from .core import live
from .core.study import Study, StudyError, call_with
from .own_input import InputError, Own

CODED = 27 << 10                # bytes that a codec is given (96 × 96 pixels): seconds of a flow's work
SECONDS = 4                     # of sound that a net hears


def view_of(of: Study) -> tuple[tuple[str, ...], Callable] | None:
    """The kinds of file that the method can be shown with, and how: by what it compresses, or by the bench that its track belongs to."""
    if hasattr(of.method, "compress") and hasattr(of.method, "decompress"):
        return ("image", "text", "sound"), _coded
    return BENCHES.get(of.track.name.split("/")[0])


def _coded(of: Study, own: Own, knobs: Mapping[str, float]) -> str:
    """A codec: the middle of a picture, the beginning of anything else, there and back."""
    if own.kind == "image":
        side = math.isqrt(CODED // 3)
        height, width = own.data.shape[:2]
        top, left = max(0, (height - side) // 2), max(0, (width - side) // 2)
        part, unit, units = own.data[top:top + side, left:left + side], "pixel", 0
        units = part.shape[0] * part.shape[1]
    else:
        part = own.data[:CODED] if own.kind == "text" else own.data[:CODED // 2]
        unit, units = ("byte", len(part)) if own.kind == "text" else ("sample", len(part))
    codec = _cached(of.paper, tuple(sorted(knobs.items())))
    stream = data.encode(part, codec)
    back = data.decode(stream, {codec.method: codec}.get)
    size = len(part) if own.kind == "text" else part.nbytes
    same = back == part if own.kind == "text" else np.array_equal(back, part)
    used = f"{part.shape[1]} × {part.shape[0]} pixels from the middle of the picture" if own.kind == "image" else f"the first {units:,} {unit}s"
    rows = [("given to the codec", f"{size:,} bytes ({used})"), ("compressed", f"{len(stream):,} bytes ({len(stream) / size:.1%})"),
            (f"bits per {unit}", f"{8 * len(stream) / units:.3f}"), ("decoded", "lossless: every bit is back" if same else "not what was given: a bug")]
    if data.unframe(stream)[1] == data.STORED:
        rows.append(("note", "stored as it is: this codec cannot make it smaller, and adds only its frame"))
    views = {"image": lambda x: _picture(x, 256), "sound": lambda x: _player(x, own.rate),
             "text": lambda x: f"<pre style='white-space:pre-wrap;max-width:60ch'>{escape(x[:400].decode('utf8', 'replace'))}</pre>"}[own.kind]
    return _page(f"{of.name} on your {own.kind}", rows, {"original": views(part), "decoded": views(back)})


def _made(of: Study, knobs: Mapping[str, float]) -> tuple[Any, Any]:
    """The bench's net as it is and the paper's at these knobs, of the first checkpoint."""
    if of.field[of.subject].evidence == "recorded":
        raise InputError(f"{of.name} is too long to make while you wait; its stored results are in its explorer")
    if live.jobs() == 0:
        raise StudyError("WORKBENCH_JOBS is 0 here: nothing is computed, only stored results are shown")
    return call_with(of.track.reference, replica=0), _cached(of.paper, tuple(sorted(knobs.items())))


@lru_cache(maxsize=4)
def _cached(paper: str, knobs: tuple) -> Any:
    """What the paper's own contender makes at these knobs, of the first checkpoint."""
    contender = study(paper).field[study(paper).subject]
    return call_with(contender.make, contender.arguments, **dict(knobs), replica=0, seed=0, tier="embedded")


def _classified(of: Study, own: Own, knobs: Mapping[str, float]) -> str:
    """A net of the vision bench: the scores of both nets for the picture, made as small as they see it."""
    import torch
    from PIL import Image, ImageOps

    from .benches import vision
    from .contracts.structure.surgery import reestimate_batchnorm

    net, side = of.track.name.split("/")[0], vision.data.SIDE
    small = np.array(ImageOps.fit(Image.fromarray(own.data), (side, side)))
    inputs, _ = vision.data.Split(small.transpose(2, 0, 1)[None], np.zeros(1, np.int64)).tensors()
    dense, made = _made(of, knobs)
    pruned = made if isinstance(made, torch.nn.Module) else made.model
    if vision.macs(pruned, vision.EXAMPLE) < vision.macs(dense, vision.EXAMPLE):        # as the bench judges it
        import copy

        pruned = copy.deepcopy(pruned)
        reestimate_batchnorm(pruned, vision.calibration(net=net))
    with torch.no_grad():
        scores = [torch.softmax(model.eval()(inputs), 1)[0].numpy() for model in (dense, pruned)]
    bars = "".join(f"<tr><th scope='row'>{digit}</th>" + "".join(f"<td class='n'>{s[digit]:.1%}</td><td><meter value='{s[digit]:.4f}' aria-hidden='true'></meter></td>"
                                                                   for s in scores) + "</tr>" for digit in range(len(scores[0])))
    table = f"<table><caption>How sure each net is of each digit</caption><tr><th scope='col'>digit</th><th scope='col' colspan='2'>as trained</th>" \
            f"<th scope='col' colspan='2'>{escape(of.name)}</th></tr>{bars}</table>"
    same = int(scores[0].argmax()) == int(scores[1].argmax())
    rows = [("MACs", f"{vision.macs(dense, vision.EXAMPLE) / 1e6:.2f} → {vision.macs(pruned, vision.EXAMPLE) / 1e6:.2f} million"),
            ("file", f"{vision.file_bytes(dense) / 1e3:.1f} → {vision.file_bytes(made) / 1e3:.1f} KB"),
            ("answer", f"{scores[0].argmax()} → {scores[1].argmax()} ({'the same' if same else 'another one'})"),
            ("note", "the nets know digits over photographs; of anything else they can only say which digit it is most like")]
    return _page(f"{of.name} on your picture, {side} × {side} pixels as the nets see it", rows, {"what the nets see": _picture(small, 192), "scores": table})


def _separated(of: Study, own: Own, knobs: Mapping[str, float]) -> str:
    """The separator of the speech bench: the voices that both nets find in the first seconds."""
    import torch
    from scipy.signal import resample_poly

    from .benches.speech.data import RATE
    from .benches.speech.recipe import si_sdr

    step = math.gcd(RATE, own.rate)
    heard = resample_poly(own.data[:SECONDS * own.rate].astype(np.float64), RATE // step, own.rate // step)
    if len(heard) < RATE // 10:
        raise InputError(f"the sound lasts {len(heard) / RATE:.3f} s; the separator needs at least 0.1 s")
    mixture = torch.from_numpy(heard.astype(np.float32) / 32_768)[None]
    dense, small = _made(of, knobs)
    with torch.no_grad():
        full, less = (model(mixture)[0] for model in (dense, small))
        less = max(less, less.flip(0), key=lambda voices: float(si_sdr(voices, full).sum()))      # which voice comes first is chance
        alike = si_sdr(less, full)
    rows = [("heard", f"{len(heard) / RATE:.2f} s at {RATE:,} Hz, one channel"), ("file", f"{len(dense.to_bytes()) / 1e3:.1f} → {len(small.to_bytes()) / 1e3:.1f} KB"),
            ("the small net's voices against the dense net's (SI-SDR)", ", ".join(f"{float(x):.1f} dB" for x in alike))]
    players = {"mixture": _player(np.clip(heard, -32_768, 32_767).astype(np.int16), RATE)}
    for name, pair in (("dense", full.numpy()), (of.name, less.numpy())):
        for i, voice in enumerate(pair, 1):
            players[f"{name}, voice {i}"] = _player((np.clip(voice / max(np.abs(voice).max(), 1e-9), -1, 1) * 30_000).astype(np.int16), RATE)
    return _page(f"{of.name} on your sound", rows, players)


BENCHES: dict[str, tuple[tuple[str, ...], Callable]] = {
    **dict.fromkeys(("vgg-small", "resnet20", "mobilenet", "vit-tiny"), (("image",), _classified)), "speech": (("sound",), _separated)}


# --- drawn --------------------------------------------------------------------------------------------------------------------------------------------


def _page(title: str, rows: list[tuple[str, str]], parts: Mapping[str, str]) -> str:
    from .views.readout import STYLE, html_table

    figures = "".join(f"<figure style='display:inline-block;margin:8px 16px 8px 0;vertical-align:top'><figcaption>{escape(name)}</figcaption>{part}</figure>"
                      for name, part in parts.items())
    return f"{STYLE}<div class='wb'><h4>{escape(title)}</h4>{html_table(('what', 'result'), rows, 'Measured now, on this machine')}{figures}</div>"


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _picture(pixels: np.ndarray, width: int) -> str:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return f"<img src='{_data_uri('image/png', file.getvalue())}' width='{width}' style='image-rendering:pixelated' alt='{pixels.shape[1]} × {pixels.shape[0]} pixels'>"


def _player(samples: np.ndarray, rate: int) -> str:
    """An audio player and the waveform, as 200 strokes from the lowest to the highest sample."""
    import wave

    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(samples.astype("<i2").tobytes())
    strokes = "".join(f"M{i} {50 - int(part.max()) * 48 / 32768:.1f}V{50.5 - int(part.min()) * 48 / 32768:.1f}"
                      for i, part in enumerate(np.array_split(samples, 200)) if len(part))
    return (f"<svg viewBox='0 0 200 100' width='300' height='80' preserveAspectRatio='none' role='img' aria-label='waveform, {len(samples) / rate:.2f} s'>"
            f"<path d='{strokes}' stroke='currentColor' fill='none'/></svg><br><audio controls src='{_data_uri('audio/wav', file.getvalue())}'></audio>")
