"""A study without a model: quality falls as a straight line with the cost saved. Two knobs, five contenders, nothing trained."""

import os
from types import SimpleNamespace

import numpy as np
import plotly.graph_objects as go

from workbench.core.claims import better
from workbench.core.measurements import Measurements, Stored
from workbench.core.study import Ablation, Check, Claim, Contender, Exercise, Knob, Metric, Outcome, Part, Result, Study, Track, measure


def cut(slope):
    def make(removed, rounding=1, replica=0, seed=0):
        return SimpleNamespace(cost=100 * (1 - removed), quality=90 - slope * removed + replica + .5 * seed - .1 * rounding,
                               exhibits={"kept": np.arange(round(10 * (1 - removed)), dtype=np.uint8)})
    return make


def cut_once(slope):
    """A contender without the second knob."""
    full = cut(slope)
    return lambda removed, replica=0: full(removed, 1, replica)


def race(thing):
    return Result({"cost": thing.cost, "quality": thing.quality, "bytes": int(1000 * thing.cost)},
                  samples={"right": (np.arange(40) < thing.quality * .4).astype(np.uint8)})


def picture(point, exhibits):
    kept = exhibits["kept"]
    return go.Figure(go.Bar(x=kept, y=np.ones(len(kept))), layout_title_text=f"{point['contender']} keeps {len(kept)} of 10")


TRACK = Track("toy/cost", "cost", "quality", {"cost": Metric("cost (units)"), "quality": Metric("quality (%)"), "bytes": Metric("bytes", False, 0)},
              race, lambda: "toy")


def study(**changes) -> Study:
    parts = {
        "paper": "2304.13397", "name": "toy", "track": TRACK,
        "knobs": (Knob("removed", tuple(np.linspace(0, .9, 10)), .5, (.3, .5, .7), 0, "share removed"), Knob("rounding", (1, 4, 8), 1)),
        "contenders": {"Ours": Contender(cut(20), "paper", subject=1, seeds=2), "Steep": Contender(cut(60)), "Plain": Contender(cut_once(40)),
                    "oracle": Contender(cut(5), "bound"), "untouched": Contender(lambda replica=0: cut(0)(0, 1, replica), "control")},
        "ablations": {"no slope": Ablation("1 slope", Contender(cut(80)), subject=0), "no check": Ablation("2 check", subject=0)},
        "checks": (Check("one", "the subject is one", lambda subject: Outcome(subject == 1, subject, 1)),),
        "claims": (Claim("beats Plain", "beats Plain at equal cost", better("quality", "Plain", 1, at_equal="cost")),
                Claim("beats the bound", "beats the oracle", better("quality", "oracle", 1), reason="an oracle knows more")),
        "parts": {"1 slope": Part(cut, "beats Plain", "no slope")}, "picture": picture,
        "exercise": Exercise("What is one?", "answer = None", ("It is a number.",), lambda names: None, "answer = 1")}
    return Study(**{**parts, **changes})


def measurements(toy: Study | None = None, profile: str = "full") -> Measurements:
    toy = toy or study()
    return Measurements(toy, tuple(Stored(point, f"key{i}", measure(toy.track, toy.field[point.contender], point)) for i, point in enumerate(toy.points(profile))))


def forever(folder, removed, replica=0):
    """A contender (with its ``folder`` bound) that never ends; leaves its process id there."""
    with open(os.path.join(folder, f"{removed:g}-{replica}"), "w") as file:
        file.write(str(os.getpid()))
    while True:
        pass


STUDY = study()
