"""The contenders of the BSGC study: shipped specialised detectors, detectors made on the spot, trackers; and what their picture shows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import nn

from ...benches import detection
from ...benches.detection import data, tracking
from ...benches.detection.boxes import overlap
from ...core.study import Contender
from . import Pruned
from ._bsgc_method import specialize
from ._bsgc_record import ALPHA, FOLDER, METHOD, SIZE, domain, memory, shipped
from ._bsgc_tasks import Detection
from ._bsgc_tracker import ONLINE, OnlineTracker, stored


@lru_cache(maxsize=1)
def _data_key() -> str:
    digest = hashlib.sha256(detection.CAMERA.data_key().encode())
    for path in sorted(FOLDER.glob("*.safetensors")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


TRACK = replace(detection.CAMERA, data_key=_data_key)               # a point is stale where a shipped net has changed


# ---------------------------------------------------------------------------------------------------------------- detectors

@lru_cache(maxsize=1)
def shown() -> int:
    """The first judged frame with three objects (or the one with most)."""
    counts = np.bincount(data.late().objects.image, minlength=len(data.late()))
    return int(np.argmax(counts))


def exhibits(model: nn.Module) -> dict[str, np.ndarray]:
    """A late frame in grey, what is on it and what is found there (x0, y0, x1, y1, digit, score in per cent), and the channels of each layer."""
    frame = data.late().images[shown():shown() + 1]
    box, label = data.late().objects.of(shown())
    found = detection.detect(model, frame)
    sure = found.score >= 0.3
    rows = np.column_stack([found.box, found.label, 100 * found.score])[sure][:12]
    return {"frame": frame[0].mean(0).astype(np.uint8), "truth": np.column_stack([box, label]).round().astype(np.int16),
            "found": rows.round().astype(np.int16).reshape(-1, 6), "kept": np.array(model.config()["widths"], np.int16),
            "of": np.array(detection.dense("detector").config()["widths"], np.int16)}


def explained(pruned: Pruned) -> Pruned:
    return Pruned(pruned.model, exhibits(pruned.model), pruned.series)


def recorded(kind: str, **settings) -> Contender:
    """A shipped detector at the size and α of the knobs."""

    def make(size: float, alpha: float, replica: int) -> Pruned:
        return explained(shipped(kind, size, alpha, replica))

    return Contender(make, evidence="checkpoint", **settings)


def at_default(kind: str, alpha: float = ALPHA, **settings) -> Contender:
    """A shipped detector at 10 % of the parameters."""
    return Contender(lambda replica: explained(shipped(kind, SIZE, alpha, replica)), evidence="checkpoint", **settings)


def general() -> Contender:
    """Control: the general detector as it is."""
    return Contender(lambda replica: explained(Pruned(detection.dense("detector", replica))), role="control")


def tuned_only() -> Contender:
    """The same steps with L_s + α·L_g, and no compression."""

    def make(replica: int) -> Pruned:
        made = specialize(detection.dense("detector", replica), domain(replica), memory(replica), 1.0, ALPHA, Detection(), METHOD)
        return explained(Pruned(made.model, {}, dict(made.history)))

    return Contender(make, evidence="recorded")


# ---------------------------------------------------------------------------------------------------------------- trackers

@dataclass
class Tracking:
    """Something that follows: ``tracker()`` gives a fresh one for every video."""

    tracker: Callable[[], tracking.Tracker]


def tracker(compress: bool, size: float = 0.8, alpha: float = ONLINE.alpha) -> Contender:
    """On-line specialisation, with or without compression."""

    def make(replica: int) -> Tracking:
        net, method = detection.dense("siamese", replica), replace(ONLINE, alpha=alpha)
        return Tracking(lambda: OnlineTracker(net, stored(), compress, size, method))

    return Contender(make, evidence="recorded")


def unadapted() -> Contender:
    """Control: the Siamese tracker as it is."""
    return Contender(lambda replica: Tracking(lambda: tracking.Tracker(detection.dense("siamese", replica))), role="control", evidence="recorded")


def to_time() -> dict[str, Callable]:
    """What the probe times: a camera frame through each detector, batch of one, with decoding and suppression; and a whole video through each tracker, learning included."""
    frame = data.late().images[:1]
    videos, boxes = data.videos()
    net = detection.dense("siamese")
    nets = {"general detector": detection.dense("detector"), **{f"{size:.0%} of the parameters": shipped("joint", size, ALPHA, 0).model for size in (0.2, 0.1)}}
    timed = {name: (lambda model=model: detection.detect(model, frame)) for name, model in nets.items()}
    timed["video, tracker as it is"] = lambda: tracking.follow(tracking.Tracker(net), videos[0], boxes[0, 0])
    for name, compress in (("video, adapting", False), ("video, adapting and compressing", True)):
        timed[name] = lambda compress=compress: OnlineTracker(net, stored(), compress).run(videos[0], boxes[0, 0])
    return timed


@torch.no_grad()
def drawn(point: dict, exhibits: dict[str, np.ndarray]):
    """Left: a late frame of the camera, the objects (dashed) and what is found (solid; red: not an object of that digit). Right: the channels that each layer keeps."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    if "frame" not in exhibits:
        return go.Figure(layout={"title": {"text": "a tracker: see its success in the table"}, "height": 120})
    frame, truth, found, kept, of = (exhibits[name].astype(int) for name in ("frame", "truth", "found", "kept", "of"))
    figure = make_subplots(1, 2, column_widths=[0.5, 0.5], horizontal_spacing=0.12,
                           subplot_titles=("a later frame: objects dashed, found solid", "channels that each layer keeps"))
    figure.add_heatmap(z=frame.tolist(), colorscale="Greys_r", showscale=False, hoverinfo="skip", row=1, col=1)
    for x0, y0, x1, y1, label in truth.tolist():
        figure.add_shape(type="rect", x0=x0, y0=y0, x1=x1, y1=y1, line={"color": "#E69F00", "width": 2, "dash": "dash"}, row=1, col=1)
        figure.add_annotation(x=x0, y=y1, text=f"is {label}", showarrow=False, yanchor="top", xanchor="left", font={"color": "#8A5F00"}, bgcolor="rgba(255,255,255,0.75)", row=1, col=1)
    for x0, y0, x1, y1, label, score in found.tolist():
        right = any(label == row[4] and overlap(np.array([[x0, y0, x1, y1]], float), row[None, :4].astype(float))[0, 0] >= 0.5 for row in truth)
        colour = "#56B4E9" if right else "#D55E00"
        figure.add_shape(type="rect", x0=x0, y0=y0, x1=x1, y1=y1, line={"color": colour, "width": 2}, row=1, col=1)
        figure.add_annotation(x=x0, y=y0, text=f"{label}: {score} %", showarrow=False, yanchor="bottom", xanchor="left", font={"color": "#005A8C" if right else "#A03000"},
                              bgcolor="rgba(255,255,255,0.75)", row=1, col=1)
    side = frame.shape[0]
    figure.update_yaxes(range=[side + 6, -10], scaleanchor="x", visible=False, row=1, col=1)
    figure.update_xaxes(range=[-4, side + 4], visible=False, row=1, col=1)
    layers = [f"conv {i + 1}" for i in range(len(of))]
    figure.add_bar(x=layers, y=of.tolist(), marker_color="#DDDDDD", name="general", row=1, col=2)
    figure.add_bar(x=layers, y=kept.tolist(), marker_color="#0072B2", text=kept.tolist(), textangle=0, textposition="auto", name="kept", row=1, col=2)
    figure.update_yaxes(title_text="channels (grey: general net)", row=1, col=2)
    return figure.update_layout(height=340, barmode="overlay", margin={"l": 10, "r": 10, "t": 40, "b": 30}, showlegend=False)
