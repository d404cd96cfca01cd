r"""# EnSyth — the by-products of pruning answer together

**EnSyth: A Pruning Approach to Synthesis of Deep Learning Ensembles** (2019; arXiv 1907.09286).

Whoever prunes a network tries many hyper-parameters, keeps one result and throws the others away. EnSyth keeps them all: networks pruned from the *same*
parent with other sparsities, schedules and learning rates make different mistakes, each is small, and a few of them together may beat the parent.

```text
                    ┌─ setting 1: s = 0.5, every 5 steps, rate 1e-3 ─► member 1 ─┐   validation outputs, once      elimination
  trained LeNet-5 ──┼─ setting 2: s = 0.5, every 25 steps …         ─► member 2 ─┼──► p  (P, N, classes) ──► P, P−1, …, 1 members ──► best set
                    └─ setting P: 70 % of the filters removed        ─► member P ─┘                                      │
                                                                                          test images ──► Σ votes ──► answer
```

**Members.** Sparsity rises along $s_t = s_f + (s_i - s_f)\left(1-\frac{t-t_0}{n\Delta t}\right)^3$; at each step that is due, the smallest $|w|$ of each layer get a
mask. Final and initial sparsity, $t_0$, $\Delta t$ and the learning rate are what varies, nothing else: same parent, same batches, same order. Three
members have filters removed instead.

**Votes.** With $p_m(x) \in [0,1]^C$ the softmax of member $m$, the set $E$ answers $\arg\max_c \sum_{m\in E} v_m(x)_c$. *Soft*: $v_m = p_m$. *Hard*: one vote for
$\arg\max p_m$, ties settled by $\sum p_m$. *Weighted*: $v_m = a_m p_m$ with validation accuracy $a_m$. *Stacked*: a logistic regression on all logits.

**Backward elimination.** From the whole pool, the member without which the rest is most often right goes (of several, the largest), until one is left; the
best set on the way wins, of several the smallest. A try is one subtraction from a running sum `(N, C)`, so all $P(P+1)/2$ of them take milliseconds and no
network runs. Probabilities are whole multiples of $2^{-24}$, so a running sum *is* the sum from nothing.

**What to look for.** Slide *members* and watch validation accuracy rise and then fall: that curve was climbed, its top is partly luck, and *validation minus
test* shows how much. Compare with random sets of the same size from the same pool (the destroyed members left out), with the members that are best on their
own, and with a selection on shuffled labels. The bytes are those of all members' packed files; one sparse member is cheap, an ensemble seldom is.

Reconstructed: the pruning method, the grid (scaled to 250 steps), combiners, tie rules, the budget in bytes. The data are digits over photographs in the place of
CIFAR-10 and CIFAR-5. Pools of ten digits are shipped, those of five are made anew by the full profile.
"""

from __future__ import annotations

from ...benches import ensembles, vision
from ...core.claims import Estimate, better, bound, estimate
from ...core.measurements import Measurements
from ...core.study import Ablation, Check, Claim, Contender, Exercise, Knob, Part, Study
from . import _ensyth_checks as checks
from ._ensyth_contenders import (
    at_default,
    dense_net,
    five_digits,
    luckless_sets,
    most_accurate,
    random_sets,
    snapshots,
    synthesis,
    to_time,
    tuned_dense,
    two_trainings,
    within_dense_bytes,
)
from ._ensyth_ensemble import Ensemble, votes
from ._ensyth_lesson import SOLUTION, STUB, check_exercise, elimination
from ._ensyth_method import EnSyth, Pool, ensyth_select, pool_of
from ._ensyth_pool import Setting, ensyth_pool
from ._ensyth_select import backward

__all__ = ["PROBE", "STUDY", "EnSyth", "Ensemble", "Setting", "ensyth_pool", "ensyth_select"]
PROBE = to_time

# --- claims ---------------------------------------------------------------------------------------------------------------------------------------------


def luckless(m: Measurements) -> Estimate:
    """Accuracy of the sets chosen by shuffled labels above that of random sets, medians of nine, in points: at most 0.5 (as chance allows)."""
    ours, chance = (m.rows(name, **BEST).groupby("replica").accuracy.mean() for name in ("labels shuffled", "random sets"))
    return estimate((ours - chance).dropna().to_numpy(), 0.5, at_least=False)


luckless.of = "labels shuffled"


def largest_file(of: str):
    """The largest file of any replica, as a share of the dense net's, is at most 1; a size, so it is its own interval."""
    def test(m: Measurements) -> Estimate:
        return estimate([m.rows(of).bytes_share.max()], 1, at_least=False)

    test.of = of
    return test


# --- the study ------------------------------------------------------------------------------------------------------------------------------------------

BEST = {"members": 0, "sparsest": 0}
AGREE = ("members pruned from one parent mostly make the parent's mistakes, and each is below it by more than their votes win back; nets that were trained "
         "apart gain")

STUDY = Study(
    paper="1907.09286",
    name="ensyth",
    track=ensembles.TRACK,
    method=EnSyth(),
    time_limit=900,
    knobs=(Knob("members", (0, *range(1, 13), 14, 16, 20, 24), 0, quick=(0,), label="networks in the ensemble (0: as many as validation likes best)"),
           Knob("sparsest", (0, 0.6, 0.7, 0.8, 0.9, 0.95), 0, label="least sparsity of the pool's members")),
    contenders={
        "EnSyth": synthesis(EnSyth(), role="paper"),
        "EnSyth within the dense net's bytes": Contender(within_dense_bytes, "paper", evidence="checkpoint"),
        "dense": Contender(dense_net, "control", evidence="checkpoint"),
        "best member": most_accurate(1),
        "most accurate members": most_accurate(),
        "random sets": Contender(random_sets, "control", evidence="checkpoint"),
        "forward selection": at_default(EnSyth(search="forward"), evidence="recorded"),
        "hard votes": at_default(EnSyth(combine="hard")),
        "weighted votes": at_default(EnSyth(combine="weighted"), evidence="recorded"),
        "stacked": at_default(EnSyth(combine="stacked"), evidence="recorded"),
        "genetic search": at_default(EnSyth(search="genetic"), evidence="recorded"),
        "two trainings": Contender(two_trainings, "bound", evidence="checkpoint"),
        "dense, tuned as long": Contender(tuned_dense, "control", evidence="recorded"),
        "two dense snapshots": Contender(snapshots, evidence="recorded"),
        "EnSyth, five digits": at_default(EnSyth(pool=five_digits), evidence="recorded"),
        "best member, five digits": most_accurate(1, five_digits, evidence="recorded"),
        "dense, five digits": Contender(lambda replica: vision.dense("lenet5-five", replica), "control", evidence="recorded"),
    },
    ablations={
        "copies of one member": Ablation("2 pool", subject=EnSyth(pool=checks.copies)),
        "pruned at once": Ablation("2 pool", subject=EnSyth(schedule=checks.AtOnce)),
        "no tie-break": Ablation("3 combiners", subject=EnSyth(ballot=checks.bare_votes)),
        "votes in float32": Ablation("4 backward elimination", subject=EnSyth(ballot=checks.float_votes)),
        "ties keep the largest": Ablation("4 backward elimination", subject=EnSyth(ties=-1)),
        "labels shuffled": Ablation("4 backward elimination", Contender(luckless_sets, evidence="checkpoint"), EnSyth(labels=checks.shuffled)),
        "zeros stored": Ablation("7 budget", subject=EnSyth(encode=checks.densely)),
        "first member's weights for all": Ablation("6 parallel", subject=EnSyth(together=checks.first_for_all)),
        "chosen on test images": Ablation("8 hygiene", subject=EnSyth(split="test")),
    },
    checks=(
        Check("schedule", "Sparsity rises along the cubic from start to end, each layer has exactly round(s·n) zeros, and none comes back", checks.schedule),
        Check("members differ", "Members disagree more than copies with a little noise; copies together are the member itself; Q and kappa by hand",
              checks.members_differ),
        Check("votes by hand", "Soft, hard and weighted votes, a tie included, give the answers worked out by hand", checks.votes_by_hand),
        Check("path", "Every accuracy on the path equals one counted from nothing; a member taken out and put back changes no bit; twice the same path",
              checks.path_from_nothing),
        Check("ties", "Of members that matter equally little, the largest goes first", checks.ties_by_hand),
        Check("near the optimum", "With twelve members, elimination is at most 0.5 point below the best of all 4,095 sets, on validation images",
              checks.near_optimum),
        Check("validation only", "What is chosen is what validation outputs choose", checks.validation_only),
        Check("file = ensemble", "The file gives back every logit to the last bit, is as long as said, less than half of dense storage for members with 80 % "
              "zeros, and holds a shared layer once", checks.file_is_the_ensemble),
        Check("together", "One batch of all members and two threads give the scores of one after another", checks.together_equals_apart),
    ),
    claims=(
        Claim("not below the dense net", "On test images the ensemble is at most 0.5 point below the dense net", better("accuracy", "dense", by=-0.5, **BEST)),
        Claim("not below the best member", "… and at most 0.5 point below the single member that validation likes best",
              better("accuracy", "best member", by=-0.5, **BEST)),
        Claim("above the dense net", "It is at least 0.5 point above the dense net", better("accuracy", "dense", by=0.5, **BEST),
              paper="ensembles exceed the baseline on CIFAR-10 and CIFAR-5 (abstract, no figures)", reason=AGREE),
        Claim("above the dense net on five digits", "The same with five digits", better("accuracy", "dense, five digits", by=0.5, of="EnSyth, five digits"),
              paper="CIFAR-5 (abstract)", reason=AGREE),
        Claim("beats random sets", "It is at least as accurate as the median of nine random sets of equal size from the cleaned pool",
              better("accuracy", "random sets", **BEST)),
        Claim("shuffled labels choose no better than chance", "The median of nine sets chosen by shuffled labels is at most 0.5 point above random sets", luckless),
        Claim("fits in the dense bytes", "The best set within the dense net's bytes is at most 0.5 point below the dense net",
              better("accuracy", "dense", by=-0.5, of="EnSyth within the dense net's bytes")),
        Claim("within the budget", "… and its file is no larger than the dense net's, whatever the replica",
              largest_file(of="EnSyth within the dense net's bytes")),
        Claim("more than the mean member", "Together the members are at least 1 point above their own mean", bound("gain", at_least=1, **BEST)),
        Claim("more than tuning alone", "It is above the dense net tuned for as many steps as one member", better("accuracy", "dense, tuned as long", **BEST)),
        Claim("beats two snapshots", "It is at least as accurate as two dense snapshots", better("accuracy", "two dense snapshots", **BEST)),
    ),
    parts={
        "1 baseline": Part(dense_net, "not below the dense net"),
        "2 pool": Part(ensyth_pool, "schedule", "pruned at once", reconstructed=True),
        "3 combiners": Part(votes, "votes by hand", "no tie-break", reconstructed=True),
        "4 backward elimination": Part(backward, "near the optimum", "labels shuffled"),
        "5 diversity": Part(ensembles.diversity, "members differ", "copies of one member"),
        "6 parallel": Part(Ensemble.together, "together", "first member's weights for all", reconstructed=True),
        "7 budget": Part(Pool.bytes, "within the budget", "zeros stored", reconstructed=True),
        "8 hygiene": Part(pool_of, "validation only", "chosen on test images"),
    },
    picture=elimination,
    exercise=Exercise("Take members out of an ensemble one by one; return the sets on the way.", STUB,
                      ["Keep one running sum over the members that are left.", "A try without member m is `total - votes[m]`; its answers are the argmax over classes.",
                       "Take out the member whose try is right most often, and subtract it from the running sum."], check_exercise, SOLUTION),
)
