"""The exact checks of the ASCAI study. A check examines an `ASCAI`; ablations are instances with one field replaced.

The loop is examined on a planted problem without a network: accuracy falls with the square of what an entry removes beyond its own limit, so the best vector is known.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from functools import cache, wraps
from pathlib import Path

import numpy as np
import torch

from ...benches import vision
from ...contracts.structure.surgery import macs, parameters
from ...core.study import Outcome
from ._ascai_factors import factor, multiplied, ranks_of
from ._ascai_result import ASCAI
from ._ascai_search import random_search, saving, sensitivity_box
from ._ascai_space import METHODS, Param, Space, load

PLANTED = np.array([0.9, 0.2, 0.6, 0.75, 0.1, 0.5, 0.85, 0.3, 0.65, 0.45])
ENTRIES = [Param(f"layer {i}", "planted", high=0.95) for i in range(len(PLANTED))]


def planted(theta: np.ndarray) -> tuple[float, float]:
    """(accuracy, cost): 0.9 up to the limits and falling beyond them; a share of the cost goes with every entry."""
    beyond = np.maximum(0, theta - PLANTED)
    return float(max(0.1, 0.9 - 4 * (beyond**2).mean() - 0.3 * beyond.mean())), float(1 - theta.mean())


@cache
def _run(method: ASCAI, seed: int):
    return replace(method, population=24, iterations=25, patience=25, max_drop=5, loose=5, seed=seed).run(ENTRIES, planted, 0.9)


def _loop(method: ASCAI) -> ASCAI:
    """What the loop depends on; methods that agree in it are run once."""
    return ASCAI(score=method.score, select=method.select, elite=method.elite, cross=method.cross, mutate=method.mutate)


@cache
def _blind() -> float:
    found = [random_search(ENTRIES, planted, 0.9, 600, seed) for seed in range(2)]
    return max(float(saving(np.array(s.accuracy), np.array(s.cost), 0.85, 0.02, None).max()) for s in found)


def never_falls(method: ASCAI) -> Outcome:
    """With a threshold that stands still, each iteration's best score is at least the one before: the best individual survives."""
    worst = min(float(np.diff([score.max() for score in _run(_loop(method), seed).scores]).min()) for seed in range(2))
    return Outcome(worst >= -1e-12, f"largest fall {max(0.0, -worst):.4f}", "0")


def finds_planted(method: ASCAI) -> Outcome:
    """From a population that knows nothing it comes within 5 % of the best known score, and above random search with as many evaluations, for two seeds."""
    goal = float(saving(*np.array(planted(PLANTED))[:, None], 0.85, 0.02, None)[0])
    blind, found = _blind(), []
    for seed in range(2):
        samples = _run(_loop(method), seed)
        found.append(float(saving(np.array(samples.accuracy), np.array(samples.cost), 0.85, 0.02, None).max()))
    return Outcome(min(found) >= 0.95 * goal and min(found) > blind, f"{min(found):.3f} at least; random search {blind:.3f}", f"{0.95 * goal:.3f}, above random search")


def bounded_alone(method: ASCAI) -> Outcome:
    """Each entry's bound is the largest of five levels that, alone, costs a point at most: the bisection against all levels tried."""
    levels = (0.2, 0.4, 0.6, 0.8, 0.95)
    def single(i: int, level: float) -> float:
        return planted(np.eye(len(ENTRIES))[i] * level)[0]

    wanted = [max([0.1, *(level for level in levels if single(i, level) >= 0.89)]) for i in range(len(ENTRIES))]
    found = [param.high for param in sensitivity_box(ENTRIES, planted, 0.9, method.bearable, levels)]
    return Outcome(found == wanted, str(found), str(wanted))


def score_by_hand(method: ASCAI) -> Outcome:
    """Within the threshold 1 − c; 4 points below it with τ = 2 points, e⁻² of that."""
    found = method.score(np.array([0.9, 0.85, 0.81]), np.array([0.3, 0.6, 0.2]), 0.85, 0.02, np.random.default_rng(0))
    wanted = np.array([0.7, 0.4, 0.8 * np.exp(-2)])
    return Outcome(bool(np.allclose(found, wanted)), np.array2string(found, precision=4), np.array2string(wanted, precision=4))


def selection(method: ASCAI) -> Outcome:
    """Of 40,000 draws the shares are (score − lowest)/Σ, the lowest never."""
    score = np.array([0.5, 0.2, 0.3, 0.6])
    found = np.bincount(method.select(score, 40_000, np.random.default_rng(2)), minlength=4) / 40_000
    wanted = (score - 0.2) / (score - 0.2).sum()
    return Outcome(bool(np.abs(found - wanted).max() < 0.01), np.array2string(found, precision=3), f"{np.array2string(wanted, precision=3)} ± 0.01")


def operators(method: ASCAI) -> Outcome:
    """Crossing exchanges 0.8 · 0.2 of the entries within pairs and invents none; mutation moves 0.8 · 0.1 of them by noise of the wanted spread."""
    return _operators(ASCAI(cross=method.cross, mutate=method.mutate))


@cache
def _operators(method: ASCAI) -> Outcome:
    rng, parents = np.random.default_rng(3), np.repeat([[0.0], [0.5]], 10_000, 0).reshape(2, -1, 1).transpose(1, 0, 2).reshape(-1, 1).repeat(4, 1)
    children = method.crossed(parents, rng)
    kept = (np.sort(children.reshape(-1, 2, 4), 1) == np.sort(parents.reshape(-1, 2, 4), 1)).all()
    swapped = float((children != parents).mean())
    moved = method.mutated(np.full((10_000, 4), 0.5), rng, 0.1) - 0.5
    share, spread = float((moved != 0).mean()), float(moved[moved != 0].std()) if moved.any() else 0.0
    ok = kept and abs(swapped - 0.16) < 0.01 and abs(share - 0.08) < 0.01 and abs(spread - 0.1) < 0.005
    return Outcome(bool(ok), f"{swapped:.3f} exchanged, {share:.3f} moved by {spread:.3f}", "0.16, 0.08 (each ± 0.01), 0.1 ± 0.005")


@cache
def _net():
    """A small VGG, as it is before training: where layers are narrow, rounding shows."""
    torch.manual_seed(8)
    return vision.NETS["vgg-small"]((8, 8, 12, 12, 16, 16)).eval()


def _space(method: ASCAI, methods=METHODS) -> Space:
    return Space(_net(), methods, vision.EXAMPLE, **method.space)


def _once(check):
    """A check of the translation, run once for each set of pieces of `Space`."""
    known: dict[frozenset, Outcome] = {}

    @wraps(check)
    def checked(method: ASCAI) -> Outcome:
        key = frozenset(method.space.items())
        if key not in known:
            known[key] = check(method)
        return known[key]

    return checked


@_once
def translation(method: ASCAI) -> Outcome:
    """On every share that a layer can realise, vector → network → vector is the identity, method by method; for all methods together, network → vector → network."""
    rng, wrong = np.random.default_rng(4), 0
    for methods in (("filters",), ("ranks",), ("weights",)):
        space = _space(method, methods)
        steps = np.array([p.steps for p in space.params])
        for _ in range(2):
            theta = np.minimum(rng.integers(0, steps), 0.99 * steps) / steps
            theta = np.floor(theta * steps + 1e-9) / steps
            wrong += int(not np.allclose(space.decode(theta).theta, theta, atol=1e-12))
    space = _space(method)
    for _ in range(2):
        first = space.decode(rng.uniform(0, 0.8, len(space.params)))
        again = space.decode(first.theta)
        wrong += int(any(not torch.equal(a, b) for a, b in zip(first.model.state_dict().values(), again.model.state_dict().values(), strict=True)))
    return Outcome(wrong == 0, f"{wrong} of 8 differ", "0 of 8")


@_once
def cached(method: ASCAI) -> Outcome:
    """Put together from the cache or made from nothing, a sample is the same bit for bit; the zero vector is the dense network."""
    rng, space, images = np.random.default_rng(5), _space(method), vision.calibration()[:4]
    thetas = [rng.uniform(0, 0.7, len(space.params)) for _ in range(2)]
    mixed = [np.where([p.kind == "filters" for p in space.params], *order) for order in (thetas, thetas[::-1])]
    wrong = 0
    with torch.no_grad():
        whole = space.decode(np.zeros(len(space.params))).model
        wrong += int(not torch.equal(whole(images), space.model(images)))
        for theta in [*thetas, *mixed]:
            pair = []
            for where in (space, _space(method)):
                try:
                    pair.append(where.decode(theta).model(images))
                except RuntimeError:  # a layer of another sample's shape
                    pair.append(torch.full((4, 10), float(len(pair))))
            wrong += int(not torch.equal(*pair))
    return Outcome(wrong == 0, f"{wrong} of 5 differ", "0 of 5")


@_once
def factored(method: ASCAI) -> Outcome:
    """Each chain computes what its factors multiplied back compute (1e-4), at whole ranks but one it is close to the layer, and holds as many weights as its ranks say."""
    split, worst, wrong = method.space.get("split", factor), 0.0, 0
    rng = torch.Generator().manual_seed(6)
    for layer, x in ((torch.nn.Conv2d(12, 20, 3, 2, 1), (2, 12, 9, 9)), (torch.nn.Conv2d(12, 8, 1), (2, 12, 5, 5)), (torch.nn.Linear(30, 20), (4, 30))):
        layer, x = layer.eval(), torch.randn(x, generator=rng)
        for share in (0.25, 0.5, 0.9):
            ranks = tuple(max(1, int(share * rank)) for rank in ranks_of(layer))
            small = split(layer, ranks)
            with torch.no_grad():
                worst = max(worst, float((small(x) - multiplied(layer, ranks)(x)).abs().max()))
            out, into = layer.weight.shape[:2]
            wanted = ranks[0] * (into + out) if len(ranks) == 1 else ranks[0] * into + 9 * ranks[0] * ranks[1] + ranks[1] * out
            wrong += int(parameters(small) != wanted + out)
    return Outcome(worst < 1e-4 and wrong == 0, f"{worst:.1e}; {wrong} of 9 with other weights", "1e-4; 0 of 9")


@_once
def honest_size(method: ASCAI) -> Outcome:
    """The stated bytes are those of the file, which brings the same answers back; MACs are counted on the rebuilt network; half of all entries is far smaller."""
    rng, space, wrong, images = np.random.default_rng(7), _space(method), 0, vision.calibration()[:4]
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for theta in (np.zeros(len(space.params)), np.full(len(space.params), 0.5), rng.uniform(0, 0.9, len(space.params))):
            found = space.decode(theta)
            size = found.save(Path(folder) / "net")
            wrong += int(size != (Path(folder) / "net").stat().st_size or size != round(space.cost(found, "bytes") * space.total["bytes"]))
            wrong += int(not torch.equal(load(Path(folder) / "net", space.model)(images), found.model(images)))
            wrong += int(macs(found.model, vision.EXAMPLE) != round(space.cost(found, "macs") * space.total["macs"]))
    half = [space.cost(_space(method, methods).decode(np.full(n, 0.5)), "bytes") for methods, n in ((("filters",), 6), (("ranks",), 13), (("weights",), 7))]
    ok = wrong == 0 and half[0] < 0.4 and half[1] < 0.6 and half[2] < 0.7
    return Outcome(ok, f"{wrong} of 9 differ; half of the filters, ranks, weights: {', '.join(f'{h:.2f}' for h in half)} of the bytes", "0 of 9; below 0.40, 0.60, 0.70")


def _slow(theta: np.ndarray) -> tuple[float, float]:
    time.sleep(0.004 * float(theta[0]))
    return planted(theta)


def workers(method: ASCAI) -> Outcome:
    """One seed gives one history, with one worker or two."""
    return _workers(ASCAI(gather=method.gather))


@cache
def _workers(method: ASCAI) -> Outcome:
    histories = [np.array(replace(method, population=6, iterations=4, patience=9, workers=n, seed=2).run(ENTRIES, _slow, 0.9).thetas) for n in (1, 2)]
    same = histories[0].shape == histories[1].shape and bool((histories[0] == histories[1]).all())
    return Outcome(same, "equal" if same else "different", "equal")


def wrong_space(**pieces) -> ASCAI:
    """An ablation of the translation: the method with other pieces of `Space`."""
    return ASCAI(space=pieces)
