"""advise: what it measures is true, what it recommends meets the limits and can be made again, and it stops when its time is up."""

import itertools
import math
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import workbench
from workbench import advise, choose, compress, load, trials
from workbench.choose import next_ratio
from workbench.views.advice import Advice, Limits, pareto

torch.manual_seed(5)
IMAGES, LABELS = torch.randn(96, 3, 8, 8), torch.randint(0, 4, (96,))
DATA = list(zip(IMAGES.split(16), LABELS.split(16), strict=True))


def net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 4)).eval()


def evaluate(model):
    with torch.no_grad():
        return (model(IMAGES).argmax(1) == LABELS).float().numpy()


def frozen(model):
    """Hangs on every network but the whole one."""
    if model[0].out_channels < 16 or model[3].out_channels < 24:
        time.sleep(600)
    return evaluate(model)


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 8, 1)

    def forward(self, x):
        with torch.no_grad():
            return self.layer(x).mean((2, 3))


@pytest.fixture(scope="module")
def advice():
    size = compress(net(), "l1", 0.0, data=DATA, probe=None).report.bytes[0]
    methods = ["l1", "fscl", "fpgm", "iflow", "speech-separator", "magnitude", "mean-activation"]
    return advise(net(), DATA, evaluate, max_bytes=0.7 * size, budget_s=300, methods=methods, samples=64, progress=False)


def test_every_method_has_a_trial_or_a_reason(advice):
    frame = advice.frame
    assert set(frame.method) == {"l1", "fscl", "fpgm", "iflow", "speech-separator", "magnitude", "mean-activation"}
    assert set(advice.measured.method) == {"l1", "fscl", "fpgm"}
    why = frame.set_index("method")["why not"]
    assert "another kind of thing" in why["iflow"] and "neither `scores` nor `compress`" in why["speech-separator"]
    assert "a step of other methods" in why["magnitude"] and "apoz" in why["mean-activation"]
    assert any("not implemented yet" in note for note in advice.notes)


def test_rows_are_what_compress_measures(advice):
    row = advice.measured.iloc[0]
    torch.manual_seed(0)
    again = compress(net(), row.method, row.ratio, data=DATA[:4], evaluate=evaluate, probe=None)
    assert (row.bytes, row.macs, row.quality) == (again.report.bytes[1], again.report.macs[1], pytest.approx(again.report.quality[1]))
    assert row.high - row.low == pytest.approx(again.report.gain.high - again.report.gain.low)
    assert advice.dense["quality"] == pytest.approx(float(evaluate(net()).mean())) and row.low <= row.quality <= row.high


def test_the_front_is_the_front_and_the_best_meets_the_limit(advice):
    rows = advice.measured
    for row in rows.itertuples():
        beaten = ((rows.quality >= row.quality) & (rows.bytes < row.bytes)) | ((rows.quality > row.quality) & (rows.bytes <= row.bytes))
        assert row.pareto == (not beaten.any())
    met = rows[rows.bytes <= advice.limits.max_bytes]
    assert len(met) and (rows.meets == (rows.bytes <= advice.limits.max_bytes)).all()
    assert advice.choice.quality == met.quality.max()
    assert rows.groupby("method").ratio.nunique().max() > 1, "the better methods are tried nearer the limit"


def test_best_is_saved_exported_and_made_again(advice, tmp_path):
    best = advice.best
    assert best.save(tmp_path / "small.wb") == advice.choice.bytes == (tmp_path / "small.wb").stat().st_size
    assert torch.equal(load(tmp_path / "small.wb")(IMAGES), best.model(IMAGES))
    assert best.export(tmp_path / "small.onnx") == (tmp_path / "small.onnx").stat().st_size
    names = {"compress": compress, "itertools": itertools, "model": net(), "data": DATA, "evaluate": evaluate}
    again = eval(advice.code(), names)
    assert again.report.bytes[1] == advice.choice.bytes and again.report.quality[1] == pytest.approx(advice.choice.quality)
    assert "itertools.islice(data, 4)" in advice.code(), "the trials saw 64 samples, and the line says so"


def test_the_chart_and_the_table_show_what_was_found(advice):
    figure = advice.figure()
    assert figure.layout.shapes[0].x0 == advice.limits.max_bytes
    drawn = {trace.name: trace for trace in figure.data}
    assert sum(len(drawn[name].x) for name in ("l1", "fscl", "fpgm")) == len(advice.measured) and drawn["l1"].error_y.array is not None
    assert len(drawn["Pareto front"].x) == advice.measured.pareto.sum()
    assert advice.choice.method in advice._repr_html_() and "iflow" in str(advice)


def test_a_trial_that_hangs_is_stopped_and_the_whole_keeps_to_its_budget():
    start = time.monotonic()
    found = advise(net(), DATA, frozen, budget_s=25, methods=["l1", "l2", "fpgm"], progress=False)
    assert time.monotonic() - start < 25 * 1.1 + 8, "8 s for a machine that others load"
    assert found.measured.empty and found.frame["why not"].str.contains("not finished within|no time left").all()
    with pytest.raises(ValueError, match="budget_s"):
        _ = found.best


def test_a_stop_keeps_what_is_measured(monkeypatch):
    calls = []

    def asked(self, function, *arguments, **limits):
        if function is trials.trial and len(calls) == 2:
            raise KeyboardInterrupt
        calls.extend([arguments] if function is trials.trial else [])
        return run(self, function, *arguments, **limits)

    run = trials.Worker.__call__
    monkeypatch.setattr(trials.Worker, "__call__", asked)
    found = advise(net(), DATA, evaluate, budget_s=300, methods=["l1", "l2"], progress=False)
    assert list(found.measured.method) == ["l1"] and "stopped" in found.notes[-2]
    assert "stopped before its turn" in found.frame.set_index("method")["why not"]["l2"]


def test_a_network_that_nothing_applies_to_is_an_error_with_the_reasons():
    with pytest.raises(ValueError, match=r"model: no method of the house applies.*\n  l1: .+cannot be traced\n  fscl: .+cannot be traced"):
        advise(Untraceable(), DATA, lambda model: 1.0, budget_s=300, methods=["l1", "fscl"], progress=False)


@pytest.mark.parametrize("answer, said", [(lambda model: 1 / 0, "evaluate: it failed.*ZeroDivisionError"), (lambda model: math.nan, "evaluate: one finite number"),
                                          (lambda model: [], "evaluate: one finite number")])
def test_an_evaluate_that_is_no_good_is_told_before_any_trial(answer, said, monkeypatch):
    monkeypatch.setattr(choose._Search, "_plan", lambda self: pytest.fail("a trial was begun"))
    with pytest.raises(ValueError, match=said):
        advise(net(), DATA, answer, budget_s=300, progress=False)


def test_wrong_arguments_are_named():
    def refused(said, *arguments, error=ValueError, **settings):
        with pytest.raises(error, match=said):
            advise(*(arguments or (net(), DATA, evaluate)), progress=False, **settings)

    refused("data: the loader yields no batch", net(), [], evaluate)
    refused("data: a loader is needed", net(), 3, evaluate)
    refused("max_bytes", max_bytes=-1)
    refused("max_ms", max_ms=math.nan)
    refused("min_quality", min_quality="good")
    refused("budget_s", budget_s=0)
    refused("nearest", methods=["fcsl"])
    lock = threading.Lock()
    refused("evaluate: it cannot be sent to another process", net(), DATA, lambda model: lock.locked())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_JOBS", "0")
        refused("WORKBENCH_JOBS")


def test_a_script_needs_no_main_guard_and_gets_its_own_class_back(tmp_path):
    script = tmp_path / "mine.py"
    script.write_text("""
import torch
from torch import nn
from workbench import advise
print("begun", __name__)
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
    def forward(self, x):
        return self.b(torch.relu(self.a(x))).mean((2, 3))
x = torch.randn(8, 3, 8, 8)
found = advise(Net(), [x], lambda model: -float(model(x).var().detach()), budget_s=300, methods=["l1"], progress=False)
print(len(found.measured) > 1, type(found.best.model).__name__, isinstance(found.best.model, Net))
""")
    environment = os.environ | {"PYTHONPATH": str(Path(workbench.__file__).parents[1])}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment, timeout=400)
    assert done.stdout.splitlines() == ["begun __main__", "True Net True"], done.stdout + done.stderr


# --- without processes --------------------------------------------------------------------------------------------------------------------------------


def row(method, ratio, quality, size, high=math.nan):
    return {"method": method, "ratio": ratio, "quality": quality, "low": math.nan, "high": high, "bytes": size, "macs": size, "ms": math.nan, "seconds": 1.0}


def made(rows, **limits):
    return Advice.of(row("", 0, 0.9, 100), rows, {}, dict.fromkeys("ab", "title"), Limits(**limits), {}, ", data=data, evaluate=evaluate", [])


ROWS = [row("a", 0.5, 0.8, 50, 0.85), row("b", 0.5, 0.7, 55, 0.75), row("a", 0.25, 0.88, 75, 0.91)]


def test_the_recommendation_follows_what_is_asked():
    assert made(ROWS).choice.bytes == 75, "without limits: the smallest that may be as good as the network itself"
    assert made(ROWS, max_bytes=60).choice.quality == 0.8
    assert made(ROWS, min_quality=0.65).choice.bytes == 50, "where a quality is enough, the smallest"
    assert made(ROWS, min_quality=0.85).code() == 'compress(model, "a", ratio=0.25, data=data, evaluate=evaluate)'
    with pytest.raises(ValueError, match=r"no trial met the limits \(at most 60 bytes and quality of at least 0.85\)(.|\n)*0.80"):
        _ = made(ROWS, max_bytes=60, min_quality=0.85).choice
    with pytest.raises(ValueError, match="no trial met"):
        _ = made(ROWS, max_ms=5).choice, "milliseconds that were not measured meet no limit"


def test_pareto_keeps_ties_and_leaves_out_what_was_not_measured():
    assert pareto([row("a", 0, 1, 10), row("b", 0, 1, 10), row("c", 0, 1, 11), row("d", 0, 2, math.nan)], "bytes") == [True, True, False, False]


def test_ratios_close_in_on_the_limit():
    def search(size, quality, **limits):
        rows = [row("a", 0.5, quality(0.5), size(0.5))]
        while (ratio := next_ratio(rows, Limits(**limits))) is not None:
            rows.append(row("a", ratio, quality(ratio), size(ratio)))
            assert len(rows) < 9
        return rows

    size, quality = (lambda r: 100 * (1 - r)), (lambda r: 1 - r ** 2)
    met = [r["ratio"] for r in search(size, quality, max_bytes=30) if r["bytes"] <= 30]
    assert 0.7 <= min(met) < 0.7 + 2 * choose.NEAR
    enough = [r["ratio"] for r in search(size, quality, min_quality=0.9) if r["quality"] >= 0.9]
    assert math.sqrt(0.1) - 2 * choose.NEAR < max(enough) <= math.sqrt(0.1)
    assert {r["ratio"] for r in search(size, quality)} == set(choose.FILL)
    assert len(search(size, quality, max_bytes=10, min_quality=0.9)) == 1, "too large and too bad at once: no ratio helps"


def test_batches_travel_without_what_they_are_views_of():
    whole = torch.zeros(10_000, 10)
    batches, cut = trials.sample(({"x": part, "labels": None} for part in whole.split(10)), 20)
    assert len(batches) == 2 and cut and len(trials.packed(data=batches)) < 20_000
    assert np.array_equal(batches[1]["x"], whole[10:20])


class Residual(nn.Module):
    """Most of its work is in the stream, which stays as wide as it is."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b, self.head = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 8, 1), nn.Conv2d(8, 32, 1), nn.Linear(32, 4)

    def forward(self, x):
        x = self.stem(x).relu()
        return self.head((x + self.b(self.a(x).relu())).mean((2, 3)))


def test_a_ratio_out_of_reach_is_followed_by_lower_ones():
    """A limit on bytes asks for a ratio that no method reaches here; what is measured instead says so by not meeting the limit."""
    torch.manual_seed(2)
    size = compress(Residual().eval(), "l1", 0.0, data=DATA, probe=None).report.bytes[0]
    found = advise(Residual().eval(), DATA, evaluate, max_bytes=0.5 * size, budget_s=300, methods=["l1", "l2"], samples=64, progress=False)
    assert set(found.measured.method) == {"l1", "l2"} and (found.measured.ratio < 0.4).all() and not found.measured.meets.any()
    with pytest.raises(ValueError, match="no trial met the limits"):
        found.code()
