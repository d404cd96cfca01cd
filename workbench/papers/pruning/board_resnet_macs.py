"""The board of `resnet20/macs`: only the inner channels of the blocks go; the residual stream is read and written by all."""

from __future__ import annotations

from ...benches import vision
from ...core.study import Knob, Study
from .boards import OWN_TRACK, entry, field
from .pictures import kept_channels

STUDY = Study(
    paper="board resnet20/macs",
    name="resnet20/macs",
    track=vision.RESNET_MACS,
    knobs=(Knob("macs_removed", (0, 0.2, 0.3, 0.4, 0.5, 0.6), 0.5, quick=(0.3, 0.5), neutral=0, label="share of the MACs removed"),
           Knob("round_to", (1, 8), 1, label="channels kept in multiples of")),
    contenders=field("resnet20", tuned=(0.3, 0.5)),
    ablations={}, checks=(), claims=(), parts={}, picture=kept_channels, exercise=None, enter=entry("resnet20"), absent=OWN_TRACK,
)
