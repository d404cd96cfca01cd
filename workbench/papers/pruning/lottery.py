"""The lottery ticket hypothesis: a trained network contains a small one that, from the *same* start, would have learnt as well."""

from __future__ import annotations

import copy

from .granularity import Sparse
from .procedures import LEARN, STEPS, fit, held, initial, magnitude_masks, masked_training


def lottery_ticket(net: str, ratio: float, replica: int, seed: int = 0, rounds: int = 3, rewind: int = 10, steps: int = STEPS) -> Sparse:
    """Train, prune the smallest weights, put the others back to what they were, again (Frankle and Carbin 2019, section 1; rewinding to step ``rewind``
    instead of 0: Frankle et al. 2020, section 3).

    Each of the ``rounds`` trains for ``steps`` steps and leaves the same share of what is left, so that ``ratio`` of the weights are zero at the end; the
    last training, of the winning ticket, is the net returned. ``rounds=1, rewind=0`` is the one-shot ticket.
    """
    if rounds < 1 or not 0 <= rewind < steps:
        raise ValueError(f"rounds must be at least 1 and rewind a step before {steps}, not {rounds} and {rewind}")
    start = initial(net, replica)
    if rewind:
        fit(start, seed, rewind, LEARN)
    model, masks, losses = copy.deepcopy(start), {}, []
    for done in range(1, rounds + 1):
        trained = masked_training(model, masks, seed, steps=steps - rewind)
        losses += trained.series["loss"]
        masks = magnitude_masks(trained.model, 1 - (1 - ratio) ** (done / rounds))
        model = copy.deepcopy(start)
    ticket = masked_training(model, masks, seed, steps=steps - rewind)
    return held(ticket.model, ticket.masks, losses + list(ticket.series["loss"]))
