r"""# BSGC — a detector for one camera

**Balancing Specialization, Generalization, and Compression for Detection and Tracking** (BMVC 2019).

A camera on a wall sees one scene for years. A general detector knows a thousand things that never happen there, and is unsure of those that do. Fine-tuning on the
camera's frames makes it better there, lets it forget the rest, and leaves it as large as it was. BSGC asks for all three at once: know *this* place, do not forget
what you knew, and be small.

```text
 camera frames ──┐                         ┌─► L_s  boxes and classes against labels (or the general detector's own confident boxes)
                 ├─► one batch ─► student ─┤
 general scenes ─┘      ▲                  └─► L_g  distance from the general detector's answers
                        │
     γ of batch norm ◄── proximal step of L_c ◄── β (controller) ◄── size now against size wanted
        │ exactly 0
        └─► constant folded into the reader ─► channel really taken out
```

**The balanced loss** is $L = L_s + \alpha L_g + \beta L_c$. The grid's answers have shape `(n, 15, 8, 8)`: eleven class logits $z$ and four box numbers a cell.

$$L_g = T^2\,\mathrm{KL}\left(\mathrm{softmax}(z_G/T)\,\Vert\,\mathrm{softmax}(z_S/T)\right) + \mathrm{smooth}L_1\ \text{of boxes where } G \text{ is confident},\qquad
L_c = \sum_l c_l \sum_i |\gamma_{l,i}| .$$

$c_l$ is what the network saves without one channel of layer $l$, *given which neighbours are still alive*, so it changes as the network shrinks. After each SGD step

$$\gamma \leftarrow \mathrm{sign}(\gamma)\,\max(|\gamma| - \eta\beta c_l,\ 0),$$

which ends in zeros that are exact, as a plain gradient of $|\gamma|$ never does. A channel with $\gamma = 0$ sends the same number everywhere; what its readers make of that number goes
into their own offsets, and the channel goes. With zero padding this is exact away from the border only; the jump there is reported, in standard deviations.

**At test time** the same loss runs inside a Siamese tracker: the first frame is the camera, stored crops are the general domain, a few dozen steps specialise and shrink the net before
frame 1, one step every eight frames follows, and when confidence is lost the uncompressed weights come back. A reader hands out frame $t+1$ only after the box of frame $t$.

**What to look for.** Slide *alpha* at 10 % of the parameters and watch the two columns: AP50 on general scenes climbs with every step, AP50 on the camera holds for small α and pays for large ones. Then slide *size*. In the
picture the last convolution stays nearly whole while those before it become a bottleneck: a channel costs least where its neighbours are few. *Sequential* specialises first and prunes by L1 afterwards; *proximal* does so with the same penalty.
Frames without labels teach less: what the general detector misses becomes background.

Reconstructed: the terms (the abstract names goals, not formulas), the controller, the tracker's safety. Changed, with reason: a channel's cost is counted in the currency of the size wanted. Costs in MACs at a budget of *parameters*
emptied the early layers, left the late ones whole and did far worse on the frames between the two periods. The size wanted falls by equal factors, because all scales of a trained net are near 1 and would
reach zero together. β changes by 1 % a step, not 5 %: with 180 steps, 5 % overshoots. The feature hint of the card, optional there, is not built.
"""

from __future__ import annotations

import numpy as np

from ...core.claims import Estimate, better, bound, estimate
from ...core.measurements import Measurements
from ...core.probe import with_gradients
from ...core.study import Ablation, Check, Claim, Exercise, Knob, Part, Study
from . import _bsgc_checks as checks
from ._bsgc_contenders import TRACK, at_default, drawn, general, recorded, to_time, tracker, tuned_only, unadapted
from ._bsgc_method import BSGC, Specialized, Student, specialize
from ._bsgc_record import ALPHA, ALPHAS, SIZE, SIZES
from ._bsgc_shrink import Counter, shrink, take_out
from ._bsgc_tasks import Classification, Correlation, Detection, softened
from ._bsgc_tracker import OnlineTracker, report, stored

__all__ = ["BSGC", "PROBE", "STUDY", "Classification", "Correlation", "Detection", "OnlineTracker", "Specialized", "report", "specialize", "stored"]


def PROBE() -> dict:
    """What `workbench probe` times (see `to_time`); it trains."""
    return {label: with_gradients(act) for label, act in to_time().items()}


def dial(m: Measurements) -> Estimate:
    """By how much AP50 on general scenes does better than falling 2 points from one α to the next, and than rising 10 points in all: the lesser, per replica. What has no α has a flat curve."""
    curves = [rows.sort_values("alpha").general_ap.to_numpy() for _, rows in m.rows(size=SIZE).groupby("replica")]
    return estimate([min(float(np.diff(curve).min(initial=0)) + 2, curve[-1] - curve[0] - 10) for curve in curves], 0)


# --- exercise ---------------------------------------------------------------------------------------------------------------------------------------

STUB = '''import numpy as np

def step(gamma, rate, beta, costs):
    """gamma: one array of scales a layer; costs: c_l, one number a layer. One proximal step of beta * sum_l c_l * sum_i |gamma_li|."""
    return [g - rate * beta * c * np.sign(g) for g, c in zip(gamma, costs)]        # a plain gradient step: it jumps over zero
'''
SOLUTION = '''import numpy as np

def step(gamma, rate, beta, costs):
    return [np.sign(g) * np.maximum(np.abs(g) - rate * beta * c, 0) for g, c in zip(gamma, costs)]
'''


def _check_exercise(namespace: dict) -> None:
    gamma = [np.array([0.5, -0.02, 0.0]), np.array([-0.3, 0.1])]
    got = namespace["step"](gamma, 0.1, 2.0, [0.25, 1.0])
    assert len(got) == 2 and np.allclose(got[0], [0.45, 0, 0]), f"a layer with cost 0.25 loses 0.05 of each |γ|, but none below zero; found {np.round(got[0], 3)}"
    assert np.allclose(got[1], [-0.1, 0.0]), f"a layer with cost 1 loses 0.2 and keeps its signs; found {np.round(got[1], 3)}"
    assert got[0][1] == 0 and got[1][1] == 0, "what reaches zero must be zero exactly, or no channel can ever be taken out"
    again = namespace["step"](got, 0.1, 2.0, [0.25, 1.0])
    assert again[1][1] == 0, "and must stay zero"


# --- the study --------------------------------------------------------------------------------------------------------------------------------------

AT = {"size": SIZE, "alpha": ALPHA}

STUDY = Study(
    paper="1909.11348",
    name="bsgc",
    track=TRACK,
    method=BSGC(),
    knobs=(Knob("size", SIZES, SIZE, label="share of the parameters kept", slides=False),
           Knob("alpha", ALPHAS, ALPHA, quick=ALPHAS, label="weight of the general domain, α", slides=False)),
    contenders={
        "BSGC": recorded("joint", role="paper", subject=BSGC()),
        "general detector": general(),
        "sequential": at_default("sequential"),
        "sequential, proximal": at_default("sequential-proximal"),
        "prune only": at_default("prune-only"),
        "small net": at_default("small", role="control"),
        "BSGC without labels": at_default("unlabelled"),
        "specialised, not compressed": tuned_only(),
        "tracker, compressing": tracker(compress=True),
        "tracker, adapting": tracker(compress=False),
        "tracker as it is": unadapted(),
    },
    ablations={
        "without the general domain": Ablation("3 generalisation", at_default("joint", alpha=0.0), BSGC(alpha=0.0)),
        "without the camera": Ablation("2 specialisation", subject=checks.NoSpecialisation()),
        "equal costs": Ablation("4 compression", subject=checks.EqualCosts()),
        "gradient of |γ|": Ablation("4 compression", subject=checks.Subgradient()),
        "β stands still": Ablation("5 balanced loss", subject=checks.FixedBeta()),
        "constants dropped": Ablation("6 pruning", subject=checks.NoFolding()),
        "masks only": Ablation("6 pruning", subject=checks.MasksOnly()),
        "learns from later frames": Ablation("1 models and data", subject=checks.LearnsFromLater()),
        "looks ahead": Ablation("7 tracker", subject=checks.LooksAhead()),
        "never comes back": Ablation("7 tracker", subject=checks.NeverBack()),
    },
    checks=(
        Check("starts as the teacher", "At step 0 the student answers as the general detector does, bit for bit, and L_g is exactly 0", checks.starts_as_teacher),
        Check("both domains count", "On a toy, new answers are learnt for one kind of images and the old ones kept for the other", checks.both_domains_count),
        Check("exact zeros", "The proximal operator equals hand-worked numbers, reaches zero exactly and stays there", checks.zeros_are_exact),
        Check("true costs", "c_l is in the ratio of what networks rebuilt with one channel less save, in MACs and in parameters", checks.costs_are_macs),
        Check("counted = rebuilt", "Parameters and MACs reckoned from live channels are those of the smaller network, as integers", checks.counted_is_rebuilt),
        Check("masked = rebuilt", "With constants folded, taking out channels that are off changes nothing away from the border, and nothing at all without positive constants",
              checks.masked_is_rebuilt),
        Check("controller", "β and the size wanted follow hand-worked numbers", checks.controller_by_hand),
        Check("time split", "No judged frame of the camera is among those learnt from, and the reader refuses later ones", checks.never_from_the_future),
        Check("causal", "The tracker answers for a frame before it can read the next, and later frames change no earlier box", checks.causal),
        Check("comes back", "Where confidence is lost, the tracker goes on as the uncompressed one would, bit for bit", checks.comes_back),
    ),
    claims=(
        Claim("small and better", "With 10 % of the parameters, specialised, AP50 on the camera's later frames is at least that of the whole general detector",
              better("camera_ap", "general detector", **AT), paper="unprecedented compression along with improved detection on VIRAT and CAVIAR (abstract, no figures)"),
        Claim("does not forget", "At equal size, α = 1 keeps at least 10 points of AP50 more on general scenes than α = 0",
              better("general_ap", "without the general domain", by=10, **AT), paper="preventing … forgetting of generalized capabilities (abstract)"),
        Claim("memory costs little", "… and loses at most 2 points on the camera", better("camera_ap", "without the general domain", by=-2, **AT)),
        Claim("alpha is a dial", "From each α to the next larger one AP50 on general scenes falls by at most 2 points, and from the smallest to the largest it rises by at least 10", dial),
        Claim("joint beats sequential", "At 10 %, all terms at once are at least 2 points better on the camera than specialising first and pruning by L1 afterwards",
              better("camera_ap", "sequential", by=2, **AT)),
        Claim("together, not in turn", "At 10 %, they are also at least 2 points better than specialising first and shrinking by the same proximal steps afterwards",
              better("camera_ap", "sequential, proximal", by=2, **AT)),
        Claim("joint beats pruning alone", "At 10 %, it is at least 2 points better on the camera than L1 pruning repaired on the general domain",
              better("camera_ap", "prune only", by=2, **AT)),
        Claim("pruned beats small", "At 10 %, it is at least as good on the camera as a net of the same widths, from nothing, taught by the same loss for as many steps as the detector and BSGC took together",
              better("camera_ap", "small net", **AT)),
        Claim("labels are a luxury", "Without any label of the camera, 10 % of the parameters still reach the whole general detector's AP50 there",
              better("camera_ap", "general detector", of="BSGC without labels"),
              reason="what the general detector misses on the camera becomes background, and what it takes for another digit stays one"),
        Claim("small file", "The file of the 10 % network has at most 12 % of the general one's bytes", bound("bytes", at_most=0.12, relative_to="general detector", **AT)),
        Claim("tracks as well", "Compressing while it follows costs the tracker at most 1 point of success (AUC)",
              better("success", "tracker as it is", by=-1, of="tracker, compressing"), paper="compression during test time actually improves tracking on OTB2015 (abstract)"),
        Claim("tracks with less", "… with at most 1/1.2 of the MACs a search crop, once compressed (frames a second: `workbench probe bsgc`)",
              bound("macs", at_most=1 / 1.2, of="tracker, compressing", relative_to="tracker as it is")),
    ),
    parts={
        "1 models and data": Part(specialize, "time split", "learns from later frames"),
        "2 specialisation": Part(Detection.label, "both domains count", "without the camera"),
        "3 generalisation": Part(softened, "does not forget", "without the general domain", reconstructed=True),
        "4 compression": Part(shrink, "exact zeros", "gradient of |γ|", reconstructed=True),
        "4 cost of a channel": Part(Counter.costs, "true costs", "equal costs", reconstructed=True),
        "5 balanced loss": Part(Student.learn, "controller", "β stands still", reconstructed=True),
        "6 pruning": Part(take_out, "masked = rebuilt", "constants dropped"),
        "7 tracker": Part(OnlineTracker.run, "causal", "looks ahead", reconstructed=True),
        "8 metrics": Part(report, "tracks with less"),
    },
    picture=drawn,
    exercise=Exercise("Shrink the scales of all layers so that some become exactly zero, costly layers faster.", STUB,
                      ["The proximal operator of t·|γ| takes t from |γ| and stops at zero.", "Here t is rate · beta · c_l, another one in each layer.",
                       "sign(γ) · max(|γ| − t, 0)"], _check_exercise, SOLUTION),
)
