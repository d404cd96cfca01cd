"""The board of `vgg-small/macs`: a plain net on which every criterion can show what it knows."""

from __future__ import annotations

from ...benches import vision
from ...core.study import Knob, Study
from .boards import OWN_TRACK, entry, field
from .pictures import kept_channels

STUDY = Study(
    paper="board vgg-small/macs",
    name="vgg-small/macs",
    track=vision.VGG_MACS,
    knobs=(Knob("macs_removed", (0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7), 0.5, quick=(0.3, 0.5, 0.7), neutral=0, label="share of the MACs removed"),
           Knob("round_to", (1, 8), 1, label="channels kept in multiples of")),
    contenders=field("vgg-small"),
    ablations={}, checks=(), claims=(), parts={}, picture=kept_channels, exercise=None, enter=entry("vgg-small"), absent=OWN_TRACK,
)
