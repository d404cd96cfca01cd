"""What `choose.advise` found: a frame with a row a trial and a reason for every method without one, the chart, the recommendation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from typing import Any

import numpy as np
import pandas as pd

COLUMNS = ("method", "title", "ratio", "quality", "low", "high", "bytes", "macs", "ms", "seconds", "pareto", "meets", "why not")


@dataclass(frozen=True)
class Limits:
    """What is asked of a compressed network: no more than ``max_bytes`` on disk and ``max_ms`` a pass, no less than ``min_quality``."""

    max_bytes: float | None = None
    max_ms: float | None = None
    min_quality: float | None = None

    def __post_init__(self):
        for name in ("max_bytes", "max_ms", "min_quality"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value)
                                      or (name != "min_quality" and value <= 0)):
                raise ValueError(f"{name}: a finite {'' if name == 'min_quality' else 'positive '}number is needed, found {value!r}")

    def __bool__(self) -> bool:
        return bool(self.costs) or self.min_quality is not None

    @property
    def costs(self) -> dict[str, float]:
        return {name: limit for name, limit in (("bytes", self.max_bytes), ("ms", self.max_ms)) if limit is not None}

    def too_large(self, row: Mapping) -> bool:
        return any(not row[name] <= limit for name, limit in self.costs.items())         # not measured is not met

    def too_bad(self, row: Mapping) -> bool:
        return self.min_quality is not None and row["quality"] < self.min_quality

    def excess(self, row: Mapping) -> float:
        """By what shares the limits are missed, added up; 0 where all are met."""
        over = sum(max(0.0, row[name] / limit - 1) if np.isfinite(row[name]) else 1.0 for name, limit in self.costs.items())
        return over + (max(0.0, self.min_quality - row["quality"]) / max(abs(self.min_quality), 1e-9) if self.min_quality is not None else 0.0)

    def order(self, row: Mapping) -> tuple:
        """Sorts rows, the best first: nearest to the limits, then the better one, or the smaller one where a quality is named that is enough."""
        return (self.excess(row), row["quality"] * -1 if self.min_quality is None else row["bytes"], row["bytes"])

    def __str__(self) -> str:
        said = {"max_bytes": "at most {:,.0f} bytes", "max_ms": "at most {:g} ms", "min_quality": "quality of at least {:g}"}
        return " and ".join(text.format(value) for name, text in said.items() if (value := getattr(self, name)) is not None)


def standing(rows: Sequence[Mapping], limits: Limits) -> tuple:
    """Where a method stands among others: by its best row, or without limits by its first, which all have at the same ratio."""
    return min(map(limits.order, rows)) if limits else limits.order(rows[0])


def pareto(rows: Sequence[Mapping], cost: str) -> list[bool]:
    """Whether no other row is as good and smaller, or as small and better."""
    def beaten(a: Mapping) -> bool:
        return any(b["quality"] >= a["quality"] and b[cost] <= a[cost] and (b["quality"], -b[cost]) != (a["quality"], -a[cost]) for b in rows)

    return [bool(np.isfinite(row[cost])) and not beaten(row) for row in rows]


@dataclass
class Advice:
    """``frame``: one row a trial and one, with its ``why not``, for every other method; ``notes``: what was left out. ``best``, ``code()``, ``figure()``.

    ``low … high`` is the 90 % interval of the paired change in quality, laid around the network's own; ``ms`` one pass on one thread.
    """

    frame: pd.DataFrame
    dense: Mapping[str, float]
    limits: Limits
    notes: Sequence[str] = ()
    call: str = ""
    _kept: dict[int, bytes] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, dense: Mapping, rows: Sequence[Mapping], why: Mapping[str, str], titles: Mapping[str, str], limits: Limits, kept: dict[int, bytes],
           call: str, notes: Sequence[str]) -> Advice:
        front = pareto(rows, cls.cost(limits))
        made = [{**row, "title": titles[row["method"]], "pareto": flag, "meets": limits.excess(row) == 0, "why not": ""}
                for row, flag in zip(rows, front, strict=True)]
        made += [{"method": name, "title": titles[name], "pareto": False, "meets": False, "why not": text} for name, text in why.items()]
        return cls(pd.DataFrame(made, columns=list(COLUMNS)), dense, limits, [*notes, *_unwritten()], call, kept)

    @staticmethod
    def cost(limits: Limits) -> str:
        return "ms" if limits.max_ms is not None and limits.max_bytes is None else "bytes"

    @classmethod
    def worth_keeping(cls, rows: Sequence[Mapping], limits: Limits) -> set[int]:
        """The rows that may yet be recommended: their networks are kept in memory."""
        front = {i for i, flag in enumerate(pareto(rows, cls.cost(limits))) if flag}
        return front | set(sorted(range(len(rows)), key=lambda i: limits.order(rows[i]))[:3])

    @property
    def measured(self) -> pd.DataFrame:
        return self.frame[self.frame["why not"] == ""]

    def nearest(self, n: int = 3) -> pd.DataFrame:
        """The ``n`` rows nearest to the limits, best first."""
        rows = self.measured
        return rows.loc[sorted(rows.index, key=lambda i: self.limits.order(rows.loc[i]))[:n]]

    @property
    def choice(self) -> pd.Series:
        """The recommended row: of those that meet the limits the best, or the smallest where a sufficient quality is given. Without limits the smallest whose
        interval reaches the network's own quality, else the best. ValueError: none meets the limits; it shows the nearest."""
        rows = self.measured
        if rows.empty:
            raise ValueError(f"nothing was measured ({'; '.join(self.notes) or 'no trial'}): give more time with budget_s")
        if not self.limits:
            front = rows[rows.pareto]
            as_good = front[front.high.fillna(front.quality) >= self.dense["quality"]]
            return (as_good.sort_values("bytes") if len(as_good) else front.sort_values("quality", ascending=False)).iloc[0]
        nearest = self.nearest()
        if not nearest.iloc[0].meets:
            shown = nearest[["method", "ratio", "quality", "bytes", "ms"]].to_string(index=False)
            raise ValueError(f"no trial met the limits ({self.limits}); the nearest:\n{shown}")
        return nearest.iloc[0]

    @cached_property
    def best(self) -> Any:
        """The recommended `contracts.model.Compressed`: ``.model``, ``.report``, ``.save(path)``, ``.export(path)``. ValueError: as for `choice`."""
        import cloudpickle

        return cloudpickle.loads(self._kept[self.choice.name])       # bytes of this process' own worker, no file

    def code(self) -> str:
        """The line that makes the recommended network again from ``model``, ``data`` and ``evaluate``."""
        return f'compress(model, "{self.choice.method}", ratio={self.choice.ratio:g}{self.call})'

    def verdict(self) -> str:
        """The recommendation in words."""
        try:
            row = self.choice
        except ValueError as error:
            return str(error)
        share, asked = row.bytes / self.dense["bytes"], f" ({self.limits})" if self.limits else ""
        return (f"{row.method} at ratio {row.ratio:g}{asked}: quality {row.quality:.4g} (as it is {self.dense['quality']:.4g}), "
                f"{row.bytes:,.0f} bytes ({share:.0%})" + (f", {row.ms:.3g} ms (as it is {self.dense['ms']:.3g})" if np.isfinite(row.ms) else "") + f"\n{self.code()}")

    def __str__(self) -> str:
        rows = self.measured.drop(columns=["title", "why not"]).sort_values(self.cost(self.limits))
        others = "\n".join(f"  {row.method}: {row._asdict()['why']}" for row in self._others().itertuples(index=False))
        return "\n".join([self.verdict(), "", rows.to_string(index=False, float_format="%.4g"), "", *(["not here, because", others] if others else []), *self.notes])

    __repr__ = __str__

    def _others(self) -> pd.DataFrame:
        return self.frame.loc[self.frame["why not"] != "", ["method", "title", "why not"]].rename(columns={"why not": "why"})

    def _repr_html_(self) -> str:
        from .readout import STYLE

        rows = self.measured.drop(columns=["why not"]).sort_values(self.cost(self.limits))
        form = {"bytes": "{:,.0f}".format, "macs": "{:,.0f}".format, "ratio": "{:g}".format, "seconds": "{:.1f}".format,
                **dict.fromkeys(("quality", "low", "high", "ms"), "{:.4g}".format), "pareto": lambda v: "●" if v else "", "meets": lambda v: "✔" if v else ""}
        rows = rows if self.limits else rows.drop(columns="meets")
        table = rows.to_html(index=False, border=0, na_rep="", formatters={name: f for name, f in form.items() if name in rows}, justify="left")
        others = self._others().to_html(index=False, border=0, justify="left")
        notes = "".join(f"<p>{escape(note)}</p>" for note in self.notes)
        return (f"{STYLE}<div class='wb'><pre>{escape(self.verdict())}</pre>{table}{notes}"
                f"<details><summary>{len(self._others())} methods that are not here, and why</summary>{others}</details></div>")

    def figure(self):
        """Quality against bytes (or ms, where that is what is limited): every trial with its interval, the Pareto front joined, the limits as lines."""
        import plotly.graph_objects as go

        from .figures import DASHES, HUES, INK, SYMBOLS, neutral

        cost, figure, rows = self.cost(self.limits), go.Figure(), self.measured
        front = rows[rows.pareto].sort_values(cost)
        figure.add_scatter(x=front[cost], y=front.quality, mode="lines", name="Pareto front", line={"color": HUES["paper"][0], "width": 3}, hoverinfo="skip")
        for i, name in enumerate(dict.fromkeys(rows.method)):
            own = rows[rows.method == name].sort_values(cost)
            color, symbol = HUES["rival"][i % len(HUES["rival"])], SYMBOLS["rival"][i // len(HUES["rival"]) % len(SYMBOLS["rival"])]
            bars = {"type": "data", "symmetric": False, "array": own.high - own.quality, "arrayminus": own.quality - own.low, "thickness": 1, "width": 3}
            figure.add_scatter(x=own[cost], y=own.quality, name=name, mode="lines+markers", error_y=bars if own.high.notna().any() else None,
                               line={"color": color, "dash": DASHES["rival"][i % len(DASHES["rival"])], "width": 1}, text=[f"{name} at {r:g}" for r in own.ratio],
                               marker={"color": color, "symbol": symbol, "size": [12 if p else 7 for p in own.pareto]},
                               hovertemplate="%{text}<br>quality %{y:.4g}<br>" + cost + " %{x:,.4g}<extra></extra>")
        figure.add_scatter(x=[self.dense[cost]], y=[self.dense["quality"]], mode="markers", name="as it is",
                           marker={"symbol": "star", "size": 13, "color": INK})
        limit = self.limits.costs.get(cost)
        if limit is not None:
            figure.add_vline(x=limit, line={"color": INK, "dash": "dash"}, annotation_text=f"at most {limit:,.6g}")
        if self.limits.min_quality is not None:
            figure.add_hline(y=self.limits.min_quality, line={"color": INK, "dash": "dash"}, annotation_text=f"at least {self.limits.min_quality:g}")
        figure.update_xaxes(title_text={"bytes": "file (bytes)", "ms": "one pass (ms)"}[cost])
        figure.update_yaxes(title_text="quality")
        return neutral(figure)


def _unwritten() -> list[str]:
    """The papers of the catalogue that cannot be tried yet, in one line."""
    from ..core import registry

    grey = pd.Series([entry.family for entry in registry.catalogue() if not entry.implemented])
    return [f"{len(grey)} papers are not implemented yet: " + ", ".join(f"{family} {n}" for family, n in grey.value_counts().items())] if len(grey) else []
