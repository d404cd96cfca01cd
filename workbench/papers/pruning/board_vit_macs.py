"""The board of `vit-tiny/macs`: hidden units of a transformer's blocks go; no batch norm follows them and they have no maps."""

from __future__ import annotations

from ...benches import vision
from ...core.study import Knob, Study
from .boards import OWN_TRACK, entry, field
from .pictures import kept_channels

STUDY = Study(
    paper="board vit-tiny/macs",
    name="vit-tiny/macs",
    track=vision.VIT_MACS,
    knobs=(Knob("macs_removed", (0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3), 0.2, quick=(0.1, 0.2, 0.3), neutral=0, label="share of the MACs removed"),
           Knob("round_to", (1, 8), 1, label="channels kept in multiples of")),
    contenders=field("vit-tiny", without=("batch-norm scale", "HRank", "entropy"), tuned=(0.1, 0.2, 0.3)),
    ablations={}, checks=(), claims=(), parts={}, picture=kept_channels, exercise=None, enter=entry("vit-tiny"),
    absent=OWN_TRACK | {"1706.05791": "it pools the maps of convolutions; hidden units of a transformer have none"},
)
