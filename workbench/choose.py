"""Choose: which method of the house makes this network small enough, fast enough or still good enough. (`from workbench import advise`)

    advice = advise(model, data, evaluate, max_bytes=200_000, budget_s=60)
    advice.best.save("small.wb"); advice.code(); advice.figure()

    the network as it is ──► what each method compresses ──► one trial each ──► the better half again, at ratios nearer the limits ──► …

A trial is `contracts.model.compress` on a sample of ``data``, in a worker process with one thread that is stopped when its time is up: methods that score
channels come first (a second each on small networks), those that search or train after them.
"""

from __future__ import annotations

import itertools
import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import TimeoutError
from typing import Any

import numpy as np

from .core import live, registry
from .core.study import StudyError
from .trials import Worker, kind, packed, sample, trial, without_main
from .views.advice import Advice, Limits, standing

CONTROL = "random"                              # tried last of its kind: it is there to be beaten
FILL = (0.5, 0.25, 0.75, 0.375, 0.625, 0.875)   # ratios where no limit says which
LOWER = 0.6                                     # of a ratio that was out of reach
NEAR = 0.03                                     # ratios are brought no nearer to a limit than this


def advise(model: Any, data: Iterable, evaluate: Callable[[Any], Any], max_bytes: float | None = None, max_ms: float | None = None,
           min_quality: float | None = None, budget_s: float = 60.0, methods: Sequence[str] | None = None, samples: int = 512, finetune_steps: int = 0,
           example: Any = None, progress: bool = True) -> Advice:
    """Tries every method of the house that applies to ``model`` (an ``nn.Module``), within ``budget_s`` seconds in all, and says which to take.

    data: a loader as for `compress`; its first batches, ``samples`` samples, are what the trials see. evaluate: model -> a number (more is better), or one
    per sample, which gives intervals. max_bytes: of the packed file. max_ms: of one forward pass of ``example`` (default: two samples of ``data``), timed
    on one thread. min_quality: the least value of ``evaluate``. methods: only these (short names or ids). Ctrl-C (a notebook's ■) keeps what is measured.

    ValueError names the argument that is wrong; where no method applies at all, it lists the reasons.
    """
    start = time.monotonic()
    limits = Limits(max_bytes, max_ms, min_quality)
    if not budget_s > 0 or samples < 1 or finetune_steps < 0:
        raise ValueError(f"budget_s ({budget_s}) must be positive, samples ({samples}) at least 1, finetune_steps ({finetune_steps}) at least 0")
    if live.jobs() == 0:
        raise StudyError("WORKBENCH_JOBS is 0 here: nothing is measured, only stored results are shown")
    batches, cut = sample(data, samples)
    entries = _chosen(methods)
    payload = packed(model=model, data=batches, evaluate=evaluate, example=example, finetune_steps=finetune_steps)
    call = "".join([f", data=list(itertools.islice(data, {len(batches)}))" if cut else ", data=data", ", evaluate=evaluate",
                    f", finetune_steps={finetune_steps}" if finetune_steps else "", ", example=example" if example is not None else ""])
    with without_main(), _bar(budget_s, progress) as bar:
        run = Worker(payload, start + budget_s, bar)
        try:
            return _Search(run, limits, entries, call).advice()
        finally:
            run.close()


def _chosen(methods: Sequence[str] | None) -> list[registry.Entry]:
    entries = [entry for entry in registry.catalogue() if entry.implemented]
    return entries if methods is None else [registry.find(name) for name in ([methods] if isinstance(methods, str) else methods)]


def _bar(budget_s: float, shown: bool):
    from tqdm.auto import tqdm

    return tqdm(total=round(budget_s, 1), disable=not shown, file=sys.stderr, bar_format="{desc}: {n:.0f} of {total:g} s |{bar}| {postfix}", desc="advise")


class _Search:
    """Screens the methods and brings the better ones nearer to the limits; what it finds is an `Advice`."""

    def __init__(self, run: Worker, limits: Limits, entries: Sequence[registry.Entry], call: str):
        self.run, self.limits, self.entries, self.call = run, limits, entries, call
        self.titles = {entry.name: entry.title for entry in entries}
        self.rows, self.kept, self.why, self.notes = [], {}, {}, []
        self.wait = 2.0

    def advice(self) -> Advice:
        """ValueError: the network, ``evaluate`` or the budget is no good, or nothing applies."""
        try:
            ok, found = self.run(trial, "", 0.0, None, self.wait)
        except TimeoutError:
            raise ValueError("budget_s: the time was over before the network itself had been evaluated; evaluate on fewer samples, or give more") from None
        if not ok:
            raise ValueError(found)
        self.dense, self.before, _ = found
        self._busy(self.dense)
        try:
            self._plan()
        except TimeoutError:
            self.notes.append("the time is over")
        except KeyboardInterrupt:
            self.notes.append("stopped; what was measured until then is kept")
        tried = {row["method"] for row in self.rows}
        for entry in self.entries:
            if entry.name not in tried:
                self.why.setdefault(entry.name, "not tried: stopped before its turn" if any("stopped" in note for note in self.notes) else "not tried: no time left")
        if not self.rows and not any(text.startswith(("not tried", "not finished")) for text in self.why.values()):
            reasons = "\n".join(f"  {name}: {text}" for name, text in self.why.items())
            raise ValueError(f"model: no method of the house applies to it:\n{reasons}")
        return Advice.of(self.dense, self.rows, {name: text for name, text in self.why.items() if name not in tried}, self.titles, self.limits, self.kept,
                         self.call, self.notes)

    def _plan(self) -> None:
        kinds: dict[str, list[str]] = {"scores": [], "compress": []}
        for entry in sorted(self.entries, key=lambda entry: entry.name == CONTROL):
            ok, said = self.run(kind, entry.name)
            if ok:
                kinds[said].append(entry.name)
            else:
                self.why[entry.name] = said
        self.first, everything = self._first_ratio(), [*kinds["scores"], *kinds["compress"]]
        waiting = self._screen(kinds["scores"], self.run.left / 2)
        self._refine(kinds["scores"], self.run.left / 2 if kinds["compress"] else 0)
        waiting += self._screen(kinds["compress"], self.run.left / 2)
        self._refine(everything, self.run.left / 2 if waiting else 0)
        self._screen(waiting, 0)
        self._refine(everything, 0)

    def _screen(self, names: Sequence[str], reserve: float) -> list[str]:
        """One trial each while more than ``reserve`` seconds are left; returns those whose turn did not come. Where a ratio is out of reach (residual streams
        stay as wide as they are), lower ones are tried, with the next method at once."""
        for i, name in enumerate(names):
            if self.run.left <= reserve:
                return list(names[i:])
            ratio = self.first
            while (failed := self._attempt(name, ratio)).startswith("ratio:") and ratio > 0.1:
                ratio = round(LOWER * ratio, 2)
            self.first = self.first if failed else ratio
        return []

    def _first_ratio(self) -> float:
        """Bytes and time go about as MACs do."""
        shares = [limit / self.dense[name] for name, limit in self.limits.costs.items() if self.dense[name] > 0]
        return round(min(max(1 - min(shares), 0.1), 0.9), 2) if shares else FILL[0]

    def _attempt(self, name: str, ratio: float) -> str:
        """A trial that may take a quarter of the time left, or thrice as long as the shortest took: why it failed, or "". TimeoutError: no time is left."""
        pace = min(row["seconds"] for row in (self.dense, *self.rows))
        limit = min(max(self.run.left / 4, 3 * pace), self.run.left)
        if self.run.left < pace:
            raise TimeoutError
        self.run.bar.set_postfix_str(f"{name} at {ratio:g}")
        try:
            ok, found = self.run(trial, name, ratio, self.before, self.wait, limit=limit)
        except TimeoutError:
            self.why.setdefault(name, f"not finished within {limit:.1f} s, its share of the time")
            if self.run.left <= 0:
                raise
            return self.why[name]
        if not ok:
            self.why.setdefault(name, f"at ratio {ratio:g}: {found}")
            return found
        row, _, blob = found
        self._busy(row)
        self.rows.append({"method": name, **row})
        self.kept[len(self.rows) - 1] = blob
        for index in self.kept.keys() - Advice.worth_keeping(self.rows, self.limits):
            del self.kept[index]
        return ""

    def _busy(self, row: dict) -> None:
        if np.isnan(row["ms"]) and self.wait:
            self.wait = 0.0
            self.notes.append("ms: not measured where other work kept the machine busy")

    def _refine(self, names: Sequence[str], reserve: float) -> None:
        """Rounds of trials, half of the methods in each that were in the one before, while more than ``reserve`` seconds are left."""
        while True:
            of = {name: [row for row in self.rows if row["method"] == name] for name in names}
            ranked = sorted((name for name in names if of[name]), key=lambda name: standing(of[name], self.limits))
            names = ranked[:max(2, math.ceil(len(ranked) / 2))]
            nexts = {name: ratio for name in names if (ratio := next_ratio(of[name], self.limits)) is not None}
            names = list(nexts)
            if not names:
                return
            for name, ratio in nexts.items():
                if self.run.left <= reserve:
                    return
                if self._attempt(name, ratio):
                    names.remove(name)


def next_ratio(rows: Sequence[dict], limits: Limits) -> float | None:
    """Where to try a method next: halfway between what is too large and what is too bad, or smaller than need be; None: nowhere."""
    tried = {row["ratio"] for row in rows}
    if not limits:
        return next(itertools.chain((ratio for ratio in FILL if ratio not in tried), [None]))
    up = [row["ratio"] for row in rows if limits.too_large(row) or (limits.min_quality is not None and not limits.too_bad(row))]
    down = [row["ratio"] for row in rows if row["ratio"] not in up or (limits.too_large(row) and limits.too_bad(row))]
    low, high = max(up, default=0.0), min(down, default=0.98)
    return round((low + high) / 2, 3) if high - low > NEAR else None
