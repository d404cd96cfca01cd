"""The `detection` bench: a small detector of digits on photographs, a static camera for which it can be specialised, and a small Siamese tracker.

Quality is AP50 (per cent, mean over classes, after non-maximum suppression) on the *camera*'s later frames, and AP50 on test scenes of the *general* domain tells
what was forgotten. A tracker is judged by its success on twelve videos. Batch-norm statistics are judged as they are: what adapts to a camera carries that camera's.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from ...contracts.model import packed_bytes
from ...contracts.structure.macs import macs, parameters
from ...core.study import Metric, Result, StudyError, Track
from .. import CHECKPOINTS
from . import boxes, data, tracking
from .nets import NETS

EXAMPLE = torch.zeros(1, 3, data.SIDE, data.SIDE)
GENERAL = 256                                                       # test scenes that a point is judged by
REPLICAS = 3

METRICS = {
    "camera_ap": Metric("AP50 on the camera (%)"),
    "general_ap": Metric("AP50 on general scenes (%)"),
    "missed": Metric("objects missed on the camera (%)", False),
    "success": Metric("tracking success (AUC, %)"),
    "precision": Metric("tracking precision (%)"),
    "params_share": Metric("parameters left (share)", False, 3),
    "params": Metric("parameters (thousands)", False, 1),
    "macs": Metric("MACs of a 64×64 image (millions)", False, 2),
    "macs_share": Metric("MACs left (share)", False, 3),
    "bytes": Metric("file (KB)", False),
}


@lru_cache(maxsize=8)
def _dense(net: str, replica: int) -> nn.Module:
    path = CHECKPOINTS / f"{net}-{replica}.safetensors"
    if net not in NETS or not path.exists():
        raise StudyError(f"no checkpoint {path.name}; `python -m workbench.benches.detection.recipe {net} {replica}` trains it. Nets: {', '.join(NETS)}")
    model = NETS[net]()
    model.load_state_dict({name: value.float() if value.is_floating_point() else value for name, value in load_file(path).items()})
    return model.eval()


def dense(net: str, replica: int = 0) -> nn.Module:
    """A fresh copy of the trained net (float32, evaluation mode)."""
    return copy.deepcopy(_dense(net, replica))


@torch.no_grad()
def detect(model: nn.Module, images: np.ndarray) -> boxes.Found:
    """Detections of uint8 images (n, 3, h, w)."""
    return boxes.decode(torch.cat([model(data.normalised(part)) for part in np.array_split(images, max(1, len(images) // 32))]))


def judge(model: nn.Module, scenes: data.Scenes, classes: Sequence[int] | None = None) -> tuple[float, np.ndarray]:
    """AP50, and per object whether it was found."""
    found = detect(model, scenes.images)
    return boxes.average_precision(found, scenes.objects, classes), boxes.hit(found, scenes.objects)


def track_all(new: Callable[[], tracking.Tracker]) -> tuple[np.ndarray, np.ndarray]:
    """A fresh tracker for every video: tracks (12, 40, 4), and overlaps (12, 39) without the first frame, which was given."""
    frames, truth = data.videos()
    tracks = np.stack([tracking.follow(new(), video, box[0]) for video, box in zip(frames, truth, strict=True)])
    return tracks, np.stack([tracking.overlaps(track, box)[1:] for track, box in zip(tracks, truth, strict=True)])


@lru_cache(maxsize=4)
def _whole(net: str) -> tuple[int, int]:
    model = NETS[net]().eval()
    return parameters(model), macs(model, EXAMPLE)


def cost(model: nn.Module) -> dict[str, float]:
    """Parameters, MACs and bytes of the net really written, and the shares of the uncompressed one's."""
    whole, spent = _whole("siamese" if isinstance(model, NETS["siamese"]) else "detector"), macs(model, EXAMPLE)
    return {"params": parameters(model) / 1e3, "params_share": parameters(model) / whole[0], "macs": spent / 1e6, "macs_share": spent / whole[1],
            "bytes": packed_bytes(model) / 1e3}


def measure(thing) -> Result:
    """A detector (a net, or what holds one as ``model``) on camera and general scenes; a tracker (what has ``tracker()``) on the videos.

    Trackers have no AP50 and detectors no success: what does not apply is NaN."""
    if hasattr(thing, "tracker"):
        made: list[tracking.Tracker] = []
        tracks, shared = track_all(lambda: made.append(thing.tracker()) or made[-1])
        costs = [cost(tracker.net) for tracker in made]
        truth = data.videos()[1]
        nothing = dict.fromkeys(("camera_ap", "general_ap", "missed"), float("nan"))
        return Result({**nothing, "success": tracking.success(shared.ravel()), "precision": tracking.precise(tracks[:, 1:].reshape(-1, 4), truth[:, 1:].reshape(-1, 4)),
                       **{name: float(np.mean([c[name] for c in costs])) for name in costs[0]}},
                      samples={"success per video": np.array([tracking.success(row) for row in shared], np.float32)})
    model = thing if isinstance(thing, nn.Module) else thing.model
    camera, found = judge(model, data.late(), data.CAMERA_DIGITS)
    general, known = judge(model, data.scenes("test").part(0, GENERAL))
    return Result({"camera_ap": camera, "general_ap": general, "missed": 100 * float(1 - found.mean()), "success": float("nan"), "precision": float("nan"), **cost(model)},
                  samples={"found on the camera": found, "found in general": known})


@lru_cache(maxsize=1)
def _data_key() -> str:
    digest = hashlib.sha256(str(data.EXPECTED).encode())
    for net in NETS:
        for path in sorted(Path(CHECKPOINTS).glob(f"{net}-*.safetensors")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


CAMERA = Track("detection/camera", "params_share", "camera_ap", METRICS, measure, _data_key, REPLICAS, title="A static camera, AP50 against parameters",
               reference=lambda replica: dense("detector", replica))
