"""A paper's score on the bench's nets and on nets that nobody here made, side by side: what stands on its page beside its own figures."""

from __future__ import annotations

import pandas as pd

from ...core import golden, registry
from ...core.claims import Estimate, better
from ...core.measurements import Measurements
from .public import public_frame

COLUMNS = ["tier", "net", "what goes", "this score (%)", "gain over L1 (points)", "90 % interval", "over"]


def beside(arxiv: str) -> pd.DataFrame:
    """One row a net and setting, columns `COLUMNS`; empty for a paper that scores no channels. Embedded: at equal multiply–accumulates over the board's
    middle, paired over independently trained nets. Public: one net each, paired over its test items."""
    rows = [row for entry in registry.boards() for row in _embedded(entry, arxiv)] + _public(registry.find(arxiv).name)
    return pd.DataFrame(rows, columns=COLUMNS)


def _embedded(entry: registry.Entry, arxiv: str) -> list[tuple]:
    study = entry.study()
    names = [name for name, c in study.contenders.items() if c.source == arxiv and c.evidence != "recorded"]
    if not names or "L1" not in study.contenders:
        return []
    m = Measurements(study, tuple(golden.points(study)))
    middle = study.knobs[0].default
    rows = m.rows(names[0], round_to=1)
    gain: Estimate = better(study.track.quality, "L1", at_equal="macs_share", over=(1 - 1.4 * middle, 1 - 0.6 * middle), of=names[0], round_to=1)(m)
    here = rows[rows.macs_removed == middle].accuracy.mean()
    return [] if not gain.units else [("embedded", entry.name.split("/")[0], f"{100 * middle:.0f} % of the MACs", here, gain.value, f"{gain.low:+.1f} … {gain.high:+.1f}", f"{gain.units} nets")]


def _public(name: str) -> list[tuple]:
    frame = public_frame()
    frame = frame[(frame.criterion == name) & frame.ratio.isin((0.2, 0.4)) & frame.gain.notna()]
    return [("public", row.net, f"{100 * row.ratio:.0f} % of the MACs", row.accuracy, row.gain, f"{row.gain_low:+.1f} … {row.gain_high:+.1f}",
             f"{row.items} {row.split} items") for row in frame.itertuples()]
