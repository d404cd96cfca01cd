"""A study whose points can be made slow, failing, hanging or deadly, and which logs every point that it measures.

Its module is importable by sweep workers, so that stops, kills and dead workers are tested on the real pool. The settings are environment variables; a
file beside the log goes before them, for workers that are already there.
"""

import json
import os
import sys
import time
from types import SimpleNamespace

import numpy as np

from workbench.core.claims import better, bound, monotone
from workbench.core.study import Ablation, Check, Claim, Contender, Exercise, Knob, Metric, Outcome, Part, Result, Study, Track


def setting(name, otherwise=""):
    try:
        with open(os.environ.get("WORKBENCH_SWEPT_LOG", "") + ".settings") as handle:
            return json.load(handle).get(name, otherwise)
    except OSError:
        return os.environ.get(f"WORKBENCH_SWEPT_{name}", otherwise)


def shrink(slope):
    def make(share, replica=0):
        log = os.environ.get("WORKBENCH_SWEPT_LOG")
        time.sleep(float(setting("SECONDS", "0")))
        if os.environ.get("WORKBENCH_SWEPT_PRINTS"):
            print("a paper that prints")
        if slope == 20 and share == 0.5 and replica == 1:
            match setting("FAULT"):
                case "raise":
                    raise ArithmeticError("no such luck")
                case "die":
                    os._exit(9)
                case "hang":
                    time.sleep(60)
        if log:
            with open(log, "a") as handle:
                handle.write(f"{slope} {share} {replica}\n")
        return SimpleNamespace(cost=100 * (1 - share), quality=90 - slope * share + 0.1 * replica)
    return make


def judge(thing):
    return Result({"cost": thing.cost, "quality": thing.quality, "bytes": round(1000 * thing.cost)}, {"right": np.arange(1000) < 10 * thing.quality})


TRACK = Track("swept/cost", "cost", "quality",
              {"cost": Metric("cost", False), "quality": Metric("quality (%)"), "bytes": Metric("bytes", False)}, judge, lambda: "swept")


def one(subject):
    if subject is None:
        raise TypeError("nothing to look at")
    return Outcome(subject == 1, subject, 1)


STUDY = Study(
    paper="0000.00000",
    name="swept",
    track=TRACK,
    time_limit=float(os.environ.get("WORKBENCH_SWEPT_LIMIT", "30")),
    knobs=(Knob("share", np.linspace(0, 0.9, 10), 0.5, quick=(0.3, 0.5, 0.7), neutral=0),),
    contenders={"ours": Contender(shrink(20), "paper", subject=1), "theirs": Contender(shrink(40), subject=2)},
    ablations={"steeper": Ablation("1 slope", Contender(shrink(60), subject=0)), "no check": Ablation("2 check", subject=0)},
    checks=(Check("one", "The subject is one", one),),
    claims=(Claim("beats theirs", "Better by 5 points at equal cost", better("quality", "theirs", 5, at_equal="cost")),
            Claim("falls", "Quality falls with the share", monotone("quality", "share", rising=False)),
            Claim("hopeless", "Quality is 100 or more", bound("quality", at_least=100), reason="nothing is")),
    parts={"1 slope": Part(shrink, "beats theirs", "steeper")},
    picture=lambda point, exhibits: None,
    exercise=Exercise("?", "x = None", (), lambda names: None, "x = 1"),
)


def register(setattr_):
    """Puts the study into the registry of this process."""
    from workbench.core import registry

    papers = registry.catalogue()
    entry = registry.Entry(STUDY.paper, "A study that is swept", "pruning", name=STUDY.name, module="tests.core.swept")
    setattr_(registry, "catalogue", lambda: (*papers, entry))


if __name__ == "__main__":  # `python -m tests.core.swept run swept`: the command line with this study in it
    from pathlib import Path

    from workbench.cli import main
    from workbench.core import golden

    golden.FOLDER = Path(os.environ["WORKBENCH_CACHE"]).parent / "golden"
    register(setattr)
    raise SystemExit(main(sys.argv[1:]))
